//! A binary range coder: yes/no decisions with learned probabilities in a fraction of a bit each.
//!
//! The arithmetic is LZMA's (32-bit range, byte-wise renormalization), with probabilities of 16 bits.

/// Bits of a probability.
const SCALE: u32 = 16;
/// The range is refilled below this.
const REFILL: u32 = 1 << 24;

/// The probability that a decision is `true`, learned from the decisions made with it.
#[derive(Clone, Copy)]
pub(super) struct Chance(u16);

impl Chance {
    pub(super) const EVEN: Self = Self(1 << (SCALE - 1));

    /// `numerator / denominator`; the caller keeps it inside (0, 1).
    pub(super) const fn of(numerator: u32, denominator: u32) -> Self {
        Self((numerator * ((1 << SCALE) - 1) / denominator) as u16)
    }

    #[inline(always)]
    fn bound(self, range: u32) -> u32 {
        (range >> SCALE) * u32::from(self.0)
    }

    /// Moves by 1/2^`RATE` toward what happened, and stays 2^`RATE` - 1 away from either end.
    #[inline(always)]
    fn learn<const RATE: u32>(&mut self, happened: bool) {
        let target = if happened { 1 << SCALE } else { (1 << RATE) - 1 };
        self.0 = (i32::from(self.0) + ((target - i32::from(self.0)) >> RATE)) as u16;
    }
}

/// Writes decisions behind what `out` already holds.
pub(super) struct RangeEncoder<'a> {
    out: &'a mut Vec<u8>,
    low: u64,
    range: u32,
}

impl<'a> RangeEncoder<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, low: 0, range: u32::MAX }
    }

    #[inline(always)]
    pub(super) fn decide<const RATE: u32>(&mut self, chance: &mut Chance, happens: bool) {
        let bound = chance.bound(self.range);
        // Selected, not branched on: the outcome is often a coin's toss.
        self.low += if happens { 0 } else { u64::from(bound) };
        self.range = if happens { bound } else { self.range - bound };
        chance.learn::<RATE>(happens);
        while self.range < REFILL {
            self.shift();
        }
    }

    /// The lowest `count` bits of `bits`, each as likely 0 as 1, highest first.
    #[inline]
    pub(super) fn plain(&mut self, bits: u64, count: u32) {
        let mut left = count;
        while left > 0 {
            let now = left.min(8);
            left -= now;
            self.range >>= now;
            self.low += u64::from(self.range) * ((bits >> left) & ((1 << now) - 1));
            while self.range < REFILL {
                self.shift();
            }
        }
    }

    /// Ends with as few bytes as tell this message from every other: a reader takes missing bytes for zeros.
    pub(super) fn finish(mut self, start: usize) {
        let top = self.low + u64::from(self.range);
        for zeros in (0..=32).rev() {
            let rounded = (self.low + ((1u64 << zeros) - 1)) >> zeros << zeros;
            if rounded < top {
                self.low = rounded;
                break;
            }
        }
        for _ in 0..4 {
            self.shift();
        }
        while self.out.len() > start && self.out.last() == Some(&0) {
            self.out.pop();
        }
    }

    #[inline]
    fn shift(&mut self) {
        if self.low > u64::from(u32::MAX) {
            for byte in self.out.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        }
        self.out.push((self.low >> 24) as u8);
        self.low = u64::from((self.low as u32) << 8);
        self.range <<= 8;
    }
}

/// Reads decisions; past the end of the bytes there are zeros without end.
pub(super) struct RangeDecoder<'a> {
    bytes: &'a [u8],
    code: u32,
    range: u32,
}

impl<'a> RangeDecoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, code: 0, range: u32::MAX };
        for _ in 0..4 {
            decoder.code = decoder.code << 8 | decoder.next();
        }
        decoder
    }

    #[inline(always)]
    pub(super) fn decide<const RATE: u32>(&mut self, chance: &mut Chance) -> bool {
        let bound = chance.bound(self.range);
        let happens = self.code < bound;
        self.code -= if happens { 0 } else { bound };
        self.range = if happens { bound } else { self.range - bound };
        chance.learn::<RATE>(happens);
        self.refill();
        happens
    }

    #[inline]
    pub(super) fn plain(&mut self, count: u32) -> u64 {
        let mut bits = 0u64;
        let mut left = count;
        while left > 0 {
            let now = left.min(8);
            left -= now;
            self.range >>= now;
            // A hostile message may hold a code beyond the last bit pattern.
            let found = (self.code / self.range).min((1 << now) - 1);
            self.code -= found * self.range;
            bits = bits << now | u64::from(found);
            self.refill();
        }
        bits
    }

    #[inline(always)]
    fn refill(&mut self) {
        while self.range < REFILL {
            self.code = self.code << 8 | self.next();
            self.range <<= 8;
        }
    }

    #[inline(always)]
    fn next(&mut self) -> u32 {
        match self.bytes.split_first() {
            Some((first, rest)) => {
                self.bytes = rest;
                u32::from(*first)
            }
            None => 0,
        }
    }
}
