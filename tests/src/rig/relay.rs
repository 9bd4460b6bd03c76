//! A bad network between nodes and hub: carries datagrams, loses and doubles some, and goes deaf in one direction when told.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Peers that are carried for; datagrams of more of them are lost.
const PEERS_BOUND: usize = 4096;
/// Longest datagram.
const LONGEST: usize = 2048;
/// Share of the datagrams that are lost, and that come twice.
const LOST: f64 = 0.005;
const DOUBLED: f64 = 0.02;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// What nodes send.
    Hub,
    /// What the hub sends.
    Nodes,
}

/// The relay; it ends with its handle.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    hub: SocketAddr,
    /// No datagram gets through, by direction.
    deaf: [AtomicBool; 2],
    lost: AtomicU64,
    doubled: AtomicU64,
}

impl Relay {
    /// Stands before the hub at `hub`, on loopback. `seed` makes one run like another.
    pub fn before(hub: SocketAddr, seed: u64) -> Result<Self> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("opening the relay's socket")?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            hub,
            deaf: Default::default(),
            lost: AtomicU64::default(),
            doubled: AtomicU64::default(),
        });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (carrying, stopped) = (Arc::clone(&shared), stop.clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(socket) = UdpSocket::from_std(socket) else { return };
                stopped.run_until_cancelled(carry(&carrying, socket.into(), seed)).await;
            });
        });
        Ok(Self { address, shared, stop, thread: Some(thread) })
    }

    /// Where nodes find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing through in this direction, or all again.
    pub fn set_deaf(&self, towards: Towards, deaf: bool) {
        self.shared.deaf[towards as usize].store(deaf, Ordering::Relaxed);
    }

    /// Datagrams that were lost so far.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Datagrams that came twice so far.
    pub fn doubled(&self) -> u64 {
        self.shared.doubled.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// How often a datagram is to be sent on.
    fn copies(&self, towards: Towards, random: &mut SmallRng) -> usize {
        if self.deaf[towards as usize].load(Ordering::Relaxed) || random.random_bool(LOST) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return 0;
        }
        if random.random_bool(DOUBLED) {
            self.doubled.fetch_add(1, Ordering::Relaxed);
            return 2;
        }
        1
    }
}

/// Carries what nodes send, each peer's by a socket of its own, by which the hub's answers come back.
async fn carry(shared: &Arc<Shared>, socket: Arc<UdpSocket>, seed: u64) {
    let (mut peers, mut answers) = (HashMap::<SocketAddr, Arc<UdpSocket>>::new(), JoinSet::new());
    let (mut random, mut datagram) = (SmallRng::seed_from_u64(seed), [0; LONGEST]);
    loop {
        // An error is an answer to an earlier datagram: that nobody listens there, which the next one will show, too.
        let Ok((length, peer)) = socket.recv_from(&mut datagram).await else { continue };
        let own = match peers.get(&peer) {
            Some(own) => Arc::clone(own),
            None if peers.len() >= PEERS_BOUND => continue,
            None => {
                let Ok(own) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.map(Arc::new) else { continue };
                let random = SmallRng::seed_from_u64(random.random());
                answers.spawn(answer(Arc::clone(shared), Arc::clone(&own), Arc::clone(&socket), peer, random));
                peers.insert(peer, Arc::clone(&own));
                own
            }
        };
        for _ in 0..shared.copies(Towards::Hub, &mut random) {
            // A datagram that can't be sent is one that is lost.
            let _ = own.send_to(datagram.get(..length).unwrap_or_default(), shared.hub).await;
        }
    }
}

async fn answer(
    shared: Arc<Shared>,
    own: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    peer: SocketAddr,
    mut random: SmallRng,
) {
    let mut datagram = [0; LONGEST];
    loop {
        let Ok((length, from)) = own.recv_from(&mut datagram).await else { continue };
        if from != shared.hub {
            continue;
        }
        for _ in 0..shared.copies(Towards::Nodes, &mut random) {
            let _ = socket.send_to(datagram.get(..length).unwrap_or_default(), peer).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::rig::{SOON, until};

    #[test]
    fn it_carries_both_ways_loses_and_doubles_some_and_is_deaf_when_told() -> Result<()> {
        const SENT: u32 = 2_000;
        let hub = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let node = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        for socket in [&hub, &node] {
            socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        }
        let relay = Relay::before(hub.local_addr()?, 1)?;
        let (mut buffer, mut came, mut came_back) = ([0; 16], 0, 0);
        for number in 0..SENT {
            let before = relay.lost();
            node.send_to(&number.to_be_bytes(), relay.address())?;
            while relay.lost() == before {
                if let Ok((length, from)) = hub.recv_from(&mut buffer) {
                    came += 1;
                    hub.send_to(&buffer[..length], from)?;
                    break;
                }
            }
            came_back += u32::from(node.recv_from(&mut buffer).is_ok());
        }
        assert!(came > SENT / 2 && came_back > SENT / 2, "{came} of {SENT} came, {came_back} came back");
        assert!(relay.lost() > 0 && relay.doubled() > 0, "{} lost, {} doubled", relay.lost(), relay.doubled());
        relay.set_deaf(Towards::Hub, true);
        while hub.recv_from(&mut buffer).is_ok() {}
        let before = relay.lost();
        node.send_to(b"unheard", relay.address())?;
        until("the relay to lose it", SOON, || Ok((relay.lost() > before).then_some(())))?;
        assert!(hub.recv_from(&mut buffer).is_err());
        Ok(())
    }
}
