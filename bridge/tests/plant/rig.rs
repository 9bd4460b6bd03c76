//! A Mosquitto, a bridge and a publisher, each a process or a thread of the test, and what came out at the other end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyperfactory_tests::rig::Tansu;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tempfile::TempDir;

/// Long enough for a busy machine; nothing waits this long when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(90);

pub(crate) type Cluster = MockCluster<'static, DefaultProducerContext>;

/// Brokers, as a client without TLS finds them.
pub(crate) trait Brokers {
    fn addresses(&self) -> String;
}

impl Brokers for MockCluster<'static, DefaultProducerContext> {
    fn addresses(&self) -> String {
        self.bootstrap_servers()
    }
}

impl Brokers for Tansu {
    fn addresses(&self) -> String {
        self.address().to_owned()
    }
}

/// Topics and how many messages there are of each, numbered from 1.
pub(crate) type Published = [(String, u64)];

/// Waits until `what` gives something.
pub(crate) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(begun.elapsed() < SOON, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The files of a folder whose names end so, sorted.
pub(crate) fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    paths.sort();
    paths
}

/// A child process that does not outlive its handle.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{:?} can't be started: {error}", command.get_program())))
    }

    fn terminate(&mut self) {
        self.signal("TERM");
        assert!(self.0.wait().is_ok());
    }

    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Mosquitto of our own, on loopback.
pub(crate) struct Mosquitto {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Mosquitto {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago; nobody else takes it in between on a machine of tests.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let settings = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location {}/\n\
             max_queued_messages 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\n",
            data.display()
        );
        std::fs::write(folder.path().join("mosquitto.conf"), settings).unwrap();
        let mut mosquitto = Self { folder, port, process: None };
        mosquitto.up();
        mosquitto
    }

    /// Lets so many messages fly to a client that does not say how many it wants.
    pub(crate) fn with_inflight(most: u16) -> Self {
        let mut mosquitto = Self::start();
        mosquitto.process.take().unwrap().terminate();
        let file = mosquitto.folder.path().join("mosquitto.conf");
        let settings = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, settings.replace("max_inflight_messages 1000", &format!("max_inflight_messages {most}")))
            .unwrap();
        mosquitto.up();
        mosquitto
    }

    /// Publishes a message as a client of version 5 does, with these arguments of `mosquitto_pub`.
    pub(crate) fn publish_five(&self, arguments: &[&str]) {
        let port = self.port.to_string();
        let mut command = Command::new("mosquitto_pub");
        command.args(["-h", "127.0.0.1", "-p", &port, "-V", "5", "-q", "1"]).args(arguments);
        assert!(command.status().unwrap().success());
    }

    /// Where it listens, on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends it in order, with its sessions saved, and starts it again.
    pub(crate) fn restart(&mut self) {
        self.process.take().unwrap().terminate();
        self.up();
    }

    /// Ends it as a power cut would; what it has not saved is lost.
    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Starts it again.
    pub(crate) fn start_again(&mut self) {
        self.up();
    }

    /// It hangs: connections stay, and nothing is answered.
    pub(crate) fn hang(&self) {
        self.process.as_ref().unwrap().signal("STOP");
    }

    /// It goes on.
    pub(crate) fn go_on(&self) {
        self.process.as_ref().unwrap().signal("CONT");
    }

    fn up(&mut self) {
        let log = self.folder.path().join("log");
        let mut command = Command::new("mosquitto");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/usr/local/sbin"));
        command.arg("-c").arg(self.folder.path().join("mosquitto.conf"));
        self.process = Some(Process::start(&mut command, &log));
        let address = format!("127.0.0.1:{}", self.port);
        until("mosquitto", || std::net::TcpStream::connect(&address).ok());
    }
}

/// The bridge under test.
pub(crate) struct Bridge {
    folder: TempDir,
    /// What is configured of the connection to Mosquitto beside its address.
    mqtt: String,
    process: Option<Process>,
}

impl Bridge {
    pub(crate) fn start(mosquitto: &Mosquitto, brokers: &str, routes: &str) -> Self {
        Self::with(mosquitto, brokers, routes, "")
    }

    pub(crate) fn with(mosquitto: &Mosquitto, brokers: &str, routes: &str, more: &str) -> Self {
        let mut bridge = Self::prepare(mosquitto, brokers, routes, more);
        bridge.start_again();
        bridge
    }

    /// One whose connection is configured so.
    pub(crate) fn with_mqtt(mqtt: &str, mosquitto: &Mosquitto, brokers: &str, routes: &str) -> Self {
        let mut bridge = Self::prepare(mosquitto, brokers, routes, "");
        bridge.mqtt = mqtt.to_owned();
        bridge.configure(mosquitto, brokers, routes, "");
        bridge.start_again();
        bridge
    }

    /// One that is configured, and not started yet.
    pub(crate) fn prepare(mosquitto: &Mosquitto, brokers: &str, routes: &str, more: &str) -> Self {
        let bridge = Self { folder: tempfile::tempdir().unwrap(), mqtt: String::new(), process: None };
        bridge.configure(mosquitto, brokers, routes, more);
        bridge
    }

    /// A file of its state.
    pub(crate) fn state(&self, name: &str) -> String {
        std::fs::read_to_string(self.state_dir().join(name)).unwrap_or_default()
    }

    /// Writes its configuration anew.
    pub(crate) fn configure(&self, mosquitto: &Mosquitto, brokers: &str, routes: &str, more: &str) {
        let brokers = brokers.split(',').map(|broker| format!("{broker:?}")).collect::<Vec<_>>().join(",");
        let config = format!(
            "name = \"test\"\n{more}\n[[mqtt]]\nname = \"plant\"\naddress = \"127.0.0.1:{}\"\n{}\n[kafka]\nbrokers = [{brokers}]\n{routes}",
            mosquitto.port, self.mqtt
        );
        std::fs::write(self.folder.path().join("bridge.toml"), config).unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.process = Some(Process::start(self.command().arg("run"), &self.log_file()));
    }

    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Has it read its configuration again.
    pub(crate) fn reload(&self) {
        self.process.as_ref().unwrap().signal("HUP");
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self) {
        self.process.take().unwrap().terminate();
    }

    /// Waits until its log on disk has this in it.
    pub(crate) fn stored(&self, text: &str) {
        self.stored_in("log", text);
    }

    /// Waits until a log of its state has this in it.
    pub(crate) fn stored_in(&self, log: &str, text: &str) {
        until("a message on disk", || {
            files(&self.state_dir().join(log), ".seg")
                .iter()
                .filter_map(|file| std::fs::read(file).ok())
                .find(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
        });
    }

    /// What it says when it refuses.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    /// Its disk is gone, and another is there.
    pub(crate) fn lose_disk(&self) {
        std::fs::remove_dir_all(self.state_dir()).unwrap();
    }

    /// How often it said so.
    pub(crate) fn times(&self, what: &str) -> usize {
        self.log().matches(what).count()
    }

    /// Waits until it has subscribed for the `count`th time.
    pub(crate) fn subscribed(&self, count: usize) {
        until("the subscription", || (self.log().matches(" subscribed").count() >= count).then_some(()));
    }

    /// Waits until it says so.
    pub(crate) fn said(&self, what: &str) {
        until(what, || self.log().contains(what).then_some(()));
    }

    /// Waits until it has said so for the `count`th time.
    pub(crate) fn said_again(&self, what: &str, count: usize) {
        until(what, || (self.log().matches(what).count() >= count).then_some(()));
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> (String, bool) {
        let output = self.command().args(arguments).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.is_empty() || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (said, output.status.success())
    }

    pub(crate) fn audit(&self, topics: &[&str]) -> (String, bool) {
        self.ask(&[&["audit"], topics].concat())
    }

    pub(crate) fn dead_letters(&self) -> String {
        self.ask(&["log", "dump", "--dead-letters"]).0
    }

    /// Waits for a dead letter of the topic, and gives the number in its payload. The bridge is started anew.
    pub(crate) fn dead_letter_of(&mut self, topic: &str) -> u64 {
        self.said("refuses it");
        self.stop();
        let letters = self.dead_letters();
        let line = letters.lines().find(|line| line.contains(topic)).unwrap_or_else(|| panic!("{letters}"));
        let payload = line.split('"').nth(1).unwrap().parse().unwrap();
        self.start_again();
        payload
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyperfactory-bridge"));
        command.arg("--config").arg(self.folder.path().join("bridge.toml"));
        command.arg("--state-dir").arg(self.state_dir());
        command
    }

    /// Where it keeps its state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            #[expect(clippy::print_stderr, reason = "a failed test shows what its programs said")]
            {
                eprintln!("--- the bridge said:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
        }
    }
}

/// Publishes at least once, and knows what Mosquitto has acknowledged.
pub(crate) struct Publisher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(String, u64)>>,
}

impl Publisher {
    /// Publishes numbers to the topics in turn until told to finish.
    pub(crate) fn start(mosquitto: &Mosquitto, topics: &[&str], pace: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (client, stopped) = (Self::connect(mosquitto), Arc::clone(&stop));
        let mut counts: Vec<(String, u64)> = topics.iter().map(|topic| ((*topic).to_owned(), 0)).collect();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (topic, count) in &mut counts {
                    *count += 1;
                    client.send(topic, count.to_string().as_bytes(), false);
                    std::thread::sleep(pace);
                }
            }
            client.settle();
            counts
        });
        Self { stop, thread }
    }

    /// What was published, all of it acknowledged by Mosquitto.
    pub(crate) fn finish(self) -> Vec<(String, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }

    /// Publishes these numbers to the topic; gives the last when Mosquitto has acknowledged all.
    pub(crate) fn publish(mosquitto: &Mosquitto, topic: &str, numbers: RangeInclusive<u64>) -> u64 {
        let (client, last) = (Self::connect(mosquitto), *numbers.end());
        numbers.for_each(|number| client.send(topic, number.to_string().as_bytes(), false));
        client.settle();
        last
    }

    /// Publishes numbers from 1 as payloads of `bytes` bytes.
    pub(crate) fn publish_large(mosquitto: &Mosquitto, topic: &str, count: u64, bytes: usize) -> u64 {
        let client = Self::connect(mosquitto);
        (1..=count).for_each(|number| client.send(topic, format!("{number:0bytes$}").as_bytes(), false));
        client.settle();
        count
    }

    pub(crate) fn connect(mosquitto: &Mosquitto) -> Client {
        static CLIENTS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let name = format!("publisher-{}", CLIENTS.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(name, "127.0.0.1", mosquitto.port);
        options.set_max_packet_size(2 << 20, 2 << 20);
        let (client, events) = AsyncClient::new(options, 100);
        let acknowledged = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counting = Arc::clone(&acknowledged);
        let thread = std::thread::spawn(move || serve(events, &counting));
        Client {
            client,
            qos: QoS::AtLeastOnce,
            acknowledged,
            sent: std::sync::atomic::AtomicU64::new(0),
            thread: Some(thread),
        }
    }
}

/// A connection that publishes.
pub(crate) struct Client {
    client: AsyncClient,
    qos: QoS,
    acknowledged: Arc<std::sync::atomic::AtomicU64>,
    sent: std::sync::atomic::AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// From now on it publishes exactly once.
    pub(crate) fn exactly_once(&mut self) {
        self.qos = QoS::ExactlyOnce;
    }

    pub(crate) fn send(&self, topic: &str, payload: &[u8], retain: bool) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        until("room to publish", || self.client.try_publish(topic, self.qos, retain, payload).ok());
    }

    /// Waits until Mosquitto has acknowledged all that was sent.
    pub(crate) fn settle(&self) {
        let sent = self.sent.load(Ordering::Relaxed);
        until("Mosquitto's acknowledgements", || (self.acknowledged.load(Ordering::Relaxed) >= sent).then_some(()));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.client.try_disconnect();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut events: EventLoop, acknowledged: &std::sync::atomic::AtomicU64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        while let Ok(event) = events.poll().await {
            if matches!(event, Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) {
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
}

/// Hears everything on Mosquitto.
pub(crate) struct Listener(std::sync::mpsc::Receiver<String>, AsyncClient);

impl Listener {
    pub(crate) fn start(mosquitto: &Mosquitto) -> Self {
        let mut options = MqttOptions::new("listener", "127.0.0.1", mosquitto.port);
        options.set_max_packet_size(2 << 20, 2 << 20);
        let (client, mut events) = AsyncClient::new(options, 10);
        client.try_subscribe("#", QoS::AtLeastOnce).unwrap();
        let (said, heard) = std::sync::mpsc::sync_channel(10_000);
        let (ready, subscribed) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                while let Ok(event) = events.poll().await {
                    match event {
                        Event::Incoming(Packet::SubAck(_)) => ready.send(()).unwrap(),
                        Event::Incoming(Packet::Publish(publish)) if said.send(publish.topic.clone()).is_err() => {
                            return;
                        }
                        _ => {}
                    }
                }
            });
        });
        subscribed.recv_timeout(SOON).unwrap();
        Self(heard, client)
    }

    /// Everything up to the `count`th message of a topic, and what comes a little later.
    pub(crate) fn until_heard(&self, topic: &str, count: usize) -> Vec<String> {
        let mut heard = Vec::new();
        while heard.iter().filter(|heard| *heard == topic).count() < count {
            heard.push(self.0.recv_timeout(SOON).unwrap());
        }
        while let Ok(more) = self.0.recv_timeout(Duration::from_millis(300)) {
            heard.push(more);
        }
        let _ = self.1.try_disconnect();
        heard
    }
}

/// Puts a record into Kafka that is not the bridge's.
pub(crate) fn produce(cluster: &impl Brokers, topic: &str, key: &str, payload: &str) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", cluster.addresses()).create().unwrap();
    producer.send(BaseRecord::to(topic).key(key).payload(payload)).unwrap();
    producer.flush(SOON).unwrap();
}

/// A record in Kafka.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    topic: String,
    key: String,
    mqtt_topic: String,
    epoch: String,
    sequence: u64,
    /// The number in its payload; none when that is too long.
    number: u64,
    retained: bool,
    pub(crate) duplicate: bool,
}

/// A disk small enough to be filled, in place of a folder; needs root.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn over(folder: PathBuf, kibibytes: u32) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let size = format!("size={kibibytes}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).status().unwrap();
        assert!(mounted.success(), "mounting a disk needs root: run the tests by ./test, which asks sudo");
        Self(folder)
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.0.join("filler")).unwrap();
        while filler.write(&[1; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// What came out, the records of a partition in order.
pub(crate) struct Delivered(Vec<Record>);

impl Delivered {
    /// Reads until all that was published is there.
    pub(crate) fn wait(cluster: &impl Brokers, topics: &[&str], published: &Published) -> Self {
        Self::wait_but(cluster, topics, published, None)
    }

    /// The same, without one.
    pub(crate) fn wait_but(
        cluster: &impl Brokers,
        topics: &[&str],
        published: &Published,
        but: Option<(&str, u64)>,
    ) -> Self {
        let mut missing: HashSet<(String, u64)> = HashSet::new();
        for (topic, count) in published {
            missing.extend((1..=*count).map(|number| (topic.clone(), number)));
        }
        if let Some((topic, number)) = but {
            missing.remove(&(topic.to_owned(), number));
        }
        Self::read(cluster, topics, missing)
    }

    /// Reads until these messages are there.
    pub(crate) fn wait_for(cluster: &impl Brokers, topics: &[&str], messages: &[(String, u64)]) -> Self {
        Self::read(cluster, topics, messages.iter().cloned().collect())
    }

    /// What is there now.
    pub(crate) fn now(cluster: &impl Brokers, topics: &[&str]) -> Self {
        Self::read(cluster, topics, HashSet::new())
    }

    fn read(cluster: &impl Brokers, topics: &[&str], mut missing: HashSet<(String, u64)>) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.addresses())
            .set("group.id", "test")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer.fetch_metadata(Some(topic), SOON).unwrap();
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
            }
        }
        consumer.assign(&assignment).unwrap();
        let (mut records, begun) = (Vec::new(), Instant::now());
        // A little longer than until all is there, for what comes twice.
        let mut complete = None;
        while complete.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(300)) {
            if let Some(message) = consumer.poll(Duration::from_millis(50)) {
                // What is not the bridge's has no headers.
                if let Some(record) = Record::of(&message.unwrap()) {
                    missing.remove(&(record.mqtt_topic.clone(), record.number));
                    records.push(record);
                }
            }
            if missing.is_empty() {
                complete.get_or_insert_with(Instant::now);
            }
            let some: Vec<_> = missing.iter().take(5).collect();
            assert!(begun.elapsed() < SOON, "{} messages are lost, among them {some:?}", missing.len());
        }
        Self(records)
    }

    pub(crate) fn assert_complete_and_in_order(&self, published: &Published) {
        let mut found: BTreeMap<&str, HashSet<u64>> = BTreeMap::new();
        for record in &self.0 {
            found.entry(&record.mqtt_topic).or_default().insert(record.number);
        }
        for (topic, count) in published {
            assert_eq!(found[topic.as_str()].len() as u64, *count, "{topic}");
        }
        self.assert_in_order();
    }

    /// Of each topic the messages, the first time they come, are in the order in which they were published.
    pub(crate) fn assert_in_order(&self) {
        let (mut seen, mut latest) = (HashSet::new(), HashMap::new());
        for record in self.once() {
            if seen.insert((record.mqtt_topic.clone(), record.number)) {
                let before = latest.insert(record.mqtt_topic.clone(), record.number);
                assert!(before.is_none_or(|before| before < record.number), "{before:?}, then {record:?}");
            }
        }
    }

    /// Messages that came more than once, without records that came twice.
    pub(crate) fn twice(&self) -> Vec<Record> {
        let mut seen = HashSet::new();
        self.once().filter(|record| !seen.insert((record.mqtt_topic.clone(), record.number))).cloned().collect()
    }

    /// The numbers that came of an MQTT topic, each record once, in their order.
    pub(crate) fn numbers(&self, topic: &str) -> Vec<u64> {
        self.once().filter(|record| record.mqtt_topic == topic).map(|record| record.number).collect()
    }

    pub(crate) fn keys(&self, topic: &str) -> Vec<&str> {
        self.0.iter().filter(|record| record.topic == topic).map(|record| record.key.as_str()).collect()
    }

    pub(crate) fn retained(&self) -> Vec<bool> {
        self.0.iter().map(|record| record.retained).collect()
    }

    fn once(&self) -> impl Iterator<Item = &Record> {
        let mut seen = HashSet::new();
        self.0.iter().filter(move |record| seen.insert((record.epoch.clone(), record.sequence)))
    }
}

impl Record {
    fn of(message: &impl Message) -> Option<Self> {
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
        let headers = message.headers()?;
        let header = |name: &str| headers.iter().find(|header| header.key == name).map(|header| text(header.value));
        Some(Self {
            topic: message.topic().to_owned(),
            key: text(message.key()),
            mqtt_topic: header("hf-topic").unwrap(),
            epoch: header("hf-epoch").unwrap(),
            sequence: header("hf-sequence").unwrap().parse().unwrap(),
            number: text(message.payload()).parse().unwrap_or(0),
            retained: header("hf-retained").is_some(),
            duplicate: header("hf-duplicate").is_some(),
        })
    }
}
