//! A clock that is wrong: libfaketime between one program and its wall clock.

use anyhow::{Context, Result};

/// What [`off_by`] sets.
pub(super) const VARIABLES: [&str; 4] = ["LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"];

/// The environment in which a program's wall clock is off by `offset` (`+365d`, `-5m`). Its monotonic clock is not, and
/// neither are the times of its files.
pub(super) fn off_by(offset: &str) -> Result<[(String, String); 4]> {
    let library = library().context("no libfaketimeMT.so.1: install Debian's package faketime")?;
    let values = [&library, offset, "1", "1"];
    Ok(std::array::from_fn(|index| (VARIABLES[index].to_owned(), values[index].to_owned())))
}

fn library() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let mut found =
        folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).filter(|path| path.exists());
    Some(found.next()?.to_str()?.to_owned())
}
