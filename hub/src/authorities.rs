//! The fleet's certificate authorities: made once, kept sealed in the database, opened when something is to be issued.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use pki::{Authority, AuthorityError, CertificateDer, DataKey, Owner, PrivateKey, authority::ROOT_LIFETIME};
use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::sqlx::{self, Row};
use store::{Database, StoreError, Transaction};

use crate::audit::{self, Actor, Record, action};
use crate::keys::{Keys, KeysError};

/// An intermediate with less life than this left is followed by a new one; the old one's certificates stay good.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 86_400);

/// The fleet root, the hub's intermediate and one intermediate per tenant. Clones share them.
#[derive(Clone)]
pub struct Authorities(Arc<Inner>);

struct Inner {
    database: Database,
    keys: Keys,
    root_certificate: CertificateDer<'static>,
    root_pin: [u8; 32],
    tenants: RwLock<HashMap<TenantId, Arc<Issuing>>>,
}

/// An authority that issues now.
pub(crate) struct Issuing {
    /// Its row.
    pub(crate) id: i64,
    pub(crate) authority: Authority,
}

/// The hub's own certificate is replaced when less than this is left of it.
pub(crate) const RENEW_SERVER_BEFORE: Duration = Duration::from_secs(10 * 86_400);
/// What the hub's server key is sealed for.
const SERVER_KEY: &str = "hub server key";

/// What the hub shows to nodes: a server key, and the chain for it.
pub struct HubServer {
    /// The server's private key.
    pub key: PrivateKey,
    /// Leaf, then the hub's intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The fleet root; sent along during enrollment.
    pub root: CertificateDer<'static>,
    /// When the leaf ends.
    pub not_after: Timestamp,
}

/// An authority could not be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// Issuing or unsealing failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The tenant has no authority.
    #[error("tenant {0} has no authority: it does not exist, or the database was altered; see `hfctl tenant list`")]
    Missing(TenantId),
    /// The stored root is not a certificate.
    #[error("the stored fleet root can't be read: restore the database from its backup")]
    Root(#[source] pki::TrustError),
    /// What was issued can't be read back.
    #[error("an issued certificate can't be read back")]
    Unreadable(#[source] pki::TrustError),
    /// A data key could not be had.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AuthoritiesError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Authorities {
    /// Opens the fleet's authorities, making root and hub intermediate when the database has none yet.
    ///
    /// # Errors
    /// When a key can't be opened or made.
    pub async fn open(database: Database, keys: Keys, now: Timestamp) -> Result<Self, AuthoritiesError> {
        let mut transaction = database.begin_write().await?;
        let root = match load(&mut transaction, "root", None, &keys).await? {
            Some(root) => root.authority,
            None => {
                let root = Authority::create_root(now, ROOT_LIFETIME)?;
                save(&mut transaction, "root", None, &root, &keys, now).await?;
                root
            }
        };
        match load(&mut transaction, "hub", None, &keys).await? {
            Some(hub) if issues_at(&hub.authority, now) => {}
            _ => {
                let hub = root.issue_hub_intermediate(now)?;
                save(&mut transaction, "hub", None, &hub, &keys, now).await?;
            }
        }
        transaction.commit().await?;
        let root_certificate = root.certificate_der().clone();
        let root_pin = pki::trust::pin(&root_certificate).map_err(AuthoritiesError::Root)?;
        Ok(Self(Arc::new(Inner { database, keys, root_certificate, root_pin, tenants: RwLock::default() })))
    }

    /// Opens every authority that issues.
    ///
    /// # Errors
    /// For the first that does not open.
    pub async fn check(database: &Database, keys: &Keys) -> Result<(), AuthoritiesError> {
        let mut transaction = database.begin_read().await?;
        let rows = sqlx::query("SELECT certificate, sealed_key, tenant FROM authorities WHERE state = 'active'")
            .fetch_all(&mut *transaction)
            .await?;
        for row in rows {
            let (certificate, sealed): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            let tenant: Option<String> = row.try_get(2)?;
            let owner = tenant.map_or(Ok(Owner::Fleet), |tenant| format!("tenant/{tenant}").parse());
            let key = keys.get(&mut transaction, owner.map_err(KeysError::Seal)?).await?;
            Authority::open(&certificate, &sealed, &key)?;
        }
        Ok(())
    }

    /// A secret of the fleet's for `purpose`, the same at every start.
    ///
    /// # Errors
    /// When the fleet's data key can't be had.
    pub async fn derive(&self, purpose: &str) -> Result<[u8; 32], AuthoritiesError> {
        let mut transaction = self.0.database.begin_read().await?;
        Ok(self.0.keys.get(&mut transaction, Owner::Fleet).await?.derive(purpose))
    }

    /// The fleet root's certificate: the one anchor of nodes and hub.
    pub fn root_certificate(&self) -> &CertificateDer<'static> {
        &self.0.root_certificate
    }

    /// SHA-256 of the fleet root's public key, as join tokens carry it.
    pub fn root_pin(&self) -> [u8; 32] {
        self.0.root_pin
    }

    /// The hub's server certificate: the one that was issued last while enough is left of it, or else a new one, with a
    /// new key.
    ///
    /// # Errors
    /// When the hub's authority can't be opened or issues nothing.
    pub async fn hub_server(&self, now: Timestamp) -> Result<HubServer, AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        let mut hub = load(&mut transaction, "hub", None, &self.0.keys).await?;
        if hub.as_ref().is_none_or(|hub| !issues_at(&hub.authority, now)) {
            let root = self.root(&mut transaction).await?;
            let authority = root.issue_hub_intermediate(now)?;
            let id = save(&mut transaction, "hub", None, &authority, &self.0.keys, now).await?;
            hub = Some(Issuing { id, authority });
        }
        let Some(Issuing { id, authority }) = hub else { return Err(AuthorityError::Certificate.into()) };
        let data_key = self.0.keys.get(&mut transaction, Owner::Fleet).await?;
        if let Some((key, leaf, not_after)) = kept_server(&mut transaction, id, &data_key, now).await? {
            transaction.commit().await?;
            let chain = vec![leaf, authority.certificate_der().clone()];
            return Ok(HubServer { key, chain, root: self.0.root_certificate.clone(), not_after });
        }
        let key = PrivateKey::generate().map_err(AuthorityError::from)?;
        let leaf = CertificateDer::from(authority.issue_hub_server(&key.public_key(), now)?);
        let summary = pki::Summary::of(&leaf).map_err(AuthoritiesError::Unreadable)?;
        sqlx::query(
            "INSERT INTO hub_server (slot, authority, certificate, sealed_key) VALUES (1, $1, $2, $3)
             ON CONFLICT (slot) DO UPDATE SET authority = excluded.authority, certificate = excluded.certificate,
                 sealed_key = excluded.sealed_key",
        )
        .bind(id)
        .bind(leaf.to_vec())
        .bind(data_key.seal(SERVER_KEY, &key.to_pkcs8()).map_err(KeysError::Seal)?)
        .execute(&mut *transaction)
        .await?;
        let record = Record {
            actor: Actor::system(),
            action: action::HUB_CERTIFIED,
            tenant: None,
            subject: summary.names.join(" "),
            detail: json!({ "certificate": audit::certificate("hub_server", &summary) }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        let chain = vec![leaf, authority.certificate_der().clone()];
        Ok(HubServer { key, chain, root: self.0.root_certificate.clone(), not_after: summary.not_after })
    }

    /// Makes a new tenant's data key and intermediate, in the transaction that makes the tenant.
    pub(crate) async fn create_tenant(
        &self,
        transaction: &mut Transaction,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<(), AuthoritiesError> {
        self.0.keys.create(transaction, Owner::Tenant(tenant.clone()), now).await?;
        self.create_intermediate(transaction, tenant, now).await?;
        Ok(())
    }

    async fn create_intermediate(
        &self,
        transaction: &mut Transaction,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<Issuing, AuthoritiesError> {
        let authority = self.root(transaction).await?.issue_tenant_intermediate(tenant, now)?;
        let id = save(transaction, "tenant", Some(tenant), &authority, &self.0.keys, now).await?;
        Ok(Issuing { id, authority })
    }

    /// The intermediate that issues for `tenant` now; opened once, then kept.
    pub(crate) async fn tenant(
        &self,
        transaction: &mut Transaction,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<Arc<Issuing>, AuthoritiesError> {
        let fresh = |issuing: &Issuing| issues_at(&issuing.authority, now);
        let known = self.0.tenants.read().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned();
        if let Some(known) = known.filter(|known| fresh(known)) {
            return Ok(known);
        }
        let stored = load(transaction, "tenant", Some(tenant), &self.0.keys).await?;
        match stored.ok_or_else(|| AuthoritiesError::Missing(tenant.clone()))? {
            stored if fresh(&stored) => {
                let issuing = Arc::new(stored);
                let mut tenants = self.0.tenants.write().unwrap_or_else(PoisonError::into_inner);
                tenants.insert(tenant.clone(), Arc::clone(&issuing));
                Ok(issuing)
            }
            // Not kept before its transaction is committed: the next call reads it.
            _ => Ok(Arc::new(self.create_intermediate(transaction, tenant, now).await?)),
        }
    }

    /// The authority of this row, whatever its state.
    pub(crate) async fn by_number(
        &self,
        transaction: &mut Transaction,
        id: i64,
    ) -> Result<Option<Authority>, AuthoritiesError> {
        let row = sqlx::query("SELECT certificate, sealed_key, tenant FROM authorities WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut **transaction)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let (certificate, sealed): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let tenant: Option<String> = row.try_get(2)?;
        let owner = tenant.map_or(Ok(Owner::Fleet), |tenant| format!("tenant/{tenant}").parse());
        let key = self.0.keys.get(transaction, owner.map_err(KeysError::Seal)?).await?;
        Ok(Some(Authority::open(&certificate, &sealed, &key)?))
    }

    async fn root(&self, transaction: &mut Transaction) -> Result<Authority, AuthoritiesError> {
        let root = load(transaction, "root", None, &self.0.keys).await?;
        Ok(root.ok_or(AuthorityError::Certificate)?.authority)
    }
}

/// Whether an intermediate can go on issuing. One that is not valid yet was made while this hub's clock was ahead.
fn issues_at(authority: &Authority, now: Timestamp) -> bool {
    (authority.not_before()..authority.not_after().minus(RENEW_BEFORE)).contains(&now)
}

/// The stored server certificate with its key and end, when it is of this authority and need not be replaced.
async fn kept_server(
    transaction: &mut Transaction,
    authority: i64,
    data_key: &DataKey,
    now: Timestamp,
) -> Result<Option<(PrivateKey, CertificateDer<'static>, Timestamp)>, AuthoritiesError> {
    let row = sqlx::query("SELECT certificate, sealed_key FROM hub_server WHERE slot = 1 AND authority = $1")
        .bind(authority)
        .fetch_optional(&mut **transaction)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (certificate, sealed): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
    let summary = pki::Summary::of(&certificate).map_err(AuthoritiesError::Unreadable)?;
    if !(summary.not_before..summary.not_after.minus(RENEW_SERVER_BEFORE)).contains(&now) {
        return Ok(None);
    }
    let key = data_key.open(SERVER_KEY, &sealed).map_err(KeysError::Seal)?;
    let key = PrivateKey::from_pkcs8(&key).map_err(AuthorityError::from)?;
    // What somebody put in its place is not shown to anybody.
    Ok((key.spki_sha256() == summary.spki_sha256).then(|| (key, certificate.into(), summary.not_after)))
}

fn owner(tenant: Option<&TenantId>) -> Owner {
    tenant.map_or(Owner::Fleet, |tenant| Owner::Tenant(tenant.clone()))
}

async fn load(
    transaction: &mut Transaction,
    kind: &str,
    tenant: Option<&TenantId>,
    keys: &Keys,
) -> Result<Option<Issuing>, AuthoritiesError> {
    let row = sqlx::query(
        "SELECT id, certificate, sealed_key FROM authorities
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state = 'active'",
    )
    .bind(kind)
    .bind(tenant.map_or("", TenantId::as_str))
    .fetch_optional(&mut **transaction)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (certificate, sealed): (Vec<u8>, Vec<u8>) = (row.try_get(1)?, row.try_get(2)?);
    let key = keys.get(transaction, owner(tenant)).await?;
    Ok(Some(Issuing { id: row.try_get(0)?, authority: Authority::open(&certificate, &sealed, &key)? }))
}

/// Stores `authority` as the active one of its kind; the one before it issues no more.
async fn save(
    transaction: &mut Transaction,
    kind: &'static str,
    tenant: Option<&TenantId>,
    authority: &Authority,
    keys: &Keys,
    now: Timestamp,
) -> Result<i64, AuthoritiesError> {
    let sealed = authority.seal_key(&keys.get(transaction, owner(tenant)).await?)?;
    sqlx::query(
        "UPDATE authorities SET state = 'retired'
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state = 'active'",
    )
    .bind(kind)
    .bind(tenant.map_or("", TenantId::as_str))
    .execute(&mut **transaction)
    .await?;
    let id = sqlx::query_scalar(
        "INSERT INTO authorities (kind, tenant, certificate, sealed_key, not_after, state, created_at)
         VALUES ($1, $2, $3, $4, $5, 'active', $6) RETURNING id",
    )
    .bind(kind)
    .bind(tenant.map(TenantId::as_str))
    .bind(authority.certificate_der().to_vec())
    .bind(sealed)
    .bind(authority.not_after().millis())
    .bind(now.millis())
    .fetch_one(&mut **transaction)
    .await?;
    let summary = pki::Summary::of(authority.certificate_der()).map_err(AuthoritiesError::Unreadable)?;
    let record = Record {
        actor: Actor::system(),
        action: action::AUTHORITY_CREATED,
        tenant: tenant.cloned(),
        subject: kind.to_owned(),
        detail: json!({ "certificate": audit::certificate("authority", &summary) }),
        remote: None,
    };
    audit::append(transaction, now, record).await?;
    Ok(id)
}
