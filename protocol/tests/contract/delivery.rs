//! Numbered delivery: a node and a hub in one process, with simulated time, latency, cuts, restarts and damage on
//! either side. However it goes, every number ends up in the hub's store once: as what was written, or as lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use protocol::delivery::{DeliveryError, Inbox, Outbox, Verdict, WINDOW_BATCHES, WINDOW_BYTES};
use protocol::message::{Acknowledge, Batch, Lost, LostReason, SpoolRange, ToHub, ToNode, Upload, upload};
use protocol::session::{HubOutput, HubSession, NodeOutput, NodeSession};
use protocol::telemetry::{Decoder, Encoder, Row, Schema};
use protocol::{Sequence, SessionId, SpoolEpoch, Timestamp, metrics, version};

proptest! {
    #[test]
    fn every_number_is_accounted_for_once(events in prop::collection::vec(event(), 1..300)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        world.settle();
        world.check();
    }
}

#[test]
fn a_healthy_pair_loses_nothing_and_sends_nothing_twice() {
    let mut world = World::new();
    for round in 0..300 {
        world.happen(Event::Write { key: round % 50 == 0 });
        world.happen(Event::Send(2));
        world.happen(Event::Wait(30));
        world.happen(Event::Commit);
    }
    world.settle();
    world.check();
    assert_eq!((world.hub.duplicates, world.hub.store.len()), (0, 300));
    assert!(world.hub.store.values().all(Option::is_some));
}

#[test]
fn a_reconnect_goes_back_to_the_key_batch_and_counts_nothing_twice() {
    let mut world = World::new();
    for round in 0..10 {
        world.happen(Event::Write { key: round == 4 });
    }
    world.settle();
    world.happen(Event::Cut);
    world.happen(Event::Write { key: false });
    world.settle();
    world.check();
    assert_eq!((world.hub.duplicates, world.hub.store.len()), (6, 11));
}

#[test]
fn a_damaged_record_costs_itself_and_what_continues_from_it() {
    let mut world = World::new();
    for round in 0..12 {
        world.happen(Event::Write { key: round % 4 == 0 });
    }
    world.happen(Event::Corrupt(5));
    world.settle();
    world.check();
    let lost: Vec<u64> = world.hub.store.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key.1).collect();
    assert_eq!(lost, [6, 7, 8]);
}

#[test]
fn the_window_bounds_what_is_in_flight() {
    let open = || Outbox::open(&range(1, 1_000), None, |_| Some(Sequence(1))).expect("good");
    let mut outbox = open();
    let mut sent = 0;
    while outbox.next().is_some() {
        outbox.batch(true, vec![0; 10]);
        sent += 1;
    }
    assert_eq!(sent, WINDOW_BATCHES);
    assert_eq!(outbox.acknowledge(&ack(1, 3)), Ok(Some(Sequence(3))));
    assert_eq!(outbox.next(), Some(Sequence(WINDOW_BATCHES as u64 + 1)));

    let mut outbox = open();
    outbox.batch(true, vec![0; 2 * WINDOW_BYTES]);
    assert_eq!(outbox.next(), None, "one large batch fills the window, but it goes");
    assert_eq!(outbox.acknowledge(&ack(1, 1)), Ok(Some(Sequence(1))));
    assert_eq!(outbox.next(), Some(Sequence(2)));

    // A smaller one, by batches and by bytes.
    for (batches, bytes) in [(2, 1_000), (9, 15)] {
        let mut outbox = open().within(batches, bytes);
        for _ in 0..2 {
            assert!(outbox.next().is_some(), "{batches} batches, {bytes} bytes");
            outbox.batch(true, vec![0; 10]);
        }
        assert_eq!(outbox.next(), None, "{batches} batches, {bytes} bytes");
    }
}

#[test]
fn a_spool_set_back_is_noticed() {
    let opened = Outbox::open(&range(1, 40), Some(&ack(1, 50)), |_| None);
    let error = opened.expect_err("41 to 50 are taken");
    assert_eq!(error, DeliveryError::HubAhead { stored: Sequence(50), last: Sequence(40) });
    assert!(error.to_string().contains("start a new spool epoch"));
    assert!(Outbox::open(&range(1, 40), Some(&ack(2, 50)), |_| None).is_ok(), "another epoch's numbers are others");
}

#[test]
fn acknowledgements_are_checked() {
    let mut outbox = Outbox::open(&range(1, 9), Some(&ack(1, 2)), |_| None).expect("good");
    outbox.batch(true, vec![]);
    assert_eq!(
        outbox.acknowledge(&ack(1, 4)),
        Err(DeliveryError::NeverSent { through: Sequence(4), sent: Sequence(3) })
    );
    assert!(matches!(outbox.acknowledge(&ack(2, 3)), Err(DeliveryError::Epoch { .. })));
    assert_eq!(outbox.acknowledge(&ack(1, 1)), Ok(None), "an old one says nothing new");
    assert_eq!(outbox.acknowledge(&ack(1, 3)), Ok(Some(Sequence(3))));
    assert!(!outbox.is_settled());
}

#[test]
fn the_hub_refuses_what_does_not_follow() {
    let batch = |epoch, sequence| Batch { epoch, sequence, body: vec![] };
    let lost = |first, last| Lost { epoch: 1, first, last, reason: 0 };
    let mut inbox = Inbox::open(SpoolEpoch(1), Some(Sequence(5)));
    assert_eq!(inbox.position(), Some(ack(1, 5)));
    let gap = DeliveryError::Gap { expected: Sequence(6), found: Sequence(7) };
    assert_eq!(inbox.batch(&batch(1, 7), true), Err(gap.clone()));
    assert_eq!(inbox.lost(&lost(7, 8)), Err(gap));
    assert!(matches!(inbox.batch(&batch(2, 6), true), Err(DeliveryError::Epoch { .. })));
    assert_eq!(inbox.batch(&batch(1, 4), false), Err(DeliveryError::NotKey(Sequence(4))));
    for (first, last) in [(0, 3), (5, 4), (1, u64::MAX)] {
        assert_eq!(inbox.lost(&lost(first, last)), Err(DeliveryError::Number { first, last }));
    }
    assert_eq!(inbox.batch(&batch(1, 4), true), Ok(Verdict::Duplicate));
    assert_eq!(inbox.batch(&batch(1, 5), false), Ok(Verdict::Duplicate));
    assert_eq!(inbox.batch(&batch(1, 6), false), Ok(Verdict::Accept));
    let again = DeliveryError::Gap { expected: Sequence(7), found: Sequence(6) };
    assert_eq!(inbox.batch(&batch(1, 6), true), Err(again));
    assert_eq!(inbox.lost(&lost(7, 9)), Ok(Some(7..=9)));
    assert_eq!(inbox.batch(&batch(1, 10), false), Err(DeliveryError::NotKey(Sequence(10))));
    assert_eq!(inbox.committed(Sequence(99)), Some(ack(1, 9)), "nothing is acknowledged that was not accepted");
    assert_eq!(inbox.committed(Sequence(9)), None);
}

#[test]
fn lost_numbers_that_the_hub_has_are_not_lost() {
    let mut inbox = Inbox::open(SpoolEpoch(1), Some(Sequence(5)));
    let lost = |first, last| Lost { epoch: 1, first, last, reason: 0 };
    assert_eq!(inbox.lost(&lost(2, 4)), Ok(None));
    assert_eq!(inbox.lost(&lost(5, 7)), Ok(Some(6..=7)));
}

fn range(first: u64, last: u64) -> SpoolRange {
    SpoolRange::new(SpoolEpoch(1), Sequence(first), Sequence(last))
}

fn ack(epoch: u64, through: u64) -> Acknowledge {
    Acknowledge { epoch, through }
}

/// What may happen, in any order.
#[derive(Clone, Debug)]
enum Event {
    /// The node samples.
    Write {
        key: bool,
    },
    /// The node sends this many messages, if its window allows.
    Send(u8),
    /// Milliseconds pass, and what is due arrives.
    Wait(u16),
    /// The hub commits what it has accepted.
    Commit,
    /// The connection breaks; what the hub has accepted is still committed.
    Cut,
    RestartNode,
    /// What the hub has accepted and not committed is gone.
    RestartHub,
    /// The spool is full and drops its oldest batches, up to a key batch.
    Overflow,
    /// A record in the spool can't be read any more.
    Corrupt(u8),
    /// The node's disk is replaced.
    WipeSpool,
    /// The hub's database is set back by this many rows.
    SetBackHub(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        40 => prop::bool::weighted(0.2).prop_map(|key| Event::Write { key }),
        30 => (1..20u8).prop_map(Event::Send),
        30 => (1..400u16).prop_map(Event::Wait),
        12 => Just(Event::Commit),
        4 => Just(Event::Cut),
        3 => Just(Event::RestartNode),
        3 => Just(Event::RestartHub),
        2 => Just(Event::Overflow),
        2 => any::<u8>().prop_map(Event::Corrupt),
        1 => Just(Event::WipeSpool),
        1 => any::<u8>().prop_map(Event::SetBackHub),
    ]
}

struct World {
    now: Timestamp,
    schema: Arc<Schema>,
    node: Node,
    hub: Hub,
    link: Option<Link>,
    /// The value written under each number.
    written: BTreeMap<(u64, u64), i64>,
    harmed: bool,
}

#[derive(Default)]
struct Node {
    epoch: u64,
    last: u64,
    records: BTreeMap<u64, Record>,
    /// Last number and reason of each range that is no more.
    dropped: BTreeMap<u64, LostReason>,
    encoder: Encoder,
    session: Option<NodeSession>,
    outbox: Option<Outbox>,
}

struct Record {
    key: bool,
    /// `None`: can't be read.
    body: Option<Vec<u8>>,
}

#[derive(Default)]
struct Hub {
    store: BTreeMap<(u64, u64), Option<i64>>,
    duplicates: usize,
    session: Option<HubSession>,
    inbox: Option<Inbox>,
    decoder: Decoder,
    accepted: Vec<((u64, u64), Option<i64>)>,
}

/// Both directions, in order, each message with the time it arrives.
#[derive(Default)]
struct Link {
    to_hub: VecDeque<(Timestamp, Up)>,
    to_node: VecDeque<(Timestamp, Down)>,
}

enum Up {
    Control(ToHub),
    Telemetry(Upload),
}

enum Down {
    Control(ToNode),
    Acknowledge(Acknowledge),
}

const LATENCY: Duration = Duration::from_millis(25);

impl World {
    fn new() -> Self {
        let schema = Schema::new(vec![(metrics::UPTIME.into(), vec!["".into()])]).expect("good");
        Self {
            now: Timestamp::from_millis(1_790_000_000_000),
            schema: Arc::new(schema),
            node: Node { epoch: 1, ..Node::default() },
            hub: Hub::default(),
            link: None,
            written: BTreeMap::new(),
            harmed: false,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Write { key } => self.write(key),
            Event::Send(count) => self.send(count),
            Event::Wait(millis) => self.wait(millis.into()),
            Event::Commit => self.commit(),
            Event::Cut => {
                self.commit();
                self.cut();
            }
            Event::RestartNode => {
                self.commit();
                self.cut();
                self.node.encoder = Encoder::new();
            }
            Event::RestartHub => self.cut(),
            Event::Overflow => self.overflow(),
            Event::Corrupt(which) => {
                let count = self.node.records.len().max(1);
                if let Some(record) = self.node.records.values_mut().nth(usize::from(which) % count) {
                    record.body = None;
                    self.harmed = true;
                }
            }
            Event::WipeSpool => {
                self.commit();
                self.cut();
                self.node = Node { epoch: self.node.epoch + 1, ..Node::default() };
            }
            Event::SetBackHub(rows) => {
                self.cut();
                for _ in 0..rows {
                    self.hub.store.pop_last();
                }
                self.harmed = true;
            }
        }
    }

    fn write(&mut self, key: bool) {
        let node = &mut self.node;
        node.last += 1;
        let value = self.written.len() as i64;
        self.written.insert((node.epoch, node.last), value);
        let rows = [Row { at: self.now, values: vec![Some(value)] }];
        let batch = node.encoder.encode(&self.schema, &rows, key);
        node.records.insert(node.last, Record { key: batch.key, body: Some(batch.bytes) });
        if let Some(outbox) = &mut node.outbox {
            outbox.written(Sequence(node.last));
        }
    }

    fn send(&mut self, count: u8) {
        let (Some(link), Some(outbox)) = (&mut self.link, &mut self.node.outbox) else { return };
        for _ in 0..count {
            let Some(next) = outbox.next() else { return };
            let upload = match self.node.records.get(&next.0) {
                Some(Record { key, body: Some(body) }) => outbox.batch(*key, body.clone()),
                Some(Record { body: None, .. }) => Some(outbox.lost(next, LostReason::Corrupt)),
                None => {
                    let kept = self.node.records.range(next.0..).next().map_or(self.node.last, |(kept, _)| kept - 1);
                    let (last, reason) = match self.node.dropped.range(next.0..).next() {
                        Some((last, reason)) => ((*last).min(kept), *reason),
                        None => (kept, LostReason::Released),
                    };
                    Some(outbox.lost(Sequence(last), reason))
                }
            };
            if let Some(upload) = upload {
                link.to_hub.push_back((self.now.plus(LATENCY), Up::Telemetry(upload)));
            }
        }
    }

    fn wait(&mut self, millis: u64) {
        if self.link.is_none() {
            self.connect();
        }
        let until = self.now.plus(Duration::from_millis(millis));
        while let Some(link) = &mut self.link {
            let due = |front: Option<Timestamp>| front.filter(|due| *due <= until);
            let up = due(link.to_hub.front().map(|front| front.0));
            let down = due(link.to_node.front().map(|front| front.0));
            match (up, down) {
                (None, None) => break,
                (Some(at), other) if other.is_none_or(|other| at <= other) => {
                    self.now = at;
                    let message = link.to_hub.pop_front().expect("there is one").1;
                    self.hub_receives(message);
                }
                (_, down) => {
                    self.now = down.unwrap_or(self.now);
                    let message = link.to_node.pop_front().expect("there is one").1;
                    self.node_receives(message);
                }
            }
        }
        self.now = until;
    }

    fn connect(&mut self) {
        let node = &mut self.node;
        let first = node.records.keys().next().copied().unwrap_or(node.last + 1);
        let spool = SpoolRange::new(SpoolEpoch(node.epoch), Sequence(first), Sequence(node.last));
        let (session, hello) = NodeSession::open(version::SPOKEN, Default::default(), 1, spool, &[], self.now);
        node.session = Some(session);
        self.hub.session = Some(HubSession::open(version::SPOKEN, self.now));
        self.hub.decoder = Decoder::default();
        let link = self.link.insert(Link::default());
        link.to_hub.push_back((self.now.plus(LATENCY), Up::Control(hello)));
    }

    /// What the hub has not committed by now is gone.
    fn cut(&mut self) {
        self.link = None;
        self.node.session = None;
        self.node.outbox = None;
        self.hub.session = None;
        self.hub.inbox = None;
        self.hub.accepted.clear();
    }

    fn hub_receives(&mut self, message: Up) {
        let hub = &mut self.hub;
        match message {
            Up::Control(message) => {
                let session = hub.session.as_mut().expect("connected");
                for output in session.receive(message, self.now).expect("a good peer") {
                    let HubOutput::Hello(hello) = output else { continue };
                    let epoch = hello.spool.epoch;
                    let stored = hub.store.range((epoch, 0)..=(epoch, u64::MAX)).next_back();
                    let inbox = Inbox::open(SpoolEpoch(epoch), stored.map(|((_, number), _)| Sequence(*number)));
                    let id = SessionId::new(self.now, [1; 10]);
                    let welcome = session.welcome(id, inbox.position(), "test", None, self.now).expect("waits");
                    hub.inbox = Some(inbox);
                    let link = self.link.as_mut().expect("connected");
                    link.to_node.push_back((self.now.plus(LATENCY), Down::Control(welcome)));
                }
            }
            Up::Telemetry(upload) => {
                let inbox = hub.inbox.as_mut().expect("welcomed");
                match upload.message.expect("known") {
                    upload::Message::Batch(batch) => {
                        let key = batch.body.first() == Some(&1);
                        let verdict = inbox.batch(&batch, key).expect("in order");
                        let mut value = None;
                        hub.decoder.decode(&batch.body, |_, _, values| value = values[0]).expect("it continues");
                        match verdict {
                            Verdict::Accept => hub.accepted.push(((batch.epoch, batch.sequence), value)),
                            Verdict::Duplicate => hub.duplicates += 1,
                        }
                    }
                    upload::Message::Lost(lost) => {
                        for number in inbox.lost(&lost).expect("in order").into_iter().flatten() {
                            hub.accepted.push(((lost.epoch, number), None));
                        }
                    }
                    upload::Message::Snapshot(_) => {}
                }
            }
        }
    }

    fn commit(&mut self) {
        let Some((last, _)) = self.hub.accepted.last().copied() else { return };
        for (number, value) in self.hub.accepted.drain(..) {
            assert_eq!(self.hub.store.insert(number, value), None, "{number:?} is stored twice");
        }
        let inbox = self.hub.inbox.as_mut().expect("it accepted");
        if let (Some(link), Some(acknowledge)) = (&mut self.link, inbox.committed(Sequence(last.1))) {
            link.to_node.push_back((self.now.plus(LATENCY), Down::Acknowledge(acknowledge)));
        }
    }

    fn node_receives(&mut self, message: Down) {
        let node = &mut self.node;
        match message {
            Down::Control(message) => {
                let session = node.session.as_mut().expect("connected");
                for output in session.receive(message, self.now).expect("a good peer") {
                    let NodeOutput::Welcomed(welcomed) = output else { continue };
                    let first = node.records.keys().next().copied().unwrap_or(node.last + 1);
                    let spool = SpoolRange::new(SpoolEpoch(node.epoch), Sequence(first), Sequence(node.last));
                    let key = |at: Sequence| key_at_or_before(&node.records, at.0).map(Sequence);
                    node.outbox = Some(Outbox::open(&spool, welcomed.stored.as_ref(), key).expect("never set back"));
                }
            }
            Down::Acknowledge(acknowledge) => {
                let outbox = node.outbox.as_mut().expect("welcomed");
                if let Some(through) = outbox.acknowledge(&acknowledge).expect("a good peer")
                    && let Some(key) = key_at_or_before(&node.records, through.0 + 1)
                {
                    node.records = node.records.split_off(&key);
                }
            }
        }
    }

    fn overflow(&mut self) {
        let mut keys = self.node.records.iter().filter(|(_, record)| record.key).map(|(number, _)| *number);
        let Some(second) = keys.nth(1) else { return };
        self.node.records = self.node.records.split_off(&second);
        self.node.dropped.insert(second - 1, LostReason::Overflow);
        self.harmed = true;
    }

    fn settle(&mut self) {
        for _ in 0..1_000 {
            self.send(64);
            self.wait(100);
            self.commit();
            if self.node.outbox.as_ref().is_some_and(Outbox::is_settled) {
                return;
            }
        }
        panic!("nothing moves any more: {:?}", self.node.outbox);
    }

    fn check(&self) {
        for number in 1..=self.node.last {
            assert!(self.hub.store.contains_key(&(self.node.epoch, number)), "{number} is unaccounted for");
        }
        let mut before = (0, 0);
        for (number, value) in &self.hub.store {
            let expected = if number.0 == before.0 { before.1 + 1 } else { 1 };
            assert_eq!(number.1, expected, "a hole in epoch {}", number.0);
            before = *number;
            match value {
                Some(value) => assert_eq!(self.written.get(number), Some(value)),
                None => assert!(self.harmed, "{number:?} is lost though nothing was harmed"),
            }
        }
    }
}

fn key_at_or_before(records: &BTreeMap<u64, Record>, number: u64) -> Option<u64> {
    records.range(..=number).rev().find(|(_, record)| record.key).map(|(number, _)| *number)
}
