//! A container's figures from its cgroup, version 1, version 2 or both side by side, and from its network namespace.

use std::io;
use std::path::{Path, PathBuf};

use crate::kept::{Kept, Page};

/// Figures of one container. `None` is "not measured".
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// CPU time used since it started, in ms.
    pub cpu: Option<i64>,
    /// Memory in KiB, less the page cache that the kernel would drop first: what `docker stats` shows.
    pub memory: Option<i64>,
    /// Processes and threads.
    pub processes: Option<i64>,
    /// Bytes received on all its interfaces since it started.
    pub received: Option<i64>,
    /// Bytes sent on all its interfaces since it started.
    pub sent: Option<i64>,
    /// Bytes read from block devices since it started.
    pub read: Option<i64>,
    /// Bytes written to block devices since it started.
    pub written: Option<i64>,
}

/// Where the host mounts its cgroup hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    cpu: Option<Mount>,
    memory: Option<Mount>,
    block: Option<Mount>,
    processes: Option<Mount>,
    unified: Option<Mount>,
}

/// One hierarchy: the directory `root` of it is visible at `at`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    root: String,
}

impl Hierarchies {
    /// Of this machine, as this process sees it.
    pub fn of_this_host() -> Self {
        std::fs::read_to_string("/proc/self/mountinfo").map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// Reads `/proc/PID/mountinfo`: `36 35 98:0 ROOT AT options - TYPE source super-options` (proc(5)).
    fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, about)) = line.split_once(" - ") else { continue };
            let mut mount = mount.split(' ').skip(3);
            let (Some(root), Some(at)) = (mount.next(), mount.next()) else { continue };
            let mut about = about.split(' ');
            let (kind, options) = (about.next(), about.nth(1).unwrap_or_default());
            let place = || Some(Mount { at: at.into(), root: root.trim_end_matches('/').to_owned() });
            match kind {
                Some("cgroup2") => found.unified = found.unified.take().or_else(place),
                Some("cgroup") => {
                    for controller in options.split(',') {
                        match controller {
                            "cpuacct" => found.cpu = place(),
                            "memory" => found.memory = place(),
                            "blkio" => found.block = place(),
                            "pids" => found.processes = place(),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }
}

/// The open files of one running container.
#[derive(Debug)]
pub struct Group {
    cpu: Cpu,
    memory: Option<(Kept, Reclaimable)>,
    block: Option<Block>,
    processes: Option<Kept>,
    network: Option<Kept>,
}

#[derive(Debug)]
enum Cpu {
    /// `cpuacct.usage`: nanoseconds.
    Version1(Kept),
    /// `cpu.stat`: `usage_usec N` first.
    Version2(Kept),
}

/// `memory.stat` and the name of its line about page cache not used of late.
#[derive(Debug)]
struct Reclaimable(Kept, &'static str);

#[derive(Debug)]
enum Block {
    /// `blkio.throttle.io_service_bytes_recursive`.
    Version1(Kept),
    /// `io.stat`.
    Version2(Kept),
}

impl Group {
    /// Opens what there is for the container whose first process is `pid`.
    ///
    /// The files stay open: they are those of this run of the container, and have to be opened again for the next.
    /// `own_network` says whether the container has a network namespace to itself; a shared one is not its traffic.
    /// Fails when not even the CPU figure can be had: then the engine has to be asked.
    pub fn open(hierarchies: &Hierarchies, pid: u32, own_network: bool) -> io::Result<Self> {
        Self::open_at(Path::new("/proc"), hierarchies, pid, own_network)
    }

    fn open_at(proc: &Path, hierarchies: &Hierarchies, pid: u32, own_network: bool) -> io::Result<Self> {
        let process = proc.join(pid.to_string());
        let paths = std::fs::read_to_string(process.join("cgroup"))?;
        let version1 = |mount: &Option<Mount>, controller: &str, file: &str| -> Option<Kept> {
            let mount = mount.as_ref()?;
            let path = paths.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                controllers.split(',').any(|name| name == controller).then_some(path)
            })?;
            Kept::open(mount.directory(path)?.join(file)).ok()
        };
        let version2 = |file: &str| -> Option<Kept> {
            let path = paths.lines().find_map(|line| line.strip_prefix("0::"))?;
            Kept::open(hierarchies.unified.as_ref()?.directory(path)?.join(file)).ok()
        };
        let cpu = version1(&hierarchies.cpu, "cpuacct", "cpuacct.usage")
            .map(Cpu::Version1)
            .or_else(|| version2("cpu.stat").map(Cpu::Version2))
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its cgroup is not visible from here"))?;
        let memory = version1(&hierarchies.memory, "memory", "memory.usage_in_bytes")
            .zip(version1(&hierarchies.memory, "memory", "memory.stat"))
            .map(|(usage, stat)| (usage, Reclaimable(stat, "total_inactive_file ")))
            .or_else(|| {
                let (usage, stat) = version2("memory.current").zip(version2("memory.stat"))?;
                Some((usage, Reclaimable(stat, "inactive_file ")))
            });
        let block = version1(&hierarchies.block, "blkio", "blkio.throttle.io_service_bytes_recursive")
            .or_else(|| version1(&hierarchies.block, "blkio", "blkio.throttle.io_service_bytes"))
            .map(Block::Version1)
            .or_else(|| version2("io.stat").map(Block::Version2));
        let processes = version1(&hierarchies.processes, "pids", "pids.current").or_else(|| version2("pids.current"));
        let network = own_network.then(|| Kept::open(process.join("net/dev")).ok()).flatten();
        Ok(Self { cpu, memory, block, processes, network })
    }

    /// The figures now. Fails when the container has ended.
    pub fn figures(&self) -> io::Result<Figures> {
        self.read(&mut Page::new())
    }

    /// [`Group::figures`] with a buffer of the caller's.
    ///
    /// The CPU figure is read first because its file fails at once when the cgroup is gone, while `net/dev` of a dead
    /// process goes on answering for as long as it is kept open.
    pub(crate) fn read(&self, page: &mut Page) -> io::Result<Figures> {
        let cpu = match &self.cpu {
            Cpu::Version1(file) => number(file.read(page)?).map(|nanos| nanos / 1_000_000),
            Cpu::Version2(file) => field(file.read(page)?, "usage_usec ").map(|micros| micros / 1000),
        };
        let mut figures = Figures { cpu, ..Figures::default() };
        if let Some((usage, Reclaimable(stat, name))) = &self.memory {
            let usage = number(usage.read(page)?);
            let reclaimable = field(stat.read(page)?, name).unwrap_or(0);
            figures.memory = usage.map(|usage| usage.saturating_sub(reclaimable).max(0) / 1024);
        }
        if let Some(block) = &self.block {
            let (read, written) = match block {
                Block::Version1(file) => block_version1(file.read(page)?),
                Block::Version2(file) => block_version2(file.read(page)?),
            };
            (figures.read, figures.written) = (Some(read), Some(written));
        }
        if let Some(processes) = &self.processes {
            figures.processes = number(processes.read(page)?);
        }
        if let Some(network) = &self.network {
            let (received, sent) = traffic(network.read(page)?);
            (figures.received, figures.sent) = (Some(received), Some(sent));
        }
        Ok(figures)
    }
}

impl Mount {
    /// Where the cgroup `path` of this hierarchy is visible, if it is.
    fn directory(&self, path: &str) -> Option<PathBuf> {
        let inside = path.strip_prefix(self.root.as_str())?;
        // Seen from inside a cgroup namespace, a group outside of it starts with "/..".
        let visible = !inside.split('/').any(|part| part == "..");
        visible.then(|| self.at.join(inside.trim_start_matches('/')))
    }
}

fn number(text: &str) -> Option<i64> {
    text.trim_ascii_end().parse().ok()
}

/// The number on the line that starts with `name`, which ends in a space.
fn field(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(name)).and_then(number)
}

/// Lines of `8:0 Read 4096`, summed over devices.
fn block_version1(text: &str) -> (i64, i64) {
    let (mut read, mut written) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().skip(1);
        match (words.next(), words.next().and_then(number)) {
            (Some("Read"), Some(bytes)) => read += bytes,
            (Some("Write"), Some(bytes)) => written += bytes,
            _ => {}
        }
    }
    (read, written)
}

/// Lines of `8:0 rbytes=4096 wbytes=0 rios=1 …`, summed over devices.
fn block_version2(text: &str) -> (i64, i64) {
    let (mut read, mut written) = (0, 0);
    for word in text.split_ascii_whitespace() {
        if let Some(bytes) = word.strip_prefix("rbytes=").and_then(number) {
            read += bytes;
        } else if let Some(bytes) = word.strip_prefix("wbytes=").and_then(number) {
            written += bytes;
        }
    }
    (read, written)
}

/// `/proc/PID/net/dev`, summed over all interfaces but the loopback.
fn traffic(text: &str) -> (i64, i64) {
    let (mut received, mut sent) = (0, 0);
    for line in text.lines().skip(2) {
        let Some((name, columns)) = line.split_once(':') else { continue };
        if name.trim_ascii() == "lo" {
            continue;
        }
        let mut columns = columns.split_ascii_whitespace().map(|column| column.parse().unwrap_or(0_i64));
        received += columns.next().unwrap_or(0);
        sent += columns.nth(7).unwrap_or(0);
    }
    (received, sent)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NET_DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:    9999      29    0    0    0     0          0         0     9999      29    0    0    0     0       0          0\n  \
        eth0:    1306      17    0    0    0     0          0         0      126       3    0    0    0     0       0          0\n  \
        eth1:     100       1    0    0    0     0          0         0       50       1    0    0    0     0       0          0\n";

    /// A machine made of files: `proc` and the cgroup mounts below one directory.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (path, content) in files {
                let path = directory.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            Self(directory)
        }

        fn open(&self, mountinfo: &str, own_network: bool) -> io::Result<Group> {
            let at = self.0.path().to_str().unwrap();
            let hierarchies = Hierarchies::parse(&mountinfo.replace("/sys/fs/cgroup", &format!("{at}/cgroup")));
            Group::open_at(&self.0.path().join("proc"), &hierarchies, 42, own_network)
        }

        fn figures(&self, mountinfo: &str) -> Figures {
            self.open(mountinfo, true).unwrap().read(&mut Page::new()).unwrap()
        }
    }

    const ALL: Figures = Figures {
        cpu: Some(504),
        memory: Some(104),
        processes: Some(5),
        received: Some(1406),
        sent: Some(176),
        read: Some(12_288),
        written: Some(512),
    };

    const VERSION1: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime shared:9 - cgroup cgroup rw,blkio\n\
        39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n";
    const VERSION2: &str = "25 22 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn version1_files(prefix: &str) -> Vec<(String, &'static str)> {
        [
            (format!("cgroup/cpu,cpuacct{prefix}/cpuacct.usage"), "504503123\n"),
            (format!("cgroup/memory{prefix}/memory.usage_in_bytes"), "212992\n"),
            (
                format!("cgroup/memory{prefix}/memory.stat"),
                "cache 0\nrss 106496\ninactive_file 1\ntotal_cache 0\ntotal_inactive_file 106496\ntotal_active_file 0\n",
            ),
            (
                format!("cgroup/blkio{prefix}/blkio.throttle.io_service_bytes_recursive"),
                "254:0 Read 4096\n254:0 Write 512\n254:0 Sync 4608\n254:0 Total 4608\n254:16 Read 8192\n254:16 Write 0\nTotal 12800\n",
            ),
            (format!("cgroup/pids{prefix}/pids.current"), "5\n"),
            ("proc/42/net/dev".to_owned(), NET_DEV),
        ]
        .into()
    }

    fn machine(files: &[(String, &str)], proc_cgroup: &str) -> Machine {
        let mut all: Vec<(&str, &str)> = files.iter().map(|(path, content)| (path.as_str(), *content)).collect();
        all.push(("proc/42/cgroup", proc_cgroup));
        Machine::new(&all)
    }

    #[test]
    fn version_1_with_the_cgroupfs_driver() {
        let proc = "9:name=systemd:/docker/c0ba\n8:pids:/docker/c0ba\n4:memory:/docker/c0ba\n3:blkio:/docker/c0ba\n2:cpu,cpuacct:/docker/c0ba\n";
        assert_eq!(machine(&version1_files("/docker/c0ba"), proc).figures(VERSION1), ALL);
    }

    #[test]
    fn hybrid_with_the_systemd_driver_takes_each_figure_from_where_it_is_kept() {
        let group = "/system.slice/docker-c0ba.scope";
        let mut files = version1_files(group);
        files.push((format!("cgroup/unified{group}/cpu.stat"), "usage_usec 1\n"));
        let proc = format!("8:pids:{group}\n4:memory:{group}\n3:blkio:{group}\n2:cpu,cpuacct:{group}\n0::{group}\n");
        let mounts = format!("{VERSION1}41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n");
        assert_eq!(machine(&files, &proc).figures(&mounts), ALL);
    }

    fn version2_files(group: &str) -> Vec<(String, &'static str)> {
        [
            (
                format!("cgroup{group}/cpu.stat"),
                "usage_usec 504503\nuser_usec 250000\nsystem_usec 254503\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
            ),
            (format!("cgroup{group}/memory.current"), "212992\n"),
            (format!("cgroup{group}/pids.current"), "5\n"),
            (
                format!("cgroup{group}/memory.stat"),
                "anon 106496\nfile 106496\nkernel_stack 16384\ninactive_anon 98304\nactive_anon 8192\ninactive_file 106496\nactive_file 0\n",
            ),
            (
                format!("cgroup{group}/io.stat"),
                "254:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=77 dios=1\n254:16 rbytes=8192 wbytes=0 rios=2 wios=0 dbytes=0 dios=0\n259:0\n",
            ),
            ("proc/42/net/dev".to_owned(), NET_DEV),
        ]
        .into()
    }

    #[test]
    fn version_2_with_either_driver() {
        for group in ["/system.slice/docker-c0ba.scope", "/docker/c0ba"] {
            assert_eq!(machine(&version2_files(group), &format!("0::{group}\n")).figures(VERSION2), ALL, "{group}");
        }
    }

    #[test]
    fn a_bind_mounted_part_of_the_hierarchy_is_enough() {
        let files: Vec<_> = version2_files("/c0ba");
        let mounts = VERSION2.replace(" / /sys", " /docker /sys");
        assert_eq!(machine(&files, "0::/docker/c0ba\n").figures(&mounts), ALL);
        assert!(machine(&files, "0::/elsewhere/c0ba\n").open(&mounts, true).is_err());
    }

    #[test]
    fn a_cgroup_that_is_not_visible_is_refused_so_that_the_engine_is_asked() {
        let files = version2_files("/c0ba");
        assert!(machine(&files, "0::/../c0ba\n").open(VERSION2, true).is_err(), "another cgroup namespace");
        assert!(machine(&files, "0::/c0ba\n").open("", true).is_err(), "no cgroup mount");
        assert!(Machine::new(&[]).open(VERSION2, true).is_err(), "another process namespace");
    }

    #[test]
    fn a_controller_that_is_off_costs_only_its_own_figures() {
        let files: Vec<_> = version2_files("/c0ba")
            .into_iter()
            .filter(|(path, _)| !path.contains("memory") && !path.contains("io.stat"))
            .collect();
        assert_eq!(
            machine(&files, "0::/c0ba\n").figures(VERSION2),
            Figures { memory: None, read: None, written: None, ..ALL }
        );
    }

    #[test]
    fn traffic_of_a_shared_network_namespace_is_nobodys() {
        let machine = machine(&version2_files("/c0ba"), "0::/c0ba\n");
        let figures = machine.open(VERSION2, false).unwrap().read(&mut Page::new()).unwrap();
        assert_eq!(figures, Figures { received: None, sent: None, ..ALL });
    }
}
