//! A request for one node on PostgreSQL: one statement is all of its transaction, which is one way to the server and back
//! where it would be five.

use std::sync::LazyLock;

use protocol::Timestamp;
use store::sqlx::{self, AssertSqlSafe};
use store::{Database, Engine};

use super::{COMMANDS, Made, NewRequest, Places, REQUEST, RequestError, Requested, bind_request, records};
use crate::audit::{self, Actor};
use crate::rows::{self, placeholders_from};

/// Values of the span, after those of the request.
const SPAN: usize = REQUEST.columns + 1;
const COMMAND: usize = SPAN + 3;
const LINK: usize = COMMAND + COMMANDS.columns;

/// Writes the request, its command and its audit record. `None`: nothing was written, because that takes more than one
/// statement, or the first look was not enough: the key was used, the node has much to do, another was audited meanwhile; or it
/// can't be asked for, unless its key says that it was.
pub(super) async fn write(
    database: &Database,
    new: &NewRequest,
    places: &Places,
    actor: &Actor,
    now: Timestamp,
) -> Result<Option<Requested>, RequestError> {
    if database.engine() == Engine::Sqlite || new.nodes.len() > 1 || new.signed.is_some() || new.check().is_err() {
        return Ok(None);
    }
    let (id, commands) = (rows::uuid(now), new.planned(places));
    let records = records(new, &id, &commands, None, actor);
    let ([command], [record]) = (commands.as_slice(), records.as_slice()) else { return Ok(None) };
    let Some(link) = audit::guessed(now, record) else { return Ok(None) };
    let query = bind_request(sqlx::query(AssertSqlSafe(STATEMENT.as_str())), &id, new, now);
    let made = Made { request: &id, new, steady: places.steady, actor, now };
    let query = audit::bind(made.bind(new.span().bind(query), command), &link);
    if database.write(query).await? == 0 {
        return Ok(None);
    }
    audit::right(&link);
    Ok(Some(Requested { commands: vec![(command.id, command.node)], id, replayed: false }))
}

/// Each row is written if the one before it was; the audit log is held first, as always where a key is used.
static STATEMENT: LazyLock<String> = LazyLock::new(|| {
    let (request, full) = (placeholders_from(1, REQUEST.columns), super::Span::full(SPAN));
    let (command, link) = (placeholders_from(COMMAND, COMMANDS.columns), placeholders_from(LINK, audit::LINKS.columns));
    format!(
        "WITH head AS ({} FOR NO KEY UPDATE),
         asked AS (
           INSERT INTO {} SELECT {request} FROM head WHERE NOT EXISTS ({full})
           ON CONFLICT (caller, idempotency_key) DO NOTHING RETURNING id
         ),
         made AS (INSERT INTO {} SELECT {command} FROM asked RETURNING id)
         INSERT INTO {} SELECT {link} FROM made",
        audit::is_newest(LINK),
        REQUEST.into,
        COMMANDS.into,
        audit::LINKS.into
    )
});
