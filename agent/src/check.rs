//! The verbs `check` and `status`: what a person asks for when something is not as it should be.

use std::fmt::Write;
use std::time::Duration;

use node::check::{Check, Outcome, Subject};
use node::health;
use node::{Clock, IdentityStore};

use crate::agent::Endpoints;
use crate::config::{Config, Logs};
use crate::engine::{Address, Trouble};
use crate::failure::Failure;
use crate::shipper;

/// How long the engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Checks the engine and all that a node needs. Gives the lines to show, and whether nothing failed.
pub async fn check(config: &Config) -> Result<(String, bool), Failure> {
    let address = config.engine(std::env::var("DOCKER_HOST").ok().as_deref()).map_err(Failure::usage)?;
    let store = IdentityStore::directory(&config.state_dir);
    let clock = Clock::system();
    let mut checks = vec![engine(&address).await];
    checks.extend(logs(&config.logs, &address).await);
    checks.extend(
        node::check::check(&Subject {
            store: &store,
            state_directory: &config.state_dir,
            spool_capacity: config.spool_size.0,
            health: Endpoints::health(config),
            clock: &clock,
        })
        .await,
    );
    Ok((lines(&checks), checks.iter().all(|check| check.outcome != Outcome::Fail)))
}

async fn engine(address: &Address) -> Check {
    let connected = match address.connect(PATIENCE).await {
        Ok(engine) => tokio::time::timeout(PATIENCE, engine.version()).await,
        Err(trouble) => return engine_trouble(&trouble),
    };
    match connected {
        Ok(Ok(version)) => {
            let version = version.version.unwrap_or_else(|| "of an unnamed version".into());
            Check::ok("engine", format!("Docker Engine {version} answers at {address}"))
        }
        Ok(Err(error)) => engine_trouble(&address.trouble(&error)),
        Err(_) => engine_trouble(&address.trouble(&bollard::errors::Error::RequestTimeoutError)),
    }
}

/// Whether all logs that are chosen can be shipped; `None` where none are, or the engine does not say.
async fn logs(config: &Logs, address: &Address) -> Option<Check> {
    if !config.is_on() {
        return None;
    }
    let engine = address.connect(PATIENCE).await.ok()?;
    shipper::running(config, &engine).await.ok().map(shipped)
}

fn shipped(running: usize) -> Check {
    let most = shipper::CONTAINERS;
    if running > most {
        let said = format!("{running} containers that run are chosen, and {most} at most are shipped at once");
        return Check::warn("logs", said, "choose fewer services in agent.toml, [logs], or the others are not kept");
    }
    Check::ok("logs", format!("{running} containers that run are chosen to be shipped"))
}

/// A host without an engine is still worth watching; one whose engine doesn't work is not as it should be.
fn engine_trouble(trouble: &Trouble) -> Check {
    let said = trouble.to_string();
    let (said, advice) = said.split_once(": ").unwrap_or((&said, ""));
    match trouble {
        Trouble::Absent(_) => Check::warn("engine", said, advice),
        Trouble::PermissionDenied(_) | Trouble::Unreachable(..) => Check::fail("engine", said, advice),
    }
}

/// `ok    disk         … is writable`, with what to do on a line of its own.
fn lines(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let outcome = match check.outcome {
            Outcome::Ok => "ok",
            Outcome::Warn => "warn",
            Outcome::Fail => "fail",
        };
        let _ = writeln!(text, "{outcome:<5} {:<12} {}", check.name, check.said);
        if !check.advice.is_empty() {
            let _ = writeln!(text, "{:<18} → {}", "", check.advice);
        }
    }
    text
}

/// The running agent's state: in words, or as JSON. Also says whether it runs and has a session.
pub async fn status(config: &Config, json: bool) -> Result<(String, bool), Failure> {
    let report = match health::ask(Endpoints::health(config)).await {
        Ok(report) => report,
        Err(error) => {
            let identity = IdentityStore::directory(&config.state_dir).load()?;
            let who = identity.map_or_else(
                || "this machine is not enrolled".to_owned(),
                |identity| {
                    format!(
                        "this machine is {} ({}) of tenant {} with the hub at {}",
                        identity.name, identity.node, identity.tenant, identity.hub
                    )
                },
            );
            return Err(anyhow::Error::new(error).context(format!("{who}, and the agent does not run")).into());
        }
    };
    if json {
        return Ok((format!("{}\n", serde_json::to_string_pretty(&report)?), report.session_up));
    }
    let identity = IdentityStore::directory(&config.state_dir).load().ok().flatten();
    let who = identity.map(|identity| {
        format!(
            "node         {} ({}) of tenant {}, hub {}\n",
            identity.name, identity.node, identity.tenant, identity.hub
        )
    });
    Ok((format!("{}{report}", who.unwrap_or_default()), report.session_up))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_containers_than_are_shipped_at_once_are_said() {
        assert_eq!(shipped(128).outcome, Outcome::Ok);
        let over = shipped(130);
        assert!(over.outcome == Outcome::Warn && over.said.contains("130 ") && over.said.contains("128 "), "{over:?}");
    }

    #[test]
    fn each_line_says_how_it_is_and_what_to_do() {
        let checks = [
            Check::ok("disk", "/var is writable"),
            Check::fail("address", "hub.example does not resolve", "correct the name"),
        ];
        assert_eq!(
            lines(&checks),
            "ok    disk         /var is writable\n\
             fail  address      hub.example does not resolve\n                   → correct the name\n"
        );
    }

    #[tokio::test]
    async fn a_missing_engine_is_a_warning_and_a_broken_one_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let absent = engine(&Address::Socket(path.clone())).await;
        assert_eq!(absent.outcome, Outcome::Warn);
        assert!(absent.advice.contains("systemctl start docker"), "{absent:?}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let broken = engine(&Address::Socket(path)).await;
        assert_eq!(broken.outcome, Outcome::Fail);
        assert!(broken.advice.contains("systemctl status docker"), "{broken:?}");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_run_is_said_to_be_so() {
        let directory = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = Config { state_dir: directory.path().to_owned(), health_listen: free, ..Config::default() };
        let said = status(&config, false).await.unwrap_err().to_string();
        assert!(
            said.starts_with("this machine is not enrolled, and the agent does not run: nothing answers on"),
            "{said}"
        );
    }
}
