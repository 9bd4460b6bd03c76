//! Which class each topic of a connection is of, kept on disk: messages go by it until all that went by it is in Kafka.

use std::path::{Path, PathBuf};

use node::{FileError, file};

use crate::config::Config;
use crate::filter::Filter;
use crate::route::Routes;

/// Longest file that is read: a route has some dozens of bytes.
const LONGEST: u64 = 16 << 20;

/// The classes of a connection's topics: the first filter that matches says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways(Vec<(Filter, Option<String>)>);

/// Where a connection's are kept.
#[derive(Clone, Debug)]
pub(super) struct WaysFile(PathBuf);

impl Ways {
    /// Those of the connection `mqtt` by the routes of a configuration.
    pub fn of(mqtt: &str, routes: &Routes, config: &Config) -> Self {
        let class = |route: usize| config.route.get(route.checked_sub(1)?)?.class.clone();
        Self(routes.ways(mqtt).into_iter().map(|way| (way.from, class(way.route))).collect())
    }

    /// The same, where what is of another class than these is of none.
    pub(super) fn among(mut self, classes: &[String]) -> Self {
        for (_, class) in &mut self.0 {
            *class = class.take().filter(|class| classes.contains(class));
        }
        self
    }

    /// The class of a topic; `None` for one that has none, also because it is not known.
    pub fn class(&self, topic: &str) -> Option<&str> {
        self.0.iter().find(|(from, _)| from.matches(topic)).and_then(|(_, class)| class.as_deref())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let ways: Vec<(String, Option<String>)> = serde_json::from_slice(text).ok()?;
        let parse = |(from, class): (String, Option<String>)| Some((from.parse().ok()?, class));
        ways.into_iter().map(parse).collect::<Option<_>>().map(Self)
    }

    fn text(&self) -> Vec<u8> {
        let ways: Vec<_> = self.0.iter().map(|(from, class)| (from.as_str(), class)).collect();
        serde_json::to_vec(&ways).unwrap_or_default()
    }
}

impl WaysFile {
    /// The one of the connection `mqtt`.
    pub(super) fn of(state_dir: &Path, mqtt: &str) -> Self {
        Self(state_dir.join(format!("classes-{mqtt}.json")))
    }

    /// What messages went by last; `now` when there was nothing before, and it is kept then.
    ///
    /// # Errors
    /// When there is a file that can't be read.
    pub(super) fn begin(&self, now: &Ways) -> Result<Ways, FileError> {
        if let Some(text) = file::read(&self.0, LONGEST)? {
            if let Some(before) = Ways::parse(&text) {
                return Ok(before);
            }
            tracing::warn!(
                "{} is damaged: topics that were given another class may overtake what waits of them",
                self.0.display()
            );
        }
        // A disk that is full is no reason not to deliver what waits on it.
        if let Err(error) = self.keep(now) {
            tracing::warn!(
                "topics that are given another class before the next start may overtake what waits: {error}"
            );
        }
        Ok(now.clone())
    }

    /// Has these be what messages went by last. On return that outlives a power cut.
    ///
    /// # Errors
    /// When the file can't be written; then it is as before.
    pub(super) fn keep(&self, ways: &Ways) -> Result<(), FileError> {
        file::replace(&self.0, &ways.text())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::RouteConfig;

    /// Those of routes by their filters and classes.
    pub(in crate::lanes) fn ways(routes: &[(&str, Option<&str>)]) -> Ways {
        let route = |(from, class): &(&str, Option<&str>)| RouteConfig {
            from: Some((*from).into()),
            to: Some("x".into()),
            class: class.map(str::to_owned),
            ..RouteConfig::default()
        };
        let mut config = Config { route: routes.iter().map(route).collect(), ..Config::default() };
        config.route.insert(0, RouteConfig { mqtt: Some("other".into()), ..route(&("#", Some("other"))) });
        Ways::of("m", &Routes::new(&config.route).unwrap(), &config)
    }

    #[test]
    fn the_first_route_of_the_connection_that_matches_says_the_class() {
        let ways = ways(&[("a/+", None), ("$share/g/a/#", Some("trends")), ("a/b/c", Some("states"))]);
        let classes = ["a/b", "a/b/c", "b"].map(|topic| ways.class(topic));
        assert_eq!(classes, [None, Some("trends"), None]);
    }

    #[test]
    fn what_messages_went_by_last_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = (ways(&[("a/#", Some("trends")), ("b\n", None)]), ways(&[("a/#", None)]));
        let file = || WaysFile::of(folder.path(), "m.1");
        assert_eq!(file().begin(&before).unwrap(), before);
        assert_eq!(file().begin(&after).unwrap(), before, "nobody has said that Kafka has all of it");
        file().keep(&after).unwrap();
        assert_eq!(file().begin(&before).unwrap(), after);
        assert_eq!(WaysFile::of(folder.path(), "m.2").begin(&before).unwrap(), before);
        std::fs::write(&file().0, "[").unwrap();
        assert_eq!(file().begin(&before).unwrap(), before, "what is damaged is no reason not to start");
        assert_eq!(file().begin(&after).unwrap(), before);
    }
}
