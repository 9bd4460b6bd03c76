//! The hub's own server certificates and their keys, kept over a restart.
//!
//! Issuing one takes a record in the audit log, and a hub must start also when its disk is full and takes none. The keys
//! are sealed as the CA keys are.

use std::time::Duration;

use pki::{AuthorityError, CertificateDer, Owner, PrivateKey, Summary};
use protocol::Timestamp;
use serde_json::json;
use store::Transaction;
use store::sqlx::{self, Row};

use super::{Authorities, AuthoritiesError, Certified, LeafKind};
use crate::audit::{self, Actor, Record, action};
use crate::keys::KeysError;

/// The hub's certificate for nodes is replaced when less than this is left of it.
pub(crate) const RENEW_FOR_NODES: Duration = Duration::from_secs(10 * 86_400);
/// That for browsers, likewise.
pub(crate) const RENEW_FOR_BROWSERS: Duration = Duration::from_secs(30 * 86_400);

/// One of them.
pub(super) struct Kept {
    pub(super) key: PrivateKey,
    pub(super) leaf: CertificateDer<'static>,
    pub(super) summary: Summary,
}

impl Authorities {
    /// The certificate of this kind that was issued last, when it is of this authority, valid at `now`, and need not be
    /// replaced for `renew_before`.
    pub(super) async fn kept(
        &self,
        transaction: &mut Transaction,
        kind: LeafKind,
        authority: i64,
        renew_before: Duration,
        now: Timestamp,
    ) -> Result<Option<Kept>, AuthoritiesError> {
        let last = self.last(transaction, kind, authority).await?;
        Ok(last
            .filter(|Kept { summary, .. }| (summary.not_before..=summary.not_after.minus(renew_before)).contains(&now)))
    }

    /// The certificate of this kind that was issued last, when it is of this authority, however long it lasts.
    pub(super) async fn last(
        &self,
        transaction: &mut Transaction,
        kind: LeafKind,
        authority: i64,
    ) -> Result<Option<Kept>, AuthoritiesError> {
        let row = sqlx::query(
            "SELECT c.certificate, k.sealed_key FROM server_keys k
             JOIN certificates c ON c.authority = k.authority AND c.serial = k.serial
             WHERE k.kind = $1 AND k.authority = $2",
        )
        .bind(kind.as_str())
        .bind(authority)
        .fetch_optional(&mut **transaction)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let (leaf, sealed): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let summary = Summary::of(&leaf).map_err(AuthoritiesError::Unreadable)?;
        let data_key = self.0.keys.get(transaction, Owner::Fleet).await?;
        let key = data_key.open(kind.as_str(), &sealed).map_err(KeysError::Seal)?;
        let key = PrivateKey::from_pkcs8(&key).map_err(AuthorityError::from)?;
        // Somebody who wrote the tables has not made the one fit the other.
        Ok((key.spki_sha256() == summary.spki_sha256).then(|| Kept { key, leaf: leaf.into(), summary }))
    }

    /// Records that the hub has a new server certificate, in the transaction that precedes its use, and keeps its key.
    pub(super) async fn keep(
        &self,
        transaction: &mut Transaction,
        kind: LeafKind,
        authority: i64,
        key: PrivateKey,
        leaf: Vec<u8>,
        now: Timestamp,
    ) -> Result<Kept, AuthoritiesError> {
        let certified = Certified {
            kind,
            authority,
            tenant: None,
            node: None,
            certificate: &leaf,
            sequence: None,
            recovered: false,
        };
        let summary = certified.save(transaction, now).await?;
        let data_key = self.0.keys.get(transaction, Owner::Fleet).await?;
        sqlx::query(
            "INSERT INTO server_keys (kind, authority, serial, sealed_key) VALUES ($1, $2, $3, $4)
             ON CONFLICT (kind) DO UPDATE SET authority = excluded.authority, serial = excluded.serial,
                 sealed_key = excluded.sealed_key",
        )
        .bind(kind.as_str())
        .bind(authority)
        .bind(summary.serial.clone())
        .bind(data_key.seal(kind.as_str(), &key.to_pkcs8()).map_err(KeysError::Seal)?)
        .execute(&mut **transaction)
        .await?;
        let record = Record {
            actor: Actor::system(),
            action: action::HUB_CERTIFIED,
            tenant: None,
            subject: summary.names.join(" "),
            detail: json!({ "certificate": audit::certificate(kind.logged(), &summary) }),
            remote: None,
        };
        audit::append(transaction, now, record).await?;
        Ok(Kept { key, leaf: leaf.into(), summary })
    }
}
