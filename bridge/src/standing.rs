//! How the bridge stands with its brokers, by what its clients were told: a named state, for the hub and for probes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::message::KafkaState;

/// A topic that allowed nothing is said to for so long after it last did.
const DENIED_FOR: Duration = Duration::from_secs(120);
/// What TLS and Kafka call it when a client is not let in, in small letters.
const REFUSALS: [&str; 4] = ["alert", "certificate required", "authentication failed", "authorization failed"];

/// The standing. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    state: State,
    denied: Option<(String, Instant)>,
}

/// How it is, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not known yet.
    #[default]
    Unknown,
    /// A broker is there, and takes records.
    Connected,
    /// No broker answers, or none that is trusted.
    Unreachable(String),
    /// A broker does not let the bridge in, or not write.
    Refused(String),
}

impl State {
    /// Its name on the wire, what is wrong and what to do.
    pub fn told(&self) -> (KafkaState, String) {
        match self {
            Self::Unknown => (KafkaState::Unspecified, String::new()),
            Self::Connected => (KafkaState::Connected, String::new()),
            Self::Unreachable(why) => {
                let advice = "see that the brokers run, that kafka.brokers names them, and that they show a certificate \
                              of the tenant's Kafka root";
                (KafkaState::Unreachable, format!("{why}: {advice}"))
            }
            Self::Refused(why) => {
                let advice = "see that the brokers trust the tenant's Kafka root (hfctl trust kafka-root), that the \
                              bridge is not revoked, and that its principal may write";
                (KafkaState::Refused, format!("{why}: {advice}"))
            }
        }
    }
}

impl Standing {
    /// How it is now.
    pub fn now(&self) -> State {
        let known = self.known();
        let denied = known.denied.as_ref().filter(|(_, at)| at.elapsed() < DENIED_FOR);
        denied.map_or_else(|| known.state.clone(), |(why, _)| State::Refused(why.clone()))
    }

    /// A connection is up.
    pub fn connected(&self) {
        self.known().state = State::Connected;
    }

    /// A client has complained. A refusal is not forgotten because the next attempt just broke off.
    pub fn complained(&self, why: &str) {
        // What follows says how long it took, and would make each attempt another state.
        let why = why.split(" (after ").next().unwrap_or_default();
        let small = why.to_ascii_lowercase();
        let refused = REFUSALS.iter().any(|sign| small.contains(sign));
        let mut known = self.known();
        known.state = match known.state {
            _ if refused => State::Refused(why.to_owned()),
            State::Refused(_) => return,
            _ => State::Unreachable(why.to_owned()),
        };
    }

    /// A topic does not allow the bridge to write.
    pub fn denied(&self, topic: &str) {
        self.known().denied =
            Some((format!("Kafka's topic {topic} does not allow this bridge to write"), Instant::now()));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_stands_until_a_broker_lets_the_bridge_in() {
        let standing = Standing::default();
        assert_eq!(standing.now(), State::Unknown);
        standing.complained("Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 3ms in state CONNECT)");
        assert!(matches!(standing.now(), State::Unreachable(why) if why.ends_with("Connection refused")));
        standing.complained("SSL handshake failed: sslv3 alert certificate revoked: SSL alert number 44");
        standing.complained("1/1 brokers are down");
        let (state, said) = standing.now().told();
        let expected = "SSL alert number 44: see that the brokers trust";
        assert!(state == KafkaState::Refused && said.contains(expected), "{said}");
        standing.connected();
        assert_eq!(standing.now().told(), (KafkaState::Connected, String::new()));
        standing.denied("machines");
        standing.connected();
        assert!(matches!(standing.now(), State::Refused(why) if why.contains("machines")));
    }

    #[test]
    fn brokers_that_are_not_trusted_are_no_brokers_that_refuse() {
        let standing = Standing::default();
        standing
            .complained("SSL handshake failed: certificate verify failed: broker certificate could not be verified");
        assert!(matches!(standing.now(), State::Unreachable(_)));
    }
}
