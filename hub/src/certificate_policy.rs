//! How long a tenant's certificates live, and when they are renewed.

use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// One tenant's policy. Lifetimes count from the next certificate on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatePolicy {
    /// Agents' identities.
    pub agent: LeafPolicy,
    /// Bridges' identities.
    pub bridge: LeafPolicy,
    /// What bridges show the tenant's brokers.
    pub kafka_client: LeafPolicy,
    /// What the tenant's brokers show.
    pub kafka_server: LeafPolicy,
    /// The intermediate that issues the nodes' identities.
    pub nodes_intermediate: Duration,
    /// The root of the tenant's Kafka plane.
    pub kafka_root: Duration,
}

/// Of one kind of leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafPolicy {
    /// How long a certificate lives.
    pub lifetime: Duration,
}

impl Default for CertificatePolicy {
    fn default() -> Self {
        let days = |days| LeafPolicy { lifetime: DAY * days };
        Self {
            agent: days(7),
            bridge: days(90),
            kafka_client: days(90),
            // Nobody renews it but the tenant's operator.
            kafka_server: days(365),
            nodes_intermediate: DAY * 365,
            kafka_root: DAY * 3650,
        }
    }
}
