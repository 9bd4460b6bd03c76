//! How far Kafka has confirmed the log, kept so that the next start does not send all of it again.

use std::time::{Duration, Instant};

use spool::SpoolError;

use crate::complaint::Complaint;
use crate::log::Log;

/// It is noted this often: after a crash of the bridge, what was confirmed since is sent twice.
const NOTE: Duration = Duration::from_millis(10);
/// It is made durable this often: after a power cut, what was confirmed since is sent twice. On a slow disk it is done less
/// often, so that this takes no more than a fifth of the time.
const SAVE: Duration = Duration::from_secs(1);

/// What is to be kept of Kafka's confirmations.
pub(super) struct Bookmark {
    note_at: Instant,
    save_at: Instant,
    unnoted: bool,
    unsaved: bool,
    complaint: Complaint,
}

impl Bookmark {
    pub(super) fn new(now: Instant) -> Self {
        Self { note_at: now, save_at: now, unnoted: false, unsaved: false, complaint: Complaint::default() }
    }

    /// Kafka has confirmed more.
    pub(super) fn moves(&mut self) {
        (self.unnoted, self.unsaved) = (true, true);
    }

    /// Keeps what is due.
    pub(super) fn keep(&mut self, log: &Log) {
        let now = Instant::now();
        if self.unsaved && now >= self.save_at {
            self.save(log);
        } else if self.unnoted && now >= self.note_at {
            self.note_at = now + NOTE;
            let noted = log.spool().note_acknowledged();
            self.unnoted = !self.is_kept(noted);
        }
    }

    /// Makes it durable.
    pub(super) fn save(&mut self, log: &Log) {
        let begun = Instant::now();
        let saved = log.spool().save_acknowledged();
        self.unsaved = !self.is_kept(saved);
        self.unnoted = self.unsaved;
        self.save_at = Instant::now() + SAVE.max(4 * begun.elapsed());
    }

    fn is_kept(&mut self, kept: Result<(), SpoolError>) -> bool {
        match &kept {
            Ok(()) => drop(self.complaint.is_over()),
            Err(error) if self.complaint.is_due() => {
                tracing::warn!("what Kafka has confirmed can't be saved, and may be sent twice: {error}");
            }
            Err(_) => {}
        }
        kept.is_ok()
    }
}
