//! The dashboard as a browser without a script sees it, and its live streams.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use hyperfactory_hub::access::Role;
use hyperfactory_hub::audit::{self, action};
use hyperfactory_hub::kafka_access::{Access, State};
use hyperfactory_hub::telemetry::state::Member;
use protocol::message::{KafkaState, ServiceHealth};
use protocol::{NodeId, NodeKind};
use serde_json::Value;
use store::{on_both_engines, sqlx};

use crate::{Answer, Site, now};

/// A browser that is signed in.
pub(crate) struct Browser<'a> {
    site: &'a Site,
    cookie: String,
}

impl<'a> Browser<'a> {
    pub(crate) async fn sign_in(site: &'a Site, role: Role, tenant: Option<&str>) -> Self {
        let code = site.link(role, tenant).await;
        let answer = send(site, Method::POST, "/sign-in", "", &[("code", &code)]).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
        let cookie = answer.header("set-cookie").split(';').next().expect("a cookie").to_owned();
        Self { site, cookie }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.site, Method::GET, path, &self.cookie, &[]).await
    }

    /// Sends a form with the token of the page it is on.
    pub(crate) async fn post(&self, page: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let csrf = between(&self.get(page).await.body, r#"name="csrf" value=""#, "\"").to_owned();
        let mut fields = fields.to_vec();
        fields.push(("csrf", &csrf));
        send(self.site, Method::POST, path, &self.cookie, &fields).await
    }

    /// The live stream of a page.
    pub(crate) async fn live(&self, page: &str) -> crate::Events {
        let url = live_url(&self.get(page).await.body);
        self.site.stream(&url, &[("cookie", &self.cookie)]).await
    }
}

async fn send(site: &Site, method: Method, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Answer {
    let body = fields.iter().map(|(name, value)| format!("{name}={}", value.replace(' ', "+"))).collect::<Vec<_>>();
    let request = Request::builder().method(method).uri(path).header("cookie", cookie);
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(Body::from(body.join("&")));
    site.send(request.expect("a request")).await
}

fn between<'t>(text: &'t str, start: &str, end: &str) -> &'t str {
    let rest = text.split_once(start).unwrap_or_else(|| panic!("no {start} in {text}")).1;
    rest.split_once(end).expect("an end").0
}

fn live_url(page: &str) -> String {
    between(page, "data-live=\"", "\"").replace("&amp;", "&")
}

/// What a page's form carries on.
pub(crate) fn hidden(page: &str, name: &str) -> String {
    between(page, &format!("name=\"{name}\" value=\""), "\"").to_owned()
}

pub(crate) fn html(update: &str, id: &str) -> Option<String> {
    let update: Value = serde_json::from_str(update).expect("JSON");
    update["html"][id].as_str().map(str::to_owned)
}

on_both_engines! {
    async fn nobody_gets_in_without_signing_in(test: TestDatabase) {
        let site = Site::open(test).await;
        for path in ["/", "/tenants", "/alerts", "/audit", "/join", "/api-tokens", "/operator-keys", "/tenants/acme"] {
            let answer = send(&site, Method::GET, path, "hyperfactory_session=hfs_x", &[]).await;
            assert_eq!(answer.status, StatusCode::SEE_OTHER, "{path}");
            assert!(answer.header("location").starts_with("/sign-in"), "{path}");
            let form = send(&site, Method::POST, path, "", &[("csrf", "")]).await;
            assert!(form.status == StatusCode::SEE_OTHER || form.status == StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
        let next = send(&site, Method::GET, "/alerts?state=all", "", &[]).await;
        assert_eq!(next.header("location"), "/sign-in?next=%2Falerts%3Fstate%3Dall");
        let mut live = site.stream("/live?page=fleet", &[]).await;
        assert_eq!(live.next().await.expect("an event").0, "reload", "a page whose session is over goes to the sign-in");
        assert!(live.next().await.is_none());
    }

    async fn a_sign_in_link_works_once_and_a_preview_does_not_burn_it(test: TestDatabase) {
        let site = Site::open(test).await;
        let code = site.link(Role::Viewer, None).await;
        for _ in 0..3 {
            let shown = send(&site, Method::GET, &format!("/sign-in?link={code}"), "", &[]).await;
            assert!(shown.status == StatusCode::OK && shown.body.contains("method=\"post\""));
        }
        let fields = [("code", &*code), ("next", "/audit")];
        let first = send(&site, Method::POST, "/sign-in", "", &fields).await;
        assert_eq!((first.status, first.header("location")), (StatusCode::SEE_OTHER, "/audit"));
        let cookie = first.header("set-cookie");
        for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="] {
            assert!(cookie.contains(part), "{cookie}");
        }
        assert!(!cookie.contains("Secure"), "this site is served without TLS");
        let second = send(&site, Method::POST, "/sign-in", "", &fields).await;
        assert_eq!(second.status, StatusCode::UNAUTHORIZED);
        assert!(second.header("set-cookie").is_empty() && second.body.contains("role=\"alert\""));
    }

    async fn an_api_token_signs_in_too_and_signing_out_ends_it(test: TestDatabase) {
        let site = Site::open(test).await;
        let token = site.token(Role::Viewer, None).await;
        let answer = send(&site, Method::POST, "/sign-in", "", &[("code", &token)]).await;
        let cookie = answer.header("set-cookie").split(';').next().expect("a cookie").to_owned();
        let browser = Browser { site: &site, cookie };
        assert_eq!(browser.get("/").await.status, StatusCode::OK);
        assert_eq!(browser.post("/", "/sign-out", &[]).await.header("location"), "/sign-in");
        assert_eq!(browser.get("/").await.status, StatusCode::SEE_OTHER);
    }

    async fn a_form_from_elsewhere_changes_nothing(test: TestDatabase) {
        let site = Site::open(test).await;
        let browser = Browser::sign_in(&site, Role::Admin, None).await;
        let tenant = [("id", "acme"), ("name", "Acme")];
        for csrf in ["", "x"] {
            let fields = [&tenant[..], &[("csrf", csrf)]].concat();
            let answer = send(&site, Method::POST, "/tenants", &browser.cookie, &fields).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{csrf:?}");
        }
        let csrf = between(&browser.get("/tenants").await.body, r#"name="csrf" value=""#, "\"").to_owned();
        let form = format!("id=acme&name=Acme&csrf={csrf}");
        let request = Request::post("/tenants")
            .header("cookie", &browser.cookie)
            .header("sec-fetch-site", "cross-site")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(form));
        assert_eq!(site.send(request.expect("a request")).await.status, StatusCode::FORBIDDEN);
        let code = site.link(Role::Admin, None).await;
        let request = Request::post("/sign-in")
            .header("origin", "https://evil.example")
            .header("host", "hub.example")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(format!("code={code}")));
        assert_eq!(site.send(request.expect("a request")).await.status, StatusCode::FORBIDDEN, "nobody is signed in as another");
        assert!(site.tenants.list().await.expect("a list").is_empty());
        let made = browser.post("/tenants", "/tenants", &tenant).await;
        assert_eq!((made.status, made.header("location")), (StatusCode::SEE_OTHER, "/tenants/acme"));
    }

    async fn a_link_from_another_site_finds_the_browser_signed_in(test: TestDatabase) {
        let site = Site::open(test).await;
        let request = Request::get("/alerts").header("sec-fetch-site", "cross-site").body(Body::empty());
        let answer = site.send(request.expect("a request")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.body.contains("http-equiv=\"refresh\""), "asks again, and the browser then sends its cookie");
    }

    async fn every_page_keeps_to_the_policy_and_escapes_what_it_shows(test: TestDatabase) {
        let site = Site::open(test).await;
        let browser = Browser::sign_in(&site, Role::Admin, None).await;
        let empty = browser.get("/").await;
        assert!(empty.body.contains("Create a tenant"), "the first page says how to begin");
        site.tenants
            .create(&crate::tenant("acme"), "<script>alert(1)</script>", &hyperfactory_hub::audit::Actor::operator("<img>"), crate::now())
            .await
            .expect("a tenant");
        assert!(browser.get("/").await.body.contains("Add a node"), "and then how to go on");
        let node = site.node("acme", "press").await;
        site.connect(node);
        site.report(node, "<b>", ServiceHealth::Unhealthy);
        let (of_node, day) = (format!("/nodes/{node}"), format!("/nodes/{node}?range=24h"));
        for path in [
            "/", "/?q=nothing", "/?sort=-cpu&state=online", "/tenants", "/tenants/acme", &of_node, &day, "/alerts",
            "/alerts?state=all", "/audit", "/audit?action=tenant.", "/join?tenant=acme", "/api-tokens", "/operator-keys", "/?label=a%3Db", "/?label=a", "/nowhere",
            "/sign-in",
        ] {
            let page = browser.get(path).await;
            let policy = page.header("content-security-policy");
            assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{path}: {policy}");
            assert_eq!(page.header("cache-control"), "no-store", "{path}");
            assert!(page.body.starts_with("<!DOCTYPE html>"), "{path}");
            for bad in ["style=\"", "<script>", "onclick", "<img>", "<b>-", " class=\"\" class"] {
                assert!(!page.body.contains(bad), "{path} has {bad}");
            }
            let doubled = page.body.split('<').filter(|tag| tag.split('>').next().is_some_and(|tag| tag.matches(" class=").count() > 1));
            assert_eq!(doubled.count(), 0, "{path} has an element with two classes");
        }
        let style = between(&empty.body, "rel=\"stylesheet\" href=\"", "\"").to_owned();
        let style = send(&site, Method::GET, &style, "", &[]).await;
        assert_eq!(style.header("cache-control"), "public, max-age=31536000, immutable");
        assert_eq!(send(&site, Method::GET, "/assets/app-0.css", "", &[]).await.status, StatusCode::NOT_FOUND);
    }

    async fn a_wrong_form_comes_back_with_what_was_typed(test: TestDatabase) {
        let site = Site::open(test).await;
        let browser = Browser::sign_in(&site, Role::Admin, None).await;
        let answer = browser.post("/tenants", "/tenants", &[("id", "No Good"), ("name", "Acme")]).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(answer.body.contains("value=\"No Good\"") && answer.body.contains("value=\"Acme\""));
        assert!(answer.body.contains("is not a tenant id"));
        site.tenant("acme").await;
        let fields = [("tenant", "acme"), ("kind", "agent"), ("name", "a b"), ("valid_for", "3600")];
        let answer = browser.post("/tenants", "/join", &fields).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(answer.body.contains("value=\"a b\"") && answer.body.contains("A node&#39;s name") || answer.body.contains("A node's name"));
    }

    async fn who_is_bound_to_a_tenant_sees_it_alone(test: TestDatabase) {
        let site = Site::open(test).await;
        for id in ["acme", "zeta"] {
            site.tenant(id).await;
        }
        let (own, other) = (site.node("acme", "press").await, site.node("zeta", "mill").await);
        let browser = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        for path in ["/", "/tenants", "/alerts", "/audit"] {
            let page = browser.get(path).await;
            assert_eq!(page.status, StatusCode::OK, "{path}");
            assert!(!page.body.contains("zeta") && !page.body.contains("mill"), "{path} tells of another tenant");
        }
        assert_eq!(browser.get(&format!("/nodes/{own}")).await.status, StatusCode::OK);
        for path in [format!("/nodes/{other}"), "/tenants/zeta".into()] {
            assert_eq!(browser.get(&path).await.status, StatusCode::NOT_FOUND, "{path}");
        }
        for path in ["/join", "/api-tokens"] {
            assert_eq!(browser.get(path).await.status, StatusCode::FORBIDDEN, "{path}");
        }
        let version = live_url(&browser.get("/").await.body);
        let spied = version.replace("page=fleet&", &format!("page=node&id={other}"));
        let mut live = site.stream(&spied, &[("cookie", &browser.cookie)]).await;
        assert_eq!(live.next().await.expect("an event").0, "reload", "a live stream tells nothing either");
        assert!(site.watched.lock().expect("a list").is_empty(), "nor is another tenant's node told of the onlooker");
        let operator = Browser::sign_in(&site, Role::Operator, Some("acme")).await;
        let fields = [("tenant", "zeta"), ("kind", "agent"), ("name", ""), ("valid_for", "3600")];
        let answer = operator.post("/join", "/join", &fields).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert!(!answer.body.contains("hfj_"));
    }

    async fn a_join_token_is_shown_once_and_the_page_sees_the_node_come(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let browser = Browser::sign_in(&site, Role::Operator, None).await;
        let fields = [("tenant", "acme"), ("kind", "agent"), ("name", "press"), ("valid_for", "3600")];
        let made = browser.post("/join", "/join", &fields).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
        let command = between(&made.body, "id=\"command\" tabindex=\"0\">", "<");
        let text = command.strip_prefix("sudo hyperfactory-agent enroll --token ").expect("the command to paste");
        let token: pki::JoinToken = text.parse().expect("a join token");
        let mut live = site.stream(&live_url(&made.body), &[("cookie", &browser.cookie)]).await;
        live.until("Waiting for the node").await;
        let node = site.enroll(&token).await;
        let update = live.until("Enrolled").await;
        assert!(html(&update, "waiting").expect("the fragment").contains(&format!("/nodes/{node}")));
        for page in ["/tenants/acme", "/audit"] {
            assert!(!browser.get(page).await.body.contains("hfj_"), "{page} shows it again");
        }
    }

    async fn a_page_is_live_and_is_sent_only_what_changed(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let browser = Browser::sign_in(&site, Role::Viewer, None).await;
        let mut fleet = browser.live("/").await;
        assert!(fleet.until("No nodes yet").await.contains("\"view\""));
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        let update: Value = serde_json::from_str(&fleet.until(&format!("n-{mill}")).await).expect("JSON");
        assert!(update["rows"].as_array().is_some_and(|rows| rows.iter().any(|row| *row == format!("n-{press}"))));

        let mut node = browser.live(&format!("/nodes/{press}")).await;
        node.until("not connected yet").await;
        assert_eq!(*site.watched.lock().expect("a list"), [press], "the node is asked to send every sample at once");
        site.connect(press);
        site.report(press, "web", ServiceHealth::Healthy);
        assert!(html(&node.until("Healthy").await, "services").is_some());
        site.report(press, "web", ServiceHealth::Unhealthy);
        let update = node.until("Unhealthy").await;
        assert!(html(&update, "services").expect("services").contains("connection refused"));
        assert_eq!(html(&update, "node-head"), None, "what did not change is not sent");

        let update = fleet.until("1 unhealthy").await;
        assert!(html(&update, &format!("n-{press}")).is_some());
        assert_eq!(html(&update, &format!("n-{mill}")), None);
    }

    async fn a_page_of_an_older_hub_is_loaded_again(test: TestDatabase) {
        let site = Site::open(test).await;
        let browser = Browser::sign_in(&site, Role::Viewer, None).await;
        let mut live = site.stream("/live?v=old&page=fleet", &[("cookie", &browser.cookie)]).await;
        assert_eq!(live.next().await.expect("an event").0, "reload");
        let version = live_url(&browser.get("/").await.body);
        let odd = version.replace("page=fleet", "page=odd");
        assert_eq!(send(&site, Method::GET, &odd, &browser.cookie, &[]).await.status, StatusCode::BAD_REQUEST);
    }

    async fn the_page_trust_shows_how_long_certificates_live_and_has_nodes_renew(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("zeta").await;
        let node = site.node("acme", "press").await;
        let advised = async || {
            let filter = audit::Filter { action: Some(action::RENEWAL_ADVISED.into()), ..audit::Filter::default() };
            audit::list(&site.database, &filter).await.expect("the log").len()
        };
        let browser = Browser::sign_in(&site, Role::Operator, Some("acme")).await;
        let page = browser.get("/trust").await.body;
        assert!(page.contains("Bridges, at brokers") && page.contains("57–77 %") && page.contains("90d"), "{page}");
        let renew = async |tenant, within| {
            browser.post("/trust", "/trust/renew", &[("tenant", tenant), ("within", within), ("reason", "drill")]).await
        };
        let answer = renew("acme", "3600").await;
        assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/audit?action=renewal.advised"));
        assert!(browser.get(answer.header("location")).await.body.contains("renewal.advised"));
        assert_eq!(renew("", "3600").await.status, StatusCode::FORBIDDEN);
        assert_eq!(renew("zeta", "3600").await.status, StatusCode::NOT_FOUND);
        assert_eq!(renew("acme", "99999999").await.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(advised().await, 1);
        let page = format!("/nodes/{node}");
        assert_eq!(browser.post(&page, &format!("{page}/renew"), &[]).await.status, StatusCode::SEE_OTHER);
        assert_eq!(advised().await, 2);

        let viewer = Browser::sign_in(&site, Role::Viewer, None).await;
        let page = viewer.get("/trust").await.body;
        assert!(page.contains("Fleet root") && !page.contains("Renew certificates of"), "{page}");
        let admin = Browser::sign_in(&site, Role::Admin, None).await;
        assert!(admin.get("/trust").await.body.contains("Renew certificates of the fleet"));
    }

    async fn nodes_are_found_and_selected_by_their_labels(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("zeta").await;
        let (press, mill) = (site.node("acme", "press").await, site.node("acme", "mill").await);
        let oven = site.node("zeta", "oven").await;
        let labels = [(press, "ring", "canary"), (press, "site", "north"), (mill, "site", "north"), (oven, "site", "north")];
        let mut transaction = site.database.begin_write().await.expect("a transaction");
        for (node, name, value) in labels {
            let tenant = if node == oven { "zeta" } else { "acme" };
            let put = sqlx::query("INSERT INTO node_labels (node, tenant, name, value) VALUES ($1, $2, $3, $4)");
            put.bind(node.to_string()).bind(tenant).bind(name).bind(value).execute(&mut *transaction).await.expect("a label");
        }
        transaction.commit().await.expect("labels");
        let browser = Browser::sign_in(&site, Role::Operator, Some("acme")).await;
        let viewer = site.token(Role::Viewer, Some("acme")).await;
        for (label, whom) in [
            ("site%3Dnorth", &["mill", "press"][..]),
            ("site%3Dnorth,+ring%3Dcanary", &["press"]),
            ("ring%3Drest", &[]),
            // Not a label yet.
            ("ring", &[]),
        ] {
            let page = browser.get(&format!("/?label={label}")).await.body;
            let named = |name: &str| page.contains(&format!(r#"aria-label="Select {name}""#));
            let found: Vec<&str> = ["mill", "oven", "press"].into_iter().filter(|name| named(name)).collect();
            assert_eq!(found, whom, "{label}");
            assert!(page.contains(&format!(r#"name="label" value="{}""#, label.replace("%3D", "=").replace('+', " "))), "{page}");
            let filter = format!("label%3D{}", label.replace('%', "%25").replace('+', "%2520"));
            let said = browser.post("/", "/selection", &[("action", "drain"), ("all", "1"), ("filter", &filter)]).await;
            match whom.len() {
                0 => assert_eq!(said.status, StatusCode::UNPROCESSABLE_ENTITY, "{label}"),
                _ => assert!(whom.iter().all(|name| said.body.contains(name)), "{label}: {}", said.body),
            }
            let listed = site.get(&format!("/api/v1/nodes?label={label}&sort=name"), &viewer).await;
            match label {
                "ring" => assert_eq!(listed.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", listed.body),
                _ => assert_eq!(listed.ids().len(), whom.len(), "{label}: {}", listed.body),
            }
        }
        let mut live = browser.live("/?label=ring%3Dcanary").await;
        let (_, first) = live.next().await.expect("a first update");
        assert!(html(&first, &format!("n-{press}")).is_some() && html(&first, &format!("n-{mill}")).is_none(), "{first}");
        let page = browser.get(&format!("/nodes/{press}")).await.body;
        for label in ["ring%3Dcanary", "site%3Dnorth"] {
            assert!(page.contains(&format!(r#"href="/?label={label}""#)), "{label} is not on {page}");
        }
    }

    async fn the_page_operator_keys_shows_whose_signatures_are_passed_on(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("zeta").await;
        let browser = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert!(browser.get("/trust").await.body.contains(r#"href="/operator-keys""#));
        assert!(browser.get("/operator-keys").await.body.contains("No operator keys"));
        let mut transaction = site.database.begin_write().await.expect("a transaction");
        for (id, tenant, name, revoked) in
            [("1", Some("acme"), "Ada", None), ("2", Some("acme"), "Bob", Some(now().millis())), ("3", Some("zeta"), "Eve", None), ("4", None, "Max", None)]
        {
            let put = "INSERT INTO operator_keys (id, tenant, name, public_key, created_at, created_by, revoked_at)
                VALUES ($1, $2, $3, $4, $5, 'operator:Grace', $6)";
            let key = vec![id.as_bytes()[0]; 32];
            let put = sqlx::query(put).bind(id).bind(tenant).bind(name).bind(key).bind(now().millis()).bind(revoked);
            put.execute(&mut *transaction).await.expect("a key");
        }
        transaction.commit().await.expect("keys");
        let page = browser.get("/operator-keys").await.body;
        let ada = pki::OperatorPublicKey::from_bytes([b'1'; 32]).to_string();
        for part in ["Ada", "Bob", "Grace", "Valid", "Revoked", &ada] {
            assert!(page.contains(part), "{part} is not on {page}");
        }
        assert!(!page.contains("Eve") && !page.contains("Max"), "another tenant's, and the fleet's: {page}");
        let all = Browser::sign_in(&site, Role::Admin, None).await;
        let page = all.get("/operator-keys").await.body;
        assert!(["Ada", "Eve", "Max"].iter().all(|name| page.contains(name)), "{page}");
        assert!(all.get("/api-tokens").await.body.contains(r#"href="/operator-keys""#));
        assert!(all.get("/audit").await.body.contains(r#"value="operator_key.""#));
    }

    async fn the_page_bridges_shows_what_waits_where_it_went_and_what_brokers_say(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("zeta").await;
        let browser = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert!(browser.get("/bridges").await.body.contains("No bridges yet"));
        let (cologne, agent) = (site.node_of(NodeKind::Bridge, "acme", "cologne").await, site.node("acme", "press").await);
        let others = site.node_of(NodeKind::Bridge, "zeta", "others-plant").await;
        let mut live = browser.live("/bridges").await;
        live.until("come with its first session").await;
        for node in [cologne, others] {
            site.connect(node);
            site.tell_of_brokers(node, KafkaState::Connected, "", 61, 5);
        }
        let update = live.until("Connected").await;
        let view = html(&update, "view").expect("the list");
        assert!(view.contains("First data from"), "{view}");
        for shown in ["cologne", "1,240", "3.0 KiB", "2 min", "machines/#", "none since its start"] {
            assert!(view.contains(shown), "{shown}: {view}");
        }
        for (name, count) in [("Dead letters", "57"), ("Dropped", "4,444")] {
            assert!(view.contains(&format!("data-name=\"{name}\">{count}<")), "{name}: {view}");
        }
        for shown in ["1 of 2", "line: no such host", "secret/# (not authorized)"] {
            assert!(view.contains(shown), "{shown}: {view}");
        }
        assert!(view.contains("rends: the disk is full: free some space"), "{view}");
        let page = browser.get("/bridges").await.body;
        assert!(page.contains("in 30 d") && page.contains("1 min ago"), "{page}");
        assert!(!view.contains("others-plant") && !view.contains(&agent.to_string()), "{view}");

        site.tell_of_brokers(cologne, KafkaState::Refused, "certificate revoked", 61, 5);
        let update = live.until("Refused").await;
        let view = html(&update, "view").expect("the list");
        assert!(view.contains("ertificate revoked") && !view.contains("First data from"), "{view}");
        let may = Access { topics: vec!["cologne.*".into()], state: State::Refused, message: "no superuser".into(), tries: 1 };
        site.fleet.kafka_access(cologne, Arc::new(may));
        let update = live.until("o superuser").await;
        let view = html(&update, "view").expect("the list");
        assert!(view.contains("cologne.*") && view.contains("Not taken"), "{view}");
        let page = browser.get(&format!("/nodes/{cologne}")).await.body;
        assert!(page.contains("cologne.*") && page.contains("Not taken"), "{page}");
        assert!(page.contains("From MQTT to Kafka") && page.contains("ertificate revoked"), "{page}");
        assert!(page.contains("Dropped of trends") && page.contains("4,321"), "{page}");
        assert!(page.contains("last 4,000–4,320: too old") && page.contains("Dead letters"), "{page}");
        assert!(page.contains("77 messages") && !page.contains("As they came"), "{page}");
        assert!(!browser.get(&format!("/nodes/{agent}")).await.body.contains("From MQTT to Kafka"));
        let token = site.token(Role::Viewer, None).await;
        let node = site.get(&format!("/api/v1/nodes/{cologne}"), &token).await.json();
        assert_eq!((&node["bridge"]["kafka"], &node["bridge"]["pending"]), (&"refused".into(), &1240.0.into()), "{node}");
        let class = &node["bridge"]["classes"][0];
        assert_eq!((&class["overflow"], &class["dropped"]), (&"drop-oldest".into(), &4321.into()), "{node}");
        let bridge = &node["bridge"];
        assert_eq!((&bridge["mqtt"][0]["connected"], &bridge["mqtt"][1]["trouble"]), (&true.into(), &"no such host".into()));
        assert_eq!((&bridge["dead_letters"], &bridge["dropped"]), (&57.0.into(), &4444.0.into()), "{node}");
    }

    async fn the_first_data_of_a_bridge_is_news_when_it_is_in_kafka_and_no_other_is(test: TestDatabase) {
        let site = Site::open(test).await;
        let acme = site.tenant("acme").await;
        let browser = Browser::sign_in(&site, Role::Viewer, None).await;
        let cologne = site.node_of(NodeKind::Bridge, "acme", "cologne").await;
        site.connect(cologne);
        let news = async || browser.get("/bridges").await.body.matches("First data from").count();
        site.tell_of_brokers(cologne, KafkaState::Unreachable, "no way there", 1, 5);
        assert_eq!(news().await, 0, "brokers are away");
        site.tell_of_brokers(cologne, KafkaState::Connected, "", 1, 0);
        assert_eq!(news().await, 0, "it was handed over, and not confirmed");
        site.tell_of_brokers(cologne, KafkaState::Connected, "", 1, 5);
        assert_eq!(news().await, 1);
        site.tell_of_brokers(cologne, KafkaState::Connected, "", 5 * 86_400, 5);
        assert_eq!(news().await, 0, "a quiet plant's, after the hub started again");

        let old = NodeId::new(now(), [7; 10]);
        let enrolled_at = now().minus(Duration::from_secs(2 * 86_400));
        site.fleet.enrolled(Member { node: old, tenant: acme, kind: NodeKind::Bridge, name: "old".into(), enrolled_at });
        site.connect(old);
        site.tell_of_brokers(old, KafkaState::Connected, "", 1, 5);
        assert_eq!(news().await, 0, "what comes from an old one is no first");
    }
}
