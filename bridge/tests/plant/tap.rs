//! A tap between the bridge and its MQTT broker: it knows what the bridge has accepted with quality of service 2.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const PUBLISH: u8 = 3;
const PUBREC: u8 = 5;

/// The tap. It lasts as long as the process of the test.
pub(crate) struct Tap {
    port: u16,
    accepted: Arc<Mutex<BTreeSet<String>>>,
}

impl Tap {
    /// One before the broker at this port of loopback.
    pub(crate) fn before(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, accepted) = (listener.local_addr().unwrap().port(), Arc::<Mutex<BTreeSet<String>>>::default());
        let taken = Arc::clone(&accepted);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // While the broker is away the client is, too.
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", broker))) {
                    join(&client, &server, &taken);
                }
            }
        });
        Self { port, accepted }
    }

    /// Where it listens, on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Payloads of messages that the bridge has acknowledged with PUBREC.
    pub(crate) fn accepted(&self) -> BTreeSet<String> {
        self.accepted.lock().unwrap().clone()
    }
}

fn join(client: &TcpStream, server: &TcpStream, accepted: &Arc<Mutex<BTreeSet<String>>>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let flying: Arc<Mutex<HashMap<u16, String>>> = Arc::default();
    let (coming, accepted) = (Arc::clone(&flying), Arc::clone(accepted));
    pump(server, client, move |kind, body| {
        if kind >> 4 == PUBLISH && (kind >> 1) & 3 == 2 {
            let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
            let (id, payload) = body[2 + topic..].split_at(2);
            let payload = String::from_utf8(payload.to_vec()).unwrap();
            coming.lock().unwrap().insert(u16::from_be_bytes([id[0], id[1]]), payload);
        }
    });
    pump(client, server, move |kind, body| {
        if kind >> 4 == PUBREC {
            let payload = flying.lock().unwrap()[&u16::from_be_bytes([body[0], body[1]])].clone();
            accepted.lock().unwrap().insert(payload);
        }
    });
}

/// Carries bytes one way; `see` is given each packet before its end goes on.
fn pump(from: &TcpStream, to: &TcpStream, mut see: impl FnMut(u8, &[u8]) + Send + 'static) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    std::thread::spawn(move || {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 16 << 10]);
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            bytes.extend(&chunk[..count]);
            while let Some((head, length)) = measure(&bytes).filter(|(head, length)| bytes.len() >= head + length) {
                see(bytes[0], &bytes[head..head + length]);
                bytes.drain(..head + length);
            }
            if to.write_all(&chunk[..count]).is_err() {
                break;
            }
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
