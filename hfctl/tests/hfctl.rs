//! `hfctl` as people run it, against a hub that runs.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it does not expect has failed")]

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
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
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// A hub, tokens for it, and the home of a person who has never used it.
struct Site {
    url: String,
    admin: String,
    viewer: String,
    /// Of a hub with a certificate of its own.
    authority: Option<HttpAuthority>,
    home: TempDir,
    enrollment: Enrollment,
    runtime: Handle,
    shutdown: CancellationToken,
    running: Option<JoinHandle<()>>,
}

impl Site {
    fn start() -> Self {
        Self::configured(Config::default())
    }

    /// One with a configuration of its own.
    fn configured(config: Config) -> Self {
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
    fn node(&self, tenant: &str, name: &str) {
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
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hfctl"));
        command.args(arguments).env_clear().env("HOME", self.home.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Done {
        self.command(arguments).output().expect("it runs").into()
    }

    /// As an administrator by the environment.
    fn admin(&self, arguments: &[&str]) -> Done {
        self.with(&self.url, &self.admin, arguments)
    }

    fn with(&self, url: &str, token: &str, arguments: &[&str]) -> Done {
        let mut command = self.command(arguments);
        command.env("HYPERFACTORY_HFCTL_URL", url).env("HYPERFACTORY_HFCTL_TOKEN", token);
        command.output().expect("it runs").into()
    }

    fn login(&self, token: &str) -> Done {
        self.login_with(token, &[])
    }

    fn login_with(&self, token: &str, more: &[&str]) -> Done {
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

    fn login_file(&self) -> PathBuf {
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
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code().expect("a code"), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Done {
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// It ends with this code and says all of these, on standard error alone.
    fn fails(self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for text in says {
            assert!(self.err.contains(text), "{text:?} is not in {self:?}");
        }
        assert_eq!(self.out, "", "{self:?}");
        assert!(!self.err.contains("hft_") || self.err.contains("hft_…"), "an error shows a token: {self:?}");
    }
}

#[test]
fn a_login_is_tried_stored_for_this_user_alone_and_used() {
    let site = Site::start();
    site.run(&["tenant", "list"]).fails(2, &["no hub is known", "hfctl login"]);
    assert!(site.login(&site.admin).ok().contains("logged in"));
    let mode = std::fs::metadata(site.login_file()).expect("stored").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(site.run(&["tenant", "create", "acme", "--name", "Acme GmbH"]).ok().contains("made tenant acme"));
    let listed = site.run(&["tenant", "list"]).ok();
    let mut lines = listed.lines();
    assert!(lines.next().expect("heads").starts_with("ID    NAME       NODES"));
    assert!(lines.next().expect("a row").starts_with("acme  Acme GmbH  0"));
    // Another login replaces it whole.
    site.login(&site.viewer).ok();
    site.run(&["tenant", "create", "zeta"]).fails(3, &["takes the role admin"]);
}

#[test]
fn a_login_that_does_not_work_is_not_stored() {
    let site = Site::start();
    let (most, last) = site.admin.split_at(site.admin.len() - 1);
    let other = format!("{most}{}", if last == "A" { "E" } else { "A" });
    site.login(&other).fails(3, &["does not take the token", "hfctl login"]);
    site.login("hfj_abc").fails(2, &["this is a join token"]);
    site.login("").fails(2, &["nothing was given"]);
    site.run(&["login", "--url", "hub.example", "--token-file", "/nowhere"]).fails(2, &["cannot read the token"]);
    site.run(&["login", "--url", &site.url, "--token", &site.admin]).fails(2, &["unexpected argument '--token'"]);
    assert!(!site.login_file().exists());
}

/// A hub that speaks HTTPS with a certificate of its own.
fn own() -> (Site, HttpAuthority) {
    let mut site = Site::configured(Config { http_tls: Some(HttpTls::Own), ..Config::default() });
    let authority = site.authority.take().expect("an authority");
    assert!(site.url.starts_with("https://"), "{}", site.url);
    (site, authority)
}

#[test]
fn a_hubs_own_certificate_is_trusted_once_its_fingerprint_was_given() {
    let (site, authority) = own();
    site.login(&site.admin).fails(1, &["is not trusted", "--fingerprint", "http-authority"]);
    assert!(site.login_with(&site.admin, &["--fingerprint", &authority.fingerprint]).ok().contains("logged in"));
    site.run(&["tenant", "create", "acme"]).ok();
    assert!(site.run(&["tenant", "list"]).ok().contains("acme"));
    // Another login that does not work takes nothing away.
    site.login_with("hft_x", &["--fingerprint", &authority.fingerprint]).fails(3, &["does not take the token"]);
    site.run(&["tenant", "list"]).ok();
}

#[test]
fn a_hubs_own_certificate_is_trusted_by_a_file() {
    let (site, authority) = own();
    let file = site.home.path().join("authority.pem");
    std::fs::write(&file, &authority.pem).expect("written");
    site.login_with(&site.admin, &["--ca-file", file.to_str().expect("text")]).ok();
    site.run(&["tenant", "list"]).ok();
}

#[test]
fn another_fingerprint_is_never_trusted_and_gets_no_token() {
    let (site, authority) = own();
    let (other, others) = own();
    site.login_with(&site.admin, &["--fingerprint", &others.fingerprint])
        .fails(1, &["no authority with this fingerprint"]);
    site.login_with(&site.admin, &["--fingerprint", "AB:CD"]).fails(2, &["64 hexadecimal digits"]);
    let both = ["--fingerprint", &authority.fingerprint, "--ca-file", "x"];
    site.login_with(&site.admin, &both).fails(2, &["cannot be used with"]);
    let plain = Site::start();
    plain.login_with(&plain.admin, &["--fingerprint", &authority.fingerprint]).fails(2, &["not the https address"]);
    let http = site.url.replace("https:", "http:");
    site.with(&http, &site.admin, &["tenant", "list"]).fails(2, &["speaks HTTPS", &site.url]);
    drop(other);
    assert!(!site.login_file().exists());
}

#[test]
fn certificate_policy_is_shown_set_and_taken_back() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    let line = |shown: &str, kind: &str| {
        let line = shown.lines().find(|line| line.starts_with(&format!("{kind} "))).expect("the kind");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let shown = site.admin(&["policy", "show"]).ok();
    assert!(line(&shown, "bridge").starts_with("bridge 90d 57-77 % default"), "{shown}");
    let set = site.admin(&["policy", "set", "agent", "--tenant", "acme", "--lifetime", "36h", "--renew", "40-60"]).ok();
    assert!(set.contains("agent: 36h, renewed at 40-60 %"), "{set}");
    // What is not said stays as it is.
    let set = site.admin(&["policy", "set", "agent", "--tenant", "acme", "--lifetime", "2d"]).ok();
    assert!(set.contains("agent: 2d, renewed at 40-60 %"), "{set}");
    let shown = site.admin(&["policy", "show", "--tenant", "acme"]).ok();
    assert!(
        line(&shown, "agent").starts_with("agent 2d 40-60 % tenant") && shown.contains("operator:admin"),
        "{shown}"
    );
    assert!(site.admin(&["policy", "reset", "agent", "--tenant", "acme"]).ok().contains("7d, renewed at 57-77 %"));
    site.admin(&["policy", "set", "bridge", "--lifetime", "300d"]).fails(2, &["its issuer, nodes-intermediate"]);
    site.admin(&["policy", "set", "agent"]).fails(2, &["say what to set"]);
    site.admin(&["policy", "set", "agent", "--renew", "57"]).fails(2, &["such as 57-77"]);
    site.with(&site.url, &site.viewer, &["policy", "reset", "agent"]).fails(3, &["takes the role admin"]);
}

#[test]
fn what_is_advised_after_a_reset_sets_nothing_anew() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    site.admin(&["policy", "set", "agent", "--tenant", "acme", "--lifetime", "30d"]).ok();
    site.node("acme", "press");
    let policy = || {
        let shown = site.admin(&["policy", "show", "--tenant", "acme"]).ok();
        shown.lines().find(|line| line.starts_with("agent ")).expect("the kind").to_owned()
    };
    let reset = site.admin(&["policy", "reset", "agent", "--tenant", "acme"]);
    let before = policy();
    let (said, command) = reset.err.trim_end().split_once(": hfctl ").expect("a command");
    assert!(said.contains("1 nodes have certificates that end later"), "{reset:?}");
    let words: Vec<&str> = command.split('"').collect();
    let [options, reason, ""] = words.as_slice() else { panic!("{command}") };
    let mut arguments: Vec<&str> = options.split_whitespace().collect();
    arguments.push(reason);
    assert!(site.admin(&arguments).ok().starts_with("1 nodes renew their certificates until"), "{command}");
    assert_eq!(policy(), before);
    // After a set, it may be set again.
    let set = site.admin(&["policy", "set", "agent", "--tenant", "acme", "--lifetime", "2d"]);
    assert!(set.err.contains("hfctl policy set agent --tenant acme --renew-within 6h"), "{set:?}");
}

#[test]
fn a_mass_renewal_says_how_many_nodes_it_is_for() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    let told = site.admin(&["cert", "renew", "--tenant", "acme", "--within", "6h", "--reason", "drill"]).ok();
    assert!(told.starts_with("0 nodes renew their certificates until 20"), "{told}");
    site.admin(&["cert", "renew", "--within", "6h"]).fails(2, &["--tenant", "--node", "--all"]);
    site.admin(&["cert", "renew", "--all", "--tenant", "acme", "--within", "6h"]).fails(2, &["cannot be used with"]);
    site.admin(&["cert", "renew", "--node", "press", "--within", "6h"]).fails(1, &["there is no node"]);
    site.admin(&["cert", "renew", "--all", "--within", "100d"]).fails(2, &["at most 90 days"]);
}

#[test]
fn a_token_makes_the_command_that_enrolls_a_node() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    let made = site.admin(&["token", "create", "--tenant", "acme", "--name", "press", "--valid-for", "15m"]);
    assert!(made.err.contains("run this on the new node"), "{made:?}");
    let command = made.ok();
    assert!(command.starts_with("sudo hyperfactory-agent enroll --token hfj_") && command.lines().count() == 1);
    let json = site.admin(&["-o", "json", "token", "create", "--tenant", "acme", "--kind", "bridge"]).ok();
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert!(json["command"].as_str().is_some_and(|command| command.contains("hyperfactory-bridge")));
    let listed = site.admin(&["token", "list"]).ok();
    assert!(listed.contains("press") && !listed.contains("hfj_"));
    site.admin(&["token", "create", "--tenant", "nobody"]).fails(1, &["there is no tenant nobody"]);
    site.admin(&["token", "create", "--tenant", "acme", "--valid-for", "90d"]).fails(2, &["1 minute to 30 days"]);
    site.admin(&["token", "create", "--tenant", "acme", "--valid-for", "soon"]).fails(2, &["--valid-for"]);
    site.with(&site.url, &site.viewer, &["token", "create", "--tenant", "acme"]).fails(3, &["takes the role operator"]);
}

#[test]
fn empty_lists_say_what_to_do_and_are_still_json_for_programs() {
    let site = Site::start();
    for (verb, hint) in [("tenant", "hfctl tenant create"), ("node", "hfctl token create"), ("alert", "no open alerts")]
    {
        let listed = site.admin(&[verb, "list"]);
        assert!(listed.err.contains(hint), "{listed:?}");
        assert_eq!(listed.ok(), "");
        assert_eq!(site.admin(&[verb, "list", "--output", "json"]).ok(), "[]\n");
    }
    site.admin(&["node", "show", "press"]).fails(1, &["there is no node \"press\""]);
    site.admin(&["node", "show", "019ab0c2-7f00-7000-8000-000000000000"]).fails(1, &["There is no node"]);
    site.admin(&["node", "list", "--state", "broken"]).fails(2, &["possible values", "never_seen"]);
    site.admin(&["tenant", "create", "Not An Id"]).fails(2, &["is not a tenant id"]);
}

#[test]
fn a_rollout_says_who_is_meant_before_it_asks_and_has_a_reason() {
    let site = Site::start();
    let start = |more: &[&str]| {
        let mut arguments = vec!["rollout", "start", "drain", "--all", "--reason", "a test"];
        arguments.extend(more);
        site.admin(&arguments)
    };
    let preview = start(&["--dry-run"]);
    assert!(preview.code == 0 && preview.err.contains("on 0 nodes, in 0 waves"), "{preview:?}");
    start(&[]).fails(2, &["no node is meant", "hfctl node list"]);
    start(&["--yes"]).fails(2, &["no node is meant"]);
    start(&["--yes", "--waves", "1,50%"]).fails(2, &["the last wave"]);
    site.admin(&["rollout", "start", "drain", "--all"]).fails(2, &["--reason"]);
    site.admin(&["rollout", "show", "7"]).fails(1, &["there is no rollout 7"]);
    site.admin(&["rollout", "abort", "7", "--reason", "a test"]).fails(1, &["there is no rollout 7"]);
    let none = site.admin(&["rollout", "list"]);
    assert!(none.code == 0 && none.err.contains("no rollouts"), "{none:?}");
}

#[test]
fn a_command_whose_answer_is_lost_is_done_once_and_said_to_be_possible() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    site.node("acme", "press");
    let send = ["command", "send", "drain", "--all", "--yes", "--reason", "a test"];
    let commands = || site.admin(&["command", "list"]).ok().lines().filter(|line| line.contains("press")).count();
    site.with(&losing(&site.url, 1), &site.admin, &send).ok();
    assert_eq!(commands(), 1);
    site.with(&losing(&site.url, 2), &site.admin, &send).fails(1, &["may have been asked for", "hfctl command list"]);
    assert_eq!(commands(), 2);
    let rollout = ["rollout", "start", "drain", "--all", "--yes", "--reason", "a test"];
    site.with(&losing(&site.url, 2), &site.admin, &rollout)
        .fails(1, &["may have been asked for", "hfctl rollout list"]);
    assert_eq!(site.admin(&["rollout", "list"]).ok().lines().filter(|line| line.contains("operator:admin")).count(), 1);
}

/// The address of a way to a hub, on which the first `count` answers to what is sent under a key are lost.
fn losing(url: &str, mut count: usize) -> String {
    let hub = url.strip_prefix("http://").expect("an address").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = BufReader::new(client.expect("a connection"));
            let (mut head, mut length, mut keyed) = (String::new(), 0, false);
            while !head.ends_with("\r\n\r\n") && client.read_line(&mut head).expect("a line") > 0 {
                let line = head.trim_end().rsplit('\n').next().unwrap_or_default().to_ascii_lowercase();
                keyed |= line.starts_with("idempotency-key:");
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            client.read_exact(&mut body).expect("a body");
            let mut to_hub = TcpStream::connect(&hub).expect("a connection");
            let once = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
            to_hub.write_all(&[once.as_bytes(), &body].concat()).expect("sent");
            let mut answer = Vec::new();
            to_hub.read_to_end(&mut answer).expect("an answer");
            if keyed && count > 0 {
                count -= 1;
            } else {
                client.get_mut().write_all(&answer).expect("answered");
            }
        }
    });
    address
}

#[test]
fn what_is_missing_is_said_in_the_words_it_can_be_given_in() {
    let site = Site::start();
    for (arguments, says) in [
        (
            &["command", "send", "service.restart", "--reason", "a test", "--all"][..],
            "service.restart needs --service STACK/SERVICE",
        ),
        (
            &["command", "send", "service.restart", "--reason", "a test", "--all", "--service", "web"],
            "name it STACK/SERVICE",
        ),
        (&["command", "send", "backup", "--reason", "a test", "--all"], "backup needs --service STACK"),
        (&["command", "send", "script", "--reason", "a test", "--all"], "script needs --script NAME"),
        (
            &["command", "send", "telemetry.interval", "--reason", "a test", "--all"],
            "telemetry.interval needs --interval PERIOD",
        ),
        (&["command", "send", "drain", "--reason", "a test"], "which nodes? name them with --node"),
        (&["command", "send", "drain", "--reason", "a test", "--node", "press", "--all"], "cannot be used with"),
        (&["command", "send", "drain", "--reason", "a test", "--all"], "no node is meant"),
        (&["command", "send", "drain", "--reason", "a test", "--all", "--valid-for", "soon"], "--valid-for"),
        (&["command", "cancel", "--reason", "a test"], "--request"),
        (&["command", "cancel", "7"], "--reason <WHY>"),
        (&["command", "send", "drain", "--node", "press"], "--reason <WHY>"),
        (&["service", "restart", "shop/web", "--node", "press"], "--reason <WHY>"),
        (&["command", "send", "drain", "--all", "--reason", " "], "say why, for the audit log"),
        (&["rollout", "start", "drain", "--reason", "a test"], "which nodes? name them with --node"),
        (&["rollout", "start", "script", "--all", "--reason", "a test"], "script needs --script NAME"),
        (&["rollout", "list", "--limit", "0"], "--limit"),
    ] {
        site.admin(arguments).fails(2, &[says]);
    }
    for (what, says) in
        [(&["nodes"][..], "say whose with --tenant"), (&["root", "--tenant", "acme"], "leave out --tenant")]
    {
        let mut arguments = vec!["ca", "rotate", "start", "--reason", "a test"];
        arguments.extend(what);
        site.admin(&arguments).fails(2, &[says]);
    }
    site.admin(&["command", "cancel", "--request", "nothing", "--reason", "a test"])
        .fails(1, &["there is no request \"nothing\""]);
}

#[test]
fn of_a_tenant_that_does_not_exist_no_list_is_empty() {
    let site = Site::start();
    for arguments in [
        &["alert", "list"][..],
        &["node", "list"],
        &["command", "list"],
        &["command", "send", "drain", "--reason", "a test", "--yes"],
        &["rollout", "start", "drain", "--reason", "a test", "--yes"],
        &["logs", "search", "pressure"],
        &["kafka", "access"],
        &["token", "list"],
        &["audit", "tail"],
        &["ca", "rotate", "start", "nodes", "--reason", "a test"],
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--tenant", "acmee"]);
        site.admin(&arguments).fails(1, &["there is no tenant acmee: see `hfctl tenant list`"]);
    }
}

#[test]
fn the_quickstarts_hub_is_asked_without_a_login() {
    let site = Site::start();
    let directory = site.home.path().join(".local/state/hyperfactory/quickstart");
    std::fs::create_dir_all(&directory).expect("a directory");
    let text = format!("url = \"{}\"\ntoken = \"{}\"\n", site.url, site.admin);
    std::fs::write(directory.join("hfctl.toml"), text).expect("written");
    site.run(&["tenant", "create", "demo"]).ok();
    assert!(site.run(&["tenant", "list"]).ok().contains("demo"));
}

#[test]
fn a_stored_token_goes_to_no_other_hub() {
    let site = Site::start();
    site.login(&site.admin).ok();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = format!("http://{}", listener.local_addr().expect("an address"));
    let mut command = site.command(&["tenant", "list"]);
    let done: Done = command.env("HYPERFACTORY_HFCTL_URL", &other).output().expect("it runs").into();
    done.fails(2, &["the stored token is for", "HYPERFACTORY_HFCTL_TOKEN"]);
    listener.set_nonblocking(true).expect("set");
    assert!(listener.accept().is_err(), "nobody came");
    // The same hub by the environment, and its token by a file.
    let file = site.home.path().join("token");
    std::fs::write(&file, format!("{}\n", site.viewer)).expect("written");
    let mut command = site.command(&["tenant", "list"]);
    command.env("HYPERFACTORY_HFCTL_URL", format!("{}/", site.url)).env("HYPERFACTORY_HFCTL_TOKEN_FILE", &file);
    Done::from(command.output().expect("it runs")).ok();
}

#[test]
fn what_is_wrong_with_the_hub_or_the_way_to_it_is_said() {
    let site = Site::start();
    let list = ["node", "list"];
    site.with("http://127.0.0.1:9", &site.admin, &list).fails(1, &["nothing listens", "hyperfactory-hub serve"]);
    site.with("http://nowhere.invalid", &site.admin, &list).fails(1, &["nowhere.invalid", "check the address"]);
    site.with("hub.example", &site.admin, &list).fails(2, &["starts with https:// or http://"]);
    site.with("http://a b", &site.admin, &list).fails(2, &["is not the address of a hub"]);
    let unknown = format!("hft_{}", "A".repeat(43));
    site.with(&site.url, &unknown, &list).fails(3, &["make a new one. Then run hfctl login."]);
    site.with(&site.url, "hunter2", &list).fails(2, &["not an API token"]);
    site.with(&format!("{}/sub", site.url), &site.admin, &list).fails(1, &["not as a Hyperfactory hub does"]);
    let https = site.url.replace("http:", "https:");
    site.with(&https, &site.admin, &list).fails(1, &["does not speak HTTPS"]);
}

#[test]
fn a_configuration_with_a_misspelt_key_is_refused() {
    let site = Site::start();
    let file = site.home.path().join("my.toml");
    std::fs::write(&file, "ulr = \"http://127.0.0.1:1\"\n").expect("written");
    let path = file.to_str().expect("text");
    site.run(&["--config", path, "node", "list"]).fails(2, &["ulr", "url", path]);
    site.run(&["--config", "/nowhere.toml", "node", "list"]).fails(2, &["/nowhere.toml"]);
    let mut command = site.command(&["node", "list"]);
    command.env("HYPERFACTORY_HFCTL_TOKNE", "x");
    Done::from(command.output().expect("it runs")).fails(2, &["HYPERFACTORY_HFCTL_TOKNE"]);
}

#[test]
fn the_audit_log_is_followed() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    let tail = site.admin(&["audit", "tail", "-n", "1", "--action", "tenant.created"]).ok();
    assert!(tail.contains("operator:admin  tenant.created  acme"), "{tail}");

    let mut command = site.command(&["audit", "tail", "-f", "-o", "json", "--action", "tenant."]);
    command.env("HYPERFACTORY_HFCTL_URL", &site.url).env("HYPERFACTORY_HFCTL_TOKEN", &site.admin);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next =
        || -> Value { serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON on one line") };
    assert_eq!(next()["subject"], "acme");
    site.admin(&["tenant", "create", "zeta"]).ok();
    assert_eq!(next()["subject"], "zeta");
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[test]
fn an_export_is_there_when_it_is_whole() {
    let site = Site::start();
    let file = site.home.path().join("audit.jsonl");
    let path = file.to_str().expect("text");
    site.admin(&["audit", "export", "--file", path]).ok();
    let lines = std::fs::read_to_string(&file).expect("written");
    let last: Value = serde_json::from_str(lines.lines().last().expect("a line")).expect("JSON");
    let head = site.admin(&["audit", "head"]).ok();
    assert_eq!(
        head.trim(),
        format!("{}:{}", last["unmapped"]["id"], last["unmapped"]["hash"].as_str().expect("a hash"))
    );
    assert!(site.admin(&["audit", "export"]).ok().starts_with(&lines));
    site.with(&site.url, &site.viewer, &["audit", "export", "--file", path]).fails(3, &["takes the role admin"]);

    // A hub that dies in the middle of it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let dying = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut asked = BufReader::new(stream.try_clone().expect("a reader")).lines();
        while asked.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
        stream.write_all(begun.as_bytes()).expect("begun");
    });
    let other = site.home.path().join("other.jsonl");
    let path = other.to_str().expect("text");
    site.with(&url, &site.admin, &["audit", "export", "--file", path]).fails(1, &["broke off and is not whole"]);
    assert!(!other.exists());
    dying.join().expect("it served");
}

#[test]
fn a_certificate_is_shown_without_any_hub() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = std::time::SystemTime::now().into();
    let root = pki::Authority::create_root(now, pki::authority::ROOT_LIFETIME).expect("a root");
    let hub = root.issue_hub_intermediate(now, pki::authority::INTERMEDIATE_LIFETIME).expect("an intermediate");
    let key = pki::PrivateKey::generate().expect("a key");
    let leaf = pki::CertificateDer::from(hub.issue_hub_server(&key.public_key(), now).expect("a certificate"));
    let chain = [&leaf, hub.certificate_der(), root.certificate_der()];
    let show = |name: &str, bytes: &[u8], more: &[&str]| {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hfctl"));
        Done::from(command.args(["cert", "show"]).arg(file).args(more).output().expect("hfctl"))
    };
    let shown = show("chain.pem", pki::pem::certificates(chain).as_bytes(), &[]).ok();
    for said in ["DNS:hub.hyperfactory.internal", "TLS server", "by the next one", "by itself", "no IP:0.0.0.0/0.0.0.0"]
    {
        assert!(shown.contains(said), "{said} in {shown}");
    }
    let json = show("chain.pem", pki::pem::certificates([chain[2], chain[0]]).as_bytes(), &["-o", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json[0]["signed_by_next"], &json[1]["signed_by_itself"]), (&false.into(), &false.into()), "{json}");
    assert!(show("leaf.der", &leaf, &[]).ok().contains("by none in this file"));
    show("no.pem", b"nothing", &[]).fails(2, &["holds no certificate", "PEM"]);
    show("no.der", &[0xff; 90], &[]).fails(2, &["can't be read"]);
}

#[test]
fn a_rotation_is_begun_stepped_and_taken_back_and_says_what_comes_next() {
    let site = Site::start();
    site.admin(&["ca", "rotate", "status"]).fails(1, &["no rotation is under way", "hfctl ca rotate start"]);
    let begun = site.admin(&["ca", "rotate", "start", "root", "--reason", "the old machine goes"]).ok();
    for part in [
        "of the fleet root",
        "the old machine goes",
        "trust: all are ready; hfctl ca rotate advance 1",
        "aborted: hfctl ca rotate back 1",
    ] {
        assert!(begun.contains(part), "{part}: {begun}");
    }
    site.admin(&["ca", "rotate", "start", "hub", "--reason", "at once"])
        .fails(1, &["is under way", "hfctl ca rotate status 1"]);
    assert!(site.admin(&["ca", "rotate", "advance"]).ok().contains("issue: all are ready"));
    assert!(site.admin(&["ca", "rotate", "list", "--open"]).ok().contains("the fleet root"));
    assert_eq!(site.admin(&["ca", "rotate", "missing"]).ok(), "", "all are ready");
    site.admin(&["ca", "rotate", "back"]).ok();
    let over = site.admin(&["--output", "json", "ca", "rotate", "back", "1"]).ok();
    let over: Value = serde_json::from_str(&over).expect("JSON");
    assert_eq!((over["phase"].as_str(), over.get("forward")), (Some("aborted"), None));
    site.admin(&["ca", "rotate", "advance", "1"]).fails(1, &["is over (aborted)"]);
    site.admin(&["ca", "rotate", "advance", "7"]).fails(1, &["there is no rotation 7"]);
    site.admin(&["ca", "rotate", "start", "nodes", "--reason", "whose"]).fails(2, &["say whose with --tenant"]);
    site.with(&site.url, &site.viewer, &["ca", "rotate", "start", "root", "--reason", "no"]).fails(3, &["role admin"]);
}
