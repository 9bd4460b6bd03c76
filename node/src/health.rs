//! What a node tells local probes: `/healthz`, `/readyz`, `/status` and `/metrics`.

mod metrics;
mod report;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use protocol::message::{BridgeStatus, SpoolFault, SpoolStatus};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use report::{ProbeError, Report, ask};

use crate::link::{Counters, LinkStatus};

/// Samples a loop may miss before it counts as frozen.
const MISSED_SAMPLES: u32 = 3;
/// How long after the end of a session a node still counts as ready: a reconnect is not an outage.
const SESSION_GRACE: Duration = Duration::from_secs(60);

/// Shows that a sampling loop is alive: a process can be up while the loop in it hangs.
#[derive(Debug)]
pub struct Pulse {
    started: Instant,
    /// Milliseconds from `started` to the last beat.
    last: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { started: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// Marks a sample taken.
    pub fn beat(&self) {
        self.last.store(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Time since the last beat, or since the start when there was none.
    pub fn age(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// What the probes read. Nothing here waits: a probe answers while a disk or the network hangs.
pub struct Vitals {
    /// For example `hyperfactory-agent 0.1.0`.
    pub software: String,
    /// The sampling interval, as it is now.
    pub interval: watch::Receiver<Duration>,
    /// The sampling loop's pulse.
    pub pulse: Arc<Pulse>,
    /// The link's state.
    pub link: watch::Receiver<LinkStatus>,
    /// The link's figures.
    pub counters: Arc<Counters>,
    /// The spool's state.
    pub spool: watch::Receiver<SpoolStatus>,
    /// The state of the spool for logs, where logs are shipped.
    pub logs: Option<watch::Receiver<SpoolStatus>>,
    /// How a bridge stands with its brokers; `None` for any other node.
    pub bridge: Option<watch::Receiver<BridgeStatus>>,
}

impl Vitals {
    /// Whether the sampling loop is alive, or why not.
    fn health(&self) -> Result<(), String> {
        let (age, interval) = (self.pulse.age(), *self.interval.borrow());
        if age <= interval * MISSED_SAMPLES {
            return Ok(());
        }
        Err(format!(
            "the last sample is {} s old, the interval is {} s: sampling hangs; restart the service and look at its log",
            age.as_secs(),
            interval.as_secs_f32(),
        ))
    }

    /// Whether samples reach the hub or at least the disk, or why not.
    fn readiness(&self) -> Result<(), String> {
        let link = self.link.borrow();
        if !link.was_up_within(SESSION_GRACE) {
            return Err(format!("no session with the hub: {}", link.state));
        }
        let spool = self.spool.borrow();
        match spool.fault() {
            SpoolFault::DiskFull | SpoolFault::Io => Err(format!("the spool cannot be written: {}", spool.message)),
            SpoolFault::Corrupt | SpoolFault::Unspecified => Ok(()),
        }
    }
}

/// The probes' server, bound and not yet serving.
pub struct Server {
    listener: TcpListener,
    router: Router,
}

impl Server {
    /// Binds `address`.
    ///
    /// # Errors
    /// [`HealthError`] when the port is taken or not ours to take.
    pub async fn bind(address: SocketAddr, vitals: Vitals) -> Result<Self, HealthError> {
        let listener = TcpListener::bind(address).await.map_err(|source| HealthError { address, source })?;
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .route("/metrics", get(exposition))
            .with_state(Arc::new(vitals));
        Ok(Self { listener, router })
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) -> io::Result<()> {
        axum::serve(self.listener, self.router).with_graceful_shutdown(shutdown.cancelled_owned()).await
    }
}

/// The probes' address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve /healthz and /metrics on {address}: is another agent or bridge running, or another program on \
     that port? Choose another with the key `health-listen` in the configuration file"
)]
pub struct HealthError {
    address: SocketAddr,
    source: io::Error,
}

async fn healthz(State(vitals): State<Arc<Vitals>>) -> Response {
    verdict(vitals.health())
}

async fn readyz(State(vitals): State<Arc<Vitals>>) -> Response {
    verdict(vitals.health().and_then(|()| vitals.readiness()))
}

async fn status(State(vitals): State<Arc<Vitals>>) -> Json<Report> {
    Json(Report::of(&vitals))
}

async fn exposition(State(vitals): State<Arc<Vitals>>) -> Response {
    match metrics::exposition(&vitals) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn verdict(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests;
