//! The audit log: a chain that nobody alters, cuts or adds to unseen, and that knows every certificate.

mod forger;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use hyperfactory_hub::access::{Access, Grant, Role};
use hyperfactory_hub::audit::publish::{Published, Publisher, Webhook};
use hyperfactory_hub::audit::verify::{self, Extent, Finding, Report};
use hyperfactory_hub::audit::{self, Actor, Filter, Hash, Head, Link, Record, action, ocsf};
use hyperfactory_hub::metrics::Metrics;
use protocol::NodeKind;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;
use store::sqlx::{self, AnyConnection, AssertSqlSafe, Connection as _, Executor as _, Row as _};
use store::testing::TestDatabase;
use store::{Engine, on_both_engines};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::setup::{HERE, NOW, World, acme, at, first_renewal, identity, key, request, seconds};
use forger::{forge, forge_export, unlock};

/// Forgeries of an export; half as many of the database on each engine.
const FORGERIES: usize = 1_000;

on_both_engines! {
    async fn five_hundred_forgeries_of_the_database_are_each_found(database: TestDatabase) {
        let world = busy(database).await;
        let published = audit::head(&world.database).await.expect("a head");
        world.close().await;
        let mut owner = owner(database).await;
        let sound = verified(&mut owner, &[published]).await;
        assert_eq!((sound.findings, sound.head), (vec![], Some(published)));
        assert!(sound.entries > 60 && sound.certificates > 20, "{} {}", sound.entries, sound.certificates);
        let mut random = StdRng::seed_from_u64(3);
        let mut kinds = BTreeSet::new();
        for number in 0..FORGERIES / 2 {
            let mut forged = owner.begin().await.expect("a transaction");
            unlock(&mut forged).await;
            let (what, expected) = forge(&mut forged, &mut random, published.id).await;
            let report = verified(&mut forged, &[published]).await;
            let found = report.findings.iter().any(expected);
            assert!(found, "forgery {number}, {what}, was not found: {:?}", report.findings);
            assert!(report.findings.iter().all(|finding| !finding.to_string().is_empty()));
            kinds.insert(what.split(' ').next().unwrap_or_default().to_owned());
            forged.rollback().await.expect("as before");
        }
        assert_eq!(kinds.len(), 13, "{kinds:?}");
        assert_eq!(verified(&mut owner, &[published]).await.findings, []);
    }

    async fn who_follows_the_log_reads_nothing_twice_and_misses_nothing(database: TestDatabase) {
        let world = World::new(database).await;
        let head = async || audit::head(&world.database).await.expect("a head").id;
        let action = Some(action::TOKEN_CREATED.to_owned());
        let mut filter = Filter { action, after: Some(0), limit: 2, ..Filter::default() };
        let mut news = async || {
            let found = audit::news(&world.database, &mut filter).await.expect("the audit log");
            (found.len(), filter.after.expect("a number"))
        };
        assert_eq!(news().await, (0, head().await), "what is not asked for is passed over");
        for _ in 0..3 {
            world.token(NodeKind::Agent, None).await;
        }
        world.node().await;
        let newest = head().await;
        let (found, after) = news().await;
        assert!(found == 2 && after < newest, "more may follow at once: {found} {after} {newest}");
        // The node came with a token, too.
        assert_eq!((news().await.0, news().await), (2, (0, newest)));
        world.close().await;
    }

    async fn the_database_itself_refuses_to_rewrite_the_log(database: TestDatabase) {
        let world = busy(database).await;
        let before = audit::head(&world.database).await.expect("a head");
        let hash = match world.database.engine() {
            Engine::Sqlite => "zeroblob(32)",
            Engine::Postgres => "decode(repeat('00', 32), 'hex')",
        };
        let next = before.id + 1;
        let row = format!("0, 'a', 'b', 's', '{{}}', {hash}, {hash}");
        for statement in [
            "UPDATE audit SET actor = 'operator:eve'".to_owned(),
            "UPDATE audit SET actor = actor WHERE id = 3".to_owned(),
            "DELETE FROM audit WHERE id = 3".to_owned(),
            "DELETE FROM audit_head".to_owned(),
            format!("UPDATE audit_head SET last_id = {}", before.id - 1),
            format!("UPDATE audit_head SET last_id = {next}"),
            format!("UPDATE audit_head SET hash = {hash}"),
            format!("INSERT INTO audit_head (chain, last_id, hash) VALUES (2, 0, {hash})"),
            // After a hole, over another, and with another hash before it.
            format!("INSERT INTO audit (id, at, actor, action, subject, detail, previous, hash) VALUES ({}, {row})", next + 1),
            format!("INSERT INTO audit (id, at, actor, action, subject, detail, previous, hash) VALUES (3, {row})"),
            format!("INSERT INTO audit (id, at, actor, action, subject, detail, previous, hash) VALUES ({next}, {row})"),
        ] {
            let mut transaction = world.database.begin_write().await.expect("a transaction");
            let refused = transaction.execute(AssertSqlSafe(statement.clone())).await;
            assert!(refused.is_err(), "{statement}");
        }
        assert_eq!(audit::head(&world.database).await.expect("a head"), before);
        world.close().await;
    }

    async fn every_certificate_is_logged_with_its_fingerprint_before_it_is_handed_out(database: TestDatabase) {
        let world = World::new(database).await;
        let server = world.authorities.hub_server(NOW).await.expect("a server certificate");
        // The same one at the next start, which writes nothing; another before it ends.
        let again = world.authorities.hub_server(at(19 * 86_400)).await.expect("a server certificate");
        assert_eq!((again.chain, again.key.spki_sha256()), (server.chain.clone(), server.key.spki_sha256()));
        assert_eq!(world.audited(action::HUB_CERTIFIED).await.len(), 1);
        let next = world.authorities.hub_server(at(21 * 86_400)).await.expect("a server certificate");
        assert_ne!(next.chain[0], server.chain[0]);
        assert_eq!(world.audited(action::HUB_CERTIFIED).await.len(), 2);
        let token = world.token(NodeKind::Agent, None).await;
        let enrolled = world.enroll(&token, &key(), NOW).await.expect("enrolled");
        let identity = identity(&enrolled.certificate_chain);
        let again = key().certificate_request().expect("a request");
        let renewed = world.enrollment.renew(&identity, &first_renewal(&again), at(60)).await.expect("renewed");
        let issued = [
            ("hub_server", action::HUB_CERTIFIED, server.chain[0].to_vec()),
            ("authority", action::AUTHORITY_CREATED, server.chain[1].to_vec()),
            ("authority", action::AUTHORITY_CREATED, server.roots.trusted[0].to_vec()),
            ("authority", action::AUTHORITY_CREATED, enrolled.certificate_chain[1].clone()),
            ("node", action::NODE_ENROLLED, enrolled.certificate_chain[0].clone()),
            ("node", action::CERTIFICATE_RENEWED, renewed.certificate_chain[0].clone()),
        ];
        for (kind, action, der) in issued {
            let summary = pki::Summary::of(&der).expect("a certificate");
            let expected = audit::certificate(kind, &summary);
            for name in ["serial", "issuer", "spki_sha256", "sha256", "not_after"] {
                assert!(expected[name].as_str().is_some_and(|text| text.len() > 15), "{kind}: {expected}");
            }
            let log = world.audited(action).await;
            assert!(log.iter().any(|entry| entry.detail["certificate"] == expected), "{kind}: {log:?}");
        }
        world.close().await;
    }

    async fn many_records_are_one_append_and_one_chain(database: TestDatabase) {
        let world = World::new(database).await;
        let before = audit::head(&world.database).await.expect("a head");
        let mut transaction = world.database.begin_write().await.expect("a transaction");
        let records = (0..300).map(|number| record(&number.to_string())).collect();
        let head = audit::append_all(&mut transaction, NOW, records).await.expect("appended");
        transaction.commit().await.expect("committed");
        assert_eq!(head.id, before.id + 300);
        assert_eq!(audit::head(&world.database).await.expect("a head"), head);
        world.close().await;
        let report = verified(&mut owner(database).await, &[before, head]).await;
        assert_eq!((report.findings, report.head), (vec![], Some(head)));
    }

    async fn what_came_to_nothing_is_followed_by_nothing(database: TestDatabase) {
        let (world, other) = (World::open(database).await, World::open(database).await);
        let mut left = world.database.begin_write().await.expect("a transaction");
        audit::append(&mut left, NOW, record("left")).await.expect("appended");
        left.rollback().await.expect("rolled back");
        let before = audit::head(&world.database).await.expect("a head");
        assert_eq!(audit::record(&world.database, NOW, record("one")).await.expect("written"), before.id + 1);
        assert_eq!(audit::record(&other.database, NOW, record("two")).await.expect("written"), before.id + 2);
        let head = audit::head(&world.database).await.expect("a head");
        assert_eq!(head.id, before.id + 2);
        world.close().await;
        other.close().await;
        let report = verified(&mut owner(database).await, &[before, head]).await;
        assert_eq!((report.findings, report.head), (vec![], Some(head)));
    }

    async fn hubs_that_append_at_once_make_one_chain(database: TestDatabase) {
        let (one, two) = (World::open(database).await, World::open(database).await);
        let write = async |world: &World, name: &str| {
            for number in 0..40 {
                audit::record(&world.database, NOW, record(&format!("{name} {number}"))).await.expect("written");
            }
        };
        tokio::join!(write(&one, "one"), write(&two, "two"), write(&one, "again"));
        let head = audit::head(&two.database).await.expect("a head");
        one.close().await;
        two.close().await;
        let report = verified(&mut owner(database).await, &[]).await;
        assert_eq!((report.findings, report.head), (vec![], Some(head)));
        assert!(head.id >= 120);
    }
}

#[tokio::test]
async fn a_thousand_forgeries_of_an_export_are_each_found() {
    let database = TestDatabase::create(Engine::Sqlite).await;
    let world = busy(&database).await;
    let head = audit::head(&world.database).await.expect("a head");
    world.close().await;
    let links = links(&mut owner(&database).await).await;
    let lines: Vec<String> = links.iter().map(|link| ocsf::event(link).to_string()).collect();
    let sound = exported(&lines, Extent::Whole, &[head]);
    assert_eq!((sound.findings, sound.head, sound.entries), (vec![], Some(head), lines.len() as u64));
    let mut random = StdRng::seed_from_u64(4);
    for number in 0..FORGERIES {
        let (what, forged) = forge_export(&lines, &links, &mut random);
        let report = exported(&forged, Extent::Whole, &[head]);
        assert!(!report.findings.is_empty(), "forgery {number}, {what}, was not found");
    }
}

#[tokio::test]
async fn a_part_of_the_log_is_judged_as_a_part() {
    let database = TestDatabase::create(Engine::Sqlite).await;
    let world = busy(&database).await;
    let head = audit::head(&world.database).await.expect("a head");
    world.close().await;
    let links = links(&mut owner(&database).await).await;
    let line = |link: &Link| ocsf::event(link).to_string();
    let of_acme: Vec<String> = links.iter().filter(|link| link.tenant.as_deref() == Some("acme")).map(line).collect();
    assert!(of_acme.len() > 10 && of_acme.len() < links.len());
    assert_eq!(exported(&of_acme, Extent::Part, &[head]).findings, []);
    assert_ne!(exported(&of_acme, Extent::Whole, &[head]).findings, []);
    let mut altered = of_acme.clone();
    altered[3] = altered[3].replace("acme", "evil");
    assert_ne!(exported(&altered, Extent::Part, &[]).findings, []);
    // What came after a published head stands on it.
    let anchor = Head { id: links[9].id, hash: links[9].hash };
    let rest: Vec<String> = links[10..].iter().map(line).collect();
    assert_eq!(exported(&rest, Extent::Whole, &[anchor, head]).findings, []);
    assert_eq!(exported(&rest, Extent::Whole, &[head]).findings, [Finding::Missing { first: 1, last: 10 }]);
    let other = Head { hash: Hash([1; 32]), ..anchor };
    assert_eq!(exported(&rest, Extent::Whole, &[other]).findings, [Finding::Rewritten { published: other }]);
}

#[tokio::test]
async fn heads_are_published_where_the_hub_can_not_take_them_back() {
    let database = TestDatabase::create(Engine::Sqlite).await;
    let world = World::new(&database).await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("heads");
    let (address, posted) = receiver();
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let webhook = Webhook::new(settings::Secret::new(format!("http://{address}/heads?secret"))).expect("a webhook");
    let every = Duration::from_millis(100);
    let publisher =
        Publisher::new(world.database.clone(), Arc::clone(&metrics), Some(file.clone()), Some(webhook), every);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(publisher.keep(|| NOW, stop.clone()));
    // The receiver is broken at first; what it then gets is the newest head.
    let first = tokio::task::spawn_blocking(move || (posted.recv().expect("a post"), posted));
    let (first, posted) = first.await.expect("posted");
    assert_eq!(first.head(), audit::head(&world.database).await.expect("a head"));
    audit::record(&world.database, NOW, record("one more")).await.expect("written");
    let second = tokio::task::spawn_blocking(move || posted.recv().expect("a post")).await.expect("posted");
    let head = audit::head(&world.database).await.expect("a head");
    assert_eq!(second.head(), head);
    audit::record(&world.database, NOW, record("the last")).await.expect("written");
    stop.cancel();
    tasks.join_next().await.expect("the task").expect("ended");
    let last = audit::head(&world.database).await.expect("a head");
    let lines = std::fs::read_to_string(&file).expect("a file");
    let written: Vec<Head> =
        lines.lines().map(|line| serde_json::from_str::<Published>(line).expect("a head").head()).collect();
    assert!(written.contains(&first.head()) && written.contains(&head), "{written:?}");
    assert_eq!(written.last(), Some(&last));
    let shown = metrics.text();
    assert!(shown.contains(&format!("hyperfactory_hub_audit_entries {}", last.id)), "{shown}");
    let info = format!("hyperfactory_hub_audit_head_info{{hash=\"{}\",id=\"{}\"}} 1", last.hash, last.id);
    assert!(shown.contains(&info), "{shown}");
    assert!(shown.contains("hyperfactory_hub_audit_publish_failures_total 1"), "{shown}");
    world.close().await;
}

/// An HTTP server that fails at its first request, and hands on the heads it is given after it.
fn receiver() -> (SocketAddr, mpsc::Receiver<Published>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (sender, posted) = mpsc::sync_channel(8);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("a reader"));
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some((_, value)) = line.to_lowercase().split_once("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("a body");
            let status = if number == 0 { "503 Service Unavailable" } else { "204 No Content" };
            write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").expect("answered");
            if number > 0 && sender.send(serde_json::from_slice(&body).expect("a head")).is_err() {
                return;
            }
        }
    });
    (address, posted)
}

/// A hub's log with something of everything: tenants, tokens, nodes, renewals, sign-ins, refusals.
async fn busy(database: &TestDatabase) -> World {
    let world = World::new(database).await;
    world.tenants.create(&"zeta".parse().expect("a tenant"), "Zeta", &Actor::system(), NOW).await.expect("a tenant");
    world.authorities.hub_server(NOW).await.expect("a server certificate");
    crate::setup::rotate_root(&world.rotations, NOW).await;
    let access = Access::new(world.database.clone());
    for number in 0..9 {
        let now = at(number);
        let (_, identity) = world.node().await;
        let again = key().certificate_request().expect("a request");
        world.enrollment.renew(&identity, &first_renewal(&again), now).await.expect("renewed");
        let names = pki::ServerNames::new(&["redpanda".into()], &[]).expect("names");
        world.authorities.kafka_server(&acme(), &again, &names, &Actor::operator("ann"), now).await.expect("issued");
        let bridge = crate::kafka::bridge(&world).await;
        crate::kafka::client(&world, &acme(), bridge, &key()).await.expect("issued");
        let token = world.token(NodeKind::Bridge, None).await;
        world.enrollment.enroll(request(&token, &key()), HERE, now).await.expect_err("an agent with a bridge's token");
        let tenant = (number % 2 == 0).then(acme);
        let grant = Grant { name: format!("n{number}"), role: Role::Admin, tenant, valid_for: Some(seconds(600)) };
        let (info, _) = access.create_api_token(grant.clone(), &Actor::operator("ann"), now).await.expect("a token");
        let actor = Actor::operator("ann").by(Some(&info.id), Some(HERE));
        let link = access.create_sign_in_link(grant, &actor, now).await.expect("a link");
        access.sign_in(&link, HERE, now).await.expect("signed in");
        access.sign_in(&link, HERE, now).await.err().expect("used");
    }
    world
}

fn record(subject: &str) -> Record {
    Record {
        actor: Actor::operator("ann"),
        action: action::TOKEN_CREATED,
        tenant: None,
        subject: subject.into(),
        detail: json!({ "n": subject }),
        remote: None,
    }
}

/// A connection as the tables' owner, whom no policy binds.
pub(crate) async fn owner(database: &TestDatabase) -> AnyConnection {
    sqlx::any::install_default_drivers();
    AnyConnection::connect(&database.url).await.expect("a connection")
}

pub(crate) async fn verified(connection: &mut AnyConnection, heads: &[Head]) -> Report {
    verify::database(connection, heads, &[], NOW).await.expect("verified")
}

fn exported(lines: &[String], extent: Extent, heads: &[Head]) -> Report {
    let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    verify::export(text.as_bytes(), extent, heads, &[]).expect("read")
}

async fn links(connection: &mut AnyConnection) -> Vec<Link> {
    let rows = sqlx::query("SELECT id, at, actor, credential, action, tenant, subject, detail, remote, previous, hash FROM audit ORDER BY id")
        .fetch_all(connection).await.expect("entries");
    let hash = |bytes: Vec<u8>| Hash::from_bytes(&bytes).expect("32 bytes");
    rows.iter()
        .map(|row| Link {
            id: row.get(0),
            at: row.get(1),
            actor: row.get(2),
            credential: row.get(3),
            action: row.get(4),
            tenant: row.get(5),
            subject: row.get(6),
            detail: row.get(7),
            remote: row.get(8),
            previous: hash(row.get(9)),
            hash: hash(row.get(10)),
        })
        .collect()
}
