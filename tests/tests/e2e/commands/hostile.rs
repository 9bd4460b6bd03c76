//! A hub that has fallen into the wrong hands: whoever writes its database can't have an agent do what takes an operator's
//! signature, and finds in the audit log what was tried.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Hub, binary};
use pki::OperatorKey;
use protocol::command::Signature;
use protocol::{CommandId, NodeId, Timestamp};
use serde_json::json;
use store::sqlx::{self, AnyConnection, Connection as _, Row as _};

use super::Site;

/// A command that the hub's own tables say was asked for.
struct Planted {
    id: CommandId,
    signature: [u8; 64],
    until: Timestamp,
}

/// Puts commands beside one that was signed, which has ended, and has that one asked for again.
async fn plant(url: &str, signed: &str, commands: &[Planted]) -> Result<()> {
    let mut connection = AnyConnection::connect(url).await?;
    for command in commands {
        let copied = sqlx::query(
            "INSERT INTO commands (id, request, tenant, node, action, arguments, priority, reason, requested_by, state,
                created_at, deadline, signer, signature, signed_until)
             SELECT $1, request, tenant, node, action, arguments, priority, reason, requested_by, 'queued', created_at,
                deadline + 3600000, signer, $2, $3 FROM commands WHERE id = $4",
        )
        .bind(command.id.to_string())
        .bind(command.signature.to_vec())
        .bind(command.until.millis())
        .bind(signed)
        .execute(&mut connection)
        .await?;
        ensure!(copied.rows_affected() == 1);
    }
    let again = "UPDATE commands SET state = 'queued', deadline = deadline + 3600000, told_at = NULL, delivered_at = NULL, started_at = NULL,
        ended_at = NULL, message = '' WHERE id = $1";
    ensure!(sqlx::query(again).bind(signed).execute(&mut connection).await?.rows_affected() == 1);
    Ok(connection.close().await?)
}

/// The arguments and the signature of a command that was signed.
async fn found(url: &str, id: &str) -> Result<(Vec<u8>, [u8; 64], Timestamp)> {
    let mut connection = AnyConnection::connect(url).await?;
    let row = sqlx::query("SELECT arguments, signature, signed_until FROM commands WHERE id = $1")
        .bind(id)
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    let signature: Vec<u8> = row.try_get(1)?;
    let signature = signature.try_into().ok().context("not a signature")?;
    Ok((row.try_get(0)?, signature, Timestamp::from_millis(row.try_get(2)?)))
}

#[test]
fn a_hub_that_forges_replays_or_sends_elsewhere_what_was_signed_is_refused_and_that_is_audited() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (key, file) = (OperatorKey::generate()?, folder.path().join("ann"));
    std::fs::write(&file, key.to_text().as_bytes())?;
    let file = file.to_str().context("a path")?;
    let mut site = Site::start(Hub::start()?, "commands-hostile", |agent| {
        agent
            .set("commands-accept", "service.restart")
            .set("commands-require-signature", "service.restart")
            .set("commands-operators", key.public().to_string())
    })?;
    let hfctl = |arguments: &[&str]| -> Result<()> {
        let mut command = std::process::Command::new(binary("hfctl")?);
        command.env("HYPERFACTORY_HFCTL_URL", &site.hub.endpoints().http);
        command.env("HYPERFACTORY_HFCTL_TOKEN", site.hub.api().token().context("no token")?);
        let output = command.args(arguments).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    };
    hfctl(&["operator-key", "register", file, "--name", "ann", "--reason", "a test"])?;
    let since = site.engine_time()?;
    let service = format!("{}/web", site.project.name());
    hfctl(&["service", "restart", &service, "--node", &site.node, "--reason", "a test", "--sign-with", file])?;
    let listed = site.hub.api().get(&format!("/api/v1/commands?node={}", site.node))?.ok()?;
    let genuine = listed["items"][0]["id"].as_str().context("no command")?.to_owned();
    ensure!(site.restarts("web", &since)? == 1);

    // From here on the hub says what it likes.
    ensure!(site.agent.stop()?.success());
    site.hub.kill()?;
    let runtime = tokio::runtime::Runtime::new()?;
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}", site.hub.state_dir().join("hub.db").display());
    let (arguments, signature, until) = runtime.block_on(found(&url, &genuine))?;
    let now = Timestamp::from(SystemTime::now());
    let later = now.plus(Duration::from_secs(3_600));
    let id = || CommandId::new(now, rand::random());
    let node: NodeId = site.node.parse()?;
    let sign = |node, id| key.sign(&Signature::message(node, id, &arguments, later));
    let (good, forged, elsewhere, replayed) = (id(), id(), id(), id());
    let mut other_bytes = sign(node, forged);
    other_bytes[17] ^= 1;
    let commands = [
        Planted { id: forged, signature: other_bytes, until: later },
        Planted { id: elsewhere, signature: sign(NodeId::new(now, rand::random()), elsewhere), until: later },
        Planted { id: replayed, signature, until },
        // So that what is planted is known to reach the agent as it is.
        Planted { id: good, signature: sign(node, good), until: later },
    ];
    runtime.block_on(plant(&url, &genuine, &commands))?;
    site.hub.restart()?;
    site.agent.run()?;

    site.comes_to(&good.to_string(), "succeeded")?;
    let again = site.comes_to(&genuine, "succeeded")?;
    assert_eq!(again["told"], json!(true), "{again}");
    let mut refused = Vec::new();
    for id in [forged, elsewhere, replayed] {
        let command = site.comes_to(&id.to_string(), "failed")?;
        assert_eq!(command["refused"], json!(true), "{command}");
        assert!(command["message"].as_str().is_some_and(|said| said.contains("not for this command")), "{command}");
        refused.push(json!(id.to_string()));
    }
    assert_eq!(site.restarts("web", &since)?, 2, "the one that was signed, once, and the good one");
    let audit = site.hub.api().get("/api/v1/audit?action=command.refused")?.ok()?;
    let audited: Vec<_> =
        audit["items"].as_array().into_iter().flatten().map(|entry| entry["subject"].clone()).collect();
    assert!(audited.len() == 3 && refused.iter().all(|id| audited.contains(id)), "{audit}");
    let actor = json!(format!("node:{}", site.node));
    assert!(audit["items"].as_array().into_iter().flatten().all(|entry| entry["actor"] == actor), "{audit}");
    Ok(())
}
