//! A hub that runs, and a person who asks it by `hfctl`.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use hub::access::{Grant, Role};
use hub::audit::Actor;
use hub::config::{Config, HttpTls};
use hub::enrollment::{Enrollment, NewToken};
use hub::hub::{Hub, now};
use hub::web::{HttpAuthority, http_authority};
use pki::PrivateKey;
use protocol::message::EnrollRequest;
use protocol::{NodeKind, version};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// A hub, tokens for it, and the home of a person who has never used it.
pub(crate) struct Site {
    pub(crate) url: String,
    pub(crate) admin: String,
    pub(crate) viewer: String,
    /// Of a hub with a certificate of its own.
    pub(crate) authority: Option<HttpAuthority>,
    pub(crate) home: TempDir,
    enrollment: Enrollment,
    runtime: Handle,
    shutdown: CancellationToken,
    running: Option<JoinHandle<()>>,
}

impl Site {
    pub(crate) fn start() -> Self {
        Self::configured(Config::default())
    }

    /// One with a configuration of its own.
    pub(crate) fn configured(config: Config) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let state_dir = home.path().join("hub");
        let shutdown = CancellationToken::new();
        let told = shutdown.clone();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async move {
                let local = "127.0.0.1:0".parse().expect("an address");
                let config = Config { state_dir, quic_listen: local, http_listen: local, ..config };
                let hub = Hub::open(&config, &told).await.expect("a hub");
                let grant = |role: Role| Grant { name: role.to_string(), role, tenant: None, valid_for: None };
                let access = hub.domain().access.clone();
                let token = async |role| {
                    access.create_api_token(grant(role), &Actor::system(), now()).await.expect("a token").1
                };
                let tokens = (token(Role::Admin).await, token(Role::Viewer).await);
                let authority = match config.http_tls {
                    Some(HttpTls::Own) => Some(http_authority(&config, hub.domain()).await.expect("an authority")),
                    _ => None,
                };
                let inside = (hub.enrollment().clone(), Handle::current());
                ready.send((hub.endpoints().http.clone(), tokens, authority, inside)).expect("somebody waits");
                hub.run(told).await.expect("it ends well");
            });
        });
        let (url, (admin, viewer), authority, (enrollment, runtime)) = started.recv().expect("it starts");
        Self { url, admin, viewer, authority, home, enrollment, runtime, shutdown, running: Some(running) }
    }

    /// Enrolls an agent with a real token and key.
    pub(crate) fn node(&self, tenant: &str, name: &str) {
        let key = PrivateKey::generate().expect("a key");
        let new = NewToken {
            tenant: tenant.parse().expect("a tenant id"),
            kind: NodeKind::Agent,
            name: Some(name.into()),
            valid_for: Duration::from_secs(600),
        };
        self.runtime.block_on(async {
            let (_, token) = self.enrollment.create_token(new, &Actor::system(), now()).await.expect("a join token");
            let request = EnrollRequest {
                versions: Some(version::SPOKEN),
                secret: token.secret.to_vec(),
                certificate_request: key.certificate_request().expect("a request"),
                kind: protocol::message::NodeKind::Agent.into(),
                name: "host".into(),
                software: "test".into(),
            };
            self.enrollment.enroll(request, [127, 0, 0, 1].into(), now()).await.expect("enrolled");
        });
    }

    /// `hfctl` in this home, without anything else from the environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hfctl"));
        command.args(arguments).env_clear().env("HOME", self.home.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        self.command(arguments).output().expect("it runs").into()
    }

    /// As an administrator by the environment.
    pub(crate) fn admin(&self, arguments: &[&str]) -> Done {
        self.with(&self.url, &self.admin, arguments)
    }

    pub(crate) fn with(&self, url: &str, token: &str, arguments: &[&str]) -> Done {
        let mut command = self.command(arguments);
        command.env("HYPERFACTORY_HFCTL_URL", url).env("HYPERFACTORY_HFCTL_TOKEN", token);
        command.output().expect("it runs").into()
    }

    pub(crate) fn login(&self, token: &str) -> Done {
        self.login_with(token, &[])
    }

    pub(crate) fn login_with(&self, token: &str, more: &[&str]) -> Done {
        let mut command = self.command(&["login", "--url", &self.url]);
        command.args(more);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        // Who refuses before that does not read it.
        if let Err(error) = writeln!(child.stdin.take().expect("a pipe"), "{token}") {
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        }
        child.wait_with_output().expect("it ends").into()
    }

    pub(crate) fn login_file(&self) -> PathBuf {
        self.home.path().join(".config/hyperfactory/hfctl.toml")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(running) = self.running.take()
            && running.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the hub failed");
        }
    }
}

#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code().expect("a code"), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Done {
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// It ends with this code and says all of these, on standard error alone.
    pub(crate) fn fails(self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for text in says {
            assert!(self.err.contains(text), "{text:?} is not in {self:?}");
        }
        assert_eq!(self.out, "", "{self:?}");
        assert!(!self.err.contains("hft_") || self.err.contains("hft_…"), "an error shows a token: {self:?}");
    }
}
