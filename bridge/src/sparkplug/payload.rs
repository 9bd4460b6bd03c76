//! A Sparkplug B payload: the parts of its protobuf message (Eclipse Sparkplug 3.0, section 6.4) that are read here.

use prost::DecodeError;
use prost::encoding::{DecodeContext, decode_key, skip_field};

/// Name of the metric that counts an edge node's lives, from 0 to 255 and on from 0.
pub(crate) const LIFE: &str = "bdSeq";
/// Where the metrics are in the message.
const METRICS: u32 = 2;

/// A payload.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Payload {
    /// When it was sent, in milliseconds since the Unix epoch.
    #[prost(uint64, optional, tag = "1")]
    pub(crate) timestamp: Option<u64>,
    /// What it tells.
    #[prost(message, repeated, tag = "2")]
    pub(crate) metrics: Vec<Metric>,
    /// Counts an edge node's messages, from 0 at its birth to 255, and on from 0.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) seq: Option<u64>,
}

impl Payload {
    /// How many metrics there are in these bytes. One takes two bytes there and a hundred times as much when it is read, so
    /// they are counted before that.
    pub(crate) fn count(mut bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut count = 0;
        while !bytes.is_empty() {
            let (tag, kind) = decode_key(&mut bytes)?;
            count += usize::from(tag == METRICS);
            skip_field(kind, tag, &mut bytes, DecodeContext::default())?;
        }
        Ok(count)
    }

    /// The number of the edge node's life, which its birth and its death have in common.
    pub(crate) fn life(&self) -> Option<u64> {
        let metric = self.metrics.iter().find(|metric| metric.name.as_deref() == Some(LIFE))?;
        match metric.value {
            Some(Value::Int(life)) => Some(life.into()),
            Some(Value::Long(life)) => Some(life),
            _ => None,
        }
    }
}

/// A value under its name, or the number that stands for the name.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Metric {
    /// Its name.
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
    /// What stands for the name after the birth.
    #[prost(uint64, optional, tag = "2")]
    pub(crate) alias: Option<u64>,
    /// When it was measured, in milliseconds since the Unix epoch.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) timestamp: Option<u64>,
    /// One of the numbers in [`super::datatype`].
    #[prost(uint32, optional, tag = "4")]
    pub(crate) datatype: Option<u32>,
    /// It was kept at the edge, and is older than what came before it.
    #[prost(bool, optional, tag = "5")]
    pub(crate) is_historical: Option<bool>,
    /// It is not to be kept in a history.
    #[prost(bool, optional, tag = "6")]
    pub(crate) is_transient: Option<bool>,
    /// There is no value.
    #[prost(bool, optional, tag = "7")]
    pub(crate) is_null: Option<bool>,
    /// The value.
    #[prost(oneof = "Value", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19")]
    pub(crate) value: Option<Value>,
}

/// A value as it is sent.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Value {
    /// Whole numbers of up to 32 bits, signed ones in two's complement.
    #[prost(uint32, tag = "10")]
    Int(u32),
    /// Whole numbers of 64 bits, and times.
    #[prost(uint64, tag = "11")]
    Long(u64),
    /// A number.
    #[prost(float, tag = "12")]
    Float(f32),
    /// A number.
    #[prost(double, tag = "13")]
    Double(f64),
    /// true or false.
    #[prost(bool, tag = "14")]
    Boolean(bool),
    /// Text.
    #[prost(string, tag = "15")]
    Text(String),
    /// Bytes, files and arrays.
    #[prost(bytes, tag = "16")]
    Bytes(Vec<u8>),
    /// A table, not read.
    #[prost(bytes, tag = "17")]
    DataSet(Vec<u8>),
    /// A structure, not read.
    #[prost(bytes, tag = "18")]
    Template(Vec<u8>),
    /// Something of a vendor's, not read.
    #[prost(bytes, tag = "19")]
    Extension(Vec<u8>),
}
