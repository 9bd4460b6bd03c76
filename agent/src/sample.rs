//! The sampling clock: at every multiple of the interval, one row of all figures to the recorder.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use node::{Clock, Recorder};
use protocol::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cgroup::{Figures, Group, Hierarchies};
use crate::container::ContainerId;
use crate::docker::Followed;
use crate::host::{FileSystem, FileSystems, Host};
use crate::kept::Page;
use crate::roster::LINGER;
use crate::row::{Rows, Sample, ServiceSample};
use crate::services::Running;
use crate::stats;

/// How often file systems are looked at: they fill slowly, and each look costs a call per mount.
const FILE_SYSTEMS: Duration = Duration::from_secs(60);
/// How long the first sample waits for the engine, so that it has the services in it.
const FIRST_SAMPLE: Duration = Duration::from_secs(2);

/// Takes the samples.
pub struct Sampler {
    interval: watch::Receiver<Duration>,
    clock: Clock,
    recorder: Recorder,
    followed: watch::Receiver<Followed>,
    host: Host,
    mounts: Mounts,
    containers: Containers,
    rows: Rows,
}

impl Sampler {
    /// A sampler that records every `interval`, which may change, knows from `followed` which containers run, and reads their figures in
    /// `hierarchies`; what is not there it asks the engine for.
    pub fn new(
        interval: watch::Receiver<Duration>,
        clock: Clock,
        recorder: Recorder,
        followed: watch::Receiver<Followed>,
        hierarchies: Hierarchies,
    ) -> Self {
        Self {
            interval,
            clock,
            recorder,
            followed,
            host: Host::new(),
            mounts: Mounts::default(),
            containers: Containers::new(hierarchies),
            rows: Rows::default(),
        }
    }

    /// Samples once at the start and then at every multiple of the interval, until `stop`. What is missed is skipped.
    pub async fn run(mut self, stop: CancellationToken) {
        let first = async {
            let settled = self.followed.wait_for(|followed| followed.settled);
            let _ = tokio::time::timeout(FIRST_SAMPLE, settled).await;
            self.mounts.first().await;
        };
        if stop.run_until_cancelled(first).await.is_none() {
            return;
        }
        let mut last = self.clock.now();
        self.sample(last).await;
        self.recorder.flush().await;
        loop {
            let (at, wait) = next(self.clock.now(), last, *self.interval.borrow_and_update());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // Whoever could change it may be gone: then it stays as it is.
                Ok(()) = self.interval.changed() => continue,
                () = tokio::time::sleep(wait) => {}
            }
            self.sample(at).await;
            last = at;
        }
    }

    async fn sample(&mut self, at: Timestamp) {
        let followed = self.followed.borrow_and_update().clone();
        self.mounts.look();
        self.containers.poll(&followed);
        let services = self.containers.read(&followed.running);
        let spool = self.recorder.backlog().status();
        let sample = Sample {
            host: self.host.read(),
            file_systems: &self.mounts.found,
            services: &services,
            spool_pending: spool.pending_batches,
            spool_bytes: spool.bytes,
        };
        match self.rows.row(at, &sample) {
            Ok((schema, row)) => self.recorder.record(&schema, row).await,
            Err(error) => tracing::error!(%error, "a sample can't be recorded"),
        }
    }
}

/// The next multiple of `interval` after `now`, and how long it is until then.
///
/// Timers and the wall clock don't tick alike: a timer that woke a little early must not give the same time twice.
fn next(now: Timestamp, last: Timestamp, interval: Duration) -> (Timestamp, Duration) {
    let step = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
    let mut at = (now.millis().div_euclid(step) + 1).saturating_mul(step);
    if at == last.millis() {
        at = at.saturating_add(step);
    }
    let at = Timestamp::from_millis(at);
    (at, at.since(now))
}

/// The file systems, looked at on a thread of their own: a device that does not answer must not hold up the rest.
#[derive(Default)]
struct Mounts {
    found: Vec<FileSystem>,
    reader: Option<FileSystems>,
    looking: JoinSet<(FileSystems, Vec<FileSystem>)>,
    next: Option<Instant>,
}

impl Mounts {
    /// The first look, waited for a while.
    async fn first(&mut self) {
        self.look();
        if let Ok(Some(Ok(looked))) = tokio::time::timeout(FIRST_SAMPLE, self.looking.join_next()).await {
            (self.reader, self.found) = (Some(looked.0), looked.1);
        }
    }

    /// Takes what the last look found, and starts another when it is time.
    fn look(&mut self) {
        while let Some(Ok(looked)) = self.looking.try_join_next() {
            (self.reader, self.found) = (Some(looked.0), looked.1);
        }
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        self.next = Some(now + FILE_SYSTEMS);
        if self.looking.is_empty() {
            let mut reader = self.reader.take().unwrap_or_default();
            self.looking.spawn_blocking(move || {
                let found = reader.read();
                (reader, found)
            });
        } else {
            tracing::warn!("a file system does not answer; disk figures are not measured until it does");
            self.found.clear();
        }
    }
}

/// The containers' figures: from files that stay open, or from the engine.
struct Containers {
    hierarchies: Hierarchies,
    open: HashMap<ContainerId, Opened>,
    /// From the engine, until the next row takes them.
    polled: HashMap<ContainerId, Figures>,
    polling: JoinSet<HashMap<ContainerId, Figures>>,
    next_poll: Option<Instant>,
    lingering: BTreeMap<Box<str>, Instant>,
    page: Page,
}

/// One run of a container.
struct Opened {
    pid: u32,
    /// `None` when its cgroup can't be read: then the engine is asked.
    group: Option<Group>,
}

impl Containers {
    fn new(hierarchies: Hierarchies) -> Self {
        Self {
            hierarchies,
            open: HashMap::new(),
            polled: HashMap::new(),
            polling: JoinSet::new(),
            next_poll: None,
            lingering: BTreeMap::new(),
            page: Page::new(),
        }
    }

    /// Takes what the engine answered, and asks it about the containers whose files can't be read when it is time.
    fn poll(&mut self, followed: &Followed) {
        while let Some(answer) = self.polling.try_join_next() {
            self.polled = answer.unwrap_or_default();
        }
        let now = Instant::now();
        let Some(engine) = followed.engine.clone().filter(|_| self.polling.is_empty()) else { return };
        if self.next_poll.is_some_and(|next| now < next) {
            return;
        }
        let unreadable =
            |running: &&Running| self.open.get(&running.container).is_some_and(|open| open.group.is_none());
        let containers: Vec<ContainerId> =
            followed.running.iter().filter(unreadable).map(|running| running.container.clone()).collect();
        if !containers.is_empty() {
            self.next_poll = Some(now + stats::EVERY);
            self.polling.spawn(stats::poll(engine, containers));
        }
    }

    /// The figures of every running container, and a place for those that ran a while ago.
    fn read(&mut self, running: &[Running]) -> Vec<ServiceSample> {
        let now = Instant::now();
        self.open.retain(|container, opened| {
            running.iter().any(|running| running.container == *container && running.pid == opened.pid)
        });
        let mut samples: Vec<ServiceSample> = Vec::with_capacity(running.len());
        for service in running {
            let opened = self.open.entry(service.container.clone()).or_insert_with(|| Opened {
                pid: service.pid,
                group: Group::open(&self.hierarchies, service.pid, service.own_network)
                    .inspect_err(
                        |error| tracing::debug!(service = &*service.target, %error, "its figures come from the engine"),
                    )
                    .ok(),
            });
            let figures = match &opened.group {
                Some(group) => group.read(&mut self.page).unwrap_or_else(|error| {
                    // It has ended, and its event is on the way.
                    tracing::debug!(service = &*service.target, %error, "no figures");
                    Figures::default()
                }),
                None => self.polled.remove(&service.container).unwrap_or_default(),
            };
            samples.push(ServiceSample { target: service.target.clone(), figures, memory_limit: service.memory_limit });
        }
        self.linger(&mut samples, now);
        samples
    }

    fn linger(&mut self, samples: &mut Vec<ServiceSample>, now: Instant) {
        for sample in samples.iter() {
            match self.lingering.get_mut(&sample.target) {
                Some(seen) => *seen = now,
                None => {
                    self.lingering.insert(sample.target.clone(), now);
                }
            }
        }
        self.lingering.retain(|_, seen| now.duration_since(*seen) < LINGER);
        let gone = self.lingering.keys().filter(|target| samples.iter().all(|sample| sample.target != **target));
        let gone: Vec<_> = gone
            .map(|target| ServiceSample { target: target.clone(), figures: Figures::default(), memory_limit: None })
            .collect();
        samples.extend(gone);
        samples.sort_by(|a, b| a.target.cmp(&b.target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn samples_are_taken_at_multiples_of_the_interval() {
        let interval = Duration::from_secs(15);
        let cases = [
            (at(1_000), at(0), at(15_000), 14_000),
            (at(15_000), at(15_000), at(30_000), 15_000),
            (at(14_999), at(15_000), at(30_000), 15_001),
            (at(76_000), at(15_000), at(90_000), 14_000),
            (at(20_000), at(90_000), at(30_000), 10_000),
        ];
        for (now, last, expected, wait) in cases {
            assert_eq!(next(now, last, interval), (expected, Duration::from_millis(wait)), "{now} after {last}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_services_series_stays_for_a_while() {
        let mut containers = Containers::new(Hierarchies::default());
        let running = |name: &str| Running {
            target: name.into(),
            container: ContainerId::from(name.to_owned()),
            pid: u32::MAX,
            own_network: true,
            memory_limit: Some(1),
        };
        let targets =
            |samples: Vec<ServiceSample>| samples.into_iter().map(|s| s.target.to_string()).collect::<Vec<_>>();
        assert_eq!(targets(containers.read(&[running("b"), running("a")])), ["a", "b"]);
        tokio::time::advance(LINGER / 2).await;
        let samples = containers.read(&[running("b")]);
        assert_eq!(samples[0].memory_limit, None, "not measured");
        assert_eq!(targets(samples), ["a", "b"]);
        tokio::time::advance(LINGER / 2).await;
        assert_eq!(targets(containers.read(&[running("b")])), ["b"]);
    }

    /// The figures of this very process, through whatever cgroups this machine has.
    #[tokio::test]
    async fn a_container_that_starts_again_is_read_anew() {
        let mut containers = Containers::new(Hierarchies::of_this_host());
        let mut running = Running {
            target: "a/b/1".into(),
            container: ContainerId::from("one".to_owned()),
            pid: std::process::id(),
            own_network: true,
            memory_limit: None,
        };
        let first = containers.read(std::slice::from_ref(&running));
        assert!(first[0].figures.cpu.is_some(), "{first:?}");
        assert!(containers.open.values().all(|open| open.group.is_some()));
        running.pid = u32::MAX;
        let second = containers.read(std::slice::from_ref(&running));
        assert_eq!(second[0].figures, Figures::default(), "the old run's files are no longer read");
    }
}
