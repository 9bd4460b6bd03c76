//! Every page of the dashboard over made-up values, to look at: `cargo run -p hyperfactory-hub --example pages`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use hyperfactory_hub::api::resource::*;
use hyperfactory_hub::api::select::NodeQuery;
use hyperfactory_hub::dashboard::chart::{Chart, Line, Unit};
use hyperfactory_hub::dashboard::format::Clock;
use hyperfactory_hub::dashboard::layout::{Frame, Section, Viewer, alone};
use hyperfactory_hub::dashboard::{alerts, api_tokens, assets, audit, fleet, join, node, sign_in, tenants};
use maud::{Markup, html};
use protocol::Timestamp;
use serde_json::json;

const MINUTE: u64 = 60;
const DAY: u64 = 86_400;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let router = Router::new()
        .route("/", get(|| async { fleet_page(1_240, "") }))
        .route("/small", get(|| async { fleet_page(7, "") }))
        .route("/calm", get(|| async { fleet_page(2, "") }))
        .route("/none", get(|| async { fleet_page(0, "") }))
        .route("/first", get(|| async { fleet_page(0, "first") }))
        .route("/node", get(|| async { node_page(EngineState::Connected, PresenceState::Online) }))
        .route("/node-no-engine", get(|| async { node_page(EngineState::Absent, PresenceState::Online) }))
        .route("/node-lost", get(|| async { node_page(EngineState::Unreachable, PresenceState::Lost) }))
        .route("/node-new", get(|| async { node_page(EngineState::Unknown, PresenceState::NeverSeen) }))
        .route("/tenants", get(|| async { tenants_page() }))
        .route("/tenant", get(|| async { tenant_page() }))
        .route("/alerts", get(|| async { alerts_page() }))
        .route("/audit", get(|| async { audit_page() }))
        .route("/join", get(|| async { join_page() }))
        .route("/joined", get(|| async { made_page() }))
        .route("/api-tokens", get(|| async { tokens_page() }))
        .route(
            "/sign-in",
            get(|| async {
                Html(alone("Sign in", clock(), &sign_in::token(Some("This token is not valid."), "/")).into_string())
            }),
        )
        .route(
            "/sign-in-link",
            get(|| async { Html(alone("Sign in", clock(), &sign_in::link("hfl_x")).into_string()) }),
        )
        .route("/assets/{name}", get(assets::serve));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7089").await?;
    axum::serve(listener, router).await?;
    Ok(())
}

fn clock() -> Clock {
    Clock { now: SystemTime::now().into(), live: false }
}

fn ago(seconds: u64) -> Time {
    Time(clock().now.minus(Duration::from_secs(seconds)))
}

fn ahead(seconds: u64) -> Time {
    Time(clock().now.plus(Duration::from_secs(seconds)))
}

fn viewer() -> Viewer {
    Viewer { name: "ada".into(), role: Role::Admin, tenant: None, csrf: "x".into() }
}

fn framed(title: &str, section: Section, content: &Markup) -> Html<String> {
    Html(
        Frame { title, section, viewer: &viewer(), open_alerts: 3, live: None, clock: clock() }
            .page(content)
            .into_string(),
    )
}

fn one(i: usize) -> Node {
    let place = ["press", "oven", "paint-line", "assembly", "warehouse", "mill", "packaging"][i % 7];
    let state = match i % 97 {
        5 => PresenceState::Lost,
        41 => PresenceState::NeverSeen,
        60 => PresenceState::Left,
        _ => PresenceState::Online,
    };
    let reason = |level, rule: &str, message: &str| Attention {
        level,
        reasons: vec![Reason { level, rule: rule.into(), subject: String::new(), message: message.into() }],
    };
    let attention = match (state, i % 53) {
        (PresenceState::Lost, _) => reason(AttentionLevel::Critical, "node.lost", "no session for longer than 30 s"),
        (_, 2) => {
            reason(AttentionLevel::Critical, "service.unhealthy", "its health check fails: connection refused on :9644")
        }
        (_, 3) => reason(
            AttentionLevel::Warning,
            "clock.skew",
            "the node's clock is 4.2 s ahead of the hub's: set up NTP on one or both",
        ),
        (_, 20) => reason(
            AttentionLevel::Notice,
            "certificate.expiring",
            "The certificate ends in 2 d and has not been renewed.",
        ),
        _ => Attention { level: AttentionLevel::Ok, reasons: vec![] },
    };
    let wave = |k: f64| ((i as f64 * k).sin() * 0.5 + 0.5).powi(2);
    let gib = 1024.0 * 1024.0 * 1024.0;
    Node {
        id: format!("019ab0c2-7f00-7000-8000-{i:012x}"),
        tenant: ["acme", "nordwerk-hamburg", "zeta-foods"][i % 3].into(),
        kind: if i % 5 == 4 { Kind::Bridge } else { Kind::Agent },
        name: format!("{place}-{}", i / 7 + 1),
        presence: Presence {
            state,
            since: Some(ago(3 * DAY + i as u64 * 61)),
            remote: Some("10.20.1.4:51820".into()),
            reason: None,
        },
        attention,
        last_seen: (state != PresenceState::NeverSeen)
            .then(|| if state == PresenceState::Online { ago(i as u64 % 14) } else { ago(4_000) }),
        enrolled_at: ago(9 * DAY),
        revoked_at: None,
        host: Host {
            hostname: format!("{place}-{}.plant.example", i / 7 + 1),
            os: "Debian GNU/Linux 12".into(),
            kernel: "6.1.0-28-amd64".into(),
            architecture: "x86_64".into(),
            cpus: 4,
            memory_bytes: 8_160_437_862,
            software: "hyperfactory-agent 0.1.0".into(),
            booted_at: Some(ago(12 * DAY)),
        },
        figures: Figures {
            at: Some(ago(4)),
            cpu: Some(wave(1.7)),
            load: Some([0.42, 0.51, 0.48]),
            memory: Some(Used { used: (0.3 + 0.6 * wave(0.9)) * 8.0 * gib, total: 8.0 * gib }),
            swap: None,
            disks: vec![
                Disk {
                    mount: "/".into(),
                    space: Used { used: (0.2 + 0.78 * wave(0.31)) * 120.0 * gib, total: 120.0 * gib },
                },
                Disk { mount: "/var/lib/docker".into(), space: Used { used: 20.0 * gib, total: 240.0 * gib } },
            ],
            uptime_seconds: Some(12.0 * 86_400.0 + 4_000.0),
            agent_memory: Some(6.1e6),
        },
        service_counts: ServiceCounts {
            total: 8,
            running: if i % 53 == 2 { 7 } else { 8 },
            unhealthy: u32::from(i % 53 == 2),
            restarting: 0,
            stopped: 0,
        },
        bridge: None,
        kafka_access: None,
    }
}

fn fleet_page(n: usize, mode: &str) -> Html<String> {
    let from = if n == 7 { 1 } else { 9 };
    let all: Vec<Arc<Node>> = (from..from + n).map(|i| Arc::new(one(i))).collect();
    let query = NodeQuery::default();
    let selected = query.select(&all);
    let (rows, _) = selected.page(None, fleet::ROWS);
    let worst = fleet::worst(&all);
    let view = fleet::View {
        path: "/",
        one_tenant: false,
        query: &query,
        counts: NodeCounts::of(all.iter().map(|node| &**node)),
        rows: &rows,
        matched: selected.len(),
        worst: &worst,
        operates: true,
        no_tenants: mode == "first",
    };
    framed("Fleet", Section::Fleet, &html! { (fleet::heading(&view, 3)) (fleet::view(&view, clock())) })
}

fn service(stack: &str, name: &str, state: ServiceState, health: ServiceHealth, attention: AttentionLevel) -> Service {
    Service {
        stack: stack.into(),
        service: name.into(),
        number: 1,
        state,
        health,
        health_output: if health == ServiceHealth::Unhealthy {
            "curl: (7) Failed to connect to localhost port 9644: Connection refused".into()
        } else {
            String::new()
        },
        attention,
        restart_count: if state == ServiceState::Restarting { 14 } else { 0 },
        exit_code: matches!(state, ServiceState::Restarting | ServiceState::Exited).then_some(137),
        oom_killed: state == ServiceState::Exited,
        image: format!("docker.redpanda.com/redpandadata/{name}:v24.2.7"),
        image_digest: "sha256:4f1c2d".into(),
        started_at: Some(ago(3 * DAY)),
        finished_at: Some(ago(11 * MINUTE)),
        changed_at: Some(ago(11 * MINUTE)),
        cpu: (state == ServiceState::Running).then_some(0.031),
        memory: (state == ServiceState::Running).then_some(3.1e8),
        memory_limit: Some(1_073_741_824.0),
    }
}

fn curve(to: Timestamp, low: f64, high: f64, pace: f64) -> Vec<(i64, f64)> {
    (0..240)
        .filter(|i| !(120..132).contains(i))
        .map(|i: i64| {
            let x = i as f64;
            let noise = ((x * 12.9898 + pace).sin() * 43_758.545).fract().abs();
            let wave = ((x * pace).sin() * 0.5 + 0.5) * 0.7 + noise * 0.3;
            (to.millis() - (240 - i) * 15_000, low + (high - low) * wave)
        })
        .collect()
}

fn node_page(engine: EngineState, presence: PresenceState) -> Html<String> {
    use {AttentionLevel as A, ServiceHealth as H, ServiceState as S};
    let mut shown = one(2);
    shown.presence.state = presence;
    let services = if engine == EngineState::Connected {
        vec![
            service("demo", "web", S::Running, H::Healthy, A::Ok),
            service("demo", "worker", S::Restarting, H::None, A::Warning),
            service("plant", "grafana", S::Running, H::None, A::Ok),
            service("plant", "odoo-sync", S::Exited, H::None, A::Critical),
            service("plant", "redpanda", S::Running, H::Unhealthy, A::Critical),
            service("plant", "timescaledb", S::Running, H::Starting, A::Ok),
        ]
    } else {
        vec![]
    };
    let detail = NodeDetail {
        node: shown,
        engine: Engine {
            state: engine,
            version: "28.1.1".into(),
            message: if engine == EngineState::Absent {
                "No socket at /var/run/docker.sock.".into()
            } else {
                String::new()
            },
        },
        services,
        certificate: Some(Certificate { serial: "3f9a1c7702e84b2f9d10a4c8865be071".into(), not_after: ahead(5 * DAY) }),
        clock: hyperfactory_hub::api::resource::Clock {
            state: ClockState::Ahead,
            offset_ms: Some(4_210),
            delay_ms: Some(31),
        },
        spool: Spool {
            pending_batches: 2,
            bytes: 1_400_000,
            capacity_bytes: 268_435_456,
            lost_batches: 0,
            fault: None,
            message: String::new(),
        },
        session: Some("019ab0c2-7f00-7000-8000-0000000000aa".into()),
    };
    let labels = [("ring".to_owned(), "canary".to_owned()), ("site".to_owned(), "north".to_owned())].into();
    let coverage = vec![Coverage {
        opened_at: ago(9 * DAY),
        missing: vec![],
        doubled: vec![],
        epoch: "9f3c11d0a2b7e845".into(),
        first: 1,
        through: 17_281,
        stored: 17_279,
        lost: 2,
        complete: true,
        lost_ranges: vec![LostRange { first: 811, last: 812, reason: "corrupt".into() }],
    }];
    let now = clock().now;
    let from = now.minus(Duration::from_secs(3_600));
    let chart = |id, title, unit, top, lines: Vec<(&str, Vec<(i64, f64)>)>| Chart {
        id,
        title,
        unit,
        from,
        to: now,
        top,
        step: 15_000,
        empty: "No figures in this span.",
        lines: lines.into_iter().map(|(label, points)| Line { label: label.into(), points }).collect(),
    };
    let gib = 1024.0 * 1024.0 * 1024.0;
    let charts = if presence == PresenceState::NeverSeen {
        vec![chart("c-cpu", "CPU", Unit::Ratio, Some(1.0), vec![])]
    } else {
        vec![
            chart("c-cpu", "CPU", Unit::Ratio, Some(1.0), vec![("busy", curve(now, 0.05, 0.8, 0.05))]),
            chart(
                "c-memory",
                "Memory",
                Unit::Bytes,
                Some(7.6 * gib),
                vec![("used", curve(now, 2.0 * gib, 5.0 * gib, 0.02))],
            ),
            chart(
                "c-load",
                "Load",
                Unit::Plain,
                None,
                vec![
                    ("1 min", curve(now, 0.2, 2.7, 0.07)),
                    ("5 min", curve(now, 0.4, 1.9, 0.03)),
                    ("15 min", curve(now, 0.6, 1.2, 0.01)),
                ],
            ),
            chart(
                "c-network",
                "Network",
                Unit::Rate,
                None,
                vec![("eth0 received", curve(now, 1e4, 3.2e6, 0.09)), ("eth0 sent", curve(now, 1e4, 9e5, 0.06))],
            ),
            chart(
                "c-disks",
                "Disk space",
                Unit::Ratio,
                Some(1.0),
                vec![("/", curve(now, 0.61, 0.62, 0.01)), ("/var/lib/docker", curve(now, 0.2, 0.3, 0.01))],
            ),
            chart(
                "c-io",
                "Disk throughput",
                Unit::Rate,
                None,
                vec![("sda read", curve(now, 0.0, 2e5, 0.2)), ("sda written", curve(now, 0.0, 1.4e6, 0.11))],
            ),
        ]
    };
    framed(
        "press-1",
        Section::Fleet,
        &html! {
            (node::heading(&detail, clock())) (node::notes(&detail, &[], clock())) (node::tiles(&detail, clock()))
            (node::services(&detail, true, clock())) (node::charts(&detail, node::Span::Hour, &charts)) (node::facts(&detail, &labels, &coverage, clock()))
            (alerts::of_node(&some_alerts(), clock()))
        },
    )
}

fn some_tenants() -> Vec<Tenant> {
    let tenant = |id: &str, name: &str, range: std::ops::Range<usize>| Tenant {
        id: id.into(),
        name: name.into(),
        created_at: ago(40 * DAY),
        awaits_signature: id.starts_with("zeta"),
        nodes: NodeCounts::of(range.map(one).collect::<Vec<_>>().iter()),
    };
    vec![
        tenant("acme", "Acme Stamping GmbH", 0..40),
        tenant("nordwerk-hamburg", "Nordwerk Hamburg", 20..22),
        tenant("zeta-foods", "Zeta Foods", 0..0),
    ]
}

fn tenants_page() -> Html<String> {
    let form = tenants::Form {
        id: "Acme".into(),
        name: "Acme".into(),
        error: Some(
            "\"Acme\" is not a tenant id: use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'".into(),
        ),
    };
    framed("Tenants", Section::Tenants, &tenants::page(&some_tenants(), &form, &viewer(), clock()))
}

fn token(state: TokenState) -> Token {
    Token {
        id: "019ab0c2-7f00-7000-8000-0000000000bb".into(),
        tenant: "acme".into(),
        kind: Kind::Agent,
        name: Some("press-9".into()),
        state,
        created_at: ago(20),
        expires_at: ahead(3_580),
        created_by: "operator:ada".into(),
        node: (state == TokenState::Used).then(|| one(1).id),
    }
}

fn tenant_page() -> Html<String> {
    let all: Vec<Arc<Node>> = (0..30).map(|i| Arc::new(one(i))).collect();
    let query = NodeQuery { tenant: Some("acme".into()), ..NodeQuery::default() };
    let selected = query.select(&all);
    let (rows, _) = selected.page(None, 100);
    let worst = fleet::worst(&rows);
    let view = fleet::View {
        path: "/tenants/acme",
        one_tenant: true,
        query: &query,
        counts: NodeCounts::of(rows.iter().map(|n| &**n)),
        rows: &rows,
        matched: selected.len(),
        worst: &worst,
        operates: true,
        no_tenants: false,
    };
    framed(
        "Acme",
        Section::Tenants,
        &html! { (tenants::heading(&some_tenants()[0], &viewer(), clock())) (fleet::view(&view, clock())) (tenants::tokens(&[token(TokenState::Open), token(TokenState::Used)], clock())) },
    )
}

fn some_alerts() -> Vec<Alert> {
    let alert = |id, rule: &str, severity, message: &str, closed| Alert {
        id,
        rule: rule.into(),
        severity,
        tenant: Some("acme".into()),
        node: Some(one(2).id),
        node_name: Some("paint-line-1".into()),
        subject: String::new(),
        message: message.into(),
        opened_at: ago(14 * MINUTE),
        closed_at: closed,
    };
    vec![
        alert(3, "node.lost", AttentionLevel::Critical, "no session for longer than 30 s", None),
        alert(
            2,
            "service.restarting",
            AttentionLevel::Warning,
            "Service demo/worker/1 restarted 5 times in 10 minutes; last exit code 137.",
            None,
        ),
        alert(
            1,
            "service.unhealthy",
            AttentionLevel::Critical,
            "Service plant/redpanda/1 is unhealthy.",
            Some(ago(60)),
        ),
    ]
}

fn alerts_page() -> Html<String> {
    framed("Alerts", Section::Alerts, &alerts::page(&some_alerts(), alerts::Which::All, None, clock()))
}

fn audit_page() -> Html<String> {
    let entry = |id, actor: &str, action: &str, subject: &str, detail| AuditEntry {
        id,
        at: ago(id as u64 * 50),
        actor: actor.into(),
        credential: None,
        action: action.into(),
        tenant: Some("acme".into()),
        subject: subject.into(),
        detail,
        remote: Some("192.0.2.17".into()),
        hash: "5a".repeat(32),
    };
    let entries = vec![
        entry(
            1,
            "operator:ada",
            "token.created",
            "019ab0c2-7f00-7000-8000-0000000000bb",
            json!({"kind": "agent", "name": "press-9"}),
        ),
        entry(
            2,
            "anonymous",
            "enrollment.refused",
            "019ab0c2-7f00-7000-8000-0000000000bb",
            json!({"reason": "token used with another key"}),
        ),
        entry(
            3,
            "node:019ab0c2-7f00-7000-8000-000000000002",
            "certificate.renewed",
            "019ab0c2-7f00-7000-8000-000000000002",
            json!({"serial": "3f9a1c7702e84b2f9d10a4c8865be071"}),
        ),
        entry(4, "system", "tenant.created", "acme", json!({"name": "Acme Stamping GmbH"})),
    ];
    framed("Audit", Section::Audit, &audit::page(&entries, "", Some(1), clock()))
}

fn join_page() -> Html<String> {
    let form =
        join::Form { tenant: "acme".into(), kind: Kind::Agent, name: String::new(), valid_for: 3_600, error: None };
    framed("Add a node", Section::Join, &join::form(&some_tenants(), &form, &viewer()))
}

fn made_page() -> Html<String> {
    let text = format!("hfj_{}", "AUxvb2sgYXQgdGhpcyBsb25nIHRva2VuIHRoYXQgaXMgbWFkZSB1cA".repeat(2));
    let made = NewToken {
        info: token(TokenState::Open),
        command: format!("sudo hyperfactory-agent enroll --token {text}"),
        token: text,
    };
    framed(
        "Add a node",
        Section::Join,
        &html! { (join::made(&made, clock())) (join::waiting(&token(TokenState::Used), Some(&one(1)), clock())) },
    )
}

fn tokens_page() -> Html<String> {
    let tok = |name: &str, revoked| ApiToken {
        id: "x".into(),
        name: name.into(),
        role: Role::Operator,
        tenant: None,
        created_at: ago(DAY),
        created_by: "operator:ada".into(),
        expires_at: None,
        revoked_at: revoked,
    };
    let fresh = NewApiToken { info: tok("ada's laptop", None), token: "hft_AUxvb2sgYXQgdGhpcyBsb25nIHRva2Vu".into() };
    framed(
        "API tokens",
        Section::Access,
        &api_tokens::page(
            &[tok("ada's laptop", None), tok("grafana", Some(ago(60)))],
            &some_tenants(),
            Some(&fresh),
            None,
            &viewer(),
            clock(),
        ),
    )
}
