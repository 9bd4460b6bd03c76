//! A tap between the bridge and its MQTT broker: it knows what the bridge has accepted, and ends a connection at the packet
//! that it is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::rig::until;

const CONNECT: u8 = 1;
/// Kinds of packets: a message, and what acknowledges one with quality of service 1, and step by step one with 2.
pub(crate) const PUBLISH: u8 = 3;
pub(crate) const PUBACK: u8 = 4;
pub(crate) const PUBREC: u8 = 5;
pub(crate) const PUBREL: u8 = 6;
pub(crate) const PUBCOMP: u8 = 7;

/// An MQTT topic, and the number in the payload.
pub(crate) type Message = (String, u64);

/// The tap. It lasts as long as the process of the test.
pub(crate) struct Tap {
    port: u16,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    accepted: BTreeSet<Message>,
    sent: BTreeMap<Message, usize>,
    /// The kind of packet at which the connection is to end.
    cut_at: Option<u8>,
    /// It has ended there, and there is no other.
    is_cut: bool,
}

/// What one connection is known by.
#[derive(Default)]
struct Connection {
    is_five: bool,
    flying: HashMap<u16, Message>,
}

impl Tap {
    /// One before the broker at this port of loopback.
    pub(crate) fn before(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, shared) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Shared>>::default());
        let seen = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if seen.lock().unwrap().is_cut {
                    continue;
                }
                // While the broker is away the client is, too.
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", broker))) {
                    join(&client, &server, &seen);
                }
            }
        });
        Self { port, shared }
    }

    /// A connection by way of it, with this configured beside its address, and the route of what is tested.
    pub(crate) fn routes(&self, mqtt: &str) -> String {
        format!(
            "[[mqtt]]\nname = \"tapped\"\naddress = \"127.0.0.1:{}\"\n{mqtt}\n\
             [[route]]\nfrom = \"machines/#\"\nto = \"machines\"\nmqtt = \"tapped\"\n",
            self.port
        )
    }

    /// What the bridge has acknowledged: it has to be in Kafka, whatever comes.
    pub(crate) fn accepted(&self) -> BTreeSet<Message> {
        self.shared.lock().unwrap().accepted.clone()
    }

    /// How often the broker has sent each message without saying that it may have come before.
    pub(crate) fn sent(&self) -> BTreeMap<Message, usize> {
        self.shared.lock().unwrap().sent.clone()
    }

    /// The next packet of this kind does not arrive: the connection ends in its place, and no other gets through.
    pub(crate) fn cut_at(&self, kind: u8) {
        self.shared.lock().unwrap().cut_at = Some(kind);
    }

    /// Waits until it has come to that.
    pub(crate) fn until_cut(&self) {
        until("the packet at which the connection ends", || self.shared.lock().unwrap().is_cut.then_some(()));
    }

    /// Connections get through again.
    pub(crate) fn mend(&self) {
        self.shared.lock().unwrap().is_cut = false;
    }
}

fn join(client: &TcpStream, server: &TcpStream, shared: &Arc<Mutex<Shared>>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let connection: Arc<Mutex<Connection>> = Arc::default();
    for (from, to) in [(server, client), (client, server)] {
        let (connection, shared) = (Arc::clone(&connection), Arc::clone(shared));
        pump(from, to, move |head, body| {
            shared.lock().unwrap().lets_through(&mut connection.lock().unwrap(), head, body)
        });
    }
}

impl Shared {
    /// Takes note of a packet; says whether it goes on.
    fn lets_through(&mut self, connection: &mut Connection, head: u8, body: &[u8]) -> bool {
        let (kind, id) = (head >> 4, |at: &[u8]| u16::from_be_bytes([at[0], at[1]]));
        // What the bridge says, it stands by, also when it does not arrive.
        if matches!(kind, PUBACK | PUBREC) {
            self.accepted.insert(connection.flying[&id(body)].clone());
        }
        if self.is_cut {
            return false;
        }
        if self.cut_at == Some(kind) {
            (self.cut_at, self.is_cut) = (None, true);
            return false;
        }
        match kind {
            // After the protocol's name its level.
            CONNECT => connection.is_five = body[6] == 5,
            PUBLISH if (head >> 1) & 3 > 0 => {
                let (topic, rest) = body[2..].split_at(usize::from(id(body)));
                let properties =
                    measure(&rest[1..]).filter(|_| connection.is_five).map_or(0, |(head, length)| head - 1 + length);
                let number = String::from_utf8(rest[2 + properties..].to_vec()).unwrap().parse().unwrap();
                let message = (String::from_utf8(topic.to_vec()).unwrap(), number);
                if head & 8 == 0 {
                    *self.sent.entry(message.clone()).or_default() += 1;
                }
                connection.flying.insert(id(rest), message);
            }
            _ => {}
        }
        true
    }
}

/// Carries packets one way, until one does not go on; `see` is given the first byte and the body of each.
fn pump(from: &TcpStream, to: &TcpStream, mut see: impl FnMut(u8, &[u8]) -> bool + Send + 'static) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    std::thread::spawn(move || {
        let (mut bytes, mut chunk, mut open) = (Vec::new(), [0; 16 << 10], true);
        while open && let Ok(count @ 1..) = from.read(&mut chunk) {
            bytes.extend(&chunk[..count]);
            let mut whole = 0;
            while let Some((head, length)) = measure(&bytes[whole..])
                && let Some(packet) = bytes.get(whole..whole + head + length)
            {
                open = see(packet[0], &packet[head..]);
                if !open {
                    break;
                }
                whole += packet.len();
            }
            open &= to.write_all(&bytes[..whole]).is_ok();
            bytes.drain(..whole);
        }
        let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
    });
}

/// How long a packet's head and body are.
fn measure(bytes: &[u8]) -> Option<(usize, usize)> {
    let digits = bytes.iter().skip(1).position(|byte| byte & 0x80 == 0)? + 1;
    let value = |(at, byte): (usize, &u8)| usize::from(byte & 0x7f) << (7 * at);
    Some((1 + digits, bytes[1..=digits].iter().enumerate().map(value).sum()))
}
