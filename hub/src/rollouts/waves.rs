//! Waves: which nodes come first, and how many more with each wave.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use protocol::NodeId;

use crate::labels::Label;

/// Most waves of a rollout.
const MOST: usize = 20;

/// How far one wave reaches: waves before it included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// So many nodes.
    Nodes(u32),
    /// This share of the nodes, percent.
    Share(u8),
    /// All that have this label.
    Label(Label),
}

/// How far a rollout reaches with each wave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waves(Vec<Reach>);

/// Waves that are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WavesError {
    /// Unreadable.
    #[error("{0:?} is not a wave: say how many nodes have it by then (5), their share (10%) or a label (ring=canary)")]
    Malformed(String),
    /// None, or too many.
    #[error("a rollout has 1 to {MOST} waves")]
    Count,
    /// It does not reach everybody.
    #[error("the last wave reaches all: it is 100%")]
    Last,
}

impl Waves {
    /// What is done unless told otherwise: one node, then a tenth, half, and all.
    pub fn usual() -> Self {
        Self(vec![Reach::Nodes(1), Reach::Share(10), Reach::Share(50), Reach::Share(100)])
    }

    /// Checks them.
    ///
    /// # Errors
    /// [`WavesError`].
    pub fn new(waves: Vec<Reach>) -> Result<Self, WavesError> {
        if !(1..=MOST).contains(&waves.len()) {
            return Err(WavesError::Count);
        }
        if waves.last() != Some(&Reach::Share(100)) {
            return Err(WavesError::Last);
        }
        Ok(Self(waves))
    }

    /// The labels that are spoken of.
    pub fn labels(&self) -> impl Iterator<Item = &Label> {
        self.0.iter().filter_map(|reach| match reach {
            Reach::Label(label) => Some(label),
            _ => None,
        })
    }

    /// Divides nodes, in their order, among waves; a wave that reaches nobody new is none. `labelled` says who has a label.
    pub fn divide<'a>(
        &self,
        nodes: &[NodeId],
        labelled: impl Fn(&Label) -> Option<&'a HashSet<NodeId>>,
    ) -> Vec<Vec<NodeId>> {
        let (mut left, mut waves) = (nodes.to_vec(), Vec::new());
        for reach in &self.0 {
            let done = nodes.len() - left.len();
            let until = match reach {
                Reach::Nodes(count) => *count as usize,
                Reach::Share(percent) => (nodes.len() * usize::from(*percent)).div_ceil(100),
                Reach::Label(label) => {
                    let (wave, rest) = match labelled(label) {
                        Some(with) => left.iter().partition(|node| with.contains(node)),
                        None => (Vec::new(), left),
                    };
                    left = rest;
                    waves.push(wave);
                    continue;
                }
            };
            let rest = left.split_off(until.saturating_sub(done).min(left.len()));
            waves.push(std::mem::replace(&mut left, rest));
        }
        waves.retain(|wave| !wave.is_empty());
        waves
    }
}

impl FromStr for Reach {
    type Err = WavesError;

    fn from_str(text: &str) -> Result<Self, WavesError> {
        let malformed = || WavesError::Malformed(text.chars().take(64).collect());
        if text.contains('=') {
            return text.parse().map(Self::Label).map_err(|_| malformed());
        }
        match text.strip_suffix('%') {
            Some(share) => share.parse().ok().filter(|share| (1..=100).contains(share)).map(Self::Share),
            None => text.parse().ok().filter(|count| *count > 0).map(Self::Nodes),
        }
        .ok_or_else(malformed)
    }
}

impl FromStr for Waves {
    type Err = WavesError;

    fn from_str(text: &str) -> Result<Self, WavesError> {
        Self::new(text.split(',').map(|wave| wave.trim().parse()).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for Waves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, reach) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match reach {
                Reach::Nodes(count) => write!(f, "{comma}{count}")?,
                Reach::Share(percent) => write!(f, "{comma}{percent}%")?,
                Reach::Label(Label { name, value }) => write!(f, "{comma}{name}={value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use protocol::Timestamp;

    use super::*;

    fn nodes(count: u8) -> Vec<NodeId> {
        (0..count).map(|number| NodeId::new(Timestamp::from_millis(1), [number; 10])).collect()
    }

    fn sizes(waves: &str, count: u8) -> Vec<usize> {
        let waves: Waves = waves.parse().expect("waves");
        let divided = waves.divide(&nodes(count), |_| None);
        assert_eq!(divided.concat(), nodes(count), "each once, in order");
        divided.iter().map(Vec::len).collect()
    }

    #[test]
    fn each_wave_reaches_further_than_the_one_before() {
        assert_eq!(sizes("1,10%,50%,100%", 100), [1, 9, 40, 50]);
        assert_eq!(sizes("1,10%,50%,100%", 3), [1, 1, 1]);
        assert_eq!(sizes("5,100%", 3), [3]);
        assert_eq!(sizes("100%", 7), [7]);
        assert_eq!(sizes("10,5%,100%", 100), [10, 90], "a share that is reached already is no wave");
    }

    #[test]
    fn a_label_names_a_wave() {
        let (all, waves) = (nodes(10), "ring=canary,50%,100%".parse::<Waves>().expect("waves"));
        let canary: HashSet<NodeId> = [all[3], all[8]].into();
        let divided = waves.divide(&all, |label| (label.value == "canary").then_some(&canary));
        assert_eq!(divided[0], [all[3], all[8]]);
        assert_eq!(divided.iter().map(Vec::len).collect::<Vec<_>>(), [2, 3, 5]);
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        for bad in ["", "1", "0,100%", "101%", "1,x,100%", "100%,50%", "a=,100%"] {
            assert!(bad.parse::<Waves>().is_err(), "{bad}");
        }
        assert_eq!(Waves::usual().to_string().parse(), Ok(Waves::usual()));
    }
}
