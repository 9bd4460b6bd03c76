//! Commands: a hub's rows and a node's journal, killed and cut apart at every point, never give one command two effects,
//! and every state that is left is true.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use protocol::command::{
    Action, Ending, MAX_OUTPUT, NodeCommands, Order, Phase, REMEMBERED, Record, State, Step, TooMany, WINDOW,
};
use protocol::message::{Command, CommandState, to_hub};
use protocol::{CommandId, NodeId, Timestamp};

const MINUTE: Duration = Duration::from_secs(60);

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn id(number: u32) -> CommandId {
    let mut random = [0; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    CommandId::new(at(1_790_000_000_000 + i64::from(number)), random)
}

fn order(number: u32) -> Order {
    Order {
        id: id(number),
        action: Action::Drain,
        remaining: MINUTE,
        priority: 0,
        arguments: Action::Drain.to_bytes(),
        signature: None,
    }
}

fn saved(steps: &[Step]) -> Vec<Record> {
    let saved = steps.iter().filter_map(|step| match step {
        Step::Save(record) => Some(record.clone()),
        _ => None,
    });
    saved.collect()
}

fn started(steps: &[Step]) -> Vec<CommandId> {
    let started = steps.iter().filter_map(|step| match step {
        Step::Start { id, .. } => Some(*id),
        _ => None,
    });
    started.collect()
}

fn told(commands: &mut NodeCommands) -> Vec<(CommandId, CommandState)> {
    let mut all = Vec::new();
    while let Some(message) = commands.next_message() {
        if let to_hub::Message::Outcome(outcome) = message {
            all.push((CommandId::from_bytes(&outcome.command_id).expect("an id"), outcome.state()));
        }
    }
    all
}

fn done() -> Ending {
    Ending::new(CommandState::Succeeded, "done")
}

#[test]
fn a_command_is_written_down_before_it_is_accepted_begun_and_told() {
    let mut node = NodeCommands::default();
    let accepted = node.order(order(1), Ok(()), at(0)).expect("room");
    assert_eq!(accepted, [Step::Save(Record { id: id(1), phase: Phase::Accepted })]);
    assert_eq!(told(&mut node), [(id(1), CommandState::Accepted)]);
    let begun = node.start(at(1));
    assert_eq!(begun[0], Step::Save(Record { id: id(1), phase: Phase::Started }), "before it starts");
    assert_eq!(started(&begun[1..]), [id(1)]);
    assert_eq!(told(&mut node), [(id(1), CommandState::Running)]);
    node.output(id(1), b"line\n");
    let ended = node.ended(id(1), done());
    assert!(matches!(&saved(&ended)[..], [Record { phase: Phase::Ended { output, .. }, .. }] if output == b"line\n"));
    assert!(matches!(node.next_message(), Some(to_hub::Message::Output(output)) if output.data == b"line\n"));
    assert_eq!(told(&mut node), [(id(1), CommandState::Succeeded)]);
    assert_eq!(saved(&node.stored(id(1))), [Record { id: id(1), phase: Phase::Settled(CommandState::Succeeded) }]);
    assert_eq!(node.next_message(), None);
}

#[test]
fn what_cannot_be_written_down_is_not_done() {
    let mut node = NodeCommands::default();
    node.order(order(1), Ok(()), at(0)).expect("room");
    node.unsaved(id(1));
    assert_eq!(node.start(at(1)), []);
    assert_eq!(told(&mut node), [(id(1), CommandState::Failed)]);
    node.order(order(2), Ok(()), at(0)).expect("room");
    node.start(at(1));
    node.unsaved(id(2));
    assert_eq!((node.running(), told(&mut node)), (0, vec![(id(2), CommandState::Failed)]));
}

#[test]
fn what_was_begun_when_the_process_ended_is_unknown_and_never_begun_again() {
    let mut node = NodeCommands::default();
    let mut journal = saved(&node.order(order(1), Ok(()), at(0)).expect("room"));
    journal.extend(saved(&node.start(at(1))));
    let (mut node, steps) = NodeCommands::restore(journal.clone());
    journal.extend(saved(&steps));
    assert!(matches!(&journal[2].phase, Phase::Ended { ending, .. } if ending.state == CommandState::Unknown));
    node.connected();
    assert_eq!(told(&mut node), [(id(1), CommandState::Unknown)]);
    assert_eq!(node.order(order(1), Ok(()), at(0)), Ok(vec![]));
    assert_eq!(started(&node.start(at(1))), []);
    assert_eq!(told(&mut node), [(id(1), CommandState::Unknown)]);
    let (_, again) = NodeCommands::restore(journal);
    assert_eq!(again, [], "it is written down once");
}

/// The monotonic clock begins anew with a reboot, and the wall clock may be anything.
#[test]
fn what_was_accepted_and_not_begun_waits_for_the_hub_to_say_how_long_it_may() {
    let mut node = NodeCommands::default();
    let journal = saved(&node.order(order(1), Ok(()), at(86_400_000)).expect("room"));
    let restored = || NodeCommands::restore(journal.clone()).0;
    let mut node = restored();
    assert_eq!((started(&node.start(at(0))), node.deadline()), (vec![], None));
    assert_eq!(node.order(order(1), Ok(()), at(5)), Ok(vec![]), "it is written down already");
    assert_eq!(started(&node.start(at(5))), [id(1)]);

    let mut node = restored();
    let over = Order { remaining: Duration::ZERO, ..order(1) };
    node.order(over, Ok(()), at(5)).expect("known");
    assert_eq!((started(&node.start(at(5))), told(&mut node)), (vec![], vec![(id(1), CommandState::Expired)]));
}

#[test]
fn nothing_begins_after_its_deadline_and_what_began_before_it_ends() {
    let mut node = NodeCommands::default();
    for number in 1..=5 {
        node.order(order(number), Ok(()), at(0)).expect("room");
    }
    let begun: usize = (0..5).map(|_| started(&node.start(at(1))).len()).sum();
    assert_eq!((begun, node.deadline()), (4, Some(at(60_000))), "the fifth waits");
    let expired = node.start(at(60_000));
    assert_eq!((started(&expired), saved(&expired).len()), (vec![], 1));
    node.ended(id(1), done());
    assert_eq!(started(&node.start(at(60_001))), []);
    let told = told(&mut node);
    assert!(
        told.contains(&(id(1), CommandState::Succeeded)) && told.contains(&(id(5), CommandState::Expired)),
        "{told:?}"
    );
}

#[test]
fn the_most_urgent_starts_first_and_then_the_oldest() {
    let mut node = NodeCommands::default();
    for (number, priority) in [(3, 0), (2, 5), (1, 0), (4, 5)] {
        node.order(Order { priority, ..order(number) }, Ok(()), at(0)).expect("room");
    }
    let begun: Vec<_> = (0..4).flat_map(|_| started(&node.start(at(1)))).collect();
    assert_eq!(begun, [id(2), id(4), id(1), id(3)]);
}

#[test]
fn commands_on_one_service_or_stack_and_runs_of_one_script_go_one_after_the_other() {
    let service = |name: &str| ("shop".to_owned(), name.to_owned());
    let stop = |name| Action::ServiceStop { stack: service(name).0, service: service(name).1 };
    let start = |name| Action::ServiceStart { stack: service(name).0, service: service(name).1 };
    let backup = || Action::Backup { stack: "shop".into() };
    let script = |name: &str| Action::Script { name: name.into() };
    let elsewhere = || Action::ServiceRestart { stack: "press".into(), service: "web".into() };
    let logs = || Action::ServiceLogs { stack: "shop".into(), service: "web".into(), lines: 1 };
    let begun = |node: &mut NodeCommands| (0..9).flat_map(|_| started(&node.start(at(1)))).collect::<Vec<_>>();
    // What is given, in its order; what of that begins; what begins once the first has ended.
    let cases = [
        (vec![stop("web"), start("web"), start("web")], vec![1], vec![2]),
        (vec![stop("web"), start("web"), start("db"), elsewhere(), logs()], vec![1, 3, 4, 5], vec![2]),
        (vec![backup(), start("web"), start("db"), elsewhere()], vec![1, 4], vec![2, 3]),
        (vec![stop("web"), backup(), stop("db"), elsewhere()], vec![1, 4], vec![2]),
        (vec![script("rotate"), script("rotate"), script("clean")], vec![1, 3], vec![2]),
    ];
    for (actions, first, then) in cases {
        let mut node = NodeCommands::default();
        for (number, action) in (1..).zip(actions.clone()) {
            node.order(Order { action, ..order(number) }, Ok(()), at(0)).expect("room");
        }
        let ids = |numbers: Vec<u32>| numbers.into_iter().map(id).collect::<Vec<_>>();
        assert_eq!(begun(&mut node), ids(first), "{actions:?}");
        node.ended(id(1), done());
        assert_eq!(begun(&mut node), ids(then), "{actions:?}");
    }
}

#[test]
fn a_refusal_is_told_and_leaves_nothing_behind() {
    let mut node = NodeCommands::default();
    assert_eq!(node.order(order(1), Err("not here".into()), at(0)), Ok(vec![]));
    assert_eq!(told(&mut node), [(id(1), CommandState::Refused)]);
    assert_eq!(node.records(), []);
    assert_eq!((node.stored(id(1)), node.records()), (vec![], vec![]));
}

#[test]
fn a_command_that_is_taken_back_before_it_came_is_not_begun_when_it_comes() {
    let mut node = NodeCommands::default();
    let journal = saved(&node.cancel(id(1)).expect("room"));
    let (mut node, _) = NodeCommands::restore(journal);
    node.order(order(1), Ok(()), at(0)).expect("known");
    assert_eq!((started(&node.start(at(0))), told(&mut node)), (vec![], vec![(id(1), CommandState::Cancelled)]));

    node.order(order(2), Ok(()), at(0)).expect("room");
    node.cancel(id(2)).expect("known");
    assert_eq!((started(&node.start(at(0))), told(&mut node)), (vec![], vec![(id(2), CommandState::Cancelled)]));
    node.order(order(3), Ok(()), at(0)).expect("room");
    node.start(at(0));
    assert_eq!(node.cancel(id(3)), Ok(vec![Step::Stop(id(3))]), "what runs says itself how it ended");
}

#[test]
fn a_node_remembers_for_ever_that_it_has_known_a_command() {
    let mut node = NodeCommands::default();
    let last = REMEMBERED as u32 + 10;
    for number in 1..=last {
        node.order(order(number), Ok(()), at(0)).expect("room");
        node.start(at(0));
        node.ended(id(number), done());
        node.stored(id(number));
    }
    assert_eq!(node.records().len(), REMEMBERED + 1, "bounded");
    let (mut node, _) = NodeCommands::restore(node.records());
    for number in 1..=last {
        node.order(order(number), Ok(()), at(0)).expect("room");
        assert_eq!(started(&node.start(at(0))), []);
        let word = if number <= 10 { CommandState::Unknown } else { CommandState::Succeeded };
        assert_eq!(told(&mut node), [(id(number), word)]);
        node.stored(id(number));
    }
    node.order(order(last + 1), Ok(()), at(0)).expect("room");
    assert_eq!(started(&node.start(at(0))), [id(last + 1)]);
}

#[test]
fn a_hub_that_sends_too_many_is_stopped_and_a_forgetful_one_is_not() {
    let mut node = NodeCommands::default();
    let most = 2 * WINDOW as u32;
    let mut journal: Vec<Record> =
        (1..=most).flat_map(|number| saved(&node.order(order(number), Ok(()), at(0)).expect("room"))).collect();
    assert_eq!(node.order(order(most + 1), Ok(()), at(0)), Err(TooMany));
    let (mut node, _) = NodeCommands::restore(journal.clone());
    journal.extend(saved(&node.order(order(most + 1), Ok(()), at(0)).expect("what nobody asks for gives way")));
    assert_eq!(started(&node.start(at(0))), [id(most + 1)]);
    node.order(order(1), Ok(()), at(0)).expect("known");
    assert_eq!(started(&node.start(at(0))), [], "what gave way is not begun");
}

#[test]
fn output_is_bounded_counted_and_told_again_in_the_next_session() {
    let mut node = NodeCommands::default();
    node.order(order(1), Ok(()), at(0)).expect("room");
    node.start(at(0));
    for _ in 0..10 {
        node.output(id(1), &vec![b'x'; MAX_OUTPUT / 8]);
    }
    let read = |node: &mut NodeCommands| {
        let (mut bytes, mut end) = (0, None);
        while let Some(message) = node.next_message() {
            match message {
                to_hub::Message::Output(output) => {
                    assert_eq!(output.offset, bytes);
                    bytes += output.data.len() as u64;
                }
                to_hub::Message::Outcome(outcome) => end = Some(outcome),
                other => panic!("{other:?}"),
            }
        }
        (bytes, end.expect("an outcome"))
    };
    assert_eq!(read(&mut node).0, MAX_OUTPUT as u64, "as it comes");
    node.ended(id(1), done());
    let (bytes, outcome) = read(&mut node);
    assert_eq!((bytes, outcome.output_bytes, outcome.output_dropped), (0, MAX_OUTPUT as u64, MAX_OUTPUT as u64 / 4));
    node.connected();
    assert_eq!(read(&mut node).0, MAX_OUTPUT as u64);
}

#[test]
fn a_command_that_no_one_could_carry_out_is_not_read() {
    for action in [
        Action::ServiceRestart { stack: "a/b".into(), service: "web".into() },
        Action::ServiceStop { stack: "shop".into(), service: String::new() },
        Action::ServiceLogs { stack: "shop".into(), service: "web".into(), lines: 0 },
        Action::TelemetryInterval { interval: Duration::from_millis(1) },
        Action::Script { name: "../../bin/sh".into() },
        Action::KafkaAcl { bridge: NodeId::new(at(1), [1; 10]), topics: vec!["*".into()] },
        Action::KafkaAcl { bridge: NodeId::new(at(1), [1; 10]), topics: vec!["a b".into()] },
        Action::KafkaAcl { bridge: NodeId::new(at(1), [1; 10]), topics: vec!["a".into(); 65] },
    ] {
        let command = Command { arguments: action.to_bytes(), ..Command::default() };
        let said = Order::read(id(1), &command).expect_err("refused").to_string();
        assert!(said.contains("use "), "{said}");
    }
    assert!(Order::read(id(1), &Command { arguments: vec![0xff], ..Command::default() }).is_err());
    assert!(Order::read(id(1), &Command::default()).is_err());
}

/// A small random number generator, so that a seed tells the whole story (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// A row of the hub's.
struct Row {
    state: State,
    told: bool,
    cancel: bool,
    deadline: Timestamp,
}

enum ToNode {
    Order(Box<Order>),
    Cancel(CommandId),
    Stored(CommandId),
}

/// One node and its hub, with what lies between them.
struct World {
    dice: Dice,
    now: i64,
    rows: BTreeMap<CommandId, Row>,
    /// What the hub's session has sent; gone with it.
    sent: BTreeSet<CommandId>,
    down: VecDeque<ToNode>,
    up: VecDeque<to_hub::Message>,
    node: NodeCommands,
    /// When the node's process began: its clock counts from there.
    born: i64,
    journal: Vec<Record>,
    running: Vec<CommandId>,
    effects: BTreeMap<CommandId, u32>,
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            dice: Dice(seed),
            now: 0,
            rows: BTreeMap::new(),
            sent: BTreeSet::new(),
            down: VecDeque::new(),
            up: VecDeque::new(),
            node: NodeCommands::default(),
            born: 0,
            journal: Vec::new(),
            running: Vec::new(),
            effects: BTreeMap::new(),
            calm: false,
        }
    }

    fn trouble(&mut self, one_in: u64) -> bool {
        !self.calm && self.dice.one_in(one_in)
    }

    /// Does what the node is to do, and may lose power before and after each step.
    fn drive(&mut self, steps: Vec<Step>) {
        for step in steps {
            if self.trouble(40) {
                return self.power_cut();
            }
            match step {
                Step::Save(record) => self.journal.push(record),
                Step::Start { id, .. } => {
                    *self.effects.entry(id).or_default() += 1;
                    self.running.push(id);
                }
                Step::Stop(_) => {}
            }
            if self.trouble(40) {
                return self.power_cut();
            }
        }
    }

    fn power_cut(&mut self) {
        self.running.clear();
        self.born = self.now;
        let (node, steps) = NodeCommands::restore(self.journal.clone());
        self.node = node;
        self.journal.extend(saved(&steps));
        self.journal = if self.dice.one_in(3) { self.node.records() } else { std::mem::take(&mut self.journal) };
        self.session();
    }

    /// A new session: what was on its way is lost, and the hub knows its rows alone.
    fn session(&mut self) {
        self.down.clear();
        self.up.clear();
        self.sent.clear();
        self.node.connected();
    }

    fn hub_sends(&mut self) {
        let now = at(self.now);
        for (id, row) in &mut self.rows {
            let unsure = row.state == State::Unknown && !row.told;
            if self.sent.len() >= WINDOW || !(row.state.is_open() || unsure) || !self.sent.insert(*id) {
                continue;
            }
            if row.cancel {
                self.down.push_back(ToNode::Cancel(*id));
                continue;
            }
            // The row comes before the packet.
            if row.state == State::Queued {
                row.state = State::Delivered;
            }
            let order = Order { id: *id, remaining: row.deadline.since(now), ..order(0) };
            self.down.push_back(ToNode::Order(Box::new(order.clone())));
            if !self.calm && self.dice.one_in(5) {
                self.down.push_back(ToNode::Order(Box::new(order)));
            }
        }
    }

    fn hub_hears(&mut self) {
        let Some(to_hub::Message::Outcome(outcome)) = self.up.pop_front() else { return };
        let id = CommandId::from_bytes(&outcome.command_id).expect("an id");
        let row = self.rows.get_mut(&id).expect("a row");
        if let Some(next) = row.state.after(outcome.state(), row.told) {
            row.state = next;
        }
        row.told |= outcome.state().is_end();
        if outcome.state().is_end() && !self.trouble(4) {
            self.sent.remove(&id);
            self.down.push_back(ToNode::Stored(id));
        }
    }

    fn node_hears(&mut self) {
        let now = at(self.now - self.born);
        let steps = match self.down.pop_front() {
            Some(ToNode::Order(order)) => self.node.order(*order, Ok(()), now).expect("within the window"),
            Some(ToNode::Cancel(id)) => self.node.cancel(id).expect("within the window"),
            Some(ToNode::Stored(id)) => self.node.stored(id),
            None => return,
        };
        self.drive(steps);
    }

    fn node_works(&mut self) {
        let begun = self.node.start(at(self.now - self.born));
        self.drive(begun);
        if !self.running.is_empty() && (self.calm || self.dice.one_in(3)) {
            let id = self.running.remove(0);
            let ended = self.node.ended(id, done());
            self.drive(ended);
        }
    }

    fn step(&mut self) {
        self.now += self.dice.roll(400) as i64;
        self.hub_sends();
        for _ in 0..1 + self.dice.roll(4) {
            self.node_hears();
            self.node_works();
            if let Some(message) = self.node.next_message() {
                self.up.push_back(message);
            }
            self.hub_hears();
        }
        if self.trouble(20) {
            self.session();
        }
        if self.trouble(25) {
            self.power_cut();
        }
        // The hub's timer. It can't know better while the node is away.
        let now = at(self.now);
        for row in self.rows.values_mut().filter(|row| row.deadline <= now) {
            row.state = row.state.past_deadline();
        }
    }
}

#[test]
fn five_thousand_commands_through_power_cuts_and_lost_acknowledgements_have_one_effect_each_at_most() {
    let (mut unknown, mut succeeded, mut other) = (0, 0, 0);
    for seed in 1..=50 {
        let mut world = World::new(seed);
        for number in 1..=100 {
            let row = Row {
                state: State::Queued,
                told: false,
                cancel: false,
                deadline: at(world.now + 2_000 + world.dice.roll(30_000) as i64),
            };
            world.rows.insert(id(number), row);
            if world.dice.one_in(8) {
                let victim = id(1 + world.dice.roll(u64::from(number)) as u32);
                let row = world.rows.get_mut(&victim).expect("a row");
                row.state = row.state.taken_back();
                row.cancel = row.state.is_open();
                world.sent.remove(&victim);
            }
            world.step();
        }
        world.calm = true;
        world.session();
        for _ in 0..600 {
            world.step();
        }
        for (id, row) in &world.rows {
            let effects = world.effects.get(id).copied().unwrap_or(0);
            assert!(effects <= 1, "seed {seed}: {id} had {effects} effects");
            assert!(!row.state.is_open(), "seed {seed}: {id} is {} for ever", row.state);
            match row.state {
                State::Succeeded => assert_eq!(effects, 1, "seed {seed}: {id}"),
                State::Unknown => assert!(row.told, "seed {seed}: {id}: the node is there, and was not asked"),
                _ => assert_eq!(effects, 0, "seed {seed}: {id} is {}", row.state),
            }
            *match row.state {
                State::Succeeded => &mut succeeded,
                State::Unknown => &mut unknown,
                _ => &mut other,
            } += 1;
        }
    }
    assert!(succeeded > 2_000 && unknown > 50 && other > 50, "{succeeded} {unknown} {other}: the dice were too kind");
}
