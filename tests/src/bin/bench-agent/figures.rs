//! From what was measured to what is reported.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::{Agent, Api, Netns, Usage};

use crate::peers::Scraped;
use crate::stored::Stored;

/// Everything that was measured.
pub(crate) struct Figures {
    /// How long the three ran side by side under measurement.
    pub(crate) elapsed: Duration,
    pub(crate) agent: Span,
    pub(crate) node_exporter: Span,
    pub(crate) netdata: Span,
    pub(crate) engine_without: Rate,
    pub(crate) engine_with: Rate,
    pub(crate) wire: OnTheWire,
    pub(crate) small_wire: OnTheWire,
    pub(crate) scraped: Scraped,
    pub(crate) stored: Stored,
    pub(crate) seen_after: Vec<Duration>,
}

/// One program before and after.
pub(crate) struct Span(pub(crate) Usage, pub(crate) Usage);

impl Span {
    fn cpu(&self) -> Duration {
        self.1.cpu.saturating_sub(self.0.cpu)
    }

    fn rss_mb(&self) -> f64 {
        self.1.rss_kib as f64 * 1024.0 / 1e6
    }
}

/// A month of 30 days.
const MONTH: f64 = 30.0 * 86_400.0;

impl Figures {
    pub(crate) fn add_to(&self, report: &mut Report) -> Result<()> {
        let peers = [("prometheus-node-exporter", &self.node_exporter), ("netdata", &self.netdata)];
        for (peer, span) in peers {
            report.beside("resident memory", "MB", self.agent.rss_mb(), peer, span.rss_mb(), Target::AtMost(8.0));
        }
        // 0.05 % of a core.
        let per_hour = |span: &Span| span.cpu().as_secs_f64() / self.elapsed.as_secs_f64() * 3600.0;
        for (peer, span) in peers {
            let target = Target::AtMost(0.0005 * 3600.0);
            report.beside("processor time", "s/h", per_hour(&self.agent), peer, per_hour(span), target);
        }
        let caused = self.engine_with.per_hour - self.engine_without.per_hour;
        let noise = self.engine_without.noise.hypot(self.engine_with.noise);
        report.figure("processor time caused in the engine", "s/h", caused, Target::AtMost(noise));
        report.figure("  of it with the agent", "s/h", self.engine_with.per_hour, Target::Less);
        report.figure("  of it without", "s/h", self.engine_without.per_hour, Target::Less);

        let hourly = |bytes: u64| bytes as f64 / self.elapsed.as_secs_f64() * 3600.0 / 1000.0;
        for (peer, bytes) in [(peers[0].0, self.scraped.node_exporter), (peers[1].0, self.scraped.netdata)] {
            report.beside("on the wire", "kB/h", hourly(self.wire.bytes), peer, hourly(bytes), Target::Less);
        }
        report.figure("packets on the wire", "1/h", hourly(self.wire.packets) * 1000.0, Target::Less);
        let month = self.small_wire.bytes as f64 / self.small_wire.elapsed.as_secs_f64() * MONTH / 1e6;
        report.figure("on the wire, 8 services every 15 s", "MB/month", month, Target::AtMost(30.0));
        report.figure("series", "", self.stored.series as f64, Target::More);
        let encoded = self.stored.bytes as f64 / self.stored.samples as f64;
        report.figure("encoded", "bytes/sample", encoded, Target::AtMost(1.0));
        let slowest = self.seen_after.iter().max().context("nothing was killed")?.as_secs_f64();
        report.figure("`compose kill` called to seen on the hub, slowest", "s", slowest, Target::AtMost(2.0));
        Ok(())
    }
}

/// The cable counts each packet's Ethernet header; what a provider counts begins with IP.
const ETHERNET: u64 = 14;

/// What went over the cable between agent and hub: IP, UDP, and all that QUIC needs for itself.
pub(crate) struct OnTheWire {
    bytes: u64,
    packets: u64,
    elapsed: Duration,
}

/// The cable's counters at one moment.
pub(crate) struct Mark {
    at: Instant,
    bytes: u64,
    packets: u64,
    sessions: String,
}

impl Mark {
    pub(crate) fn set(netns: &Netns, agent: &Agent) -> Result<Self> {
        let ((out, into), (sent, received)) = (netns.traffic()?, netns.packets()?);
        let packets = sent + received;
        let bytes = out + into - packets * ETHERNET;
        Ok(Self { at: Instant::now(), bytes, packets, sessions: sessions(agent)? })
    }

    /// What went over it since; fails when the session was lost on the way, as then it was not the steady state.
    pub(crate) fn since(self, netns: &Netns, agent: &Agent) -> Result<OnTheWire> {
        let now = Self::set(netns, agent)?;
        anyhow::ensure!(now.sessions == self.sessions, "the agent lost its session while it was measured");
        Ok(OnTheWire {
            bytes: now.bytes - self.bytes,
            packets: now.packets - self.packets,
            elapsed: now.at.duration_since(self.at),
        })
    }
}

fn sessions(agent: &Agent) -> Result<String> {
    let metrics = Api::new(agent.endpoints()?.health).get("/metrics")?.ok()?;
    let text = metrics.as_str().context("the agent's metrics are no text")?;
    let line = text.lines().find(|line| line.starts_with("hyperfactory_sessions_total"));
    line.map(str::to_owned).context("the agent counts no sessions")
}

/// Processor time per hour, and how far off that may be.
pub(crate) struct Rate {
    pub(crate) per_hour: f64,
    /// Twice the standard error, from the differences between parts of the measurement.
    pub(crate) noise: f64,
}

impl Rate {
    /// Looks at a counter of processor time for `length`.
    pub(crate) fn measure(length: Duration, counter: impl Fn() -> Result<Duration>) -> Result<Self> {
        const PARTS: u32 = 8;
        let mut rates = Vec::new();
        let mut last = (Instant::now(), counter()?);
        for _ in 0..PARTS {
            std::thread::sleep(length / PARTS);
            let now = (Instant::now(), counter()?);
            let spent = now.1.saturating_sub(last.1).as_secs_f64();
            rates.push(spent / now.0.duration_since(last.0).as_secs_f64() * 3600.0);
            last = now;
        }
        let count = f64::from(PARTS);
        let per_hour = rates.iter().sum::<f64>() / count;
        let variance = rates.iter().map(|rate| (rate - per_hour).powi(2)).sum::<f64>() / (count - 1.0);
        Ok(Self { per_hour, noise: 2.0 * (variance / count).sqrt() })
    }
}
