//! The hub under a service manager: what it says on the notification socket, and what makes it fall silent.

use std::os::unix::net::UnixDatagram;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Hub, SOON};
use store::Database;

/// More messages than any of these takes: what is wanted will not come.
const MANY: usize = 40;

/// A service manager's end of NOTIFY_SOCKET.
struct Manager(UnixDatagram);

impl Manager {
    /// Reads on until a message has a line that starts with `wanted`; gives all messages up to it.
    fn until(&self, wanted: &str) -> Result<Vec<String>> {
        let mut read = Vec::new();
        loop {
            ensure!(read.len() < MANY, "no {wanted} among {read:?}");
            let mut message = [0; 4096];
            let length = self.0.recv(&mut message).with_context(|| format!("no {wanted} after {read:?}"))?;
            read.push(String::from_utf8(message[..length].to_vec())?);
            if read.last().is_some_and(|message| message.lines().any(|line| line.starts_with(wanted))) {
                return Ok(read);
            }
        }
    }
}

#[tokio::test]
async fn the_watchdog_is_fed_while_the_hub_works_and_starves_when_its_database_takes_no_writes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&path)?);
    manager.0.set_read_timeout(Some(SOON))?;
    let builder = Hub::builder().variable("NOTIFY_SOCKET", path.display().to_string());
    let mut hub = builder.variable("WATCHDOG_USEC", "2000000").start()?;
    let first = manager.until("READY=1")?;
    ensure!(!first.concat().contains("WATCHDOG"), "fed before it was ready: {first:?}");
    manager.until("WATCHDOG=1")?;
    manager.until("WATCHDOG=1")?;

    // Somebody else holds the one writer's lock, as a part of the hub that hangs would.
    let database = Database::open(&format!("sqlite://{}", hub.state_dir().join("hub.db").display())).await?;
    let lock = database.begin_write().await?;
    manager.until("STATUS=")?;
    let silent = manager.until("STATUS=")?;
    ensure!(!silent.concat().contains("WATCHDOG"), "fed meanwhile: {silent:?}");
    lock.rollback().await?;
    manager.until("WATCHDOG=1")?;
    database.close().await;

    ensure!(hub.stop()?.success());
    manager.until("STOPPING=1")?;
    Ok(())
}
