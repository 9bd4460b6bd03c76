//! The Prometheus exposition, built when asked for: nothing is counted twice and nothing costs between scrapes.

use prometheus::{Gauge, IntCounter, IntGauge, Opts, Registry, TextEncoder};

use super::Vitals;

/// Renders every metric.
pub(super) fn exposition(vitals: &Vitals) -> prometheus::Result<String> {
    let registry = Registry::new();
    let counter = |name: &str, help: &str, value: u64| {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        registry.register(Box::new(counter))
    };
    let gauge = |name: &str, help: &str, value: u64| {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(Box::new(gauge))
    };
    let seconds = |name: &str, help: &str, value: f64| {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value);
        registry.register(Box::new(gauge))
    };

    let link = vitals.link.borrow().clone();
    gauge("hyperfactory_session_up", "1 while a session with the hub is up", u64::from(link.is_up()))?;
    let certificate_ends = link.certificate_not_after.millis() as f64 / 1e3;
    seconds("hyperfactory_certificate_not_after_seconds", "When the certificate ends, Unix time", certificate_ends)?;
    if let Some(clock) = link.clock {
        let offset = clock.offset_ms as f64 / 1e3;
        seconds("hyperfactory_clock_offset_seconds", "This clock minus the hub's; positive: ahead", offset)?;
    }

    let counted = vitals.counters.read();
    counter("hyperfactory_sessions_total", "Sessions that came up", counted.sessions)?;
    let reconnects = counted.sessions.saturating_sub(1);
    counter("hyperfactory_reconnects_total", "Sessions that came up after the first", reconnects)?;
    counter("hyperfactory_batches_sent_total", "Batches sent, resends included", counted.sent)?;
    counter("hyperfactory_batches_resent_total", "Batches sent again", counted.resent)?;
    counter("hyperfactory_batch_bytes_sent_total", "Bytes of batches sent", counted.sent_bytes)?;
    counter("hyperfactory_batches_acknowledged_total", "Batches the hub stored", counted.acknowledged)?;

    let spool = vitals.spool.borrow().clone();
    counter("hyperfactory_batches_lost_total", "Batches that can no longer be delivered", spool.lost_batches)?;
    gauge("hyperfactory_batches_pending", "Batches the hub has not stored yet", spool.pending_batches)?;
    gauge("hyperfactory_spool_bytes", "Bytes in the spool", spool.bytes)?;
    gauge("hyperfactory_spool_capacity_bytes", "Most bytes the spool may take", spool.capacity_bytes)?;
    gauge("hyperfactory_spool_fault", "0 none, 1 disk full, 2 corrupt, 3 I/O", u64::from(spool.fault.unsigned_abs()))?;
    if let Some(logs) = &vitals.logs {
        let logs = logs.borrow().clone();
        let fault = u64::from(logs.fault.unsigned_abs());
        counter("hyperfactory_log_batches_lost_total", "Batches of log lines that are lost", logs.lost_batches)?;
        gauge("hyperfactory_log_batches_pending", "Batches of log lines not stored yet", logs.pending_batches)?;
        gauge("hyperfactory_log_spool_bytes", "Bytes in the spool for logs", logs.bytes)?;
        gauge("hyperfactory_log_spool_capacity_bytes", "Most bytes that spool may take", logs.capacity_bytes)?;
        gauge("hyperfactory_log_spool_fault", "0 none, 1 disk full, 2 corrupt, 3 I/O", fault)?;
    }
    seconds("hyperfactory_last_sample_age_seconds", "Time since the last sample", vitals.pulse.age().as_secs_f64())?;

    if let Some(bridge) = vitals.bridge.as_ref().map(|bridge| bridge.borrow().clone()) {
        let state = u64::from(bridge.kafka.unsigned_abs());
        gauge("hyperfactory_kafka_state", "0 unknown, 1 connected, 2 waiting, 3 unreachable, 4 refused", state)?;
        let ends = bridge.certificate_not_after_ms as f64 / 1e3;
        seconds("hyperfactory_kafka_certificate_not_after_seconds", "When the Kafka certificate ends; 0: none", ends)?;
        for class in bridge.classes {
            let help = "Records dropped because their class's room was used up, or they were too old, or lost on disk";
            let labels = Opts::new("hyperfactory_class_dropped_total", help).const_label("class", class.name);
            let counter = IntCounter::with_opts(labels.const_label("overflow", class.overflow))?;
            counter.inc_by(class.dropped);
            registry.register(Box::new(counter))?;
        }
    }

    let build = Opts::new("hyperfactory_build_info", "The release").const_label("software", &vitals.software);
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    registry.register(Box::new(build))?;
    TextEncoder::new().encode_to_string(&registry.gather())
}
