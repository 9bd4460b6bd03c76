//! What somebody bound to a tenant asks for is read and written by connections bound to it: the database sees to it.

use axum::http::{Request, StatusCode};
use hyperfactory_hub::access::Role;
use serde_json::json;
use store::Engine;
use store::sqlx::{self, AnyConnection, AssertSqlSafe, Connection as _, Executor as _};
use store::testing::TestDatabase;

use crate::Site;

/// Blinds every connection that is not bound to a tenant: whatever still finds its rows is bound. Of credentials, it
/// sees those it must know people by.
async fn blind(test: &TestDatabase) {
    let mut owner = AnyConnection::connect(&test.url).await.expect("a connection");
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT tablename::text FROM pg_policies WHERE policyname = 'tenant' AND qual LIKE '%tenant)%' OR tablename = 'tenants'",
    )
    .fetch_all(&mut owner)
    .await
    .expect("policies");
    assert!(tables.len() >= 15, "{tables:?}");
    for table in tables {
        let owned = if table == "tenants" { "id" } else { "tenant" };
        let known = match table.as_str() {
            "api_tokens" => "role <> 'viewer'",
            "web_sessions" => "true",
            _ => "false",
        };
        let sql = format!(
            "ALTER POLICY tenant ON {table} USING ({owned} = current_setting('hyperfactory.tenant', true)
                OR (current_setting('hyperfactory.tenant', true) = '*' AND {known}))"
        );
        owner.execute(AssertSqlSafe(sql)).await.expect("altered");
    }
    owner.close().await.expect("closed");
}

#[tokio::test]
async fn whoever_is_bound_to_a_tenant_works_on_bound_connections_alone() {
    let test = TestDatabase::create(Engine::Postgres).await;
    let site = Site::open(&test).await;
    for id in ["acme", "zeta"] {
        site.tenant(id).await;
    }
    let node = site.node("acme", "press").await;
    site.node("zeta", "mill").await;
    let (admin, bound) = (site.token(Role::Admin, None).await, site.token(Role::Admin, Some("acme")).await);
    site.token(Role::Viewer, Some("acme")).await;
    let code = site.link(Role::Admin, Some("acme")).await;
    let signed_in = site.access.sign_in(&code, [192, 0, 2, 9].into(), crate::now()).await.expect("signed in");
    let mut owner = AnyConnection::connect(&test.url).await.expect("a connection");
    let alert = "INSERT INTO alerts (tenant, node, rule, subject, severity, message, opened_at)
        SELECT tenant, id, 'node.lost', '', 'critical', 'nothing heard', 0 FROM nodes WHERE tenant = 'acme'";
    let stream = "INSERT INTO streams (tenant, node, epoch, through, deleted_through, opened_at)
        SELECT tenant, id, 7, 0, 0, 0 FROM nodes WHERE tenant = 'acme'";
    for sql in [alert, stream] {
        assert_eq!(owner.execute(sql).await.expect("a row").rows_affected(), 1);
    }
    owner.close().await.expect("closed");
    let asked = json!({"action": "drain", "reason": "x", "target": {"nodes": [node.to_string()]}});
    let made = site.post("/api/v1/commands", &bound, asked.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let command = made.json()["commands"][0]["id"].as_str().expect("an id").to_owned();

    let rolled = json!({"command": {"action": "drain", "reason": "x", "target": {"nodes": [node.to_string()]}}, "waves": ["100%"]});
    let rollout = site.post("/api/v1/rollouts", &bound, rolled.clone()).await.json()["id"].to_string();
    // What is over stays as it is.
    let abort = async |rollout: &str| {
        site.post(&format!("/api/v1/rollouts/{rollout}/abort"), &bound, json!({"reason": "x"})).await
    };
    assert_eq!(abort(&rollout).await.status, StatusCode::OK);

    let lists = [
        "tenants",
        "tenants/acme",
        "tokens",
        "alerts",
        "api-tokens",
        "authorities",
        "audit?action=token.",
        "audit/export",
        "commands",
        &format!("commands/{command}"),
        "rollouts",
        &format!("rollouts/{rollout}"),
        &format!("rollouts/{rollout}/nodes"),
    ];
    let mut paths: Vec<String> = lists.iter().map(|path| format!("/api/v1/{path}")).collect();
    paths.push(format!("/api/v1/nodes/{node}/coverage"));
    let pages = ["/", "/tenants", "/tenants/acme", "/alerts", "/audit", "/join", &format!("/nodes/{node}"), "/trust"];
    let cookie = format!("hyperfactory_session={}", signed_in.cookie);
    let page = async |path: &str| {
        let request = Request::get(path).header("cookie", &cookie).body(axum::body::Body::empty());
        let answer = site.send(request.expect("a request")).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
        answer.body
    };
    let mut before = Vec::new();
    for path in &paths {
        let answer = site.get(path, &bound).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
        assert!(answer.body.contains("acme") || path.contains("coverage"), "{path}: {}", answer.body);
        before.push(answer.body);
    }
    assert!(before.last().expect("coverage").contains("epoch"));
    let marks = ["acme", "acme", "acme", "othing heard", "token.created", "acme", "othing heard", "acme"];
    for (path, mark) in pages.iter().zip(marks) {
        assert!(page(path).await.contains(mark), "{path}");
    }

    blind(&test).await;
    // Who is bound to nothing sees nothing now: the blindness is real.
    assert_eq!(site.get("/api/v1/tenants", &admin).await.ids(), [""; 0]);
    assert_eq!(site.get("/api/v1/audit", &admin).await.ids(), [""; 0]);
    for (path, before) in paths.iter().zip(before) {
        assert_eq!(site.get(path, &bound).await.body, before, "{path}");
    }
    for (path, mark) in pages.iter().zip(marks) {
        assert!(page(path).await.contains(mark), "{path}");
    }
    let made = site.post("/api/v1/commands", &bound, asked).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let made = site.post("/api/v1/rollouts", &bound, rolled).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(abort(&made.json()["id"].to_string()).await.status, StatusCode::OK);
    let cancelled = site.post(&format!("/api/v1/commands/{command}/cancel"), &bound, json!({"reason": "x"})).await;
    assert_eq!(
        (cancelled.status, &cancelled.json()["state"]),
        (StatusCode::OK, &json!("cancelled")),
        "{}",
        cancelled.body
    );
    let made = site.post("/api/v1/tokens", &bound, json!({"tenant": "acme"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let made = site.post("/api/v1/api-tokens", &bound, json!({"name": "x", "role": "viewer"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let path = format!("/api/v1/api-tokens/{}", made.json()["id"].as_str().expect("an id"));
    assert_eq!(site.call(axum::http::Method::DELETE, &path, &bound, None).await.status, StatusCode::NO_CONTENT);
    let key = pki::PrivateKey::generate().expect("a key").certificate_request().expect("a request");
    let key = data_encoding::BASE64.encode(&key);
    let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{key}\n-----END CERTIFICATE REQUEST-----\n");
    let asked = json!({"certificate_request": pem, "dns_names": ["redpanda"]});
    let made = site.post("/api/v1/tenants/acme/kafka/server-certificate", &bound, asked).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let thawed = site.post(&format!("/api/v1/nodes/{node}/unfreeze"), &bound, json!({})).await;
    assert!(thawed.status.is_success(), "{}", thawed.body);
    let path = format!("/api/v1/nodes/{node}/revoke");
    let revoked = site.post(&path, &bound, json!({"reason": "key_compromise"})).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT, "{}", revoked.body);
    let path = format!("/api/v1/nodes/{node}");
    assert_eq!(site.call(axum::http::Method::DELETE, &path, &bound, None).await.status, StatusCode::NO_CONTENT);
    // Denied, and written down: for its own tenant as well.
    assert_eq!(site.get("/api/v1/tenants/zeta", &bound).await.status, StatusCode::NOT_FOUND);
    let newest = site.get("/api/v1/audit?limit=1", &bound).await.json();
    assert_eq!(newest["items"][0]["action"], "access.refused");
    test.remove().await;
}
