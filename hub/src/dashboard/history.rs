//! A node's charts, out of its history.

use protocol::telemetry::Kind;
use protocol::{NodeId, metrics};

use super::chart::{Chart, Line, MAX_SERIES, Unit};
use super::node::Span;
use crate::api::problem::Problem;
use crate::api::resource::{self, History, Node, Series};
use crate::telemetry::history::Selector;
use crate::web::App;

/// Points of a line: about one per pixel of a wide chart.
const POINTS: usize = 360;

/// The charts of one node over a span that ends now.
pub(super) async fn charts(app: &App, id: NodeId, node: &Node, span: Span) -> Result<Vec<Chart>, Problem> {
    if node.kind == resource::Kind::Bridge {
        return Ok(Vec::new());
    }
    let wanted = [
        metrics::CPU_BUSY,
        metrics::MEMORY_USED,
        metrics::LOAD_1,
        metrics::LOAD_5,
        metrics::LOAD_15,
        metrics::NETWORK_RECEIVED,
        metrics::NETWORK_SENT,
        metrics::DISK_USED,
        metrics::DISK_TOTAL,
        metrics::DISK_READ,
        metrics::DISK_WRITTEN,
    ];
    let to = app.now();
    let from = to.minus(span.duration());
    let selectors: Vec<Selector> = wanted.iter().map(|metric| Selector::all(metric.name)).collect();
    let stored = app.state.history.within(&node.tenant);
    let history = History::from(stored.range(id, &selectors, from, to, POINTS).await?);
    let of = |metric: metrics::Known| history.series.iter().filter(move |series| series.metric == metric.name);
    let lines = |metric: metrics::Known, suffix: &str| -> Vec<Line> {
        of(metric).map(|series| line(series, label(series, suffix), 1.0)).collect()
    };
    // Interfaces and devices that never moved a byte only hide the others.
    let busiest = |mut lines: Vec<Line>| -> Vec<Line> {
        let volume = |line: &Line| line.points.iter().map(|point| point.1).sum::<f64>();
        lines.sort_by(|a, b| volume(b).total_cmp(&volume(a)));
        if lines.iter().any(|line| volume(line) > 0.0) {
            lines.retain(|line| volume(line) > 0.0);
        }
        lines.truncate(MAX_SERIES);
        lines.sort_by(|a, b| a.label.cmp(&b.label));
        lines
    };
    let both = |one: metrics::Known, one_name: &str, other: metrics::Known, other_name: &str| {
        debug_assert_eq!((one.kind, other.kind), (Kind::Counter, Kind::Counter));
        busiest(lines(one, one_name).into_iter().chain(lines(other, other_name)).collect())
    };
    let disks = of(metrics::DISK_USED)
        .filter_map(|used| {
            let total = of(metrics::DISK_TOTAL).find(|total| total.target == used.target)?.points.last()?.mean;
            (total > 0.0).then(|| line(used, used.target.clone(), 1.0 / total))
        })
        .collect();
    let loads = [(metrics::LOAD_1, "1 min"), (metrics::LOAD_5, "5 min"), (metrics::LOAD_15, "15 min")];
    let loads = loads.iter().flat_map(|(metric, name)| lines(*metric, name)).collect();
    let chart = |id, title, unit, top, lines| Chart {
        id,
        title,
        unit,
        from,
        to,
        top,
        step: history.step_ms,
        lines,
        empty: "Nothing was measured in this span.",
    };
    Ok(vec![
        chart("c-cpu", "CPU", Unit::Ratio, Some(1.0), lines(metrics::CPU_BUSY, "busy")),
        chart(
            "c-memory",
            "Memory",
            Unit::Bytes,
            node.figures.memory.map(|memory| memory.total),
            lines(metrics::MEMORY_USED, "used"),
        ),
        chart("c-load", "Load", Unit::Plain, None, loads),
        chart(
            "c-network",
            "Network",
            Unit::Rate,
            None,
            both(metrics::NETWORK_RECEIVED, "received", metrics::NETWORK_SENT, "sent"),
        ),
        chart("c-disks", "Disk space", Unit::Ratio, Some(1.0), disks),
        chart(
            "c-io",
            "Disk throughput",
            Unit::Rate,
            None,
            both(metrics::DISK_READ, "read", metrics::DISK_WRITTEN, "written"),
        ),
    ])
}

fn label(series: &Series, suffix: &str) -> String {
    if series.target.is_empty() { suffix.to_owned() } else { format!("{} {suffix}", series.target) }
}

fn line(series: &Series, label: String, scale: f64) -> Line {
    Line { label, points: series.points.iter().map(|point| (point.at, point.mean * scale)).collect() }
}
