//! For tests: lets syncs fail on demand, and knows what of a directory a power cut would leave.
//!
//! A sector of 512 bytes is after the cut as it was at the file's last sync, or as it was written since. Names are as
//! they were at the directory's last sync, or after any of the changes since, in their order. What was written before a
//! failed sync stays as it was on the disk, however many syncs follow, until it is written again: that is what kernels
//! do.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
    static MEANWHILE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// One directory that is watched.
struct Stage {
    directory: PathBuf,
    good: usize,
    failing: usize,
    /// A file's identity by inode, since inodes are used again.
    identities: HashMap<u64, usize>,
    files: usize,
    durable: HashMap<usize, Vec<u8>>,
    /// Pages that the kernel holds for written and that are not.
    believed: HashMap<usize, HashSet<usize>>,
    removed: HashMap<usize, Vec<u8>>,
    /// What the directory may list after a cut; the first is durable.
    listings: Vec<BTreeMap<String, usize>>,
    /// A cut that is to come after so many operations.
    planned: Option<(usize, Choices)>,
    cut: Option<TempDir>,
    /// The process is to be killed after so many operations.
    doomed: Option<usize>,
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
        good: 0,
        failing: 0,
        identities: HashMap::new(),
        files: 0,
        durable: HashMap::new(),
        believed: HashMap::new(),
        removed: HashMap::new(),
        listings: Vec::new(),
        planned: None,
        cut: None,
        doomed: None,
    };
    for (path, inode) in files(directory) {
        let identity = stage.identify(inode);
        stage.durable.insert(identity, std::fs::read(path).expect("readable"));
    }
    stage.listings = vec![stage.listing()];
    STAGE.set(Some(stage));
}

/// Does `act` while the next sync of a file is under way.
pub(crate) fn at_next_sync(act: impl FnOnce() + 'static) {
    MEANWHILE.set(Some(Box::new(act)));
}

/// Lets the next `count` syncs of files fail.
pub(crate) fn fail_syncs(count: usize) {
    fail_syncs_after(0, count);
}

/// Lets `count` syncs of files fail after `good` that do not.
pub(crate) fn fail_syncs_after(good: usize, count: usize) {
    with(|stage| (stage.good, stage.failing) = (good, count));
}

/// Cuts the power after `operations` more operations on files; [`cut`] gives what is left.
pub(crate) fn cut_after(operations: usize, choices: Choices) {
    with(|stage| stage.planned = Some((operations, choices)));
}

/// Does `act`, but ends it after `operations` operations on files, as kill -9 would. Whatever `act` holds is left to the
/// caller.
pub(crate) fn kill_after(operations: usize, act: impl FnOnce()) {
    let doom = |operations| STAGE.with_borrow_mut(|stage| stage.as_mut().map(|stage| stage.doomed = operations));
    doom(Some(operations));
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    doom(None);
    if let Err(other) = ended
        && !other.is::<Killed>()
    {
        std::panic::resume_unwind(other);
    }
}

/// What unwinds a thread that is killed.
struct Killed;

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

pub(crate) fn writing(file: &File, offset: u64, length: usize) {
    with(|stage| {
        let identity = stage.identify(file.metadata().expect("metadata").ino());
        let pages = offset as usize / PAGE..(offset as usize + length).div_ceil(PAGE);
        if let Some(believed) = stage.believed.get_mut(&identity) {
            believed.retain(|page| !pages.contains(page));
        }
    });
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
    if let Some(act) = MEANWHILE.take() {
        act();
    }
    let mut result = Ok(());
    with(|stage| {
        if stage.good > 0 {
            stage.good -= 1;
        } else if stage.failing > 0 {
            stage.failing -= 1;
            let identity = stage.identify(file.metadata().expect("metadata").ino());
            let (durable, present) = (stage.durable.entry(identity).or_default(), content(file));
            let page =
                |bytes: &[u8], page: usize| bytes.get(page * PAGE..).map(|rest| rest[..rest.len().min(PAGE)].to_vec());
            let differ = (0..present.len().div_ceil(PAGE)).filter(|at| page(durable, *at) != page(&present, *at));
            stage.believed.entry(identity).or_default().extend(differ);
            result = Err(rustix::io::Errno::IO.into());
        }
    });
    result
}

pub(crate) fn synced(file: &File) {
    with(|stage| {
        let identity = stage.identify(file.metadata().expect("metadata").ino());
        let mut bytes = content(file);
        let before = stage.durable.entry(identity).or_default();
        for page in stage.believed.get(&identity).into_iter().flatten() {
            for at in page * PAGE..bytes.len().min((page + 1) * PAGE) {
                bytes[at] = before.get(at).copied().unwrap_or(0);
            }
        }
        *before = bytes;
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
    let killed = STAGE.with_borrow_mut(|stage| {
        let Some(stage) = stage else { return false };
        act(stage);
        stage.tick();
        let operations = stage.doomed.take();
        stage.doomed = operations.and_then(|operations| operations.checked_sub(1));
        operations == Some(0)
    });
    if killed && !std::thread::panicking() {
        std::panic::resume_unwind(Box::new(Killed));
    }
}

fn files(directory: &Path) -> impl Iterator<Item = (PathBuf, u64)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok().filter(|m| m.is_file())?.ino())))
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("metadata").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("readable");
    bytes
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
