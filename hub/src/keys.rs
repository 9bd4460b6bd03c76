//! The fleet's data keys: one per owner, stored wrapped under a master key that is not in the database.
//!
//! An owner's CA keys are sealed with the owner's data key. Deleting that one row makes them unreadable for ever, in every
//! backup of the other tables too; moving to another master key wraps the data keys anew and nothing else.

mod command;
pub mod master;
pub(crate) mod prompt;
pub mod verb;

use std::sync::Arc;

use pki::{DataKey, MasterKey, Owner, PassphraseError, SealError};
use protocol::Timestamp;
use serde_json::json;
use store::sqlx::{self, Row};
use store::{Database, StoreError, Transaction};

use crate::audit::{self, Actor, Record, action};
use crate::rows::parsed;
pub use command::CommandError;
pub use master::{Kind, Master};

/// The data keys, by the master key that opens them. Clones share it.
#[derive(Clone)]
pub struct Keys(Arc<MasterKey>);

/// The master key as the database knows it: never the key itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Tells it from others: 16 hexadecimal digits.
    pub id: String,
    /// How it is had.
    pub kind: Kind,
    /// What it takes to have it: costs and salt of a passphrase, what the command gave for the key.
    pub parameters: Vec<u8>,
    /// Since when.
    pub created_at: Timestamp,
}

/// What `keys status` tells.
#[derive(Debug)]
pub struct Status {
    /// The master key that the data keys are under.
    pub master: Described,
    /// How many there are.
    pub data_keys: i64,
}

/// A key that could not be had, or a data key that could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The configuration has another kind of master key than the database is under.
    #[error(
        "the data keys are under {}, and the configuration gives a {configured}: configure {}",
        stored.described(), stored.kind.advice()
    )]
    OtherKind {
        /// What the database is under.
        stored: Described,
        /// What the configuration gives.
        configured: Kind,
    },
    /// The master key is not the one the database is under.
    #[error(
        "the data keys are under {}, and {given} gives another: give the hub the master key this database is under, \
         or restore it from the copy made when the hub was set up", stored.described()
    )]
    OtherMasterKey {
        /// What the database is under.
        stored: Described,
        /// Where the key came from.
        given: String,
    },
    /// `keys rewrap` has been run under a running hub.
    #[error("the data keys have been moved to another master key: restart this hub with that one configured")]
    Moved,
    /// The owner has no data key.
    #[error(
        "{0} has no data key: it was destroyed, and what it sealed with it, or the database was altered; \
         restore it from its backup if that was not meant"
    )]
    Destroyed(Owner),
    /// The key file.
    #[error("cannot {doing} the master key {path}: {advice}")]
    File {
        /// Read or write.
        doing: &'static str,
        /// The file.
        path: String,
        /// What to do.
        advice: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key file's text.
    #[error("{path} is no master key: restore it from the copy made when the hub was set up")]
    NoKey {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: SealError,
    },
    /// The passphrase can't be asked for.
    #[error("the passphrase can't be asked for: set master-passphrase (HYPERFACTORY_HUB_MASTER_PASSPHRASE_FILE)")]
    Prompt(#[source] std::io::Error),
    /// Typed differently the second time.
    #[error("the two passphrases are not the same: nothing was changed")]
    Mistyped,
    /// The passphrase gives no key.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The external command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The cipher.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for KeysError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Keys {
    /// Opens the data keys with `master`; makes the fleet's, and a record of the master key, when the database has none.
    ///
    /// # Errors
    /// [`KeysError::OtherMasterKey`] and [`KeysError::OtherKind`] when `master` is not the key they are under, and why it
    /// could not be had.
    pub async fn open(database: &Database, master: &Master, now: Timestamp) -> Result<Self, KeysError> {
        if let Some(stored) = described(database).await? {
            return Ok(Self(Arc::new(master.open(&stored).await?)));
        }
        let (key, described) = master.create(now).await?;
        let keys = Self(Arc::new(key));
        let mut transaction = database.begin_write().await?;
        sqlx::query("INSERT INTO master_key (slot, id, kind, parameters, created_at) VALUES (1, $1, $2, $3, $4)")
            .bind(&described.id)
            .bind(described.kind.as_str())
            .bind(described.parameters)
            .bind(now.millis())
            .execute(&mut *transaction)
            .await?;
        keys.create(&mut transaction, Owner::Fleet, now).await?;
        transaction.commit().await?;
        Ok(keys)
    }

    /// Whether `master` opens all data keys; `None` when there is nothing to open yet.
    ///
    /// # Errors
    /// As [`Keys::open`].
    pub async fn check(database: &Database, master: &Master) -> Result<Option<Self>, KeysError> {
        let Some(stored) = described(database).await? else { return Ok(None) };
        let keys = Self(Arc::new(master.open(&stored).await?));
        let rows = sqlx::query("SELECT owner, wrapped FROM data_keys").fetch_all(database.reader()).await?;
        for row in rows {
            let (owner, wrapped): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            keys.0.unwrap(owner.parse()?, &wrapped)?;
        }
        Ok(Some(keys))
    }

    /// Which master key the data keys are under, without opening any; `None` before a hub's first start.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn status(database: &Database) -> Result<Option<Status>, KeysError> {
        let Some(master) = described(database).await? else { return Ok(None) };
        let data_keys = sqlx::query_scalar("SELECT COUNT(*) FROM data_keys").fetch_one(database.reader()).await?;
        Ok(Some(Status { master, data_keys }))
    }

    /// Moves all data keys to the master key `to`, in one transaction: whenever it is cut off, they are all under the
    /// old key or all under the new one, and [`Keys::status`] says which. Gives how many it moved.
    ///
    /// A hub that runs meanwhile must be restarted with the new key: it can open no data key any more.
    ///
    /// # Errors
    /// [`KeysError::Moved`] when somebody else moved them first; nothing is changed then.
    pub async fn rewrap(
        &self,
        database: &Database,
        to: &Master,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Status, KeysError> {
        let (new, master) = to.create(now).await?;
        let mut transaction = database.begin_write().await?;
        // Takes the row that every new data key refers to: none is made while the others move, and the references
        // of those there are follow.
        let moved =
            sqlx::query("UPDATE master_key SET id = $2, kind = $3, parameters = $4, created_at = $5 WHERE id = $1")
                .bind(self.0.id())
                .bind(&master.id)
                .bind(master.kind.as_str())
                .bind(master.parameters.clone())
                .bind(now.millis())
                .execute(&mut *transaction)
                .await?;
        if moved.rows_affected() == 0 {
            return Err(KeysError::Moved);
        }
        let rows = sqlx::query("SELECT owner, wrapped FROM data_keys").fetch_all(&mut *transaction).await?;
        for row in &rows {
            let (owner, wrapped): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            let key = self.0.unwrap(owner.parse()?, &wrapped)?;
            sqlx::query("UPDATE data_keys SET wrapped = $2 WHERE owner = $1")
                .bind(owner)
                .bind(new.wrap(&key)?)
                .execute(&mut *transaction)
                .await?;
        }
        let record = Record {
            actor: actor.clone(),
            action: action::KEYS_REWRAPPED,
            tenant: None,
            subject: master.id.clone(),
            detail: json!({ "kind": master.kind.as_str(), "from": self.0.id(), "data_keys": rows.len() }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        Ok(Status { master, data_keys: rows.len() as i64 })
    }

    /// Makes `owner`'s data key, in the transaction that makes the owner.
    pub(crate) async fn create(
        &self,
        transaction: &mut Transaction,
        owner: Owner,
        now: Timestamp,
    ) -> Result<DataKey, KeysError> {
        let key = DataKey::generate(owner)?;
        let tenant = match key.owner() {
            Owner::Fleet => None,
            Owner::Tenant(tenant) => Some(tenant.as_str()),
        };
        let inserted = sqlx::query(
            "INSERT INTO data_keys (owner, tenant, wrapped, master, created_at)
             SELECT $1, $2, $3, id, $5 FROM master_key WHERE id = $4",
        )
        .bind(key.owner().to_string())
        .bind(tenant)
        .bind(self.0.wrap(&key)?)
        .bind(self.0.id())
        .bind(now.millis())
        .execute(&mut **transaction)
        .await?;
        if inserted.rows_affected() == 0 { Err(KeysError::Moved) } else { Ok(key) }
    }

    /// `owner`'s data key. It is asked for each time, so that one that is destroyed is gone at once.
    pub(crate) async fn get(&self, transaction: &mut Transaction, owner: Owner) -> Result<DataKey, KeysError> {
        let wrapped: Option<Vec<u8>> = sqlx::query_scalar("SELECT wrapped FROM data_keys WHERE owner = $1")
            .bind(owner.to_string())
            .fetch_optional(&mut **transaction)
            .await?;
        let wrapped = wrapped.ok_or_else(|| KeysError::Destroyed(owner.clone()))?;
        self.0.unwrap(owner, &wrapped).map_err(|error| match error {
            SealError::OtherMasterKey => KeysError::Moved,
            error => error.into(),
        })
    }
}

impl Described {
    /// For a sentence: "the master key 0123456789abcdef (a file's, since …)".
    pub fn described(&self) -> String {
        format!("the master key {} (a {}, since {})", self.id, self.kind, self.created_at)
    }
}

async fn described(database: &Database) -> Result<Option<Described>, KeysError> {
    let row = sqlx::query("SELECT id, kind, parameters, created_at FROM master_key")
        .fetch_optional(database.reader())
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Described {
        id: row.try_get(0)?,
        kind: parsed(row.try_get(1)?)?,
        parameters: row.try_get(2)?,
        created_at: Timestamp::from_millis(row.try_get(3)?),
    }))
}
