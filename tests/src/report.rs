//! A benchmark's result: one row per figure, as a table for people and as JSON for programs.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One figure, beside one peer's or none.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// In what.
    pub unit: String,
    /// What we came to.
    pub ours: f64,
    /// The peer that did the same work in the same run.
    pub peer: Option<String>,
    /// What it came to.
    pub theirs: Option<f64>,
    /// Ours divided by theirs.
    pub ratio: Option<f64>,
    /// What is to be reached, in words: `<= 8`.
    pub target: Option<String>,
    /// Whether the target is reached and the peer, where it is a rival, is not better.
    pub holds: bool,
}

/// What a figure has to keep to.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// No more than this; less is better.
    AtMost(f64),
    /// No less than this; more is better.
    AtLeast(f64),
    /// No less than this part of the floor's figure; more is better.
    Share(f64),
    /// No number to reach; less is better.
    Less,
    /// No number to reach; more is better.
    More,
}

/// The rows of one benchmark.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a figure that no peer has.
    pub fn figure(&mut self, name: &str, unit: &str, ours: f64, target: Target) {
        self.row(name, unit, ours, None, target, false);
    }

    /// Adds a figure beside a peer's.
    pub fn beside(&mut self, name: &str, unit: &str, ours: f64, peer: &str, theirs: f64, target: Target) {
        self.row(name, unit, ours, Some((peer, theirs)), target, true);
    }

    /// Adds a figure beside that of one who does only part of the work: a floor rather than a rival.
    pub fn above(&mut self, name: &str, unit: &str, ours: f64, floor: &str, theirs: f64, target: Target) {
        self.row(name, unit, ours, Some((floor, theirs)), target, false);
    }

    fn row(&mut self, name: &str, unit: &str, ours: f64, peer: Option<(&str, f64)>, target: Target, rival: bool) {
        let reached = match target {
            Target::AtMost(limit) => ours <= limit,
            Target::AtLeast(limit) => ours >= limit,
            Target::Share(share) => peer.is_some_and(|(_, theirs)| ours >= share * theirs),
            Target::Less | Target::More => true,
        };
        let ahead = match (peer, target) {
            (None, _) => true,
            _ if !rival => true,
            (Some((_, theirs)), Target::AtMost(_) | Target::Less) => ours <= theirs,
            (Some((_, theirs)), Target::AtLeast(_) | Target::Share(_) | Target::More) => ours >= theirs,
        };
        self.rows.push(Row {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours,
            peer: peer.map(|(peer, _)| peer.to_owned()),
            theirs: peer.map(|(_, theirs)| theirs),
            ratio: peer.map(|(_, theirs)| ours / theirs).filter(|ratio| ratio.is_finite()),
            target: match target {
                Target::AtMost(limit) => Some(format!("<= {}", number(limit))),
                Target::AtLeast(limit) => Some(format!(">= {}", number(limit))),
                Target::Share(share) => Some(format!(">= {} of it", number(share))),
                Target::Less | Target::More => None,
            },
            holds: reached && ahead,
        });
    }

    /// The rows so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Prints the table, and writes the rows to `json` where a file is asked for.
    pub fn finish(&self, json: Option<&Path>) -> Result<()> {
        #[expect(clippy::print_stdout, reason = "the table is what a benchmark is run for")]
        {
            print!("{}", self.table());
        }
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&self.rows).context("writing the rows as JSON")?;
            std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// The rows, aligned.
    pub fn table(&self) -> String {
        let dash = || "-".to_owned();
        let mut lines =
            vec![["figure", "unit", "ours", "peer", "theirs", "ratio", "target", "holds"].map(str::to_owned)];
        lines.extend(self.rows.iter().map(|row| {
            [
                row.name.clone(),
                row.unit.clone(),
                number(row.ours),
                row.peer.clone().unwrap_or_else(dash),
                row.theirs.map_or_else(dash, number),
                row.ratio.map_or_else(dash, number),
                row.target.clone().unwrap_or_else(dash),
                if row.holds { "yes" } else { "NO" }.to_owned(),
            ]
        }));
        let widths: [usize; 8] =
            std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0));
        let mut text = String::new();
        for line in lines {
            for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
                // Words to the left, numbers to the right; writing to the string can't fail.
                let _ = match column {
                    2 | 4 | 5 => write!(text, "{cell:>width$}  "),
                    _ => write!(text, "{cell:<width$}  "),
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

/// Three significant digits, or all before the point.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        below if below < 1.0 => 3,
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_when_it_reaches_its_target_and_beats_its_peer() {
        let mut report = Report::default();
        report.beside("memory", "MB", 7.0, "other", 20.0, Target::AtMost(8.0));
        report.beside("memory", "MB", 9.0, "other", 20.0, Target::AtMost(8.0));
        report.beside("memory", "MB", 7.0, "other", 6.0, Target::AtMost(8.0));
        report.beside("speed", "1/s", 7.0, "other", 6.0, Target::More);
        report.figure("speed", "1/s", 7.0, Target::AtLeast(8.0));
        report.above("speed", "1/s", 7.0, "bound", 10.0, Target::Share(0.6));
        report.above("speed", "1/s", 5.0, "bound", 10.0, Target::Share(0.6));
        report.above("delay", "ms", 7.0, "floor", 1.0, Target::AtMost(8.0));
        report.above("delay", "ms", 9.0, "floor", 1.0, Target::AtMost(8.0));
        let holds: Vec<bool> = report.rows().iter().map(|row| row.holds).collect();
        assert_eq!(holds, [true, false, false, true, false, true, false, true, false]);
        assert_eq!(report.rows()[0].ratio, Some(0.35));
    }

    #[test]
    fn the_table_is_aligned() {
        let mut report = Report::default();
        report.beside("memory", "MB", 7.25, "other", 20.0, Target::AtMost(8.0));
        report.figure("bytes", "B", 123_456.0, Target::Less);
        assert_eq!(
            report.table(),
            "figure  unit    ours  peer   theirs  ratio  target  holds\n\
             memory  MB      7.25  other    20.0  0.362  <= 8.00  yes\n\
             bytes   B     123456  -           -      -  -        yes\n"
                .replace("target  holds", "target   holds")
        );
    }
}
