//! Finds the hub: resolves its address and tries what comes back, one after the other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pki::tls::{self, FixedClock, TlsError};
use transport::{ConnectError, Connection, Endpoint};

use crate::clock::Clock;
use crate::identity::Identity;

/// How long a name may take to resolve.
const RESOLVE_WITHIN: Duration = Duration::from_secs(10);
/// Most addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;

/// As whom to dial.
#[derive(Clone, Copy)]
pub(crate) enum Caller<'a> {
    /// A node, for a session.
    Node(&'a Identity),
    /// A node without its certificate, for recovery.
    Recovering(&'a Identity),
    /// Nobody yet: the hub must belong to the root with this pin.
    Stranger([u8; 32]),
}

/// Connects to `hub`, a `host:port`.
///
/// # Errors
/// [`DialError`]: what an address that answered said, or else that none did.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    hub: &str,
    caller: Caller<'_>,
    clock: &Clock,
) -> Result<Connection, DialError> {
    let time = Arc::new(FixedClock(clock.now()));
    let config = match caller {
        Caller::Node(identity) => {
            let credential = &identity.credential;
            tls::node_config(credential.chain().to_vec(), credential.key(), &identity.roots, time)?
        }
        Caller::Recovering(identity) => tls::recover_config(&identity.roots, time)?,
        Caller::Stranger(root_pin) => tls::enroll_config(root_pin, time)?,
    };
    let mut failed: Option<ConnectError> = None;
    for address in resolve(hub).await? {
        match endpoint.connect(address, Arc::clone(&config)).await {
            Ok(connection) => return Ok(connection),
            // An answer says more than another address's silence.
            Err(error) if failed.as_ref().is_none_or(silent) => failed = Some(error),
            Err(_) => {}
        }
    }
    Err(failed.map_or_else(|| DialError::NoAddress { hub: hub.to_owned() }, DialError::Connect))
}

/// The addresses behind `hub`; never none.
pub(crate) async fn resolve(hub: &str) -> Result<Vec<SocketAddr>, DialError> {
    let failed = |source| DialError::Resolve { hub: hub.to_owned(), source };
    let lookup = tokio::time::timeout(RESOLVE_WITHIN, tokio::net::lookup_host(hub));
    let found = lookup.await.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < MOST_ADDRESSES {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(DialError::NoAddress { hub: hub.to_owned() }) } else { Ok(addresses) }
}

fn silent(error: &ConnectError) -> bool {
    matches!(error, ConnectError::NoAnswer { .. } | ConnectError::Address { .. })
}

/// There is no connection to the hub.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name does not resolve.
    #[error("the hub's address {hub} does not resolve; check its spelling and this machine's DNS")]
    Resolve {
        /// What was asked for.
        hub: String,
        /// Why not.
        source: io::Error,
    },
    /// The name resolves to nothing.
    #[error("the hub's address {hub} resolves to no address; check its DNS entry")]
    NoAddress {
        /// What was asked for.
        hub: String,
    },
    /// Nothing answered, or what answered is not the hub.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// This node's own certificate is unusable.
    #[error("this node's identity can't be used; enroll again with a new join token")]
    Identity(#[from] TlsError),
}
