//! The REST API.

use std::collections::BTreeSet;
use std::task::Poll;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use hyperfactory_hub::access::Role;
use protocol::message::ServiceHealth;
use serde_json::{Value, json};
use store::on_both_engines;

use crate::{Answer, Site};

fn assert_problem(answer: &Answer, status: u16, case: &str) {
    assert_eq!(answer.status.as_u16(), status, "{case}: {}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json", "{case}");
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{case}");
    assert!(problem["type"].as_str().is_some_and(|kind| kind.starts_with("urn:hyperfactory:problem:")), "{case}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{case}: {problem}");
}

/// What comes of `asked`, unless it has to wait more often than so.
async fn hung_up<T>(asked: impl Future<Output = T>, waits: usize) -> Option<T> {
    let (mut asked, mut left) = (std::pin::pin!(asked), waits);
    let until_then = std::future::poll_fn(|context| match asked.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    });
    until_then.await
}

on_both_engines! {
    async fn every_error_is_a_problem(test: TestDatabase) {
        let site = Site::open(test).await;
        let admin = site.token(Role::Admin, None).await;
        let unknown = "/api/v1/nodes/019ab0c2-7f00-7000-8000-000000000000";
        let cases = [
            (404, Method::GET, "/api/v1/nothing"),
            (404, Method::GET, "/api"),
            (405, Method::PUT, "/api/v1/tenants"),
            (405, Method::POST, "/api/v1/openapi.json"),
            (405, Method::PUT, "/pki/fleet-root.pem"),
            (405, Method::PUT, "/crl/1"),
            (404, Method::GET, "/api/v1/tenants/nobody"),
            (404, Method::GET, "/api/v1/tenants/Not-An-Id"),
            (404, Method::GET, unknown),
            (404, Method::GET, "/api/v1/nodes/not-a-uuid"),
            (404, Method::DELETE, "/api/v1/api-tokens/nothing"),
            (400, Method::GET, "/api/v1/nodes?limit=0"),
            (400, Method::GET, "/api/v1/nodes?limit=501"),
            (400, Method::GET, "/api/v1/nodes?limit=many"),
            (400, Method::GET, "/api/v1/nodes?state=broken"),
            (400, Method::GET, "/api/v1/nodes?cursor=%21"),
            (400, Method::GET, "/api/v1/tenants?cursor=bm9ib2R5"),
            (400, Method::GET, "/api/v1/alerts?cursor=bm9ib2R5"),
            (400, Method::GET, "/api/v1/nodes/019ab0c2-7f00-7000-8000-000000000000/history"),
            (422, Method::GET, "/api/v1/alerts?node=x"),
            (422, Method::GET, "/api/v1/nodes?tenant=Not-An-Id"),
            (404, Method::GET, "/api/v1/nodes?tenant=nobody"),
            (404, Method::GET, "/api/v1/alerts?tenant=nobody"),
            (404, Method::GET, "/api/v1/commands?tenant=nobody"),
            (404, Method::GET, "/api/v1/audit?tenant=nobody"),
            (404, Method::GET, "/api/v1/logs?tenant=nobody"),
            // The one character that PostgreSQL has no text with.
            (422, Method::GET, "/api/v1/audit?action=a%00b"),
            (422, Method::GET, "/api/v1/commands?request=%00"),
            (404, Method::DELETE, "/api/v1/api-tokens/%00"),
            (404, Method::POST, "/api/v1/operator-keys/%00/revoke"),
        ];
        for (status, method, path) in cases {
            let answer = site.call(method.clone(), path, &admin, None).await;
            assert_problem(&answer, status, &format!("{method} {path}"));
            if status == 405 {
                assert!(!answer.header("allow").is_empty(), "{path} does not say what it allows");
            }
        }

        let huge = "x".repeat(70_000);
        let bodies: [(u16, &str, &str); 8] = [
            (400, "application/json", "{"),
            (400, "application/json", ""),
            (415, "text/plain", r#"{"id":"acme"}"#),
            (422, "application/json", r#"{"id":7}"#),
            (422, "application/json", "[]"),
            (422, "application/json", r#"{"id":"acme","nmae":"Acme"}"#),
            (422, "application/json", r#"{"id":"Acme Inc"}"#),
            (413, "application/json", &huge),
        ];
        for (status, media_type, body) in bodies {
            let request = Request::post("/api/v1/tenants")
                .header("authorization", format!("Bearer {admin}"))
                .header("content-type", media_type)
                .body(Body::from(body.to_owned()));
            let answer = site.send(request.expect("a request")).await;
            assert_problem(&answer, status, body.get(..40).unwrap_or(body));
        }
        assert!(site.get("/api/v1/tenants", &admin).await.ids().is_empty(), "nothing was made");
    }

    async fn a_character_that_no_text_has_is_refused(test: TestDatabase) {
        let site = Site::open(test).await;
        let admin = site.token(Role::Admin, None).await;
        let public = pki::OperatorKey::generate().expect("a key").public().to_string();
        site.tenant("acme").await;
        let bodies = [
            ("/api/v1/operator-keys", json!({ "name": "a\0b", "public_key": public, "reason": "a test" })),
            ("/api/v1/tenants", json!({ "id": "other", "name": "a\0b" })),
            ("/api/v1/tenants", json!({ "id": "a\0b" })),
            ("/api/v1/tokens", json!({ "tenant": "acme", "kind": "agent", "name": "a\0b" })),
            ("/api/v1/api-tokens", json!({ "name": "a\0b", "role": "viewer" })),
            ("/api/v1/rotations", json!({ "kind": "root", "reason": "a\0b" })),
        ];
        for (path, body) in bodies {
            let answer = site.post(path, &admin, body.clone()).await;
            assert_problem(&answer, 422, &format!("{path} {body}"));
        }
    }

    async fn a_token_that_is_none_is_refused(test: TestDatabase) {
        let site = Site::open(test).await;
        let (_, good) = (site.tenant("acme").await, site.token(Role::Viewer, None).await);
        let cut = good.get(..good.len() - 1).expect("shorter");
        for bad in ["", "hft_", "hft_AAAA", cut, "hfj_x"] {
            let answer = site.get("/api/v1/tenants", bad).await;
            assert_problem(&answer, 401, bad);
            assert!(answer.header("www-authenticate").starts_with("Bearer"), "{bad}");
        }
        let without = site.send(Request::get("/api/v1/tenants").body(Body::empty()).expect("a request")).await;
        assert_problem(&without, 401, "no header");
        assert_eq!(site.get("/api/v1/tenants", &good).await.status, StatusCode::OK);
    }

    async fn guessing_is_slowed_down_and_a_good_token_still_works(test: TestDatabase) {
        let site = Site::open(test).await;
        let good = site.token(Role::Viewer, None).await;
        let mut last = None;
        for _ in 0..12 {
            last = Some(site.get("/api/v1/tenants", "hft_AAAA").await);
        }
        let last = last.expect("an answer");
        assert_problem(&last, 429, "the twelfth guess");
        assert!(last.header("retry-after").parse::<u32>().expect("seconds") > 0);
        assert_eq!(site.get("/api/v1/tenants", &good).await.status, StatusCode::OK);
    }

    async fn a_revoked_token_is_refused_at_once(test: TestDatabase) {
        let site = Site::open(test).await;
        let admin = site.token(Role::Admin, None).await;
        let made = site.post("/api/v1/api-tokens", &admin, json!({"name": "ci", "role": "viewer"})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let (secret, id) = (made.json()["token"].as_str().expect("a secret").to_owned(), made.json()["id"].clone());
        assert_eq!(site.get("/api/v1/nodes", &secret).await.status, StatusCode::OK);
        let path = format!("/api/v1/api-tokens/{}", id.as_str().expect("an id"));
        assert_eq!(site.call(Method::DELETE, &path, &admin, None).await.status, StatusCode::NO_CONTENT);
        assert_problem(&site.get("/api/v1/nodes", &secret).await, 401, "after its revocation");
        let listed = site.get("/api/v1/api-tokens", &admin).await;
        assert!(!listed.body.contains(&secret) && listed.body.contains("revoked_at"));
    }

    async fn a_role_does_what_it_may_and_no_more(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let node = site.node("acme", "press").await;
        let reads = [
            "/api/v1/tenants".to_owned(),
            "/api/v1/tenants/acme".into(),
            "/api/v1/nodes".into(),
            format!("/api/v1/nodes/{node}"),
            format!("/api/v1/nodes/{node}/coverage"),
            format!("/api/v1/nodes/{node}/history?metric=cpu.busy"),
            "/api/v1/tokens".into(),
            "/api/v1/alerts".into(),
            "/api/v1/audit".into(),
        ];
        for (role, join, tenant, api_token) in
            [(Role::Viewer, 403, 403, 403), (Role::Operator, 201, 403, 403), (Role::Admin, 201, 201, 201)]
        {
            let token = site.token(role, None).await;
            for path in &reads {
                let answer = site.get(path, &token).await;
                assert_eq!(answer.status, StatusCode::OK, "{role} reads {path}: {}", answer.body);
            }
            let made = site.post("/api/v1/tokens", &token, json!({"tenant": "acme"})).await;
            assert_eq!(made.status.as_u16(), join, "{role} makes a join token: {}", made.body);
            let made = site.post("/api/v1/tenants", &token, json!({"id": format!("by-{role}")})).await;
            assert_eq!(made.status.as_u16(), tenant, "{role} makes a tenant: {}", made.body);
            let made = site.post("/api/v1/api-tokens", &token, json!({"name": "x", "role": "viewer"})).await;
            assert_eq!(made.status.as_u16(), api_token, "{role} makes an API token: {}", made.body);
            let listed = site.get("/api/v1/api-tokens", &token).await;
            assert_eq!(listed.status.as_u16(), if api_token == 201 { 200 } else { 403 }, "{role} lists API tokens");
        }
    }

    async fn a_token_bound_to_a_tenant_sees_nothing_of_another(test: TestDatabase) {
        let site = Site::open(test).await;
        for id in ["acme", "zeta"] {
            site.tenant(id).await;
        }
        let (own, other) = (site.node("acme", "press").await, site.node("zeta", "mill").await);
        let foreign = site.token(Role::Viewer, Some("zeta")).await;
        let root = site.token(Role::Admin, None).await;
        let bound = site.token(Role::Admin, Some("acme")).await;

        assert_eq!(site.get("/api/v1/tenants", &bound).await.ids(), ["acme"]);
        assert_eq!(site.get("/api/v1/nodes", &bound).await.ids(), [own.to_string()]);
        for path in [
            "/api/v1/tenants", "/api/v1/nodes", "/api/v1/tokens", "/api/v1/alerts", "/api/v1/audit", "/api/v1/api-tokens",
        ] {
            let answer = site.get(path, &bound).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}");
            assert!(!answer.body.contains("zeta") && !answer.body.contains("mill"), "{path} tells: {}", answer.body);
        }
        for path in [
            "/api/v1/tenants/zeta".to_owned(),
            format!("/api/v1/nodes/{other}"),
            format!("/api/v1/nodes/{other}/history?metric=cpu.busy"),
            format!("/api/v1/nodes/{other}/coverage"),
            "/api/v1/nodes?tenant=zeta".into(),
            "/api/v1/tokens?tenant=zeta".into(),
            "/api/v1/alerts?tenant=zeta".into(),
            "/api/v1/audit?tenant=zeta".into(),
            "/api/v1/events?tenant=zeta".into(),
        ] {
            assert_problem(&site.get(&path, &bound).await, 404, &path);
        }
        // What is another's answers just like what is not there.
        let theirs = site.get("/api/v1/tenants/zeta", &bound).await.body;
        assert_eq!(theirs.replace("zeta", "none"), site.get("/api/v1/tenants/none", &bound).await.body);

        assert_problem(&site.post("/api/v1/tokens", &bound, json!({"tenant": "zeta"})).await, 404, "a join token");
        assert_problem(&site.post("/api/v1/tenants", &bound, json!({"id": "more"})).await, 403, "a tenant");
        let wider = json!({"name": "x", "role": "admin", "tenant": "zeta"});
        assert_problem(&site.post("/api/v1/api-tokens", &bound, wider).await, 404, "an API token");
        let made = site.post("/api/v1/api-tokens", &bound, json!({"name": "x", "role": "admin"})).await.json();
        assert_eq!(made["tenant"], "acme", "a bound token makes bound tokens");
        let theirs = site.get("/api/v1/api-tokens", &root).await.json();
        let theirs = theirs["items"].as_array().expect("items").iter().find(|token| token["tenant"] == "zeta");
        let path = format!("/api/v1/api-tokens/{}", theirs.expect("theirs")["id"].as_str().expect("an id"));
        assert_problem(&site.call(Method::DELETE, &path, &bound, None).await, 404, "their API token");
        assert_eq!(site.get("/api/v1/nodes", &foreign).await.status, StatusCode::OK, "it is still good");
    }

    async fn pages_of_every_list_meet(test: TestDatabase) {
        let site = Site::open(test).await;
        let admin = site.token(Role::Admin, None).await;
        for n in 0..5 {
            let id = format!("tenant-{n}");
            site.tenant(&id).await;
            site.node(&id, "node").await;
            site.token(Role::Viewer, None).await;
        }
        for path in ["tenants", "nodes", "nodes?sort=-name", "tokens", "audit", "api-tokens"] {
            let join = if path.contains('?') { '&' } else { '?' };
            let all = site.get(&format!("/api/v1/{path}{join}limit=500"), &admin).await.ids();
            assert!(all.len() >= 5, "{path}");
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = site.get(&format!("/api/v1/{path}{join}limit=2{cursor}"), &admin).await;
                assert!(page.ids().len() <= 2, "{path}");
                seen.extend(page.ids());
                let Some(next) = page.json()["next_cursor"].as_str().map(str::to_owned) else { break };
                cursor = format!("&cursor={next}");
            }
            assert_eq!(seen, all, "{path}");
            assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "{path}");
        }
    }

    async fn a_creating_call_sent_again_takes_effect_once(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (one, other) = (site.token(Role::Operator, None).await, site.token(Role::Operator, Some("acme")).await);
        let make = async |bearer: &str, key: &str, body: Value| {
            let request = Request::post("/api/v1/tokens")
                .header("authorization", format!("Bearer {bearer}"))
                .header("content-type", "application/json")
                .header("idempotency-key", key)
                .body(Body::from(body.to_string()));
            site.send(request.expect("a request")).await
        };
        let wanted = || json!({"tenant": "acme", "name": "press"});
        let first = make(&one, "k1", wanted()).await;
        assert_eq!(first.status, StatusCode::CREATED, "{}", first.body);
        assert!(first.json()["command"].as_str().expect("a command").contains(first.json()["token"].as_str().expect("a token")));
        let again = make(&one, "k1", wanted()).await;
        assert_eq!((again.status, &again.body), (StatusCode::CREATED, &first.body));
        assert_eq!(again.header("idempotency-replayed"), "true");
        assert_problem(&make(&one, "k1", json!({"tenant": "acme"})).await, 422, "the same key for something else");
        assert_problem(&make(&one, "", wanted()).await, 400, "an empty key");
        assert_ne!(make(&one, "k2", wanted()).await.body, first.body, "another key is another token");
        assert_ne!(make(&other, "k1", wanted()).await.body, first.body, "another caller's key is another key");
        assert_eq!(site.get("/api/v1/tokens", &one).await.ids().len(), 3);
        // What failed is not remembered.
        assert_problem(&make(&one, "k3", json!({"tenant": "later"})).await, 404, "no such tenant");
        site.tenant("later").await;
        assert_eq!(make(&one, "k3", json!({"tenant": "later"})).await.status, StatusCode::CREATED);
    }

    async fn a_caller_who_hung_up_finds_what_came_of_it_by_the_same_key(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let operator = site.token(Role::Operator, None).await;
        for waits in 0.. {
            let key = format!("after {waits} waits");
            let ask = || site.post_keyed("/api/v1/tokens", &operator, &key, json!({ "tenant": "acme" }));
            let answered = hung_up(ask(), waits).await.is_some();
            let mut again = ask().await;
            while again.status == StatusCode::CONFLICT {
                tokio::task::yield_now().await;
                again = ask().await;
            }
            assert_eq!(again.status, StatusCode::CREATED, "{}", again.body);
            let made = site.get("/api/v1/tokens?limit=500", &operator).await.ids().len();
            assert_eq!(made, waits + 1, "{key}");
            if answered {
                break;
            }
        }
    }

    async fn wrong_wishes_for_a_join_token_say_what_is_right(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let operator = site.token(Role::Operator, None).await;
        for (status, body) in [
            (422, json!({"tenant": "acme", "valid_for_seconds": 59})),
            (422, json!({"tenant": "acme", "valid_for_seconds": 2_592_001})),
            (422, json!({"tenant": "acme", "valid_for_seconds": -1})),
            (422, json!({"tenant": "acme", "name": "a b"})),
            (422, json!({"tenant": "acme", "kind": "printer"})),
            (404, json!({"tenant": "nobody"})),
        ] {
            assert_problem(&site.post("/api/v1/tokens", &operator, body.clone()).await, status, &body.to_string());
        }
        assert!(site.get("/api/v1/tokens", &operator).await.ids().is_empty());
    }

    async fn a_tenant_is_made_once(test: TestDatabase) {
        let site = Site::open(test).await;
        let admin = site.token(Role::Admin, None).await;
        let made = site.post("/api/v1/tenants", &admin, json!({"id": "acme", "name": "Acme GmbH"})).await;
        assert_eq!((made.status, &made.json()["name"]), (StatusCode::CREATED, &json!("Acme GmbH")));
        assert_problem(&site.post("/api/v1/tenants", &admin, json!({"id": "acme"})).await, 409, "again");
        assert_problem(&site.post("/api/v1/tenants", &admin, json!({"id": "b", "name": ""})).await, 422, "no name");
    }

    async fn a_node_shows_what_the_hub_knows(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let node = site.node("acme", "press").await;
        let viewer = site.token(Role::Viewer, None).await;
        let path = format!("/api/v1/nodes/{node}");
        let fresh = site.get(&path, &viewer).await.json();
        assert_eq!((&fresh["presence"]["state"], &fresh["engine"]["state"]), (&json!("never_seen"), &json!("unknown")));
        assert!(fresh["certificate"]["serial"].as_str().expect("a serial").len() > 8);

        site.connect(node);
        site.report(node, "web", ServiceHealth::Unhealthy);
        let shown = site.get(&path, &viewer).await.json();
        assert_eq!(shown["presence"]["state"], "online");
        assert_eq!(shown["host"]["hostname"], "host.example");
        let service = &shown["services"][0];
        assert_eq!((&service["stack"], &service["health"]), (&json!("shop"), &json!("unhealthy")));
        assert_eq!(shown["service_counts"]["unhealthy"], 1);

        assert_eq!(site.get("/api/v1/nodes?state=lost", &viewer).await.ids(), Vec::<String>::new());
        assert_eq!(site.get("/api/v1/nodes?q=HOST.EX", &viewer).await.ids(), [node.to_string()]);
        let range = site.get(&format!("{path}/history?metric=cpu.busy&from=2&to=1"), &viewer).await;
        assert_problem(&range, 422, "a range that ends before it starts");
    }

    async fn the_api_describes_itself_and_says_how_it_is(test: TestDatabase) {
        let site = Site::open(test).await;
        let get = async |path: &str| site.send(Request::get(path).body(Body::empty()).expect("a request")).await;
        let described = get("/api/v1/openapi.json").await;
        assert!(described.json()["paths"]["/api/v1/nodes/{node}"]["get"].is_object());
        assert_eq!(described.json()["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
        assert_eq!(get("/healthz").await.status, StatusCode::OK);
        assert_eq!(get("/readyz").await.body, "ready\n");
        assert!(get("/metrics").await.body.contains("hyperfactory_hub_sessions"));
        site.database.close().await;
        assert_problem(&get("/readyz").await, 503, "without its database");
    }
}
