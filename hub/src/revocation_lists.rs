//! The revocation lists of all authorities, for brokers and whoever else verifies certificates of the fleet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use pki::{Revocation, RevocationReason};
use protocol::Timestamp;
use store::Database;
use store::sqlx::any::AnyRow;
use store::sqlx::{self, Row};
use tokio::sync::Mutex;

use crate::authorities::{Authorities, AuthoritiesError};
use crate::enrollment::Reason;

/// How long a list is good for who has fetched it.
const LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// A list older than this is made anew, so that whoever fetches one has some days of it.
const FRESH: Duration = Duration::from_secs(86_400);
/// After so many rows, whoever else has something to do has a turn.
const ROWS_IN_A_ROW: usize = 500;

/// Makes lists when they are asked for, and keeps each until there is news. Clones share them.
#[derive(Clone)]
pub struct RevocationLists(Arc<Inner>);

struct Inner {
    database: Database,
    authorities: Authorities,
    /// Held while a list is made: it takes some ten megabytes and a part of a second where a hundred thousand are
    /// revoked, and whoever waited for the same list finds it.
    made: Mutex<HashMap<i64, List>>,
}

/// One authority's list.
#[derive(Clone)]
pub struct List {
    /// DER.
    pub der: Arc<[u8]>,
    /// When it was made.
    pub made_at: Timestamp,
    /// How many revocations were known then.
    known: i64,
}

impl RevocationLists {
    /// The lists of `authorities`.
    pub fn new(database: Database, authorities: Authorities) -> Self {
        Self(Arc::new(Inner { database, authorities, made: Mutex::default() }))
    }

    /// The list of the authority with this number; of a root that is kept offline, the one it has signed ahead. `None` when
    /// there is none.
    ///
    /// # Errors
    /// When the database does not answer, or the authority's key can't be opened.
    pub async fn get(&self, authority: i64, now: Timestamp) -> Result<Option<List>, AuthoritiesError> {
        let mut made = self.0.made.lock().await;
        let mut transaction = self.0.database.begin_read().await?;
        let known: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM revocations WHERE authority = $1")
            .bind(authority)
            .fetch_one(&mut *transaction)
            .await?;
        let fresh = |list: &&List| list.known == known && now >= list.made_at && now.since(list.made_at) < FRESH;
        if let Some(list) = made.get(&authority).filter(fresh) {
            return Ok(Some(list.clone()));
        }
        let Some(issuer) = self.0.authorities.by_number(&mut transaction, authority).await? else {
            let signed = self.0.authorities.signed_list(&mut transaction, authority).await?;
            return Ok(signed.map(|der| List { der: der.into(), made_at: now, known }));
        };
        // One that has ended by itself need not be listed (RFC 5280, section 3.3), but for once after its end.
        let mut revoked = Vec::with_capacity(usize::try_from(known).unwrap_or_default());
        let mut rows =
            sqlx::query("SELECT serial, revoked_at, reason FROM revocations WHERE authority = $1 AND not_after > $2")
                .bind(authority)
                .bind(now.minus(LIFETIME).millis())
                .fetch(&mut *transaction);
        while let Some(row) = rows.try_next().await? {
            revoked.extend(line(&row)?);
            if revoked.len() % ROWS_IN_A_ROW == 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(rows);
        drop(transaction);
        // Away from the threads that serve nodes: a revocation must not wait for the list that it makes old.
        let der = tokio::task::spawn_blocking(move || issuer.revocation_list(revoked, now, LIFETIME));
        let der = der.await.map_err(|_| AuthoritiesError::Stopping)??;
        let list = List { der: der.into(), made_at: now, known };
        made.insert(authority, list.clone());
        Ok(Some(list))
    }
}

/// One revocation; `None` when its serial is none: nothing of this hub writes such.
fn line(row: &AnyRow) -> Result<Option<Revocation>, sqlx::Error> {
    let (serial, reason): (Vec<u8>, String) = (row.try_get(0)?, row.try_get(2)?);
    let Ok(serial) = data_encoding::HEXLOWER.encode(&serial).parse() else { return Ok(None) };
    let reason: RevocationReason = reason.parse::<Reason>().unwrap_or_default().into();
    Ok(Some(Revocation { serial, at: Timestamp::from_millis(row.try_get(1)?), reason }))
}
