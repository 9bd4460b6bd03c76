//! `hfctl audit`.

use std::fs::File;
use std::io::{BufRead, Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, complain, text, time};

/// How long to wait before a lost stream is asked for again: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];
/// Longest line of a stream.
const LINE: u64 = 1024 * 1024;

#[derive(Subcommand)]
pub(crate) enum Audit {
    /// Prints the newest entries, oldest of them first.
    Tail {
        /// Goes on with new entries as they are written.
        #[arg(long, short)]
        follow: bool,
        /// At most so many of those that are there.
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        lines: u32,
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<String>,
        /// Only this action, such as token.created; with a trailing dot, all that start so.
        #[arg(long)]
        action: Option<String>,
    },
    /// Writes the whole log as JSON lines (OCSF), for an archive or for `hyperfactory-hub audit verify --file`.
    ///
    /// A token bound to a tenant gets that tenant's entries, which are a part of the chain. Takes the role admin.
    Export {
        /// Only this tenant's entries: a part of the chain.
        #[arg(long)]
        tenant: Option<String>,
        /// Only entries after this number: what an earlier export did not have.
        #[arg(long, value_name = "NUMBER")]
        after: Option<i64>,
        /// Where to write; it is there when all of it is [default: standard output].
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Prints the newest entry's number and hash, to be noted where the hub can't reach.
    Head,
}

impl Audit {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let (follow, lines, tenant, action) = match self {
            Self::Tail { follow, lines, tenant, action } => (follow, lines, tenant, action),
            Self::Export { tenant, after, file } => return export(client, output, tenant.as_deref(), after, file),
            Self::Head => {
                let head: Value = client.get("audit/head", &[])?;
                return if output.is_json() {
                    output.json(&head)
                } else {
                    output.line(&format!("{}:{}", text(&head, "/id"), text(&head, "/hash")))
                };
            }
        };
        let query = [("tenant", tenant.as_deref()), ("action", action.as_deref())];
        let mut entries = client.list("audit", &query, Some(lines))?;
        entries.reverse();
        let mut last = entries.last().map(|entry| text(entry, "/id"));
        if !follow {
            let heads = ["AT", "ACTOR", "ACTION", "TENANT", "SUBJECT", "DETAIL"];
            return output.list(entries, heads, row, "no entries");
        }
        for entry in &entries {
            print(entry, output)?;
        }
        let mut wait = RETRY[0];
        loop {
            // Without an entry to go on from, the stream starts with what is written from now on.
            let ended = client.stream("audit/events", &query, last.as_deref()).and_then(|stream| {
                wait = RETRY[0];
                read(stream, &mut last, output)
            });
            match ended {
                Err(failure @ (Failure::Refused(_) | Failure::Usage(_) | Failure::Output(_))) => return Err(failure),
                Err(failure) => complain(&format!("hfctl: {failure}; trying again")),
                Ok(()) => complain("hfctl: the hub has ended the stream; trying again"),
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(RETRY[1]);
        }
    }
}

fn export(
    client: &Client,
    output: &mut Output,
    tenant: Option<&str>,
    after: Option<i64>,
    file: Option<PathBuf>,
) -> Result<(), Failure> {
    let after = after.map(|after| after.to_string());
    let lines = client.stream("audit/export", &[("tenant", tenant), ("after", after.as_deref())], None)?;
    let Some(path) = file else { return copy(lines, |part| output.bytes(part)) };
    // Under its name when it is whole: a part would look like a log that was cut.
    let new = path.with_extension("part");
    let failed = |error: std::io::Error| Failure::Failed(format!("cannot write {}: {error}", new.display()));
    let mut written = File::create(&new).map_err(failed)?;
    copy(lines, |part| written.write_all(part).map_err(failed))?;
    written.sync_all().and_then(|()| std::fs::rename(&new, &path)).map_err(failed)
}

fn copy(mut from: impl BufRead, mut put: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    loop {
        let part = from.fill_buf();
        let part = part.map_err(|error| Failure::Failed(format!("the export broke off and is not whole: {error}")))?;
        if part.is_empty() {
            return Ok(());
        }
        let taken = part.len();
        put(part)?;
        from.consume(taken);
    }
}

/// Prints the entries of a stream until it ends.
fn read(mut stream: impl BufRead, last: &mut Option<String>, output: &mut Output) -> Result<(), Failure> {
    let mut line = String::new();
    loop {
        line.clear();
        match stream.by_ref().take(LINE).read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(Failure::Failed(format!("the stream broke off: {error}"))),
        }
        // Events of one line of data each (WHATWG HTML, section 9.2.6); the id is in the data as well.
        let Some(data) = line.strip_prefix("data:") else { continue };
        let entry: Value = serde_json::from_str(data.trim())
            .map_err(|error| Failure::Failed(format!("the stream holds something that is no audit entry: {error}")))?;
        *last = Some(text(&entry, "/id"));
        print(&entry, output)?;
    }
}

fn print(entry: &Value, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() { output.json_line(entry) } else { output.line(&row(entry).join("  ")) }
}

fn row(entry: &Value) -> [String; 6] {
    let detail = entry.pointer("/detail").and_then(Value::as_object).map(|fields| {
        let shown = fields.iter().filter(|(_, value)| !value.is_null());
        let shown = shown.map(|(name, value)| {
            // Of a certificate, its serial is enough to read; the rest is in the JSON.
            match value.as_str().or_else(|| value["serial"].as_str()) {
                Some(text) => format!("{name}={text}"),
                None => format!("{name}={value}"),
            }
        });
        shown.collect::<Vec<_>>().join(" ")
    });
    [
        time(entry, "/at"),
        text(entry, "/actor"),
        text(entry, "/action"),
        text(entry, "/tenant"),
        text(entry, "/subject"),
        detail.unwrap_or_default(),
    ]
}
