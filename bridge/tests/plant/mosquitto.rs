//! A Mosquitto, and who publishes and listens there.

use std::ops::RangeInclusive;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyperfactory_tests::rig::free_port;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tempfile::TempDir;

use crate::rig::{Process, SOON, until};

/// A Mosquitto of our own, on loopback.
pub(crate) struct Mosquitto {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Mosquitto {
    pub(crate) fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
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
        Self::start_with(|settings| {
            settings.replace("max_inflight_messages 1000", &format!("max_inflight_messages {most}"))
        })
    }

    /// One whose settings are changed so.
    pub(crate) fn start_with(change: impl FnOnce(String) -> String) -> Self {
        let mut mosquitto = Self::start();
        mosquitto.process.take().unwrap().terminate();
        let file = mosquitto.folder.path().join("mosquitto.conf");
        let settings = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, change(settings)).unwrap();
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

    /// What it has saved is gone, with all its sessions.
    pub(crate) fn lose_disk(&self) {
        for file in std::fs::read_dir(self.folder.path().join("data")).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
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

/// Publishes numbers through whatever becomes of Mosquitto.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// To each topic in turn a number that is higher than the one before it, of this quality of service.
    pub(crate) fn start(mosquitto: &Mosquitto, topics: &'static [(&'static str, QoS)], pace: Duration) -> Self {
        let (client, mut events) = AsyncClient::new(MqttOptions::new("load", "127.0.0.1", mosquitto.port), 100);
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = |stop: &Arc<AtomicBool>| {
            let stop = Arc::clone(stop);
            move || stop.load(Ordering::Relaxed)
        };
        let (serving, publishing) = (is_over(&stop), is_over(&stop));
        let serve = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                while !serving() {
                    if let Ok(Err(_)) = tokio::time::timeout(Duration::from_millis(100), events.poll()).await {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
        });
        let publish = std::thread::spawn(move || {
            for (number, (topic, qos)) in (1u64..).zip(topics.iter().cycle()) {
                // While Mosquitto is away there is no room.
                while !publishing() && client.try_publish(*topic, *qos, false, number.to_string()).is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if publishing() {
                    return;
                }
                std::thread::sleep(pace);
            }
        });
        Self { stop, threads: vec![serve, publish] }
    }

    pub(crate) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
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
