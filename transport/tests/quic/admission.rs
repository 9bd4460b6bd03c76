//! Connection attempts before the hub spends anything on them.

use std::time::Duration;

use hyperfactory_transport::{ConnectError, Endpoint, EndpointError, ServerLimits};

use crate::rig::{Fleet, Wire, listen, listen_with, loopback, waits};

#[tokio::test]
async fn a_client_proves_its_address_by_a_retry() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let node = Endpoint::client().expect("a port");
    let admit = async {
        let first = hub.accept().await.expect("a client");
        assert!(!first.validated());
        first.retry();
        let second = hub.accept().await.expect("the same client");
        assert!(second.validated());
        second.accept().await
    };
    let (at_node, at_hub) =
        tokio::join!(node.connect(hub.local_addr().expect("bound"), fleet.node_config(&fleet.node())), admit);
    at_node.expect("a session");
    at_hub.expect("a session");
}

#[tokio::test]
async fn a_client_that_is_validated_is_not_sent_round_again() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let node = Endpoint::client().expect("a port");
    let admit = async {
        hub.accept().await.expect("a client").retry();
        hub.accept().await.expect("the same client").retry();
    };
    let (at_node, ()) =
        tokio::join!(node.connect(hub.local_addr().expect("bound"), fleet.node_config(&fleet.node())), admit);
    assert!(matches!(at_node, Err(ConnectError::Busy)), "{at_node:?}");
}

#[tokio::test]
async fn address_tokens_outlive_a_change_of_the_tls_configuration() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let node = Endpoint::client().expect("a port");
    let admit = async {
        hub.accept().await.expect("a client").retry();
        hub.set_server_config(fleet.server_config()).expect("for QUIC");
        hub.accept().await.expect("the same client").accept().await
    };
    let (at_node, at_hub) =
        tokio::join!(node.connect(hub.local_addr().expect("bound"), fleet.node_config(&fleet.node())), admit);
    at_node.expect("a session");
    at_hub.expect("a session");
}

#[tokio::test]
async fn a_client_refused_under_load_is_told_to_come_back() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let node = Endpoint::client().expect("a port");
    let refuse = async { hub.accept().await.expect("a client").refuse() };
    let (at_node, ()) =
        tokio::join!(node.connect(hub.local_addr().expect("bound"), fleet.node_config(&fleet.node())), refuse);
    let error = at_node.expect_err("refused");
    assert!(matches!(error, ConnectError::Busy), "{error:?}");
    assert!(error.to_string().contains("trying again is right"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn more_clients_than_may_wait_are_not_heard_until_there_is_room() {
    let fleet = Fleet::new();
    let hub = listen_with(&fleet, ServerLimits { waiting: 1, ..ServerLimits::default() });
    let address = hub.local_addr().expect("bound");
    let tls = fleet.node_config(&fleet.node());
    let node = Endpoint::client().expect("a port");
    let admit = async {
        // Both have sent their first packet, and neither has sent its second.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let first = hub.accept().await.expect("a client");
        assert!(waits(hub.accept()), "the other was not heard");
        let second = async { hub.accept().await.expect("the other").accept().await };
        tokio::join!(first.accept(), second)
    };
    let (a, b, (c, d)) = tokio::join!(node.connect(address, tls.clone()), node.connect(address, tls), admit);
    for end in [a, b, c, d] {
        end.expect("a session in the end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_in_its_handshake_is_dropped_at_the_deadline() {
    let fleet = Fleet::new();
    let deadline = Duration::from_secs(3);
    let hub = listen_with(&fleet, ServerLimits { handshake: deadline, ..ServerLimits::default() });
    // The first datagram arrives at the hub and nothing comes back.
    let wire = Wire::to(hub.local_addr().expect("bound"), 1).await;
    let node = Endpoint::client().expect("a port");
    let admit = async {
        let client = hub.accept().await.expect("a client");
        let start = tokio::time::Instant::now();
        (client.accept().await, start.elapsed())
    };
    let (stalled, waited) = tokio::select! {
        at_hub = admit => at_hub,
        at_node = node.connect(wire.address, fleet.node_config(&fleet.node())) => unreachable!("{at_node:?}"),
    };
    assert!(matches!(stalled, Err(ConnectError::NoAnswer { .. })), "{stalled:?}");
    assert_eq!(waited.as_secs(), deadline.as_secs(), "of the test's own time");
    hub.wait_idle().await;
    assert_eq!(hub.open_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_answer_is_said_so() {
    let fleet = Fleet::new();
    let silent = std::net::UdpSocket::bind(loopback()).expect("a port");
    let address = silent.local_addr().expect("bound");
    let node = Endpoint::client().expect("a port");
    let error = node.connect(address, fleet.node_config(&fleet.node())).await.expect_err("nobody there");
    assert!(matches!(error, ConnectError::NoAnswer { address: there } if there == address), "{error:?}");
    assert!(error.to_string().contains("firewall"), "{error}");
}

#[tokio::test]
async fn an_address_that_cannot_be_dialed_or_bound_is_named() {
    let fleet = Fleet::new();
    let node = Endpoint::client().expect("a port");
    let error = node.connect(loopback(), fleet.node_config(&fleet.node())).await.expect_err("port 0");
    assert!(matches!(error, ConnectError::Address { .. }), "{error:?}");

    let hub = listen(&fleet);
    let address = hub.local_addr().expect("bound");
    let error = Endpoint::server(address, fleet.server_config(), ServerLimits::default()).expect_err("taken");
    assert!(matches!(error, EndpointError::Bind { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("UDP {address}")) && error.to_string().contains("ss -ulnp"), "{error}");
}

#[tokio::test]
async fn the_socket_asks_for_large_buffers() {
    let fleet = Fleet::new();
    let allowed = std::fs::read_to_string("/proc/sys/net/core/rmem_max").expect("Linux");
    let allowed: usize = allowed.trim().parse().expect("a number");
    // The kernel grants what it allows, and reports twice that for its own bookkeeping.
    let expected = 2 * allowed.min(4 * 1024 * 1024);
    assert_eq!(listen(&fleet).receive_buffer(), expected);
    assert_eq!(Endpoint::client().expect("a port").receive_buffer(), expected);
}
