//! A bridge's configuration: any file is read or refused, and what is read can be explained.

#![no_main]

use hyperfactory_bridge::config::Config;
use hyperfactory_bridge::{dry_run, show};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let file = directory.path().join("bridge.toml");
    std::fs::write(&file, bytes).expect("written");
    if let Ok(config) = Config::load(Some(&file), Some(directory.path().to_owned())) {
        let _ = show::check(&config);
        for topic in ["umh/v1/acme/_raw/temp", "machines/a", "", "//"] {
            let _ = dry_run::explain(&config, topic, None);
            let _ = dry_run::explain(&config, topic, Some(bytes));
        }
    }
});
