//! Where each container's log was read to, on disk.
//!
//! The file is written before a batch is, and holds both what was before it and what is after: whether the spool has the
//! batch's number tells which of the two counts. So a kill at any moment, or a power cut, neither repeats a line that is
//! in the spool nor passes one over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use node::{FileError, file};
use protocol::{Sequence, SpoolEpoch};
use serde::{Deserialize, Serialize};

use crate::config::includes;
use crate::container::Key;
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
    chosen: Chosen,
}

/// Since when services are chosen, by what chooses them.
type Chosen = BTreeMap<String, Moment>;

/// What stands in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    /// What containers without a position wrote before is not shipped.
    #[serde(default)]
    chosen: Chosen,
    /// As earlier releases wrote that: one time, for these services.
    #[serde(default, skip_serializing)]
    began: Option<Moment>,
    #[serde(default, skip_serializing)]
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
        let (before, positions) = match saved {
            Some(mut saved) => (saved.chosen(), saved.positions(epoch, last)),
            None => (Chosen::new(), Positions::new()),
        };
        // What was not chosen before begins now.
        let mut chosen: Chosen =
            services.iter().map(|choice| (choice.clone(), since(&before, choice).unwrap_or(now))).collect();
        // What was chosen by another name that is part of one of these goes on.
        for (choice, began) in before {
            if services.iter().any(|wider| includes(wider, &choice)) {
                chosen.entry(choice).or_insert(began);
            }
        }
        let journal = Self { path, chosen };
        journal.next(&positions, &positions).write(&journal.path, epoch, last)?;
        Ok((journal, positions))
    }

    /// From when on a service's lines are shipped, where nothing of them was yet.
    pub(super) fn began(&self, key: &Key) -> Moment {
        let began = since(&self.chosen, &format!("{}/{}", key.stack, key.service));
        // What is asked for is chosen.
        began.unwrap_or_else(|| Moment::of(SystemTime::now().into()))
    }

    pub(super) fn file(&self) -> PathBuf {
        self.path.clone()
    }

    /// What to write for the next batch.
    pub(super) fn next(&self, before: &Positions, after: &Positions) -> Saved {
        let (chosen, before, after) = (self.chosen.clone(), before.clone(), after.clone());
        Saved { chosen, began: None, services: Vec::new(), epoch: 0, sequence: 0, before, after }
    }
}

/// Since when this is chosen.
fn since(chosen: &Chosen, service: &str) -> Option<Moment> {
    chosen.iter().filter(|(choice, _)| includes(choice, service)).map(|(_, began)| *began).min()
}

impl Saved {
    /// Writes it for the batch with this number. Blocks.
    pub(super) fn write(self, path: &Path, epoch: SpoolEpoch, sequence: Sequence) -> Result<(), FileError> {
        let saved = Self { epoch: epoch.0, sequence: sequence.0, ..self };
        // Nothing in it can't be written as JSON.
        file::replace(path, &serde_json::to_vec(&saved).unwrap_or_default())
    }

    fn chosen(&mut self) -> Chosen {
        let mut chosen = std::mem::take(&mut self.chosen);
        if let Some(began) = self.began {
            chosen.extend(self.services.drain(..).map(|service| (service, began)));
        }
        chosen
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

    fn key(service: &str) -> Key {
        let (stack, service) = service.split_once('/').unwrap();
        Key { stack: stack.into(), service: service.into(), number: 1 }
    }

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
        assert!(none.is_empty() && journal.began(&key("shop/web")) == moment(5));
        let write = || journal.next(&at(10), &at(20)).write(&path, SpoolEpoch(7), Sequence(4)).unwrap();
        for (epoch, last, expected) in [(7, 3, at(10)), (7, 4, at(20)), (7, 9, at(20)), (8, 9, at(10))] {
            write();
            assert_eq!(open(epoch, last).unwrap().1, expected, "epoch {epoch}, last {last}");
        }
    }

    #[test]
    fn the_file_of_an_earlier_release_says_since_when_its_services_are_chosen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("positions");
        let marks = serde_json::to_value(at(20)).unwrap();
        let saved = serde_json::json!({
            "began": moment(5), "services": ["shop"], "epoch": 7, "sequence": 4, "before": {}, "after": marks,
        });
        std::fs::write(&path, saved.to_string()).unwrap();
        let chosen = ["shop".to_owned(), "press".to_owned()];
        for now in [90, 91] {
            let opened = Journal::open(path.clone(), (SpoolEpoch(7), Sequence(4)), &chosen, moment(now));
            let (journal, positions) = opened.unwrap();
            assert_eq!((positions, journal.began(&key("shop/web"))), (at(20), moment(5)));
            assert_eq!(journal.began(&key("press/plc")), moment(90));
        }
    }

    #[test]
    fn what_is_chosen_anew_begins_now_and_what_was_read_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("positions");
        let spool = (SpoolEpoch(7), Sequence(4));
        let open = |services: &[&str], now| {
            let services: Vec<String> = services.iter().map(|&service| service.to_owned()).collect();
            Journal::open(path.clone(), spool, &services, moment(now)).unwrap()
        };
        let (journal, _) = open(&["shop"], 5);
        journal.next(&at(10), &at(20)).write(&path, spool.0, spool.1).unwrap();
        // As somebody changes their mind; a container that is made anew meanwhile has no position.
        for (now, services, began) in [
            (90, &["shop"][..], &[("shop/web", 5)][..]),
            (91, &["shop", "press/plc"], &[("shop/web", 5), ("press/plc", 91)]),
            (92, &["*"], &[("shop/web", 5), ("press/plc", 91), ("press/api", 92)]),
            (93, &["press"], &[("press/plc", 91), ("press/api", 92)]),
            (94, &["shop/web", "press"], &[("shop/web", 94), ("press/plc", 91), ("press/api", 92)]),
            (95, &["shop"], &[("shop/web", 94), ("shop/api", 95)]),
        ] {
            let (journal, positions) = open(services, now);
            assert_eq!(positions, at(20));
            for (service, expected) in began {
                assert_eq!(journal.began(&key(service)), moment(*expected), "{service} of {services:?}");
            }
        }
    }
}
