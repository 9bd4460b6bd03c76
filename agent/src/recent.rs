//! The last lines of the agent's own log, kept in memory for diagnostics.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes kept; the oldest give way.
const KEPT: usize = 16 * 1024;

/// Keeps what is logged to it, and passes it on to standard error. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<VecDeque<u8>>>);

impl Recent {
    /// What was logged last, from the begin of a line.
    pub fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        let cut =
            if bytes.len() < KEPT { 0 } else { bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1) };
        String::from_utf8_lossy(bytes.get(cut..).unwrap_or_default()).into_owned()
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes.get(bytes.len().saturating_sub(KEPT)..).unwrap_or_default());
        let over = kept.len().saturating_sub(KEPT);
        kept.drain(..over);
    }
}

impl Write for Recent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.keep(bytes);
        io::stderr().write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Recent {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_whole() {
        let recent = Recent::default();
        recent.keep(b"first\n");
        assert_eq!(recent.text(), "first\n");
        for number in 0..2_000 {
            recent.keep(format!("line {number}\n").as_bytes());
        }
        let text = recent.text();
        assert!(text.len() <= KEPT && text.starts_with("line ") && text.ends_with("line 1999\n"), "{text}");
    }
}
