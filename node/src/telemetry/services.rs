//! The services of a node: all of them, and which changed since the hub was last told.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use protocol::message::{Service, ServiceKey};

type Key = (String, String, u32);

/// Every service as it was last reported.
pub(super) struct Services {
    all: BTreeMap<Key, Service>,
    changed: BTreeSet<Key>,
    removed: BTreeSet<Key>,
    /// What they take together, and the most they may: a key batch and a snapshot name all of them, and have to fit a
    /// frame and a segment beside the samples.
    bytes: usize,
    most_bytes: usize,
}

impl Services {
    /// No services yet, and room for `most_bytes` of them.
    pub(super) fn new(most_bytes: usize) -> Self {
        Self { all: BTreeMap::new(), changed: BTreeSet::new(), removed: BTreeSet::new(), bytes: 0, most_bytes }
    }

    /// Takes what is new, different or gone; whether any of it is news.
    pub(super) fn apply(&mut self, services: Vec<Service>, removed: Vec<ServiceKey>) -> bool {
        let mut news = false;
        for gone in removed {
            let key = of(&gone);
            if let Some(service) = self.all.remove(&key) {
                self.bytes -= service.encoded_len();
                self.changed.remove(&key);
                self.removed.insert(key);
                news = true;
            }
        }
        for service in services {
            let Some(key) = service.key.as_ref().map(of) else { continue };
            let known = self.all.get(&key);
            if known != Some(&service) {
                let bytes = self.bytes - known.map_or(0, Message::encoded_len) + service.encoded_len();
                if bytes > self.most_bytes {
                    tracing::warn!(service = %key.1, "more services than fit a batch; this one is not reported");
                    continue;
                }
                self.bytes = bytes;
                self.removed.remove(&key);
                self.changed.insert(key.clone());
                self.all.insert(key, service);
                news = true;
            }
        }
        news
    }

    /// The known services that are not among `services`.
    pub(super) fn missing_in(&self, services: &[Service]) -> Vec<ServiceKey> {
        let present: BTreeSet<Key> = services.iter().filter_map(|service| service.key.as_ref().map(of)).collect();
        self.all.keys().filter(|key| !present.contains(*key)).map(to).collect()
    }

    /// Whether there is something to tell.
    pub(super) fn changed(&self) -> bool {
        !self.changed.is_empty() || !self.removed.is_empty()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Service> {
        self.all.values().cloned().collect()
    }

    /// All of them; nothing is left to tell.
    pub(super) fn take_all(&mut self) -> Vec<Service> {
        self.changed.clear();
        self.removed.clear();
        self.all()
    }

    /// Those that changed, and those that are gone; nothing is left to tell.
    pub(super) fn take_changed(&mut self) -> (Vec<Service>, Vec<ServiceKey>) {
        let changed = std::mem::take(&mut self.changed);
        let services = changed.iter().filter_map(|key| self.all.get(key).cloned()).collect();
        (services, std::mem::take(&mut self.removed).iter().map(to).collect())
    }
}

fn of(key: &ServiceKey) -> Key {
    (key.stack.clone(), key.service.clone(), key.number)
}

fn to((stack, service, number): &Key) -> ServiceKey {
    ServiceKey { stack: stack.clone(), service: service.clone(), number: *number }
}
