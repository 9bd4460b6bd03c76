//! Rollouts over the API and from the dashboard: who may start what, and what is said before and while it is done.

use axum::http::{Method, StatusCode};
use hyperfactory_hub::access::Role;
use protocol::message::ServiceHealth;
use serde_json::{Value, json};
use store::on_both_engines;

use crate::Site;
use crate::dashboard::{Browser, hidden, html};

const PATH: &str = "/api/v1/rollouts";

fn restart(target: Value) -> Value {
    json!({
        "command": { "action": "service.restart", "stack": "shop", "service": "web", "reason": "a new image", "target": target },
        "waves": ["ring=canary", "100%"],
    })
}

on_both_engines! {
    async fn it_is_previewed_started_held_and_given_up(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        site.connect(press);
        let operator = site.token(Role::Operator, Some("acme")).await;
        let labels = Some(json!({ "labels": { "ring": "canary" }, "reason": "a test" }));
        site.call(Method::PUT, &format!("/api/v1/nodes/{mill}/labels"), &operator, labels).await;
        let mut asked = restart(json!({ "tenant": "acme" }));
        asked["preview"] = json!(true);
        let preview = site.post(PATH, &operator, asked.clone()).await;
        assert_eq!(preview.status, StatusCode::OK, "{}", preview.body);
        let shown = preview.json();
        assert_eq!((&shown["nodes"], &shown["what"]), (&json!(2), &json!("restart the service web of shop")));
        assert_eq!(shown["waves"][0], json!({ "number": 1, "nodes": 1, "online": 0, "first": ["mill"] }));
        assert_eq!(shown["waves"][1], json!({ "number": 2, "nodes": 1, "online": 1, "first": ["press"] }));
        assert_eq!(site.get(PATH, &operator).await.ids(), [""; 0], "a preview does nothing");

        asked["preview"] = json!(false);
        asked["command"]["expected"] = shown["digest"].clone();
        let made = site.post(PATH, &operator, asked).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let id = made.json()["id"].as_i64().expect("a number");
        let one = format!("{PATH}/{id}");
        for (verb, state) in [("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("abort", "aborted")] {
            let done = site.post(&format!("{one}/{verb}"), &operator, json!({ "reason": "a test" })).await;
            assert_eq!((done.status, &done.json()["state"]), (StatusCode::OK, &json!(state)), "{}", done.body);
        }
        let over = site.post(&format!("{one}/resume"), &operator, json!({ "reason": "a test" })).await;
        assert_eq!(over.status, StatusCode::CONFLICT, "{}", over.body);
        let shown = site.get(&one, &operator).await.json();
        assert_eq!((&shown["why"], &shown["shape"]), (&json!("a test"), &json!("ring=canary,100%")));
        let nodes = site.get(&format!("{one}/nodes?limit=1"), &operator).await.json();
        assert_eq!((&nodes["items"][0]["name"], &nodes["items"][0]["wave"]), (&json!("mill"), &json!(1)));
        assert!(nodes["next_cursor"].is_string());
        assert_eq!(site.get(PATH, &operator).await.ids(), [id.to_string()]);
        let audit = site.get("/api/v1/audit?action=rollout.", &operator).await.json();
        let acts: Vec<&str> = audit["items"].as_array().expect("items").iter().filter_map(|one| one["action"].as_str()).collect();
        assert_eq!(acts, ["rollout.aborted", "rollout.resumed", "rollout.paused", "rollout.started"]);
    }

    async fn the_first_wave_is_who_was_shown_or_nothing_begins(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        site.connect(press);
        let operator = site.token(Role::Operator, Some("acme")).await;
        let asked = |preview: bool, expected: Value| {
            let mut command = restart(json!({ "tenant": "acme" }))["command"].clone();
            command["expected"] = expected;
            json!({ "waves": ["1", "100%"], "command": command, "preview": preview })
        };
        let preview = async || site.post(PATH, &operator, asked(true, json!(null))).await.json();
        let seen = preview().await;
        assert_eq!(seen["waves"][0]["first"], json!(["press"]), "it is there");
        // As many, and another one is the first.
        site.connect(mill);
        let refused = site.post(PATH, &operator, asked(false, seen["digest"].clone())).await;
        assert_eq!(refused.status, StatusCode::CONFLICT, "{}", refused.body);
        assert!(refused.body.contains("look at it again. Nothing was done"), "{}", refused.body);
        assert_eq!(site.get(PATH, &operator).await.ids(), [""; 0]);
        let seen = preview().await;
        assert_eq!(seen["waves"][0]["first"], json!(["mill"]));
        let made = site.post(PATH, &operator, asked(false, seen["digest"].clone())).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    }

    async fn one_that_was_started_is_told_again_whoever_would_be_meant_by_now(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        let operator = site.token(Role::Operator, Some("acme")).await;
        let asked = |target: Value| json!({ "waves": ["100%"], "command": restart(target)["command"] });
        let mut counted = asked(json!({ "tenant": "acme" }));
        counted["preview"] = json!(true);
        let digest = site.post(PATH, &operator, counted.clone()).await.json()["digest"].clone();
        counted["preview"] = json!(false);
        counted["command"]["expected"] = digest;
        let named = asked(json!({ "nodes": [press.to_string(), mill.to_string()] }));
        let all = [("counted", counted), ("named", named), ("found", asked(json!({ "query": "press" })))];
        let mut started = Vec::new();
        for (key, body) in &all {
            let answer = site.post_keyed(PATH, &operator, key, body.clone()).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{key}: {}", answer.body);
            started.push(answer.json()["id"].clone());
        }
        for name in ["oven", "kiln"] {
            site.node("acme", name).await;
        }
        site.post(&format!("/api/v1/nodes/{press}/revoke"), &operator, json!({ "reason": "unspecified" })).await;
        for ((key, body), id) in all.iter().zip(&started) {
            let again = site.post_keyed(PATH, &operator, key, body.clone()).await;
            assert_eq!((again.status, &again.json()["id"]), (StatusCode::CREATED, id), "{key}: {}", again.body);
        }
        let another = site.post_keyed(PATH, &operator, "new", all[0].1.clone()).await;
        assert!(another.status == 409 && another.body.contains("Nothing was done"), "{}", another.body);
        let reused = site.post_keyed(PATH, &operator, "counted", all[1].1.clone()).await;
        assert!(reused.status == 422 && reused.body.contains("Idempotency-Key"), "{}", reused.body);
        assert_eq!(site.get(PATH, &operator).await.ids().len(), 3);
    }

    async fn who_may_not_and_what_makes_no_sense_is_refused(test: TestDatabase) {
        let site = Site::open(test).await;
        for tenant in ["acme", "zeta"] {
            site.tenant(tenant).await;
            site.node(tenant, "press").await;
        }
        let (operator, viewer) = (site.token(Role::Operator, Some("acme")).await, site.token(Role::Viewer, None).await);
        let admin = site.token(Role::Admin, None).await;
        let all = || json!({ "waves": ["100%"], "command": restart(json!({ "all": true }))["command"] });
        let refused = async |token: &str, body: Value, status: u16, word: &str| {
            let answer = site.post(PATH, token, body).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
            assert!(answer.body.contains(word), "{word}: {}", answer.body);
        };
        refused(&viewer, all(), 403, "operator").await;
        refused(&operator, restart(json!({ "tenant": "zeta" })), 404, "zeta").await;
        refused(&operator, restart(json!({ "query": "nobody" })), 422, "no node is meant").await;
        for (field, value, word) in [
            ("waves", json!(["10%"]), "last wave"),
            ("windows", json!(["at night"]), "maintenance window"),
            ("max_failed_percent", json!(101), "percent"),
            ("rate_per_minute", json!(0), "rate"),
            ("settle_seconds", json!(0), "settle"),
        ] {
            let mut wrong = all();
            wrong[field] = value;
            refused(&operator, wrong, 422, word).await;
        }
        let mut silent = all();
        silent["command"]["reason"] = json!(" ");
        refused(&operator, silent, 422, "reason").await;

        let of_both = site.post(PATH, &admin, all()).await.json()["id"].as_i64().expect("a number");
        let own = site.post(PATH, &operator, all()).await.json();
        assert_eq!((&own["tenant"], &own["waves"][0]["nodes"]), (&json!("acme"), &json!(1)), "its own alone");
        assert_eq!(site.get(PATH, &operator).await.ids().len(), 1);
        for path in [format!("{PATH}/{of_both}"), format!("{PATH}/{of_both}/nodes")] {
            assert_eq!(site.get(&path, &operator).await.status, StatusCode::NOT_FOUND);
        }
        let reason = || json!({ "reason": "mine" });
        let answer = site.post(&format!("{PATH}/{of_both}/abort"), &operator, reason()).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        let answer = site.post(&format!("{PATH}/{of_both}/abort"), &viewer, reason()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        for verb in ["pause", "resume", "abort"] {
            for silent in [json!({}), json!({ "reason": "" }), json!({ "reason": "x".repeat(501) })] {
                let answer = site.post(&format!("{PATH}/{of_both}/{verb}"), &admin, silent).await;
                assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{verb}: {}", answer.body);
                assert!(answer.body.contains("say why"), "{}", answer.body);
            }
        }
    }

    async fn the_dashboard_says_who_is_meant_and_shows_the_waves_as_they_move(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        for name in ["press", "mill"] {
            let node = site.node("acme", name).await;
            site.connect(node);
            site.report(node, "web", ServiceHealth::Healthy);
        }
        let browser = Browser::sign_in(&site, Role::Operator, Some("acme")).await;
        assert!(browser.get("/rollouts").await.body.contains("There was none yet"));
        assert!(browser.get("/rollouts/new").await.body.contains("Nothing is done before you confirm"));
        let draft = browser.get("/rollouts/new?change=1&action=drain&stack=shop").await.body;
        assert!(draft.contains("<option value=\"drain\" selected>") && draft.contains("value=\"shop\""), "{draft}");
        let wrong = browser.get("/rollouts/new?action=service.restart&reason=x").await.body;
        assert!(wrong.contains("takes stack") && wrong.contains("value=\"x\""), "what was typed stays: {wrong}");
        let form = "/rollouts/new?action=service.restart&stack=shop&service=web&waves=1,100%25&reason=image";
        let asked = browser.get(form).await.body;
        assert!(asked.contains("Restart the service web of shop on 2 nodes?") && asked.contains("Wave 2"), "{asked}");
        for said in ["Of acme, in 2 waves", "nobody is served by it", "watched for 5 min", "over 10 % of a wave", "change=1&amp;action=service.restart"] {
            assert!(asked.contains(said), "{said}: {asked}");
        }
        let digest = hidden(&asked, "expected");
        let other = browser.get(&form.replace("service=web", "service=mill")).await.body;
        assert!(other.contains("2 nodes do not have it now"), "{other}");
        let fields = [
            ("action", "service.restart"), ("stack", "shop"), ("service", "web"), ("waves", "1,100%25"), ("reason", "image"),
            ("expected", &*digest), ("once", "1"),
        ];
        let mut unseen = fields;
        unseen[5].1 = "2";
        assert_eq!(browser.post(form, "/rollouts", &unseen).await.status, StatusCode::CONFLICT, "others than were shown");
        let sent = browser.post(form, "/rollouts", &fields).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
        let page = sent.header("location").to_owned();
        assert_eq!(browser.post(form, "/rollouts", &fields).await.header("location"), page, "sent twice, started once");
        assert!(browser.get("/rollouts").await.body.contains(&page), "listed");
        let mut live = browser.live(&page).await;
        let update = live.until("asked and not there yet").await;
        assert!(html(&update, "view").is_some_and(|view| view.contains("Under way") && view.contains("Untouched")), "{update}");
        let first = browser.get(&format!("{page}/nodes?wave=1")).await.body;
        assert!(first.contains("1 node of wave 1") && first.contains("href=\"/commands/"), "{first}");
        let mut nodes = browser.live(&format!("{page}/nodes")).await;
        let update = nodes.until("2 nodes").await;
        assert!(html(&update, "view").is_some_and(|view| view.contains("Not asked")), "{update}");
        let held = browser.post(&page, &format!("{page}/pause"), &[("reason", "lunch")]).await;
        assert_eq!(held.status, StatusCode::SEE_OTHER, "{}", held.body);
        let update = live.until("Lunch").await;
        assert!(html(&update, "rollout-head").is_some_and(|head| head.contains("Held")), "{update}");
        assert!(html(&update, "acts").is_some_and(|acts| acts.contains("Let it go on")), "{update}");
        let given_up = browser.post(&page, &format!("{page}/abort"), &[("reason", "no more")]).await;
        assert_eq!(given_up.status, StatusCode::SEE_OTHER, "{}", given_up.body);
        live.until("1 taken back").await;
        nodes.until("Taken back").await;
        let viewer = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        let seen = viewer.get(&page).await;
        assert!(seen.status == StatusCode::OK && !seen.body.contains("/abort"), "nothing to press");
        assert_eq!(viewer.get("/rollouts/new").await.status, StatusCode::FORBIDDEN);
    }
}
