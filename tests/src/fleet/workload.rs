//! Believable figures of a simulated host and its services: a daily curve, noise, counters, idle and busy services.

use std::f64::consts::TAU;
use std::sync::Arc;

use protocol::message::{Engine, EngineState, Service, ServiceHealth, ServiceKey, ServiceState};
use protocol::telemetry::{Metric, Row, Schema, SchemaError};
use protocol::{Timestamp, metrics};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Series of one service.
const SERIES_PER_SERVICE: usize = 8;
const CORES: usize = 4;
const MOUNTS: [&str; 2] = ["/", "/var/lib/docker"];
const INTERFACES: [&str; 2] = ["eth0", "eth1"];
const DISKS: [&str; 1] = ["sda"];
/// What runs in a stack, in the order in which services are added; then it starts over with the next stack.
const SERVICES: [&str; 8] =
    ["redpanda", "umh-core", "postgres", "grafana", "odoo-agent", "ziti-router", "connect", "backup"];

/// The columns of a workload: all nodes of one size share them, as the hub would.
pub struct Layout {
    schema: Arc<Schema>,
    services: Vec<ServiceKey>,
}

impl Layout {
    /// Columns for about `series` series: those of the host, and as many services as fill the rest.
    pub fn new(series: usize) -> Result<Self, SchemaError> {
        let host = host_metrics();
        let used: usize = host.iter().map(|(_, targets)| targets.len()).sum();
        let count = series.saturating_sub(used).div_ceil(SERIES_PER_SERVICE);
        let services: Vec<ServiceKey> = (0..count)
            .map(|index| ServiceKey {
                stack: format!("line-{}", index / SERVICES.len() + 1),
                service: SERVICES[index % SERVICES.len()].to_owned(),
                number: 1,
            })
            .collect();
        let targets: Vec<Box<str>> = services.iter().map(target).collect();
        let per_service = [
            metrics::SERVICE_CPU,
            metrics::SERVICE_MEMORY,
            metrics::SERVICE_MEMORY_LIMIT,
            metrics::SERVICE_PROCESSES,
            metrics::SERVICE_NETWORK_RECEIVED,
            metrics::SERVICE_NETWORK_SENT,
            metrics::SERVICE_BLOCK_READ,
            metrics::SERVICE_BLOCK_WRITTEN,
        ];
        let mut all = host;
        if count > 0 {
            all.extend(per_service.into_iter().map(|known| (known.into(), targets.clone())));
        }
        Ok(Self { schema: Arc::new(Schema::new(all)?), services })
    }

    /// The columns.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }
}

/// One simulated host.
pub struct Workload {
    layout: Arc<Layout>,
    series: Vec<Series>,
    services: Vec<Service>,
    random: SmallRng,
    /// Where this host stands in its day, in turns.
    phase: f64,
    last: Option<Timestamp>,
}

/// How one figure moves.
enum Series {
    /// Never.
    Fixed(i64),
    /// Around a mean that follows the day.
    Level { mean: f64, swing: f64, noise: f64, value: f64 },
    /// Upward, at a rate that follows the day; `share` of the intervals see any.
    Total { rate: f64, share: f64, sum: f64 },
    /// With the clock.
    Clock { since: Timestamp },
}

impl Workload {
    /// A host of `layout` that differs from those with another seed.
    pub fn new(layout: Arc<Layout>, seed: u64, now: Timestamp) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let booted = now.minus(std::time::Duration::from_secs(random.random_range(3_600..8_000_000)));
        let series = layout.schema.iter().map(|(metric, _)| series(metric, booted, &mut random)).collect();
        let services = layout.services.iter().map(|key| service(key, booted, &mut random)).collect();
        let phase = random.random_range(0.0..0.2);
        Self { layout, series, services, random, phase, last: None }
    }

    /// The columns of its rows.
    pub fn schema(&self) -> &Arc<Schema> {
        self.layout.schema()
    }

    /// Its services as they are.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Its engine.
    pub fn engine(&self) -> Engine {
        Engine { state: EngineState::Connected.into(), version: "27.3.1".to_owned(), message: String::new() }
    }

    /// The figures at `now`.
    pub fn row(&mut self, now: Timestamp) -> Row {
        let elapsed = now.since(self.last.unwrap_or(now)).as_secs_f64();
        self.last = Some(now);
        let turn = now.millis().rem_euclid(86_400_000) as f64 / 86_400_000.0;
        // Night at midnight, noon at the top: 0 to 1.
        let day = 0.5 - 0.5 * ((turn + self.phase) * TAU).cos();
        let random = &mut self.random;
        let values = self.series.iter_mut().map(|series| Some(series.next(now, elapsed, day, random))).collect();
        Row { at: now, values }
    }

    /// Marks a service healthy or not; the service as it is then, or `None` when there is no such service.
    pub fn set_health(&mut self, index: usize, health: ServiceHealth, now: Timestamp) -> Option<Service> {
        let service = self.services.get_mut(index)?;
        service.health = health.into();
        service.changed_at_ms = now.millis();
        service.health_output = match health {
            ServiceHealth::Unhealthy => "dial tcp 127.0.0.1:8080: connection refused".to_owned(),
            _ => String::new(),
        };
        Some(service.clone())
    }

    /// Lets a service fail and start again; the service as it is then.
    pub fn restart(&mut self, index: usize, now: Timestamp) -> Option<Service> {
        let service = self.services.get_mut(index)?;
        service.state = ServiceState::Running.into();
        service.restart_count += 1;
        service.exit_code = Some(1);
        service.finished_at_ms = now.millis();
        service.started_at_ms = now.millis();
        service.changed_at_ms = now.millis();
        Some(service.clone())
    }

    /// Stops a service with an exit code; the service as it is then.
    pub fn stop(&mut self, index: usize, exit_code: i32, now: Timestamp) -> Option<Service> {
        let service = self.services.get_mut(index)?;
        service.state = ServiceState::Exited.into();
        service.health = ServiceHealth::Unspecified.into();
        service.exit_code = Some(exit_code);
        service.finished_at_ms = now.millis();
        service.changed_at_ms = now.millis();
        Some(service.clone())
    }
}

impl Series {
    fn next(&mut self, now: Timestamp, elapsed: f64, day: f64, random: &mut SmallRng) -> i64 {
        match self {
            Self::Fixed(value) => *value,
            Self::Level { mean, swing, noise, value } => {
                // A walk that is pulled to where the day wants it.
                let wanted = *mean + *swing * (day - 0.5);
                *value += (wanted - *value) * 0.2 + *noise * (random.random::<f64>() - 0.5);
                value.max(0.0) as i64
            }
            Self::Total { rate, share, sum } => {
                if random.random::<f64>() < *share {
                    *sum += *rate * elapsed / *share * (0.3 + day) * random.random_range(0.6..1.4);
                }
                *sum as i64
            }
            Self::Clock { since } => now.since(*since).as_secs() as i64,
        }
    }
}

fn host_metrics() -> Vec<(Metric, Vec<Box<str>>)> {
    let host = || vec![Box::from("")];
    let on = |targets: &[&str]| targets.iter().map(|target| Box::from(*target)).collect::<Vec<Box<str>>>();
    let cores = (0..CORES).map(|core| format!("cpu{core}").into()).collect();
    vec![
        (metrics::CPU_BUSY.into(), host()),
        (metrics::CPU_CORE_BUSY.into(), cores),
        (metrics::LOAD_1.into(), host()),
        (metrics::LOAD_5.into(), host()),
        (metrics::LOAD_15.into(), host()),
        (metrics::MEMORY_TOTAL.into(), host()),
        (metrics::MEMORY_USED.into(), host()),
        (metrics::MEMORY_AVAILABLE.into(), host()),
        (metrics::SWAP_TOTAL.into(), host()),
        (metrics::SWAP_USED.into(), host()),
        (metrics::DISK_TOTAL.into(), on(&MOUNTS)),
        (metrics::DISK_USED.into(), on(&MOUNTS)),
        (metrics::DISK_READ.into(), on(&DISKS)),
        (metrics::DISK_WRITTEN.into(), on(&DISKS)),
        (metrics::NETWORK_RECEIVED.into(), on(&INTERFACES)),
        (metrics::NETWORK_SENT.into(), on(&INTERFACES)),
        (metrics::NETWORK_ERRORS.into(), on(&INTERFACES)),
        (metrics::UPTIME.into(), host()),
        (metrics::AGENT_MEMORY.into(), host()),
        (metrics::AGENT_CPU.into(), host()),
        (metrics::SPOOL_PENDING.into(), host()),
        (metrics::SPOOL_BYTES.into(), host()),
    ]
}

fn series(metric: &Metric, booted: Timestamp, random: &mut SmallRng) -> Series {
    const GIB: f64 = 1024.0 * 1024.0;
    let size = random.random_range(0.6..1.4);
    let level = |mean: f64, swing: f64, noise: f64| {
        let mean = mean * size;
        Series::Level { mean, swing: mean * swing, noise: mean * noise, value: mean }
    };
    match &*metric.name {
        "cpu.busy" | "cpu.core.busy" => level(2_500.0, 0.8, 0.2),
        "load.1" => level(90.0, 0.8, 0.3),
        "load.5" => level(85.0, 0.8, 0.08),
        "load.15" => level(80.0, 0.8, 0.03),
        "memory.total" => Series::Fixed(16 * 1024 * 1024),
        "memory.used" => level(7.0 * GIB, 0.1, 0.002),
        "memory.available" => level(8.5 * GIB, -0.1, 0.002),
        "swap.total" => Series::Fixed(2 * 1024 * 1024),
        "swap.used" | "network.errors" | "spool.pending" => Series::Fixed(0),
        "disk.total" => Series::Fixed(100 * 1024 * 1024),
        "disk.used" => level(40.0 * GIB, 0.0, 0.000_01),
        "disk.read" => Series::Total { rate: 20e3, share: 0.3, sum: random.random_range(1e9..1e11) },
        "disk.written" => Series::Total { rate: 200e3, share: 1.0, sum: random.random_range(1e9..1e11) },
        "network.received" | "network.sent" => {
            Series::Total { rate: 30e3, share: 1.0, sum: random.random_range(1e9..1e12) }
        }
        "uptime" => Series::Clock { since: booted },
        "service.cpu" => Series::Total {
            rate: random.random_range(0.2..60.0),
            share: random.random_range(0.4..1.0),
            sum: random.random_range(1e3..1e8),
        },
        "service.memory" => level(200.0 * 1024.0, 0.1, if random.random_bool(0.5) { 0.003 } else { 0.0 }),
        "service.memory.limit" => Series::Fixed(1024 * 1024),
        "service.processes" => Series::Fixed(random.random_range(1..40)),
        "service.network.received" | "service.network.sent" => Series::Total {
            rate: random.random_range(50.0..5_000.0),
            share: random.random_range(0.2..1.0),
            sum: random.random_range(1e5..1e10),
        },
        "service.block.read" => Series::Total { rate: 100.0, share: 0.02, sum: random.random_range(1e5..1e9) },
        "service.block.written" => {
            let busy = random.random_bool(0.4);
            let share = if busy { 0.8 } else { 0.02 };
            Series::Total { rate: 4_096.0, share, sum: random.random_range(1e5..1e10) }
        }
        "agent.memory" => level(7_000.0, 0.0, 0.0),
        "agent.cpu" => Series::Total { rate: 0.4, share: 1.0, sum: random.random_range(0.0..1e5) },
        _ => Series::Fixed(0),
    }
}

fn service(key: &ServiceKey, booted: Timestamp, random: &mut SmallRng) -> Service {
    let checked = random.random_bool(0.7);
    let health = if checked { ServiceHealth::Healthy } else { ServiceHealth::Unspecified };
    Service {
        key: Some(key.clone()),
        container_id: format!("{:016x}{:016x}", random.random::<u64>(), random.random::<u64>()),
        state: ServiceState::Running.into(),
        health: health.into(),
        restart_count: 0,
        exit_code: None,
        oom_killed: false,
        image: format!("registry.example/{}:2026.11", key.service),
        image_digest: format!("sha256:{:016x}", random.random::<u64>()),
        started_at_ms: booted.millis(),
        finished_at_ms: 0,
        changed_at_ms: booted.millis(),
        health_output: String::new(),
    }
}

fn target(key: &ServiceKey) -> Box<str> {
    format!("{}/{}/{}", key.stack, key.service, key.number).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::telemetry::{Encoder, Kind};

    use super::*;

    const NOON: Timestamp = Timestamp::from_millis(1_795_435_200_000);

    fn workload(seed: u64) -> Workload {
        Workload::new(Arc::new(Layout::new(300).expect("a schema")), seed, NOON)
    }

    /// Rows at 10 s.
    fn rows(workload: &mut Workload, count: u64) -> Vec<Row> {
        (0..count).map(|step| workload.row(NOON.plus(Duration::from_secs(10) * step as u32))).collect()
    }

    #[test]
    fn a_fleet_has_about_the_series_asked_for() {
        for series in [30, 100, 300, 1000] {
            let layout = Layout::new(series).expect("a schema");
            assert!(layout.schema().len().abs_diff(series) <= 12, "{} for {series}", layout.schema().len());
        }
    }

    #[test]
    fn one_seed_gives_one_history_and_another_gives_another() {
        assert_eq!(rows(&mut workload(1), 20), rows(&mut workload(1), 20));
        assert_ne!(rows(&mut workload(1), 20), rows(&mut workload(2), 20));
    }

    #[test]
    fn counters_only_grow_and_shares_stay_shares() {
        let mut workload = workload(3);
        let (schema, rows) = (Arc::clone(workload.schema()), rows(&mut workload, 360));
        for (index, (metric, _)) in schema.iter().enumerate() {
            let values: Vec<i64> = rows.iter().map(|row| row.values[index].expect("measured")).collect();
            if metric.kind == Kind::Counter {
                assert!(values.is_sorted(), "{}: {values:?}", metric.name);
            }
            if &*metric.name == "cpu.busy" {
                assert!(values.iter().all(|value| (0..=10_000).contains(value)), "{values:?}");
                assert!(values.iter().max() > values.iter().min());
            }
        }
    }

    #[test]
    fn it_costs_about_what_real_samples_cost() {
        let mut workload = workload(4);
        let (schema, rows) = (Arc::clone(workload.schema()), rows(&mut workload, 400));
        let (mut encoder, mut bytes) = (Encoder::new(), 0);
        for (index, rows) in rows.chunks(4).enumerate() {
            let encoded = encoder.encode(&schema, rows, false);
            bytes += if index == 0 { 0 } else { encoded.bytes.len() };
        }
        let per_sample = bytes as f64 / (396 * schema.len()) as f64;
        assert!((0.4..1.2).contains(&per_sample), "{per_sample} bytes per sample");
    }

    #[test]
    fn services_do_what_they_are_told() {
        let mut workload = workload(5);
        let sick = workload.set_health(0, ServiceHealth::Unhealthy, NOON).expect("a service");
        assert!(sick.health() == ServiceHealth::Unhealthy && !sick.health_output.is_empty());
        let again = workload.restart(0, NOON).expect("a service");
        assert_eq!((again.restart_count, again.exit_code, again.state()), (1, Some(1), ServiceState::Running));
        let gone = workload.stop(1, 137, NOON).expect("a service");
        assert_eq!((gone.state(), gone.exit_code), (ServiceState::Exited, Some(137)));
        assert!(workload.set_health(10_000, ServiceHealth::Healthy, NOON).is_none());
    }
}
