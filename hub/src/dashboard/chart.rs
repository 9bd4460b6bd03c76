//! SVG line charts: drawn on the server, sharp at any width, with a text alternative.

use std::collections::BTreeMap;

use maud::{Markup, html};
use protocol::Timestamp;
use serde_json::json;

use super::format;

/// Most lines in one chart; the rest would not be told apart.
pub const MAX_SERIES: usize = 6;
/// Rows of the table that stands in for the picture.
const TABLE_ROWS: i64 = 12;

/// What a chart's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Shares from 0 to 1, shown as per cent.
    Ratio,
    /// Bytes.
    Bytes,
    /// Bytes per second.
    Rate,
    /// Plain numbers.
    Plain,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Ratio => format::percent(value),
            Self::Bytes => format::bytes(value),
            Self::Rate => format::rate(value),
            Self::Plain => format!("{value:.2}"),
        }
    }

    fn tick(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{:.0} %", value * 100.0),
            Self::Plain => {
                if value.fract() == 0.0 {
                    format!("{value:.0}")
                } else {
                    format!("{value:.1}")
                }
            }
            _ => self.show(value).replace(".0 ", " "),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::Bytes => "bytes",
            Self::Rate => "rate",
            Self::Plain => "plain",
        }
    }

    fn rounded(self, value: f64) -> f64 {
        match self {
            Self::Ratio | Self::Plain => (value * 10_000.0).round() / 10_000.0,
            Self::Bytes | Self::Rate => value.round(),
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// What the legend calls it.
    pub label: String,
    /// Time in ms since the Unix epoch, and value; in order of time.
    pub points: Vec<(i64, f64)>,
}

/// A chart over one span of time.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Unique on its page.
    pub id: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// Of its values.
    pub unit: Unit,
    /// Left end.
    pub from: Timestamp,
    /// Right end.
    pub to: Timestamp,
    /// Top of the scale, where it is known.
    pub top: Option<f64>,
    /// The time one point stands for, ms; where points lie much further apart, nothing was measured in between.
    pub step: u64,
    /// At most [`MAX_SERIES`] are drawn.
    pub lines: Vec<Line>,
    /// What to say when there is nothing to draw.
    pub empty: &'static str,
}

impl Chart {
    /// The figure.
    pub fn render(&self) -> Markup {
        let lines = self.lines.get(..self.lines.len().min(MAX_SERIES)).unwrap_or_default();
        if lines.iter().all(|line| line.points.is_empty()) {
            return html! {
                figure.chart.card id=(self.id) {
                    figcaption { h3 { (self.title) } }
                    p.no-data { (self.empty) }
                }
            };
        }
        let scale = Scale::new(self.unit, self.top, lines);
        html! {
            figure.chart.card id=(self.id) {
                figcaption { h3 { (self.title) } span.readout {} }
                div.plot {
                    svg.y-axis aria-hidden="true" {
                        @for tick in &scale.ticks {
                            text x="48" y=(format!("{:.1}", 136.0 * (1.0 - tick / scale.top) + 3.5)) text-anchor="end" { (self.unit.tick(*tick)) }
                        }
                    }
                    svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" tabindex="0" aria-label=(self.summary(lines))
                        data-chart=(self.data(lines)) {
                        @for tick in &scale.ticks {
                            line class={ "grid" @if *tick == 0.0 { " axis" } } x1="0" x2="1000" y1=(scale.y(*tick)) y2=(scale.y(*tick)) {}
                        }
                        @for (n, line) in lines.iter().enumerate() {
                            @if lines.len() == 1 { path class={ "area s" (n) } d=(self.area(&scale, line)) {} }
                            path class={ "line s" (n) } d=(self.path(&scale, line)) {}
                        }
                        line.cursor x1="0" x2="0" y1="0" y2="100" visibility="hidden" {}
                    }
                    svg.x-axis aria-hidden="true" {
                        @for (x, anchor, share) in [("0", "start", 1.0), ("25%", "middle", 0.75), ("50%", "middle", 0.5), ("75%", "middle", 0.25), ("100%", "end", 0.0)] {
                            text x=(x) y="14" text-anchor=(anchor) .minor[share == 0.25 || share == 0.75] { (self.back(share)) }
                        }
                    }
                }
                ul.legend {
                    @for (n, line) in lines.iter().enumerate() {
                        li {
                            svg aria-hidden="true" { line class={ "key s" (n) } x1="0" x2="18" y1="1" y2="1" {} }
                            span.name { (line.label) }
                            b { (line.points.last().map_or_else(|| "–".to_owned(), |(_, value)| self.unit.show(*value))) }
                        }
                    }
                    @if self.lines.len() > lines.len() { li { (self.lines.len() - lines.len()) " more not drawn" } }
                }
                details {
                    summary { "As a table" }
                    (self.table(lines))
                }
            }
        }
    }

    fn span(&self) -> i64 {
        (self.to.millis() - self.from.millis()).max(1)
    }

    fn x(&self, at: i64) -> f64 {
        (at - self.from.millis()) as f64 / self.span() as f64 * 1000.0
    }

    /// How long before the right end a share of the span is: `−45 min`.
    fn back(&self, share: f64) -> String {
        let minutes = (self.span() as f64 * share / 60_000.0).round() as i64;
        match minutes {
            0 => "now".to_owned(),
            1..120 => format!("−{minutes} min"),
            _ => format!("−{} h", minutes / 60),
        }
    }

    /// Runs of points without a hole; a hole is where more than three usual steps are missing.
    fn runs<'a>(&self, line: &'a Line) -> Vec<&'a [(i64, f64)]> {
        let mut steps: Vec<i64> = line.points.windows(2).filter_map(|w| Some(w.get(1)?.0 - w.first()?.0)).collect();
        steps.sort_unstable();
        // A node that measures less often than once a step has its own usual distance.
        let usual = steps.get(steps.len() / 2).copied().unwrap_or(i64::MAX / 4).max(self.step as i64);
        line.points.chunk_by(|a, b| b.0 - a.0 <= usual.saturating_mul(3)).collect()
    }

    fn path(&self, scale: &Scale, line: &Line) -> String {
        let mut d = String::new();
        for run in self.runs(line) {
            for (i, (at, value)) in run.iter().filter(|point| point.1.is_finite()).enumerate() {
                d.push_str(&format!("{}{:.1} {:.2}", if i == 0 { 'M' } else { 'L' }, self.x(*at), scale.y(*value)));
            }
            if let [(at, value)] = run {
                d.push_str(&format!("L{:.1} {:.2}", self.x(*at) + 0.1, scale.y(*value)));
            }
        }
        d
    }

    fn area(&self, scale: &Scale, line: &Line) -> String {
        let mut d = String::new();
        for run in self.runs(line) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                d.push_str(&format!("M{:.1} 100", self.x(first.0)));
                run.iter()
                    .filter(|point| point.1.is_finite())
                    .for_each(|(at, value)| d.push_str(&format!("L{:.1} {:.2}", self.x(*at), scale.y(*value))));
                d.push_str(&format!("L{:.1} 100Z", self.x(last.0)));
            }
        }
        d
    }

    /// The picture in a sentence.
    fn summary(&self, lines: &[Line]) -> String {
        let each = lines.iter().filter_map(|line| {
            let (_, last) = line.points.last()?;
            let low = line.points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
            let high = line.points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
            Some(format!(
                "{}: now {}, lowest {}, highest {}",
                line.label,
                self.unit.show(*last),
                self.unit.show(low),
                self.unit.show(high)
            ))
        });
        let hours = self.span() / 3_600_000;
        let span = if hours <= 1 { "the last hour".to_owned() } else { format!("the last {hours} hours") };
        format!("{} over {span}. {}. Arrow keys read single values.", self.title, each.collect::<Vec<_>>().join("; "))
    }

    /// What the page's script reads values from: all lines on one axis of times.
    fn data(&self, lines: &[Line]) -> String {
        let mut rows: BTreeMap<i64, Vec<Option<f64>>> = BTreeMap::new();
        for (n, line) in lines.iter().enumerate() {
            for (at, value) in &line.points {
                if let Some(cell) = rows.entry(*at).or_insert_with(|| vec![None; lines.len()]).get_mut(n) {
                    *cell = Some(self.unit.rounded(*value));
                }
            }
        }
        let values: Vec<Vec<Option<f64>>> =
            (0..lines.len()).map(|n| rows.values().map(|row| row.get(n).copied().flatten()).collect()).collect();
        json!({
            "from": self.from.millis(), "to": self.to.millis(), "unit": self.unit.name(),
            "t": rows.keys().collect::<Vec<_>>(), "v": values,
        })
        .to_string()
    }

    fn table(&self, lines: &[Line]) -> Markup {
        let step = (self.span() / TABLE_ROWS).max(1);
        html! {
            table {
                thead { tr { th scope="col" { "From" } @for line in lines { th.num scope="col" { (line.label) } } } }
                tbody {
                    @for row in 0..TABLE_ROWS {
                        @let (start, end) = (self.from.millis() + row * step, self.from.millis() + (row + 1) * step);
                        tr {
                            th scope="row" { (self.back(1.0 - row as f64 / TABLE_ROWS as f64)) }
                            @for line in lines { td.num { (mean(line, start, end).map_or_else(|| "–".to_owned(), |value| self.unit.show(value))) } }
                        }
                    }
                }
            }
        }
    }
}

fn mean(line: &Line, start: i64, end: i64) -> Option<f64> {
    let within: Vec<f64> = line.points.iter().filter(|(at, _)| (start..end).contains(at)).map(|p| p.1).collect();
    (!within.is_empty()).then(|| within.iter().sum::<f64>() / within.len() as f64)
}

struct Scale {
    top: f64,
    ticks: Vec<f64>,
}

impl Scale {
    fn new(unit: Unit, top: Option<f64>, lines: &[Line]) -> Self {
        let highest =
            lines.iter().flat_map(|line| &line.points).map(|p| p.1).filter(|v| v.is_finite()).fold(0.0, f64::max);
        let want = top.unwrap_or(0.0).max(highest);
        let want = match unit {
            _ if want > 0.0 => want,
            Unit::Ratio | Unit::Plain => 1.0,
            Unit::Bytes | Unit::Rate => 1000.0,
        };
        let step = nice_step(want / 4.0, if unit == Unit::Bytes { 1024.0 } else { 1000.0 });
        let top = if top.is_some_and(|top| highest <= top) { want } else { (want / step).ceil() * step };
        let ticks = (0..=8).map(|n| f64::from(n) * step).take_while(|tick| *tick <= top * 1.0001).collect();
        Self { top, ticks }
    }

    /// Of 100, from the top; one decimal is finer than a pixel.
    fn y(&self, value: f64) -> f64 {
        ((1.0 - value / self.top) * 10_000.0).round() / 100.0
    }
}

/// The smallest of 1, 2, 2.5 or 5 times a power of ten, within the unit's own powers, that is at least `step`.
fn nice_step(step: f64, base: f64) -> f64 {
    let mut unit = 1.0;
    while step / unit >= base {
        unit *= base;
    }
    let scaled = step / unit;
    let magnitude = 10f64.powf(scaled.log10().floor());
    let nice = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|n| n * magnitude >= scaled * 0.9999).unwrap_or(10.0);
    nice * magnitude * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(unit: Unit, top: Option<f64>, points: Vec<(i64, f64)>) -> Chart {
        Chart {
            id: "c",
            title: "CPU",
            unit,
            from: Timestamp::from_millis(0),
            to: Timestamp::from_millis(3_600_000),
            top,
            step: 10_000,
            lines: vec![Line { label: "busy".into(), points }],
            empty: "Nothing yet.",
        }
    }

    #[test]
    fn the_scale_ends_on_a_round_number_in_its_own_unit() {
        let scale = |unit, top, value| {
            let c = chart(unit, top, vec![(0, value)]);
            Scale::new(unit, top, &c.lines).ticks.iter().map(|t| unit.tick(*t)).collect::<Vec<_>>()
        };
        assert_eq!(scale(Unit::Ratio, Some(1.0), 0.3), ["0 %", "25 %", "50 %", "75 %", "100 %"]);
        assert_eq!(scale(Unit::Bytes, Some(8_160_437_862.0), 1e9), ["0 B", "2 GiB", "4 GiB", "6 GiB"]);
        assert_eq!(scale(Unit::Rate, None, 730_000.0), ["0 B/s", "200 kB/s", "400 kB/s", "600 kB/s", "800 kB/s"]);
        assert_eq!(scale(Unit::Plain, None, 0.0).last().map(String::as_str), Some("1"));
    }

    #[test]
    fn a_hole_in_the_data_is_a_hole_in_the_line() {
        let c =
            chart(Unit::Ratio, Some(1.0), vec![(0, 0.1), (10_000, 0.2), (20_000, 0.2), (600_000, 0.5), (610_000, 0.5)]);
        let drawn = c.render().into_string();
        let path = drawn.split("line s0\" d=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a path");
        assert_eq!(path.matches('M').count(), 2, "{path}");
    }

    #[test]
    fn a_chart_can_be_read_without_seeing_it() {
        let c = chart(Unit::Ratio, Some(1.0), vec![(0, 0.1), (10_000, 0.88), (20_000, 0.2)]);
        let drawn = c.render().into_string();
        assert!(drawn.contains("busy: now 20 %, lowest 10 %, highest 88 %"), "{drawn}");
        assert!(drawn.contains("<table>"));
        assert!(!drawn.contains("style="), "inline style is refused by the content security policy");
    }

    #[test]
    fn no_data_says_so() {
        assert!(chart(Unit::Ratio, None, vec![]).render().into_string().contains("Nothing yet."));
    }

    #[test]
    fn hostile_values_do_not_break_the_picture() {
        let drawn =
            chart(Unit::Plain, None, vec![(0, f64::NAN), (1, f64::INFINITY), (2, 1e300)]).render().into_string();
        assert!(drawn.contains("</figure>"));
    }
}
