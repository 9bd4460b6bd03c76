//! Taking commands back: one that somebody names, those of a request or a rollout, and those of an operator's key that is revoked.

use std::collections::BTreeMap;

use pki::OperatorPublicKey;
use protocol::command::State;
use protocol::{CommandId, NodeId, TenantId, Timestamp};
use serde_json::{Value, json};
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{StoreError, Transaction};

use super::request::NAMED;
use super::{Command, Commands, state, unreadable};
use crate::audit::{self, Actor, Record, action};
use crate::reason::Reason;
use crate::rows::{self, Bound};

/// A command that is not taken back.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// No such command.
    #[error("there is no command {0}: see `hfctl command list`")]
    Unknown(CommandId),
    /// No such request.
    #[error("there is no request {0:?}: see `hfctl command list`")]
    NoRequest(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CancelError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What came of taking commands back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenBack {
    /// Nobody had been told of so many: they are cancelled.
    pub cancelled: usize,
    /// So many are with their nodes, which say what comes of them.
    pub told: usize,
}

/// What commands have in common that are taken back together.
enum Lot<'a> {
    /// The request they are part of.
    Request(&'a str),
    /// The operator's key that has signed them, and its id.
    Signed(OperatorPublicKey, &'a str),
}

impl Commands {
    /// Takes a command back. One that no node has been told is cancelled at once; of another, its node says what came of it.
    /// Doing it twice changes nothing.
    ///
    /// # Errors
    /// [`CancelError`].
    pub async fn cancel(
        &self,
        id: CommandId,
        tenant: Option<&TenantId>,
        reason: &Reason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Command, CancelError> {
        let command = self.one(id, tenant, now).await?.ok_or(CancelError::Unknown(id))?;
        let (commands, reason, actor) = (self.clone(), reason.clone(), actor.clone());
        // What is stored as taken back, its node must then be told.
        self.wholly(async move {
            let cancelled = commands.take_one_back(&command, &reason, &actor, now).await;
            // Whatever came of it: it may be stored although the database has not said so, or be so since before.
            commands.changed(command.node);
            cancelled
        })
        .await?;
        self.one(id, tenant, now).await?.ok_or(CancelError::Unknown(id))
    }

    /// Takes back all of a request that is not over, as far as `tenant` goes: as if each was taken back, in one transaction. Doing it
    /// twice changes nothing.
    ///
    /// # Errors
    /// [`CancelError`]; nothing was taken back then.
    pub async fn cancel_request(
        &self,
        request: &str,
        tenant: Option<&TenantId>,
        reason: &Reason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<TakenBack, CancelError> {
        let (commands, request, tenant) = (self.clone(), request.to_owned(), tenant.cloned());
        let (reason, actor) = (reason.clone(), actor.clone());
        self.wholly(async move {
            let tenant = tenant.as_ref();
            if commands.tally(&request, tenant).await?.is_empty() {
                return Err(CancelError::NoRequest(request.chars().take(64).collect()));
            }
            Ok(commands.take_all_back(&Lot::Request(&request), tenant, &reason, &actor, now).await?)
        })
        .await
    }

    async fn take_one_back(
        &self,
        command: &Command,
        reason: &Reason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let id = command.id;
        let mut transaction = self.0.database.within(Some(command.tenant.as_str())).begin_write().await?;
        let row = sqlx::query(
            "UPDATE commands SET cancelled_by = $2, message = CASE state WHEN 'unknown' THEN message ELSE $3 END
             WHERE id = $1 AND cancelled_by IS NULL
               AND (state IN ('queued', 'delivered', 'running') OR (state = 'unknown' AND told_at IS NULL))
             RETURNING state",
        )
        .bind(id.to_string())
        .bind(actor.to_string())
        .bind(taken_back(reason))
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(row) = row {
            let state = state(&row.try_get::<String, _>(0)?)?;
            let next = state.taken_back();
            if next != state {
                sqlx::query("UPDATE commands SET state = $2, ended_at = $3 WHERE id = $1")
                    .bind(id.to_string())
                    .bind(next.as_str())
                    .bind(now.millis())
                    .execute(&mut *transaction)
                    .await?;
            }
            let record = Record {
                actor: actor.clone(),
                action: action::COMMAND_CANCELLED,
                tenant: Some(command.tenant.clone()),
                subject: id.to_string(),
                detail: json!({
                    "node": command.node.to_string(), "action": command.name, "state": state.as_str(),
                    "reason": reason.as_str(),
                }),
                remote: None,
            };
            audit::append(&mut transaction, now, record).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    /// Takes back, as part of a transaction, what a rollout has asked for and nobody was told. Gives the nodes, of which
    /// [`Commands::taken_back`] is to be told once it has committed, and the audit records.
    pub(crate) async fn take_back(
        &self,
        transaction: &mut Transaction,
        rollout: i64,
        reason: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(Vec<NodeId>, Vec<Record>), StoreError> {
        let rows = sqlx::query(
            "UPDATE commands SET state = 'cancelled', cancelled_by = $2, ended_at = $3
             WHERE state = 'queued' AND id IN (SELECT command FROM rollout_nodes WHERE rollout = $1)
             RETURNING id, node, tenant, 'queued'",
        )
        .bind(rollout)
        .bind(actor.to_string())
        .bind(now.millis())
        .fetch_all(&mut **transaction)
        .await?;
        let detail = json!({ "rollout": rollout, "state": "queued", "reason": reason });
        Ok(taken_from(&rows, &format!("rollout {rollout}"), &detail, actor)?)
    }

    /// Takes back all that an operator's key has signed and that is not over. Doing it twice changes nothing.
    ///
    /// # Errors
    /// When it could not be stored.
    pub(crate) async fn take_back_signed(
        &self,
        key: OperatorPublicKey,
        id: &str,
        tenant: Option<&TenantId>,
        reason: &Reason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.take_all_back(&Lot::Signed(key, id), tenant, reason, actor, now).await.map(drop)
    }

    async fn take_all_back(
        &self,
        lot: &Lot<'_>,
        tenant: Option<&TenantId>,
        reason: &Reason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<TakenBack, StoreError> {
        let tenant = tenant.map_or("", TenantId::as_str);
        let mut transaction = self.0.database.within(Some(tenant).filter(|of| !of.is_empty())).begin_write().await?;
        // In the order of their ids, as nodes' words take them: of two that come by the same ones, one waits, and not each for the
        // other.
        let which = format!(
            "{} = $1 AND ($2 = '' OR tenant = $2) AND cancelled_by IS NULL
               AND told_at IS NULL AND state IN ('queued', 'delivered', 'running', 'unknown')",
            lot.column()
        );
        let sql = format!(
            "SELECT id, node, tenant, state FROM commands WHERE {which} ORDER BY id{}",
            rows::for_update(&transaction)
        );
        let query = lot.bind(sqlx::query(AssertSqlSafe(sql))).bind(tenant.to_owned());
        let rows = query.fetch_all(&mut *transaction).await?;
        if rows.is_empty() {
            return Ok(TakenBack { cancelled: 0, told: 0 });
        }
        let sql = format!(
            "UPDATE commands SET cancelled_by = $3,
               state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,
               ended_at = CASE state WHEN 'queued' THEN $4 ELSE ended_at END,
               message = CASE state WHEN 'unknown' THEN message ELSE $5 END
             WHERE {which}"
        );
        lot.bind(sqlx::query(AssertSqlSafe(sql)))
            .bind(tenant.to_owned())
            .bind(actor.to_string())
            .bind(now.millis())
            .bind(lot.message(reason))
            .execute(&mut *transaction)
            .await?;
        let (nodes, records) = taken_from(&rows, &lot.subject(), &lot.detail(reason), actor)?;
        audit::append_all(&mut transaction, now, records).await?;
        let committed = transaction.commit().await;
        // Whatever came of it: it may be stored although the database has not said so.
        self.taken_back(&nodes);
        committed?;
        let states = rows.iter().map(|row| state(&row.try_get::<String, _>(3)?)).collect::<Result<Vec<_>, _>>()?;
        let cancelled = states.iter().filter(|state| state.taken_back() == State::Cancelled).count();
        Ok(TakenBack { cancelled, told: states.len() - cancelled })
    }

    /// Tells whoever looks that commands of these nodes were taken back.
    pub(crate) fn taken_back(&self, nodes: &[NodeId]) {
        nodes.iter().for_each(|node| self.changed(*node));
    }
}

impl Lot<'_> {
    fn column(&self) -> &'static str {
        match self {
            Self::Request(_) => "request",
            Self::Signed(..) => "signer",
        }
    }

    /// Binds what the column has.
    fn bind<'q>(&self, query: Bound<'q>) -> Bound<'q> {
        match self {
            Self::Request(id) => query.bind((*id).to_owned()),
            Self::Signed(key, _) => query.bind(key.to_bytes().to_vec()),
        }
    }

    /// Of its audit records.
    fn subject(&self) -> String {
        match self {
            Self::Request(id) => format!("request {id}"),
            Self::Signed(_, id) => format!("operator key {id}"),
        }
    }

    fn detail(&self, reason: &Reason) -> Value {
        match self {
            Self::Request(id) => json!({ "request": id, "reason": reason.as_str() }),
            Self::Signed(_, id) => json!({ "operator_key": id, "reason": reason.as_str() }),
        }
    }

    /// What each of its commands says, until its node does.
    fn message(&self, reason: &Reason) -> String {
        match self {
            Self::Request(_) => taken_back(reason),
            Self::Signed(..) => format!("the operator key that signed it was revoked: {reason}"),
        }
    }
}

/// What a command says that somebody took back.
fn taken_back(reason: &Reason) -> String {
    format!("taken back: {reason}")
}

/// The nodes of commands that were taken back together, and a record for each tenant; of each command, `rows` have its id, its
/// node, its tenant and how it stood.
fn taken_from(
    rows: &[AnyRow],
    subject: &str,
    detail: &Value,
    actor: &Actor,
) -> Result<(Vec<NodeId>, Vec<Record>), sqlx::Error> {
    let mut nodes = Vec::with_capacity(rows.len());
    let mut tenants: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for row in rows {
        let [command, node, tenant, state]: [String; 4] =
            [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?];
        nodes.push(node.parse().map_err(unreadable)?);
        tenants.entry(tenant).or_default().push(json!({ "command": command, "node": node, "state": state }));
    }
    let record = |(tenant, commands): (String, Vec<Value>)| {
        let mut detail = detail.clone();
        detail["nodes"] = commands.len().into();
        // Of a few, each is named.
        detail["commands"] = commands.into_iter().take(NAMED).collect();
        Ok(Record {
            actor: actor.clone(),
            action: action::COMMAND_CANCELLED,
            tenant: Some(tenant.parse().map_err(unreadable)?),
            subject: subject.to_owned(),
            detail,
            remote: None,
        })
    };
    Ok((nodes, tenants.into_iter().map(record).collect::<Result<_, sqlx::Error>>()?))
}
