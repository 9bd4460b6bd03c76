//! `hyperfactory-hub audit verify`: says whether a log is what was written, and what not.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use pki::Summary;
use store::Database;

use super::publish::Published;
use super::verify::{self, Extent, Report};
use super::{Head, Timestamp};
use crate::config::Config;

/// The verbs below `audit`.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Walks the audit log and says what is not as it was written; exit code 1 when there is something.
    ///
    /// Without --file, it is the log in the database, which is also compared with every certificate there. A log that
    /// was rewritten or cut by somebody who knows how looks whole by itself: compare it with a published head.
    Verify(Verify),
}

/// What to verify, and by what.
#[derive(Debug, Args)]
pub struct Verify {
    /// Database with the log [default: the configured one]. A password is better in PGPASSWORD than here.
    #[arg(long, value_name = "URL", conflicts_with = "file")]
    database: Option<String>,
    /// An export (`hfctl audit export`) instead of a database; needs no hub.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The export is a part of the log, such as one tenant's: entries that are not there are no finding.
    #[arg(long, requires = "file")]
    partial: bool,
    /// A published head: NUMBER:HASH, or a file with one a line as audit-heads-file has them. Can be repeated.
    #[arg(long, value_name = "HEAD|FILE")]
    head: Vec<String>,
    /// A certificate (PEM or DER) that the log must know. Can be repeated.
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
}

impl Audit {
    /// Does it; true when nothing was found.
    ///
    /// # Errors
    /// When it could not be done: then nothing is known.
    pub async fn run(self, config: &Config, now: Timestamp) -> anyhow::Result<bool> {
        let Self::Verify(verify) = self;
        let mut heads = Vec::new();
        let own = config.audit_heads_file.iter().filter(|path| verify.uses_configuration() && path.exists());
        for given in verify.head.iter().cloned().chain(own.map(|path| path.display().to_string())) {
            heads.append(&mut read_heads(&given)?);
        }
        let mut certificates = Vec::new();
        for path in &verify.certificate {
            certificates.append(&mut read_certificates(path)?);
        }
        let report = match &verify.file {
            Some(file) => {
                let input = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
                let extent = if verify.partial { Extent::Part } else { Extent::Whole };
                verify::export(BufReader::new(input), extent, &heads, &certificates)
                    .with_context(|| format!("cannot read {}", file.display()))?
            }
            None => {
                let url = verify.database.clone().unwrap_or_else(|| config.database_url());
                in_database(&url, &heads, &certificates, now).await?
            }
        };
        Ok(print(&report, heads.len()))
    }
}

impl Verify {
    fn uses_configuration(&self) -> bool {
        self.file.is_none() && self.database.is_none()
    }
}

async fn in_database(
    url: &str,
    heads: &[Head],
    certificates: &[(String, String)],
    now: Timestamp,
) -> anyhow::Result<Report> {
    // Opening makes a database where none is.
    if let Some(path) = url.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path))
        && !Path::new(path).exists()
    {
        bail!("there is no database {path}");
    }
    let database = Database::open(url).await?;
    let mut snapshot = database.begin_read().await?;
    let verified = verify::database(&mut snapshot, heads, certificates, now).await;
    drop(snapshot);
    let location = database.location().to_owned();
    database.close().await;
    verified.with_context(|| format!("the audit log in {location} could not be verified"))
}

/// A head, or a file of them.
fn read_heads(given: &str) -> anyhow::Result<Vec<Head>> {
    if let Ok(head) = given.parse() {
        return Ok(vec![head]);
    }
    let text = std::fs::read_to_string(given).with_context(|| format!("{given:?} is no head, nor a file of heads"))?;
    let mut heads = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let head = line.parse().ok().or_else(|| Some(serde_json::from_str::<Published>(line).ok()?.head()));
        heads.push(head.with_context(|| format!("{given}, line {}, is no head", number + 1))?);
    }
    Ok(heads)
}

fn read_certificates(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let summaries = Summary::all(&bytes).with_context(|| format!("{shown} holds no certificates"))?;
    Ok(summaries
        .iter()
        .map(|summary| {
            let serial = HEXLOWER.encode(&summary.serial);
            (format!("certificate {serial} in {shown}"), HEXLOWER.encode(&summary.sha256))
        })
        .collect())
}

#[expect(clippy::print_stdout, reason = "the verb's result")]
fn print(report: &Report, heads: usize) -> bool {
    for finding in &report.findings {
        println!("{finding}");
    }
    if report.more > 0 {
        println!("and {} more", report.more);
    }
    let found = report.findings.len() as u64 + report.more;
    let head = report.head.map_or("an empty log".to_owned(), |head| format!("head {head}"));
    let (entries, certificates) = (report.entries, report.certificates);
    println!("{found} findings in {entries} entries, {certificates} certificates, {heads} published heads; {head}");
    if heads == 0 {
        println!("No published head was given: a log that was rewritten or cut with care can't be told by itself.");
    }
    found == 0
}
