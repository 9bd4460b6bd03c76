//! Why: acts that are not done without a reason, and where it stands.

use axum::http::{Method, StatusCode};
use hyperfactory_hub::access::Role;
use pki::OperatorKey;
use serde_json::{Value, json};
use store::on_both_engines;

use crate::Site;

const KEYS: &str = "/api/v1/operator-keys";

on_both_engines! {
    async fn without_a_reason_no_key_is_registered_or_revoked_and_no_label_changed(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let labels = format!("/api/v1/nodes/{}/labels", site.node("acme", "press").await);
        let admin = site.token(Role::Admin, None).await;
        let register = || json!({ "name": "ann", "public_key": OperatorKey::generate().expect("a key").public().to_string() });
        let because = |mut body: Value, reason: &str| {
            body["reason"] = json!(reason);
            body
        };
        let made = site.post(KEYS, &admin, because(register(), "ann is on call")).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let id = made.json()["id"].as_str().expect("an id").to_owned();
        let revoke = format!("{KEYS}/{id}/revoke");
        for (method, path, body) in [
            (Method::POST, KEYS, register()),
            (Method::POST, &revoke, json!({})),
            (Method::PUT, &labels, json!({ "labels": { "ring": "canary" } })),
        ] {
            for body in [body.clone(), because(body.clone(), " \t"), because(body, "two\nlines")] {
                let answer = site.call(method.clone(), path, &admin, Some(body)).await;
                let said = answer.json()["detail"].as_str().map(str::to_owned).unwrap_or_default();
                assert!(answer.status == 422 && said.contains("`reason` is one line of 1 to 500"), "{path}: {}", answer.body);
            }
        }
        let keys = site.get(KEYS, &admin).await.json();
        assert_eq!(keys["items"].as_array().map(Vec::len), Some(1), "{keys}");
        assert_eq!((&keys["items"][0]["revoked_at"], &site.get(&labels, &admin).await.json()["labels"]), (&Value::Null, &json!({})));

        let canary = because(json!({ "labels": { "ring": "canary" } }), "it is spare");
        let labelled = site.call(Method::PUT, &labels, &admin, Some(canary)).await;
        assert_eq!((labelled.status, labelled.json()), (StatusCode::OK, json!({ "labels": { "ring": "canary" } })));
        let revoked = site.post(&revoke, &admin, json!({ "reason": "ann has left" })).await;
        assert_eq!(revoked.status, StatusCode::NO_CONTENT, "{}", revoked.body);
        for (action, reason) in [
            ("operator_key.registered", "ann is on call"),
            ("operator_key.revoked", "ann has left"),
            ("node.labelled", "it is spare"),
        ] {
            let audit = site.get(&format!("/api/v1/audit?action={action}"), &admin).await.json();
            let reasons: Vec<&Value> = audit["items"].as_array().expect("items").iter().map(|one| &one["detail"]["reason"]).collect();
            assert_eq!(reasons, [reason], "{action}");
        }
        let openapi = site.get("/api/v1/openapi.json", &admin).await.json();
        for schema in ["NewOperatorKey", "OperatorKeyRevocation", "NewLabels"] {
            let required = &openapi["components"]["schemas"][schema]["required"];
            assert!(required.as_array().is_some_and(|required| required.contains(&json!("reason"))), "{schema}: {required}");
        }
    }
}
