//! A connection by itself, and with a broker that does what the test says.

use futures_util::{SinkExt, StreamExt};
use protocol::message::MqttStatus;
use rumqttc::mqttbytes::{QoS, v4};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::Framed;

use super::*;
use crate::class::Class;
use crate::config::{Config, RouteConfig};
use crate::lanes::{Lane, Told, Ways};
use crate::sparkplug::{self, Message, Tables};

/// Nothing takes so long when all is well.
const LONG: Duration = Duration::from_secs(30);

/// A connection, and what is on both sides of it: the broker and the log.
struct Rig {
    listener: TcpListener,
    lane: Arc<Lane>,
    told: Arc<Told>,
    counters: Arc<Counters>,
    standing: Connection,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    /// Payloads that came to the log, in their order.
    stored: Vec<String>,
    _folder: TempDir,
}

/// The broker's end of a connection.
type Broker = Framed<TcpStream, v4::Codec>;

impl Rig {
    async fn start(qos: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text = format!("name = 'm'\naddress = '{}'\nqos = {qos}", listener.local_addr().unwrap());
        let mqtt: MqttConfig = toml::from_str(&text).unwrap();
        let route = RouteConfig { from: Some("#".into()), to: Some("x".into()), ..RouteConfig::default() };
        let config = Config { state_dir: folder.path().to_owned(), route: vec![route], ..Config::default() };
        let routes = Routes::new(&config.route).unwrap();
        let mut lanes = Lanes::new(&Class::all(&config));
        let (acknowledged, told) = lanes.connect(folder.path(), "m", Ways::of("m", &routes, &config)).unwrap();
        let (lane, counters) = (lanes.lane(0).unwrap(), Arc::<Counters>::default());
        let standing = Connection::new("m");
        let parts = Parts {
            index: 0,
            bridge: "b".into(),
            subscriptions: Subscriptions::begin(folder.path(), "m", routes.filters("m")).unwrap(),
            mapping: Mapping::new(routes.ways("m"), Tables::in_memory()),
            routes: watch::Sender::new(Arc::new(routes)).subscribe(),
            lanes: Arc::new(lanes),
            acknowledged,
            counters: Arc::clone(&counters),
            standing: standing.clone(),
            clock: Clock::system(),
            longest: 1 << 20,
        };
        let stop = CancellationToken::new();
        let source = Source::new(mqtt, parts).unwrap();
        let thread = source.start(stop.clone(), CancellationToken::new().drop_guard()).unwrap();
        let (thread, stored) = (Some(thread), Vec::new());
        Self { listener, lane, told, counters, standing, stop, thread, stored, _folder: folder }
    }

    /// The bridge connects, and the broker knows its session.
    async fn accept(&self) -> Broker {
        self.accept_with(v4::SubscribeReasonCode::Success(QoS::ExactlyOnce)).await
    }

    /// The same, and subscriptions are answered so.
    async fn accept_with(&self, code: v4::SubscribeReasonCode) -> Broker {
        let (stream, _) = self.listener.accept().await.unwrap();
        let codec = v4::Codec { max_incoming_size: 1 << 20, max_outgoing_size: 1 << 20 };
        let mut broker = Framed::new(stream, codec);
        assert!(matches!(next(&mut broker).await, v4::Packet::Connect(_)));
        let welcome = v4::ConnAck::new(v4::ConnectReturnCode::Success, true);
        broker.send(v4::Packet::ConnAck(welcome)).await.unwrap();
        let v4::Packet::Subscribe(asked) = next(&mut broker).await else { panic!("no subscription") };
        let codes = vec![code; asked.filters.len()];
        broker.send(v4::Packet::SubAck(v4::SubAck::new(asked.pkid, codes))).await.unwrap();
        broker
    }

    /// Waits until the connection stands so.
    async fn stands(&self, so: impl Fn(&MqttStatus) -> bool) {
        let wait = async {
            while !so(&self.standing.status()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(LONG, wait).await.is_ok(), "{:?}", self.standing.status());
    }

    /// Waits until so many messages came to the log; gives the last number.
    async fn take(&mut self, count: usize) -> u64 {
        let came = async {
            while self.lane.intake.given() < count as u64 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(LONG, came).await.is_ok(), "{} of {count} came", self.lane.intake.given());
        let mut last = 0;
        while self.stored.len() < count {
            for submission in self.lane.intake.take().unwrap() {
                last = submission.number.unwrap();
                self.stored.push(payload(&submission));
            }
        }
        last
    }

    /// The same, and the log has them on disk.
    async fn store(&mut self, count: usize) {
        let last = self.take(count).await;
        self.told.tell(0, last);
    }

    /// Ends it; gives all that came to the log.
    fn finish(mut self) -> Vec<String> {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
        self.lane.intake.close();
        while let Some(rest) = self.lane.intake.take() {
            self.stored.extend(rest.iter().map(payload));
        }
        self.stored
    }
}

fn payload(submission: &Submission) -> String {
    String::from_utf8(Record::decode(&submission.record).unwrap().payload.to_vec()).unwrap()
}

async fn next(broker: &mut Broker) -> v4::Packet {
    tokio::time::timeout(LONG, broker.next()).await.unwrap().unwrap().unwrap()
}

/// Sends a message; `again` says that it may have come before.
async fn publish(broker: &mut Broker, qos: QoS, packet_id: u16, payload: &str, again: bool) {
    let message = v4::Publish::new("t", qos, payload);
    broker.send(v4::Packet::Publish(v4::Publish { pkid: packet_id, dup: again, ..message })).await.unwrap();
}

/// The next acknowledgement: its packet id.
async fn acknowledged(broker: &mut Broker) -> u16 {
    match next(broker).await {
        v4::Packet::PubAck(v4::PubAck { pkid }) | v4::Packet::PubRec(v4::PubRec { pkid }) => pkid,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_new_message_with_quality_of_service_2_is_stored_whatever_its_packet_id_was_used_for() {
    let mut rig = Rig::start(2).await;
    let mut broker = rig.accept().await;
    publish(&mut broker, QoS::ExactlyOnce, 1, "one", false).await;
    rig.store(1).await;
    assert_eq!(acknowledged(&mut broker).await, 1);
    // It loses what it knew of that message, and not the session.
    drop(broker);
    let mut broker = rig.accept().await;
    publish(&mut broker, QoS::ExactlyOnce, 1, "two", false).await;
    rig.store(2).await;
    assert_eq!(acknowledged(&mut broker).await, 1);
    // The acknowledgement got lost.
    publish(&mut broker, QoS::ExactlyOnce, 1, "two", true).await;
    assert_eq!(acknowledged(&mut broker).await, 1);
    // What says that it comes again, and is another.
    publish(&mut broker, QoS::ExactlyOnce, 1, "three", true).await;
    rig.store(3).await;
    assert_eq!(acknowledged(&mut broker).await, 1);
    broker.send(v4::Packet::PubRel(v4::PubRel::new(1))).await.unwrap();
    assert!(matches!(next(&mut broker).await, v4::Packet::PubComp(_)));
    // The same once more, for the broker has released the one before.
    publish(&mut broker, QoS::ExactlyOnce, 1, "three", true).await;
    rig.store(4).await;
    assert_eq!(acknowledged(&mut broker).await, 1);
    drop(broker);
    assert_eq!(rig.finish(), ["one", "two", "three", "three"]);
}

#[tokio::test]
async fn a_bridge_that_stops_while_there_is_no_room_acknowledges_what_is_due_and_takes_leave() {
    // So many fit before the log, each by itself.
    const ROOM: u16 = 27;
    // All that the log was given, and, after a while, what there is of it.
    for due in [ROOM, 10] {
        let rig = Rig::start(1).await;
        let mut broker = rig.accept().await;
        let payload = "x".repeat(300_000);
        for packet_id in 1..=ROOM + 1 {
            publish(&mut broker, QoS::AtLeastOnce, packet_id, &payload, false).await;
        }
        while rig.counters.received.now() < u64::from(ROOM) + 1 {
            tokio::task::yield_now().await;
        }
        rig.stop.cancel();
        rig.told.tell(0, due.into());
        for packet_id in 1..=due {
            assert_eq!(acknowledged(&mut broker).await, packet_id);
        }
        assert_eq!(next(&mut broker).await, v4::Packet::Disconnect);
        drop(broker);
        assert_eq!(rig.finish().len(), usize::from(ROOM), "the other comes again");
    }
}

#[tokio::test]
async fn how_a_connection_stands_is_told_and_what_its_broker_refuses() {
    let rig = Rig::start(1).await;
    let broker = rig.accept_with(v4::SubscribeReasonCode::Failure).await;
    rig.stands(|status| status.connected && status.refused.iter().any(|refused| refused.starts_with("# ("))).await;
    drop(broker);
    rig.stands(|status| !status.connected && !status.trouble.is_empty()).await;
    let _broker = rig.accept().await;
    rig.stands(|status| status.connected && status.trouble.is_empty() && status.refused.is_empty()).await;
    rig.finish();
}

#[tokio::test]
async fn what_a_connection_left_unacknowledged_is_known_again_by_its_content() {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut rig = Rig::start(2).await;
        let mut broker = rig.accept().await;
        for (packet_id, payload) in [(1, "one"), (2, "two"), (3, "three")] {
            publish(&mut broker, qos, packet_id, payload, false).await;
        }
        let last = rig.take(3).await;
        drop(broker);
        let mut broker = rig.accept().await;
        publish(&mut broker, qos, 1, "one", true).await;
        publish(&mut broker, qos, 2, "another two", true).await;
        publish(&mut broker, qos, 3, "another three", false).await;
        rig.told.tell(0, last);
        assert_eq!(acknowledged(&mut broker).await, 1, "it is stored, and the others are not");
        rig.store(5).await;
        assert_eq!((acknowledged(&mut broker).await, acknowledged(&mut broker).await), (2, 3));
        drop(broker);
        assert_eq!(rig.finish(), ["one", "two", "three", "another two", "another three"]);
    }
}

#[test]
fn a_message_is_acknowledged_with_the_last_of_its_records() {
    let record = || Submission { mqtt: 0, number: None, record: vec![1] };
    let mut batch = vec![record()];
    number_last(&mut batch, 0, 0, Some(1));
    batch.extend([record(), record(), record()]);
    number_last(&mut batch, 1, 0, Some(2));
    // One that leaves nothing, with and without an acknowledgement that is owed.
    number_last(&mut batch, 4, 0, Some(3));
    number_last(&mut batch, 5, 0, None);
    batch.push(record());
    number_last(&mut batch, 5, 0, None);
    let numbers: Vec<_> = batch.iter().map(|submission| submission.number).collect();
    assert_eq!(numbers, [Some(1), None, None, Some(2), Some(3), None]);
}

#[tokio::test(start_paused = true)]
async fn what_a_birth_tells_is_on_disk_before_its_message_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Tables::open(folder.path(), "m").unwrap();
    let mut tables = open();
    // A metric a, that comes as 1.
    let payload = b"\x12\x07\x0a\x01a\x10\x01\x20\x03\x18\0";
    let birth = Message { topic: "spBv1.0/g/NBIRTH/e", payload, ..Message::default() };
    sparkplug::decode(&mut tables, &birth);
    let saving = Arc::new(tables.saving().unwrap());
    // Nothing can be written where a directory is.
    let blocker = folder.path().join("sparkplug-m.json.new");
    std::fs::create_dir(&blocker).unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(1), save(&saving)).await.is_err());
    std::fs::remove_dir(&blocker).unwrap();
    save(&saving).await;
    let data = Message { topic: "spBv1.0/g/NDATA/e", payload: b"\x12\x04\x10\x01\x50\x02", ..birth };
    assert_eq!(sparkplug::decode(&mut open(), &data).readings[0].topic, "umh/v1/g/e/_raw/a");
}
