//! Admission: who may start a handshake, who may enroll, and who becomes a session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pki::recovery::EXPORTER_LABEL;
use protocol::Timestamp;
use protocol::frame::MAX_ENROLL;
use protocol::message::{
    Challenge, EnrollReply, EnrollRequest, RecoverProof, RecoverReply, RecoverRequest, Refusal, RefusalCode,
    enroll_reply, recover_reply,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use transport::{Alpn, CloseCode, Connection, Endpoint, Incoming};

use super::Gateway;
use super::pulse::Asked;
use super::rate::{Rate, RateLimit};
use super::session;

/// How admission works. The defaults suit one hub on two cores.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// Handshakes under way at once. More would take longer in all: the receive buffer overflows, packets are sent again.
    pub handshakes: usize,
    /// A handshake that takes longer is dropped.
    pub handshake_deadline: Duration,
    /// Connections that may be enrolling at once.
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
    let admission = gateway.admission;
    let door = Arc::new(Door {
        handshakes: Arc::new(Semaphore::new(admission.handshakes)),
        enrolling: Arc::new(Semaphore::new(admission.enrolling)),
        rate: RateLimit::new(
            Rate(admission.enrollments_per_second.into()),
            Rate(admission.enrollments_per_source.into()),
            Instant::now(),
        ),
    });
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
        // Under load an address must prove itself first (RFC 9000, section 8.1.2), so that forged ones cost us no handshake.
        if door.handshakes.available_permits() < admission.handshakes / 2 && !incoming.validated() {
            gateway.metrics.retries.inc();
            incoming.retry();
            continue;
        }
        tasks.spawn(admit(gateway.clone(), door.clone(), incoming, permit, tasks.clone(), shutdown.clone()));
    }
}

struct Door {
    handshakes: Arc<Semaphore>,
    enrolling: Arc<Semaphore>,
    rate: RateLimit,
}

async fn admit(
    gateway: Arc<Gateway>,
    door: Arc<Door>,
    incoming: Incoming,
    permit: OwnedSemaphorePermit,
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
    drop(permit);
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
    let Ok(_place) = door.enrolling.try_acquire() else {
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
    let Ok(_place) = door.enrolling.try_acquire() else {
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
