//! The authority of the hub's own HTTPS certificate: kept as the others are, and apart from them in what it may.

use std::time::Duration;

use pki::authority::WEB_SERVER_LIFETIME;
use pki::{Authority, AuthorityError, PrivateKey, Role, WebCertificate, WebName};
use protocol::Timestamp;
use store::Transaction;

use super::rows::{load, save};
use super::{Authorities, AuthoritiesError, Issuing, Kept, LeafKind, RENEW_FOR_BROWSERS};

/// An authority with less life than this left is followed by a new one: what it issues has its whole life.
const FOLLOWED_BEFORE: Duration = WEB_SERVER_LIFETIME.saturating_mul(2);

impl Authorities {
    /// The authority for HTTPS. There is a new one, which people have to trust anew, when the one before it can't speak
    /// for all of `names`, or ends.
    ///
    /// # Errors
    /// When it can't be opened or made.
    pub async fn web(&self, names: &[WebName], now: Timestamp) -> Result<Authority, AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        let issuing = self.web_for(&mut transaction, names, now).await?;
        transaction.commit().await?;
        Ok(issuing.authority)
    }

    /// The hub's certificate for HTTPS under these names: the one issued last while enough is left of it, or else a new
    /// one with a new key.
    ///
    /// # Errors
    /// As [`Authorities::web`].
    pub async fn web_server(&self, names: &[WebName], now: Timestamp) -> Result<WebCertificate, AuthoritiesError> {
        let mut transaction = self.0.database.begin_write().await?;
        let Issuing { id, authority } = self.web_for(&mut transaction, names, now).await?;
        // The authority goes along, so that hfctl can take it by its fingerprint.
        let shown = |kept: Kept| {
            WebCertificate::issued(vec![kept.leaf, authority.certificate_der().clone()], &kept.key)
                .map_err(|_| AuthoritiesError::from(AuthorityError::KeyMismatch))
        };
        if let Some(kept) = self.kept(&mut transaction, LeafKind::WebServer, id, RENEW_FOR_BROWSERS, now).await? {
            let certificate = shown(kept)?;
            if certificate.names().len() == names.len() && names.iter().all(|name| certificate.is_for(name)) {
                transaction.commit().await?;
                return Ok(certificate);
            }
        }
        let key = PrivateKey::generate().map_err(AuthorityError::from)?;
        let leaf = authority.issue_web_server(&key.public_key(), names, now)?;
        let kept = self.keep(&mut transaction, LeafKind::WebServer, id, key, leaf, now).await?;
        transaction.commit().await?;
        shown(kept)
    }

    async fn web_for(
        &self,
        transaction: &mut Transaction,
        names: &[WebName],
        now: Timestamp,
    ) -> Result<Issuing, AuthoritiesError> {
        let known = load(transaction, &Role::Web, &self.0.keys).await?;
        // What it could speak for stays: another hub on this database may go by it.
        let mut speaks_for = known.as_ref().map(|known| known.authority.web_names()).unwrap_or_default();
        let before = speaks_for.len();
        for name in names {
            if !speaks_for.contains(name) {
                speaks_for.push(name.clone());
            }
        }
        let lasts = |authority: &Authority| {
            (authority.not_before()..authority.not_after().minus(FOLLOWED_BEFORE)).contains(&now)
        };
        if let Some(known) = known.filter(|known| speaks_for.len() == before && lasts(&known.authority)) {
            return Ok(known);
        }
        let authority = Authority::create_web(&speaks_for, now)?;
        let id = save(transaction, &authority, None, &self.0.keys, now).await?;
        let names: Vec<_> = speaks_for.iter().map(ToString::to_string).collect();
        tracing::info!(names = names.join(" "), "made an authority for HTTPS, to be trusted by browsers and hfctl");
        Ok(Issuing { id, authority })
    }
}
