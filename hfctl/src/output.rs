//! Results as aligned tables for people, or as JSON for programs.

use std::io::{self, StdoutLock, Write as _};

use clap::ValueEnum;
use serde_json::Value;

use crate::failure::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns.
    Table,
    /// What the hub's API answers.
    Json,
}

/// Where results go.
pub(crate) struct Output {
    format: Format,
    out: StdoutLock<'static>,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, out: io::stdout().lock() }
    }

    /// A program reads along.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A value as JSON.
    pub(crate) fn json(&mut self, value: &Value) -> Result<(), Failure> {
        serde_json::to_writer_pretty(&mut self.out, value).map_err(io::Error::from)?;
        Ok(writeln!(self.out)?)
    }

    /// A value as one line of JSON, at once: for streams.
    pub(crate) fn json_line(&mut self, value: &Value) -> Result<(), Failure> {
        writeln!(self.out, "{value}")?;
        Ok(self.out.flush()?)
    }

    /// What a program reads, as it comes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.out.write_all(bytes).and_then(|()| self.out.flush())?)
    }

    /// One line of text, at once.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.out, "{}", harmless(text))?;
        Ok(self.out.flush()?)
    }

    /// A list: as JSON, or in columns; `nothing` says on the terminal why there is none.
    pub(crate) fn list<const N: usize>(
        &mut self,
        items: Vec<Value>,
        heads: [&str; N],
        row: impl Fn(&Value) -> [String; N],
        nothing: &str,
    ) -> Result<(), Failure> {
        if self.is_json() {
            return self.json(&Value::Array(items));
        }
        if items.is_empty() {
            complain(nothing);
            return Ok(());
        }
        let mut rows = vec![heads.map(str::to_owned)];
        rows.extend(items.iter().map(row));
        self.columns(&rows)
    }

    /// Rows in columns as wide as their widest cell; the last one as it is.
    pub(crate) fn columns<const N: usize>(&mut self, rows: &[[String; N]]) -> Result<(), Failure> {
        for line in aligned(rows) {
            writeln!(self.out, "{line}")?;
        }
        Ok(self.out.flush()?)
    }
}

fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| harmless(cell)).collect()).collect();
    let width = |column: usize| {
        cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    cells.iter().map(line).collect()
}

/// Something for the person at the terminal, beside the result.
#[expect(clippy::print_stderr, reason = "the one place that speaks to the terminal")]
pub(crate) fn complain(text: &str) {
    eprintln!("{}", harmless(text));
}

/// Without control characters: names and messages come from machines we do not know, and a terminal obeys them.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A text field of a JSON object; `-` when it has none.
pub(crate) fn text(value: &Value, path: &str) -> String {
    match value.pointer(path) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(true)) => "yes".into(),
        Some(Value::Bool(false)) => "no".into(),
        _ => "-".into(),
    }
}

/// A time field without its fraction: `2026-11-23 12:00:00Z`.
pub(crate) fn time(value: &Value, path: &str) -> String {
    let text = text(value, path);
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(time)) => format!("{day} {time}Z"),
        _ => text,
    }
}

/// `1 node`, `12 nodes`.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A share as per cent.
pub(crate) fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |ratio| format!("{:.0}%", ratio * 100.0))
}

/// The share of a `{used, total}` object.
pub(crate) fn used(value: &Value, path: &str) -> String {
    let part = |name: &str| value.pointer(&format!("{path}/{name}")).and_then(Value::as_f64);
    percent(part("used").zip(part("total")).filter(|(_, total)| *total > 0.0).map(|(used, total)| used / total))
}

/// Bytes in the unit that fits.
pub(crate) fn bytes(value: Option<f64>) -> String {
    let Some(mut value) = value else { return "-".into() };
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_line_up_by_characters_not_bytes() {
        let rows = [["NAME", "STATE"], ["Mühle", "online"], ["a", "lost"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), ["NAME   STATE", "Mühle  online", "a      lost"]);
    }

    #[test]
    fn a_name_can_not_direct_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\u{7}"), "a\u{fffd}[2Jb\u{fffd}");
    }

    #[test]
    fn fields_read_well_and_missing_ones_are_a_dash() {
        let value = json!({"at": "2026-11-23T12:00:00.123Z", "m": {"used": 1.0, "total": 4.0}, "n": 7});
        assert_eq!(time(&value, "/at"), "2026-11-23 12:00:00Z");
        assert_eq!(used(&value, "/m"), "25%");
        assert_eq!(text(&value, "/n"), "7");
        assert_eq!(text(&value, "/nothing"), "-");
        assert_eq!(bytes(Some(1_536.0)), "1.5 KiB");
    }
}
