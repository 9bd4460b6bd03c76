//! The verbs that look at configuration and disk, and change nothing: `check` and `log`.

use std::fmt::Write;
use std::path::Path;

use spool::{Entry, Recovery, Spool};

use crate::config::Config;
use crate::dead_letter::DeadLetters;
use crate::log::Log;
use crate::record::Record;
use crate::route::Routes;

/// Judges the configuration. Gives the lines to show, and whether a bridge can run with it.
///
/// # Errors
/// When it lacks something.
pub fn check(config: &Config) -> anyhow::Result<(String, bool)> {
    config.complete()?;
    let routes = Routes::new(&config.route)?;
    let mut text = String::new();
    for mqtt in &config.mqtt {
        let filters = routes.filters(&mqtt.name);
        let filters: Vec<&str> = filters.iter().map(|filter| filter.as_str()).collect();
        let _ = writeln!(text, "ok    mqtt {} at {} subscribes to {}", mqtt.name, mqtt.address, filters.join(", "));
    }
    for lint in routes.lints() {
        let _ = writeln!(text, "warn  {lint}");
    }
    let files = [&config.kafka.ca, &config.kafka.certificate, &config.kafka.key].into_iter();
    let files = files.chain(config.mqtt.iter().map(|mqtt| &mqtt.ca)).flatten();
    let mut well = true;
    for file in files {
        if let Err(error) = std::fs::File::open(file) {
            well = false;
            let _ = writeln!(text, "fail  {} can't be read: {error}", file.display());
        }
    }
    if let Some(issued) = &config.kafka.issued {
        match issued.load() {
            Ok(Some(credential)) => {
                let until = credential.summary().not_after;
                let _ = writeln!(text, "ok    kafka certificate from the hub until {until}");
            }
            Ok(None) => {
                text.push_str("warn  the hub has given no Kafka certificate yet: it does when the bridge runs\n")
            }
            Err(error) => {
                well = false;
                let _ = writeln!(text, "fail  {error}");
            }
        }
    }
    if well {
        let _ = writeln!(text, "ok    kafka at {}", config.kafka.brokers.join(", "));
    }
    Ok((text, well))
}

/// Reads the whole log and counts. Gives the line to show, and whether all of it is whole.
///
/// # Errors
/// When the log can't be read, or a running bridge has it.
pub fn verify(config: &Config) -> anyhow::Result<(String, bool)> {
    let (mut spool, recovery) = open(config)?;
    let (mut records, mut foreign, mut lost) = (0u64, 0u64, 0u64);
    walk(&mut spool, |entry| match entry {
        Entry::Record { bytes, .. } => {
            records += 1;
            foreign += u64::from(Record::decode(&bytes).is_err());
        }
        Entry::Lost(range) => lost += range.last - range.first + 1,
    })?;
    let text = format!("{recovery}\n{records} records to deliver, {lost} lost, {foreign} that are not the bridge's\n");
    Ok((text, lost == 0 && foreign == 0))
}

/// The records that wait, or the dead letters, a line each, given to `out` as they are read.
///
/// # Errors
/// When they can't be read, or a running bridge has them.
pub fn dump(
    config: &Config,
    dead_letters: bool,
    mut out: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut shown = Ok(());
    if dead_letters {
        exists(&config.dead_letter_dir())?;
        let (mut letters, _) = DeadLetters::open(config.dead_letter_dir(), config.dead_letter_size.bytes())?;
        letters.each(|letter| {
            if shown.is_ok() {
                shown = out(&format!("{} {}: {}\n", letter.sequence, line(&letter.record), letter.reason));
            }
        })?;
        return shown;
    }
    let (mut spool, _) = open(config)?;
    walk(&mut spool, |entry| {
        let text = match entry {
            Entry::Record { sequence, bytes, .. } => format!("{sequence} {}\n", line(&bytes)),
            Entry::Lost(range) => format!("{} to {} lost: {:?}\n", range.first, range.last, range.reason),
        };
        if shown.is_ok() {
            shown = out(&text);
        }
    })?;
    shown
}

fn open(config: &Config) -> anyhow::Result<(Spool, Recovery)> {
    exists(&config.log_dir())?;
    let options = Log::options(config.log_dir(), config.log_size.bytes());
    Ok(Spool::open(options, rand::random())?)
}

/// Looking shall not begin a log.
fn exists(directory: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(directory.is_dir(), "there is nothing at {}: no bridge ran here yet", directory.display());
    Ok(())
}

fn walk(spool: &mut Spool, mut see: impl FnMut(Entry)) -> anyhow::Result<()> {
    let mut reader = spool.read_from(spool.first());
    while let Some(entry) = reader.next(spool)? {
        see(entry);
    }
    Ok(())
}

fn line(bytes: &[u8]) -> String {
    match Record::decode(bytes) {
        Ok(record) => {
            let retained = if record.retained { " retained" } else { "" };
            let shown = String::from_utf8_lossy(&record.payload[..record.payload.len().min(80)]);
            format!(
                "{} {} {}{retained} {} bytes {shown:?}",
                record.received,
                record.mqtt,
                record.topic,
                record.payload.len()
            )
        }
        Err(why) => why.to_string(),
    }
}
