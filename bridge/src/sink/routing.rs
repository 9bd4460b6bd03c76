//! Which routes a record of the log goes by: those that were in force when it came into the log, whenever its turn is.

use std::collections::VecDeque;
use std::sync::Arc;

use spool::Spool;
use tokio::sync::mpsc;

use crate::kept_routes::MOST_FORMER;
use crate::record::Record;
use crate::route::{NoTarget, Routes, Target};

/// Other routes from now on.
pub struct Change {
    routes: Routes,
    /// The last record that was in the log before them.
    through: u64,
}

impl Change {
    /// Has the sink go on with other routes. What the log has by now was accepted for those of before.
    pub fn tell(permit: mpsc::Permit<'_, Self>, routes: Routes, held: &Spool) {
        // The sink reads under the same lock: it has nothing in hand that came after them before it hears of them.
        permit.send(Self { routes, through: held.last() });
    }
}

/// Routes by the numbers of the records that go by them.
pub struct Routing {
    routes: Routes,
    changes: mpsc::Receiver<Change>,
    /// Routes of before, and the last record that they are for; oldest first.
    former: VecDeque<(u64, Routes)>,
}

impl Routing {
    /// Begins with these, and those of before, each with the last record that it is for; hears of others.
    pub fn new(routes: Routes, former: Vec<(u64, Routes)>, changes: mpsc::Receiver<Change>) -> Self {
        Self { routes, changes, former: former.into() }
    }

    /// Takes note of other routes before a record is read that came after them: whoever tells of them holds the spool, too.
    pub(super) fn before_reading(&mut self, _held: &Spool) {
        self.hear();
    }

    /// Takes note of other routes, so that there is room to tell of more.
    pub(super) fn hear(&mut self) {
        while let Ok(Change { routes, through }) = self.changes.try_recv() {
            self.former.push_back((through, std::mem::replace(&mut self.routes, routes)));
            if self.former.len() > MOST_FORMER {
                self.former.pop_front();
            }
        }
    }

    /// Where the record goes that has this number.
    pub(super) fn target(&mut self, sequence: u64, record: &Record<'_>) -> Result<Arc<Target>, NoTarget> {
        let own = self.former.iter().position(|(through, _)| sequence <= *through).unwrap_or(self.former.len());
        // A message of a new route may have been quicker than the word of it, and one of a route that there is no longer may
        // have been on its way to the log.
        let mut answer = Err(NoTarget::Unrouted);
        for turn in (own..=self.former.len()).chain((0..own).rev()) {
            let routes = self.former.get_mut(turn).map_or(&mut self.routes, |(_, routes)| routes);
            answer = routes.target(record.mqtt, record.topic, record.notes.uns);
            if answer != Err(NoTarget::Unrouted) {
                break;
            }
        }
        answer
    }

    /// Records through this one are not asked for again.
    pub(super) fn forget(&mut self, through: u64) {
        // The routes before those of the next record may be wanted for what was on its way.
        while self.former.get(1).is_some_and(|(last, _)| *last <= through) {
            self.former.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteConfig;
    use crate::log::Log;
    use crate::record::Notes;
    use protocol::Timestamp;

    /// A log, what decides of its records, and who tells of changes.
    struct Rig {
        log: Log,
        routing: Routing,
        changes: mpsc::Sender<Change>,
        _directory: tempfile::TempDir,
    }

    fn routes(routes: &[(&str, &str)]) -> Routes {
        let route = |(from, to): &(&str, &str)| RouteConfig {
            from: Some((*from).into()),
            to: Some((*to).into()),
            ..RouteConfig::default()
        };
        Routes::new(&routes.iter().map(route).collect::<Vec<_>>()).unwrap()
    }

    impl Rig {
        fn new(first: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (log, _) = Log::open(Log::options(directory.path().to_owned(), 1 << 20)).unwrap();
            let (changes, changed) = mpsc::channel(MOST_FORMER + 2);
            Self { log, routing: Routing::new(routes(first), Vec::new(), changed), changes, _directory: directory }
        }

        fn append(&self, count: usize) {
            self.log.spool().append_many((0..count).map(|_| b"record")).unwrap();
        }

        fn tell(&self, changed: &[(&str, &str)]) {
            Change::tell(self.changes.try_reserve().unwrap(), routes(changed), &self.log.spool());
        }

        /// Where a record of `topic` goes that has this number.
        fn to(&mut self, sequence: u64, topic: &str) -> Result<String, NoTarget> {
            let record = Record {
                mqtt: "m",
                topic,
                payload: b"",
                received: Timestamp::from_millis(0),
                qos: 1,
                retained: false,
                duplicate: false,
                notes: Notes::default(),
            };
            self.routing.target(sequence, &record).map(|target| target.topic.clone())
        }
    }

    #[test]
    fn a_record_goes_by_the_routes_it_came_under_whenever_the_sink_hears_of_others() {
        let mut rig = Rig::new(&[("m/#", "old"), ("gone", "old")]);
        rig.append(3);
        rig.tell(&[("m/#", "new")]);
        // The sink is busy meanwhile, and has read none of these.
        rig.append(2);
        rig.routing.hear();
        let to: Vec<_> = (1..=5).map(|sequence| rig.to(sequence, "m/a").unwrap()).collect();
        assert_eq!(to, ["old", "old", "old", "new", "new"]);
        assert_eq!(rig.to(4, "gone").unwrap(), "old", "it was on its way to the log");
        // Kafka has confirmed what is before it.
        rig.routing.forget(3);
        rig.tell(&[("m/#", "newer"), ("late", "newer")]);
        rig.routing.hear();
        assert_eq!(rig.to(4, "gone").unwrap(), "old", "and is still not confirmed");
        assert_eq!(rig.to(5, "late").unwrap(), "newer", "it was quicker than the word of its route");
        assert_eq!((rig.to(5, "m/a").unwrap(), rig.to(6, "m/a").unwrap()), ("new".into(), "newer".into()));
        assert_eq!(rig.to(6, "other"), Err(NoTarget::Unrouted));
    }

    #[test]
    fn what_came_after_a_change_is_never_in_hand_before_the_change_is_heard_of() {
        let mut rig = Rig::new(&[("m/#", "old")]);
        let (log, changes) = (rig.log.clone(), rig.changes.clone());
        let (done, mut read, mut late) = (std::sync::atomic::AtomicBool::new(false), 0, Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let other = routes(&[("m/#", "new")]);
                    let permit = loop {
                        match changes.try_reserve() {
                            Ok(permit) => break permit,
                            Err(_) => std::thread::yield_now(),
                        }
                    };
                    Change::tell(permit, other, &log.spool());
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let Some(mut spool) = rig.log.try_spool() else { continue };
                rig.routing.before_reading(&spool);
                let heard = rig.routing.former.drain(..).map(|(through, _)| through);
                late.extend(heard.filter(|through| *through < read));
                spool.append(b"record", true).unwrap();
                // Nobody else empties it.
                if spool.last() % 1000 == 0 {
                    spool.sync().unwrap();
                    let last = spool.last();
                    spool.acknowledge(last).unwrap();
                }
                read = spool.last();
            }
        });
        assert!(late.is_empty(), "what came after these was read by the routes of before: {late:?}");
    }

    #[test]
    fn former_routes_are_bounded_and_go_when_nothing_is_left_of_them() {
        let mut rig = Rig::new(&[("m/#", "zero")]);
        for number in 1..=MOST_FORMER + 1 {
            rig.append(1);
            rig.tell(&[("m/#", &format!("to-{number}"))]);
        }
        rig.routing.hear();
        assert_eq!((rig.routing.former.len(), rig.to(1, "m/a").unwrap()), (MOST_FORMER, "to-1".into()));
        rig.routing.forget(MOST_FORMER as u64 + 1);
        assert_eq!(rig.routing.former.len(), 1);
    }
}
