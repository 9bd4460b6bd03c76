//! Where the Docker Engine is, and what is wrong when it can't be used, with what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bollard::errors::Error as EngineError;
use protocol::message::{Engine, EngineState};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Where Docker listens unless told otherwise.
pub const DEFAULT: &str = "unix:///var/run/docker.sock";

/// Longest wait of one request inside the client, in seconds; callers have shorter ones.
const CLIENT_TIMEOUT: u64 = 30;

/// The engine's address, as in `DOCKER_HOST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix:///path`, or just the path.
    Socket(PathBuf),
    /// `tcp://host:port`, without TLS.
    Tcp(String),
}

/// An address of a kind that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an engine's address: use unix:///path/to/docker.sock or tcp://host:port")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.starts_with('/').then_some(text)) {
            return if path.starts_with('/') { Ok(Self::Socket(path.into())) } else { Err(refused()) };
        }
        match text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) {
            Some(host) if !host.is_empty() && !host.contains('/') => Ok(Self::Tcp(host.to_owned())),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix://{}", path.display()),
            // What is said of the engine goes to the hub; who asks it with which password does not.
            Self::Tcp(host) => match host.rsplit_once('@') {
                Some((_, host)) => write!(f, "tcp://…@{host}"),
                None => write!(f, "tcp://{host}"),
            },
        }
    }
}

impl Address {
    /// Connects and agrees on an API version. Fails within twice `patience`.
    pub async fn connect(&self, patience: Duration) -> Result<bollard::Docker, Trouble> {
        let client = match self {
            Self::Socket(path) => {
                // The client's errors don't tell a missing socket from a forbidden one: this one's do.
                match timeout(patience, UnixStream::connect(path)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(self.refused(&error)),
                    Err(_) => return Err(self.trouble(&EngineError::RequestTimeoutError)),
                }
                bollard::Docker::connect_with_unix(
                    &path.to_string_lossy(),
                    CLIENT_TIMEOUT,
                    bollard::API_DEFAULT_VERSION,
                )
            }
            Self::Tcp(host) => bollard::Docker::connect_with_http(host, CLIENT_TIMEOUT, bollard::API_DEFAULT_VERSION),
        };
        let client = client.map_err(|error| self.trouble(&error))?;
        match timeout(patience, client.negotiate_version()).await {
            Ok(negotiated) => negotiated.map_err(|error| self.trouble(&error)),
            Err(_) => Err(self.trouble(&EngineError::RequestTimeoutError)),
        }
    }

    fn refused(&self, error: &io::Error) -> Trouble {
        match error.kind() {
            io::ErrorKind::NotFound => Trouble::Absent(self.clone()),
            io::ErrorKind::PermissionDenied => Trouble::PermissionDenied(self.clone()),
            io::ErrorKind::ConnectionRefused => Trouble::Unreachable(self.clone(), "nothing listens there".into()),
            _ => Trouble::Unreachable(self.clone(), error.to_string()),
        }
    }

    /// What a failed request means.
    pub fn trouble(&self, error: &EngineError) -> Trouble {
        match error {
            EngineError::SocketNotFoundError(_) => Trouble::Absent(self.clone()),
            EngineError::RequestTimeoutError => Trouble::Unreachable(self.clone(), "it does not answer in time".into()),
            EngineError::DockerResponseServerError { status_code: 401 | 403, .. } => {
                Trouble::PermissionDenied(self.clone())
            }
            error => Trouble::Unreachable(self.clone(), with_causes(error)),
        }
    }
}

/// Why the engine can't be used. Says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No socket at the path.
    #[error(
        "there is no Docker Engine at {0}: start it (systemctl start docker), or set docker-host in agent.toml to \
         where it listens"
    )]
    Absent(Address),
    /// The socket is there, but not for us.
    #[error(
        "the agent may not use the Docker Engine at {0}: let its user into the group that owns the socket (usermod \
         --append --groups docker hyperfactory-agent) and restart the agent"
    )]
    PermissionDenied(Address),
    /// The socket is there, and nothing useful comes from it.
    #[error("the Docker Engine at {0} can't be reached: {1}; see `systemctl status docker` and its log")]
    Unreachable(Address, String),
}

impl Trouble {
    /// As a named state on the wire.
    pub fn state(&self) -> EngineState {
        match self {
            Self::Absent(_) => EngineState::Absent,
            Self::PermissionDenied(_) => EngineState::PermissionDenied,
            Self::Unreachable(..) => EngineState::Unreachable,
        }
    }
}

impl From<Trouble> for Engine {
    fn from(trouble: Trouble) -> Self {
        Self { state: trouble.state().into(), version: String::new(), message: trouble.to_string() }
    }
}

/// An error and what caused it, each once: clients of clients repeat themselves.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    #[test]
    fn addresses() {
        for (text, shown) in [
            (DEFAULT, DEFAULT),
            ("/run/docker.sock", "unix:///run/docker.sock"),
            ("tcp://10.0.0.1:2375", "tcp://10.0.0.1:2375"),
            ("http://engine:2375", "tcp://engine:2375"),
            ("tcp://ops:s3cret@engine:2375", "tcp://…@engine:2375"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for text in ["", "unix://run/docker.sock", "ssh://root@host", "https://host:2376", "tcp://", "tcp://host/path"]
        {
            assert!(text.parse::<Address>().unwrap_err().to_string().contains("use unix://"), "{text}");
        }
    }

    #[tokio::test]
    async fn each_trouble_has_a_name_and_advice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let address = Address::Socket(path.clone());

        let absent = address.connect(SOON).await.unwrap_err();
        assert_eq!(absent, Trouble::Absent(address.clone()));
        assert!(absent.to_string().contains("systemctl start docker"), "{absent}");

        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let hanging = address.connect(SOON).await.unwrap_err();
        assert_eq!(hanging.state(), EngineState::Unreachable);
        assert!(hanging.to_string().contains("does not answer in time"), "{hanging}");

        drop(listener);
        let dead = address.connect(SOON).await.unwrap_err();
        assert_eq!(dead.state(), EngineState::Unreachable);
        assert!(dead.to_string().contains("nothing listens there"), "{dead}");

        let denied = address.refused(&io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(denied.state(), EngineState::PermissionDenied);
        assert!(Engine::from(denied).message.contains("usermod"));
    }
}
