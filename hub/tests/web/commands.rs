//! Commands over the API and from the dashboard: who may ask for what, and what is said before it is done.

use axum::http::{Method, StatusCode};
use hyperfactory_hub::access::Role;
use protocol::NodeKind;
use protocol::message::ServiceHealth;
use serde_json::{Value, json};
use store::on_both_engines;

use crate::dashboard::{Browser, hidden};
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

        let ask = async |key: &str, body: Value| site.post_keyed(PATH, &operator, key, body).await;
        let mut expecting = restart(json!({ "tenant": "acme" }));
        let other = site.post(&format!("{PATH}/preview"), &operator, restart(json!({ "nodes": [press.to_string()] }))).await;
        expecting["expected"] = other.json()["digest"].clone();
        says(&ask("k0", expecting.clone()).await, 409, "Nothing was done");
        expecting["expected"] = shown["digest"].clone();
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
        let request = made.json()["request"].as_str().expect("an id").to_owned();
        let before = format!("limit=1&cursor={next}");
        for (which, count) in [
            (format!("node={mill}"), 1),
            (format!("node={mill}&state=queued"), 1),
            (format!("node={mill}&state=failed"), 0),
            (format!("request={request}"), 2),
            (format!("request={request}&tenant=acme&node={press}&state=queued"), 1),
            (format!("request={request}&state=queued&{before}"), 1),
            ("request=another".into(), 0),
            ("tenant=acme&request=".into(), 2),
        ] {
            assert_eq!(site.get(&format!("{PATH}?{which}"), &operator).await.ids().len(), count, "{which}");
        }
        let one = site.get(&format!("{PATH}/{}", ids[0]), &operator).await.json();
        assert_eq!((&one["state"], &one["reason"], &one["output"]), (&json!("queued"), &json!("it hangs"), &json!("")));
        let cancelled = site.post(&format!("{PATH}/{}/cancel", ids[0]), &operator, json!({ "reason": "not now" })).await;
        assert_eq!((cancelled.status, &cancelled.json()["state"]), (StatusCode::OK, &json!("cancelled")));
    }

    async fn what_was_done_is_told_again_whoever_would_be_meant_by_now(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        let operator = site.token(Role::Operator, Some("acme")).await;
        let mut counted = restart(json!({ "tenant": "acme" }));
        let preview = site.post(&format!("{PATH}/preview"), &operator, counted.clone()).await;
        counted["expected"] = preview.json()["digest"].clone();
        let asked = [
            ("counted", counted),
            ("named", restart(json!({ "nodes": [press.to_string(), mill.to_string()] }))),
            ("one", restart(json!({ "nodes": [press.to_string()] }))),
            ("found", restart(json!({ "query": "press" }))),
        ];
        let mut made = Vec::new();
        for (key, body) in &asked {
            let answer = site.post_keyed(PATH, &operator, key, body.clone()).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{key}: {}", answer.body);
            made.push(answer.json());
        }
        for name in ["oven", "kiln"] {
            site.node("acme", name).await;
        }
        let revoke = json!({ "reason": "unspecified" });
        site.post(&format!("/api/v1/nodes/{press}/revoke"), &operator, revoke).await;
        for ((key, body), made) in asked.iter().zip(&made) {
            let again = site.post_keyed(PATH, &operator, key, body.clone()).await;
            assert_eq!(again.status, StatusCode::CREATED, "{key}: {}", again.body);
            assert_eq!((again.json()["request"].clone(), again.header("idempotency-replayed")), (made["request"].clone(), "true"));
            assert_eq!(again.json()["commands"], made["commands"], "{key}");
            says(&site.post(PATH, &operator, body.clone()).await, if *key == "found" { 422 } else { 409 }, "");
        }
        // Under another key it is another request, and under the same key another request is none.
        says(&site.post_keyed(PATH, &operator, "new", asked[0].1.clone()).await, 409, "Nothing was done");
        says(&site.post_keyed(PATH, &operator, "counted", asked[1].1.clone()).await, 422, "Idempotency-Key");
        assert_eq!(site.get(PATH, &operator).await.ids().len(), 6);
    }

    async fn nodes_are_meant_by_their_labels(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        let operator = site.token(Role::Operator, Some("acme")).await;
        let label = async |node, labels: Value| {
            let body = Some(json!({ "labels": labels, "reason": "a test" }));
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
        says(&site.post(&format!("{PATH}/{theirs}/cancel"), &operator, json!({ "reason": "x" })).await, 404, "no command");
        says(&site.post(&format!("{PATH}/{theirs}/cancel"), &viewer, json!({ "reason": "x" })).await, 403, "operator");
        let revoke = json!({ "reason": "unspecified" });
        site.post(&format!("/api/v1/nodes/{press}/revoke"), &operator, revoke).await;
        says(&site.post(PATH, &operator, restart(target())).await, 409, "revoked");
    }

    async fn without_a_reason_nothing_is_asked_for_or_taken_back(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let press = site.node("acme", "press").await;
        let operator = site.token(Role::Operator, Some("acme")).await;
        let asked = site.post(PATH, &operator, restart(json!({ "nodes": [press.to_string()] }))).await.json();
        let cancel = format!("{PATH}/{}/cancel", asked["commands"][0]["id"].as_str().expect("an id"));
        let because = |reason: Option<String>, mut body: Value| {
            body.as_object_mut().expect("an object").remove("reason");
            if let Some(reason) = reason {
                body["reason"] = json!(reason);
            }
            body
        };
        for reason in [None, Some(String::new()), Some(" \t".into()), Some("two\nlines".into()), Some("x".repeat(501))] {
            for (path, body) in [
                (PATH, restart(json!({ "all": true }))),
                (&format!("{PATH}/preview"), restart(json!({ "all": true }))),
                (&cancel, json!({})),
            ] {
                says(&site.post(path, &operator, because(reason.clone(), body)).await, 422, "`reason` is one line of 1 to 500");
            }
        }
        let commands = site.get(PATH, &operator).await.json();
        let states: Vec<&Value> = commands["items"].as_array().expect("items").iter().map(|one| &one["state"]).collect();
        assert_eq!(states, ["queued"]);
        let audit = site.get("/api/v1/audit?action=command.", &operator).await.json();
        assert_eq!(audit["items"].as_array().map(Vec::len), Some(1), "{audit}");
        let openapi = site.get("/api/v1/openapi.json", &operator).await.json();
        for schema in ["CommandRequest", "Cancellation", "RolloutAct"] {
            let required = &openapi["components"]["schemas"][schema]["required"];
            assert!(required.as_array().is_some_and(|required| required.contains(&json!("reason"))), "{schema}: {required}");
        }
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
        let silent = fields.map(|(name, value)| (name, if name == "reason" { " " } else { value }));
        let refused = browser.post(&form, &format!("/nodes/{node}/command"), &silent).await;
        assert!(refused.status == 422 && refused.body.contains("Say why"), "{}", refused.body);
        let sent = browser.post(&form, &format!("/nodes/{node}/command"), &fields).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
        let command = sent.header("location").to_owned();
        let twice = browser.post(&form, &format!("/nodes/{node}/command"), &fields).await;
        assert_eq!(twice.header("location"), command, "sent twice, done once");
        let shown = browser.get(&command).await.body;
        assert!(shown.contains("Waits for the node") && shown.contains("it hangs"), "{shown}");
        let mut live = browser.live(&command).await;
        live.until("Waits for the node").await;
        let silent = browser.post(&command, &format!("{command}/cancel"), &[]).await;
        assert_eq!(silent.status, 422, "{}", silent.body);
        let sent = browser.post(&command, &format!("{command}/cancel"), &[("reason", "not now")]).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
        live.until("Taken back").await;
        let page = browser.get(&format!("/nodes/{node}")).await.body;
        assert!(page.contains("Taken back") && page.contains(&command), "{page}");
        let audit = browser.get("/audit?action=command.").await.body;
        assert!(audit.contains("reason: not now"), "{audit}");
        assert!(audit.contains(&format!("href=\"{command}\"")) && audit.contains("href=\"/requests/"), "{audit}");

        // What the stack and the owner declare.
        assert!(page.contains("action=backup&amp;stack=shop"), "{page}");
        let script = format!("/nodes/{node}/command?action=script");
        assert!(browser.get(&script).await.body.contains("name=\"script\""));
        let fields = [("action", "script"), ("script", "count"), ("once", "2"), ("reason", "stocktaking")];
        let sent = browser.post(&script, &format!("/nodes/{node}/command"), &fields).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
        assert!(browser.get(sent.header("location")).await.body.contains("Run the script count"));

        // How often it measures, within what agents take.
        let often = format!("/nodes/{node}/command?action=telemetry.interval");
        assert!(page.contains(&often), "{page}");
        let asked = browser.get(&often).await.body;
        assert!(asked.contains("name=\"interval\"") && asked.contains("min=\"0.1\" max=\"3600\""), "{asked}");
        let measure = async |interval: &str, once: &str| {
            let fields = [("action", "telemetry.interval"), ("interval", interval), ("once", once), ("reason", "a meter")];
            browser.post(&often, &format!("/nodes/{node}/command"), &fields).await
        };
        let sent = measure("0.5", "3").await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
        assert!(browser.get(sent.header("location")).await.body.contains("Measure every 0.5 s"));
        for wrong in ["0.01", "3601", "-1", "often", ""] {
            assert_eq!(measure(wrong, "4").await.status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong:?}");
        }
        let audit = browser.get("/audit?action=command.requested").await.body;
        assert!(audit.contains("telemetry.interval") && audit.contains("a meter"), "{audit}");

        let viewer = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert!(!viewer.get(&format!("/nodes/{node}")).await.body.contains("command?action="));
        assert_eq!(viewer.get(&form).await.status, StatusCode::FORBIDDEN);
        let stranger = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert!(stranger.get(&command).await.body.contains("it hangs"), "to be seen");
    }

    async fn all_that_a_node_was_told_is_there_page_by_page(test: TestDatabase) {
        const COMMANDS: usize = 125;
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (press, other) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        let operator = site.token(Role::Operator, None).await;
        for _ in 0..COMMANDS {
            let asked = json!({ "action": "drain", "reason": "a move", "target": { "nodes": [press.to_string()] } });
            assert_eq!(site.post(PATH, &operator, asked).await.status, StatusCode::CREATED);
        }
        let browser = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        let (mut page, mut seen, mut sizes) = (format!("/nodes/{press}"), Vec::new(), Vec::new());
        loop {
            let shown = browser.get(&page).await;
            assert_eq!(shown.status, StatusCode::OK, "{}", shown.body);
            let ids = shown.body.split("<tr id=\"c-").skip(1).filter_map(|rest| rest.split('"').next());
            let ids: Vec<String> = ids.map(str::to_owned).collect();
            sizes.push(ids.len());
            seen.extend(ids);
            let older = format!("/nodes/{press}/commands?before=");
            let Some(at) = shown.body.find(&format!("href=\"{older}")) else { break };
            page = shown.body[at + 6..].split('"').next().expect("a link").to_owned();
        }
        assert_eq!(sizes, [20, 100, 5]);
        assert!(seen.is_sorted_by(|a, b| a > b), "newest first, each once");
        assert!(!browser.get(&format!("/nodes/{other}")).await.body.contains("commands?before="));
        assert_eq!(browser.get(&format!("/nodes/{press}/commands?before=x")).await.status, StatusCode::BAD_REQUEST);
    }

    async fn of_a_large_request_all_is_taken_back(test: TestDatabase) {
        const NODES: usize = 101;
        let site = Site::open(test).await;
        site.tenant("acme").await;
        for number in 0..NODES {
            site.node("acme", &format!("press-{number}")).await;
        }
        let asked = json!({ "action": "drain", "reason": "a move", "target": { "all": true } });
        let made = site.post(PATH, &site.token(Role::Operator, None).await, asked).await.json();
        assert_eq!(made["nodes"], json!(NODES));
        let request = format!("/requests/{}", made["request"].as_str().expect("an id"));
        let browser = Browser::sign_in(&site, Role::Operator, None).await;
        let taken = browser.post(&request, &format!("{request}/cancel"), &[("reason", "not now")]).await;
        assert_eq!(taken.status, StatusCode::SEE_OTHER, "{}", taken.body);
        let shown = browser.get(&request).await.body;
        assert!(shown.contains("0 of 101 done<") && !shown.contains("under way"), "{shown}");
        let audit = site.get("/api/v1/audit?action=command.cancelled", &site.token(Role::Viewer, None).await).await.json();
        let of_each = |what: &str| audit["items"].as_array().expect("items").iter().map(|one| one["detail"][what].clone()).collect::<Vec<_>>();
        assert_eq!((of_each("nodes"), of_each("reason")), (vec![json!(NODES)], vec![json!("not now")]), "in one act");
        assert_eq!(of_each("commands")[0].as_array().map(Vec::len), Some(20), "a few are named");
        let page = browser.get("/audit").await.body;
        assert_eq!(page.matches(&format!("href=\"{request}\"")).count(), 2, "asked for, and taken back: {page}");
    }

    async fn a_request_is_taken_back_as_far_as_the_caller_sees_it(test: TestDatabase) {
        let site = Site::open(test).await;
        for tenant in ["acme", "zeta"] {
            site.tenant(tenant).await;
        }
        site.node("acme", "press").await;
        let (mill, _) = (site.node("acme", "mill").await, site.node("zeta", "oven").await);
        let (fleet, zeta) = (site.token(Role::Operator, None).await, site.token(Role::Operator, Some("zeta")).await);
        let asked = json!({ "action": "drain", "reason": "a move", "target": { "all": true } });
        let made = site.post(PATH, &fleet, asked.clone()).await.json();
        let cancel = format!("/api/v1/requests/{}/cancel", made["request"].as_str().expect("an id"));
        let not_now = || json!({ "reason": "not now" });
        says(&site.post(&cancel, &site.token(Role::Viewer, None).await, not_now()).await, 403, "operator");
        says(&site.post(&cancel, &fleet, json!({})).await, 422, "`reason` is one line of 1 to 500");
        says(&site.post("/api/v1/requests/nothing/cancel", &fleet, not_now()).await, 404, "there is no request \"nothing\"");
        let mut named = asked;
        named["target"] = json!({ "nodes": [mill.to_string()] });
        let theirs = site.post(PATH, &fleet, named).await.json();
        let theirs = format!("/api/v1/requests/{}/cancel", theirs["request"].as_str().expect("an id"));
        says(&site.post(&theirs, &zeta, not_now()).await, 404, "there is no request");

        let taken = async |token: &str| site.post(&cancel, token, not_now()).await.json();
        assert_eq!(taken(&zeta).await, json!({ "cancelled": 1, "told": 0 }));
        assert_eq!(taken(&fleet).await, json!({ "cancelled": 2, "told": 0 }));
        assert_eq!(taken(&fleet).await, json!({ "cancelled": 0, "told": 0 }), "once");
        let audit = site.get("/api/v1/audit?action=command.cancelled", &fleet).await.json();
        let tenants = audit["items"].as_array().expect("items").iter().map(|one| (one["tenant"].clone(), one["detail"]["nodes"].clone()));
        assert_eq!(tenants.collect::<Vec<_>>(), [(json!("acme"), json!(2)), (json!("zeta"), json!(1))]);
        let commands = site.get(&format!("{PATH}?state=cancelled"), &fleet).await.json();
        let messages = commands["items"].as_array().expect("items").iter().map(|one| one["message"].clone());
        assert_eq!(messages.collect::<Vec<_>>(), ["taken back: not now"; 3]);
    }

    async fn a_selection_of_nodes_is_named_before_it_is_told_and_shown_node_by_node(test: TestDatabase) {
        let site = Site::open(test).await;
        for tenant in ["acme", "zeta"] {
            site.tenant(tenant).await;
        }
        let (press, mill) = (site.node("acme", "press").await, site.node("zeta", "mill").await);
        let (oven, bridge) = (site.node("acme", "oven").await, site.node_of(NodeKind::Bridge, "acme", "line").await);
        site.connect(press);
        site.report(press, "web", ServiceHealth::Healthy);
        let browser = Browser::sign_in(&site, Role::Operator, None).await;
        let fleet = browser.get("/").await.body;
        let boxes = |page: &str| page.matches(r#"name="node""#).count();
        let operator = site.token(Role::Operator, None).await;
        let asked = json!({ "action": "drain", "reason": "a move", "target": { "nodes": [bridge.to_string()] } });
        let refused = site.post("/api/v1/commands", &operator, asked).await;
        assert!(refused.status == 409 && refused.body.contains("is a bridge"), "{}", refused.body);
        let page = browser.get(&format!("/nodes/{bridge}")).await.body;
        assert!(!page.contains("command?action=") && !page.contains("Services") && !page.contains("CPU"), "{page}");
        let page = browser.get(&format!("/nodes/{oven}")).await.body;
        assert!(page.contains("command?action=") && page.contains("Services") && page.contains("CPU"), "{page}");
        assert_eq!(boxes(&fleet), 3, "a bridge is told nothing: {fleet}");
        assert!(!fleet.contains(&format!(r#"value="{bridge}""#)), "{fleet}");

        // What is missing is asked for, of what the nodes have.
        let two = [("node", press.to_string()), ("node", mill.to_string())];
        let with = |more: &[(&'static str, &str)]| {
            let mut fields: Vec<(&str, String)> = two.to_vec();
            fields.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
            fields
        };
        let post = async |path: &str, fields: &[(&str, String)]| {
            let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            browser.post("/", path, &fields).await
        };
        let asked = post("/selection", &with(&[("action", "service.restart")])).await;
        assert_eq!(asked.status, StatusCode::OK, "{}", asked.body);
        assert!(asked.body.contains("shop/web · on 1 of 2") && asked.body.contains("of acme (1) and zeta (1)"), "{}", asked.body);
        let said = post("/selection", &with(&[("action", "service.restart"), ("of", "shop/web")])).await.body;
        for part in [
            "Restart the service web of shop on 2 nodes?", "Of acme (1) and zeta (1)", "1 node has no session now",
            "1 node does not have it now", "is stopped as its Compose file says", "press", "mill",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        let often = post("/selection", &with(&[("action", "telemetry.interval")])).await.body;
        assert!(often.contains("name=\"interval\"") && often.contains("Show what will happen"), "{often}");
        let often = post("/selection", &with(&[("action", "telemetry.interval"), ("interval", "60")])).await.body;
        assert!(often.contains("Measure every 60 s until the agent restarts on 2 nodes?"), "{often}");
        let never = post("/selection", &with(&[("action", "telemetry.interval"), ("interval", "3601")])).await.body;
        assert!(never.contains("use 100 ms to an hour") && never.contains("value=\"3601\""), "{never}");
        assert_eq!(site.get(PATH, &site.token(Role::Viewer, None).await).await.ids(), [""; 0], "nothing is done so far");

        // All that pass the filter, also those that are not ticked.
        let all = |filter: &str| vec![("action", "drain".to_owned()), ("all", "1".to_owned()), ("filter", filter.to_owned())];
        let said = post("/selection", &all("tenant%3Dacme")).await.body;
        assert!(said.contains("on 2 nodes?") && said.contains("oven") && !said.contains("mill"), "{said}");
        let said = post("/selection", &all("q%3Dove")).await.body;
        assert!(said.contains("on 1 node?") && said.contains(&oven.to_string()), "{said}");
        assert_eq!(post("/selection", &all("q%3Dnobody")).await.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(post("/selection", &[("action", "drain".to_owned())]).await.status, StatusCode::UNPROCESSABLE_ENTITY);

        // A node that is ticked and carried on is one, and one that was revoked since the list was shown is none.
        let mut both = with(&[("action", "drain"), ("nodes", &format!("{press} {oven}"))]);
        let three = post("/selection", &both).await.body;
        assert!(three.contains("on 3 nodes?"), "{three}");
        let admin = site.token(Role::Admin, None).await;
        let revoked = site.post(&format!("/api/v1/nodes/{oven}/revoke"), &admin, json!({ "reason": "unspecified" })).await;
        assert!(revoked.status.is_success(), "{}", revoked.body);
        assert_eq!(boxes(&browser.get("/").await.body), 2);
        let said = post("/selection", &all("tenant%3Dacme")).await.body;
        assert!(said.contains("on 1 node?") && !said.contains("oven"), "{said}");
        both.extend([("reason", "a leak".to_owned()), ("expected", hidden(&three, "expected")), ("once", "2".to_owned())]);
        assert_eq!(post("/requests", &both).await.status, StatusCode::CONFLICT, "of a revoked node nothing is asked");

        let order = |reason: &str, expected: &str| {
            let mut fields = with(&[("action", "service.restart"), ("of", "shop/web"), ("once", "1")]);
            fields.extend([("reason", reason.to_owned()), ("expected", expected.to_owned())]);
            fields
        };
        let two = hidden(&post("/selection", &order("", "")).await.body, "expected");
        assert_eq!(post("/requests", &order("", &two)).await.status, StatusCode::UNPROCESSABLE_ENTITY, "no reason");
        let others = post("/requests", &order("a leak", &hidden(&three, "expected"))).await;
        assert_eq!(others.status, StatusCode::CONFLICT, "others than were shown");
        let sent = post("/requests", &order("a leak", &two)).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
        let request = sent.header("location").to_owned();
        assert_eq!(post("/requests", &order("a leak", &two)).await.header("location"), request, "sent twice, done once");
        let shown = browser.get(&request).await.body;
        for part in ["0 of 2 done, 2 under way", "a leak", "press", "mill", "Waits for the node"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        assert!(!browser.get(&format!("{request}?state=failed")).await.body.contains(r#"id="c-"#));

        // Whoever sees one tenant sees its part alone.
        let theirs = Browser::sign_in(&site, Role::Operator, Some("zeta")).await;
        let shown = theirs.get(&request).await.body;
        assert!(shown.contains("0 of 1 done") && shown.contains("mill") && !shown.contains("press"), "{shown}");
        let press_too = [("action", "drain"), ("node", &*press.to_string())];
        assert_eq!(theirs.post("/", "/selection", &press_too).await.status, StatusCode::NOT_FOUND);
        let said = theirs.post("/", "/selection", &[("action", "drain"), ("all", "1"), ("filter", "")]).await.body;
        assert!(said.contains("on 1 node?") && !said.contains("press"), "{said}");

        let mut live = browser.live(&request).await;
        live.until("2 under way").await;
        let taken = theirs.post(&request, &format!("{request}/cancel"), &[("reason", "not now")]).await;
        assert_eq!(taken.status, StatusCode::SEE_OTHER, "{}", taken.body);
        live.until("0 of 2 done, 1 under way").await;
        let taken = browser.post(&request, &format!("{request}/cancel"), &[("reason", "not now")]).await;
        assert_eq!(taken.status, StatusCode::SEE_OTHER, "{}", taken.body);
        live.until("Taken back").await;
        let audit = site.get("/api/v1/audit?action=command.cancelled", &site.token(Role::Viewer, None).await).await.json();
        assert_eq!((audit["items"].as_array().map(Vec::len), &audit["items"][0]["detail"]["reason"]), (Some(2), &json!("not now")));

        let viewer = Browser::sign_in(&site, Role::Viewer, None).await;
        let fleet = viewer.get("/").await.body;
        assert!(boxes(&fleet) == 0 && !fleet.contains("/selection"), "{fleet}");
        assert_eq!(viewer.post("/", "/selection", &[("action", "drain"), ("all", "1")]).await.status, StatusCode::FORBIDDEN);
        assert_eq!(viewer.post("/", "/requests", &[("action", "drain"), ("all", "1")]).await.status, StatusCode::FORBIDDEN);
        assert!(viewer.get(&request).await.body.contains("a leak"), "to be seen");
        assert_eq!(viewer.get("/requests/nonesuch").await.status, StatusCode::NOT_FOUND);
    }
}
