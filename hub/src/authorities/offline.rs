//! A fleet root whose key is not here: what waits for its signature, and taking the key away and back.
//!
//! Whoever needs an intermediate makes its key and a row in the state `awaiting-signature`. The rows are the requests: a
//! ceremony reads them, and what it brings back completes them (see [`super::answer`]).

use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use pki::offline::read_list;
use pki::{Authority, AuthorityError, CertificateDer, KeyError, PrivateKey, Role, pem};
use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::sqlx::{self, Row};
use store::{Database, Transaction};

use super::ceremony::{Request, Requests, Revoked, short};
use super::rows::{self, load, place, save};
use super::succession::save_link;
use super::{Authorities, AuthoritiesError, Issuing};
use crate::audit::{self, Actor, Record, action};
use crate::certificate_policy::Kind;
use crate::keys::Keys;

const DAY: Duration = Duration::from_secs(86_400);
/// So long before an intermediate or the root's revocation list ends, the next one is asked for, so that a ceremony can be
/// planned; of something that lives for less than twice as long, half its life.
pub(crate) const AHEAD: Duration = DAY.saturating_mul(90);
/// What the root signs ahead: intermediates live for a year, so that it is brought out by then, and there is some time over.
const LIST_LIFETIME: Duration = DAY.saturating_mul(400);

/// Something that waits for the signature of a root that is kept offline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// `nodes` and `hub`: an intermediate; `link`: the next root's introduction; `revocation-list`: the root's.
    pub kind: &'static str,
    /// Whose; `None`: the fleet's.
    pub tenant: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// When the one before it ends; `None` when there is none, and nothing can be done without it.
    pub ends: Option<Timestamp>,
}

impl Awaited {
    /// The kinds there are.
    pub const KINDS: [&str; 4] = ["nodes", "hub", "link", "revocation-list"];
}

/// The root that issues, as far as it is here.
pub(super) struct Absent {
    pub(super) id: i64,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) list: Option<Vec<u8>>,
}

impl Authorities {
    /// The root with its key, to be taken away.
    ///
    /// # Errors
    /// [`AuthoritiesError::RootOffline`] when it has been taken away before.
    pub async fn root_key(&self) -> Result<Authority, AuthoritiesError> {
        let mut transaction = self.0.database.begin_read().await?;
        Ok(self.root(&mut transaction).await?.authority)
    }

    /// Whether the key of the root that issues is elsewhere.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn root_is_offline(&self) -> Result<bool, AuthoritiesError> {
        let mut transaction = self.0.database.begin_read().await?;
        Ok(absent(&mut transaction).await?.is_some())
    }

    /// Removes the key of `root`, which somebody has seen to be safe elsewhere. Before it goes, it signs a revocation list
    /// for the time it is away.
    ///
    /// # Errors
    /// [`AuthoritiesError::RootOffline`] when it has gone, [`AuthoritiesError::OtherRoot`] when another root issues now.
    pub async fn take_root_away(
        &self,
        root: &Authority,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        let here = load(&mut transaction, &Role::Root, &self.0.keys).await?.ok_or(AuthoritiesError::RootOffline)?;
        if here.authority.spki_sha256() != root.spki_sha256() {
            return Err(AuthoritiesError::other_root(root, &here.authority));
        }
        let revoked = revoked(&mut transaction, here.id, now).await?;
        let revoked = revoked.iter().filter_map(Revoked::parse);
        let list = here.authority.revocation_list(revoked, now, LIST_LIFETIME)?;
        let gone = sqlx::query(
            "UPDATE authorities SET sealed_key = NULL, revocation_list = $2 WHERE id = $1 AND sealed_key IS NOT NULL",
        )
        .bind(here.id)
        .bind(list)
        .execute(&mut *transaction)
        .await?;
        if gone.rows_affected() == 0 {
            return Err(AuthoritiesError::RootOffline);
        }
        record(&mut transaction, action::ROOT_EXPORTED, root, actor, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Brings the root's key back, and has it sign all that waits. Gives how much that was; `None` when it was here already.
    ///
    /// # Errors
    /// [`AuthoritiesError::OtherRoot`] when another root issues here.
    pub async fn bring_root_back(
        &self,
        root: &Authority,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Option<usize>, AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        let Some(absent) = absent(&mut transaction).await? else {
            let here = self.root(&mut transaction).await?.authority;
            let same = here.spki_sha256() == root.spki_sha256();
            return if same { Ok(None) } else { Err(AuthoritiesError::other_root(root, &here)) };
        };
        if absent.certificate != *root.certificate_der() {
            return Err(AuthoritiesError::OtherRoot {
                given: short(&root.spki_sha256()),
                here: short(&pki::trust::pin(&absent.certificate).map_err(AuthoritiesError::Root)?),
            });
        }
        let sealed = root.seal_key(&self.0.keys.get(&mut transaction, Role::Root.owner()).await?)?;
        sqlx::query("UPDATE authorities SET sealed_key = $2, revocation_list = NULL WHERE id = $1")
            .bind(absent.id)
            .bind(sealed)
            .execute(&mut *transaction)
            .await?;
        record(&mut transaction, action::ROOT_RESTORED, root, actor, now).await?;
        let waiting = waiting_roles(&mut transaction).await?;
        for (role, _) in &waiting {
            intermediate(&mut transaction, &self.0.keys, role, self.intermediate_lifetime(role), now).await?;
        }
        let next = unlinked(&mut transaction, root.certificate_der()).await?;
        for (id, next) in &next {
            save_link(&mut transaction, (absent.id, *id), &root.link(next, now)?, false, actor, now).await?;
        }
        transaction.commit().await?;
        self.look(now).await?;
        Ok(Some(waiting.len() + next.len()))
    }

    /// Asks in good time for the successors of what ends, while the root is offline.
    ///
    /// # Errors
    /// When the database does not answer, or the owner's data key can't be had.
    pub async fn ask_ahead(&self, now: Timestamp) -> Result<(), AuthoritiesError> {
        if !self.root_is_offline().await? {
            return Ok(());
        }
        let mut transaction = self.0.database.begin_write().await?;
        let rows = sqlx::query(
            "SELECT kind, tenant, not_after, certificate FROM authorities a
             WHERE state = 'active' AND kind IN ('hub', 'nodes') AND not_after < $1 AND NOT EXISTS (
                 SELECT 1 FROM authorities b WHERE b.kind = a.kind AND b.state = 'awaiting-signature'
                     AND COALESCE(b.tenant, '') = COALESCE(a.tenant, ''))
             ORDER BY not_after, id",
        )
        .bind(now.plus(AHEAD).millis())
        .fetch_all(&mut *transaction)
        .await?;
        for row in &rows {
            let (kind, tenant): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            let certificate: Vec<u8> = row.try_get(3)?;
            let (from, until) = pki::trust::validity(&certificate.into()).map_err(AuthoritiesError::Unreadable)?;
            let due = now >= until.minus(AHEAD.min(until.since(from) / 2));
            if let Some(role) = rows::role(&kind, tenant.as_deref()).filter(|_| due) {
                request(&mut transaction, &self.0.keys, &role, now).await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// What waits for the root's signature; of one tenant alone when `tenant` says so. Nothing while the root's key is here.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn awaited(&self, tenant: Option<&TenantId>, now: Timestamp) -> Result<Vec<Awaited>, AuthoritiesError> {
        awaited(&self.0.database.within(tenant.map(TenantId::as_str)), tenant, now).await
    }

    /// All that waits, as the root is asked for it. Of each intermediate, this proves that its key is here. With anything,
    /// a new revocation list is asked for too: the root is brought out seldom.
    ///
    /// # Errors
    /// [`AuthoritiesError::RootOnline`] when the root's key is here; when a data key can't be had.
    pub async fn requests(&self, now: Timestamp) -> Result<Requests, AuthoritiesError> {
        let mut transaction = self.0.database.begin_read().await?;
        let absent = absent(&mut transaction).await?.ok_or(AuthoritiesError::RootOnline)?;
        let mut requests = Vec::new();
        for (role, generation) in waiting_roles(&mut transaction).await? {
            let Some((_, key)) = waiting(&mut transaction, &self.0.keys, &role).await? else { continue };
            requests.push(Request::Intermediate {
                tenant: match &role {
                    Role::Nodes(tenant) => Some(tenant.to_string()),
                    _ => None,
                },
                generation,
                lifetime_seconds: self.intermediate_lifetime(&role).as_secs(),
                request: BASE64.encode(&key.certificate_request().map_err(AuthorityError::from)?),
            });
        }
        for (_, next) in unlinked(&mut transaction, &absent.certificate).await? {
            requests.push(Request::Link { to: pem::certificates([&next]) });
        }
        if !requests.is_empty() || list_due(&mut transaction, &absent, now).await?.is_some() {
            let revoked = revoked(&mut transaction, absent.id, now).await?;
            requests.push(Request::RevocationList { lifetime_seconds: LIST_LIFETIME.as_secs(), revoked });
        }
        Ok(Requests { root: pem::certificates([&absent.certificate]), made_at_ms: now.millis(), requests })
    }

    /// How long an intermediate is to live.
    pub(super) fn intermediate_lifetime(&self, role: &Role) -> Duration {
        match role {
            Role::Nodes(tenant) => self.policy(tenant).lifetime(Kind::NodesIntermediate),
            _ => self.fleet_policy().lifetime(Kind::HubIntermediate),
        }
    }

    /// The revocation list that a root has signed ahead; `None` for every other authority.
    pub(crate) async fn signed_list(
        &self,
        transaction: &mut Transaction,
        id: i64,
    ) -> Result<Option<Vec<u8>>, AuthoritiesError> {
        let list = sqlx::query_scalar("SELECT revocation_list FROM authorities WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut **transaction)
            .await?;
        Ok(list.flatten())
    }
}

/// Has the root issue an intermediate as `role`. `None` when its key is not here: then the intermediate is asked for.
pub(super) async fn intermediate(
    transaction: &mut Transaction,
    keys: &Keys,
    role: &Role,
    lifetime: Duration,
    now: Timestamp,
) -> Result<Option<Issuing>, AuthoritiesError> {
    let Some(root) = load(transaction, &Role::Root, keys).await? else {
        request(transaction, keys, role, now).await?;
        return Ok(None);
    };
    let (id, key) = match waiting(transaction, keys, role).await? {
        Some((id, key)) => (Some(id), key),
        None => (None, PrivateKey::generate().map_err(AuthorityError::from)?),
    };
    let certificate = root.authority.sign_intermediate(role, &key.public_key(), now, lifetime)?;
    let authority = Authority::with_key(certificate.into(), key)?;
    let id = match id {
        Some(id) => {
            let signed = (authority.certificate_der(), root.id);
            rows::complete(transaction, id, role, signed, &Actor::system(), now).await?;
            id
        }
        None => save(transaction, &authority, Some(root.id), keys, now).await?,
    };
    Ok(Some(Issuing { id, authority }))
}

/// The successor of the intermediate that issues as `role`; nobody is told of it. With the root's key elsewhere it is asked
/// for: once it is signed, it waits to be told of as any successor does (see [`rows::complete`]).
pub(super) async fn successor(
    transaction: &mut Transaction,
    keys: &Keys,
    role: &Role,
    lifetime: Duration,
    now: Timestamp,
) -> Result<i64, AuthoritiesError> {
    if let Some(root) = load(transaction, &Role::Root, keys).await? {
        let key = PrivateKey::generate().map_err(AuthorityError::from)?;
        let certificate = root.authority.sign_intermediate(role, &key.public_key(), now, lifetime)?;
        let authority = Authority::with_key(certificate.into(), key)?;
        return rows::insert(transaction, &authority, Some(root.id), "pending", keys, now).await;
    }
    request(transaction, keys, role, now).await?;
    let waiting = waiting(transaction, keys, role).await?;
    waiting.map(|(id, _)| id).ok_or(AuthoritiesError::RootOffline)
}

/// Makes a key for an intermediate that the root is to sign, unless there is one.
async fn request(
    transaction: &mut Transaction,
    keys: &Keys,
    role: &Role,
    now: Timestamp,
) -> Result<(), AuthoritiesError> {
    if awaits(transaction, role).await? {
        return Ok(());
    }
    let key = PrivateKey::generate().map_err(AuthorityError::from)?;
    let sealed = role.seal_key(&key, &keys.get(transaction, role.owner()).await?)?;
    let (kind, tenant) = place(role);
    let made: Option<i64> = sqlx::query_scalar(
        "INSERT INTO authorities (kind, tenant, generation, state, spki_sha256, sealed_key, created_at)
         SELECT $1, NULLIF($2, ''), COALESCE(MAX(generation), 0) + 1, 'awaiting-signature', $3, $4, $5 FROM authorities
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 ON CONFLICT DO NOTHING RETURNING generation",
    )
    .bind(kind)
    .bind(tenant)
    .bind(key.spki_sha256().to_vec())
    .bind(sealed)
    .bind(now.millis())
    .fetch_optional(&mut **transaction)
    .await?;
    let Some(generation) = made else { return Ok(()) };
    let record = Record {
        actor: Actor::system(),
        action: action::AUTHORITY_REQUESTED,
        tenant: tenant.parse().ok(),
        subject: kind.to_owned(),
        detail: json!({ "generation": generation, "spki_sha256": HEXLOWER.encode(&key.spki_sha256()) }),
        remote: None,
    };
    audit::append(transaction, now, record).await?;
    tracing::warn!(kind, tenant, "an authority waits until the fleet root, which is kept offline, has signed it");
    Ok(())
}

/// The row that waits to become `role`'s authority, and its key.
async fn waiting(
    transaction: &mut Transaction,
    keys: &Keys,
    role: &Role,
) -> Result<Option<(i64, PrivateKey)>, AuthoritiesError> {
    let (kind, tenant) = place(role);
    let row = sqlx::query(
        "SELECT id, sealed_key, spki_sha256 FROM authorities
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state = 'awaiting-signature'",
    )
    .bind(kind)
    .bind(tenant)
    .fetch_optional(&mut **transaction)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let sealed: Vec<u8> = row.try_get(1)?;
    let key = role.open_key(&sealed, &keys.get(transaction, role.owner()).await?)?;
    if key.spki_sha256().as_slice() != row.try_get::<Vec<u8>, _>(2)? {
        return Err(AuthorityError::Key(KeyError::Unusable).into());
    }
    Ok(Some((row.try_get(0)?, key)))
}

/// Whether an intermediate for `role` waits.
pub(super) async fn awaits(transaction: &mut Transaction, role: &Role) -> Result<bool, AuthoritiesError> {
    let (kind, tenant) = place(role);
    let waiting: Option<i64> = sqlx::query_scalar(
        "SELECT id FROM authorities
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state = 'awaiting-signature'",
    )
    .bind(kind)
    .bind(tenant)
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(waiting.is_some())
}

/// What the intermediates that wait are to become, and their generations.
async fn waiting_roles(transaction: &mut Transaction) -> Result<Vec<(Role, i64)>, AuthoritiesError> {
    let rows = sqlx::query(
        "SELECT kind, tenant, generation FROM authorities WHERE state = 'awaiting-signature'
         ORDER BY COALESCE(tenant, ''), kind",
    )
    .fetch_all(&mut **transaction)
    .await?;
    let mut roles = Vec::with_capacity(rows.len());
    for row in &rows {
        let (kind, tenant): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        if let Some(role) = rows::role(&kind, tenant.as_deref()) {
            roles.push((role, row.try_get(2)?));
        }
    }
    Ok(roles)
}

/// Roots that have been made, with their rows, and that `root` has not introduced yet.
pub(super) async fn unlinked(
    transaction: &mut Transaction,
    root: &CertificateDer<'_>,
) -> Result<Vec<(i64, CertificateDer<'static>)>, AuthoritiesError> {
    let pending: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "SELECT id, certificate FROM authorities
         WHERE kind = 'root' AND state = 'pending' AND certificate IS NOT NULL ORDER BY id",
    )
    .fetch_all(&mut **transaction)
    .await?;
    if pending.is_empty() {
        return Ok(Vec::new());
    }
    let links: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT certificate FROM root_links").fetch_all(&mut **transaction).await?;
    let links = links.iter().filter(|link| pki::trust::signed_by(link, root));
    let linked: Vec<_> = links.filter_map(|link| pki::Summary::of(link).ok()).map(|link| link.spki_sha256).collect();
    let roots = pending.into_iter().map(|(id, root)| (id, CertificateDer::from(root)));
    Ok(roots.filter(|(_, root)| pki::trust::pin(root).is_ok_and(|pin| !linked.contains(&pin))).collect())
}

/// The root that issues, when its key is not here.
pub(super) async fn absent(transaction: &mut Transaction) -> Result<Option<Absent>, AuthoritiesError> {
    let row = sqlx::query(
        "SELECT id, certificate, revocation_list FROM authorities
         WHERE kind = 'root' AND state = 'active' AND sealed_key IS NULL",
    )
    .fetch_optional(&mut **transaction)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let certificate: Vec<u8> = row.try_get(1)?;
    Ok(Some(Absent { id: row.try_get(0)?, certificate: certificate.into(), list: row.try_get(2)? }))
}

async fn awaited(
    database: &Database,
    tenant: Option<&TenantId>,
    now: Timestamp,
) -> Result<Vec<Awaited>, AuthoritiesError> {
    let mut transaction = database.begin_read().await?;
    let rows = sqlx::query(
        "SELECT a.kind, a.tenant, a.created_at, (
             SELECT b.not_after FROM authorities b
             WHERE b.kind = a.kind AND COALESCE(b.tenant, '') = COALESCE(a.tenant, '') AND b.state = 'active')
         FROM authorities a WHERE a.state = 'awaiting-signature' AND ($1 = '' OR a.tenant = $1)
         ORDER BY COALESCE(a.tenant, ''), a.kind",
    )
    .bind(tenant.map_or("", TenantId::as_str))
    .fetch_all(&mut *transaction)
    .await?;
    let mut all = Vec::with_capacity(rows.len());
    for row in &rows {
        all.push(Awaited {
            kind: if row.try_get::<String, _>(0)? == "hub" { "hub" } else { "nodes" },
            tenant: row.try_get(1)?,
            since: Timestamp::from_millis(row.try_get(2)?),
            ends: row.try_get::<Option<i64>, _>(3)?.map(Timestamp::from_millis),
        });
    }
    if tenant.is_some() {
        return Ok(all);
    }
    let Some(absent) = absent(&mut transaction).await? else { return Ok(all) };
    for (_, next) in unlinked(&mut transaction, &absent.certificate).await? {
        let (since, _) = pki::trust::validity(&next).map_err(AuthoritiesError::Root)?;
        all.push(Awaited { kind: "link", tenant: None, since, ends: None });
    }
    if let Some((since, ends)) = list_due(&mut transaction, &absent, now).await? {
        all.push(Awaited { kind: "revocation-list", tenant: None, since, ends });
    }
    Ok(all)
}

/// Since when the root should sign another revocation list, and until when the one there is is good; `None` while it will do.
async fn list_due(
    transaction: &mut Transaction,
    absent: &Absent,
    now: Timestamp,
) -> Result<Option<(Timestamp, Option<Timestamp>)>, AuthoritiesError> {
    let list = absent.list.as_ref().and_then(|list| read_list(list, &absent.certificate).ok());
    let Some(list) = list else { return Ok(Some((now, None))) };
    let missing: Option<i64> =
        sqlx::query_scalar("SELECT MIN(revoked_at) FROM revocations WHERE authority = $1 AND revoked_at > $2")
            .bind(absent.id)
            .bind(list.made_at.millis())
            .fetch_one(&mut **transaction)
            .await?;
    let due = list.until.minus(AHEAD);
    let since = missing.map(Timestamp::from_millis).or_else(|| (now >= due).then_some(due));
    Ok(since.map(|since| (since, Some(list.until))))
}

/// What the root's revocation list has to say.
async fn revoked(transaction: &mut Transaction, root: i64, now: Timestamp) -> Result<Vec<Revoked>, AuthoritiesError> {
    let rows = sqlx::query(
        "SELECT serial, revoked_at, reason FROM revocations WHERE authority = $1 AND not_after > $2 ORDER BY revoked_at",
    )
    .bind(root)
    .bind(now.minus(LIST_LIFETIME).millis())
    .fetch_all(&mut **transaction)
    .await?;
    let read = |row: &sqlx::any::AnyRow| {
        let serial: Vec<u8> = row.try_get(0)?;
        Ok(Revoked { serial: HEXLOWER.encode(&serial), at_ms: row.try_get(1)?, reason: row.try_get(2)? })
    };
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
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
        detail: json!({ "spki_sha256": HEXLOWER.encode(&root.spki_sha256()) }),
        remote: None,
    };
    audit::append(transaction, now, record).await?;
    Ok(())
}
