//! A hub that was killed and is back: its nodes notice at once.

use std::net::SocketAddr;
use std::time::Duration;

use hyperfactory_transport::{CloseCode, Connection, Endpoint, ResetKey, ServerLimits};
use protocol::frame::MAX_CONTROL;
use protocol::message::Acknowledge;
use tokio::runtime::Runtime;

use crate::rig::Fleet;

/// Far less than the idle time-out, far more than a busy machine takes.
const SOON: Duration = Duration::from_secs(20);

fn start(fleet: &Fleet, address: SocketAddr) -> (Runtime, Endpoint) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let limits = ServerLimits { reset_key: Some(ResetKey([7; 32])), ..ServerLimits::default() };
    let endpoint = {
        let _inside = runtime.enter();
        Endpoint::server(address, fleet.server_config(), limits).expect("the port")
    };
    (runtime, endpoint)
}

/// A session between a node here and a hub in a runtime of its own, which can die without a word.
async fn session(fleet: &Fleet, runtime: &Runtime, hub: &Endpoint) -> (Endpoint, Connection) {
    let accepting = hub.clone();
    // Held by the dying runtime alone, as a killed process holds its connections.
    runtime.spawn(async move {
        let connection = accepting.accept().await.expect("a client").accept().await.expect("a session");
        connection.closed().await;
    });
    let node = Endpoint::client().expect("a port");
    let address = hub.local_addr().expect("bound");
    let connection = node.connect(address, fleet.node_config(&fleet.node())).await.expect("a session");
    (node, connection)
}

#[tokio::test]
async fn a_knock_makes_a_node_look_and_a_reset_tells_it_that_its_session_is_gone() {
    let fleet = Fleet::new();
    let (runtime, hub) = start(&fleet, crate::rig::loopback());
    let address = hub.local_addr().expect("bound");
    let (node, connection) = session(&fleet, &runtime, &hub).await;
    let (mut writer, _reader) = connection.open(MAX_CONTROL).await.expect("a stream");
    drop(hub);
    let dying = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5)));
    dying.await.expect("gone, and its port free");

    let (runtime, hub) = start(&fleet, address);
    assert!(connection.close_reason().is_none(), "nothing has told the node yet");
    let knocked = node.knocked();
    let at = SocketAddr::new(address.ip(), node.local_addr().expect("bound").port());
    hub.knock(at);
    tokio::time::timeout(SOON, knocked).await.expect("the knock was heard");
    writer.send(&Acknowledge::default()).await.expect("sent");
    let closed = tokio::time::timeout(SOON, connection.closed()).await.expect("the node notices");
    assert_eq!((closed.code, closed.by_peer), (CloseCode::Lost, true), "{closed}");
    drop(hub);
    runtime.shutdown_background();
}
