//! The keys a structure has, learnt from its `Deserialize` implementation.

use std::cell::RefCell;

use serde::de::value::{Error, MapDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::value;

/// Deepest nesting of tables that is looked into; a structure that contains itself would have no end.
const MAX_DEPTH: usize = 8;

/// Every key of one structure.
pub(crate) struct Keys(Vec<Key>);

/// One key that takes a value.
pub(crate) struct Key {
    /// Names of the tables it is in, and its own.
    pub(crate) path: Vec<&'static str>,
    /// Whether it holds a [`crate::Secret`].
    pub(crate) secret: bool,
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A key that takes a value.
    Value,
    /// A table of keys.
    Table,
    /// Nothing.
    Unknown,
}

impl Keys {
    /// Asks `T` for its fields, and those of its fields.
    pub(crate) fn of<T: DeserializeOwned>() -> Self {
        let mut keys = Vec::new();
        let mut open = vec![Vec::new()];
        while let Some(path) = open.pop() {
            match shape::<T>(&path) {
                Shape::Fields(fields) if path.len() < MAX_DEPTH => {
                    open.extend(fields.iter().rev().map(|field| [path.as_slice(), &[*field]].concat()));
                }
                shape => keys.push(Key { secret: matches!(shape, Shape::Secret), path }),
            }
        }
        Self(keys)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// What `path` leads to.
    pub(crate) fn place(&self, path: &[&str]) -> Place {
        if self.0.iter().any(|key| key.path == path) {
            Place::Value
        } else if self.0.iter().any(|key| key.path.starts_with(path)) {
            Place::Table
        } else {
            Place::Unknown
        }
    }

    /// The known key that looks most like `path`: the same name in another table, or a likely misspelling.
    pub(crate) fn nearest(&self, path: &[&str]) -> Option<String> {
        let same_name = self.0.iter().find(|key| key.path.last() == path.last());
        let written = path.join(".");
        same_name.map(Key::dotted).or_else(|| nearest(&written, self.0.iter().map(Key::dotted)))
    }
}

impl Key {
    /// The key as an error shows it.
    pub(crate) fn dotted(&self) -> String {
        self.path.join(".")
    }
}

/// The candidate that `written` is most likely a misspelling of, if any is close.
pub(crate) fn nearest(written: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let allowed = (written.chars().count() / 3).max(2);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(&plain(written), &plain(&candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Case and the choice of separator are the commonest mistakes and weigh nothing.
fn plain(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

/// What a field asks its deserializer for.
enum Shape {
    Fields(&'static [&'static str]),
    Secret,
    Value,
}

fn shape<T: DeserializeOwned>(path: &[&'static str]) -> Shape {
    let found = RefCell::new(Shape::Value);
    // The probe has no values to give: it always ends in an error, and the shape is what it leaves behind.
    let _ = T::deserialize(Probe { path, found: &found });
    found.into_inner()
}

/// Walks down `path` by offering one field at a time, and notes what is asked for at its end.
#[derive(Clone, Copy)]
struct Probe<'a> {
    path: &'a [&'static str],
    found: &'a RefCell<Shape>,
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.path.split_first() {
            Some((first, rest)) => {
                visitor.visit_map(MapDeserializer::new(std::iter::once((*first, Probe { path: rest, ..self }))))
            }
            None => {
                self.found.replace(Shape::Fields(fields));
                Err(Error::custom("only looking"))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        if name == value::SECRET && self.path.is_empty() {
            self.found.replace(Shape::Secret);
            return Err(Error::custom("only looking"));
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("only looking"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Probe<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
