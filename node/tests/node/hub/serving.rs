//! What it does with those who connect.

use std::sync::Arc;
use std::time::Duration;

use pki::recovery::{Claim, EXPORTER_LABEL};
use pki::{NodeIdentity, verify_request};
use prost::Message;
use protocol::delivery::{Inbox, Verdict};
use protocol::message::{
    Acknowledge, BatchBody, Challenge, EnrollReply, EnrollRequest, Enrolled, RecoverProof, RecoverReply,
    RecoverRequest, Recovered, RefusalCode, Renewed, ToHub, Trust, Upload, enroll_reply, recover_reply, upload,
};
use protocol::session::{HubOutput, HubSession};
use protocol::{NodeId, NodeKind, Sequence, SessionId, SpoolEpoch, frame, version};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{Alpn, CloseCode, Connection, Endpoint, FrameReader, FrameWriter, Peer, StreamError};

use super::{Came, DAY, Issuers, Order, Script, Seen, Shared, now, refusal};

pub(super) async fn serve(shared: Arc<Shared>, endpoint: Endpoint, tasks: TaskTracker, shutdown: CancellationToken) {
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
        let refused = if script.forgets(&spki, sequence) {
            Some(refusal(RefusalCode::CertificateUnknown, "no certificate of this node for this key"))
        } else if script.left_behind.contains(&spki) {
            Some(refusal(RefusalCode::NodeFrozen, "two nodes have this key: unfreeze it"))
        } else {
            None
        };
        let answer = match script.refuse_recovery.or(refused) {
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
        let sequence = self.leaves.lock().expect("whole").get(&identity.spki_sha256).map_or(1, |leaf| leaf.1);
        let spki = &identity.spki_sha256;
        let unused = script.forgets(spki, sequence) || script.left_behind.contains(spki);
        let unused = unused.then(|| refusal(RefusalCode::CertificateReplaced, "no certificate that is in use"));
        if let Some(refusal) = script.refuse_session.or(unused) {
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
        if sequence > 1
            && let Some(long) = self.script.lock().expect("whole").lose_welcome.take()
        {
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

fn text(error: StreamError) -> String {
    error.to_string()
}
