//! The computation in an enrollment, beside the two operations on the curve that no enrollment can do without.

use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use pki::{Authority, PrivateKey, verify_request};
use protocol::{NodeId, NodeKind, Timestamp};
use rustix::time::{ClockId, clock_gettime};

use crate::core;

/// Certificates a second of this core: the request read, its proof of possession verified, the certificate built and
/// signed.
pub(crate) fn issued_per_second(spend: Duration) -> Result<f64> {
    let now = Timestamp::from(SystemTime::now());
    let day = Duration::from_secs(86_400);
    let root = Authority::create_root(now, day * 3650)?;
    let tenant = root.issue_tenant_intermediate(&"bench".parse()?, now, day * 365)?;
    let requests =
        (0..64).map(|_| PrivateKey::generate()?.certificate_request()).collect::<Result<Vec<_>, pki::KeyError>>()?;
    core::there(|| {
        let (began, mut issued) = (processor_time()?, 0);
        loop {
            for request in &requests {
                let key = verify_request(request)?;
                let certificate =
                    tenant.issue_node(&key, NodeId::new(now, rand::random()), NodeKind::Agent, now, day * 7)?;
                ensure!(!std::hint::black_box(certificate).is_empty(), "an empty certificate");
                issued += 1;
            }
            let spent = processor_time()?.saturating_sub(began);
            if spent >= spend {
                return Ok(f64::from(issued) / spent.as_secs_f64());
            }
        }
    })
}

/// Pairs of one verification and one signature on P-256 that OpenSSL does in a second of this core.
pub(crate) fn floor() -> Result<f64> {
    let printed = core::printed(Command::new("openssl").args(["speed", "-seconds", "2", "ecdsap256"]))?;
    let line = printed.lines().find(|line| line.contains("nistp256")).context("openssl speed shows no nistp256")?;
    let mut figures = line.split_ascii_whitespace().rev().map(str::parse::<f64>);
    let mut next = || figures.next().context("openssl speed shows no rates")?.context("openssl speed shows no rates");
    let (verifications, signatures) = (next()?, next()?);
    Ok(1.0 / (1.0 / verifications + 1.0 / signatures))
}

fn processor_time() -> Result<Duration> {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).context("reading the processor time")
}
