//! What helps to find a fault from afar, as text: versions, configuration, checks, the engine, the last lines of the log.
//! No secret is in it: the configuration prints none, of containers only names, states and images are told, and what looks
//! like one all the same is hidden.

use std::collections::HashMap;
use std::fmt::Write;

use bollard::query_parameters::ListContainersOptions;

use super::secrets::Secrets;
use super::{Carrier, service};
use crate::agent::SOFTWARE;
use crate::check;
use crate::container::PROJECT_LABEL;

pub(super) async fn gather(carrier: &Carrier) -> String {
    let mut text = String::new();
    section(&mut text, "versions", &versions(carrier).await);
    section(&mut text, "configuration", &format!("{:#?}", carrier.config));
    let checks = match check::check(&carrier.config).await {
        Ok((lines, _)) => lines,
        Err(failure) => failure.to_string(),
    };
    section(&mut text, "checks", &checks);
    section(&mut text, "containers", &containers(carrier).await);
    section(&mut text, "log", &carrier.recent.text());
    match Secrets::new() {
        Ok(secrets) => secrets.hide(&text),
        Err(error) => format!("nothing is put out, for secrets could not be told from the rest: {error}\n"),
    }
}

fn section(text: &mut String, name: &str, body: &str) {
    let _ = writeln!(text, "== {name} ==\n{}\n", body.trim_end());
}

async fn versions(carrier: &Carrier) -> String {
    let facts = crate::host::facts(SOFTWARE.into());
    let mut text = format!("{SOFTWARE}\n{}\nkernel {} {}\n", facts.os, facts.kernel, facts.architecture);
    let asked = async {
        let engine = carrier.engine.connect(service::ANSWER).await.map_err(|trouble| trouble.to_string())?;
        engine.version().await.map_err(|error| error.to_string())
    };
    let _ = match asked.await {
        Ok(version) => writeln!(
            text,
            "Docker Engine {} (API {})",
            version.version.unwrap_or_default(),
            version.api_version.unwrap_or_default()
        ),
        Err(error) => writeln!(text, "Docker Engine: {error}"),
    };
    text
}

async fn containers(carrier: &Carrier) -> String {
    let asked = async {
        let engine = carrier.engine.connect(service::ANSWER).await.map_err(|trouble| trouble.to_string())?;
        let filters = Some(HashMap::from([("label".to_owned(), vec![PROJECT_LABEL.to_owned()])]));
        let options = ListContainersOptions { all: true, filters, ..ListContainersOptions::default() };
        engine.list_containers(Some(options)).await.map_err(|error| error.to_string())
    };
    let found = match asked.await {
        Ok(found) => found,
        Err(error) => return error,
    };
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|container| {
            let name = container.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
            format!(
                "{:<40} {:<30} {}",
                name.trim_start_matches('/'),
                container.status.unwrap_or_default(),
                container.image.unwrap_or_default()
            )
        })
        .collect();
    lines.sort();
    lines.join("\n")
}
