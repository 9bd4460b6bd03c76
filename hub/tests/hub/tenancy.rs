//! Tenants are kept apart by PostgreSQL itself, on every table there is, whatever a statement says.

use std::collections::{BTreeMap, BTreeSet};

use hyperfactory_hub::schema::MIGRATIONS;
use serde_json::{Map, Value};
use store::sqlx::{self, AnyConnection, AssertSqlSafe, Connection as _, Executor as _, Row as _};
use store::testing::TestDatabase;
use store::{Database, Engine, Guard, Transaction};

use crate::setup::World;

/// What PostgreSQL says when a policy or a privilege is in the way.
const FORBIDDEN: &str = "42501";
/// Tables that a tenant shares with the fleet, and why.
const SHARED: [(&str, &str); 1] = [("audit_head", "who appends for one tenant follows the entry of another")];

/// A table as the database describes it: a new one is found here by itself.
struct Table {
    name: String,
    columns: Vec<Column>,
    /// The column that says whose a row is.
    owner: Option<String>,
}

struct Column {
    name: String,
    kind: String,
    generated: bool,
    nullable: bool,
    /// The table and column it refers to.
    refers_to: Option<(String, String)>,
}

impl Table {
    async fn all(connection: &mut AnyConnection) -> Vec<Self> {
        let rows = sqlx::query(
            "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attidentity::text <> '',
                NOT a.attnotnull, f.relname::text, fa.attname::text
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'f' AND k.conkey = ARRAY[a.attnum]
             LEFT JOIN pg_class f ON f.oid = k.confrelid
             LEFT JOIN pg_attribute fa ON fa.attrelid = f.oid AND fa.attnum = k.confkey[1]
             WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
             ORDER BY c.relname, a.attnum",
        )
        .fetch_all(connection)
        .await
        .expect("the catalog");
        let mut tables: BTreeMap<String, Vec<Column>> = BTreeMap::new();
        for row in rows {
            let refers_to: (Option<String>, Option<String>) = (row.get(5), row.get(6));
            tables.entry(row.get(0)).or_default().push(Column {
                name: row.get(1),
                kind: row.get(2),
                generated: row.get(3),
                nullable: row.get(4),
                refers_to: refers_to.0.zip(refers_to.1),
            });
        }
        let owner = |name: &str, columns: &[Column]| {
            let owner = if name == "tenants" { "id" } else { "tenant" };
            columns.iter().find(|column| column.name == owner).map(|column| column.name.clone())
        };
        let mut tables: Vec<Self> =
            tables.into_iter().map(|(name, columns)| Self { owner: owner(&name, &columns), name, columns }).collect();
        // Those that are referred to come first.
        let mut sorted: Vec<Self> = Vec::new();
        while !tables.is_empty() {
            let place = tables.iter().position(|table| {
                let known = |name: &String| *name == table.name || sorted.iter().any(|other| other.name == *name);
                table.columns.iter().filter_map(|column| column.refers_to.as_ref()).all(|(name, _)| known(name))
            });
            sorted.push(tables.remove(place.expect("no circle of references")));
        }
        sorted
    }

    /// A statement that inserts a new row for `tenant`, with values nothing else has.
    fn insert(&self, tenant: &str, number: usize, rows: &Rows) -> String {
        let columns: Vec<&Column> = self.columns.iter().filter(|column| !column.generated).collect();
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let values: Vec<String> = columns.iter().map(|column| self.value(column, tenant, number, rows)).collect();
        format!("INSERT INTO {} ({}) VALUES ({})", self.name, names.join(", "), values.join(", "))
    }

    fn value(&self, column: &Column, tenant: &str, number: usize, rows: &Rows) -> String {
        let unique = format!("{}-{}-{tenant}-{number}", self.name, column.name);
        match (self.name.as_str(), column.name.as_str()) {
            ("audit", "id") => return "(SELECT last_id + 1 FROM audit_head)".into(),
            ("audit", "previous") => return "(SELECT hash FROM audit_head)".into(),
            ("master_key", "slot") => return "1".into(),
            ("tenants", "id") if number > 0 => return format!("'{tenant}-{number}'"),
            _ => {}
        }
        if self.owner.as_ref() == Some(&column.name) {
            return if tenant == "*" { "NULL".into() } else { format!("'{tenant}'") };
        }
        if column.refers_to.as_ref().is_some_and(|(table, _)| *table == self.name) {
            return "NULL".into();
        }
        if let Some((table, other)) = &column.refers_to {
            let of = |owner: &str| rows.get(&(table.clone(), owner.to_owned()));
            let row = of(tenant).or_else(|| of("*"));
            return match row.and_then(|row| row.get(other)) {
                Some(Value::String(text)) => format!("'{text}'::{}", column.kind),
                Some(Value::Number(number)) => number.to_string(),
                _ if column.nullable => "NULL".into(),
                _ => panic!("{unique}: nothing to refer to in {table}"),
            };
        }
        match column.kind.as_str() {
            "text" => format!("'{unique}'"),
            "bigint" => format!("{}", 1_000 + number),
            "bytea" => format!("'{unique}'::bytea"),
            "boolean" => "false".into(),
            other => panic!("{unique} is of the type {other}: teach this test a value of it"),
        }
    }
}

/// A row by its table and its tenant (`*`: the fleet's).
type Rows = BTreeMap<(String, String), Map<String, Value>>;

/// Tables with a row of acme's, of zeta's, or of the fleet's in each.
async fn seeded(database: &TestDatabase) -> (Database, Vec<Table>, Rows) {
    let opened = database.open().await;
    opened.migrate(MIGRATIONS).await.expect("tables");
    let mut all = opened.begin_write().await.expect("a transaction");
    let tables = Table::all(&mut all).await;
    let mut rows = Rows::new();
    for table in tables.iter().filter(|table| !["audit_head", "schema_migrations"].contains(&table.name.as_str())) {
        let owner = table.columns.iter().find(|column| table.owner.as_ref() == Some(&column.name));
        let owners: &[&str] = match owner {
            None => &["*"],
            // The fleet's own row, which no tenant sees.
            Some(owner) if owner.nullable => &["acme", "zeta", "*"],
            Some(_) => &["acme", "zeta"],
        };
        for (number, owner) in owners.iter().enumerate() {
            let number = if table.name == "tenants" { 0 } else { number };
            let sql = format!("{} RETURNING row_to_json({})::text", table.insert(owner, number, &rows), table.name);
            let row: String =
                sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(&mut *all).await.unwrap_or_else(|error| {
                    panic!("{sql}: {error}: if the table has rules of its own, teach this test what they want")
                });
            rows.insert((table.name.clone(), (*owner).to_owned()), serde_json::from_str(&row).expect("an object"));
        }
    }
    all.commit().await.expect("committed");
    (opened, tables, rows)
}

/// What a statement did: rows it touched, or the code of the error.
async fn attempt(transaction: &mut Transaction, sql: &str) -> Result<u64, String> {
    transaction.execute("SAVEPOINT attempt").await.expect("a savepoint");
    let done = transaction.execute(AssertSqlSafe(sql.to_owned())).await;
    transaction.execute("ROLLBACK TO attempt").await.expect("as before");
    done.map(|done| done.rows_affected()).map_err(|error| {
        let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
        code.unwrap_or_else(|| panic!("{sql}: {error}"))
    })
}

async fn count(transaction: &mut Transaction, table: &str, condition: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) FROM {table} WHERE {condition}");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut **transaction).await.expect("a count")
}

#[tokio::test]
async fn on_every_table_a_tenant_sees_and_writes_its_own_rows_alone() {
    let test = TestDatabase::create(Engine::Postgres).await;
    let (database, tables, mut rows) = seeded(&test).await;
    let names: BTreeSet<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert!(tables.iter().filter(|table| table.owner.is_some()).count() >= 15, "{names:?}");
    let acme = database.within(Some("acme"));
    let mut reading = acme.read().await.expect("a connection");
    for table in &tables {
        let seen: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT COUNT(*) FROM {}", table.name)))
            .fetch_one(&mut *reading)
            .await
            .expect("a count");
        let shared = SHARED.iter().any(|(name, _)| *name == table.name);
        assert_eq!(seen, i64::from(table.owner.is_some() || shared), "{}: reading", table.name);
    }
    drop(reading);
    let mut scoped = acme.begin_write().await.expect("a transaction");
    for (number, table) in (10..).zip(&tables) {
        let name = &table.name;
        let Some(owner) = &table.owner else {
            if SHARED.iter().any(|(shared, _)| shared == name) {
                for sql in ["UPDATE audit_head SET last_id = 1", "DELETE FROM audit_head"] {
                    assert!(attempt(&mut scoped, sql).await.is_err(), "{sql}");
                }
                continue;
            }
            assert_eq!(count(&mut scoped, name, "true").await, 0, "{name}");
            let column = table.columns.iter().find(|column| !column.generated).map(|column| &column.name);
            let column = column.expect("a column");
            for sql in [format!("UPDATE {name} SET {column} = {column}"), format!("DELETE FROM {name}")] {
                let done = attempt(&mut scoped, &sql).await;
                assert!(done == Ok(0) || done == Err(FORBIDDEN.into()), "{sql}: {done:?}");
            }
            let sql = table.insert("*", number, &rows);
            assert_eq!(attempt(&mut scoped, &sql).await, Err(FORBIDDEN.into()), "{sql}");
            continue;
        };
        // What its guards refuse, they refuse to everybody.
        let guarded = name == "audit";
        assert_eq!(count(&mut scoped, name, "true").await, 1, "{name}: its own row, and no other");
        assert_eq!(count(&mut scoped, name, &format!("{owner} = 'acme'")).await, 1, "{name}");
        let touch = |whose: &str| format!("UPDATE {name} SET {owner} = {owner} WHERE {owner} = '{whose}'");
        let delete = |whose: &str| format!("DELETE FROM {name} WHERE {owner} = '{whose}'");
        if guarded {
            for sql in [touch("acme"), touch("zeta"), delete("acme"), delete("zeta")] {
                assert_eq!(attempt(&mut scoped, &sql).await, Err("23000".into()), "{sql}");
            }
        } else {
            assert_eq!(attempt(&mut scoped, &touch("zeta")).await, Ok(0), "{name}: updating another's");
            assert_eq!(attempt(&mut scoped, &touch("acme")).await, Ok(1), "{name}: updating its own");
            assert_eq!(attempt(&mut scoped, &delete("zeta")).await, Ok(0), "{name}: deleting another's");
            let given = format!("UPDATE {name} SET {owner} = 'zeta' WHERE {owner} = 'acme'");
            assert_eq!(attempt(&mut scoped, &given).await, Err(FORBIDDEN.into()), "{name}: giving a row away");
        }
        let theirs = table.insert("zeta", number, &rows);
        assert_eq!(attempt(&mut scoped, &theirs).await, Err(FORBIDDEN.into()), "{theirs}");
    }
    // Its own rows it can delete, from those that refer to others on, and write anew.
    for table in tables.iter().rev().filter(|table| table.name != "audit") {
        let Some(owner) = &table.owner else { continue };
        let sql = format!("DELETE FROM {} WHERE {owner} = 'acme'", table.name);
        let deleted = scoped.execute(AssertSqlSafe(sql.clone())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(deleted.rows_affected(), 1, "{sql}");
    }
    for (number, table) in (50..).zip(tables.iter().filter(|table| table.owner.is_some())) {
        let number = if table.name == "tenants" { 0 } else { number };
        let sql = format!("{} RETURNING row_to_json({})::text", table.insert("acme", number, &rows), table.name);
        let row = sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(&mut *scoped).await;
        let row: String = row.unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.insert((table.name.clone(), "acme".to_owned()), serde_json::from_str(&row).expect("an object"));
    }
    scoped.rollback().await.expect("as before");
    database.close().await;
    test.remove().await;
}

#[tokio::test]
async fn the_hub_works_as_a_role_that_can_not_lift_the_policies() {
    let test = TestDatabase::create(Engine::Postgres).await;
    let world = World::new(&test).await;
    let Ok(Guard::Role { role, login, superuser: true }) = world.database.guard().await else {
        panic!("{:?}", world.database.guard().await);
    };
    assert!(role.ends_with("_runtime") && login == "postgres", "{role} {login}");
    let mut transaction = world.database.begin_write().await.expect("a transaction");
    for sql in [
        "ALTER TABLE nodes DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE nodes NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY tenant ON nodes",
        "CREATE POLICY mine ON nodes USING (true)",
        "ALTER TABLE audit DISABLE TRIGGER ALL",
        "DROP TRIGGER audit_stays ON audit",
        "CREATE OR REPLACE FUNCTION audit_refuses() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "TRUNCATE nodes CASCADE",
        "DROP TABLE hub_settings",
        "UPDATE schema_migrations SET version = 2",
        "SET session_replication_role = replica",
    ] {
        assert_eq!(attempt(&mut transaction, sql).await, Err(FORBIDDEN.into()), "{sql}");
    }
    drop(transaction);
    // A connection that says nothing sees nothing.
    let mut silent = AnyConnection::connect(&test.url).await.expect("a connection");
    silent.execute(AssertSqlSafe(format!("SET ROLE {role}"))).await.expect("the role");
    for table in Table::all(&mut silent).await {
        let sql = format!("SELECT COUNT(*) FROM {}", table.name);
        let seen: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut silent).await.expect("a count");
        assert_eq!(seen, i64::from(table.name == "audit_head"), "{}", table.name);
    }
    world.close().await;
    test.remove().await;
}

/// Whoever runs PostgreSQL gives the hub a login; each of the documented ways keeps tenants apart.
#[tokio::test]
async fn each_way_to_sign_in_keeps_tenants_apart() {
    let test = TestDatabase::create(Engine::Postgres).await;
    let name = test.url.rsplit_once('/').expect("a name").1.to_owned();
    let mut admin = AnyConnection::connect(&test.url).await.expect("a connection");
    let run = async |admin: &mut AnyConnection, sql: String| {
        admin.execute(AssertSqlSafe(sql.clone())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    run(&mut admin, format!("CREATE ROLE {name}_owner LOGIN; ALTER DATABASE {name} OWNER TO {name}_owner")).await;
    run(&mut admin, format!("CREATE ROLE {name}_hub LOGIN")).await;
    let url = |login: &str| test.url.replace("postgres@", &format!("{name}_{login}@"));
    let open = async |login: &str| {
        let database = Database::open(&url(login)).await.expect("a database");
        database.migrate(MIGRATIONS).await.expect("tables");
        database
    };

    // An owner who may not make roles: bound by the policies, and told what is better.
    let owner = open("owner").await;
    let guard = owner.guard().await.expect("known");
    assert_eq!(guard, Guard::Owner { login: format!("{name}_owner"), wanted: format!("{name}_runtime") });
    let advice = guard.advice().expect("advice");
    let mut transaction = owner.begin_write().await.expect("a transaction");
    for tenant in ["acme", "zeta"] {
        let sql = format!("INSERT INTO tenants (id, name, created_at) VALUES ('{tenant}', '{tenant}', 0)");
        transaction.execute(AssertSqlSafe(sql)).await.expect("a tenant");
    }
    transaction.commit().await.expect("committed");
    apart(&owner).await;
    owner.close().await;

    // What the advice says, done: the same login, as less than the owner.
    for sql in
        advice.split("as an administrator, ").nth(1).expect("SQL").split("; ").filter(|sql| !sql.starts_with("then"))
    {
        run(&mut admin, sql.to_owned()).await;
    }
    let owner = open("owner").await;
    let expected = |login: &str| Guard::Role {
        role: format!("{name}_runtime"),
        login: format!("{name}_{login}"),
        superuser: false,
    };
    assert_eq!(owner.guard().await.expect("known"), expected("owner"));
    apart(&owner).await;
    owner.close().await;

    // A login that owns nothing: it can't even make the tables, which are there by now.
    run(&mut admin, format!("GRANT {name}_runtime TO {name}_hub")).await;
    let hub = open("hub").await;
    assert_eq!(hub.guard().await.expect("known"), expected("hub"));
    apart(&hub).await;
    hub.close().await;

    run(&mut admin, format!("ALTER DATABASE {name} OWNER TO postgres; REASSIGN OWNED BY {name}_owner TO postgres"))
        .await;
    admin.close().await.expect("closed");
    test.remove().await;
}

/// An owner who may make roles makes the one it needs.
#[tokio::test]
async fn a_login_that_may_make_roles_needs_nobody() {
    let test = TestDatabase::create(Engine::Postgres).await;
    let name = test.url.rsplit_once('/').expect("a name").1.to_owned();
    let mut admin = AnyConnection::connect(&test.url).await.expect("a connection");
    let sql = format!("CREATE ROLE {name}_maker LOGIN CREATEROLE; ALTER DATABASE {name} OWNER TO {name}_maker");
    admin.execute(AssertSqlSafe(sql)).await.expect("a login");
    let database = Database::open(&test.url.replace("postgres@", &format!("{name}_maker@"))).await.expect("opened");
    database.migrate(MIGRATIONS).await.expect("tables");
    let expected = Guard::Role { role: format!("{name}_runtime"), login: format!("{name}_maker"), superuser: false };
    assert_eq!(database.guard().await.expect("known"), expected);
    database.close().await;
    let sql = format!("ALTER DATABASE {name} OWNER TO postgres; REASSIGN OWNED BY {name}_maker TO postgres");
    admin.execute(AssertSqlSafe(sql)).await.expect("given back");
    admin.close().await.expect("closed");
    test.remove().await;
}

async fn apart(database: &Database) {
    let mut seen = BTreeMap::new();
    for tenant in [None, Some("acme"), Some("zeta"), Some("'; SET LOCAL hyperfactory.tenant = '*")] {
        let mut reading = database.within(tenant).read().await.expect("a connection");
        let ids: Vec<String> =
            sqlx::query_scalar("SELECT id FROM tenants ORDER BY id").fetch_all(&mut *reading).await.expect("ids");
        seen.insert(tenant, ids.join(" "));
    }
    assert_eq!(seen[&None], "acme zeta");
    assert_eq!((&*seen[&Some("acme")], &*seen[&Some("zeta")]), ("acme", "zeta"));
    assert_eq!(seen.values().filter(|ids| ids.is_empty()).count(), 1, "{seen:?}");
    // Bound once, a handle stays bound.
    let mut twice = database.within(Some("acme")).within(Some("zeta")).read().await.expect("a connection");
    let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM tenants").fetch_all(&mut *twice).await.expect("ids");
    assert_eq!(ids, ["acme"]);
}
