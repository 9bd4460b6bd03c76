//! Who is meant, told from anybody else: a preview has a digest of its nodes, and what was seen is what is done.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

use super::problem::Problem;
use super::resource::Node;

/// Of nodes in waves, the SHA-256 in hex of their ids: one on a line, sorted within each wave, and an empty line after each wave.
pub(crate) fn digest_of<'a>(waves: impl IntoIterator<Item = Vec<&'a str>>) -> String {
    let mut text = String::new();
    for mut wave in waves {
        wave.sort_unstable();
        for id in wave {
            text.push_str(id);
            text.push('\n');
        }
        text.push('\n');
    }
    HEXLOWER.encode(digest(&SHA256, text.as_bytes()).as_ref())
}

/// The nodes' ids.
pub(super) fn ids(nodes: &[Arc<Node>]) -> Vec<&str> {
    nodes.iter().map(|node| node.id.as_str()).collect()
}

/// Refuses others than those of the preview that was seen, if one was.
pub(super) fn as_seen(seen: Option<&str>, meant: &str) -> Result<(), Problem> {
    match seen {
        Some(seen) if seen != meant => Err(Problem::conflict(
            "Other nodes are meant by now than the preview has shown, or in other waves: look at it again. Nothing was done.",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_of_who_is_meant_and_in_which_wave_and_not_of_the_order_within_one() {
        let seen = digest_of([vec!["b", "a"], vec!["c"]]);
        assert_eq!(seen, HEXLOWER.encode(digest(&SHA256, b"a\nb\n\nc\n\n").as_ref()));
        assert_eq!(digest_of([vec!["a", "b"], vec!["c"]]), seen);
        for other in [vec![vec!["a"], vec!["b", "c"]], vec![vec!["a", "b", "c"]], vec![vec!["c"], vec!["a", "b"]]] {
            assert_ne!(digest_of(other), seen);
        }
        assert!(as_seen(None, &seen).is_ok() && as_seen(Some(&seen), &seen).is_ok());
        assert!(as_seen(Some(""), &seen).is_err());
    }
}
