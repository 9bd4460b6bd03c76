//! The master key from each of its sources, and moving from one to another.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::authorities::Authorities;
use hyperfactory_hub::keys::{CommandError, Keys, KeysError, Kind, Master};
use hyperfactory_hub::schema::MIGRATIONS;
use hyperfactory_hub::tenants::TenantError;
use pki::{MasterKey, Passphrase};
use protocol::NodeKind;
use store::{Database, on_both_engines, sqlx};

use crate::setup::{NOW, World, at, key, master};

fn passphrase(text: &str) -> Master {
    Master::Passphrase(Passphrase::new(text.to_owned().into()))
}

/// An executable in `directory`.
fn program(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("executable");
    path
}

/// The example for OpenSSL, with a key of its own.
fn openssl(directory: &Path) -> Master {
    let pem = directory.join("master.pem");
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"])
        .arg(&pem)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/master-key-openssl");
    let text = format!("#!/bin/sh\nHYPERFACTORY_MASTER_PEM={} exec {example} \"$@\"\n", pem.display());
    Master::Command(program(directory, "openssl-wrapped", &text))
}

fn new_file(directory: &Path) -> Master {
    let path = directory.join("another.key");
    fs::write(&path, MasterKey::generate().expect("a key").to_text().as_bytes()).expect("written");
    Master::File(path)
}

async fn certificates(database: &Database) -> Vec<(Vec<u8>, Vec<u8>)> {
    sqlx::query_as("SELECT certificate, sealed_key FROM authorities ORDER BY id")
        .fetch_all(database.reader())
        .await
        .expect("authorities")
}

on_both_engines! {
    async fn another_master_key_opens_nothing_and_the_hub_says_which_one_it_needs(database: TestDatabase) {
        let world = World::new(database).await;
        let directory = tempfile::tempdir().expect("a directory");
        let stored = Keys::status(&world.database).await.expect("status").expect("keys").master;
        let open = async |master| Keys::open(&world.database, &master, NOW).await.map(drop).expect_err("another");
        let error = open(new_file(directory.path())).await;
        assert!(matches!(error, KeysError::OtherMasterKey { .. }), "{error}");
        assert!(error.to_string().contains(&stored.id) && error.to_string().contains("another.key"), "{error}");
        let error = open(passphrase("a passphrase for nothing")).await.to_string();
        assert!(error.contains("configure master-key-file"), "{error}");
        world.close().await;
    }

    async fn keys_move_from_source_to_source_and_nothing_is_issued_anew(database: TestDatabase) {
        let world = World::new(database).await;
        let directory = tempfile::tempdir().expect("a directory");
        let before = certificates(&world.database).await;
        let phrase = "correct horse battery staple";
        let sources = [master(), passphrase(phrase), openssl(directory.path()), new_file(directory.path()), master()];
        let kinds = [Kind::Passphrase, Kind::Command, Kind::File, Kind::File];
        for (pair, kind) in sources.windows(2).zip(kinds) {
            let [from, to] = pair else { panic!("pairs") };
            let keys = Keys::open(&world.database, from, NOW).await.expect("the key they are under");
            let moved = keys.rewrap(&world.database, to, &Actor::system(), NOW).await.expect("moved");
            assert_eq!((moved.data_keys, moved.master.kind), (2, kind));
            assert!(Keys::open(&world.database, from, NOW).await.is_err(), "{from} still opens");
            let keys = Keys::check(&world.database, to).await.expect("opens").expect("keys");
            Authorities::check(&world.database, &keys).await.expect("every authority opens");
        }
        assert_eq!(certificates(&world.database).await, before);
        assert_eq!(world.audited(action::KEYS_REWRAPPED).await.len(), kinds.len());
        // A passphrase is never taken for another.
        let keys = Keys::open(&world.database, &master(), NOW).await.expect("opens");
        keys.rewrap(&world.database, &passphrase(phrase), &Actor::system(), NOW).await.expect("moved");
        let error = Keys::open(&world.database, &passphrase("Correct horse battery staple"), NOW).await.map(drop);
        assert!(matches!(error, Err(KeysError::OtherMasterKey { .. })), "{error:?}");
        world.close().await;
    }

    async fn a_hub_whose_keys_were_moved_makes_no_tenant_and_says_why(database: TestDatabase) {
        let world = World::new(database).await;
        let directory = tempfile::tempdir().expect("a directory");
        let keys = Keys::open(&world.database, &master(), NOW).await.expect("opens");
        keys.rewrap(&world.database, &new_file(directory.path()), &Actor::system(), NOW).await.expect("moved");
        let error = world.tenants.create(&"late".parse().expect("an id"), "Late", &Actor::system(), NOW).await;
        let Err(TenantError::Authorities(error)) = error else { panic!("made: {error:?}") };
        assert!(error.to_string().contains("restart this hub"), "{error}");
        // And who would move them from where they no longer are moves nothing.
        let error = keys.rewrap(&world.database, &master(), &Actor::system(), NOW).await.expect_err("moved before");
        assert!(matches!(error, KeysError::Moved), "{error}");
        world.close().await;
    }

    async fn a_tenant_that_is_made_while_the_keys_move_is_under_one_of_the_two(database: TestDatabase) {
        let world = World::new(database).await;
        let directory = tempfile::tempdir().expect("a directory");
        let (mut from, mut to) = (master(), new_file(directory.path()));
        for number in 0..8 {
            let keys = Keys::open(&world.database, &from, NOW).await.expect("opens");
            let tenants = World::opened(database, &from).await.tenants;
            let id = format!("tenant-{number}").parse().expect("an id");
            let actor = Actor::system();
            let (moved, made) = tokio::join!(
                keys.rewrap(&world.database, &to, &actor, NOW),
                tenants.create(&id, "New", &actor, NOW)
            );
            moved.expect("moved");
            let keys = Keys::check(&world.database, &to).await.expect("all open").expect("keys");
            Authorities::check(&world.database, &keys).await.expect("every authority opens");
            assert_eq!(made.is_ok(), world.tenants.get(&id).await.is_ok(), "{made:?}");
            std::mem::swap(&mut from, &mut to);
        }
        world.close().await;
    }

    async fn a_destroyed_data_key_destroys_its_tenants_authority_and_no_other(database: TestDatabase) {
        let world = World::new(database).await;
        let other = "other".parse().expect("an id");
        world.tenants.create(&other, "Other", &Actor::system(), NOW).await.expect("a tenant");
        let mut transaction = world.database.begin_write().await.expect("a transaction");
        sqlx::query("DELETE FROM data_keys WHERE owner = 'tenant/other'").execute(&mut *transaction).await.expect("gone");
        transaction.commit().await.expect("committed");
        let keys = Keys::open(&world.database, &master(), NOW).await.expect("opens");
        let error = Authorities::check(&world.database, &keys).await.expect_err("destroyed");
        assert!(error.to_string().contains("tenant/other has no data key: it was destroyed"), "{error}");
        let again = World::open(database).await;
        again.enroll(&world.token(NodeKind::Agent, None).await, &key(), at(1)).await.expect("acme goes on");
        again.close().await;
        world.close().await;
    }

    async fn a_database_without_keys_takes_any_source(database: TestDatabase) {
        let directory = tempfile::tempdir().expect("a directory");
        let database = database.open().await;
        database.migrate(MIGRATIONS).await.expect("tables");
        assert!(Keys::status(&database).await.expect("status").is_none());
        let short = Keys::open(&database, &passphrase("too short"), NOW).await.map(drop).expect_err("short");
        assert!(short.to_string().contains("16 or more"), "{short}");
        let command = openssl(directory.path());
        let keys = Keys::open(&database, &command, NOW).await.expect("made");
        Authorities::open(database.clone(), keys, NOW).await.expect("authorities");
        let keys = Keys::check(&database, &command).await.expect("opens").expect("keys");
        Authorities::check(&database, &keys).await.expect("every authority opens");
        database.close().await;
    }
}

/// A fresh database, and a command of this text to keep its key.
async fn fresh(text: &str) -> (tempfile::TempDir, Database, Master) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite://{}", directory.path().join("test.db").display());
    let database = Database::open(&url).await.expect("a database");
    database.migrate(MIGRATIONS).await.expect("tables");
    let master = Master::Command(program(directory.path(), "keeper", text));
    (directory, database, master)
}

/// What Keys::open makes of a command in a fresh database.
async fn with_command(text: &str) -> Result<(), KeysError> {
    let (_directory, database, master) = fresh(text).await;
    let opened = Keys::open(&database, &master, NOW).await.map(drop);
    assert_eq!(Keys::status(&database).await.expect("status").is_some(), opened.is_ok(), "kept without its key");
    database.close().await;
    opened
}

#[tokio::test]
async fn a_command_that_does_not_keep_the_key_is_refused_before_anything_is_stored() {
    for (text, advice) in [
        ("#!/bin/sh\necho 'the HSM is locked' >&2; exit 3\n", "(exit status: 3): the HSM is locked"),
        ("#!/bin/sh\nexec cat\n", "gave the key as it is"),
        ("#!/bin/sh\nexec true\n", "gave nothing"),
        ("#!/bin/sh\ncat >/dev/null; echo hello\n", "another number of bytes than 32"),
        ("#!/bin/sh\nhead -c 32 /dev/urandom\n", "does not unwrap to the same key"),
        ("#!/bin/sh\nexec head -c 1000000 /dev/zero\n", "more than 16 KiB"),
        ("#!/no/such/interpreter\n", "see that it exists and is executable"),
    ] {
        let error = with_command(text).await.expect_err(advice).to_string();
        assert!(error.contains(advice), "{error}");
    }
}

#[tokio::test]
async fn a_command_gets_its_words_and_no_secret_of_the_hubs() {
    let printing = "#!/bin/sh\necho \"$# $1 ${HYPERFACTORY_HUB_DATABASE-nothing} $HOME\" >&2; exit 1\n";
    let error = with_command(printing).await.expect_err("it only prints").to_string();
    let home = std::env::var("HOME").unwrap_or_default();
    assert!(error.ends_with(&format!("1 wrap nothing {home}")), "{error}");
}

/// With the clock paused, the deadline comes as soon as nothing is under way; what waits for the command to have started
/// counts as that.
#[tokio::test(start_paused = true)]
async fn a_command_that_hangs_is_ended_with_all_that_it_started() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
    // Whoever lives holds the pipe open.
    let text = format!("#!/bin/sh\nexec 3>{}\nsleep 1000 &\necho >&3\nwait\n", path.display());
    let started = tokio::task::spawn_blocking(move || {
        let mut pipe = fs::File::open(path).expect("a pipe");
        pipe.read_exact(&mut [0]).expect("it has started");
        pipe
    });
    let (_directory, database, master) = fresh(&text).await;
    let error = Keys::open(&database, &master, NOW).await.map(drop).expect_err("late");
    assert!(matches!(error, KeysError::Command(CommandError::Late { .. })), "{error}");
    started.await.expect("a pipe").read_to_end(&mut Vec::new()).expect("nobody holds it any more");
}

/// kill -9 at moments from the start of the program to its end: whichever it was, one of the two keys opens everything,
/// and `keys status` tells which.
#[test]
fn a_move_that_is_killed_leaves_the_old_key_or_the_new_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().join("state");
    let hub = |master: &Path, words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyperfactory-hub"));
        command.arg("--state-dir").arg(&state).args(words).env("HYPERFACTORY_HUB_MASTER_KEY_FILE", master);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let (one, two) = (directory.path().join("one.key"), directory.path().join("two.key"));
    for path in [&one, &two] {
        fs::write(path, MasterKey::generate().expect("a key").to_text().as_bytes()).expect("written");
    }
    let made = hub(&one, &["api-token"]).output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let opens = |path: &Path| {
        let output = hub(path, &["keys", "status"]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.success(), said.contains("opens       yes"), "{said}");
        output.status.success()
    };
    let (mut from, mut to) = (one, two);
    let words = |to: &Path| ["keys".to_owned(), "rewrap".to_owned(), "--to-file".to_owned(), to.display().to_string()];
    let begun = Instant::now();
    let whole = words(&to);
    assert!(hub(&from, &whole.each_ref().map(String::as_str)).output().expect("it runs").status.success());
    let whole = begun.elapsed();
    std::mem::swap(&mut from, &mut to);
    let (mut old, mut new) = (0, 0);
    for step in 0..32u32 {
        let words = words(&to);
        let mut child = hub(&from, &words.each_ref().map(String::as_str)).spawn().expect("it starts");
        spin(whole.mul_f64(f64::from(step) / 8.0));
        child.kill().expect("killed, or gone");
        let status = child.wait().expect("ended");
        assert!(status.success() || status.signal() == Some(9), "{status}");
        match (opens(&from), opens(&to)) {
            (true, false) => old += 1,
            (false, true) => {
                new += 1;
                std::mem::swap(&mut from, &mut to);
            }
            both => panic!("after a kill at step {step}, of old and new: {both:?}"),
        }
    }
    assert!(old > 0 && new > 0, "every kill came at the same side: old {old}, new {new}");
}

/// Waits by looking at the clock: a sleep is too coarse for where the program is cut off.
fn spin(until: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < until {
        std::hint::spin_loop();
    }
}
