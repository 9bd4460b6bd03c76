//! A disk small enough to be filled.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::process::finish;

/// A file system in memory; needs root; gone when dropped, whoever still uses it.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
    /// `None` when the folder is somebody else's.
    _own: Option<TempDir>,
}

/// The file that takes the room.
const FILLER: &str = "filler";

impl SmallDisk {
    /// One of `kibibytes` in a folder of its own.
    pub fn create(kibibytes: u32) -> Result<Self> {
        let own = tempfile::tempdir()?;
        mount(own.path(), kibibytes)?;
        Ok(Self { folder: own.path().to_owned(), _own: Some(own) })
    }

    /// One of `kibibytes` in place of an empty folder.
    pub fn over(folder: &Path, kibibytes: u32) -> Result<Self> {
        mount(folder, kibibytes)?;
        Ok(Self { folder: folder.to_owned(), _own: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Takes all the room that is left.
    pub fn fill(&self) -> Result<()> {
        let mut filler =
            File::options().create(true).append(true).open(self.folder.join(FILLER)).context("making the filler")?;
        loop {
            match filler.write(&[0x55; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
    }

    /// Gives the room back.
    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.folder.join(FILLER)).context("removing the filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("--lazy").arg(&self.folder));
    }
}

fn mount(folder: &Path, kibibytes: u32) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("mounting a disk needs root: run the tests by ./test, which asks sudo");
    }
    let size = format!("size={kibibytes}k,mode=0700");
    finish(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_disk_takes_nothing_until_it_is_freed() -> Result<()> {
        let disk = SmallDisk::create(256)?;
        let file = disk.path().join("file");
        std::fs::write(&file, [1; 4096])?;
        disk.fill()?;
        assert_eq!(std::fs::write(disk.path().join("more"), [1]).unwrap_err().kind(), ErrorKind::StorageFull);
        disk.free()?;
        std::fs::write(disk.path().join("more"), [1])?;
        let path = disk.path().to_owned();
        drop(disk);
        assert!(!path.exists());
        Ok(())
    }
}
