//! A bridge as a process of the test, and what it needs of the machine.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::mosquitto::Mosquitto;

/// Long enough for a busy machine; nothing waits this long when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Waits until `what` gives something.
pub(crate) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(begun.elapsed() < SOON, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The files of a folder whose names end so, sorted.
pub(crate) fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    paths.sort();
    paths
}

/// A child process that does not outlive its handle.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{:?} can't be started: {error}", command.get_program())))
    }

    pub(crate) fn terminate(&mut self) {
        self.signal("TERM");
        assert!(self.0.wait().is_ok());
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The bridge under test.
pub(crate) struct Bridge {
    folder: TempDir,
    /// What is configured of the connection to Mosquitto beside its address.
    mqtt: String,
    process: Option<Process>,
}

impl Bridge {
    pub(crate) fn start(mosquitto: &Mosquitto, brokers: &str, routes: &str) -> Self {
        Self::with(mosquitto, brokers, routes, "")
    }

    pub(crate) fn with(mosquitto: &Mosquitto, brokers: &str, routes: &str, more: &str) -> Self {
        let mut bridge = Self::prepare(mosquitto, brokers, routes, more);
        bridge.start_again();
        bridge
    }

    /// One whose connection is configured so.
    pub(crate) fn with_mqtt(mqtt: &str, mosquitto: &Mosquitto, brokers: &str, routes: &str) -> Self {
        let mut bridge = Self::prepare(mosquitto, brokers, routes, "");
        bridge.mqtt = mqtt.to_owned();
        bridge.configure(mosquitto, brokers, routes, "");
        bridge.start_again();
        bridge
    }

    /// One that is configured, and not started yet.
    pub(crate) fn prepare(mosquitto: &Mosquitto, brokers: &str, routes: &str, more: &str) -> Self {
        let bridge = Self { folder: tempfile::tempdir().unwrap(), mqtt: String::new(), process: None };
        bridge.configure(mosquitto, brokers, routes, more);
        bridge
    }

    /// A file of its state.
    pub(crate) fn state(&self, name: &str) -> String {
        std::fs::read_to_string(self.state_dir().join(name)).unwrap_or_default()
    }

    /// Writes its configuration anew.
    pub(crate) fn configure(&self, mosquitto: &Mosquitto, brokers: &str, routes: &str, more: &str) {
        let brokers = brokers.split(',').map(|broker| format!("{broker:?}")).collect::<Vec<_>>().join(",");
        let config = format!(
            "name = \"test\"\n{more}\n[[mqtt]]\nname = \"plant\"\naddress = \"127.0.0.1:{}\"\n{}\n[kafka]\nbrokers = [{brokers}]\n{routes}",
            mosquitto.port(),
            self.mqtt
        );
        std::fs::write(self.folder.path().join("bridge.toml"), config).unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.process = Some(Process::start(self.command().arg("run"), &self.log_file()));
    }

    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Has it read its configuration again.
    pub(crate) fn reload(&self) {
        self.process.as_ref().unwrap().signal("HUP");
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self) {
        self.process.take().unwrap().terminate();
    }

    /// Waits until its log on disk has this in it.
    pub(crate) fn stored(&self, text: &str) {
        self.stored_in("log", text);
    }

    /// Waits until a log of its state has this in it.
    pub(crate) fn stored_in(&self, log: &str, text: &str) {
        until("a message on disk", || {
            files(&self.state_dir().join(log), ".seg")
                .iter()
                .filter_map(|file| std::fs::read(file).ok())
                .find(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
        });
    }

    /// What it says when it refuses.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    /// Its disk is gone, and another is there.
    pub(crate) fn lose_disk(&self) {
        std::fs::remove_dir_all(self.state_dir()).unwrap();
    }

    /// How often it said so.
    pub(crate) fn times(&self, what: &str) -> usize {
        self.log().matches(what).count()
    }

    /// Waits until it has subscribed for the `count`th time.
    pub(crate) fn subscribed(&self, count: usize) {
        until("the subscription", || (self.log().matches(" subscribed").count() >= count).then_some(()));
    }

    /// Waits until it says so.
    pub(crate) fn said(&self, what: &str) {
        until(what, || self.log().contains(what).then_some(()));
    }

    /// Waits until it has said so for the `count`th time.
    pub(crate) fn said_again(&self, what: &str, count: usize) {
        until(what, || (self.log().matches(what).count() >= count).then_some(()));
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> (String, bool) {
        let output = self.command().args(arguments).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.is_empty() || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (said, output.status.success())
    }

    pub(crate) fn audit(&self, topics: &[&str]) -> (String, bool) {
        self.ask(&[&["audit"], topics].concat())
    }

    pub(crate) fn dead_letters(&self) -> String {
        self.ask(&["log", "dump", "--dead-letters"]).0
    }

    /// Waits for a dead letter of the topic, and gives the number in its payload. The bridge is started anew.
    pub(crate) fn dead_letter_of(&mut self, topic: &str) -> u64 {
        self.said("refuses it");
        self.stop();
        let letters = self.dead_letters();
        let line = letters.lines().find(|line| line.contains(topic)).unwrap_or_else(|| panic!("{letters}"));
        let payload = line.split('"').nth(1).unwrap().parse().unwrap();
        self.start_again();
        payload
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyperfactory-bridge"));
        command.arg("--config").arg(self.folder.path().join("bridge.toml"));
        command.arg("--state-dir").arg(self.state_dir());
        command
    }

    /// Where it keeps its state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            #[expect(clippy::print_stderr, reason = "a failed test shows what its programs said")]
            {
                eprintln!("--- the bridge said:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
        }
    }
}

/// A disk small enough to be filled, in place of a folder; needs root.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn over(folder: PathBuf, kibibytes: u32) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let size = format!("size={kibibytes}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).status().unwrap();
        assert!(mounted.success(), "mounting a disk needs root: run the tests by ./test, which asks sudo");
        Self(folder)
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.0.join("filler")).unwrap();
        while filler.write(&[1; 4096]).is_ok() {}
    }

    /// Gives that room back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
