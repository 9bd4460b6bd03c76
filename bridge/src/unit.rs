//! Units of measure that values are converted between.

/// What a unit measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dimension {
    Temperature,
    Pressure,
    Length,
    Mass,
    Time,
    Volume,
    Flow,
    Speed,
    Rotation,
    Energy,
    Power,
    Current,
    Voltage,
    Frequency,
    Share,
}

/// A unit, and how a value in it becomes one in its dimension's first: times a factor, plus an offset.
type Unit = (&'static str, Dimension, f64, f64);

#[rustfmt::skip]
const UNITS: &[Unit] = &[
    ("K", Dimension::Temperature, 1.0, 0.0),
    ("°C", Dimension::Temperature, 1.0, 273.15),
    ("°F", Dimension::Temperature, 5.0 / 9.0, 459.67 * 5.0 / 9.0),
    ("Pa", Dimension::Pressure, 1.0, 0.0),
    ("hPa", Dimension::Pressure, 100.0, 0.0),
    ("mbar", Dimension::Pressure, 100.0, 0.0),
    ("kPa", Dimension::Pressure, 1_000.0, 0.0),
    ("bar", Dimension::Pressure, 100_000.0, 0.0),
    ("MPa", Dimension::Pressure, 1_000_000.0, 0.0),
    ("psi", Dimension::Pressure, 6_894.757_293_168_361, 0.0),
    ("m", Dimension::Length, 1.0, 0.0),
    ("µm", Dimension::Length, 0.000_001, 0.0),
    ("mm", Dimension::Length, 0.001, 0.0),
    ("cm", Dimension::Length, 0.01, 0.0),
    ("km", Dimension::Length, 1_000.0, 0.0),
    ("in", Dimension::Length, 0.0254, 0.0),
    ("ft", Dimension::Length, 0.3048, 0.0),
    ("kg", Dimension::Mass, 1.0, 0.0),
    ("g", Dimension::Mass, 0.001, 0.0),
    ("t", Dimension::Mass, 1_000.0, 0.0),
    ("lb", Dimension::Mass, 0.453_592_37, 0.0),
    ("s", Dimension::Time, 1.0, 0.0),
    ("ms", Dimension::Time, 0.001, 0.0),
    ("min", Dimension::Time, 60.0, 0.0),
    ("h", Dimension::Time, 3_600.0, 0.0),
    ("m³", Dimension::Volume, 1.0, 0.0),
    ("l", Dimension::Volume, 0.001, 0.0),
    ("ml", Dimension::Volume, 0.000_001, 0.0),
    ("m³/h", Dimension::Flow, 1.0, 0.0),
    ("l/min", Dimension::Flow, 0.06, 0.0),
    ("l/s", Dimension::Flow, 3.6, 0.0),
    ("m/s", Dimension::Speed, 1.0, 0.0),
    ("m/min", Dimension::Speed, 1.0 / 60.0, 0.0),
    ("km/h", Dimension::Speed, 1.0 / 3.6, 0.0),
    ("1/s", Dimension::Rotation, 1.0, 0.0),
    ("1/min", Dimension::Rotation, 1.0 / 60.0, 0.0),
    ("J", Dimension::Energy, 1.0, 0.0),
    ("kJ", Dimension::Energy, 1_000.0, 0.0),
    ("Wh", Dimension::Energy, 3_600.0, 0.0),
    ("kWh", Dimension::Energy, 3_600_000.0, 0.0),
    ("MWh", Dimension::Energy, 3_600_000_000.0, 0.0),
    ("W", Dimension::Power, 1.0, 0.0),
    ("kW", Dimension::Power, 1_000.0, 0.0),
    ("MW", Dimension::Power, 1_000_000.0, 0.0),
    ("hp", Dimension::Power, 745.699_871_582_270_2, 0.0),
    ("A", Dimension::Current, 1.0, 0.0),
    ("mA", Dimension::Current, 0.001, 0.0),
    ("V", Dimension::Voltage, 1.0, 0.0),
    ("mV", Dimension::Voltage, 0.001, 0.0),
    ("kV", Dimension::Voltage, 1_000.0, 0.0),
    ("Hz", Dimension::Frequency, 1.0, 0.0),
    ("kHz", Dimension::Frequency, 1_000.0, 0.0),
    ("1", Dimension::Share, 1.0, 0.0),
    ("%", Dimension::Share, 0.01, 0.0),
];

/// Digits that a converted value has at least and, as far as a computer's number holds them, at most.
const LEAST_DIGITS: usize = 12;
const MOST_DIGITS: usize = 15;

/// A value times a factor, plus an offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// What it is multiplied by.
    pub factor: f64,
    /// What is added then.
    pub offset: f64,
}

impl Linear {
    /// The conversion from one unit to another.
    ///
    /// # Errors
    /// When a unit is not known, or the two measure different things.
    pub fn between(from: &str, to: &str) -> Result<Self, UnitError> {
        let ((_, measures, factor, offset), target) = (known(from)?, known(to)?);
        if measures != target.1 {
            return Err(UnitError::Different(from.to_owned(), to.to_owned()));
        }
        Ok(Self { factor: factor / target.2, offset: (offset - target.3) / target.2 })
    }

    /// The converted value, to 12 digits of what it is made of, or as many as the value had: those behind are the
    /// arithmetic's, and no measurement.
    pub fn apply(self, value: f64) -> f64 {
        let scaled = value * self.factor;
        let (exact, largest) = (scaled + self.offset, scaled.abs().max(self.offset.abs()));
        let digits = significant(value).clamp(LEAST_DIGITS, MOST_DIGITS);
        let behind = digits as f64 - 1.0 - largest.log10().floor();
        let rounded = if (0.0..=30.0).contains(&behind) {
            format!("{exact:.*}", behind as usize)
        } else {
            format!("{exact:.*e}", digits - 1)
        };
        // Not what is below zero by less than that.
        rounded.parse().map_or(exact, |rounded: f64| rounded + 0.0)
    }
}

/// Digits of a number, without zeros around them.
fn significant(value: f64) -> usize {
    format!("{value:e}").chars().take_while(|c| *c != 'e').filter(char::is_ascii_digit).count()
}

fn known(name: &str) -> Result<Unit, UnitError> {
    // Two characters look the same: the sign for a millionth, and the Greek letter.
    let plain = name.replace('\u{3bc}', "\u{b5}");
    UNITS.iter().find(|unit| unit.0 == plain).copied().ok_or_else(|| UnitError::Unknown(name.to_owned()))
}

/// Units that can't be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a unit that is known.
    #[error("there is no unit {0:?}; there are {known}, or give `factor` and `offset`", known = names())]
    Unknown(String),
    /// They measure different things.
    #[error("{0} and {1} do not measure the same")]
    Different(String, String),
}

fn names() -> String {
    UNITS.iter().map(|unit| unit.0).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_converted() {
        for (value, from, to, expected) in [
            (212.0, "°F", "°C", 100.0),
            (32.0, "°F", "°C", 0.0),
            (-40.0, "°C", "°F", -40.0),
            (0.0, "bar", "kPa", 0.0),
            (21.5, "°C", "K", 294.65),
            (1.0, "bar", "kPa", 100.0),
            (14.5, "psi", "bar", 0.999_739_807_509),
            (1.0, "kWh", "kJ", 3600.0),
            (60.0, "l/min", "m³/h", 3.6),
            (3000.0, "1/min", "1/s", 50.0),
            (12.5, "%", "1", 0.125),
            (2.0, "in", "mm", 50.8),
            (5.0, "\u{3bc}m", "mm", 0.005),
            // A time of the day, and a meter that has counted for long: what they had is not lost.
            (1_795_884_731_123.0, "ms", "s", 1_795_884_731.123),
            (123_456_789_012_345.0, "Wh", "kWh", 123_456_789_012.345),
        ] {
            assert_eq!(Linear::between(from, to).unwrap().apply(value), expected, "{value} {from} in {to}");
        }
    }

    #[test]
    fn what_can_not_be_converted_is_refused() {
        assert_eq!(Linear::between("bar", "°C"), Err(UnitError::Different("bar".into(), "°C".into())));
        assert!(Linear::between("C", "°F").unwrap_err().to_string().contains("\"C\"; there are K °C"));
    }

    proptest! {
        #[test]
        fn there_and_back_is_the_same(value in -1e6..1e6f64, one in 0..UNITS.len(), other in 0..UNITS.len()) {
            if let Ok(there) = Linear::between(UNITS[one].0, UNITS[other].0) {
                let back = Linear::between(UNITS[other].0, UNITS[one].0).unwrap();
                let scale = value.abs().max((back.factor * there.offset).abs()).max(1e-3);
                prop_assert!((back.apply(there.apply(value)) - value).abs() <= 1e-9 * scale);
            }
        }
    }
}
