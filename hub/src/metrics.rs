//! What the hub counts, for `/metrics`.

use prometheus::{Encoder, IntCounter, IntGauge, Registry, TextEncoder};

/// The hub's own metrics.
pub struct Metrics {
    registry: Registry,
    /// Live sessions.
    pub sessions: IntGauge,
    /// Handshakes that ended well.
    pub handshakes: IntCounter,
    /// Handshakes that did not.
    pub handshakes_failed: IntCounter,
    /// Connections asked to prove their address first.
    pub retries: IntCounter,
    /// Enrollments put off by the rate limit.
    pub enrollments_limited: IntCounter,
    /// Sessions ended by another one of the same node.
    pub displaced: IntCounter,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    /// When two metrics share a name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name, help| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let sessions = IntGauge::new("hyperfactory_hub_sessions", "Live sessions of nodes.")?;
        registry.register(Box::new(sessions.clone()))?;
        Ok(Self {
            sessions,
            handshakes: counter("hyperfactory_hub_handshakes_total", "QUIC handshakes that ended well.")?,
            handshakes_failed: counter("hyperfactory_hub_handshakes_failed_total", "QUIC handshakes that failed.")?,
            retries: counter("hyperfactory_hub_retries_total", "Connections asked to prove their address first.")?,
            enrollments_limited: counter(
                "hyperfactory_hub_enrollments_limited_total",
                "Enrollments put off by the rate limit.",
            )?,
            displaced: counter(
                "hyperfactory_hub_sessions_displaced_total",
                "Sessions ended by another one of the same node.",
            )?,
            registry,
        })
    }

    /// The Prometheus text format (version 0.0.4).
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory does not fail, and these families are well-formed.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}
