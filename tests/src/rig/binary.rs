//! Where the binaries under test are: beside the test's own executable, in the same profile.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The path of one of the workspace's binaries, such as `hyperfactory-hub`.
///
/// A test runs from `target/PROFILE/deps/`, a benchmark from `target/PROFILE/`; the binaries are in the latter.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the test's own executable")?;
    let profile = own
        .ancestors()
        .skip(1)
        .find(|folder| folder.file_name().is_some_and(|name| name != "deps"))
        .with_context(|| format!("{} is in no build folder", own.display()))?;
    let path = profile.join(name);
    if !path.is_file() {
        let release = if profile.ends_with("release") { " --release" } else { "" };
        bail!("{} is not built: run cargo build --workspace --bins{release} first, as ./test does", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_that_is_not_built_says_how_to_build_it() {
        let error = binary("hyperfactory-nonesuch").unwrap_err().to_string();
        assert!(error.contains("hyperfactory-nonesuch is not built: run cargo build --workspace --bins"), "{error}");
    }
}
