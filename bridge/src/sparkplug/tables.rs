//! What births have told of each edge node, kept on disk, and where each is in its sequence.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Metrics that are remembered, of all edge nodes. Those of a birth for which there is no room are not learnt: what comes
/// by their numbers goes on as it came.
const MOST_METRICS: usize = 200_000;
/// Edge nodes whose sequence is followed; when there are more, all begin anew.
const MOST_NODES: usize = 10_000;
/// Numbers of a sequence.
const SEQUENCE: u64 = 256;

/// What births have told.
#[derive(Debug, Default)]
pub struct Tables {
    file: Option<PathBuf>,
    nodes: Nodes,
    metrics: usize,
    changed: bool,
    /// The last number of each edge node's sequence.
    sequences: HashMap<String, u64>,
}

/// By group and edge node, by device, or nothing for the edge node itself, and by number.
type Nodes = BTreeMap<String, BTreeMap<String, BTreeMap<u64, Known>>>;

/// A metric that a number stands for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Known {
    pub(crate) name: String,
    pub(crate) datatype: u32,
}

/// Tables that are to be written to a file.
#[derive(Debug)]
pub struct Saving {
    file: PathBuf,
    text: Vec<u8>,
}

impl Tables {
    /// Those that are not kept.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Those of a connection, as they were left in `state_dir`.
    ///
    /// # Errors
    /// When there is a file that can't be read.
    pub fn open(state_dir: &Path, mqtt: &str) -> anyhow::Result<Self> {
        let file = state_dir.join(format!("sparkplug-{mqtt}.json"));
        let nodes = match std::fs::read(&file) {
            // Without them less is decoded, and nothing is lost: no reason not to start.
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(
                    "{} is damaged ({error}): what comes by number goes on as it came until the next births",
                    file.display()
                );
                Nodes::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Nodes::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let metrics = nodes.values().flat_map(BTreeMap::values).map(BTreeMap::len).sum();
        Ok(Self { file: Some(file), nodes, metrics, ..Self::default() })
    }

    /// What has changed since they were saved last. Until it is on disk, nothing may be acknowledged that changed it.
    pub fn saving(&mut self) -> Option<Saving> {
        let file = self.file.clone().filter(|_| std::mem::take(&mut self.changed))?;
        Some(Saving { file, text: serde_json::to_vec(&self.nodes).ok()? })
    }

    /// What a number stands for.
    pub(crate) fn known(&self, group: &str, edge: &str, device: Option<&str>, alias: u64) -> Option<&Known> {
        self.nodes.get(&node(group, edge))?.get(device.unwrap_or_default())?.get(&alias)
    }

    /// Takes what a birth tells in place of what was known; a node's birth ends what was known of its devices. Gives whether
    /// there was room for it.
    pub(crate) fn learn(&mut self, group: &str, edge: &str, device: Option<&str>, known: BTreeMap<u64, Known>) -> bool {
        let (name, device) = (node(group, edge), device.unwrap_or_default());
        let devices = self.nodes.entry(name.clone()).or_default();
        // An edge node that is born again as it was, which is what most are, is nothing to write down.
        if devices.get(device).is_some_and(|before| *before == known) && (!device.is_empty() || devices.len() == 1) {
            return true;
        }
        let before: usize = if device.is_empty() {
            std::mem::take(devices).values().map(BTreeMap::len).sum()
        } else {
            devices.remove(device).map_or(0, |before| before.len())
        };
        self.metrics -= before;
        self.changed |= before > 0;
        let room = self.metrics + known.len() <= MOST_METRICS;
        if room && !known.is_empty() {
            self.metrics += known.len();
            self.changed = true;
            devices.insert(device.to_owned(), known);
        }
        if devices.is_empty() {
            self.nodes.remove(&name);
        }
        room
    }

    /// Notes where an edge node is in its sequence; says what is missing. A birth `begins` it.
    pub(crate) fn counted(&mut self, group: &str, edge: &str, seq: Option<u64>, begins: bool) -> Option<String> {
        let seq = seq.filter(|seq| *seq < SEQUENCE)?;
        let name = node(group, edge);
        if self.sequences.len() >= MOST_NODES && !self.sequences.contains_key(&name) {
            self.sequences.clear();
        }
        let expected = self.sequences.insert(name.clone(), seq).map(|last| (last + 1) % SEQUENCE)?;
        if begins || expected == seq {
            return None;
        }
        let last = (seq + SEQUENCE - 1) % SEQUENCE;
        Some(format!("{name}: messages {expected} to {last} of its sequence are missing"))
    }
}

/// Neither has a `/` in it.
fn node(group: &str, edge: &str) -> String {
    format!("{group}/{edge}")
}

impl Saving {
    /// Writes them, and waits for the disk.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write(&self) -> std::io::Result<()> {
        let new = self.file.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&self.text)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.file)?;
        self.file.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[&str]) -> BTreeMap<u64, Known> {
        (1..).zip(names.iter().map(|name| Known { name: (*name).to_owned(), datatype: 3 })).collect()
    }

    #[test]
    fn what_was_learnt_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut tables = Tables::open(folder.path(), "m").unwrap();
        assert!(tables.learn("g", "e", None, known(&["a"])) && tables.learn("g", "e", Some("d"), known(&["b", "c"])));
        tables.saving().unwrap().write().unwrap();
        assert!(tables.saving().is_none(), "nothing has changed since");
        assert!(tables.learn("g", "e", Some("d"), known(&["b", "c"])) && tables.saving().is_none());
        let mut tables = Tables::open(folder.path(), "m").unwrap();
        assert_eq!(tables.known("g", "e", Some("d"), 2).unwrap().name, "c");
        assert_eq!((tables.known("g", "e", None, 2), tables.metrics), (None, 3));
        assert!(tables.learn("g", "e", None, known(&["a"])));
        assert_eq!((tables.known("g", "e", Some("d"), 2), tables.metrics), (None, 1));
        assert!(tables.saving().is_some());
        std::fs::write(folder.path().join("sparkplug-m.json"), "{").unwrap();
        assert_eq!(Tables::open(folder.path(), "m").unwrap().metrics, 0, "what is damaged is learnt anew");
    }

    #[test]
    fn what_there_is_no_room_for_is_not_learnt() {
        let mut tables = Tables::in_memory();
        let many = |count: u64| (0..count).map(|alias| (alias, Known { name: "a".into(), datatype: 3 })).collect();
        assert!(tables.learn("g", "e", None, many(MOST_METRICS as u64)));
        assert!(!tables.learn("g", "other", None, many(1)) && tables.known("g", "other", None, 0).is_none());
        assert!(tables.learn("g", "e", None, many(1)) && tables.learn("g", "other", None, many(1)));
        assert_eq!((tables.metrics, tables.nodes.len()), (2, 2));
    }
}
