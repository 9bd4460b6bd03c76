//! The MQTT end: a Mosquitto of our own, and a publisher that costs little beside what is measured.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyperfactory_tests::rig::{Process, SOON, free_port, until};

use crate::message::{payload, topic};

/// Messages of the publisher that Mosquitto has not acknowledged; it waits at this many.
const FLYING: u64 = 5_000;
/// Messages written at once when there is no pace.
const BURST: u64 = 200;
/// Pace is kept in steps of this.
const STEP: Duration = Duration::from_millis(1);

/// A Mosquitto; ended when dropped.
pub(crate) struct Mosquitto {
    _process: Process,
    port: u16,
}

impl Mosquitto {
    /// Starts one that keeps every message of a session, and lets as many fly as ours asks operators to set.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let port = free_port();
        let settings = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n\
             max_inflight_messages 1000\nset_tcp_nodelay true\nlog_type error\n"
        );
        let file = folder.join("mosquitto.conf");
        std::fs::write(&file, settings)?;
        let mut command = Command::new("mosquitto");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/usr/local/sbin")).arg("-c").arg(file);
        let process = Process::start(&mut command, &folder.join("mosquitto.log"))?;
        until("mosquitto", SOON, || Ok(Some(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?)))?;
        Ok(Self { _process: process, port })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Publishes the messages with these numbers as fast as it goes, and waits until Mosquitto has them.
    pub(crate) fn publish(&self, numbers: std::ops::RangeInclusive<u64>) -> Result<()> {
        let mut publisher = Publisher::connect(self.port, "backlog")?;
        let (mut next, last) = (*numbers.start(), *numbers.end());
        while next <= last {
            let until = last.min(next + BURST - 1);
            publisher.send(next..=until)?;
            next = until + 1;
        }
        publisher.settle()
    }

    /// Publishes `rate` messages a second for `time`, numbered from 1; gives how many, once Mosquitto has them.
    pub(crate) fn publish_paced(&self, rate: u64, time: Duration) -> Result<Pacing> {
        let mut publisher = Publisher::connect(self.port, "live")?;
        let thread = std::thread::Builder::new().name("publisher".into()).spawn(move || {
            let (begun, mut sent) = (Instant::now(), 0);
            while begun.elapsed() < time {
                let due = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX) * rate / 1_000_000;
                if due > sent {
                    publisher.send(sent + 1..=due)?;
                    sent = due;
                }
                std::thread::sleep(STEP);
            }
            publisher.settle()?;
            Ok(sent)
        })?;
        Ok(Pacing(thread))
    }
}

/// A publisher at work.
pub(crate) struct Pacing(JoinHandle<Result<u64>>);

impl Pacing {
    /// Whether all is published.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// How many were published, once Mosquitto has them.
    pub(crate) fn finish(self) -> Result<u64> {
        let Ok(sent) = self.0.join() else { bail!("the publisher ended badly") };
        sent.context("publishing")
    }
}

/// As much of MQTT 3.1.1 as publishing at least once takes.
struct Publisher {
    stream: TcpStream,
    sent: u64,
    bytes: Vec<u8>,
    acknowledged: Arc<(Mutex<u64>, Condvar)>,
}

impl Publisher {
    fn connect(port: u16, name: &str) -> Result<Self> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        let mut connect = vec![0x10, u8::try_from(12 + name.len())?];
        // Protocol, its level, a clean session, no keep-alive.
        connect.extend(b"\0\x04MQTT\x04\x02\0\0\0");
        connect.push(u8::try_from(name.len())?);
        connect.extend(name.as_bytes());
        stream.write_all(&connect)?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        ensure!(answer == [0x20, 2, 0, 0], "Mosquitto refuses the publisher: {answer:?}");
        let acknowledged = Arc::new((Mutex::new(0), Condvar::new()));
        let (reading, counted) = (stream.try_clone()?, Arc::clone(&acknowledged));
        // It ends with the connection.
        std::thread::Builder::new().name("acknowledged".into()).spawn(move || count(reading, &counted))?;
        Ok(Self { stream, sent: 0, bytes: Vec::new(), acknowledged })
    }

    fn send(&mut self, numbers: std::ops::RangeInclusive<u64>) -> Result<()> {
        self.bytes.clear();
        for number in numbers {
            let (topic, payload) = (topic(number), payload(number));
            self.sent += 1;
            let packet = u16::try_from(self.sent % 65_000 + 1)?;
            let length = 2 + topic.len() + 2 + payload.len();
            // Longer than 127 and shorter than 16,384: two bytes.
            self.bytes.extend([0x32, u8::try_from(length % 128)? | 0x80, u8::try_from(length / 128)?]);
            self.bytes.extend(u16::try_from(topic.len())?.to_be_bytes());
            self.bytes.extend(topic.as_bytes());
            self.bytes.extend(packet.to_be_bytes());
            self.bytes.extend(payload.as_bytes());
        }
        self.stream.write_all(&self.bytes)?;
        self.wait(FLYING)
    }

    fn settle(&mut self) -> Result<()> {
        self.wait(0)
    }

    /// Waits until at most so many are not acknowledged.
    fn wait(&self, flying: u64) -> Result<()> {
        let (count, changed) = &*self.acknowledged;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = changed.wait_timeout_while(count, 2 * SOON, |count| self.sent - *count > flying);
        let (count, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        ensure!(self.sent - *count <= flying, "Mosquitto acknowledged {} of {}", *count, self.sent);
        Ok(())
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// A publisher is told nothing but acknowledgements, four bytes each.
fn count(mut stream: TcpStream, acknowledged: &(Mutex<u64>, Condvar)) {
    let (mut buffer, mut bytes) = ([0; 16 << 10], 0u64);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes += read as u64;
        *acknowledged.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes / 4;
        acknowledged.1.notify_all();
    }
}
