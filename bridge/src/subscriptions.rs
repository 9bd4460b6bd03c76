//! What a connection has subscribed to, kept on disk: the broker goes on sending by a filter that is no longer configured
//! until it is told not to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use node::{FileError, file};

use crate::filter::Filter;

/// The filters that the broker may know of.
#[derive(Debug)]
pub struct Subscriptions {
    file: PathBuf,
    current: Vec<Filter>,
    /// Filters of before that are to be given up, and how many of them are not yet.
    stale: Vec<String>,
    left: usize,
}

impl Subscriptions {
    /// Notes that `current` is about to be subscribed to on the connection `mqtt`.
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub fn begin(state_dir: &Path, mqtt: &str, current: Vec<Filter>) -> anyhow::Result<Self> {
        let file = state_dir.join(format!("subscriptions-{mqtt}"));
        let before = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let now: BTreeSet<&str> = current.iter().map(Filter::as_str).collect();
        let stale: Vec<String> = before.lines().filter(|line| !now.contains(line)).map(str::to_owned).collect();
        let subscriptions = Self { file, left: stale.len(), stale, current };
        // A disk that is full is no reason not to start: there may be nothing to write.
        if subscriptions.text(true) != before {
            subscriptions.write(true)?;
        }
        Ok(subscriptions)
    }

    /// Goes on with other filters; gives those that are new.
    ///
    /// # Errors
    /// When the file can't be written; then all is as before.
    pub fn change(&mut self, current: Vec<Filter>) -> anyhow::Result<Vec<Filter>> {
        let before = std::mem::replace(&mut self.current, current);
        let stale = self.stale.clone();
        let kept = |text: &str| self.current.iter().any(|filter| filter.as_str() == text);
        self.stale.retain(|filter| !kept(filter));
        self.stale
            .extend(before.iter().filter(|filter| !kept(filter.as_str())).map(|filter| filter.as_str().to_owned()));
        if let Err(error) = self.write(true) {
            (self.current, self.stale) = (before, stale);
            return Err(error.into());
        }
        Ok(self.current.iter().filter(|filter| !before.contains(filter)).cloned().collect())
    }

    /// What to subscribe to.
    pub fn current(&self) -> &[Filter] {
        &self.current
    }

    /// What to give up, whenever the connection comes up.
    pub fn stale(&mut self) -> &[String] {
        self.left = self.stale.len();
        &self.stale
    }

    /// The broker has given up one; after the last of them they are forgotten.
    pub fn given_up(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 && !self.stale.is_empty() {
            self.stale.clear();
            if let Err(error) = self.write(false) {
                tracing::warn!("filters that are given up will be given up again: {error}");
            }
        }
    }

    fn text(&self, with_stale: bool) -> String {
        let stale = self.stale.iter().map(String::as_str).filter(|_| with_stale);
        // A line break can't stand in a file of lines; such a filter is not given up later.
        let known = self.current.iter().map(Filter::as_str).chain(stale).filter(|filter| !filter.contains('\n'));
        known.fold(String::new(), |text, filter| text + filter + "\n")
    }

    /// On return it outlives a power cut: what the broker is told after it is known at the next start.
    fn write(&self, with_stale: bool) -> Result<(), FileError> {
        file::replace(&self.file, self.text(with_stale).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_longer_configured_is_given_up_until_the_broker_has_done_so() {
        let folder = tempfile::tempdir().unwrap();
        let begin = |filters: &[&str]| {
            let filters = filters.iter().map(|filter| filter.parse().unwrap()).collect();
            Subscriptions::begin(folder.path(), "m", filters).unwrap()
        };
        assert!(begin(&["a", "b/#", "c"]).stale().is_empty());
        assert_eq!(begin(&["a"]).stale(), ["b/#", "c"]);
        // The broker was not reached: they are given up the next time, and one that is back is not.
        let mut again = begin(&["a", "c"]);
        assert_eq!(again.stale(), ["b/#"]);
        again.given_up();
        assert!(again.stale().is_empty() && begin(&["a", "c"]).stale().is_empty());
    }

    #[test]
    fn connections_whose_names_differ_behind_a_dot_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let filters = || vec!["a".parse().unwrap()];
        Subscriptions::begin(folder.path(), "m.1", filters()).unwrap();
        // What another has not finished is not replaced, and stays its own.
        std::fs::create_dir(folder.path().join("subscriptions-m.new")).unwrap();
        assert!(Subscriptions::begin(folder.path(), "m.2", filters()).is_ok());
        // One that can't be written is said to be so, and is as before.
        std::fs::create_dir(folder.path().join("subscriptions-m.1.new")).unwrap();
        assert!(Subscriptions::begin(folder.path(), "m.1", vec!["b".parse().unwrap()]).is_err());
        assert!(Subscriptions::begin(folder.path(), "m.1", filters()).is_ok());
    }

    #[test]
    fn what_changes_is_subscribed_to_or_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let parsed = |filters: &[&str]| filters.iter().map(|filter| filter.parse().unwrap()).collect::<Vec<Filter>>();
        let mut subscriptions = Subscriptions::begin(folder.path(), "m", parsed(&["a", "b"])).unwrap();
        assert_eq!(subscriptions.change(parsed(&["b", "c"])).unwrap(), parsed(&["c"]));
        assert_eq!(subscriptions.stale(), ["a"]);
        assert_eq!(subscriptions.change(parsed(&["a", "b"])).unwrap(), parsed(&["a"]));
        assert_eq!(subscriptions.stale(), ["c"]);
        let mut again = Subscriptions::begin(folder.path(), "m", parsed(&["b"])).unwrap();
        assert_eq!(again.stale(), ["a", "c"], "what the broker may know is on disk");
    }
}
