//! Intermediates are followed in their window, whether or not somebody asks for a certificate.

use pki::{AuthorityError, Role};
use protocol::{TenantId, Timestamp};
use store::Transaction;

use super::rows::load;
use super::{Authorities, AuthoritiesError, Issuing, issues_at};

impl Authorities {
    /// Makes the successors of intermediates whose time has come. The ones before stay trusted, and what they issued stays
    /// good.
    ///
    /// # Errors
    /// For the first that could not be made; the others are made all the same.
    pub async fn follow(&self, now: Timestamp) -> Result<(), AuthoritiesError> {
        let listed = self.list(None, now).await?;
        // One that is being rotated has its successor.
        let due = listed
            .iter()
            .filter(|one| one.followed_at.is_some_and(|at| at <= now) && one.followers(&listed).next().is_none());
        let mut outcome = Ok(());
        for one in due {
            let followed = async {
                let mut transaction = self.0.database.begin_write().await?;
                match one.tenant.as_deref().map(str::parse::<TenantId>) {
                    Some(Ok(tenant)) => drop(self.tenant(&mut transaction, &tenant, now).await?),
                    Some(Err(_)) => return Err(AuthorityError::Certificate.into()),
                    None => drop(self.hub(&mut transaction, now).await?),
                }
                Ok(transaction.commit().await?)
            };
            let followed: Result<(), AuthoritiesError> = followed.await;
            outcome = outcome.and(followed);
        }
        outcome
    }

    /// The hub's intermediate that issues now; while the root that has to sign its successor is offline, the last one.
    pub(super) async fn hub(&self, transaction: &mut Transaction, now: Timestamp) -> Result<Issuing, AuthoritiesError> {
        let policy = self.fleet_policy();
        let known = load(transaction, &Role::Hub, &self.0.keys).await?;
        if known.as_ref().is_none_or(|known| !issues_at(&known.authority, &policy, now))
            && let Some(next) = self.create_intermediate(transaction, &Role::Hub, now).await?
        {
            return Ok(next);
        }
        known.ok_or(AuthoritiesError::RootOffline)
    }
}
