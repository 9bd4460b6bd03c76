//! The audit log over HTTP: who was denied what, heads, and exports that can be verified.

use axum::http::{Method, StatusCode};
use hyperfactory_hub::access::Role;
use hyperfactory_hub::audit::verify::{self, Extent};
use hyperfactory_hub::audit::{self, Entry, Filter, Head, action};
use serde_json::json;
use store::on_both_engines;

use crate::Site;

/// The entries of an action, oldest first: who, with which credential, to what, for which tenant.
async fn denials(site: &Site) -> Vec<Entry> {
    let filter = Filter { action: Some(action::ACCESS_REFUSED.into()), after: Some(0), ..Filter::default() };
    audit::list(&site.database, &filter).await.expect("the audit log")
}

on_both_engines! {
    async fn who_is_denied_something_is_in_the_log(test: TestDatabase) {
        let site = Site::open(test).await;
        for id in ["acme", "zeta"] {
            site.tenant(id).await;
        }
        let viewer = site.token(Role::Viewer, None).await;
        let bound = site.token(Role::Admin, Some("acme")).await;
        let denied = [
            (&viewer, Method::POST, "/api/v1/tenants", Some(json!({"id": "more"})), 403),
            (&viewer, Method::GET, "/api/v1/api-tokens", None, 403),
            (&viewer, Method::GET, "/api/v1/audit/export", None, 403),
            (&bound, Method::POST, "/api/v1/tenants", Some(json!({"id": "more"})), 403),
            (&bound, Method::GET, "/api/v1/tenants/zeta", None, 404),
            (&bound, Method::GET, "/api/v1/nodes?tenant=zeta", None, 404),
            (&bound, Method::GET, "/api/v1/audit/export?tenant=zeta", None, 404),
            (&bound, Method::POST, "/api/v1/tokens", Some(json!({"tenant": "zeta"})), 404),
            (&bound, Method::POST, "/api/v1/api-tokens", Some(json!({"name": "x", "role": "viewer", "tenant": "zeta"})), 404),
        ];
        let (mut expected, listed) = (Vec::new(), site.access.list_api_tokens().await.expect("tokens"));
        for (bearer, method, path, body, status) in denied {
            let answer = site.call(method.clone(), path, bearer, body).await;
            assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
            let token = listed.iter().find(|token| (token.tenant.is_some()) == (bearer == &bound)).expect("it");
            expected.push((
                format!("operator:{}", token.name),
                Some(token.id.clone()),
                token.tenant.as_ref().map(ToString::to_string),
                format!("{method} {}", path.split('?').next().expect("a path")),
            ));
        }
        // Neither what is allowed, nor what is simply not there.
        assert_eq!(site.get("/api/v1/tenants", &viewer).await.status, StatusCode::OK);
        assert_eq!(site.get("/api/v1/tenants/none", &viewer).await.status, StatusCode::NOT_FOUND);
        let log = denials(&site).await;
        let found = log.iter().map(|entry| {
            (entry.actor.clone(), entry.credential.clone(), entry.tenant.clone(), entry.subject.clone())
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
        assert!(log.iter().all(|entry| entry.detail["reason"].as_str().is_some() && entry.remote.is_some()));

        // A token that is none; of a flood of them, the start.
        for _ in 0..30 {
            site.get("/api/v1/tenants", "hft_none").await;
        }
        let log = denials(&site).await;
        let strangers: Vec<_> = log.iter().filter(|entry| entry.actor == "anonymous").collect();
        assert_eq!(strangers.len(), 10);
        assert!(strangers.iter().all(|entry| entry.subject == "api" && entry.tenant.is_none()));
    }

    async fn an_act_is_logged_with_the_credential_it_was_done_with(test: TestDatabase) {
        let site = Site::open(test).await;
        let admin = site.token(Role::Admin, None).await;
        let id = site.access.list_api_tokens().await.expect("tokens")[0].id.clone();
        assert_eq!(site.post("/api/v1/tenants", &admin, json!({"id": "acme"})).await.status, StatusCode::CREATED);
        let newest = site.get("/api/v1/audit?action=tenant.created", &admin).await.json();
        assert_eq!(newest["items"][0]["credential"], json!(id));
        assert!(newest["items"][0]["remote"].is_string());
    }

    async fn an_export_is_the_chain_and_a_tenants_is_its_part(test: TestDatabase) {
        let site = Site::open(test).await;
        for id in ["acme", "zeta"] {
            site.tenant(id).await;
            site.node(id, "press").await;
        }
        let (admin, bound) = (site.token(Role::Admin, None).await, site.token(Role::Admin, Some("acme")).await);
        let head = site.get("/api/v1/audit/head", &bound).await.json();
        let head: Head = format!("{}:{}", head["id"], head["hash"].as_str().expect("a hash")).parse().expect("a head");
        assert_eq!(head, audit::head(&site.database).await.expect("a head"));
        // More than is read at once.
        for number in 0..600 {
            let record = audit::Record {
                actor: audit::Actor::system(), action: action::TOKEN_CREATED, tenant: (number % 2 == 0).then(|| crate::tenant("acme")),
                subject: number.to_string(), detail: json!({}), remote: None,
            };
            audit::record(&site.database, crate::now(), record).await.expect("written");
        }
        let whole = site.get("/api/v1/audit/export", &admin).await;
        assert_eq!((whole.status, whole.header("content-type")), (StatusCode::OK, "application/x-ndjson"));
        let last = audit::head(&site.database).await.expect("a head");
        let report = verify::export(whole.body.as_bytes(), Extent::Whole, &[head, last], &[]).expect("read");
        assert_eq!((report.findings, report.head), (vec![], Some(last)));

        let after = site.get(&format!("/api/v1/audit/export?after={}", head.id), &admin).await;
        let report = verify::export(after.body.as_bytes(), Extent::Whole, &[head, last], &[]).expect("read");
        assert_eq!((report.findings, report.entries), (vec![], (last.id - head.id) as u64));

        for path in ["/api/v1/audit/export", "/api/v1/audit/export?tenant=acme"] {
            let part = site.get(path, &bound).await;
            assert!(part.body.lines().count() > 300 && !part.body.contains("zeta"), "{}", part.body);
            let report = verify::export(part.body.as_bytes(), Extent::Part, &[head], &[]).expect("read");
            assert_eq!(report.findings, []);
        }
    }
}
