//! `hfctl policy`: how long certificates live, and when they are renewed.

use std::str::FromStr;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use settings::Period;

use super::cert::advised;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, complain, text, time};

/// What policy is made for.
const KINDS: [&str; 8] =
    ["root", "hub-intermediate", "nodes-intermediate", "kafka-root", "agent", "bridge", "kafka-client", "kafka-server"];

#[derive(Subcommand)]
pub(crate) enum Policy {
    /// Shows how long certificates live, and when they are renewed: for the fleet, or as it goes for a tenant.
    Show {
        /// As it goes for this tenant.
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Sets it for one kind of certificate. It counts from the next certificate on.
    Set {
        /// Which kind.
        #[arg(value_parser = KINDS)]
        kind: String,
        /// For this tenant alone [default: for the fleet].
        #[arg(long)]
        tenant: Option<String>,
        /// How long a certificate lives: 12h, 7d, 365d [default: as it is].
        #[arg(long, value_name = "PERIOD")]
        lifetime: Option<Period>,
        /// Between which shares of its life it is renewed, in percent: 57-77 [default: as it is].
        #[arg(long, value_name = "FROM-UNTIL")]
        renew: Option<Window>,
        /// Have nodes renew whose certificates end later than new ones would, spread over so long.
        #[arg(long, value_name = "PERIOD")]
        renew_within: Option<Period>,
    },
    /// Takes back what was set: what goes for the fleet, or by default, goes again.
    Reset {
        /// Which kind.
        #[arg(value_parser = KINDS)]
        kind: String,
        /// Of this tenant [default: of the fleet].
        #[arg(long)]
        tenant: Option<String>,
    },
}

/// `57-77`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    from: u8,
    until: u8,
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bounds = text.trim_end_matches('%').split_once('-');
        let read = |part: &str| part.trim().parse().ok();
        let window = bounds.and_then(|(from, until)| Some(Self { from: read(from)?, until: read(until)? }));
        window.ok_or_else(|| "two shares of the life in percent, such as 57-77".to_owned())
    }
}

impl Policy {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Show { tenant } => {
                let policies: Vec<Value> = client.get("certificate-policies", &[("tenant", tenant.as_deref())])?;
                output.list(policies, ["KIND", "LIFETIME", "RENEWED AT", "SET FOR", "SET", "BY"], row, "")
            }
            Self::Set { kind, tenant, lifetime, renew, renew_within } => {
                if lifetime.is_none() && renew.is_none() && renew_within.is_none() {
                    return Err(Failure::Usage("say what to set: --lifetime, --renew".into()));
                }
                let known: Vec<Value> = client.get("certificate-policies", &[("tenant", tenant.as_deref())])?;
                let known = known.iter().find(|known| text(known, "/kind") == kind);
                let number = |path: &str| known.and_then(|known| known.pointer(path)).and_then(Value::as_u64);
                let set: Value = client.put(
                    &format!("certificate-policies/{kind}"),
                    &json!({
                        "tenant": tenant,
                        "lifetime_seconds": lifetime.map(|life| life.get().as_secs()).or(number("/lifetime_seconds")),
                        "renew_from_percent": renew.map(|window| window.from.into()).or(number("/renew_from_percent")),
                        "renew_until_percent": renew.map(|window| window.until.into()).or(number("/renew_until_percent")),
                        "renew_within_seconds": renew_within.map(|within| within.get().as_secs()),
                    }),
                )?;
                let whose = tenant.map_or_else(String::new, |tenant| format!(" --tenant {tenant}"));
                said(&set, &kind, &format!("policy set {kind}{whose} --renew-within 6h"), output)
            }
            Self::Reset { kind, tenant } => {
                let path = format!("certificate-policies/{kind}");
                let set: Value = client.reset(&path, &[("tenant", tenant.as_deref())])?;
                let whose = tenant.map_or_else(|| "--all".to_owned(), |tenant| format!("--tenant {tenant}"));
                said(&set, &kind, &format!("cert renew {whose} --within 6h --reason \"the policy was reset\""), output)
            }
        }
    }
}

fn row(policy: &Value) -> [String; 6] {
    [
        text(policy, "/kind"),
        period(policy, "/lifetime_seconds"),
        format!("{}-{} %", text(policy, "/renew_from_percent"), text(policy, "/renew_until_percent")),
        text(policy, "/source"),
        time(policy, "/changed_at"),
        text(policy, "/changed_by"),
    ]
}

fn period(value: &Value, path: &str) -> String {
    let seconds = value.pointer(path).and_then(Value::as_u64);
    seconds.map_or_else(|| "-".into(), |seconds| Period(Duration::from_secs(seconds)).to_string())
}

/// What goes now, and what is left to do: `to_renew` is the command for nodes whose certificates end later.
fn said(set: &Value, kind: &str, to_renew: &str, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(set);
    }
    let [_, lifetime, window, source, ..] = row(set);
    output.line(&format!("{kind}: {lifetime}, renewed at {window} of the life (set for: {source})"))?;
    let longer = set.pointer("/outlived_by").and_then(Value::as_u64).unwrap_or(0);
    match set.get("advised") {
        Some(told) => output.line(&advised(told))?,
        None if longer > 0 => complain(&format!(
            "{longer} nodes have certificates that end later than new ones would; to have them renewed: hfctl {to_renew}"
        )),
        None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_as_people_write_it() {
        for text in ["57-77", "57-77%", "57 - 77"] {
            assert_eq!(text.parse(), Ok(Window { from: 57, until: 77 }), "{text}");
        }
        for text in ["57", "57-", "a-b", "57-777", "-57-77", ""] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }
}
