//! The audit log as an operator has it: complete whatever is killed, and verified without the hub.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use data_encoding::BASE64;
use hyperfactory_tests::fleet::{Fleet, Options, Tokens, enroll};
use hyperfactory_tests::rig::{Hub, Postgres, SOON, binary};
use node::IdentityStore;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use store::sqlx::{self, AnyConnection, Connection as _, Executor as _};

const NODES: usize = 120;
const KILLS: usize = 15;

/// Kills the hub again and again while nodes enroll; then each gets a session with what it holds, every certificate that a
/// node holds is in the log, and so is every one in the database.
fn kill_while_enrolling(database: Option<&str>, seed: u64) -> Result<()> {
    let outside = tempfile::tempdir()?;
    let heads = outside.path().join("heads");
    let mut builder = Hub::builder()
        .set("audit-heads-file", heads.display().to_string())
        .set("audit-heads-every", "100ms")
        .set("enrollments-per-source", "500");
    if let Some(database) = database {
        builder = builder.set("database", database);
    }
    let mut hub = builder.start()?;
    hub.tenant("acme")?;
    let tokens = (0..NODES).map(|_| Ok(hub.join_token("acme")?.parse()?)).collect::<Result<Vec<_>>>()?;
    let tokens = Tokens::made(move |index| Ok(pki::JoinToken::clone(&tokens[index])));
    let stores: Vec<IdentityStore> = (0..NODES).map(|_| IdentityStore::memory()).collect();

    let mut random = SmallRng::seed_from_u64(seed);
    let mut kills = 0;
    let done = std::thread::scope(|scope| -> Result<usize> {
        let enrolling =
            scope.spawn(|| -> Result<usize> { tokio::runtime::Runtime::new()?.block_on(enroll(&stores, &tokens)) });
        while kills < KILLS && !enrolling.is_finished() {
            std::thread::sleep(Duration::from_millis(random.random_range(20..300)));
            hub.kill()?;
            hub.restart()?;
            kills += 1;
        }
        enrolling.join().map_err(|_| anyhow!("the enrollment panicked"))?
    })?;
    ensure!(done == NODES && kills > 3, "{done} nodes, {kills} kills");
    let summary = tokio::runtime::Runtime::new()?.block_on(async {
        let fleet = Fleet::start(&Options::default(), &stores)?;
        fleet.wait_for_sessions(NODES, SOON).await;
        anyhow::Ok(fleet.stop(SOON).await)
    })?;
    ensure!(summary.up == NODES, "{} of {NODES} nodes are in session", summary.up);

    let mut pem = String::new();
    for store in &stores {
        let identity = store.load()?.context("a node without an identity")?;
        for certificate in identity.credential.chain() {
            pem += &format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64.encode(certificate));
        }
    }
    let held = outside.path().join("held.pem");
    fs::write(&held, pem)?;
    ensure!(hub.stop()?.success(), "the hub did not stop well");
    let held = held.display().to_string();
    let verified = hub.command(&["audit", "verify", "--certificate", &held])?;
    ensure!(verified.starts_with("0 findings in "), "{verified}");
    ensure!(fs::read_to_string(&heads)?.lines().count() > kills, "a head for each life of the hub");
    Ok(())
}

#[test]
fn no_certificate_is_unlogged_whenever_the_hub_is_killed_on_sqlite() -> Result<()> {
    kill_while_enrolling(None, 5)
}

#[test]
fn no_certificate_is_unlogged_whenever_the_hub_is_killed_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    kill_while_enrolling(Some(database.url()), 6)
}

#[test]
fn an_export_is_verified_without_the_hub_and_what_was_done_to_it_is_named() -> Result<()> {
    let mut hub = Hub::start()?;
    for tenant in ["acme", "zeta"] {
        hub.tenant(tenant)?;
        hub.join_token(tenant)?;
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("audit.jsonl");
    let shown = file.display().to_string();
    let head = String::from_utf8(hfctl(&hub, &["audit", "head"])?.stdout)?;
    let head = head.trim();
    ensure!(hfctl(&hub, &["audit", "export", "--file", &shown])?.status.success());
    let part = String::from_utf8(hfctl(&hub, &["audit", "export", "--tenant", "acme"])?.stdout)?;
    hub.stop()?;

    let verify = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let output = Command::new(binary("hyperfactory-hub")?)
            .args(["audit", "verify", "--state-dir", "/nonexistent"])
            .args(arguments)
            .env_clear()
            .output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let (code, said) = verify(&["--file", &shown, "--head", head])?;
    ensure!(code == Some(0) && said.starts_with("0 findings in "), "{code:?} {said}");

    let whole = fs::read_to_string(&file)?;
    let lines: Vec<&str> = whole.lines().collect();
    let forge = |name: &str, lines: &[String]| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        Ok(path.display().to_string())
    };
    let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let cut = forge("cut", &owned(&lines[..lines.len() - 1]))?;
    let (code, said) = verify(&["--file", &cut, "--head", head])?;
    ensure!(code == Some(1) && said.contains("was published as a head, but the log ends at"), "{code:?} {said}");
    // By itself it looks whole, and the verb says that it can't tell.
    let (code, said) = verify(&["--file", &cut])?;
    ensure!(code == Some(0) && said.contains("No published head was given"), "{code:?} {said}");
    let mut removed = owned(&lines);
    removed.remove(2);
    let (code, said) = verify(&["--file", &forge("removed", &removed)?])?;
    ensure!(code == Some(1) && said.contains("entry 3: missing: it was removed"), "{code:?} {said}");
    let mut edited = owned(&lines);
    edited[3] = edited[3].replace("operator:rig", "operator:eve").replace("\"rig\"", "\"eve\"");
    let (code, said) = verify(&["--file", &forge("edited", &edited)?])?;
    ensure!(code == Some(1) && said.contains("entry 4: "), "{code:?} {said}");
    let part = forge("part", &owned(&part.lines().collect::<Vec<_>>()))?;
    ensure!(verify(&["--file", &part, "--partial"])?.0 == Some(0));
    ensure!(verify(&["--file", &part])?.0 == Some(1), "a part is not the whole");
    Ok(())
}

#[test]
fn a_certificate_put_beside_the_log_is_named() -> Result<()> {
    let mut hub = Hub::start()?;
    hub.tenant("acme")?;
    ensure!(hub.stop()?.success());
    ensure!(hub.command(&["audit", "verify"])?.starts_with("0 findings"));
    let runtime = tokio::runtime::Runtime::new()?;
    let url = format!("sqlite://{}", hub.state_dir().join("hub.db").display());
    runtime.block_on(async {
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&url).await?;
        // As somebody would who can sign, and does not ask the hub: here the same certificate, resigned by a byte.
        let copied = connection
            .execute(
                "INSERT INTO authorities
                     (kind, tenant, generation, state, spki_sha256, certificate, sealed_key, not_after, created_at)
                 SELECT kind, tenant, 9, 'retired', spki_sha256,
                     CAST(substr(certificate, 1, length(certificate) - 1) || X'5A' AS BLOB), sealed_key, not_after,
                     created_at FROM authorities WHERE kind = 'nodes'",
            )
            .await?;
        ensure!(copied.rows_affected() == 1);
        connection.close().await?;
        anyhow::Ok(())
    })?;
    let output = hub.attempt(&["audit", "verify"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("(nodes of tenant acme): never logged"), "{said}");
    Ok(())
}

fn hfctl(hub: &Hub, arguments: &[&str]) -> Result<Output> {
    let home = Path::new("/nonexistent");
    Ok(Command::new(binary("hfctl")?)
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("HYPERFACTORY_HFCTL_URL", &hub.endpoints().http)
        .env("HYPERFACTORY_HFCTL_TOKEN", hub.api().token().unwrap_or_default())
        .output()?)
}
