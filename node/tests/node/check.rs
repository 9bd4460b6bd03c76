use std::net::SocketAddr;
use std::time::Duration;

use hyperfactory_node as node;
use node::check::{Outcome, Subject, certificate, check};
use node::{Clock, IdentityStore, enroll};
use transport::Endpoint;

use crate::enroll::applicant;
use crate::hub::{DAY, TestHub, now};

const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

#[tokio::test]
async fn an_enrolled_node_checks_out_and_disturbs_no_session() {
    let hub = TestHub::start();
    let directory = tempfile::tempdir().expect("tempdir");
    let store = IdentityStore::directory(directory.path());
    let endpoint = Endpoint::client().expect("a socket");
    let identity =
        enroll(&endpoint, &store, &hub.token(), &applicant(), &Clock::system(), DAY).await.expect("enrolled");
    let clock = Clock::system();
    let subject = Subject {
        store: &store,
        state_directory: directory.path(),
        spool_capacity: 1 << 20,
        health: NOBODY,
        clock: &clock,
    };
    let checks = check(&subject).await;
    let found: Vec<_> = checks.iter().map(|check| (check.name, check.outcome)).collect();
    let expected =
        [("certificate", Outcome::Ok), ("address", Outcome::Ok), ("clock", Outcome::Warn), ("disk", Outcome::Ok)];
    assert_eq!(found, expected, "{checks:#?}");
    assert!(hub.seen().sessions.is_empty());

    assert_eq!(certificate(&identity, now().plus(DAY * 6)).outcome, Outcome::Warn);
    assert_eq!(certificate(&identity, now().plus(DAY * 8)).outcome, Outcome::Fail);
    assert_eq!(certificate(&identity, now().minus(DAY)).outcome, Outcome::Fail);
    hub.stop().await;
}

#[tokio::test]
async fn a_machine_that_never_enrolled_is_told_how() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (store, clock) = (IdentityStore::directory(directory.path()), Clock::system());
    let subject = Subject {
        store: &store,
        state_directory: directory.path(),
        spool_capacity: 1 << 20,
        health: NOBODY,
        clock: &clock,
    };
    let checks = check(&subject).await;
    assert_eq!((checks[0].name, checks[0].outcome), ("certificate", Outcome::Fail));
    assert!(checks[0].advice.contains("join token"));
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_is_silent_fails_the_address_with_its_addresses() {
    let hub = TestHub::start();
    let directory = tempfile::tempdir().expect("tempdir");
    let store = IdentityStore::directory(directory.path());
    tokio::time::resume();
    let endpoint = Endpoint::client().expect("a socket");
    let patience = Duration::from_secs(30);
    let mut identity =
        enroll(&endpoint, &store, &hub.token(), &applicant(), &Clock::system(), patience).await.expect("enrolled");
    hub.stop().await;
    tokio::time::pause();
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    identity.hub = deaf.local_addr().expect("bound").to_string();
    let found = node::check::address(&identity, &Clock::system()).await;
    assert!(found.outcome == Outcome::Fail && found.said.contains("firewall"), "{found:?}");
}
