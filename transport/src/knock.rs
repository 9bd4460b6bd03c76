//! A knock: one small datagram by which a restarted hub makes a node look after its connection.
//!
//! A hub that was killed knows its nodes' addresses and nothing of their connections, and a node that has nothing to
//! send would not notice for many seconds. A node that hears a knock sends something; the hub answers what it can't
//! place with a stateless reset (RFC 9000, section 10.3), and the node connects again. A knock carries nothing and
//! proves nothing: a forged one costs a node one packet, at most every [`HEARD_EVERY`].

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::Notify;

/// The datagram. Neither a long nor a short QUIC header begins so (RFC 9000, section 17), so QUIC drops it.
pub(crate) const KNOCK: &[u8] = b"\x00hyperfactory knock";

/// Knocks that follow another within this are not heard.
const HEARD_EVERY: Duration = Duration::from_secs(2);

/// A node's socket that hears knocks.
pub(crate) struct Listening {
    inner: Arc<dyn AsyncUdpSocket>,
    heard: Arc<Notify>,
    last: Mutex<Option<Instant>>,
}

impl Listening {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>, heard: Arc<Notify>) -> Self {
        Self { inner, heard, last: Mutex::new(None) }
    }

    fn hear(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= HEARD_EVERY) {
            *last = Some(Instant::now());
            self.heard.notify_waiters();
        }
    }
}

impl AsyncUdpSocket for Listening {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(context, buffers, meta);
        if let Poll::Ready(Ok(count)) = received {
            let datagrams = buffers.iter().zip(meta.iter()).take(count);
            for (buffer, meta) in datagrams {
                // The kernel joins equal datagrams of one sender: the first of them tells.
                if meta.stride == KNOCK.len() && buffer.starts_with(KNOCK) {
                    self.hear();
                }
            }
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").field("inner", &self.inner).finish_non_exhaustive()
    }
}
