//! Where each container's log was read to, on disk.
//!
//! The file is written before a batch is, and holds both what was before it and what is after: whether the spool has the
//! batch's number tells which of the two counts. So a kill at any moment, or a power cut, neither repeats a line that is
//! in the spool nor passes one over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use node::{FileError, file};
use protocol::{Sequence, SpoolEpoch};
use serde::{Deserialize, Serialize};

use crate::entry::Moment;

/// Largest file: some hundred bytes a container.
const LIMIT: u64 = 1024 * 1024;

/// Positions by the engine's ids of containers.
pub(super) type Positions = BTreeMap<String, Position>;

/// How far one container's log was read: each of its streams by itself, for the engine's times are in order within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) out: Option<Mark>,
    pub(super) error: Option<Mark>,
}

/// The last entry of a stream that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) at: Moment,
    /// Entries of that very moment that were taken.
    pub(super) count: u32,
}

impl Position {
    /// From when on the log is to be read again; `None`: nothing of it was taken.
    pub(super) fn from(&self) -> Option<Moment> {
        self.out.iter().chain(&self.error).map(|mark| mark.at).min()
    }

    pub(super) fn set(&mut self, error: bool, mark: Option<Mark>) {
        *(if error { &mut self.error } else { &mut self.out }) = mark;
    }
}

impl Mark {
    /// With one more entry taken.
    pub(super) fn next(mark: Option<Self>, at: Moment) -> Self {
        match mark {
            Some(mark) if mark.at == at => Self { at, count: mark.count.saturating_add(1) },
            _ => Self { at, count: 1 },
        }
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    began: Moment,
    services: Vec<String>,
}

/// What stands in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    /// What containers without a position wrote before is not shipped.
    began: Moment,
    /// What was chosen then.
    services: Vec<String>,
    epoch: u64,
    /// The batch that leads from one to the other.
    sequence: u64,
    before: Positions,
    after: Positions,
}

impl Journal {
    /// Opens the file, or begins one, for the spool whose epoch and last number are given.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub(super) fn open(
        path: PathBuf,
        (epoch, last): (SpoolEpoch, Sequence),
        services: &[String],
        now: Moment,
    ) -> Result<(Self, Positions), FileError> {
        let saved = file::read(&path, LIMIT)?.and_then(|bytes| {
            let read = serde_json::from_slice::<Saved>(&bytes);
            read.inspect_err(|error| {
                tracing::warn!(file = %path.display(), %error, "how far logs were shipped can't be read: they are shipped from now on");
            })
            .ok()
        });
        let (began, positions) = match saved {
            // What was not chosen before begins now.
            Some(saved) => {
                let began = if saved.services == services { saved.began } else { now };
                (began, saved.positions(epoch, last))
            }
            None => (now, Positions::new()),
        };
        let journal = Self { path, began, services: services.to_vec() };
        journal.next(&positions, &positions).write(&journal.path, epoch, last)?;
        Ok((journal, positions))
    }

    pub(super) fn began(&self) -> Moment {
        self.began
    }

    pub(super) fn file(&self) -> PathBuf {
        self.path.clone()
    }

    /// What to write for the next batch.
    pub(super) fn next(&self, before: &Positions, after: &Positions) -> Saved {
        let (began, services) = (self.began, self.services.clone());
        Saved { began, services, epoch: 0, sequence: 0, before: before.clone(), after: after.clone() }
    }
}

impl Saved {
    /// Writes it for the batch with this number. Blocks.
    pub(super) fn write(self, path: &Path, epoch: SpoolEpoch, sequence: Sequence) -> Result<(), FileError> {
        let saved = Self { epoch: epoch.0, sequence: sequence.0, ..self };
        // Nothing in it can't be written as JSON.
        file::replace(path, &serde_json::to_vec(&saved).unwrap_or_default())
    }

    /// With another spool, nobody knows what became of the batch: its lines are shipped again rather than not at all.
    fn positions(self, epoch: SpoolEpoch, last: Sequence) -> Positions {
        if self.epoch == epoch.0 && last.0 >= self.sequence { self.after } else { self.before }
    }
}

#[cfg(test)]
mod tests {
    use protocol::Timestamp;

    use super::*;

    fn moment(millis: i64) -> Moment {
        Moment::of(Timestamp::from_millis(millis))
    }

    fn at(millis: i64) -> Positions {
        let mark = Some(Mark { at: moment(millis), count: 1 });
        BTreeMap::from([("c".to_owned(), Position { out: mark, error: None })])
    }

    #[test]
    fn the_spool_says_which_of_two_positions_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("positions");
        let chosen = ["shop".to_owned()];
        let open = |epoch, last| Journal::open(path.clone(), (SpoolEpoch(epoch), Sequence(last)), &chosen, moment(5));
        let (journal, none) = open(7, 0).unwrap();
        assert!(none.is_empty() && journal.began() == moment(5));
        let write = || journal.next(&at(10), &at(20)).write(&path, SpoolEpoch(7), Sequence(4)).unwrap();
        for (epoch, last, expected) in [(7, 3, at(10)), (7, 4, at(20)), (7, 9, at(20)), (8, 9, at(10))] {
            write();
            assert_eq!(open(epoch, last).unwrap().1, expected, "epoch {epoch}, last {last}");
        }
    }

    #[test]
    fn what_is_chosen_anew_begins_now_and_what_was_read_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("positions");
        let spool = (SpoolEpoch(7), Sequence(4));
        let open = |services: &[String], now| Journal::open(path.clone(), spool, services, moment(now)).unwrap();
        let (journal, _) = open(&["shop".to_owned()], 5);
        journal.next(&at(10), &at(20)).write(&path, spool.0, spool.1).unwrap();
        let (journal, positions) = open(&["shop".to_owned()], 90);
        assert_eq!((journal.began(), positions), (moment(5), at(20)));
        let (journal, positions) = open(&["*".to_owned()], 90);
        assert_eq!((journal.began(), positions), (moment(90), at(20)));
    }
}
