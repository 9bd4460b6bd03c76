//! What processes cost: CPU time and memory, as the kernel counts them.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time and memory of some processes, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time, also of children that have ended and were waited for.
    pub cpu: Duration,
    /// Resident memory.
    pub rss_kib: u64,
}

impl Usage {
    /// Of `root` and everything below it.
    pub fn of_tree(root: u32) -> Result<Self> {
        let processes = all()?;
        let mut wanted = vec![root];
        let mut next = 0;
        while let Some(&parent) = wanted.get(next) {
            wanted.extend(processes.iter().filter(|(_, stat)| stat.parent == parent).map(|(id, _)| *id));
            next += 1;
        }
        processes.get(&root).with_context(|| format!("process {root} has ended"))?;
        Ok(add(wanted.iter().filter_map(|id| processes.get(id).map(|stat| (*id, stat)))))
    }

    /// Of every process of one of these `names` whose command line has `mark` in it.
    pub fn of_marked(names: &[&str], mark: &str) -> Result<Self> {
        let processes = all()?;
        let marked = |id: u32| {
            std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
        };
        Ok(add(processes
            .iter()
            .filter(|(id, stat)| names.iter().any(|name| stat.name.starts_with(name)) && marked(**id))
            .map(|(id, stat)| (*id, stat))))
    }
}

struct Stat {
    name: String,
    parent: u32,
    ticks: u64,
}

/// USER_HZ: 100 on every Linux that user space can see.
const TICK: Duration = Duration::from_millis(10);

fn add<'a>(processes: impl Iterator<Item = (u32, &'a Stat)>) -> Usage {
    processes.fold(Usage::default(), |sum, (id, stat)| Usage {
        cpu: sum.cpu + TICK * u32::try_from(stat.ticks).unwrap_or(u32::MAX),
        rss_kib: sum.rss_kib + rss_kib(id).unwrap_or(0),
    })
}

/// From the accurate counter: /proc/PID/status may lag by some pages for each thread.
fn rss_kib(id: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

fn all() -> Result<HashMap<u32, Stat>> {
    let folder = std::fs::read_dir("/proc").context("reading /proc")?;
    Ok(folder
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // One that ends while we look is none of those that are measured.
        .filter_map(|id: u32| Some((id, parse(&std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?)))
        .collect())
}

/// A line of /proc/PID/stat; the name stands in parentheses and may have any character in it.
fn parse(line: &str) -> Option<Stat> {
    let (name, rest) = line.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc(5): state is field 3, ppid 4, utime 14, stime 15, cutime 16, cstime 17.
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Some(Stat { name: name.to_owned(), parent: fields.get(1)?.parse().ok()?, ticks })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::rig::{Process, SOON, until};

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = parse("7 (a) b (c) S 3 7 7 0 -1 4194304 1 0 0 0 10 20 30 40 20 0 1 0 5 6 7").unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.ticks), ("a) b (c", 3, 100));
    }

    #[test]
    fn the_work_of_a_child_counts_also_once_it_has_ended() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let script = "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'; echo done; sleep 600";
        let process = Process::start_group(Command::new("sh").args(["-c", script]), &folder.path().join("log"))?;
        until("the child's end", SOON, || Ok(process.log().contains("done").then_some(())))?;
        let usage = Usage::of_tree(process.id())?;
        assert!(usage.cpu >= Duration::from_millis(20), "{usage:?}");
        assert!(usage.rss_kib > 100, "{usage:?}");
        Ok(())
    }
}
