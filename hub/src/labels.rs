//! Labels: names with values that operators give to nodes, to mean many of them at once.

use std::collections::{BTreeMap, HashSet};

use protocol::{NodeId, TenantId, Timestamp};
use serde_json::json;
use store::sqlx::{self, Row};
use store::{Database, StoreError};

use crate::audit::{self, Actor, Record, action};
use crate::reason::Reason;
use crate::rows::{self, Insert};

/// Most labels of one node.
const MOST: usize = 32;
/// Longest name and value.
const LONGEST: usize = 63;

/// A name and its value, as in `ring=canary`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// What it says something about.
    pub name: String,
    /// What it says.
    pub value: String,
}

/// Labels that are not taken.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// Not a label.
    #[error("{0:?} is not a label: use name=value, each of 1 to {LONGEST} letters, digits, '-', '_' and '.'")]
    Malformed(String),
    /// Too many.
    #[error("a node has at most {MOST} labels")]
    TooMany,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for LabelError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Label {
    /// Checks both parts.
    ///
    /// # Errors
    /// [`LabelError::Malformed`].
    pub fn new(name: &str, value: &str) -> Result<Self, LabelError> {
        let good = |text: &str| {
            (1..=LONGEST).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        };
        if good(name) && good(value) {
            return Ok(Self { name: name.to_owned(), value: value.to_owned() });
        }
        Err(LabelError::Malformed(format!("{name}={value}").chars().take(2 * LONGEST).collect()))
    }
}

impl std::str::FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        match text.split_once('=') {
            Some((name, value)) => Self::new(name, value),
            None => Err(LabelError::Malformed(text.chars().take(2 * LONGEST).collect())),
        }
    }
}

/// A node's labels.
///
/// # Errors
/// When the database does not answer.
pub async fn of(database: &Database, node: NodeId, tenant: &TenantId) -> Result<BTreeMap<String, String>, StoreError> {
    let rows = sqlx::query("SELECT name, value FROM node_labels WHERE node = $1")
        .bind(node.to_string())
        .fetch_all(&mut *database.within(Some(tenant.as_str())).read().await?)
        .await?;
    Ok(rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()?)
}

/// Gives a node these labels and no others, in one transaction with the audit record.
///
/// # Errors
/// [`LabelError`]; nothing is changed then.
pub async fn replace(
    database: &Database,
    node: NodeId,
    tenant: &TenantId,
    labels: &[Label],
    reason: &Reason,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), LabelError> {
    if labels.len() > MOST {
        return Err(LabelError::TooMany);
    }
    let mut transaction = database.within(Some(tenant.as_str())).begin_write().await?;
    sqlx::query("DELETE FROM node_labels WHERE node = $1").bind(node.to_string()).execute(&mut *transaction).await?;
    rows::write(&mut transaction, LABELS, labels, |query, label| {
        query.bind(node.to_string()).bind(tenant.to_string()).bind(label.name.clone()).bind(label.value.clone())
    })
    .await?;
    let shown: BTreeMap<&str, &str> = labels.iter().map(|label| (&*label.name, &*label.value)).collect();
    let record = Record {
        actor: actor.clone(),
        action: action::NODE_LABELLED,
        tenant: Some(tenant.clone()),
        subject: node.to_string(),
        detail: json!({ "labels": shown, "reason": reason.as_str() }),
        remote: None,
    };
    audit::append(&mut transaction, now, record).await?;
    Ok(transaction.commit().await?)
}

const LABELS: Insert = Insert { into: "node_labels (node, tenant, name, value)", columns: 4, on_conflict: "" };

/// The nodes that have all of `labels`, of one tenant or of all.
///
/// # Errors
/// When the database does not answer.
pub async fn nodes(
    database: &Database,
    tenant: Option<&TenantId>,
    labels: &[Label],
) -> Result<HashSet<NodeId>, StoreError> {
    let mut found: Option<HashSet<NodeId>> = None;
    for label in labels {
        let rows = sqlx::query("SELECT node FROM node_labels WHERE name = $1 AND value = $2")
            .bind(&label.name)
            .bind(&label.value)
            .fetch_all(&mut *database.within(tenant.map(TenantId::as_str)).read().await?)
            .await?;
        let ids = rows.iter().map(|row| row.try_get::<String, _>(0)).collect::<Result<Vec<_>, _>>()?;
        let ids: HashSet<NodeId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
        found = Some(found.map_or_else(|| ids.clone(), |before| &before & &ids));
    }
    Ok(found.unwrap_or_default())
}
