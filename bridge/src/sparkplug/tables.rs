//! What births have told of each edge node, kept on disk, and where each is in its sequence.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context;
use node::{FileError, file};
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
#[derive(Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
struct Node {
    /// The number of its life, if its birth told one.
    life: Option<u64>,
    /// By device, or nothing for the edge node itself, and by number.
    devices: BTreeMap<String, BTreeMap<u64, Known>>,
    /// The types of metrics that have no number, by device and by name.
    #[serde(default)]
    types: BTreeMap<String, BTreeMap<String, u32>>,
}

/// What a birth tells of metrics.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Metrics {
    /// Those that come by number after it.
    pub(crate) numbers: BTreeMap<u64, Known>,
    /// The types of those that come by name; what comes then need not say them (6.4.16).
    pub(crate) types: BTreeMap<String, u32>,
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
        let bytes = nodes.iter().map(|(name, node)| node.bytes(name)).sum();
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

    /// The type of a metric that comes by name.
    pub(crate) fn datatype(&self, group: &str, edge: &str, device: Option<&str>, metric: &str) -> Option<u32> {
        self.nodes.get(&node(group, edge))?.types.get(device.unwrap_or_default())?.get(metric).copied()
    }

    /// Takes what a birth tells in place of what was known; a node's birth ends what was known of its devices. Gives whether
    /// there was room for it.
    pub(crate) fn learn(&mut self, group: &str, edge: &str, device: Option<&str>, metrics: Metrics) -> bool {
        let (name, device) = (node(group, edge), device.unwrap_or_default());
        let known = self.nodes.entry(name.clone()).or_default();
        // An edge node that is born again as it was, which is what most are, is nothing to write down.
        if known.knows(device, &metrics) && (!device.is_empty() || known.has_no_devices()) {
            self.tidy(&name);
            return true;
        }
        let before = if device.is_empty() { known.forget_all(&name) } else { known.forget(&name, device) };
        self.bytes -= before;
        self.changed |= before > 0;
        let more = bytes(&name, device, Some(&metrics.numbers), Some(&metrics.types));
        let room = self.bytes + more <= MOST_BYTES;
        if room && more > 0 {
            self.bytes += more;
            self.changed = true;
            known.take(device, metrics);
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
            let before = known.map_or(0, |known| known.forget(&name, device));
            self.bytes -= before;
            self.changed |= before > 0;
            self.tidy(&name);
            return true;
        }
        let present = known.and_then(|known| known.life);
        if life.zip(present).is_some_and(|(life, present)| life != present) {
            return false;
        }
        self.sequences.remove(&name);
        if let Some(before) = self.nodes.remove(&name) {
            self.bytes -= before.bytes(&name);
            self.changed = true;
        }
        true
    }

    /// Nothing is remembered of an edge node of which nothing is known.
    fn tidy(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|node| *node == Node::default()) {
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
    /// Whether this is what is known of a device, or of the edge node itself.
    fn knows(&self, device: &str, metrics: &Metrics) -> bool {
        let (numbers, types) = (self.devices.get(device), self.types.get(device));
        numbers.map_or(metrics.numbers.is_empty(), |known| *known == metrics.numbers)
            && types.map_or(metrics.types.is_empty(), |known| *known == metrics.types)
    }

    fn has_no_devices(&self) -> bool {
        self.devices.keys().chain(self.types.keys()).all(String::is_empty)
    }

    fn take(&mut self, device: &str, Metrics { numbers, types }: Metrics) {
        if !numbers.is_empty() {
            self.devices.insert(device.to_owned(), numbers);
        }
        if !types.is_empty() {
            self.types.insert(device.to_owned(), types);
        }
    }

    /// Forgets a device, or what is of the edge node itself; gives the bytes that it took.
    fn forget(&mut self, name: &str, device: &str) -> usize {
        let (numbers, types) = (self.devices.remove(device), self.types.remove(device));
        bytes(name, device, numbers.as_ref(), types.as_ref())
    }

    /// Forgets all but the life.
    fn forget_all(&mut self, name: &str) -> usize {
        let before = self.bytes(name);
        self.devices.clear();
        self.types.clear();
        before
    }

    fn bytes(&self, name: &str) -> usize {
        let devices: BTreeSet<&String> = self.devices.keys().chain(self.types.keys()).collect();
        devices.into_iter().map(|device| bytes(name, device, self.devices.get(device), self.types.get(device))).sum()
    }
}

/// What the metrics of a device take, with the names that lead to them.
fn bytes(
    node: &str,
    device: &str,
    numbers: Option<&BTreeMap<u64, Known>>,
    types: Option<&BTreeMap<String, u32>>,
) -> usize {
    let numbers = numbers.into_iter().flat_map(BTreeMap::values).map(|known| known.name.len());
    let types = types.into_iter().flat_map(BTreeMap::keys).map(String::len);
    let metrics: usize = numbers.chain(types).map(|name| name + OVERHEAD).sum();
    if metrics == 0 { 0 } else { node.len() + device.len() + OVERHEAD + metrics }
}

impl Saving {
    /// Writes them, and waits for the disk.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write(&self) -> Result<(), FileError> {
        file::replace(&self.file, &self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[&str]) -> Metrics {
        let numbers = (1..).zip(names.iter().map(|name| Known { name: (*name).to_owned(), datatype: 3 })).collect();
        Metrics { numbers, ..Metrics::default() }
    }

    fn typed(names: &[&str]) -> Metrics {
        let types = names.iter().map(|name| ((*name).to_owned(), 3)).collect();
        Metrics { types, ..Metrics::default() }
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
        assert_eq!((tables.known("g", "e", None, 2), tables.bytes), (None, 5 * OVERHEAD + 10));
        assert!(tables.learn("g", "e", None, known(&["a"])));
        assert_eq!((tables.known("g", "e", Some("d"), 2), tables.bytes), (None, 2 * OVERHEAD + 4));
        assert!(tables.saving().is_some());
        std::fs::write(folder.path().join("sparkplug-m.json"), "{").unwrap();
        assert_eq!(Tables::open(folder.path(), "m").unwrap().bytes, 0, "what is damaged is learnt anew");
    }

    #[test]
    fn what_there_is_no_room_for_is_not_learnt() {
        let mut tables = Tables::in_memory();
        let known = |alias| (alias, Known { name: "a".into(), datatype: 3 });
        let many = |count: u64| Metrics { numbers: (0..count).map(known).collect(), ..Metrics::default() };
        let most = (MOST_BYTES / (OVERHEAD + 1)) as u64 - 1;
        assert!(tables.learn("g", "e", None, many(most)));
        assert!(!tables.learn("g", "other", None, many(1)) && tables.known("g", "other", None, 0).is_none());
        assert!(tables.learn("g", "e", None, many(1)) && tables.learn("g", "other", None, many(1)));
        assert_eq!((tables.bytes, tables.nodes.len()), (4 * OVERHEAD + 12, 2));
    }

    #[test]
    fn the_names_of_edge_nodes_take_room_too() {
        let mut tables = Tables::in_memory();
        let long = |number: usize| format!("{number:01000}");
        let learnt =
            (0..2 * MOST_BYTES / 1000).take_while(|number| tables.learn(&long(*number), "e", None, known(&["a"])));
        assert!((20_000..MOST_BYTES / 1000).contains(&learnt.count()));
    }

    #[test]
    fn types_of_what_comes_by_name_outlive_the_process_and_end_with_a_death() {
        let folder = tempfile::tempdir().unwrap();
        let mut tables = Tables::open(folder.path(), "m").unwrap();
        assert!(tables.learn("g", "e", None, typed(&["a"])) && tables.learn("g", "e", Some("d"), typed(&["b", "c"])));
        tables.saving().unwrap().write().unwrap();
        let mut tables = Tables::open(folder.path(), "m").unwrap();
        assert_eq!((tables.datatype("g", "e", Some("d"), "c"), tables.bytes), (Some(3), 5 * OVERHEAD + 10));
        assert!(tables.learn("g", "e", Some("d"), typed(&["b", "c"])) && tables.saving().is_none());
        assert!(tables.died("g", "e", Some("d"), None) && tables.datatype("g", "e", Some("d"), "c").is_none());
        assert_eq!(tables.datatype("g", "e", None, "a"), Some(3));
        assert!(tables.died("g", "e", None, None) && tables.nodes.is_empty());
        assert_eq!(tables.bytes, 0);
        // As the release before wrote it.
        std::fs::write(
            folder.path().join("sparkplug-m.json"),
            r#"{"g/e":{"life":1,"devices":{"":{"1":{"name":"a","datatype":3}}}}}"#,
        )
        .unwrap();
        assert_eq!(Tables::open(folder.path(), "m").unwrap().known("g", "e", None, 1).unwrap().name, "a");
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
