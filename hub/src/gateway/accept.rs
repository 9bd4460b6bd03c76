//! Admission: who may start a handshake, who may enroll, and who becomes a session.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pki::recovery::EXPORTER_LABEL;
use protocol::Timestamp;
use protocol::frame::MAX_ENROLL;
use protocol::message::{
    Challenge, EnrollReply, EnrollRequest, RecoverProof, RecoverReply, RecoverRequest, Refusal, RefusalCode,
    enroll_reply, recover_reply,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use transport::{Alpn, CloseCode, Connection, Endpoint, Incoming};

use super::Gateway;
use super::pulse::Asked;
use super::rate::{Rate, RateLimit, network};
use super::session;
use crate::seats::{Seat, Seats};

/// How admission works. The defaults suit one hub on two cores.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// Handshakes under way at once. More would take longer in all: the receive buffer overflows, packets are sent again.
    /// One source, an IPv4 address or an IPv6 /64, has at most a quarter of them.
    pub handshakes: usize,
    /// A handshake that takes longer is dropped.
    pub handshake_deadline: Duration,
    /// Connections that may be enrolling at once. One source has at most a quarter of them.
    pub enrolling: usize,
    /// An enrollment that takes longer is dropped.
    pub enrollment_deadline: Duration,
    /// Enrollments a second, in all.
    pub enrollments_per_second: u32,
    /// Enrollments a second from one IPv4 address or IPv6 /64.
    pub enrollments_per_source: u32,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            handshakes: 64,
            handshake_deadline: Duration::from_secs(5),
            enrolling: 64,
            enrollment_deadline: Duration::from_secs(10),
            enrollments_per_second: 500,
            enrollments_per_source: 20,
        }
    }
}

/// Accepts connections until `shutdown`, then leaves the endpoint to its owner. Between two it answers whoever takes
/// its pulse.
pub(crate) async fn accept(
    gateway: Arc<Gateway>,
    endpoint: Endpoint,
    tasks: TaskTracker,
    mut pulse: Asked,
    shutdown: CancellationToken,
) {
    let door = Arc::new(Door::new(gateway.admission));
    loop {
        // The permit comes first: what waits for one stays in the endpoint's own bounded queue.
        let permit = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            true = pulse.answer() => continue,
            permit = door.handshakes.clone().acquire_owned() => permit,
        };
        let Ok(permit) = permit else { return };
        let incoming = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            true = pulse.answer() => continue,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        match door.entry(incoming.remote_address().ip(), incoming.validated()) {
            Entry::Handshake(seat) => {
                let place = (permit, seat);
                tasks.spawn(admit(gateway.clone(), door.clone(), incoming, place, tasks.clone(), shutdown.clone()));
            }
            Entry::Retry => {
                gateway.metrics.retries.inc();
                incoming.retry();
            }
            Entry::Later => {
                gateway.metrics.put_off.inc();
                incoming.refuse();
            }
        }
    }
}

struct Door {
    admission: Admission,
    handshakes: Arc<Semaphore>,
    enrolling: Semaphore,
    /// Who has how many places for a handshake, and for an enrollment.
    shaking: Seats<IpAddr>,
    seated: Seats<IpAddr>,
    rate: RateLimit,
}

/// What a client is told that would like to connect.
enum Entry {
    /// To go on; it has a place of its source's.
    Handshake(Seat<IpAddr>),
    /// To prove its address first (RFC 9000, section 8.1.2).
    Retry,
    /// To come again: its source has its share.
    Later,
}

impl Door {
    fn new(admission: Admission) -> Self {
        Self {
            admission,
            handshakes: Arc::new(Semaphore::new(admission.handshakes)),
            enrolling: Semaphore::new(admission.enrolling),
            shaking: Seats::default(),
            seated: Seats::default(),
            rate: RateLimit::new(
                Rate(admission.enrollments_per_second.into()),
                Rate(admission.enrollments_per_source.into()),
                Instant::now(),
            ),
        }
    }

    /// Under load, in all or of its source, an address must prove itself first: so forged ones cost no handshake, and nobody
    /// their share.
    fn entry(&self, address: IpAddr, validated: bool) -> Entry {
        let share = share(address, self.admission.handshakes);
        let is_crowded = self.handshakes.available_permits() < self.admission.handshakes / 2;
        let most = if validated {
            share
        } else if is_crowded {
            0
        } else {
            share.div_ceil(2)
        };
        match self.shaking.seat(network(address), most) {
            Some(seat) => Entry::Handshake(seat),
            None if validated => Entry::Later,
            None => Entry::Retry,
        }
    }

    /// A place for an enrollment or a recovery; `None` when all are taken, or the share of its source.
    fn seat(&self, address: IpAddr) -> Option<(SemaphorePermit<'_>, Seat<IpAddr>)> {
        let seat = self.seated.seat(network(address), share(address, self.admission.enrolling))?;
        Some((self.enrolling.try_acquire().ok()?, seat))
    }
}

/// How many of `places` one source may have, so that nobody has them all. A proxy on loopback brings everybody's.
fn share(source: IpAddr, places: usize) -> usize {
    if source.to_canonical().is_loopback() { usize::MAX } else { places.div_ceil(4) }
}

async fn admit(
    gateway: Arc<Gateway>,
    door: Arc<Door>,
    incoming: Incoming,
    place: (OwnedSemaphorePermit, Seat<IpAddr>),
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let remote = incoming.remote_address();
    let connection = match tokio::time::timeout(gateway.admission.handshake_deadline, incoming.accept()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            gateway.metrics.handshakes_failed.inc();
            debug!(%remote, %error, "handshake failed");
            return;
        }
        Err(_) => {
            gateway.metrics.handshakes_failed.inc();
            debug!(%remote, "handshake took too long");
            return;
        }
    };
    drop(place);
    gateway.metrics.handshakes.inc();
    match (connection.alpn(), connection.peer().node().cloned()) {
        // A task of its own: a session need not carry what admission took for as long as it lasts.
        (Alpn::Session, Some(identity)) => drop(tasks.spawn(session::run(gateway, connection, identity, shutdown))),
        (Alpn::Enroll, _) => enroll(&gateway, &door, connection, remote).await,
        (Alpn::Recover, _) => recover(&gateway, &door, connection, remote).await,
        // The endpoint lets none of these through.
        (Alpn::Session, None) => connection.close(CloseCode::Refused, "a session needs a certificate"),
    }
}

async fn enroll(gateway: &Gateway, door: &Door, connection: Connection, remote: SocketAddr) {
    let Some(_place) = door.seat(remote.ip()) else {
        gateway.metrics.put_off.inc();
        connection.close(CloseCode::Draining, "too many enrollments at once; try again");
        return;
    };
    let deadline = gateway.admission.enrollment_deadline;
    let exchange = async {
        let (mut writer, mut reader) = connection.accept(MAX_ENROLL).await?;
        let Some(request) = reader.recv::<EnrollRequest>().await? else { return Ok(()) };
        let reply = match door.rate.take(remote.ip(), Instant::now()) {
            Ok(()) => judge(gateway, request, remote).await,
            Err(wait) => {
                gateway.metrics.enrollments_limited.inc();
                let message = "The hub limits how fast nodes enroll. This node will try again by itself.";
                enroll_reply::Reply::Refusal(busy(message, wait))
            }
        };
        writer.send(&EnrollReply { reply: Some(reply) }).await?;
        writer.finish().await?;
        // Closing must not overtake the reply.
        writer.delivered().await
    };
    match tokio::time::timeout(deadline, exchange).await {
        Ok(Ok(())) => connection.close(CloseCode::Done, ""),
        Ok(Err(error)) => {
            debug!(%remote, %error, "enrollment broken off");
            connection.close(CloseCode::Malformed, &error.to_string());
        }
        Err(_) => connection.close(CloseCode::Timeout, "enrollment took too long"),
    }
}

/// Recovery shares places and limits with enrollment: both are for strangers, and cost about the same.
async fn recover(gateway: &Gateway, door: &Door, connection: Connection, remote: SocketAddr) {
    let Some(_place) = door.seat(remote.ip()) else {
        gateway.metrics.put_off.inc();
        connection.close(CloseCode::Draining, "too many recoveries at once; try again");
        return;
    };
    let exchange = async {
        let (mut writer, mut reader) = connection.accept(MAX_ENROLL).await?;
        let Some(request) = reader.recv::<RecoverRequest>().await? else { return Ok(()) };
        let reply = |reply| RecoverReply { reply: Some(reply) };
        let asked = match door.rate.take(remote.ip(), Instant::now()) {
            Ok(()) => gateway.enrollment.challenge(request, remote.ip(), now()).await,
            Err(wait) => {
                gateway.metrics.enrollments_limited.inc();
                Err(busy("The hub limits how fast nodes recover. This node will try again by itself.", wait))
            }
        };
        let answer = match asked {
            Ok(asked) => {
                let challenge = Challenge { nonce: asked.nonce().to_vec() };
                writer.send(&reply(recover_reply::Reply::Challenge(challenge))).await?;
                let Some(proof) = reader.recv::<RecoverProof>().await? else { return Ok(()) };
                let exporter = connection.export(EXPORTER_LABEL)?;
                gateway.enrollment.recover(asked, &exporter, &proof.signature, remote.ip(), now()).await
            }
            Err(refusal) => Err(refusal),
        };
        let answer = answer.map_or_else(
            |refusal| {
                warn!(%remote, reason = %refusal.message, "recovery refused");
                recover_reply::Reply::Refusal(refusal)
            },
            recover_reply::Reply::Recovered,
        );
        writer.send(&reply(answer)).await?;
        writer.finish().await?;
        // Closing must not overtake the reply.
        writer.delivered().await
    };
    match tokio::time::timeout(gateway.admission.enrollment_deadline, exchange).await {
        Ok(Ok(())) => connection.close(CloseCode::Done, ""),
        Ok(Err(error)) => {
            debug!(%remote, %error, "recovery broken off");
            connection.close(CloseCode::Malformed, &error.to_string());
        }
        Err(_) => connection.close(CloseCode::Timeout, "recovery took too long"),
    }
}

fn busy(message: &str, wait: Duration) -> Refusal {
    Refusal {
        code: RefusalCode::Busy.into(),
        message: message.into(),
        retry_after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1),
    }
}

fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

async fn judge(gateway: &Gateway, request: EnrollRequest, remote: SocketAddr) -> enroll_reply::Reply {
    match gateway.enrollment.enroll(request, remote.ip(), now()).await {
        Ok(enrolled) => enroll_reply::Reply::Enrolled(enrolled),
        Err(refusal) => {
            warn!(%remote, reason = %refusal.message, "enrollment refused");
            enroll_reply::Reply::Refusal(refusal)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Those who come from `address` until they are told something else.
    fn shaking(door: &Door, address: IpAddr, validated: bool) -> (Vec<Seat<IpAddr>>, Entry) {
        let mut seats = Vec::new();
        loop {
            match door.entry(address, validated) {
                Entry::Handshake(seat) if seats.len() < 1_000 => seats.push(seat),
                entry => return (seats, entry),
            }
        }
    }

    #[test]
    fn one_source_has_a_quarter_of_the_handshakes_and_must_prove_its_address_for_half_of_that() {
        let door = Door::new(Admission::default());
        let (forged, said) = shaking(&door, address("2001:db8::1"), false);
        assert!(forged.len() == 8 && matches!(said, Entry::Retry));
        let (there, said) = shaking(&door, address("2001:db8::2"), true);
        assert!(there.len() == 8 && matches!(said, Entry::Later), "one /64 is one source");
        assert!(matches!(door.entry(address("192.0.2.1"), false), Entry::Handshake(_)), "nobody else's");
        drop(there);
        assert!(matches!(door.entry(address("2001:db8::2"), true), Entry::Handshake(_)), "it comes again");
        let (proxied, _) = shaking(&door, address("::ffff:127.0.0.1"), true);
        assert_eq!(proxied.len(), 1_000);
    }

    #[test]
    fn one_source_has_a_quarter_of_the_places_for_enrollment() {
        let door = Door::new(Admission::default());
        let mut seats: Vec<_> = std::iter::from_fn(|| door.seat(address("192.0.2.1"))).take(64).collect();
        assert_eq!(seats.len(), 16);
        assert!(door.seat(address("192.0.2.2")).is_some());
        seats.pop();
        assert!(door.seat(address("192.0.2.1")).is_some());
        let proxied: Vec<_> = std::iter::from_fn(|| door.seat(address("127.0.0.1"))).collect();
        assert_eq!(proxied.len(), 64 - seats.len());
    }
}
