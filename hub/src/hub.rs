//! The whole hub: opened, run until told to stop, drained.

use std::fs::DirBuilder;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use pki::tls::{HubCertificate, HubChain, HubTls, TrustedRoots, server_config, system_clock};
use protocol::Timestamp;
use protocol::message::RefusalCode;
use serde::{Deserialize, Serialize};
use store::Database;
use store::group::Limits;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use transport::{CloseCode, Endpoint, EndpointError, ResetKey, ServerLimits};

use crate::access::Access;
use crate::alerts::Alerts;
use crate::audit::publish::{Publisher, Webhook};
use crate::authorities::{Authorities, HubServer, RENEW_FOR_NODES};
use crate::commands::{Commands, SteadyClock};
use crate::config::{Config, Encryption};
use crate::enrollment::{self, Enrollment};
use crate::gateway::{self, Gateway};
use crate::kafka_access::KafkaAccess;
use crate::keys::Keys;
use crate::logs;
use crate::metrics::Metrics;
use crate::revocation_lists::RevocationLists;
use crate::rollouts::Rollouts;
use crate::rotation::Rotations;
use crate::schema;
use crate::service::{self, Vitals};
use crate::tails::Tails;
use crate::telemetry::history::{History, Upkeep};
use crate::telemetry::ingest::Ingest;
use crate::telemetry::state::Fleet;
use crate::tenants::Tenants;
use crate::upkeep;
use crate::web::{self, AppState, Door, Https, Server};

/// How long sessions may take to say goodbye, and what is queued to be stored, when the hub stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// What a thousand nodes that come back at once need.
const RECEIVE_BUFFER_WANTED: usize = 4 * 1024 * 1024;
/// How long the last packets to closed connections may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Knocks sent together, and the pause after them: 2,000 nodes within a second.
const KNOCKS_AT_ONCE: usize = 20;
/// See [`KNOCKS_AT_ONCE`].
const KNOCK_PAUSE: Duration = Duration::from_millis(10);
/// How often the hub looks at its own certificate, and whether another hub has taken a step of a rotation.
const LOOK_AT_TRUST: Duration = Duration::from_secs(10);
/// How often it looks whether an intermediate has to be followed.
const LOOK_AT_INTERMEDIATES: Duration = Duration::from_secs(3600);

/// Where a running hub listens; written to `endpoints.json` in the state directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    /// Address of the QUIC socket.
    pub quic: SocketAddr,
    /// Base URL of dashboard and API.
    pub http: String,
}

impl Endpoints {
    /// File name in the state directory.
    pub const FILE: &str = "endpoints.json";

    /// Base URL of dashboard and API: as configured, or of the hub that runs, or by default.
    ///
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn of(config: &Config) -> Result<String, settings::SettingsError> {
        let scheme = if config.encryption()? == Encryption::Off { "http" } else { "https" };
        let configured = config.public()?.map(|url| url.base);
        Ok(configured
            .or_else(|| Self::read(&config.state_dir).map(|endpoints| endpoints.http))
            .unwrap_or_else(|| format!("{scheme}://{}", reachable(config.http_listen))))
    }

    fn write(&self, state_dir: &Path) -> anyhow::Result<()> {
        let (file, new) = (state_dir.join(Self::FILE), state_dir.join("endpoints.json.new"));
        let write = || std::fs::write(&new, serde_json::to_vec(self)?).and_then(|()| std::fs::rename(&new, &file));
        write().with_context(|| format!("cannot write {}", file.display()))
    }

    /// Those of the hub that runs, or last ran, in `state_dir`.
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state_dir.join(Self::FILE)).ok()?).ok()
    }
}

/// What every verb of the program needs: the database and what stands on it.
pub struct Domain {
    /// The database, migrated.
    pub database: Database,
    /// The fleet's authorities.
    pub authorities: Authorities,
    /// From one authority to the next.
    pub rotations: Rotations,
    /// Tenants.
    pub tenants: Tenants,
    /// Who may see and do what.
    pub access: Access,
    reset_key: ResetKey,
}

impl Domain {
    /// Opens the state directory, the master key and the database.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        private_directory(&config.state_dir)?;
        let database = Database::open(&config.database_url()).await?;
        let ready = database.migrate(schema::MIGRATIONS).await;
        ready.with_context(|| match &config.database {
            None => format!("the hub cannot start with its state in {}", config.state_dir.display()),
            Some(_) => "the hub cannot start with the database it is configured for".to_owned(),
        })?;
        if let Some(advice) = database.guard().await?.advice() {
            warn!("{advice}");
        }
        let keys = Keys::open(&database, &config.master(), now()).await?;
        let authorities = Authorities::open(database.clone(), keys, now())
            .await
            .context("the fleet's authorities can't be opened")?;
        let reset_key = ResetKey(authorities.derive("stateless reset").await?);
        let tenants = Tenants::new(database.clone(), authorities.clone());
        let rotations = Rotations::new(database.clone(), authorities.clone());
        let access = Access::new(database.clone());
        Ok(Self { database, authorities, rotations, tenants, access, reset_key })
    }
}

/// A hub that listens.
pub struct Hub {
    domain: Domain,
    fleet: Fleet,
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
        let (enrollment, issuing) =
            Enrollment::open(database.clone(), authorities, fleet.clone(), settings, sessions, stop_storing.clone())
                .await?;
        storing.spawn(issuing);
        let _ = list.set(enrollment.clone());

        let (ingest, committing) =
            Ingest::start(database.clone(), fleet.clone(), Limits::default(), stop_storing.clone()).await?;
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
        let clock = SteadyClock::open(&database, now()).await?;
        let (commands, keeping) =
            Commands::start(database.clone(), Arc::clone(&registry), clock, now, stop_storing.clone());
        storing.spawn(keeping);
        let rollouts = Rollouts::new(database.clone(), commands.clone(), fleet.clone(), alerts.clone());
        storing.spawn(rollouts.keep(now, stop_storing.clone()));
        let kafka_access = KafkaAccess::new(database.clone(), commands.clone(), fleet.clone());
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
        if let Some(endpoint) = config.loki()? {
            let pusher = logs::Pusher::new(database.clone(), Arc::clone(&metrics), endpoint)?;
            storing.spawn(pusher.keep(stop_storing.clone()));
        }
        storing.spawn(logs::Upkeep::new(database.clone(), bounds).keep(now, stop_storing.clone()));

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
            alerts,
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
            shutdown: shutdown.clone(),
        });
        Ok(Self {
            domain,
            fleet,
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
        let rotations = self.domain.rotations.clone();
        sessions.spawn(self.gateway.metrics.rotations.clone().watch(rotations, now, shutdown.clone()));
        sessions.spawn(knock(self.endpoint.clone(), self.orphans, shutdown.clone()));
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

/// Tells the nodes of the hub's last life that it is back, without a burst that would overflow a buffer.
async fn knock(endpoint: Endpoint, orphans: Vec<SocketAddr>, shutdown: CancellationToken) {
    for few in orphans.chunks(KNOCKS_AT_ONCE) {
        for address in few {
            endpoint.knock(*address);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(KNOCK_PAUSE) => {}
        }
    }
}

/// Replaces the hub's own certificate well before it ends, and when a step of a rotation wants another one. Then it also
/// judges nodes by the fleet's new roots, and tells those that are in session.
async fn keep_certified(
    domain: (Authorities, Rotations),
    gateway: Arc<Gateway>,
    certificate: HubCertificate,
    mut until: Timestamp,
    trusted: TrustedRoots,
    shutdown: CancellationToken,
) {
    let (authorities, rotations) = domain;
    let mut roots = authorities.watch_roots();
    let mut told = authorities.roots();
    // Whether a step has been taken that this hub has not followed in all. One may have been its last act before it ended.
    let mut behind = true;
    let mut intermediates = Instant::now() + LOOK_AT_INTERMEDIATES;
    loop {
        if !behind {
            behind = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = roots.changed() => changed.is_ok(),
                () = tokio::time::sleep(LOOK_AT_TRUST) => false,
            };
        }
        if let Err(error) = authorities.look(now()).await {
            warn!(%error, "the fleet's roots were not read again");
        }
        if Instant::now() >= intermediates {
            intermediates = Instant::now() + LOOK_AT_INTERMEDIATES;
            follow(&authorities).await;
        }
        let now_trusted = roots.borrow_and_update().clone();
        if now_trusted.step != told.step {
            behind = true;
            gateway.registry.kafka(&"a step of a rotation".into());
        }
        if !now_trusted.same(&told) {
            behind = true;
            if let Err(error) = trusted.replace(&now_trusted.trusted) {
                warn!(%error, "the fleet's new roots can't be read; nodes are judged by those before");
            }
            gateway.registry.trust(&Arc::new(now_trusted.trust()));
        }
        told = now_trusted;
        if !behind && now() < until.minus(RENEW_FOR_NODES) {
            continue;
        }
        let followed = async {
            let shown = authorities.hub_server(now()).await?;
            certificate.replace(chain(&shown)?, &shown.key)?;
            if shown.not_after != until {
                info!(not_after = %shown.not_after, "the hub has a new server certificate");
                until = shown.not_after;
            }
            rotations.advise(&gateway.enrollment, now()).await?;
            anyhow::Ok(())
        };
        match followed.await {
            Ok(()) => behind = false,
            Err(error) => {
                warn!(error = format!("{error:#}"), %until, "the hub could not renew its server certificate, or not go on from there");
                if shutdown.run_until_cancelled(tokio::time::sleep(LOOK_AT_TRUST)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Follows the intermediates whose time has come. A hub that can't do it serves all the same: they last for months yet.
async fn follow(authorities: &Authorities) {
    if let Err(error) = authorities.follow(now()).await {
        warn!(
            error = crate::rows::chain(&error),
            "an intermediate whose time has come is not followed by a new one yet"
        );
    }
}

fn served(shown: &HubServer) -> anyhow::Result<HubCertificate> {
    Ok(HubCertificate::new(chain(shown)?, &shown.key)?)
}

fn chain(shown: &HubServer) -> anyhow::Result<HubChain> {
    let (links, roots) = (shown.roots.links.clone(), shown.roots.trusted.clone());
    match shown.chain.as_slice() {
        [leaf, intermediate] => Ok(HubChain { leaf: leaf.clone(), intermediate: intermediate.clone(), links, roots }),
        _ => bail!("the hub's certificate chain is not leaf and intermediate"),
    }
}

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    TcpListener::bind(config.http_listen).await.with_context(|| {
        format!(
            "cannot listen on TCP {}: see who has the port with `ss -tlnp`, or set http-listen \
             (HYPERFACTORY_HUB_HTTP_LISTEN) to another address",
            config.http_listen
        )
    })
}

/// What a node dials when nobody configured it: this machine's name, or loopback when the hub listens there alone.
fn dialed(quic: SocketAddr) -> String {
    if quic.ip().is_unspecified() {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{name}:{}", quic.port())
    } else {
        quic.to_string()
    }
}

/// An address to open in a browser on this machine.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => address,
        IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
    }
}

/// Makes a directory that only this user can enter.
fn private_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
        format!(
            "cannot make the state directory {}: run as a user who may, or choose another with --state-dir",
            path.display()
        )
    })
}
