//! How a connection to an MQTT broker stands, for the hub and for probes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::message::MqttStatus;

/// Filters that are told of, and most characters of each and of what is said.
const MOST: usize = 8;
const LONGEST: usize = 120;

/// A connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    name: String,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    up: bool,
    /// Why it is not up.
    trouble: String,
    /// Why, by filter.
    refused: BTreeMap<String, String>,
}

impl Connection {
    /// One of this name, which was not up yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), known: Arc::default() }
    }

    /// It is up. What the broker refused before is asked for again.
    pub fn up(&self) {
        *self.known() = Known { up: true, ..Known::default() };
    }

    /// It is down.
    pub fn down(&self, why: &str) {
        let mut known = self.known();
        (known.up, known.trouble) = (false, why.to_owned());
    }

    /// The broker refused a subscription.
    pub fn refused(&self, filter: &str, why: &str) {
        self.known().refused.insert(filter.to_owned(), why.to_owned());
    }

    /// A filter is no longer wanted.
    pub fn given_up(&self, filter: &str) {
        self.known().refused.remove(filter);
    }

    /// How it is now.
    pub fn status(&self) -> MqttStatus {
        let (known, cut) = (self.known(), |text: &str| text.chars().take(LONGEST).collect::<String>());
        let refused = known.refused.iter().take(MOST).map(|(filter, why)| format!("{} ({})", cut(filter), cut(why)));
        MqttStatus {
            name: self.name.clone(),
            connected: known.up,
            trouble: cut(&known.trouble),
            refused: refused.collect(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told_until_it_is_asked_for_again_or_given_up() {
        let connection = Connection::new("plant");
        let status = |connected, trouble: &str, refused: &[&str]| MqttStatus {
            name: "plant".into(),
            connected,
            trouble: trouble.into(),
            refused: refused.iter().map(|&refused| refused.to_owned()).collect(),
        };
        assert_eq!(connection.status(), status(false, "", &[]));
        connection.up();
        connection.refused("a/#", "not authorized");
        connection.refused("b/#", "not authorized");
        connection.given_up("b/#");
        assert_eq!(connection.status(), status(true, "", &["a/# (not authorized)"]));
        connection.down("closed");
        assert_eq!(connection.status(), status(false, "closed", &["a/# (not authorized)"]));
        connection.up();
        assert_eq!(connection.status(), status(true, "", &[]));
    }
}
