//! The agent against a real Docker Engine: `./test` starts one, and says where in `HYPERFACTORY_TEST_DOCKER`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hyperfactory_agent::cgroup::{Group, Hierarchies};
use hyperfactory_agent::docker::{Followed, Follower};
use hyperfactory_agent::engine::Address;
use hyperfactory_agent::sample::Sampler;
use hyperfactory_agent::stats;
use node::{Backlog, Clock, Recorder};
use protocol::SpoolEpoch;
use protocol::message::{EngineState, Service, ServiceHealth, ServiceState};
use protocol::telemetry::{Decoder, Schema};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine; nothing waits this long when all is well.
const SOON: Duration = Duration::from_secs(60);

/// The engine that the tests share.
#[derive(Clone)]
struct Engine {
    socket: PathBuf,
}

impl Engine {
    fn from_environment() -> Self {
        let socket = std::env::var("HYPERFACTORY_TEST_DOCKER")
            .expect("HYPERFACTORY_TEST_DOCKER must name a Docker Engine's socket; `./test` starts one and sets it");
        Self { socket: socket.into() }
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let cli = std::env::var("HYPERFACTORY_TEST_DOCKER_CLI").unwrap_or_else(|_| "docker".into());
        let output = Command::new(cli)
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Services of `compose/test/compose.yaml`, up under a project name of the test's own.
    fn up(&self, project: &str, services: &[&str]) -> Project {
        let project = Project { engine: self.clone(), name: format!("agent-{project}") };
        project.compose(&["down", "--timeout", "0"]);
        let mut arguments = vec!["up", "--detach"];
        arguments.extend(services);
        project.compose(&arguments);
        project
    }
}

/// Taken down when dropped.
struct Project {
    engine: Engine,
    name: String,
}

impl Project {
    fn compose(&self, arguments: &[&str]) -> String {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/test/compose.yaml");
        let mut all = vec!["compose", "--ansi", "never", "--progress", "quiet", "--project-name", &self.name, "--file"];
        all.push(file.to_str().unwrap());
        all.extend(arguments);
        self.engine.docker(&all)
    }

    fn exec(&self, service: &str, command: &[&str]) {
        let mut arguments = vec!["exec", "--no-TTY", service];
        arguments.extend(command);
        self.compose(&arguments);
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.compose(&["down", "--timeout", "0"]);
    }
}

/// The agent's part under test: an engine's follower that tells a recorder.
struct Agent {
    recorder: Recorder,
    followed: watch::Receiver<Followed>,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Agent {
    async fn start(socket: &Path) -> Self {
        let recorder = Recorder::new(Backlog::in_memory(SpoolEpoch(1), 1 << 20), 4);
        let (follower, mut followed) = Follower::new(Address::Socket(socket.to_owned()), recorder.clone());
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(follower.run(stop.clone()));
        timeout(SOON, followed.wait_for(|followed| followed.settled)).await.expect("settled in time").unwrap();
        Self { recorder, followed, stop, running }
    }

    fn service(&self, project: &Project, name: &str) -> Option<Service> {
        let is = |service: &&Service| {
            service.key.as_ref().is_some_and(|key| key.stack == project.name && key.service == name)
        };
        self.recorder.snapshot().services.iter().find(is).cloned()
    }

    /// Waits until the service is as wanted, and gives it.
    async fn sees(&self, project: &Project, name: &str, wanted: impl Fn(&Service) -> bool) -> Service {
        let begin = Instant::now();
        loop {
            match self.service(project, name) {
                Some(service) if wanted(&service) => return service,
                other => assert!(begin.elapsed() < SOON, "{name} stays {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn sees_engine(&self, wanted: EngineState) -> String {
        let begin = Instant::now();
        loop {
            match self.recorder.snapshot().engine {
                Some(engine) if engine.state() == wanted => return engine.message,
                other => assert!(begin.elapsed() < SOON, "the engine stays {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        let mut running = self.running;
        timeout(SOON, running.join_next()).await.expect("ends when told");
    }
}

#[tokio::test]
async fn five_conditions_are_told_apart() {
    let engine = Engine::from_environment();
    let project = engine.up("conditions", &["healthy", "unhealthy", "looping", "greedy", "stopped"]);
    project.compose(&["stop", "stopped"]);
    let agent = Agent::start(&engine.socket).await;

    let healthy = agent.sees(&project, "healthy", |s| s.health() == ServiceHealth::Healthy).await;
    assert_eq!((healthy.state(), healthy.exit_code), (ServiceState::Running, None));
    assert!(healthy.image_digest.starts_with("sha256:") && healthy.started_at_ms > 0, "{healthy:?}");
    assert_eq!(healthy.image, "hyperfactory/busybox:1");

    let unhealthy = agent.sees(&project, "unhealthy", |s| s.health() == ServiceHealth::Unhealthy).await;
    assert_eq!((unhealthy.state(), unhealthy.health_output.as_str()), (ServiceState::Running, "no pressure"));

    let looping =
        agent.sees(&project, "looping", |s| s.state() == ServiceState::Restarting && s.restart_count > 1).await;
    assert_eq!((looping.exit_code, looping.oom_killed), (Some(3), false));

    let greedy = agent.sees(&project, "greedy", |s| s.oom_killed && s.state() == ServiceState::Exited).await;
    assert_eq!(greedy.exit_code, Some(137));

    let stopped = agent.sees(&project, "stopped", |s| s.state() == ServiceState::Exited).await;
    assert_eq!((stopped.health(), stopped.oom_killed), (ServiceHealth::Unspecified, false));
    assert!(stopped.finished_at_ms >= stopped.started_at_ms, "{stopped:?}");
    agent.end().await;
}

#[tokio::test]
async fn what_happens_while_the_agent_listens_is_told() {
    let engine = Engine::from_environment();
    let agent = Agent::start(&engine.socket).await;
    let project = engine.up("events", &["fragile", "healthy", "greedy"]);
    let oom = agent.sees(&project, "greedy", |s| s.oom_killed && s.exit_code == Some(137)).await;
    assert_eq!(oom.state(), ServiceState::Exited);
    agent.sees(&project, "fragile", |s| s.health() == ServiceHealth::Healthy).await;

    project.exec("fragile", &["touch", "/tmp/sick"]);
    let sick = agent.sees(&project, "fragile", |s| s.health() == ServiceHealth::Unhealthy).await;
    assert_eq!(sick.health_output, "valve 7 does not answer");
    project.exec("fragile", &["rm", "/tmp/sick"]);
    let well = agent.sees(&project, "fragile", |s| s.health() == ServiceHealth::Healthy).await;
    assert_eq!(well.health_output, "");

    agent.sees(&project, "healthy", |s| s.health() == ServiceHealth::Healthy).await;
    project.compose(&["pause", "healthy"]);
    let paused = agent.sees(&project, "healthy", |s| s.state() == ServiceState::Paused).await;
    assert_eq!(paused.health(), ServiceHealth::Unspecified);
    project.compose(&["unpause", "healthy"]);
    agent.sees(&project, "healthy", |s| s.health() == ServiceHealth::Healthy).await;

    let before = agent.service(&project, "healthy").unwrap();
    project.compose(&["up", "--detach", "--force-recreate", "healthy"]);
    let after = agent
        .sees(&project, "healthy", |s| s.container_id != before.container_id && s.state() == ServiceState::Running)
        .await;
    assert_eq!((after.key, after.exit_code), (before.key, None), "another container of the same service");

    project.compose(&["kill", "healthy"]);
    let killed = agent.sees(&project, "healthy", |s| s.state() == ServiceState::Exited).await;
    assert_eq!(killed.exit_code, Some(137));
    assert!(!killed.oom_killed, "killed by hand");

    project.compose(&["rm", "--force", "healthy"]);
    let begin = Instant::now();
    while agent.service(&project, "healthy").is_some() {
        assert!(begin.elapsed() < SOON, "a removed service stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.end().await;
}

#[tokio::test]
async fn an_engine_that_goes_hangs_and_comes_back_is_named_and_nothing_is_missed() {
    let engine = Engine::from_environment();
    let project = engine.up("outage", &["healthy", "stopped"]);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");

    let agent = Agent::start(&socket).await;
    let advice = agent.sees_engine(EngineState::Absent).await;
    assert!(advice.contains("systemctl start docker"), "{advice}");

    let cable = Cable::plug(&socket, &engine.socket);
    agent.sees_engine(EngineState::Connected).await;
    agent.sees(&project, "stopped", |s| s.state() == ServiceState::Running).await;

    cable.cut(&socket).await;
    project.compose(&["kill", "stopped"]);
    project.compose(&["rm", "--force", "--stop", "healthy"]);
    agent.sees_engine(EngineState::Absent).await;
    assert!(agent.service(&project, "healthy").is_some(), "the last known state stays");

    let hanging = UnixListener::bind(&socket).unwrap();
    let advice = agent.sees_engine(EngineState::Unreachable).await;
    assert!(advice.contains("does not answer in time"), "{advice}");
    drop(hanging);
    std::fs::remove_file(&socket).unwrap();

    let _cable = Cable::plug(&socket, &engine.socket);
    agent.sees_engine(EngineState::Connected).await;
    let killed = agent.sees(&project, "stopped", |s| s.state() == ServiceState::Exited).await;
    assert_eq!(killed.exit_code, Some(137));
    assert!(agent.service(&project, "healthy").is_none(), "removed while nobody listened");
    agent.end().await;
}

#[tokio::test]
async fn figures_come_from_the_cgroup_and_agree_with_the_engines() {
    let engine = Engine::from_environment();
    let project = engine.up("figures", &["healthy"]);
    let agent = Agent::start(&engine.socket).await;
    agent.sees(&project, "healthy", |s| s.state() == ServiceState::Running).await;
    let target = format!("{}/healthy/1", project.name);
    let followed = agent.followed.borrow().clone();
    let running = followed.running.iter().find(|running| *running.target == *target).unwrap();
    assert_eq!(running.memory_limit, Some(64 << 20));

    let group = Group::open(&Hierarchies::of_this_host(), running.pid, running.own_network).unwrap();
    let ours = group.figures().unwrap();
    let mut polled = stats::poll(followed.engine.clone().unwrap(), vec![running.container.clone()]).await;
    let engines = polled.remove(&running.container).unwrap();
    assert!(ours.cpu > Some(0) && engines.cpu >= ours.cpu, "{ours:?} {engines:?}");
    let near = |a: Option<i64>, b: Option<i64>| a.zip(b).is_some_and(|(a, b)| a.abs_diff(b) < 4096);
    assert!(near(ours.memory, engines.memory), "{ours:?} {engines:?}");
    assert!(ours.processes >= Some(1) && engines.processes >= Some(1), "{ours:?} {engines:?}");

    project.compose(&["kill", "healthy"]);
    let begin = Instant::now();
    while group.figures().is_ok() {
        assert!(begin.elapsed() < SOON, "a dead container's files still answer");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.sees(&project, "healthy", |s| s.state() == ServiceState::Exited).await;
    assert!(agent.followed.borrow().running.iter().all(|running| *running.target != *target));
    agent.end().await;
}

#[tokio::test]
async fn where_no_cgroup_is_visible_the_figures_come_from_the_engine() {
    let engine = Engine::from_environment();
    let project = engine.up("stats", &["healthy"]);
    let agent = Agent::start(&engine.socket).await;
    let target = format!("{}/healthy/1", project.name);
    for (hierarchies, place) in [(Hierarchies::of_this_host(), "cgroup"), (Hierarchies::default(), "engine")] {
        let recorder = Recorder::new(Backlog::in_memory(SpoolEpoch(2), 1 << 20), 4);
        let second = Duration::from_secs(1);
        let sampler = Sampler::new(
            watch::channel(second).1,
            Clock::system(),
            recorder.clone(),
            agent.followed.clone(),
            hierarchies,
        );
        let mut sampling = JoinSet::new();
        sampling.spawn(sampler.run(agent.stop.child_token()));
        let begin = Instant::now();
        loop {
            let (mut cpu, mut memory) = (None, None);
            let samples = recorder.snapshot().samples;
            let row = |schema: &Schema, _, values: &[Option<i64>]| {
                let value = |metric| schema.index(metric, &target).and_then(|index| values[index]);
                (cpu, memory) = (value("service.cpu"), value("service.memory"));
            };
            if !samples.is_empty() {
                Decoder::default().decode(&samples, row).unwrap();
            }
            if cpu > Some(0) && memory > Some(0) {
                break;
            }
            assert!(begin.elapsed() < SOON, "no figures from the {place}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    agent.end().await;
}

/// Another path to the engine's socket, which can be cut.
struct Cable(JoinSet<()>);

impl Cable {
    fn plug(at: &Path, to: &Path) -> Self {
        let listener = UnixListener::bind(at).unwrap();
        let to = to.to_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                connections.spawn(async move {
                    let mut far = UnixStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self(tasks)
    }

    async fn cut(mut self, at: &Path) {
        std::fs::remove_file(at).unwrap();
        self.0.shutdown().await;
    }
}
