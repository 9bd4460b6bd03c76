//! What encoder and decoder both know of the values so far, and the decisions in which the next one is told.
//!
//! There is one routine for both directions, so they can't drift apart: it asks a [`Coder`] about each decision, and
//! the encoder's answers what it was told while the decoder's answers what it reads.

use super::range::{Chance, RangeDecoder, RangeEncoder};
use super::schema::Kind;

/// Binary places of [`Series::lean`].
const FRACTION: u32 = 4;
/// `lean` moves by 1/2^`LEAN_RATE` toward what it averages.
const LEAN_RATE: u32 = 2;
/// Larger steps move `lean` like this one, so that it stays within 31 bits.
const MAX_STEP: i64 = 1 << 25;
/// `size` moves by 1/2^`SIZE_RATE`.
const SIZE_RATE: u32 = 2;
/// How fast probabilities move, see [`Chance`].
const FLAG_RATE: u32 = 5;
const BIT_RATE: u32 = 5;

/// Bit lengths are told as steps up or down from the expected one, with a probability per step up to this many.
const STEPS: usize = 5;
/// Rows that tell how likely the next surprise is.
const HISTORY: u32 = 6;
/// Highest [`Series::size`].
const MAX_SIZE: u8 = 252;
/// Classes of expected bit length; the last one has all that are longer.
const SIZES: usize = 24;

/// Where decisions go to or come from.
pub(super) trait Coder {
    /// Tells or learns whether it `happens`; the answer is the truth.
    fn decide<const RATE: u32>(&mut self, chance: &mut Chance, happens: bool) -> bool;
    /// Tells or learns `count` bits.
    fn plain(&mut self, bits: u64, count: u32) -> u64;
}

impl Coder for RangeEncoder<'_> {
    #[inline(always)]
    fn decide<const RATE: u32>(&mut self, chance: &mut Chance, happens: bool) -> bool {
        self.decide::<RATE>(chance, happens);
        happens
    }

    #[inline(always)]
    fn plain(&mut self, bits: u64, count: u32) -> u64 {
        self.plain(bits, count);
        bits
    }
}

impl Coder for RangeDecoder<'_> {
    #[inline(always)]
    fn decide<const RATE: u32>(&mut self, chance: &mut Chance, _: bool) -> bool {
        self.decide::<RATE>(chance)
    }

    #[inline(always)]
    fn plain(&mut self, _: u64, count: u32) -> u64 {
        self.plain(count)
    }
}

/// What is remembered of one series: 16 bytes.
#[derive(Clone, Copy)]
pub(super) struct Series {
    /// The last value measured.
    value: i64,
    /// Gauge: the average lies this far above `value`. Counter: the average growth. In 1/2^[`FRACTION`].
    lean: i32,
    /// One bit per row, the newest lowest: whether it was not as predicted.
    surprises: u8,
    /// Average bit length of the errors of wrong predictions, in 1/4 bit.
    size: u8,
    /// Positive: of late `lean` would have predicted better than the last value alone.
    trust: i8,
    /// The flags below, and above them, from bit [`GRAIN`] on: the number of zero bits at the end of all values.
    flags: u8,
}

/// [`Series::flags`]: the last row had a value.
const PRESENT: u8 = 1;
/// The last error was negative.
const NEGATIVE: u8 = 2;
/// There has been a value since the key batch.
const KNOWN: u8 = 4;
/// Where the grain starts.
const GRAIN: u32 = 3;
/// Bits of a grain.
const GRAIN_BITS: u32 = 5;

impl Series {
    pub(super) const NEW: Self = Self { value: 0, lean: 0, surprises: 0, size: 0, trust: 0, flags: 0 };

    #[inline(always)]
    fn grain(&self) -> u32 {
        u32::from(self.flags >> GRAIN)
    }

    fn set_grain(&mut self, grain: u32) {
        self.flags = self.flags & !(u8::MAX << GRAIN) | (grain << GRAIN) as u8;
    }

    /// Whether the newest row was not as predicted.
    #[inline(always)]
    pub(super) fn surprised(&self) -> bool {
        self.surprises & 1 == 1
    }

    /// The value in the last row.
    pub(super) fn latest(&self) -> Option<i64> {
        (self.flags & PRESENT != 0).then_some(self.value)
    }
}

/// Probabilities that all series of one stream share.
#[derive(Clone)]
pub(super) struct Model {
    /// By the series' last [`HISTORY`] surprises, and whether the neighbour was one in this row.
    surprise: [Chance; 2 << HISTORY],
    /// Whether an absent series returns.
    returns: [Chance; 2],
    /// Bit length of the first value, as a binary tree.
    first: [Chance; 128],
    /// Bit length of an error: whether it is above the expected, and each further step.
    above: [[Chance; STEPS]; SIZES],
    below: [[Chance; STEPS]; SIZES],
    /// Sign, by kind, trust and last sign.
    negative: [Chance; 8],
    /// The bit below an error's highest, by its length.
    second: [Chance; 65],
    /// Whether a value ends in fewer zero bits than all before, by their number.
    finer: [Chance; 1 << GRAIN_BITS],
}

impl Model {
    pub(super) fn new() -> Self {
        let mut surprise = [Chance::EVEN; 2 << HISTORY];
        for (context, chance) in surprise.iter_mut().enumerate() {
            let history = (context & ((1 << HISTORY) - 1)).count_ones();
            *chance = Chance::of(1 + 3 * history + 2 * (context as u32 >> HISTORY), 23);
        }
        Self {
            surprise,
            returns: [Chance::of(1, 2); 2],
            first: [Chance::EVEN; 128],
            above: [[Chance::EVEN; STEPS]; SIZES],
            below: [[Chance::EVEN; STEPS]; SIZES],
            negative: [Chance::EVEN; 8],
            second: [Chance::EVEN; 65],
            finer: [Chance::of(1, 4); 1 << GRAIN_BITS],
        }
    }

    /// Tells or learns the next value of `series`. `beside` is the neighbour: the series of the same target in the
    /// metric before, when both metrics have the same targets.
    #[inline(always)]
    pub(super) fn code(
        &mut self,
        coder: &mut impl Coder,
        kind: Kind,
        beside: bool,
        series: &mut Series,
        actual: Option<i64>,
    ) -> Option<i64> {
        if series.flags & PRESENT == 0 {
            return self.absent(coder, series, actual);
        }
        let grain = series.grain();
        let lean = ((i64::from(series.lean) + (1 << (FRACTION + grain - 1))) >> (FRACTION + grain)) << grain;
        let expected = if series.trust > 0 { series.value.wrapping_add(lean) } else { series.value };
        let context = usize::from(series.surprises) & ((1 << HISTORY) - 1) | usize::from(beside) << HISTORY;
        let surprised = coder.decide::<FLAG_RATE>(&mut self.surprise[context], actual != Some(expected));
        series.surprises = series.surprises << 1 | u8::from(surprised);
        let mut value = expected;
        if surprised {
            let error = actual.map_or(0, |actual| actual.wrapping_sub(expected));
            let error = self.error(coder, kind, series, error);
            if error == 0 {
                series.flags &= !PRESENT;
                return None;
            }
            value = expected.wrapping_add(error);
        }
        let step = value.wrapping_sub(series.value);
        if step != 0 || series.lean != 0 {
            // Which would have been nearer: the last value, or that and the lean?
            let without = length(step) as i32;
            let with = length(step.wrapping_sub(lean)) as i32;
            let trust = i32::from(series.trust);
            series.trust = (trust - (trust >> 3) + 2 * (without - with)).clamp(-100, 100) as i8;
            let scaled = step.clamp(-MAX_STEP, MAX_STEP) as i32 * (1 << FRACTION);
            let lean = series.lean;
            series.lean = match kind {
                Kind::Counter => lean + ((scaled - lean) >> LEAN_RATE),
                Kind::Gauge => {
                    let off = (lean - scaled).clamp(-(1 << 30), 1 << 30);
                    off - (off >> LEAN_RATE)
                }
            };
            series.value = value;
        }
        Some(value)
    }

    /// The next value of a series that had none in the last row.
    #[cold]
    fn absent(&mut self, coder: &mut impl Coder, series: &mut Series, actual: Option<i64>) -> Option<i64> {
        let known = series.flags & KNOWN != 0;
        if !coder.decide::<FLAG_RATE>(&mut self.returns[usize::from(known)], actual.is_some()) {
            series.surprises <<= 1;
            return None;
        }
        series.surprises = series.surprises << 1 | 1;
        let difference = actual.unwrap_or(0).wrapping_sub(series.value);
        let mut node = 1;
        let bits = length(difference);
        for shift in (0..7).rev() {
            let bit = coder.decide::<BIT_RATE>(&mut self.first[node], bits >> shift & 1 == 1);
            node = node << 1 | usize::from(bit);
        }
        let bits = ((node & 0x7f) as u32).min(64);
        let mut difference = difference;
        if bits > 0 {
            let negative = coder.decide::<BIT_RATE>(&mut self.negative[0], difference < 0);
            let magnitude =
                coder.plain(difference.unsigned_abs(), bits - 1) & ((1 << (bits - 1)) - 1) | 1 << (bits - 1);
            difference = if negative { (magnitude as i64).wrapping_neg() } else { magnitude as i64 };
        } else {
            difference = 0;
        }
        if !known {
            let grain = grain(difference);
            series.set_grain(grain);
            series.size = (bits.saturating_sub(grain).min(63) * 2) as u8;
        }
        series.value = series.value.wrapping_add(difference);
        series.flags |= PRESENT | KNOWN;
        Some(series.value)
    }

    /// Tells or learns an error other than 0; 0 stands for "no value".
    #[inline(always)]
    fn error(&mut self, coder: &mut impl Coder, kind: Kind, series: &mut Series, error: i64) -> i64 {
        let mut grain = series.grain();
        if grain > 0 {
            let own = self::grain(error);
            if coder.decide::<BIT_RATE>(&mut self.finer[grain as usize], own < grain) {
                let own = coder.plain(own.into(), GRAIN_BITS) as u32;
                series.size = series.size.saturating_add(4 * grain.saturating_sub(own) as u8).min(MAX_SIZE);
                series.set_grain(own);
                grain = own;
            }
        }
        let error = error >> grain;
        let actual = length(error);
        let class = usize::from(series.size >> 2).min(SIZES - 1);
        let mut bits = u32::from(series.size + 2) >> 2;
        if coder.decide::<BIT_RATE>(&mut self.above[class][0], actual > bits) {
            bits += 1;
            let mut step = 1;
            while bits < 64 && coder.decide::<BIT_RATE>(&mut self.above[class][step], actual > bits) {
                bits += 1;
                step = (step + 1).min(STEPS - 1);
            }
        } else {
            let mut step = 0;
            while bits > 0 && coder.decide::<BIT_RATE>(&mut self.below[class][step], actual < bits) {
                bits -= 1;
                step = (step + 1).min(STEPS - 1);
            }
        }
        if bits == 0 {
            return 0;
        }
        let context = usize::from(kind == Kind::Counter) << 2
            | usize::from(series.trust > 0) << 1
            | usize::from(series.flags & NEGATIVE != 0);
        let negative = coder.decide::<BIT_RATE>(&mut self.negative[context], error < 0);
        let mut magnitude = 1u64;
        if bits > 1 {
            let told = error.unsigned_abs();
            let second = coder.decide::<BIT_RATE>(&mut self.second[bits as usize], told >> (bits - 2) & 1 == 1);
            magnitude = 2 | u64::from(second);
            if bits > 2 {
                let rest = bits - 2;
                let mask = (1u64 << rest) - 1;
                magnitude = magnitude << rest | coder.plain(told & mask, rest) & mask;
            }
        }
        series.flags = series.flags & !NEGATIVE | if negative { NEGATIVE } else { 0 };
        let size = i32::from(series.size);
        series.size = (size + ((bits as i32 * 4 - size + 1) >> SIZE_RATE)).clamp(0, MAX_SIZE.into()) as u8;
        let magnitude = (magnitude as i64) << grain;
        if negative { magnitude.wrapping_neg() } else { magnitude }
    }
}

/// Bits of a number's magnitude: 0 for 0, 64 for the lowest `i64`.
#[inline(always)]
fn length(number: i64) -> u32 {
    64 - number.unsigned_abs().leading_zeros()
}

/// Zero bits at the end of a number, as far as a grain goes.
#[inline(always)]
fn grain(number: i64) -> u32 {
    number.trailing_zeros().min((1 << GRAIN_BITS) - 1)
}
