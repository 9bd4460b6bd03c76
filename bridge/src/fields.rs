//! A JSON payload and its fields by their paths. What a step does not touch keeps its text, to the last digit.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::value::{RawValue, to_raw_value};

/// Fields of an object, by their names.
type Object = BTreeMap<String, Box<RawValue>>;

/// Where in a payload a value is: `motor.temp` is the field `temp` of the object in `motor`; nothing is the payload itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<String>);

/// A payload that is JSON.
#[derive(Clone, Debug)]
pub struct Document(Box<RawValue>);

impl Document {
    /// Reads a payload.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn parse(payload: &[u8]) -> Result<Self, NotJson> {
        serde_json::from_slice(payload).map(Self).map_err(|error| NotJson(error.to_string()))
    }

    /// The payload.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.get().as_bytes()
    }

    /// The text of the value there, when there is one.
    pub fn text(&self, path: &Path) -> Option<String> {
        Some(find(&self.0, &path.0)?.get().to_owned())
    }

    /// What is there when it is a number.
    pub fn number(&self, path: &Path) -> Option<f64> {
        number(find(&self.0, &path.0)?.get())
    }

    /// Puts a value in place of what is there; nothing happens where nothing is.
    pub fn replace(&mut self, path: &Path, value: f64) {
        if let Ok(value) = to_raw_value(&value)
            && let Some(changed) = with(&self.0, &path.0, &value)
        {
            self.0 = changed;
        }
    }

    /// Keeps these fields alone; gives whether there is any of them.
    pub fn pick(&mut self, paths: &[Path]) -> bool {
        let kept: Vec<(&Path, Box<RawValue>)> =
            paths.iter().filter_map(|path| Some((path, find(&self.0, &path.0)?))).collect();
        let any = !kept.is_empty();
        let mut picked = Object::new();
        for (path, value) in kept {
            put(&mut picked, &path.0, value);
        }
        if any && let Ok(picked) = to_raw_value(&picked) {
            self.0 = picked;
        }
        any
    }

    /// Gives fields other names and places, all at once, so that two may change theirs with each other. What is not there
    /// is left out.
    pub fn rename(&mut self, names: &[(Path, Path)]) {
        let renamed: Vec<(&Path, &Path, Box<RawValue>)> =
            names.iter().filter_map(|(from, to)| Some((from, to, find(&self.0, &from.0)?))).collect();
        let Some(mut object) = object(&self.0).filter(|_| !renamed.is_empty()) else { return };
        for (from, ..) in &renamed {
            take(&mut object, &from.0);
        }
        for (_, to, value) in renamed {
            put(&mut object, &to.0, value);
        }
        if let Ok(renamed) = to_raw_value(&object) {
            self.0 = renamed;
        }
    }
}

fn object(value: &RawValue) -> Option<Object> {
    serde_json::from_str(value.get()).ok()
}

fn find(value: &RawValue, path: &[String]) -> Option<Box<RawValue>> {
    match path.split_first() {
        None => Some(value.to_owned()),
        Some((name, rest)) => find(&object(value)?.remove(name)?, rest),
    }
}

fn with(value: &RawValue, path: &[String], new: &RawValue) -> Option<Box<RawValue>> {
    let Some((name, rest)) = path.split_first() else { return Some(new.to_owned()) };
    let mut object = object(value)?;
    let changed = with(object.get(name)?, rest, new)?;
    object.insert(name.clone(), changed);
    to_raw_value(&object).ok()
}

fn put(into: &mut Object, path: &[String], value: Box<RawValue>) {
    match path.split_first() {
        None => {}
        Some((name, [])) => drop(into.insert(name.clone(), value)),
        Some((name, rest)) => {
            let mut inner = into.get(name).and_then(|inner| object(inner)).unwrap_or_default();
            put(&mut inner, rest, value);
            if let Ok(inner) = to_raw_value(&inner) {
                into.insert(name.clone(), inner);
            }
        }
    }
}

fn take(from: &mut Object, path: &[String]) {
    match path.split_first() {
        None => {}
        Some((name, [])) => drop(from.remove(name)),
        Some((name, rest)) => {
            let Some(mut inner) = from.get(name).and_then(|inner| object(inner)) else { return };
            take(&mut inner, rest);
            if let Ok(inner) = to_raw_value(&inner) {
                from.insert(name.clone(), inner);
            }
        }
    }
}

/// A JSON number, if this is one that a computer's can hold.
fn number(text: &str) -> Option<f64> {
    let begins = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    text.parse().ok().filter(|number: &f64| begins && number.is_finite())
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.split('.').any(str::is_empty) {
            return Err(PathError(text.to_owned()));
        }
        Ok(Self(text.split('.').map(str::to_owned).collect()))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("the payload") } else { f.write_str(&self.0.join(".")) }
    }
}

/// Text that is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no field: names with '.' between, as in motor.temp")]
pub struct PathError(String);

/// A payload that is not JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not JSON: {0}")]
pub struct NotJson(String);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Path {
        text.parse().unwrap()
    }

    fn document(text: &str) -> Document {
        Document::parse(text.as_bytes()).unwrap()
    }

    fn text(document: &Document) -> &str {
        std::str::from_utf8(document.as_bytes()).unwrap()
    }

    #[test]
    fn fields_are_picked_renamed_and_replaced_and_the_rest_keeps_its_text() {
        let mut message = document(r#"{"id": 12345678901234567890123, "motor": {"t": 1.10, "rpm": 5}, "note": "x"}"#);
        assert!(message.pick(&[path("id"), path("motor.t"), path("none")]));
        assert_eq!(text(&message), r#"{"id":12345678901234567890123,"motor":{"t":1.10}}"#);
        message.rename(&[(path("motor.t"), path("temp.celsius")), (path("none"), path("some"))]);
        assert_eq!(text(&message), r#"{"id":12345678901234567890123,"motor":{},"temp":{"celsius":1.10}}"#);
        assert_eq!((message.number(&path("temp.celsius")), message.number(&path("motor"))), (Some(1.1), None));
        message.replace(&path("temp.celsius"), 2.5);
        message.replace(&path("temp.kelvin"), 9.0);
        assert_eq!(message.text(&path("temp")).unwrap(), r#"{"celsius":2.5}"#);
        assert!(!message.pick(&[path("none")]));
    }

    #[test]
    fn fields_may_change_names_with_each_other() {
        let mut message = document(r#"{"a": 1, "b": 2, "c": {"d": 3}}"#);
        let renamed = |from: &str, to: &str| (path(from), path(to));
        message.rename(&[renamed("a", "b"), renamed("b", "c.d"), renamed("c.d", "a")]);
        assert_eq!(text(&message), r#"{"a":3,"b":1,"c":{"d":2}}"#);
    }

    #[test]
    fn a_payload_may_be_a_value_alone() {
        let mut value = document(" 21.5\n");
        assert_eq!(value.number(&Path::default()), Some(21.5));
        value.replace(&Path::default(), 3.0);
        assert_eq!(text(&value), "3.0");
        assert!(document("[1]").number(&path("a")).is_none() && !document("7").pick(&[path("a")]));
        assert!(
            document("\"1\"").number(&Path::default()).is_none()
                && document("1e999").number(&Path::default()).is_none()
        );
        for wrong in ["", "on", "{\"a\":", "1 2", "\u{feff}1"] {
            assert!(Document::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_payload_may_be_as_deep_as_it_is_long() {
        let deep = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let mut message = document(&deep(200_000));
        assert!(message.pick(&[path("a.a")]) && message.number(&path("a")).is_none());
        assert_eq!(text(&message).len(), deep(200_000).len());
        assert!(Document::parse("[".repeat(200_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(payload in "[\\[{\"a:1}\\], ]{0,20}", name in "[a.]{0,4}") {
            if let (Ok(mut document), Ok(path)) = (Document::parse(payload.as_bytes()), name.parse::<Path>()) {
                document.rename(&[(path.clone(), "b.c".parse().unwrap())]);
                document.replace(&path, 1.0);
                document.pick(&[path]);
                prop_assert!(serde_json::from_slice::<serde_json::Value>(document.as_bytes()).is_ok());
            }
        }
    }
}
