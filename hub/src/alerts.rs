//! Alerts: what at a node, of an authority or of a rollout, needs somebody's attention, when it began and when it was over.

mod authorities;
mod evaluator;
mod gauges;
mod policy;
mod rules;
mod upkeep;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use protocol::{NodeId, TenantId, Timestamp};
use store::sqlx::{self, AssertSqlSafe, Row, any::AnyRow};
use store::{Database, StoreError, Transaction};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::authorities::Authorities;
use crate::rows;
use crate::telemetry::state::{Fleet, Level};

pub use evaluator::{Change, Evaluator, Finding};
pub use gauges::Gauges;
pub use policy::Policy;
pub(crate) use rules::ails;
pub use rules::{Rule, RuleError};
pub use upkeep::Upkeep;

/// Changes in one transaction: where a fleet is lost and comes back, others have their turn in between.
const AT_ONCE: usize = 64;

/// Changes a slow reader may fall behind; beyond it, it is told that it lagged and lists again.
const CHANGES: usize = 1024;
/// How often changed nodes, and those with something pending, are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often the authorities are looked at.
const LOOK_AT_AUTHORITIES: Duration = Duration::from_secs(60);
/// Changes not yet in the database. When it is away for longer than this many, the oldest are dropped: the log says
/// so, and what is open then is opened again at the next start.
const UNWRITTEN: usize = 10_000;

/// The alerts of the fleet. Clones share them.
#[derive(Clone)]
pub struct Alerts {
    database: Database,
    changes: broadcast::Sender<Change>,
}

/// One alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Its number.
    pub id: i64,
    /// Whose node or authority; `None`: the fleet's.
    pub tenant: Option<TenantId>,
    /// The node; `None`: it is about an authority, a rollout, or a bridge that was removed.
    pub node: Option<NodeId>,
    /// The rule, such as `node.lost`.
    pub rule: String,
    /// The service, `stack/service/number`, or the authority, `kind/generation`, or the rollout, `rollout/number`, or the
    /// bridge that was removed, `bridge/id`; empty for the node itself.
    pub subject: String,
    /// How urgent.
    pub level: Level,
    /// What is wrong and what to do.
    pub message: String,
    /// When it began to be an alert.
    pub opened_at: Timestamp,
    /// When it was over; `None`: it is not.
    pub closed_at: Option<Timestamp>,
}

/// Which alerts to list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Of this tenant alone.
    pub tenant: Option<TenantId>,
    /// Of this node alone.
    pub node: Option<NodeId>,
    /// Open ones alone, or closed ones alone.
    pub open: Option<bool>,
    /// Opened before this one: a page further back.
    pub before: Option<i64>,
    /// At most so many, and at most 1,000.
    pub limit: u32,
}

impl Default for Filter {
    fn default() -> Self {
        Self { tenant: None, node: None, open: None, before: None, limit: 100 }
    }
}

impl Alerts {
    /// Starts judging the fleet and its authorities: a handle, and the task that does it until `stop`. Alerts left open by the hub's last
    /// run are taken over.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start<C: Fn() -> Timestamp + Send + 'static>(
        database: Database,
        fleet: Fleet,
        authorities: Authorities,
        policy: Policy,
        clock: C,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<C>), StoreError> {
        let policy = Policy { certificates: authorities.policies().clone(), ..policy };
        let (mut evaluator, mut watch) = (Evaluator::new(policy, clock()), authorities::Watch::default());
        let alerts = Self { database, changes: broadcast::channel(CHANGES).0 };
        let open = Filter { open: Some(true), limit: u32::MAX, ..Filter::default() };
        for alert in alerts.list_all(&open).await? {
            match (alert.rule.parse(), alert.node) {
                (Ok(rule), Some(node)) => {
                    evaluator.restore(node, rule, &alert.subject, alert.level, &alert.message);
                }
                (Ok(Rule::AuthorityEnding), None) => {
                    watch.restore(alert.tenant, &alert.subject, alert.level, &alert.message);
                }
                _ => {}
            }
        }
        let unwritten = VecDeque::new();
        let watcher = Watcher { alerts: alerts.clone(), fleet, authorities, evaluator, watch, unwritten };
        Ok((alerts, watcher.run(clock, stop)))
    }

    /// Alerts that match `filter`, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Alert>, StoreError> {
        self.list_all(&Filter { limit: filter.limit.min(1000), ..filter.clone() }).await
    }

    /// How many are open: of a tenant, or of the fleet. Without their order, which has a list read down the whole table.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open(&self, tenant: Option<&TenantId>) -> Result<usize, StoreError> {
        let tenant = tenant.map(TenantId::as_str);
        let open: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM alerts WHERE closed_at IS NULL AND ($1 = '' OR tenant = $1)")
                .bind(tenant.unwrap_or_default())
                .fetch_one(&mut *self.database.within(tenant).read().await?)
                .await?;
        Ok(usize::try_from(open).unwrap_or(0))
    }

    /// What opens and closes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// How many are open, by their rules' names.
    async fn tally(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query("SELECT rule, COUNT(*) FROM alerts WHERE closed_at IS NULL GROUP BY rule")
            .fetch_all(self.database.reader())
            .await?;
        Ok(rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()?)
    }

    async fn list_all(&self, filter: &Filter) -> Result<Vec<Alert>, StoreError> {
        let (sql, values) = chosen(filter);
        let query = values.into_iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| query.bind(value));
        let rows = query
            .fetch_all(&mut *self.database.within(filter.tenant.as_ref().map(TenantId::as_str)).read().await?)
            .await?;
        Ok(rows.iter().map(read).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    async fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().await?;
        self.put(&mut transaction, changes).await?;
        Ok(transaction.commit().await?)
    }

    /// Writes changes as part of a transaction, and gives those that are news: once it has committed, [`Alerts::announce`] tells
    /// of them.
    pub(crate) async fn put(
        &self,
        transaction: &mut Transaction,
        changes: &[Change],
    ) -> Result<Vec<Change>, StoreError> {
        let mut news = Vec::new();
        for change in changes {
            let written = match change {
                Change::Opened(finding) => {
                    sqlx::query(
                        "INSERT INTO alerts (tenant, node, rule, subject, severity, message, opened_at)
                         VALUES ($1, $2, $3, $4, $5, $6, $7)
                         ON CONFLICT (COALESCE(node, ''), COALESCE(tenant, ''), rule, subject) WHERE closed_at IS NULL
                         DO NOTHING",
                    )
                    .bind(finding.tenant.as_ref().map(TenantId::as_str))
                    .bind(finding.node.map(|node| node.to_string()))
                    .bind(finding.rule.as_str())
                    .bind(&finding.subject)
                    .bind(finding.level.as_str())
                    .bind(&finding.message)
                    .bind(finding.at.millis())
                    .execute(&mut **transaction)
                    .await?
                }
                Change::Closed(finding) => {
                    sqlx::query(
                        "UPDATE alerts SET closed_at = $4
                         WHERE COALESCE(node, '') = $1 AND COALESCE(tenant, '') = $5 AND rule = $2 AND subject = $3
                           AND closed_at IS NULL",
                    )
                    .bind(finding.node.map_or_else(String::new, |node| node.to_string()))
                    .bind(finding.rule.as_str())
                    .bind(&finding.subject)
                    .bind(finding.at.millis())
                    .bind(finding.tenant.as_ref().map_or("", TenantId::as_str))
                    .execute(&mut **transaction)
                    .await?
                }
            };
            if written.rows_affected() > 0 {
                news.push(change.clone());
            }
        }
        Ok(news)
    }

    /// Tells whoever listens what has been written.
    pub(crate) fn announce(&self, changes: Vec<Change>) {
        for change in changes {
            // Nobody listening is fine.
            drop(self.changes.send(change));
        }
    }
}

/// The task: hands changed nodes and all authorities to those who judge them, and what they find to the database and the
/// fleet.
struct Watcher {
    alerts: Alerts,
    fleet: Fleet,
    authorities: Authorities,
    evaluator: Evaluator,
    watch: authorities::Watch,
    unwritten: VecDeque<Change>,
}

impl Watcher {
    async fn run(mut self, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        let mut changed = self.fleet.changes();
        let mut nodes: HashSet<NodeId> = self.fleet.all().iter().map(|view| view.node).collect();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look_at_authorities = tokio::time::interval(LOOK_AT_AUTHORITIES);
        look_at_authorities.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.write().await,
                _ = look_at_authorities.tick() => {
                    self.judge_authorities(clock()).await;
                    continue;
                }
                _ = look.tick() => {}
                change = changed.recv() => {
                    match change {
                        Ok(node) => drop(nodes.insert(node)),
                        Err(broadcast::error::RecvError::Lagged(_)) => {
                            nodes.extend(self.fleet.all().iter().map(|view| view.node));
                        }
                        Err(broadcast::error::RecvError::Closed) => return self.write().await,
                    }
                    continue;
                }
            }
            let now = clock();
            nodes.extend(self.evaluator.due(now));
            for node in nodes.drain() {
                self.judge(node, now);
            }
            self.write().await;
        }
    }

    fn judge(&mut self, node: NodeId, now: Timestamp) {
        let Some(view) = self.fleet.node(node) else {
            self.evaluator.forget(node);
            return;
        };
        let changes = self.evaluator.observe(&view, now);
        let attention = self.evaluator.attention(node);
        if *view.attention != attention {
            self.fleet.attention(node, attention);
        }
        self.keep(changes);
    }

    async fn judge_authorities(&mut self, now: Timestamp) {
        match self.authorities.list(None, now).await {
            Ok(listed) => {
                let changes = self.watch.observe(&listed, now);
                self.keep(changes);
            }
            Err(error) => tracing::debug!(%error, "authorities could not be listed"),
        }
    }

    /// Puts changes among those to be written.
    fn keep(&mut self, changes: Vec<Change>) {
        for change in changes {
            let (Change::Opened(finding) | Change::Closed(finding)) = &change;
            let (node, tenant) =
                (finding.node.map(tracing::field::display), finding.tenant.as_ref().map(TenantId::as_str));
            let (rule, subject) = (finding.rule.as_str(), &finding.subject);
            match &change {
                Change::Opened(finding) => {
                    tracing::warn!(node, tenant, rule, subject, finding.message, "alert opened");
                }
                Change::Closed(_) => tracing::info!(node, tenant, rule, subject, "alert closed"),
            }
            if self.unwritten.len() == UNWRITTEN {
                self.unwritten.pop_front();
                tracing::error!("an alert's change is dropped: the database has been away too long");
            }
            self.unwritten.push_back(change);
        }
    }

    /// Writes what is not written yet; what fails is tried again at the next look. Where the database refuses what is in a row,
    /// fewer are tried until the culprit stands alone, and that one is left out: others do not wait for it.
    async fn write(&mut self) {
        let mut most = AT_ONCE;
        while !self.unwritten.is_empty() {
            let few = self.unwritten.len().min(most);
            let changes = self.unwritten.make_contiguous();
            match self.alerts.write(&changes[..few]).await {
                Ok(()) => {
                    let written = self.unwritten.drain(..few).collect();
                    self.alerts.announce(written);
                    most = AT_ONCE;
                }
                Err(error) if error.is_about_row() && few > 1 => most = few / 2,
                Err(error) if error.is_about_row() => {
                    let (error, change) = (rows::chain(&error), &changes[0]);
                    tracing::error!(error, ?change, "an alert's change is left out: the database does not take it");
                    self.unwritten.pop_front();
                    most = AT_ONCE;
                }
                Err(error) => {
                    tracing::warn!(%error, waiting = changes.len(), "alerts could not be written");
                    return;
                }
            }
        }
    }
}

/// The statement for a list, and what it is to be given. What is asked for alone is written: SQLite uses no index for what may
/// be empty. Those of a node, and those that are open, are found by an index of theirs; then it is seen whose they are.
fn chosen(filter: &Filter) -> (String, Vec<String>) {
    let found = filter.node.is_some() || filter.open == Some(true);
    let asked = [
        (if found { "tenant || '' =" } else { "tenant =" }, filter.tenant.as_ref().map(ToString::to_string)),
        ("node =", filter.node.map(|node| node.to_string())),
    ];
    let (mut conditions, mut values) = (Vec::new(), Vec::new());
    for (condition, value) in asked {
        if let Some(value) = value {
            values.push(value);
            conditions.push(format!("{condition} ${}", values.len()));
        }
    }
    match filter.open {
        Some(true) => conditions.push("closed_at IS NULL".into()),
        Some(false) => conditions.push("closed_at IS NOT NULL".into()),
        None => {}
    }
    if let Some(before) = filter.before {
        conditions.push(format!("id < {before}"));
    }
    let which = if conditions.is_empty() { String::new() } else { format!("WHERE {} ", conditions.join(" AND ")) };
    let sql = format!(
        "SELECT id, tenant, node, rule, subject, severity, message, opened_at, closed_at FROM alerts
         {which}ORDER BY id DESC LIMIT {}",
        filter.limit
    );
    (sql, values)
}

/// `None` for ids that are none: nothing but this module writes them.
fn read(row: &AnyRow) -> Result<Option<Alert>, sqlx::Error> {
    let (tenant, node): (Option<String>, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
    let level: String = row.try_get(5)?;
    let (tenant, node) = (tenant.map(|id| id.parse()).transpose(), node.map(|id| id.parse()).transpose());
    let (Ok(tenant), Ok(node)) = (tenant, node) else { return Ok(None) };
    Ok(Some(Alert {
        id: row.try_get(0)?,
        tenant,
        node,
        rule: row.try_get(3)?,
        subject: row.try_get(4)?,
        level: level.parse().unwrap_or(Level::Notice),
        message: row.try_get(6)?,
        opened_at: Timestamp::from_millis(row.try_get(7)?),
        closed_at: row.try_get::<Option<i64>, _>(8)?.map(Timestamp::from_millis),
    }))
}

#[cfg(test)]
mod tests {
    use store::Engine;
    use store::testing::TestDatabase;

    use super::*;

    #[tokio::test]
    async fn what_is_asked_for_is_found_by_an_index_and_not_sorted() {
        let test = TestDatabase::create(Engine::Sqlite).await;
        let database = test.open().await;
        database.migrate(crate::schema::MIGRATIONS).await.expect("tables");
        let tenant: Option<TenantId> = Some("acme".parse().expect("an id"));
        let node = Some(NodeId::new(Timestamp::from_millis(0), [0; 10]));
        let open = Some(true);
        let all = Filter::default();
        for (filter, index) in [
            (Filter { node, tenant: tenant.clone(), open, ..all.clone() }, "alerts_node (node=?)"),
            (Filter { node, before: Some(7), ..all.clone() }, "alerts_node (node=? AND id<?)"),
            (Filter { open, tenant: tenant.clone(), ..all.clone() }, "alerts_closed (closed_at=?)"),
            (Filter { open, ..all.clone() }, "alerts_closed (closed_at=?)"),
            (Filter { tenant, before: Some(7), ..all }, "alerts_tenant (tenant=? AND id<?)"),
        ] {
            let (sql, values) = chosen(&filter);
            let explained = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let explained = values.into_iter().fold(sqlx::query(explained), |query, value| query.bind(value));
            let steps = explained.fetch_all(database.reader()).await.expect("a plan");
            let steps: Vec<String> = steps.iter().map(|step| step.try_get("detail").expect("a step")).collect();
            assert_eq!(steps, [format!("SEARCH alerts USING INDEX {index}")], "{filter:?}");
        }
        database.close().await;
        test.remove().await;
    }
}
