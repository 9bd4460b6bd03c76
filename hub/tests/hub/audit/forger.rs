//! Whoever owns the tables, or has an export, and would have the log say something else.

use hyperfactory_hub::audit::verify::Finding;
use hyperfactory_hub::audit::{Hash, Head, Link, ocsf};
use protocol::NodeKind;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::Value;
use store::sqlx::{self, AnyConnection, AssertSqlSafe, Executor as _, Row as _};

use super::links;
use crate::setup::{NOW, acme, key, seconds};

/// Whether it is what must be found.
pub(super) type Expected = Box<dyn Fn(&Finding) -> bool>;

/// What whoever owns the tables can do: takes the guards away.
pub(super) async fn unlock(connection: &mut AnyConnection) {
    let sql = match connection.backend_name() {
        "PostgreSQL" => {
            "ALTER TABLE audit DISABLE TRIGGER ALL; ALTER TABLE audit_head DISABLE TRIGGER ALL;
            ALTER TABLE certificates DISABLE TRIGGER ALL; ALTER TABLE authorities DISABLE TRIGGER ALL"
        }
        _ => {
            "DROP TRIGGER audit_follows; DROP TRIGGER audit_moves_head; DROP TRIGGER audit_stays;
            DROP TRIGGER audit_keeps; DROP TRIGGER audit_head_keeps; DROP TRIGGER audit_head_follows;
            PRAGMA defer_foreign_keys = ON"
        }
    };
    connection.execute(sql).await.expect("unlocked");
}

/// One forgery of a log with entries up to `last`, and what must be found of it.
pub(super) async fn forge(db: &mut AnyConnection, random: &mut StdRng, last: i64) -> (String, Expected) {
    let id = random.random_range(1..=last);
    let inner = random.random_range(2..last);
    let blob =
        if db.backend_name() == "PostgreSQL" { "decode(repeat('5a', 32), 'hex')" } else { "CAST(X'5A' AS BLOB)" };
    match random.random_range(0..13) {
        0 => {
            let change = *[
                "actor = 'operator:eve'",
                "actor = actor || ' '",
                "action = 'tenant.created '",
                "subject = subject || 'x'",
                "tenant = COALESCE(tenant, '') || 'x'",
                "detail = detail || ' '",
                "remote = COALESCE(remote, '') || '1'",
                "at = at + 1",
                "at = -at",
                "credential = COALESCE(credential, '') || '1'",
            ]
            .choose(random)
            .expect("some");
            run(db, format!("UPDATE audit SET {change} WHERE id = {id}")).await;
            (format!("edited {id}: {change}"), Box::new(move |found| *found == Finding::Altered { id }))
        }
        1 => {
            let column = *["hash", "previous"].choose(random).expect("some");
            run(db, format!("UPDATE audit SET {column} = {blob} WHERE id = {id}")).await;
            let place = format!("entry {id}");
            (
                format!("hash-edited {id}: {column}"),
                Box::new(move |found| match found {
                    Finding::Unreadable { place: found, .. } => *found == place,
                    found => *found == Finding::Altered { id },
                }),
            )
        }
        2 => {
            run(db, format!("DELETE FROM audit WHERE id = {inner}")).await;
            (
                format!("removed {inner}"),
                Box::new(move |found| *found == Finding::Missing { first: inner, last: inner }),
            )
        }
        3 => {
            // Without the head, as somebody would who does not know of it.
            run(db, format!("DELETE FROM audit WHERE id >= {inner}")).await;
            (
                format!("cut {inner}"),
                Box::new(
                    move |found| matches!(found, Finding::Head { head, last } if head.id > last.id && last.id == inner - 1),
                ),
            )
        }
        4 => {
            run(db, format!("DELETE FROM audit WHERE id >= {inner}")).await;
            rehash(db, inner).await;
            (
                format!("cut-with-head {inner}"),
                Box::new(
                    move |found| matches!(found, Finding::Cut { published, last: end } if *published == last && *end == inner - 1),
                ),
            )
        }
        5 => {
            let other = inner % (last - 1) + 1;
            run(db, format!("UPDATE audit SET id = -1 WHERE id = {inner}")).await;
            run(db, format!("UPDATE audit SET id = {inner} WHERE id = {other}")).await;
            run(db, format!("UPDATE audit SET id = {other} WHERE id = -1")).await;
            (format!("swapped {inner} {other}"), Box::new(move |found| *found == Finding::Altered { id: inner }))
        }
        6 => {
            // One more entry, and all behind it renumbered, but not hashed anew.
            run(db, format!("UPDATE audit SET id = -id - 1 WHERE id >= {inner}")).await;
            run(db, "UPDATE audit SET id = -id WHERE id < 0".into()).await;
            run(db, format!(
                "INSERT INTO audit SELECT {inner}, at, actor, credential, action, tenant, subject, detail, remote, previous, hash
                 FROM audit WHERE id = {}", inner + 1)).await;
            (format!("inserted {inner}"), Box::new(move |found| *found == Finding::Altered { id: inner + 1 }))
        }
        7 => {
            // At the end, hashed well, without the head.
            let mut link = links(db).await.pop().expect("entries");
            (link.id, link.previous) = (link.id + 1, link.hash);
            link.hash = link.computed();
            run(db, format!(
                "INSERT INTO audit SELECT {}, at, actor, credential, action, tenant, subject, detail, remote, previous, hash
                 FROM audit WHERE id = {last}", link.id)).await;
            sqlx::query("UPDATE audit SET previous = $1, hash = $2 WHERE id = $3")
                .bind(link.previous.0.to_vec())
                .bind(link.hash.0.to_vec())
                .bind(link.id)
                .execute(&mut *db)
                .await
                .expect("set");
            (format!("added {}", link.id), Box::new(move |found| matches!(found, Finding::Head { .. })))
        }
        8 => {
            run(db, format!("UPDATE audit SET subject = subject || 'x' WHERE id = {id}")).await;
            rehash(db, id).await;
            (
                format!("rewritten {id}"),
                Box::new(move |found| matches!(found, Finding::Rewritten { published } if published.id == last)),
            )
        }
        9 => {
            run(db, format!("DELETE FROM audit WHERE id = {inner}")).await;
            rehash(db, inner).await;
            (
                format!("removed-and-rewritten {inner}"),
                Box::new(move |found| matches!(found, Finding::Cut { published, .. } if *published == last)),
            )
        }
        10 => {
            // What somebody does who has the keys and not the hub: a good certificate beside the log.
            let forged = certificate_past_the_log(db, random).await;
            (
                format!("unlogged {forged}"),
                Box::new(move |found| matches!(found, Finding::Unlogged { sha256, .. } if *sha256 == forged)),
            )
        }
        11 => {
            let row = any_certificate(db, random).await;
            let change = *[
                "not_after = not_after + 86400000",
                "tenant = 'zeta'",
                "node = 'n' || COALESCE(node, '')",
                "serial = spki_sha256",
            ]
            .choose(random)
            .expect("some");
            sqlx::query(AssertSqlSafe(format!("UPDATE certificates SET {change} WHERE serial = $1")))
                .bind(row)
                .execute(&mut *db)
                .await
                .expect("altered");
            (format!("mislabelled {change}"), Box::new(move |found| matches!(found, Finding::Mislabelled { .. })))
        }
        _ => {
            let row = any_certificate(db, random).await;
            let serial = data_encoding::HEXLOWER.encode(&row);
            sqlx::query("DELETE FROM certificates WHERE serial = $1")
                .bind(row)
                .execute(&mut *db)
                .await
                .expect("removed");
            (
                format!("certificate-removed {serial}"),
                Box::new(move |found| matches!(found, Finding::Gone { serial: found, .. } if *found == serial)),
            )
        }
    }
}

pub(super) fn forge_export(lines: &[String], links: &[Link], random: &mut StdRng) -> (String, Vec<String>) {
    let mut forged = lines.to_vec();
    let place = random.random_range(0..lines.len());
    let inner = random.random_range(1..lines.len() - 1);
    let what = match random.random_range(0..9) {
        0 => {
            forged.remove(place);
            format!("removed {place}")
        }
        1 => {
            forged.truncate(place);
            format!("cut {place}")
        }
        2 => {
            let other = (place + random.random_range(1..lines.len())) % lines.len();
            forged.swap(place, other);
            format!("swapped {place} {other}")
        }
        3 => {
            forged.insert(inner, lines[place].clone());
            format!("copied {place}")
        }
        4 => {
            // A field of the event, which says nothing about the chain by itself.
            let mut event: Value = serde_json::from_str(&lines[place]).expect("an event");
            let path = *["/time", "/status_id", "/message", "/actor/user/name", "/metadata/original_time", "/type_uid"]
                .choose(random)
                .expect("some");
            *event.pointer_mut(path).expect("a field") = "eve".into();
            forged[place] = event.to_string();
            format!("event-edited {place} {path}")
        }
        5 => {
            let mut event: Value = serde_json::from_str(&lines[place]).expect("an event");
            let name = *["actor", "action", "subject", "detail"].choose(random).expect("some");
            event["unmapped"][name] = "eve".into();
            forged[place] = event.to_string();
            format!("entry-edited {place} {name}")
        }
        6 => {
            // The entry and its event altered alike, and the hash made to fit.
            let mut link = links[place].clone();
            link.subject.push('x');
            link.hash = link.computed();
            forged[place] = ocsf::event(&link).to_string();
            format!("rehashed {place}")
        }
        7 => {
            // All that follow as well: only the published head knows better.
            let mut previous = links[..place].last().map_or(Hash::NONE, |link| link.hash);
            for (line, link) in forged[place..].iter_mut().zip(&links[place..]) {
                let mut link = Link { previous, subject: format!("{}x", link.subject), ..link.clone() };
                link.hash = link.computed();
                previous = link.hash;
                *line = ocsf::event(&link).to_string();
            }
            format!("rewritten {place}")
        }
        _ => {
            // Torn, or with a field that stands there twice.
            let line = forged[place].clone();
            let cut = random.random_range(0..line.len());
            forged[place] = if random.random_bool(0.5) {
                line.chars().take(cut).collect()
            } else {
                format!("{{\"time\":1,{}", line.trim_start_matches('{'))
            };
            format!("torn {place}")
        }
    };
    (what, forged)
}

/// Writes the entries from `first` on anew, with hashes that fit, and the head along with them.
async fn rehash(connection: &mut AnyConnection, first: i64) {
    let links = links(connection).await;
    let mut previous = links.iter().rfind(|link| link.id < first).map_or(Hash::NONE, |link| link.hash);
    let mut head = Head { id: first - 1, hash: previous };
    for mut link in links.into_iter().filter(|link| link.id >= first) {
        let row = link.id;
        link.id = head.id + 1;
        link.previous = previous;
        link.hash = link.computed();
        sqlx::query("UPDATE audit SET id = $1, previous = $2, hash = $3 WHERE id = $4")
            .bind(link.id)
            .bind(link.previous.0.to_vec())
            .bind(link.hash.0.to_vec())
            .bind(row)
            .execute(&mut *connection)
            .await
            .expect("rewritten");
        previous = link.hash;
        head = Head { id: link.id, hash: link.hash };
    }
    set_head(connection, head).await;
}

async fn set_head(connection: &mut AnyConnection, head: Head) {
    sqlx::query("UPDATE audit_head SET last_id = $1, hash = $2")
        .bind(head.id)
        .bind(head.hash.0.to_vec())
        .execute(connection)
        .await
        .expect("set");
}

async fn run(connection: &mut AnyConnection, sql: String) {
    let done = connection.execute(AssertSqlSafe(sql.clone())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert!(done.rows_affected() > 0, "{sql} changed nothing");
}

async fn any_certificate(db: &mut AnyConnection, random: &mut StdRng) -> Vec<u8> {
    let rows = sqlx::query("SELECT serial FROM certificates ORDER BY serial").fetch_all(db).await.expect("rows");
    rows.choose(random).expect("some").get(0)
}

/// Puts one more certificate beside the others (a node's, an authority's, a link between roots); gives its SHA-256.
async fn certificate_past_the_log(db: &mut AnyConnection, random: &mut StdRng) -> String {
    let now = NOW;
    let root = pki::Authority::create_root(now, seconds(86_400)).expect("a root");
    let authority = root.issue_tenant_intermediate(&acme(), now, seconds(86_400)).expect("an authority");
    if random.random_bool(0.3) {
        let next = pki::Authority::create_root(now, seconds(86_400)).expect("a root");
        let link = root.link(next.certificate_der(), now).expect("a link");
        let summary = pki::Summary::of(&link).expect("a certificate");
        sqlx::query(
            "INSERT INTO root_links (serial, certificate, not_after, signer, introduced, told, created_at)
                 SELECT $3, $1, $2, MIN(id), MIN(id), 1, 0 FROM authorities",
        )
        .bind(link.to_vec())
        .bind(summary.not_after.millis())
        .bind(summary.serial.clone())
        .execute(db)
        .await
        .expect("put in");
        return data_encoding::HEXLOWER.encode(&summary.sha256);
    }
    let (der, sql) = if random.random_bool(0.5) {
        let node = protocol::NodeId::new(now, [9; 10]);
        let leaf =
            authority.issue_node(&key().public_key(), node, NodeKind::Agent, now, seconds(3600)).expect("a leaf");
        (
            leaf,
            "INSERT INTO certificates
                 (serial, authority, kind, tenant, node, spki_sha256, certificate, issued_at, not_after, state, sequence, recovered)
                 SELECT $2, authority, kind, tenant, node, spki_sha256, $1, issued_at, not_after, state, sequence, recovered
                 FROM certificates ORDER BY serial LIMIT 1",
        )
    } else {
        (authority.certificate_der().to_vec(),
         "INSERT INTO authorities (kind, tenant, generation, spki_sha256, certificate, sealed_key, not_after, state, created_at)
             SELECT kind, tenant, 9, spki_sha256, $1, $2, not_after, 'retired', created_at FROM authorities WHERE kind = 'nodes' ORDER BY id LIMIT 1")
    };
    let summary = pki::Summary::of(&der).expect("a certificate");
    sqlx::query(sql).bind(der).bind(summary.serial.clone()).execute(db).await.expect("put in");
    data_encoding::HEXLOWER.encode(&summary.sha256)
}
