use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pki::Authority;
use protocol::message::RefusalCode;
use tokio::sync::{Notify, watch};

use super::*;
use crate::kafka::KafkaStore;
use crate::kafka::tests::{certified, plane};

const DAY: Duration = Duration::from_secs(86_400);

/// A hub that grants, brokers that take what they are told to, and a bridge's state directory.
struct World {
    roots: Mutex<Vec<Authority>>,
    taken: Arc<AtomicBool>,
    tried: Arc<AtomicUsize>,
    directory: tempfile::TempDir,
}

fn bridge() -> NodeId {
    NodeId::new(Timestamp::from_millis(1), [9; 10])
}

fn now() -> Timestamp {
    Clock::system().now()
}

impl World {
    fn new() -> Self {
        Self {
            roots: Mutex::new(vec![plane(now())]),
            taken: Arc::new(AtomicBool::new(true)),
            tried: Arc::default(),
            directory: tempfile::tempdir().expect("tempdir"),
        }
    }

    fn store(&self) -> KafkaStore {
        KafkaStore::directory(self.directory.path())
    }

    /// As a session that begins.
    async fn begin(&self) -> KafkaRenewal {
        let (taken, tried) = (Arc::clone(&self.taken), Arc::clone(&self.tried));
        let kafka = Kafka {
            store: self.store(),
            trial: Arc::new(move |_| {
                tried.fetch_add(1, Ordering::SeqCst);
                taken.load(Ordering::SeqCst).then_some(()).ok_or_else(|| "unknown ca".into())
            }),
            renew: Arc::<Notify>::default(),
            status: watch::Sender::default(),
        };
        KafkaRenewal::start(kafka, bridge(), Clock::system(), ClockReading { offset_ms: 0, delay_ms: 1 }).await
    }

    /// What the hub answers: a certificate of the newest root, or the one that `known` is.
    fn grant(&self, request: &[u8], known: Option<&KafkaCredential>) -> Granted {
        let roots = self.roots.lock().expect("whole");
        let key = pki::verify_request(request).expect("proved");
        let certificate = match known.filter(|known| known.summary().spki_sha256 == key.spki_sha256()) {
            Some(known) => pki::pem::read_certificates(&known.certificate_pem()).expect("its own")[0].to_vec(),
            None => roots[0].issue_kafka_client(&key, bridge(), now(), DAY * 90).expect("a certificate"),
        };
        let roots = roots.iter().map(|root| root.certificate_der().to_vec()).collect();
        Granted { certificate, roots, renew_at: Some(now().plus(DAY * 60)) }
    }
}

/// Lets the renewal ask, and gives its request; `tells`: that the certificate for its key is in use.
async fn asked_and(renewal: &mut KafkaRenewal, tells: bool) -> Vec<u8> {
    assert!(matches!(renewal.due().await, Due::Ask));
    let (request, told) = renewal.request().await.expect("a request");
    assert_eq!(told, tells);
    request
}

/// Lets the renewal ask, for another certificate or how the one in use stands, and gives its request.
async fn asked(renewal: &mut KafkaRenewal) -> Vec<u8> {
    asked_and(renewal, false).await
}

/// Lets it say that the one it has taken is in use.
async fn confirmed(renewal: &mut KafkaRenewal, world: &World) {
    let request = asked_and(renewal, true).await;
    let kept = world.store().load().expect("readable").expect("saved");
    renewal.granted(world.grant(&request, Some(&kept))).await;
}

/// Lets the brokers' verdict in.
async fn tried(renewal: &mut KafkaRenewal) {
    let Due::Tried(tried) = renewal.due().await else { panic!("a trial is under way") };
    renewal.settle(*tried).await;
}

#[tokio::test]
async fn the_first_certificate_is_used_at_once_and_known_to_the_next_session() {
    let world = World::new();
    let mut renewal = world.begin().await;
    let request = asked(&mut renewal).await;
    renewal.granted(world.grant(&request, None)).await;
    assert_eq!(world.tried.load(Ordering::SeqCst), 0, "there is nothing else to use");
    let kept = world.store().load().expect("readable").expect("saved");
    assert!(renewal.at > now().plus(DAY * 59));
    confirmed(&mut renewal, &world).await;
    assert!(!renewal.inquire && renewal.at > now().plus(DAY * 59));

    // What the hub has for its key may be another one by now: it asks first, and then says that it uses it.
    let mut again = world.begin().await;
    let request = asked(&mut again).await;
    let key = pki::verify_request(&request).expect("proved");
    assert_eq!(key.spki_sha256(), kept.summary().spki_sha256, "it asks how that stands");
    again.granted(world.grant(&request, Some(&kept))).await;
    confirmed(&mut again, &world).await;
    assert!(!again.inquire && again.at > now().plus(DAY * 59) && world.tried.load(Ordering::SeqCst) == 0);
    assert_eq!(again.kafka.status.borrow().not_after, Some(kept.summary().not_after));
}

#[tokio::test(start_paused = true)]
async fn one_that_the_brokers_do_not_take_replaces_none_and_is_tried_again() {
    let world = World::new();
    let mut renewal = world.begin().await;
    let request = asked(&mut renewal).await;
    renewal.granted(world.grant(&request, None)).await;
    confirmed(&mut renewal, &world).await;
    let kept = world.store().load().expect("readable").expect("saved").summary().clone();

    world.taken.store(false, Ordering::SeqCst);
    renewal.at = now();
    let first = asked(&mut renewal).await;
    let grant = world.grant(&first, None);
    renewal.granted(grant.clone()).await;
    tried(&mut renewal).await;
    let trouble = renewal.kafka.status.borrow().trouble.clone().expect("said");
    assert!(trouble.contains("brokers don't take it: unknown ca"), "{trouble}");
    assert_eq!(*world.store().load().expect("readable").expect("there").summary(), kept);

    // The same key, so that the hub gives the same.
    world.taken.store(true, Ordering::SeqCst);
    let second = asked(&mut renewal).await;
    let keys = [&first, &second].map(|request| pki::verify_request(request).expect("proved").spki_sha256());
    assert_eq!(keys[0], keys[1]);
    renewal.granted(grant).await;
    tried(&mut renewal).await;
    let used = world.store().load().expect("readable").expect("there").summary().clone();
    assert_eq!((used.spki_sha256, world.tried.load(Ordering::SeqCst)), (keys[0], 2));
    assert_eq!(renewal.kafka.status.borrow().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn news_brings_the_roots_and_a_refusal_is_heeded() {
    let world = World::new();
    let mut renewal = world.begin().await;
    let request = asked(&mut renewal).await;
    renewal.granted(world.grant(&request, None)).await;
    confirmed(&mut renewal, &world).await;
    let kept = world.store().load().expect("readable").expect("saved");

    world.roots.lock().expect("whole").push(plane(now()));
    renewal.news("rotation");
    let request = asked(&mut renewal).await;
    // The brokers do not answer just now.
    world.taken.store(false, Ordering::SeqCst);
    renewal.granted(world.grant(&request, Some(&kept))).await;
    tried(&mut renewal).await;
    assert_eq!(world.store().load().expect("readable").expect("there").roots_pem(), kept.roots_pem());
    world.taken.store(true, Ordering::SeqCst);
    let again = tokio::time::timeout(Duration::from_secs(3600), asked(&mut renewal)).await;
    let request = again.expect("it is asked and tried again");
    renewal.granted(world.grant(&request, Some(&kept))).await;
    tried(&mut renewal).await;
    confirmed(&mut renewal, &world).await;
    let both = world.store().load().expect("readable").expect("there");
    assert_eq!(both.roots_pem().matches("BEGIN").count(), 2);
    assert_eq!(both.certificate_pem(), kept.certificate_pem());

    renewal.news("again");
    asked(&mut renewal).await;
    let began = Instant::now();
    let retry_after_ms = 7_200_000;
    renewal.refused(&Refusal { code: RefusalCode::Busy.into(), message: "later".into(), retry_after_ms });
    assert!(renewal.kafka.status.borrow().trouble.as_deref().is_some_and(|text| text.contains("later")));
    let request = asked(&mut renewal).await;
    assert!(began.elapsed() >= Duration::from_secs(7200));
    let key = pki::verify_request(&request).expect("proved");
    assert_eq!(key.spki_sha256(), kept.summary().spki_sha256, "it still wants to know how it stands");
}

#[tokio::test(start_paused = true)]
async fn new_roots_are_tried_again_also_when_somebody_asks_for_another_certificate_meanwhile() {
    let world = World::new();
    let mut renewal = world.begin().await;
    let request = asked(&mut renewal).await;
    renewal.granted(world.grant(&request, None)).await;
    confirmed(&mut renewal, &world).await;
    let kept = world.store().load().expect("readable").expect("saved");
    let is_kept =
        |request: &[u8]| pki::verify_request(request).expect("proved").spki_sha256() == kept.summary().spki_sha256;

    world.roots.lock().expect("whole").push(plane(now()));
    renewal.news("rotation");
    let request = asked(&mut renewal).await;
    world.taken.store(false, Ordering::SeqCst);
    renewal.granted(world.grant(&request, Some(&kept))).await;
    tried(&mut renewal).await;
    renewal.kafka.renew.notify_one();
    let request = asked(&mut renewal).await;
    assert!(!is_kept(&request), "another one");
    renewal.granted(world.grant(&request, None)).await;
    tried(&mut renewal).await;
    let again = tokio::time::timeout(Duration::from_secs(3600), asked(&mut renewal)).await;
    let request = again.expect("the one in use is asked for and tried again");
    assert!(is_kept(&request));
    world.taken.store(true, Ordering::SeqCst);
    renewal.granted(world.grant(&request, Some(&kept))).await;
    tried(&mut renewal).await;
    let both = world.store().load().expect("readable").expect("there");
    assert_eq!(both.roots_pem().matches("BEGIN").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_hub_does_not_hear_that_one_is_in_use_that_the_brokers_did_not_take() {
    let world = World::new();
    let mut renewal = world.begin().await;
    let request = asked(&mut renewal).await;
    renewal.granted(world.grant(&request, None)).await;
    confirmed(&mut renewal, &world).await;

    // Its root is trusted no more, and the hub has another one for its key.
    *world.roots.lock().expect("whole") = vec![plane(now())];
    renewal.news("rotation");
    let request = asked(&mut renewal).await;
    world.taken.store(false, Ordering::SeqCst);
    let issued = world.grant(&request, None);
    renewal.granted(issued.clone()).await;
    tried(&mut renewal).await;
    asked(&mut renewal).await;
    // Nor in the next session.
    let mut renewal = world.begin().await;
    asked(&mut renewal).await;
    renewal.granted(issued.clone()).await;
    tried(&mut renewal).await;
    asked(&mut renewal).await;
    world.taken.store(true, Ordering::SeqCst);
    renewal.granted(issued.clone()).await;
    tried(&mut renewal).await;
    asked_and(&mut renewal, true).await;
}

#[tokio::test(start_paused = true)]
async fn somebody_who_asks_has_another_at_once_and_one_for_all_who_ask() {
    let world = World::new();
    let mut renewal = world.begin().await;
    let request = asked(&mut renewal).await;
    renewal.kafka.renew.notify_one();
    renewal.granted(world.grant(&request, None)).await;
    confirmed(&mut renewal, &world).await;
    let far = tokio::time::timeout(Duration::from_secs(3600), renewal.due()).await;
    assert!(far.is_err(), "who asked while the first was on its way has it");

    // Also when an attempt has just failed.
    renewal.not_before = Instant::now() + DAY;
    renewal.kafka.renew.notify_one();
    let began = Instant::now();
    let request = asked(&mut renewal).await;
    assert!(began.elapsed() < DAY);
    let before = renewal.kafka.status.borrow().attempts;
    renewal.granted(world.grant(&request, None)).await;
    tried(&mut renewal).await;
    assert_eq!(renewal.kafka.status.borrow().attempts, before + 1);
}

#[tokio::test]
async fn what_is_not_this_bridges_is_not_kept() {
    let world = World::new();
    let mut renewal = world.begin().await;
    let request = asked(&mut renewal).await;
    let mut grant = world.grant(&request, None);
    let strange = PrivateKey::generate().expect("a key");
    grant.certificate = certified(&world.roots.lock().expect("whole")[0], &strange, bridge(), now());
    renewal.granted(grant).await;
    assert!(renewal.kafka.status.borrow().trouble.as_deref().is_some_and(|text| text.contains("another key")));
    assert!(world.store().load().expect("readable").is_none());
}
