//! The fleet's roots: which are trusted, which one issues, and the links that lead from one to the next.

use std::collections::HashSet;
use std::sync::Arc;

use pki::roots::MAX_LINKS;
use pki::{CertificateDer, Role};
use protocol::Timestamp;
use protocol::message::Trust;
use store::Transaction;
use store::sqlx;
use tokio::sync::watch;

use super::rows::{self, load};
use super::{Authorities, AuthoritiesError, Issuing};

/// The roots at one moment.
#[derive(Clone, Debug)]
pub struct Roots {
    /// All that are trusted; the one that issues comes first.
    pub trusted: Vec<CertificateDer<'static>>,
    /// Their links to each other, and those from roots of before.
    pub links: Vec<CertificateDer<'static>>,
    /// SHA-256 of the public keys of the trusted ones, in the same order.
    pub pins: Vec<[u8; 32]>,
    newest_issues: bool,
    /// Nodes' intermediates that are trusted no more.
    retired: HashSet<i64>,
    /// How many steps rotations have taken, of whatever authority: another one may mean other certificates.
    pub(crate) steps: i64,
}

impl Roots {
    /// As nodes are told.
    pub fn trust(&self) -> Trust {
        let ders = |list: &[CertificateDer<'static>]| list.iter().map(|der| der.to_vec()).collect();
        Trust { roots: ders(&self.trusted), links: ders(&self.links) }
    }

    /// Whether nodes are told the same; which of the roots issues is not for them to know.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let alike = |one: &[CertificateDer<'_>], other: &[CertificateDer<'_>]| {
            one.len() == other.len() && one.iter().all(|der| other.contains(der))
        };
        alike(&self.trusted, &other.trusted) && alike(&self.links, &other.links)
    }

    /// Whether somebody who trusts `pins` trusts what they should, in whatever order. Once the newest root issues, nobody who
    /// came by it has to know the one before, and nothing would prove it to them.
    pub fn are(&self, pins: &[[u8; 32]]) -> bool {
        let all = pins.len() == self.pins.len() && self.pins.iter().all(|pin| pins.contains(pin));
        all || (self.newest_issues && self.pins.first().is_some_and(|first| pins == [*first]))
    }

    pub(super) async fn load(transaction: &mut Transaction, now: Timestamp) -> Result<Self, AuthoritiesError> {
        let roots: Vec<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT certificate, generation FROM authorities
             WHERE kind = 'root' AND state IN ('trusted', 'active') AND not_after > $1
             ORDER BY CASE state WHEN 'active' THEN 0 ELSE 1 END, generation DESC",
        )
        .bind(now.millis())
        .fetch_all(&mut **transaction)
        .await?;
        let newest_issues =
            roots.first().map(|(_, generation)| generation) == roots.iter().map(|(_, other)| other).max();
        let roots: Vec<Vec<u8>> = roots.into_iter().map(|(certificate, _)| certificate).collect();
        // Of more than a node looks at, the newest: who was away for so many rotations has to be enrolled anew.
        let links: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT certificate FROM root_links WHERE not_after > $1 AND told = 1
             ORDER BY created_at DESC, serial LIMIT $2",
        )
        .bind(now.millis())
        .bind(MAX_LINKS as i64)
        .fetch_all(&mut **transaction)
        .await?;
        let retired = rows::retired(transaction).await?;
        // Not the highest number: PostgreSQL gives numbers out before commits, and a lower one may be seen later.
        let steps: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM rotation_steps").fetch_one(&mut **transaction).await?;
        let [trusted, links] =
            [roots, links].map(|ders| ders.into_iter().map(CertificateDer::from).collect::<Vec<_>>());
        let pins = trusted.iter().map(pki::trust::pin).collect::<Result<_, _>>().map_err(AuthoritiesError::Root)?;
        Ok(Self { trusted, links, pins, newest_issues, retired, steps })
    }
}

impl Authorities {
    /// The roots now.
    pub fn roots(&self) -> Arc<Roots> {
        Arc::clone(&self.0.roots.borrow())
    }

    /// The roots as they change, and each step of a rotation, by this hub's doing or as [`Authorities::look`] finds them.
    pub fn watch_roots(&self) -> watch::Receiver<Arc<Roots>> {
        self.0.roots.subscribe()
    }

    /// Reads the roots and the certificate policy again: another hub on the same database may have changed them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look(&self, now: Timestamp) -> Result<(), AuthoritiesError> {
        let mut transaction = self.0.database.begin_read().await?;
        self.0.policies.look(&mut transaction).await?;
        let roots = Roots::load(&mut transaction, now).await?;
        self.0.roots.send_if_modified(|known| {
            // Of two that look at once, the one that read earlier may come later.
            let changed = roots.steps > known.steps || (roots.steps == known.steps && !known.same(&roots));
            if changed {
                *known = Arc::new(roots);
            }
            changed
        });
        Ok(())
    }

    /// Whether a nodes' intermediate is trusted no more, as of the last [`Authorities::look`].
    pub(crate) fn is_retired(&self, intermediate: i64) -> bool {
        self.0.roots.borrow().retired.contains(&intermediate)
    }

    /// The root that issues.
    pub(super) async fn root(&self, transaction: &mut Transaction) -> Result<Issuing, AuthoritiesError> {
        let root = load(transaction, &Role::Root, &self.0.keys).await?;
        root.ok_or(AuthoritiesError::RootOffline)
    }
}
