//! A hub, nodes with certificates, peers that speak raw QUIC, and a wire that can be cut.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use hyperfactory_transport::{ConnectError, Connection, Endpoint, ServerLimits};
use pki::authority::{INTERMEDIATE_LIFETIME, NODE_LIFETIME, ROOT_LIFETIME};
use pki::tls::{self, HubCertificate, HubChain, HubTls, TimeProvider, TrustedRoots};
use pki::{Authority, CertificateDer, NodeIdentity, PrivateKey};
use protocol::{NodeId, NodeKind, Timestamp};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

pub(crate) struct Fleet {
    pub(crate) now: Timestamp,
    pub(crate) root: Authority,
    pub(crate) hub: Authority,
    pub(crate) tenant: Authority,
    pub(crate) certificate: HubCertificate,
}

pub(crate) struct Node {
    pub(crate) key: PrivateKey,
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let now = Timestamp::from(SystemTime::now());
        let root = Authority::create_root(now, ROOT_LIFETIME).expect("a root");
        let hub = root.issue_hub_intermediate(now, INTERMEDIATE_LIFETIME).expect("an intermediate");
        let tenant = root
            .issue_tenant_intermediate(&"acme".parse().expect("a slug"), now, INTERMEDIATE_LIFETIME)
            .expect("an intermediate");
        let (key, leaf) = server_pair(&hub, now);
        let certificate = HubCertificate::new(chain(leaf, &hub, &root), &key).expect("a pair");
        Self { now, root, hub, tenant, certificate }
    }

    /// Shows another certificate; gives it.
    pub(crate) fn renew_hub(&self) -> CertificateDer<'static> {
        let (key, leaf) = server_pair(&self.hub, self.now);
        self.certificate.replace(chain(leaf.clone(), &self.hub, &self.root), &key).expect("replaced");
        leaf
    }

    pub(crate) fn node(&self) -> Node {
        let key = PrivateKey::generate().expect("a key");
        let id = NodeId::new(self.now, [1; 10]);
        let leaf =
            self.tenant.issue_node(&key.public_key(), id, NodeKind::Agent, self.now, NODE_LIFETIME).expect("issued");
        Node { key, chain: vec![leaf.into(), self.tenant.certificate_der().clone()] }
    }

    pub(crate) fn server_config(&self) -> Arc<rustls::ServerConfig> {
        self.server_config_with(|_| false)
    }

    pub(crate) fn server_config_with(
        &self,
        denied: impl Fn(&NodeIdentity) -> bool + Send + Sync + 'static,
    ) -> Arc<rustls::ServerConfig> {
        let roots = TrustedRoots::new(&[self.root.certificate_der().clone()]).expect("a root");
        let certificate = self.certificate.clone();
        tls::server_config(HubTls { roots, certificate, denied: Arc::new(denied), clock: tls::system_clock() })
            .expect("tls")
    }

    pub(crate) fn node_config(&self, node: &Node) -> Arc<rustls::ClientConfig> {
        self.node_config_at(node, tls::system_clock())
    }

    pub(crate) fn node_config_at(&self, node: &Node, clock: Arc<dyn TimeProvider>) -> Arc<rustls::ClientConfig> {
        tls::node_config(node.chain.clone(), &node.key, &[self.root.certificate_der().clone()], clock).expect("tls")
    }

    pub(crate) fn enroll_config(&self) -> Arc<rustls::ClientConfig> {
        tls::enroll_config(self.root.spki_sha256(), tls::system_clock()).expect("tls")
    }
}

fn chain(leaf: CertificateDer<'static>, hub: &Authority, root: &Authority) -> HubChain {
    let (intermediate, root) = (hub.certificate_der().clone(), root.certificate_der().clone());
    HubChain { leaf, intermediate, links: Vec::new(), roots: vec![root] }
}

fn server_pair(hub: &Authority, now: Timestamp) -> (PrivateKey, CertificateDer<'static>) {
    let key = PrivateKey::generate().expect("a key");
    let leaf = hub.issue_hub_server(&key.public_key(), now).expect("issued");
    (key, leaf.into())
}

pub(crate) fn listen(fleet: &Fleet) -> Endpoint {
    listen_with(fleet, ServerLimits::default())
}

pub(crate) fn listen_with(fleet: &Fleet, limits: ServerLimits) -> Endpoint {
    Endpoint::server(loopback(), fleet.server_config(), limits).expect("a port")
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Both ends of a connection, or what each end said instead.
pub(crate) async fn dial(
    hub: &Endpoint,
    tls: Arc<rustls::ClientConfig>,
) -> (Result<Connection, ConnectError>, Result<Connection, ConnectError>) {
    let node = Endpoint::client().expect("a port");
    tokio::join!(node.connect(hub.local_addr().expect("bound"), tls), async {
        hub.accept().await.expect("a client").accept().await
    })
}

/// Both ends of a node's session: node's, hub's.
pub(crate) async fn session(fleet: &Fleet, hub: &Endpoint) -> (Connection, Connection) {
    let (node, hub) = dial(hub, fleet.node_config(&fleet.node())).await;
    (node.expect("a session"), hub.expect("a session"))
}

/// A node with good papers and bad manners: its connection is plain quinn.
pub(crate) async fn raw_session(fleet: &Fleet, hub: &Endpoint) -> (quinn::Connection, Connection) {
    let tls = fleet.node_config(&fleet.node());
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("for QUIC");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut settings = quinn::TransportConfig::default();
    settings.send_window(64 * 1024 * 1024);
    config.transport_config(Arc::new(settings));
    let endpoint = quinn::Endpoint::client(loopback()).expect("a port");
    let connecting =
        endpoint.connect_with(config, hub.local_addr().expect("bound"), pki::HUB_SERVER_NAME).expect("dialed");
    let (raw, hub) = tokio::join!(connecting, async { hub.accept().await.expect("a client").accept().await });
    (raw.expect("a session"), hub.expect("a session"))
}

/// Forwards datagrams between one client and `hub`, as many each way as it is allowed.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    allowed: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(hub: SocketAddr, allowed: usize) -> Self {
        let (near, far) = (UdpSocket::bind(loopback()).await, UdpSocket::bind(loopback()).await);
        let (near, far) = (Arc::new(near.expect("a port")), Arc::new(far.expect("a port")));
        let address = near.local_addr().expect("bound");
        let allowed = Arc::new(AtomicUsize::new(allowed));
        let client = Arc::new(std::sync::OnceLock::new());
        let mut tasks = JoinSet::new();
        for out in [true, false] {
            let (near, far, allowed, client) = (near.clone(), far.clone(), allowed.clone(), client.clone());
            tasks.spawn(async move {
                let mut datagram = vec![0; 65536];
                loop {
                    let (from, to) = if out { (&near, &far) } else { (&far, &near) };
                    let Ok((length, sender)) = from.recv_from(&mut datagram).await else { return };
                    if out {
                        let _ = client.set(sender);
                    }
                    let target = if out { Some(hub) } else { client.get().copied() };
                    let pass = allowed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                    if let (Ok(_), Some(target)) = (pass, target) {
                        let _ = to.send_to(&datagram[..length], target).await;
                    }
                }
            });
        }
        Self { address, allowed, _tasks: tasks }
    }

    pub(crate) fn cut(&self) {
        self.allowed.store(0, Ordering::SeqCst);
    }
}

/// Whether a future has to wait, without waiting.
pub(crate) fn waits<T>(future: impl Future<Output = T>) -> bool {
    matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}
