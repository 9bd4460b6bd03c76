//! No room left, on either side.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hyperfactory_tests::rig::{Agent, Hub, Netns, SOON, SmallDisk, until};

use super::{FAILED, agent, assert_ended, coverage, delivers, has_all, running, through};

/// Long enough for a spool's reserve to be used up on a slow machine.
const FILLED: Duration = Duration::from_secs(180);

fn number(agent: &Agent, key: &str) -> Result<u64> {
    agent.status()?[key].as_u64().context("no number")
}

/// Many cables that carry what nobody can foresee make large batches: each end is three series.
struct Cables {
    stop: Arc<AtomicBool>,
    talking: Option<JoinHandle<Result<()>>>,
}

impl Cables {
    const COUNT: u32 = 800;

    fn lay(netns: &Netns) -> Result<Self> {
        let mut lines = String::new();
        for cable in 0..Self::COUNT {
            let to = Self::address(cable);
            lines += &format!(
                "link add one{cable} mtu 9000 type veth peer name other{cable} mtu 9000\n\
                 link set one{cable} up\nlink set other{cable} up\n\
                 route add {to} dev one{cable}\n\
                 neigh add {to} lladdr 02:02:00:00:00:00 dev one{cable} nud permanent\n"
            );
        }
        let mut ip = netns.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
        std::io::Write::write_all(&mut ip.stdin.take().context("no input")?, lines.as_bytes())?;
        ensure!(ip.wait()?.success(), "ip -batch failed");
        let stop = Arc::new(AtomicBool::new(false));
        let (inside, stopped) = (netns.open()?, Arc::clone(&stop));
        let talking = std::thread::spawn(move || {
            inside.enter()?;
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let words = vec![0; 8900];
            while !stopped.load(Ordering::Relaxed) {
                for cable in 0..Self::COUNT {
                    socket.send_to(&words[..rand::random_range(0..words.len())], (Self::address(cable), 9))?;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        });
        Ok(Self { stop, talking: Some(talking) })
    }

    fn address(cable: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 0, 1)) + cable)
    }

    /// Silences them; fails if they were not talking till now.
    fn silence(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.talking.take().map_or(Ok(()), |talking| talking.join().map_err(|_| anyhow!("the talker panicked"))?)
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        let _ = self.silence();
    }
}

#[test]
fn an_agent_on_a_full_disk_says_so_names_what_is_lost_and_recovers_by_itself() -> Result<()> {
    let netns = Netns::create()?;
    let mut cables = Cables::lay(&netns)?;
    let mut hub = Hub::builder().at(netns.outside()).start()?;
    hub.tenant("acme")?;
    let agent = agent()?.inside(&netns).set("interval", "100ms").set("spool-size", "1MiB");
    let disk = SmallDisk::over(agent.state_dir(), 8 * 1024)?;
    let (agent, node) = running(&hub, agent, "acme")?;

    hub.kill()?;
    disk.fill()?;
    until("the reserve to be used up and batches to be lost", FILLED, || {
        ensure!(number(&agent, "batches_lost")? > 0, "{}", agent.status()?);
        Ok(Some(()))
    })?;
    cables.silence()?;
    let status = agent.status()?;
    let trouble = status["spool_trouble"].as_str().context("the full disk is no trouble")?;
    assert!(trouble.contains("is full") && trouble.contains("free some space"), "{trouble}");
    assert_ended(&agent.command(&["check"])?, FAILED, &["check the disk's free space"]);

    disk.free()?;
    until("the agent to write again", SOON, || {
        let status = agent.status()?;
        ensure!(status["spool_trouble"].is_null(), "{status}");
        Ok(Some(()))
    })?;
    hub.restart()?;
    delivers(&hub, &node)?;
    let coverage = has_all(&hub, &agent, &node)?;
    let lost = coverage["lost_ranges"].as_array().context("no ranges")?;
    assert!(!lost.is_empty() && lost.iter().all(|range| range["reason"] == "disk_full"), "{coverage}");
    assert_eq!(coverage["lost"], agent.status()?["batches_lost"]);
    Ok(())
}

#[test]
fn an_agent_starts_on_a_full_disk_and_delivers() -> Result<()> {
    let hub = Hub::start()?;
    hub.tenant("acme")?;
    let agent = agent()?.set("spool-size", "1MiB");
    let disk = SmallDisk::over(agent.state_dir(), 8 * 1024)?;
    let (mut agent, node) = running(&hub, agent, "acme")?;
    agent.kill()?;
    disk.fill()?;
    agent.launch()?;
    delivers(&hub, &node)?;
    agent.process()?.check()?;
    assert!(agent.stop()?.success());
    Ok(())
}

/// A hub whose database has a disk of its own, and an agent that reports to it.
fn hub_on(disk: &SmallDisk) -> Result<(Hub, Agent, String)> {
    let database = format!("sqlite://{}", disk.path().join("hub.db").display());
    let hub = Hub::builder().set("database", database).start()?;
    hub.tenant("acme")?;
    let (agent, node) = running(&hub, agent()?.set("interval", "100ms"), "acme")?;
    Ok((hub, agent, node))
}

/// Fills the disk, waits until batches wait at the agent, and gives how many are stored.
fn fill(disk: &SmallDisk, hub: &mut Hub, agent: &Agent, node: &str) -> Result<u64> {
    disk.fill()?;
    until("the hub to say that its disk is full", SOON, || {
        let log = hub.process()?.log();
        ensure!(log.contains("the database has no room left: free space on its disk"), "it says nothing of it");
        Ok(Some(()))
    })?;
    until("batches to wait", SOON, || {
        let pending = number(agent, "batches_pending")?;
        ensure!(pending > 20, "{pending} batches");
        Ok(Some(()))
    })?;
    through(hub, node)
}

#[test]
fn a_hub_on_a_full_disk_stays_up_acknowledges_nothing_and_goes_on_when_there_is_room() -> Result<()> {
    let disk = SmallDisk::create(16 * 1024)?;
    let (mut hub, agent, node) = hub_on(&disk)?;
    let stored = fill(&disk, &mut hub, &agent, &node)?;
    hub.process()?.check()?;
    assert_eq!(hub.api().get("/healthz")?.status, 200);
    let refused = hub.api().post("/api/v1/tokens", &serde_json::json!({ "tenant": "acme" }))?;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body["detail"].as_str().is_some_and(|said| said.contains("free space")), "{}", refused.body);
    // What the agent still holds begins where the hub's coverage ends.
    assert_eq!(through(&hub, &node)?, stored, "something was stored on a full disk");

    disk.free()?;
    delivers(&hub, &node)?;
    let coverage = has_all(&hub, &agent, &node)?;
    assert_eq!(coverage["lost"], 0, "{coverage}");
    hub.join_token("acme")?;
    Ok(())
}

#[test]
fn a_hub_killed_on_a_full_disk_starts_on_it_and_has_lost_nothing() -> Result<()> {
    let disk = SmallDisk::create(16 * 1024)?;
    let (mut hub, agent, node) = hub_on(&disk)?;
    let stored = fill(&disk, &mut hub, &agent, &node)?;
    hub.kill()?;
    hub.restart()?;
    assert_eq!(through(&hub, &node)?, stored);

    disk.free()?;
    assert!(delivers(&hub, &node)? > stored + 20);
    let coverage = has_all(&hub, &agent, &node)?;
    assert_eq!(coverage["lost"], 0, "{coverage}");
    Ok(())
}

/// Where logs go to a file on a disk that is full, what is said is lost, and nothing else.
#[test]
fn a_hub_that_can_not_write_its_log_works_on() -> Result<()> {
    let mut hub = Hub::start()?;
    hub.tenant("acme")?;
    let (mut agent, node) = running(&hub, agent()?, "acme")?;
    hub.stop()?;
    let log = hub.state_dir().join("rig.log");
    std::fs::remove_file(&log)?;
    std::os::unix::fs::symlink("/dev/full", &log)?;
    hub.restart()?;
    // A session's beginning, displacement and end are all logged.
    delivers(&hub, &node)?;
    agent.kill()?;
    agent.run()?;
    delivers(&hub, &node)?;
    assert_eq!(coverage(&hub, &node)?["lost"], 0);
    assert!(hub.stop()?.success());
    Ok(())
}
