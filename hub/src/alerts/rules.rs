//! The rules: what each says of a node as it is now. No memory, no patience: those are the evaluator's.

use protocol::Timestamp;
use protocol::message::{EngineState, KafkaState, Service, ServiceHealth, ServiceState, SpoolFault};

use super::Policy;
use crate::kafka_access::State;
use crate::rows;
use crate::telemetry::state::{Certificate, Level, NodeView, Presence};
use crate::words::words;

/// What is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The session broke off.
    NodeLost,
    /// A service's health check fails.
    ServiceUnhealthy,
    /// A service ended with an error, or was killed for want of memory.
    ServiceFailed,
    /// A service restarts again and again.
    ServiceRestarting,
    /// The container engine does not answer.
    EngineUnreachable,
    /// The node's clock is off.
    ClockSkew,
    /// The node's spool gave up batches, or a bridge's log on disk records that were to stay.
    SpoolLoss,
    /// The node's spool can't write, or a bridge's log.
    SpoolFault,
    /// Two machines have had its key.
    NodeCloned,
    /// The certificate was not renewed in its window.
    CertificateOverdue,
    /// The certificate ends soon and was not renewed.
    CertificateExpiring,
    /// A broker does not let a bridge in, or not write.
    KafkaRefused,
    /// A bridge's brokers do not answer.
    KafkaUnreachable,
    /// A bridge can't have its next Kafka certificate, or its brokers do not take it.
    KafkaCertificate,
    /// The brokers, or the agent that asks them, do not take what a bridge may do.
    KafkaAccess,
    /// An authority was not followed by another in its window. About no node.
    AuthorityEnding,
    /// A rollout holds itself. About no node.
    RolloutHalted,
}

words! {
    Rule {
        NodeLost = "node.lost",
        NodeCloned = "node.cloned",
        ServiceUnhealthy = "service.unhealthy",
        ServiceFailed = "service.failed",
        ServiceRestarting = "service.restarting",
        EngineUnreachable = "engine.unreachable",
        ClockSkew = "clock.skew",
        SpoolLoss = "spool.loss",
        SpoolFault = "spool.fault",
        CertificateOverdue = "certificate.overdue",
        CertificateExpiring = "certificate.expiring",
        KafkaRefused = "kafka.refused",
        KafkaUnreachable = "kafka.unreachable",
        KafkaCertificate = "kafka.certificate",
        KafkaAccess = "kafka.access",
        AuthorityEnding = "authority.ending",
        RolloutHalted = "rollout.halted",
    }
    or RuleError = |_| RuleError
}

/// Not a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this version of the hub has no such rule")]
pub struct RuleError;

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// All is well.
    Well,
    /// Something is wrong, since then when it is known better than by this look.
    Wrong { level: Level, message: String, since: Option<Timestamp> },
    /// It can't be told: something is under way, or nobody is there to tell.
    Unclear,
}

/// Much of a message is a node's words.
fn wrong(level: Level, message: String) -> Judgement {
    Judgement::Wrong { level, message: rows::text(&message), since: None }
}

pub(super) fn node_lost(view: &NodeView, started_at: Timestamp) -> Judgement {
    match &view.presence {
        Presence::Lost { since } => Judgement::Wrong {
            level: Level::Critical,
            message: format!(
                "nothing heard since {since}: see that the machine runs, that its agent or bridge runs, and that it reaches the hub"
            ),
            // While the hub was away, nobody could come back.
            since: Some((*since).max(started_at)),
        },
        _ => Judgement::Well,
    }
}

pub(super) fn cloned(view: &NodeView) -> Judgement {
    let Some(reason) = &view.frozen else { return Judgement::Well };
    let advice = "wipe the state of the machine that should not have it and unfreeze the node, or revoke it and enroll \
                  both machines anew";
    wrong(Level::Critical, format!("the node is frozen: {reason}: {advice}"))
}

pub(super) fn engine(view: &NodeView) -> Judgement {
    match view.engine.state() {
        _ if !view.presence.is_online() => Judgement::Unclear,
        EngineState::PermissionDenied | EngineState::Unreachable => {
            wrong(Level::Warning, said(&view.engine.message, "the container engine does not answer"))
        }
        _ => Judgement::Well,
    }
}

pub(super) fn clock(view: &NodeView, policy: &Policy) -> Judgement {
    let Some(clock) = view.status.clock.filter(|_| view.presence.is_online()) else { return Judgement::Unclear };
    let off = clock.offset_ms.unsigned_abs().saturating_sub(clock.delay_ms / 2);
    let limit = policy.clock_offset.as_millis() as u64;
    if off > limit {
        let side = if clock.offset_ms > 0 { "ahead of" } else { "behind" };
        let seconds = clock.offset_ms.unsigned_abs() as f64 / 1000.0;
        wrong(Level::Warning, format!("the node's clock is {seconds:.1} s {side} the hub's: set up NTP on one or both"))
    } else if off > limit / 2 {
        Judgement::Unclear
    } else {
        Judgement::Well
    }
}

pub(super) fn spool_fault(view: &NodeView) -> Judgement {
    let classes = view.status.bridge.iter().flat_map(|bridge| &bridge.classes);
    let faulty = classes.filter(|_| view.presence.is_online()).find(|class| !class.fault.is_empty());
    if let Some(class) = faulty {
        return wrong(Level::Warning, format!("a bridge's records on disk, {}: {}", class.name, class.fault));
    }
    let Some(spool) = view.status.spool.as_ref().filter(|_| view.presence.is_online()) else {
        return Judgement::Unclear;
    };
    match spool.fault() {
        SpoolFault::Unspecified => Judgement::Well,
        _ => {
            wrong(Level::Warning, said(&spool.message, "the node can't write its spool: what it measures may be lost"))
        }
    }
}

/// What was lost lately: batches, and records of a bridge.
pub(super) fn spool_loss(batches: Option<u64>, records: Option<LostRecords>) -> Judgement {
    if let Some(LostRecords { count, last }) = records {
        // A number that is torn at the log's end is counted as well: nobody can tell it from one that was damaged there later.
        let advice = "what a power cut or a kill broke off was not acknowledged, and MQTT brings it again; whatever else it is \
                      is lost: look at its disk, and stop it for hyperfactory-bridge log verify";
        return wrong(Level::Warning, format!("{count} records in the bridge's log are damaged{last}: {advice}"));
    }
    match batches {
        Some(lost) => wrong(
            Level::Warning,
            format!("{lost} batches were lost at the node: give its spool more room, or look at its disk"),
        ),
        None => Judgement::Well,
    }
}

/// Records that a bridge has lost of logs that drop none.
pub(super) struct LostRecords {
    /// How many, since its logs began.
    pub(super) count: u64,
    /// The last of them, where it says so, as the end of a sentence.
    last: String,
}

/// What a bridge tells of that; `None` when the node is none.
pub(super) fn lost_records(view: &NodeView) -> Option<LostRecords> {
    let bridge = view.status.bridge.as_ref()?;
    let mut lost = bridge.classes.iter().filter(|class| class.overflow == "block");
    let count = lost.clone().fold(0_u64, |count, class| count.saturating_add(class.dropped));
    let last = lost.rfind(|class| class.first > 0).map(|class| {
        format!(", the last of them {} to {} of {} ({})", class.first, class.last, class.name, class.reason)
    });
    Some(LostRecords { count, last: last.unwrap_or_default() })
}

pub(super) fn certificate(view: &NodeView, policy: &Policy, now: Timestamp) -> Judgement {
    let Some(certificate) = view.certificate else { return Judgement::Unclear };
    if certificate.not_after <= now {
        let advice =
            "the node gets a new one by itself when it is back in time; after that, enroll it with a new token";
        return wrong(Level::Warning, format!("its certificate ended at {}: {advice}", certificate.not_after));
    }
    if now >= expiring_at(certificate, policy) {
        let advice = "it was not renewed: see that the node is connected";
        return wrong(Level::Warning, format!("its certificate ends at {}: {advice}", certificate.not_after));
    }
    Judgement::Well
}

/// When a certificate has so little left that it is an alert.
pub(super) fn expiring_at(certificate: Certificate, policy: &Policy) -> Timestamp {
    let life = certificate.not_after.since(certificate.issued_at);
    certificate.not_after.minus(policy.certificate_left.min(life / 7))
}

pub(super) fn overdue(view: &NodeView, policy: &Policy, now: Timestamp) -> Judgement {
    let Some((by, at)) = overdue_at(view, policy) else { return Judgement::Unclear };
    if now < at {
        return Judgement::Well;
    }
    let ends = view.certificate.map(|certificate| certificate.not_after.to_string()).unwrap_or_default();
    let advice = if view.presence.is_online() {
        "the node is connected and has not done it: its log says why"
    } else {
        "the node is not connected, and renews it when it is: bring it back before then"
    };
    wrong(Level::Warning, format!("its certificate was to be renewed by {by} and ends at {ends}: {advice}"))
}

/// The end of a node's window, and when it is an alert that it has not renewed.
pub(super) fn overdue_at(view: &NodeView, policy: &Policy) -> Option<(Timestamp, Timestamp)> {
    let certificate = view.certificate?;
    let terms = policy.certificates.terms(Some(&view.tenant), view.kind.into());
    let by = terms.renew_by(certificate.issued_at, certificate.not_after);
    Some((by, by.plus(policy.overdue_after.min(certificate.not_after.since(by) / 4))))
}

pub(super) fn kafka_refused(view: &NodeView) -> Judgement {
    let Some(bridge) = view.status.bridge.as_ref().filter(|_| view.presence.is_online()) else {
        return Judgement::Unclear;
    };
    match bridge.kafka() {
        KafkaState::Refused => wrong(
            Level::Critical,
            said(&bridge.message, "a Kafka broker refuses this bridge, and records wait on its disk"),
        ),
        KafkaState::Connected => Judgement::Well,
        // Nobody says that it would be let in now.
        KafkaState::Unspecified | KafkaState::Waiting | KafkaState::Unreachable => Judgement::Unclear,
    }
}

/// Of a bridge that is not let in, [`kafka_refused`] speaks.
pub(super) fn kafka_unreachable(view: &NodeView) -> Judgement {
    let Some(bridge) = view.status.bridge.as_ref().filter(|_| view.presence.is_online()) else {
        return Judgement::Unclear;
    };
    match bridge.kafka() {
        KafkaState::Unreachable => wrong(
            Level::Warning,
            said(&bridge.message, "no Kafka broker answers this bridge, and records wait on its disk"),
        ),
        KafkaState::Connected | KafkaState::Refused => Judgement::Well,
        KafkaState::Unspecified | KafkaState::Waiting => Judgement::Unclear,
    }
}

pub(super) fn kafka_certificate(view: &NodeView) -> Judgement {
    let Some(bridge) = view.status.bridge.as_ref().filter(|_| view.presence.is_online()) else {
        return Judgement::Unclear;
    };
    match bridge.certificate_trouble.as_str() {
        "" => Judgement::Well,
        trouble => wrong(Level::Warning, trouble.to_owned()),
    }
}

/// Of a bridge whose trust has ended, too: what it was allowed has to be taken away. `refused`: its brokers did not take what
/// was wanted before, and there is an alert of that.
pub(super) fn kafka_access(view: &NodeView, refused: bool) -> Judgement {
    let Some(access) = &view.kafka_access else { return Judgement::Unclear };
    // Whoever can't take what it may do can't take it away either, and until somebody has done so it can still write.
    let ends = refused && access.topics.is_empty();
    match access.state {
        State::Placed => Judgement::Well,
        // Nothing was tried yet, or what was tried is no longer wanted.
        _ if access.tries == 0 && !ends => Judgement::Unclear,
        _ if access.topics.is_empty() => wrong(
            Level::Critical,
            said(&access.message, "what it was allowed at its brokers is not taken away yet, and will be tried again"),
        ),
        _ => wrong(
            Level::Warning,
            said(&access.message, "its brokers do not have what it may write to, and it will be tried again"),
        ),
    }
}

pub(super) fn unhealthy(service: &Service) -> Judgement {
    match (service.state(), service.health()) {
        (ServiceState::Running, ServiceHealth::Unhealthy) => {
            wrong(Level::Warning, said(&service.health_output, "its health check fails"))
        }
        (ServiceState::Running, ServiceHealth::Starting)
        | (ServiceState::Created | ServiceState::Restarting | ServiceState::Removing, _) => Judgement::Unclear,
        _ => Judgement::Well,
    }
}

/// Exit codes of a process that was told to stop: SIGINT, SIGKILL, SIGTERM.
const TOLD_TO_STOP: [i32; 3] = [130, 137, 143];

pub(super) fn failed(service: &Service) -> Judgement {
    match service.state() {
        ServiceState::Exited | ServiceState::Dead => match service.exit_code {
            _ if service.oom_killed => {
                wrong(Level::Warning, "it was killed for want of memory: raise its limit or see what it holds".into())
            }
            Some(code) if code != 0 && !TOLD_TO_STOP.contains(&code) => {
                wrong(Level::Warning, format!("it ended with exit code {code}: see its log"))
            }
            _ => Judgement::Well,
        },
        ServiceState::Created | ServiceState::Restarting | ServiceState::Removing => Judgement::Unclear,
        _ => Judgement::Well,
    }
}

/// Whether something is wrong with a service, by the rules for its health and its end; `None`: it can't be told now.
pub(crate) fn ails(service: &Service) -> Option<bool> {
    match (unhealthy(service), failed(service)) {
        (Judgement::Wrong { .. }, _) | (_, Judgement::Wrong { .. }) => Some(true),
        (Judgement::Unclear, _) | (_, Judgement::Unclear) => None,
        (Judgement::Well, Judgement::Well) => Some(false),
    }
}

pub(super) fn restarting(restarts: usize, watched_long_enough: bool, policy: &Policy) -> Judgement {
    if restarts >= policy.restarts {
        let window = policy.restart_window.as_secs();
        return wrong(Level::Critical, format!("it restarted {restarts} times within {window} s: see its log"));
    }
    if restarts > 0 || !watched_long_enough { Judgement::Unclear } else { Judgement::Well }
}

fn said(words: &str, otherwise: &str) -> String {
    let words = words.trim();
    if words.is_empty() { otherwise.to_owned() } else { format!("{otherwise}: {words}") }
}
