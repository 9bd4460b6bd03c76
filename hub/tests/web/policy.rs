//! Certificate policies and mass renewals over HTTP: who may, what is refused, what it says.

use axum::http::{Method, StatusCode};
use hyperfactory_hub::access::Role;
use hyperfactory_hub::audit::Actor;
use hyperfactory_hub::enrollment::Reason;
use serde_json::{Value, json};
use store::on_both_engines;

use crate::{Site, now};

const POLICIES: &str = "/api/v1/certificate-policies";
const RENEWALS: &str = "/api/v1/renewals";

fn days(days: u64, from: u8, until: u8) -> Value {
    json!({ "lifetime_seconds": days * 86_400, "renew_from_percent": from, "renew_until_percent": until })
}

fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

on_both_engines! {
    async fn an_admin_sets_how_long_certificates_live_and_a_tenant_sees_its_own(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("zeta").await;
        let (admin, viewer) = (site.token(Role::Admin, None).await, site.token(Role::Viewer, None).await);
        let (bound, operator) = (site.token(Role::Admin, Some("acme")).await, site.token(Role::Operator, None).await);
        let policies = async |path: &str, token: &str| {
            let answer = site.get(path, token).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            answer.json().as_array().expect("a list").clone()
        };
        let of = |list: &[Value], kind: &str| list.iter().find(|one| one["kind"] == kind).expect("the kind").clone();
        let fleet = policies(POLICIES, &viewer).await;
        assert_eq!(fleet.len(), 8);
        let bridge = of(&fleet, "bridge");
        assert_eq!((bridge["lifetime_seconds"].as_u64(), bridge["source"].as_str()), (Some(90 * 86_400), Some("default")));

        let put = async |kind: &str, token: &str, body: Value| {
            site.call(Method::PUT, &format!("{POLICIES}/{kind}"), token, Some(body)).await
        };
        let for_acme = with(days(2, 50, 60), "tenant", "acme");
        let answer = put("agent", &admin, for_acme.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        assert_eq!((answer.json()["source"].as_str(), answer.json()["outlived_by"].as_u64()), (Some("tenant"), Some(0)));
        let own = policies(POLICIES, &bound).await;
        assert_eq!((own.len(), of(&own, "agent")["renew_until_percent"].as_u64()), (6, Some(60)));
        assert_eq!(of(&own, "agent")["changed_by"], "operator:admin of None");
        assert_eq!(of(&policies(&format!("{POLICIES}?tenant=zeta"), &admin).await, "agent")["source"], "default");

        for (status, kind, token, body, says) in [
            (403, "agent", &operator, days(2, 50, 60), "takes the role admin"),
            (403, "agent", &bound, for_acme.clone(), "acts for the tenant acme alone"),
            (404, "leaf", &admin, days(2, 50, 60), "nodes-intermediate"),
            (404, "agent", &admin, with(days(2, 50, 60), "tenant", "nobody"), "no tenant nobody"),
            (422, "root", &admin, with(days(3650, 70, 80), "tenant", "acme"), "the fleet's own"),
            (422, "bridge", &admin, days(200, 57, 77), "its issuer, nodes-intermediate"),
            (422, "agent", &admin, days(7, 57, 90), "between 10 and 85 percent"),
            (422, "agent", &admin, days(0, 57, 77), "from 1h to 1095d"),
            (422, "agent", &admin, json!({ "lifetime_seconds": -1 }), "ifetime_seconds: invalid value"),
        ] {
            let answer = put(kind, token, body).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
            assert!(answer.body.contains(says), "{says}: {}", answer.body);
        }
        assert_eq!(site.get(&format!("{POLICIES}?tenant=zeta"), &bound).await.status, StatusCode::NOT_FOUND);
        assert_eq!(site.get(&format!("{POLICIES}?tenant=nobody"), &admin).await.status, StatusCode::NOT_FOUND);

        let reset = site.call(Method::DELETE, &format!("{POLICIES}/agent?tenant=acme"), &admin, None).await;
        assert_eq!((reset.status, reset.json()["source"].as_str()), (StatusCode::OK, Some("default")), "{}", reset.body);
    }

    async fn a_shorter_life_offers_to_renew_what_is_longer(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let node = site.node("acme", "press").await;
        let admin = site.token(Role::Admin, None).await;
        let path = format!("{POLICIES}/agent");
        let answer = site.call(Method::PUT, &path, &admin, Some(days(2, 57, 77))).await.json();
        assert_eq!((answer["outlived_by"].as_u64(), answer.get("advised")), (Some(1), None));
        let renew = with(days(2, 57, 77), "renew_within_seconds", 3600);
        let answer = site.call(Method::PUT, &path, &admin, Some(renew)).await.json();
        assert_eq!(answer["advised"]["nodes"].as_u64(), Some(1));
        let log = site.get("/api/v1/audit?action=renewal.advised", &admin).await.json();
        let entry = &log["items"][0];
        assert_eq!((entry["subject"].as_str(), entry["detail"]["reason"].as_str()),
            (Some(&*node.to_string()), Some("the certificate policy has changed")));
    }

    async fn an_operator_has_nodes_renew_and_a_tenants_operator_its_own(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("zeta").await;
        let (press, mill, gone) =
            (site.node("acme", "press").await, site.node("zeta", "mill").await, site.node("acme", "gone").await);
        site.enrollment.revoke(gone, Reason::Superseded, "", &Actor::system(), now()).await.expect("revoked");
        let (operator, viewer) = (site.token(Role::Operator, None).await, site.token(Role::Viewer, None).await);
        let bound = site.token(Role::Operator, Some("acme")).await;
        let renew = |field: &str, value: Value| with(json!({ "within_seconds": 3600 }), field, value);
        for (count, token, body) in [
            (2, &operator, renew("all", json!(true))),
            (1, &operator, renew("tenant", json!("zeta"))),
            (1, &bound, renew("tenant", json!("acme"))),
            (1, &bound, renew("nodes", json!([press.to_string()]))),
        ] {
            let answer = site.post(RENEWALS, token, body).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            let told = answer.json();
            assert_eq!((told["nodes"].as_u64(), told["told"].as_u64()), (Some(count), Some(0)), "{told}");
        }
        for (status, token, body, says) in [
            (403, &viewer, renew("all", json!(true)), "takes the role operator"),
            (403, &bound, renew("all", json!(true)), "acts for the tenant acme alone"),
            (404, &bound, renew("tenant", json!("zeta")), "no tenant zeta"),
            (404, &bound, renew("nodes", json!([mill.to_string()])), "no node"),
            (404, &operator, renew("tenant", json!("nobody")), "no tenant nobody"),
            (409, &operator, renew("nodes", json!([gone.to_string()])), "has been revoked"),
            (422, &operator, renew("nodes", json!([])), "one of tenant, nodes and all"),
            (422, &operator, with(renew("all", json!(true)), "tenant", "acme"), "one of tenant, nodes and all"),
            (422, &operator, renew("nodes", json!(["press"])), "not a node id"),
            (422, &operator, renew("nodes", json!(vec![press.to_string(); 1001])), "at most 1000 nodes"),
            (422, &operator, with(renew("all", json!(true)), "within_seconds", 91 * 86_400), "at most 90 days"),
            (422, &operator, with(renew("all", json!(true)), "reason", "a\nb"), "one line"),
        ] {
            let answer = site.post(RENEWALS, token, body).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
            assert!(answer.body.contains(says), "{says}: {}", answer.body);
        }
    }
}
