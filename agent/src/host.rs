//! The host's figures: processors, load, memory, disks, network.
//!
//! What is read at every sample comes straight from `/proc` through descriptors that stay open: measured, that is a
//! tenth of the CPU that the same figures cost through `sysinfo`, which opens each file anew and about nine more per
//! network interface. `sysinfo` gives what is asked for once (names) or at a slow pace (file systems).

use std::path::PathBuf;

use protocol::Timestamp;
use protocol::message::NodeFacts;
use sysinfo::System;
use tokio::time::Instant;

use crate::kept::{Page, Source};
use crate::roster::Roster;

/// Reads the host's figures, again and again.
#[derive(Debug)]
pub struct Host {
    stat: Source,
    load: Source,
    memory: Source,
    network: Source,
    devices: Source,
    uptime: Source,
    own_status: Source,
    own_stat: Source,
    page: Page,
    processors: Vec<Busy>,
    figures: HostFigures,
}

/// One reading. `None` is "not measured". Units are those of the telemetry's metrics.
#[derive(Debug, Default, PartialEq)]
pub struct HostFigures {
    /// Share of all processors' time that was not idle since the reading before, in 1/10,000.
    pub busy: Option<i64>,
    /// The same for each processor.
    pub processors: Vec<Option<i64>>,
    /// Load averages over 1, 5 and 15 minutes, in 1/100.
    pub load: [Option<i64>; 3],
    /// Memory.
    pub memory: Memory,
    /// Block devices, whole ones.
    pub devices: Roster<Device>,
    /// Network interfaces that lead out of the host.
    pub interfaces: Roster<Interface>,
    /// Seconds since the host started.
    pub uptime: Option<i64>,
    /// This process's resident memory in KiB.
    pub own_memory: Option<i64>,
    /// CPU time this process has used, in ms.
    pub own_cpu: Option<i64>,
}

/// Memory in KiB.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says what it is")]
pub struct Memory {
    pub total: Option<i64>,
    /// What programs hold and the kernel can't reclaim: total less available.
    pub used: Option<i64>,
    pub available: Option<i64>,
    pub swap_total: Option<i64>,
    pub swap_used: Option<i64>,
}

/// Bytes a block device has moved since the host started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says what it is")]
pub struct Device {
    pub read: i64,
    pub written: i64,
}

/// Bytes an interface has moved since it came up, and packets lost to errors in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says what it is")]
pub struct Interface {
    pub received: i64,
    pub sent: i64,
    pub errors: i64,
}

impl Host {
    /// Takes a first reading, so that the next one has shares of time to tell.
    pub fn new() -> Self {
        let mut host = Self {
            stat: Source::new("/proc/stat"),
            load: Source::new("/proc/loadavg"),
            memory: Source::new("/proc/meminfo"),
            network: Source::new("/proc/net/dev"),
            devices: Source::new("/proc/diskstats"),
            uptime: Source::new("/proc/uptime"),
            own_status: Source::new("/proc/self/status"),
            own_stat: Source::new("/proc/self/stat"),
            page: Page::new(),
            processors: Vec::new(),
            figures: HostFigures::default(),
        };
        host.read();
        host
    }

    /// The figures now.
    pub fn read(&mut self) -> &HostFigures {
        let (page, figures) = (&mut self.page, &mut self.figures);
        figures.busy = None;
        figures.processors.fill(None);
        if let Some(text) = self.stat.read(page) {
            processors(text, &mut self.processors, figures);
        }
        figures.load = self.load.read(page).map(load).unwrap_or_default();
        figures.memory = self.memory.read(page).map(memory).unwrap_or_default();
        let now = Instant::now();
        figures.interfaces.read(now, interfaces(self.network.read(page).unwrap_or_default()));
        figures.devices.read(now, devices(self.devices.read(page).unwrap_or_default()));
        figures.uptime = self.uptime.read(page).and_then(uptime);
        figures.own_memory = self.own_status.read(page).and_then(|text| kib(text, "VmRSS:"));
        figures.own_cpu = self.own_stat.read(page).and_then(own_cpu);
        figures
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// What is known about the host itself and does not change while it runs.
pub fn facts(software: String) -> NodeFacts {
    let memory = Source::new("/proc/meminfo").read(&mut Page::new()).and_then(|text| kib(text, "MemTotal:"));
    NodeFacts {
        hostname: System::host_name().unwrap_or_default(),
        os: System::long_os_version().unwrap_or_default(),
        kernel: System::kernel_version().unwrap_or_default(),
        architecture: System::cpu_arch(),
        cpus: std::thread::available_parallelism().map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory.unwrap_or_default().unsigned_abs() * 1024,
        software,
        booted_at_ms: System::boot_time().map_or(0, |seconds| {
            Timestamp::from_millis(i64::try_from(seconds).unwrap_or_default().saturating_mul(1000)).millis()
        }),
        ..NodeFacts::default()
    }
}

/// Time a processor has spent, in the kernel's ticks.
#[derive(Debug, Default, Clone, Copy)]
struct Busy {
    total: u64,
    busy: u64,
}

/// More processors than this are only in the sum: each costs a series.
const PROCESSORS: usize = 64;

/// `/proc/stat`: the sum first, then each processor (proc_stat(5)).
fn processors(text: &str, before: &mut Vec<Busy>, figures: &mut HostFigures) {
    let mut count = 0;
    for line in text.lines().take_while(|line| line.starts_with("cpu")).take(PROCESSORS + 1) {
        let mut busy = Busy::default();
        // user nice system idle iowait irq softirq steal; guest time is already part of user time.
        for (column, ticks) in line.split_ascii_whitespace().skip(1).take(8).enumerate() {
            let ticks = ticks.parse().unwrap_or(0);
            busy.total += ticks;
            if column != 3 && column != 4 {
                busy.busy += ticks;
            }
        }
        if before.len() <= count {
            before.push(Busy::default());
        }
        let share = before.get_mut(count).and_then(|before| {
            let earlier = std::mem::replace(before, busy);
            // Idle time may run backwards a little (proc_stat(5)), and a first reading has nothing before it.
            let total = busy.total.checked_sub(earlier.total).filter(|&ticks| ticks > 0 && earlier.total > 0)?;
            let busy = busy.busy.saturating_sub(earlier.busy).min(total);
            i64::try_from(busy * 10_000 / total).ok()
        });
        if count == 0 {
            figures.busy = share;
        } else if let Some(slot) = figures.processors.get_mut(count - 1) {
            *slot = share;
        } else {
            figures.processors.push(share);
        }
        count += 1;
    }
    figures.processors.truncate(count.saturating_sub(1));
    before.truncate(count);
}

fn load(text: &str) -> [Option<i64>; 3] {
    let mut averages = text.split_ascii_whitespace().map(hundredths);
    std::array::from_fn(|_| averages.next().flatten())
}

/// `0.52` -> 52, without going through floating point.
fn hundredths(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.')?;
    let fraction: i64 = fraction.get(..2)?.parse().ok()?;
    whole.parse::<i64>().ok()?.checked_mul(100)?.checked_add(fraction)
}

fn memory(text: &str) -> Memory {
    let (total, available) = (kib(text, "MemTotal:"), kib(text, "MemAvailable:"));
    let (swap_total, swap_free) = (kib(text, "SwapTotal:"), kib(text, "SwapFree:"));
    Memory {
        total,
        available,
        used: total.zip(available).map(|(total, available)| total - available),
        swap_total,
        swap_used: swap_total.zip(swap_free).map(|(total, free)| total - free),
    }
}

/// The figure on the line that starts with `name`, in KiB.
fn kib(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

fn uptime(text: &str) -> Option<i64> {
    text.split('.').next()?.parse().ok()
}

/// Fields 14 and 15 of `/proc/PID/stat`, in 1/100 s on every Linux; the name in field 2 may hold spaces.
fn own_cpu(text: &str) -> Option<i64> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<i64>().ok()?, fields.next()?.parse::<i64>().ok()?);
    Some((user + system) * 10)
}

/// `/proc/net/dev`: two lines of headings, then `name: 8 columns received, 8 columns sent`.
fn interfaces(text: &str) -> impl Iterator<Item = (&str, Interface)> {
    let lines = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    let named = lines.map(|(name, columns)| (name.trim_ascii(), columns)).filter(|(name, _)| leads_out(name));
    named.map(|(name, columns)| {
        let mut column = [0; 16];
        for (slot, value) in column.iter_mut().zip(columns.split_ascii_whitespace()) {
            *slot = value.parse().unwrap_or(0);
        }
        let [received, _, receive_errors, _, _, _, _, _, sent, _, send_errors, ..] = column;
        (name, Interface { received, sent, errors: receive_errors + send_errors })
    })
}

/// Not the loopback, and not one of the many that container engines and hypervisors make for their guests.
fn leads_out(interface: &str) -> bool {
    const INTERNAL: [&str; 14] = [
        "veth", "br-", "docker", "virbr", "vnet", "cni", "flannel", "cali", "cilium", "lxc", "podman", "ifb", "dummy",
        "tap",
    ];
    interface != "lo" && !INTERNAL.iter().any(|prefix| interface.starts_with(prefix))
}

/// Bytes in a sector of `/proc/diskstats`, whatever the device's own are.
const SECTOR: i64 = 512;

/// `/proc/diskstats`: major, minor, name, reads, merged, sectors read, ms, writes, merged, sectors written, …
fn devices(text: &str) -> impl Iterator<Item = (&str, Device)> {
    let mut whole = "";
    text.lines().filter_map(move |line| {
        let mut columns = line.split_ascii_whitespace().skip(2);
        let name = columns.next()?;
        if is_partition(whole, name) || is_virtual(name) {
            return None;
        }
        whole = name;
        let mut column = [0_i64; 7];
        for (slot, value) in column.iter_mut().zip(columns) {
            *slot = value.parse().unwrap_or(0);
        }
        let [_, _, read, _, _, _, written] = column;
        // Never used: an empty drive or one of sixteen unconnected network block devices.
        let used = read != 0 || written != 0;
        used.then(|| (name, Device { read: read.saturating_mul(SECTOR), written: written.saturating_mul(SECTOR) }))
    })
}

/// `sda1` of `sda`, `nvme0n1p2` of `nvme0n1`; the kernel lists a device's partitions right after it.
fn is_partition(whole: &str, name: &str) -> bool {
    let Some(rest) = name.strip_prefix(whole).filter(|_| !whole.is_empty()) else { return false };
    let number = if whole.ends_with(|last: char| last.is_ascii_digit()) {
        match rest.strip_prefix('p') {
            Some(number) => number,
            None => return rest.starts_with("boot") || rest.starts_with("rpmb"),
        }
    } else {
        rest
    };
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// In memory, or on top of another device that is counted itself.
fn is_virtual(name: &str) -> bool {
    ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "zd"].iter().any(|prefix| name.starts_with(prefix))
}

/// The file systems worth watching, asked for at a slow pace: each costs a call that may wait for its device.
#[derive(Debug)]
pub struct FileSystems(Option<sysinfo::Disks>);

/// A mounted file system, in KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says what it is")]
pub struct FileSystem {
    pub mount: Box<str>,
    pub total: i64,
    /// What an ordinary program can't use any more, the part reserved for root included.
    pub used: i64,
}

impl FileSystems {
    /// Knows of none yet.
    pub fn new() -> Self {
        Self(sysinfo::Disks::new().inspect_err(|error| tracing::warn!(%error, "file systems can't be listed")).ok())
    }

    /// Looks at what is mounted now. May block for as long as a device does not answer.
    pub fn read(&mut self) -> Vec<FileSystem> {
        let Some(disks) = &mut self.0 else { return Vec::new() };
        disks.refresh_specifics(true, sysinfo::DiskRefreshKind::nothing().with_storage());
        let mounted = disks.iter().map(|disk| Mounted {
            device: disk.name().to_string_lossy().into_owned(),
            mount: disk.mount_point().to_owned(),
            kind: disk.file_system().to_string_lossy().into_owned(),
            total: disk.total_space(),
            free: disk.available_space(),
        });
        file_systems(mounted.collect())
    }
}

impl Default for FileSystems {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug, Clone)]
struct Mounted {
    device: String,
    mount: PathBuf,
    kind: String,
    total: u64,
    free: u64,
}

/// Each device once, at its shortest mount point; nothing that holds no data of its own.
fn file_systems(mut mounted: Vec<Mounted>) -> Vec<FileSystem> {
    mounted.sort_by(|a, b| a.mount.as_os_str().len().cmp(&b.mount.as_os_str().len()).then(a.mount.cmp(&b.mount)));
    let mut seen: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for Mounted { device, mount, kind, total, free } in mounted {
        let is_root = mount.as_os_str() == "/";
        let holds_data = device.starts_with("/dev/") && !device.starts_with("/dev/loop")
            || matches!(kind.as_str(), "zfs" | "virtiofs" | "9p" | "bcachefs" | "ceph");
        // The root counts whatever it is made of: inside a container it is an overlay.
        if total == 0 || seen.contains(&device) || !(holds_data || is_root) {
            continue;
        }
        seen.push(device);
        let in_kib = |bytes: u64| i64::try_from(bytes / 1024).unwrap_or(i64::MAX);
        found.push(FileSystem {
            mount: mount.to_string_lossy().into(),
            total: in_kib(total),
            used: in_kib(total.saturating_sub(free)),
        });
    }
    found.sort_by(|a, b| a.mount.cmp(&b.mount));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  36575 6184 15793 303278 1346 0 305 55 0 0\n\
                        cpu0 17655 2979 7065 153741 222 0 75 25 0 0\n\
                        cpu1 18920 3204 8728 149537 1124 0 229 29 0 0\n\
                        intr 1088971 0 0 0\nctxt 2376852\nbtime 1795437517\n";

    #[test]
    fn a_processor_is_busy_for_the_time_that_was_neither_idle_nor_waiting() {
        let (mut before, mut figures) = (Vec::new(), HostFigures::default());
        processors(STAT, &mut before, &mut figures);
        assert_eq!((figures.busy, figures.processors.as_slice()), (None, [None, None].as_slice()), "nothing before it");

        // cpu0: 25 of 100 ticks in user mode; cpu1: 40 idle and 60 waiting; guest time is not counted twice.
        let later = "cpu  36600 6184 15793 303393 1406 0 305 55 9 0\n\
                     cpu0 17680 2979 7065 153816 222 0 75 25 9 0\n\
                     cpu1 18920 3204 8728 149577 1184 0 229 29 0 0\n";
        processors(later, &mut before, &mut figures);
        assert_eq!((figures.busy, figures.processors.as_slice()), (Some(1250), [Some(2500), Some(0)].as_slice()));

        // A processor taken away, and idle time that ran backwards.
        processors(
            "cpu  36600 6184 15793 303300 1406 0 305 55\ncpu0 17780 2979 7065 153816 222 0 75 25\n",
            &mut before,
            &mut figures,
        );
        assert_eq!((figures.busy, figures.processors.as_slice()), (None, [Some(10_000)].as_slice()));
    }

    #[test]
    fn memory_in_use_is_what_could_not_be_given_out() {
        let text = "MemTotal:       24684084 kB\nMemFree:        23010924 kB\nMemAvailable:   23832660 kB\n\
                    SwapTotal:       1000000 kB\nSwapFree:         999000 kB\n";
        assert_eq!(
            memory(text),
            Memory {
                total: Some(24_684_084),
                used: Some(851_424),
                available: Some(23_832_660),
                swap_total: Some(1_000_000),
                swap_used: Some(1000),
            }
        );
        assert_eq!(memory("nonsense"), Memory::default());
    }

    #[test]
    fn load_and_uptime_are_exact() {
        assert_eq!(load("0.52 10.07 123.45 2/345 6789\n"), [Some(52), Some(1007), Some(12_345)]);
        assert_eq!(load("?"), [None; 3]);
        assert_eq!(uptime("35128.77 60420.11\n"), Some(35_128));
    }

    #[test]
    fn own_cpu_time_survives_a_name_with_spaces_and_brackets() {
        let text = "77 (a) b (c) S 1 77 77 0 -1 4194560 1 0 0 0 123 45 0 0 20 0 1 0 999 0 0\n";
        assert_eq!(own_cpu(text), Some(1680));
    }

    #[test]
    fn only_interfaces_that_lead_out_are_counted() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0\n  \
             eth0: 438266208   13881    2    0    0     0          0         0   996617    8554    1    0    0     0       0          0\n\
             docker0:   100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n\
             br-1f2e3d4c5b6a: 7 1    0    0    0     0          0         0        7       1    0    0    0     0       0          0\n\
             vethc0ffee0: 7       1    0    0    0     0          0         0        7       1    0    0    0     0       0          0\n   \
             wg0:1500 3 0 0 0 0 0 0 700 2 0 0 0 0 0 0\n";
        assert_eq!(
            interfaces(text).collect::<Vec<_>>(),
            [
                ("eth0", Interface { received: 438_266_208, sent: 996_617, errors: 3 }),
                ("wg0", Interface { received: 1500, sent: 700, errors: 0 }),
            ]
        );
        assert_eq!(interfaces("").count(), 0);
    }

    #[test]
    fn only_whole_used_devices_are_counted() {
        let text = "   7       0 loop0 9 0 9 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n \
                    254       0 vda 119895 28961 8067274 31639 36947 44383 6165144 27585 0 16220 60418\n \
                    254       1 vda1 119895 28961 8067274 31639 36947 44383 6165144 27585 0 16220 60418\n \
                    259       0 nvme0n1 1 0 8 0 1 0 16 0 0 0 0\n \
                    259       1 nvme0n1p1 1 0 8 0 1 0 16 0 0 0 0\n \
                    259       2 nvme0n10 1 0 2 0 1 0 4 0 0 0 0\n  \
                    43       0 nbd0 0 0 0 0 0 0 0 0 0 0 0\n \
                    179       0 mmcblk0 1 0 8 0 1 0 8 0 0 0 0\n \
                    179       8 mmcblk0boot0 1 0 8 0 1 0 8 0 0 0 0\n \
                    252       0 dm-0 1 0 8 0 1 0 16 0 0 0 0\n";
        let device = |name: &'static str, read, written| (name, Device { read, written });
        assert_eq!(
            devices(text).collect::<Vec<_>>(),
            [
                device("vda", 8_067_274 * 512, 6_165_144 * 512),
                device("nvme0n1", 4096, 8192),
                device("nvme0n10", 1024, 2048),
                device("mmcblk0", 4096, 4096),
            ]
        );
    }

    #[test]
    fn a_device_mounted_twice_counts_once_and_overlays_not_at_all() {
        let mounted = |device: &str, mount: &str, kind: &str| Mounted {
            device: device.into(),
            mount: mount.into(),
            kind: kind.into(),
            total: 4096,
            free: 1024,
        };
        let mounts = |list: Vec<Mounted>| file_systems(list).into_iter().map(|f| f.mount).collect::<Vec<_>>();
        assert_eq!(
            mounts(vec![
                mounted("overlay", "/var/lib/docker/overlay2/7/merged", "overlay"),
                mounted("/dev/sda2", "/srv/bind", "ext4"),
                mounted("/dev/sda2", "/var", "ext4"),
                mounted("/dev/sda1", "/", "ext4"),
                mounted("/dev/loop3", "/snap/core", "squashfs"),
                mounted("tank/data", "/tank", "zfs"),
                Mounted { total: 0, ..mounted("/dev/sdb1", "/empty", "ext4") },
            ]),
            ["/".into(), "/tank".into(), "/var".into()] as [Box<str>; 3]
        );
        assert_eq!(mounts(vec![mounted("overlay", "/", "overlay")]), ["/".into()] as [Box<str>; 1]);
        assert_eq!(
            file_systems(vec![mounted("/dev/sda1", "/", "ext4")]),
            [FileSystem { mount: "/".into(), total: 4, used: 3 }]
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let mut host = Host::new();
        let figures = host.read();
        assert!(
            figures.memory.total > Some(0) && figures.uptime > Some(0) && figures.own_memory > Some(0),
            "{figures:?}"
        );
        assert!(!figures.processors.is_empty() && figures.load.iter().all(Option::is_some), "{figures:?}");
        assert!(FileSystems::new().read().iter().any(|system| &*system.mount == "/"));
        let facts = facts("agent 1".into());
        assert!(
            facts.cpus > 0 && facts.memory_bytes > 0 && facts.booted_at_ms > 0 && !facts.kernel.is_empty(),
            "{facts:?}"
        );
    }
}
