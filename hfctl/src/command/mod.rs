//! The verbs, one noun a file.

pub(crate) mod alert;
pub(crate) mod audit;
pub(crate) mod ca;
pub(crate) mod cert;
#[expect(clippy::module_inception, reason = "the noun is called so")]
pub(crate) mod command;
pub(crate) mod kafka;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod node;
pub(crate) mod operator_key;
mod order;
pub(crate) mod policy;
pub(crate) mod rollout;
mod signing;
pub(crate) mod tenant;
pub(crate) mod token;
pub(crate) mod trust;
