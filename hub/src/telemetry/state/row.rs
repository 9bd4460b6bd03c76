//! A row's integers at rest: in the bytes they need, a third to a half of eight each.

use std::sync::Arc;

/// Stands for "not measured": no real figure is the smallest of all numbers.
const NONE: i64 = i64::MIN;

/// Integers, some of them missing. Copies share them.
///
/// A hub keeps two rows of every node and reads few of them, so one is found by walking there: each is in LEB128 (7 bits a
/// byte, least significant first) after zigzag, plus one, so that a missing one is a zero byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row(Arc<[u8]>);

impl Row {
    /// The integers in this order.
    pub(super) fn new(values: impl Iterator<Item = Option<i64>>) -> Self {
        let mut bytes = Vec::with_capacity(values.size_hint().0 * 4);
        for value in values {
            let value = value.unwrap_or(NONE);
            // The smallest of all numbers is the largest after zigzag, and wraps to 0.
            let mut rest = (((value << 1) ^ (value >> 63)) as u64).wrapping_add(1);
            while rest >= 0x80 {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
        }
        Self(bytes.into())
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = Option<i64>> {
        let mut bytes = self.0.iter();
        std::iter::from_fn(move || {
            let (mut number, mut shift) = (0, 0);
            loop {
                let byte = *bytes.next()?;
                number |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
                shift += 7;
            }
            let zigzag = number.checked_sub(1);
            Some(zigzag.map(|zigzag| (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_small_number_takes_a_byte_and_a_missing_one_too() {
        let row = Row::new([Some(0), None, Some(-31), Some(62)].into_iter());
        assert_eq!(row.0.len(), 4);
        assert_eq!(row.iter().collect::<Vec<_>>(), [Some(0), None, Some(-31), Some(62)]);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(values in prop::collection::vec(prop::option::of(i64::MIN + 1..), 0..40)) {
            prop_assert_eq!(Row::new(values.iter().copied()).iter().collect::<Vec<_>>(), values);
        }
    }
}
