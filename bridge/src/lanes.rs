//! Brings each message to the log of its class, and puts the classes' receipts together again: a connection acknowledges
//! in the order of its messages, whichever logs they are in.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use spool::Status;
use tokio::sync::watch;

use crate::class::Class;
use crate::intake::{Intake, Submission};
use crate::log::Log;
use crate::record::Record;
use crate::route::Routes;

/// The way from connections to logs.
#[derive(Debug)]
pub struct Lanes {
    intakes: Vec<Arc<Intake>>,
    /// The classes' names, in their order.
    classes: Vec<String>,
    ways: RwLock<Ways>,
    /// By the connections' indices.
    connections: Vec<Arc<Told>>,
}

/// Which route is whose. With one lane alone nobody asks.
#[derive(Debug)]
struct Ways {
    routes: Routes,
    /// The lane of each route, in their order.
    lanes: Vec<usize>,
}

impl Lanes {
    /// Those of `classes`, with an intake each. `of_route` has the name of each route's class.
    pub fn new(classes: &[Class], routes: Routes, of_route: &[Option<String>]) -> Self {
        let names: Vec<String> = classes.iter().map(|class| class.name.clone()).collect();
        Self {
            intakes: classes.iter().map(|_| Arc::default()).collect(),
            ways: RwLock::new(Ways::new(routes, of_route, &names)),
            classes: names,
            connections: Vec::new(),
        }
    }

    /// Goes by other routes from now on. What names a class that there was not at the start waits as what has none.
    pub fn follow(&self, routes: Routes, of_route: &[Option<String>]) {
        *self.ways.write().unwrap_or_else(PoisonError::into_inner) = Ways::new(routes, of_route, &self.classes);
    }

    /// What the lane's log is written from.
    pub fn intake(&self, lane: usize) -> Option<Arc<Intake>> {
        self.intakes.get(lane).map(Arc::clone)
    }

    /// Adds a connection, the next by its index; gives where it hears up to which of its messages it may acknowledge, and
    /// where lanes tell.
    pub fn connect(&mut self) -> (watch::Receiver<u64>, Arc<Told>) {
        let told = Arc::new(Told::new(self.intakes.len()));
        self.connections.push(Arc::clone(&told));
        (told.hear(), told)
    }

    /// Puts messages of one connection in, each where it belongs, when there is room for them.
    pub async fn put(&self, submissions: Vec<Submission>) {
        if let [only] = self.intakes.as_slice() {
            return only.put(submissions).await;
        }
        let mut parts: Vec<Vec<Submission>> = self.intakes.iter().map(|_| Vec::new()).collect();
        // What is passed over leaves no record, and goes with what came before it; at first by the lane that waits least.
        let mut lane = parts.len().saturating_sub(1);
        for submission in submissions {
            if !submission.record.is_empty() {
                lane = self.lane(&submission);
            }
            if let (Some(told), Some(number)) = (self.connections.get(submission.mqtt), submission.number) {
                told.await_from(lane, number);
            }
            parts[lane].push(submission);
        }
        // What is dropped rather than waits is not kept waiting by what waits.
        for (intake, part) in self.intakes.iter().zip(parts).rev() {
            if !part.is_empty() {
                intake.put(part).await;
            }
        }
    }

    /// Ends all: what is in them is still taken.
    pub fn close(&self) {
        self.intakes.iter().for_each(|intake| intake.close());
    }

    fn lane(&self, submission: &Submission) -> usize {
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        let route = |record: Record<'_>| ways.routes.route(record.mqtt, record.topic);
        let route = Record::decode(&submission.record).ok().and_then(route);
        route.and_then(|number| ways.lanes.get(number.checked_sub(1)?).copied()).unwrap_or(0)
    }
}

impl Ways {
    fn new(routes: Routes, of_route: &[Option<String>], classes: &[String]) -> Self {
        let lane = |name: &Option<String>| classes.iter().position(|class| Some(class) == name.as_ref()).unwrap_or(0);
        Self { routes, lanes: of_route.iter().map(lane).collect() }
    }
}

/// What a connection is told by the lanes.
#[derive(Debug)]
pub struct Told {
    sender: watch::Sender<u64>,
    lanes: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Messages that are not known to be stored, with their lanes, in their order: no more than brokers leave unacknowledged.
    /// With one lane alone there are none.
    messages: VecDeque<(u64, usize)>,
    /// By lane: messages of it through this one are stored.
    through: Vec<u64>,
}

impl Told {
    /// Of so many lanes.
    pub fn new(lanes: usize) -> Self {
        let waiting = Waiting { messages: VecDeque::new(), through: vec![0; lanes] };
        Self { sender: watch::Sender::new(0), lanes: Mutex::new(waiting) }
    }

    /// Where the connection hears.
    pub fn hear(&self) -> watch::Receiver<u64> {
        self.sender.subscribe()
    }

    /// Messages of the lane are stored, through this one.
    pub fn tell(&self, lane: usize, message: u64) {
        let mut waiting = self.waiting();
        let Waiting { messages, through } = &mut *waiting;
        if through.len() < 2 {
            self.sender.send_replace(message);
            return;
        }
        if let Some(known) = through.get_mut(lane) {
            *known = message;
        }
        let mut last = None;
        while let Some((message, lane)) = messages.front().copied()
            && through.get(lane).is_none_or(|through| message <= *through)
        {
            messages.pop_front();
            last = Some(message);
        }
        if let Some(last) = last {
            self.sender.send_replace(last);
        }
    }

    /// This message goes to the lane.
    fn await_from(&self, lane: usize, message: u64) {
        self.waiting().messages.push_back((message, lane));
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The logs of all classes, to be looked at.
#[derive(Clone, Debug)]
pub struct Logs(Arc<Vec<(Class, Log)>>);

impl Logs {
    /// These.
    pub fn new(logs: Vec<(Class, Log)>) -> Self {
        Self(Arc::new(logs))
    }

    /// Each class and its log.
    pub fn iter(&self) -> std::slice::Iter<'_, (Class, Log)> {
        self.0.iter()
    }

    /// Each class, and how its log is doing.
    pub fn each(&self) -> impl Iterator<Item = (&Class, Status)> {
        self.0.iter().map(|(class, log)| (class, log.status()))
    }

    /// Records and bytes that wait, and numbers that are lost, of all together.
    pub fn total(&self) -> (u64, u64, u64) {
        self.each().fold((0, 0, 0), |(pending, bytes, lost), (_, status)| {
            (pending + status.pending, bytes + status.bytes, lost + status.lost)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::{ClassConfig, Overflow};
    use crate::config::{Config, RouteConfig};
    use crate::record::Notes;
    use protocol::Timestamp;
    use settings::Size;

    fn route(from: &str, class: Option<&str>) -> RouteConfig {
        let class = class.map(str::to_owned);
        RouteConfig { from: Some(from.into()), to: Some("x".into()), class, ..RouteConfig::default() }
    }

    fn lanes() -> Lanes {
        let class = |name: &str| ClassConfig {
            name: name.into(),
            overflow: Overflow::DropOldest,
            size: Size::mebibytes(1),
            max_age: None,
        };
        let config = Config {
            state_dir: "/nowhere".into(),
            class: vec![class("trends"), class("states")],
            route: vec![route("t/#", Some("trends")), route("s/#", Some("states")), route("#", None)],
            ..Config::default()
        };
        let of_route: Vec<_> = config.route.iter().map(|route| route.class.clone()).collect();
        Lanes::new(&Class::all(&config), Routes::new(&config.route).unwrap(), &of_route)
    }

    fn submission(number: u64, topic: &str) -> Submission {
        let received = Timestamp::from_millis(0);
        let record = Record {
            mqtt: "m",
            topic,
            payload: b"1",
            received,
            qos: 1,
            retained: false,
            duplicate: false,
            notes: Notes::default(),
        };
        Submission { mqtt: 0, number: Some(number), record: record.encoded() }
    }

    #[tokio::test]
    async fn messages_go_to_their_classes_and_are_acknowledged_in_their_order() {
        let mut lanes = lanes();
        let (heard, told) = lanes.connect();
        let topics = ["a", "t/a", "s/a", "t/b", "b"];
        lanes.put((1..).zip(topics).map(|(number, topic)| submission(number, topic)).collect()).await;
        let taken = |lane: usize| -> Vec<u64> {
            let taken = lanes.intake(lane).unwrap().take().unwrap();
            taken.iter().filter_map(|submission| submission.number).collect()
        };
        assert_eq!((taken(0), taken(1), taken(2)), (vec![1, 5], vec![2, 4], vec![3]));
        told.tell(1, 4);
        assert_eq!(*heard.borrow(), 0, "the first is not stored");
        told.tell(0, 1);
        assert_eq!(*heard.borrow(), 2);
        told.tell(2, 3);
        assert_eq!(*heard.borrow(), 4);
        told.tell(0, 5);
        assert_eq!(*heard.borrow(), 5);
    }

    #[tokio::test]
    async fn what_is_owed_no_acknowledgement_is_not_waited_for() {
        let mut lanes = lanes();
        let (_, told) = lanes.connect();
        let without = |topic| Submission { number: None, ..submission(0, topic) };
        lanes.put(vec![submission(1, "a"), without("t/a"), submission(2, "t/a")]).await;
        assert_eq!(lanes.intake(1).unwrap().take().unwrap().len(), 2);
        assert_eq!(told.waiting().messages, [(1, 0), (2, 1)]);
    }
}
