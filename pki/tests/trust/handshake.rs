//! TLS handshakes between hub and node configurations, in memory and at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyperfactory_pki::authority::{HUB_SERVER_LIFETIME, NODE_LIFETIME, ROOT_LIFETIME};
use hyperfactory_pki::tls::{self, FixedClock, HubCertificate, HubChain};
use hyperfactory_pki::{Distrust, PrivateKey};
use protocol::Timestamp;
use protocol::version::{ALPN_ENROLL, ALPN_SESSION};
use rustls::client::Resumption;
use rustls::server::ServerSessionMemoryCache;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, HandshakeKind, ServerConfig,
    ServerConnection,
};

use crate::fleet::{DAY, Fleet, HOUR, NOW, dns, forge_under, node_name};

pub(crate) struct Done {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
}

/// Runs a handshake, and reads what the server sends after it. Gives the error of the side that failed first.
pub(crate) fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Done, Failed> {
    handshake_with("hub.hyperfactory.internal", client, server)
}

/// The same with the server that has this name.
pub(crate) fn handshake_with(
    name: &'static str,
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<Done, Failed> {
    let name = name.try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
    loop {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).expect("memory");
            server.process_new_packets().map_err(Failed::Hub)?;
        }
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).expect("memory");
        }
        let mut bytes = answer.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).expect("memory");
            client.process_new_packets().map_err(Failed::Node)?;
        }
        if wire.is_empty() && answer.is_empty() {
            return Ok(Done { client, server });
        }
    }
}

#[derive(Debug)]
pub(crate) enum Failed {
    Hub(Error),
    Node(Error),
}

impl Failed {
    /// What the other side gets to know.
    pub(crate) fn distrust(&self) -> Option<Distrust> {
        let (Self::Hub(Error::InvalidCertificate(error)) | Self::Node(Error::InvalidCertificate(error))) = self else {
            return None;
        };
        Distrust::from_alert(AlertDescription::from(error.clone()).into())
    }
}

fn enroll_config(fleet: &Fleet, now: Timestamp) -> Arc<ClientConfig> {
    tls::enroll_config(fleet.root.spki_sha256(), Arc::new(FixedClock(now))).expect("a configuration")
}

#[test]
fn a_node_gets_a_session_and_shows_its_certificate() {
    let fleet = Fleet::new();
    let node = fleet.node(NOW);
    let done = handshake(&fleet.node_config(&node, NOW), &fleet.server_config(NOW)).expect("a session");
    assert_eq!(done.server.alpn_protocol(), Some(ALPN_SESSION));
    assert_eq!(done.server.peer_certificates(), Some(node.chain.as_slice()));
    assert_eq!(done.client.peer_certificates().map(<[_]>::len), Some(2), "the root is known and not sent");
}

#[test]
fn one_that_enrolls_knows_the_pin_and_gets_the_root() {
    let fleet = Fleet::new();
    let done = handshake(&enroll_config(&fleet, NOW), &fleet.server_config(NOW)).expect("enrollment");
    assert_eq!(done.server.alpn_protocol(), Some(ALPN_ENROLL));
    assert_eq!(done.server.peer_certificates(), None);
    assert_eq!(done.client.peer_certificates().and_then(<[_]>::last), Some(&fleet.root_der()));
}

#[test]
fn a_session_is_never_resumed_whatever_the_node_keeps() {
    let fleet = Fleet::new();
    let node = fleet.node(NOW);
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let server = fleet.server_config_with(fleet.hub_certificate(NOW).0, NOW, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        false
    });
    let mut keeps_sessions = ClientConfig::clone(&fleet.node_config(&node, NOW));
    keeps_sessions.resumption = Resumption::in_memory_sessions(8);
    keeps_sessions.enable_early_data = true;
    let client = Arc::new(keeps_sessions);
    for round in 1..=3 {
        let done = handshake(&client, &server).expect("a session");
        assert_eq!(done.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(done.client.tls13_tickets_received(), 0);
        assert_eq!(asked.load(Ordering::Relaxed), round, "the denylist is asked every time");
    }
    assert_eq!(server.max_early_data_size, 0);
    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!server.session_storage.can_cache() && !server.ticketer.enabled());
}

#[test]
fn a_node_resumes_no_session_whatever_the_hub_offers() {
    let fleet = Fleet::new();
    let node = fleet.node(NOW);
    let mut offers = ServerConfig::clone(&fleet.server_config(NOW));
    offers.send_tls13_tickets = 2;
    offers.session_storage = ServerSessionMemoryCache::new(8);
    let server = Arc::new(offers);
    for client in [fleet.node_config(&node, NOW), enroll_config(&fleet, NOW)] {
        for _ in 0..2 {
            let done = handshake(&client, &server).expect("a session");
            assert!(done.client.tls13_tickets_received() > 0, "the hub of this test offers");
            assert_eq!(done.client.handshake_kind(), Some(HandshakeKind::Full));
        }
        assert!(!client.enable_early_data);
    }
}

#[test]
fn a_revoked_certificate_is_refused_by_issuer_and_serial() {
    let fleet = Fleet::new();
    let (node, neighbour) = (fleet.node(NOW), fleet.node(NOW));
    let revoked = hyperfactory_pki::node_identity(&node.chain).expect("an identity");
    let server = fleet.server_config_with(fleet.hub_certificate(NOW).0, NOW, move |identity| {
        (identity.issuer_sha256, identity.serial) == (revoked.issuer_sha256, revoked.serial)
    });
    let failed = handshake(&fleet.node_config(&node, NOW), &server).err().expect("refused");
    assert_eq!(failed.distrust(), Some(Distrust::Revoked));
    assert!(handshake(&fleet.node_config(&neighbour, NOW), &server).is_ok());
}

#[test]
fn a_nodes_certificate_counts_within_its_validity_only() {
    let fleet = Fleet::new();
    let node = fleet.node(NOW.plus(DAY));
    let client = fleet.node_config(&node, NOW);
    let certificate = || fleet.hub_certificate(NOW).0;
    let at = |now| handshake(&client, &fleet.server_config_with(certificate(), now, |_| false));

    let early = at(NOW).err().expect("not yet valid");
    assert!(matches!(early, Failed::Hub(Error::InvalidCertificate(CertificateError::NotValidYetContext { .. }))));
    assert_eq!(early.distrust(), Some(Distrust::NotValidNow));

    assert!(at(NOW.plus(DAY)).is_ok());

    let late = at(NOW.plus(DAY + NODE_LIFETIME + HOUR)).err().expect("expired");
    assert!(matches!(late, Failed::Hub(Error::InvalidCertificate(CertificateError::ExpiredContext { .. }))));
    assert_eq!(late.distrust(), Some(Distrust::NotValidNow));
}

#[test]
fn another_fleets_node_is_refused() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let node = foreign.node(NOW);
    let client =
        tls::node_config(node.chain, &node.key, &[fleet.root_der()], Arc::new(FixedClock(NOW))).expect("config");
    let failed = handshake(&client, &fleet.server_config(NOW)).err().expect("refused");
    assert!(matches!(failed, Failed::Hub(_)));
    assert_eq!(failed.distrust(), Some(Distrust::ForeignRoot), "{failed:?}");
}

#[test]
fn another_tenants_name_is_refused_in_the_handshake() {
    let fleet = Fleet::new();
    let forged = [
        fleet.forge(|params| params.subject_alt_names = vec![dns(&node_name("other"))]),
        fleet.forge(|params| params.subject_alt_names.clear()),
        forge_under(&fleet.root, |_| {}),
    ];
    for node in forged {
        let failed = handshake(&fleet.node_config(&node, NOW), &fleet.server_config(NOW)).err().expect("refused");
        assert!(matches!(failed, Failed::Hub(Error::InvalidCertificate(_))), "{failed:?}");
    }
    assert!(
        handshake(&fleet.node_config(&fleet.forge(|_| {}), NOW), &fleet.server_config(NOW)).is_ok(),
        "the forger's leaf is refused for its name and nothing else"
    );
}

#[test]
fn a_hubs_certificate_does_not_make_a_node() {
    let fleet = Fleet::new();
    let (key, leaf) = fleet.hub_server(NOW);
    let chain = vec![leaf, fleet.hub_der()];
    let client = tls::node_config(chain, &key, &[fleet.root_der()], Arc::new(FixedClock(NOW))).expect("config");
    let failed = handshake(&client, &fleet.server_config(NOW)).err().expect("refused");
    assert_eq!(failed.distrust(), Some(Distrust::WrongName), "{failed:?}");
}

#[test]
fn a_nodes_certificate_does_not_make_a_hub() {
    let fleet = Fleet::new();
    let (victim, evil) = (fleet.node(NOW), fleet.node(NOW));
    let [leaf, intermediate] = <[_; 2]>::try_from(evil.chain).expect("two");
    let certificate =
        HubCertificate::new(HubChain { intermediate, ..fleet.hub_chain(leaf) }, &evil.key).expect("a pair");
    let server = fleet.server_config_with(certificate, NOW, |_| false);
    for client in [fleet.node_config(&victim, NOW), enroll_config(&fleet, NOW)] {
        let failed = handshake(&client, &server).err().expect("refused");
        assert!(matches!(failed, Failed::Node(Error::InvalidCertificate(_))), "{failed:?}");
    }
}

#[test]
fn a_node_tells_a_wrong_pin_a_foreign_root_and_a_wrong_clock_apart() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let node = fleet.node(NOW);

    let wrong_pin = handshake(&enroll_config(&foreign, NOW), &fleet.server_config(NOW)).err().expect("refused");
    assert!(matches!(wrong_pin, Failed::Node(_)));
    assert_eq!(wrong_pin.distrust(), Some(Distrust::WrongPin));
    assert!(Distrust::WrongPin.of_hub().to_string().contains("make a new token there"));

    let foreign_root = handshake(&fleet.node_config(&node, NOW), &foreign.server_config(NOW)).err().expect("refused");
    assert!(matches!(foreign_root, Failed::Node(_)));
    assert_eq!(foreign_root.distrust(), Some(Distrust::ForeignRoot), "{foreign_root:?}");
    assert!(Distrust::ForeignRoot.of_hub().to_string().contains("check the hub's address"));

    let (past, future) = (NOW.minus(DAY), NOW.plus(HUB_SERVER_LIFETIME + DAY));
    for clock in [past, future] {
        for client in [fleet.node_config(&node, clock), enroll_config(&fleet, clock)] {
            let failed = handshake(&client, &fleet.server_config(NOW)).err().expect("refused");
            assert!(matches!(failed, Failed::Node(_)));
            assert_eq!(failed.distrust(), Some(Distrust::NotValidNow), "{failed:?}");
        }
    }
    assert!(Distrust::NotValidNow.of_hub().to_string().contains("set this machine's clock"));
}

#[test]
fn an_expired_root_is_no_anchor_though_webpki_would_take_it() {
    let fleet = Fleet::new();
    let node = fleet.node(NOW);
    let after = NOW.plus(ROOT_LIFETIME + DAY);
    let failed = handshake(&fleet.node_config(&node, after), &fleet.server_config(NOW)).err().expect("refused");
    let Failed::Node(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(not_after.as_secs(), NOW.plus(ROOT_LIFETIME).seconds().unsigned_abs(), "the root's, not the leaf's");
}

#[test]
fn the_hubs_certificate_is_replaced_while_it_serves() {
    let fleet = Fleet::new();
    let node = fleet.node(NOW);
    let (certificate, first) = fleet.hub_certificate(NOW);
    let server = fleet.server_config_with(certificate.clone(), NOW, |_| false);
    let shown = |client| {
        let done = handshake(client, &server).expect("a session");
        done.client.peer_certificates().expect("a chain")[0].clone()
    };
    let (session, enroll) = (fleet.node_config(&node, NOW), enroll_config(&fleet, NOW));
    assert_eq!([shown(&session), shown(&enroll)], [first.clone(), first.clone()]);

    let (key, second) = fleet.hub_server(NOW);
    certificate.replace(fleet.hub_chain(second.clone()), &key).expect("replaced");
    assert_eq!([shown(&session), shown(&enroll)], [second.clone(), second.clone()]);

    let stranger = PrivateKey::generate().expect("a key");
    assert!(certificate.replace(fleet.hub_chain(first), &stranger).is_err());
    assert_eq!(shown(&session), second, "a pair that does not match changes nothing");
}
