//! The copy of the fleet's state in the database: written lazily, read at the start.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use prost::Message;
use protocol::Timestamp;
use protocol::message::{BatchBody, NodeFacts};
use protocol::telemetry::{Decoder, Encoder};
use store::sqlx::{self, Row, any::AnyRow};
use store::{Database, StoreError};
use tokio_util::sync::CancellationToken;

use crate::rows::Insert;

use super::{Dirty, Fleet, Member, NodeView, Presence, Report, Sample, Services, Tracked};

/// Figures alone are copied so often; what lies in between is in the history.
const FIGURES_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked what must be copied.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Nodes in one transaction: it holds SQLite's one writer for a few milliseconds.
const AT_ONCE: usize = 64;

impl Fleet {
    /// Reads all enrolled nodes and their last state. A node that held a session when the hub ended counts as lost
    /// since the hub last heard of it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(database: &Database, now: Timestamp) -> Result<Self, StoreError> {
        let fleet = Self::new();
        let rows = sqlx::query(
            "SELECT n.id, n.tenant, n.kind, n.name, n.enrolled_at,
                    s.presence, s.since, s.last_seen, s.remote, s.facts, s.state, n.revoked_at, n.frozen_reason
             FROM nodes n LEFT JOIN node_states s ON s.node = n.id WHERE n.removed_at IS NULL",
        )
        .fetch_all(database.reader())
        .await?;
        let mut nodes = HashMap::with_capacity(rows.len());
        for row in &rows {
            if let Some(view) = fleet.read_view(row)? {
                let tracked = Tracked { view: Arc::new(view), dirty: Dirty::No, persisted_at: spread(now) };
                nodes.insert(tracked.view.node, tracked);
            }
        }
        *fleet.0.nodes.write().unwrap_or_else(PoisonError::into_inner) = nodes;
        Ok(fleet)
    }

    /// Where the nodes were that held a session when the hub's last life ended without a goodbye. To be asked before
    /// this life's first copy.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn left_behind(database: &Database) -> Result<Vec<SocketAddr>, StoreError> {
        let remotes: Vec<Option<String>> =
            sqlx::query_scalar("SELECT remote FROM node_states WHERE presence = 'online'")
                .fetch_all(database.reader())
                .await?;
        Ok(remotes.into_iter().flatten().filter_map(|remote| remote.parse().ok()).collect())
    }

    /// Copies what changed to the database: changes of state within a second, figures within a minute; all of it
    /// when `stop` says so, and then ends.
    pub async fn keep(self, database: Database, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let stopping = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                _ = look.tick() => false,
            };
            let written = self.persist(&database, clock(), stopping).await;
            if let Err(error) = &written {
                // What was not written stays marked, and is tried again at the next look.
                tracing::warn!(%error, "the nodes' last state was not copied to the database");
            }
            if stopping {
                return;
            }
        }
    }

    /// Copies what is due, or with `all` whatever changed.
    ///
    /// # Errors
    /// When the database does not answer; nothing is forgotten.
    pub async fn persist(&self, database: &Database, now: Timestamp, all: bool) -> Result<(), StoreError> {
        loop {
            let (due, more) = self.take_due(now, all);
            if due.is_empty() {
                return Ok(());
            }
            if let Err(error) = write(database, &due, now).await {
                let mut nodes = self.0.nodes.write().unwrap_or_else(PoisonError::into_inner);
                for view in due {
                    if let Some(tracked) = nodes.get_mut(&view.node) {
                        tracked.dirty = Dirty::State;
                    }
                }
                return Err(error);
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Marks up to [`AT_ONCE`] nodes as copied and gives their views; says whether there are more.
    fn take_due(&self, now: Timestamp, all: bool) -> (Vec<Arc<NodeView>>, bool) {
        let mut due = Vec::new();
        let mut nodes = self.0.nodes.write().unwrap_or_else(PoisonError::into_inner);
        for tracked in nodes.values_mut() {
            let late = all || now.since(tracked.persisted_at) >= FIGURES_EVERY;
            if tracked.dirty == Dirty::State || (tracked.dirty == Dirty::Figures && late) {
                if due.len() == AT_ONCE {
                    return (due, true);
                }
                tracked.dirty = Dirty::No;
                tracked.persisted_at = now;
                due.push(Arc::clone(&tracked.view));
            }
        }
        (due, false)
    }

    fn read_view(&self, row: &AnyRow) -> Result<Option<NodeView>, sqlx::Error> {
        let (id, tenant): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let kind: String = row.try_get(2)?;
        let (Ok(node), Ok(tenant), Ok(kind)) = (id.parse(), tenant.parse(), kind.parse()) else { return Ok(None) };
        let enrolled_at = Timestamp::from_millis(row.try_get(4)?);
        let mut view = NodeView::new(Member { node, tenant, kind, name: row.try_get(3)?, enrolled_at });
        view.revoked_at = row.try_get::<Option<i64>, _>(11)?.map(Timestamp::from_millis);
        view.frozen = row.try_get::<Option<String>, _>(12)?.map(Into::into);
        let Some(presence) = row.try_get::<Option<String>, _>(5)? else { return Ok(Some(view)) };
        let since = Timestamp::from_millis(row.try_get(6)?);
        view.presence = match &*presence {
            "left" => Presence::Left { since, reason: row.try_get::<Option<String>, _>(8)?.unwrap_or_default() },
            "lost" => Presence::Lost { since },
            "online" => Presence::Lost { since: Timestamp::from_millis(row.try_get(7)?) },
            _ => Presence::NeverSeen,
        };
        view.last_seen = Some(Timestamp::from_millis(row.try_get(7)?));
        let (facts, state): (Vec<u8>, Vec<u8>) = (row.try_get(9)?, row.try_get(10)?);
        // An older hub's copy that can't be read costs nothing but the time until the node reports.
        view.facts = Arc::new(NodeFacts::decode(&*facts).unwrap_or_default());
        let body = BatchBody::decode(&*state).unwrap_or_default();
        let mut rows = Vec::new();
        let mut decoder = Decoder::sharing(self.schemas());
        if !body.samples.is_empty() {
            drop(decoder.decode(&body.samples, |_, at, values| rows.push((at, values.to_vec()))));
        }
        let schema = decoder.schema();
        let samples =
            rows.into_iter().filter_map(|(at, values)| Some(Sample::new(at, Arc::clone(schema?), values.into_iter())));
        view.apply(Report {
            current: true,
            complete: true,
            services: Services::new(body.services),
            removed: Vec::new(),
            engine: body.engine,
            status: body.status,
            samples: samples.collect(),
            set_back: true,
        });
        Ok(Some(view))
    }
}

/// A moment within the last minute, so that a fleet loaded at once is not copied at once.
fn spread(now: Timestamp) -> Timestamp {
    now.minus(Duration::from_millis(rand::random_range(0..FIGURES_EVERY.as_millis() as u64)))
}

async fn write(database: &Database, views: &[Arc<NodeView>], now: Timestamp) -> Result<(), StoreError> {
    // Before the transaction begins: others wait for its end.
    let copies: Vec<(&NodeView, Vec<u8>)> = views.iter().map(|view| (&**view, encode(view))).collect();
    let mut transaction = database.begin_write().await?;
    crate::rows::write(&mut transaction, UPSERT, &copies, |query, (view, state)| {
        let (presence, since, remote) = match &view.presence {
            Presence::NeverSeen => ("never", view.enrolled_at, None),
            Presence::Online { since, remote } => ("online", *since, Some(remote.to_string())),
            Presence::Lost { since } => ("lost", *since, None),
            Presence::Left { since, reason } => ("left", *since, Some(reason.clone())),
        };
        query
            .bind(view.node.to_string())
            .bind(view.tenant.to_string())
            .bind(presence)
            .bind(since.millis())
            .bind(view.last_seen.unwrap_or(view.enrolled_at).millis())
            .bind(remote)
            .bind(view.facts.encode_to_vec())
            .bind(now.millis())
            .bind(state.clone())
    })
    .await?;
    transaction.commit().await?;
    Ok(())
}

const UPSERT: Insert = Insert {
    into: "node_states (node, tenant, presence, since, last_seen, remote, facts, state_at, state)",
    columns: 9,
    on_conflict: "(node) DO UPDATE SET presence = excluded.presence, since = excluded.since,
        last_seen = excluded.last_seen, remote = excluded.remote, facts = excluded.facts,
        state_at = excluded.state_at, state = excluded.state",
};

/// A view as the key batch that would say the same.
fn encode(view: &NodeView) -> Vec<u8> {
    let mut samples = Vec::new();
    if let Some(latest) = &view.latest {
        let rows: Vec<(Timestamp, Vec<Option<i64>>)> = latest
            .previous
            .iter()
            // One batch has one schema.
            .filter(|previous| previous.schema == latest.sample.schema)
            .chain([&latest.sample])
            .map(|sample| (sample.at, sample.values().collect()))
            .collect();
        let rows = rows.iter().map(|(at, values)| (*at, &**values));
        Encoder::new().append(&latest.sample.schema, rows, true, &mut samples);
    }
    let body = BatchBody {
        key: true,
        samples,
        services: view.services.iter().collect(),
        removed: Vec::new(),
        engine: Some((*view.engine).clone()),
        status: Some((*view.status).clone()),
    };
    body.encode_to_vec()
}
