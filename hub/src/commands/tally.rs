//! How the commands of one request stand, counted.

use protocol::TenantId;
use protocol::command::State;
use store::StoreError;
use store::sqlx::{self, Row};

use super::{Commands, state};

impl Commands {
    /// How many commands of a request stand how, as far as `tenant` goes.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tally(&self, request: &str, tenant: Option<&TenantId>) -> Result<Vec<(State, u64)>, StoreError> {
        let tenant = tenant.map(TenantId::as_str);
        let sql = "SELECT state, COUNT(*) FROM commands WHERE request = $1 AND ($2 = '' OR tenant = $2) GROUP BY state";
        let rows = sqlx::query(sql)
            .bind(request)
            .bind(tenant.unwrap_or_default())
            .fetch_all(&mut *self.0.database.within(tenant).read().await?)
            .await?;
        let count = |row: &sqlx::any::AnyRow| {
            Ok((state(&row.try_get::<String, _>(0)?)?, row.try_get::<i64, _>(1)?.unsigned_abs()))
        };
        Ok(rows.iter().map(count).collect::<Result<_, sqlx::Error>>()?)
    }
}
