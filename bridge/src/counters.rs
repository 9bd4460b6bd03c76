//! What the bridge counts, for log lines and whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages received from MQTT.
    pub received: Counter,
    /// Records made durable.
    pub stored: Counter,
    /// Records that Kafka confirmed.
    pub delivered: Counter,
    /// Records that became dead letters.
    pub refused: Counter,
    /// Messages too large to be stored, which are dropped.
    pub oversize: Counter,
    /// Connections to MQTT brokers that came up.
    pub connections: Counter,
    /// Kafka producers that were begun.
    pub producers: Counter,
}

/// One count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// What it stands at.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
