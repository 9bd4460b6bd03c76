//! What the tests of rollouts stand on: a fleet whose nodes come, go, answer and fall sick, and a hub that can be killed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hyperfactory_hub::alerts::{Alerts, Evaluator, Policy};
use hyperfactory_hub::audit::Actor;
use hyperfactory_hub::commands::{Commands, Filter, NewRequest, SteadyClock};
use hyperfactory_hub::rollouts::{Act, Limits, NewRollout, Participant, Rollout, RolloutError, Rollouts, State, Verb};
use hyperfactory_hub::telemetry::state::{Ended, Report, Services};
use protocol::command::Action;
use protocol::message::{
    CommandOutcome, CommandState, Engine, EngineState, NodeFacts, Service, ServiceHealth, ServiceState,
};
use protocol::{CommandId, NodeId, NodeKind, SessionId, Timestamp};
use serde_json::json;
use store::testing::TestDatabase;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::setup::{NOW, World, acme, identity, key, seconds, service};

/// Steps that no rollout here takes.
pub(super) const MANY: usize = 200;

/// A fleet, and a hub that can be killed: what it knows of rollouts is in the database.
pub(super) struct Site {
    pub(super) world: World,
    steady: Arc<AtomicI64>,
    /// What passes whenever a hub looks at it, milliseconds.
    passes: Arc<AtomicI64>,
    /// What the wall clock is ahead of it, milliseconds.
    ahead: AtomicI64,
    pub(super) nodes: Vec<NodeId>,
    sessions: HashMap<NodeId, SessionId>,
}

pub(super) struct Desk {
    pub(super) commands: Commands,
    pub(super) rollouts: Rollouts,
    pub(super) alerts: Alerts,
    #[expect(dead_code, reason = "its task ends with it")]
    tasks: JoinSet<()>,
}

impl Site {
    /// With so many nodes, all of them there and well.
    pub(super) async fn new(database: &TestDatabase, count: usize) -> Self {
        let world = World::new(database).await;
        let (steady, ahead) = (Arc::new(AtomicI64::new(NOW.millis())), AtomicI64::new(0));
        let mut site = Self { world, steady, passes: Arc::default(), ahead, nodes: vec![], sessions: HashMap::new() };
        for number in 0..count {
            let token = site.world.token(NodeKind::Agent, Some(&format!("plant-{number}"))).await;
            let enrolled = site.world.enroll(&token, &key(), NOW).await.expect("enrolled");
            let node = identity(&enrolled.certificate_chain).node;
            site.nodes.push(node);
            site.connect(node);
            site.health(node, ServiceHealth::Healthy);
        }
        site
    }

    /// As a hub that starts.
    pub(super) async fn open(&self) -> Desk {
        let (steady, passes) = (Arc::clone(&self.steady), Arc::clone(&self.passes));
        let clock = SteadyClock::new(move || {
            Timestamp::from_millis(steady.fetch_add(passes.load(Ordering::Relaxed), Ordering::Relaxed))
        });
        let (database, stop) = (self.world.database.clone(), CancellationToken::new());
        let (commands, task) = Commands::start(database.clone(), Arc::default(), clock, || NOW, stop);
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        let (fleet, authorities) = (self.world.fleet.clone(), self.world.authorities.clone());
        let stop = CancellationToken::new();
        let started =
            Alerts::start(database.clone(), fleet.clone(), authorities, Policy::default(), || NOW, stop).await;
        // Nobody judges nodes here.
        let (alerts, _) = started.expect("alerts");
        let rollouts = Rollouts::new(database, commands.clone(), fleet, alerts.clone());
        Desk { commands, rollouts, alerts, tasks }
    }

    /// The wall clock's time.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.steady.load(Ordering::Relaxed) + self.ahead.load(Ordering::Relaxed))
    }

    /// Somebody sets the wall clock.
    pub(super) fn set(&self, days: i64) {
        self.ahead.fetch_add(days * 86_400_000, Ordering::Relaxed);
    }

    /// So much time passes from now on whenever a hub looks at its steady clock: it has a lot to do.
    pub(super) fn slow(&self, time: Duration) {
        self.passes.store(time.as_millis() as i64, Ordering::Relaxed);
    }

    pub(super) fn pass(&self, time: Duration) {
        self.steady.fetch_add(time.as_millis() as i64, Ordering::Relaxed);
    }

    pub(super) fn connect(&mut self, node: NodeId) {
        let session = SessionId::new(NOW, rand::random());
        let remote = "192.0.2.1:4000".parse().expect("an address");
        self.world.fleet.session_opened(node, session, remote, NodeFacts::default(), NOW);
        self.sessions.insert(node, session);
    }

    pub(super) fn lose(&mut self, node: NodeId) {
        let session = self.sessions.remove(&node).expect("a session");
        self.world.fleet.session_closed(node, session, Ended::Lost, NOW);
    }

    /// The node says goodbye.
    pub(super) fn leave(&mut self, node: NodeId) {
        let session = self.sessions.remove(&node).expect("a session");
        self.world.fleet.session_closed(node, session, Ended::Goodbye("stopping".into()), NOW);
    }

    pub(super) fn health(&self, node: NodeId, health: ServiceHealth) {
        let mut web = service("web", ServiceState::Running);
        web.health = health.into();
        let report = Report { current: true, services: Services::new(vec![web]), ..Report::default() };
        self.world.fleet.report(node, vec![report], NOW);
    }

    /// A service without a health check restarts by itself as many times, and is judged each time it runs again.
    pub(super) fn restarts(&self, node: NodeId, times: u32) {
        let mut evaluator = Evaluator::new(Policy::default(), NOW);
        for restart_count in 0..=times {
            let web = Service { restart_count, ..service("web", ServiceState::Running) };
            let report = Report { current: true, services: Services::new(vec![web]), ..Report::default() };
            self.world.fleet.report(node, vec![report], NOW);
            evaluator.observe(&self.world.fleet.node(node).expect("a node"), NOW);
            self.world.fleet.attention(node, evaluator.attention(node));
        }
    }

    /// The container engine of a node answers, or not, and the node is judged now and after so long.
    pub(super) fn engine(&self, node: NodeId, state: EngineState, lasts: Duration) {
        let engine = Some(Engine { state: state.into(), ..Engine::default() });
        self.world.fleet.report(node, vec![Report { current: true, engine, ..Report::default() }], NOW);
        let mut evaluator = Evaluator::new(Policy::default(), NOW);
        for now in [NOW, NOW.plus(lasts)] {
            evaluator.observe(&self.world.fleet.node(node).expect("a node"), now);
        }
        self.world.fleet.attention(node, evaluator.attention(node));
    }

    /// The nodes that are there do what they are asked.
    pub(super) async fn answer(&self, desk: &Desk, end: CommandState) {
        for node in self.sessions.keys() {
            let due = desk.commands.due(*node, 32, self.now()).await.expect("an answer");
            for (id, _) in desk.commands.deliver(*node, due, self.now()).await.expect("stored") {
                let word = CommandOutcome { state: end.into(), ..CommandOutcome::default() };
                desk.commands.word(*node, id, word, self.now()).await.expect("stored");
            }
        }
    }

    pub(super) fn new_rollout(&self, waves: &[&[usize]]) -> NewRollout {
        let named = |wave: &&[usize]| wave.iter().map(|place| (self.nodes[*place], acme())).collect();
        NewRollout {
            waves: waves.iter().map(named).collect(),
            shape: "as the test says".into(),
            limits: Limits {
                rate: None,
                windows: vec![],
                settle: seconds(60),
                soak: seconds(30),
                most_failed: 20,
                most_regressed: 20,
            },
            command: NewRequest {
                nodes: vec![],
                target: json!({ "all": true }),
                action: Action::ServiceRestart { stack: "shop".into(), service: "web".into() },
                priority: 0,
                valid_for: seconds(3_600),
                reason: "a new image".parse().expect("a reason"),
                scope: None,
                caller: "ann".into(),
                key: None,
                fingerprint: vec![1],
                signed: None,
            },
        }
    }

    pub(super) async fn start(&self, waves: &[&[usize]]) -> i64 {
        self.open().await.rollouts.start(self.new_rollout(waves), &ann(), NOW).await.expect("started").id
    }

    /// The commands each node ever got.
    pub(super) async fn asked(&self, desk: &Desk) -> BTreeMap<NodeId, Vec<CommandId>> {
        let filter = Filter { limit: 1_000, ..Filter::default() };
        let mut asked: BTreeMap<NodeId, Vec<CommandId>> = BTreeMap::new();
        for command in desk.commands.list(&filter, NOW).await.expect("a list") {
            asked.entry(command.node).or_default().push(command.id);
        }
        asked
    }

    /// Goes on, each step by a hub that has just been started, until it waits.
    pub(super) async fn until_it_waits(&self, id: i64) -> Act {
        for _ in 0..MANY {
            let rollouts = self.open().await.rollouts;
            rollouts.follow().await.expect("looked");
            let act = rollouts.step(id, || self.now(), false).await.expect("a step");
            if matches!(act, Act::Wait(_)) {
                return act;
            }
        }
        panic!("it goes on for ever");
    }

    pub(super) async fn shown(&self, id: i64) -> (Rollout, Vec<Participant>) {
        self.open().await.rollouts.get(id).await.expect("a rollout")
    }

    pub(super) async fn state(&self, id: i64) -> (State, u32) {
        let position = self.shown(id).await.0.position;
        (position.state, position.wave)
    }

    pub(super) async fn act(&self, id: i64, verb: Verb) -> Result<Rollout, RolloutError> {
        self.open().await.rollouts.act(id, verb, &"looked at it".parse().expect("a reason"), &ann(), self.now()).await
    }

    pub(super) async fn actions(&self) -> Vec<String> {
        let mut entries = self.world.audited("rollout.").await;
        entries.reverse();
        entries.into_iter().map(|entry| entry.action.trim_start_matches("rollout.").to_owned()).collect()
    }
}

pub(super) fn ann() -> Actor {
    Actor::operator("ann")
}
