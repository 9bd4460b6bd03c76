//! Which routes what waits in the logs goes by, kept on disk: those that were in force when it was accepted, also after a
//! restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use node::{FileError, file};
use serde::{Deserialize, Serialize};
use spool::Spool;

use crate::config::RouteConfig;
use crate::route::Routes;

/// Former routes that are kept for what waits. Records of one that is given up go by the next.
pub const MOST_FORMER: usize = 8;
/// Longest file that is read: a route has some hundred bytes.
const LONGEST: u64 = 64 << 20;

/// The file.
#[derive(Debug)]
pub struct KeptRoutes {
    file: PathBuf,
    kept: Kept,
}

/// What is in it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Kept {
    /// The routes in force.
    now: Vec<RouteConfig>,
    /// Those of before that something waits for, oldest first.
    former: Vec<Former>,
}

/// Routes of before.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Former {
    routes: Vec<RouteConfig>,
    /// By class, the last record of its log that they are for.
    through: BTreeMap<String, Place>,
}

/// A record of a log.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
struct Place {
    epoch: u64,
    sequence: u64,
}

impl KeptRoutes {
    /// Goes on with `routes`: what waits in these logs, each with its class's name, was accepted for those of before.
    ///
    /// # Errors
    /// When there is a file that can't be read.
    pub fn begin<'a>(
        state_dir: &Path,
        routes: &[RouteConfig],
        logs: impl Iterator<Item = (&'a str, &'a Spool)> + Clone,
    ) -> Result<Self, FileError> {
        let file = state_dir.join("routes.json");
        let text = file::read(&file, LONGEST)?;
        let kept = text.as_ref().map(|text| serde_json::from_slice(text));
        let kept = kept.transpose().unwrap_or_else(|error| {
            tracing::warn!(
                "{} is damaged ({error}): what waits goes by the routes that are configured now",
                file.display()
            );
            None
        });
        let mut begun = Self { file, kept: kept.unwrap_or_else(|| Kept { now: routes.to_vec(), former: Vec::new() }) };
        begun.kept = begun.kept.followed_by(routes, logs);
        // A disk that is full is no reason not to deliver what waits on it.
        if text.as_ref() != Some(&begun.kept.text())
            && let Err(error) = begun.write()
        {
            tracing::warn!("after the next start what waits may go by other routes than it was accepted for: {error}");
        }
        Ok(begun)
    }

    /// Goes on with `routes` from now on: what the logs have was accepted for those of before. On return that outlives a
    /// power cut.
    ///
    /// # Errors
    /// When the file can't be written; then all is as before.
    pub fn change<'a>(
        &mut self,
        routes: &[RouteConfig],
        logs: impl Iterator<Item = (&'a str, &'a Spool)> + Clone,
    ) -> Result<(), FileError> {
        let before = std::mem::take(&mut self.kept);
        self.kept = before.clone().followed_by(routes, logs);
        let written = if self.kept.text() == before.text() { Ok(()) } else { self.write() };
        if written.is_err() {
            self.kept = before;
        }
        written
    }

    /// Routes of before for what waits in the log of a class, and the last record that each is for; oldest first.
    pub fn former(&self, class: &str) -> Vec<(u64, Routes)> {
        let of_class = self.kept.former.iter().filter_map(|former| Some((former.through.get(class)?, &former.routes)));
        let parse = |(place, routes): (&Place, &Vec<RouteConfig>)| match Routes::new(routes) {
            Ok(routes) => Some((place.sequence, routes)),
            Err(error) => {
                tracing::warn!(
                    "what was accepted for routes of before goes by others, for this release can't use them: {error}"
                );
                None
            }
        };
        of_class.filter_map(parse).collect()
    }

    fn write(&self) -> Result<(), FileError> {
        file::replace(&self.file, &self.kept.text())
    }
}

impl Kept {
    fn followed_by<'a>(
        mut self,
        routes: &[RouteConfig],
        logs: impl Iterator<Item = (&'a str, &'a Spool)> + Clone,
    ) -> Self {
        if text(&self.now) != text(routes) {
            let place = |spool: &Spool| Place { epoch: spool.epoch(), sequence: spool.last() };
            let through = logs.clone().map(|(class, spool)| (class.to_owned(), place(spool))).collect();
            self.former.push(Former { routes: std::mem::replace(&mut self.now, routes.to_vec()), through });
        }
        for former in &mut self.former {
            let waits = |(class, spool): (&'a str, &'a Spool)| {
                let place = former.through.get(class).filter(|place| place.epoch == spool.epoch())?;
                // What was not durable before a crash has its number no more.
                let sequence = place.sequence.min(spool.last());
                (sequence > spool.acknowledged()).then(|| (class.to_owned(), Place { sequence, ..*place }))
            };
            former.through = logs.clone().filter_map(waits).collect();
        }
        self.former.retain(|former| !former.through.is_empty());
        self.former.drain(..self.former.len().saturating_sub(MOST_FORMER));
        self
    }

    fn text(&self) -> Vec<u8> {
        text(self)
    }
}

fn text(value: &(impl Serialize + ?Sized)) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    /// Two logs.
    struct Rig {
        folder: tempfile::TempDir,
        logs: Vec<(&'static str, Spool)>,
    }

    impl Rig {
        fn new() -> Self {
            let log = |class| (class, Spool::memory(1 << 20, 7));
            Self { folder: tempfile::tempdir().unwrap(), logs: ["", "trends"].map(log).into() }
        }

        fn append(&mut self, count: u64) {
            for (_, spool) in &mut self.logs {
                (0..count).for_each(|_| assert!(spool.append(b"record", true).is_ok()));
            }
        }

        fn each(&self) -> impl Iterator<Item = (&str, &Spool)> + Clone {
            self.logs.iter().map(|(class, spool)| (*class, spool))
        }

        fn begin(&self, to: &str) -> KeptRoutes {
            KeptRoutes::begin(self.folder.path(), &routes(to), self.each()).unwrap()
        }
    }

    fn routes(to: &str) -> Vec<RouteConfig> {
        let umh = RouteConfig { preset: Some(Preset::Umh), ..RouteConfig::default() };
        let headers = [("h".to_owned(), "{2}".to_owned())].into();
        vec![umh, RouteConfig { from: Some("m/#".into()), to: Some(to.into()), headers, ..RouteConfig::default() }]
    }

    /// Through which record, and where to.
    fn former(kept: &KeptRoutes, class: &str) -> Vec<(u64, String)> {
        let to = |(through, mut routes): (u64, Routes)| {
            let target = routes.target("m", "m/a", None).unwrap();
            assert_eq!(target.headers, [("h".to_owned(), "a".to_owned())]);
            (through, target.topic.clone())
        };
        kept.former(class).into_iter().map(to).collect()
    }

    #[test]
    fn what_waits_goes_by_the_routes_it_was_accepted_for_after_a_restart() {
        let mut rig = Rig::new();
        let mut kept = rig.begin("one");
        rig.append(3);
        kept.change(&routes("two"), rig.each()).unwrap();
        rig.append(2);
        drop(kept);
        assert_eq!(former(&rig.begin("two"), ""), [(3, "one".into())]);
        // They are changed while it does not run.
        let kept = rig.begin("three");
        for class in ["", "trends"] {
            assert_eq!(former(&kept, class), [(3, "one".into()), (5, "two".into())]);
        }
        // What is delivered needs them no more; a log that begins anew has nothing of before.
        rig.logs[0].1.acknowledge(3).unwrap();
        rig.logs[1].1 = Spool::memory(1 << 20, 8);
        let kept = rig.begin("three");
        assert_eq!((former(&kept, ""), former(&kept, "trends")), (vec![(5, "two".into())], vec![]));
        rig.logs[0].1.acknowledge(5).unwrap();
        assert_eq!(rig.begin("three").kept.former.len(), 0);
    }

    #[test]
    fn numbers_that_a_crash_took_back_are_for_what_comes_next() {
        let mut rig = Rig::new();
        let mut kept = rig.begin("one");
        rig.append(5);
        kept.change(&routes("two"), rig.each()).unwrap();
        rig.logs = vec![("", Spool::memory(1 << 20, 7))];
        rig.append(2);
        assert_eq!(former(&rig.begin("two"), ""), [(2, "one".into())]);
    }

    #[test]
    fn a_file_that_is_not_changed_is_not_written_and_one_that_can_t_be_changes_nothing() {
        let mut rig = Rig::new();
        let mut kept = rig.begin("one");
        rig.append(1);
        std::fs::create_dir(rig.folder.path().join("routes.json.new")).unwrap();
        kept.change(&routes("one"), rig.each()).unwrap();
        assert!(kept.change(&routes("two"), rig.each()).is_err());
        assert_eq!(kept.kept.text(), rig.begin("one").kept.text());
        // It starts all the same, and so it does when the file is damaged.
        assert_eq!(former(&rig.begin("two"), ""), [(1, "one".into())]);
        std::fs::write(rig.folder.path().join("routes.json"), "{").unwrap();
        assert!(former(&rig.begin("two"), "").is_empty());
    }

    #[test]
    fn former_routes_are_bounded() {
        let mut rig = Rig::new();
        let mut kept = rig.begin("first");
        for number in 0..20 {
            rig.append(1);
            kept.change(&routes(&format!("to-{number}")), rig.each()).unwrap();
        }
        let former = former(&kept, "");
        assert_eq!((former.len(), former[0].clone()), (MOST_FORMER, (13, "to-11".into())));
    }
}
