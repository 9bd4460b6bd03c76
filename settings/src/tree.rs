//! The values that were found, each with the place it came from, ready to be deserialized.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::environment::Variables;
use crate::error::SettingsError;

/// A table or a value.
pub(crate) enum Node {
    /// Keys and what they hold.
    Table(BTreeMap<String, Node>),
    /// A value of the file, and the place it stands at.
    Toml(toml::Value, String),
    /// The text of a variable, and its name: what it means is up to who reads it.
    Text(String, String),
}

impl Node {
    /// Puts `node` at `path`, in place of what is there.
    pub(crate) fn put(&mut self, path: &[&str], node: Self) {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        if !matches!(self, Self::Table(_)) {
            *self = Self::Table(BTreeMap::new());
        }
        if let Self::Table(table) = self {
            table.entry((*first).to_owned()).or_insert_with(|| Self::Table(BTreeMap::new())).put(rest, node);
        }
    }
}

/// Why a tree does not fit the structure it is read into.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// Innermost name last.
    path: Vec<String>,
    place: Option<String>,
    message: String,
    missing: bool,
}

impl Trouble {
    /// Told to the person who wrote the file at `file` or set `variables`.
    pub(crate) fn into_error(self, file: &Path, variables: &Variables) -> SettingsError {
        let key = self.path.join(".");
        if self.missing {
            let variable = variables.name(&self.path.iter().map(String::as_str).collect::<Vec<_>>());
            return SettingsError::Missing { key, path: file.to_owned(), variable };
        }
        let place = self.place.unwrap_or_else(|| file.display().to_string());
        SettingsError::Invalid { place, key, message: self.message }
    }

    fn at(mut self, place: &str) -> Self {
        self.place.get_or_insert_with(|| place.to_owned());
        self
    }
}

impl de::Error for Trouble {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: Vec::new(), place: None, message: message.to_string(), missing: false }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { path: vec![field.to_owned()], place: None, message: String::new(), missing: true }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Trouble {}

/// A node under its name, so that an error knows its path.
struct Named(String, Node);

/// Runs `$read` on whatever the node holds: a file's value as it is, a variable's text by `$parse`.
macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Trouble> {
            match self {
                Self::Text(text, place) => match text.trim().parse::<$type>() {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => Err(de::Error::invalid_value(de::Unexpected::Str(&text), &visitor)),
                }.map_err(|trouble: Trouble| trouble.at(&place)),
                other => other.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Node {
    type Error = Trouble;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Trouble> {
        match self {
            Self::Table(table) => {
                let named = table.into_iter().map(|(name, node)| (name.clone(), Named(name, node)));
                visitor.visit_map(MapDeserializer::new(named))
            }
            Self::Toml(value, place) => value
                .deserialize_any(visitor)
                .map_err(|error| de::Error::custom(error.message()))
                .map_err(|trouble: Trouble| trouble.at(&place)),
            Self::Text(text, place) => visitor.visit_string(text).map_err(|trouble: Trouble| trouble.at(&place)),
        }
    }

    numbers! {
        deserialize_bool visit_bool bool;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_f32 visit_f32 f32;
        deserialize_f64 visit_f64 f64;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Trouble> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Trouble> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        match self {
            Self::Toml(value, place) => value
                .deserialize_enum(name, variants, visitor)
                .map_err(|error| <Trouble as de::Error>::custom(error.message()).at(&place)),
            Self::Text(text, place) => {
                visitor.visit_enum(text.into_deserializer()).map_err(|trouble: Trouble| trouble.at(&place))
            }
            Self::Table(_) => self.deserialize_any(visitor),
        }
    }

    /// A variable's list is separated by commas.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Trouble> {
        let Self::Text(text, place) = self else { return self.deserialize_any(visitor) };
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let items = items.map(|item| Self::Text(item.to_owned(), place.clone()));
        visitor.visit_seq(SeqDeserializer::new(items))
    }

    /// A variable's table is written as in TOML: `{ a = 1 }`.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Trouble> {
        let Self::Text(text, place) = self else { return self.deserialize_any(visitor) };
        match toml::de::ValueDeserializer::parse(&text).and_then(<toml::Value as serde::Deserialize>::deserialize) {
            Ok(value) => Self::Toml(value, place).deserialize_any(visitor),
            Err(error) => Err(<Trouble as de::Error>::custom(error.message()).at(&place)),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct struct identifier ignored_any
    }
}

macro_rules! named {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Trouble> {
            let Self(name, node) = self;
            node.$method(visitor).map_err(|trouble| within(name, trouble))
        }
    )*};
}

fn within(name: String, mut trouble: Trouble) -> Trouble {
    trouble.path.insert(0, name);
    trouble
}

impl<'de> Deserializer<'de> for Named {
    type Error = Trouble;

    named! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
        deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf deserialize_option
        deserialize_unit deserialize_seq deserialize_map deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Trouble> {
        self.1.deserialize_newtype_struct(name, visitor).map_err(|trouble| within(self.0, trouble))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Trouble> {
        self.1.deserialize_unit_struct(name, visitor).map_err(|trouble| within(self.0, trouble))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Trouble> {
        self.1.deserialize_tuple(length, visitor).map_err(|trouble| within(self.0, trouble))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        self.1.deserialize_tuple_struct(name, length, visitor).map_err(|trouble| within(self.0, trouble))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        self.1.deserialize_struct(name, fields, visitor).map_err(|trouble| within(self.0, trouble))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        self.1.deserialize_enum(name, variants, visitor).map_err(|trouble| within(self.0, trouble))
    }
}

impl<'de> IntoDeserializer<'de, Trouble> for Named {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> IntoDeserializer<'de, Trouble> for Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
