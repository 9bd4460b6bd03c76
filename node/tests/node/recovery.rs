//! The way back: a certificate that the hub takes no more, and a fleet that has another root.

use std::time::Duration;

use hyperfactory_node as node;
use node::link::{LinkStatus, TroubleKind};
use node::{Clock, Identity};
use protocol::message::{RefusalCode, ToNode, Trust, to_node};
use protocol::{NodeId, Timestamp};
use transport::CloseCode;

use crate::hub::{DAY, Order, Seen, TestHub, now, refusal};
use crate::session::TestNode;

fn saved(node: &TestNode) -> Identity {
    node.store.load().expect("readable").expect("there")
}

fn order(trust: Trust) -> Order {
    Order::Send(ToNode { message: Some(to_node::Message::Trust(trust)) })
}

/// The hub has a database that knows no certificates for these keys.
fn restored(hub: &TestHub, forgotten: Vec<[u8; 32]>) {
    hub.script(|script| script.forgotten = forgotten);
    hub.order(Order::Close(CloseCode::Internal, "restored"));
}

/// A node in its third session: by its first certificate, for the hub's database is of a time before the second.
async fn restored_too_old(hub: &TestHub) -> TestNode {
    hub.script(|script| script.renew_now = true);
    let mut node = TestNode::start(hub).await;
    let seen = hub.until("a session after the renewal", |seen| seen.sessions.len() == 2).await;
    node.until("up", LinkStatus::is_up).await;
    restored(hub, vec![seen.sessions[1].spki_sha256]);
    hub.until("a session by the one before", |seen| seen.sessions.len() == 3).await;
    node.until("up", LinkStatus::is_up).await;
    node
}

/// The numbers of the certificates by which it was recovered, or was to be.
fn by(seen: &Seen) -> Vec<u64> {
    seen.recoveries.iter().map(|(request, proved)| if *proved { request.sequence } else { 0 }).collect()
}

/// Changes the hub before the node's link starts.
async fn meanwhile(hub: &TestHub, change: impl FnOnce(&Identity)) -> TestNode {
    TestNode::start_with(hub, Clock::system(), change).await
}

#[tokio::test]
async fn a_node_whose_certificate_has_ended_comes_back_by_itself_with_a_new_key() {
    let hub = TestHub::start();
    let mut before = None;
    let mut node = meanwhile(&hub, |identity| {
        before = Some(identity.credential.subject().clone());
        hub.ahead(DAY * 8);
    })
    .await;
    node.until("up", LinkStatus::is_up).await;
    let (seen, before) = (hub.seen(), before.expect("an identity"));
    let [(request, true)] = &seen.recoveries[..] else { panic!("{:?}", seen.recoveries) };
    assert_eq!((request.spki_sha256.as_slice(), request.sequence), (&before.spki_sha256[..], 1));
    let now = saved(&node);
    assert_eq!((now.node, now.credential.sequence()), (before.node, 2));
    assert_ne!(now.credential.subject().spki_sha256, before.spki_sha256);
    assert_eq!(seen.sessions.last().map(|session| session.serial), Some(now.credential.subject().serial));
    let path = node.store.path().expect("on disk");
    let files = std::fs::read_dir(path.parent().expect("a directory")).expect("listed");
    assert_eq!(files.count(), 1, "the waiting key is gone");
    assert!(node.stop().await.certificate_not_after > before.not_after);
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_never_heard_that_its_renewed_certificate_was_used_comes_back_by_that_one() {
    let hub = TestHub::start();
    hub.script(|script| {
        script.renew_now = true;
        script.lose_welcome = Some(DAY * 8);
    });
    let mut node = TestNode::start(&hub).await;
    let seen = hub.until("a third session", |seen| seen.sessions.len() == 3).await;
    // The hub has retired the one before: a proof by it would be by a copy of the node.
    let [(request, true)] = &seen.recoveries[..] else { panic!("{:?}", seen.recoveries) };
    assert_eq!((request.spki_sha256.as_slice(), request.sequence), (&seen.sessions[1].spki_sha256[..], 2));
    node.until("up", LinkStatus::is_up).await;
    let now = saved(&node);
    assert_eq!((now.credential.sequence(), now.previous.map(|before| before.sequence())), (3, Some(2)));
    assert_eq!(seen.sessions[2].serial, now.credential.subject().serial);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_whose_database_is_of_a_time_before_has_the_node_back_by_the_certificate_of_then() {
    let hub = TestHub::start();
    let mut node = restored_too_old(&hub).await;
    let seen = hub.seen();
    assert_eq!(seen.sessions[2], seen.sessions[0]);
    assert_eq!(by(&seen), [2], "the newest first: the hub may know it");
    let saved = saved(&node);
    assert_eq!((saved.credential.sequence(), saved.previous.map(|newest| newest.sequence())), (1, Some(2)));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_went_back_comes_back_by_the_newest_once_the_right_database_is_there() {
    let hub = TestHub::start();
    let mut node = restored_too_old(&hub).await;
    hub.script(|script| script.left_behind = vec![hub.seen().sessions[0].spki_sha256]);
    restored(&hub, Vec::new());
    let seen = hub.until("a session after the recovery", |seen| seen.sessions.len() == 4).await;
    assert_eq!(by(&seen), [2, 2], "never by the one that is left behind there");
    node.until("up", LinkStatus::is_up).await;
    let saved = saved(&node);
    assert_eq!((saved.credential.sequence(), saved.previous.map(|before| before.sequence())), (3, Some(2)));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_was_renewed_by_the_wrong_database_comes_back_to_the_right_one() {
    let hub = TestHub::start();
    let mut node = restored_too_old(&hub).await;
    hub.script(|script| script.renew_now = true);
    hub.order(Order::Goodbye(Duration::from_millis(1)));
    let seen = hub.until("a session after the renewal there", |seen| seen.sessions.len() == 5).await;
    node.until("up", LinkStatus::is_up).await;
    let [first, newest, .., there] = &seen.sessions[..] else { panic!("{:?}", seen.sessions) };
    assert_eq!(saved(&node).previous.map(|other| other.subject().serial), Some(newest.serial));
    hub.script(|script| script.left_behind = vec![first.spki_sha256]);
    restored(&hub, vec![there.spki_sha256]);
    let seen = hub.until("a session with the right database", |seen| seen.sessions.len() == 6).await;
    assert_eq!(seen.sessions[5].serial, saved(&node).credential.subject().serial);
    let (request, _) = seen.recoveries.last().expect("a recovery");
    assert_eq!(request.spki_sha256, newest.spki_sha256);
    node.until("up", LinkStatus::is_up).await;
    assert_eq!(saved(&node).credential.sequence(), 3);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_went_back_recovers_by_what_the_hub_knows_and_keeps_the_newest() {
    let hub = TestHub::start();
    let mut node = restored_too_old(&hub).await;
    let newest = hub.seen().sessions[1].spki_sha256;
    hub.ahead(DAY * 8);
    hub.order(Order::Close(CloseCode::Internal, "away"));
    let seen = hub.until("a session after the recovery", |seen| seen.sessions.len() == 4).await;
    assert_eq!(by(&seen), [2, 2, 1]);
    node.until("up", LinkStatus::is_up).await;
    let kept = saved(&node);
    assert_eq!(kept.credential.sequence(), 2);
    assert_eq!(kept.previous.map(|other| other.subject().spki_sha256), Some(newest));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_a_hub_does_not_know_by_any_of_its_certificates_keeps_them_and_asks_rarely() {
    let hub = TestHub::start();
    let mut node = restored_too_old(&hub).await;
    let (first, newest) = (hub.seen().sessions[0].spki_sha256, hub.seen().sessions[1].spki_sha256);
    restored(&hub, vec![first, newest]);
    let (_, until) = node.until_trouble(TroubleKind::Unissued).await;
    assert!(until >= now().plus(Duration::from_secs(200)));
    assert_eq!(by(&hub.seen()), [2, 2, 1]);
    let saved = saved(&node);
    assert_eq!((saved.credential.sequence(), saved.previous.map(|newest| newest.sequence())), (1, Some(2)));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn lost_replies_are_asked_for_again_with_the_same_key() {
    let hub = TestHub::start();
    hub.script(|script| script.lose_recover_replies = 2);
    let mut node = meanwhile(&hub, |_| hub.ahead(DAY * 8)).await;
    node.until("up", LinkStatus::is_up).await;
    let seen = hub.seen();
    assert_eq!((seen.recoveries.len(), seen.issued.len()), (3, 2), "one certificate by the token, one by recovery");
    let requests: Vec<_> = seen.recoveries.iter().map(|(request, _)| &request.certificate_request).collect();
    let keys: Vec<_> = requests.iter().map(|der| pki::verify_request(der).expect("proved").spki_sha256()).collect();
    assert!(keys.windows(2).all(|two| two[0] == two[1]));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_was_away_for_a_whole_change_of_roots_comes_back_and_knows_the_new_root() {
    let hub = TestHub::start();
    let mut node = meanwhile(&hub, |_| {
        for _ in 0..2 {
            let next = hub.prepare_root();
            hub.issue_from(next);
            hub.retire_roots();
        }
    })
    .await;
    node.until("up", LinkStatus::is_up).await;
    let trust = hub.trust();
    assert_eq!(trust.links.len(), 2);
    let roots: Vec<_> = saved(&node).roots.iter().map(|root| root.to_vec()).collect();
    assert_eq!(roots, trust.roots);
    let seen = hub.until("the roots in Hello", |seen| !seen.trusts.is_empty()).await;
    assert_eq!(seen.trusts.last().map(|(roots, _)| roots.clone()), Some(saved(&node).root_pins()));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_node_in_session_takes_a_linked_root_saves_it_and_drops_the_old_one_when_the_hub_shows_the_new() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    let old = saved(&node).roots;
    let next = hub.prepare_root();
    hub.order(order(hub.trust()));
    let seen = hub.until("two roots", |seen| seen.trusts.iter().any(|(roots, _)| roots.len() == 2)).await;
    assert_eq!(seen.trusts.last().map(|(_, trouble)| trouble.as_str()), Some(""));
    assert_eq!((saved(&node).roots.len(), &saved(&node).roots[0]), (2, &old[0]));

    // The session's hub is still one of the old root: a list without that root would lock the node out.
    let only_new = Trust { roots: vec![next.certificate_der().to_vec()], links: Vec::new() };
    hub.order(order(only_new.clone()));
    let seen = hub.until("a refusal", |seen| seen.trusts.last().is_some_and(|(_, why)| !why.is_empty())).await;
    let (roots, trouble) = seen.trusts.last().expect("a report");
    assert_eq!(roots.len(), 2);
    assert!(trouble.contains("no root of the list leads to the hub"), "{trouble}");

    hub.issue_from(next);
    hub.order(Order::Goodbye(Duration::from_millis(1)));
    hub.until("a session under the new root", |seen| seen.sessions.len() == 2).await;
    node.until("up", LinkStatus::is_up).await;
    hub.order(order(only_new.clone()));
    hub.until("one root", |seen| seen.trusts.last().is_some_and(|(roots, _)| roots.len() == 1)).await;
    assert_eq!(saved(&node).roots[0].to_vec(), only_new.roots[0]);
    node.stop().await;
    assert!(hub.seen().recoveries.is_empty(), "the tenant's old authority is still trusted");
    hub.stop().await;
}

#[tokio::test]
async fn roots_that_came_in_a_session_are_still_there_after_its_renewal() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    drop(hub.prepare_root());
    hub.order(order(hub.trust()));
    hub.until("two roots", |seen| seen.trusts.iter().any(|(roots, _)| roots.len() == 2)).await;
    hub.script(|script| script.renew_now = true);
    hub.order(Order::Goodbye(Duration::from_millis(1)));
    hub.until("the renewed session", |seen| seen.sessions.len() == 3).await;
    node.until("up", LinkStatus::is_up).await;
    let saved = saved(&node);
    assert_eq!((saved.roots.len(), saved.credential.sequence()), (2, 2));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn lists_of_roots_that_nobody_should_take_are_reported_and_change_nothing() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    let (before, ours) = (saved(&node).roots, hub.trust().roots);
    let stranger = TestHub::start();
    let theirs = stranger.trust().roots;
    let lists = [
        Trust::default(),
        Trust { roots: theirs.clone(), links: Vec::new() },
        Trust { roots: [ours.clone(), theirs.clone()].concat(), links: theirs },
        Trust { roots: vec![vec![0x30, 0]], links: vec![vec![1; 4000]; 3] },
        Trust { roots: vec![ours[0].clone(); 9], links: Vec::new() },
    ];
    let count = lists.len();
    for trust in lists {
        hub.order(order(trust));
    }
    let seen = hub.until("all refusals", |seen| seen.trusts.len() == 1 + count).await;
    assert!(seen.trusts[1..].iter().all(|(roots, why)| *roots == saved(&node).root_pins() && !why.is_empty()));
    assert_eq!(saved(&node).roots, before);
    node.stop().await;
    hub.stop().await;
    stranger.stop().await;
}

#[tokio::test]
async fn a_node_that_was_replaced_by_a_copy_asks_and_is_told_that_it_is_frozen() {
    let hub = TestHub::start();
    hub.script(|script| {
        script.refuse_session = Some(refusal(RefusalCode::CertificateReplaced, "replaced by a newer one"));
        script.refuse_recovery = Some(refusal(RefusalCode::NodeFrozen, "two nodes have this key: unfreeze it"));
    });
    let mut node = TestNode::start(&hub).await;
    let (message, until) = node.until_trouble(TroubleKind::Frozen).await;
    assert!(message.contains("replaced by a newer one") && message.contains("unfreeze it"), "{message}");
    assert!(until >= now().plus(Duration::from_secs(200)));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_was_away_too_long_says_so_and_asks_rarely() {
    let hub = TestHub::start();
    let over = refusal(RefusalCode::RecoveryOver, "away for more than 90 days: enroll it with a new token");
    hub.script(|script| script.refuse_recovery = Some(over));
    let mut node = meanwhile(&hub, |_| hub.ahead(DAY * 8)).await;
    let (message, until) = node.until_trouble(TroubleKind::Revoked).await;
    assert!(message.contains("enroll it with a new token"), "{message}");
    assert!(until >= now().plus(Duration::from_secs(200)));
    assert_eq!(saved(&node).credential.sequence(), 1);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_node_is_not_taken_for_recovery() {
    let hub = TestHub::start();
    hub.script(|script| script.recover_as = Some(NodeId::new(Timestamp::from_millis(5), [5; 10])));
    let mut node = meanwhile(&hub, |_| hub.ahead(DAY * 8)).await;
    let before = saved(&node).credential.subject().clone();
    let (message, _) = node.until_trouble(TroubleKind::Broken).await;
    assert!(message.contains("names another node"), "{message}");
    assert_eq!(*saved(&node).credential.subject(), before);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_revoked_node_does_not_try_to_recover() {
    let hub = TestHub::start();
    let denied = |identity: &Identity| hub.script(|script| script.denied = vec![identity.credential.subject().serial]);
    let mut node = meanwhile(&hub, denied).await;
    node.until_trouble(TroubleKind::Revoked).await;
    node.stop().await;
    assert!(hub.seen().recoveries.is_empty());
    hub.stop().await;
}
