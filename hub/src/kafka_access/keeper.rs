//! Has agents bring brokers to what is wanted, and sees what came of it. Where it stands is in the rows alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::command::{Action, State as Stands};
use protocol::{NodeId, NodeKind, TenantId, Timestamp};
use serde_json::json;
use store::StoreError;
use store::sqlx::{self, AssertSqlSafe};
use tokio_util::sync::CancellationToken;

use super::{Access, KafkaAccess, Row, State, Step};
use crate::alerts::{Change, Finding, Rule};
use crate::audit::{self, Actor, Record, action};
use crate::commands::{NewRequest, RequestError};
use crate::reason::Reason;
use crate::telemetry::state::Level;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How far hubs' clocks may be apart before one misses what another changed.
const APART: Duration = Duration::from_secs(60);
/// How long an agent has to begin.
const VALID_FOR: Duration = Duration::from_secs(600);
/// Before what people ask for, which can wait: a certificate is of no use until then.
const PRIORITY: u32 = 10;

/// Looks and does what is due until `stop`.
pub(super) async fn keep(access: KafkaAccess, wall: impl Fn() -> Timestamp, stop: CancellationToken) {
    let mut seen = Timestamp::default();
    loop {
        match access.look(seen, wall()).await {
            Ok(through) => seen = through,
            Err(error) => tracing::warn!(%error, "what bridges may do at their brokers was not looked at"),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = access.sooner.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl KafkaAccess {
    /// Does what is due by rows that changed after `seen`, or that are not where they should be; gives when the newest of them
    /// changed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look(&self, seen: Timestamp, now: Timestamp) -> Result<Timestamp, StoreError> {
        let sql = format!("{} WHERE a.state <> 'placed' OR a.changed_at >= $1 ORDER BY a.changed_at", Row::SELECT);
        let found =
            sqlx::query(AssertSqlSafe(sql)).bind(seen.minus(APART).millis()).fetch_all(self.database.reader()).await?;
        let found = found.iter().map(Row::read).collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() {
            return Ok(seen);
        }
        let agents = self.agents();
        let mut through = seen;
        for mut row in found {
            through = through.max(row.changed_at);
            let agent = agents.get(&row.tenant).copied();
            // Most looks find nothing to do, and need not keep others from writing.
            while row.step(agent.is_some(), now) != Step::Wait {
                match self.take(&row, agent, now).await {
                    Ok(Some(after)) => row = after,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(bridge = %row.bridge, %error, "what a bridge may do was not passed on; it will be");
                        break;
                    }
                }
            }
            self.show(&row, agent.is_some());
        }
        Ok(through)
    }

    /// Of each tenant, an agent that is there and is configured for its brokers.
    fn agents(&self) -> HashMap<TenantId, NodeId> {
        let able = self.fleet.all().into_iter().filter(|view| {
            let trusted = view.revoked_at.is_none() && view.frozen.is_none();
            view.kind == NodeKind::Agent && trusted && view.presence.is_online() && view.facts.keeps_kafka_acls
        });
        // The first by name, unless it is gone.
        able.fold(HashMap::new(), |mut agents, view| {
            agents.entry(view.tenant.clone()).or_insert(view.node);
            agents
        })
    }

    /// Takes a step; gives the row after it, or nothing when it was somebody else's.
    async fn take(&self, seen: &Row, agent: Option<NodeId>, now: Timestamp) -> Result<Option<Row>, RequestError> {
        let database = self.database.within(Some(seen.tenant.as_str()));
        let mut transaction = database.begin_write().await?;
        // Whoever else looks waits here.
        sqlx::query("UPDATE kafka_access SET revision = revision WHERE node = $1")
            .bind(seen.bridge.to_string())
            .execute(&mut *transaction)
            .await?;
        let sql = format!("{} WHERE a.node = $1", Row::SELECT);
        let row = sqlx::query(AssertSqlSafe(sql)).bind(seen.bridge.to_string());
        let mut row = Row::read(&row.fetch_one(&mut *transaction).await?)?;
        let (mut command, mut placed, mut records) = (None, None, Vec::new());
        match (row.step(agent.is_some(), now), agent) {
            (Step::Wait, _) | (Step::Ask, None) => return Ok(None),
            (Step::Ask, Some(agent)) => {
                let new = request(&row, agent);
                let places = self.commands.no_places();
                let (requested, asked) =
                    self.commands.place(&mut transaction, &new, &places, &Actor::system(), now).await?;
                command = requested.commands.first().map(|(command, _)| command.to_string());
                records = asked;
                placed = Some((new, requested));
                (row.state, row.asked_revision) = (State::Asked, row.revision);
            }
            (Step::Again, _) => (row.state, row.retry_at) = (State::Waiting, now),
            (Step::Fail(why, retry_at), _) => {
                (row.state, row.message, row.retry_at) = (State::Refused, why, retry_at);
                row.tries = row.tries.saturating_add(1);
            }
            (Step::Settle(done), _) => {
                records.push(settled(&row, &done));
                (row.state, row.message, row.tries) = (State::Placed, done, 0);
            }
        }
        sqlx::query(
            "UPDATE kafka_access SET state = $2, command = COALESCE($3, command), asked_revision = $4, tries = $5, retry_at = $6,
               message = $7, changed_at = $8 WHERE node = $1",
        )
        .bind(row.bridge.to_string())
        .bind(row.state.as_str())
        .bind(command)
        .bind(row.asked_revision)
        .bind(i64::from(row.tries))
        .bind(row.retry_at.millis())
        .bind(row.message.clone())
        .bind(now.millis())
        .execute(&mut *transaction)
        .await?;
        if !records.is_empty() {
            audit::append_all(&mut transaction, now, records).await?;
        }
        let alert = self.alert(&row, now);
        let alert = self.alerts.put(&mut transaction, alert.as_slice()).await?;
        transaction.commit().await?;
        self.alerts.announce(alert);
        if let Some((new, requested)) = placed {
            self.commands.placed(&new, &requested, self.commands.no_places(), now);
            row.command = Some((Stands::Queued, String::new()));
            return Ok(Some(row));
        }
        tracing::info!(bridge = %row.bridge, state = %row.state, message = row.message, "what a bridge may do at its brokers");
        Ok(Some(row))
    }

    /// What changes about the alert of a bridge that is no longer in the fleet, where no rule judges it.
    fn alert(&self, row: &Row, now: Timestamp) -> Option<Change> {
        if self.fleet.node(row.bridge).is_some() {
            return None;
        }
        let finding = Finding {
            tenant: Some(row.tenant.clone()),
            node: None,
            rule: Rule::KafkaAccess,
            subject: format!("bridge/{}", row.bridge),
            level: Level::Critical,
            message: format!(
                "it was removed, and what it was allowed at its brokers is not taken away yet, and will be tried again: {}",
                row.message
            ),
            at: now,
        };
        match row.state {
            // One attempt is not much: an agent may be just starting, or a broker.
            State::Refused if row.tries > 1 => Some(Change::Opened(finding)),
            State::Placed => Some(Change::Closed(finding)),
            State::Refused | State::Waiting | State::Asked => None,
        }
    }

    /// Lets pages see how it stands.
    fn show(&self, row: &Row, agent: bool) {
        let message = match row.state {
            State::Waiting if !agent => {
                "no agent of the tenant is there that is configured for its brokers: see [kafka] in agent.toml"
                    .to_owned()
            }
            _ => row.message.clone(),
        };
        let access = Access { topics: row.topics.clone(), state: row.state, message, tries: row.tries };
        self.fleet.kafka_access(row.bridge, Arc::new(access));
    }
}

fn request(row: &Row, agent: NodeId) -> NewRequest {
    let reason = Reason::own(match row.topics.is_empty() {
        true => "the bridge is no longer trusted",
        false => "what the bridge may do at its brokers is to be so",
    });
    NewRequest {
        nodes: vec![(agent, row.tenant.clone())],
        target: json!({ "bridge": row.bridge.to_string() }),
        action: Action::KafkaAcl { bridge: row.bridge, topics: row.topics.clone() },
        priority: PRIORITY,
        valid_for: VALID_FOR,
        reason,
        scope: Some(row.tenant.clone()),
        caller: "system".to_owned(),
        key: None,
        fingerprint: Vec::new(),
        signed: None,
    }
}

fn settled(row: &Row, done: &str) -> Record {
    Record {
        actor: Actor::system(),
        action: action::KAFKA_ACCESS_PLACED,
        tenant: Some(row.tenant.clone()),
        subject: row.bridge.to_string(),
        detail: json!({
            "principal": format!("User:CN={}", pki::kafka_principal(row.bridge)), "write": row.topics, "done": done,
        }),
        remote: None,
    }
}
