//! Row-level security on PostgreSQL: whose rows a connection sees and writes is the database's business, not only ours.
//!
//! Every table has a policy. The rows of a table with a column `tenant` (of the table `tenants`: `id`) are those of
//! the tenant that the setting `hyperfactory.tenant` names, or all when it is `*`; other tables are there for `*`
//! alone. Without the setting, nothing is there. Connections work as the role `<database>_runtime`, which owns
//! nothing and so can change neither tables nor policies.

use std::fmt;

use sqlx::{AnyConnection, AssertSqlSafe, Executor, Row};

use crate::database::{Database, Engine};
use crate::error::StoreError;

/// Makes the role, its grants and the policies of tables that have none yet. Without the right to make roles, that is
/// left out: then policies bind the tables' owner.
pub(crate) async fn secure(connection: &mut AnyConnection) -> Result<(), StoreError> {
    connection.execute(SECURE).await?;
    Ok(())
}

/// A transaction of migrations sees every row.
pub(crate) const MIGRATING: &str = "SET LOCAL hyperfactory.tenant = '*'";

/// What a new connection does: it sees every row until a transaction is begun for one tenant, and is no more than it
/// has to be.
pub(crate) const CONNECTED: &str = "SELECT set_config('hyperfactory.tenant', '*', false);
    SELECT set_config('role', rolname, false) FROM pg_roles
    WHERE rolname = left(current_database(), 55) || '_runtime' AND pg_has_role(session_user, oid, 'MEMBER')";

/// What follows the BEGIN of a transaction for one tenant.
pub(crate) fn narrowed(tenant: &str) -> String {
    format!("; SET LOCAL hyperfactory.tenant = '{}'", tenant.replace('\'', "''"))
}

const SECURE: &str = "
DO $secure$
DECLARE
    runtime CONSTANT name := left(current_database(), 55) || '_runtime';
    one record;
    known boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = runtime);
BEGIN
    IF NOT known THEN
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', runtime);
            IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                EXECUTE format('GRANT %I TO CURRENT_USER', runtime);
            END IF;
            known := true;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE NOTICE 'the role % could not be made', runtime;
        END;
    END IF;
    IF known AND NOT has_schema_privilege(runtime, current_schema(), 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), runtime);
    END IF;
    FOR one IN
        SELECT c.oid, c.relname, c.relrowsecurity AND c.relforcerowsecurity AS forced,
            EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'tenant') AS has_policy,
            CASE WHEN c.relname = 'tenants' THEN 'id' ELSE
                (SELECT a.attname FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped) END AS owner_column
        FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
    LOOP
        IF NOT one.has_policy AND one.owner_column IS NOT NULL THEN
            EXECUTE format(
                'CREATE POLICY tenant ON %I USING (current_setting(''hyperfactory.tenant'', true) IN (''*'', %I))',
                one.relname, one.owner_column);
        ELSIF NOT one.has_policy THEN
            EXECUTE format(
                'CREATE POLICY tenant ON %I USING (current_setting(''hyperfactory.tenant'', true) = ''*'')', one.relname);
        END IF;
        IF NOT one.forced THEN
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', one.relname);
        END IF;
        IF known AND NOT has_table_privilege(runtime, one.oid, 'SELECT') THEN
            EXECUTE format('GRANT %s ON %I TO %I',
                CASE one.relname WHEN 'schema_migrations' THEN 'SELECT' ELSE 'SELECT, INSERT, UPDATE, DELETE' END,
                one.relname, runtime);
        END IF;
    END LOOP;
END $secure$";

/// How well a database keeps tenants apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Within one file: only this program's own statements do.
    Embedded,
    /// The database does: the hub works as a role that owns nothing.
    Role {
        /// The role.
        role: String,
        /// Whom it signed in as.
        login: String,
        /// Whether that one is above all policies, should somebody get at its connection.
        superuser: bool,
    },
    /// The database does, but the hub works as the tables' owner, who could change that.
    Owner {
        /// The owner.
        login: String,
        /// The role it should work as.
        wanted: String,
    },
    /// Policies do not bind whom the hub works as.
    Nothing {
        /// Whom it works as.
        login: String,
        /// The role it should work as.
        wanted: String,
    },
}

impl Guard {
    /// What to do for a better one, as a sentence; `None` when this is as it should be.
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Embedded | Self::Role { superuser: false, .. } => None,
            Self::Role { login, superuser: true, .. } => Some(format!(
                "the hub signs in to PostgreSQL as {login}, who is above row-level security: give it a login of its own \
                 that owns the database and nothing else"
            )),
            Self::Owner { login, wanted } => Some(format!(
                "the hub works in PostgreSQL as {login}, who owns the tables and could lift row-level security: as an \
                 administrator, CREATE ROLE \"{wanted}\"; GRANT \"{wanted}\" TO \"{login}\"; then restart the hub"
            )),
            Self::Nothing { login, wanted } => Some(format!(
                "row-level security does not bind {login}, as whom the hub works in PostgreSQL: as an administrator, \
                 CREATE ROLE \"{wanted}\"; GRANT \"{wanted}\" TO \"{login}\"; then restart the hub"
            )),
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("kept apart by the hub's statements; PostgreSQL can do it as well"),
            Self::Role { role, login, .. } => {
                write!(f, "kept apart by the database: the hub works as {role}, signed in as {login}")
            }
            Self::Owner { login, .. } => write!(f, "kept apart by the database, whose tables {login} owns"),
            Self::Nothing { .. } => f.write_str("kept apart by the hub's statements alone"),
        }
    }
}

impl Database {
    /// How well this database keeps tenants apart, once it is migrated.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn guard(&self) -> Result<Guard, StoreError> {
        if self.engine() == Engine::Sqlite {
            return Ok(Guard::Embedded);
        }
        let row = sqlx::query(AssertSqlSafe(
            "SELECT current_user::text, session_user::text, left(current_database(), 55) || '_runtime',
                (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user),
                (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = session_user),
                NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = current_schema()::regnamespace
                    AND relkind IN ('r', 'p') AND NOT (relrowsecurity AND relforcerowsecurity)),
                EXISTS (SELECT FROM pg_class WHERE relnamespace = current_schema()::regnamespace
                    AND relowner = current_user::regrole)",
        ))
        .fetch_one(self.reader())
        .await?;
        let (works_as, login, wanted): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (above, login_above): (bool, bool) = (row.try_get(3)?, row.try_get(4)?);
        let (forced, owns): (bool, bool) = (row.try_get(5)?, row.try_get(6)?);
        Ok(if above || !forced {
            Guard::Nothing { login: works_as, wanted }
        } else if owns {
            Guard::Owner { login: works_as, wanted }
        } else {
            Guard::Role { role: works_as, login, superuser: login_above }
        })
    }
}
