//! `hfctl logs`: reads a service's log as it is written.

mod search;

use std::io::{BufRead, Read as _};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::node::find;
use crate::client::{Client, escaped};
use crate::failure::Failure;
use crate::output::{Output, complain, text};

/// Longest line of the hub's stream: a batch of lines, each character escaped.
const LINE: u64 = 1024 * 1024;

/// Reads a service's log, live; or searches logs that were shipped.
///
/// Nothing of a log that is read live is kept at the hub; that it was read is in the audit log. What a service writes faster
/// than it can be read is left out, and said so in its place.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Logs {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    live: Live,
}

#[derive(Subcommand)]
enum Verb {
    /// Finds lines of logs that agents have shipped and the hub keeps.
    Search(search::Search),
}

impl Logs {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self.verb {
            Some(Verb::Search(search)) => search.run(client, output),
            None => self.live.run(client, output),
        }
    }
}

#[derive(Args)]
struct Live {
    /// The service: STACK/SERVICE, as `hfctl node show` lists them.
    #[arg(value_name = "STACK/SERVICE")]
    service: Option<String>,
    /// Its node, by id or name.
    #[arg(long)]
    node: Option<String>,
    /// Go on with what is written from now on.
    #[arg(long, short)]
    follow: bool,
    /// Nothing that was written before: a time (2026-11-23T12:00:00Z), or for how long (10m).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Nothing that was written after: a time, or how long ago.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only lines in which this regular expression is found; it is searched for on the node.
    #[arg(long, value_name = "EXPRESSION")]
    grep: Option<String>,
    /// Of what each container wrote before, the last lines that are looked at: at most 10000 [default: 100; with --since or
    /// --grep, 10000].
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<u32>,
    /// Show when each line was written.
    #[arg(long, short)]
    timestamps: bool,
    /// Why, in one line, for the audit log.
    #[arg(long, value_name = "WHY")]
    reason: Option<String>,
}

impl Live {
    fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let (Some(named), Some(node)) = (self.service.as_deref(), self.node.as_deref()) else {
            return Err(Failure::Usage("name a service and its node: hfctl logs STACK/SERVICE --node NODE".into()));
        };
        let (stack, service) = named
            .split_once('/')
            .ok_or_else(|| Failure::Usage(format!("{named:?} is not a service: name it STACK/SERVICE")))?;
        let path = format!("nodes/{}/services/{}/{}/logs", find(client, node)?, escaped(stack), escaped(service));
        let lines = self.tail.map(|lines| lines.to_string());
        let query = [
            ("follow", self.follow.then_some("true")),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
            ("grep", self.grep.as_deref()),
            ("lines", lines.as_deref()),
            ("reason", self.reason.as_deref()),
        ];
        let mut stream = client.stream(&path, &query, None)?;
        let (mut event, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            match stream.by_ref().take(LINE).read_line(&mut line) {
                Ok(0) => return Err(Failure::Failed("the hub has ended the stream".into())),
                Ok(_) => {}
                Err(error) => return Err(Failure::Failed(format!("the stream broke off: {error}"))),
            }
            // Events of a name and one line of data each (WHATWG HTML, section 9.2.6).
            if let Some(name) = line.strip_prefix("event:") {
                name.trim().clone_into(&mut event);
            }
            let Some(data) = line.strip_prefix("data:") else { continue };
            let data: Value = serde_json::from_str(data.trim())
                .map_err(|error| Failure::Failed(format!("the stream holds something that is no log: {error}")))?;
            match event.as_str() {
                "lines" => self.print(&data, output)?,
                "end" => {
                    dropped(&data, output)?;
                    return ended(&data);
                }
                _ => {}
            }
        }
    }

    fn print(&self, batch: &Value, output: &mut Output) -> Result<(), Failure> {
        for line in batch["lines"].as_array().into_iter().flatten() {
            dropped(line, output)?;
            if output.is_json() {
                output.json_line(line)?;
                continue;
            }
            let at = if self.timestamps { format!("{} ", text(line, "/at")) } else { String::new() };
            let number = line["number"].as_u64().filter(|number| *number > 1);
            let number = number.map(|number| format!("#{number} ")).unwrap_or_default();
            let cut = line["cut"].as_u64().filter(|cut| *cut > 0).map(|cut| format!(" … {cut} bytes more"));
            let said = plain(line["text"].as_str().unwrap_or_default());
            output.line(&format!("{at}{number}{said}{}", cut.unwrap_or_default()))?;
        }
        dropped(batch, output)
    }
}

/// Without colours, which a terminal would take for orders, and with its tabs as spaces.
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // A control sequence ends with the first byte of these (ECMA-48, section 5.4).
        out.push_str(part.trim_start_matches(|c| matches!(c, '\u{20}'..='\u{3f}')).get(1..).unwrap_or_default());
    }
    out.replace('\t', "    ")
}

/// Says in their place how many lines are missing.
fn dropped(of: &Value, output: &mut Output) -> Result<(), Failure> {
    match of["dropped"].as_u64() {
        None | Some(0) => Ok(()),
        // On the same stream as the lines, so that it stands where they would.
        Some(dropped) if output.is_json() => output.json_line(&json!({ "dropped": dropped })),
        Some(1) => output.line("--- 1 line dropped ---"),
        Some(dropped) => output.line(&format!("--- {dropped} lines dropped ---")),
    }
}

fn ended(end: &Value) -> Result<(), Failure> {
    let message = text(end, "/message");
    match end["reason"].as_str() {
        Some("complete") => Ok(()),
        Some("refused") => Err(Failure::Refused(message)),
        Some("stopped") => {
            complain(&format!("hfctl: {message}"));
            Err(Failure::Failed("the log is read no further".into()))
        }
        _ => Err(Failure::Failed(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn colours_are_left_out_and_text_is_not() {
        assert_eq!(plain("\u{1b}[1;31mno\u{1b}[0m pressure [bar]\tär"), "no pressure [bar]    är");
        assert_eq!(plain("\u{1b}["), "");
        assert_eq!(plain("\u{1b}[31ä"), "");
    }
}
