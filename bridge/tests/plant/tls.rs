//! TLS in front of a broker that speaks none, with the certificates of a tenant's Kafka plane.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use pki::{Authority, CertificateDer, PrivateKey, ServerNames};
use protocol::{NodeId, TenantId};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

const DAY: Duration = Duration::from_secs(86_400);
const HOST: &str = "127.0.0.1";

/// A tenant's Kafka root, and certificates from it.
pub(crate) struct Plane(Authority);

impl Plane {
    pub(crate) fn of(tenant: &str) -> Self {
        let tenant: TenantId = tenant.parse().unwrap();
        Self(Authority::create_kafka_root(&tenant, SystemTime::now().into(), DAY * 365).unwrap())
    }

    /// Writes what a broker is judged by.
    pub(crate) fn write_authority(&self, file: &Path) {
        std::fs::write(file, pki::pem::certificates([self.0.certificate_der()])).unwrap();
    }

    /// Writes a new key and a certificate for it, one after the other, as programs do.
    pub(crate) fn write_client(&self, bridge: NodeId, certificate: &Path, key: &Path) {
        let private = PrivateKey::generate().unwrap();
        let now = SystemTime::now().into();
        let leaf = CertificateDer::from(self.0.issue_kafka_client(&private.public_key(), bridge, now, DAY).unwrap());
        std::fs::write(key, private.to_pem().as_bytes()).unwrap();
        std::fs::write(certificate, pki::pem::certificates([&leaf, self.0.certificate_der()])).unwrap();
    }

    fn server(&self) -> rustls::ServerConfig {
        let private = PrivateKey::generate().unwrap();
        let names = ServerNames::new(&[], &[HOST.parse().unwrap()]).unwrap();
        let leaf = self.0.issue_kafka_server(&private.public_key(), &names, SystemTime::now().into(), DAY).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.0.certificate_der().clone()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![leaf.into()], PrivateKeyDer::Pkcs8(private.to_pkcs8().to_vec().into()))
            .unwrap()
    }
}

/// The front. It ends with the test's process.
pub(crate) struct Front {
    address: String,
    clients: Arc<Mutex<HashSet<Vec<u8>>>>,
}

impl Front {
    /// Stands before the one broker at `broker`, which names itself in what it says: that is replaced by the front's address.
    pub(crate) fn before(broker: &str, plane: &Plane) -> Self {
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let names = (named(broker.rsplit_once(':').unwrap().1.parse().unwrap()), named(port));
        let acceptor = TlsAcceptor::from(Arc::new(plane.server()));
        let clients = Arc::<Mutex<HashSet<Vec<u8>>>>::default();
        let (seen, broker) = (Arc::clone(&clients), broker.to_owned());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let mut tasks = tokio::task::JoinSet::new();
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let (acceptor, seen, broker, names) =
                        (acceptor.clone(), Arc::clone(&seen), broker.clone(), names.clone());
                    tasks.spawn(async move {
                        let Ok(client) = acceptor.accept(socket).await else { return };
                        let shown = client.get_ref().1.peer_certificates().unwrap()[0].to_vec();
                        seen.lock().unwrap().insert(shown);
                        let Ok(server) = tokio::net::TcpStream::connect(broker).await else { return };
                        let (from_client, to_client) = tokio::io::split(client);
                        let (from_server, to_server) = tokio::io::split(server);
                        tokio::select! {
                            _ = carry(from_client, to_server, None) => {}
                            _ = carry(from_server, to_client, Some(&names)) => {}
                        }
                    });
                }
            });
        });
        Self { address: format!("{HOST}:{port}"), clients }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// How many different certificates clients have shown.
    pub(crate) fn certificates(&self) -> usize {
        self.clients.lock().unwrap().len()
    }
}

/// A broker's address as Kafka's responses have it.
fn named(port: u16) -> Vec<u8> {
    [HOST.as_bytes(), &u32::from(port).to_be_bytes()].concat()
}

/// Carries frames, each after its length, and replaces one address by another of the same length.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    names: Option<&(Vec<u8>, Vec<u8>)>,
) -> std::io::Result<()> {
    loop {
        let length = from.read_u32().await?;
        let mut frame = vec![0; length as usize];
        from.read_exact(&mut frame).await?;
        if let Some((own, shown)) = names {
            while let Some(at) = frame.windows(own.len()).position(|window| window == own) {
                frame[at..at + own.len()].copy_from_slice(shown);
            }
        }
        to.write_u32(length).await?;
        to.write_all(&frame).await?;
        to.flush().await?;
    }
}
