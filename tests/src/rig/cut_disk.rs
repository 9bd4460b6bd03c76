//! A disk whose power can be cut: what was not synced is gone then.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::process::finish;

/// Nothing is written back by itself for so long, nor because a file takes another's place.
const OPTIONS: &str = "loop,commit=300,noauto_da_alloc";

/// An ext4 file system in a file; needs root; gone when dropped, whoever still uses it.
///
/// What is written and not synced is in the kernel's memory alone, not in that file: a copy of the file is what a power cut
/// leaves.
#[derive(Debug)]
pub struct CutDisk {
    folder: PathBuf,
    images: TempDir,
    cuts: u32,
}

impl CutDisk {
    /// One of `mebibytes` in place of a folder that is empty, or not there yet.
    pub fn over(folder: &Path, mebibytes: u64) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting a disk needs root: run the tests by ./test, which asks sudo");
        }
        std::fs::create_dir_all(folder).context("making the folder of a disk")?;
        let disk = Self { folder: folder.to_owned(), images: tempfile::tempdir()?, cuts: 0 };
        let image = disk.image();
        std::fs::File::create(&image).and_then(|file| file.set_len(mebibytes << 20)).context("making a disk's file")?;
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut format = Command::new("mkfs.ext4");
        // All is written now, and nothing later.
        format.env("PATH", path).args(["-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image);
        finish(&mut format)?;
        disk.mount()?;
        Ok(disk)
    }

    /// Cuts the power, and gives it again. Nobody may be writing: whoever did is killed before.
    pub fn cut(&mut self) -> Result<()> {
        let before = self.image();
        self.cuts += 1;
        std::fs::copy(&before, self.image()).context("copying what a disk has")?;
        self.unmount()?;
        std::fs::remove_file(before)?;
        self.mount()
    }

    fn image(&self) -> PathBuf {
        self.images.path().join(format!("disk-{}", self.cuts))
    }

    fn mount(&self) -> Result<()> {
        finish(Command::new("mount").args(["-t", "ext4", "-o", OPTIONS]).arg(self.image()).arg(&self.folder)).map(drop)
    }

    fn unmount(&self) -> Result<()> {
        finish(Command::new("umount").arg("--lazy").arg(&self.folder)).map(drop)
    }
}

impl Drop for CutDisk {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_cut_leaves_what_was_synced_and_nothing_else() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut disk = CutDisk::over(folder.path(), 16)?;
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("synced", "old")?;
        File::open(folder.path().join("synced"))?.sync_all()?;
        write("unsynced", "new")?;
        write("next", "new")?;
        std::fs::rename(folder.path().join("next"), folder.path().join("synced"))?;
        for _ in 0..2 {
            disk.cut()?;
            assert_eq!(std::fs::read_to_string(folder.path().join("synced"))?, "old");
            assert!(!folder.path().join("unsynced").exists());
            write("unsynced", "new")?;
        }
        drop(disk);
        assert!(!folder.path().join("synced").exists());
        Ok(())
    }
}
