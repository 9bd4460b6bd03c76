//! What is configured of the tenant's Kafka bus.

use std::path::PathBuf;
use std::time::Duration;

use node::KafkaStore;
use serde::Deserialize;
use settings::{Period, Size};

use super::ConfigError;
use crate::pace::CatchUp;
use crate::standing::Standing;

/// The tenant's Kafka bus.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KafkaConfig {
    /// `host:port` of brokers to begin with.
    pub brokers: Vec<String>,
    /// How batches are compressed.
    pub compression: Compression,
    /// How long a record waits for others to share its batch.
    pub linger: Period,
    /// Most bytes of records a second, before compression: while a backlog is delivered, the rest of the line is free for
    /// others. Default: no limit.
    pub max_rate: Option<Size>,
    /// Who goes first when `max_rate` is not enough for all classes.
    pub catch_up: CatchUp,
    /// Largest record with its headers; the brokers have to take it (`max.message.bytes`).
    pub max_record: Size,
    /// Where the bridge's certificate comes from when no file is named. Default: from the hub, if the bridge is enrolled.
    pub tls: Option<Tls>,
    /// Authority of the brokers' certificates, in PEM, in place of the tenant's Kafka roots; with it the connection is TLS.
    pub ca: Option<PathBuf>,
    /// The bridge's certificate, in PEM, in place of one from the hub. When the file changes, the next connection shows the
    /// new one.
    pub certificate: Option<PathBuf>,
    /// Its key, in PEM.
    pub key: Option<PathBuf>,
    /// Where the certificate from the hub is, when that is to be used; see [`super::Config::enrolled`].
    #[serde(skip)]
    pub issued: Option<KafkaStore>,
    /// Where clients of the brokers note what they are told.
    #[serde(skip)]
    pub standing: Standing,
}

impl KafkaConfig {
    /// Judges it, with or without classes beside it.
    pub(super) fn check(&self, has_classes: bool) -> Result<(), ConfigError> {
        let wrong = |key, why: &str| Err(ConfigError::Value { key, why: why.into() });
        if self.certificate.is_some() != self.key.is_some() {
            return wrong("kafka.certificate", "`kafka.certificate` and `kafka.key` go together");
        }
        if self.tls.is_some() && self.certificate.is_some() {
            return wrong(
                "kafka.tls",
                "it is for a bridge without `kafka.certificate` and `kafka.key`: leave out one or the other",
            );
        }
        if self.tls == Some(Tls::Off) && self.ca.is_some() {
            return wrong("kafka.tls", "`kafka.ca` asks for TLS: leave out one or the other");
        }
        if self.certificate.is_some() && self.ca.is_none() {
            return wrong(
                "kafka.ca",
                "a certificate is shown over TLS only: name the authority of the brokers' certificates",
            );
        }
        if !(Size(1024)..=Size(100_000_000)).contains(&self.max_record) {
            return wrong("kafka.max-record", "use from 1KiB to 100MB");
        }
        if self.max_rate.is_some_and(|rate| rate < Size(1024)) {
            return wrong("kafka.max-rate", "use 1KiB or more, in a second");
        }
        if self.catch_up == CatchUp::LiveFirst && (self.max_rate.is_none() || !has_classes) {
            return wrong(
                "kafka.catch-up",
                "live-first says which [[class]] goes first within `kafka.max-rate`: give both, or leave it out",
            );
        }
        if self.linger.get() > Duration::from_secs(1) {
            return wrong("kafka.linger", "use up to 1s");
        }
        Ok(())
    }
}

/// What the connection to the brokers is protected by.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// A certificate from the hub.
    Hub,
    /// Nothing.
    Off,
}

/// A way of compressing.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// As it is.
    None,
    /// Fast.
    #[default]
    Lz4,
    /// Small.
    Zstd,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            compression: Compression::default(),
            linger: Period(Duration::from_millis(5)),
            max_rate: None,
            catch_up: CatchUp::default(),
            max_record: Size(1_000_000),
            tls: None,
            ca: None,
            certificate: None,
            key: None,
            issued: None,
            standing: Standing::default(),
        }
    }
}
