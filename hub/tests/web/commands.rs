//! Commands over the API and from the dashboard: who may ask for what, and what is said before it is done.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use hyperfactory_hub::access::Role;
use protocol::message::ServiceHealth;
use serde_json::{Value, json};
use store::on_both_engines;

use crate::dashboard::Browser;
use crate::{Answer, Site};

const PATH: &str = "/api/v1/commands";

fn restart(target: Value) -> Value {
    json!({ "action": "service.restart", "stack": "shop", "service": "web", "reason": "it hangs", "target": target })
}

/// A problem with this status that speaks of `word`.
fn says(answer: &Answer, status: u16, word: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
    assert!(answer.json()["detail"].as_str().is_some_and(|said| said.contains(word)), "{word}: {}", answer.body);
}

on_both_engines! {
    async fn a_command_is_previewed_asked_for_once_listed_and_taken_back(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        site.connect(press);
        let operator = site.token(Role::Operator, Some("acme")).await;
        let preview = site.post(&format!("{PATH}/preview"), &operator, restart(json!({ "tenant": "acme" }))).await;
        assert_eq!(preview.status, StatusCode::OK, "{}", preview.body);
        let shown = preview.json();
        assert_eq!((&shown["nodes"], &shown["what"]), (&json!(2), &json!("restart the service web of shop")));
        let online = |name: &str| {
            let commands = shown["commands"].as_array().expect("nodes").iter();
            commands.clone().find(|one| one["name"] == name).expect("the node")["online"].clone()
        };
        assert_eq!((online("press"), online("mill")), (json!(true), json!(false)));
        assert_eq!(site.get(PATH, &operator).await.ids(), [""; 0], "a preview does nothing");

        let ask = async |key: &str, body: Value| {
            let request = Request::post(PATH)
                .header("authorization", format!("Bearer {operator}"))
                .header("content-type", "application/json")
                .header("idempotency-key", key);
            site.send(request.body(Body::from(body.to_string())).expect("a request")).await
        };
        let mut expecting = restart(json!({ "tenant": "acme" }));
        expecting["expected_nodes"] = json!(3);
        says(&ask("k0", expecting.clone()).await, 409, "Nothing was done");
        expecting["expected_nodes"] = json!(2);
        let made = ask("k1", expecting.clone()).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let again = ask("k1", expecting).await;
        assert_eq!((again.status, again.json()), (StatusCode::CREATED, made.json()));
        assert_eq!(again.header("idempotency-replayed"), "true");
        says(&ask("k1", restart(json!({ "nodes": [mill.to_string()] }))).await, 422, "Idempotency-Key");

        let ids = site.get(PATH, &operator).await.ids();
        assert_eq!(ids.len(), 2);
        let first = site.get(&format!("{PATH}?limit=1"), &operator).await;
        let next = first.json()["next_cursor"].as_str().expect("a next page").to_owned();
        let second = site.get(&format!("{PATH}?limit=1&cursor={next}"), &operator).await;
        assert_eq!([first.ids(), second.ids()].concat(), ids);
        assert_eq!(site.get(&format!("{PATH}?node={mill}&state=queued"), &operator).await.ids().len(), 1);
        let one = site.get(&format!("{PATH}/{}", ids[0]), &operator).await.json();
        assert_eq!((&one["state"], &one["reason"], &one["output"]), (&json!("queued"), &json!("it hangs"), &json!("")));
        let cancelled = site.post(&format!("{PATH}/{}/cancel", ids[0]), &operator, json!({})).await;
        assert_eq!((cancelled.status, &cancelled.json()["state"]), (StatusCode::OK, &json!("cancelled")));
    }

    async fn nodes_are_meant_by_their_labels(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        let operator = site.token(Role::Operator, Some("acme")).await;
        let label = async |node, labels: Value| {
            let body = Some(json!({ "labels": labels }));
            site.call(Method::PUT, &format!("/api/v1/nodes/{node}/labels"), &operator, body).await
        };
        assert_eq!(label(press, json!({ "ring": "canary", "site": "north" })).await.status, StatusCode::OK);
        assert_eq!(label(mill, json!({ "ring": "rest", "site": "north" })).await.status, StatusCode::OK);
        let meant = async |labels: Value| {
            let shown = site.post(&format!("{PATH}/preview"), &operator, restart(json!({ "labels": labels }))).await.json();
            let commands = shown["commands"].as_array().expect("nodes").iter();
            commands.map(|one| one["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(meant(json!(["ring=canary"])).await, ["press"]);
        assert_eq!(meant(json!(["site=north"])).await, ["mill", "press"]);
        assert_eq!(meant(json!(["site=north", "ring=rest"])).await, ["mill"]);
        assert_eq!(label(press, json!({ "ring": "rest" })).await.status, StatusCode::OK);
        assert_eq!(meant(json!(["ring=canary"])).await, [""; 0]);
        let shown = site.get(&format!("/api/v1/nodes/{press}/labels"), &operator).await.json();
        assert_eq!(shown["labels"], json!({ "ring": "rest" }));
        says(&label(press, json!({ "a b": "c" })).await, 422, "name=value");
        let viewer = site.token(Role::Viewer, Some("acme")).await;
        let audit = site.get("/api/v1/audit?action=node.labelled", &viewer).await.json();
        assert_eq!(audit["items"].as_array().expect("items").len(), 3);
    }

    async fn who_may_not_and_what_makes_no_sense_is_refused_and_nothing_is_done(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("zeta").await;
        let (press, other) = (site.node("acme", "press").await, site.node("zeta", "mill").await);
        let operator = site.token(Role::Operator, Some("acme")).await;
        let viewer = site.token(Role::Viewer, None).await;
        let target = || json!({ "nodes": [press.to_string()] });
        for path in [PATH.to_owned(), format!("{PATH}/preview")] {
            says(&site.post(&path, &viewer, restart(target())).await, 403, "operator");
            says(&site.post(&path, &operator, restart(json!({ "nodes": [other.to_string()] }))).await, 404, "no node");
            says(&site.post(&path, &operator, restart(json!({ "tenant": "zeta" }))).await, 404, "zeta");
            says(&site.post(&path, &operator, restart(json!({}))).await, 422, "target");
            says(&site.post(&path, &operator, restart(json!({ "all": true, "nodes": [press.to_string()] }))).await, 422, "target");
            let wrong = |action: &str| json!({ "action": action, "target": target() });
            says(&site.post(&path, &operator, wrong("rm -rf /")).await, 422, "service.restart");
            says(&site.post(&path, &operator, wrong("service.restart")).await, 422, "stack");
            let mut hostile = restart(target());
            hostile["service"] = json!("web; reboot");
            says(&site.post(&path, &operator, hostile).await, 422, "service is not usable");
        }
        says(&site.post(PATH, &operator, restart(json!({ "query": "nobody" }))).await, 422, "no node is meant");
        let all = site.post(&format!("{PATH}/preview"), &operator, restart(json!({ "all": true }))).await.json();
        assert_eq!((&all["nodes"], &all["commands"][0]["name"]), (&json!(1), &json!("press")), "its own alone");

        let admin = site.token(Role::Admin, None).await;
        let made = site.post(PATH, &admin, restart(json!({ "all": true }))).await.json();
        assert_eq!(made["nodes"], json!(2));
        assert_eq!(site.get(PATH, &operator).await.ids().len(), 1);
        let theirs = made["commands"].as_array().expect("commands").iter().find(|one| one["tenant"] == "zeta");
        let theirs = theirs.expect("zeta's")["id"].as_str().expect("an id");
        says(&site.get(&format!("{PATH}/{theirs}"), &operator).await, 404, "no command");
        says(&site.post(&format!("{PATH}/{theirs}/cancel"), &operator, json!({})).await, 404, "no command");
        says(&site.post(&format!("{PATH}/{theirs}/cancel"), &viewer, json!({})).await, 403, "operator");
        let revoke = json!({ "reason": "unspecified" });
        site.post(&format!("/api/v1/nodes/{press}/revoke"), &operator, revoke).await;
        says(&site.post(PATH, &operator, restart(target())).await, 409, "revoked");
    }

    async fn the_dashboard_says_what_will_happen_before_it_does_it(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let node = site.node("acme", "press").await;
        site.connect(node);
        site.report(node, "web", ServiceHealth::Healthy);
        let browser = Browser::sign_in(&site, Role::Operator, Some("acme")).await;
        let page = browser.get(&format!("/nodes/{node}")).await.body;
        let form = format!("/nodes/{node}/command?action=service.restart&amp;stack=shop&amp;service=web");
        assert!(page.contains(&form), "{page}");
        assert!(page.contains("Nothing has been asked of this node"), "{page}");
        let form = form.replace("&amp;", "&");
        let asked = browser.get(&form).await;
        assert_eq!(asked.status, StatusCode::OK, "{}", asked.body);
        assert!(asked.body.contains("Restart the service web of shop?") && asked.body.contains("press"), "{}", asked.body);
        let fields = [
            ("action", "service.restart"),
            ("stack", "shop"),
            ("service", "web"),
            ("once", "1"),
            ("reason", "it hangs"),
        ];
        let sent = browser.post(&form, &format!("/nodes/{node}/command"), &fields).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
        let command = sent.header("location").to_owned();
        let twice = browser.post(&form, &format!("/nodes/{node}/command"), &fields).await;
        assert_eq!(twice.header("location"), command, "sent twice, done once");
        let shown = browser.get(&command).await.body;
        assert!(shown.contains("Waits for the node") && shown.contains("it hangs"), "{shown}");
        let mut live = browser.live(&command).await;
        live.until("Waits for the node").await;
        let sent = browser.post(&command, &format!("{command}/cancel"), &[]).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
        live.until("Taken back").await;
        let page = browser.get(&format!("/nodes/{node}")).await.body;
        assert!(page.contains("Taken back") && page.contains(&command), "{page}");

        let viewer = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert!(!viewer.get(&format!("/nodes/{node}")).await.body.contains("command?action="));
        assert_eq!(viewer.get(&form).await.status, StatusCode::FORBIDDEN);
        let stranger = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert!(stranger.get(&command).await.body.contains("it hangs"), "to be seen");
    }
}
