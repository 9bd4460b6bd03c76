//! When nodes are told to renew: by policy, and by advice, which is spread, kept, and told at once or at the return.

use std::time::Duration;

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::enrollment::{ADVICE_WITHIN_MAX, AdviseError, Reason, Whom};
use pki::NodeIdentity;
use protocol::message::{RenewalAdvice, ToNode, to_node};
use protocol::{NodeId, NodeKind, TenantId, Timestamp};
use store::on_both_engines;

use crate::recovery::{Running, Session, State, now};
use crate::setup::{NOW, World, acme, at, first_renewal, identity, key, seconds};

const HOUR: Duration = Duration::from_secs(3600);

fn ann() -> Actor {
    Actor::operator("ann")
}

async fn fleet(world: &World, count: usize) -> Vec<NodeIdentity> {
    let mut nodes = Vec::with_capacity(count);
    for _ in 0..count {
        nodes.push(world.node().await.1);
    }
    nodes
}

fn moments(world: &World, nodes: &[NodeIdentity]) -> Vec<Timestamp> {
    nodes.iter().map(|node| world.enrollment.renew_at(node)).collect()
}

async fn other_tenants_node(world: &World) -> NodeIdentity {
    let tenant: TenantId = "other".parse().expect("a tenant");
    world.tenants.create(&tenant, "Other Ltd", &ann(), NOW).await.expect("a tenant");
    let new = hyperfactory_hub::enrollment::NewToken { tenant, kind: NodeKind::Agent, name: None, valid_for: HOUR };
    let (_, token) = world.enrollment.create_token(new, &ann(), NOW).await.expect("a token");
    identity(&world.enroll(&token, &key(), NOW).await.expect("enrolled").certificate_chain)
}

/// The next advice that comes in a session.
async fn advice(session: &mut Session) -> RenewalAdvice {
    loop {
        let message: ToNode = session.reader.recv().await.expect("a message").expect("a message");
        if let Some(to_node::Message::Renewal(advice)) = message.message {
            break advice;
        }
    }
}

on_both_engines! {
    async fn a_mass_renewal_is_spread_kept_over_a_restart_and_over_for_who_has_renewed(database: TestDatabase) {
        let world = World::new(database).await;
        let (nodes, other) = (fleet(&world, 200).await, other_tenants_node(&world).await);
        let regular = moments(&world, &nodes);
        let undisturbed = world.enrollment.renew_at(&other);
        let advised = world.enrollment.renew_soon(&Whom::Tenant(acme()), HOUR * 6, &ann(), "drill", NOW).await;
        let advised = advised.expect("advised");
        assert_eq!((advised.nodes, advised.told), (200, 0), "nobody is in session");

        let told = moments(&world, &nodes);
        let mut sorted = told.clone();
        sorted.sort_unstable();
        assert!(sorted[0] >= NOW && sorted[199] == advised.until && advised.until <= NOW.plus(HOUR * 6));
        for minutes in [1, 10, 60] {
            let stretch = Duration::from_secs(minutes * 60);
            let most = 200 * minutes as usize / 360 + 2;
            let busiest = sorted.iter().map(|from| sorted.iter().filter(|at| (*from..from.plus(stretch)).contains(at)).count());
            assert!(busiest.max() <= Some(most), "at most {most} within {minutes} min");
        }
        assert_eq!(world.enrollment.renew_at(&other), undisturbed, "another tenant's");

        let again = World::open(database).await;
        assert_eq!(moments(&again, &nodes), told);
        // Who renews is done, and a node that has not got the answer is still told.
        let request = key().certificate_request().expect("a request");
        let renewed = again.enrollment.renew(&nodes[0], &first_renewal(&request), at(60)).await.expect("renewed");
        let new = identity(&renewed.certificate_chain);
        assert!(again.enrollment.renew_at(&new) > at(3 * 86_400));
        assert_eq!(renewed.renew_at_ms, again.enrollment.renew_at(&new).millis());
        assert_eq!(again.enrollment.renew_at(&nodes[0]), told[0]);
        // A later advice takes its place, and never puts off what the policy says.
        again.enrollment.renew_soon(&Whom::All, ADVICE_WITHIN_MAX, &ann(), "", NOW).await.expect("advised");
        let late = moments(&again, &nodes[1..]);
        assert!(late.iter().zip(&regular[1..]).all(|(late, regular)| late <= regular));
        assert!(late.iter().zip(&regular[1..]).any(|(late, regular)| late == regular));
        again.close().await;
        world.close().await;
    }

    async fn advice_is_for_those_who_are_meant_and_audited(database: TestDatabase) {
        let world = World::new(database).await;
        let (nodes, other) = (fleet(&world, 3).await, other_tenants_node(&world).await);
        world.enrollment.revoke(nodes[2].node, Reason::Superseded, "", &ann(), NOW).await.expect("revoked");
        let soon = async |whom: Whom, within, reason: &str| world.enrollment.renew_soon(&whom, within, &ann(), reason, NOW).await;
        let stranger = NodeId::new(NOW, [9; 10]);
        let some = Whom::Nodes(vec![nodes[1].node, nodes[2].node, stranger]);
        assert_eq!(soon(some.clone(), HOUR, "a new policy").await.expect("advised").nodes, 1);
        assert!(world.enrollment.renew_at(&nodes[1]) <= NOW.plus(HOUR));
        assert!(world.enrollment.renew_at(&nodes[0]) > NOW.plus(HOUR));
        let entry = &world.audited(action::RENEWAL_ADVISED).await[0];
        assert_eq!((entry.tenant.as_deref(), &entry.subject), (Some("acme"), &nodes[1].node.to_string()));
        assert_eq!((entry.actor.as_str(), entry.detail["reason"].as_str()), ("operator:ann", Some("a new policy")));

        assert_eq!(soon(Whom::All, HOUR, "all").await.expect("advised").nodes, 3);
        assert!(world.enrollment.renew_at(&other) <= NOW.plus(HOUR));
        let all = world.audited(action::RENEWAL_ADVISED).await;
        let mut told: Vec<_> = all[..2].iter().map(|entry| (entry.tenant.as_deref(), entry.detail["count"].as_u64())).collect();
        told.sort_unstable();
        assert_eq!(told, [(Some("acme"), Some(2)), (Some("other"), Some(1))]);

        assert_eq!(soon(Whom::Nodes(vec![stranger]), HOUR, "").await.expect("nobody").nodes, 0);
        assert!(matches!(soon(Whom::All, ADVICE_WITHIN_MAX + seconds(1), "").await, Err(AdviseError::Within)));
        assert!(matches!(soon(Whom::All, HOUR, &"x".repeat(201)).await, Err(AdviseError::Reason)));
        assert!(matches!(soon(Whom::All, HOUR, "a\nb").await, Err(AdviseError::Reason)));
        assert_eq!(world.audited(action::RENEWAL_ADVISED).await.len(), 3, "what was refused advised nobody");
        world.close().await;
    }

    async fn a_node_in_session_is_told_at_once_and_one_that_was_away_when_it_returns(database: TestDatabase) {
        let world = World::new_at(database, now()).await;
        let (here, away) = (State::enrolled(&world, now()).await, State::enrolled(&world, now()).await);
        world.close().await;
        let hub = Running::start(database).await;
        let mut session = hub.session(&here).await.expect("a session");
        assert!(session.welcome.renew_at_ms > now().plus(HOUR).millis());
        // Directives go to sessions that are registered, which follows the Welcome.
        let both = Whom::Tenant(acme());
        let advised = loop {
            let advised = hub.enrollment.renew_soon(&both, HOUR, &ann(), "rotation", now()).await.expect("advised");
            assert_eq!(advised.nodes, 2);
            if advised.told == 1 {
                break advised;
            }
        };
        let heard = advice(&mut session).await;
        assert_eq!((heard.renew_at_ms, heard.reason.as_str()), (hub.enrollment.renew_at(&here.identity).millis(), "rotation"));
        assert!(heard.renew_at_ms <= advised.until.millis());
        let returned = hub.session(&away).await.expect("a session");
        assert_eq!(returned.welcome.renew_at_ms, hub.enrollment.renew_at(&away.identity).millis());
        assert!(returned.welcome.renew_at_ms <= advised.until.millis());
        hub.stop().await;
    }
}
