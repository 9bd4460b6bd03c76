//! How long the fleet's certificates still last, as gauges.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{IntGaugeVec, Opts, Registry};
use protocol::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::authorities::{Authorities, AuthoritiesError, Awaited, Listed};
use crate::telemetry::state::Fleet;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often the log says again that signatures are awaited.
const SAY_EVERY: Duration = Duration::from_secs(86_400);
/// The remaining lives that nodes are counted by, each up to the next.
const LIVES: [(&str, Duration); 5] = [
    ("ended", Duration::ZERO),
    ("1d", Duration::from_secs(86_400)),
    ("7d", Duration::from_secs(7 * 86_400)),
    ("30d", Duration::from_secs(30 * 86_400)),
    ("more", Duration::MAX),
];

/// The gauges.
#[derive(Clone)]
pub struct Expiry {
    authorities: IntGaugeVec,
    awaited: IntGaugeVec,
    nodes: IntGaugeVec,
}

impl Expiry {
    /// Registers the gauges.
    ///
    /// # Errors
    /// When two metrics share a name.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauges = |name: &str, help: &str, label: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(gauges.clone()))?;
            prometheus::Result::Ok(gauges)
        };
        Ok(Self {
            authorities: gauges(
                "hyperfactory_hub_authority_not_after_seconds",
                "When the first authority of a kind that issues now ends, seconds since the Unix epoch.",
                "kind",
            )?,
            awaited: gauges(
                "hyperfactory_hub_signatures_awaited",
                "What waits for the signature of a fleet root that is kept offline, by kind.",
                "kind",
            )?,
            nodes: gauges(
                "hyperfactory_hub_node_certificates",
                "Nodes by how long their certificates still last: at most so long, and longer than the one before.",
                "remaining",
            )?,
        })
    }

    /// Looks again and again until `stop`.
    pub async fn watch(
        self,
        authorities: Authorities,
        fleet: Fleet,
        clock: impl Fn() -> Timestamp + Send,
        stop: CancellationToken,
    ) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said: Option<Timestamp> = None;
        while stop.run_until_cancelled(look.tick()).await.is_some() {
            let now = clock();
            self.count(&fleet, now);
            if let Err(error) = authorities.ask_ahead(now).await {
                tracing::warn!(
                    error = crate::rows::chain(&error),
                    "what the offline root has to sign was not asked for"
                );
            }
            let looked = async { Ok((authorities.list(None, now).await?, authorities.awaited(None, now).await?)) };
            match looked.await {
                Ok((listed, awaited)) => {
                    self.show(&listed);
                    self.show_awaited(&awaited);
                    let again = said.is_none_or(|at| now.since(at) >= SAY_EVERY);
                    if again && !awaited.is_empty() {
                        said = Some(now);
                        if let Some(oldest) = awaited.iter().map(|one| one.since).min() {
                            tracing::warn!(
                                waiting = awaited.len(),
                                since = %oldest,
                                "signatures of the fleet root are awaited, which is kept offline: hold a signing ceremony \
                                 (hyperfactory-hub ca root requests)"
                            );
                        }
                    }
                }
                Err::<_, AuthoritiesError>(error) => tracing::debug!(%error, "authorities could not be listed"),
            }
        }
    }

    /// Sets the nodes' gauges.
    pub fn count(&self, fleet: &Fleet, now: Timestamp) {
        let mut counts = [0i64; LIVES.len()];
        for view in fleet.all() {
            let Some(certificate) = view.certificate.filter(|_| view.revoked_at.is_none()) else { continue };
            let left = certificate.not_after.since(now);
            if let Some(place) = LIVES.iter().position(|(_, most)| left <= *most) {
                counts[place] += 1;
            }
        }
        for ((name, _), count) in LIVES.iter().zip(counts) {
            self.nodes.with_label_values(&[*name]).set(count);
        }
    }

    /// Sets the gauge of what waits for a signature.
    pub fn show_awaited(&self, awaited: &[Awaited]) {
        for kind in Awaited::KINDS {
            let waiting = awaited.iter().filter(|one| one.kind == kind).count();
            self.awaited.with_label_values(&[kind]).set(waiting as i64);
        }
    }

    /// Sets the authorities' gauges.
    pub fn show(&self, listed: &[Listed]) {
        let mut first: BTreeMap<&str, Timestamp> = BTreeMap::new();
        for one in listed.iter().filter(|one| one.state == "active") {
            if let Some(at) = one.not_after {
                first.entry(&one.kind).and_modify(|known| *known = at.min(*known)).or_insert(at);
            }
        }
        for (kind, at) in first {
            self.authorities.with_label_values(&[kind]).set(at.seconds());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted_by_kind_and_goes_away() {
        let expiry = Expiry::new(&Registry::new()).expect("gauges");
        let one = |kind| Awaited { kind, tenant: None, since: Timestamp::from_millis(0), ends: None };
        expiry.show_awaited(&[one("nodes"), one("hub"), one("nodes")]);
        let shown = || Awaited::KINDS.map(|kind| expiry.awaited.with_label_values(&[kind]).get());
        assert_eq!(shown(), [2, 1, 0, 0]);
        expiry.show_awaited(&[]);
        assert_eq!(shown(), [0; 4]);
    }

    #[test]
    fn the_first_end_of_each_kind_is_shown() {
        let expiry = Expiry::new(&Registry::new()).expect("gauges");
        let day = |days: u64| Timestamp::from_millis(1_790_000_000_000).plus(Duration::from_secs(days * 86_400));
        let one = |kind: &str, state: &str, end| Listed {
            id: 1,
            kind: kind.into(),
            tenant: None,
            generation: 1,
            state: state.into(),
            spki_sha256: String::new(),
            created_at: day(0),
            not_after: Some(end),
            followed_at: None,
            renew_by: None,
            certificates: 0,
        };
        let listed = [
            one("nodes", "active", day(300)),
            one("nodes", "active", day(20)),
            one("nodes", "trusted", day(2)),
            one("root", "active", day(3000)),
        ];
        expiry.show(&listed);
        assert_eq!(expiry.authorities.with_label_values(&["nodes"]).get(), day(20).seconds());
        assert_eq!(expiry.authorities.with_label_values(&["root"]).get(), day(3000).seconds());
    }
}
