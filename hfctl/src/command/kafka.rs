//! `hfctl kafka`.

use std::net::IpAddr;
use std::path::PathBuf;

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
}

impl Kafka {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let Self::ServerCertificate { tenant, request, dns, ip } = self;
        let pem = std::fs::read_to_string(&request)
            .map_err(|error| Failure::Usage(format!("cannot read the request {}: {error}", request.display())))?;
        let issued: Value = client.post(
            &format!("tenants/{}/kafka/server-certificate", escaped(&tenant)),
            &json!({ "certificate_request": pem, "dns_names": dns, "ip_addresses": ip }),
        )?;
        if output.is_json() {
            return output.json(&issued);
        }
        complain(&format!("serial {}, until {}", text(&issued, "/serial"), time(&issued, "/not_after")));
        output.line(text(&issued, "/certificate").trim_end())
    }
}
