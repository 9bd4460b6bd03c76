//! `hyperfactory-hub check`: what could keep the hub from running, and what to do about it.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use protocol::Timestamp;
use store::Database;

use crate::authorities::{Authorities, AuthoritiesError};
use crate::config::{Config, Encryption};
use crate::hub::{self, Endpoints};
use crate::keys::{Keys, KeysError, Master};
use crate::schema;
use crate::web::{Pair, PairError};

/// Less room than this, and the database may soon fail to grow.
const ROOM_WANTED: u64 = 1 << 30;

/// One thing looked at.
#[derive(Debug)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was found and, unless all is well, what to do.
    pub said: String,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Good.
    Ok,
    /// Works, and may not for long.
    Warn,
    /// Keeps the hub from running.
    Fail,
}

/// Looks at everything; changes nothing but that a missing embedded database is made.
pub async fn all(config: &Config) -> Vec<Finding> {
    let running = Endpoints::read(&config.state_dir).filter(|endpoints| taken_udp(endpoints.quic));
    let [database, tenants] = database(config).await;
    vec![
        state_dir(&config.state_dir),
        database,
        tenants,
        master_key(config).await,
        port(
            "quic-listen",
            config.quic_listen,
            UdpSocket::bind(config.quic_listen).map(drop),
            running.is_some(),
            "ss -ulnp",
        ),
        port(
            "http-listen",
            config.http_listen,
            TcpListener::bind(config.http_listen).map(drop),
            running.is_some(),
            "ss -tlnp",
        ),
        https(config, hub::now()),
    ]
}

/// Prints the findings; true when nothing failed.
#[expect(clippy::print_stdout, reason = "the verb's result")]
pub fn print(findings: &[Finding]) -> bool {
    for Finding { subject, outcome, said } in findings {
        let word = match outcome {
            Outcome::Ok => "ok  ",
            Outcome::Warn => "warn",
            Outcome::Fail => "FAIL",
        };
        println!("{word}  {subject:<12}  {said}");
    }
    findings.iter().all(|finding| finding.outcome != Outcome::Fail)
}

fn state_dir(path: &Path) -> Finding {
    let subject = "state-dir";
    let shown = path.display();
    let Ok(metadata) = std::fs::metadata(path) else {
        let said = format!("{shown} does not exist; `hyperfactory-hub serve` makes it when it may");
        return Finding { subject, outcome: Outcome::Warn, said };
    };
    if metadata.permissions().mode() & 0o077 != 0 {
        let said = format!("others can look into {shown}, which holds keys: chmod 700 {shown}");
        return Finding { subject, outcome: Outcome::Warn, said };
    }
    match rustix::fs::statvfs(path) {
        Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM_WANTED => {
            let megabytes = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
            let said = format!("the disk under {shown} has {megabytes} MiB free: make room, or shorten `retention`");
            Finding { subject, outcome: Outcome::Warn, said }
        }
        Ok(_) => Finding { subject, outcome: Outcome::Ok, said: shown.to_string() },
        Err(error) => Finding { subject, outcome: Outcome::Fail, said: format!("{shown} can't be read: {error}") },
    }
}

/// The database, and how it keeps tenants apart.
async fn database(config: &Config) -> [Finding; 2] {
    let (subject, apart) = ("database", "tenants");
    let opened = async {
        let database = Database::open(&config.database_url()).await?;
        database.migrate(schema::MIGRATIONS).await?;
        let (location, guard) = (database.location().to_owned(), database.guard().await?);
        database.close().await;
        anyhow::Ok((location, guard))
    };
    match opened.await {
        Ok((location, guard)) => {
            let (outcome, said) = match guard.advice() {
                Some(advice) => (Outcome::Warn, advice),
                None => (Outcome::Ok, guard.to_string()),
            };
            [Finding { subject, outcome: Outcome::Ok, said: location }, Finding { subject: apart, outcome, said }]
        }
        Err(error) => {
            let said = format!("{error:#}");
            let unknown = "not known while the database can't be used".to_owned();
            [
                Finding { subject, outcome: Outcome::Fail, said },
                Finding { subject: apart, outcome: Outcome::Warn, said: unknown },
            ]
        }
    }
}

async fn master_key(config: &Config) -> Finding {
    let subject = "master-key";
    let master = config.master();
    if let Master::File(path) | Master::Unsaid(path) = &master
        && std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
    {
        let shown = path.display();
        let said = format!("others can read {shown}: chmod 600 {shown}");
        return Finding { subject, outcome: Outcome::Fail, said };
    }
    match opens(config, &master).await {
        Ok(true) => Finding { subject, outcome: Outcome::Ok, said: format!("{master}; keep a copy elsewhere") },
        Ok(false) => {
            Finding { subject, outcome: Outcome::Ok, said: format!("{master} will be used from the first start on") }
        }
        Err(error) => Finding { subject, outcome: Outcome::Fail, said: format!("{error:#}") },
    }
}

/// Whether the master key opens what the database holds; not, where it holds nothing. A database that can't be read is
/// another check's.
async fn opens(config: &Config, master: &Master) -> anyhow::Result<bool> {
    let Ok(database) = Database::open(&config.database_url()).await else { return Ok(true) };
    let opened = async {
        let Some(keys) = Keys::check(&database, master).await? else { return Ok(false) };
        Authorities::check(&database, &keys).await.map(|()| true)
    };
    let opened = opened.await;
    database.close().await;
    match opened {
        Err(AuthoritiesError::Store(_) | AuthoritiesError::Keys(KeysError::Store(_))) => Ok(true),
        opened => Ok(opened?),
    }
}

fn https(config: &Config, now: Timestamp) -> Finding {
    let (outcome, said) = match config.encryption() {
        Err(error) => (Outcome::Fail, error.to_string()),
        Ok(Encryption::Off) if config.is_exposed().unwrap_or_default() => {
            let said = format!(
                "{} is not only this machine's, and passwords cross the network in the clear: set http-certificate and \
                 http-key, or http-tls = \"own\", or public-url to the https:// address of the proxy in front",
                config.http_listen
            );
            (Outcome::Warn, said)
        }
        Ok(Encryption::Off) => (Outcome::Ok, "plain HTTP, for this machine or the proxy in front".to_owned()),
        Ok(Encryption::Own) => {
            (Outcome::Ok, "the hub's own certificate; clients trust it by http-authority".to_owned())
        }
        Ok(Encryption::Files(pair)) => match judge(config, &pair, now) {
            Ok(finding) => finding,
            Err(error) => (Outcome::Fail, format!("{:#}", anyhow::Error::from(error))),
        },
    };
    Finding { subject: "https", outcome, said }
}

/// Whether browsers will take the certificate in the files, and its key is a secret.
fn judge(config: &Config, pair: &Pair, now: Timestamp) -> Result<(Outcome, String), PairError> {
    let certificate = pair.parse(&pair.contents()?)?;
    certificate.judge(now).map_err(|reason| pair.unusable(reason))?;
    let (names, until) = (certificate.names().join(" "), certificate.not_after());
    let public = config.public().ok().flatten().map(|url| url.host);
    let readable = std::fs::metadata(&pair.key).is_ok_and(|key| key.permissions().mode() & 0o007 != 0);
    let (file, key) = (pair.certificate.display(), pair.key.display());
    let wrong = if let Some(public) = public.filter(|public| !certificate.is_for(public)) {
        format!("the certificate is for {names}, not for {public} of public-url: browsers will refuse it")
    } else if readable {
        format!("everybody on this machine can read {key}: chmod o= {key}")
    } else if certificate.is_alone() {
        format!("{file} holds one certificate; most clients also need its authority's (fullchain.pem)")
    } else if certificate.ends_soon(now) {
        format!("the certificate ends on {until}: see why nobody renews {file}")
    } else {
        return Ok((Outcome::Ok, format!("{names}, until {until}")));
    };
    Ok((Outcome::Warn, wrong))
}

fn port(subject: &'static str, address: SocketAddr, bound: std::io::Result<()>, running: bool, who: &str) -> Finding {
    match bound {
        Ok(()) => Finding { subject, outcome: Outcome::Ok, said: format!("{address} is free") },
        Err(_) if running => Finding { subject, outcome: Outcome::Ok, said: format!("{address}: the hub runs") },
        Err(error) => {
            let said = format!("{address} can't be had ({error}): see who has it with `{who}`, or configure another");
            Finding { subject, outcome: Outcome::Fail, said }
        }
    }
}

fn taken_udp(address: SocketAddr) -> bool {
    UdpSocket::bind(address).is_err()
}
