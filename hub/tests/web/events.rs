//! The API's streams.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyperfactory_hub::access::Role;
use protocol::message::ServiceHealth;
use serde_json::Value;
use store::on_both_engines;
use tower::ServiceExt as _;

use crate::Site;

fn parsed(data: &str) -> Value {
    serde_json::from_str(data).expect("JSON")
}

on_both_engines! {
    async fn changes_come_as_events_and_only_ones_own(test: TestDatabase) {
        let site = Site::open(test).await;
        for id in ["acme", "zeta"] {
            site.tenant(id).await;
        }
        let (own, other) = (site.node("acme", "press").await, site.node("zeta", "mill").await);
        let bearer = format!("Bearer {}", site.token(Role::Viewer, Some("acme")).await);
        let mut events = site.stream("/api/v1/events", &[("authorization", &bearer)]).await;
        let (name, data) = events.next().await.expect("an event");
        assert_eq!((&*name, &parsed(&data)["id"]), ("node", &own.to_string().into()));
        assert_eq!(parsed(&data)["presence"]["state"], "never_seen");

        site.connect(other);
        site.connect(own);
        site.report(own, "web", ServiceHealth::Healthy);
        let (_, data) = events.next().await.expect("an event");
        let node = parsed(&data);
        assert_eq!(node["id"], own.to_string(), "another tenant's node is not told of");
        assert_eq!((&node["presence"]["state"], &node["service_counts"]["running"]), (&"online".into(), &1.into()));
    }

    async fn one_reader_never_has_all_live_streams(test: TestDatabase) {
        let site = Site::open(test).await;
        let token = site.token(Role::Viewer, None).await;
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer)];
        let mut open = Vec::new();
        for _ in 0..64 {
            open.push(site.stream("/api/v1/events", &headers).await);
        }
        for path in ["/api/v1/events", "/api/v1/audit/events"] {
            let request = Request::get(path).header("authorization", &bearer).body(Body::empty());
            let refused = site.router.clone().oneshot(request.expect("a request")).await.expect("an answer");
            assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "{path}");
        }
        let other = format!("Bearer {}", site.token(Role::Viewer, None).await);
        site.stream("/api/v1/events", &[("authorization", &other)]).await;
        open.pop();
        site.stream("/api/v1/events", &headers).await;
    }

    async fn the_audit_log_can_be_followed_without_a_gap(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let token = site.token(Role::Viewer, None).await;
        let bearer = format!("Bearer {token}");
        let first = site.get("/api/v1/audit?action=tenant.created", &token).await.ids();
        let first = first.first().expect("an entry");
        site.tenant("zeta").await;
        let headers = [("authorization", &*bearer), ("last-event-id", first)];
        let mut missed = site.stream("/api/v1/audit/events?action=tenant.", &headers).await;
        assert_eq!(parsed(&missed.next().await.expect("an event").1)["subject"], "zeta");

        let mut from_now = site.stream("/api/v1/audit/events", &[("authorization", &bearer)]).await;
        site.tenant("nord").await;
        // A tenant's authority comes before it.
        let entry = parsed(&from_now.until("tenant.created").await);
        assert_eq!(entry["subject"], "nord");
        assert_eq!(parsed(&missed.next().await.expect("an event").1)["subject"], "nord");
    }
}
