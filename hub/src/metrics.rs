//! What the hub counts, for `/metrics`.

use prometheus::{Encoder, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::audit::Head;
use crate::expiry::Expiry;
use crate::{alerts, rotation};

/// The hub's own metrics.
pub struct Metrics {
    registry: Registry,
    /// Live sessions.
    pub sessions: IntGauge,
    /// Handshakes that ended well.
    pub handshakes: IntCounter,
    /// Handshakes that did not.
    pub handshakes_failed: IntCounter,
    /// Handshakes, enrollments and recoveries put off because the places, or their source's share, are taken.
    pub put_off: IntCounter,
    /// Connections asked to prove their address first.
    pub retries: IntCounter,
    /// Enrollments put off by the rate limit.
    pub enrollments_limited: IntCounter,
    /// Refusals that are not in the audit log, because they are too many.
    pub refusals_unaudited: IntCounter,
    /// Sessions ended by another one of the same node.
    pub displaced: IntCounter,
    /// Connections to the HTTP side.
    pub http_connections: IntGauge,
    /// Connections to the HTTP side closed because their source has too many.
    pub http_refused: IntCounter,
    /// TLS handshakes of the HTTP side that failed.
    pub https_handshakes_failed: IntCounter,
    /// Renewed certificates for HTTPS that were of no use.
    pub https_certificates_refused: IntCounter,
    /// When the certificate for HTTPS ends, in seconds since the Unix epoch; 0 without one.
    pub https_certificate_end: IntGauge,
    /// Number of the audit log's newest entry.
    pub audit_entries: IntGauge,
    /// Times a head of the audit log could not be published.
    pub audit_publish_failures: IntCounter,
    audit_published: IntGaugeVec,
    /// Logs that are read live now.
    pub tails: IntGauge,
    /// Log lines that were handed to those who read live.
    pub tail_lines: IntCounter,
    /// Log lines that those who read live did not get because they were too many.
    pub tail_lines_dropped: IntCounter,
    /// Log lines that were shipped and stored.
    pub log_lines: IntCounter,
    /// Log lines that nodes left out because they were too many.
    pub log_lines_dropped: IntCounter,
    /// Log lines that were pushed on to a Loki.
    pub loki_pushed: IntCounter,
    /// Log lines that it refused, and that are left out there.
    pub loki_refused: IntCounter,
    /// Log lines that were deleted before it had them.
    pub loki_missed: IntCounter,
    /// Pushes that failed, and were made again.
    pub loki_failures: IntCounter,
    /// How long certificates still last.
    pub expiry: Expiry,
    /// Open alerts.
    pub alerts: alerts::Gauges,
    /// Rotations under way.
    pub rotations: rotation::Gauges,
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
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let audit_published = IntGaugeVec::new(
            Opts::new("hyperfactory_hub_audit_head_info", "The audit log's head as last published."),
            &["id", "hash"],
        )?;
        registry.register(Box::new(audit_published.clone()))?;
        Ok(Self {
            sessions: gauge("hyperfactory_hub_sessions", "Live sessions of nodes.")?,
            audit_entries: gauge("hyperfactory_hub_audit_entries", "Number of the audit log's newest entry.")?,
            audit_publish_failures: counter(
                "hyperfactory_hub_audit_publish_failures_total",
                "Times a head of the audit log could not be published to its file or webhook.",
            )?,
            audit_published,
            tails: gauge("hyperfactory_hub_tails", "Logs that are read live now.")?,
            tail_lines: counter(
                "hyperfactory_hub_tail_lines_total",
                "Log lines that were handed to those who read live.",
            )?,
            tail_lines_dropped: counter(
                "hyperfactory_hub_tail_lines_dropped_total",
                "Log lines that those who read live did not get because they were too many.",
            )?,
            log_lines: counter("hyperfactory_hub_log_lines_total", "Log lines that were shipped and stored.")?,
            log_lines_dropped: counter(
                "hyperfactory_hub_log_lines_dropped_total",
                "Log lines that nodes left out because a container wrote too many.",
            )?,
            loki_pushed: counter("hyperfactory_hub_loki_lines_total", "Log lines that loki-url has taken.")?,
            loki_refused: counter(
                "hyperfactory_hub_loki_lines_refused_total",
                "Log lines that loki-url refused and that are left out there.",
            )?,
            loki_missed: counter(
                "hyperfactory_hub_loki_lines_missed_total",
                "Log lines that were deleted before loki-url had them.",
            )?,
            loki_failures: counter(
                "hyperfactory_hub_loki_failures_total",
                "Pushes to loki-url that failed and were made again.",
            )?,
            expiry: Expiry::new(&registry)?,
            alerts: alerts::Gauges::new(&registry)?,
            rotations: rotation::Gauges::new(&registry)?,
            handshakes: counter("hyperfactory_hub_handshakes_total", "QUIC handshakes that ended well.")?,
            handshakes_failed: counter("hyperfactory_hub_handshakes_failed_total", "QUIC handshakes that failed.")?,
            put_off: counter(
                "hyperfactory_hub_put_off_total",
                "Handshakes, enrollments and recoveries put off because the places, or their source's share, were taken.",
            )?,
            retries: counter("hyperfactory_hub_retries_total", "Connections asked to prove their address first.")?,
            enrollments_limited: counter(
                "hyperfactory_hub_enrollments_limited_total",
                "Enrollments put off by the rate limit.",
            )?,
            refusals_unaudited: counter(
                "hyperfactory_hub_refusals_unaudited_total",
                "Refusals that were too many for the audit log: of strangers who wanted to enroll or recover, and of nodes that \
                 asked for certificates again and again.",
            )?,
            displaced: counter(
                "hyperfactory_hub_sessions_displaced_total",
                "Sessions ended by another one of the same node.",
            )?,
            http_connections: gauge("hyperfactory_hub_http_connections", "Connections to dashboard and API.")?,
            http_refused: counter(
                "hyperfactory_hub_http_refused_total",
                "Connections to dashboard and API closed because their source had too many.",
            )?,
            https_handshakes_failed: counter(
                "hyperfactory_hub_https_handshakes_failed_total",
                "TLS handshakes of dashboard and API that failed.",
            )?,
            https_certificates_refused: counter(
                "hyperfactory_hub_https_certificates_refused_total",
                "Renewed certificates of dashboard and API that could not be used; the one before stays.",
            )?,
            https_certificate_end: gauge(
                "hyperfactory_hub_https_certificate_end_timestamp_seconds",
                "When the certificate of dashboard and API ends; 0 without one.",
            )?,
            registry,
        })
    }

    /// Shows `head` as the published one. A new series each time, but seldom: once an hour unless told otherwise.
    pub fn audit_published(&self, head: &Head) {
        self.audit_published.reset();
        self.audit_published.with_label_values(&[head.id.to_string(), head.hash.to_string()]).set(1);
    }

    /// The Prometheus text format (version 0.0.4).
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory does not fail, and these families are well-formed.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}
