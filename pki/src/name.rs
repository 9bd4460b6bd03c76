//! The DNS names that certificates of a fleet carry. The hub builds them; nothing of a name comes from a request.

use std::fmt;
use std::str::FromStr;

use protocol::{NodeId, NodeKind, TenantId};

/// Name in the hub's server certificate, whatever address it is reached at.
pub const HUB_SERVER_NAME: &str = "hub.hyperfactory.internal";

/// Suffix of every node's name; what stands before it is the tenant.
const NODES: &str = ".nodes.hyperfactory.internal";

/// A node's one DNS name: `<node-id>.<kind>.<tenant>.nodes.hyperfactory.internal`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeName {
    /// The node.
    pub node: NodeId,
    /// What the node is.
    pub kind: NodeKind,
    /// Whose it is.
    pub tenant: TenantId,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}{NODES}", self.node, self.kind, self.tenant)
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    /// Accepts only the spelling that `Display` gives, so that one node has one name.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let parsed = || {
            let mut labels = text.strip_suffix(NODES)?.splitn(3, '.');
            let node = labels.next()?.parse().ok()?;
            let kind = labels.next()?.parse().ok()?;
            let tenant = labels.next()?.parse().ok()?;
            Some(Self { node, kind, tenant })
        };
        parsed().filter(|name| name.to_string() == text).ok_or_else(|| NameError(text.chars().take(128).collect()))
    }
}

/// The DNS subtree a tenant's intermediate may name nodes in.
pub fn tenant_subtree(tenant: &TenantId) -> String {
    format!("{tenant}{NODES}")
}

/// The tenant whose subtree this is.
pub(crate) fn subtree_tenant(subtree: &str) -> Option<TenantId> {
    subtree.strip_suffix(NODES)?.parse().ok()
}

/// A DNS name that is not a node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a node's name; expected <node-id>.<agent|bridge>.<tenant>{NODES}")]
pub struct NameError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_name_and_one_spelling_of_it() {
        let text = "01890a5d-ac96-774b-bcce-b302099a8057.agent.acme.nodes.hyperfactory.internal";
        let name: NodeName = text.parse().expect("a node's name");
        assert_eq!((name.kind, name.tenant.as_str()), (NodeKind::Agent, "acme"));
        assert_eq!(name.to_string(), text);

        for bad in [
            "",
            ".nodes.hyperfactory.internal",
            "acme.nodes.hyperfactory.internal",
            HUB_SERVER_NAME,
            &text.to_uppercase(),
            &text.replace("01890a5d", "01890A5D"),
            &text.replace("01890a5d-ac96-774b-bcce-b302099a8057", "01890a5dac96774bbcceb302099a8057"),
            &text.replace("agent", "hub"),
            &text.replace("acme", "ac.me"),
            &text.replace("acme", "*"),
            &format!("{text}."),
            &format!("x.{text}"),
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tenants_subtree_names_the_tenant() {
        let tenant: TenantId = "acme".parse().expect("a slug");
        assert_eq!(subtree_tenant(&tenant_subtree(&tenant)), Some(tenant));
        assert_eq!(subtree_tenant("nodes.hyperfactory.internal"), None);
        assert_eq!(subtree_tenant("b.acme.nodes.hyperfactory.internal"), None);
    }
}
