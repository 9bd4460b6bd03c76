//! Commands as rows: what is said of one is true whenever the hub is killed, whatever the wall clock does.

mod at_once;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hyperfactory_hub::audit::Actor;
use hyperfactory_hub::commands::{Command, Commands, Filter, NewRequest, RequestError, Requested, Signed, SteadyClock};
use hyperfactory_hub::operators;
use pki::OperatorKey;
use protocol::command::{Action, Signature, State};
use protocol::message::{CommandOutcome, CommandOutput, CommandState};
use protocol::{CommandId, NodeId, TenantId, Timestamp};
use serde_json::json;
use store::{on_both_engines, sqlx};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::setup::{NOW, World, acme, at, seconds};

const DAY: u64 = 86_400;

/// A hub's commands, with a clock that only the test moves.
struct Desk {
    commands: Commands,
    steady: Arc<AtomicI64>,
    #[expect(dead_code, reason = "its task ends with it")]
    tasks: JoinSet<()>,
}

impl Desk {
    /// As a hub that starts, its steady clock so many seconds after [`NOW`].
    fn open(world: &World, after: u64) -> Self {
        let steady = Arc::new(AtomicI64::new(at(after).millis()));
        let clock = {
            let steady = Arc::clone(&steady);
            SteadyClock::new(move || Timestamp::from_millis(steady.load(Ordering::Relaxed)))
        };
        let stop = CancellationToken::new();
        let wall = || NOW;
        let (commands, task) = Commands::start(world.database.clone(), Arc::default(), clock, wall, stop);
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        Self { commands, steady, tasks }
    }

    fn pass(&self, time: Duration) {
        self.steady.fetch_add(time.as_millis() as i64, Ordering::Relaxed);
    }

    async fn ask(&self, node: NodeId) -> CommandId {
        self.request(new(node), NOW).await.expect("taken").commands[0].0
    }

    async fn request(&self, new: NewRequest, now: Timestamp) -> Result<Requested, RequestError> {
        self.commands.request(new, &Actor::operator("ann"), now).await
    }

    async fn one(&self, id: CommandId) -> Command {
        self.commands.one(id, None, NOW).await.expect("an answer").expect("the command")
    }

    async fn state(&self, id: CommandId) -> State {
        self.one(id).await.state
    }

    /// What a session does when it begins; what was left of each command's time.
    async fn deliver(&self, node: NodeId) -> Vec<(CommandId, u64)> {
        let due = self.commands.due(node, 32, NOW).await.expect("an answer");
        let sent = self.commands.deliver(node, due, NOW).await.expect("stored");
        sent.into_iter().map(|(id, message)| (id, message.remaining_ms)).collect()
    }

    async fn says(&self, node: NodeId, id: CommandId, state: CommandState, message: &str) {
        let word = CommandOutcome { state: state.into(), message: message.into(), ..CommandOutcome::default() };
        self.commands.word(node, id, word, at(5)).await.expect("stored");
    }
}

fn new(node: NodeId) -> NewRequest {
    NewRequest {
        nodes: vec![(node, acme())],
        target: json!({ "nodes": [node.to_string()] }),
        action: Action::ServiceRestart { stack: "shop".into(), service: "web".into() },
        priority: 0,
        valid_for: seconds(60),
        reason: "it hangs".parse().expect("a reason"),
        scope: None,
        caller: "ann".into(),
        key: None,
        fingerprint: vec![1],
        signed: None,
    }
}

/// With an operator's signature on `action`.
fn signed(node: NodeId, key: &OperatorKey, id: CommandId, action: &Action, until: Timestamp) -> NewRequest {
    let arguments = action.to_bytes();
    let signature = key.sign(&Signature::message(node, id, &arguments, until));
    let of = HashMap::from([(node, (id, signature))]);
    let signed = Signed { key: key.public(), not_after: until, arguments, of };
    NewRequest { signed: Some(signed), ..new(node) }
}

on_both_engines! {
    async fn a_command_is_a_row_before_a_packet_and_the_hub_may_be_killed_between_any_two(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let id = desk.ask(node).await;
        assert_eq!(desk.state(id).await, State::Queued);
        let audited = world.audited("command.requested").await;
        assert_eq!((audited.len(), &audited[0].detail["why"], &*audited[0].actor), (1, &json!("it hangs"), "operator:ann"));

        // Each time another hub: it knows the rows alone.
        let desk = Desk::open(&world, 1);
        assert_eq!(desk.deliver(node).await, [(id, 59_000)]);
        assert_eq!(desk.state(id).await, State::Delivered, "before the packet left");
        let desk = Desk::open(&world, 2);
        assert_eq!(desk.deliver(node).await, [(id, 58_000)], "nobody knows whether it arrived: it goes again");
        desk.says(node, id, CommandState::Running, "").await;
        let desk = Desk::open(&world, 3);
        assert_eq!((desk.state(id).await, desk.deliver(node).await), (State::Running, vec![(id, 57_000)]));
        desk.says(node, id, CommandState::Succeeded, "web restarted").await;
        let desk = Desk::open(&world, 4);
        let command = desk.one(id).await;
        assert_eq!((command.state, &*command.message, command.told), (State::Succeeded, "web restarted", true));
        assert_eq!(command.ended_at, Some(at(5)));
        assert_eq!(desk.deliver(node).await, []);
        world.close().await;
    }

    async fn a_wall_clock_that_jumps_by_a_day_changes_no_deadline(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let id = desk.ask(node).await;
        for wall in [at(DAY), NOW.minus(seconds(DAY))] {
            desk.commands.judge(wall, true).await.expect("judged");
            assert_eq!(desk.state(id).await, State::Queued);
            let shown = desk.commands.one(id, None, wall).await.expect("an answer").expect("there").deadline;
            assert_eq!(shown, wall.plus(seconds(60)), "what is left stays, and is shown by the clock as it is");
        }
        desk.pass(seconds(59));
        let wait = desk.commands.judge(at(DAY), true).await.expect("judged");
        assert_eq!((desk.state(id).await, wait), (State::Queued, seconds(1)));
        desk.pass(seconds(1));
        desk.commands.judge(NOW.minus(seconds(DAY)), true).await.expect("judged");
        assert_eq!(desk.state(id).await, State::Expired);
        assert_eq!(desk.deliver(node).await, [], "nobody is told any more");
        world.close().await;
    }

    async fn what_a_node_went_away_with_is_unknown_at_its_deadline_and_told_when_it_is_back(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let (done, never) = (desk.ask(node).await, desk.ask(node).await);
        desk.deliver(node).await;
        desk.pass(seconds(61));
        desk.commands.judge(at(61), false).await.expect("judged");
        assert_eq!(desk.state(done).await, State::Delivered, "the nodes of a hub that has just started may come back");
        desk.commands.judge(at(61), true).await.expect("judged");
        assert_eq!((desk.state(done).await, desk.one(done).await.told), (State::Unknown, false));
        let mut asked = desk.deliver(node).await;
        asked.sort();
        assert_eq!(asked.iter().map(|(_, left)| *left).collect::<Vec<_>>(), [0, 0], "asked how it stands, not to begin");
        desk.says(node, done, CommandState::Succeeded, "").await;
        desk.says(node, never, CommandState::Expired, "").await;
        assert_eq!((desk.state(done).await, desk.state(never).await), (State::Succeeded, State::Expired));
        world.close().await;
    }

    async fn the_first_end_a_node_tells_stands_and_another_nodes_word_is_nothing(database: TestDatabase) {
        let world = World::new(database).await;
        let ((node, _), (other, _)) = (world.node().await, second_node(&world).await);
        let desk = Desk::open(&world, 0);
        let id = desk.ask(node).await;
        desk.deliver(node).await;
        desk.says(other, id, CommandState::Failed, "mine").await;
        let piece = |data: &[u8]| CommandOutput { offset: 0, data: data.to_vec(), ..CommandOutput::default() };
        desk.commands.piece(other, id, piece(b"forged")).await.expect("an answer");
        assert_eq!(desk.state(id).await, State::Delivered);
        desk.commands.piece(node, id, piece(b"line")).await.expect("stored");
        desk.commands.piece(node, id, piece(b"line")).await.expect("told again");
        desk.commands.piece(node, id, CommandOutput { offset: 4, ..piece(b" two") }).await.expect("stored");
        desk.says(node, id, CommandState::Unknown, "").await;
        desk.says(node, id, CommandState::Succeeded, "").await;
        let command = desk.one(id).await;
        assert_eq!((command.state, command.told), (State::Unknown, true));
        assert_eq!(desk.commands.output(&command).await.expect("an answer"), b"line two");
        world.close().await;
    }

    async fn words_that_share_a_commit_count_in_their_order(database: TestDatabase) {
        let world = World::new(database).await;
        let ((node, _), (other, _)) = (world.node().await, second_node(&world).await);
        let desk = Desk::open(&world, 0);
        let (id, theirs) = (desk.ask(node).await, desk.ask(other).await);
        desk.deliver(node).await;
        desk.deliver(other).await;
        let word = |node, id, state: CommandState, message: &str, after| {
            let word = CommandOutcome { state: state.into(), message: message.into(), ..CommandOutcome::default() };
            desk.commands.word(node, id, word, at(after))
        };
        let piece = |offset, data: &[u8]| {
            let piece = CommandOutput { offset, data: data.to_vec(), ..CommandOutput::default() };
            desk.commands.piece(node, id, piece)
        };
        // All are handed in before the first is written.
        let said = tokio::join!(
            piece(0, b"line"),
            word(node, id, CommandState::Running, "", 5),
            word(node, theirs, CommandState::Failed, "not mine", 6),
            word(node, id, CommandState::Succeeded, "well", 7),
            word(other, theirs, CommandState::Refused, "not here", 8),
            word(node, id, CommandState::Failed, "too late", 9),
            piece(4, b" more"),
        );
        assert!([said.0, said.1, said.2, said.3, said.4, said.5, said.6].iter().all(Result::is_ok));
        let command = desk.one(id).await;
        assert_eq!((command.state, &*command.message, command.told), (State::Succeeded, "well", true));
        assert_eq!((command.started_at, command.ended_at), (Some(at(5)), Some(at(7))));
        assert_eq!(desk.commands.output(&command).await.expect("an answer"), b"line");
        let command = desk.one(theirs).await;
        assert_eq!((command.state, command.refused, command.started_at), (State::Failed, true, None));
        assert_eq!(world.audited("command.refused").await.len(), 1);
        world.close().await;
    }

    async fn a_word_with_a_character_that_no_text_has_is_stored_all_the_same(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let id = desk.ask(node).await;
        desk.deliver(node).await;
        desk.says(node, id, CommandState::Refused, "a\0b").await;
        assert_eq!(desk.one(id).await.message, "a\u{fffd}b");
        world.close().await;
    }

    async fn what_a_nodes_policy_refuses_has_failed_and_is_audited(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let id = desk.ask(node).await;
        desk.deliver(node).await;
        desk.says(node, id, CommandState::Refused, "not on this machine").await;
        let command = desk.one(id).await;
        assert_eq!((command.state, command.refused), (State::Failed, true));
        let audited = world.audited("command.refused").await;
        assert_eq!((audited.len(), &*audited[0].subject), (1, &*id.to_string()));
        assert_eq!(audited[0].actor, format!("node:{node}"));
        assert_eq!(audited[0].detail["reason"], json!("not on this machine"));
        world.close().await;
    }

    async fn what_nobody_was_told_is_taken_back_at_once_and_the_rest_by_its_node(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let told = desk.ask(node).await;
        desk.deliver(node).await;
        let queued = desk.ask(node).await;
        let (ann, why) = (Actor::operator("ann"), "a mistake".parse().expect("a reason"));
        for _ in 0..2 {
            for (id, state) in [(queued, State::Cancelled), (told, State::Delivered)] {
                let command = desk.commands.cancel(id, Some(&acme()), &why, &ann, NOW).await.expect("taken");
                assert_eq!((command.state, command.cancelled_by.as_deref()), (state, Some("operator:ann")));
            }
        }
        assert_eq!(world.audited("command.cancelled").await.len(), 2, "once each");
        let other: TenantId = "other".parse().expect("an id");
        assert!(desk.commands.cancel(told, Some(&other), &why, &ann, NOW).await.is_err());
        let due = desk.commands.due(node, 32, NOW).await.expect("an answer");
        assert_eq!(due.iter().map(|due| (due.id, due.cancelled)).collect::<Vec<_>>(), [(told, true)]);
        desk.says(node, told, CommandState::Succeeded, "it was too late").await;
        assert_eq!(desk.state(told).await, State::Succeeded);
        world.close().await;
    }

    async fn one_key_has_one_effect_also_after_a_restart(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let keyed = || NewRequest { key: Some("k".into()), ..new(node) };
        let first = Desk::open(&world, 0).request(keyed(), NOW).await.expect("taken");
        let desk = Desk::open(&world, 9);
        let again = desk.request(keyed(), at(9)).await.expect("the same");
        assert_eq!((again.replayed, &again.id, &again.commands), (true, &first.id, &first.commands));
        let other = NewRequest { fingerprint: vec![2], ..keyed() };
        assert!(matches!(desk.request(other, at(9)).await, Err(RequestError::Key)));
        let somebody_else = NewRequest { caller: "bob".into(), ..keyed() };
        assert!(!desk.request(somebody_else, at(9)).await.expect("taken").replayed);
        let all = desk.commands.list(&Filter { limit: 10, ..Filter::default() }, NOW).await.expect("a list");
        assert_eq!(all.len(), 2);
        assert_eq!(world.audited("command.requested").await.len(), 2);
        world.close().await;
    }

    async fn one_key_has_one_effect_also_for_those_who_come_at_once(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Arc::new(Desk::open(&world, 0));
        let mut asking = JoinSet::new();
        for _ in 0..6 {
            let (desk, keyed) = (Arc::clone(&desk), NewRequest { key: Some("k".into()), ..new(node) });
            asking.spawn(async move { desk.request(keyed, NOW).await });
        }
        let asked: Vec<Requested> = asking.join_all().await.into_iter().map(|asked| asked.expect("taken")).collect();
        assert!(asked.iter().all(|one| (&one.id, &one.commands) == (&asked[0].id, &asked[0].commands)), "{asked:?}");
        assert_eq!(asked.iter().filter(|one| !one.replayed).count(), 1);
        assert_eq!(world.audited("command.requested").await.len(), 1);
        drop(desk);
        world.close().await;
    }

    async fn output_that_is_told_again_in_other_pieces_is_there_once(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let id = desk.ask(node).await;
        desk.deliver(node).await;
        let steps: [(u64, &[u8], &[u8]); 8] = [
            (0, b"one\n", b"one\n"),
            (4, b"two\n", b"one\ntwo\n"),
            // Back in another session, with more than before; then with less.
            (0, b"one\ntwo\nthree\n", b"one\ntwo\nthree\n"),
            (0, b"one\ntwo\n", b"one\ntwo\nthree\n"),
            (8, b"three\nfour\n", b"one\ntwo\nthree\nfour\n"),
            // What no honest node does: a hole, and the same bytes at every place.
            (100, b"far", b"one\ntwo\nthree\nfour\n"),
            (1, b"XX", b"one\ntwo\nthree\nfour\n"),
            (18, b"\n!", b"one\ntwo\nthree\nfour\n!"),
        ];
        for (offset, data, so_far) in steps {
            let piece = CommandOutput { offset, data: data.to_vec(), ..CommandOutput::default() };
            desk.commands.piece(node, id, piece).await.expect("stored");
            let output = desk.commands.output(&desk.one(id).await).await.expect("an answer");
            assert_eq!(String::from_utf8_lossy(&output), String::from_utf8_lossy(so_far), "after {offset}");
        }
        world.close().await;
    }

    async fn a_machine_that_boots_with_a_clock_that_is_behind_makes_no_command_before_its_newest(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        assert!(SteadyClock::open(&world.database, NOW).await.expect("a clock").now() < at(DAY));
        let newest = Desk::open(&world, DAY).ask(node).await;
        // As after another boot.
        let mut transaction = world.database.begin_write().await.expect("a transaction");
        sqlx::query("UPDATE hub_settings SET value = 'b 1 1' WHERE name = 'commands.clock'")
            .execute(&mut *transaction)
            .await
            .expect("another boot");
        transaction.commit().await.expect("committed");
        let clock = SteadyClock::open(&world.database, NOW).await.expect("a clock");
        assert!(clock.now() > newest.made_at(), "{clock:?}");
        world.close().await;
    }

    async fn a_signature_of_a_known_key_goes_with_the_command_and_any_other_is_refused(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let (key, until) = (OperatorKey::generate().expect("a key"), at(600));
        let signed = |key: &OperatorKey, id: CommandId, action: &Action| signed(node, key, id, action, until);
        let id = desk.commands.propose();
        let wanted = new(node).action;
        let strange = desk.request(signed(&key, id, &wanted), NOW).await;
        assert!(matches!(strange, Err(RequestError::Signer(_))), "{strange:?}");
        let ann = Actor::operator("ann");
        let why = "ann has left".parse().expect("a reason");
        let register = async |name: &str| operators::register(&world.database, name, key.public(), None, &why, &ann, NOW).await;
        let registered = register("ann").await.expect("taken");
        assert!(register("bob").await.is_err(), "once");

        let made = desk.request(signed(&key, id, &wanted), NOW).await.expect("taken");
        assert_eq!(made.commands, [(id, node)]);
        assert_eq!(world.audited("command.requested").await[0].detail["signed_by"], json!("ann"));
        let due = desk.commands.due(node, 32, NOW).await.expect("an answer");
        let sent = desk.commands.deliver(node, due, NOW).await.expect("stored");
        let passed = sent[0].1.signature.clone().expect("a signature");
        assert_eq!((passed.public_key, passed.not_after_ms), (key.public().to_bytes().to_vec(), until.millis()));

        let refused = [
            signed(&key, id, &wanted),
            signed(&key, desk.commands.propose(), &Action::Drain),
            signed(&key, CommandId::new(NOW.minus(seconds(3_600)), [1; 10]), &wanted),
            signed(&key, CommandId::new(at(60), [1; 10]), &wanted),
        ];
        for request in refused {
            let answer = desk.request(request, NOW).await;
            assert!(matches!(answer, Err(RequestError::Signature(_))), "{answer:?}");
        }
        let mut forged = signed(&key, desk.commands.propose(), &wanted);
        forged.signed.as_mut().expect("signed").not_after = at(601);
        assert!(matches!(desk.request(forged, NOW).await, Err(RequestError::Signature(_))));
        // One that was told before, one that was not, and one of nobody's signature.
        let stored = desk.request(signed(&key, desk.commands.propose(), &wanted), NOW).await.expect("taken").commands[0].0;
        let unsigned = desk.ask(node).await;
        for now in [at(1), at(2)] {
            let revoked = operators::revoke(&world.database, &desk.commands, &registered.id, None, &why, &ann, now).await;
            revoked.expect("revoked");
        }
        let mut due = desk.commands.due(node, 32, NOW).await.expect("an answer");
        due.sort_by_key(|due| due.cancelled);
        assert_eq!(due.iter().map(|due| (due.id, due.cancelled)).collect::<Vec<_>>(), [(unsigned, false), (id, true)]);
        let command = desk.one(stored).await;
        assert_eq!((command.state, &*command.message), (State::Cancelled, "the operator key that signed it was revoked: ann has left"));
        assert_eq!((command.cancelled_by.as_deref(), command.ended_at), (Some("operator:ann"), Some(at(1))));
        let audited = world.audited("command.cancelled").await;
        assert_eq!((audited.len(), &audited[0].detail["nodes"]), (1, &json!(2)));
        assert_eq!(audited[0].detail["operator_key"], json!(registered.id));
        let named = |id: CommandId, state| json!({ "command": id.to_string(), "node": node.to_string(), "state": state });
        let mut taken_back = [(id, "delivered"), (stored, "queued")];
        taken_back.sort();
        assert_eq!(audited[0].detail["commands"], json!(taken_back.map(|(id, state)| named(id, state))));
        let told = desk.one(id).await;
        assert_eq!((told.state, &told.message, told.ended_at), (State::Delivered, &command.message, None), "it says why");
        let late = desk.request(signed(&key, desk.commands.propose(), &wanted), NOW).await;
        assert!(matches!(late, Err(RequestError::Signer(_))));
        let audited = world.audited("operator_key.revoked").await;
        assert_eq!(audited.iter().map(|entry| &entry.detail["name"]).collect::<Vec<_>>(), [&json!("ann")], "once");
        world.close().await;
    }

    async fn the_most_urgent_goes_first_and_what_is_too_much_is_refused(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let (slow, urgent) = (desk.ask(node).await, NewRequest { priority: 9, ..new(node) });
        let urgent = desk.request(urgent, NOW).await.expect("taken").commands[0].0;
        assert_eq!(desk.deliver(node).await.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [urgent, slow]);
        let refused = [
            NewRequest { nodes: vec![], ..new(node) },
            NewRequest { valid_for: Duration::ZERO, ..new(node) },
            NewRequest { valid_for: seconds(31 * DAY), ..new(node) },
        ];
        for new in refused {
            assert!(desk.request(new, NOW).await.is_err());
        }
        let many = NewRequest { nodes: vec![(node, acme()); 498], ..new(node) };
        desk.request(many, NOW).await.expect("room");
        let refused = |requested| matches!(requested, Err(RequestError::Backlog(full, 500)) if full == node);
        assert!(refused(desk.request(new(node), NOW).await));
        // Others are none the worse for it, wherever they stand beside it.
        let mut others = vec![node];
        while others.iter().all(|other| *other <= node) || others.iter().all(|other| *other >= node) {
            others.push(world.node().await.0);
        }
        let meant = |nodes: &[NodeId]| nodes.iter().map(|node| (*node, acme())).collect();
        assert!(refused(desk.request(NewRequest { nodes: meant(&others), ..new(node) }, NOW).await));
        let others: Vec<NodeId> = others.into_iter().filter(|other| *other != node).collect();
        let taken = desk.request(NewRequest { nodes: meant(&others), ..new(node) }, NOW).await.expect("taken");
        assert_eq!(taken.commands.len(), others.len());
        world.close().await;
    }
}

async fn second_node(world: &World) -> (NodeId, ()) {
    let token = world.token(protocol::NodeKind::Agent, Some("plant-2")).await;
    let enrolled = world.enroll(&token, &crate::setup::key(), NOW).await.expect("enrolled");
    (crate::setup::identity(&enrolled.certificate_chain).node, ())
}
