//! From a join token to a certificate. A token makes one node, however often its reply is lost.

use std::net::IpAddr;

use pki::RequestedKey;
use pki::recovery::FIRST_SEQUENCE;
use protocol::message::{EnrollRequest, Enrolled, Refusal, RefusalCode};
use protocol::{NodeId, NodeKind, TenantId, Timestamp, version};
use serde_json::json;
use store::Transaction;
use store::group::GroupError;
use store::sqlx::{self, AssertSqlSafe, Row};

use super::group::{Enroll, Given, Operation};
use super::keys::{STANDING, Standing};
use super::{Enrollment, Failure, Issued, internal, malformed, name, refused};
use crate::audit::{Actor, Record, action};
use crate::rows;
use crate::telemetry::state::Member;

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

impl Enrollment {
    /// Enrolls the node that presents a join token. A token works once; presented again with the same key, as by a
    /// node that never saw the reply, it gives the same certificate again.
    ///
    /// # Errors
    /// What to tell the node. Every refusal is in the audit log, without the secret; but of those who flood the hub with secrets
    /// that are none, the first.
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
                    let is_stranger = tenant.is_none();
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
                    return Err(if is_stranger {
                        self.refuse_stranger(refusal, record, remote, now).await
                    } else {
                        self.refuse(refusal, record, now).await
                    });
                }
                error => return Err(internal(&error, "enroll")),
            }
        }
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
    pub(super) async fn admit(&self, transaction: &mut Transaction, enroll: &Enroll) -> Result<Given, Failure> {
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
        let member = Member {
            node: rows::parsed(row.try_get(0)?)?,
            tenant: token.tenant.clone(),
            kind: token.kind,
            name: row.try_get(1)?,
            enrolled_at: Timestamp::from_millis(row.try_get(2)?),
        };
        let issued = Issued::from_chain(vec![row.try_get(3)?, row.try_get(4)?], row.try_get(5)?)?;
        Ok(Given { member, issued, sequence: FIRST_SEQUENCE, record: None })
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
    Ok(TokenRow {
        id: row.try_get(0)?,
        tenant: rows::parsed(row.try_get(1)?)?,
        kind: rows::parsed(row.try_get(2)?)?,
        name: row.try_get(3)?,
        expires_at: Timestamp::from_millis(row.try_get(4)?),
        used: row.try_get::<Option<i64>, _>(5)?.is_some(),
        standing: Standing::of(row.try_get(6)?)?,
    })
}

async fn insert_node(transaction: &mut Transaction, member: &Member, software: &str) -> Result<(), Failure> {
    sqlx::query("INSERT INTO nodes (id, tenant, kind, name, software, enrolled_at) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(member.node.to_string())
        .bind(member.tenant.as_str())
        .bind(member.kind.as_str())
        .bind(&member.name)
        .bind(rows::text(software).chars().take(100).collect::<String>())
        .bind(member.enrolled_at.millis())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}
