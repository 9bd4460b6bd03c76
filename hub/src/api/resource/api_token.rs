//! API tokens, and what roles there are.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Time;
use crate::access;

/// What a person or program may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read.
    Viewer,
    /// Read, and make join tokens.
    Operator,
    /// Everything.
    Admin,
}

/// An API token, without its secret.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ApiToken {
    /// Its id.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The only tenant it may see, when it is bound to one.
    pub tenant: Option<String>,
    /// When it was made.
    pub created_at: Time,
    /// By whom.
    pub created_by: String,
    /// When it ends by itself.
    pub expires_at: Option<Time>,
    /// When it was revoked.
    pub revoked_at: Option<Time>,
}

/// A fresh API token: the only time its secret is shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NewApiToken {
    /// What it may do.
    #[serde(flatten)]
    pub info: ApiToken,
    /// The secret, `hft_…`.
    pub token: String,
}

impl Role {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        access::Role::from(self).as_str()
    }
}

impl From<access::Role> for Role {
    fn from(role: access::Role) -> Self {
        match role {
            access::Role::Viewer => Self::Viewer,
            access::Role::Operator => Self::Operator,
            access::Role::Admin => Self::Admin,
        }
    }
}

impl From<Role> for access::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

impl From<access::ApiToken> for ApiToken {
    fn from(token: access::ApiToken) -> Self {
        Self {
            id: token.id,
            name: token.name,
            role: token.role.into(),
            tenant: token.tenant.map(|tenant| tenant.to_string()),
            created_at: Time(token.created_at),
            created_by: token.created_by,
            expires_at: token.expires_at.map(Time),
            revoked_at: token.revoked_at.map(Time),
        }
    }
}
