//! From a join token to a certificate, from a certificate to the next one, and who may hold a session.

mod advice;
mod freeze;
mod group;
mod kafka;
mod keys;
mod name;
mod recovery;
mod registry;
mod revocation;
mod tokens;
mod trusting;

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pki::recovery::FIRST_SEQUENCE;
use pki::{AuthorityError, CertificateDer, NodeIdentity, RequestError, RequestedKey};
use protocol::message::{EnrollRequest, Enrolled, Refusal, RefusalCode, RenewRequest, Renewed};
use protocol::{NodeId, NodeKind, TenantId, Timestamp, version};
use serde_json::json;
use store::group::{GroupError, Submitter, group_commit};
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{Database, StoreError, Transaction};
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Actor, Record, action};
use crate::authorities::{Authorities, AuthoritiesError, Certified, Roots};
use crate::gateway::Registry as Sessions;
use crate::rows;
use crate::telemetry::state::{Certificate, Fleet, Member};
use group::{Enroll, Given, Operation, Renew, Writer};
use keys::{STANDING, Standing};
use registry::Registry;

pub use advice::{ADVICE_WITHIN_MAX, ADVISED_PER_SECOND, AdviseError, Advised, Whom};
pub use freeze::UnfreezeError;
pub use recovery::{Asked, RecoveryBounds};
pub use revocation::{Reason, RevokeError, Revoked};
pub use tokens::{NewToken, TokenError, TokenInfo};

/// Longest life of a join token.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(30 * 86_400);

/// A node that has got so many certificates within this time and used none gets no more for a while.
const UNUSED_MAX: i64 = 5;
const UNUSED_WITHIN: Duration = Duration::from_secs(3600);
/// When a node is to come again whose tenant's authority is not signed yet. Shorter than a service may take to start: longer,
/// and the node's program would give up and be started again in a few seconds.
const ASK_AGAIN_IN: Duration = Duration::from_secs(20);

/// What enrollment needs to know of its hub.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port` under which nodes reach the hub; it goes into join tokens.
    pub address: String,
    /// For how long, and how often, a node may come back by itself.
    pub recovery: RecoveryBounds,
}

/// The door for new nodes, and the list of those that are in. Clones share it.
#[derive(Clone)]
pub struct Enrollment(Arc<Inner>);

struct Inner {
    database: Database,
    authorities: Authorities,
    fleet: Fleet,
    settings: Settings,
    registry: Registry,
    sessions: Arc<Sessions>,
    /// Where certificates are asked for.
    submitter: Submitter<Writer>,
    trusting: Submitter<trusting::Writer>,
}

/// A certificate as it goes to a node.
struct Issued {
    chain: Vec<Vec<u8>>,
    identity: NodeIdentity,
    /// The row of the intermediate it is from.
    authority: i64,
}

impl Issued {
    /// What the audit log says of it.
    fn logged(&self) -> Result<serde_json::Value, pki::TrustError> {
        Ok(audit::certificate("node", &pki::Summary::of(&self.chain[0])?))
    }
}

/// A join token's row.
struct TokenRow {
    id: String,
    tenant: TenantId,
    kind: NodeKind,
    name: Option<String>,
    expires_at: Timestamp,
    used: bool,
    /// How the key stands that came with it.
    standing: Standing,
}

/// Why nothing was issued; becomes a [`Refusal`].
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("an issued certificate can't be read back")]
    Unreadable(#[from] pki::TrustError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Group(#[from] GroupError),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Enrollment {
    /// Opens the door; reads all nodes and their certificates, so that a session costs no query. Gives the door, and the
    /// task that issues until `stop`, or until nobody holds the door.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open(
        database: Database,
        authorities: Authorities,
        fleet: Fleet,
        settings: Settings,
        sessions: Arc<Sessions>,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), StoreError> {
        let registry = Registry::load(&database).await?;
        for (node, certificate) in registry.certificates() {
            fleet.certificate(node, certificate);
        }
        let (trusting, hearing) = group_commit(database.clone(), trusting::Writer, trusting::LIMITS, stop.clone());
        let mut issuing = None;
        let inner = Arc::new_cyclic(|inner| {
            let writer = Writer(Weak::clone(inner));
            let (submitter, task) = group_commit(database.clone(), writer, group::LIMITS, stop);
            issuing = Some(task);
            Inner { database, authorities, fleet, settings, registry, sessions, submitter, trusting }
        });
        Ok((Self(inner), async move {
            if let Some(issuing) = issuing {
                tokio::join!(issuing, hearing);
            }
        }))
    }

    /// Enrolls the node that presents a join token. A token works once; presented again with the same key, as by a
    /// node that never saw the reply, it gives the same certificate again.
    ///
    /// # Errors
    /// What to tell the node. Every refusal is in the audit log, without the secret.
    pub async fn enroll(&self, request: EnrollRequest, remote: IpAddr, now: Timestamp) -> Result<Enrolled, Refusal> {
        let mut tries = 0;
        loop {
            let error = match self.try_enroll(&request, remote, now).await {
                Ok(enrolled) => return Ok(enrolled),
                Err(error) => error,
            };
            tries += 1;
            match error {
                // Two nodes took the same name at once.
                Failure::Group(GroupError::Store(error)) if error.is_duplicate() && tries < 5 => {}
                Failure::Refused(refusal) => {
                    let tenant = self.token_tenant(&request.secret).await;
                    let record = Record {
                        actor: Actor::anonymous(),
                        action: action::ENROLLMENT_REFUSED,
                        tenant,
                        subject: name::clean(&request.name).unwrap_or_default(),
                        detail: json!({
                            "reason": refusal.message,
                            "code": refusal.code().as_str_name(),
                            "software": request.software.chars().take(100).collect::<String>(),
                        }),
                        remote: Some(remote),
                    };
                    return Err(self.refuse(refusal, record, now).await);
                }
                error => return Err(internal(&error, "enroll")),
            }
        }
    }

    /// Issues the next certificate to a node that holds a session. Asked again with the same key, it gives the same
    /// certificate while that is fresh.
    ///
    /// # Errors
    /// What to tell the node. Every refusal is in the audit log.
    pub async fn renew(
        &self,
        identity: &NodeIdentity,
        request: &RenewRequest,
        now: Timestamp,
    ) -> Result<Renewed, Refusal> {
        match self.try_renew(identity, request, now).await {
            Ok(Given { issued, sequence, .. }) => {
                let renew_at_ms = self.renew_at(&issued.identity).millis();
                Ok(Renewed { certificate_chain: issued.chain, renew_at_ms, refusal: None, sequence })
            }
            Err(Failure::Refused(refusal)) => {
                let record = Record {
                    actor: Actor::node(identity.node),
                    action: action::RENEWAL_REFUSED,
                    tenant: Some(identity.tenant.clone()),
                    subject: identity.node.to_string(),
                    detail: json!({ "reason": refusal.message, "serial": identity.serial.to_string() }),
                    remote: None,
                };
                Err(self.refuse(refusal, record, now).await)
            }
            Err(error) => Err(internal(&error, "renew its certificate")),
        }
    }

    /// A session has begun with this certificate: from now on, it is the node's, and the ones before it are retired.
    /// Costs a query only the first time.
    ///
    /// # Errors
    /// When the database does not answer; the old certificates then stay good, and the next session tries again.
    pub async fn seen(&self, identity: &NodeIdentity, now: Timestamp) -> Result<(), StoreError> {
        if self.0.registry.is_current(identity) {
            return Ok(());
        }
        let mut transaction = self.0.database.begin_write().await?;
        let activated = sqlx::query(
            "UPDATE certificates SET state = 'active' WHERE node = $1 AND serial = $2 AND kind IN ('agent', 'bridge') AND state IN ('issued', 'active')
             RETURNING issued_at",
        )
        .bind(identity.node.to_string())
        .bind(identity.serial.as_bytes().to_vec())
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = activated else { return Ok(()) };
        let retired = sqlx::query(
            "UPDATE certificates SET state = 'retired', superseded_at = $3
             WHERE node = $1 AND serial <> $2 AND kind IN ('agent', 'bridge') AND state IN ('issued', 'active')
               AND issued_at <= $4 RETURNING serial",
        )
        .bind(identity.node.to_string())
        .bind(identity.serial.as_bytes().to_vec())
        .bind(now.millis())
        .bind(row.try_get::<i64, _>(0)?)
        .fetch_all(&mut *transaction)
        .await?;
        if !retired.is_empty() {
            let record = Record {
                actor: Actor::node(identity.node),
                action: action::CERTIFICATE_RETIRED,
                tenant: Some(identity.tenant.clone()),
                subject: identity.node.to_string(),
                detail: json!({ "in_use": identity.serial.to_string(), "retired": retired.len() }),
                remote: None,
            };
            audit::append(&mut transaction, now, record).await?;
        }
        transaction.commit().await?;
        self.0.registry.activated(identity);
        self.0.fleet.certificate(identity.node, identity.into());
        Ok(())
    }

    /// Whether the holder of this verified certificate may hold a session. Asks no database.
    ///
    /// # Errors
    /// What to tell the node.
    pub fn authorize(&self, identity: &NodeIdentity) -> Result<(), Refusal> {
        let intermediate = self.0.registry.authorize(identity)?;
        if self.0.authorities.is_retired(intermediate) {
            return Err(Refusal {
                code: RefusalCode::CertificateReplaced.into(),
                message: format!(
                    "certificate {} of node {} is of an authority that has been rotated away: the node recovers by itself",
                    identity.serial, identity.node
                ),
                retry_after_ms: 0,
            });
        }
        Ok(())
    }

    /// The roots a node says it trusts, as SHA-256 of their public keys; `None` for a node that is not known.
    pub fn trusts(&self, node: NodeId) -> Option<Vec<[u8; 32]>> {
        self.0.registry.roots(node)
    }

    /// The roots nodes are to trust.
    pub fn roots(&self) -> Arc<Roots> {
        self.0.authorities.roots()
    }

    /// A node has said which roots it trusts, and why it did not take those it was told to. Costs a query only when that is
    /// new.
    ///
    /// # Errors
    /// When it could not be stored; what it said before then counts.
    pub async fn trusting(&self, node: NodeId, roots: &[[u8; 32]], trouble: &str) -> Result<(), GroupError> {
        if !self.0.registry.trusts_anew(node, roots, trouble) {
            return Ok(());
        }
        let word = trusting::Word { node, roots: roots.concat(), trouble: trouble.to_owned() };
        self.0.trusting.submit(word).await?;
        self.0.registry.trusting(node, roots, trouble);
        Ok(())
    }

    /// When a node should renew this certificate; each is told another moment, so that a fleet does not come at once.
    pub fn renew_at(&self, identity: &NodeIdentity) -> Timestamp {
        let terms = self.0.authorities.policies().terms(Some(&identity.tenant), identity.kind.into());
        let issued_at = Certificate::from(identity).issued_at;
        let regular = terms.renew_at(issued_at, identity.not_after, pki::renewal::jitter(&identity.serial));
        self.0.registry.advice(identity).map_or(regular, |advised| advised.min(regular))
    }

    async fn try_enroll(&self, request: &EnrollRequest, remote: IpAddr, now: Timestamp) -> Result<Enrolled, Failure> {
        let theirs = request.versions.unwrap_or_default();
        if version::negotiate(version::SPOKEN, theirs).is_none() {
            return Err(refused(
                RefusalCode::Version,
                format!(
                    "this hub speaks protocol versions {} to {}, the node {} to {}: bring the older of the two up to date",
                    version::SPOKEN.oldest,
                    version::SPOKEN.newest,
                    theirs.oldest,
                    theirs.newest
                ),
            ));
        }
        let key = pki::verify_request(&request.certificate_request).map_err(malformed)?;
        let enroll = Enroll { request: request.clone(), key, remote, now };
        let given = self.0.submitter.submit(Operation::Enroll(enroll)).await??;
        Ok(self.enrolled(&given.member, given.issued.chain))
    }

    /// Makes a token a node, as part of a group.
    async fn admit(&self, transaction: &mut Transaction, enroll: &Enroll) -> Result<Given, Failure> {
        let Enroll { request, key, remote, now } = enroll;
        let (remote, now) = (*remote, *now);
        let token = take_token(transaction, request, key).await?;
        if token.used {
            return self.enroll_again(transaction, &token, key).await;
        }
        token.standing.free()?;
        let wanted = NodeKind::try_from(request.kind()).ok();
        if wanted != Some(token.kind) {
            return Err(refused(
                RefusalCode::TokenKind,
                format!(
                    "this token is for {} nodes: make one for the other kind, or run the other program",
                    token.kind
                ),
            ));
        }
        if now >= token.expires_at {
            return Err(refused(
                RefusalCode::TokenExpired,
                format!("this token ended at {}: make a new one", token.expires_at),
            ));
        }
        let name = name::choose(transaction, &token.tenant, token.name.as_deref(), &request.name, token.kind).await?;
        let node = NodeId::new(now, rand::random());
        let member = Member { node, tenant: token.tenant, kind: token.kind, name, enrolled_at: now };
        // Before anything is written: the authority may have to be waited for.
        let issued = self.sign(transaction, key, &member, now).await?;
        insert_node(transaction, &member, &request.software).await?;
        sqlx::query("UPDATE join_tokens SET used_at = $2, used_spki = $3, node = $4 WHERE id = $1")
            .bind(&token.id)
            .bind(now.millis())
            .bind(key.spki_sha256().to_vec())
            .bind(node.to_string())
            .execute(&mut **transaction)
            .await?;
        issued.save(transaction, &member, FIRST_SEQUENCE, false, now).await?;
        let record = Record {
            actor: Actor::anonymous(),
            action: action::NODE_ENROLLED,
            tenant: Some(member.tenant.clone()),
            subject: node.to_string(),
            detail: json!({
                "name": member.name, "kind": member.kind.as_str(), "token": token.id,
                "certificate": issued.logged()?,
            }),
            remote: Some(remote),
        };
        Ok(Given { member, issued, sequence: FIRST_SEQUENCE, record: Some(record) })
    }

    /// The answer to a token that has been used: the certificate it once gave, to the key it gave it to.
    async fn enroll_again(
        &self,
        transaction: &mut Transaction,
        token: &TokenRow,
        key: &RequestedKey,
    ) -> Result<Given, Failure> {
        let row = sqlx::query(
            "SELECT n.id, n.name, n.enrolled_at, c.certificate, a.certificate, a.id
             FROM join_tokens t JOIN nodes n ON n.id = t.node AND n.removed_at IS NULL AND n.revoked_at IS NULL
             JOIN certificates c ON c.node = n.id AND c.spki_sha256 = t.used_spki AND c.kind = n.kind
                 AND c.state IN ('issued', 'active')
             JOIN authorities a ON a.id = c.authority
             WHERE t.id = $1 AND t.used_spki = $2 ORDER BY c.issued_at DESC LIMIT 1",
        )
        .bind(&token.id)
        .bind(key.spki_sha256().to_vec())
        .fetch_optional(&mut **transaction)
        .await?;
        let Some(row) = row else {
            return Err(refused(
                RefusalCode::TokenUsed,
                "this token has been used: a token enrolls one node; make a new one".into(),
            ));
        };
        let id: String = row.try_get(0)?;
        let member = Member {
            node: id.parse().map_err(unreadable)?,
            tenant: token.tenant.clone(),
            kind: token.kind,
            name: row.try_get(1)?,
            enrolled_at: Timestamp::from_millis(row.try_get(2)?),
        };
        let issued = Issued::from_chain(vec![row.try_get(3)?, row.try_get(4)?], row.try_get(5)?)?;
        Ok(Given { member, issued, sequence: FIRST_SEQUENCE, record: None })
    }

    async fn try_renew(
        &self,
        identity: &NodeIdentity,
        request: &RenewRequest,
        now: Timestamp,
    ) -> Result<Given, Failure> {
        // Also with a certificate of an authority that is trusted no more: who still has a session gets another one by it.
        self.0.registry.authorize(identity).map_err(Failure::Refused)?;
        let number = self.0.registry.sequence(identity);
        if number != Some(request.sequence) {
            return Err(refused(
                RefusalCode::Malformed,
                format!(
                    "its certificate is number {}, and it says {}: its state is damaged; enroll it with a new token",
                    number.unwrap_or_default(),
                    request.sequence
                ),
            ));
        }
        let sequence = request.sequence + 1;
        let key = pki::verify_request(&request.certificate_request).map_err(malformed)?;
        let renew = Renew { identity: identity.clone(), key, sequence, now };
        self.0.submitter.submit(Operation::Renew(renew)).await?
    }

    /// Gives a node its next certificate, as part of a group.
    async fn follow(&self, transaction: &mut Transaction, renew: &Renew) -> Result<Given, Failure> {
        let Renew { identity, key, sequence, now } = renew;
        let (sequence, now) = (*sequence, *now);
        // Takes the node's row, so that two requests with one key don't both find nothing.
        let sql = format!(
            "SELECT name, enrolled_at FROM nodes WHERE id = $1 AND removed_at IS NULL AND revoked_at IS NULL
               AND frozen_at IS NULL{}",
            rows::for_update(transaction)
        );
        let row =
            sqlx::query(AssertSqlSafe(sql)).bind(identity.node.to_string()).fetch_optional(&mut **transaction).await?;
        let Some(row) = row else { return Err(Failure::Refused(registry::unknown(identity.node))) };
        let member = Member {
            node: identity.node,
            tenant: identity.tenant.clone(),
            kind: identity.kind,
            name: row.try_get(0)?,
            enrolled_at: Timestamp::from_millis(row.try_get(1)?),
        };
        keys::be_free(transaction, key, identity.node).await?;
        let before = sqlx::query(
            "SELECT c.certificate, a.certificate, a.id FROM certificates c JOIN authorities a ON a.id = c.authority
             WHERE c.node = $1 AND c.spki_sha256 = $2 AND c.kind IN ('agent', 'bridge') AND c.state IN ('issued', 'active')
               AND a.state <> 'retired' ORDER BY c.issued_at DESC LIMIT 1",
        )
        .bind(identity.node.to_string())
        .bind(key.spki_sha256().to_vec())
        .fetch_optional(&mut **transaction)
        .await?;
        if let Some(before) = before {
            let issued = Issued::from_chain(vec![before.try_get(0)?, before.try_get(1)?], before.try_get(2)?)?;
            if issued.is_fresh(now) {
                return Ok(Given { member, issued, sequence, record: None });
            }
        }
        let unused: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM certificates
             WHERE node = $1 AND kind IN ('agent', 'bridge') AND state = 'issued' AND issued_at > $2",
        )
        .bind(identity.node.to_string())
        .bind(now.minus(UNUSED_WITHIN).millis())
        .fetch_one(&mut **transaction)
        .await?;
        if unused >= UNUSED_MAX {
            return Err(Failure::Refused(Refusal {
                code: RefusalCode::Busy.into(),
                message: format!(
                    "{unused} certificates were issued to this node within the hour and never used: \
                     see that it can write its state directory"
                ),
                retry_after_ms: UNUSED_WITHIN.as_millis() as u64,
            }));
        }
        let issued = self.sign(transaction, key, &member, now).await?;
        issued.save(transaction, &member, sequence, false, now).await?;
        let record = Record {
            actor: Actor::node(identity.node),
            action: action::CERTIFICATE_RENEWED,
            tenant: Some(identity.tenant.clone()),
            subject: identity.node.to_string(),
            detail: json!({ "certificate": issued.logged()? }),
            remote: None,
        };
        Ok(Given { member, issued, sequence, record: Some(record) })
    }

    /// A certificate that is recorded by [`Issued::save`], and then may be given out.
    async fn sign(
        &self,
        transaction: &mut Transaction,
        key: &RequestedKey,
        member: &Member,
        now: Timestamp,
    ) -> Result<Issued, Failure> {
        let issuing = self.0.authorities.tenant(transaction, &member.tenant, now).await?;
        let lifetime = self.0.authorities.policies().terms(Some(&member.tenant), member.kind.into()).lifetime;
        let leaf = issuing.authority.issue_node(key, member.node, member.kind, now, lifetime)?;
        Ok(Issued::from_chain(vec![leaf, issuing.authority.certificate_der().to_vec()], issuing.id)?)
    }

    fn enrolled(&self, member: &Member, chain: Vec<Vec<u8>>) -> Enrolled {
        let trust = self.0.authorities.roots().trust();
        Enrolled {
            node_id: member.node.to_bytes().to_vec(),
            tenant: member.tenant.to_string(),
            name: member.name.clone(),
            kind: protocol::message::NodeKind::from(member.kind).into(),
            certificate_chain: chain,
            roots: trust.roots,
            links: trust.links,
        }
    }

    /// The tenant a refused enrollment concerns, when the token tells; best effort, for the audit log.
    async fn token_tenant(&self, secret: &[u8]) -> Option<TenantId> {
        let tenant: Option<String> = sqlx::query_scalar("SELECT tenant FROM join_tokens WHERE secret_hash = $1")
            .bind(pki::token::secret_hash(secret).to_vec())
            .fetch_optional(self.0.database.reader())
            .await
            .ok()?;
        tenant?.parse().ok()
    }

    /// The refusal, once it is in the audit log. Until then the node is told to come back.
    async fn refuse(&self, refusal: Refusal, record: Record, now: Timestamp) -> Refusal {
        match audit::record(&self.0.database, now, record).await {
            Ok(_) => refusal,
            Err(error) => internal(&error.into(), "be refused"),
        }
    }
}

impl Issued {
    fn from_chain(chain: Vec<Vec<u8>>, authority: i64) -> Result<Self, pki::TrustError> {
        let ders: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(&**der)).collect();
        let identity = pki::node_identity(&ders)?;
        Ok(Self { chain, identity, authority })
    }

    async fn save(
        &self,
        transaction: &mut Transaction,
        member: &Member,
        sequence: u64,
        recovered: bool,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let certificate = Certified {
            kind: member.kind.into(),
            authority: self.authority,
            tenant: Some(&member.tenant),
            node: Some(member.node),
            certificate: &self.chain[0],
            sequence: Some(sequence),
            recovered,
        };
        certificate.save(transaction, now).await?;
        Ok(())
    }

    /// Half-way through its life it is no answer any more: a node asks because it wants a newer one.
    fn is_fresh(&self, now: Timestamp) -> bool {
        let age = now.since(self.identity.not_before);
        age < self.identity.not_after.since(self.identity.not_before) / 2
    }
}

/// The token with the request's secret, kept from others until the transaction ends: of two nodes that come with it at
/// once, one gets it.
async fn take_token(
    transaction: &mut Transaction,
    request: &EnrollRequest,
    key: &RequestedKey,
) -> Result<TokenRow, Failure> {
    let sql = format!(
        "SELECT id, tenant, kind, name, expires_at, used_at, {STANDING} FROM join_tokens WHERE secret_hash = $3{}",
        rows::for_update(transaction)
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(key.spki_sha256().to_vec())
        .bind("")
        .bind(pki::token::secret_hash(&request.secret).to_vec())
        .fetch_optional(&mut **transaction)
        .await?;
    let Some(row) = row else {
        return Err(refused(
            RefusalCode::TokenUnknown,
            "this hub has made no such token: see that it was made at this hub, or make a new one".into(),
        ));
    };
    let (tenant, kind): (String, String) = (row.try_get(1)?, row.try_get(2)?);
    Ok(TokenRow {
        id: row.try_get(0)?,
        tenant: tenant.parse().map_err(unreadable)?,
        kind: kind.parse().map_err(unreadable)?,
        name: row.try_get(3)?,
        expires_at: Timestamp::from_millis(row.try_get(4)?),
        used: row.try_get::<Option<i64>, _>(5)?.is_some(),
        standing: Standing::of(row.try_get(6)?)?,
    })
}

fn unreadable(error: protocol::id::IdError) -> StoreError {
    StoreError::Statement(sqlx::Error::Decode(error.into()))
}

async fn insert_node(transaction: &mut Transaction, member: &Member, software: &str) -> Result<(), Failure> {
    sqlx::query("INSERT INTO nodes (id, tenant, kind, name, software, enrolled_at) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(member.node.to_string())
        .bind(member.tenant.as_str())
        .bind(member.kind.as_str())
        .bind(&member.name)
        .bind(software.chars().take(100).collect::<String>())
        .bind(member.enrolled_at.millis())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

fn refused(code: RefusalCode, message: String) -> Failure {
    Failure::Refused(Refusal { code: code.into(), message, retry_after_ms: 0 })
}

fn malformed(error: RequestError) -> Failure {
    refused(RefusalCode::Malformed, format!("{error}: bring the node's program up to date, and try again"))
}

/// The hub's own trouble: the node is told to come back, the log says what it was. One that is put off until its tenant's
/// authority is signed is no denial: it is not in the audit log, which it would fill until then.
fn internal(error: &Failure, what: &str) -> Refusal {
    if let Failure::Authorities(error @ AuthoritiesError::AwaitingSignature(_)) = error {
        tracing::warn!("a node could not {what}: {error}");
        return Refusal {
            code: RefusalCode::Busy.into(),
            message: format!("{error}. This node may come again with the same token; a service does by itself"),
            retry_after_ms: u64::try_from(ASK_AGAIN_IN.as_millis()).unwrap_or(u64::MAX),
        };
    }
    tracing::error!(error = %crate::rows::chain(error), "a node could not {what}");
    Refusal {
        code: RefusalCode::Internal.into(),
        message: format!("the hub could not do it now: {error}"),
        retry_after_ms: 5_000,
    }
}
