//! Enums that are words: in tables, in the API and in the log.

/// Gives an enum its words: `ALL`, `as_str`, `Display`, and `FromStr`. What is said of a text that is none of them is the
/// function after `or`.
macro_rules! words {
    ($name:ident { $($variant:ident = $word:literal),+ $(,)? } or $error:ty = $none:expr) => {
        impl $name {
            /// All of them, in this order.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// Its word in tables, in the API and in the log.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                let none: fn(&str) -> $error = $none;
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(none(text)),
                }
            }
        }
    };
}

pub(crate) use words;
