//! The fleet's roots: which are trusted, which one issues, and the links that lead from one to the next.

use std::sync::{Arc, PoisonError};

use pki::{Authority, CertificateDer, Role};
use protocol::message::Trust;
use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::Transaction;
use store::sqlx::{self, Row};
use tokio::sync::watch;

use super::rows::{insert, load};
use super::{Authorities, AuthoritiesError};
use crate::audit::{self, Actor, Record, action};
use crate::certificate_policy::Kind;

/// The roots at one moment.
#[derive(Clone, Debug)]
pub struct Roots {
    /// All that are trusted; the one that issues comes first.
    pub trusted: Vec<CertificateDer<'static>>,
    /// Their links to each other, and those from roots of before.
    pub links: Vec<CertificateDer<'static>>,
    /// SHA-256 of the public keys of the trusted ones, in the same order.
    pub pins: Vec<[u8; 32]>,
}

impl Roots {
    /// As nodes are told.
    pub fn trust(&self) -> Trust {
        let ders = |list: &[CertificateDer<'static>]| list.iter().map(|der| der.to_vec()).collect();
        Trust { roots: ders(&self.trusted), links: ders(&self.links) }
    }

    /// Whether somebody who trusts `pins` trusts what they should, in whatever order.
    pub fn are(&self, pins: &[[u8; 32]]) -> bool {
        pins.len() == self.pins.len() && self.pins.iter().all(|pin| pins.contains(pin))
    }

    pub(super) async fn load(transaction: &mut Transaction, now: Timestamp) -> Result<Self, AuthoritiesError> {
        let roots: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT certificate FROM authorities
             WHERE kind = 'root' AND state IN ('trusted', 'active') AND not_after > $1
             ORDER BY CASE state WHEN 'active' THEN 0 ELSE 1 END, generation DESC",
        )
        .bind(now.millis())
        .fetch_all(&mut **transaction)
        .await?;
        let links: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT certificate FROM root_links WHERE not_after > $1 ORDER BY created_at, serial")
                .bind(now.millis())
                .fetch_all(&mut **transaction)
                .await?;
        let [trusted, links] =
            [roots, links].map(|ders| ders.into_iter().map(CertificateDer::from).collect::<Vec<_>>());
        let pins = trusted.iter().map(pki::trust::pin).collect::<Result<_, _>>().map_err(AuthoritiesError::Root)?;
        Ok(Self { trusted, links, pins })
    }
}

impl Authorities {
    /// The roots now.
    pub fn roots(&self) -> Arc<Roots> {
        Arc::clone(&self.0.roots.borrow())
    }

    /// The roots as they change, by this hub's doing or as [`Authorities::look`] finds them.
    pub fn watch_roots(&self) -> watch::Receiver<Arc<Roots>> {
        self.0.roots.subscribe()
    }

    /// Reads the roots and the certificate policy again: another hub on the same database may have changed them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look(&self, now: Timestamp) -> Result<(), AuthoritiesError> {
        let mut transaction = self.0.database.begin_read().await?;
        self.0.policies.look(&mut transaction).await?;
        let roots = Roots::load(&mut transaction, now).await?;
        let mut new_issuer = false;
        self.0.roots.send_if_modified(|known| {
            new_issuer = known.pins.first() != roots.pins.first();
            let changed = known.trusted != roots.trusted || known.links != roots.links;
            if changed {
                *known = Arc::new(roots);
            }
            changed
        });
        if new_issuer {
            self.0.tenants.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
        Ok(())
    }

    /// Makes the next root. It is linked with the one that issues, both ways, and trusted beside it; it issues nothing yet.
    ///
    /// # Errors
    /// [`AuthoritiesError::NextRoot`] when there is a next one already, or why it could not be made.
    pub async fn introduce_root(&self, actor: &Actor, now: Timestamp) -> Result<(), AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        if next_root(&mut transaction).await?.is_some() {
            return Err(AuthoritiesError::NextRoot { there_is: true });
        }
        let current = self.root(&mut transaction).await?;
        let next = Authority::create_root(now, self.fleet_policy().lifetime(Kind::Root))?;
        insert(&mut transaction, &next, "trusted", &self.0.keys, now).await?;
        for (by, to) in [(&current, &next), (&next, &current)] {
            save_link(&mut transaction, &by.link(to.certificate_der(), now)?, actor, now).await?;
        }
        transaction.commit().await?;
        self.look(now).await
    }

    /// Has the next root issue: the hub's intermediate and every tenant's are made anew under it. The root before it stays
    /// trusted.
    ///
    /// # Errors
    /// [`AuthoritiesError::NextRoot`] when there is none, or why it could not be done; all stays as it was then.
    pub async fn issue_from_next_root(&self, actor: &Actor, now: Timestamp) -> Result<(), AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        let Some(next) = next_root(&mut transaction).await? else {
            return Err(AuthoritiesError::NextRoot { there_is: false });
        };
        sqlx::query("UPDATE authorities SET state = 'trusted' WHERE kind = 'root' AND state = 'active'")
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE authorities SET state = 'active' WHERE id = $1")
            .bind(next)
            .execute(&mut *transaction)
            .await?;
        let root = self.root(&mut transaction).await?;
        self.create_intermediate(&mut transaction, &Role::Hub, now).await?;
        let tenants: Vec<String> =
            sqlx::query_scalar("SELECT id FROM tenants ORDER BY id").fetch_all(&mut *transaction).await?;
        for tenant in tenants.iter().filter_map(|tenant| tenant.parse::<TenantId>().ok()) {
            self.create_intermediate(&mut transaction, &Role::Nodes(tenant), now).await?;
        }
        record(&mut transaction, action::ROOT_ISSUES, &root, actor, now).await?;
        transaction.commit().await?;
        self.look(now).await
    }

    /// Trusts no other root than the one that issues. A node that was away all the time comes back by the links, which stay.
    ///
    /// # Errors
    /// When it could not be stored.
    pub async fn retire_roots(&self, actor: &Actor, now: Timestamp) -> Result<(), AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        let root = self.root(&mut transaction).await?;
        sqlx::query("UPDATE authorities SET state = 'retired' WHERE kind = 'root' AND state = 'trusted'")
            .execute(&mut *transaction)
            .await?;
        record(&mut transaction, action::ROOTS_RETIRED, &root, actor, now).await?;
        transaction.commit().await?;
        self.look(now).await
    }

    pub(super) async fn root(&self, transaction: &mut Transaction) -> Result<Authority, AuthoritiesError> {
        let root = load(transaction, &Role::Root, &self.0.keys).await?;
        Ok(root.ok_or(AuthoritiesError::RootOffline)?.authority)
    }
}

/// The row of the root that is trusted and comes after the one that issues.
async fn next_root(transaction: &mut Transaction) -> Result<Option<i64>, AuthoritiesError> {
    let row = sqlx::query(
        "SELECT id FROM authorities WHERE kind = 'root' AND state = 'trusted'
             AND generation > (SELECT generation FROM authorities WHERE kind = 'root' AND state = 'active')",
    )
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

pub(super) async fn save_link(
    transaction: &mut Transaction,
    link: &CertificateDer<'_>,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), AuthoritiesError> {
    let summary = pki::Summary::of(link).map_err(AuthoritiesError::Unreadable)?;
    sqlx::query("INSERT INTO root_links (certificate, not_after, created_at, serial) VALUES ($1, $2, $3, $4)")
        .bind(link.to_vec())
        .bind(summary.not_after.millis())
        .bind(now.millis())
        .bind(summary.serial.clone())
        .execute(&mut **transaction)
        .await?;
    let record = Record {
        actor: actor.clone(),
        action: action::ROOT_LINKED,
        tenant: None,
        subject: "root".to_owned(),
        detail: json!({ "certificate": audit::certificate("link", &summary) }),
        remote: None,
    };
    audit::append(transaction, now, record).await?;
    Ok(())
}

async fn record(
    transaction: &mut Transaction,
    action: &'static str,
    root: &Authority,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), AuthoritiesError> {
    let record = Record {
        actor: actor.clone(),
        action,
        tenant: None,
        subject: "root".to_owned(),
        detail: json!({ "spki_sha256": data_encoding::HEXLOWER.encode(&root.spki_sha256()) }),
        remote: None,
    };
    audit::append(transaction, now, record).await?;
    Ok(())
}
