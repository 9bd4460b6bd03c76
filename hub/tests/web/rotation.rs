//! Rotations over HTTP: who may begin and step them, what is shown, and the page for it.

use axum::http::{Method, StatusCode};
use hyperfactory_hub::access::Role;
use hyperfactory_hub::rotation::{Gauges, Rotations};
use serde_json::{Value, json};
use store::on_both_engines;

use crate::dashboard::{Browser, html};
use crate::{Site, now};

fn root() -> Value {
    json!({ "kind": "root", "reason": "the machine with the root goes" })
}

on_both_engines! {
    async fn a_rotation_goes_step_by_step_and_a_step_is_taken_once(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        for name in ["one", "two", "three"] {
            site.node("acme", name).await;
        }
        let admin = site.token(Role::Admin, None).await;
        let begun = site.post("/api/v1/rotations", &admin, root()).await;
        assert_eq!(begun.status, StatusCode::CREATED, "{}", begun.body);
        let begun = begun.json();
        let path = format!("/api/v1/rotations/{}", begun["id"]);
        assert_eq!((begun["phase"].as_str(), begun["what"].as_str()), (Some("prepare"), Some("the fleet root")));
        assert_eq!((&begun["forward"]["to"], &begun["forward"]["ready"], &begun["back"]["to"]), (&json!("trust"), &json!(true), &json!("aborted")));
        assert_eq!(site.post("/api/v1/rotations", &admin, root()).await.status, StatusCode::CONFLICT);

        let advance = format!("{path}/advance");
        let trust = site.post(&advance, &admin, json!({ "from": "prepare" })).await.json();
        assert_eq!((trust["phase"].as_str(), trust["forward"]["missing_count"].as_u64()), (Some("trust"), Some(3)));
        let twice = site.post(&advance, &admin, json!({ "from": "prepare" })).await;
        assert!(twice.status == StatusCode::CONFLICT && twice.body.contains("somebody was faster"), "{}", twice.body);
        let refused = site.post(&advance, &admin, json!({ "from": "trust" })).await;
        assert_eq!(refused.status, StatusCode::CONFLICT);
        for part in ["3 not ready", "one of acme", "--leave 3"] {
            assert!(refused.body.contains(part), "{part}: {}", refused.body);
        }
        let page = site.get(&format!("{path}/missing?limit=2"), &admin).await.json();
        assert_eq!(page["items"].as_array().map(Vec::len), Some(2));
        assert!(page["items"][0]["why"].as_str().is_some_and(|why| why.contains("has not said")), "{page}");
        let cursor = page["next_cursor"].as_str().expect("more");
        let rest = site.get(&format!("{path}/missing?limit=2&cursor={cursor}"), &admin).await.json();
        assert_eq!((rest["items"].as_array().map(Vec::len), rest.get("next_cursor")), (Some(1), None));

        let issue = site.post(&advance, &admin, json!({ "from": "trust", "leave": 3 })).await.json();
        assert_eq!((issue["phase"].as_str(), issue["steps"][2]["left_behind"].as_u64()), (Some("issue"), Some(3)));
        let back = site.post(&format!("{path}/back"), &admin, json!({ "from": "issue" })).await.json();
        assert_eq!(back["phase"], "trust");
        let list = site.get("/api/v1/rotations?state=open", &admin).await;
        assert_eq!(list.ids(), [begun["id"].to_string()]);

        for (path, body) in [
            (&*advance, json!({ "from": "nowhere" })), (&advance, json!({ "from": "trust", "leave": -1 })),
            (&advance, json!({})), (&advance, json!({ "from": "trust", "renew_within_seconds": 1e12 })),
            ("/api/v1/rotations", json!({ "kind": "web", "reason": "x" })),
            ("/api/v1/rotations", json!({ "kind": "nodes", "reason": "x" })),
            ("/api/v1/rotations", json!({ "kind": "root", "tenant": "acme", "reason": "x" })),
            ("/api/v1/rotations", json!({ "kind": "kafka", "tenant": "A B", "reason": "x" })),
            ("/api/v1/rotations", json!({ "kind": "kafka", "tenant": "acme", "reason": "" })),
        ] {
            let answer = site.post(path, &admin, body.clone()).await;
            assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {}", answer.body);
        }
        for path in ["/api/v1/rotations/99", "/api/v1/rotations/x", "/api/v1/rotations/99/missing"] {
            assert_eq!(site.get(path, &admin).await.status, StatusCode::NOT_FOUND, "{path}");
        }
        assert_eq!(site.get("/api/v1/rotations?state=soon", &admin).await.status, StatusCode::BAD_REQUEST);
    }

    async fn who_is_bound_to_a_tenant_rotates_its_kafka_root_and_nothing_that_takes_the_fleets_key(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("zeta").await;
        let fleet = site.token(Role::Admin, None).await;
        let of_root = site.post("/api/v1/rotations", &fleet, root()).await.json()["id"].to_string();
        let (admin, operator) = (site.token(Role::Admin, Some("acme")).await, site.token(Role::Operator, None).await);
        let kafka = |tenant: &str| json!({ "kind": "kafka", "tenant": tenant, "reason": "a laptop is lost" });
        let begun = site.post("/api/v1/rotations", &admin, kafka("acme")).await;
        assert_eq!(begun.status, StatusCode::CREATED, "{}", begun.body);
        let id = begun.json()["id"].to_string();
        let nodes = json!({ "kind": "nodes", "tenant": "acme", "reason": "x" });
        for (token, body, status) in [
            (&admin, kafka("zeta"), 404), (&admin, nodes, 403), (&admin, root(), 403), (&operator, kafka("zeta"), 403),
        ] {
            let answer = site.post("/api/v1/rotations", token, body.clone()).await;
            assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.body);
        }
        assert_eq!(site.get("/api/v1/rotations", &admin).await.ids(), std::slice::from_ref(&id));
        assert_eq!(site.get(&format!("/api/v1/rotations/{of_root}"), &admin).await.status, StatusCode::NOT_FOUND);
        let step = json!({ "from": "prepare" });
        let another = site.post(&format!("/api/v1/rotations/{of_root}/advance"), &admin, step.clone()).await;
        assert_eq!(another.status, StatusCode::NOT_FOUND);
        let refused = site.post(&format!("/api/v1/rotations/{id}/advance"), &operator, step.clone()).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        let advance = format!("/api/v1/rotations/{id}/advance");
        let trust = site.post(&advance, &admin, step).await.json();
        assert_eq!((trust["phase"].as_str(), &trust["forward"]["confirm_brokers"]), (Some("trust"), &json!(true)));
        let blind = site.post(&advance, &admin, json!({ "from": "trust" })).await;
        assert!(blind.status == StatusCode::CONFLICT && blind.body.contains("--brokers-updated"), "{}", blind.body);
        let issue = site.post(&advance, &admin, json!({ "from": "trust", "brokers_updated": true })).await.json();
        assert_eq!(issue["phase"], "issue");
    }

    async fn the_page_shows_where_it_stands_and_takes_the_steps(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.node("acme", "press-7").await;
        let browser = Browser::sign_in(&site, Role::Admin, None).await;
        assert!(browser.get("/trust").await.body.contains("None is under way"));
        let fields = [("kind", "root"), ("tenant", ""), ("reason", "a new machine")];
        let begun = browser.post("/trust", "/trust/rotations", &fields).await;
        assert_eq!(begun.status, StatusCode::SEE_OTHER, "{}", begun.body);
        let page = begun.header("location").to_owned();
        let shown = browser.get(&page).await.body;
        for part in ["Rotation of the fleet root", "a new machine", "All are ready for: Both are trusted", "Every node is told to trust the new root", "Abort"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(browser.get("/trust").await.body.contains(&page), "linked");
        let mut live = browser.live(&page).await;
        let advance = format!("{page}/advance");
        let stepped = browser.post(&page, &advance, &[("from", "prepare")]).await;
        assert_eq!((stepped.status, stepped.header("location")), (StatusCode::SEE_OTHER, &*page));
        let update = live.until("press-7").await;
        assert!(html(&update, "view").is_some_and(|view| view.contains("1 not ready for: The new one issues")), "{update}");
        let refused = browser.post(&page, &advance, &[("from", "trust"), ("leave", "0")]).await;
        assert!(refused.status == StatusCode::CONFLICT && refused.body.contains("press-7 of acme"), "{}", refused.body);
        browser.post(&page, &advance, &[("from", "trust"), ("leave", "1"), ("renew_within", "60")]).await;
        assert!(browser.get(&page).await.body.contains("Certificates of the old one are good"));

        let viewer = Browser::sign_in(&site, Role::Viewer, None).await;
        let seen = viewer.get(&page).await;
        assert!(seen.status == StatusCode::OK && !seen.body.contains("/advance"), "nothing to press");
        let stranger = Browser::sign_in(&site, Role::Admin, Some("acme")).await;
        assert_eq!(stranger.get(&page).await.status, StatusCode::NOT_FOUND);
        let away = site.call(Method::POST, &advance, "", None).await;
        assert_ne!(away.status, StatusCode::OK);
    }

    async fn what_is_under_way_is_counted(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.node("acme", "press-7").await;
        let registry = prometheus::Registry::new();
        let gauges = Gauges::new(&registry).expect("gauges");
        let rotations: &Rotations = &site.rotations;
        let text = async || {
            gauges.look(rotations, now()).await.expect("looked");
            prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text")
        };
        assert!(!text().await.contains("rotation_phase"));
        let admin = site.token(Role::Admin, None).await;
        let id = site.post("/api/v1/rotations", &admin, root()).await.json()["id"].to_string();
        site.post(&format!("/api/v1/rotations/{id}/advance"), &admin, json!({ "from": "prepare" })).await;
        let shown = text().await;
        assert!(shown.contains("rotation_phase{kind=\"root\",tenant=\"\"} 2"), "{shown}");
        assert!(shown.contains("rotation_missing{kind=\"root\",tenant=\"\"} 1"), "{shown}");
    }
}
