//! Who gets in, and what each side knows of the other.

use std::sync::Arc;
use std::time::Duration;

use hyperfactory_transport::{Alpn, CloseCode, Closed, ConnectError, Connection, Endpoint, Peer, ServerLimits};
use pki::Distrust;
use pki::tls::FixedClock;
use protocol::frame::MAX_CONTROL;
use protocol::message::Acknowledge;
use protocol::version::ALPN_SESSION;
use rustls::client::ResolvesClientCert;

use crate::rig::{Fleet, dial, listen, loopback, session};

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// How the hub ended what looked like a connection to the node.
async fn verdict(node: Result<Connection, ConnectError>) -> Closed {
    node.expect("TLS 1.3 lets the client finish first").closed().await
}

#[tokio::test]
async fn each_side_knows_who_the_other_is() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let node = fleet.node();
    let (at_node, at_hub) = dial(&hub, fleet.node_config(&node)).await;
    let (at_node, at_hub) = (at_node.expect("a session"), at_hub.expect("a session"));
    assert_eq!((at_node.peer(), at_node.alpn()), (&Peer::Hub, Alpn::Session));
    let identity = pki::node_identity(&node.chain).expect("an identity");
    assert_eq!(at_hub.peer().node(), Some(&identity));
    assert_eq!(at_hub.alpn(), Alpn::Session);
    assert_eq!(at_hub.remote_address().ip(), loopback().ip());
}

#[tokio::test]
async fn one_without_a_certificate_may_enroll() {
    let fleet = Fleet::new();
    let (at_node, at_hub) = dial(&listen(&fleet), fleet.enroll_config()).await;
    assert_eq!(at_node.expect("a connection").alpn(), Alpn::Enroll);
    let at_hub = at_hub.expect("a connection");
    assert_eq!((at_hub.peer(), at_hub.alpn()), (&Peer::Anonymous, Alpn::Enroll));
}

#[tokio::test]
async fn one_without_a_certificate_gets_no_session() {
    let fleet = Fleet::new();
    let mut tls = rustls::ClientConfig::clone(&fleet.node_config(&fleet.node()));
    tls.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (at_node, at_hub) = dial(&listen(&fleet), Arc::new(tls)).await;
    assert!(matches!(at_hub, Err(ConnectError::NodeDistrusted { why: Distrust::Missing, .. })), "{at_hub:?}");
    let closed = verdict(at_node).await;
    assert_eq!((closed.code, closed.by_peer), (CloseCode::Refused, true));
    assert!(closed.reason.contains("enroll it with a join token"), "{closed}");
}

#[tokio::test]
async fn another_fleets_node_is_refused_in_the_handshake() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let (at_node, at_hub) = dial(&listen(&fleet), fleet.node_config(&foreign.node())).await;
    assert!(matches!(at_hub, Err(ConnectError::NodeDistrusted { why: Distrust::ForeignRoot, .. })), "{at_hub:?}");
    let closed = verdict(at_node).await;
    assert_eq!((closed.code, closed.by_peer), (CloseCode::Refused, true));
    assert!(closed.reason.contains("another fleet's"), "{closed}");
}

#[tokio::test]
async fn a_revoked_node_is_told_so_and_gets_no_stream() {
    let fleet = Fleet::new();
    let hub =
        Endpoint::server(loopback(), fleet.server_config_with(|_| true), ServerLimits::default()).expect("a port");
    let (at_node, at_hub) = dial(&hub, fleet.node_config(&fleet.node())).await;
    assert!(matches!(at_hub, Err(ConnectError::NodeDistrusted { why: Distrust::Revoked, .. })), "{at_hub:?}");
    let closed = verdict(at_node).await;
    assert_eq!(closed.code, CloseCode::Revoked);
    assert!(closed.reason.contains("revoked"), "{closed}");
}

#[tokio::test]
async fn a_wrong_pin_is_told_on_both_sides() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let (at_node, at_hub) = dial(&listen(&fleet), foreign.enroll_config()).await;
    let error = at_node.expect_err("not the hub of the token");
    assert!(matches!(error, ConnectError::HubDistrusted { why: Distrust::WrongPin, .. }), "{error:?}");
    assert!(error.to_string().contains("not the hub the join token was made for"), "{error}");
    assert!(matches!(at_hub, Err(ConnectError::DistrustedByNode { why: Distrust::WrongPin, .. })), "{at_hub:?}");
}

#[tokio::test]
async fn a_foreign_hub_and_a_wrong_clock_are_told_apart() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let node = fleet.node();
    let (at_node, _) = dial(&listen(&foreign), fleet.node_config(&node)).await;
    assert!(matches!(at_node, Err(ConnectError::HubDistrusted { why: Distrust::ForeignRoot, .. })), "{at_node:?}");

    for now in [fleet.now.minus(DAY), fleet.now.plus(DAY * 60)] {
        let (at_node, _) = dial(&listen(&fleet), fleet.node_config_at(&node, Arc::new(FixedClock(now)))).await;
        let error = at_node.expect_err("a hub out of its time");
        assert!(matches!(error, ConnectError::HubDistrusted { why: Distrust::NotValidNow, .. }), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("set this machine's clock") && said.contains("verification time"), "{said}");
    }
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let fleet = Fleet::new();
    let mut tls = rustls::ClientConfig::clone(&fleet.node_config(&fleet.node()));
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let (at_node, at_hub) = dial(&listen(&fleet), Arc::new(tls)).await;
    assert!(matches!(at_node, Err(ConnectError::OtherProtocol)), "{at_node:?}");
    assert!(matches!(at_hub, Err(ConnectError::OtherProtocol)), "{at_hub:?}");
}

#[tokio::test]
async fn of_two_protocols_offered_the_session_counts() {
    let fleet = Fleet::new();
    let mut tls = rustls::ClientConfig::clone(&fleet.node_config(&fleet.node()));
    tls.alpn_protocols.insert(0, protocol::version::ALPN_ENROLL.to_vec());
    assert_eq!(tls.alpn_protocols[1], ALPN_SESSION);
    let (at_node, at_hub) = dial(&listen(&fleet), Arc::new(tls)).await;
    assert_eq!((at_node.expect("up").alpn(), at_hub.expect("up").alpn()), (Alpn::Session, Alpn::Session));
}

#[tokio::test]
async fn a_renewed_hub_certificate_is_shown_on_the_same_socket_and_sessions_stay() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;

    fleet.renew_hub();
    let (second, _) = session(&fleet, &hub).await;
    hub.set_server_config(fleet.server_config()).expect("for QUIC");
    let (third, _) = session(&fleet, &hub).await;
    assert_eq!(second.remote_address(), node.remote_address());
    assert_eq!(third.remote_address(), node.remote_address());

    let (mut writer, _reader) = node.open(MAX_CONTROL).await.expect("a stream");
    writer.send(&Acknowledge { epoch: 1, through: 2 }).await.expect("sent");
    let (_writer, mut reader) = at_hub.accept(MAX_CONTROL).await.expect("a stream");
    assert_eq!(reader.recv::<Acknowledge>().await.expect("read").map(|a| a.through), Some(2));
}
