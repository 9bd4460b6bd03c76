//! The log as JSON lines, page by page, without holding the database meanwhile: what is written never changes.

use std::fmt::Write as _;

use protocol::TenantId;
use store::sqlx::{self, AssertSqlSafe};
use store::{Database, StoreError};

use super::chain::Link;
use super::ocsf;

/// Entries read at once: their lines are half a MiB or so.
const PAGE: i64 = 500;

/// An export under way.
pub struct Export {
    database: Database,
    tenant: Option<TenantId>,
    after: i64,
    until: i64,
}

impl Export {
    /// The entries after number `after` up to now: all of them, or those of one tenant.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn begin(database: Database, tenant: Option<TenantId>, after: i64) -> Result<Self, StoreError> {
        let until = super::head(&database).await?.id;
        let database = database.within(tenant.as_ref().map(TenantId::as_str));
        Ok(Self { database, tenant, after, until })
    }

    /// The next lines; `None` when there are no more.
    ///
    /// # Errors
    /// When the database does not answer; what was read so far is then not the whole.
    pub async fn lines(&mut self) -> Result<Option<String>, StoreError> {
        let of_tenant = if self.tenant.is_some() { "AND tenant = $4" } else { "AND $4 = ''" };
        let sql =
            format!("SELECT {} FROM audit WHERE id > $1 AND id <= $2 {of_tenant} ORDER BY id LIMIT $3", Link::COLUMNS);
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(self.after)
            .bind(self.until)
            .bind(PAGE)
            .bind(self.tenant.as_ref().map_or("", TenantId::as_str))
            .fetch_all(&mut *self.database.read().await?)
            .await?;
        let mut lines = String::new();
        for row in &rows {
            let link = Link::read(row)?;
            self.after = link.id;
            // Writing to memory does not fail.
            let _ = writeln!(lines, "{}", ocsf::event(&link));
        }
        Ok(Some(lines).filter(|lines| !lines.is_empty()))
    }
}
