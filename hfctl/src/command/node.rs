//! `hfctl node`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::token::Kind;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, bytes, percent, text, time, used};

#[derive(Subcommand)]
pub(crate) enum Node {
    /// Lists nodes; what needs attention comes first.
    List {
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<String>,
        /// Only those in this state.
        #[arg(long, value_parser = ["online", "lost", "left", "never_seen", "attention", "critical", "warning", "notice", "ok"])]
        state: Option<String>,
        /// Only this kind.
        #[arg(long, value_enum)]
        kind: Option<Kind>,
        /// Only those whose name, host name, tenant or id holds this text.
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
        /// Only those with this label; can be given several times, for those with all.
        #[arg(long = "label", value_name = "NAME=VALUE")]
        labels: Vec<String>,
        /// Order; a leading '-' turns it round.
        #[arg(long, allow_hyphen_values = true, value_name = "ORDER",
              value_parser = ["attention", "name", "tenant", "cpu", "memory", "disk", "seen",
                              "-attention", "-name", "-tenant", "-cpu", "-memory", "-disk", "-seen"])]
        sort: Option<String>,
    },
    /// Shows one node with its services.
    Show {
        /// Its id, or its name.
        node: String,
    },
    /// Takes a node's trust away at once: its session ends, and it must be enrolled again to come back.
    Revoke {
        /// Its id, or its name.
        node: String,
        /// Why.
        #[arg(long, value_parser = ["key_compromise", "superseded", "cessation_of_operation", "privilege_withdrawn", "unspecified"])]
        reason: String,
        /// For the audit log.
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Shows a node's labels, or changes some: NAME=VALUE sets one, NAME- takes one away.
    Label {
        /// Its id, or its name.
        node: String,
        /// What to change.
        #[arg(value_name = "NAME=VALUE", requires = "reason")]
        changes: Vec<String>,
        /// Why, for the audit log: with changes.
        #[arg(long, value_name = "WHY")]
        reason: Option<String>,
    },
    /// Lets a node in again that was frozen because two machines have had its key. Wipe the wrong one first.
    Unfreeze {
        /// Its id, or its name.
        node: String,
    },
    /// Takes a node out of the fleet: revoked, listed no more, its name free.
    Remove {
        /// Its id, or its name.
        node: String,
    },
}

impl Node {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::List { tenant, state, kind, search, labels, sort } => {
                let labels = (!labels.is_empty()).then(|| labels.join(","));
                let query = [
                    ("tenant", tenant.as_deref()),
                    ("state", state.as_deref()),
                    ("kind", kind.map(Kind::as_str)),
                    ("q", search.as_deref()),
                    ("label", labels.as_deref()),
                    ("sort", sort.as_deref()),
                ];
                let filtered = query.iter().any(|(_, value)| value.is_some());
                let nothing = if filtered {
                    "no node matches"
                } else {
                    "no nodes yet; add one with: hfctl token create --tenant ID"
                };
                let heads =
                    ["NAME", "TENANT", "KIND", "STATE", "NEEDS", "SERVICES", "CPU", "MEMORY", "LAST SEEN", "ID"];
                output.list(client.list("nodes", &query, None)?, heads, row, nothing)
            }
            Self::Show { node } => {
                let shown: Value = client.get(&format!("nodes/{}", find(client, &node)?), &[])?;
                if output.is_json() {
                    return output.json(&shown);
                }
                show(&shown, output)
            }
            Self::Revoke { node, reason, comment } => {
                let id = find(client, &node)?;
                client.act(&format!("nodes/{id}/revoke"), &json!({ "reason": reason, "comment": comment }))?;
                output.line(&format!("node {id} is revoked; to have it back, enroll it with a new token"))
            }
            Self::Label { node, changes, reason } => {
                let path = format!("nodes/{}/labels", find(client, &node)?);
                let mut labels: Value = client.get(&path, &[])?;
                if !changes.is_empty() {
                    for change in &changes {
                        match (change.split_once('='), change.strip_suffix('-')) {
                            (Some((name, value)), _) => labels["labels"][name] = json!(value),
                            (None, Some(name)) => {
                                drop(labels["labels"].as_object_mut().and_then(|all| all.remove(name)))
                            }
                            (None, None) => {
                                return Err(Failure::Usage(format!(
                                    "{change:?} is no change: use NAME=VALUE or NAME-"
                                )));
                            }
                        }
                    }
                    labels["reason"] = json!(reason);
                    labels = client.put(&path, &labels)?;
                }
                if output.is_json() {
                    return output.json(&labels);
                }
                let all = labels["labels"].as_object().into_iter().flatten();
                output.columns(
                    &all.map(|(name, _)| [name.clone(), text(&labels["labels"], &format!("/{name}"))])
                        .collect::<Vec<_>>(),
                )
            }
            Self::Unfreeze { node } => {
                let id = find(client, &node)?;
                client.act(&format!("nodes/{id}/unfreeze"), &json!({}))?;
                output.line(&format!("node {id} may connect again"))
            }
            Self::Remove { node } => {
                let id = find(client, &node)?;
                client.delete(&format!("nodes/{id}"))?;
                output.line(&format!("node {id} is removed"))
            }
        }
    }
}

fn row(node: &Value) -> [String; 10] {
    let count = |name: &str| node.pointer(&format!("/service_counts/{name}")).and_then(Value::as_u64).unwrap_or(0);
    [
        text(node, "/name"),
        text(node, "/tenant"),
        text(node, "/kind"),
        text(node, "/presence/state"),
        text(node, "/attention/level"),
        format!("{}/{}", count("running"), count("total")),
        percent(node.pointer("/figures/cpu").and_then(Value::as_f64)),
        used(node, "/figures/memory"),
        time(node, "/last_seen"),
        text(node, "/id"),
    ]
}

/// The id of a node that is named by id or by name.
pub(crate) fn find(client: &Client, wanted: &str) -> Result<String, Failure> {
    let is_id = wanted.len() == 36 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if is_id {
        return Ok(wanted.to_owned());
    }
    let found = client.list("nodes", &[("q", Some(wanted))], None)?;
    let named: Vec<&Value> = found.iter().filter(|node| text(node, "/name") == wanted).collect();
    match named.as_slice() {
        [one] => Ok(text(one, "/id")),
        [] => Err(Failure::Failed(format!("there is no node {wanted:?}: see hfctl node list"))),
        several => {
            let each = several.iter().map(|node| format!("{} of {}", text(node, "/id"), text(node, "/tenant")));
            let each = each.collect::<Vec<_>>().join(", ");
            Err(Failure::Usage(format!("several nodes are called {wanted:?}: name one by its id: {each}")))
        }
    }
}

fn show(node: &Value, output: &mut Output) -> Result<(), Failure> {
    let number = |path: &str| node.pointer(path).and_then(Value::as_f64);
    let mut rows = vec![
        ["node".to_owned(), format!("{} ({} of {})", text(node, "/name"), text(node, "/kind"), text(node, "/tenant"))],
        ["id".into(), text(node, "/id")],
        ["state".into(), format!("{} since {}", text(node, "/presence/state"), time(node, "/presence/since"))],
    ];
    for reason in node.pointer("/attention/reasons").and_then(Value::as_array).into_iter().flatten() {
        let subject = text(reason, "/subject");
        let subject = if subject == "-" { String::new() } else { format!("{subject}: ") };
        rows.push([text(reason, "/level"), format!("{subject}{}", text(reason, "/message"))]);
    }
    rows.extend([
        ["last seen".to_owned(), time(node, "/last_seen")],
        [
            "host".into(),
            format!("{}, {}, {}", text(node, "/host/hostname"), text(node, "/host/os"), text(node, "/host/software")),
        ],
        ["cpu".into(), percent(number("/figures/cpu"))],
        [
            "memory".into(),
            format!(
                "{} ({} of {})",
                used(node, "/figures/memory"),
                bytes(number("/figures/memory/used")),
                bytes(number("/figures/memory/total"))
            ),
        ],
    ]);
    for disk in node.pointer("/figures/disks").and_then(Value::as_array).into_iter().flatten() {
        rows.push(["disk".into(), format!("{} {}", used(disk, ""), text(disk, "/mount"))]);
    }
    let engine = match text(node, "/engine/message") {
        said if said == "-" => format!("{} {}", text(node, "/engine/state"), text(node, "/engine/version")),
        said => format!("{}: {said}", text(node, "/engine/state")),
    };
    let clock = match node.pointer("/clock/offset_ms").and_then(Value::as_i64) {
        Some(offset) => format!("{} ({offset:+} ms)", text(node, "/clock/state")),
        None => text(node, "/clock/state"),
    };
    rows.extend([
        ["engine".to_owned(), engine.trim_end_matches(" -").to_owned()],
        [
            "certificate".into(),
            format!("{} until {}", text(node, "/certificate/serial"), time(node, "/certificate/not_after")),
        ],
        ["clock".into(), clock],
        [
            "spool".into(),
            format!(
                "{} batches waiting, {} lost",
                text(node, "/spool/pending_batches"),
                text(node, "/spool/lost_batches")
            ),
        ],
    ]);
    output.columns(&rows)?;
    let services = node.pointer("/services").and_then(Value::as_array).cloned().unwrap_or_default();
    if services.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let heads = ["STACK", "SERVICE", "STATE", "HEALTH", "RESTARTS", "EXIT", "OOM", "CPU", "MEMORY", "IMAGE"];
    output.list(services, heads, service, "")
}

fn service(service: &Value) -> [String; 10] {
    let number = |path: &str| service.pointer(path).and_then(Value::as_f64);
    [
        text(service, "/stack"),
        format!("{}/{}", text(service, "/service"), text(service, "/number")),
        text(service, "/state"),
        text(service, "/health"),
        text(service, "/restart_count"),
        text(service, "/exit_code"),
        text(service, "/oom_killed"),
        percent(number("/cpu")),
        bytes(number("/memory")),
        text(service, "/image"),
    ]
}
