//! What a signing ceremony brings back: judged by what was asked for, then stored, activated and logged as one.

use data_encoding::{BASE64, HEXLOWER};
use pki::offline::{check_intermediate, read_list};
use pki::{AnswerError, Authority, CertificateDer, Role, Summary};
use protocol::Timestamp;
use serde_json::json;
use store::sqlx::{self, Row};
use store::{StoreError, Transaction};

use super::ceremony::{Answers, certificate, short};
use super::offline::{Absent, absent, unlinked};
use super::succession::save_link;
use super::{Authorities, AuthoritiesError, rows};
use crate::audit::{self, Actor, Record, action};

/// What became of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Intermediates that issue from now on.
    pub intermediates: usize,
    /// Roots that were introduced.
    pub links: usize,
    /// Whether there is a new revocation list.
    pub list: bool,
    /// What was here already.
    pub known: usize,
}

/// An answer of which nothing was taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Another fleet's, or a former root's.
    #[error(
        "it is signed by the root with the key {given}, and here the root with the key {here} issues: it is for another hub"
    )]
    OtherRoot {
        /// Whose it is.
        given: String,
        /// The one that issues here.
        here: String,
    },
    /// This hub has never asked for it.
    #[error(
        "{what} was never asked for here: the file is for another hub, or for this one's database before it was restored"
    )]
    NotRequested {
        /// What it is.
        what: String,
    },
    /// It is not what it should be.
    #[error("{what} can't be taken: {source}")]
    Refused {
        /// What it is.
        what: String,
        /// Why.
        source: AnswerError,
    },
    /// It is not valid now.
    #[error("{what} is valid from {from} to {until}, and it is {now}: see that the clocks of both machines are right")]
    NotValid {
        /// What it is.
        what: String,
        /// Start of validity.
        from: Timestamp,
        /// End of validity.
        until: Timestamp,
        /// By this machine's clock.
        now: Timestamp,
    },
    /// The hub's own trouble.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        Self::Authorities(error.into())
    }
}

impl From<sqlx::Error> for ImportError {
    fn from(error: sqlx::Error) -> Self {
        Self::Authorities(error.into())
    }
}

impl Authorities {
    /// Takes what the root has signed, all of it or nothing. Asked again, it takes what it does not have yet; an answer to a
    /// part of the requests is as good.
    ///
    /// # Errors
    /// [`ImportError`]; nothing was changed then.
    pub async fn import(&self, answers: &Answers, actor: &Actor, now: Timestamp) -> Result<Imported, ImportError> {
        let mut transaction = self.0.database.begin_write().await?;
        let absent = absent(&mut transaction).await?.ok_or(AuthoritiesError::RootOnline)?;
        let given = certificate(&answers.root).ok_or_else(|| malformed("the root's certificate"))?;
        if given != absent.certificate {
            let key =
                |root: &CertificateDer<'_>| pki::trust::pin(root).map_or_else(|_| "?".to_owned(), |pin| short(&pin));
            return Err(ImportError::OtherRoot { given: key(&given), here: key(&absent.certificate) });
        }
        let mut imported = Imported::default();
        for text in &answers.intermediates {
            let der = certificate(text).ok_or_else(|| malformed("a certificate"))?;
            let new = self.import_intermediate(&mut transaction, &absent, &der, actor, now).await?;
            if new { imported.intermediates += 1 } else { imported.known += 1 }
        }
        for text in &answers.links {
            let link = certificate(text).ok_or_else(|| malformed("a link"))?;
            let new = import_link(&mut transaction, &absent, &link, actor, now).await?;
            if new { imported.links += 1 } else { imported.known += 1 }
        }
        if let Some(list) = &answers.revocation_list {
            let list = BASE64.decode(list.as_bytes()).map_err(|_| malformed("the revocation list"))?;
            imported.list = import_list(&mut transaction, &absent, list, actor, now).await?;
            imported.known += usize::from(!imported.list);
        }
        transaction.commit().await?;
        self.look(now).await?;
        Ok(imported)
    }

    /// Whether it is new.
    async fn import_intermediate(
        &self,
        transaction: &mut Transaction,
        absent: &Absent,
        der: &CertificateDer<'static>,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, ImportError> {
        let summary = Summary::of(der).map_err(|_| malformed("a certificate"))?;
        let row = sqlx::query("SELECT id, kind, tenant, state, sealed_key FROM authorities WHERE spki_sha256 = $1")
            .bind(summary.spki_sha256.to_vec())
            .fetch_optional(&mut **transaction)
            .await?;
        let serial = HEXLOWER.encode(&summary.serial);
        let Some(row) = row else {
            return Err(ImportError::NotRequested { what: format!("certificate {serial}") });
        };
        let (kind, tenant): (String, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
        let owner = tenant.as_ref().map_or_else(|| "the hub".to_owned(), |tenant| format!("tenant {tenant}"));
        let what = format!("certificate {serial} for {owner}");
        let role = rows::role(&kind, tenant.as_deref()).filter(|role| matches!(role, Role::Hub | Role::Nodes(_)));
        let role = role.ok_or_else(|| ImportError::NotRequested { what: what.clone() })?;
        check_intermediate(der, &role, &absent.certificate)
            .map_err(|source| ImportError::Refused { what: what.clone(), source })?;
        // Of a request that was signed twice, the one that came first stays.
        if row.try_get::<String, _>(3)? != "awaiting-signature" {
            return Ok(false);
        }
        if !(summary.not_before..summary.not_after).contains(&now) {
            let (from, until) = (summary.not_before, summary.not_after);
            return Err(ImportError::NotValid { what, from, until, now });
        }
        // That its key opens is seen before anything depends on it.
        let sealed: Vec<u8> = row.try_get(4)?;
        let data_key = self.0.keys.get(transaction, role.owner()).await.map_err(AuthoritiesError::from)?;
        Authority::open(der, &sealed, &data_key).map_err(AuthoritiesError::from)?;
        rows::complete(transaction, row.try_get(0)?, &role, (der, absent.id), actor, now).await?;
        Ok(true)
    }
}

/// Whether it is new.
async fn import_link(
    transaction: &mut Transaction,
    absent: &Absent,
    link: &CertificateDer<'static>,
    actor: &Actor,
    now: Timestamp,
) -> Result<bool, ImportError> {
    let summary = Summary::of(link).map_err(|_| malformed("a link"))?;
    let what = format!("the link to the root with the key {}", short(&summary.spki_sha256));
    let introduced = |next: &CertificateDer<'_>| pki::trust::pin(next).ok() == Some(summary.spki_sha256);
    let waiting = unlinked(transaction, &absent.certificate).await?;
    let Some((id, next)) = waiting.iter().find(|(_, next)| introduced(next)) else {
        let known: Option<i64> =
            sqlx::query_scalar("SELECT id FROM authorities WHERE kind = 'root' AND spki_sha256 = $1")
                .bind(summary.spki_sha256.to_vec())
                .fetch_optional(&mut **transaction)
                .await?;
        return known.map(|_| false).ok_or(ImportError::NotRequested { what });
    };
    let (root, wanted, links) = ([absent.certificate.clone()], [next.clone()], [link.clone()]);
    if pki::roots::prove(&root, &wanted, &links, now).is_err() {
        return Err(ImportError::Refused { what, source: AnswerError::Signature });
    }
    save_link(transaction, (absent.id, *id), link, false, actor, now).await?;
    Ok(true)
}

/// Whether it is newer than the one there is.
async fn import_list(
    transaction: &mut Transaction,
    absent: &Absent,
    list: Vec<u8>,
    actor: &Actor,
    now: Timestamp,
) -> Result<bool, ImportError> {
    let what = || "the revocation list".to_owned();
    let read = read_list(&list, &absent.certificate).map_err(|source| ImportError::Refused { what: what(), source })?;
    let known = absent.list.as_ref().and_then(|known| read_list(known, &absent.certificate).ok());
    if known.is_some_and(|known| read.made_at <= known.made_at) {
        return Ok(false);
    }
    if now >= read.until {
        return Err(ImportError::NotValid { what: what(), from: read.made_at, until: read.until, now });
    }
    sqlx::query("UPDATE authorities SET revocation_list = $2 WHERE id = $1")
        .bind(absent.id)
        .bind(list)
        .execute(&mut **transaction)
        .await?;
    let record = Record {
        actor: actor.clone(),
        action: action::ROOT_LIST_SIGNED,
        tenant: None,
        subject: "root".to_owned(),
        detail: json!({ "until": read.until.to_string(), "entries": read.serials.len() }),
        remote: None,
    };
    audit::append(transaction, now, record).await?;
    Ok(true)
}

fn malformed(what: &str) -> ImportError {
    ImportError::Refused { what: what.to_owned(), source: AnswerError::Malformed }
}
