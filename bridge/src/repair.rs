//! The verb `log repair`: says what has to be done to logs and dead letters that are damaged, and does it when told to. A
//! bridge that starts does the same by itself, and so loses no more; this is to know it before.

use std::fmt::Write;

use spool::{LostRange, LostReason, Options, Recovery, Spool};

use crate::class::Class;
use crate::config::Config;
use crate::dead_letter::DeadLetters;
use crate::show;

/// Says what is to be done or, with `act`, does it. Gives the lines to show, and whether nothing is left to do.
///
/// # Errors
/// When the files can't be read or written, or a running bridge has them.
pub fn run(config: &Config, act: bool) -> anyhow::Result<(String, bool)> {
    show::exists(&config.log_dir())?;
    let (mut text, mut well) = (String::new(), true);
    for class in Class::all(config) {
        let letters = DeadLetters::options(class.dead_letter_dir.clone(), config.dead_letter_size.bytes());
        for (what, options) in [("log", class.options()), ("dead letters", letters)] {
            if options.directory.is_dir() {
                let title = format!("{what} of {}", class.title());
                well &= one(&title, options, act, &mut text)?;
            }
        }
    }
    Ok((text, well))
}

fn one(title: &str, options: Options, act: bool, text: &mut String) -> anyhow::Result<bool> {
    let (mut spool, recovery) = Spool::look(options.clone())?;
    let ills = ills(&mut spool, &recovery)?;
    // Only one has it at a time.
    drop(spool);
    if ills.is_empty() {
        let _ = writeln!(text, "ok    {title}: nothing to repair; {} records wait", recovery.pending);
        return Ok(true);
    }
    if act {
        let (mut spool, _) = Spool::open(options, rand::random())?;
        show::walk(&mut spool, |_| {})?;
        spool.save_acknowledged()?;
    }
    for ill in ills {
        let _ = writeln!(text, "{} {title}: {ill}", if act { "done " } else { "to do" });
    }
    if !act {
        let _ = writeln!(text, "      nothing is changed yet: copy {title} if in doubt, and repair with --yes");
    }
    Ok(act)
}

/// What is wrong, as what is to be done.
fn ills(spool: &mut Spool, recovery: &Recovery) -> anyhow::Result<Vec<String>> {
    let Recovery { fresh_epoch, cursor_rebuilt, torn_bytes, quarantined, known, .. } = recovery;
    let mut ills = Vec::new();
    if let Some(why) = fresh_epoch {
        ills.push(format!("begin anew, with other numbers: {why}"));
    }
    if *cursor_rebuilt {
        ills.push("make the cursor anew from the segments: what Kafka has comes again, with the same numbers".into());
    }
    if *torn_bytes > 0 {
        ills.push(format!(
            "cut off {torn_bytes} unreadable bytes at the end, which were never acknowledged to MQTT or are damaged"
        ));
    }
    for path in quarantined {
        ills.push(format!("set aside {}, which is not of this log or can't be read", path.display()));
    }
    show::walk(spool, |_| {})?;
    let new = |range: &&LostRange| range.reason == LostReason::Corrupt && !known.contains(range);
    for range in spool.lost().iter().filter(new) {
        let LostRange { first, last, .. } = range;
        ills.push(format!(
            "give up numbers {first} to {last}, which are damaged: the audit counts those that were used as missing"
        ));
    }
    Ok(ills)
}
