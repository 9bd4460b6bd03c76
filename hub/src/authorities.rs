//! The fleet's certificate authorities: made once, kept sealed in the database, opened when something is to be issued.

mod answer;
pub mod ceremony;
mod certified;
mod follow;
mod kafka;
mod listed;
mod offline;
mod roots;
mod rows;
mod server;
mod succession;
mod web;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use pki::{Authority, AuthorityError, CertificateDer, Owner, PrivateKey, RequestError, Role};
use protocol::{NodeId, TenantId, Timestamp};
use store::sqlx;
use store::{Database, StoreError, Transaction};
use tokio::sync::watch;

use crate::certificate_policy::{CertificatePolicy, Kind, Policies};
use crate::keys::{Keys, KeysError};
pub use answer::{ImportError, Imported};
pub(crate) use certified::Certified;
pub use certified::LeafKind;
pub use kafka::KafkaCertificate;
pub use listed::Listed;
pub use offline::Awaited;
pub use roots::Roots;
pub(crate) use rows::place;
use rows::{load, save};
use server::Kept;
pub(crate) use server::{RENEW_FOR_BROWSERS, RENEW_FOR_NODES};
pub(crate) use succession::Succession;

/// The fleet root, the hub's intermediate, and per tenant an intermediate for its nodes and a Kafka root. Clones share them.
#[derive(Clone)]
pub struct Authorities(Arc<Inner>);

struct Inner {
    database: Database,
    keys: Keys,
    policies: Policies,
    roots: watch::Sender<Arc<Roots>>,
    tenants: RwLock<HashMap<TenantId, Arc<Issuing>>>,
}

/// An authority that issues now.
pub(crate) struct Issuing {
    /// Its row.
    pub(crate) id: i64,
    pub(crate) authority: Authority,
}

/// What the hub shows to nodes: a server key, and the chain for it.
pub struct HubServer {
    /// The server's private key.
    pub key: PrivateKey,
    /// Leaf, then the hub's intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The fleet's roots and their links, for those who know another one, or a pin alone.
    pub roots: Arc<Roots>,
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
    /// A Kafka client's certificate was asked for something else than a bridge.
    #[error("node {node} is no bridge of tenant {tenant}, or is revoked: bridges alone get Kafka certificates")]
    NotABridge {
        /// The node.
        node: NodeId,
        /// The tenant.
        tenant: TenantId,
    },
    /// An authority has to sign whose key is not here.
    #[error(
        "this takes the signature of authority {0}, whose key is kept offline: see `hyperfactory-hub ca root requests`"
    )]
    KeyElsewhere(i64),
    /// The tenant's first intermediate is not signed yet, or its last one has ended before the next was.
    #[error(
        "tenant {0} waits for its authority, which the fleet's root has to sign: the root is kept offline, and signs at the \
         next signing ceremony"
    )]
    AwaitingSignature(TenantId),
    /// The fleet root's key was taken away.
    #[error(
        "the fleet root is kept offline, and this takes its key: bring it back with hyperfactory-hub ca root restore"
    )]
    RootOffline,
    /// The fleet root's key is here.
    #[error("the fleet root's key is here: the hub has it sign what is needed by itself")]
    RootOnline,
    /// Another root than the one that issues here.
    #[error(
        "this is the root with the key {given}, and here the root with the key {here} issues: take the file of this fleet"
    )]
    OtherRoot {
        /// The one given.
        given: String,
        /// The one that issues here.
        here: String,
    },
    /// The certificate request is not good.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The stored root is not a certificate.
    #[error("the stored fleet root can't be read: restore the database from its backup")]
    Root(#[source] pki::TrustError),
    /// What was issued can't be read back.
    #[error("an issued certificate can't be read back")]
    Unreadable(#[source] pki::TrustError),
    /// A data key could not be had.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The hub stops.
    #[error("the hub is stopping")]
    Stopping,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AuthoritiesError {
    fn other_root(given: &Authority, here: &Authority) -> Self {
        let [given, here] = [given, here].map(|root| ceremony::short(&root.spki_sha256()));
        Self::OtherRoot { given, here }
    }
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
        let policies = Policies::load(&mut transaction).await?;
        let policy = policies.of(None);
        let offline = offline::absent(&mut transaction).await?.is_some();
        if !offline && load(&mut transaction, &Role::Root, &keys).await?.is_none() {
            save(&mut transaction, &Authority::create_root(now, policy.lifetime(Kind::Root))?, None, &keys, now)
                .await?;
        }
        match load(&mut transaction, &Role::Hub, &keys).await? {
            Some(hub) if issues_at(&hub.authority, &policy, now) => {}
            _ => {
                let lifetime = policy.lifetime(Kind::HubIntermediate);
                offline::intermediate(&mut transaction, &keys, &Role::Hub, lifetime, now).await?;
            }
        }
        let roots = watch::Sender::new(Arc::new(Roots::load(&mut transaction, now).await?));
        transaction.commit().await?;
        Ok(Self(Arc::new(Inner { database, keys, policies, roots, tenants: RwLock::default() })))
    }

    /// Opens every authority that issues.
    ///
    /// # Errors
    /// For the first that does not open.
    pub async fn check(database: &Database, keys: &Keys) -> Result<(), AuthoritiesError> {
        rows::check(database, keys).await
    }

    /// The certificates that somebody has to trust who trusts what `role` issues; none for a tenant that there is not.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn trusted(&self, role: &Role, now: Timestamp) -> Result<Vec<CertificateDer<'static>>, AuthoritiesError> {
        rows::trusted(&self.0.database, role, now).await
    }

    /// How long certificates live, and when they are renewed.
    pub fn policies(&self) -> &Policies {
        &self.0.policies
    }

    /// The policy of a tenant.
    pub(crate) fn policy(&self, tenant: &TenantId) -> CertificatePolicy {
        self.0.policies.of(Some(tenant))
    }

    /// The policy for the fleet's own authorities.
    pub(crate) fn fleet_policy(&self) -> CertificatePolicy {
        self.0.policies.of(None)
    }

    /// A secret of the fleet's for `purpose`, the same at every start.
    ///
    /// # Errors
    /// When the fleet's data key can't be had.
    pub async fn derive(&self, purpose: &str) -> Result<[u8; 32], AuthoritiesError> {
        let mut transaction = self.0.database.begin_read().await?;
        Ok(self.0.keys.get(&mut transaction, Owner::Fleet).await?.derive(purpose))
    }

    /// SHA-256 of the public key of the root that issues, as join tokens carry it.
    pub fn root_pin(&self) -> [u8; 32] {
        self.roots().pins.first().copied().unwrap_or_default()
    }

    /// The hub's server certificate: the one issued last while enough is left of it, or else a new one with a new key.
    ///
    /// # Errors
    /// When the hub's authority can't be opened or issues nothing.
    pub async fn hub_server(&self, now: Timestamp) -> Result<HubServer, AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        let Issuing { id, authority } = self.hub(&mut transaction, now).await?;
        let kept = match self.kept(&mut transaction, LeafKind::HubServer, id, RENEW_FOR_NODES, now).await? {
            // Of an authority that waits for its successor nothing else lasts longer.
            None => self.last(&mut transaction, LeafKind::HubServer, id).await?.filter(|last| {
                let end = authority.not_after();
                now >= end || (now >= last.summary.not_before && last.summary.not_after >= end)
            }),
            kept => kept,
        };
        if now >= authority.not_after() {
            tracing::error!(
                ended = %authority.not_after(),
                "the hub's own authority has ended, and the fleet root, which is offline, has not signed the next: no node \
                 trusts this hub until it has. Hold a signing ceremony: hyperfactory-hub ca root requests"
            );
        }
        let kept = match kept {
            Some(kept) => kept,
            None => {
                let key = PrivateKey::generate().map_err(AuthorityError::from)?;
                let leaf = authority.issue_hub_server(&key.public_key(), now)?;
                self.keep(&mut transaction, LeafKind::HubServer, id, key, leaf, now).await?
            }
        };
        transaction.commit().await?;
        let Kept { key, leaf, summary } = kept;
        let chain = vec![leaf, authority.certificate_der().clone()];
        Ok(HubServer { key, chain, roots: self.roots(), not_after: summary.not_after })
    }

    /// Makes a new tenant's data key and its two authorities, in the transaction that makes the tenant. False when the one
    /// for its nodes waits for the root's signature.
    pub(crate) async fn create_tenant(
        &self,
        transaction: &mut Transaction,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<bool, AuthoritiesError> {
        self.0.keys.create(transaction, Owner::Tenant(tenant.clone()), now).await?;
        let kafka = Authority::create_kafka_root(tenant, now, self.policy(tenant).lifetime(Kind::KafkaRoot))?;
        save(transaction, &kafka, None, &self.0.keys, now).await?;
        Ok(self.create_intermediate(transaction, &Role::Nodes(tenant.clone()), now).await?.is_some())
    }

    /// `None` while the root that has to sign it is offline.
    async fn create_intermediate(
        &self,
        transaction: &mut Transaction,
        role: &Role,
        now: Timestamp,
    ) -> Result<Option<Issuing>, AuthoritiesError> {
        offline::intermediate(transaction, &self.0.keys, role, self.intermediate_lifetime(role), now).await
    }

    /// The intermediate that issues for `tenant` now; opened once, then kept. Whether it is still that one, the database
    /// says: another hub may have changed it.
    pub(crate) async fn tenant(
        &self,
        transaction: &mut Transaction,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<Arc<Issuing>, AuthoritiesError> {
        let policy = self.policy(tenant);
        let fresh = |issuing: &Issuing| issues_at(&issuing.authority, &policy, now);
        let active = rows::active(transaction, &Role::Nodes(tenant.clone())).await?;
        let known = self.0.tenants.read().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned();
        if let Some(known) = known.filter(|known| active == Some(known.id) && fresh(known)) {
            return Ok(known);
        }
        let role = Role::Nodes(tenant.clone());
        // What this transaction has made may be undone yet: kept is what others see.
        let committed = load(&mut self.0.database.begin_read().await?, &role, &self.0.keys).await?;
        if let Some(committed) = committed.filter(fresh) {
            let issuing = Arc::new(committed);
            let mut tenants = self.0.tenants.write().unwrap_or_else(PoisonError::into_inner);
            tenants.insert(tenant.clone(), Arc::clone(&issuing));
            return Ok(issuing);
        }
        let stored = load(transaction, &role, &self.0.keys).await?;
        if let Some(stored) = stored {
            if fresh(&stored) {
                return Ok(Arc::new(stored));
            }
            let next = self.create_intermediate(transaction, &role, now).await?;
            let last = (stored.authority.not_before()..stored.authority.not_after()).contains(&now);
            let issuing = next.or_else(|| last.then_some(stored));
            return issuing.map(Arc::new).ok_or_else(|| AuthoritiesError::AwaitingSignature(tenant.clone()));
        }
        Err(if offline::awaits(transaction, &role).await? {
            AuthoritiesError::AwaitingSignature(tenant.clone())
        } else {
            AuthoritiesError::Missing(tenant.clone())
        })
    }

    /// All authorities, the fleet's first; of one tenant alone when `tenant` says so.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self, tenant: Option<&TenantId>, now: Timestamp) -> Result<Vec<Listed>, AuthoritiesError> {
        let database = self.0.database.within(tenant.map(TenantId::as_str));
        listed::list(&database, &self.0.policies, tenant, now).await
    }

    /// The authority of this row, whatever its state; `None` when its certificate or its key is not here.
    pub(crate) async fn by_number(
        &self,
        transaction: &mut Transaction,
        id: i64,
    ) -> Result<Option<Authority>, AuthoritiesError> {
        rows::by_number(transaction, id, &self.0.keys).await
    }
}

/// Whether an intermediate goes on issuing, and is not followed by a new one yet; the old one's certificates stay good. One
/// that is not valid yet was made while this hub's clock was ahead.
fn issues_at(authority: &Authority, policy: &CertificatePolicy, now: Timestamp) -> bool {
    let kind = if *authority.role() == Role::Hub { Kind::HubIntermediate } else { Kind::NodesIntermediate };
    let (from, until) = (authority.not_before(), authority.not_after());
    (from..policy.followed_at(kind, &authority.spki_sha256(), from, until)).contains(&now)
}
