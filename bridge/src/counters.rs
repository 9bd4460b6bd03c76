//! What the bridge counts, for log lines and whoever asks.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages received from MQTT.
    pub received: Counter,
    /// Messages that a route's steps let go no further.
    pub filtered: Counter,
    /// Messages that go on as they came although their route declares what to do with them.
    pub unmapped: Counter,
    /// Sparkplug messages by which a host application would ask for a birth, which the bridge can't.
    pub births_wanted: Counter,
    /// Records made durable.
    pub stored: Counter,
    /// Records that Kafka confirmed.
    pub delivered: Counter,
    /// Records that became dead letters.
    pub refused: Counter,
    /// Connections to MQTT brokers that came up.
    pub connections: Counter,
    /// Connections to MQTT brokers that are up.
    pub connected: Level,
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

/// What goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicI64);

impl Level {
    /// Moves it by `step`.
    pub fn shift(&self, step: i64) {
        self.0.fetch_add(step, Ordering::Relaxed);
    }

    /// What it stands at.
    pub fn now(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}
