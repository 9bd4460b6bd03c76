//! `hfctl cert`: what a certificate says, without asking any hub; and nodes that are to renew theirs.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{ArgGroup, Subcommand};
use pki::inspect::{Inspected, colons, inspect};
use pki::{CertificateDer, pem, trust};
use serde_json::{Value, json};
use settings::Period;

use super::node::find;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, time};

/// Certificates in a file are kilobytes; more than this is something else.
const MOST: u64 = 4 * 1024 * 1024;

#[derive(Subcommand)]
pub(crate) enum Cert {
    /// Shows every certificate in a file, in PEM or DER, and whether each signed the one before it.
    Show {
        /// The file; - is standard input.
        file: PathBuf,
    },
    /// Has nodes renew their certificates before the time, spread over a while. Those that are away do when they return.
    #[command(group(ArgGroup::new("whom").required(true).args(["tenant", "node", "all"])))]
    Renew {
        /// All nodes of this tenant.
        #[arg(long)]
        tenant: Option<String>,
        /// This node, by id or by name; can be given more than once.
        #[arg(long)]
        node: Vec<String>,
        /// All nodes of the fleet.
        #[arg(long)]
        all: bool,
        /// Spread over so long: 10m, 6h, 7d; at least as long as it takes at 100 nodes a second.
        #[arg(long, value_name = "PERIOD")]
        within: Period,
        /// Why, for the audit log and the nodes' logs.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

impl Cert {
    pub(crate) fn run(
        self,
        client: impl FnOnce() -> Result<Client, Failure>,
        output: &mut Output,
    ) -> Result<(), Failure> {
        match self {
            Self::Show { file } => show(&file, output),
            Self::Renew { tenant, node, all, within, reason } => {
                let client = client()?;
                let nodes = node.iter().map(|node| find(&client, node)).collect::<Result<Vec<_>, _>>()?;
                let told: Value = client.post(
                    "renewals",
                    &json!({
                        "tenant": tenant, "nodes": nodes, "all": all, "within_seconds": within.get().as_secs(),
                        "reason": reason,
                    }),
                )?;
                if output.is_json() { output.json(&told) } else { output.line(&advised(&told)) }
            }
        }
    }
}

/// What nodes were told.
pub(super) fn advised(told: &Value) -> String {
    let number = |path: &str| told.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let (nodes, heard) = (number("/nodes"), number("/told"));
    let away = match nodes.saturating_sub(heard) {
        0 => String::new(),
        away => format!("; {away} that are away hear of it when they return"),
    };
    format!("{nodes} nodes renew their certificates until {}{away}", time(told, "/until"))
}

fn show(file: &std::path::Path, output: &mut Output) -> Result<(), Failure> {
    let certificates = read(file)?;
    let mut shown = Vec::with_capacity(certificates.len());
    for (index, certificate) in certificates.iter().enumerate() {
        let found = inspect(certificate).map_err(|error| {
            Failure::Usage(format!("certificate {} in {} can't be read: {error}", index + 1, file.display()))
        })?;
        let next = certificates.get(index + 1).unwrap_or(certificate);
        shown.push((found, trust::signed_by(certificate, next), index + 1 < certificates.len()));
    }
    if output.is_json() {
        return output.json(&Value::Array(shown.iter().map(value).collect()));
    }
    for (index, one) in shown.iter().enumerate() {
        if index > 0 {
            output.line("")?;
        }
        output.columns(&rows(one))?;
    }
    Ok(())
}

/// A certificate; whether the next one, or for the last itself, signed it; whether there is a next one.
type Shown = (Inspected, bool, bool);

fn read(file: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let unreadable = |error| Failure::Usage(format!("cannot read {}: {error}", file.display()));
    let mut bytes = Vec::new();
    let mut input: Box<dyn std::io::Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(file).map_err(unreadable)?),
    };
    input.as_mut().take(MOST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MOST {
        return Err(Failure::Usage(format!(
            "{} is larger than 4 MiB: that is no file of certificates",
            file.display()
        )));
    }
    let damaged = || Failure::Usage(format!("{} holds a damaged certificate", file.display()));
    let found = match std::str::from_utf8(&bytes) {
        Ok(text) => pem::read_certificates(text).map_err(|_| damaged())?,
        Err(_) => vec![CertificateDer::from(bytes)],
    };
    if found.is_empty() {
        let said = "holds no certificate: it must be PEM (-----BEGIN CERTIFICATE-----) or DER";
        return Err(Failure::Usage(format!("{} {said}", file.display())));
    }
    Ok(found)
}

fn rows((found, signed, followed): &Shown) -> Vec<[String; 2]> {
    let s = &found.summary;
    let mut rows = vec![
        ["subject".to_owned(), found.subject.clone()],
        ["issuer".into(), found.issuer.clone()],
        ["serial".into(), colons(&s.serial)],
        ["valid".into(), format!("{} to {}", s.not_before, s.not_after)],
    ];
    let mut listed = |name: &str, values: Vec<String>| {
        if !values.is_empty() {
            rows.push([name.to_owned(), values.join(", ")]);
        }
    };
    listed("names", found.alternative_names.clone());
    listed("key usage", found.key_usage.iter().map(|word| (*word).to_owned()).collect());
    listed("shown for", found.extended_key_usage.clone());
    if s.is_ca {
        let depth = found.path_length.map_or("any number of".to_owned(), |length| length.to_string());
        listed("authority", vec![format!("{depth} more authorities below it")]);
    }
    listed("issues", found.constraints.clone());
    listed("issuer's key id", vec![colons(&s.issuer_key_id)]);
    listed("key SHA-256", vec![colons(&s.spki_sha256)]);
    listed("SHA-256", vec![colons(&s.sha256)]);
    let by = match (signed, followed) {
        (true, true) => "by the next one",
        (false, true) => "NOT by the next one",
        (true, false) => "by itself",
        (false, false) => "by none in this file",
    };
    listed("signed", vec![by.into()]);
    rows
}

fn value((found, signed, followed): &Shown) -> Value {
    let s = &found.summary;
    json!({
        "subject": found.subject, "issuer": found.issuer, "serial": colons(&s.serial),
        "not_before": s.not_before.to_string(), "not_after": s.not_after.to_string(),
        "names": found.alternative_names, "key_usage": found.key_usage, "extended_key_usage": found.extended_key_usage,
        "authority": s.is_ca, "path_length": found.path_length, "constraints": found.constraints,
        "issuer_key_id": colons(&s.issuer_key_id), "spki_sha256": colons(&s.spki_sha256), "sha256": colons(&s.sha256),
        "signed_by_next": followed.then_some(signed), "signed_by_itself": (!followed).then_some(signed),
    })
}
