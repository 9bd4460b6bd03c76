use std::time::Duration;

use hyperfactory_node as node;
use node::{Applicant, Clock, EnrollError, Identity, IdentityStore, enroll};
use pki::JoinToken;
use protocol::NodeKind;
use transport::Endpoint;

use crate::hub::{DAY, TestHub, now};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn applicant() -> Applicant {
    Applicant { kind: NodeKind::Agent, name: "plant-1".into(), software: "hyperfactory-agent test".into() }
}

async fn ask(store: &IdentityStore, token: &JoinToken, patience: Duration) -> Result<Identity, EnrollError> {
    let endpoint = Endpoint::client().expect("a socket");
    enroll(&endpoint, store, token, &applicant(), &Clock::system(), patience).await
}

fn store() -> (tempfile::TempDir, IdentityStore) {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = IdentityStore::directory(directory.path());
    (directory, store)
}

#[tokio::test]
async fn a_token_becomes_an_identity_that_is_on_disk_and_nothing_else_is() {
    let (hub, (directory, store)) = (TestHub::start(), store());
    let identity = ask(&store, &hub.token(), PATIENCE).await.expect("enrolled");
    assert_eq!((identity.name.as_str(), identity.tenant.as_str()), ("plant-1", "acme"));
    assert_eq!(identity.hub, hub.address());
    let saved = store.load().expect("readable").expect("there");
    assert_eq!(saved.credential.subject(), identity.credential.subject());
    assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 1, "the waiting key is gone");
    hub.stop().await;
}

#[tokio::test]
async fn lost_replies_are_asked_for_again_with_the_same_key() {
    let (hub, (_directory, store)) = (TestHub::start(), store());
    hub.script(|script| script.lose_enroll_replies = 2);
    let identity = ask(&store, &hub.token(), PATIENCE).await.expect("enrolled");
    let seen = hub.seen();
    assert_eq!((seen.enroll_requests, seen.issued.len()), (3, 1));
    assert_eq!(seen.issued.get(&identity.credential.key().spki_sha256()), Some(&identity.credential.subject().serial));
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_crashed_before_the_reply_enrolls_with_the_same_token() {
    let (hub, (directory, store)) = (TestHub::start(), store());
    let token = hub.token();
    hub.script(|script| script.lose_enroll_replies = usize::MAX);
    let error = ask(&store, &token, Duration::ZERO).await.expect_err("no reply");
    assert!(!error.is_refusal(), "{error}");
    assert!(store.load().expect("readable").is_none());

    hub.script(|script| script.lose_enroll_replies = 0);
    // Another process: nothing but the files is left.
    let store = IdentityStore::directory(directory.path());
    ask(&store, &token, PATIENCE).await.expect("enrolled");
    assert_eq!(hub.seen().issued.len(), 1);
    hub.stop().await;
}

#[tokio::test]
async fn a_refusal_is_final_and_says_what_to_do() {
    let hub = TestHub::start();
    let token = hub.token();
    let (_first, first) = store();
    ask(&first, &token, PATIENCE).await.expect("enrolled");

    let (_second, second) = store();
    let used = ask(&second, &token, PATIENCE).await.expect_err("used");
    assert!(used.is_refusal() && used.to_string().contains("used by another node"), "{used}");
    assert!(second.load().expect("readable").is_none());

    let stranger = JoinToken::new(&token.hub, token.root_pin, [9; 32]).expect("a token");
    let unknown = ask(&second, &stranger, PATIENCE).await.expect_err("unknown");
    assert!(unknown.is_refusal() && unknown.to_string().contains("make a new one"), "{unknown}");
    assert_eq!(hub.seen().enroll_requests, 3, "no refusal was asked for twice");
    hub.stop().await;
}

#[tokio::test]
async fn an_enrolled_node_does_not_enroll_again() {
    let (hub, (_directory, store)) = (TestHub::start(), store());
    let identity = ask(&store, &hub.token(), PATIENCE).await.expect("enrolled");
    let error = ask(&store, &hub.token(), PATIENCE).await.expect_err("already");
    assert!(matches!(&error, EnrollError::Already { node, .. } if *node == identity.node));
    assert!(error.to_string().contains("identity.json"), "{error}");
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_of_another_root_never_sees_the_secret() {
    let (hub, (_directory, store)) = (TestHub::start(), store());
    let token = JoinToken::new(&hub.address(), [1; 32], hub.token().secret).expect("a token");
    let error = ask(&store, &token, PATIENCE).await.expect_err("another root");
    assert!(error.to_string().contains("no root has the key that the token pins"), "{error}");
    assert!(!error.is_refusal());
    assert_eq!(hub.seen().enroll_requests, 0);
    hub.stop().await;
}

#[tokio::test]
async fn a_wrong_clock_is_named_as_the_cause() {
    let hub = TestHub::start_at(now().minus(DAY * 365));
    let (_directory, store) = store();
    let error = ask(&store, &hub.token(), PATIENCE).await.expect_err("expired");
    assert!(error.to_string().contains("clock"), "{error}");
    hub.stop().await;
}

#[tokio::test(start_paused = true)]
async fn silence_is_blamed_on_what_eats_udp() {
    let (_directory, store) = store();
    // A socket that never answers.
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let hub = deaf.local_addr().expect("bound").to_string();
    let token = JoinToken::new(&hub, [1; 32], [2; 32]).expect("a token");
    let error = ask(&store, &token, Duration::from_secs(60)).await.expect_err("silence");
    assert!(error.to_string().contains("firewall") && error.to_string().contains(&hub), "{error}");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_named() {
    let (_directory, store) = store();
    let token = JoinToken::new("no-such-host.invalid:7443", [1; 32], [2; 32]).expect("a token");
    let error = ask(&store, &token, Duration::ZERO).await.expect_err("no such host");
    assert!(error.to_string().contains("no-such-host.invalid:7443 does not resolve"), "{error}");
}
