//! TLS in front of a Kafka broker that speaks none: asks for client certificates, and has another address than the broker.

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const HOST: &str = "127.0.0.1";
/// Longest frame that is carried.
const LONGEST: u32 = 64 << 20;

/// The front; it ends with its handle.
pub struct Front {
    address: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    tls: Mutex<Arc<ServerConfig>>,
    /// Certificates of clients that were taken, in DER.
    clients: Mutex<HashSet<Vec<u8>>>,
    refused: Mutex<Vec<String>>,
    /// Cancelled and replaced to end the connections there are.
    connections: Mutex<CancellationToken>,
    /// How long each frame takes.
    delay: Mutex<Duration>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Front {
    /// Stands before the one broker at `broker`, which names itself in what it says: that is replaced by the front's address.
    pub fn before(broker: &str, tls: ServerConfig) -> Result<Self> {
        let listener = TcpListener::bind((HOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let own: u16 = broker.rsplit_once(':').unwrap_or_default().1.parse()?;
        let names = (named(own), named(port));
        let shared = Arc::new(Shared {
            tls: Mutex::new(Arc::new(tls)),
            clients: Mutex::default(),
            refused: Mutex::default(),
            connections: Mutex::default(),
            delay: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let (serving, stopped, broker) = (Arc::clone(&shared), stop.clone(), broker.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                let mut tasks = JoinSet::new();
                while let Some(Ok((socket, _))) = stopped.run_until_cancelled(listener.accept()).await {
                    while tasks.try_join_next().is_some() {}
                    let (shared, broker, names) = (Arc::clone(&serving), broker.clone(), names.clone());
                    let end = lock(&shared.connections).clone();
                    tasks.spawn(async move {
                        let serving = serve(&shared, socket, &broker, &names);
                        let _ = end.run_until_cancelled(serving).await;
                    });
                }
            });
        });
        Ok(Self { address: format!("{HOST}:{port}"), shared, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many different certificates clients have shown that were taken.
    pub fn certificates(&self) -> usize {
        lock(&self.shared.clients).len()
    }

    /// Whether a client has shown this certificate, in DER.
    pub fn has_seen(&self, certificate: &[u8]) -> bool {
        lock(&self.shared.clients).contains(certificate)
    }

    /// Why clients were turned away.
    pub fn refused(&self) -> Vec<String> {
        lock(&self.shared.refused).clone()
    }

    /// Shows and asks for something else from the next connection on.
    pub fn replace(&self, tls: ServerConfig) {
        *lock(&self.shared.tls) = Arc::new(tls);
        lock(&self.shared.refused).clear();
    }

    /// From now on, each request and each answer is so long on its way.
    pub fn slow(&self, delay: Duration) {
        *lock(&self.shared.delay) = delay;
    }

    /// Ends the connections there are.
    pub fn cut(&self) {
        std::mem::take(&mut *lock(&self.shared.connections)).cancel();
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(shared: &Shared, socket: tokio::net::TcpStream, broker: &str, names: &(Vec<u8>, Vec<u8>)) {
    // A frame is several writes; it is not to wait for acknowledgements between them.
    let _ = socket.set_nodelay(true);
    let acceptor = TlsAcceptor::from(Arc::clone(&lock(&shared.tls)));
    let client = match acceptor.accept(socket).await {
        Ok(client) => client,
        Err(error) => return lock(&shared.refused).push(error.to_string()),
    };
    let shown = client.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|shown| shown.to_vec());
    lock(&shared.clients).extend(shown);
    let Ok(server) = tokio::net::TcpStream::connect(broker).await else { return };
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    tokio::select! {
        _ = carry(from_client, to_server, None, &shared.delay) => {}
        _ = carry(from_server, to_client, Some(names), &shared.delay) => {}
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
    delay: &Mutex<Duration>,
) -> io::Result<()> {
    loop {
        let length = from.read_u32().await?;
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; length as usize];
        from.read_exact(&mut frame).await?;
        if let Some((own, shown)) = names {
            while let Some(at) = frame.windows(own.len()).position(|window| window == own) {
                frame[at..at + own.len()].copy_from_slice(shown);
            }
        }
        let delay = *lock(delay);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        to.write_u32(length).await?;
        to.write_all(&frame).await?;
        to.flush().await?;
    }
}
