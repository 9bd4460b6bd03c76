//! An authority and the one that follows it: made, trusted, issuing, alone; and each step back again. Every step is part of
//! the transaction of whoever takes it.

use std::time::Duration;

use pki::{Authority, AuthorityError, CertificateDer, Role, Summary};
use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::Transaction;
use store::sqlx::{self, Row};

use super::rows::{self, insert, stand_down};
use super::{Authorities, AuthoritiesError, offline, place};
use crate::audit::{self, Actor, Record, action};
use crate::certificate_policy::Kind;

/// How long the new root's word for the old one is good that is given when a rotation goes back: for as long as a node may
/// be away. Were it for ever, whoever got the old root's key could use it after the old root is gone.
const WAY_BACK: Duration = Duration::from_secs(90 * 86_400);

/// Two authorities of one kind and tenant, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Succession {
    pub(crate) role: Role,
    pub(crate) old: i64,
    pub(crate) new: i64,
}

impl Authorities {
    /// Makes the successor of the authority that issues as `role`. Nobody is told of it, and it issues nothing. A new root is
    /// signed by the one before.
    pub(crate) async fn succeed(
        &self,
        transaction: &mut Transaction,
        role: &Role,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Succession, AuthoritiesError> {
        let old = rows::active(transaction, role).await?;
        let new = match role {
            Role::Root => {
                let next = Authority::create_root(now, self.fleet_policy().lifetime(Kind::Root))?;
                insert(transaction, &next, None, "pending", &self.0.keys, now).await?
            }
            Role::Kafka(tenant) if old.is_some() => {
                let next = Authority::create_kafka_root(tenant, now, self.policy(tenant).lifetime(Kind::KafkaRoot))?;
                insert(transaction, &next, None, "pending", &self.0.keys, now).await?
            }
            Role::Hub | Role::Nodes(_) if old.is_some() => {
                offline::successor(transaction, &self.0.keys, role, self.intermediate_lifetime(role), now).await?
            }
            Role::Kafka(tenant) | Role::Nodes(tenant) => return Err(AuthoritiesError::Missing(tenant.clone())),
            Role::Hub => return Err(AuthorityError::Certificate.into()),
            Role::Web => return Err(AuthorityError::NotAllowed { role: Role::Web, what: "to a successor" }.into()),
        };
        let old = old.ok_or(AuthorityError::Certificate)?;
        let succession = Succession { role: role.clone(), old, new };
        // A root that is kept offline signs the link at the next ceremony: `awaited` tells of it, and the rotation waits.
        if *role == Role::Root
            && let Some(root) = self.by_number(transaction, old).await?
        {
            let next: Vec<u8> = sqlx::query_scalar("SELECT certificate FROM authorities WHERE id = $1")
                .bind(new)
                .fetch_one(&mut **transaction)
                .await?;
            save_link(transaction, (old, new), &root.link(&next.into(), now)?, false, actor, now).await?;
        }
        Ok(succession)
    }

    /// Those who are to trust the successor are told of it, or not any more.
    pub(crate) async fn tell(
        &self,
        transaction: &mut Transaction,
        succession: &Succession,
        told: bool,
    ) -> Result<(), AuthoritiesError> {
        set_state(transaction, succession.new, if told { "trusted" } else { "pending" }).await?;
        let linked = sqlx::query("UPDATE root_links SET told = $3 WHERE signer = $1 AND introduced = $2")
            .bind(succession.old)
            .bind(succession.new)
            .bind(i64::from(told))
            .execute(&mut **transaction)
            .await?;
        if succession.role == Role::Root && linked.rows_affected() == 0 {
            return Err(AuthoritiesError::KeyElsewhere(succession.old));
        }
        Ok(())
    }

    /// Has the successor issue, or the one before it again (`forward` or not). Under a root that issues, so do intermediates
    /// of its own, the hub's and every tenant's: those that were made before, or new ones.
    pub(crate) async fn hand_over(
        &self,
        transaction: &mut Transaction,
        succession: &Succession,
        forward: bool,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), AuthoritiesError> {
        let to = if forward { succession.new } else { succession.old };
        stand_down(transaction, &succession.role).await?;
        set_state(transaction, to, "active").await?;
        if succession.role != Role::Root {
            return Ok(());
        }
        if !forward {
            self.lead_back(transaction, succession, actor, now).await?;
        }
        let tenants: Vec<String> =
            sqlx::query_scalar("SELECT id FROM tenants ORDER BY id").fetch_all(&mut **transaction).await?;
        let tenants = tenants.iter().filter_map(|tenant| tenant.parse::<TenantId>().ok());
        for role in std::iter::once(Role::Hub).chain(tenants.map(Role::Nodes)) {
            if let Some(known) = self.reusable(transaction, &role, to, now).await? {
                stand_down(transaction, &role).await?;
                set_state(transaction, known, "active").await?;
            } else {
                // What a root that is kept offline has to sign first is asked for; until then those before go on.
                let lifetime = self.intermediate_lifetime(&role);
                offline::intermediate(transaction, &self.0.keys, &role, lifetime, now).await?;
            }
        }
        Ok(())
    }

    /// Whatever of this kind does not issue is trusted no more; under a retired root, neither is what it signed.
    pub(crate) async fn retire(
        &self,
        transaction: &mut Transaction,
        succession: &Succession,
        rotation: i64,
    ) -> Result<(), AuthoritiesError> {
        let (kind, tenant) = place(&succession.role);
        sqlx::query(
            "UPDATE authorities SET state = 'retired', retired_by = $3
             WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state = 'trusted'",
        )
        .bind(kind)
        .bind(tenant)
        .bind(rotation)
        .execute(&mut **transaction)
        .await?;
        if succession.role == Role::Root {
            sqlx::query(
                "UPDATE authorities SET state = 'retired', retired_by = $1
                 WHERE state = 'trusted' AND issuer IN (SELECT id FROM authorities WHERE retired_by = $1)",
            )
            .bind(rotation)
            .execute(&mut **transaction)
            .await?;
        }
        Ok(())
    }

    /// What [`Authorities::retire`] retired is trusted again.
    pub(crate) async fn restore(
        &self,
        transaction: &mut Transaction,
        succession: &Succession,
        rotation: i64,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), AuthoritiesError> {
        sqlx::query("UPDATE authorities SET state = 'trusted', retired_by = NULL WHERE retired_by = $1")
            .bind(rotation)
            .execute(&mut **transaction)
            .await?;
        if succession.role == Role::Root {
            self.lead_back(transaction, succession, actor, now).await?;
        }
        Ok(())
    }

    /// The predecessor is of the past: the new root stands for it no more.
    pub(crate) async fn conclude(
        &self,
        transaction: &mut Transaction,
        succession: &Succession,
    ) -> Result<(), AuthoritiesError> {
        withdraw_link(transaction, succession.new, succession.old).await
    }

    /// The successor is given up, and what it signed. A node that trusts it alone, because it has not heard since, still finds back.
    pub(crate) async fn renounce(
        &self,
        transaction: &mut Transaction,
        succession: &Succession,
    ) -> Result<(), AuthoritiesError> {
        set_state(transaction, succession.new, "retired").await?;
        sqlx::query("UPDATE authorities SET state = 'retired' WHERE issuer = $1")
            .bind(succession.new)
            .execute(&mut **transaction)
            .await?;
        withdraw_link(transaction, succession.old, succession.new).await
    }

    /// When an authority ends.
    pub(crate) async fn ends(
        &self,
        transaction: &mut Transaction,
        authority: i64,
    ) -> Result<Option<Timestamp>, AuthoritiesError> {
        let end: Option<i64> = sqlx::query_scalar("SELECT not_after FROM authorities WHERE id = $1")
            .bind(authority)
            .fetch_one(&mut **transaction)
            .await?;
        Ok(end.map(Timestamp::from_millis))
    }

    /// A node that trusts the new root alone has to find the hub under the old one: the new root signs a link to it.
    async fn lead_back(
        &self,
        transaction: &mut Transaction,
        succession: &Succession,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), AuthoritiesError> {
        let Succession { old, new, .. } = *succession;
        let enough: Option<i64> = sqlx::query_scalar(
            "SELECT MAX(not_after) FROM root_links WHERE signer = $1 AND introduced = $2 AND not_after > $3",
        )
        .bind(new)
        .bind(old)
        .bind(now.plus(WAY_BACK / 2).millis())
        .fetch_one(&mut **transaction)
        .await?;
        if enough.is_some() {
            return Ok(());
        }
        let certificate: Vec<u8> = sqlx::query_scalar("SELECT certificate FROM authorities WHERE id = $1")
            .bind(old)
            .fetch_one(&mut **transaction)
            .await?;
        let root = self.signing(transaction, new).await?;
        let link = root.link_for(&certificate.into(), now, WAY_BACK)?;
        save_link(transaction, (new, old), &link, true, actor, now).await
    }

    /// The newest intermediate for `role` under the root `issuer`, if it can go on issuing.
    async fn reusable(
        &self,
        transaction: &mut Transaction,
        role: &Role,
        issuer: i64,
        now: Timestamp,
    ) -> Result<Option<i64>, AuthoritiesError> {
        let (name, tenant) = place(role);
        let row = sqlx::query(
            "SELECT id, certificate FROM authorities
             WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND issuer = $3 AND state IN ('pending', 'trusted', 'active')
               AND certificate IS NOT NULL ORDER BY generation DESC LIMIT 1",
        )
        .bind(name)
        .bind(tenant)
        .bind(issuer)
        .fetch_optional(&mut **transaction)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let summary = Summary::of(&row.try_get::<Vec<u8>, _>(1)?).map_err(AuthoritiesError::Unreadable)?;
        let (policy, kind) = match role {
            Role::Nodes(tenant) => (self.policy(tenant), Kind::NodesIntermediate),
            _ => (self.fleet_policy(), Kind::HubIntermediate),
        };
        let (from, until) = (summary.not_before, summary.not_after);
        let issues = (from..policy.followed_at(kind, &summary.spki_sha256, from, until)).contains(&now);
        Ok(if issues { Some(row.try_get(0)?) } else { None })
    }

    /// An authority that is to sign.
    async fn signing(&self, transaction: &mut Transaction, id: i64) -> Result<Authority, AuthoritiesError> {
        self.by_number(transaction, id).await?.ok_or(AuthoritiesError::KeyElsewhere(id))
    }
}

async fn set_state(transaction: &mut Transaction, id: i64, state: &'static str) -> Result<(), AuthoritiesError> {
    sqlx::query("UPDATE authorities SET state = $2 WHERE id = $1")
        .bind(id)
        .bind(state)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Nobody is told of a link any more. Its row stays, for whoever compares certificates with the audit log.
async fn withdraw_link(transaction: &mut Transaction, signer: i64, introduced: i64) -> Result<(), AuthoritiesError> {
    sqlx::query("UPDATE root_links SET told = 0 WHERE signer = $1 AND introduced = $2")
        .bind(signer)
        .bind(introduced)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// `link` by the first of `between` to the second.
pub(super) async fn save_link(
    transaction: &mut Transaction,
    between: (i64, i64),
    link: &CertificateDer<'_>,
    told: bool,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), AuthoritiesError> {
    let summary = Summary::of(link).map_err(AuthoritiesError::Unreadable)?;
    sqlx::query(
        "INSERT INTO root_links (serial, signer, introduced, told, certificate, not_after, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(summary.serial.clone())
    .bind(between.0)
    .bind(between.1)
    .bind(i64::from(told))
    .bind(link.to_vec())
    .bind(summary.not_after.millis())
    .bind(now.millis())
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
