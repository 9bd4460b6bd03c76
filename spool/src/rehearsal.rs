//! For tests: lets syncs fail on demand, and knows what of a directory a power cut would leave.
//!
//! A sector of 512 bytes is after the cut as it was at the file's last sync, or as it was written since. Names are as
//! they were at the directory's last sync, or after any of the changes since, in their order. A file that failed a sync
//! is never again more durable than before it, however many syncs follow: that is what kernels do.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const SECTOR: usize = 512;

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

/// One directory that is watched.
struct Stage {
    directory: PathBuf,
    failing: usize,
    /// A file's identity by inode, since inodes are used again.
    identities: HashMap<u64, usize>,
    files: usize,
    durable: HashMap<usize, Vec<u8>>,
    failed: HashSet<usize>,
    removed: HashMap<usize, Vec<u8>>,
    /// What the directory may list after a cut; the first is durable.
    listings: Vec<BTreeMap<String, usize>>,
    /// A cut that is to come after so many operations.
    planned: Option<(usize, Choices)>,
    cut: Option<TempDir>,
}

/// Random choices that a failing case repeats.
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound.max(1)
    }
}

/// Watches `directory` from now on; everything in it counts as durable.
pub(crate) fn watch(directory: &Path) {
    let mut stage = Stage {
        directory: directory.to_owned(),
        failing: 0,
        identities: HashMap::new(),
        files: 0,
        durable: HashMap::new(),
        failed: HashSet::new(),
        removed: HashMap::new(),
        listings: Vec::new(),
        planned: None,
        cut: None,
    };
    for (path, inode) in files(directory) {
        let identity = stage.identify(inode);
        stage.durable.insert(identity, std::fs::read(path).expect("readable"));
    }
    stage.listings = vec![stage.listing()];
    STAGE.set(Some(stage));
}

/// Lets the next `count` syncs of files fail.
pub(crate) fn fail_syncs(count: usize) {
    with(|stage| stage.failing = count);
}

/// Cuts the power after `operations` more operations on files; [`cut`] gives what is left.
pub(crate) fn cut_after(operations: usize, choices: Choices) {
    with(|stage| stage.planned = Some((operations, choices)));
}

/// A directory as the power cut that was planned left it, or one now would.
pub(crate) fn cut(choices: &mut Choices) -> TempDir {
    let mut after = None;
    with(|stage| {
        stage.planned = None;
        after = Some(stage.cut.take().unwrap_or_else(|| stage.leave(choices)));
    });
    after.expect("a directory is watched")
}

/// Where files are synced quickly, if there is such a place.
pub(crate) fn fast() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

pub(crate) fn writing() {
    with(|_| {});
}

pub(crate) fn created(directory: &Path, file: &File) {
    let inode = file.metadata().expect("metadata").ino();
    with(|stage| {
        stage.identities.remove(&inode);
        stage.identify(inode);
    });
    renamed(directory);
}

pub(crate) fn renamed(directory: &Path) {
    with(|stage| {
        if stage.directory == directory {
            stage.listings.push(stage.listing());
        }
    });
}

pub(crate) fn removing(path: &Path) {
    with(|stage| {
        if let (Ok(metadata), Ok(bytes)) = (std::fs::metadata(path), std::fs::read(path)) {
            let identity = stage.identify(metadata.ino());
            stage.removed.insert(identity, bytes);
        }
    });
}

pub(crate) fn before_sync(file: &File) -> io::Result<()> {
    let mut result = Ok(());
    with(|stage| {
        if stage.failing > 0 {
            stage.failing -= 1;
            let identity = stage.identify(file.metadata().expect("metadata").ino());
            stage.failed.insert(identity);
            result = Err(rustix::io::Errno::IO.into());
        }
    });
    result
}

pub(crate) fn synced(file: &File) {
    with(|stage| {
        let metadata = file.metadata().expect("metadata");
        let identity = stage.identify(metadata.ino());
        if !stage.failed.contains(&identity) {
            let mut bytes = vec![0; metadata.len() as usize];
            file.read_exact_at(&mut bytes, 0).expect("readable");
            stage.durable.insert(identity, bytes);
        }
    });
}

pub(crate) fn directory_synced(directory: &Path) {
    with(|stage| {
        if stage.directory == directory {
            stage.listings = vec![stage.listing()];
        }
    });
}

impl Stage {
    /// What a power cut now leaves.
    fn leave(&self, choices: &mut Choices) -> TempDir {
        let after = tempfile::tempdir_in(fast()).expect("a directory");
        let listing = &self.listings[choices.below(self.listings.len())];
        let present: HashMap<usize, Vec<u8>> = files(&self.directory)
            .filter_map(|(path, inode)| Some((*self.identities.get(&inode)?, std::fs::read(path).ok()?)))
            .collect();
        for (name, identity) in listing {
            let nothing = Vec::new();
            let old = self.durable.get(identity).unwrap_or(&nothing);
            let new = present.get(identity).or_else(|| self.removed.get(identity)).unwrap_or(old);
            std::fs::write(after.path().join(name), mixed(old, new, choices)).expect("written");
        }
        after
    }

    /// Counts one operation towards the cut that is planned.
    fn tick(&mut self) {
        match self.planned.take() {
            Some((0, mut choices)) => self.cut = Some(self.leave(&mut choices)),
            Some((operations, choices)) => self.planned = Some((operations - 1, choices)),
            None => {}
        }
    }

    fn identify(&mut self, inode: u64) -> usize {
        let files = &mut self.files;
        *self.identities.entry(inode).or_insert_with(|| {
            *files += 1;
            *files
        })
    }

    fn listing(&self) -> BTreeMap<String, usize> {
        let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        files(&self.directory).filter_map(|(path, inode)| Some((name(path)?, *self.identities.get(&inode)?))).collect()
    }
}

fn with(act: impl FnOnce(&mut Stage)) {
    STAGE.with_borrow_mut(|stage| {
        if let Some(stage) = stage {
            act(stage);
            stage.tick();
        }
    });
}

fn files(directory: &Path) -> impl Iterator<Item = (PathBuf, u64)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok().filter(|m| m.is_file())?.ino())))
}

/// Each sector old or new, and one of the two lengths.
fn mixed(old: &[u8], new: &[u8], choices: &mut Choices) -> Vec<u8> {
    let length = if choices.below(2) == 0 { old.len() } else { new.len() };
    // All old, all new, or a mixture.
    let kind = choices.below(3);
    let mut mixed = vec![0; length];
    for (index, sector) in mixed.chunks_mut(SECTOR).enumerate() {
        let take_new = match kind {
            0 => false,
            1 => true,
            _ => choices.below(2) == 1,
        };
        let from = if take_new { new } else { old };
        let from = from.get(index * SECTOR..).unwrap_or_default();
        let bytes = from.len().min(sector.len());
        sector[..bytes].copy_from_slice(&from[..bytes]);
    }
    mixed
}
