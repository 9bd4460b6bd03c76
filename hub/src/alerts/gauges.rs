//! Open alerts as gauges, by rule.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{IntGaugeVec, Opts, Registry};
use store::StoreError;
use tokio_util::sync::CancellationToken;

use super::{Alerts, Rule};

/// How often they are counted.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// The gauges.
#[derive(Clone)]
pub struct Gauges(IntGaugeVec);

impl Gauges {
    /// Registers the gauges.
    ///
    /// # Errors
    /// When two metrics share a name.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let open =
            IntGaugeVec::new(Opts::new("hyperfactory_hub_alerts_open", "Open alerts, by their rule."), &["rule"])?;
        registry.register(Box::new(open.clone()))?;
        Ok(Self(open))
    }

    /// Counts again and again until `stop`.
    pub async fn watch(self, alerts: Alerts, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(look.tick()).await.is_some() {
            if let Err(error) = self.look(&alerts).await {
                tracing::debug!(%error, "open alerts could not be counted");
            }
        }
    }

    /// Shows what is open now.
    ///
    /// # Errors
    /// When the database does not answer; what was shown stays.
    pub async fn look(&self, alerts: &Alerts) -> Result<(), StoreError> {
        let open: HashMap<String, i64> = alerts.tally().await?.into_iter().collect();
        for rule in Rule::ALL {
            self.0.with_label_values(&[rule.as_str()]).set(open.get(rule.as_str()).copied().unwrap_or_default());
        }
        Ok(())
    }
}
