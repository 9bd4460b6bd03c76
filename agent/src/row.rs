//! One row of telemetry: every figure with its metric and target, and the schema that they add up to.

use std::sync::Arc;

use protocol::Timestamp;
use protocol::metrics::{self, Known};
use protocol::telemetry::{Row, Schema, SchemaError};

use crate::cgroup::Figures;
use crate::host::{FileSystem, HostFigures};
use crate::roster::Roster;

/// What one row is made of.
#[derive(Debug)]
pub struct Sample<'a> {
    /// Of the host and this process.
    pub host: &'a HostFigures,
    /// Of file systems.
    pub file_systems: &'a [FileSystem],
    /// Of services, by target; `None` for one that doesn't run now.
    pub services: &'a [ServiceSample],
    /// Batches in the spool.
    pub spool_pending: u64,
    /// Bytes of the spool.
    pub spool_bytes: u64,
}

/// A service's figures under its name in the telemetry.
#[derive(Debug, Clone)]
pub struct ServiceSample {
    /// `stack/service/number`.
    pub target: Box<str>,
    /// What was measured.
    pub figures: Figures,
    /// In bytes.
    pub memory_limit: Option<i64>,
}

/// The schema of the row before, kept for as long as it fits.
#[derive(Debug, Default)]
pub struct Rows {
    schema: Option<Arc<Schema>>,
}

impl Rows {
    /// Lays out a sample. The schema is the very same one until a series comes or goes.
    pub fn row(&mut self, at: Timestamp, sample: &Sample<'_>) -> Result<(Arc<Schema>, Row), SchemaError> {
        let columns = columns(sample);
        let values = columns.iter().flat_map(|column| column.values.iter().map(|(_, value)| *value)).collect();
        let schema = match self.schema.take().filter(|schema| fits(schema, &columns)) {
            Some(schema) => schema,
            None => Arc::new(Schema::new(columns.iter().map(Column::declare).collect())?),
        };
        self.schema = Some(Arc::clone(&schema));
        Ok((schema, Row { at, values }))
    }
}

/// A metric with the value of each of its targets.
struct Column<'a> {
    metric: Known,
    values: Vec<(&'a str, Option<i64>)>,
}

impl Column<'_> {
    fn declare(&self) -> (protocol::telemetry::Metric, Vec<Box<str>>) {
        (self.metric.into(), self.values.iter().map(|(target, _)| (*target).into()).collect())
    }
}

fn fits(schema: &Schema, columns: &[Column<'_>]) -> bool {
    let mut known = schema.metrics();
    let all = columns.iter().all(|column| {
        known.next().is_some_and(|(metric, _, targets)| {
            *metric.name == *column.metric.name
                && targets.len() == column.values.len()
                && targets.iter().zip(&column.values).all(|(known, (target, _))| **known == **target)
        })
    });
    all && known.next().is_none()
}

/// Every figure, in the order in which the metrics are declared.
fn columns<'a>(sample: &'a Sample<'a>) -> Vec<Column<'a>> {
    let host = sample.host;
    let one = |metric, value| Column { metric, values: vec![("", value)] };
    let [load_1, load_5, load_15] = host.load;
    let spool = |value: u64| i64::try_from(value).ok();
    let mut columns = vec![one(metrics::CPU_BUSY, host.busy)];
    let processors = host.processors.iter().zip(PROCESSORS);
    columns.push(Column {
        metric: metrics::CPU_CORE_BUSY,
        values: processors.map(|(share, name)| (*name, *share)).collect(),
    });
    columns.extend([
        one(metrics::LOAD_1, load_1),
        one(metrics::LOAD_5, load_5),
        one(metrics::LOAD_15, load_15),
        one(metrics::MEMORY_TOTAL, host.memory.total),
        one(metrics::MEMORY_USED, host.memory.used),
        one(metrics::MEMORY_AVAILABLE, host.memory.available),
        one(metrics::SWAP_TOTAL, host.memory.swap_total),
        one(metrics::SWAP_USED, host.memory.swap_used),
        many(metrics::DISK_TOTAL, sample.file_systems, |fs| (&fs.mount, Some(fs.total))),
        many(metrics::DISK_USED, sample.file_systems, |fs| (&fs.mount, Some(fs.used))),
        listed(metrics::DISK_READ, &host.devices, |device| device.read),
        listed(metrics::DISK_WRITTEN, &host.devices, |device| device.written),
        listed(metrics::NETWORK_RECEIVED, &host.interfaces, |interface| interface.received),
        listed(metrics::NETWORK_SENT, &host.interfaces, |interface| interface.sent),
        listed(metrics::NETWORK_ERRORS, &host.interfaces, |interface| interface.errors),
        one(metrics::UPTIME, host.uptime),
    ]);
    let service = |metric, figure: fn(&ServiceSample) -> Option<i64>| {
        many(metric, sample.services, |service| (&*service.target, figure(service)))
    };
    columns.extend([
        service(metrics::SERVICE_CPU, |service| service.figures.cpu),
        service(metrics::SERVICE_MEMORY, |service| service.figures.memory),
        service(metrics::SERVICE_MEMORY_LIMIT, |service| service.memory_limit.map(|bytes| bytes / 1024)),
        service(metrics::SERVICE_PROCESSES, |service| service.figures.processes),
        service(metrics::SERVICE_NETWORK_RECEIVED, |service| service.figures.received),
        service(metrics::SERVICE_NETWORK_SENT, |service| service.figures.sent),
        service(metrics::SERVICE_BLOCK_READ, |service| service.figures.read),
        service(metrics::SERVICE_BLOCK_WRITTEN, |service| service.figures.written),
    ]);
    columns.extend([
        one(metrics::AGENT_MEMORY, host.own_memory),
        one(metrics::AGENT_CPU, host.own_cpu),
        one(metrics::SPOOL_PENDING, spool(sample.spool_pending)),
        one(metrics::SPOOL_BYTES, spool(sample.spool_bytes)),
    ]);
    // A metric without a target would be declared for nothing.
    columns.retain(|column| !column.values.is_empty());
    columns
}

fn many<'a, T>(metric: Known, items: &'a [T], value: impl Fn(&'a T) -> (&'a str, Option<i64>)) -> Column<'a> {
    Column { metric, values: items.iter().map(value).collect() }
}

fn listed<T>(metric: Known, roster: &Roster<T>, value: fn(&T) -> i64) -> Column<'_> {
    Column { metric, values: roster.iter().map(|(name, figures)| (name, figures.map(value))).collect() }
}

/// Processors' targets, so that a row is laid out without making any.
const PROCESSORS: &[&str] = &[
    "cpu0", "cpu1", "cpu2", "cpu3", "cpu4", "cpu5", "cpu6", "cpu7", "cpu8", "cpu9", "cpu10", "cpu11", "cpu12", "cpu13",
    "cpu14", "cpu15", "cpu16", "cpu17", "cpu18", "cpu19", "cpu20", "cpu21", "cpu22", "cpu23", "cpu24", "cpu25",
    "cpu26", "cpu27", "cpu28", "cpu29", "cpu30", "cpu31", "cpu32", "cpu33", "cpu34", "cpu35", "cpu36", "cpu37",
    "cpu38", "cpu39", "cpu40", "cpu41", "cpu42", "cpu43", "cpu44", "cpu45", "cpu46", "cpu47", "cpu48", "cpu49",
    "cpu50", "cpu51", "cpu52", "cpu53", "cpu54", "cpu55", "cpu56", "cpu57", "cpu58", "cpu59", "cpu60", "cpu61",
    "cpu62", "cpu63",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Device, Interface, Memory};

    fn host() -> HostFigures {
        HostFigures {
            busy: Some(2500),
            processors: vec![Some(5000), Some(0)],
            load: [Some(52), Some(30), None],
            memory: Memory { total: Some(1000), used: Some(400), available: Some(600), ..Memory::default() },
            devices: [("vda", Device { read: 4096, written: 512 })].into_iter().collect(),
            interfaces: [("eth0", Interface { received: 7, sent: 8, errors: 9 })].into_iter().collect(),
            uptime: Some(60),
            own_memory: Some(6000),
            own_cpu: Some(10),
        }
    }

    fn service(target: &str, cpu: i64) -> ServiceSample {
        ServiceSample {
            target: target.into(),
            figures: Figures { cpu: Some(cpu), ..Figures::default() },
            memory_limit: Some(64 * 1024 * 1024),
        }
    }

    fn lay_out(rows: &mut Rows, host: &HostFigures, services: &[ServiceSample]) -> (Arc<Schema>, Row) {
        let file_systems = [FileSystem { mount: "/".into(), total: 100, used: 40 }];
        let sample = Sample { host, file_systems: &file_systems, services, spool_pending: 3, spool_bytes: 4096 };
        rows.row(Timestamp::from_millis(15_000), &sample).unwrap()
    }

    #[test]
    fn every_figure_stands_under_its_metric_and_target() {
        let (schema, row) = lay_out(&mut Rows::default(), &host(), &[service("shop/web/1", 77)]);
        assert_eq!(row.values.len(), schema.len());
        let value = |metric: &str, target: &str| {
            row.values[schema.index(metric, target).unwrap_or_else(|| panic!("{metric} {target}"))]
        };
        for (metric, target, expected) in [
            ("cpu.busy", "", Some(2500)),
            ("cpu.core.busy", "cpu1", Some(0)),
            ("load.5", "", Some(30)),
            ("load.15", "", None),
            ("memory.available", "", Some(600)),
            ("swap.total", "", None),
            ("disk.used", "/", Some(40)),
            ("disk.written", "vda", Some(512)),
            ("network.errors", "eth0", Some(9)),
            ("uptime", "", Some(60)),
            ("service.cpu", "shop/web/1", Some(77)),
            ("service.memory.limit", "shop/web/1", Some(65_536)),
            ("service.block.read", "shop/web/1", None),
            ("agent.memory", "", Some(6000)),
            ("spool.pending", "", Some(3)),
        ] {
            assert_eq!(value(metric, target), expected, "{metric} {target}");
        }
    }

    #[test]
    fn the_schema_stays_the_same_until_a_series_comes_or_goes() {
        let mut rows = Rows::default();
        let (first, _) = lay_out(&mut rows, &host(), &[service("a/b/1", 1)]);
        let other_values = HostFigures { busy: None, uptime: None, ..host() };
        let (second, _) = lay_out(&mut rows, &other_values, &[service("a/b/1", 2)]);
        assert!(Arc::ptr_eq(&first, &second));
        let (third, _) = lay_out(&mut rows, &host(), &[service("a/b/1", 2), service("a/b/2", 0)]);
        assert_eq!(third.len(), first.len() + 8);
        let (fourth, _) =
            lay_out(&mut rows, &HostFigures { interfaces: Roster::default(), ..host() }, &[service("a/b/1", 2)]);
        assert_eq!(fourth.len(), first.len() - 3);
        let (fifth, row) = lay_out(&mut rows, &host(), &[service("a/c/1", 2)]);
        assert_eq!(fifth.len(), first.len());
        assert_eq!(row.values[fifth.index("service.cpu", "a/c/1").unwrap()], Some(2));
    }

    #[test]
    fn more_processors_than_have_a_name_are_in_the_sum_only() {
        let many = HostFigures { processors: vec![Some(1); 200], ..host() };
        let (schema, row) = lay_out(&mut Rows::default(), &many, &[]);
        assert_eq!(row.values.len(), schema.len());
        assert!(schema.index("cpu.core.busy", "cpu63").is_some() && schema.index("cpu.core.busy", "cpu64").is_none());
    }
}
