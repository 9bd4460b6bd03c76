//! `hfctl token`.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use settings::Period;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, complain, text, time};

/// What a node is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// Runs inside a tenant's stack.
    Agent,
    /// Runs at a customer's plant.
    Bridge,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Bridge => "bridge",
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum Token {
    /// Makes a join token and prints the command to run on the new node. It is shown this once.
    Create {
        /// Whose node it enrolls.
        #[arg(long)]
        tenant: String,
        /// What kind of node.
        #[arg(long, value_enum, default_value_t = Kind::Agent)]
        kind: Kind,
        /// The node's name [default: its host name].
        #[arg(long)]
        name: Option<String>,
        /// How long it can be used: 15m, 1h, 7d; 1 minute to 30 days.
        #[arg(long, value_name = "PERIOD", default_value = "1h")]
        valid_for: Period,
    },
    /// Lists the newest join tokens, without their secrets.
    List {
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<String>,
    },
}

impl Token {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Create { tenant, kind, name, valid_for } => {
                let made: Value = client.post(
                    "tokens",
                    &json!({
                        "tenant": tenant,
                        "kind": kind.as_str(),
                        "name": name,
                        "valid_for_seconds": valid_for.get().as_secs(),
                    }),
                )?;
                if output.is_json() {
                    return output.json(&made);
                }
                complain(&format!("run this on the new node, before {}:", time(&made, "/expires_at")));
                output.line(&text(&made, "/command"))
            }
            Self::List { tenant } => output.list(
                client.list("tokens", &[("tenant", tenant.as_deref())], None)?,
                ["TENANT", "KIND", "NAME", "STATE", "MADE", "BY", "ENDS", "NODE"],
                |token| {
                    [
                        text(token, "/tenant"),
                        text(token, "/kind"),
                        text(token, "/name"),
                        text(token, "/state"),
                        time(token, "/created_at"),
                        text(token, "/created_by"),
                        time(token, "/expires_at"),
                        text(token, "/node"),
                    ]
                },
                "no join tokens; make one with: hfctl token create --tenant ID",
            ),
        }
    }
}
