//! Verifies an export: lines of events, with or without the hub that wrote them.

use std::io::BufRead;

use super::{Extent, Finding, Head, Report, Walk};
use crate::audit::ocsf::{self, EventError};

/// Longest line.
const LINE: u64 = 16 * 1024 * 1024;

/// Walks the lines of `input`, and says whether `certificates`, each with a name for messages and the SHA-256 of its
/// DER, were logged.
///
/// # Errors
/// When the input can't be read.
pub fn export(
    mut input: impl BufRead,
    extent: Extent,
    heads: &[Head],
    certificates: &[(String, String)],
) -> std::io::Result<Report> {
    let mut walk = Walk::new(extent, heads);
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        if std::io::Read::take(&mut input, LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let place = || format!("line {number}");
        let Ok(text) = std::str::from_utf8(&line) else {
            walk.unreadable(place(), "it is not UTF-8".into());
            continue;
        };
        match ocsf::entry(text) {
            Ok(link) => walk.entry(&link),
            Err(EventError::Differs(link)) => {
                walk.found(Finding::Differs { id: link.id });
                walk.entry(&link);
            }
            Err(error @ EventError::Malformed(_)) => walk.unreadable(place(), crate::rows::chain(&error)),
        }
        if line.last() != Some(&b'\n') {
            walk.unreadable(place(), "it breaks off".into());
        }
    }
    for (name, sha256) in certificates {
        walk.certificate(name, sha256);
    }
    Ok(walk.finish(None))
}
