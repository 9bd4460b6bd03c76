//! What the tests stand on: a hub's data with one tenant, nodes that enroll, and batches as nodes write them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use hyperfactory_hub::audit::{self, Actor, Entry, Filter};
use hyperfactory_hub::authorities::Authorities;
use hyperfactory_hub::enrollment::{Enrollment, NewToken, RecoveryBounds, Settings};
use hyperfactory_hub::keys::{Keys, Master};
use hyperfactory_hub::metrics::Metrics;
use hyperfactory_hub::rotation::{Direction, Phase, Rotation, RotationError, Rotations, Wish};
use hyperfactory_hub::schema::MIGRATIONS;
use hyperfactory_hub::telemetry::state::Fleet;
use hyperfactory_hub::tenants::Tenants;
use pki::{CertificateDer, JoinToken, NodeIdentity, PrivateKey};
use prost::Message;
use protocol::message::{
    BatchBody, EnrollRequest, Enrolled, Refusal, RenewRequest, Service, ServiceKey, ServiceState, SpoolRange, Upload,
    upload,
};
use protocol::telemetry::{Encoder, Row, Schema};
use protocol::{NodeId, NodeKind, TenantId, Timestamp, metrics, version};
use store::Database;
use store::testing::TestDatabase;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
pub(crate) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Some seconds after [`NOW`].
pub(crate) fn at(after: u64) -> Timestamp {
    NOW.plus(seconds(after))
}

/// A hub's data, with the tenant `acme`.
pub(crate) struct World {
    pub(crate) database: Database,
    pub(crate) fleet: Fleet,
    pub(crate) authorities: Authorities,
    pub(crate) rotations: Rotations,
    pub(crate) tenants: Tenants,
    pub(crate) enrollment: Enrollment,
    pub(crate) metrics: Arc<Metrics>,
    _tasks: JoinSet<()>,
}

impl World {
    pub(crate) async fn new(database: &TestDatabase) -> Self {
        Self::new_at(database, NOW).await
    }

    /// One whose hub and tenant began at `now`.
    pub(crate) async fn new_at(database: &TestDatabase, now: Timestamp) -> Self {
        let world = Self::opened_at(database, &master(), now).await;
        world.tenants.create(&acme(), "Acme Ltd", &Actor::system(), now).await.expect("a tenant");
        world
    }

    /// As a hub that starts.
    pub(crate) async fn open(database: &TestDatabase) -> Self {
        Self::opened(database, &master()).await
    }

    /// As a hub that starts with another master key.
    pub(crate) async fn opened(database: &TestDatabase, master: &Master) -> Self {
        Self::opened_at(database, master, NOW).await
    }

    async fn opened_at(database: &TestDatabase, master: &Master, now: Timestamp) -> Self {
        let database = database.open().await;
        database.migrate(MIGRATIONS).await.expect("tables");
        let keys = Keys::open(&database, master, now).await.expect("keys");
        let authorities = Authorities::open(database.clone(), keys, now).await.expect("authorities");
        let fleet = Fleet::load(&database, now).await.expect("a fleet");
        let settings = Settings { address: "hub.example:7443".into(), recovery: RecoveryBounds::default() };
        let (door, stop) = (database.clone(), CancellationToken::new());
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let (enrollment, issuing) = Enrollment::open(
            door,
            authorities.clone(),
            fleet.clone(),
            settings,
            Arc::default(),
            Arc::clone(&metrics),
            stop,
        )
        .await
        .expect("a door");
        let mut tasks = JoinSet::new();
        tasks.spawn(issuing);
        let tenants = Tenants::new(database.clone(), authorities.clone());
        let rotations = Rotations::new(database.clone(), authorities.clone());
        Self { database, fleet, authorities, rotations, tenants, enrollment, metrics, _tasks: tasks }
    }

    pub(crate) async fn token(&self, kind: NodeKind, name: Option<&str>) -> JoinToken {
        self.token_at(kind, name, NOW).await
    }

    pub(crate) async fn token_at(&self, kind: NodeKind, name: Option<&str>, now: Timestamp) -> JoinToken {
        let new = NewToken { tenant: acme(), kind, name: name.map(str::to_owned), valid_for: seconds(3600) };
        self.enrollment.create_token(new, &Actor::operator("ann"), now).await.expect("a token").1
    }

    pub(crate) async fn enroll(
        &self,
        token: &JoinToken,
        key: &PrivateKey,
        now: Timestamp,
    ) -> Result<Enrolled, Refusal> {
        self.enrollment.enroll(request(token, key), HERE, now).await
    }

    /// A node of this kind, enrolled at `now`, with its key.
    pub(crate) async fn enrolled_as(&self, kind: NodeKind, now: Timestamp) -> (PrivateKey, Enrolled) {
        let (token, key) = (self.token_at(kind, None, now).await, key());
        let request = EnrollRequest { kind: protocol::message::NodeKind::from(kind).into(), ..request(&token, &key) };
        let enrolled = self.enrollment.enroll(request, HERE, now).await.expect("enrolled");
        (key, enrolled)
    }

    /// A node of the tenant, enrolled now.
    pub(crate) async fn node(&self) -> (NodeId, NodeIdentity) {
        let token = self.token(NodeKind::Agent, None).await;
        let enrolled = self.enroll(&token, &key(), NOW).await.expect("enrolled");
        let identity = identity(&enrolled.certificate_chain);
        (identity.node, identity)
    }

    /// A node of another tenant.
    pub(crate) async fn node_of(&self, tenant: &TenantId) -> (NodeId, NodeIdentity) {
        let new = NewToken { tenant: tenant.clone(), kind: NodeKind::Agent, name: None, valid_for: seconds(3600) };
        let token = self.enrollment.create_token(new, &Actor::operator("ann"), NOW).await.expect("a token").1;
        let identity = identity(&self.enroll(&token, &key(), NOW).await.expect("enrolled").certificate_chain);
        (identity.node, identity)
    }

    pub(crate) async fn audited(&self, action: &str) -> Vec<Entry> {
        let filter = Filter { action: Some(action.into()), ..Filter::default() };
        audit::list(&self.database, &filter).await.expect("the audit log")
    }

    pub(crate) async fn close(self) {
        self.database.close().await;
    }
}

/// A step of a rotation, whoever is not ready.
pub(crate) async fn step(
    rotations: &Rotations,
    rotation: &Rotation,
    direction: Direction,
    now: Timestamp,
) -> Result<Rotation, RotationError> {
    let wish = Wish { leave: usize::MAX, brokers_updated: true, ..Wish::new(direction, rotation.phase) };
    rotations.step(rotation.id, wish, &Actor::operator("ann"), now).await
}

/// A rotation of the fleet root from beginning to end, whoever is not ready.
pub(crate) async fn rotate_root(rotations: &Rotations, now: Timestamp) -> Rotation {
    let ann = Actor::operator("ann");
    let mut rotation = rotations.start(pki::Role::Root, "a test", &ann, now).await.expect("begun");
    while rotation.phase != Phase::Done {
        rotation = step(rotations, &rotation, Direction::Forward, now).await.expect("a step");
    }
    rotation
}

/// The key file of every world.
pub(crate) fn master() -> Master {
    Master::File(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/master.key").into())
}

pub(crate) fn acme() -> TenantId {
    "acme".parse().expect("a tenant")
}

pub(crate) fn key() -> PrivateKey {
    PrivateKey::generate().expect("a key")
}

/// A node's first renewal.
pub(crate) fn first_renewal(certificate_request: &[u8]) -> RenewRequest {
    RenewRequest { certificate_request: certificate_request.to_vec(), sequence: 1 }
}

pub(crate) fn request(token: &JoinToken, key: &PrivateKey) -> EnrollRequest {
    EnrollRequest {
        versions: Some(version::SPOKEN),
        secret: token.secret.to_vec(),
        certificate_request: key.certificate_request().expect("a request"),
        kind: protocol::message::NodeKind::Agent.into(),
        name: "plant-1.example".into(),
        software: "hyperfactory-agent 0.1.0".into(),
    }
}

pub(crate) fn identity(chain: &[Vec<u8>]) -> NodeIdentity {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(&**der)).collect();
    pki::node_identity(&chain).expect("a node's chain")
}

/// A node's recorder in small: one gauge of the host, one counter of `eth0`.
pub(crate) struct Recorder {
    pub(crate) epoch: u64,
    pub(crate) last: u64,
    pub(crate) schema: Arc<Schema>,
    pub(crate) encoder: Encoder,
}

impl Recorder {
    pub(crate) fn new(epoch: u64) -> Self {
        let series =
            vec![(metrics::CPU_BUSY.into(), vec!["".into()]), (metrics::NETWORK_SENT.into(), vec!["eth0".into()])];
        let schema = Arc::new(Schema::new(series).expect("a schema"));
        Self { epoch, last: 0, schema, encoder: Encoder::new() }
    }

    pub(crate) fn spool(&self) -> SpoolRange {
        SpoolRange { epoch: self.epoch, first: 1, last: self.last }
    }

    /// The next batch: one row per (time, share of the processor in 1/10,000, bytes sent so far).
    pub(crate) fn batch(&mut self, key: bool, rows: &[(Timestamp, i64, i64)], services: Vec<Service>) -> Upload {
        self.last += 1;
        let body = self.body(key, rows, services);
        let batch = protocol::message::Batch { epoch: self.epoch, sequence: self.last, body: body.encode_to_vec() };
        Upload { message: Some(upload::Message::Batch(batch)) }
    }

    pub(crate) fn body(&mut self, key: bool, rows: &[(Timestamp, i64, i64)], services: Vec<Service>) -> BatchBody {
        let rows: Vec<Row> =
            rows.iter().map(|(at, busy, sent)| Row { at: *at, values: vec![Some(*busy), Some(*sent)] }).collect();
        let samples = self.encoder.encode(&self.schema, &rows, key).bytes;
        BatchBody { key, samples, services, ..BatchBody::default() }
    }
}

pub(crate) fn service(name: &str, state: ServiceState) -> Service {
    Service {
        key: Some(ServiceKey { stack: "shop".into(), service: name.into(), number: 1 }),
        container_id: format!("{name}-container"),
        state: state.into(),
        ..Service::default()
    }
}
