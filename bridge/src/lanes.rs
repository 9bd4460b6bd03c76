//! Brings each message to the log of its class, and puts the classes' receipts together again: a connection acknowledges
//! in the order of its messages, whichever logs they are in.

mod lane;
mod ways;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use node::FileError;
use spool::Status;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::class::Class;
use crate::intake::Submission;
use crate::log::Log;
use crate::record::Record;
pub use lane::Lane;
pub use ways::Ways;
use ways::WaysFile;

/// How long a connection is not read so that Kafka gets what went by other classes, and how long until that is tried again.
const PATIENCE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(10);

/// The way from connections to logs.
///
/// A topic whose class is changed goes by its former one until all that its connection brought before is delivered. So its
/// records are never in two logs at once, of which one knows nothing of the other.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Arc<Lane>>,
    /// The classes' names, in their order.
    classes: Vec<String>,
    /// By their indices.
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    told: Arc<Told>,
    /// The classes of its topics as they are configured.
    wanted: Mutex<Arc<Ways>>,
    course: tokio::sync::Mutex<Course>,
}

/// By which classes a connection's messages go.
#[derive(Debug)]
struct Course {
    mqtt: String,
    now: Arc<Ways>,
    file: WaysFile,
    /// Lanes that may have something of it.
    used: BTreeSet<usize>,
    /// When it was last tried to go by others.
    tried: Option<Instant>,
}

impl Lanes {
    /// Those of `classes`.
    pub fn new(classes: &[Class]) -> Self {
        Self {
            lanes: classes.iter().map(|_| Arc::default()).collect(),
            classes: classes.iter().map(|class| class.name.clone()).collect(),
            connections: Vec::new(),
        }
    }

    /// Has connections go by other classes, in their order, each when what it brought before is delivered. A class that there
    /// was not at the start is as none.
    pub fn follow(&self, wanted: impl IntoIterator<Item = Ways>) {
        for (connection, wanted) in self.connections.iter().zip(wanted) {
            *connection.wanted() = Arc::new(wanted.among(&self.classes));
        }
    }

    /// What goes to a log.
    pub fn lane(&self, lane: usize) -> Option<Arc<Lane>> {
        self.lanes.get(lane).map(Arc::clone)
    }

    /// Adds the connection `mqtt`, the next by its index, whose topics are of these classes; gives where it hears up to which
    /// of its messages it may acknowledge, and where lanes tell.
    ///
    /// # Errors
    /// When there is a file of its classes of before that can't be read.
    pub fn connect(
        &mut self,
        state_dir: &Path,
        mqtt: &str,
        wanted: Ways,
    ) -> Result<(watch::Receiver<u64>, Arc<Told>), FileError> {
        let (told, file) = (Arc::new(Told::new(self.lanes.len())), WaysFile::of(state_dir, mqtt));
        // A class that there is at the next start, and not now, is another one then: what is kept says where messages went.
        let wanted = wanted.among(&self.classes);
        let now = Arc::new(file.begin(&wanted)?.among(&self.classes));
        // Nobody knows what is left in them from before.
        let used = (0..self.lanes.len()).collect();
        let course = Course { mqtt: mqtt.to_owned(), now, file, used, tried: None };
        let connection =
            Connection { told: Arc::clone(&told), wanted: Mutex::new(Arc::new(wanted)), course: course.into() };
        self.connections.push(connection);
        Ok((told.hear(), told))
    }

    /// Puts messages of one connection in, each where it belongs, when there is room for them.
    pub async fn put(&self, submissions: Vec<Submission>) {
        if let [only] = self.lanes.as_slice() {
            return only.intake.put(submissions).await;
        }
        let Some(connection) = submissions.first().and_then(|submission| self.connections.get(submission.mqtt)) else {
            return;
        };
        let wanted = Arc::clone(&connection.wanted());
        let mut course = connection.course.lock().await;
        self.turn(&mut course, wanted).await;
        let mut parts: Vec<Vec<Submission>> = self.lanes.iter().map(|_| Vec::new()).collect();
        // What is passed over leaves no record, and goes with what came before it; at first by the lane that waits least.
        let mut lane = parts.len().saturating_sub(1);
        for submission in submissions {
            if !submission.record.is_empty() {
                lane = self.lane_of(&course.now, &submission);
                course.used.insert(lane);
            }
            if let Some(number) = submission.number {
                connection.told.await_from(lane, number);
            }
            parts[lane].push(submission);
        }
        // What is dropped rather than waits is not kept waiting by what waits.
        for (lane, part) in self.lanes.iter().zip(parts).rev() {
            if !part.is_empty() {
                lane.intake.put(part).await;
            }
        }
    }

    /// Ends all: what is in them is still taken.
    pub fn close(&self) {
        self.lanes.iter().for_each(|lane| lane.intake.close());
    }

    /// Goes by the classes that are wanted, if all that went by those of before is delivered, or soon is. Meanwhile the
    /// connection brings nothing.
    async fn turn(&self, course: &mut Course, wanted: Arc<Ways>) {
        if Arc::ptr_eq(&course.now, &wanted) || course.tried.is_some_and(|tried| tried.elapsed() < AGAIN) {
            return;
        }
        if course.now == wanted {
            (course.now, course.tried) = (wanted, None);
            return;
        }
        let through = async {
            for lane in course.used.iter().filter_map(|lane| self.lanes.get(*lane)) {
                if !lane.is_through().await {
                    return false;
                }
            }
            true
        };
        let is_through = tokio::time::timeout(PATIENCE, through).await == Ok(true);
        let first = course.tried.replace(Instant::now()).is_none();
        if !is_through {
            if first {
                tracing::info!(mqtt = course.mqtt, "topics keep their former class until Kafka has what came before");
            }
            return;
        }
        let (file, ways) = (course.file.clone(), Arc::clone(&wanted));
        match tokio::task::spawn_blocking(move || file.keep(&ways)).await {
            Ok(Ok(())) => {
                tracing::info!(mqtt = course.mqtt, "topics are of the classes that are configured now");
                course.used.clear();
                (course.now, course.tried) = (wanted, None);
            }
            Ok(Err(error)) => tracing::warn!(mqtt = course.mqtt, "topics keep their former class: {error}"),
            // The bridge ends.
            Err(_) => {}
        }
    }

    fn lane_of(&self, ways: &Ways, submission: &Submission) -> usize {
        let class = Record::decode(&submission.record).ok().and_then(|record| ways.class(record.topic));
        self.classes.iter().position(|name| class == Some(name)).unwrap_or(0)
    }
}

impl Connection {
    fn wanted(&self) -> MutexGuard<'_, Arc<Ways>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
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
    use crate::config::Config;
    use crate::lanes::ways::tests::ways;
    use crate::record::Notes;
    use protocol::Timestamp;
    use settings::Size;

    const TRENDS: Option<&str> = Some("trends");
    const STATES: Option<&str> = Some("states");

    fn lanes(names: &[&str]) -> Lanes {
        let class = |name: &str| ClassConfig {
            name: name.into(),
            overflow: Overflow::DropOldest,
            size: Size::mebibytes(1),
            max_age: None,
        };
        let class = names.iter().map(|name| class(name)).collect();
        Lanes::new(&Class::all(&Config { state_dir: "/nowhere".into(), class, ..Config::default() }))
    }

    /// Lanes whose logs are empty, with one connection.
    fn connected(state_dir: &Path, routes: &[(&str, Option<&str>)]) -> (Lanes, watch::Receiver<u64>, Arc<Told>) {
        let mut lanes = lanes(&["trends", "states"]);
        let (heard, told) = lanes.connect(state_dir, "m", ways(routes)).unwrap();
        lanes.lanes.iter().for_each(|lane| lane.written(0, 0));
        (lanes, heard, told)
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

    /// The numbers of the messages that wait in a lane.
    fn taken(lanes: &Lanes, lane: usize) -> Vec<u64> {
        // There may be none.
        lanes.lanes[lane].intake.close();
        let taken = lanes.lanes[lane].intake.take().unwrap_or_default();
        taken.iter().filter_map(|submission| submission.number).collect()
    }

    #[tokio::test]
    async fn messages_go_to_their_classes_and_are_acknowledged_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let (lanes, heard, told) = connected(folder.path(), &[("t/#", TRENDS), ("s/#", STATES), ("#", None)]);
        let topics = ["a", "t/a", "s/a", "t/b", "b"];
        lanes.put((1..).zip(topics).map(|(number, topic)| submission(number, topic)).collect()).await;
        assert_eq!((taken(&lanes, 0), taken(&lanes, 1), taken(&lanes, 2)), (vec![1, 5], vec![2, 4], vec![3]));
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
        let folder = tempfile::tempdir().unwrap();
        let (lanes, _, told) = connected(folder.path(), &[("t/#", TRENDS), ("#", None)]);
        let without = |topic| Submission { number: None, ..submission(0, topic) };
        lanes.put(vec![submission(1, "a"), without("t/a"), submission(2, "t/a")]).await;
        assert_eq!(lanes.lanes[1].intake.take().unwrap().len(), 2);
        assert_eq!(told.waiting().messages, [(1, 0), (2, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_keeps_its_class_until_what_came_before_is_delivered() {
        let folder = tempfile::tempdir().unwrap();
        let (lanes, ..) = connected(folder.path(), &[("a", TRENDS), ("b", STATES)]);
        lanes.put(vec![submission(1, "a"), submission(2, "b")]).await;
        lanes.follow([ways(&[("a", STATES), ("b", STATES), ("c", TRENDS)])]);
        // It waits a while in vain; what is new has no class yet.
        lanes.put(vec![submission(3, "a"), submission(4, "c")]).await;
        // Once all but one is delivered.
        lanes.lanes[0].written(1, 1);
        lanes.lanes[0].delivered(1);
        lanes.lanes[1].written(2, 2);
        lanes.lanes[1].delivered(2);
        lanes.lanes[2].written(1, 1);
        tokio::time::advance(AGAIN).await;
        lanes.put(vec![submission(5, "a")]).await;
        lanes.lanes[1].written(1, 3);
        lanes.lanes[1].delivered(3);
        lanes.lanes[2].delivered(1);
        lanes.put(vec![submission(6, "a")]).await;
        lanes.lanes[1].written(1, 4);
        lanes.lanes[1].delivered(4);
        tokio::time::advance(AGAIN).await;
        lanes.put(vec![submission(7, "a"), submission(8, "c")]).await;
        assert_eq!(taken(&lanes, 0), [4], "what nobody knew");
        assert_eq!(taken(&lanes, 1), [1, 3, 5, 6, 8], "also while it is not asked whether all is delivered");
        assert_eq!(taken(&lanes, 2), [2, 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_knows_by_which_classes_messages_went_before() {
        let folder = tempfile::tempdir().unwrap();
        let (lanes, ..) = connected(folder.path(), &[("a", TRENDS)]);
        lanes.put(vec![submission(1, "a")]).await;
        drop(lanes);
        let mut lanes = self::lanes(&["trends", "states"]);
        lanes.connect(folder.path(), "m", ways(&[("a", STATES)])).unwrap();
        // The writer finds one in the log that nobody has delivered.
        [0, 1, 0].into_iter().zip(&lanes.lanes).for_each(|(last, lane)| lane.written(0, last));
        lanes.put(vec![submission(2, "a")]).await;
        lanes.lanes[1].written(1, 2);
        lanes.lanes[1].delivered(2);
        tokio::time::advance(AGAIN).await;
        lanes.put(vec![submission(3, "a")]).await;
        assert_eq!((taken(&lanes, 1), taken(&lanes, 2)), (vec![2], vec![3]));
        // The next start has nothing to wait for.
        drop(lanes);
        let (lanes, ..) = connected(folder.path(), &[("a", STATES)]);
        lanes.put(vec![submission(4, "a")]).await;
        assert_eq!(taken(&lanes, 2), [4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_class_that_there_was_not_at_the_start_is_none_until_what_waits_is_delivered() {
        let folder = tempfile::tempdir().unwrap();
        let (lanes, ..) = connected(folder.path(), &[("a", TRENDS)]);
        lanes.follow([ways(&[("a", Some("later"))])]);
        lanes.put(vec![submission(1, "a")]).await;
        assert_eq!(taken(&lanes, 0), [1]);
        drop(lanes);
        let mut lanes = self::lanes(&["trends", "later"]);
        lanes.connect(folder.path(), "m", ways(&[("a", Some("later"))])).unwrap();
        // The writer finds it in the log.
        [1, 0, 0].into_iter().zip(&lanes.lanes).for_each(|(last, lane)| lane.written(0, last));
        lanes.put(vec![submission(2, "a")]).await;
        assert_eq!((taken(&lanes, 0), taken(&lanes, 2)), (vec![2], vec![]));
    }
}
