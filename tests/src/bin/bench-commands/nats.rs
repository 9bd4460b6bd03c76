//! The peer: request and reply over a real NATS server with TLS client certificates, in as much of its protocol as that
//! takes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyperfactory_tests::rig::Process;
use rand::RngExt;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long the server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Milliseconds of each of `count` requests to one of `nodes` connected clients.
pub(crate) async fn measure(nodes: usize, count: usize) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir()?;
    let tls = certificates(folder.path())?;
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut server = serve(folder.path(), free)?;
    let began = Instant::now();
    while TcpStream::connect(free).await.is_err() {
        server.check()?;
        ensure!(began.elapsed() < PATIENCE, "nats-server does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut answering = JoinSet::new();
    for node in 0..nodes {
        let mut client = Client::connect(free, &tls).await?;
        client.send(format!("SUB node.{node} 1\r\nPING\r\n").as_bytes()).await?;
        client.until("PONG").await?;
        answering.spawn(async move { while client.answer().await.is_ok() {} });
    }
    let mut asking = Client::connect(free, &tls).await?;
    asking.send(b"SUB inbox 1\r\nPING\r\n").await?;
    asking.until("PONG").await?;
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let node = rand::rng().random_range(0..nodes);
        let began = Instant::now();
        asking.send(format!("PUB node.{node} inbox 5\r\ndrain\r\n").as_bytes()).await?;
        asking.message().await?;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
    }
    server.kill()?;
    Ok(taken)
}

struct Client(BufReader<TlsStream<TcpStream>>);

impl Client {
    async fn connect(server: SocketAddr, tls: &TlsConnector) -> Result<Self> {
        let mut plain = TcpStream::connect(server).await?;
        plain.set_nodelay(true)?;
        // The server speaks first, in the clear, and then expects TLS.
        let mut byte = [0];
        while byte != *b"\n" {
            plain.read_exact(&mut byte).await.context("no INFO")?;
        }
        let stream = tls.connect(ServerName::try_from("localhost")?, plain).await.context("no TLS")?;
        let mut client = Self(BufReader::new(stream));
        client.send(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n").await?;
        client.until("PONG").await?;
        Ok(client)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).await?;
        Ok(self.0.flush().await?)
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line).await? > 0, "the server hung up");
            match line.trim_end() {
                "PING" => self.send(b"PONG\r\n").await?,
                said if said.starts_with("-ERR") => bail!("the server says {said}"),
                said => return Ok(said.to_owned()),
            }
        }
    }

    async fn until(&mut self, wanted: &str) -> Result<()> {
        while self.line().await? != wanted {}
        Ok(())
    }

    /// The next message: to whom to reply.
    async fn message(&mut self) -> Result<Option<String>> {
        let line = self.line().await?;
        let parts: Vec<&str> = line.split(' ').collect();
        let (reply, length) = match parts.as_slice() {
            ["MSG", _, _, length] => (None, length),
            ["MSG", _, _, reply, length] => (Some((*reply).to_owned()), length),
            _ => bail!("no message: {line}"),
        };
        let mut payload = vec![0; length.parse::<usize>()? + 2];
        self.0.read_exact(&mut payload).await?;
        Ok(reply)
    }

    async fn answer(&mut self) -> Result<()> {
        match self.message().await? {
            Some(reply) => self.send(format!("PUB {reply} 2\r\nok\r\n").as_bytes()).await,
            None => Ok(()),
        }
    }
}

fn serve(folder: &Path, address: SocketAddr) -> Result<Process> {
    let file = |name: &str| folder.join(name).display().to_string();
    let configuration = format!(
        "listen: \"{address}\"\nmax_connections: 20000\ntls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n",
        file("server.crt"),
        file("server.key"),
        file("ca.crt")
    );
    std::fs::write(folder.join("nats.conf"), configuration)?;
    Process::start(Command::new("nats-server").arg("-c").arg(folder.join("nats.conf")), &folder.join("nats.log"))
}

/// An authority, and certificates for the server and its clients; ECDSA, as ours.
fn certificates(folder: &Path) -> Result<TlsConnector> {
    let openssl = |arguments: &[&str]| -> Result<()> {
        let output = Command::new("openssl").current_dir(folder).args(arguments).output().context("running openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let ca = ["req", "-x509", "-subj", "/CN=bench", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt"];
    openssl(&[&ca[..], &key].concat())?;
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let (keyout, out) = (format!("{name}.key"), format!("{name}.crt"));
        let usage = format!("extendedKeyUsage={usage}");
        let leaf = [
            "req",
            "-x509",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-subj",
            "/CN=bench",
            "-days",
            "2",
            "-keyout",
            &keyout,
            "-out",
            &out,
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            &usage,
            "-addext",
            "basicConstraints=CA:FALSE",
        ];
        openssl(&[&leaf[..], &key].concat())?;
    }
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.crt"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(folder.join("client.crt"))?],
            PrivateKeyDer::from_pem_file(folder.join("client.key"))?,
        )?;
    Ok(TlsConnector::from(Arc::new(config)))
}
