//! What was measured over time.

use protocol::telemetry::{Kind, Unit};
use serde::Serialize;
use utoipa::ToSchema;

use super::Time;
use crate::telemetry::history;

const KIBIBYTE: f64 = 1024.0;

/// Points of one series.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Series {
    /// Metric name.
    pub metric: String,
    /// What of: "" for the host itself, an interface, a mount point, `stack/service/number`.
    pub target: String,
    /// Unit of the values: `ratio`, `count`, `bytes`, `seconds`; of counters, that per second: `bytes/s`, `cpus`.
    pub unit: String,
    /// In order of time.
    pub points: Vec<Point>,
}

/// What was measured in one step of time.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Point {
    /// When the last of it was measured, ms since the Unix epoch.
    pub at: i64,
    /// The mean.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// Points of one or more series of a node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct History {
    /// Start of the range.
    pub from: Time,
    /// End of the range.
    pub to: Time,
    /// The time one point stands for, ms.
    pub step_ms: u64,
    /// The series, by metric and target.
    pub series: Vec<Series>,
}

impl From<history::Range> for History {
    fn from(range: history::Range) -> Self {
        Self {
            from: Time(range.from),
            to: Time(range.to),
            step_ms: range.step.as_millis() as u64,
            series: range.series.into_iter().map(Series::from).collect(),
        }
    }
}

impl From<history::SeriesPoints> for Series {
    fn from(series: history::SeriesPoints) -> Self {
        let rate = series.kind == Kind::Counter;
        let (unit, scale) = match series.unit {
            Unit::Ratio => ("ratio", 1.0),
            Unit::Bytes => ("bytes", 1.0),
            Unit::Kibibytes => ("bytes", KIBIBYTE),
            // A counter of CPU time: seconds per second are CPUs.
            Unit::Milliseconds if rate => ("cpus", 0.001),
            Unit::Milliseconds => ("seconds", 0.001),
            Unit::Seconds => ("seconds", 1.0),
            Unit::Count | Unit::Other(_) => ("count", 1.0),
        };
        let unit = if rate && unit != "cpus" { format!("{unit}/s") } else { unit.to_owned() };
        let points = series
            .points
            .iter()
            .map(|point| Point {
                at: point.at.millis(),
                mean: point.mean * scale,
                min: point.min * scale,
                max: point.max * scale,
            })
            .collect();
        Self { metric: series.metric, target: series.target, unit, points }
    }
}
