//! Every node as operators see it, converted once per change rather than once per reader.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use protocol::{NodeId, TenantId};

use super::resource::{Node, NodeCounts};
use crate::access::Principal;
use crate::telemetry::state::{Fleet, NodeView};

/// The nodes of a fleet. Clones share what was converted.
#[derive(Clone)]
pub(crate) struct Roster {
    fleet: Fleet,
    known: Arc<Mutex<HashMap<NodeId, Known>>>,
}

struct Known {
    /// Holds the view's place, so that no other gets the same address, and none of its values.
    view: Weak<NodeView>,
    node: Arc<Node>,
}

impl Roster {
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self { fleet, known: Arc::default() }
    }

    /// The nodes that exist for somebody, by tenant and name.
    pub(crate) fn of(&self, principal: &Principal, tenant: Option<&TenantId>) -> Vec<Arc<Node>> {
        let views = self.fleet.all();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > views.len() {
            let there: std::collections::HashSet<NodeId> = views.iter().map(|view| view.node).collect();
            known.retain(|id, _| there.contains(id));
        }
        let visible =
            views.iter().filter(|view| principal.sees(&view.tenant) && tenant.is_none_or(|one| *one == view.tenant));
        visible.map(|view| convert(&mut known, view)).collect()
    }

    /// How many nodes each tenant has, in which state.
    pub(crate) fn counts(&self, principal: &Principal) -> HashMap<String, NodeCounts> {
        let mut counts: HashMap<String, NodeCounts> = HashMap::new();
        for node in self.of(principal, None) {
            counts.entry(node.tenant.clone()).or_default().add(&node);
        }
        counts
    }

    /// One node, and what the hub knows of it.
    pub(crate) fn node(&self, principal: &Principal, id: NodeId) -> Option<(Arc<Node>, Arc<NodeView>)> {
        let view = self.fleet.node(id).filter(|view| principal.sees(&view.tenant))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Some((convert(&mut known, &view), view))
    }
}

fn convert(known: &mut HashMap<NodeId, Known>, view: &Arc<NodeView>) -> Arc<Node> {
    if let Some(same) = known.get(&view.node).filter(|known| std::ptr::eq(known.view.as_ptr(), Arc::as_ptr(view))) {
        return Arc::clone(&same.node);
    }
    let node = Arc::new(Node::from(&**view));
    known.insert(view.node, Known { view: Arc::downgrade(view), node: Arc::clone(&node) });
    node
}
