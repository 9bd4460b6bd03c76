//! The root's key in a file, and signing ceremonies, by the program itself: on the hub's machine, and on another that has
//! no hub.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::enrollment::NewToken;
use protocol::{NodeKind, TenantId, Timestamp};
use serde_json::Value;
use store::on_both_engines;

use crate::audit::{owner, verified};
use crate::setup::{HERE, World, key, request, seconds};

const PASSPHRASE: &str = "correct horse battery staple";

fn now() -> Timestamp {
    SystemTime::now().into()
}

/// The machine of a hub.
struct Machine {
    state: PathBuf,
    database: Option<String>,
}

impl Machine {
    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("it runs")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyperfactory-hub"));
        let master = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/master.key");
        command.arg("--state-dir").arg(&self.state).env("HYPERFACTORY_HUB_MASTER_KEY_FILE", master);
        if let Some(url) = &self.database {
            command.env("HYPERFACTORY_HUB_DATABASE", url);
        }
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// The program where there is neither hub nor configuration: the one it has would not be taken.
fn elsewhere(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyperfactory-hub"));
    command.env("HYPERFACTORY_HUB_NONSENSE", "1").args(words).stdin(Stdio::null());
    command.output().expect("it runs")
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{out}{err}");
    out
}

/// What it complained of, and its exit code.
fn refused(output: &Output) -> (i32, String) {
    (output.status.code().expect("an exit code"), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A file with a passphrase.
fn passphrase(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).expect("written");
    path
}

/// The groups of four that are read out.
fn spoken(said: &str) -> String {
    let line =
        said.lines().find(|line| line.trim().len() == 29 && line.trim().split(' ').all(|group| group.len() == 4));
    line.unwrap_or_else(|| panic!("no sum in {said}")).trim().to_owned()
}

on_both_engines! {
    async fn a_ceremony_on_a_machine_without_a_hub_lets_a_tenants_nodes_in(database: TestDatabase) {
        let world = World::new_at(database, now()).await;
        let hub_side = tempfile::tempdir().expect("a directory");
        let vault = tempfile::tempdir().expect("a directory");
        let hub = Machine { state: hub_side.path().join("state"), database: Some(database.url.clone()) };
        let phrase = passphrase(vault.path(), "passphrase", &format!("{PASSPHRASE}\n"));
        let file = |name: &str| hub_side.path().join(name);
        let carried = |name: &str| vault.path().join(name);

        let exported = said(&hub.run(&[
            "ca", "root", "export", "--file", text(&file("root.key")), "--passphrase-file", text(&phrase),
        ]));
        assert!(exported.contains("Copy") && exported.contains("Backups of the database"), "{exported}");
        assert_eq!(fs::metadata(file("root.key")).expect("there").permissions().mode() & 0o777, 0o600);
        let secret = fs::read_to_string(file("root.key")).expect("text");
        assert!(!secret.contains("PRIVATE KEY") && !secret.contains(PASSPHRASE), "{secret}");
        let status = said(&hub.run(&["ca", "root", "status"]));
        assert!(status.contains("key         offline") && status.contains("awaited     0"), "{status}");
        let nothing = said(&hub.run(&["ca", "root", "requests", "--file", text(&file("requests"))]));
        assert!(nothing.starts_with("Nothing waits") && !file("requests").exists(), "{nothing}");

        let late: TenantId = "late".parse().expect("a tenant");
        let made = world.tenants.create(&late, "Late", &Actor::operator("ann"), now()).await.expect("a tenant");
        assert!(made.awaits_signature);
        let new = NewToken { tenant: late, kind: NodeKind::Agent, name: None, valid_for: seconds(3600) };
        let token = world.enrollment.create_token(new, &Actor::operator("ann"), now()).await.expect("a token").1;
        let (key, door) = (key(), &world.enrollment);
        door.enroll(request(&token, &key), HERE, now()).await.expect_err("put off");

        let asked = said(&hub.run(&["ca", "root", "requests", "--file", text(&file("requests"))]));
        assert!(asked.contains("tenant late: the authority that issues its nodes' identities, generation 1"), "{asked}");
        for name in ["root.key", "requests"] {
            fs::rename(file(name), carried(name)).expect("carried");
        }
        let signed = said(&elsewhere(&[
            "ca", "root", "sign", "--key", text(&carried("root.key")), "--requests", text(&carried("requests")),
            "--out", text(&carried("signed")), "--passphrase-file", text(&phrase), "--yes",
        ]));
        assert!(signed.contains("tenant late: the authority that issues"), "{signed}");
        assert_eq!(spoken(&signed), spoken(&asked), "both see the same requests");
        let log = fs::read_to_string(carried("root.key.log")).expect("a log");
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2, "an intermediate and a list: {log}");
        fs::rename(carried("signed"), file("signed")).expect("carried");

        let imported = said(&hub.run(&["ca", "root", "import", "--file", text(&file("signed"))]));
        // The list is no newer when all of it takes place within one second.
        assert!(imported.contains("1 intermediates"), "{imported}");
        door.enroll(request(&token, &key), HERE, now()).await.expect("enrolled");
        let again = said(&hub.run(&["ca", "root", "import", "--file", text(&file("signed"))]));
        assert!(again.contains("0 intermediates") && again.contains("2 were here already"), "{again}");
        let verified_by_program = said(&hub.run(&["audit", "verify"]));
        assert!(verified_by_program.starts_with("0 findings"), "{verified_by_program}");
        let created = world.audited(action::AUTHORITY_CREATED).await;
        assert_eq!(created[0].detail["certificate"]["sha256"], lines[0]["signed"]["sha256"], "both logs know it");

        // The way back.
        let key_file = carried("root.key");
        let back = ["ca", "root", "restore", "--file", text(&key_file), "--passphrase-file", text(&phrase)];
        assert!(said(&hub.run(&back)).contains("in the database again"));
        assert!(said(&hub.run(&back)).contains("was here already"));
        assert!(said(&hub.run(&["ca", "root", "status"])).contains("key         here"));
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }
}

#[tokio::test]
async fn whatever_is_wrong_is_said_and_nothing_is_lost() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name);
    let hub = Machine { state: file("state"), database: None };
    let phrase = passphrase(directory.path(), "phrase", PASSPHRASE);
    let wrong = passphrase(directory.path(), "wrong", "correct horse battery stable");
    let short = passphrase(directory.path(), "short", "too short");
    let export = |to: &str, phrase: &Path| {
        hub.run(&["ca", "root", "export", "--file", text(&file(to)), "--passphrase-file", text(phrase)])
    };
    let is = |output: &Output, code: i32, part: &str| {
        let (found, said) = refused(output);
        assert!(found == code && said.contains(part), "wanted {code} and {part:?}: {found} {said}");
    };

    is(&export("root.key", &phrase), 1, "the database");
    fs::create_dir(&hub.state).expect("made");
    is(&export("root.key", &phrase), 1, "there is no root yet");
    said(&hub.run(&["api-token"]));
    is(&hub.run(&["ca", "root", "requests", "--file", text(&file("r"))]), 1, "the fleet root's key is here");
    is(&export("root.key", &short), 1, "take 16 or more");
    is(&export("no/such/root.key", &phrase), 1, "cannot write");
    is(&hub.run(&["ca", "root", "export", "--file", text(&file("root.key"))]), 2, "--passphrase-file");
    fs::write(file("taken"), "something else").expect("written");
    is(&export("taken", &phrase), 2, "nothing is overwritten");
    assert!(
        said(&hub.run(&["ca", "root", "status"])).contains("key         here"),
        "all that left the key where it was"
    );

    said(&export("root.key", &phrase));
    is(&export("again.key", &phrase), 1, "it was exported before");
    assert!(!file("again.key").exists());
    let restore = |from: &str, phrase: &Path| {
        hub.run(&["ca", "root", "restore", "--file", text(&file(from)), "--passphrase-file", text(phrase)])
    };
    is(&restore("root.key", &wrong), 1, "the passphrase is not the one");
    is(&restore("taken", &phrase), 2, "wanted is a root's key");
    is(&restore("nothing", &phrase), 2, "cannot read");
    let whole = fs::read_to_string(file("root.key")).expect("text");
    fs::write(file("cut.key"), &whole[..whole.len() / 2]).expect("written");
    is(&restore("cut.key", &phrase), 1, "is damaged");
    fs::write(file("bent.key"), whole.replacen("\"key\": \"A", "\"key\": \"B", 1)).expect("written");
    is(&restore("bent.key", &phrase), 1, "is damaged");
    is(&hub.run(&["ca", "root", "import", "--file", text(&file("root.key"))]), 2, "is a root's key");

    // Another hub, whose root is another.
    let other = Machine { state: file("other"), database: None };
    said(&other.run(&["api-token"]));
    let foreign =
        other.run(&["ca", "root", "restore", "--file", text(&file("root.key")), "--passphrase-file", text(&phrase)]);
    is(&foreign, 1, "here the root with the key");
    let sign = |requests: &Path| {
        let (key, out) = (file("root.key"), file("signed"));
        elsewhere(&[
            "ca",
            "root",
            "sign",
            "--key",
            text(&key),
            "--requests",
            text(requests),
            "--out",
            text(&out),
            "--passphrase-file",
            text(&phrase),
            "--yes",
        ])
    };
    is(&sign(&file("root.key")), 2, "wanted is signing requests");
    said(&restore("root.key", &phrase));
    assert!(said(&hub.run(&["ca", "root", "status"])).contains("key         here"));
}

/// kill -9 just before and just after the commit that removes the key: it is in both places, or in the file alone. The
/// moment is searched for: a kill that came too early is followed by a later one, and the other way round.
#[test]
fn an_export_that_is_killed_around_its_commit_never_loses_the_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let hub = Machine { state: directory.path().join("state"), database: None };
    let phrase = passphrase(directory.path(), "phrase", PASSPHRASE);
    let file = directory.path().join("root.key");
    said(&hub.run(&["api-token"]));
    let export = ["ca", "root", "export", "--file", text(&file), "--passphrase-file", text(&phrase)];
    let restore = ["ca", "root", "restore", "--file", text(&file), "--passphrase-file", text(&phrase)];
    let here = || said(&hub.run(&["ca", "root", "status"])).contains("key         here");
    // Killed `after` the file has come into its place.
    let export_killed = |after: Option<Duration>| {
        let mut child = hub.command(&export).spawn().expect("it starts");
        while !file.exists() {
            assert!(child.try_wait().expect("known").is_none(), "it ended without a file");
            std::hint::spin_loop();
        }
        let begun = Instant::now();
        if let Some(after) = after {
            spin(after);
            child.kill().expect("killed, or gone");
        }
        let status = child.wait().expect("ended");
        assert!(status.success() || status.signal() == Some(9), "{status}");
        begun.elapsed()
    };
    let mut after = export_killed(None);
    let (mut both, mut moved) = (0, 0);
    while both < 3 || moved < 3 {
        assert!(both + moved < 60, "every kill came at the same side: {both} {moved}");
        // The file opens whenever it is there, and with it the key is back.
        said(&hub.run(&restore));
        assert!(here());
        fs::remove_file(&file).expect("done with it");
        export_killed(Some(after));
        if here() {
            both += 1;
            after = after.mul_f64(1.2) + Duration::from_millis(1);
        } else {
            moved += 1;
            after = after.mul_f64(0.8);
        }
    }
}

/// Waits by looking at the clock: a sleep is too coarse for where the program is cut off.
fn spin(until: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < until {
        std::hint::spin_loop();
    }
}
