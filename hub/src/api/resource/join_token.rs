//! Join tokens.

use protocol::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Kind, Time};
use crate::enrollment;

/// What became of a join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// Can be used once.
    Open,
    /// Was used.
    Used,
    /// Was not used in time.
    Expired,
}

/// A join token, without its secret.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// For which tenant.
    pub tenant: String,
    /// For which kind of node.
    pub kind: Kind,
    /// The node's name, where the token fixes it.
    pub name: Option<String>,
    /// What became of it.
    pub state: TokenState,
    /// When it was made.
    pub created_at: Time,
    /// Until when it can be used.
    pub expires_at: Time,
    /// Who made it.
    pub created_by: String,
    /// Which node used it.
    pub node: Option<String>,
}

/// A fresh join token: the only time its secret is shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NewToken {
    /// What it is for.
    #[serde(flatten)]
    pub info: Token,
    /// The one-time string, `hfj_…`.
    pub token: String,
    /// The exact command to run on the new node's host.
    pub command: String,
}

impl Token {
    /// A join token as it stands now.
    pub(crate) fn of(token: enrollment::TokenInfo, now: Timestamp) -> Self {
        Self {
            id: token.id,
            tenant: token.tenant.to_string(),
            kind: token.kind.into(),
            name: token.name,
            state: match token.used_at {
                Some(_) => TokenState::Used,
                None if token.expires_at <= now => TokenState::Expired,
                None => TokenState::Open,
            },
            created_at: Time(token.created_at),
            expires_at: Time(token.expires_at),
            created_by: token.created_by,
            node: token.node.map(|node| node.to_string()),
        }
    }
}

impl NewToken {
    /// A fresh join token and the command that uses it.
    pub(crate) fn of(info: enrollment::TokenInfo, secret: &str, now: Timestamp) -> Self {
        let info = Token::of(info, now);
        let command = format!("sudo hyperfactory-{} enroll --token {secret}", info.kind.as_str());
        Self { info, token: secret.to_owned(), command }
    }
}
