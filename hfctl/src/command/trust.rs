//! `hfctl trust`.

use clap::Subcommand;

use crate::client::{Client, escaped};
use crate::failure::Failure;
use crate::output::Output;

/// Certificates in PEM, as the hub shows them to anybody.
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
}

impl Trust {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let path = match self {
            Self::FleetRoot => "pki/fleet-root.pem".to_owned(),
            Self::KafkaRoot { tenant } => format!("pki/{}/kafka-root.pem", escaped(&tenant)),
            Self::NodesIntermediate { tenant } => format!("pki/{}/nodes-intermediate.pem", escaped(&tenant)),
        };
        let pem = client.text(&path)?;
        if output.is_json() {
            return output.json(&serde_json::json!({ "certificates": pem }));
        }
        output.line(pem.trim_end())
    }
}
