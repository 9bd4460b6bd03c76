//! Open rotations as gauges: where each stands, and how many are not ready for what comes next.

use std::time::Duration;

use prometheus::{IntGaugeVec, Opts, Registry};
use protocol::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Direction, Phase, RotationError, Rotations};
use crate::authorities::place;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Most rotations that are shown.
const SHOWN: u32 = 500;

/// The gauges.
#[derive(Clone)]
pub struct Gauges {
    phase: IntGaugeVec,
    missing: IntGaugeVec,
}

impl Gauges {
    /// Registers the gauges.
    ///
    /// # Errors
    /// When two metrics share a name.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauges = |name: &str, help: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &["kind", "tenant"])?;
            registry.register(Box::new(gauges.clone()))?;
            prometheus::Result::Ok(gauges)
        };
        Ok(Self {
            phase: gauges(
                "hyperfactory_hub_rotation_phase",
                "Phase of a rotation under way: 1 prepare, 2 trust, 3 issue, 4 retire.",
            )?,
            missing: gauges(
                "hyperfactory_hub_rotation_missing",
                "Nodes and certificates that are not ready for the next phase of a rotation under way.",
            )?,
        })
    }

    /// Looks again and again until `stop`.
    pub async fn watch(self, rotations: Rotations, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(look.tick()).await.is_some() {
            if let Err(error) = self.look(&rotations, clock()).await {
                tracing::debug!(%error, "rotations could not be looked at");
            }
        }
    }

    /// Shows what is under way now, and nothing else.
    ///
    /// # Errors
    /// When the database does not answer; what was shown stays.
    pub async fn look(&self, rotations: &Rotations, now: Timestamp) -> Result<(), RotationError> {
        let mut shown = Vec::new();
        for rotation in rotations.list(true, None, SHOWN).await? {
            let gate = rotations.gate(&rotation, Direction::Forward, now).await?;
            shown.push((rotation, gate.map_or(0, |gate| gate.missing.len())));
        }
        self.phase.reset();
        self.missing.reset();
        for (rotation, missing) in shown {
            let (kind, tenant) = place(&rotation.role);
            let phase = match rotation.phase {
                Phase::Prepare => 1,
                Phase::Trust => 2,
                Phase::Issue => 3,
                Phase::Retire => 4,
                Phase::Done | Phase::Aborted => continue,
            };
            self.phase.with_label_values(&[kind, tenant]).set(phase);
            self.missing.with_label_values(&[kind, tenant]).set(i64::try_from(missing).unwrap_or(i64::MAX));
        }
        Ok(())
    }
}
