//! The whole hub: opened, run until told to stop, drained.

mod certificate;
mod domain;
mod endpoints;
mod knock;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::bail;
use pki::tls::{HubCertificate, HubTls, TrustedRoots, server_config, system_clock};
use protocol::Timestamp;
use protocol::message::RefusalCode;
use store::group::Limits;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use transport::{CloseCode, Endpoint, EndpointError, ServerLimits};

use crate::alerts::{self, Alerts};
use crate::audit::publish::{Publisher, Webhook};
use crate::commands::{Commands, SteadyClock};
use crate::config::{Config, Encryption};
use crate::enrollment::{self, Enrollment};
use crate::gateway::{self, Gateway};
use crate::kafka_access::KafkaAccess;
use crate::logs;
use crate::metrics::Metrics;
use crate::revocation_lists::RevocationLists;
use crate::rollouts::Rollouts;
use crate::service::{self, Vitals};
use crate::tails::Tails;
use crate::telemetry::history::{History, Upkeep};
use crate::telemetry::ingest::Ingest;
use crate::telemetry::state::Fleet;
use crate::upkeep;
use crate::web::{self, AppState, Door, Https, Server};
use certificate::{follow, keep_certified, served};
use endpoints::{dialed, listen};

pub use domain::Domain;
pub use endpoints::Endpoints;
pub(crate) use endpoints::reachable;

/// How long sessions may take to say goodbye, and what is queued to be stored, when the hub stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// What a thousand nodes that come back at once need.
const RECEIVE_BUFFER_WANTED: usize = 4 * 1024 * 1024;
/// How long the last packets to closed connections may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A hub that listens.
pub struct Hub {
    domain: Domain,
    fleet: Fleet,
    alerts: Alerts,
    gateway: Arc<Gateway>,
    endpoint: Endpoint,
    certificate: HubCertificate,
    trusted: TrustedRoots,
    server_until: Timestamp,
    http: Server,
    https: Option<Https>,
    reload: Arc<Notify>,
    endpoints: Endpoints,
    state_dir: PathBuf,
    /// Where nodes were whose sessions ended with the hub's last life.
    orphans: Vec<SocketAddr>,
    /// Ends the tasks that store, once the sessions are gone.
    stop_storing: CancellationToken,
    storing: TaskTracker,
}

impl Hub {
    /// Opens everything and listens, but serves nobody yet. `shutdown` also ends what pages keep open.
    ///
    /// # Errors
    /// A sentence for the operator: the port that is taken, the directory that can't be written, …
    pub async fn open(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        let domain = Domain::open(config).await?;
        let database = domain.database.clone();
        let fleet = Fleet::load(&database, now()).await?;
        let orphans = Fleet::left_behind(&database).await?;
        let metrics = Arc::new(Metrics::new()?);
        let https = Https::open(config, &domain.authorities, now()).await?;
        let listener = listen(config).await?;

        // The list of nodes needs the port for its tokens, and the port comes with a configuration that asks the list.
        let list: Arc<OnceLock<Enrollment>> = Arc::default();
        // Before anything looks for authorities that nothing follows.
        follow(&domain.authorities).await;
        let shown = domain.authorities.hub_server(now()).await?;
        let certificate = served(&shown)?;
        let trusted = TrustedRoots::new(&domain.authorities.roots().trusted)?;
        let tls = server_config(HubTls {
            roots: trusted.clone(),
            certificate: certificate.clone(),
            denied: Arc::new({
                let list = Arc::clone(&list);
                move |identity| match list.get().map(|list| list.authorize(identity)) {
                    // An unknown node is told so by a message; a handshake could only say "revoked".
                    Some(Err(refusal)) => refusal.code() == RefusalCode::NodeRevoked,
                    Some(Ok(())) => false,
                    None => true,
                }
            }),
            clock: system_clock(),
        })?;
        let limits = ServerLimits { reset_key: Some(domain.reset_key), ..ServerLimits::default() };
        let endpoint = Endpoint::server(config.quic_listen, tls, limits).map_err(|error| match error {
            EndpointError::Bind { address, source } => anyhow::Error::new(source).context(format!(
                "cannot listen on UDP {address}: see who has the port with `ss -ulnp`, or set quic-listen \
                 (HYPERFACTORY_HUB_QUIC_LISTEN) to another address"
            )),
            error => error.into(),
        })?;
        let quic = endpoint.local_addr()?;

        let address = config.public_address.clone().unwrap_or_else(|| dialed(quic));
        let settings = enrollment::Settings { address, recovery: config.recovery() };
        let registry = Arc::<gateway::Registry>::default();
        let (authorities, sessions) = (domain.authorities.clone(), Arc::clone(&registry));
        let stop_storing = CancellationToken::new();
        let storing = TaskTracker::new();
        storing.spawn(database.clone().keep(stop_storing.clone()));
        let (enrollment, issuing) = Enrollment::open(
            database.clone(),
            authorities,
            fleet.clone(),
            settings,
            sessions,
            Arc::clone(&metrics),
            stop_storing.clone(),
        )
        .await?;
        storing.spawn(issuing);
        let _ = list.set(enrollment.clone());

        // Even a lone delivery waits for company, and one that had some has the next wait longer: fewer transactions, between
        // which commands find SQLite's one writer free. Short enough for a node that is alone and has days to catch up with.
        let limits = Limits { company: Duration::from_millis(10), ..Limits::default() };
        let (ingest, committing) = Ingest::start(database.clone(), fleet.clone(), limits, stop_storing.clone()).await?;
        storing.spawn(committing);
        let (kept, keeping) = logs::Ingest::start(database.clone(), Arc::clone(&metrics), stop_storing.clone()).await?;
        storing.spawn(keeping);
        storing.spawn(fleet.clone().keep(database.clone(), now, stop_storing.clone()));
        let (alerts, judging) = Alerts::start(
            database.clone(),
            fleet.clone(),
            domain.authorities.clone(),
            config.alert_policy(),
            now,
            stop_storing.clone(),
        )
        .await?;
        storing.spawn(judging);
        storing.spawn(alerts::Upkeep::new(database.clone()).keep(now, stop_storing.clone()));
        let clock = SteadyClock::open(&database, now()).await?;
        let (commands, keeping) =
            Commands::start(database.clone(), Arc::clone(&registry), clock, now, stop_storing.clone());
        storing.spawn(keeping);
        let rollouts = Rollouts::new(database.clone(), commands.clone(), fleet.clone(), alerts.clone());
        storing.spawn(rollouts.keep(now, stop_storing.clone()));
        let kafka_access = KafkaAccess::new(database.clone(), commands.clone(), fleet.clone(), alerts.clone());
        storing.spawn(kafka_access.keep(now, stop_storing.clone()));
        let asked = upkeep::Asked::new(database.clone(), config.commands_retention.get());
        storing.spawn(asked.keep(now, stop_storing.clone()));
        let tails = Tails::new(database.clone(), Arc::clone(&registry), Arc::clone(&metrics));
        let webhook = config.audit_heads_webhook.clone().map(Webhook::new).transpose()?;
        let file = config.audit_heads_file.clone();
        let every = config.audit_heads_every.get();
        let publisher = Publisher::new(database.clone(), Arc::clone(&metrics), file, webhook, every);
        storing.spawn(publisher.keep(now, stop_storing.clone()));
        storing.spawn(Upkeep::new(database.clone(), config.retention.get()).keep(now, stop_storing.clone()));
        let bounds = logs::Bounds { retention: config.logs_retention.get(), bytes: config.logs_size.bytes() };
        let loki = config.loki()?;
        let missed = loki.is_some().then(|| Arc::clone(&metrics));
        storing.spawn(logs::Upkeep::new(database.clone(), bounds, missed).keep(now, stop_storing.clone()));
        if let Some(endpoint) = loki {
            let pusher = logs::Pusher::new(database.clone(), Arc::clone(&metrics), endpoint)?;
            storing.spawn(pusher.keep(stop_storing.clone()));
        }

        let shown_http = https.as_ref().map(|https| https.shown().current());
        let http = web::base_url(config, listener.local_addr()?, shown_http.as_deref())?;
        let door = https.as_ref().map(|https| Door::new(https.shown().clone(), &http)).transpose()?;
        if config.is_exposed()? {
            warn!(
                address = %config.http_listen,
                "dashboard and API are served without encryption: whoever is on the way can read passwords and tokens. \
                 Set http-certificate and http-key, or http-tls = \"own\"; or listen on loopback behind a proxy that speaks \
                 HTTPS, and set public-url to its address"
            );
        }
        let gateway = Arc::new(Gateway {
            admission: config.admission(),
            database,
            enrollment,
            fleet: fleet.clone(),
            commands: commands.clone(),
            tails: tails.clone(),
            ingest,
            logs: kept,
            registry,
            metrics,
        });
        let metrics = Arc::clone(&gateway.metrics);
        let counted = Arc::clone(&gateway.metrics);
        let router = web::router(AppState {
            database: gateway.database.clone(),
            tenants: domain.tenants.clone(),
            authorities: domain.authorities.clone(),
            rotations: domain.rotations.clone(),
            rollouts,
            kafka_access,
            enrollment: gateway.enrollment.clone(),
            revocation_lists: RevocationLists::new(gateway.database.clone(), domain.authorities.clone()),
            fleet: fleet.clone(),
            ingest: gateway.ingest.clone(),
            history: History::new(gateway.database.clone()),
            alerts: alerts.clone(),
            commands,
            tails,
            access: domain.access.clone(),
            metrics: Arc::new(move || metrics.text()),
            watch: Arc::new({
                let gateway = Arc::clone(&gateway);
                move |node, live_for| {
                    let _ = gateway.registry.direct(node, gateway::Directive::Pace(live_for));
                }
            }),
            secure: http.starts_with("https:"),
            strict: matches!(config.encryption()?, Encryption::Files(_)),
            clock: now,
            at_work: storing.clone(),
            shutdown: shutdown.clone(),
        });
        Ok(Self {
            domain,
            fleet,
            alerts,
            gateway,
            endpoint,
            certificate,
            trusted,
            server_until: shown.not_after,
            http: Server { listener, door, router, metrics: counted },
            https,
            reload: Arc::default(),
            endpoints: Endpoints { quic, http },
            state_dir: config.state_dir.clone(),
            orphans,
            stop_storing,
            storing,
        })
    }

    /// Where it listens.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Notified, it has the hub read the files of its certificate for HTTPS again.
    pub fn reload(&self) -> Arc<Notify> {
        Arc::clone(&self.reload)
    }

    /// Warns of a receive buffer that is too small for a fleet.
    pub fn judge_receive_buffer(&self) {
        let bytes = self.endpoint.receive_buffer();
        if bytes < RECEIVE_BUFFER_WANTED {
            warn!(
                bytes,
                "the UDP receive buffer is small, and many nodes at once will lose packets: \
                 set the sysctl net.core.rmem_max to {RECEIVE_BUFFER_WANTED} or more"
            );
        }
    }

    /// What stands on the database.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Makes join tokens.
    pub fn enrollment(&self) -> &Enrollment {
        &self.gateway.enrollment
    }

    /// The nodes as last seen.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Serves until `shutdown`, then drains: sessions say goodbye, what was taken in is stored, pages end.
    ///
    /// # Errors
    /// When HTTP breaks down.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        if let Err(error) = self.endpoints.write(&self.state_dir) {
            // Other programs then look where the configuration says. A full disk is no reason to serve nobody.
            warn!(error = format!("{error:#}"), "not written where the hub listens");
        }
        info!(quic = %self.endpoints.quic, http = %self.endpoints.http, "the hub listens");

        let sessions = TaskTracker::new();
        let (pulse, asked) = gateway::pulse();
        sessions.spawn(gateway::accept(
            Arc::clone(&self.gateway),
            self.endpoint.clone(),
            sessions.clone(),
            asked,
            shutdown.clone(),
        ));
        let vitals = Vitals { gateway: pulse, database: self.domain.database.clone() };
        sessions.spawn(service::attend(vitals, shutdown.clone()));
        sessions.spawn(keep_certified(
            (self.domain.authorities.clone(), self.domain.rotations.clone()),
            Arc::clone(&self.gateway),
            self.certificate.clone(),
            self.server_until,
            self.trusted.clone(),
            shutdown.clone(),
        ));
        sessions.spawn(self.gateway.metrics.expiry.clone().watch(
            self.domain.authorities.clone(),
            self.fleet.clone(),
            now,
            shutdown.clone(),
        ));
        sessions.spawn(self.gateway.metrics.alerts.clone().watch(self.alerts, shutdown.clone()));
        let rotations = self.domain.rotations.clone();
        sessions.spawn(self.gateway.metrics.rotations.clone().watch(rotations, now, shutdown.clone()));
        sessions.spawn(knock::knock(self.endpoint.clone(), self.orphans, shutdown.clone()));
        if let Some(https) = self.https {
            let metrics = Arc::clone(&self.gateway.metrics);
            sessions.spawn(https.keep(self.reload, metrics, shutdown.clone()));
        }
        let mut http = JoinSet::new();
        http.spawn(self.http.run(shutdown.clone()));
        let broken = tokio::select! {
            biased;
            () = shutdown.cancelled() => false,
            _ = http.join_next() => true,
        };
        shutdown.cancel();
        service::stopping();

        sessions.close();
        let drained = tokio::time::timeout(DRAIN_DEADLINE, async {
            sessions.wait().await;
            // Pages end by themselves at shutdown; one that does not is cut by the deadline.
            while http.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            warn!("some sessions or pages did not end in time and were cut");
        }
        drop(http);
        self.endpoint.close(CloseCode::Draining, "the hub stops");
        self.stop_storing.cancel();
        self.storing.close();
        self.storing.wait().await;
        let _ = tokio::time::timeout(GOODBYE, self.endpoint.wait_idle()).await;
        self.domain.database.close().await;
        info!("the hub has stopped");
        if broken {
            bail!("dashboard and API have ended by themselves: the log says why");
        }
        Ok(())
    }
}

/// Now, by this machine's clock.
pub fn now() -> Timestamp {
    SystemTime::now().into()
}
