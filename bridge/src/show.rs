//! The verbs that look at configuration and disk, and change nothing: `check` and `log`.

use std::fmt::Write;
use std::path::Path;

use spool::{Entry, LostRange, LostReason, Spool};

use crate::class::{self, Class};
use crate::config::Config;
use crate::dead_letter::DeadLetters;
use crate::plain::plain;
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
    for lint in class::lints(config) {
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

/// Reads the whole log, and the dead letters, and counts. Gives the lines to show, and whether all of it is whole.
///
/// # Errors
/// When the log can't be read, or a running bridge has it.
pub fn verify(config: &Config) -> anyhow::Result<(String, bool)> {
    let (mut text, mut well) = (String::new(), true);
    for class in there(config)? {
        let (mut spool, recovery) = Spool::look(class.options())?;
        let (mut records, mut foreign, mut lost, mut dropped) = (0u64, 0u64, 0u64, 0u64);
        walk(&mut spool, |entry| match entry {
            Entry::Record { bytes, .. } => {
                records += 1;
                foreign += u64::from(Record::decode(&bytes).is_err());
            }
            Entry::Lost(range) if class::is_drop(range.reason) => dropped += range.len(),
            Entry::Lost(range) => lost += range.len(),
        })?;
        if !class.name.is_empty() {
            let _ = writeln!(text, "class {}: {dropped} dropped as configured", class.name);
        }
        let _ = writeln!(text, "{recovery}");
        let _ = writeln!(text, "{records} records to deliver, {lost} lost, {foreign} that are not the bridge's");
        well &= lost == 0 && foreign == 0;
        if class.dead_letter_dir.is_dir() {
            let (mut letters, mut gone, mut damaged) = (0u64, Vec::new(), 0);
            DeadLetters::look(class.dead_letter_dir, config.dead_letter_size.bytes())?.each(|letter| match letter {
                Ok(_) => letters += 1,
                Err(range) if range.reason == LostReason::Corrupt => damaged += range.len(),
                Err(range) => gone.push(range),
            })?;
            let count: u64 = gone.iter().map(LostRange::len).sum();
            let last = gone.last().map(|range| format!(", the last of them {range}")).unwrap_or_default();
            let _ = writeln!(text, "{letters} dead letters; {count} gave way to newer ones{last}; {damaged} damaged");
            well &= damaged == 0;
        }
    }
    Ok((text, well))
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
    for class in there(config)? {
        // Numbers are per class.
        let name = if class.name.is_empty() { String::new() } else { format!("{} ", class.name) };
        let mut tell = |line: String| {
            if shown.is_ok() {
                shown = out(&(plain(&line) + "\n"));
            }
        };
        if dead_letters {
            let mut letters = DeadLetters::look(class.dead_letter_dir, config.dead_letter_size.bytes())?;
            letters.each(|letter| {
                tell(match letter {
                    Ok(letter) => format!("{name}{} {}: {}", letter.sequence, line(&letter.record), letter.reason),
                    Err(range) => format!("{name}gone: dead letters {range}"),
                });
            })?;
        } else {
            let (mut spool, _) = Spool::look(class.options())?;
            walk(&mut spool, |entry| {
                tell(match entry {
                    Entry::Record { sequence, bytes, .. } => format!("{name}{sequence} {}", line(&bytes)),
                    Entry::Lost(range) => format!("{name}lost {range}"),
                });
            })?;
        }
    }
    shown
}

/// The classes that have files.
fn there(config: &Config) -> anyhow::Result<Vec<Class>> {
    exists(&config.log_dir())?;
    Ok(Class::all(config).into_iter().filter(|class| class.log_dir.is_dir()).collect())
}

/// Looking shall not begin a log.
pub(crate) fn exists(directory: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(directory.is_dir(), "there is nothing at {}: no bridge ran here yet", directory.display());
    Ok(())
}

pub(crate) fn walk(spool: &mut Spool, mut see: impl FnMut(Entry)) -> anyhow::Result<()> {
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
            let whole = record.notes.cut.map(|bytes| format!(" of {bytes}")).unwrap_or_default();
            format!(
                "{} {} {}{retained} {}{whole} bytes {shown:?}",
                record.received,
                record.mqtt,
                record.topic,
                record.payload.len()
            )
        }
        Err(why) => why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::Timestamp;

    use super::*;
    use crate::dead_letter::DeadLetter;
    use crate::record::Notes;

    #[test]
    fn what_others_wrote_stays_within_its_line_and_does_not_steer_the_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { state_dir: folder.path().to_owned(), ..Config::default() };
        let record = Record {
            mqtt: "m",
            topic: "a\u{1b}[2J\n2 b",
            payload: b"\x1b[2J\n",
            received: Timestamp::from_millis(0),
            qos: 1,
            retained: false,
            duplicate: false,
            notes: Notes::default(),
        };
        let class = Class::all(&config).remove(0);
        let (mut spool, _) = Spool::open(class.options(), 1).unwrap();
        spool.append(&record.encoded(), true).unwrap();
        spool.sync().unwrap();
        let (mut letters, _) = DeadLetters::open(class.dead_letter_dir, 1 << 20).unwrap();
        letters.put(&DeadLetter { sequence: 1, reason: "no\u{7}".into(), record: record.encoded() }).unwrap();
        letters.sync().unwrap();
        drop((spool, letters));
        let dumped = |dead_letters: bool| {
            let mut text = String::new();
            dump(&config, dead_letters, |line| {
                text += line;
                Ok(())
            })
            .unwrap();
            text
        };
        let line = "1 1970-01-01T00:00:00.000Z m a\\u{1b}[2J\\n2 b 5 bytes \"\\u{1b}[2J\\n\"";
        assert_eq!(dumped(false), format!("{line}\n"));
        assert_eq!(dumped(true), format!("{line}: no\\u{{7}}\n"));
    }
}
