//! A spool's files with bytes changed, cut or put in: it opens, accounts for every number, and goes on.

#![no_main]

use spool::{Options, Spool};

const SEGMENT: u64 = 4096;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let options = Options {
        segment_bytes: SEGMENT,
        reserve_bytes: 2 * SEGMENT,
        ..Options::new(directory.path(), 8 * SEGMENT)
    };
    let (mut spool, _) = Spool::open(options.clone(), 1).expect("opened");
    for number in 0..60u8 {
        spool
            .append(&[number; 150], spool.needs_key() || number % 5 == 0)
            .or_else(|_| spool.append(&[number; 150], true))
            .expect("appended");
    }
    spool.sync().expect("synced");
    drop(spool);

    let mut paths: Vec<_> =
        std::fs::read_dir(directory.path()).expect("listed").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    // Each six bytes are one change: the file, what to do, where, and with what.
    for change in bytes.chunks_exact(6) {
        let path = &paths[usize::from(change[0]) % paths.len()];
        let Ok(mut content) = std::fs::read(path) else { continue };
        let at = usize::from(u16::from_le_bytes([change[2], change[3]])) % (content.len() + 1);
        match change[1] % 5 {
            0 if at < content.len() => content[at] ^= change[4] | 1,
            1 => content.truncate(at),
            2 => drop(content.splice(at..at, bytes.iter().copied().take(usize::from(change[5])))),
            3 => content.extend_from_within(at.saturating_sub(usize::from(change[5]))..at),
            _ => drop(std::fs::rename(path, &paths[usize::from(change[5]) % paths.len()])),
        }
        if change[1] % 5 < 4 {
            std::fs::write(path, content).expect("written");
        }
    }

    let (mut spool, _) = Spool::open(options, 2).expect("damage is no reason not to start");
    let mut at = spool.first();
    let mut reader = spool.read_from(at);
    while let Some(entry) = reader.next(&mut spool).expect("readable") {
        assert!(entry.next_sequence() > at);
        at = entry.next_sequence();
    }
    let last = spool.last();
    spool.append(b"more", true).expect("appended");
    spool.sync().expect("synced");
    assert_eq!(spool.last(), last + 1);
    spool.acknowledge(spool.last()).expect("acknowledged");
});
