//! A `/proc` or cgroup file that stays open and is read from its start each time: half the cost of opening it anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An open file of the kernel's.
#[derive(Debug)]
pub(crate) struct Kept(File);

impl Kept {
    pub(crate) fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Reads the file as it is now into `page` and gives back its text.
    ///
    /// Fails with `ENODEV` when the cgroup it belonged to is gone, and with `InvalidData` when it isn't text.
    pub(crate) fn read<'a>(&self, page: &'a mut Page) -> io::Result<&'a str> {
        let mut length = 0;
        loop {
            if page.0.len() - length < Page::ROOM {
                if length >= Page::LARGEST {
                    break;
                }
                page.0.resize(length * 2, 0);
            }
            let read = self.0.read_at(page.0.get_mut(length..).unwrap_or_default(), length as u64)?;
            length += read;
            // The kernel hands such files out a page at a time: what fits in half a page is complete, and
            // asking again would double the number of calls.
            if read < Page::ROOM / 2 {
                break;
            }
        }
        std::str::from_utf8(page.0.get(..length).unwrap_or_default())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// A file that may not be there yet: opened when first read, and again after it failed.
#[derive(Debug)]
pub(crate) struct Source {
    path: &'static str,
    file: Option<Kept>,
}

impl Source {
    pub(crate) const fn new(path: &'static str) -> Self {
        Self { path, file: None }
    }

    /// The file's text, or `None` when it can't be read.
    pub(crate) fn read<'a>(&mut self, page: &'a mut Page) -> Option<&'a str> {
        if self.file.is_none() {
            self.file = Kept::open(self.path).ok();
        }
        match self.file.as_ref()?.read(page) {
            Ok(text) => Some(text),
            Err(error) => {
                tracing::debug!(path = self.path, %error, "could not read");
                self.file = None;
                None
            }
        }
    }
}

/// The buffer that all files are read into, one after another.
#[derive(Debug)]
pub(crate) struct Page(Vec<u8>);

impl Page {
    /// Offered to each read at the least: one page, as much as the kernel gives out at a time.
    const ROOM: usize = 4096;
    /// What is longer is cut: no file read here grows beyond this on any machine we know of.
    const LARGEST: usize = 256 * 1024;

    pub(crate) fn new() -> Self {
        Self(vec![0; 2 * Self::ROOM])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_shows_what_it_holds_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("figure");
        let mut page = Page::new();
        std::fs::write(&path, "1\n").unwrap();
        let kept = Kept::open(&path).unwrap();
        assert_eq!(kept.read(&mut page).unwrap(), "1\n");
        for text in ["22\n".to_owned(), "x".repeat(5 * Page::ROOM), String::new()] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(kept.read(&mut page).unwrap(), text);
        }
    }

    #[test]
    fn a_real_proc_file_is_read_whole() {
        let mut page = Page::new();
        let mut source = Source::new("/proc/self/mountinfo");
        assert_eq!(
            source.read(&mut page).unwrap().lines().count(),
            std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
        );
        assert_eq!(Source::new("/proc/no-such-file").read(&mut page), None);
    }
}
