//! A host of its own on the network: a namespace joined to this machine by a cable that can be pulled.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::finish;

/// A network namespace with one veth pair to the machine; needs root; gone when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    outside_link: String,
    outside: Ipv4Addr,
    inside: Ipv4Addr,
}

/// The cable's end inside the namespace.
const INSIDE_LINK: &str = "uplink";

impl Netns {
    /// Makes a namespace with its cable plugged in.
    pub fn create() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("network namespaces need root: run the tests by ./test, which asks sudo");
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Unique on the machine while this process lives; a network of four addresses each, from 10.128.0.0/10,
        // where process ids repeat only after as many networks as there are.
        let unique = std::process::id().wrapping_mul(16).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed) % 16);
        let network = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + (unique % (1 << 20)) * 4;
        let netns = Self {
            name: format!("hf-{unique:x}"),
            outside_link: format!("hf{unique:x}"),
            outside: Ipv4Addr::from(network + 1),
            inside: Ipv4Addr::from(network + 2),
        };
        let Self { name, outside_link, outside, inside } = &netns;
        ip(&format!("netns add {name}"))?;
        // The ends know each other and speak no IPv6, so that nothing goes over the cable but what is sent.
        let (mac, peer) = (format!("02:00:{}", mac(*outside)), format!("02:01:{}", mac(*inside)));
        ip(&format!(
            "link add {outside_link} address {mac} type veth peer name {INSIDE_LINK} address {peer} netns {name}"
        ))?;
        for (namespace, link, own, other, other_mac) in [
            (String::new(), outside_link.as_str(), outside, inside, &peer),
            (format!("-n {name} "), INSIDE_LINK, inside, outside, &mac),
        ] {
            ip(&format!("{namespace}link set {link} addrgenmode none"))?;
            ip(&format!("{namespace}addr add {own}/30 dev {link}"))?;
            ip(&format!("{namespace}link set {link} up"))?;
            ip(&format!("{namespace}neigh add {other} lladdr {other_mac} dev {link} nud permanent"))?;
        }
        ip(&format!("-n {name} link set lo up"))?;
        Ok(netns)
    }

    /// The machine's address as seen from inside: what a hub outside listens on.
    pub fn outside(&self) -> Ipv4Addr {
        self.outside
    }

    /// The namespace's own address.
    pub fn inside(&self) -> Ipv4Addr {
        self.inside
    }

    /// A command that runs `program` inside; its process id is the program's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command(Some(&self.name), program)
    }

    /// A way in for a thread of this process.
    pub fn open(&self) -> Result<NetnsDoor> {
        let path = format!("/run/netns/{}", self.name);
        Ok(NetnsDoor(std::fs::File::open(&path).with_context(|| format!("opening {path}"))?))
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pulls the cable.
    pub fn cut(&self) -> Result<()> {
        ip(&format!("link set {} down", self.outside_link))
    }

    /// Plugs the cable in again.
    pub fn mend(&self) -> Result<()> {
        ip(&format!("link set {} up", self.outside_link))
    }

    /// Bytes that went over the cable since it was made: (out of the namespace, into it), Ethernet headers included.
    pub fn traffic(&self) -> Result<(u64, u64)> {
        Ok((self.counter("rx_bytes")?, self.counter("tx_bytes")?))
    }

    /// Packets in the same order.
    pub fn packets(&self) -> Result<(u64, u64)> {
        Ok((self.counter("rx_packets")?, self.counter("tx_packets")?))
    }

    fn counter(&self, name: &str) -> Result<u64> {
        let path = format!("/sys/class/net/{}/statistics/{name}", self.outside_link);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        text.trim().parse().with_context(|| format!("reading {path}"))
    }
}

/// A way into a namespace; see [`Netns::open`].
#[derive(Debug)]
pub struct NetnsDoor(std::fs::File);

impl NetnsDoor {
    /// What the calling thread does on the network from now on happens inside.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).context("entering a namespace")
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The link goes with either end; the namespace once nothing runs in it.
        let _ = ip(&format!("link del {}", self.outside_link));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// A command that runs `program` inside the namespace of that name, or outside of any.
pub(super) fn command(netns: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    let Some(name) = netns else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]).arg(program);
    command
}

fn ip(arguments: &str) -> Result<()> {
    finish(Command::new("ip").args(arguments.split_ascii_whitespace())).map(drop)
}

/// The end of a hardware address, from one of IP.
fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::rig::{SOON, until};

    #[test]
    fn a_cut_cable_carries_nothing_and_a_mended_one_does() -> Result<()> {
        let netns = Netns::create()?;
        let machine = netns.outside().to_string();
        let answers = || -> Result<bool> {
            let mut ping = netns.command("busybox");
            Ok(ping.args(["ping", "-c1", "-W2", &machine]).stdout(Stdio::null()).status()?.success())
        };
        assert!(answers()?, "the machine does not answer");
        netns.cut()?;
        assert!(!answers()?, "the cut cable still carries");
        netns.mend()?;
        // The other end hears of it a moment later.
        until("an answer over the mended cable", SOON, || Ok(answers()?.then_some(())))?;
        let (out, into) = netns.traffic()?;
        assert!(out > 0 && into > 0, "no traffic counted");
        Ok(())
    }

    #[test]
    fn a_dropped_namespace_is_gone() -> Result<()> {
        let netns = Netns::create()?;
        let (name, link) = (netns.name.clone(), netns.outside_link.clone());
        drop(netns);
        assert!(ip(&format!("-n {name} link")).is_err());
        assert!(ip(&format!("link show {link}")).is_err());
        Ok(())
    }
}
