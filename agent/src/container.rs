//! What the engine says about one container, in an answer or in an event, cut down to what is reported.

use std::collections::HashMap;

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, EventMessage, Health, HealthStatusEnum,
};
use protocol::Timestamp;
use protocol::message::{ServiceHealth, ServiceKey, ServiceState};

/// The label that makes a container part of a Compose project.
pub const PROJECT_LABEL: &str = "com.docker.compose.project";
/// The label that names the service.
pub(crate) const SERVICE_LABEL: &str = "com.docker.compose.service";
const NUMBER_LABEL: &str = "com.docker.compose.container-number";
const ONE_OFF_LABEL: &str = "com.docker.compose.oneoff";

/// Longest label taken for a stack's or a service's name; Compose itself makes shorter ones.
const NAME_LIMIT: usize = 100;

/// Longest output of a failing health check that is reported, in bytes.
const HEALTH_OUTPUT: usize = 256;

/// The engine's id of a container.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(Box<str>);

impl ContainerId {
    /// As in the engine's API.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for ContainerId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

/// As `docker ps` shows it.
impl std::fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

/// Compose project, service and container number: what stays when a container is replaced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the type says what they are")]
pub struct Key {
    pub stack: Box<str>,
    pub service: Box<str>,
    pub number: u32,
}

impl Key {
    /// From a container's labels; `None` when it is not a Compose service: foreign, or a one-off `compose run`.
    pub(crate) fn of(labels: &HashMap<String, String>) -> Option<Self> {
        let name = |label| labels.get(label).filter(|name| is_name(name)).map(|name| name.as_str().into());
        if labels.get(ONE_OFF_LABEL).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        Some(Self {
            stack: name(PROJECT_LABEL)?,
            service: name(SERVICE_LABEL)?,
            number: labels.get(NUMBER_LABEL).and_then(|number| number.parse().ok()).unwrap_or(1),
        })
    }

    /// The service's name in the telemetry: `stack/service/number`.
    pub fn target(&self) -> String {
        format!("{}/{}/{}", self.stack, self.service, self.number)
    }
}

impl From<&Key> for ServiceKey {
    fn from(key: &Key) -> Self {
        Self { stack: key.stack.to_string(), service: key.service.to_string(), number: key.number }
    }
}

/// Anybody may set labels: a name with a slash could pass for another service.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_LIMIT
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// The engine's answer about a container.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the engine's API unless said otherwise")]
pub struct Inspected {
    pub id: ContainerId,
    pub key: Key,
    pub created: Timestamp,
    pub state: ServiceState,
    pub health: ServiceHealth,
    /// Of the last failing check, while the service is not healthy.
    pub health_output: String,
    /// Restarts by the restart policy; the engine starts again from 0 when somebody starts the container by hand.
    pub restart_count: u32,
    /// Of the last run; meaningless while `state` is running.
    pub exit_code: i32,
    pub oom_killed: bool,
    /// As the Compose file names it.
    pub image: String,
    pub image_id: String,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    /// Of its first process, as the host numbers it; none while it doesn't run.
    pub pid: Option<u32>,
    /// Whether its network namespace is its own alone.
    pub own_network: bool,
    /// In bytes.
    pub memory_limit: Option<i64>,
}

impl Inspected {
    /// Reads the engine's answer; `None` when the container is not a Compose service or the answer has holes.
    pub fn read(answer: ContainerInspectResponse) -> Option<Self> {
        let config = answer.config?;
        let key = Key::of(config.labels.as_ref()?)?;
        let state = answer.state?;
        let host = answer.host_config.unwrap_or_default();
        let (status, running) = match state.status? {
            ContainerStateStatusEnum::CREATED | ContainerStateStatusEnum::EMPTY => (ServiceState::Created, false),
            ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::STOPPING => (ServiceState::Running, true),
            ContainerStateStatusEnum::PAUSED => (ServiceState::Paused, true),
            ContainerStateStatusEnum::RESTARTING => (ServiceState::Restarting, false),
            ContainerStateStatusEnum::REMOVING => (ServiceState::Removing, false),
            ContainerStateStatusEnum::EXITED => (ServiceState::Exited, false),
            ContainerStateStatusEnum::DEAD => (ServiceState::Dead, false),
        };
        let (health, health_output) = match state.health {
            Some(health) if status == ServiceState::Running => read_health(health),
            // The engine calls whatever doesn't run "unhealthy".
            _ => (ServiceHealth::Unspecified, String::new()),
        };
        let network = host.network_mode.unwrap_or_default();
        Some(Self {
            id: answer.id?.into(),
            key,
            created: answer.created.as_deref().and_then(time).unwrap_or_default(),
            state: status,
            health,
            health_output,
            restart_count: answer.restart_count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            exit_code: state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1),
            oom_killed: state.oom_killed.unwrap_or(false),
            image: config.image.unwrap_or_default(),
            image_id: answer.image.unwrap_or_default(),
            started: state.started_at.as_deref().and_then(time),
            finished: state.finished_at.as_deref().and_then(time),
            pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| running && pid > 0),
            own_network: network != "host" && !network.starts_with("container:"),
            memory_limit: host.memory.filter(|&limit| limit > 0),
        })
    }
}

fn read_health(health: Health) -> (ServiceHealth, String) {
    let status = match health.status {
        Some(HealthStatusEnum::STARTING) => ServiceHealth::Starting,
        Some(HealthStatusEnum::HEALTHY) => ServiceHealth::Healthy,
        // After a pause the engine says "unhealthy" until the next check, without a check that failed.
        Some(HealthStatusEnum::UNHEALTHY) if health.failing_streak == Some(0) => ServiceHealth::Starting,
        Some(HealthStatusEnum::UNHEALTHY) => ServiceHealth::Unhealthy,
        Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE) | None => ServiceHealth::Unspecified,
    };
    let failed = health.log.unwrap_or_default().into_iter().rev().find(|check| check.exit_code != Some(0));
    let output = match (status, failed.and_then(|check| check.output)) {
        (ServiceHealth::Unhealthy, Some(output)) => cut(output.trim(), HEALTH_OUTPUT).to_owned(),
        _ => String::new(),
    };
    (status, output)
}

/// At most `limit` bytes, ending between two characters.
fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

/// The containers in a list that are Compose services.
pub fn listed(list: Vec<ContainerSummary>) -> Vec<ContainerId> {
    list.into_iter()
        .filter(|container| container.labels.as_ref().is_some_and(|labels| Key::of(labels).is_some()))
        .filter_map(|container| container.id.map(ContainerId::from))
        .collect()
}

/// Something the engine did with a Compose service's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// By the engine's clock.
    pub at: Timestamp,
    /// To which container.
    pub container: ContainerId,
    /// What.
    pub action: Action,
}

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A new run began.
    Started,
    /// Its run ended with this code.
    Died(i32),
    /// The kernel ended one of its processes for want of memory.
    OutOfMemory,
    /// A health check changed its mind.
    Health(ServiceHealth),
    /// All its processes were frozen.
    Paused,
    /// They go on.
    Unpaused,
    /// It no longer exists.
    Destroyed,
    /// Something else that the engine has to be asked about: created, stopped, updated, renamed.
    Other,
}

/// The actions the engine is asked to send: all of the others, a health check's every run among them, stay with it.
pub const ACTIONS: [&str; 11] =
    ["create", "start", "die", "stop", "oom", "health_status", "pause", "unpause", "destroy", "rename", "update"];

impl Event {
    /// Reads the engine's message; `None` when it is about nothing that is reported.
    pub fn read(message: EventMessage) -> Option<Self> {
        let actor = message.actor?;
        let attributes = actor.attributes?;
        Key::of(&attributes)?;
        let action = match message.action?.as_str() {
            "die" => Action::Died(attributes.get("exitCode").and_then(|code| code.parse().ok()).unwrap_or(-1)),
            "oom" => Action::OutOfMemory,
            "health_status: healthy" => Action::Health(ServiceHealth::Healthy),
            "health_status: unhealthy" => Action::Health(ServiceHealth::Unhealthy),
            "health_status: starting" => Action::Health(ServiceHealth::Starting),
            "pause" => Action::Paused,
            "unpause" => Action::Unpaused,
            "destroy" => Action::Destroyed,
            "start" => Action::Started,
            "create" | "stop" | "update" | "rename" => Action::Other,
            _ => return None,
        };
        let millis = match (message.time_nano, message.time) {
            (Some(nanos), _) => nanos / 1_000_000,
            (None, seconds) => seconds.unwrap_or(0).saturating_mul(1000),
        };
        Some(Self { at: Timestamp::from_millis(millis), container: actor.id?.into(), action })
    }
}

/// A time as the engine writes it; `None` for its zero time, the year 1.
pub(crate) fn time(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The engine's answer about `name`, captured from Docker 20.10.
    pub(crate) fn captured(name: &str) -> ContainerInspectResponse {
        let path = format!("{}/tests/captured/inspect-{name}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    pub(crate) fn captured_events() -> Vec<EventMessage> {
        let path = format!("{}/tests/captured/events.json", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn inspected(name: &str) -> Inspected {
        Inspected::read(captured(name)).unwrap()
    }

    #[test]
    fn a_healthy_service() {
        let healthy = inspected("healthy");
        assert_eq!(healthy.key.target(), "cond/healthy/1");
        assert_eq!((healthy.state, healthy.health), (ServiceState::Running, ServiceHealth::Healthy));
        assert_eq!(healthy.image, "hyperfactory/busybox:1");
        assert_eq!(healthy.image_id, "sha256:b367443953f5b09f3aee2374331e35327a210a8959eda929acf042701d889a0b");
        assert_eq!(healthy.started.unwrap().to_string(), "2026-11-23T13:08:26.291Z");
        assert_eq!((healthy.finished, healthy.pid, healthy.restart_count), (None, Some(5479), 0));
        assert_eq!((healthy.memory_limit, healthy.own_network), (Some(67_108_864), true));
    }

    #[test]
    fn an_unhealthy_service_shows_what_its_check_said() {
        let sick = inspected("fragile-sick");
        assert_eq!((sick.state, sick.health), (ServiceState::Running, ServiceHealth::Unhealthy));
        assert_eq!(sick.health_output, "valve 7 does not answer");
        assert_eq!(inspected("fragile").health_output, "");
    }

    #[test]
    fn a_long_health_output_is_cut_between_characters() {
        let mut answer = captured("fragile-sick");
        let health = answer.state.as_mut().unwrap().health.as_mut().unwrap();
        health.log.as_mut().unwrap().last_mut().unwrap().output = Some(format!("x{}", "ä".repeat(3000)));
        let output = Inspected::read(answer).unwrap().health_output;
        assert_eq!(output.len(), 255);
        assert!(output.ends_with('ä'));
    }

    #[test]
    fn a_restart_loop_an_oom_kill_and_a_stop_are_told_apart() {
        let looping = inspected("looping");
        assert_eq!((looping.state, looping.exit_code, looping.restart_count), (ServiceState::Restarting, 3, 5));
        assert_eq!(looping.pid, None);
        let greedy = inspected("greedy");
        assert_eq!((greedy.state, greedy.exit_code, greedy.oom_killed), (ServiceState::Exited, 137, true));
        let stopped = inspected("stopped");
        assert_eq!((stopped.state, stopped.exit_code, stopped.oom_killed), (ServiceState::Exited, 143, false));
    }

    /// The engine marks a service unhealthy as soon as nobody checks it any more.
    #[test]
    fn what_is_paused_or_stopped_is_not_unhealthy() {
        let unchecked = |status, streak| {
            let mut answer = captured("unhealthy");
            let state = answer.state.as_mut().unwrap();
            state.status = Some(status);
            state.health.as_mut().unwrap().failing_streak = Some(streak);
            Inspected::read(answer).unwrap().health
        };
        assert_eq!(unchecked(ContainerStateStatusEnum::EXITED, 4), ServiceHealth::Unspecified);
        assert_eq!(unchecked(ContainerStateStatusEnum::PAUSED, 0), ServiceHealth::Unspecified);
        assert_eq!(unchecked(ContainerStateStatusEnum::RUNNING, 0), ServiceHealth::Starting, "just unpaused");
        assert_eq!(unchecked(ContainerStateStatusEnum::RUNNING, 4), ServiceHealth::Unhealthy);
    }

    #[test]
    fn only_compose_services_count() {
        let with = |label: &str, value: Option<&str>| {
            let mut answer = captured("healthy");
            let labels = answer.config.as_mut().unwrap().labels.as_mut().unwrap();
            match value {
                Some(value) => labels.insert(label.into(), value.into()),
                None => labels.remove(label),
            };
            Inspected::read(answer).map(|inspected| inspected.key.target())
        };
        assert_eq!(with(PROJECT_LABEL, None), None);
        assert_eq!(with(SERVICE_LABEL, None), None);
        assert_eq!(with(ONE_OFF_LABEL, Some("True")), None);
        assert_eq!(with(PROJECT_LABEL, Some("a/b")), None);
        assert_eq!(with(PROJECT_LABEL, Some(&"x".repeat(101))), None);
        assert_eq!(with(NUMBER_LABEL, Some("3")).unwrap(), "cond/healthy/3");
        assert_eq!(with(NUMBER_LABEL, None).unwrap(), "cond/healthy/1");
    }

    #[test]
    fn a_list_gives_the_services_in_it() {
        let path = format!("{}/tests/captured/list.json", env!("CARGO_MANIFEST_DIR"));
        let mut list: Vec<ContainerSummary> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(list.len(), 6);
        list[0].labels = None;
        assert_eq!(listed(list).len(), 5);
    }

    #[test]
    fn captured_events_are_read() {
        let events: Vec<Event> = captured_events().into_iter().filter_map(Event::read).collect();
        let count = |wanted: Action| events.iter().filter(|event| event.action == wanted).count();
        assert_eq!(count(Action::OutOfMemory), 1);
        assert_eq!(count(Action::Died(137)), 1);
        assert_eq!(count(Action::Died(3)), 15);
        assert_eq!(count(Action::Health(ServiceHealth::Unhealthy)), 2);
        assert_eq!((count(Action::Paused), count(Action::Unpaused)), (1, 1));
        assert_eq!(count(Action::Destroyed), 1, "the one-off container is none of ours");
        let first = events.iter().map(|event| event.at).min().unwrap();
        assert_eq!(first.to_string(), "2026-11-23T13:08:25.857Z");
    }

    #[test]
    fn engine_times() {
        let cases = [
            ("2026-11-23T13:08:26.41362565Z", Some("2026-11-23T13:08:26.413Z")),
            ("2026-11-23T13:08:26Z", Some("2026-11-23T13:08:26.000Z")),
            ("2024-02-29T23:30:00.5-01:30", Some("2024-03-01T01:00:00.500Z")),
            ("2024-03-01T00:30:00.05+01:00", Some("2024-02-29T23:30:00.050Z")),
            ("0001-01-01T00:00:00Z", None),
            ("yesterday", None),
            ("2026-11-23T", None),
            ("2026-11-23T13:08Z", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(time(text).map(|time| time.to_string()).as_deref(), expected, "{text}");
        }
    }
}
