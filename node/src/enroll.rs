//! Turns a join token into an identity: one request, repeated with the same key until its answer arrives.

use std::sync::Arc;
use std::time::Duration;

use pki::recovery::FIRST_SEQUENCE;
use pki::{JoinToken, TrustError};
use protocol::id::IdError;
use protocol::message::{EnrollReply, EnrollRequest, Enrolled, Refusal, RefusalCode, enroll_reply};
use protocol::{NodeId, NodeKind, frame, version};
use tokio::time::Instant;
use transport::{Backoff, CloseCode, ConnectError, Connection, Endpoint, EndpointError, StreamError};

use crate::clock::Clock;
use crate::identity::{Credential, CredentialError, Identity, IdentityError, IdentityStore, Pending};
use crate::link::{Caller, DialError, ders, dial};

/// How long the hub may take to answer a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How long a person, or a service that starts, waits while the hub does not answer or is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the end of the connection may take to reach the hub.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);
/// Delays between attempts.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(20);

/// What a node says of itself when it enrolls.
#[derive(Clone, Debug)]
pub struct Applicant {
    /// What it is.
    pub kind: NodeKind,
    /// The name it would like where the token leaves it open.
    pub name: String,
    /// For example `hyperfactory-agent 0.1.0`.
    pub software: String,
}

/// Enrolls this machine by a socket of its own, and sees to it that the service can read what it keeps.
///
/// # Errors
/// As [`enroll`].
pub async fn enroll_machine(
    store: &IdentityStore,
    token: &JoinToken,
    applicant: &Applicant,
    clock: &Clock,
) -> Result<Identity, EnrollError> {
    let endpoint = Endpoint::client()?;
    let enrolled = enroll(&endpoint, store, token, applicant, clock, PATIENCE).await;
    // Also after a failure: the key that waits for its certificate has to be readable by the service.
    store.hand_over();
    // The hub is to hear of the end of the connection.
    let _ = tokio::time::timeout(GOODBYE_WITHIN, endpoint.wait_idle()).await;
    enrolled
}

/// Enrolls this node and saves its identity. While the hub does not answer or is busy, it keeps trying for `patience`.
///
/// The key is saved before the first request leaves and serves every repetition, also after a crash: a token works
/// once, and asking again with the same key gives the same certificate.
///
/// # Errors
/// [`EnrollError`], which says what to do; [`EnrollError::is_refusal`] tells a refusal from a failure.
pub async fn enroll(
    endpoint: &Endpoint,
    store: &IdentityStore,
    token: &JoinToken,
    applicant: &Applicant,
    clock: &Clock,
    patience: Duration,
) -> Result<Identity, EnrollError> {
    if let Some(identity) = store.load()? {
        let place = store.path().map_or_else(|| "memory".to_owned(), |path| path.display().to_string());
        return Err(EnrollError::Already { node: identity.node, hub: identity.hub, place });
    }
    let pending = Pending::Enroll(token.secret_hash());
    let key = store.pending_key(pending, None)?;
    let request = EnrollRequest {
        versions: Some(version::SPOKEN),
        secret: token.secret.to_vec(),
        certificate_request: key.certificate_request().map_err(IdentityError::Key)?,
        kind: protocol::message::NodeKind::from(applicant.kind).into(),
        name: applicant.name.clone(),
        software: applicant.software.clone(),
    };
    let deadline = Instant::now() + patience;
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    let enrolled = loop {
        let error = match ask(endpoint, token, &request, clock).await {
            Ok(enrolled) => break enrolled,
            Err(error) => error,
        };
        let Some(retry_after) = error.retry_after() else { return Err(error) };
        backoff.after(retry_after);
        let delay = backoff.next_delay(&mut rand::rng());
        if Instant::now() + delay >= deadline {
            return Err(error);
        }
        tracing::info!(hub = token.hub, "not enrolled yet, next attempt in {:.1} s: {error}", delay.as_secs_f32());
        tokio::time::sleep(delay).await;
    };
    let identity = identity(enrolled, token, applicant.kind, key, clock)?;
    store.save(&identity)?;
    store.forget_pending(pending)?;
    Ok(identity)
}

/// One attempt.
async fn ask(
    endpoint: &Endpoint,
    token: &JoinToken,
    request: &EnrollRequest,
    clock: &Clock,
) -> Result<Enrolled, EnrollError> {
    let connection = dial(endpoint, &token.hub, Caller::Stranger(token.root_pin), clock).await?;
    let answer = tokio::time::timeout(ANSWER_WITHIN, exchange(&connection, request)).await;
    connection.close(CloseCode::Done, "");
    match answer.map_err(|_| EnrollError::Unanswered)??.reply {
        Some(enroll_reply::Reply::Enrolled(enrolled)) => Ok(enrolled),
        Some(enroll_reply::Reply::Refusal(refusal)) => Err(EnrollError::Refused(refusal)),
        None => Err(EnrollError::Answer("it is of a kind this release does not know; update this node's software")),
    }
}

async fn exchange(connection: &Connection, request: &EnrollRequest) -> Result<EnrollReply, EnrollError> {
    let (mut writer, mut reader) = connection.open(frame::MAX_ENROLL).await.map_err(StreamError::Closed)?;
    writer.send(request).await?;
    writer.finish().await?;
    reader.recv().await?.ok_or(EnrollError::Unanswered)
}

/// Checks the hub's answer and makes an identity of it.
fn identity(
    enrolled: Enrolled,
    token: &JoinToken,
    kind: NodeKind,
    key: pki::PrivateKey,
    clock: &Clock,
) -> Result<Identity, EnrollError> {
    let [wanted, links] = [enrolled.roots, enrolled.links].map(ders);
    let pinned = pki::trust::find_root(&wanted, &token.root_pin).map_err(EnrollError::Root)?;
    let known = [pinned.clone()];
    // What is not linked to the pinned root now can be sent again in a session, with what links it.
    let roots = if pki::roots::prove(&known, &wanted, &links, clock.now()).is_ok() { wanted } else { known.to_vec() };
    let chain = enrolled.certificate_chain.into_iter().map(Into::into).collect();
    let credential = Credential::new(key, chain, FIRST_SEQUENCE)?;
    let subject = credential.subject();
    let (node, tenant) = (NodeId::from_bytes(&enrolled.node_id)?, enrolled.tenant.parse()?);
    if (subject.node, &subject.tenant, subject.kind) != (node, &tenant, kind) {
        return Err(EnrollError::Answer("its certificate names another node than the answer does"));
    }
    Ok(Identity {
        node,
        tenant,
        kind,
        name: enrolled.name,
        hub: token.hub.clone(),
        roots,
        credential: Arc::new(credential),
        previous: None,
    })
}

/// This node did not enroll.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// It is enrolled.
    #[error(
        "this machine is enrolled already, as node {node} with the hub at {hub}; to enroll it anew, stop the service \
         and move {place} away"
    )]
    Already {
        /// The node it is.
        node: NodeId,
        /// Its hub.
        hub: String,
        /// Where the identity is.
        place: String,
    },
    /// Keys or identity could not be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No socket.
    #[error("this machine gives no UDP socket")]
    Socket(#[from] EndpointError),
    /// The hub was not reached, or is not the one the token is for.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke off.
    #[error("the connection to the hub broke off before its answer came; try again with the same token")]
    Broken(#[from] StreamError),
    /// No answer came.
    #[error("the hub did not answer; look at its log, and try again with the same token")]
    Unanswered,
    /// The hub refused.
    #[error("the hub refused: {}", refusal_text(.0))]
    Refused(Refusal),
    /// The root in the answer is not the pinned one.
    #[error("the hub's answer holds a root that the join token does not pin; make a new token at the hub")]
    Root(#[source] TrustError),
    /// The certificate in the answer is not this node's.
    #[error("the hub's answer holds no certificate for this node's key; look at the hub's log")]
    Certificate(#[from] CredentialError),
    /// An id in the answer is none.
    #[error("the hub's answer is malformed; look at the hub's log")]
    Id(#[from] IdError),
    /// The answer makes no sense.
    #[error("the hub's answer can't be used: {0}")]
    Answer(&'static str),
}

impl EnrollError {
    /// Whether the hub was reached and would not have this node: trying again with the same token is of no use.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_)) && self.retry_after().is_none()
    }

    /// When trying again may help: no sooner than after this.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unanswered => Some(Duration::ZERO),
            Self::Broken(StreamError::Closed(closed)) => (closed.code != CloseCode::Refused).then_some(Duration::ZERO),
            Self::Broken(_) => Some(Duration::ZERO),
            Self::Dial(DialError::Resolve { .. } | DialError::NoAddress { .. }) => Some(Duration::ZERO),
            Self::Dial(DialError::Connect(
                ConnectError::NoAnswer { .. }
                | ConnectError::Busy
                | ConnectError::Address { .. }
                | ConnectError::Closed(_),
            )) => Some(Duration::ZERO),
            Self::Refused(refusal) => match refusal.code() {
                RefusalCode::Busy | RefusalCode::Internal => Some(Duration::from_millis(refusal.retry_after_ms)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn refusal_text(refusal: &Refusal) -> String {
    if !refusal.message.is_empty() {
        return refusal.message.clone();
    }
    match refusal.code() {
        RefusalCode::TokenUnknown => "it does not know this join token; make a new one there",
        RefusalCode::TokenExpired => "the join token has expired; make a new one",
        RefusalCode::TokenUsed => "the join token was used by another node; make a new one",
        RefusalCode::TokenKind => "the join token is for the other kind of node; make one for this kind",
        RefusalCode::Version => "hub and node are of releases that do not go together; update the older one",
        RefusalCode::Busy => "it is busy; try again",
        _ => "it gives no reason; look at its log",
    }
    .to_owned()
}
