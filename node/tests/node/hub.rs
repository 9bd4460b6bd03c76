//! A hub small enough to read, on the real protocol, certificates and transport, that a test can make misbehave.

mod serving;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pki::tls::{HubCertificate, HubChain, HubTls, TimeProvider, TrustedRoots, UnixTime, server_config};
use pki::{Authority, CertificateDer, JoinToken, NodeIdentity, PrivateKey, Serial};
use protocol::message::{
    BatchBody, Command, CommandOutcome, Enrolled, RecoverRequest, Refusal, RefusalCode, ToNode, Trust, to_node,
};
use protocol::session::ClockReading;
use protocol::{NodeId, Timestamp};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{CloseCode, Endpoint, ServerLimits};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// What the hub has seen; tests wait on it.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// Serials of the certificates that were issued, by the key they are for.
    pub(crate) issued: HashMap<[u8; 32], Serial>,
    pub(crate) enroll_requests: usize,
    pub(crate) renew_requests: usize,
    /// Requests for recovery, with whether their proof held.
    pub(crate) recoveries: Vec<(RecoverRequest, bool)>,
    /// Roots nodes said they trust, and their trouble.
    pub(crate) trusts: Vec<(Vec<[u8; 32]>, String)>,
    /// Certificates of the sessions that were welcomed.
    pub(crate) sessions: Vec<NodeIdentity>,
    /// Numbers and bodies as they were accepted.
    pub(crate) batches: Vec<(u64, BatchBody)>,
    pub(crate) duplicates: usize,
    pub(crate) lost: Vec<(u64, u64)>,
    /// What came first on each telemetry stream: whether it was a snapshot.
    pub(crate) snapshot_first: Vec<bool>,
    pub(crate) snapshots: Vec<BatchBody>,
    pub(crate) clocks: Vec<ClockReading>,
    pub(crate) outcomes: Vec<CommandOutcome>,
    /// Bytes of batches and of commands' output, in the order in which they came.
    pub(crate) came: Vec<(Came, usize)>,
    pub(crate) goodbyes: Vec<String>,
    pub(crate) violations: Vec<String>,
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Telemetry,
    Output,
}

/// How it misbehaves.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub(crate) lose_enroll_replies: usize,
    pub(crate) lose_renew_replies: usize,
    pub(crate) lose_recover_replies: usize,
    pub(crate) refuse_recovery: Option<Refusal>,
    /// Sends what it recovers with another node's name in it.
    pub(crate) recover_as: Option<NodeId>,
    /// Stops storing, and so acknowledging.
    pub(crate) hold: bool,
    /// Ends the session at the batch after this many.
    pub(crate) break_after: Option<usize>,
    pub(crate) renew_now: bool,
    /// Calls even a new certificate due.
    pub(crate) always_due: bool,
    pub(crate) refuse_session: Option<Refusal>,
    /// Uses a renewed certificate for a session and is cut off for this long before the node hears of it.
    pub(crate) lose_welcome: Option<Duration>,
    /// Knows no certificate after the first, as one whose database is of a time before.
    pub(crate) forget_renewed: bool,
    /// Nor for these keys.
    pub(crate) forgotten: Vec<[u8; 32]>,
    /// Takes who comes with these keys for a copy of the node.
    pub(crate) left_behind: Vec<[u8; 32]>,
    pub(crate) denied: Vec<Serial>,
}

impl Script {
    fn forgets(&self, key: &[u8; 32], sequence: u64) -> bool {
        self.forgotten.contains(key) || self.forget_renewed && sequence > 1
    }
}

/// What a test has the hub do in every session.
#[derive(Clone)]
pub(crate) enum Order {
    Send(ToNode),
    Close(CloseCode, &'static str),
    Goodbye(Duration),
}

/// Unused, or the key it was used for and the answer that was given.
type Token = Option<([u8; 32], Enrolled)>;

/// Whose it is, its number, and itself.
type Leaf = (NodeId, u64, Vec<u8>);

/// What the hub's certificates come from.
struct Issuers {
    root: Authority,
    tenant: Authority,
    roots: Vec<CertificateDer<'static>>,
    links: Vec<CertificateDer<'static>>,
}

struct Shared {
    issuers: Mutex<Issuers>,
    certificate: HubCertificate,
    roots: TrustedRoots,
    clock: Arc<Ahead>,
    /// The newest leaf of every key.
    leaves: Mutex<HashMap<[u8; 32], Leaf>>,
    seen: watch::Sender<Seen>,
    script: Mutex<Script>,
    /// What is stored, by node and epoch.
    stored: Mutex<HashMap<(NodeId, u64), u64>>,
    /// Secrets of the tokens, and the key and answer of the enrollment each was used for.
    tokens: Mutex<HashMap<Vec<u8>, Token>>,
    renewals: Mutex<HashMap<[u8; 32], Vec<Vec<u8>>>>,
    orders: broadcast::Sender<Order>,
}

/// This machine's clock, some way ahead.
#[derive(Debug, Default)]
struct Ahead(AtomicI64);

impl Ahead {
    fn go_ahead(&self, by: Duration) {
        self.0.store(i64::try_from(by.as_millis()).expect("short"), Ordering::SeqCst);
    }

    fn now(&self) -> Timestamp {
        now().plus(Duration::from_millis(self.0.load(Ordering::SeqCst).unsigned_abs()))
    }
}

impl TimeProvider for Ahead {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now().seconds().unsigned_abs())))
    }
}

pub(crate) struct TestHub {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl TestHub {
    pub(crate) fn start() -> Self {
        Self::start_at(now())
    }

    /// A hub whose certificates were made at `at`.
    pub(crate) fn start_at(at: Timestamp) -> Self {
        let issuers = Issuers::new(at);
        let (chain, key) = issuers.server(at);
        let shared = Arc::new(Shared {
            roots: TrustedRoots::new(&issuers.roots).expect("a root"),
            certificate: HubCertificate::new(chain, &key).expect("a pair"),
            issuers: Mutex::new(issuers),
            clock: Arc::default(),
            leaves: Mutex::default(),
            seen: watch::Sender::new(Seen::default()),
            script: Mutex::default(),
            stored: Mutex::default(),
            tokens: Mutex::default(),
            renewals: Mutex::default(),
            orders: broadcast::channel(16).0,
        });
        let asked = Arc::clone(&shared);
        let tls = server_config(HubTls {
            roots: shared.roots.clone(),
            certificate: shared.certificate.clone(),
            denied: Arc::new(move |identity: &NodeIdentity| {
                asked.script.lock().expect("whole").denied.contains(&identity.serial)
            }),
            clock: shared.clock.clone(),
        })
        .expect("a configuration");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Endpoint::server(address, tls, ServerLimits::default()).expect("a socket");
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(serving::serve(Arc::clone(&shared), endpoint.clone(), tasks.clone(), shutdown.clone()));
        Self { shared, endpoint, tasks, shutdown }
    }

    pub(crate) fn address(&self) -> String {
        self.endpoint.local_addr().expect("bound").to_string()
    }

    pub(crate) fn token(&self) -> JoinToken {
        self.token_at(&self.address())
    }

    /// A token that says that the hub is at `address`.
    pub(crate) fn token_at(&self, address: &str) -> JoinToken {
        let pin = self.shared.issuers.lock().expect("whole").root.spki_sha256();
        let token = JoinToken::generate(address, pin).expect("a token");
        self.shared.tokens.lock().expect("whole").insert(token.secret.to_vec(), None);
        token
    }

    /// Sets the hub's clock ahead.
    pub(crate) fn ahead(&self, by: Duration) {
        self.shared.clock.go_ahead(by);
    }

    /// The list of roots as the hub sends it.
    pub(crate) fn trust(&self) -> Trust {
        self.shared.issuers.lock().expect("whole").trust()
    }

    /// Makes a next root, linked to the one there is, and trusts both.
    pub(crate) fn prepare_root(&self) -> Authority {
        let next = Authority::create_root(now(), DAY * 3650).expect("a root");
        let mut issuers = self.shared.issuers.lock().expect("whole");
        let link = issuers.root.link(next.certificate_der(), now()).expect("a link");
        issuers.links.push(link);
        issuers.roots.push(next.certificate_der().clone());
        self.shared.roots.replace(&issuers.roots).expect("roots");
        next
    }

    /// Issues from this root from now on.
    pub(crate) fn issue_from(&self, root: Authority) {
        let mut issuers = self.shared.issuers.lock().expect("whole");
        issuers.tenant = tenant_authority(&root, now());
        issuers.root = root;
        let (chain, key) = issuers.server(now());
        self.shared.certificate.replace(chain, &key).expect("a pair");
    }

    /// Trusts the root that issues, and no other.
    pub(crate) fn retire_roots(&self) {
        let mut issuers = self.shared.issuers.lock().expect("whole");
        issuers.roots = vec![issuers.root.certificate_der().clone()];
        self.shared.roots.replace(&issuers.roots).expect("roots");
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().expect("whole"));
    }

    pub(crate) fn order(&self, order: Order) {
        assert!(self.shared.orders.send(order).is_ok(), "no session is up");
    }

    pub(crate) fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    /// Waits until the hub has seen something.
    pub(crate) async fn until(&self, what: &str, reached: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.shared.seen.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), seen.wait_for(reached)).await;
        waited.unwrap_or_else(|_| panic!("the hub never saw {what}")).expect("a hub").clone()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.endpoint.close(CloseCode::Draining, "");
        self.tasks.close();
        self.tasks.wait().await;
        assert_eq!(self.seen().violations, Vec::<String>::new());
    }
}

impl Issuers {
    fn new(at: Timestamp) -> Self {
        let root = Authority::create_root(at, DAY * 3650).expect("a root");
        let roots = vec![root.certificate_der().clone()];
        Self { tenant: tenant_authority(&root, at), root, roots, links: Vec::new() }
    }

    fn server(&self, at: Timestamp) -> (HubChain, PrivateKey) {
        let hub = self.root.issue_hub_intermediate(at, DAY * 365).expect("an intermediate");
        let key = PrivateKey::generate().expect("a key");
        let leaf = hub.issue_hub_server(&key.public_key(), at).expect("a certificate").into();
        let intermediate = hub.certificate_der().clone();
        (HubChain { leaf, intermediate, links: self.links.clone(), roots: self.roots.clone() }, key)
    }

    fn trust(&self) -> Trust {
        let ders = |list: &[CertificateDer<'static>]| list.iter().map(|der| der.to_vec()).collect();
        Trust { roots: ders(&self.roots), links: ders(&self.links) }
    }
}

fn tenant_authority(root: &Authority, at: Timestamp) -> Authority {
    root.issue_tenant_intermediate(&"acme".parse().expect("a slug"), at, DAY * 365).expect("an intermediate")
}

pub(crate) fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

pub(crate) fn refusal(code: RefusalCode, message: &str) -> Refusal {
    Refusal { code: code.into(), message: message.into(), retry_after_ms: 0 }
}

pub(crate) fn command() -> ToNode {
    let command = Command { command_id: vec![7; 16], action: "restart".into(), ..Command::default() };
    ToNode { message: Some(to_node::Message::Command(command)) }
}
