//! `hfctl logs search`: finds lines of logs that were shipped.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::super::node::find;
use super::plain;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, complain, text};

/// Finds lines of logs that agents have shipped and the hub keeps.
///
/// Lines have all of the words, whole, in any order and whatever their case. The newest that are found are printed, the
/// oldest of them first. That you searched is in the audit log.
#[derive(Args)]
pub(crate) struct Search {
    /// Words to find; none finds all lines.
    text: Vec<String>,
    /// Only this tenant's.
    #[arg(long)]
    tenant: Option<String>,
    /// Only this node's, by id or name.
    #[arg(long)]
    node: Option<String>,
    /// Only this service's: STACK/SERVICE, or STACK/ for all of a project.
    #[arg(long, value_name = "STACK/SERVICE")]
    service: Option<String>,
    /// Only what was written there.
    #[arg(long)]
    stream: Option<Stream>,
    /// Nothing that was written before: a time (2026-11-23T12:00:00Z), or for how long (10m).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Nothing that was written after: a time, or how long ago.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only lines in which this regular expression is found too.
    #[arg(long, value_name = "EXPRESSION")]
    grep: Option<String>,
    /// Why, in one line, for the audit log.
    #[arg(long, value_name = "WHY")]
    reason: Option<String>,
    /// At most so many lines.
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stream {
    Stdout,
    Stderr,
}

impl Search {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let node = self.node.as_deref().map(|node| find(client, node)).transpose()?;
        let (stack, service) = match self.service.as_deref().map(|service| service.split_once('/')) {
            None => (None, None),
            Some(Some((stack, service))) => (Some(stack), Some(service).filter(|service| !service.is_empty())),
            Some(None) => return Err(Failure::Usage("--service is named STACK/SERVICE, or STACK/".into())),
        };
        let stream = self.stream.map(|stream| match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        });
        let words = self.text.join(" ");
        let query = [
            ("tenant", self.tenant.as_deref()),
            ("node", node.as_deref()),
            ("stack", stack),
            ("service", service),
            ("stream", stream),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
            ("text", Some(&*words).filter(|words| !words.is_empty())),
            ("grep", self.grep.as_deref()),
            ("reason", self.reason.as_deref()),
        ];
        let mut found = client.list("logs", &query, Some(self.lines))?;
        found.reverse();
        if output.is_json() {
            return output.json(&Value::Array(found));
        }
        if found.is_empty() {
            complain("no lines are kept that have all of this");
        }
        for line in &found {
            let of = if node.is_some() { String::new() } else { format!("{} ", text(line, "/node")) };
            output.line(&format!("{} {of}{}", text(line, "/at"), said(line)))?;
        }
        Ok(())
    }
}

fn said(line: &Value) -> String {
    let number = line["number"].as_u64().filter(|number| *number > 1);
    let number = number.map(|number| format!("#{number}")).unwrap_or_default();
    let service = format!("{}/{}{number}", text(line, "/stack"), text(line, "/service"));
    match line["dropped"].as_u64() {
        None | Some(0) => {
            let cut = line["cut"].as_u64().filter(|cut| *cut > 0).map(|cut| format!(" … {cut} bytes more"));
            format!("{service} {}{}", plain(line["text"].as_str().unwrap_or_default()), cut.unwrap_or_default())
        }
        Some(1) => format!("{service} --- 1 line dropped ---"),
        Some(dropped) => format!("{service} --- {dropped} lines dropped until {} ---", text(line, "/until")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::said;

    #[test]
    fn a_line_says_whose_it_is_and_what_is_missing() {
        let mut line =
            json!({ "stack": "shop", "service": "web", "number": 2, "text": "\u{1b}[1mup\u{1b}[0m", "cut": 3 });
        assert_eq!(said(&line), "shop/web#2 up … 3 bytes more");
        line["dropped"] = 7.into();
        line["until"] = "2026-11-23T12:00:00.000000000Z".into();
        assert_eq!(said(&line), "shop/web#2 --- 7 lines dropped until 2026-11-23T12:00:00.000000000Z ---");
    }
}
