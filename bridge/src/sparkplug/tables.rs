//! What births have told of each edge node, kept on disk, and where each is in its sequence.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Bytes of what is remembered, of all edge nodes: some 300,000 metrics. Those of a birth for which there is no room are not
/// learnt: what comes by their numbers goes on as it came.
const MOST_BYTES: usize = 32 << 20;
/// What a metric takes beside its name, and a device beside its.
const OVERHEAD: usize = 64;
/// Edge nodes whose life and sequence are followed; of more, no life is known, and all sequences begin anew.
const MOST_NODES: usize = 10_000;
/// Numbers of a sequence.
const SEQUENCE: u64 = 256;

/// What births have told.
#[derive(Debug, Default)]
pub struct Tables {
    file: Option<PathBuf>,
    nodes: Nodes,
    /// Bytes of them.
    bytes: usize,
    changed: bool,
    /// The last number of each edge node's sequence.
    sequences: HashMap<String, u64>,
}

/// By group and edge node.
type Nodes = BTreeMap<String, Node>;

/// What is known of an edge node.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Node {
    /// The number of its life, if its birth told one.
    life: Option<u64>,
    /// By device, or nothing for the edge node itself, and by number.
    devices: BTreeMap<String, BTreeMap<u64, Known>>,
}

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
        let bytes = nodes.values().map(Node::bytes).sum();
        Ok(Self { file: Some(file), nodes, bytes, ..Self::default() })
    }

    /// What has changed since they were saved last. Until it is on disk, nothing may be acknowledged that changed it.
    pub fn saving(&mut self) -> Option<Saving> {
        let file = self.file.clone().filter(|_| std::mem::take(&mut self.changed))?;
        Some(Saving { file, text: serde_json::to_vec(&self.nodes).ok()? })
    }

    /// What a number stands for.
    pub(crate) fn known(&self, group: &str, edge: &str, device: Option<&str>, alias: u64) -> Option<&Known> {
        self.nodes.get(&node(group, edge))?.devices.get(device.unwrap_or_default())?.get(&alias)
    }

    /// Takes what a birth tells in place of what was known; a node's birth ends what was known of its devices. Gives whether
    /// there was room for it.
    pub(crate) fn learn(&mut self, group: &str, edge: &str, device: Option<&str>, known: BTreeMap<u64, Known>) -> bool {
        let (name, device) = (node(group, edge), device.unwrap_or_default());
        let Node { devices, .. } = self.nodes.entry(name.clone()).or_default();
        // An edge node that is born again as it was, which is what most are, is nothing to write down.
        if devices.get(device).is_some_and(|before| *before == known) && (!device.is_empty() || devices.len() == 1) {
            return true;
        }
        let before: usize = if device.is_empty() {
            std::mem::take(devices).iter().map(|(device, known)| bytes(device, known)).sum()
        } else {
            devices.remove(device).map_or(0, |before| bytes(device, &before))
        };
        self.bytes -= before;
        self.changed |= before > 0;
        let more = bytes(device, &known);
        let room = self.bytes + more <= MOST_BYTES;
        if room && !known.is_empty() {
            self.bytes += more;
            self.changed = true;
            devices.insert(device.to_owned(), known);
        }
        self.tidy(&name);
        room
    }

    /// Takes note that an edge node is in this life.
    pub(crate) fn lives(&mut self, group: &str, edge: &str, life: Option<u64>) {
        let (name, most) = (node(group, edge), self.nodes.len() >= MOST_NODES);
        let known = match self.nodes.get_mut(&name) {
            Some(known) => known,
            None if life.is_none() || most => return,
            None => self.nodes.entry(name.clone()).or_default(),
        };
        self.changed |= known.life != life;
        known.life = life;
        self.tidy(&name);
    }

    /// Takes note of the death of a device or of an edge node: what its births told counts no more. Gives `false` for that
    /// of an edge node which is in another life by now; then nothing changes.
    pub(crate) fn died(&mut self, group: &str, edge: &str, device: Option<&str>, life: Option<u64>) -> bool {
        let name = node(group, edge);
        let known = self.nodes.get_mut(&name);
        if let Some(device) = device {
            if let Some(before) = known.and_then(|known| known.devices.remove(device)) {
                self.bytes -= bytes(device, &before);
                self.changed = true;
                self.tidy(&name);
            }
            return true;
        }
        let present = known.and_then(|known| known.life);
        if life.zip(present).is_some_and(|(life, present)| life != present) {
            return false;
        }
        self.sequences.remove(&name);
        if let Some(before) = self.nodes.remove(&name) {
            self.bytes -= before.bytes();
            self.changed = true;
        }
        true
    }

    /// Nothing is remembered of an edge node of which nothing is known.
    fn tidy(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|node| node.life.is_none() && node.devices.is_empty()) {
            self.nodes.remove(name);
        }
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

impl Node {
    fn bytes(&self) -> usize {
        self.devices.iter().map(|(device, known)| bytes(device, known)).sum()
    }
}

/// What the metrics of a device take.
fn bytes(device: &str, known: &BTreeMap<u64, Known>) -> usize {
    device.len() + OVERHEAD + known.values().map(|known| known.name.len() + OVERHEAD).sum::<usize>()
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
        assert_eq!((tables.known("g", "e", None, 2), tables.bytes), (None, 5 * OVERHEAD + 4));
        assert!(tables.learn("g", "e", None, known(&["a"])));
        assert_eq!((tables.known("g", "e", Some("d"), 2), tables.bytes), (None, 2 * OVERHEAD + 1));
        assert!(tables.saving().is_some());
        std::fs::write(folder.path().join("sparkplug-m.json"), "{").unwrap();
        assert_eq!(Tables::open(folder.path(), "m").unwrap().bytes, 0, "what is damaged is learnt anew");
    }

    #[test]
    fn what_there_is_no_room_for_is_not_learnt() {
        let mut tables = Tables::in_memory();
        let many = |count: u64| (0..count).map(|alias| (alias, Known { name: "a".into(), datatype: 3 })).collect();
        let most = (MOST_BYTES / (OVERHEAD + 1)) as u64 - 1;
        assert!(tables.learn("g", "e", None, many(most)));
        assert!(!tables.learn("g", "other", None, many(1)) && tables.known("g", "other", None, 0).is_none());
        assert!(tables.learn("g", "e", None, many(1)) && tables.learn("g", "other", None, many(1)));
        assert_eq!((tables.bytes, tables.nodes.len()), (4 * OVERHEAD + 2, 2));
    }

    #[test]
    fn a_death_ends_the_life_it_is_of_and_no_other_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut tables = Tables::open(folder.path(), "m").unwrap();
        tables.lives("g", "e", Some(255));
        assert!(tables.learn("g", "e", None, known(&["a"])) && tables.learn("g", "e", Some("d"), known(&["b"])));
        tables.lives("g", "e", Some(0));
        tables.saving().unwrap().write().unwrap();
        let mut tables = Tables::open(folder.path(), "m").unwrap();
        assert!(!tables.died("g", "e", None, Some(255)) && tables.known("g", "e", Some("d"), 1).is_some());
        assert!(tables.saving().is_none());
        assert!(tables.died("g", "e", Some("d"), None) && tables.known("g", "e", Some("d"), 1).is_none());
        assert!(tables.known("g", "e", None, 1).is_some() && tables.saving().is_some());
        assert!(tables.died("g", "e", None, Some(0)) && tables.saving().is_some());
        assert_eq!((tables.nodes.len(), tables.bytes), (0, 0));
        assert!(tables.died("g", "e", None, Some(7)), "of one that is dead nothing can be told");
        // A life is nothing to be known of a node that tells none.
        tables.lives("g", "e", None);
        assert!(tables.saving().is_none() && tables.nodes.is_empty());
    }
}
