//! `hfctl ca`.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use settings::Period;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, text, time};

/// Certificate authorities.
#[derive(Subcommand)]
pub(crate) enum Ca {
    /// From an authority to its successor, in phases: prepare, trust, issue, retire, done. Each waits for everybody who would
    /// be locked out by it, and each has a way back.
    #[command(subcommand)]
    Rotate(Rotate),
}

/// What is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// The fleet's root: what nodes trust.
    Root,
    /// What issues the certificate the hub shows to nodes.
    Hub,
    /// What issues the identities of a tenant's nodes.
    Nodes,
    /// The root of a tenant's Kafka plane.
    Kafka,
}

#[derive(Subcommand)]
pub(crate) enum Rotate {
    /// Begins a rotation: the successor is made, and nobody is told of it yet.
    Start {
        /// What to rotate.
        #[arg(value_enum)]
        what: What,
        /// Whose, for nodes and kafka.
        #[arg(long)]
        tenant: Option<String>,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Lists rotations, newest first.
    List {
        /// Only those under way.
        #[arg(long)]
        open: bool,
    },
    /// Shows where a rotation stands, and who is not ready for the next phase.
    Status {
        /// Its number [default: the one that is under way].
        rotation: Option<i64>,
    },
    /// Lists everybody who is not ready for the next phase, or for the way back.
    Missing {
        /// Its number [default: the one that is under way].
        rotation: Option<i64>,
        /// For the way back.
        #[arg(long)]
        back: bool,
    },
    /// Goes on to the next phase, if all are ready.
    Advance {
        /// Its number [default: the one that is under way].
        rotation: Option<i64>,
        #[command(flatten)]
        step: Step,
        /// Of a Kafka root: you have seen that every broker trusts both roots (before issue), or shows a certificate of the new
        /// one's (before retire). The hub can't look there.
        #[arg(long)]
        brokers_updated: bool,
    },
    /// Goes back to the phase before; from prepare, the rotation is aborted.
    Back {
        /// Its number [default: the one that is under way].
        rotation: Option<i64>,
        #[command(flatten)]
        step: Step,
    },
}

#[derive(clap::Args)]
pub(crate) struct Step {
    /// So many that are not ready may be left behind, and no more. They come back by themselves, by recovery.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    leave: u32,
    /// Time over which nodes that have to renew do so.
    #[arg(long, default_value = "1h", value_name = "PERIOD")]
    renew_within: Period,
}

impl Ca {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let Self::Rotate(verb) = self;
        match verb {
            Rotate::Start { what, tenant, reason } => {
                let of_a_tenant = matches!(what, What::Nodes | What::Kafka);
                if of_a_tenant != tenant.is_some() {
                    let needs = "nodes and kafka are a tenant's: say whose with --tenant";
                    let takes = "root and hub are the fleet's: leave out --tenant";
                    return Err(Failure::Usage(if of_a_tenant { needs } else { takes }.into()));
                }
                let kind = what.to_possible_value().map(|value| value.get_name().to_owned());
                let new = json!({ "kind": kind, "tenant": tenant, "reason": reason });
                show(&client.post::<Value>("rotations", &new)?, output)
            }
            Rotate::List { open } => {
                let rotations = client.list("rotations", &[("state", open.then_some("open"))], None)?;
                let heads = ["ROTATION", "WHAT", "PHASE", "STARTED", "BY", "REASON"];
                let row = |one: &Value| {
                    let number = one.pointer("/id").map(ToString::to_string).unwrap_or_default();
                    let [what, phase, by, reason] =
                        ["/what", "/phase", "/started_by", "/reason"].map(|path| text(one, path));
                    [number, what, phase, time(one, "/started_at"), by, reason]
                };
                output.list(rotations, heads, row, "no rotations")
            }
            Rotate::Status { rotation } => {
                let id = find(client, rotation)?;
                show(&client.get::<Value>(&format!("rotations/{id}"), &[])?, output)
            }
            Rotate::Missing { rotation, back } => {
                let path = format!("rotations/{}/missing", find(client, rotation)?);
                let direction = if back { "back" } else { "forward" };
                let missing = client.list(&path, &[("direction", Some(direction))], None)?;
                output.list(missing, MISSING, row, "all are ready")
            }
            Rotate::Advance { rotation, step, brokers_updated } => {
                step.take(client, find(client, rotation)?, "advance", brokers_updated, output)
            }
            Rotate::Back { rotation, step } => step.take(client, find(client, rotation)?, "back", false, output),
        }
    }
}

impl Step {
    fn take(
        &self,
        client: &Client,
        id: i64,
        verb: &str,
        brokers_updated: bool,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let before: Value = client.get(&format!("rotations/{id}"), &[])?;
        let step = json!({
            "from": before.pointer("/phase"),
            "leave": self.leave,
            "brokers_updated": brokers_updated,
            "renew_within_seconds": self.renew_within.get().as_secs(),
        });
        show(&client.post::<Value>(&format!("rotations/{id}/{verb}"), &step)?, output)
    }
}

/// The rotation that is meant: when no number is given, the only one under way.
fn find(client: &Client, given: Option<i64>) -> Result<i64, Failure> {
    if let Some(id) = given {
        return Ok(id);
    }
    let open = client.list("rotations", &[("state", Some("open"))], None)?;
    match open.as_slice() {
        [one] => one
            .pointer("/id")
            .and_then(Value::as_i64)
            .ok_or_else(|| Failure::Failed("the hub's answer has no number".into())),
        [] => Err(Failure::Failed("no rotation is under way: begin one with hfctl ca rotate start".into())),
        several => {
            let each = several.iter().map(|one| format!("{} ({})", text(one, "/id"), text(one, "/what")));
            let each = each.collect::<Vec<_>>().join(", ");
            Err(Failure::Usage(format!("several rotations are under way: name one: {each}")))
        }
    }
}

const MISSING: [&str; 6] = ["NAME", "TENANT", "KIND", "STATE", "SINCE", "WHY"];

fn row(one: &Value) -> [String; 6] {
    let [name, tenant, kind, presence, why] =
        ["/name", "/tenant", "/kind", "/presence", "/why"].map(|path| text(one, path));
    [name, tenant, kind, presence, time(one, "/since"), why]
}

fn show(rotation: &Value, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(rotation);
    }
    let number = |path: &str| rotation.pointer(path).and_then(Value::as_i64).unwrap_or_default();
    let mut rows = vec![
        ["rotation".to_owned(), format!("{} of {}", number("/id"), text(rotation, "/what"))],
        ["reason".into(), format!("{}, {}", text(rotation, "/reason"), text(rotation, "/started_by"))],
    ];
    for step in rotation.pointer("/steps").and_then(Value::as_array).into_iter().flatten() {
        let left = step.pointer("/left_behind").and_then(Value::as_i64).unwrap_or_default();
        let left = if left > 0 { format!(", {left} left behind") } else { String::new() };
        rows.push([text(step, "/phase"), format!("since {}, {}{left}", time(step, "/at"), text(step, "/by"))]);
    }
    let id = number("/id");
    let mut missing = Vec::new();
    if let Some(gate) = rotation.get("forward") {
        let count = number("/forward/missing_count");
        let to = text(gate, "/to");
        rows.push(if gate.get("unsigned").and_then(Value::as_bool) == Some(true) {
            ["next".into(), format!("{to}: waits for the fleet root, which is kept offline and has to sign first: see hyperfactory-hub ca root requests")]
        } else if count == 0 {
            let brokers = gate.get("confirm_brokers").and_then(Value::as_bool) == Some(true);
            let brokers = if brokers { " --brokers-updated, when you have looked" } else { "" };
            ["next".into(), format!("{to}: all are ready; hfctl ca rotate advance {id}{brokers}")]
        } else {
            ["next".into(), format!("{to}: {count} are not ready; wait, or leave them behind: hfctl ca rotate advance {id} --leave {count}")]
        });
        let tokens = number("/forward/outdated_tokens");
        if tokens > 0 {
            rows.push([
                "tokens".into(),
                format!("{tokens} unused join tokens can't be used any more then: make new ones"),
            ]);
        }
        missing = gate.get("missing").and_then(Value::as_array).cloned().unwrap_or_default();
    }
    if rotation.get("back").is_some() {
        let count = number("/back/missing_count");
        let waits = if count > 0 {
            format!(", when {count} have renewed: hfctl ca rotate missing {id} --back")
        } else {
            String::new()
        };
        rows.push(["way back".into(), format!("{}: hfctl ca rotate back {id}{waits}", text(rotation, "/back/to"))]);
    }
    output.columns(&rows)?;
    if missing.is_empty() {
        return Ok(());
    }
    output.line("")?;
    output.list(missing, MISSING, row, "")?;
    let count = number("/forward/missing_count");
    let listed = rotation.pointer("/forward/missing").and_then(Value::as_array).map_or(0, Vec::len) as i64;
    if count > listed {
        output.line(&format!("… and {} more: hfctl ca rotate missing {id}", count - listed))?;
    }
    Ok(())
}
