//! Steps as they are configured.

use std::collections::BTreeMap;

use serde::Deserialize;
use settings::Period;

/// A step as it is configured.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum StepConfig {
    /// Keep these fields alone.
    Pick(Vec<String>),
    /// Give fields other names: new ones by old ones.
    Rename(BTreeMap<String, String>),
    /// Convert a number.
    Scale(ScaleConfig),
    /// Let messages through for which all of it holds.
    Filter(FilterConfig),
    /// Let at most one message of a topic through in a time.
    DownSample(DownSampleConfig),
    /// Let messages of a topic through whose number has changed enough.
    DeadBand(DeadBandConfig),
}

/// Either from one unit to another, or by factor and offset.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ScaleConfig {
    /// The number; without it, the payload itself.
    pub field: Option<String>,
    /// Unit that it is in.
    pub from: Option<String>,
    /// Unit that it is wanted in.
    pub to: Option<String>,
    /// What it is multiplied by.
    pub factor: Option<f64>,
    /// What is added then.
    pub offset: Option<f64>,
}

/// What has to hold of a value.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterConfig {
    /// The value; without it, the payload itself.
    pub field: Option<String>,
    /// It is there, or is not.
    pub present: Option<bool>,
    /// It is this text, number or truth.
    pub equals: Option<Scalar>,
    /// It is another one, or missing.
    pub differs: Option<Scalar>,
    /// It is a number above this one.
    pub above: Option<f64>,
    /// It is a number below this one.
    pub below: Option<f64>,
}

/// A time.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DownSampleConfig {
    /// The time in which at most one message of a topic passes.
    pub every: Period,
}

/// How much is enough.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeadBandConfig {
    /// The number; without it, the payload itself.
    pub field: Option<String>,
    /// It is further than this from what passed last.
    pub band: Option<f64>,
    /// It is further from what passed last than this share of that, in percent.
    pub percent: Option<f64>,
    /// After this time one passes whatever it is.
    pub at_least_every: Option<Period>,
}

/// A value of a filter.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Scalar {
    /// true or false.
    Truth(bool),
    /// A whole number.
    Whole(i64),
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
}
