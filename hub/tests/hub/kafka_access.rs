//! What bridges may do at their brokers: wanted by rows, brought about by an agent of the tenant, and told as it is.

use std::time::Duration;

use hyperfactory_hub::alerts::{Alerts, Change, Gauges, Policy, Rule};
use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::commands::{Commands, Filter, SteadyClock};
use hyperfactory_hub::kafka_access::{Access, AccessError, KafkaAccess, State};
use hyperfactory_hub::telemetry::state::Level;
use pki::{NodeIdentity, kafka_principal};
use protocol::command::Action;
use protocol::message::{CommandOutcome, CommandState, EnrollRequest, NodeFacts};
use protocol::{CommandId, NodeId, NodeKind, SessionId, TenantId, Timestamp};
use store::on_both_engines;
use store::testing::TestDatabase;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::alerts::{Clock, start};
use crate::setup::{HERE, NOW, World, acme, at, identity, key, request};

/// A hub with one bridge that has a Kafka certificate.
struct Site {
    world: World,
    bridge: NodeIdentity,
    commands: Commands,
    access: KafkaAccess,
    alerts: Alerts,
    _stop: CancellationToken,
    _tasks: [JoinSet<()>; 2],
}

impl Site {
    async fn new(database: &TestDatabase) -> Self {
        let world = World::new(database).await;
        let (_, enrolled) = world.enrolled_as(NodeKind::Bridge, NOW).await;
        let bridge = identity(&enrolled.certificate_chain);
        let clock = SteadyClock::new(|| NOW);
        let (data, stop) = (world.database.clone(), CancellationToken::new());
        let (commands, task) = Commands::start(data.clone(), std::sync::Arc::default(), clock, || NOW, stop);
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        let impatient = Policy { service_after: Duration::ZERO, ..Policy::default() };
        let (alerts, stop, judging) = start(&world, &Clock::at(NOW), impatient).await;
        let access = KafkaAccess::new(data, commands.clone(), world.fleet.clone(), alerts.clone());
        let site = Self { world, bridge, commands, access, alerts, _stop: stop, _tasks: [tasks, judging] };
        site.ask_for_a_certificate().await;
        site
    }

    async fn ask_for_a_certificate(&self) {
        let request = key().certificate_request().expect("a request");
        self.world.enrollment.kafka(&self.bridge, &request, false, NOW).await.expect("granted");
    }

    /// An agent that is there; `able`: it is configured for the brokers.
    fn connect(&self, agent: NodeId, able: bool) {
        let facts = NodeFacts { keeps_kafka_acls: able, ..NodeFacts::default() };
        let remote = "192.0.2.1:4000".parse().expect("an address");
        self.world.fleet.session_opened(agent, SessionId::new(NOW, rand::random()), remote, facts, NOW);
    }

    async fn look(&self, now: Timestamp) {
        self.access.look(Timestamp::default(), now).await.expect("looked");
    }

    /// What the agent is to do, once it is handed over.
    async fn due(&self, agent: NodeId) -> Vec<(CommandId, Vec<String>)> {
        let due = self.commands.due(agent, 32, NOW).await.expect("an answer");
        let ids = self.commands.deliver(agent, due, NOW).await.expect("stored").into_iter().map(|(id, _)| id);
        let mut wanted = Vec::new();
        for id in ids {
            let command = self.commands.one(id, None, NOW).await.expect("an answer").expect("a command");
            let Some(Action::KafkaAcl { bridge, topics }) = command.action else { panic!("{command:?}") };
            assert_eq!(bridge, self.bridge.node);
            wanted.push((id, topics));
        }
        wanted
    }

    async fn tell(&self, agent: NodeId, id: CommandId, state: CommandState, message: &str) {
        let word = CommandOutcome { state: state.into(), message: message.into(), ..CommandOutcome::default() };
        self.commands.word(agent, id, word, NOW).await.expect("stored");
    }

    fn shown(&self) -> Access {
        let view = self.world.fleet.node(self.bridge.node).expect("in the fleet");
        view.kafka_access.as_deref().expect("looked at").clone()
    }

    fn own(&self) -> Vec<String> {
        let view = self.world.fleet.node(self.bridge.node).expect("in the fleet");
        vec![format!("{}.*", view.name.replace('.', "-"))]
    }
}

fn strangers() -> TenantId {
    "other".parse().expect("a slug")
}

on_both_engines! {
    async fn a_bridge_may_write_under_its_name_until_it_is_revoked(database: TestDatabase) {
        let site = Site::new(database).await;
        site.look(NOW).await;
        assert_eq!(site.shown().state, State::Waiting);
        assert!(site.shown().message.contains("[kafka] in agent.toml"), "{}", site.shown().message);

        let (agent, _) = site.world.node().await;
        site.connect(agent, true);
        site.look(NOW).await;
        site.look(NOW).await;
        let due = site.due(agent).await;
        let [(first, topics)] = due.as_slice() else { panic!("asked once: {due:?}") };
        assert_eq!((topics, site.shown().state), (&site.own(), State::Asked));
        site.tell(agent, *first, CommandState::Succeeded, "allowed it").await;
        site.look(NOW).await;
        let placed = Access { topics: site.own(), state: State::Placed, message: "allowed it".into(), tries: 0 };
        assert_eq!(site.shown(), placed);
        // A renewal changes nothing.
        site.ask_for_a_certificate().await;
        site.look(NOW).await;
        assert_eq!(site.due(agent).await, []);
        let set = site.world.audited(action::KAFKA_ACCESS_SET).await;
        let placed = site.world.audited(action::KAFKA_ACCESS_PLACED).await;
        assert_eq!((set.len(), placed.len()), (1, 1));
        let principal = format!("User:CN={}", kafka_principal(site.bridge.node));
        assert_eq!(placed[0].detail["principal"].as_str(), Some(&*principal));

        let (reason, ann) = (hyperfactory_hub::enrollment::Reason::KeyCompromise, Actor::operator("ann"));
        site.world.enrollment.revoke(site.bridge.node, reason, "", &ann, at(1)).await.expect("revoked");
        site.look(at(1)).await;
        let due = site.due(agent).await;
        let [(last, topics)] = due.as_slice() else { panic!("asked once: {due:?}") };
        assert!(topics.is_empty());
        site.tell(agent, *last, CommandState::Succeeded, "took it away").await;
        site.look(at(1)).await;
        assert_eq!((site.shown().state, site.shown().topics), (State::Placed, vec![]));
        let refused = site.access.allow(site.bridge.node, &acme(), &site.own(), &ann, at(2)).await;
        assert!(matches!(refused, Err(AccessError::NotABridge(_))), "{refused:?}");
        site.world.close().await;
    }

    async fn what_the_brokers_refuse_is_told_and_tried_again(database: TestDatabase) {
        let site = Site::new(database).await;
        let (agent, _) = site.world.node().await;
        site.connect(agent, true);
        site.look(NOW).await;
        let due = site.due(agent).await;
        site.tell(agent, due[0].0, CommandState::Refused, "by its owner's policy").await;
        site.look(NOW).await;
        assert_eq!((site.shown().state, &*site.shown().message), (State::Refused, "by its owner's policy"));
        site.look(at(14)).await;
        assert_eq!(site.due(agent).await, []);
        site.look(at(15)).await;
        let due = site.due(agent).await;
        assert_eq!(due.len(), 1);
        site.tell(agent, due[0].0, CommandState::Failed, "no superuser").await;
        site.look(at(15)).await;
        site.look(at(44)).await;
        assert_eq!(site.due(agent).await, [], "each time it takes longer");
        site.look(at(45)).await;
        let due = site.due(agent).await;
        site.tell(agent, due[0].0, CommandState::Succeeded, "allowed it").await;
        site.look(at(45)).await;
        assert_eq!(site.shown().state, State::Placed);
        site.world.close().await;
    }

    async fn what_an_admin_says_meanwhile_is_asked_for_when_the_agent_is_through(database: TestDatabase) {
        let site = Site::new(database).await;
        let (agent, _) = site.world.node().await;
        site.connect(agent, true);
        site.look(NOW).await;
        let due = site.due(agent).await;
        let (topics, ann) = (vec!["machines".to_owned()], Actor::operator("ann"));
        site.access.allow(site.bridge.node, &acme(), &topics, &ann, at(1)).await.expect("set");
        site.look(at(1)).await;
        assert_eq!(site.due(agent).await, due, "nothing else before that has ended");
        site.tell(agent, due[0].0, CommandState::Succeeded, "allowed it").await;
        site.look(at(2)).await;
        let due = site.due(agent).await;
        assert_eq!(due.iter().map(|(_, topics)| topics).collect::<Vec<_>>(), [&topics]);
        site.tell(agent, due[0].0, CommandState::Succeeded, "allowed that").await;
        site.look(at(3)).await;
        assert_eq!((site.shown().state, site.shown().topics), (State::Placed, topics));
        assert_eq!(site.world.audited(action::KAFKA_ACCESS_SET).await[0].actor, "operator:ann");
        for wrong in ["*", "a b", ""] {
            let refused = site.access.allow(site.bridge.node, &acme(), &[wrong.into()], &ann, at(4)).await;
            assert!(matches!(refused, Err(AccessError::Topics(_))), "{wrong:?}: {refused:?}");
        }
        site.world.close().await;
    }

    async fn what_stays_refused_is_an_alert_until_it_is_placed(database: TestDatabase) {
        let site = Site::new(database).await;
        let mut changes = site.alerts.changes();
        let registry = prometheus::Registry::new();
        let gauges = Gauges::new(&registry).expect("gauges");
        let shown = async || {
            gauges.look(&site.alerts).await.expect("counted");
            prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text")
        };
        let (one, none) = ("alerts_open{rule=\"kafka.access\"} 1", "alerts_open{rule=\"kafka.access\"} 0");
        let (agent, _) = site.world.node().await;
        site.connect(agent, true);
        site.look(NOW).await;
        let due = site.due(agent).await;
        site.tell(agent, due[0].0, CommandState::Failed, "no superuser").await;
        site.look(NOW).await;
        let Change::Opened(opened) = changes.recv().await.expect("a change") else { panic!("opened") };
        assert_eq!((opened.rule, opened.node), (Rule::KafkaAccess, Some(site.bridge.node)));
        assert!(opened.level == Level::Warning && opened.message.ends_with(": no superuser"), "{}", opened.message);
        assert!(shown().await.contains(one), "{}", shown().await);
        site.look(at(15)).await;
        let due = site.due(agent).await;
        site.tell(agent, due[0].0, CommandState::Succeeded, "allowed it").await;
        site.look(at(16)).await;
        let Change::Closed(closed) = changes.recv().await.expect("a change") else { panic!("closed") };
        assert_eq!(closed.rule, Rule::KafkaAccess);
        assert!(shown().await.contains(none), "{}", shown().await);

        // What a revoked bridge may still do is worse.
        let (reason, ann) = (hyperfactory_hub::enrollment::Reason::KeyCompromise, Actor::operator("ann"));
        site.world.enrollment.revoke(site.bridge.node, reason, "", &ann, at(40)).await.expect("revoked");
        site.look(at(40)).await;
        let due = site.due(agent).await;
        site.tell(agent, due[0].0, CommandState::Failed, "no superuser").await;
        site.look(at(40)).await;
        let Change::Opened(opened) = changes.recv().await.expect("a change") else { panic!("opened") };
        assert_eq!((opened.rule, opened.level), (Rule::KafkaAccess, Level::Critical));

        // Out of the fleet, it is not out of mind.
        site.world.enrollment.remove(site.bridge.node, &ann, at(50)).await.expect("removed");
        assert!(shown().await.contains(none), "{}", shown().await);
        site.look(at(60)).await;
        let due = site.due(agent).await;
        site.tell(agent, due[0].0, CommandState::Failed, "no superuser").await;
        site.look(at(60)).await;
        let Change::Opened(opened) = changes.recv().await.expect("a change") else { panic!("opened") };
        assert_eq!((opened.node, opened.subject), (None, format!("bridge/{}", site.bridge.node)));
        site.look(at(100)).await;
        let due = site.due(agent).await;
        site.tell(agent, due[0].0, CommandState::Succeeded, "took it away").await;
        site.look(at(100)).await;
        let Change::Closed(closed) = changes.recv().await.expect("a change") else { panic!("closed") };
        assert_eq!(closed.node, None);
        assert!(shown().await.contains(none), "{}", shown().await);
        site.world.close().await;
    }

    async fn refused_rights_are_critical_as_soon_as_the_bridge_is_revoked(database: TestDatabase) {
        let site = Site::new(database).await;
        let mut changes = site.alerts.changes();
        let (agent, _) = site.world.node().await;
        site.connect(agent, true);
        site.look(NOW).await;
        let due = site.due(agent).await;
        site.tell(agent, due[0].0, CommandState::Failed, "no superuser").await;
        site.look(NOW).await;
        let Change::Opened(warning) = changes.recv().await.expect("a change") else { panic!("opened") };
        assert_eq!(warning.level, Level::Warning);
        let (reason, ann) = (hyperfactory_hub::enrollment::Reason::KeyCompromise, Actor::operator("ann"));
        site.world.enrollment.revoke(site.bridge.node, reason, "", &ann, at(1)).await.expect("revoked");
        site.look(at(1)).await;
        let Change::Closed(closed) = changes.recv().await.expect("a change") else { panic!("closed") };
        assert_eq!((closed.level, &closed.message), (Level::Warning, &warning.message));
        let Change::Opened(opened) = changes.recv().await.expect("a change") else { panic!("opened") };
        assert!(opened.level == Level::Critical && opened.message.contains("not taken away yet"), "{}", opened.message);
        let open = hyperfactory_hub::alerts::Filter { open: Some(true), ..Default::default() };
        let open = site.alerts.list(&open).await.expect("a list");
        let [one] = open.as_slice() else { panic!("{open:?}") };
        assert_eq!((one.level, one.node), (Level::Critical, Some(site.bridge.node)));
        site.world.close().await;
    }

    async fn a_bridges_own_topics_are_nobody_elses(database: TestDatabase) {
        let site = Site::new(database).await;
        let ann = Actor::operator("ann");
        let topics = ["machines.press".to_owned(), "shared.*".to_owned()];
        site.access.allow(site.bridge.node, &acme(), &topics, &ann, at(1)).await.expect("set");
        for (name, its_name) in [("umh", false), ("machines", false), ("shared", false), ("press", true)] {
            let token = site.world.token(NodeKind::Bridge, Some(name)).await;
            let kind = protocol::message::NodeKind::Bridge.into();
            let asked = EnrollRequest { kind, ..request(&token, &key()) };
            let enrolled = site.world.enrollment.enroll(asked, HERE, NOW).await.expect("enrolled");
            let bridge = identity(&enrolled.certificate_chain);
            let asked = key().certificate_request().expect("a request");
            site.world.enrollment.kafka(&bridge, &asked, false, NOW).await.expect("granted");
            let set = &site.world.audited(action::KAFKA_ACCESS_SET).await[0];
            let own = if its_name { name.to_owned() } else { bridge.node.to_string() };
            assert_eq!(set.detail["write"], serde_json::json!([format!("{own}.*")]), "{name}");
        }
        site.world.close().await;
    }

    async fn an_agent_of_another_tenant_or_without_brokers_is_not_asked(database: TestDatabase) {
        let site = Site::new(database).await;
        site.world.tenants.create(&strangers(), "Other", &Actor::system(), NOW).await.expect("a tenant");
        let (strange, _) = site.world.node_of(&strangers()).await;
        let (unable, _) = site.world.node().await;
        site.connect(strange, true);
        site.connect(unable, false);
        site.look(NOW).await;
        assert_eq!(site.commands.list(&Filter { limit: 10, ..Filter::default() }, NOW).await.expect("a list"), []);
        assert_eq!(site.shown().state, State::Waiting);
        site.world.close().await;
    }
}
