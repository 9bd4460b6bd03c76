//! What every verb of the program needs: the database and what stands on it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::Context;
use store::Database;
use tracing::warn;
use transport::ResetKey;

use super::now;
use crate::access::Access;
use crate::authorities::Authorities;
use crate::config::Config;
use crate::keys::Keys;
use crate::rotation::Rotations;
use crate::schema;
use crate::tenants::Tenants;

/// What every verb of the program needs: the database and what stands on it.
pub struct Domain {
    /// The database, migrated.
    pub database: Database,
    /// The fleet's authorities.
    pub authorities: Authorities,
    /// From one authority to the next.
    pub rotations: Rotations,
    /// Tenants.
    pub tenants: Tenants,
    /// Who may see and do what.
    pub access: Access,
    pub(super) reset_key: ResetKey,
}

impl Domain {
    /// Opens the state directory, the master key and the database.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        private_directory(&config.state_dir)?;
        let database = Database::open(&config.database_url()).await?;
        let ready = database.migrate(schema::MIGRATIONS).await;
        ready.with_context(|| match &config.database {
            None => format!("the hub cannot start with its state in {}", config.state_dir.display()),
            Some(_) => "the hub cannot start with the database it is configured for".to_owned(),
        })?;
        if let Some(advice) = database.guard().await?.advice() {
            warn!("{advice}");
        }
        let keys = Keys::open(&database, &config.master(), now()).await?;
        let authorities = Authorities::open(database.clone(), keys, now())
            .await
            .context("the fleet's authorities can't be opened")?;
        let reset_key = ResetKey(authorities.derive("stateless reset").await?);
        let tenants = Tenants::new(database.clone(), authorities.clone());
        let rotations = Rotations::new(database.clone(), authorities.clone());
        let access = Access::new(database.clone());
        Ok(Self { database, authorities, rotations, tenants, access, reset_key })
    }
}

/// Makes a directory that only this user can enter.
fn private_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
        format!(
            "cannot make the state directory {}: run as a user who may, or choose another with --state-dir",
            path.display()
        )
    })
}
