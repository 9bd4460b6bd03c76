//! A hub small enough to read, on the real protocol, certificates and transport, that a test can make misbehave.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pki::recovery::{Claim, EXPORTER_LABEL};
use pki::tls::{HubCertificate, HubChain, HubTls, TimeProvider, TrustedRoots, UnixTime, server_config};
use pki::{Authority, CertificateDer, JoinToken, NodeIdentity, PrivateKey, Serial, verify_request};
use prost::Message;
use protocol::delivery::{Inbox, Verdict};
use protocol::message::{
    Acknowledge, BatchBody, Challenge, Command, CommandOutcome, EnrollReply, EnrollRequest, Enrolled, RecoverProof,
    RecoverReply, RecoverRequest, Recovered, Refusal, RefusalCode, Renewed, ToHub, ToNode, Trust, Upload, enroll_reply,
    recover_reply, to_node, upload,
};
use protocol::session::{ClockReading, HubOutput, HubSession};
use protocol::{NodeId, NodeKind, Sequence, SessionId, SpoolEpoch, Timestamp, frame, version};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{Alpn, CloseCode, Connection, Endpoint, FrameReader, FrameWriter, Peer, ServerLimits, StreamError};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// What the hub has seen; tests wait on it.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// Serials of the certificates that were issued, by the key they are for.
    pub(crate) issued: HashMap<[u8; 32], Serial>,
    pub(crate) enroll_requests: usize,
    pub(crate) renew_requests: usize,
    /// Requests for recovery, with whether their proof held.
    pub(crate) recoveries: Vec<(RecoverRequest, bool)>,
    /// Roots nodes said they trust, and their trouble.
    pub(crate) trusts: Vec<(Vec<[u8; 32]>, String)>,
    /// Certificates of the sessions that were welcomed.
    pub(crate) sessions: Vec<NodeIdentity>,
    /// Numbers and bodies as they were accepted.
    pub(crate) batches: Vec<(u64, BatchBody)>,
    pub(crate) duplicates: usize,
    pub(crate) lost: Vec<(u64, u64)>,
    /// What came first on each telemetry stream: whether it was a snapshot.
    pub(crate) snapshot_first: Vec<bool>,
    pub(crate) snapshots: Vec<BatchBody>,
    pub(crate) clocks: Vec<ClockReading>,
    pub(crate) outcomes: Vec<CommandOutcome>,
    /// Bytes of batches and of commands' output, in the order in which they came.
    pub(crate) came: Vec<(Came, usize)>,
    pub(crate) goodbyes: Vec<String>,
    pub(crate) violations: Vec<String>,
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Telemetry,
    Output,
}

/// How it misbehaves.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub(crate) lose_enroll_replies: usize,
    pub(crate) lose_renew_replies: usize,
    pub(crate) lose_recover_replies: usize,
    pub(crate) refuse_recovery: Option<Refusal>,
    /// Sends what it recovers with another node's name in it.
    pub(crate) recover_as: Option<NodeId>,
    /// Stops storing, and so acknowledging.
    pub(crate) hold: bool,
    /// Ends the session at the batch after this many.
    pub(crate) break_after: Option<usize>,
    pub(crate) renew_now: bool,
    /// Calls even a new certificate due.
    pub(crate) always_due: bool,
    pub(crate) refuse_session: Option<Refusal>,
    /// Uses a renewed certificate for a session and is cut off for this long before the node hears of it.
    pub(crate) lose_welcome: Option<Duration>,
    /// Knows no certificate after the first, as one whose database is of a time before.
    pub(crate) forget_renewed: bool,
    pub(crate) denied: Vec<Serial>,
}

/// What a test has the hub do in every session.
#[derive(Clone)]
pub(crate) enum Order {
    Send(ToNode),
    Close(CloseCode, &'static str),
    Goodbye(Duration),
}

/// Unused, or the key it was used for and the answer that was given.
type Token = Option<([u8; 32], Enrolled)>;

/// Whose it is, its number, and itself.
type Leaf = (NodeId, u64, Vec<u8>);

/// What the hub's certificates come from.
struct Issuers {
    root: Authority,
    tenant: Authority,
    roots: Vec<CertificateDer<'static>>,
    links: Vec<CertificateDer<'static>>,
}

struct Shared {
    issuers: Mutex<Issuers>,
    certificate: HubCertificate,
    roots: TrustedRoots,
    clock: Arc<Ahead>,
    /// The newest leaf of every key.
    leaves: Mutex<HashMap<[u8; 32], Leaf>>,
    seen: watch::Sender<Seen>,
    script: Mutex<Script>,
    /// What is stored, by node and epoch.
    stored: Mutex<HashMap<(NodeId, u64), u64>>,
    /// Secrets of the tokens, and the key and answer of the enrollment each was used for.
    tokens: Mutex<HashMap<Vec<u8>, Token>>,
    renewals: Mutex<HashMap<[u8; 32], Vec<Vec<u8>>>>,
    orders: broadcast::Sender<Order>,
}

/// This machine's clock, some way ahead.
#[derive(Debug, Default)]
struct Ahead(AtomicI64);

impl Ahead {
    fn go_ahead(&self, by: Duration) {
        self.0.store(i64::try_from(by.as_millis()).expect("short"), Ordering::SeqCst);
    }

    fn now(&self) -> Timestamp {
        now().plus(Duration::from_millis(self.0.load(Ordering::SeqCst).unsigned_abs()))
    }
}

impl TimeProvider for Ahead {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now().seconds().unsigned_abs())))
    }
}

pub(crate) struct TestHub {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl TestHub {
    pub(crate) fn start() -> Self {
        Self::start_at(now())
    }

    /// A hub whose certificates were made at `at`.
    pub(crate) fn start_at(at: Timestamp) -> Self {
        let issuers = Issuers::new(at);
        let (chain, key) = issuers.server(at);
        let shared = Arc::new(Shared {
            roots: TrustedRoots::new(&issuers.roots).expect("a root"),
            certificate: HubCertificate::new(chain, &key).expect("a pair"),
            issuers: Mutex::new(issuers),
            clock: Arc::default(),
            leaves: Mutex::default(),
            seen: watch::Sender::new(Seen::default()),
            script: Mutex::default(),
            stored: Mutex::default(),
            tokens: Mutex::default(),
            renewals: Mutex::default(),
            orders: broadcast::channel(16).0,
        });
        let asked = Arc::clone(&shared);
        let tls = server_config(HubTls {
            roots: shared.roots.clone(),
            certificate: shared.certificate.clone(),
            denied: Arc::new(move |identity: &NodeIdentity| {
                asked.script.lock().expect("whole").denied.contains(&identity.serial)
            }),
            clock: shared.clock.clone(),
        })
        .expect("a configuration");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Endpoint::server(address, tls, ServerLimits::default()).expect("a socket");
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(serve(Arc::clone(&shared), endpoint.clone(), tasks.clone(), shutdown.clone()));
        Self { shared, endpoint, tasks, shutdown }
    }

    pub(crate) fn address(&self) -> String {
        self.endpoint.local_addr().expect("bound").to_string()
    }

    pub(crate) fn token(&self) -> JoinToken {
        self.token_at(&self.address())
    }

    /// A token that says that the hub is at `address`.
    pub(crate) fn token_at(&self, address: &str) -> JoinToken {
        let pin = self.shared.issuers.lock().expect("whole").root.spki_sha256();
        let token = JoinToken::generate(address, pin).expect("a token");
        self.shared.tokens.lock().expect("whole").insert(token.secret.to_vec(), None);
        token
    }

    /// Sets the hub's clock ahead.
    pub(crate) fn ahead(&self, by: Duration) {
        self.shared.clock.go_ahead(by);
    }

    /// The list of roots as the hub sends it.
    pub(crate) fn trust(&self) -> Trust {
        self.shared.issuers.lock().expect("whole").trust()
    }

    /// Makes a next root, linked to the one there is, and trusts both.
    pub(crate) fn prepare_root(&self) -> Authority {
        let next = Authority::create_root(now(), DAY * 3650).expect("a root");
        let mut issuers = self.shared.issuers.lock().expect("whole");
        let link = issuers.root.link(next.certificate_der(), now()).expect("a link");
        issuers.links.push(link);
        issuers.roots.push(next.certificate_der().clone());
        self.shared.roots.replace(&issuers.roots).expect("roots");
        next
    }

    /// Issues from this root from now on.
    pub(crate) fn issue_from(&self, root: Authority) {
        let mut issuers = self.shared.issuers.lock().expect("whole");
        issuers.tenant = tenant_authority(&root, now());
        issuers.root = root;
        let (chain, key) = issuers.server(now());
        self.shared.certificate.replace(chain, &key).expect("a pair");
    }

    /// Trusts the root that issues, and no other.
    pub(crate) fn retire_roots(&self) {
        let mut issuers = self.shared.issuers.lock().expect("whole");
        issuers.roots = vec![issuers.root.certificate_der().clone()];
        self.shared.roots.replace(&issuers.roots).expect("roots");
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().expect("whole"));
    }

    pub(crate) fn order(&self, order: Order) {
        assert!(self.shared.orders.send(order).is_ok(), "no session is up");
    }

    pub(crate) fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    /// Waits until the hub has seen something.
    pub(crate) async fn until(&self, what: &str, reached: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.shared.seen.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), seen.wait_for(reached)).await;
        waited.unwrap_or_else(|_| panic!("the hub never saw {what}")).expect("a hub").clone()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.endpoint.close(CloseCode::Draining, "");
        self.tasks.close();
        self.tasks.wait().await;
        assert_eq!(self.seen().violations, Vec::<String>::new());
    }
}

impl Issuers {
    fn new(at: Timestamp) -> Self {
        let root = Authority::create_root(at, DAY * 3650).expect("a root");
        let roots = vec![root.certificate_der().clone()];
        Self { tenant: tenant_authority(&root, at), root, roots, links: Vec::new() }
    }

    fn server(&self, at: Timestamp) -> (HubChain, PrivateKey) {
        let hub = self.root.issue_hub_intermediate(at, DAY * 365).expect("an intermediate");
        let key = PrivateKey::generate().expect("a key");
        let leaf = hub.issue_hub_server(&key.public_key(), at).expect("a certificate").into();
        let intermediate = hub.certificate_der().clone();
        (HubChain { leaf, intermediate, links: self.links.clone(), roots: self.roots.clone() }, key)
    }

    fn trust(&self) -> Trust {
        let ders = |list: &[CertificateDer<'static>]| list.iter().map(|der| der.to_vec()).collect();
        Trust { roots: ders(&self.roots), links: ders(&self.links) }
    }
}

fn tenant_authority(root: &Authority, at: Timestamp) -> Authority {
    root.issue_tenant_intermediate(&"acme".parse().expect("a slug"), at, DAY * 365).expect("an intermediate")
}

pub(crate) fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

async fn serve(shared: Arc<Shared>, endpoint: Endpoint, tasks: TaskTracker, shutdown: CancellationToken) {
    loop {
        let incoming = tokio::select! {
            () = shutdown.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
        tasks.spawn(async move {
            let Ok(connection) = incoming.accept().await else { return };
            let served = async {
                match connection.alpn() {
                    Alpn::Enroll => shared.enroll(&connection).await,
                    Alpn::Session => shared.session(&connection).await,
                    Alpn::Recover => shared.recover(&connection).await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => connection.close(CloseCode::Draining, "stopping"),
                served = served => {
                    if let Err(violation) = served {
                        shared.note(|seen| seen.violations.push(violation));
                    }
                }
            }
        });
    }
}

impl Shared {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(change);
    }

    fn script(&self) -> Script {
        self.script.lock().expect("whole").clone()
    }

    fn breaks_now(&self) -> bool {
        let mut script = self.script.lock().expect("whole");
        let breaks = script.break_after == Some(0);
        script.break_after = script.break_after.and_then(|left| left.checked_sub(1));
        breaks
    }

    async fn enroll(&self, connection: &Connection) -> Result<(), String> {
        let Ok((mut writer, mut reader)) = connection.accept(frame::MAX_ENROLL).await else { return Ok(()) };
        let request: EnrollRequest = reader.recv().await.map_err(text)?.ok_or("no request")?;
        self.note(|seen| seen.enroll_requests += 1);
        let reply = self.answer(request);
        let lose = {
            let mut script = self.script.lock().expect("whole");
            let lose = script.lose_enroll_replies > 0;
            script.lose_enroll_replies = script.lose_enroll_replies.saturating_sub(1);
            lose
        };
        if lose {
            connection.close(CloseCode::Internal, "lost");
            return Ok(());
        }
        writer.send(&EnrollReply { reply: Some(reply) }).await.map_err(text)?;
        writer.finish().await.map_err(text)?;
        connection.closed().await;
        Ok(())
    }

    fn answer(&self, request: EnrollRequest) -> enroll_reply::Reply {
        let refused = |code, message| enroll_reply::Reply::Refusal(refusal(code, message));
        let Ok(requested) = verify_request(&request.certificate_request) else {
            return refused(RefusalCode::Malformed, "bad request");
        };
        let mut tokens = self.tokens.lock().expect("whole");
        match tokens.get_mut(&request.secret) {
            None => refused(RefusalCode::TokenUnknown, "this hub does not know the join token; make a new one"),
            Some(Some((key, enrolled))) if *key == requested.spki_sha256() => {
                enroll_reply::Reply::Enrolled(enrolled.clone())
            }
            Some(Some(_)) => refused(RefusalCode::TokenUsed, "the join token was used by another node"),
            Some(unused) => {
                let node = NodeId::new(now(), rand::random());
                let trust = self.issuers.lock().expect("whole").trust();
                let enrolled = Enrolled {
                    node_id: node.to_bytes().to_vec(),
                    tenant: "acme".into(),
                    name: request.name,
                    kind: request.kind,
                    certificate_chain: self.issue(&requested, node, 1),
                    roots: trust.roots,
                    links: trust.links,
                };
                *unused = Some((requested.spki_sha256(), enrolled.clone()));
                enroll_reply::Reply::Enrolled(enrolled)
            }
        }
    }

    /// Takes the proof of any key it has issued for; a node that lacks one is refused.
    async fn recover(&self, connection: &Connection) -> Result<(), String> {
        let Ok((mut writer, mut reader)) = connection.accept(frame::MAX_ENROLL).await else { return Ok(()) };
        let Some(request): Option<RecoverRequest> = reader.recv().await.map_err(text)? else { return Ok(()) };
        let reply = |reply| RecoverReply { reply: Some(reply) };
        let nonce: [u8; 32] = rand::random();
        let challenge = recover_reply::Reply::Challenge(Challenge { nonce: nonce.to_vec() });
        writer.send(&reply(challenge)).await.map_err(text)?;
        let proof: RecoverProof = reader.recv().await.map_err(text)?.ok_or("no proof")?;
        let spki: [u8; 32] = request.spki_sha256.as_slice().try_into().map_err(|_| "no key")?;
        let Some((node, sequence, leaf)) = self.leaves.lock().expect("whole").get(&spki).cloned() else {
            return Err("a key that was never certified".into());
        };
        let exporter = connection.export(EXPORTER_LABEL).map_err(|error| error.to_string())?;
        let claim = Claim {
            nonce: &nonce,
            exporter: &exporter,
            node,
            sequence,
            certificate_request: &request.certificate_request,
        };
        let holds = claim.is_signed_by(&leaf.into(), &proof.signature);
        self.note(|seen| seen.recoveries.push((request.clone(), holds)));
        let requested = verify_request(&request.certificate_request).map_err(|error| error.to_string())?;
        let script = self.script();
        let forgotten = (script.forget_renewed && sequence > 1)
            .then(|| refusal(RefusalCode::CertificateUnknown, "no certificate of this node for this key"));
        let answer = match script.refuse_recovery.or(forgotten) {
            Some(refusal) => recover_reply::Reply::Refusal(refusal),
            None => {
                let chain = {
                    let mut renewals = self.renewals.lock().expect("whole");
                    let again = || self.issue(&requested, script.recover_as.unwrap_or(node), sequence + 1);
                    renewals.entry(requested.spki_sha256()).or_insert_with(again).clone()
                };
                let Trust { roots, links } = self.issuers.lock().expect("whole").trust();
                let sequence = sequence + 1;
                let recovered = Recovered { certificate_chain: chain, sequence, renew_at_ms: 0, roots, links };
                recover_reply::Reply::Recovered(recovered)
            }
        };
        if script.lose_recover_replies > 0 {
            self.script.lock().expect("whole").lose_recover_replies -= 1;
            connection.close(CloseCode::Internal, "lost");
            return Ok(());
        }
        writer.send(&reply(answer)).await.map_err(text)?;
        writer.finish().await.map_err(text)?;
        connection.closed().await;
        Ok(())
    }

    fn issue(&self, requested: &pki::RequestedKey, node: NodeId, sequence: u64) -> Vec<Vec<u8>> {
        let at = self.clock.now();
        let chain = {
            let Issuers { tenant, .. } = &*self.issuers.lock().expect("whole");
            let leaf = tenant.issue_node(requested, node, NodeKind::Agent, at, DAY * 7).expect("a certificate");
            vec![leaf, tenant.certificate_der().to_vec()]
        };
        self.leaves.lock().expect("whole").insert(requested.spki_sha256(), (node, sequence, chain[0].clone()));
        let parsed: Vec<pki::CertificateDer<'_>> = chain.iter().map(|der| der.clone().into()).collect();
        let serial = pki::node_identity(&parsed).expect("a node's").serial;
        self.note(|seen| {
            seen.issued.insert(requested.spki_sha256(), serial);
        });
        chain
    }

    async fn session(&self, connection: &Connection) -> Result<(), String> {
        let Peer::Node(identity) = connection.peer().clone() else { return Err("not a node".into()) };
        // A node that goes away is no violation; one that breaks a rule is.
        let Ok((mut writer, mut reader)) = connection.accept(frame::MAX_CONTROL).await else { return Ok(()) };
        let mut session = HubSession::open(version::SPOKEN, now());
        let hello = loop {
            let message = match reader.recv::<ToHub>().await {
                Ok(Some(message)) => message,
                Ok(None) | Err(StreamError::Closed(_)) => return Ok(()),
                Err(error) => return Err(text(error)),
            };
            let outputs = session.receive(message, now()).map_err(|error| error.to_string())?;
            if let Some(HubOutput::Hello(hello)) = outputs.into_iter().next() {
                break hello;
            }
        };
        self.note(|seen| seen.trusts.push((hello.roots.clone(), String::new())));
        let script = self.script();
        let renewed = self.leaves.lock().expect("whole").get(&identity.spki_sha256).is_some_and(|leaf| leaf.1 > 1);
        let forgotten = (script.forget_renewed && renewed)
            .then(|| refusal(RefusalCode::CertificateReplaced, "no certificate that is in use"));
        if let Some(refusal) = script.refuse_session.or(forgotten) {
            let _ = writer.send(&session.refuse(refusal)).await;
            connection.closed().await;
            return Ok(());
        }
        let epoch = SpoolEpoch(hello.spool.epoch);
        let stored = self.stored.lock().expect("whole").get(&(identity.node, epoch.0)).copied();
        let inbox = Inbox::open(epoch, stored.map(Sequence));
        let renew_at = script.renew_now.then(|| now().minus(Duration::from_secs(1)));
        let id = SessionId::new(now(), rand::random());
        let welcome = session.welcome(id, inbox.position(), "0.1.0-test", renew_at, now()).ok_or("no welcome")?;
        self.note(|seen| seen.sessions.push(identity.clone()));
        if renewed && let Some(long) = self.script.lock().expect("whole").lose_welcome.take() {
            self.clock.go_ahead(long);
            // As a refusal would be whose words were lost: it says nothing of the certificate.
            connection.close(CloseCode::Refused, "lost");
            return Ok(());
        }
        let orders = self.orders.subscribe();
        let Ok(()) = writer.send(&welcome).await else { return Ok(()) };
        tokio::select! {
            ended = self.control(connection, &identity, &mut session, &mut writer, &mut reader, orders) => ended,
            ended = self.telemetry(connection, identity.node, inbox) => ended,
        }
    }

    async fn control(
        &self,
        connection: &Connection,
        identity: &NodeIdentity,
        session: &mut HubSession,
        writer: &mut FrameWriter,
        reader: &mut FrameReader,
        mut orders: broadcast::Receiver<Order>,
    ) -> Result<(), String> {
        loop {
            let message = tokio::select! {
                order = orders.recv() => {
                    match order.map_err(|error| error.to_string())? {
                        Order::Send(message) => writer.send(&message).await.map_err(text)?,
                        Order::Close(code, reason) => {
                            connection.close(code, reason);
                            return Ok(());
                        }
                        Order::Goodbye(after) => {
                            let goodbye = session.goodbye("restarting", Some(after));
                            writer.send(&goodbye).await.map_err(text)?;
                            connection.closed().await;
                            return Ok(());
                        }
                    }
                    continue;
                }
                message = reader.recv::<ToHub>() => message,
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) | Err(StreamError::Closed(_)) => return Ok(()),
                Err(error) => return Err(text(error)),
            };
            for output in session.receive(message, now()).map_err(|error| error.to_string())? {
                match output {
                    HubOutput::Clock(reading) => self.note(|seen| seen.clocks.push(reading)),
                    HubOutput::Outcome(outcome) => self.note(|seen| seen.outcomes.push(outcome)),
                    HubOutput::Over(reason) => self.note(|seen| seen.goodbyes.push(reason)),
                    HubOutput::Send(message) => writer.send(&message).await.map_err(text)?,
                    HubOutput::Trusts { roots, trouble } => self.note(|seen| seen.trusts.push((roots, trouble))),
                    HubOutput::Renew { certificate_request, sequence } => {
                        self.note(|seen| seen.renew_requests += 1);
                        let requested = verify_request(&certificate_request).map_err(|error| error.to_string())?;
                        let chain = {
                            let mut renewals = self.renewals.lock().expect("whole");
                            let again = || self.issue(&requested, identity.node, sequence + 1);
                            renewals.entry(requested.spki_sha256()).or_insert_with(again).clone()
                        };
                        let lose = {
                            let mut script = self.script.lock().expect("whole");
                            let lose = script.lose_renew_replies > 0;
                            script.lose_renew_replies = script.lose_renew_replies.saturating_sub(1);
                            script.renew_now = lose || script.always_due;
                            lose
                        };
                        if lose {
                            connection.close(CloseCode::Internal, "lost");
                            return Ok(());
                        }
                        let renewed =
                            Renewed { certificate_chain: chain, sequence: sequence + 1, ..Renewed::default() };
                        writer.send(&session.renewed(renewed)).await.map_err(text)?;
                    }
                    HubOutput::Output(piece) => {
                        self.note(|seen| seen.came.push((Came::Output, piece.data.len())));
                    }
                    HubOutput::Hello(_) | HubOutput::Unsupported(_) | HubOutput::Kafka { .. } => {}
                }
            }
        }
    }

    async fn telemetry(&self, connection: &Connection, node: NodeId, mut inbox: Inbox) -> Result<(), String> {
        let Ok((mut writer, mut reader)) = connection.accept(frame::MAX_TELEMETRY).await else { return Ok(()) };
        let mut first = true;
        loop {
            let upload = match reader.recv::<Upload>().await {
                Ok(Some(upload)) => upload.message,
                Ok(None) | Err(StreamError::Closed(_)) => return Ok(()),
                Err(error) => return Err(text(error)),
            };
            if std::mem::take(&mut first) {
                let snapshot = matches!(upload, Some(upload::Message::Snapshot(_)));
                self.note(|seen| seen.snapshot_first.push(snapshot));
            }
            let script = self.script();
            match upload {
                Some(upload::Message::Snapshot(body)) => self.note(|seen| seen.snapshots.push(body)),
                Some(upload::Message::Batch(batch)) => {
                    self.note(|seen| seen.came.push((Came::Telemetry, batch.body.len())));
                    if self.breaks_now() {
                        connection.close(CloseCode::Internal, "broken off");
                        return Ok(());
                    }
                    let body = BatchBody::decode(&*batch.body).map_err(|error| error.to_string())?;
                    let verdict = inbox.batch(&batch, body.key).map_err(|error| error.to_string())?;
                    if !script.hold {
                        match verdict {
                            Verdict::Accept => self.note(|seen| seen.batches.push((batch.sequence, body))),
                            Verdict::Duplicate => self.note(|seen| seen.duplicates += 1),
                        }
                    }
                }
                Some(upload::Message::Lost(lost)) => {
                    inbox.lost(&lost).map_err(|error| error.to_string())?;
                    self.note(|seen| seen.lost.push((lost.first, lost.last)));
                }
                None => return Err("an empty upload".into()),
            }
            if !script.hold
                && let Some(acknowledge) = inbox.committed(inbox.accepted())
            {
                let Acknowledge { epoch, through } = acknowledge;
                self.stored.lock().expect("whole").insert((node, epoch), through);
                if writer.send(&acknowledge).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

pub(crate) fn refusal(code: RefusalCode, message: &str) -> Refusal {
    Refusal { code: code.into(), message: message.into(), retry_after_ms: 0 }
}

pub(crate) fn command() -> ToNode {
    let command = Command { command_id: vec![7; 16], action: "restart".into(), ..Command::default() };
    ToNode { message: Some(to_node::Message::Command(command)) }
}

fn text(error: StreamError) -> String {
    error.to_string()
}
