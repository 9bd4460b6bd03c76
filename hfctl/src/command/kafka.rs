//! `hfctl kafka`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::{Client, escaped};
use crate::failure::Failure;
use crate::output::{Output, complain, text, time};

#[derive(Subcommand)]
pub(crate) enum Kafka {
    /// Issues a certificate for a tenant's brokers and prints it in PEM.
    ServerCertificate {
        /// Whose brokers.
        #[arg(long)]
        tenant: String,
        /// A certificate request in PEM; its public key is taken and nothing else.
        #[arg(long, value_name = "FILE")]
        request: PathBuf,
        /// A host name that clients reach the brokers by; more than once for more.
        #[arg(long, value_name = "NAME", required_unless_present = "ip")]
        dns: Vec<String>,
        /// An address that clients reach the brokers by; more than once for more.
        #[arg(long, value_name = "ADDRESS")]
        ip: Vec<IpAddr>,
    },
    /// Says which Kafka topics a bridge may write to: these and no others. An agent of the tenant whose agent.toml says `kafka.brokers`
    /// brings the brokers' access lists to it.
    Allow {
        /// The bridge's id, or its name.
        node: String,
        /// A topic, or its beginning and '*'; without any, the bridge may do nothing.
        #[arg(value_name = "TOPIC")]
        topics: Vec<String>,
    },
    /// Shows what bridges may do at their tenants' brokers, and whether those know.
    Access {
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<String>,
    },
}

impl Kafka {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::ServerCertificate { tenant, request, dns, ip } => {
                certificate(client, output, &tenant, &request, (&dns, &ip))
            }
            Self::Allow { node, topics } => {
                let id = super::node::find(client, &node)?;
                client.put::<Value>(&format!("nodes/{id}/kafka-access"), &json!({ "topics": topics }))?;
                output.line(&format!(
                    "bridge {id} may write to {}; see how it stands: hfctl kafka access",
                    or_nothing(&topics.join(", "))
                ))
            }
            Self::Access { tenant } => {
                let query = [("tenant", tenant.as_deref()), ("kind", Some("bridge"))];
                let heads = ["BRIDGE", "TENANT", "MAY WRITE TO", "BROKERS", "MESSAGE", "ID"];
                output.list(client.list("nodes", &query, None)?, heads, row, "no bridges yet")
            }
        }
    }
}

fn row(node: &Value) -> [String; 6] {
    let topics = node["kafka_access"]["topics"].as_array().into_iter().flatten().filter_map(Value::as_str);
    [
        text(node, "/name"),
        text(node, "/tenant"),
        or_nothing(&topics.collect::<Vec<_>>().join(" ")).to_owned(),
        text(node, "/kafka_access/state"),
        text(node, "/kafka_access/message"),
        text(node, "/id"),
    ]
}

fn or_nothing(topics: &str) -> &str {
    if topics.is_empty() { "nothing" } else { topics }
}

fn certificate(
    client: &Client,
    output: &mut Output,
    tenant: &str,
    request: &Path,
    (dns, ip): (&[String], &[IpAddr]),
) -> Result<(), Failure> {
    let pem = std::fs::read_to_string(request)
        .map_err(|error| Failure::Usage(format!("cannot read the request {}: {error}", request.display())))?;
    let issued: Value = client.post(
        &format!("tenants/{}/kafka/server-certificate", escaped(tenant)),
        &json!({ "certificate_request": pem, "dns_names": dns, "ip_addresses": ip }),
    )?;
    if output.is_json() {
        return output.json(&issued);
    }
    complain(&format!("serial {}, until {}", text(&issued, "/serial"), time(&issued, "/not_after")));
    output.line(text(&issued, "/certificate").trim_end())
}
