//! What Hello tells of the machine, from the kernel's own files.

use protocol::message::NodeFacts;

/// What is known of this host, and of this program.
pub fn facts(software: String) -> NodeFacts {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let line = |path: &str| read(path).trim().to_owned();
    let number = |text: &str, name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name))?;
        found.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    let release = read("/etc/os-release");
    let os = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    let booted = number(&read("/proc/stat"), "btime ").unwrap_or_default();
    NodeFacts {
        hostname: line("/proc/sys/kernel/hostname"),
        os: os.trim_matches('"').to_owned(),
        kernel: line("/proc/sys/kernel/osrelease"),
        architecture: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism().map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_bytes: number(&read("/proc/meminfo"), "MemTotal:").unwrap_or_default() * 1024,
        software,
        booted_at_ms: i64::try_from(booted).unwrap_or_default().saturating_mul(1000),
        ..NodeFacts::default()
    }
}

/// Resident memory of this process in kibibytes, and the processor time it has taken in milliseconds.
pub fn own() -> (Option<i64>, Option<i64>) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = memory.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    let usage = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before may have blanks in it; user and system time are the 12th and 13th after it (proc_pid_stat(5)).
    let fields = usage.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace().skip(11));
    let ticks = fields.map(|fields| fields.take(2).filter_map(|ticks| ticks.parse::<i64>().ok()).sum::<i64>());
    // A tick is a hundredth of a second wherever Linux runs today.
    (memory, ticks.map(|ticks| ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_and_this_process_are_known() {
        let facts = facts("x".into());
        assert!(!facts.hostname.is_empty() && !facts.kernel.is_empty(), "{facts:?}");
        assert!(facts.memory_bytes > 0 && facts.booted_at_ms > 0 && facts.cpus > 0, "{facts:?}");
        let (memory, time) = own();
        assert!(memory > Some(500) && time.is_some(), "{memory:?} {time:?}");
    }
}
