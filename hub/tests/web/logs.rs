//! Logs over the API and on the dashboard: who may read whose, and what can't be read.

use axum::http::StatusCode;
use hyperfactory_hub::access::Role;
use protocol::NodeId;
use store::on_both_engines;

use crate::dashboard::Browser;
use crate::{Answer, Site};

fn path(node: NodeId, more: &str) -> String {
    format!("/api/v1/nodes/{node}/services/shop/web/logs{more}")
}

/// A problem with this status that speaks of `word`.
fn says(answer: &Answer, status: u16, word: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
    assert!(answer.json()["detail"].as_str().is_some_and(|said| said.contains(word)), "{word}: {}", answer.body);
}

on_both_engines! {
    async fn a_log_is_for_operators_of_the_nodes_own_tenant_and_of_a_node_that_is_there(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("other").await;
        let node = site.node("acme", "press").await;
        let operator = site.token(Role::Operator, Some("acme")).await;
        says(&site.get(&path(node, ""), &site.token(Role::Viewer, Some("acme")).await).await, 403, "operator");
        says(&site.get(&path(node, ""), &site.token(Role::Admin, Some("other")).await).await, 404, "no node");
        assert_eq!(site.get(&path(node, ""), "hft_nothing").await.status, StatusCode::UNAUTHORIZED);
        says(&site.get(&path(node, ""), &operator).await, 409, "no session");
        says(&site.get(&path(node, "?since=yesterday"), &operator).await, 422, "10m");
        says(&site.get(&path(node, "?since=10m&until=1h"), &operator).await, 422, "until");
        says(&site.get(&path(node, "?lines=10001"), &operator).await, 422, "10,000");
        says(&site.get(&path(node, &format!("?grep={}", "x".repeat(300))), &operator).await, 422, "256");
        says(&site.get(&path(node, &format!("?reason={}", "x".repeat(501))), &operator).await, 422, "500");
        says(&site.get(&path(node, "?reason=two%0Alines"), &operator).await, 422, "one line");
        let audit = site.get("/api/v1/audit?action=tail.", &site.token(Role::Admin, None).await).await;
        assert_eq!(audit.ids(), [""; 0], "nothing was read");
    }

    async fn the_dashboard_shows_a_log_to_operators_and_escapes_what_it_is_asked_for(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let node = site.node("acme", "press").await;
        let address = format!("/nodes/{node}/logs?stack=shop&service=%3Cb%3Eweb%3C%2Fb%3E");
        let viewer = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert_eq!(viewer.get(&address).await.status, StatusCode::FORBIDDEN);
        assert_eq!(viewer.get(&format!("/nodes/{node}/logs/live?stack=shop&service=web")).await.status, StatusCode::FORBIDDEN);
        let operator = Browser::sign_in(&site, Role::Operator, Some("acme")).await;
        let page = operator.get(&address).await;
        assert!(page.body.contains("&lt;b&gt;web&lt;/b&gt;") && !page.body.contains("<b>web"), "{}", page.body);
        assert!(page.body.contains("no session now"), "{}", page.body);
        // A browser shows nothing but events.
        let live = operator.get(&format!("/nodes/{node}/logs/live?stack=shop&service=web")).await;
        assert!(live.body.contains("event: end") && live.body.contains("no session"), "{}", live.body);
    }
}
