//! `hfctl trust`.

use clap::Subcommand;
use serde_json::Value;

use crate::client::{Client, escaped};
use crate::failure::Failure;
use crate::output::{Output, text, time};

/// Certificates in PEM, as the hub shows them to anybody, and what waits to be signed.
#[derive(Subcommand)]
pub(crate) enum Trust {
    /// What nodes trust.
    FleetRoot,
    /// What a tenant's brokers and bridges trust.
    KafkaRoot {
        /// Whose.
        #[arg(long)]
        tenant: String,
    },
    /// What issues the identities of a tenant's nodes.
    NodesIntermediate {
        /// Whose.
        #[arg(long)]
        tenant: String,
    },
    /// Lists what waits for the signature of a fleet root that is kept offline.
    Awaited,
}

impl Trust {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let path = match self {
            Self::FleetRoot => "pki/fleet-root.pem".to_owned(),
            Self::KafkaRoot { tenant } => format!("pki/{}/kafka-root.pem", escaped(&tenant)),
            Self::NodesIntermediate { tenant } => format!("pki/{}/nodes-intermediate.pem", escaped(&tenant)),
            Self::Awaited => {
                let awaited: Vec<Value> = client.get("authorities/awaited", &[])?;
                let row =
                    |one: &Value| [text(one, "/kind"), text(one, "/tenant"), time(one, "/since"), time(one, "/ends")];
                return output.list(
                    awaited,
                    ["FOR", "TENANT", "SINCE", "LAST ENDS"],
                    row,
                    "nothing waits for a signature",
                );
            }
        };
        let pem = client.text(&path)?;
        if output.is_json() {
            return output.json(&serde_json::json!({ "certificates": pem }));
        }
        output.line(pem.trim_end())
    }
}
