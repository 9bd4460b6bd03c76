//! After a start: telling the nodes of the hub's last life that it is back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use transport::Endpoint;

/// Knocks sent together, and the pause after them: 2,000 nodes within a second.
const KNOCKS_AT_ONCE: usize = 20;
/// See [`KNOCKS_AT_ONCE`].
const KNOCK_PAUSE: Duration = Duration::from_millis(10);

/// Tells the nodes of the hub's last life that it is back, without a burst that would overflow a buffer.
pub(super) async fn knock(endpoint: Endpoint, orphans: Vec<SocketAddr>, shutdown: CancellationToken) {
    for few in orphans.chunks(KNOCKS_AT_ONCE) {
        for address in few {
            endpoint.knock(*address);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(KNOCK_PAUSE) => {}
        }
    }
}
