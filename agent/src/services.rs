//! The state of every Compose service, from the engine's answers and events. Pure: it asks for nothing itself.

use std::collections::{BTreeMap, BTreeSet};

use protocol::Timestamp;
use protocol::message::{Service, ServiceHealth, ServiceKey, ServiceState};

use crate::container::{Action, ContainerId, Event, Inspected, Key};

/// All containers of Compose services, and what was last told about them.
#[derive(Debug, Default)]
pub struct Services {
    containers: BTreeMap<ContainerId, Container>,
    /// By image id; see [`Services::digest`].
    digests: BTreeMap<String, String>,
    told: BTreeMap<Key, Service>,
}

/// What an event asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing came of it.
    Nothing,
    /// The event says all there is to say: take the changes.
    Changed,
    /// The engine has to be asked about the container.
    Ask,
}

/// The services whose state is another than was last told.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Changes {
    /// New or different.
    pub changed: Vec<Service>,
    /// No longer there.
    pub removed: Vec<ServiceKey>,
}

/// A container whose figures can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// `stack/service/number`.
    pub target: Box<str>,
    /// Which container it is.
    pub container: ContainerId,
    /// Of its first process: another one, another run.
    pub pid: u32,
    /// See [`Inspected::own_network`].
    pub own_network: bool,
    /// In bytes.
    pub memory_limit: Option<i64>,
}

#[derive(Debug)]
struct Container {
    now: Inspected,
    /// When, by the engine's clock, it was asked: an older event is already part of the answer.
    asked: Timestamp,
    /// How the last run ended, when one did.
    ended: Option<Ended>,
    /// Whether the kernel ended a process of the present run, or of the last while there is none.
    out_of_memory: bool,
    /// When it last did so: in a quick loop the engine's answers skip whole runs.
    oom_at: Option<Timestamp>,
    changed: Timestamp,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    exit_code: i32,
    out_of_memory: bool,
}

impl Services {
    /// Takes in an event.
    ///
    /// Only the engine knows whether a container that died will be restarted, and what a failing check said; all
    /// else can be told from the event.
    pub fn event(&mut self, event: &Event) -> Next {
        let Some(container) = self.containers.get_mut(&event.container) else {
            return if event.action == Action::Destroyed { Next::Nothing } else { Next::Ask };
        };
        if event.action == Action::Destroyed {
            self.containers.remove(&event.container);
            return Next::Changed;
        }
        if event.at < container.asked {
            return Next::Nothing;
        }
        container.changed = event.at;
        match event.action {
            Action::Died(exit_code) => {
                container.ended = Some(Ended { exit_code, out_of_memory: container.out_of_memory });
                Next::Ask
            }
            Action::Started => {
                container.out_of_memory = false;
                Next::Ask
            }
            Action::OutOfMemory => {
                container.oom_at = Some(event.at);
                container.out_of_memory = true;
                // Its event may come after that of the end which it caused.
                if container.now.pid.is_none()
                    && let Some(ended) = &mut container.ended
                {
                    ended.out_of_memory = true;
                }
                Next::Changed
            }
            Action::Health(ServiceHealth::Unhealthy) | Action::Other => Next::Ask,
            Action::Health(health) => {
                container.now.health = health;
                container.now.health_output.clear();
                Next::Changed
            }
            Action::Paused => {
                container.now.state = ServiceState::Paused;
                container.now.health = ServiceHealth::Unspecified;
                container.now.health_output.clear();
                Next::Changed
            }
            // Whether it has a health check, the answer tells.
            Action::Unpaused => Next::Ask,
            Action::Destroyed => Next::Changed,
        }
    }

    /// Takes in the engine's answer to a question put at `asked` by the engine's clock.
    pub fn inspected(&mut self, now: Inspected, asked: Timestamp) {
        let running = matches!(now.state, ServiceState::Running | ServiceState::Paused);
        let answered_end = now.finished.filter(|_| !running).map(|_| now.exit_code);
        let Some(container) = self.containers.get_mut(&now.id) else {
            let changed = now.started.max(now.finished).unwrap_or(now.created);
            let out_of_memory = now.oom_killed;
            let ended = answered_end.map(|exit_code| Ended { exit_code, out_of_memory });
            let container = Container { now, asked, ended, out_of_memory, oom_at: None, changed };
            self.containers.insert(container.now.id.clone(), container);
            return;
        };
        if now.started != container.now.started {
            let in_this_run = container.oom_at.zip(now.started).is_some_and(|(oom, started)| oom >= started);
            container.out_of_memory = in_this_run;
        }
        container.out_of_memory |= now.oom_killed;
        if let Some(exit_code) = answered_end {
            container.ended = Some(Ended { exit_code, out_of_memory: container.out_of_memory });
        }
        container.asked = asked;
        container.now = now;
    }

    /// The engine knows no such container any more.
    pub fn gone(&mut self, container: &ContainerId) {
        self.containers.remove(container);
    }

    /// Forgets every container that is not in `listed`: what ended while nobody listened.
    pub fn keep(&mut self, listed: &[ContainerId]) {
        let listed: BTreeSet<&ContainerId> = listed.iter().collect();
        self.containers.retain(|id, _| listed.contains(id));
    }

    /// The image ids whose digest is not known yet.
    pub fn unknown_images(&self) -> impl Iterator<Item = &str> {
        let images = self.containers.values().map(|container| container.now.image_id.as_str());
        images.filter(|image| !image.is_empty() && !self.digests.contains_key(*image))
    }

    /// The digest under which a registry knows the image; the image's own id when it came from none.
    pub fn digest(&mut self, image_id: &str, digest: String) {
        self.digests.insert(image_id.to_owned(), digest);
        let used: BTreeSet<&str> = self.containers.values().map(|container| container.now.image_id.as_str()).collect();
        self.digests.retain(|image, _| image == image_id || used.contains(image.as_str()));
    }

    /// What changed since this was last asked. The same changes are not told twice.
    pub fn changes(&mut self) -> Changes {
        let present = self.present();
        let mut changes = Changes::default();
        for (key, container) in &present {
            let service = self.service(container);
            let same = |told: &&Service| **told == Service { changed_at_ms: told.changed_at_ms, ..service.clone() };
            if self.told.get(*key).filter(same).is_none() {
                changes.changed.push(service);
            }
        }
        changes.removed = self.told.keys().filter(|key| !present.contains_key(key)).map(ServiceKey::from).collect();
        let still: BTreeSet<Key> = present.keys().map(|key| (*key).clone()).collect();
        self.told.retain(|key, _| still.contains(key));
        for service in &changes.changed {
            if let Some(key) = service.key.as_ref() {
                let key =
                    Key { stack: key.stack.as_str().into(), service: key.service.as_str().into(), number: key.number };
                self.told.insert(key, service.clone());
            }
        }
        changes
    }

    /// The containers that run, by target.
    pub fn running(&self) -> Vec<Running> {
        let present = self.present();
        let running = present.iter().filter_map(|(key, container)| {
            Some(Running {
                target: key.target().into(),
                container: container.now.id.clone(),
                pid: container.now.pid?,
                own_network: container.now.own_network,
                memory_limit: container.now.memory_limit,
            })
        });
        running.collect()
    }

    /// One container for each service. While Compose replaces one there are two: the one that runs counts, else the newer.
    fn present(&self) -> BTreeMap<&Key, &Container> {
        let mut present: BTreeMap<&Key, &Container> = BTreeMap::new();
        for container in self.containers.values() {
            let rank = |container: &Container| (container.now.pid.is_some(), container.now.created);
            present
                .entry(&container.now.key)
                .and_modify(|chosen| {
                    if rank(container) > rank(chosen) {
                        *chosen = container;
                    }
                })
                .or_insert(container);
        }
        present
    }

    fn service(&self, container: &Container) -> Service {
        let now = &container.now;
        let millis = |time: Option<Timestamp>| time.map_or(0, Timestamp::millis);
        Service {
            key: Some((&now.key).into()),
            container_id: now.id.as_str().to_owned(),
            state: now.state.into(),
            health: now.health.into(),
            restart_count: now.restart_count,
            exit_code: container.ended.map(|ended| ended.exit_code),
            oom_killed: container.out_of_memory || container.ended.is_some_and(|ended| ended.out_of_memory),
            image: now.image.clone(),
            image_digest: self.digests.get(&now.image_id).cloned().unwrap_or_default(),
            started_at_ms: millis(now.started),
            finished_at_ms: millis(now.finished),
            changed_at_ms: container.changed.millis(),
            health_output: now.health_output.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::{captured, captured_events};

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn answer(name: &str) -> Inspected {
        Inspected::read(captured(name)).unwrap()
    }

    fn event(container: &Inspected, millis: i64, action: Action) -> Event {
        Event { at: at(millis), container: container.id.clone(), action }
    }

    /// A running container known since 1000.
    fn running(name: &str) -> (Services, Inspected) {
        let mut services = Services::default();
        let answer = Inspected {
            state: ServiceState::Running,
            started: Some(at(900)),
            finished: None,
            oom_killed: false,
            pid: Some(7),
            ..answer(name)
        };
        services.inspected(answer.clone(), at(1000));
        assert_eq!(services.changes().changed.len(), 1);
        (services, answer)
    }

    fn only(services: &mut Services) -> Service {
        let changes = services.changes();
        assert_eq!((changes.changed.len(), changes.removed.len()), (1, 0), "{changes:?}");
        changes.changed.into_iter().next().unwrap()
    }

    #[test]
    fn a_first_look_tells_every_service_once() {
        let mut services = Services::default();
        for name in ["healthy", "unhealthy", "looping", "greedy", "stopped"] {
            services.inspected(answer(name), at(1000));
        }
        let told = services.changes();
        let mut seen: Vec<_> = told
            .changed
            .iter()
            .map(|s| {
                (s.key.clone().unwrap().service, s.state(), s.health(), s.exit_code, s.oom_killed, s.restart_count)
            })
            .collect();
        seen.sort();
        let none = ServiceHealth::Unspecified;
        assert_eq!(
            seen,
            [
                ("greedy".into(), ServiceState::Exited, none, Some(137), true, 0),
                ("healthy".into(), ServiceState::Running, ServiceHealth::Healthy, None, false, 0),
                ("looping".into(), ServiceState::Restarting, none, Some(3), false, 5),
                ("stopped".into(), ServiceState::Exited, none, Some(143), false, 0),
                ("unhealthy".into(), ServiceState::Running, ServiceHealth::Unhealthy, None, false, 0),
            ]
        );
        assert_eq!(services.changes(), Changes::default(), "told once");
        assert_eq!(
            services.running().iter().map(|r| &*r.target).collect::<Vec<_>>(),
            ["cond/healthy/1", "cond/unhealthy/1"]
        );
    }

    #[test]
    fn the_engine_is_asked_only_when_an_event_does_not_say_enough() {
        let (mut services, c) = running("healthy");
        let cases = [
            (Action::Health(ServiceHealth::Healthy), Next::Changed),
            (Action::Health(ServiceHealth::Unhealthy), Next::Ask),
            (Action::Paused, Next::Changed),
            (Action::Unpaused, Next::Ask),
            (Action::OutOfMemory, Next::Changed),
            (Action::Died(1), Next::Ask),
            (Action::Started, Next::Ask),
            (Action::Other, Next::Ask),
            (Action::Destroyed, Next::Changed),
            (Action::Destroyed, Next::Nothing),
            (Action::Other, Next::Ask),
        ];
        for (action, next) in cases {
            assert_eq!(services.event(&event(&c, 2000, action)), next, "{action:?}");
        }
    }

    #[test]
    fn a_pause_is_told_without_a_question_and_is_not_ill_health() {
        let (mut services, c) = running("healthy");
        services.event(&event(&c, 2000, Action::Paused));
        let paused = only(&mut services);
        assert_eq!((paused.state(), paused.health()), (ServiceState::Paused, ServiceHealth::Unspecified));
        assert_eq!(paused.changed_at_ms, 2000);
    }

    #[test]
    fn an_event_older_than_the_answer_changes_nothing() {
        let (mut services, c) = running("healthy");
        assert_eq!(services.event(&event(&c, 999, Action::Paused)), Next::Nothing);
        assert_eq!(services.changes(), Changes::default());
    }

    #[test]
    fn an_exit_code_outlives_the_restart_that_resets_it() {
        let (mut services, c) = running("looping");
        services.event(&event(&c, 2000, Action::Died(3)));
        let again =
            Inspected { started: Some(at(2100)), finished: Some(at(2000)), exit_code: 0, restart_count: 6, ..c };
        services.inspected(again, at(2200));
        let service = only(&mut services);
        assert_eq!((service.state(), service.exit_code, service.restart_count), (ServiceState::Running, Some(3), 6));
    }

    #[test]
    fn an_oom_kill_is_told_at_once_and_outlives_the_restart() {
        let (mut services, c) = running("greedy");
        services.event(&event(&c, 2000, Action::OutOfMemory));
        let killed = only(&mut services);
        assert_eq!((killed.oom_killed, killed.exit_code), (true, None), "still running");
        services.event(&event(&c, 2001, Action::Died(137)));
        let again = Inspected { started: Some(at(2100)), finished: Some(at(2001)), ..c.clone() };
        services.inspected(again.clone(), at(2200));
        let restarted = only(&mut services);
        assert_eq!(
            (restarted.state(), restarted.oom_killed, restarted.exit_code),
            (ServiceState::Running, true, Some(137))
        );

        // The next run ends well: the last run was not ended by the kernel.
        services.event(&event(&c, 3000, Action::Died(0)));
        services.inspected(
            Inspected { state: ServiceState::Exited, exit_code: 0, pid: None, finished: Some(at(3000)), ..again },
            at(3100),
        );
        let ended = only(&mut services);
        assert_eq!((ended.oom_killed, ended.exit_code), (false, Some(0)));
    }

    /// A container that takes all memory at once dies before the engine can be asked about its start.
    #[test]
    fn an_oom_kill_in_a_quick_loop_is_not_lost_and_not_kept_for_a_later_run() {
        let (mut services, c) = running("greedy");
        for action in [Action::Died(1), Action::Started, Action::OutOfMemory] {
            services.event(&event(&c, 2000, action));
        }
        // The answer to the question that the start asked for, put before the kill.
        services.inspected(Inspected { started: Some(at(1990)), ..c.clone() }, at(1995));
        services.event(&event(&c, 2001, Action::Died(137)));
        let restarting = Inspected {
            state: ServiceState::Restarting,
            started: Some(at(1990)),
            finished: Some(at(2001)),
            exit_code: 137,
            pid: None,
            ..c.clone()
        };
        services.inspected(restarting, at(2002));
        assert!(only(&mut services).oom_killed);

        for (millis, action) in [(3000, Action::Started), (3001, Action::Died(1))] {
            services.event(&event(&c, millis, action));
        }
        let failed = Inspected {
            state: ServiceState::Restarting,
            started: Some(at(2990)),
            finished: Some(at(3001)),
            exit_code: 1,
            pid: None,
            ..c
        };
        services.inspected(failed, at(3002));
        let service = only(&mut services);
        assert_eq!((service.oom_killed, service.exit_code), (false, Some(1)), "another kind of failure");
    }

    #[test]
    fn an_oom_event_after_the_end_counts_for_it() {
        let (mut services, c) = running("greedy");
        services.event(&event(&c, 2000, Action::Died(137)));
        services.inspected(
            Inspected { state: ServiceState::Exited, exit_code: 137, pid: None, finished: Some(at(2000)), ..c.clone() },
            at(2000),
        );
        assert!(!only(&mut services).oom_killed);
        services.event(&event(&c, 2003, Action::OutOfMemory));
        assert!(only(&mut services).oom_killed);
    }

    #[test]
    fn a_container_that_compose_replaces_stays_one_service() {
        let (mut services, old) = running("healthy");
        let new = Inspected {
            id: ContainerId::from("new".to_owned()),
            created: at(i64::MAX),
            state: ServiceState::Created,
            pid: None,
            started: None,
            ..old.clone()
        };
        services.inspected(new.clone(), at(2000));
        assert_eq!(services.changes(), Changes::default(), "the old one still runs");
        services.inspected(
            Inspected {
                state: ServiceState::Exited,
                pid: None,
                finished: Some(at(2100)),
                exit_code: 143,
                ..old.clone()
            },
            at(2100),
        );
        assert_eq!(only(&mut services).container_id, "new");
        services.event(&event(&old, 2200, Action::Destroyed));
        assert_eq!(services.changes(), Changes::default());
        services.event(&event(&new, 2300, Action::Destroyed));
        let changes = services.changes();
        assert_eq!((changes.changed.len(), changes.removed), (0, vec![ServiceKey::from(&old.key)]));
        assert_eq!(services.changes(), Changes::default(), "told once");
    }

    #[test]
    fn what_vanished_while_nobody_listened_is_removed() {
        let (mut services, c) = running("healthy");
        services.inspected(answer("stopped"), at(1000));
        services.changes();
        services.keep(&[answer("stopped").id]);
        assert_eq!(services.changes().removed, [ServiceKey::from(&c.key)]);
    }

    #[test]
    fn an_images_digest_is_asked_for_once_and_forgotten_with_its_last_container() {
        let (mut services, c) = running("healthy");
        assert_eq!(services.unknown_images().collect::<Vec<_>>(), [c.image_id.as_str()]);
        services.digest(&c.image_id, "sha256:feed".into());
        assert_eq!(services.unknown_images().count(), 0);
        assert_eq!(only(&mut services).image_digest, "sha256:feed");
        services.gone(&c.id);
        services.digest("other", "sha256:beef".into());
        assert_eq!(services.digests.keys().collect::<Vec<_>>(), ["other"]);
    }

    /// The events of a whole `compose up`, in the engine's order, ask only about containers that need it.
    #[test]
    fn a_captured_run_of_events_ends_where_the_engine_did() {
        let mut services = Services::default();
        let events: Vec<Event> = captured_events().into_iter().filter_map(Event::read).collect();
        let mut asked = BTreeSet::new();
        for event in &events {
            if services.event(event) == Next::Ask {
                asked.insert(event.container.clone());
            }
        }
        assert_eq!(asked.len(), 7, "six services, one of them replaced, and no one-off");
    }
}
