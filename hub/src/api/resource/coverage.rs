//! What is stored of a node: the proof that nothing is missing.

use serde::Serialize;
use utoipa::ToSchema;

use super::Time;
use crate::streams;

/// The proof that no batch of one spool epoch is missing.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Coverage {
    /// The spool's life, hexadecimal.
    pub epoch: String,
    /// When its first batch came.
    pub opened_at: Time,
    /// First number that counts; those before it were stored, and deleted when their time was over.
    pub first: u64,
    /// The last number the hub has acknowledged.
    pub through: u64,
    /// Batches stored, each once.
    pub stored: u64,
    /// Batches the node reported lost.
    pub lost: u64,
    /// Every number from `first` to `through` is stored or reported lost, and none is there twice.
    pub complete: bool,
    /// Numbers that are neither stored nor reported lost: first and last of each gap.
    pub missing: Vec<(u64, u64)>,
    /// Numbers that are there twice: first and last of each run.
    pub doubled: Vec<(u64, u64)>,
    /// Which numbers were lost, and why.
    pub lost_ranges: Vec<LostRange>,
}

/// Numbers a node could not deliver.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LostRange {
    /// First number lost.
    pub first: u64,
    /// Last number lost.
    pub last: u64,
    /// Why: `overflow`, `corrupt`, `disk_full`, …
    pub reason: String,
}

impl From<streams::Coverage> for Coverage {
    fn from(coverage: streams::Coverage) -> Self {
        Self {
            epoch: coverage.epoch.to_string(),
            opened_at: Time(coverage.opened_at),
            first: coverage.first,
            through: coverage.through,
            stored: coverage.stored,
            lost: coverage.lost.iter().map(|range| range.last.saturating_sub(range.first).saturating_add(1)).sum(),
            complete: coverage.is_complete(),
            missing: coverage.missing,
            doubled: coverage.doubled,
            lost_ranges: coverage
                .lost
                .into_iter()
                .map(|range| LostRange { first: range.first, last: range.last, reason: range.reason })
                .collect(),
        }
    }
}
