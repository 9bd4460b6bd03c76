//! The tenant's Kafka plane over HTTP, and what anybody may fetch to trust.

use std::path::Path;
use std::process::Command;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyperfactory_hub::access::Role;
use hyperfactory_hub::audit::Actor;
use hyperfactory_hub::enrollment::Reason;
use serde_json::json;
use store::on_both_engines;
use tower::ServiceExt as _;

use crate::dashboard::Browser;
use crate::{Site, now};

/// A request by OpenSSL that asks for more than it will get.
fn request() -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new("openssl")
        .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=evil.example", "-addext", "basicConstraints=CA:TRUE"])
        .args(["-addext", "subjectAltName=DNS:*.evil.example", "-keyout"])
        .arg(directory.path().join("key.pem"))
        .output()
        .expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("PEM")
}

/// What OpenSSL reads in a certificate.
fn read(pem: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("certificate.pem");
    std::fs::write(&path, pem).expect("written");
    let output = Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(path).output();
    String::from_utf8(output.expect("openssl runs").stdout).expect("text")
}

on_both_engines! {
    async fn an_admin_gets_a_certificate_for_the_brokers_and_nothing_else_of_the_request(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("other").await;
        let path = "/api/v1/tenants/acme/kafka/server-certificate";
        let body = json!({ "certificate_request": request(), "dns_names": ["redpanda"], "ip_addresses": ["192.0.2.7"] });
        let admin = site.token(Role::Admin, Some("acme")).await;
        let answer = site.post(path, &admin, body.clone()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        let issued = answer.json();
        assert_eq!(issued["names"], json!(["redpanda", "192.0.2.7"]));
        let text = read(issued["certificate"].as_str().expect("PEM"));
        for expected in ["O = acme, CN = Kafka broker", "DNS:redpanda, IP Address:192.0.2.7", "CA:FALSE"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(!text.contains("evil"), "{text}");
        let root = site.get("/pki/acme/kafka-root.pem", "").await;
        assert_eq!(issued["root"].as_str(), Some(&*root.body));

        let (operator, stranger) =
            (site.token(Role::Operator, Some("acme")).await, site.token(Role::Admin, Some("other")).await);
        let mut wild = body.clone();
        wild["dns_names"] = json!(["*.acme.example"]);
        let mut nameless = body.clone();
        nameless["dns_names"] = json!([]);
        nameless["ip_addresses"] = json!([]);
        let mut garbled = body.clone();
        garbled["certificate_request"] = json!("no PEM");
        for (status, path, token, body, advice) in [
            (403, path, &operator, &body, "role admin"),
            (404, path, &stranger, &body, "no tenant acme"),
            (404, "/api/v1/tenants/nobody/kafka/server-certificate", &admin, &body, "no tenant nobody"),
            (422, path, &admin, &wild, "wildcards are not given"),
            (422, path, &admin, &nameless, "at least one"),
            (422, path, &admin, &garbled, "BEGIN CERTIFICATE REQUEST"),
        ] {
            let answer = site.post(path, token, body.clone()).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
            assert!(answer.body.contains(advice), "{}", answer.body);
        }
        assert_eq!(site.get(path, &admin).await.status, StatusCode::METHOD_NOT_ALLOWED);
    }

    async fn anybody_may_fetch_what_is_to_be_trusted_and_keep_it_a_while(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let mut seen = std::collections::HashSet::new();
        for (path, name) in [
            ("/pki/fleet-root.pem", "Hyperfactory fleet root"),
            ("/pki/acme/kafka-root.pem", "Hyperfactory Kafka root"),
            ("/pki/acme/nodes-intermediate.pem", "Hyperfactory node authority"),
        ] {
            let get = |tag: Option<&str>| {
                let request = Request::get(path).header("if-none-match", tag.unwrap_or("\"other\""));
                site.send(request.body(Body::empty()).expect("a request"))
            };
            let answer = get(None).await;
            assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "application/pem-certificate-chain"));
            assert!(answer.header("cache-control").starts_with("public"), "{path}");
            assert!(read(&answer.body).contains(name), "{path}");
            assert!(seen.insert(answer.body.clone()), "{path} is another's");
            let again = get(Some(answer.header("etag"))).await;
            assert_eq!((again.status, again.body.as_str()), (StatusCode::NOT_MODIFIED, ""));
        }
        for path in ["/pki/nobody/kafka-root.pem", "/pki/nobody/nodes-intermediate.pem", "/pki/acme/nothing.pem", "/pki/Not-An-Id/kafka-root.pem"] {
            let answer = site.get(path, "").await;
            assert_eq!((answer.status.as_u16(), answer.header("content-type")), (404, "application/problem+json"), "{path}");
        }
    }

    async fn what_waits_for_an_offline_root_is_shown_to_whom_it_concerns(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (admin, theirs) = (site.token(Role::Admin, None).await, site.token(Role::Viewer, Some("acme")).await);
        let awaited = async |token: &str| site.get("/api/v1/authorities/awaited", token).await.json();
        assert_eq!(awaited(&admin).await, json!([]));
        let root = site.authorities.root_key().await.expect("the root");
        site.authorities.take_root_away(&root, &Actor::system(), now()).await.expect("taken away");
        let made = site.post("/api/v1/tenants", &admin, json!({ "id": "late" })).await;
        assert_eq!((made.status, made.json()["awaits_signature"].as_bool()), (StatusCode::CREATED, Some(true)));
        let all = awaited(&admin).await;
        assert_eq!((all[0]["kind"].as_str(), all[0]["tenant"].as_str(), &all[0]["ends"]), (Some("nodes"), Some("late"), &json!(null)));
        assert_eq!(awaited(&theirs).await, json!([]), "another tenant's is none of its business");

        let browser = Browser::sign_in(&site, Role::Admin, None).await;
        let page = browser.get("/trust").await.body;
        assert!(page.contains("Signatures awaited") && page.contains("ca root requests"), "{page}");
        for (path, says) in [("/tenants", true), ("/tenants/late", true), ("/tenants/acme", false)] {
            assert_eq!(browser.get(path).await.body.contains("Awaits a signature"), says, "{path}");
        }
        let browser = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert!(!browser.get("/trust").await.body.contains("Signatures awaited"));
    }

    async fn openssl_and_gnutls_verify_what_anybody_may_fetch(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let node = site.node("acme", "plant-7").await;
        let revoked = site.enrollment.revoke(node, Reason::KeyCompromise, "", &Actor::system(), now()).await;
        assert_eq!(revoked.expect("revoked").certificates, 1);
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for (file, from) in [
            ("root.pem", "/pki/fleet-root.pem"),
            ("nodes.pem", "/pki/acme/nodes-intermediate.pem"),
            ("kafka.pem", "/pki/acme/kafka-root.pem"),
        ] {
            std::fs::write(path(file), site.get(from, "").await.body).expect("written");
        }
        for (anchor, certificate) in [("root.pem", "root.pem"), ("root.pem", "nodes.pem"), ("kafka.pem", "kafka.pem")] {
            let (anchor, certificate) = (path(anchor), path(certificate));
            judged("openssl", &["verify", "-x509_strict", "-check_ss_sig", "-CAfile"], &[&anchor, &certificate]);
            judged("certtool", &["--verify", "--load-ca-certificate"], &[&anchor, "--infile".as_ref(), &certificate]);
        }

        let reader = site.token(Role::Viewer, None).await;
        let authorities = site.get("/api/v1/authorities", &reader).await.json();
        let mut seen = Vec::new();
        for authority in authorities.as_array().expect("a list") {
            let issuer = match authority["kind"].as_str() {
                Some("root") => path("root.pem"),
                Some("nodes") => path("nodes.pem"),
                Some("kafka") => path("kafka.pem"),
                // Its certificate is in no place for everybody.
                _ => continue,
            };
            let request = Request::get(authority["revocation_list"].as_str().expect("a path")).body(Body::empty());
            let answer = site.router.clone().oneshot(request.expect("a request")).await.expect("an answer");
            assert_eq!(answer.headers()["content-type"], "application/pkix-crl");
            let der = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
            let (list, pem) = (path("list.crl"), path("list.pem"));
            std::fs::write(&list, &der).expect("written");
            let text = judged("openssl", &["crl", "-inform", "DER", "-text", "-CAfile"], &[&issuer, "-in".as_ref(), &list, "-out".as_ref(), &pem]);
            assert!(text.contains("verify OK"), "{text}");
            judged("certtool", &["--verify-crl", "--load-ca-certificate"], &[&issuer, "--infile".as_ref(), &pem]);
            let listed = std::fs::read_to_string(&pem).expect("read").contains("Key Compromise");
            seen.push((authority["kind"].as_str().expect("a kind").to_owned(), listed));
        }
        seen.sort();
        assert_eq!(seen, [("kafka".to_owned(), false), ("nodes".to_owned(), true), ("root".to_owned(), false)]);
    }
}

/// What a program prints that is to accept what it is given.
fn judged(program: &str, arguments: &[&str], paths: &[&Path]) -> String {
    let output = Command::new(program).args(arguments).args(paths).output().expect("a judge that ./test installs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?} {paths:?}: {text}");
    text
}
