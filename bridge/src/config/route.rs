//! What is configured of a route.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::step::StepConfig;

/// A route. What is not needed any more once a message is in a log is not written.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RouteConfig {
    /// The MQTT topics it is for: a topic filter.
    pub from: Option<String>,
    /// The one connection it is for. Default: all.
    pub mqtt: Option<String>,
    /// A mapping that is built in, in place of `to` and `key`.
    pub preset: Option<Preset>,
    /// The Kafka topic: a template.
    pub to: Option<String>,
    /// The key: a template. Default: the MQTT topic.
    pub key: Option<String>,
    /// Headers to add: templates by name.
    pub headers: BTreeMap<String, String>,
    /// Its class. Default: none, so its messages wait and are never dropped.
    #[serde(skip_serializing)]
    pub class: Option<String>,
    /// What messages are decoded from; they then go to the Unified Namespace, and to `to` what can't be decoded.
    #[serde(skip_serializing)]
    pub decode: Option<Decode>,
    /// What is done with payloads, in this order, and which messages go no further.
    #[serde(skip_serializing)]
    pub step: Vec<StepConfig>,
}

/// A format that messages are decoded from.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Decode {
    /// Sparkplug B.
    SparkplugB,
}

/// A mapping that is built in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The Unified Namespace of the United Manufacturing Hub.
    Umh,
}
