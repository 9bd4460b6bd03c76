//! `hfctl tenant`.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, complain, text, time};

#[derive(Subcommand)]
pub(crate) enum Tenant {
    /// Makes a tenant, with a certificate authority of its own.
    Create {
        /// Its id, for ever: 1 to 40 of a-z, 0-9 and '-'.
        id: String,
        /// Its name for people [default: the id].
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists all tenants.
    List,
}

impl Tenant {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Create { id, name } => {
                let made: Value = client.post("tenants", &json!({ "id": id, "name": name }))?;
                if output.is_json() {
                    return output.json(&made);
                }
                output.line(&format!("made tenant {id}; add a node with: hfctl token create --tenant {id}"))?;
                if made["awaits_signature"] == true {
                    complain(
                        "its nodes can enroll once the fleet's root, which is kept offline, has signed its authority: hold a \
                         signing ceremony (hyperfactory-hub ca root requests)",
                    );
                }
                Ok(())
            }
            Self::List => output.list(
                client.list("tenants", &[], None)?,
                ["ID", "NAME", "NODES", "ONLINE", "CRITICAL", "AUTHORITY", "CREATED"],
                |tenant| {
                    [
                        text(tenant, "/id"),
                        text(tenant, "/name"),
                        text(tenant, "/nodes/total"),
                        text(tenant, "/nodes/online"),
                        text(tenant, "/nodes/critical"),
                        if tenant["awaits_signature"] == true { "awaits signature" } else { "issues" }.to_owned(),
                        time(tenant, "/created_at"),
                    ]
                },
                "no tenants yet; make one with: hfctl tenant create ID",
            ),
        }
    }
}
