//! CFSSL as a peer: its sign endpoint on loopback, asked over connections that stay.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Api, Process, SOON, until};
use serde_json::{Value, json};
use store::sqlx::{self, AnyConnection, Connection as _, Executor as _};

use crate::core;

/// Connections that ask.
const AT_ONCE: usize = 16;

/// Certificates signed in a second of its core, each recorded in a SQLite database, as durably as ours are.
pub(crate) async fn signed_per_second(spend: Duration) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    authority(path)?;
    database(path).await?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let mut command = Command::new("cfssl");
    command.current_dir(path).args(["serve", "-address", "127.0.0.1", "-port", &port.to_string()]);
    command.args(["-ca", "ca.pem", "-ca-key", "ca.key", "-config", "config.json", "-db-config", "db.json"]);
    command.args(["-loglevel", "3"]);
    let server = core::there(|| Process::start(&mut command, &path.join("log")))?;
    let base = format!("http://127.0.0.1:{port}");
    let request = std::fs::read_to_string(path.join("node.csr"))?;
    until("CFSSL to sign", SOON, || sign(&Api::new(base.clone()), &request).map(Some))
        .with_context(|| server.last_words())?;

    let (before, ends) = (core::spent(server.id())?, Instant::now() + spend);
    let signed: usize = std::thread::scope(|scope| {
        let ask = || -> Result<usize> {
            let (api, mut signed) = (Api::new(base.clone()), 0);
            while Instant::now() < ends {
                sign(&api, &request)?;
                signed += 1;
            }
            Ok(signed)
        };
        let asking: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asked| asked.join().unwrap_or_else(|_| Ok(0))).sum::<Result<usize>>()
    })?;
    ensure!(signed > 0, "CFSSL signed nothing");
    Ok(signed as f64 / (core::spent(server.id())? - before))
}

fn sign(api: &Api, request: &str) -> Result<()> {
    let wanted = json!({ "certificate_request": request, "hosts": ["node.example"] });
    let reply = api.post("/api/v1/cfssl/sign", &wanted)?.ok()?;
    ensure!(reply["success"] == Value::Bool(true) && reply["result"]["certificate"].is_string(), "{reply}");
    Ok(())
}

/// Its authority on the same curve, its policy, and a request.
fn authority(path: &Path) -> Result<()> {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = |arguments: &[&str]| {
        core::printed(Command::new("openssl").current_dir(path).arg("req").args(key).args(arguments)).map(drop)
    };
    openssl(&["-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bench", "-days", "30"])?;
    openssl(&["-new", "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node"])?;
    let policy =
        json!({ "signing": { "default": { "expiry": "168h", "usages": ["digital signature", "client auth"] } } });
    std::fs::write(path.join("config.json"), policy.to_string())?;
    let database = json!({ "driver": "sqlite3", "data_source": path.join("certificates.db") });
    std::fs::write(path.join("db.json"), database.to_string())?;
    Ok(())
}

/// The table that its migrations make; with a write-ahead log, which is quicker than what SQLite does by itself.
async fn database(path: &Path) -> Result<()> {
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}?mode=rwc", path.join("certificates.db").display());
    let mut connection = AnyConnection::connect(&url).await?;
    connection
        .execute(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE certificates (
                 serial_number BLOB NOT NULL, authority_key_identifier BLOB NOT NULL, ca_label BLOB,
                 status BLOB NOT NULL, reason INT, expiry TIMESTAMP, revoked_at TIMESTAMP, pem BLOB NOT NULL,
                 PRIMARY KEY (serial_number, authority_key_identifier));",
        )
        .await?;
    Ok(connection.close().await?)
}
