//! Whoever got in: a name, a role, and perhaps one tenant.

use std::net::IpAddr;

use protocol::TenantId;
use serde_json::json;

use crate::audit::{Actor, Record};
use crate::words::words;

/// What somebody may do; each role includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look.
    Viewer,
    /// Enroll nodes and act on them.
    Operator,
    /// Make tenants and API tokens.
    Admin,
}

words! {
    Role { Viewer = "viewer", Operator = "operator", Admin = "admin" }
    or RoleError = |_| RoleError
}

/// Not a role.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("roles are admin, operator and viewer")]
pub struct RoleError;

/// Whoever presents a valid credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The name given when the credential was made.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// The only tenant that exists for them; `None`: all.
    pub tenant: Option<TenantId>,
    /// The API token's id, when they came with one.
    pub token: Option<String>,
    /// From where, when they are asking for something.
    pub remote: Option<IpAddr>,
}

impl Principal {
    /// Whether they may do what takes `role`.
    pub fn may(&self, role: Role) -> bool {
        self.role >= role
    }

    /// Whether `tenant` exists for them.
    pub fn sees(&self, tenant: &TenantId) -> bool {
        self.tenant.as_ref().is_none_or(|own| own == tenant)
    }

    /// Whether what is this tenant's, or the fleet's (`None`), exists for them.
    pub fn sees_owner(&self, owner: Option<&TenantId>) -> bool {
        owner.map_or(self.sees_all(), |tenant| self.sees(tenant))
    }

    /// Whether they act for the whole fleet rather than one tenant.
    pub fn sees_all(&self) -> bool {
        self.tenant.is_none()
    }

    /// The same, asking from `remote`.
    #[must_use]
    pub fn at(self, remote: IpAddr) -> Self {
        Self { remote: Some(remote), ..self }
    }

    /// They in the audit log.
    pub fn actor(&self) -> Actor {
        Actor::operator(&self.name).by(self.token.as_deref(), self.remote)
    }

    pub(super) fn record(&self, action: &'static str, remote: IpAddr) -> Record {
        Record {
            actor: self.actor(),
            action,
            tenant: self.tenant.clone(),
            subject: self.name.clone(),
            detail: json!({ "role": self.role.as_str() }),
            remote: Some(remote),
        }
    }
}

/// A tenant column; the foreign key behind it holds nothing but tenant ids.
pub(super) fn tenant(column: Option<String>) -> Option<TenantId> {
    column.and_then(|id| id.parse().ok())
}
