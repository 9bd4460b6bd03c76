//! The way back of a node whose certificate is taken no more: what the hub's data says of it, and over the wire.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::config::Config;
use hyperfactory_hub::enrollment::Reason;
use hyperfactory_hub::hub::Hub;
use hyperfactory_hub::rotation::{Direction, Rotations};
use pki::recovery::{Claim, EXPORTER_LABEL};
use pki::tls::{node_config, recover_config, system_clock};
use pki::{CertificateDer, NodeIdentity, PrivateKey, verify_request};
use protocol::message::{
    NodeFacts, RecoverProof, RecoverReply, RecoverRequest, Recovered, Refusal, RefusalCode, SpoolRange, ToNode,
    Welcome, recover_reply::Reply, to_node,
};
use protocol::session::NodeSession;
use protocol::{NodeId, NodeKind, Timestamp, frame, version};
use store::on_both_engines;
use store::testing::TestDatabase;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use transport::{Connection, Endpoint, StreamError};

use crate::setup::{self, HERE, NOW, World, acme, first_renewal, identity, key, rotate_root, step};

const DAY: Duration = Duration::from_secs(86_400);
const EXPORTER: [u8; 32] = [4; 32];

/// What a node has in its state directory.
pub(crate) struct State {
    key: PrivateKey,
    pub(crate) identity: NodeIdentity,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
    sequence: u64,
}

impl State {
    pub(crate) fn new(key: PrivateKey, chain: &[Vec<u8>], roots: &[Vec<u8>], sequence: u64) -> Self {
        let ders = |list: &[Vec<u8>]| list.iter().map(|der| der.clone().into()).collect();
        Self { key, identity: identity(chain), chain: ders(chain), roots: ders(roots), sequence }
    }

    pub(crate) async fn enrolled(world: &World, now: Timestamp) -> Self {
        Self::enrolled_as(world, NodeKind::Agent, now).await
    }

    pub(crate) async fn enrolled_as(world: &World, kind: NodeKind, now: Timestamp) -> Self {
        let (key, enrolled) = world.enrolled_as(kind, now).await;
        Self::new(key, &enrolled.certificate_chain, &enrolled.roots, 1)
    }

    fn request(&self, new: &PrivateKey) -> RecoverRequest {
        RecoverRequest {
            versions: Some(version::SPOKEN),
            node_id: self.identity.node.to_bytes().to_vec(),
            spki_sha256: self.identity.spki_sha256.to_vec(),
            sequence: self.sequence,
            certificate_request: new.certificate_request().expect("a request"),
        }
    }

    fn claim<'a>(&self, nonce: &'a [u8; 32], exporter: &'a [u8; 32], request: &'a RecoverRequest) -> Claim<'a> {
        let node = NodeId::from_bytes(&request.node_id).expect("an id");
        let certificate_request = &request.certificate_request;
        Claim { nonce, exporter, node, sequence: request.sequence, certificate_request }
    }
}

/// Challenge and proof, without the wire.
pub(crate) async fn recover(
    world: &World,
    state: &State,
    new: &PrivateKey,
    now: Timestamp,
) -> Result<Recovered, Refusal> {
    let request = state.request(new);
    let asked = world.enrollment.challenge(request.clone(), HERE, now).await?;
    let nonce = asked.nonce();
    let proof = state.claim(&nonce, &EXPORTER, &request).sign(&state.key).expect("signed");
    world.enrollment.recover(asked, &EXPORTER, &proof, HERE, now).await
}

fn after(days: u32) -> Timestamp {
    NOW.plus(DAY * days)
}

/// The code of a refusal that says what to do.
fn code(refused: Result<Recovered, Refusal>) -> RefusalCode {
    let refusal = refused.expect_err("refused");
    assert!(refusal.message.contains(':'), "says what to do: {}", refusal.message);
    refusal.code()
}

on_both_engines! {
    async fn a_node_whose_certificate_has_ended_gets_one_for_a_new_key(database: TestDatabase) {
        let world = World::new(database).await;
        let state = State::enrolled(&world, NOW).await;
        world.enrollment.seen(&state.identity, NOW).await.expect("seen");
        let new = key();
        let recovered = recover(&world, &state, &new, after(30)).await.expect("recovered");
        let now = identity(&recovered.certificate_chain);
        assert_eq!((now.node, &now.tenant, now.spki_sha256), (state.identity.node, &acme(), new.spki_sha256()));
        assert!(now.not_after > after(36) && recovered.renew_at_ms > after(30).millis());
        assert_eq!((recovered.sequence, &recovered.roots), (2, &world.authorities.roots().trust().roots));
        let entry = &world.audited(action::NODE_RECOVERED).await[0];
        assert_eq!((&*entry.actor, &entry.subject), (&*format!("node:{}", now.node), &now.node.to_string()));
        assert_eq!(entry.detail["certificate"]["serial"], now.serial.to_string().as_str());
        assert_eq!(entry.remote.as_deref(), Some(&*HERE.to_string()));
        // The one before is retired by the use of the new one, as after a renewal.
        world.enrollment.authorize(&state.identity).expect("not yet");
        world.enrollment.seen(&now, after(30)).await.expect("seen");
        let replaced = world.enrollment.authorize(&state.identity).expect_err("retired");
        assert_eq!(replaced.code(), RefusalCode::CertificateReplaced);
        let next = first_renewal(&key().certificate_request().expect("a request"));
        let wrong = world.enrollment.renew(&now, &next, after(31)).await.expect_err("number 1 is of the past");
        assert_eq!(wrong.code(), RefusalCode::Malformed);
        let next = protocol::message::RenewRequest { sequence: 2, ..next };
        assert_eq!(world.enrollment.renew(&now, &next, after(31)).await.expect("renewed").sequence, 3);
        world.close().await;
    }

    async fn a_lost_reply_is_given_again_to_the_same_key_and_counts_once(database: TestDatabase) {
        let world = World::new(database).await;
        let state = State::enrolled(&world, NOW).await;
        let new = key();
        let first = recover(&world, &state, &new, after(30)).await.expect("recovered");
        let again = World::open(database).await;
        for minute in 0..10 {
            let now = after(30).plus(Duration::from_secs(60 * minute));
            let same = recover(&again, &state, &new, now).await.expect("the same");
            assert_eq!((same.certificate_chain, same.sequence), (first.certificate_chain.clone(), 2));
        }
        assert_eq!(again.audited(action::NODE_RECOVERED).await.len(), 1);
        again.close().await;
        world.close().await;
    }

    async fn a_key_of_another_node_is_no_way_back(database: TestDatabase) {
        let world = World::new(database).await;
        let (state, other) = (State::enrolled(&world, NOW).await, State::enrolled(&world, NOW).await);
        let refusal = recover(&world, &state, &other.key, after(30)).await.expect_err("another node's");
        assert_eq!(refusal.code(), RefusalCode::Malformed);
        assert!(refusal.message.contains("Delete this node's state directory"), "{}", refusal.message);
        assert_eq!(world.audited(action::RECOVERY_REFUSED).await.len(), 1);
        recover(&world, &state, &key(), after(30)).await.expect("with a key of its own");
        world.close().await;
    }

    async fn a_node_comes_back_so_late_and_so_often_and_no_more(database: TestDatabase) {
        let world = World::new(database).await;
        let state = State::enrolled(&world, NOW).await;
        assert_eq!(code(recover(&world, &state, &key(), after(7 + 91)).await), RefusalCode::RecoveryOver);
        let mut last = key();
        for _ in 0..5 {
            last = key();
            recover(&world, &state, &last, after(40)).await.expect("recovered");
        }
        let refusal = recover(&world, &state, &key(), after(41)).await.expect_err("too often");
        assert_eq!(refusal.code(), RefusalCode::Busy);
        assert_eq!(refusal.retry_after_ms, DAY.as_millis() as u64 * 29);
        recover(&world, &state, &last, after(41)).await.expect("a lost reply is no sixth time");
        recover(&world, &state, &key(), after(71)).await.expect("a month later");
        assert_eq!(world.audited(action::RECOVERY_REFUSED).await.len(), 2);
        world.close().await;
    }

    async fn those_who_are_kept_out_are_told_before_anything_is_computed(database: TestDatabase) {
        let world = World::new(database).await;
        let admin = Actor::operator("ann");
        let challenge = async |request: RecoverRequest| {
            let refusal = world.enrollment.challenge(request, HERE, after(20)).await.expect_err("refused");
            assert!(refusal.message.contains(':') || refusal.message.contains(';'), "{}", refusal.message);
            refusal.code()
        };
        let [revoked, removed, good, other] = [
            State::enrolled(&world, NOW).await,
            State::enrolled(&world, NOW).await,
            State::enrolled(&world, NOW).await,
            State::enrolled(&world, NOW).await,
        ];
        world.enrollment.revoke(revoked.identity.node, Reason::Unspecified, "", &admin, after(10)).await.expect("revoked");
        world.enrollment.remove(removed.identity.node, &admin, after(10)).await.expect("removed");
        assert_eq!(challenge(revoked.request(&key())).await, RefusalCode::NodeRevoked);
        assert_eq!(challenge(removed.request(&key())).await, RefusalCode::NodeUnknown);
        let foreign = RecoverRequest { node_id: vec![9; 16], ..good.request(&key()) };
        assert_eq!(challenge(foreign).await, RefusalCode::NodeUnknown);
        // One node's key under another's id, be it of this tenant or another.
        let borrowed = RecoverRequest { node_id: other.request(&key()).node_id, ..good.request(&key()) };
        assert_eq!(challenge(borrowed).await, RefusalCode::CertificateUnknown);
        assert_eq!(challenge(RecoverRequest { sequence: 2, ..good.request(&key()) }).await, RefusalCode::Malformed);
        assert_eq!(challenge(RecoverRequest { node_id: vec![1], ..good.request(&key()) }).await, RefusalCode::Malformed);
        assert_eq!(challenge(RecoverRequest { versions: None, ..good.request(&key()) }).await, RefusalCode::Version);
        assert_eq!(world.audited(action::RECOVERY_REFUSED).await.len(), 7);
        assert!(world.audited(action::NODE_RECOVERED).await.is_empty());
        world.close().await;
    }

    async fn strangers_do_not_fill_the_audit_log(database: TestDatabase) {
        let world = World::new(database).await;
        let state = State::enrolled(&world, NOW).await;
        for number in 0..50 {
            let unknown = RecoverRequest { node_id: vec![number; 16], ..state.request(&key()) };
            let refusal = world.enrollment.challenge(unknown, HERE, after(30)).await.expect_err("refused");
            assert_eq!(refusal.code(), RefusalCode::NodeUnknown);
        }
        assert_eq!(world.audited(action::RECOVERY_REFUSED).await.len(), 10);
        // Whoever proves to be a node is on record.
        let same = recover(&world, &state, &state.key, after(30)).await;
        assert_eq!(code(same), RefusalCode::Malformed, "the old key again");
        assert_eq!(world.audited(action::RECOVERY_REFUSED).await.len(), 11);
        world.close().await;
    }

    async fn a_proof_is_good_for_its_key_its_challenge_its_connection_and_its_request(database: TestDatabase) {
        let world = World::new(database).await;
        let (state, thief, new) = (State::enrolled(&world, NOW).await, key(), key());
        let request = state.request(&new);
        let asked = async || world.enrollment.challenge(request.clone(), HERE, after(20)).await.expect("a challenge");
        let (first, second) = (asked().await, asked().await);
        let (nonce, other_nonce) = (first.nonce(), second.nonce());
        assert_ne!(nonce, other_nonce);
        let swapped = RecoverRequest { certificate_request: thief.certificate_request().expect("one"), ..request.clone() };
        let good = state.claim(&nonce, &EXPORTER, &request).sign(&state.key).expect("signed");
        let cases = [
            (asked().await, good.clone()),
            (second, good.clone()),
            (asked().await, Vec::new()),
        ];
        for (asked, signature) in cases {
            let refused = world.enrollment.recover(asked, &EXPORTER, &signature, HERE, after(20)).await;
            assert_eq!(code(refused), RefusalCode::Malformed);
        }
        let refused = world.enrollment.recover(first, &[5; 32], &good, HERE, after(20)).await;
        assert_eq!(code(refused), RefusalCode::Malformed, "another connection");
        for (claimed, key) in [(&swapped, &state.key), (&request, &thief)] {
            let asked = asked().await;
            let nonce = asked.nonce();
            let signature = state.claim(&nonce, &EXPORTER, claimed).sign(key).expect("signed");
            let refused = world.enrollment.recover(asked, &EXPORTER, &signature, HERE, after(20)).await;
            assert_eq!(code(refused), RefusalCode::Malformed);
        }
        let same = recover(&world, &state, &state.key, after(20)).await;
        assert_eq!(code(same), RefusalCode::Malformed, "the old key again");
        assert_eq!(world.audited(action::RECOVERY_REFUSED).await.len(), 7);
        recover(&world, &state, &new, after(20)).await.expect("nothing of it hurt the node");
        world.close().await;
    }

    async fn a_copy_of_a_nodes_state_freezes_it_until_an_operator_has_looked(database: TestDatabase) {
        let world = World::new(database).await;
        let state = State::enrolled(&world, NOW).await;
        let node = state.identity.node;
        let recovered = recover(&world, &state, &key(), after(20)).await.expect("recovered");
        let now = identity(&recovered.certificate_chain);
        world.enrollment.seen(&now, after(20)).await.expect("seen");
        // Nobody but one who has the old key can have it frozen.
        let request = state.request(&key());
        let asked = world.enrollment.challenge(request, HERE, after(21)).await.expect("a challenge");
        let refused = world.enrollment.recover(asked, &EXPORTER, &[1; 70], HERE, after(21)).await;
        assert_eq!(code(refused), RefusalCode::Malformed);
        world.enrollment.authorize(&now).expect("as before");

        assert_eq!(code(recover(&world, &state, &key(), after(21)).await), RefusalCode::NodeFrozen);
        assert_eq!(world.enrollment.authorize(&now).expect_err("both").code(), RefusalCode::NodeFrozen);
        let renewal = protocol::message::RenewRequest { sequence: 2, ..first_renewal(&[]) };
        let refusal = world.enrollment.renew(&now, &renewal, after(21)).await.expect_err("frozen");
        assert_eq!(refusal.code(), RefusalCode::NodeFrozen);
        assert!(world.fleet.node(node).and_then(|view| view.frozen.clone()).is_some());
        let entries = world.audited(action::NODE_FROZEN).await;
        assert_eq!((entries.len(), entries[0].detail["seen"]["sequence"].as_u64()), (1, Some(1)));
        assert_eq!(entries[0].tenant.as_deref(), Some("acme"));

        let again = World::open(database).await;
        assert_eq!(again.enrollment.authorize(&now).expect_err("still").code(), RefusalCode::NodeFrozen);
        assert!(again.fleet.node(node).and_then(|view| view.frozen.clone()).is_some());
        again.enrollment.unfreeze(node, &Actor::operator("ann"), after(22)).await.expect("unfrozen");
        again.enrollment.authorize(&now).expect("in again");
        assert_eq!(again.audited(action::NODE_UNFROZEN).await.len(), 1);
        assert_eq!(code(recover(&again, &state, &key(), after(23)).await), RefusalCode::NodeFrozen, "the copy once more");
        let nobody = NodeId::new(NOW, [1; 10]);
        again.enrollment.unfreeze(nobody, &Actor::operator("ann"), after(22)).await.expect_err("no such node");
        again.close().await;
        world.close().await;
    }

    async fn an_intermediate_that_has_ended_is_no_hindrance(database: TestDatabase) {
        let world = World::new(database).await;
        let (key, enrolled) = world.enrolled_as(NodeKind::Bridge, after(210)).await;
        let state = State::new(key, &enrolled.certificate_chain, &enrolled.roots, 1);
        let old = pki::trust::validity(&state.chain[1]).expect("a certificate").1;
        assert!(old < after(380));
        let recovered = recover(&world, &state, &setup::key(), after(380)).await.expect("recovered");
        assert_ne!(recovered.certificate_chain[1], state.chain[1].to_vec());
        assert_eq!(identity(&recovered.certificate_chain).tenant, acme());
        world.close().await;
    }

    async fn what_a_node_trusts_is_kept(database: TestDatabase) {
        let world = World::new(database).await;
        let state = State::enrolled(&world, NOW).await;
        let node = state.identity.node;
        world.enrollment.trusting(node, &[[1; 32], [2; 32]], "").await.expect("kept");
        world.enrollment.trusting(node, &[[1; 32]], "no disk").await.expect("kept");
        assert_eq!(world.enrollment.trusts(node), Some(vec![[1; 32]]));
        let again = World::open(database).await;
        assert_eq!(again.enrollment.trusts(node), Some(vec![[1; 32]]));
        assert_eq!(again.enrollment.trusts(NodeId::new(NOW, [9; 10])), None);
        again.close().await;
        world.close().await;
    }

    async fn over_the_wire_a_node_comes_back_and_gets_its_session(database: TestDatabase) {
        let then = now().minus(DAY * 40);
        let world = World::new_at(database, then).await;
        let (mut state, other) = (State::enrolled(&world, then).await, State::enrolled(&world, then).await);
        world.close().await;
        let hub = Running::start(database).await;
        let refused = hub.session(&state).await.expect_err("ended");
        assert!(refused.contains("expired"), "{refused}");
        let (connection, request) = (hub.door(&state).await, state.request(&key()));
        let exporter = connection.export(EXPORTER_LABEL).expect("keys");
        let proof = |nonce: &[u8; 32]| state.claim(nonce, &exporter, &request).sign(&other.key).expect("signed");
        let refused = ask(&connection, &request, proof).await.expect("an answer").expect_err("another node's key");
        assert_eq!(refused.code(), RefusalCode::Malformed);

        let new = key();
        let recovered = hub.recover(&state, &new).await.expect("recovered");
        let former = std::mem::replace(&mut state, State::new(new, &recovered.certificate_chain, &recovered.roots, 2));
        hub.session(&state).await.expect("a session");
        let retired = tokio::time::timeout(Duration::from_secs(20), async {
            while hub.enrollment.authorize(&former.identity).is_ok() {
                tokio::task::yield_now().await;
            }
        });
        retired.await.expect("the session's certificate retires the one before");
        // What was left behind finds the door, and freezes the node.
        let refused = hub.session(&former).await.expect_err("ended");
        assert!(refused.contains("expired"), "{refused}");
        let refusal = hub.recover(&former, &key()).await.expect_err("a copy");
        assert_eq!(refusal.code(), RefusalCode::NodeFrozen);
        let refused = hub.session(&state).await.expect_err("both");
        assert!(refused.contains("NodeFrozen"), "{refused}");
        hub.stop().await;
    }

    async fn a_proof_from_another_connection_is_worth_nothing(database: TestDatabase) {
        let then = now().minus(DAY * 40);
        let world = World::new_at(database, then).await;
        let state = State::enrolled(&world, then).await;
        world.close().await;
        let hub = Running::start(database).await;
        let (one, other) = (hub.door(&state).await, hub.door(&state).await);
        let request = state.request(&key());
        // Somebody in the middle shows the node's proof as their own, with the same challenge even.
        let exporter = one.export(EXPORTER_LABEL).expect("keys");
        assert_ne!(exporter, other.export(EXPORTER_LABEL).expect("keys"));
        let proof = |nonce: &[u8; 32]| state.claim(nonce, &exporter, &request).sign(&state.key).expect("signed");
        let refused = ask(&other, &request, proof).await.expect("an answer").expect_err("refused");
        assert_eq!(refused.code(), RefusalCode::Malformed);
        let recovered = ask(&one, &request, proof).await.expect("an answer");
        recovered.expect("on its own connection it is good");
        hub.stop().await;
    }

    async fn a_node_that_was_away_for_a_whole_change_of_roots_comes_back_by_the_links(database: TestDatabase) {
        let then = now().minus(DAY * 3);
        let world = World::new_at(database, then).await;
        let state = State::enrolled(&world, then).await;
        for days in [2, 1] {
            rotate_root(&world.rotations, now().minus(DAY * days)).await;
        }
        world.close().await;
        let hub = Running::start(database).await;
        let refused = hub.session(&state).await.expect_err("another root");
        assert!(refused.contains("another fleet's"), "{refused}");
        let new = key();
        let recovered = hub.recover(&state, &new).await.expect("recovered");
        let ders: Vec<CertificateDer<'_>> = recovered.roots.iter().map(|der| der.clone().into()).collect();
        let links: Vec<CertificateDer<'_>> = recovered.links.iter().map(|der| der.clone().into()).collect();
        pki::roots::prove(&state.roots, &ders, &links, now()).expect("linked to the root the node knows");
        let state = State::new(new, &recovered.certificate_chain, &recovered.roots, 2);
        hub.session(&state).await.expect("a session");
        hub.stop().await;
    }

    async fn a_change_of_roots_reaches_nodes_in_session_and_their_answer_is_kept(database: TestDatabase) {
        let world = World::new_at(database, now()).await;
        let state = State::enrolled(&world, now()).await;
        world.close().await;
        let hub = Running::start(database).await;
        let mut session = hub.session(&state).await.expect("a session");
        let rotation = hub.rotations.start(pki::Role::Root, "a test", &Actor::operator("ann"), now()).await.expect("begun");
        let rotation = step(&hub.rotations, &rotation, Direction::Forward, now()).await.expect("both are trusted");
        let trust = loop {
            let message: ToNode = session.reader.recv().await.expect("a message").expect("a message");
            if let Some(to_node::Message::Trust(trust)) = message.message {
                break trust;
            }
        };
        assert_eq!((trust.roots.len(), trust.links.len()), (2, 1));
        let pins = hub.authorities.roots().pins.clone();
        session.writer.send(&session.machine.trusts(&pins, String::new())).await.expect("sent");
        let kept = tokio::time::timeout(Duration::from_secs(20), async {
            while hub.enrollment.trusts(state.identity.node) != Some(pins.clone()) {
                tokio::task::yield_now().await;
            }
        });
        kept.await.expect("the hub keeps the report");
        // A node of the new root gets in as well, once there is one.
        step(&hub.rotations, &rotation, Direction::Forward, now()).await.expect("the new one issues");
        hub.session(&state).await.expect("a node of the old root");
        hub.stop().await;
    }
}

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// A whole hub in this process, at the machine's time.
pub(crate) struct Running {
    address: SocketAddr,
    authorities: hyperfactory_hub::authorities::Authorities,
    pub(crate) rotations: Rotations,
    pub(crate) enrollment: hyperfactory_hub::enrollment::Enrollment,
    shutdown: CancellationToken,
    task: JoinSet<anyhow::Result<()>>,
    _directory: tempfile::TempDir,
}

/// A session that is up.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) machine: NodeSession,
    pub(crate) writer: transport::FrameWriter,
    pub(crate) reader: transport::FrameReader,
    /// What the hub answered to Hello.
    pub(crate) welcome: Welcome,
}

impl Running {
    pub(crate) async fn start(database: &TestDatabase) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let loopback = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0);
        let config = Config {
            state_dir: directory.path().to_owned(),
            database: Some(settings::Secret::new(&*database.url)),
            quic_listen: loopback,
            http_listen: loopback,
            master_key_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/master.key").into()),
            ..Config::default()
        };
        let shutdown = CancellationToken::new();
        let hub = Hub::open(&config, &shutdown).await.expect("a hub");
        let (authorities, enrollment) = (hub.domain().authorities.clone(), hub.enrollment().clone());
        let rotations = hub.domain().rotations.clone();
        let address = hub.endpoints().quic;
        let mut task = JoinSet::new();
        task.spawn(hub.run(shutdown.clone()));
        Self { address, authorities, rotations, enrollment, shutdown, task, _directory: directory }
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        self.task.join_next().await.expect("it runs").expect("no panic").expect("it ran");
    }

    /// A connection for recovery.
    async fn door(&self, state: &State) -> Connection {
        let tls = recover_config(&state.roots, system_clock()).expect("roots");
        Endpoint::client().expect("a socket").connect(self.address, tls).await.expect("the hub")
    }

    async fn recover(&self, state: &State, new: &PrivateKey) -> Result<Recovered, Refusal> {
        let (connection, request) = (self.door(state).await, state.request(new));
        let exporter = connection.export(EXPORTER_LABEL).expect("keys");
        let proof = |nonce: &[u8; 32]| state.claim(nonce, &exporter, &request).sign(&state.key).expect("signed");
        ask(&connection, &request, proof).await.expect("an answer")
    }

    /// Says Hello, and gives the session or why there is none.
    pub(crate) async fn session(&self, state: &State) -> Result<Session, String> {
        let tls = node_config(state.chain.clone(), &state.key, &state.roots, system_clock()).expect("a pair");
        let endpoint = Endpoint::client().expect("a socket");
        let connection = endpoint.connect(self.address, tls).await.map_err(|error| error.to_string())?;
        let opened = async {
            let (mut writer, mut reader) = connection.open(frame::MAX_CONTROL).await.map_err(StreamError::Closed)?;
            let spool = SpoolRange { epoch: 1, first: 1, last: 0 };
            let pins: Vec<_> = state.roots.iter().map(|root| pki::trust::pin(root).expect("a root")).collect();
            let (mut machine, hello) = NodeSession::open(version::SPOKEN, NodeFacts::default(), 1, spool, &pins, now());
            writer.send(&hello).await?;
            let answer: ToNode = reader.recv().await?.unwrap_or_default();
            machine.receive(answer.clone(), now()).expect("in order");
            Ok::<_, StreamError>(match answer.message {
                Some(to_node::Message::Welcome(welcome)) => Ok(Session { machine, writer, reader, welcome }),
                other => Err(format!("{other:?}")),
            })
        };
        opened.await.map_err(|error| error.to_string())?
    }
}

/// One exchange on a connection for recovery, with whatever proof.
async fn ask(
    connection: &Connection,
    request: &RecoverRequest,
    proof: impl FnOnce(&[u8; 32]) -> Vec<u8>,
) -> Result<Result<Recovered, Refusal>, StreamError> {
    verify_request(&request.certificate_request).expect("a good request");
    let (mut writer, mut reader) = connection.open(frame::MAX_ENROLL).await.map_err(StreamError::Closed)?;
    writer.send(request).await?;
    let mut proof = Some(proof);
    loop {
        let reply: RecoverReply = reader.recv().await?.expect("an answer");
        match reply.reply.expect("a known answer") {
            Reply::Challenge(challenge) => {
                let nonce = challenge.nonce.as_slice().try_into().expect("32 bytes");
                let signature = proof.take().expect("one challenge")(&nonce);
                writer.send(&RecoverProof { signature }).await?;
            }
            Reply::Recovered(recovered) => return Ok(Ok(recovered)),
            Reply::Refusal(refusal) => return Ok(Err(refusal)),
        }
    }
}
