//! Some hundreds of chains, each wrong in one place or in two, before four judges: ours, rustls-webpki, OpenSSL, GnuTLS.
//!
//! The chains come from `mutations`, which says of each whether our doors may open for it. Where the judges do not agree,
//! the difference has a name and a reason in `differences`, and is to the letter what is listed there.

mod differences;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use protocol::Timestamp;

use crate::fleet::Fleet;
use crate::judges::{Door, Judges, Verdict};
use crate::mutations::{self, Mutation, Site};

use self::differences::{DIFFERENCES, Difference};

/// Where the pairs come from.
const SEED: u64 = 0x6879_7065_7266_6163;
/// Pairs of mutations for each door.
const PAIRS: usize = 100;

#[test]
fn the_hubs_door_opens_for_good_chains_alone_and_every_difference_of_the_judges_is_argued() {
    judge(Door::Hub);
}

#[test]
fn a_nodes_door_opens_for_good_chains_alone_and_every_difference_of_the_judges_is_argued() {
    judge(Door::Node);
}

fn judge(door: Door) {
    let court = Court::new(door);
    let singles: Vec<Judged> = court.mutations.iter().map(|mutation| court.judge(&[mutation])).collect();
    let mut wrong = Vec::new();

    let mut differences: BTreeMap<&str, String> = BTreeMap::new();
    for (mutation, judged) in court.mutations.iter().zip(&singles) {
        if judged.verdicts()[0] != mutation.opens.contains(&door) {
            wrong.push(format!("our door is wrong about it: {judged}"));
        }
        if !judged.is_unanimous() {
            differences.insert(&mutation.name, judged.pattern());
        }
    }
    wrong.extend(compare(door, &differences, |name| {
        let index = court.mutations.iter().position(|mutation| mutation.name == name).expect("it was judged");
        singles[index].to_string()
    }));

    for (first, second) in pairs(&court.mutations) {
        let judged = court.judge(&[&court.mutations[first], &court.mutations[second]]);
        let both: Vec<bool> =
            singles[first].verdicts().iter().zip(singles[second].verdicts()).map(|(a, b)| *a && b).collect();
        if judged.verdicts() != both.as_slice() {
            wrong.push(format!(
                "judged otherwise than its two parts {}{}: {judged}",
                singles[first].pattern(),
                singles[second].pattern()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), singles.len() + PAIRS, wrong.join("\n"));
    assert!(singles.len() + PAIRS > 300, "{} chains", singles.len() + PAIRS);
}

/// What is not listed, or listed and not so.
fn compare(door: Door, found: &BTreeMap<&str, String>, told: impl Fn(&str) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut listed = BTreeSet::new();
    for Difference(why, _, pattern, names) in DIFFERENCES.iter().filter(|difference| difference.1.contains(&door)) {
        for name in *names {
            if !listed.insert(*name) {
                wrong.push(format!("listed twice: {name}"));
            }
            if found.get(name) != Some(&(*pattern).to_owned()) {
                wrong.push(format!("listed as {why:?} {pattern}, and is {:?}: {name}", found.get(name)));
            }
        }
    }
    wrong.extend(found.keys().filter(|name| !listed.contains(*name)).map(|name| format!("not listed: {}", told(name))));
    wrong
}

/// Pairs of mutations of different parts, the same ones in every run.
fn pairs(mutations: &[Mutation]) -> BTreeSet<(usize, usize)> {
    let mut state = SEED;
    // SplitMix64
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((word ^ word >> 31) % mutations.len() as u64).expect("an index")
    };
    let mut pairs = BTreeSet::new();
    while pairs.len() < PAIRS {
        let (a, b) = (next(), next());
        let (first, second) = (&mutations[a.min(b)], &mutations[a.max(b)]);
        if first.part != second.part && first.combines && second.combines {
            pairs.insert((a.min(b), a.max(b)));
        }
    }
    pairs
}

struct Court {
    door: Door,
    judges: Judges,
    site: Site,
    mutations: Vec<Mutation>,
}

impl Court {
    fn new(door: Door) -> Self {
        // GnuTLS's tool judges at no other time.
        let now: Timestamp = SystemTime::now().into();
        let judges = Judges::new(Fleet::at(now), now);
        let site = Site::new(door, &judges.fleet, now, judges.folder());
        Self { door, judges, site, mutations: mutations::catalogue() }
    }

    fn judge(&self, mutations: &[&Mutation]) -> Judged {
        let mut draft = self.site.draft();
        for mutation in mutations {
            mutation.apply(&self.site, &mut draft);
        }
        let shown = draft.mint();
        Judged {
            name: mutations.iter().map(|mutation| mutation.name.as_str()).collect::<Vec<_>>().join(" + "),
            said: [
                self.judges.ours(self.door, &shown),
                self.judges.webpki(self.door, &shown),
                self.judges.openssl(self.door, &shown),
                self.judges.gnutls(self.door, &shown),
            ],
        }
    }
}

/// What the four say, in the order of the columns below.
struct Judged {
    name: String,
    said: [Verdict; 4],
}

impl Judged {
    fn verdicts(&self) -> [bool; 4] {
        self.said.each_ref().map(Result::is_ok)
    }

    fn is_unanimous(&self) -> bool {
        self.verdicts().iter().all(|accepts| *accepts == self.verdicts()[0])
    }

    fn pattern(&self) -> String {
        self.verdicts().map(|accepts| if accepts { '+' } else { '-' }).iter().collect()
    }
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pattern(), self.name)?;
        for (judge, said) in ["ours", "webpki", "OpenSSL", "GnuTLS"].iter().zip(&self.said) {
            if let Err(said) = said {
                let last = said.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join(" | ");
                write!(f, "\n      {judge}: {}", last.chars().take(400).collect::<String>())?;
            }
        }
        Ok(())
    }
}
