//! The TOML file: read, checked key by key against what is known, and turned into a tree that remembers lines.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::error::SettingsError;
use crate::known::{Keys, Place};
use crate::tree::Node;

/// Reads the file at `path`; one that is missing and not `required` is an empty one.
pub(crate) fn read(path: &Path, required: bool, known: &Keys) -> Result<Node, SettingsError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => String::new(),
        Err(source) => return Err(SettingsError::Unreadable { path: path.to_owned(), source }),
    };
    let file = File { path, text: &text, known };
    let table = DeTable::parse(&text).map_err(|error| file.syntax(&error))?;
    file.table(&mut Vec::new(), table.into_inner())
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
    known: &'a Keys,
}

impl File<'_> {
    fn table(&self, path: &mut Vec<String>, table: DeTable<'_>) -> Result<Node, SettingsError> {
        let mut nodes = BTreeMap::new();
        for (name, value) in table {
            let line = self.line(name.span().start);
            let name = name.into_inner().into_owned();
            path.push(name.clone());
            let node = self.entry(path, line, value)?;
            path.pop();
            nodes.insert(name, node);
        }
        Ok(Node::Table(nodes))
    }

    fn entry(&self, path: &mut Vec<String>, line: usize, value: Spanned<DeValue<'_>>) -> Result<Node, SettingsError> {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let key = names.join(".");
        match self.known.place(&names) {
            Place::Value => {
                let value = toml::Value::deserialize(ValueDeserializer::from(value));
                Ok(Node::Toml(value.map_err(|error| self.syntax(&error))?, self.place(line)))
            }
            Place::Table => match value.into_inner() {
                DeValue::Table(table) => self.table(path, table),
                _ => Err(SettingsError::Invalid {
                    place: self.place(line),
                    message: format!("it is a table; write its keys under [{key}]"),
                    key,
                }),
            },
            Place::Unknown => Err(SettingsError::UnknownKey {
                path: self.path.to_owned(),
                line,
                nearest: self.known.nearest(&names),
                key,
            }),
        }
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    /// The line, from 1, of a byte of the text.
    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    fn syntax(&self, error: &toml::de::Error) -> SettingsError {
        let line = self.line(error.span().map_or(0, |span| span.start));
        SettingsError::Syntax { path: self.path.to_owned(), line, message: error.message().to_owned() }
    }
}
