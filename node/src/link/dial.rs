//! Finds the hub: resolves its address and tries what comes back, one after the other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use pki::Distrust;
use transport::{ConnectError, Connection, Endpoint, TlsClient};

/// How long one address may take to answer: four retransmissions of the first packet.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// How long a name may take to resolve.
const RESOLVE_WITHIN: Duration = Duration::from_secs(10);
/// Most addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;

/// Connects to `hub`, a `host:port`.
///
/// # Errors
/// [`DialError`] of the last address tried, or of one that answered and was not the hub.
pub(crate) async fn dial(endpoint: &Endpoint, hub: &str, tls: &TlsClient) -> Result<Connection, DialError> {
    let mut failed = None;
    for address in resolve(hub).await? {
        match tokio::time::timeout(ANSWER_WITHIN, endpoint.connect(address, tls.clone())).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => {
                let error = DialError::from_connect(hub, address, error);
                // Something answered there: that says more than another address's silence.
                if !matches!(failed, Some(DialError::Trust(_))) {
                    failed = Some(error);
                }
            }
            Err(_) if failed.is_none() => failed = Some(DialError::Silent { hub: hub.to_owned(), address }),
            Err(_) => {}
        }
    }
    Err(failed.unwrap_or_else(|| DialError::NoAddress { hub: hub.to_owned() }))
}

/// The addresses behind `hub`.
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
    Ok(addresses)
}
