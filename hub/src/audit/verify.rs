//! Whether a log is what was written: the chain itself, the heads that were published, and the certificates.

mod database;
mod export;
mod finding;

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::chain::{Hash, Head, Link};

pub use database::{DatabaseError, database};
pub use export::export;
pub use finding::Finding;

/// Findings kept; of more, only the number.
const FINDINGS: usize = 10_000;

/// What a verification came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Entries read.
    pub entries: u64,
    /// Certificates compared with the log.
    pub certificates: u64,
    /// The newest entry.
    pub head: Option<Head>,
    /// What should not be: at most 10,000.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
}

/// How much of the log there is to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// All of it, or all from an entry on whose predecessor is a published head.
    #[default]
    Whole,
    /// Some entries of it, such as one tenant's: what is not there is no finding.
    Part,
}

/// Walks a log, entry by entry.
pub(crate) struct Walk {
    extent: Extent,
    /// Published heads by number.
    heads: BTreeMap<i64, Vec<Hash>>,
    /// The newest entry so far.
    last: Option<Head>,
    /// Every certificate the log says was issued, by its SHA-256.
    logged: HashMap<String, Logged>,
    report: Report,
}

/// An issuance in the log.
struct Logged {
    entry: i64,
    serial: String,
    not_after: String,
    /// Whether the certificate is where certificates are kept.
    seen: bool,
}

impl Walk {
    pub(crate) fn new(extent: Extent, heads: &[Head]) -> Self {
        let mut known: BTreeMap<i64, Vec<Hash>> = BTreeMap::new();
        for head in heads {
            known.entry(head.id).or_default().push(head.hash);
        }
        Self { extent, heads: known, last: None, logged: HashMap::new(), report: Report::default() }
    }

    /// The next entry, as it stands there.
    pub(crate) fn entry(&mut self, link: &Link) {
        self.report.entries += 1;
        if !link.is_intact() {
            self.found(Finding::Altered { id: link.id });
        }
        match self.last {
            Some(last) if link.id <= last.id => {
                self.found(Finding::OutOfOrder { id: link.id, after: last.id });
                return;
            }
            Some(last) if link.id == last.id + 1 => {
                if link.previous != last.hash {
                    self.found(Finding::Broken { id: link.id });
                }
            }
            Some(last) => self.gap(last.id + 1, link),
            None if link.id == 1 => {
                if link.previous != Hash::NONE {
                    self.found(Finding::Broken { id: 1 });
                }
            }
            None => self.gap(1, link),
        }
        self.compare(Head { id: link.id, hash: link.hash });
        self.last = Some(Head { id: link.id, hash: link.hash });
        self.note_issuance(link);
    }

    /// An entry or line that can't be read as one.
    pub(crate) fn unreadable(&mut self, place: String, why: String) {
        self.found(Finding::Unreadable { place, why });
    }

    pub(crate) fn found(&mut self, finding: Finding) {
        if self.report.findings.len() < FINDINGS {
            self.report.findings.push(finding);
        } else {
            self.report.more += 1;
        }
    }

    /// A certificate, as it is kept: whether the log knows it.
    pub(crate) fn certificate(&mut self, what: &str, sha256: &str) {
        self.report.certificates += 1;
        match self.logged.get_mut(sha256) {
            Some(logged) => logged.seen = true,
            None => self.found(Finding::Unlogged { what: what.to_owned(), sha256: sha256.to_owned() }),
        }
    }

    /// All certificates that are kept have been shown: what the log has beside them is gone. One that has ended by
    /// `now` may have been cleared away.
    pub(crate) fn certificates_done(&mut self, now: &str) {
        let mut gone: Vec<Finding> = Vec::new();
        for logged in self.logged.values().filter(|logged| !logged.seen) {
            if logged.not_after.as_str() > now {
                gone.push(Finding::Gone { entry: logged.entry, serial: logged.serial.clone() });
            }
        }
        gone.sort_by_key(Finding::entry);
        gone.into_iter().for_each(|finding| self.found(finding));
    }

    /// The end of the log; `head` is what the database says it is.
    pub(crate) fn finish(mut self, head: Option<Head>) -> Report {
        let last = self.last.unwrap_or(Head { id: 0, hash: Hash::NONE });
        if let Some(head) = head.filter(|head| *head != last) {
            self.found(Finding::Head { head, last });
        }
        if self.extent == Extent::Whole {
            let beyond: Vec<i64> = self.heads.range(last.id + 1..).map(|(id, _)| *id).collect();
            for id in beyond {
                self.found(Finding::Cut { published: id, last: last.id });
            }
        }
        self.report.head = self.last;
        self.report
    }

    /// Entries from `first` to before `link` are not there.
    fn gap(&mut self, first: i64, link: &Link) {
        let before = Head { id: link.id - 1, hash: link.previous };
        let anchored = self.last.is_none() && self.heads.contains_key(&before.id);
        self.compare(before);
        if self.extent == Extent::Whole && !anchored {
            self.found(Finding::Missing { first, last: before.id });
        }
    }

    /// Compares a place in the log with what was published of it.
    fn compare(&mut self, here: Head) {
        let published = self.heads.get(&here.id).into_iter().flatten();
        let other: Vec<Hash> = published.filter(|hash| **hash != here.hash).copied().collect();
        for hash in other {
            self.found(Finding::Rewritten { published: Head { id: here.id, hash } });
        }
    }

    fn note_issuance(&mut self, link: &Link) {
        let Ok(detail) = serde_json::from_str::<Value>(&link.detail) else { return };
        let issued = &detail["certificate"];
        for certificate in issued.as_array().map_or(std::slice::from_ref(issued), Vec::as_slice) {
            let text = |name: &str| certificate[name].as_str().unwrap_or_default().to_owned();
            if certificate["sha256"].is_string() {
                let logged =
                    Logged { entry: link.id, serial: text("serial"), not_after: text("not_after"), seen: false };
                self.logged.insert(text("sha256"), logged);
            }
        }
    }
}
