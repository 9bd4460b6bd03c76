//! The hub's HTTP side over a real database: what callers and browsers get.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it does not expect has failed")]

mod api;
mod audit;
mod commands;
mod dashboard;
mod events;
mod https;
mod kept_logs;
mod logs;
mod policy;
mod reasons;
mod rollouts;
mod rotation;
mod tenancy;
mod trust;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::StreamExt as _;
use hyperfactory_hub::access::{Access, Grant, Role};
use hyperfactory_hub::alerts::{Alerts, Policy};
use hyperfactory_hub::audit::Actor;
use hyperfactory_hub::authorities::Authorities;
use hyperfactory_hub::commands::{Commands, SteadyClock};
use hyperfactory_hub::enrollment::{self, Enrollment, NewToken};
use hyperfactory_hub::kafka_access::KafkaAccess;
use hyperfactory_hub::keys::{Keys, Master};
use hyperfactory_hub::metrics::Metrics;
use hyperfactory_hub::revocation_lists::RevocationLists;
use hyperfactory_hub::rollouts::Rollouts;
use hyperfactory_hub::rotation::Rotations;
use hyperfactory_hub::schema;
use hyperfactory_hub::tails::Tails;
use hyperfactory_hub::telemetry::history::History;
use hyperfactory_hub::telemetry::ingest::Ingest;
use hyperfactory_hub::telemetry::state::{Fleet, Report, Sample, Services};
use hyperfactory_hub::tenants::Tenants;
use hyperfactory_hub::web::{self, AppState};
use pki::PrivateKey;
use protocol::message::{
    BridgeStatus, ClassStatus, EnrollRequest, KafkaState, MqttStatus, NodeFacts, NodeStatus, RouteStatus, Service,
    ServiceHealth, ServiceKey, ServiceState,
};
use protocol::telemetry::Schema;
use protocol::{NodeId, NodeKind, SessionId, TenantId, Timestamp, metrics, version};
use serde_json::Value;
use store::Database;
use store::group::Limits;
use store::testing::TestDatabase;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

/// Long enough for a slow machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

/// A hub's HTTP side and what stands behind it.
struct Site {
    router: Router,
    database: Database,
    access: Access,
    authorities: Authorities,
    tenants: Tenants,
    enrollment: Enrollment,
    rotations: Rotations,
    fleet: Fleet,
    /// Nodes that were asked to send every sample at once.
    watched: Arc<Mutex<Vec<NodeId>>>,
    #[expect(dead_code, reason = "its tasks end with it")]
    tasks: JoinSet<()>,
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

fn tenant(id: &str) -> TenantId {
    id.parse().expect("a tenant id")
}

impl Site {
    async fn open(test: &TestDatabase) -> Self {
        let database = test.open().await;
        database.migrate(schema::MIGRATIONS).await.expect("migrated");
        let master = Master::File(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/master.key").into());
        let keys = Keys::open(&database, &master, now()).await.expect("keys");
        let authorities = Authorities::open(database.clone(), keys, now()).await.expect("authorities");
        let fleet = Fleet::load(&database, now()).await.expect("a fleet");
        let settings = enrollment::Settings {
            address: "hub.example:7443".into(),
            recovery: enrollment::RecoveryBounds::default(),
        };
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (enrollment, issuing) = Enrollment::open(
            database.clone(),
            authorities.clone(),
            fleet.clone(),
            settings,
            Arc::default(),
            Arc::new(Metrics::new().expect("metrics")),
            stop.clone(),
        )
        .await
        .expect("enrollment");
        tasks.spawn(issuing);
        let (ingest, committing) =
            Ingest::start(database.clone(), fleet.clone(), Limits::default(), stop.clone()).await.expect("ingest");
        tasks.spawn(committing);
        let (alerts, judging) =
            Alerts::start(database.clone(), fleet.clone(), authorities.clone(), Policy::default(), now, stop.clone())
                .await
                .expect("alerts");
        tasks.spawn(judging);
        let clock = SteadyClock::open(&database, now()).await.expect("a clock");
        let (commands, keeping) = Commands::start(database.clone(), Arc::default(), clock, now, stop.clone());
        tasks.spawn(keeping);
        let rollouts = Rollouts::new(database.clone(), commands.clone(), fleet.clone(), alerts.clone());
        tasks.spawn(rollouts.keep(now, stop.clone()));
        let kafka_access = KafkaAccess::new(database.clone(), commands.clone(), fleet.clone(), alerts.clone());
        let tails = Tails::new(database.clone(), Arc::default(), Arc::new(Metrics::new().expect("metrics")));
        let tenants = Tenants::new(database.clone(), authorities.clone());
        let rotations = Rotations::new(database.clone(), authorities.clone());
        let access = Access::new(database.clone());
        let watched: Arc<Mutex<Vec<NodeId>>> = Arc::default();
        let router = web::router(AppState {
            database: database.clone(),
            tenants: tenants.clone(),
            authorities: authorities.clone(),
            rotations: rotations.clone(),
            rollouts,
            kafka_access,
            enrollment: enrollment.clone(),
            revocation_lists: RevocationLists::new(database.clone(), authorities.clone()),
            fleet: fleet.clone(),
            ingest,
            history: History::new(database.clone()),
            alerts,
            commands,
            tails,
            access: access.clone(),
            metrics: Arc::new(|| "hyperfactory_hub_sessions 0\n".into()),
            watch: Arc::new({
                let watched = Arc::clone(&watched);
                move |node, _| watched.lock().expect("a list").push(node)
            }),
            secure: false,
            strict: false,
            clock: now,
            at_work: TaskTracker::new(),
            shutdown: stop,
        });
        Self { router, database, access, authorities, tenants, enrollment, rotations, fleet, watched, tasks }
    }

    async fn tenant(&self, id: &str) -> TenantId {
        let id = tenant(id);
        self.tenants.create(&id, id.as_str(), &Actor::system(), now()).await.expect("a tenant");
        id
    }

    fn grant(role: Role, tenant: Option<&str>) -> Grant {
        Grant { name: format!("{role} of {tenant:?}"), role, tenant: tenant.map(self::tenant), valid_for: None }
    }

    /// An API token's text.
    async fn token(&self, role: Role, tenant: Option<&str>) -> String {
        self.access.create_api_token(Self::grant(role, tenant), &Actor::system(), now()).await.expect("a token").1
    }

    /// A sign-in link's code.
    async fn link(&self, role: Role, tenant: Option<&str>) -> String {
        self.access.create_sign_in_link(Self::grant(role, tenant), &Actor::system(), now()).await.expect("a link")
    }

    /// Enrolls a node with a real token and key.
    async fn node(&self, tenant: &str, name: &str) -> NodeId {
        self.node_of(NodeKind::Agent, tenant, name).await
    }

    async fn node_of(&self, kind: NodeKind, tenant: &str, name: &str) -> NodeId {
        let new = NewToken {
            tenant: self::tenant(tenant),
            kind,
            name: Some(name.into()),
            valid_for: Duration::from_secs(600),
        };
        let (_, token) = self.enrollment.create_token(new, &Actor::system(), now()).await.expect("a join token");
        self.enroll_as(kind, &token).await
    }

    async fn enroll(&self, token: &pki::JoinToken) -> NodeId {
        self.enroll_as(NodeKind::Agent, token).await
    }

    async fn enroll_as(&self, kind: NodeKind, token: &pki::JoinToken) -> NodeId {
        let key = PrivateKey::generate().expect("a key");
        let request = EnrollRequest {
            versions: Some(version::SPOKEN),
            secret: token.secret.to_vec(),
            certificate_request: key.certificate_request().expect("a request"),
            kind: protocol::message::NodeKind::from(kind).into(),
            name: "host".into(),
            software: "test".into(),
        };
        let remote = [127, 0, 0, 1].into();
        let enrolled = self.enrollment.enroll(request, remote, now()).await.expect("enrolled");
        NodeId::from_bytes(&enrolled.node_id).expect("a node id")
    }

    /// Gives a node a session.
    fn connect(&self, node: NodeId) {
        let session = SessionId::new(now(), [1; 10]);
        let facts = NodeFacts { hostname: "host.example".into(), cpus: 4, ..NodeFacts::default() };
        self.fleet.session_opened(node, session, "192.0.2.1:4000".parse().expect("an address"), facts, now());
    }

    /// Has a node report one service.
    fn report(&self, node: NodeId, service: &str, health: ServiceHealth) {
        let service = Service {
            key: Some(ServiceKey { stack: "shop".into(), service: service.into(), number: 1 }),
            state: ServiceState::Running.into(),
            health: health.into(),
            health_output: "connection refused".into(),
            image: "nginx:1".into(),
            ..Service::default()
        };
        self.fleet.report(
            node,
            vec![Report { current: true, services: Services::new(vec![service]), ..Report::default() }],
            now(),
        );
    }

    /// Has a bridge report how it stands with its brokers, how many seconds ago a record went to them and how many they have
    /// confirmed, and its other figures.
    fn tell_of_brokers(&self, node: NodeId, kafka: KafkaState, message: &str, last: u64, delivered: i64) {
        let ago = |seconds| now().minus(Duration::from_secs(seconds));
        let route = |from: &str, last_ms| RouteStatus { from: from.into(), to: "machines".into(), last_ms };
        let bridge = BridgeStatus {
            kafka: kafka.into(),
            message: message.into(),
            certificate_not_after_ms: now().plus(Duration::from_secs(30 * 86_400 + 60)).millis(),
            certificate_trouble: String::new(),
            routes: vec![route("machines/#", ago(last).millis()), route("spare/#", 0)],
            classes: vec![ClassStatus {
                name: "trends".into(),
                overflow: "drop-oldest".into(),
                dropped: 4_321,
                first: 4_000,
                last: 4_320,
                reason: "too old".into(),
                fault: "the disk is full: free some space".into(),
            }],
            mqtt: vec![
                MqttStatus {
                    name: "plant".into(),
                    connected: true,
                    refused: vec!["secret/# (not authorized)".into()],
                    ..MqttStatus::default()
                },
                MqttStatus { name: "line".into(), trouble: "no such host".into(), ..MqttStatus::default() },
            ],
        };
        let known = [
            (metrics::BRIDGE_PENDING, 1_240),
            (metrics::BRIDGE_BYTES, 3_072),
            (metrics::BRIDGE_LAG, 125_000),
            (metrics::BRIDGE_DELIVERED, delivered),
            (metrics::BRIDGE_FILTERED, 77),
            (metrics::BRIDGE_REFUSED, 57),
            (metrics::BRIDGE_DROPPED, 4_444),
            (metrics::BRIDGE_UNMAPPED, 0),
        ];
        let schema = known.map(|(metric, _)| (metric.into(), vec!["".into()])).to_vec();
        let schema = Arc::new(Schema::new(schema).expect("a schema"));
        // One of the same millisecond as the one before would be passed over.
        let before = now();
        while now() <= before {
            std::thread::yield_now();
        }
        let sample = Sample::new(now(), schema, known.into_iter().map(|(_, value)| Some(value)));
        let status = NodeStatus { bridge: Some(Box::new(bridge)), ..NodeStatus::default() };
        let report = Report { current: true, status: Some(status), samples: vec![sample], ..Report::default() };
        self.fleet.report(node, vec![report], now());
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 16 << 20).await.expect("a body");
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).expect("text") }
    }

    async fn call(&self, method: Method, path: &str, bearer: &str, body: Option<Value>) -> Answer {
        let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {bearer}"));
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        self.send(request.expect("a request")).await
    }

    async fn get(&self, path: &str, bearer: &str) -> Answer {
        self.call(Method::GET, path, bearer, None).await
    }

    async fn post(&self, path: &str, bearer: &str, body: Value) -> Answer {
        self.call(Method::POST, path, bearer, Some(body)).await
    }

    /// With an Idempotency-Key.
    async fn post_keyed(&self, path: &str, bearer: &str, key: &str, body: Value) -> Answer {
        let request = Request::post(path)
            .header("authorization", format!("Bearer {bearer}"))
            .header("content-type", "application/json")
            .header("idempotency-key", key);
        self.send(request.body(Body::from(body.to_string())).expect("a request")).await
    }

    /// A stream of server-sent events.
    async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        Events { body: response.into_body().into_data_stream(), read: String::new() }
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// The ids of a page's items.
    fn ids(&self) -> Vec<String> {
        let page = self.json();
        let items = page["items"].as_array().unwrap_or_else(|| panic!("no page: {}", self.body));
        items.iter().map(|item| item["id"].to_string().trim_matches('"').to_owned()).collect()
    }
}

struct Events {
    body: BodyDataStream,
    read: String,
}

impl Events {
    /// The next event: its name and its data; `None` when the stream has ended.
    async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
                let found = (field("event:").to_owned(), field("data:").to_owned());
                self.read = rest.to_owned();
                if found != (String::new(), String::new()) {
                    return Some(found);
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("an event in time")?;
            self.read.push_str(std::str::from_utf8(&chunk.expect("a whole stream")).expect("text"));
        }
    }

    /// Reads on until an event's data holds `text`.
    async fn until(&mut self, text: &str) -> String {
        loop {
            let (_, data) = self.next().await.unwrap_or_else(|| panic!("the stream ended before {text:?}"));
            if data.contains(text) {
                return data;
            }
        }
    }
}
