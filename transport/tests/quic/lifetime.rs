//! How connections live quietly and how they end.

use std::time::Duration;

use hyperfactory_transport::{CloseCode, Closed, Endpoint, StreamError};
use protocol::frame::MAX_CONTROL;
use protocol::message::Acknowledge;

use crate::rig::{Fleet, Wire, listen, session};

#[tokio::test]
async fn each_close_reason_reaches_the_peer() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    for code in [CloseCode::Done, CloseCode::Displaced, CloseCode::Revoked, CloseCode::Draining, CloseCode::Other(77)] {
        let (node, at_hub) = session(&fleet, &hub).await;
        let reason = format!("because of {code:?}");
        at_hub.close(code, &reason);
        at_hub.close(CloseCode::Internal, "the first reason stays");
        assert_eq!(node.closed().await, Closed { code, reason: reason.clone(), by_peer: true, distrust: None });
        assert_eq!(at_hub.closed().await, Closed { code, reason: reason.clone(), by_peer: false, distrust: None });
        assert_eq!(at_hub.close_reason().map(|closed| closed.reason), Some(reason));
    }
}

#[tokio::test]
async fn a_node_says_why_it_leaves() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;
    node.close(CloseCode::Done, "stopping");
    assert_eq!(
        at_hub.closed().await,
        Closed { code: CloseCode::Done, reason: "stopping".into(), by_peer: true, distrust: None }
    );
    let error = at_hub.accept(MAX_CONTROL).await.expect_err("over");
    assert_eq!(error.reason, "stopping");
}

#[tokio::test]
async fn streams_end_with_the_connections_reason() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;
    let (mut writer, mut reader) = node.open(MAX_CONTROL).await.expect("a stream");
    at_hub.close(CloseCode::Displaced, "another session took its place");
    let ended = reader.recv::<Acknowledge>().await;
    assert!(matches!(&ended, Err(StreamError::Closed(Closed { code: CloseCode::Displaced, .. }))), "{ended:?}");
    let ended = writer.send(&Acknowledge::default()).await;
    assert!(matches!(&ended, Err(StreamError::Closed(Closed { code: CloseCode::Displaced, .. }))), "{ended:?}");
}

#[tokio::test]
async fn a_draining_hub_tells_every_node_and_takes_no_more() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (first, _at_hub) = session(&fleet, &hub).await;
    let (second, _at_hub) = session(&fleet, &hub).await;
    assert_eq!(hub.open_connections(), 2);
    hub.close(CloseCode::Draining, "the hub restarts");
    for node in [first, second] {
        let closed = node.closed().await;
        assert_eq!((closed.code, closed.reason.as_str()), (CloseCode::Draining, "the hub restarts"));
    }
    assert!(hub.accept().await.is_none());
    hub.wait_idle().await;
}

#[tokio::test]
async fn a_quiet_session_lives_on_keep_alives_and_a_cut_one_times_out() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let wire = Wire::to(hub.local_addr().expect("bound"), usize::MAX).await;
    let endpoint = Endpoint::client().expect("a port");
    let (node, at_hub) = tokio::join!(endpoint.connect(wire.address, fleet.node_config(&fleet.node())), async {
        hub.accept().await.expect("a client").accept().await
    });
    let (node, at_hub) = (node.expect("a session"), at_hub.expect("a session"));

    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((node.close_reason(), at_hub.close_reason()), (None, None), "nobody spoke for ten minutes");

    wire.cut();
    for closed in [at_hub.closed().await, node.closed().await] {
        assert_eq!((closed.code, closed.by_peer), (CloseCode::Timeout, false), "{closed}");
    }
}

#[tokio::test]
async fn a_connection_has_figures() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, _at_hub) = session(&fleet, &hub).await;
    let stats = node.stats();
    assert!(stats.sent_bytes > 1200 && stats.received_bytes > 1200 && stats.sent_datagrams > 0, "{stats:?}");
    assert!(node.rtt() > Duration::ZERO);
    assert_eq!(node.remote_address(), hub.local_addr().expect("bound"));
}
