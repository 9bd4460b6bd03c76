//! What the hub knows of a node now, as operators see it.

use protocol::{Timestamp, message, metrics};

use super::{
    Attention, AttentionLevel, Bridge, Certificate, Clock, ClockState, Disk, Engine, EngineState, Figures, Host,
    KafkaAccess, Node, NodeDetail, Presence, PresenceState, Reason, Service, ServiceCounts, ServiceHealth,
    ServiceState, Spool, Time, Used,
};
use crate::telemetry::state::{self, Latest, Level, NodeView, Services, service_name};

const KIBIBYTE: f64 = 1024.0;
/// A clock this far from the hub's counts as the same (see `ClockState` in the protocol).
const SYNCHRONIZED_MS: i64 = 2_000;

impl From<Level> for AttentionLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Ok => Self::Ok,
            Level::Notice => Self::Notice,
            Level::Warning => Self::Warning,
            Level::Critical => Self::Critical,
        }
    }
}

impl From<&NodeView> for Node {
    fn from(view: &NodeView) -> Self {
        let facts = &view.facts;
        Self {
            id: view.node.to_string(),
            tenant: view.tenant.to_string(),
            kind: view.kind.into(),
            name: view.name.to_string(),
            presence: presence(view),
            attention: attention(&view.attention),
            last_seen: view.last_seen.map(Time),
            enrolled_at: Time(view.enrolled_at),
            revoked_at: view.revoked_at.map(Time),
            host: Host {
                hostname: facts.hostname.clone(),
                os: facts.os.clone(),
                kernel: facts.kernel.clone(),
                architecture: facts.architecture.clone(),
                cpus: facts.cpus,
                memory_bytes: facts.memory_bytes,
                software: facts.software.clone(),
                booted_at: moment(facts.booted_at_ms),
            },
            figures: view.latest.as_ref().map(figures).unwrap_or_default(),
            service_counts: counts(&view.services),
            bridge: Bridge::of(view),
            kafka_access: view.kafka_access.as_deref().map(KafkaAccess::from),
        }
    }
}

impl NodeDetail {
    /// A node with everything the hub knows now.
    pub(crate) fn of(node: &Node, view: &NodeView) -> Self {
        let status = &view.status;
        let spool = status.spool.clone().unwrap_or_default();
        Self {
            node: node.clone(),
            engine: Engine {
                state: match view.engine.state() {
                    message::EngineState::Unspecified => EngineState::Unknown,
                    message::EngineState::Connected => EngineState::Connected,
                    message::EngineState::Absent => EngineState::Absent,
                    message::EngineState::PermissionDenied => EngineState::PermissionDenied,
                    message::EngineState::Unreachable => EngineState::Unreachable,
                },
                version: view.engine.version.clone(),
                message: view.engine.message.clone(),
            },
            services: view.services.iter().filter_map(|one| service(&one, view)).collect(),
            certificate: view
                .certificate
                .map(|one| Certificate { serial: one.serial.to_string(), not_after: Time(one.not_after) }),
            clock: clock(status),
            spool: Spool {
                pending_batches: spool.pending_batches,
                bytes: spool.bytes,
                capacity_bytes: spool.capacity_bytes,
                lost_batches: spool.lost_batches,
                fault: match spool.fault() {
                    message::SpoolFault::Unspecified => None,
                    message::SpoolFault::DiskFull => Some("disk_full".into()),
                    message::SpoolFault::Corrupt => Some("corrupt".into()),
                    message::SpoolFault::Io => Some("io".into()),
                },
                message: spool.message,
            },
            session: view.session.map(|session| session.to_string()),
        }
    }
}

fn presence(view: &NodeView) -> Presence {
    let (state, since, remote, reason) = match &view.presence {
        state::Presence::NeverSeen => (PresenceState::NeverSeen, None, None, None),
        state::Presence::Online { since, remote } => {
            (PresenceState::Online, Some(*since), Some(remote.to_string()), None)
        }
        state::Presence::Lost { since } => (PresenceState::Lost, Some(*since), None, None),
        state::Presence::Left { since, reason } => (PresenceState::Left, Some(*since), None, Some(reason.clone())),
    };
    Presence { state, since: since.map(Time), remote, reason }
}

fn attention(found: &state::Attention) -> Attention {
    let reason = |reason: &state::Reason| Reason {
        level: reason.level.into(),
        rule: reason.rule.to_owned(),
        subject: reason.subject.clone(),
        message: reason.message.clone(),
    };
    Attention { level: found.level.into(), reasons: found.reasons.iter().map(reason).collect() }
}

fn figures(latest: &Latest) -> Figures {
    let host = |metric: metrics::Known| latest.value(metric.name, "");
    let used = |used: metrics::Known, total: metrics::Known, target: &str| {
        let total = latest.value(total.name, target).filter(|total| *total > 0.0)?;
        Some(Used { used: latest.value(used.name, target)? * KIBIBYTE, total: total * KIBIBYTE })
    };
    let mut disks: Vec<Disk> = latest
        .targets(metrics::DISK_TOTAL.name)
        .into_iter()
        .filter_map(|(mount, _)| {
            let space = used(metrics::DISK_USED, metrics::DISK_TOTAL, mount)?;
            Some(Disk { mount: mount.to_owned(), space })
        })
        .collect();
    disks.sort_by(|a, b| b.space.ratio().total_cmp(&a.space.ratio()));
    Figures {
        at: Some(Time(latest.at())),
        cpu: host(metrics::CPU_BUSY),
        load: host(metrics::LOAD_1).and_then(|one| Some([one, host(metrics::LOAD_5)?, host(metrics::LOAD_15)?])),
        memory: used(metrics::MEMORY_USED, metrics::MEMORY_TOTAL, ""),
        swap: used(metrics::SWAP_USED, metrics::SWAP_TOTAL, ""),
        disks,
        uptime_seconds: host(metrics::UPTIME),
        agent_memory: host(metrics::AGENT_MEMORY).map(|kibibytes| kibibytes * KIBIBYTE),
    }
}

fn counts(services: &Services) -> ServiceCounts {
    let mut counts = ServiceCounts::default();
    for service in services.iter() {
        counts.total += 1;
        match service.state() {
            message::ServiceState::Running if service.health() == message::ServiceHealth::Unhealthy => {
                counts.unhealthy += 1;
            }
            message::ServiceState::Running => counts.running += 1,
            message::ServiceState::Restarting => counts.restarting += 1,
            _ => counts.stopped += 1,
        }
    }
    counts
}

fn service(service: &message::Service, view: &NodeView) -> Option<Service> {
    let key = service.key.as_ref()?;
    let target = service_name(key);
    let running = service.state() == message::ServiceState::Running;
    let bytes = |metric: metrics::Known| {
        view.latest.as_ref().filter(|_| running)?.value(metric.name, &target).map(|kibibytes| kibibytes * KIBIBYTE)
    };
    let judged = view.attention.reasons.iter().filter(|reason| reason.subject == target).map(|reason| reason.level);
    Some(Service {
        stack: key.stack.clone(),
        service: key.service.clone(),
        number: key.number,
        state: match service.state() {
            message::ServiceState::Unspecified => ServiceState::Unknown,
            message::ServiceState::Created => ServiceState::Created,
            message::ServiceState::Running => ServiceState::Running,
            message::ServiceState::Paused => ServiceState::Paused,
            message::ServiceState::Restarting => ServiceState::Restarting,
            message::ServiceState::Removing => ServiceState::Removing,
            message::ServiceState::Exited => ServiceState::Exited,
            message::ServiceState::Dead => ServiceState::Dead,
        },
        health: match service.health() {
            message::ServiceHealth::Unspecified => ServiceHealth::None,
            message::ServiceHealth::Starting => ServiceHealth::Starting,
            message::ServiceHealth::Healthy => ServiceHealth::Healthy,
            message::ServiceHealth::Unhealthy => ServiceHealth::Unhealthy,
        },
        health_output: service.health_output.clone(),
        attention: judged.max().map_or(AttentionLevel::Ok, AttentionLevel::from).max(at_once(service)),
        restart_count: service.restart_count,
        exit_code: service.exit_code,
        oom_killed: service.oom_killed,
        image: service.image.clone(),
        image_digest: service.image_digest.clone(),
        started_at: moment(service.started_at_ms),
        finished_at: moment(service.finished_at_ms),
        changed_at: moment(service.changed_at_ms),
        // Milliseconds of CPU time per second.
        cpu: view
            .latest
            .as_ref()
            .filter(|_| running)
            .and_then(|latest| latest.rate(metrics::SERVICE_CPU.name, &target))
            .map(|per_second| per_second / 1000.0),
        memory: bytes(metrics::SERVICE_MEMORY),
        memory_limit: bytes(metrics::SERVICE_MEMORY_LIMIT).filter(|limit| *limit > 0.0),
    })
}

/// How a service looks now; an alert waits whether it stays so.
fn at_once(service: &message::Service) -> AttentionLevel {
    match service.state() {
        message::ServiceState::Running if service.health() == message::ServiceHealth::Unhealthy => {
            AttentionLevel::Warning
        }
        message::ServiceState::Dead | message::ServiceState::Restarting => AttentionLevel::Warning,
        message::ServiceState::Exited if service.oom_killed || service.exit_code.is_some_and(|code| code != 0) => {
            AttentionLevel::Warning
        }
        message::ServiceState::Paused => AttentionLevel::Notice,
        _ => AttentionLevel::Ok,
    }
}

fn clock(status: &message::NodeStatus) -> Clock {
    let measured = status.clock.as_ref();
    let state = match (status.clock_state(), measured) {
        (message::ClockState::Synchronized, _) => ClockState::Synchronized,
        (message::ClockState::Ahead, _) => ClockState::Ahead,
        (message::ClockState::Behind, _) => ClockState::Behind,
        // The handshake has measured it, and the node's own word is still on its way.
        (message::ClockState::Unspecified, Some(report)) if report.offset_ms.abs() <= SYNCHRONIZED_MS => {
            ClockState::Synchronized
        }
        (message::ClockState::Unspecified, Some(report)) if report.offset_ms > 0 => ClockState::Ahead,
        (message::ClockState::Unspecified, Some(_)) => ClockState::Behind,
        (message::ClockState::Unspecified, None) => ClockState::Unknown,
    };
    Clock {
        state,
        offset_ms: measured.map(|report| report.offset_ms),
        delay_ms: measured.map(|report| report.delay_ms),
    }
}

/// Zero is how the protocol says that there is none.
fn moment(millis: i64) -> Option<Time> {
    (millis != 0).then(|| Time(Timestamp::from_millis(millis)))
}
