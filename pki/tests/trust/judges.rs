//! Who judges a chain: the hub's door and a node's, rustls-webpki alone, OpenSSL and GnuTLS.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hyperfactory_pki::tls::{self, FixedClock, HubTls, TrustedRoots};
use hyperfactory_pki::{CertificateDer, HUB_SERVER_NAME, pem};
use protocol::Timestamp;
use rustls::client::{ResolvesClientCert, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};

use crate::draft::Shown;
use crate::fleet::{Fleet, Node};
use crate::handshake::handshake;

pub(crate) const CLIENT: &str = "1.3.6.1.5.5.7.3.2";
pub(crate) const SERVER: &str = "1.3.6.1.5.5.7.3.1";

/// Where a chain is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Door {
    /// By a node, at the hub.
    Hub,
    /// By the hub, at a node.
    Node,
}

/// Why a judge does not accept.
pub(crate) type Verdict = Result<(), String>;

/// All four at one time, and the honest peers of the handshakes.
pub(crate) struct Judges {
    pub(crate) fleet: Fleet,
    node: Node,
    now: Timestamp,
    tools: Tools,
}

impl Judges {
    pub(crate) fn new(fleet: Fleet, now: Timestamp) -> Self {
        let node = fleet.node(now);
        Self { fleet, node, now, tools: Tools::new() }
    }

    /// A folder for keys.
    pub(crate) fn folder(&self) -> &Path {
        self.tools.folder()
    }

    /// What is done with a chain in a handshake for a session, with the configurations of hub and node.
    pub(crate) fn ours(&self, door: Door, shown: &Shown) -> Verdict {
        let shows = Arc::new(Shows(Arc::new(CertifiedKey::new(shown.chain.clone(), shown.key.to_rustls()))));
        let clock = Arc::new(FixedClock(self.now));
        let (client, server) = match door {
            Door::Hub => {
                let roots = TrustedRoots::new(&shown.anchors).map_err(|error| error.to_string())?;
                let certificate = self.fleet.hub_certificate(self.now).0;
                let hub = HubTls { roots, certificate, denied: Arc::new(|_| false), clock };
                let mut client = ClientConfig::clone(&self.fleet.node_config(&self.node, self.now));
                client.client_auth_cert_resolver = shows;
                (Arc::new(client), tls::server_config(hub).expect("a configuration"))
            }
            Door::Node => {
                let chain = self.node.chain.clone();
                let client = tls::node_config(chain, &self.node.key, &shown.anchors, clock);
                let mut server = ServerConfig::clone(&self.fleet.server_config(self.now));
                server.cert_resolver = shows;
                (client.map_err(|error| error.to_string())?, Arc::new(server))
            }
        };
        let done = handshake(&client, &server).map_err(|failed| format!("{failed:?}"))?;
        let peer = if door == Door::Hub { done.server.peer_certificates() } else { done.client.peer_certificates() };
        // One that can't prove possession of its key shows nothing, and is nobody.
        if peer == Some(shown.chain.as_slice()) { Ok(()) } else { Err("no certificate was shown".into()) }
    }

    /// rustls-webpki, as rustls uses it.
    pub(crate) fn webpki(&self, door: Door, shown: &Shown) -> Verdict {
        let mut store = RootCertStore::empty();
        for anchor in &shown.anchors {
            store.add(anchor.clone()).map_err(|error| error.to_string())?;
        }
        let provider = rustls::crypto::ring::default_provider();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.now.seconds().unsigned_abs()));
        let (leaf, rest) = shown.chain.split_first().ok_or("an empty chain")?;
        let judged = match door {
            Door::Hub => WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::new(provider))
                .build()
                .map_err(|error| error.to_string())?
                .verify_client_cert(leaf, rest, now)
                .map(drop),
            Door::Node => ParsedCertificate::try_from(leaf).and_then(|leaf| {
                let algorithms = provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&leaf, &store, rest, now, algorithms)?;
                verify_server_name(&leaf, &ServerName::try_from(HUB_SERVER_NAME).expect("a name"))
            }),
        };
        judged.map_err(|error| error.to_string())
    }

    pub(crate) fn openssl(&self, door: Door, shown: &Shown) -> Verdict {
        let at = self.now.seconds().to_string();
        let purpose: &[&str] = match door {
            Door::Hub => &["-purpose", "sslclient"],
            Door::Node => &["-purpose", "sslserver", "-verify_hostname", HUB_SERVER_NAME],
        };
        self.tools.openssl(&shown.anchors, &shown.chain, &[&["-attime", &at], purpose].concat())
    }

    pub(crate) fn gnutls(&self, door: Door, shown: &Shown) -> Verdict {
        let purpose: &[&str] = match door {
            Door::Hub => &["--verify-purpose", CLIENT],
            Door::Node => &["--verify-purpose", SERVER, "--verify-hostname", HUB_SERVER_NAME],
        };
        self.tools.certtool(&shown.anchors, &shown.chain, purpose)
    }
}

/// The judges from outside, and a folder for what they read.
pub(crate) struct Tools(tempfile::TempDir);

impl Tools {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    /// `openssl verify`, as strict as it gets, at the security level that Debian's TLS has; the time is now, unless `more`
    /// says another.
    pub(crate) fn openssl(
        &self,
        anchors: &[CertificateDer<'_>],
        chain: &[CertificateDer<'_>],
        more: &[&str],
    ) -> Verdict {
        let (leaf, rest) = chain.split_first().ok_or("an empty chain")?;
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-auth_level", "2", "-no-CApath", "-no-CAstore", "-CAfile"]);
        command.arg(self.write("anchors.pem", anchors));
        if !rest.is_empty() {
            command.arg("-untrusted").arg(self.write("untrusted.pem", rest));
        }
        run(command.args(more).arg(self.write("leaf.pem", std::slice::from_ref(leaf))))
    }

    /// `certtool --verify`; the time is now.
    pub(crate) fn certtool(
        &self,
        anchors: &[CertificateDer<'_>],
        chain: &[CertificateDer<'_>],
        more: &[&str],
    ) -> Verdict {
        let mut command = Command::new("certtool");
        command.args(["--verify", "--verify-profile", "medium", "--load-ca-certificate"]);
        command.arg(self.write("anchors.pem", anchors)).arg("--infile").arg(self.write("chain.pem", chain));
        run(command.args(more))
    }

    pub(crate) fn write(&self, name: &str, certificates: &[CertificateDer<'_>]) -> PathBuf {
        let path = self.folder().join(name);
        std::fs::write(&path, pem::certificates(certificates)).expect("written");
        path
    }
}

/// Runs a program that says by its exit code whether it accepts.
pub(crate) fn run(command: &mut Command) -> Verdict {
    let output = command.output().expect("the judges of these tests, openssl and certtool, are installed by ./test");
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
}

/// Shows one chain to everybody, whatever is in it.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
