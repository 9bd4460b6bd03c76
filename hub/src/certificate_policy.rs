//! How long certificates live, and when they are renewed: terms for each kind, within bounds.

mod policies;

use std::fmt;
use std::time::Duration;

use pki::authority::{BACKDATE, HUB_SERVER_LIFETIME};
use pki::renewal;
use protocol::{NodeKind, TenantId, Timestamp};
use settings::Period;
use store::StoreError;

use crate::words::words;

pub use policies::{Policies, Source, Stated};

const DAY: Duration = Duration::from_secs(86_400);

/// What policy is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The fleet's root.
    Root,
    /// The intermediate that issues what the hub shows nodes.
    HubIntermediate,
    /// A tenant's intermediate, which issues its nodes' identities.
    NodesIntermediate,
    /// The root of a tenant's Kafka plane.
    KafkaRoot,
    /// Agents' identities.
    Agent,
    /// Bridges' identities.
    Bridge,
    /// What bridges show the tenant's brokers.
    KafkaClient,
    /// What the tenant's brokers show.
    KafkaServer,
}

words! {
    Kind {
        Root = "root", HubIntermediate = "hub-intermediate", NodesIntermediate = "nodes-intermediate",
        KafkaRoot = "kafka-root", Agent = "agent", Bridge = "bridge", KafkaClient = "kafka-client",
        KafkaServer = "kafka-server",
    }
    or PolicyError = |text| PolicyError::Kind(text.chars().take(40).collect())
}

impl Kind {
    /// Whether a tenant can have terms of its own for it.
    pub const fn is_tenants(self) -> bool {
        !matches!(self, Self::Root | Self::HubIntermediate)
    }

    /// Whether nodes renew it when they are told to.
    pub const fn is_identity(self) -> bool {
        matches!(self, Self::Agent | Self::Bridge)
    }

    /// What issues it; `None`: it signs itself.
    const fn issuer(self) -> Option<Self> {
        match self {
            Self::Root | Self::KafkaRoot => None,
            Self::HubIntermediate | Self::NodesIntermediate => Some(Self::Root),
            Self::Agent | Self::Bridge => Some(Self::NodesIntermediate),
            Self::KafkaClient | Self::KafkaServer => Some(Self::KafkaRoot),
        }
    }

    /// Shortest and longest life.
    const fn bounds(self) -> (Duration, Duration) {
        match self {
            Self::Root | Self::KafkaRoot => (DAY.saturating_mul(90), DAY.saturating_mul(10_950)),
            Self::HubIntermediate | Self::NodesIntermediate => (DAY.saturating_mul(7), DAY.saturating_mul(3_650)),
            _ => (Duration::from_secs(3_600), DAY.saturating_mul(1_095)),
        }
    }

    /// What goes for it when nobody says otherwise.
    pub const fn default_terms(self) -> Terms {
        let (days, renew_from, renew_until) = match self {
            Self::Root | Self::KafkaRoot => (3_650, 70, 80),
            Self::HubIntermediate | Self::NodesIntermediate => (365, 60, 70),
            Self::Agent => (7, 57, 77),
            Self::Bridge | Self::KafkaClient => (90, 57, 77),
            // Nobody renews it but the tenant's operator.
            Self::KafkaServer => (365, 57, 77),
        };
        Terms { lifetime: DAY.saturating_mul(days), renew_from, renew_until }
    }
}

impl From<NodeKind> for Kind {
    fn from(kind: NodeKind) -> Self {
        match kind {
            NodeKind::Agent => Self::Agent,
            NodeKind::Bridge => Self::Bridge,
        }
    }
}

/// How long a certificate lives, and between which shares of its life, in percent, it is renewed (an intermediate:
/// followed by a new one; a root: rotated). They count from the next certificate on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long it lives.
    pub lifetime: Duration,
    /// Start of the window; each certificate has its own moment in it.
    pub renew_from: u8,
    /// Its end.
    pub renew_until: u8,
}

/// Earliest start of a window, percent.
const FROM_LEAST: u8 = 10;
/// Latest end of a window, percent: a node begins by itself then, and what is left is for attempts that fail.
const UNTIL_MOST: u8 = (renewal::LATEST * 100.0) as u8;
/// Narrowest window, percentage points: in it, a fleet's renewals are spread.
const WIDTH_LEAST: u8 = 5;

impl Terms {
    /// When a certificate is renewed whose life began at `from`. `jitter` is random in `0.0..1.0` and the same for one
    /// certificate every time.
    pub fn renew_at(&self, from: Timestamp, until: Timestamp, jitter: f64) -> Timestamp {
        renewal::within(from, until, (f64::from(self.renew_from) / 100.0, f64::from(self.renew_until) / 100.0), jitter)
    }

    /// When its window ends: it should have been renewed by then.
    pub fn renew_by(&self, from: Timestamp, until: Timestamp) -> Timestamp {
        self.renew_at(from, until, 1.0)
    }

    /// What is left of a certificate at the end of its window, when it has had its whole life.
    fn left_over(&self) -> Duration {
        self.lifetime.mul_f64(1.0 - f64::from(self.renew_until) / 100.0)
    }

    fn check(&self, kind: Kind) -> Result<(), PolicyError> {
        let (least, most) = kind.bounds();
        if !(least..=most).contains(&self.lifetime) || self.lifetime.subsec_nanos() != 0 {
            return Err(PolicyError::Lifetime { kind, least: Period(least), most: Period(most) });
        }
        let wide = self.renew_until.checked_sub(self.renew_from).is_some_and(|width| width >= WIDTH_LEAST);
        if self.renew_from < FROM_LEAST || self.renew_until > UNTIL_MOST || !wide {
            return Err(PolicyError::Window);
        }
        Ok(())
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, renewed at {}-{} %", Period(self.lifetime), self.renew_from, self.renew_until)
    }
}

/// All terms that go for one tenant, or for the fleet's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificatePolicy([Terms; Kind::ALL.len()]);

impl Default for CertificatePolicy {
    fn default() -> Self {
        Self(Kind::ALL.map(Kind::default_terms))
    }
}

impl CertificatePolicy {
    /// Of one kind.
    pub fn terms(&self, kind: Kind) -> Terms {
        self.0[kind as usize]
    }

    /// How long such a certificate lives.
    pub fn lifetime(&self, kind: Kind) -> Duration {
        self.terms(kind).lifetime
    }

    fn with(mut self, kind: Kind, terms: Terms) -> Self {
        self.0[kind as usize] = terms;
        self
    }

    /// The longest life of what `kind` issues.
    fn longest_issued(&self, kind: Kind) -> Duration {
        let issued = Kind::ALL.into_iter().filter(|issued| issued.issuer() == Some(kind));
        let longest = issued.map(|issued| self.lifetime(issued)).max().unwrap_or_default();
        if kind == Kind::HubIntermediate { longest.max(HUB_SERVER_LIFETIME) } else { longest }
    }

    /// When an authority is followed by a new one: in its window, at a moment that is its own by its key, and early enough
    /// that what it issues has its whole life.
    pub fn followed_at(
        &self,
        kind: Kind,
        spki_sha256: &[u8; 32],
        not_before: Timestamp,
        not_after: Timestamp,
    ) -> Timestamp {
        let own = spki_sha256.last_chunk::<4>().copied().unwrap_or_default();
        let jitter = f64::from(u32::from_be_bytes(own)) / f64::from(u32::MAX);
        let regular = self.terms(kind).renew_at(not_before, not_after, jitter);
        // One that its own issuer's end cut short can't be bettered by another one: not again and again.
        let young = not_before.plus(BACKDATE).plus(not_after.since(not_before) / 10);
        regular.min(not_after.minus(self.longest_issued(kind))).max(young)
    }

    /// Whether everything fits: within its bounds, and into the life of its issuer.
    fn check(&self) -> Result<(), PolicyError> {
        for kind in Kind::ALL {
            let terms = self.terms(kind);
            terms.check(kind)?;
            let Some(issuer) = kind.issuer() else { continue };
            let (issuing, left) = (self.terms(issuer), self.terms(issuer).left_over());
            if terms.lifetime > left {
                return Err(PolicyError::Outlives {
                    kind,
                    lifetime: Period(terms.lifetime),
                    issuer,
                    left: rounded(left),
                    terms: issuing,
                });
            }
        }
        let left = self.terms(Kind::HubIntermediate).left_over();
        if left < HUB_SERVER_LIFETIME {
            return Err(PolicyError::HubServer { needs: Period(HUB_SERVER_LIFETIME), left: rounded(left) });
        }
        Ok(())
    }
}

/// In whole days, or in whole seconds of less than one.
fn rounded(left: Duration) -> Period {
    let unit = if left < DAY { 1 } else { DAY.as_secs() };
    Period(Duration::from_secs(left.as_secs() / unit * unit))
}

/// Terms that were not taken.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// No such kind.
    #[error("{0:?} is no kind of certificate: say {all}", all = Kind::ALL.map(Kind::as_str).join(", "))]
    Kind(String),
    /// A tenant has none of its own.
    #[error("{0} is the fleet's own: leave the tenant out")]
    Fleet(Kind),
    /// There is no such tenant.
    #[error("there is no tenant {0}: see `hfctl tenant list`")]
    Tenant(TenantId),
    /// Too short, or too long.
    #[error("the life of {kind} is from {least} to {most}, in whole seconds")]
    Lifetime {
        /// The kind.
        kind: Kind,
        /// Shortest.
        least: Period,
        /// Longest.
        most: Period,
    },
    /// Too early, too late, or too narrow.
    #[error(
        "a renewal window lies between {FROM_LEAST} and {UNTIL_MOST} percent of the life and is at least {WIDTH_LEAST} \
         wide, such as 57-77: what is left after it is for attempts that fail"
    )]
    Window,
    /// It would outlive what issues it.
    #[error(
        "{kind} would live for {lifetime}, and its issuer, {issuer} ({terms}), may have no more than {left} left: let \
         {issuer} live longer or be followed earlier, or {kind} live for less"
    )]
    Outlives {
        /// The kind.
        kind: Kind,
        /// Its life.
        lifetime: Period,
        /// What issues it.
        issuer: Kind,
        /// What that may have left.
        left: Period,
        /// Its terms.
        terms: Terms,
    },
    /// The hub's own certificate would outlive what issues it.
    #[error(
        "what the hub shows nodes lives for {needs}, and hub-intermediate may have no more than {left} left: let it live \
         longer or be followed earlier"
    )]
    HubServer {
        /// Life of the hub's certificate.
        needs: Period,
        /// What its issuer may have left.
        left: Period,
    },
    /// A tenant has terms of its own that do not go together with these.
    #[error("tenant {tenant} has terms of its own: {why}")]
    OfTenant {
        /// The tenant.
        tenant: TenantId,
        /// What does not fit.
        why: Box<PolicyError>,
    },
    /// The database failed; nothing has changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<store::sqlx::Error> for PolicyError {
    fn from(error: store::sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(days: u32, renew_from: u8, renew_until: u8) -> Terms {
        Terms { lifetime: DAY * days, renew_from, renew_until }
    }

    fn with(kind: Kind, terms: Terms) -> Result<(), String> {
        CertificatePolicy::default().with(kind, terms).check().map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_fit_together_and_bridges_live_for_90_days() {
        CertificatePolicy::default().check().expect("good");
        let policy = CertificatePolicy::default();
        assert_eq!((policy.lifetime(Kind::Agent), policy.lifetime(Kind::Bridge)), (DAY * 7, DAY * 90));
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse::<Kind>().expect("its name"), kind);
            assert_eq!(policy.terms(kind), kind.default_terms());
        }
    }

    #[test]
    fn terms_out_of_bounds_are_refused_with_what_to_do() {
        let refused = |kind, terms, says: &str| {
            let error = with(kind, terms).expect_err(says);
            assert!(error.contains(says), "{error}");
        };
        let hour = Terms { lifetime: Duration::from_secs(3600), ..terms(0, 57, 77) };
        assert_eq!(with(Kind::Agent, hour), Ok(()));
        refused(Kind::Agent, Terms { lifetime: hour.lifetime - Duration::from_secs(1), ..hour }, "from 1h to 1095d");
        refused(Kind::NodesIntermediate, terms(6, 60, 70), "from 7d to 3650d");
        for (from, until) in [(9, 50), (70, 86), (70, 74), (77, 57), (0, 255)] {
            refused(Kind::Agent, terms(7, from, until), "between 10 and 85 percent");
        }
        // A leaf and its issuer, from either side.
        assert_eq!(with(Kind::Bridge, terms(109, 57, 77)), Ok(()));
        refused(
            Kind::Bridge,
            terms(110, 57, 77),
            "nodes-intermediate (365d, renewed at 60-70 %), may have no more than 109d left",
        );
        refused(Kind::NodesIntermediate, terms(365, 70, 80), "bridge would live for 90d");
        refused(Kind::KafkaRoot, terms(1000, 70, 80), "kafka-server would live for 365d");
        refused(Kind::Root, terms(1000, 70, 80), "hub-intermediate would live for 365d");
        refused(Kind::HubIntermediate, terms(60, 60, 70), "what the hub shows nodes lives for 30d");
        assert!("leaf".parse::<Kind>().expect_err("none").to_string().contains("kafka-server"));
    }

    #[test]
    fn an_authority_is_followed_in_its_window_and_early_enough_for_what_it_issues() {
        let (policy, start) = (CertificatePolicy::default(), Timestamp::from_millis(1_790_000_000_000));
        let days = |policy: &CertificatePolicy, kind, key: u8, life: u32| {
            let at = policy.followed_at(kind, &[key; 32], start, start.plus(DAY * life));
            at.since(start).as_secs() / 86_400
        };
        assert_eq!([0, 128, 255].map(|key| days(&policy, Kind::NodesIntermediate, key, 365)), [219, 237, 255]);
        let long = policy.with(Kind::Bridge, terms(200, 57, 77));
        assert_eq!(days(&long, Kind::NodesIntermediate, 255, 365), 165, "bridges of 200 days still fit");
        // The root ends in 100 days: another intermediate would last no longer.
        assert_eq!(days(&policy, Kind::NodesIntermediate, 0, 95), 9);
    }

    #[test]
    fn each_certificate_has_its_moment_in_the_window() {
        let (start, end) = (Timestamp::from_millis(0), Timestamp::from_millis(100_000));
        let terms = terms(1, 20, 60);
        let at = |jitter| terms.renew_at(start, end, jitter).millis();
        assert_eq!([at(0.0), at(0.5), at(1.0), at(7.0)], [20_000, 40_000, 60_000, 60_000]);
        assert_eq!(terms.renew_by(start, end).millis(), 60_000);
    }
}
