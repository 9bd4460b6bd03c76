//! What is configured of a connection to an MQTT broker.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use settings::{Period, Secret};

use super::{ConfigError, NAME, is_name};

/// A connection to an MQTT broker.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MqttConfig {
    /// What it is called here and in headers.
    pub name: String,
    /// `host:port` of the broker.
    pub address: String,
    /// Version of the protocol: 3, which is 3.1.1, or 5.
    #[serde(default)]
    pub version: Version,
    /// How long the broker keeps the session after the connection ends, with version 5. Default: for ever, as far as the
    /// broker goes along.
    pub session_expiry: Option<Period>,
    /// Messages that the broker may send before the first of them is acknowledged, with version 5. Default: 1000.
    pub receive_maximum: Option<u16>,
    /// The client id, which names the session that the broker keeps. Default: from the names of bridge and connection.
    pub client_id: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Authority of the broker's certificate, in PEM; with it the connection is TLS.
    pub ca: Option<PathBuf>,
    /// Quality of service to subscribe with: 0, 1 or 2.
    #[serde(default = "qos")]
    pub qos: u8,
    /// When a message is acknowledged to the broker.
    #[serde(default)]
    pub ack: Ack,
    /// Time without traffic after which a ping is sent.
    #[serde(default = "keep_alive")]
    pub keep_alive: Period,
}

impl MqttConfig {
    /// Messages that the broker may send before the first of them is acknowledged. So many are synced to disk together.
    pub fn receive_maximum(&self) -> u16 {
        self.receive_maximum.unwrap_or(1000)
    }

    /// The address in its two parts.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.address.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some((host, port.parse().ok().filter(|port| *port > 0)?)).filter(|(host, _)| !host.is_empty())
    }

    /// Judges it alone.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, why: &str| Err(ConfigError::Value { key, why: why.into() });
        if !is_name(&self.name) {
            return wrong("mqtt.name", NAME);
        }
        if self.host_and_port().is_none() {
            return wrong("mqtt.address", &format!("{:?} is not host:port, like \"broker.plant:1883\"", self.address));
        }
        if self.qos > 2 {
            return wrong("mqtt.qos", "use 0, 1 or 2");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.keep_alive.get()) {
            return wrong("mqtt.keep-alive", "use from 1s to 1h");
        }
        if self.version == Version::Three && (self.session_expiry.is_some() || self.receive_maximum.is_some()) {
            return wrong("mqtt.version", "session-expiry and receive-maximum take version = 5");
        }
        if self.receive_maximum == Some(0) {
            return wrong("mqtt.receive-maximum", "use 1 or more");
        }
        if self.client_id.as_deref().is_some_and(str::is_empty) {
            return wrong("mqtt.client-id", "a session that the broker keeps has a name");
        }
        Ok(())
    }
}

/// A version of MQTT.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "u8")]
pub enum Version {
    /// 3.1.1.
    #[default]
    Three,
    /// 5.
    Five,
}

impl TryFrom<u8> for Version {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, &'static str> {
        match number {
            3 => Ok(Self::Three),
            5 => Ok(Self::Five),
            _ => Err("use 3, for MQTT 3.1.1, or 5"),
        }
    }
}

/// When a message is acknowledged to its MQTT broker.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Ack {
    /// Once it is on disk.
    #[default]
    Durable,
    /// Once Kafka has it, or it is a dead letter on disk: a message outlives the loss of the bridge's disk.
    Delivered,
}

fn qos() -> u8 {
    1
}

fn keep_alive() -> Period {
    Period::seconds(30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_two_parts() {
        let of = |address: &str| MqttConfig {
            name: "a".into(),
            address: address.into(),
            version: Version::Three,
            session_expiry: None,
            receive_maximum: None,
            client_id: None,
            username: None,
            password: None,
            ca: None,
            qos: 1,
            ack: Ack::Durable,
            keep_alive: keep_alive(),
        };
        assert_eq!(of("[::1]:1883").host_and_port(), Some(("::1", 1883)));
        assert_eq!(of("broker:0").host_and_port(), None);
        assert_eq!(of(":1883").host_and_port(), None);
    }
}
