//! How patient the rules are.

use std::time::Duration;

use crate::certificate_policy::Policies;

/// Times and counts of the rules.
#[derive(Clone)]
pub struct Policy {
    /// A node whose session broke off has so long to come back.
    pub lost_after: Duration,
    /// It must stay for so long before the alert is over.
    pub back_for: Duration,
    /// A service may be unhealthy, or stopped by an error, for so long.
    pub service_after: Duration,
    /// It must be well for so long before the alert is over.
    pub service_well_for: Duration,
    /// So many restarts …
    pub restarts: usize,
    /// … within this time are a loop; none within it ends the alert.
    pub restart_window: Duration,
    /// The engine may be out of reach for so long; within it for so long ends the alert.
    pub engine_after: Duration,
    /// A bridge's brokers may not answer for so long.
    pub unreachable_after: Duration,
    /// A clock further off than this is an alert; nearer than half of it ends it.
    pub clock_offset: Duration,
    /// How long a loss in the spool is shown.
    pub loss_for: Duration,
    /// A certificate should have been renewed when it has less than this left, or less than a seventh of its life.
    pub certificate_left: Duration,
    /// When certificates are to be renewed.
    pub certificates: Policies,
    /// So long after the end of its window a certificate may still be in use, or for a quarter of what is left of it.
    pub overdue_after: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            lost_after: seconds(30),
            back_for: seconds(15),
            service_after: seconds(30),
            service_well_for: seconds(30),
            restarts: 3,
            restart_window: seconds(120),
            engine_after: seconds(30),
            unreachable_after: seconds(300),
            clock_offset: seconds(2),
            loss_for: seconds(600),
            certificate_left: seconds(86_400),
            certificates: Policies::default(),
            overdue_after: seconds(900),
        }
    }
}
