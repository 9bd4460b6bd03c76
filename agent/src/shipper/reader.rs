//! Reads one container's log from where it was read to, and hands on what its budget allows.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::query_parameters::LogsOptions;
use futures_util::StreamExt;
use protocol::message::LogLine;
use protocol::shipping::MAX_TEXT;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::budget::{Budget, Rate};
use super::position::{Mark, Position};
use crate::container::{ContainerId, Key};
use crate::entry::{Entry, Moment};

/// Longest time that lines left out wait to be told of.
const TELL: Duration = Duration::from_secs(1);

/// A line, or a count of those left out, and how far the log was read with it.
pub(super) struct Item {
    pub(super) container: ContainerId,
    pub(super) source: Arc<Key>,
    pub(super) line: LogLine,
    pub(super) position: Position,
}

/// Reads one container's log.
pub(super) struct Reader {
    container: ContainerId,
    source: Arc<Key>,
    items: mpsc::Sender<Item>,
    budget: Budget,
    /// What was written before is not for the hub, where nothing of a stream was taken yet.
    began: Moment,
    /// All of it was taken, or left out.
    position: Position,
    out: Pending,
    error: Pending,
    dropped: Option<Dropped>,
}

/// One stream of a container.
#[derive(Default)]
struct Pending {
    /// What was taken in another life, and how much of its last moment came by again.
    known: Option<(Mark, u32)>,
    /// The last entry, also when its line has no end yet.
    last: Option<Mark>,
    /// A line of which more is to come.
    line: Option<LogLine>,
}

struct Dropped {
    count: u64,
    first: i64,
    last: i64,
    tell_at: Instant,
}

/// Nobody takes items any more.
struct Over;

impl Reader {
    pub(super) fn new(
        (container, source): (ContainerId, Arc<Key>),
        began: Moment,
        position: Position,
        rate: Rate,
        items: mpsc::Sender<Item>,
    ) -> Self {
        let pending = |mark: Option<Mark>| Pending { known: mark.map(|mark| (mark, 0)), last: mark, line: None };
        Self {
            container,
            source,
            items,
            budget: Budget::new(rate),
            began,
            position,
            out: pending(position.out),
            error: pending(position.error),
            dropped: None,
        }
    }

    /// Reads until the log ends, which it does with each life of its container. Gives how far it was handed on.
    pub(super) async fn run(mut self, engine: &Docker) -> (Position, Result<(), EngineError>) {
        let read = self.read(engine).await;
        if read.is_ok() {
            // What ended without an end of its line.
            for error in [false, true] {
                let _ = self.complete(error).await;
            }
        }
        // Whatever the end was: they count as read. Without a taker, nothing counts any more.
        let _ = self.tell_dropped().await;
        (self.position, read)
    }

    async fn read(&mut self, engine: &Docker) -> Result<(), EngineError> {
        let from = self.position.from().unwrap_or(self.began).seconds();
        let options = LogsOptions {
            follow: true,
            stdout: true,
            stderr: true,
            timestamps: true,
            since: i32::try_from(from).unwrap_or(i32::MAX),
            until: 0,
            tail: "all".into(),
        };
        let mut log = engine.logs(self.container.as_str(), Some(options));
        loop {
            let taken = tokio::select! {
                biased;
                output = log.next() => match output {
                    Some(output) => self.take(&output?).await,
                    None => return Ok(()),
                },
                () = tell_at(self.dropped.as_ref()) => self.tell_dropped().await,
            };
            let Ok(()) = taken else { return Ok(()) };
        }
    }

    async fn take(&mut self, output: &LogOutput) -> Result<(), Over> {
        let entry = Entry::read(output);
        let at = entry.at.unwrap_or_else(|| Moment::of(SystemTime::now().into()));
        let began = self.began;
        let pending = self.pending(entry.error);
        if pending.knows(at) || pending.last.is_none() && at < began {
            return Ok(());
        }
        pending.last = Some(Mark::next(pending.last, at));
        pending.add(&entry, at);
        if entry.ends { self.complete(entry.error).await } else { Ok(()) }
    }

    /// A stream's line has ended: it is handed on, or counted.
    async fn complete(&mut self, error: bool) -> Result<(), Over> {
        let pending = self.pending(error);
        let (line, mark) = (pending.line.take(), pending.last);
        let Some(line) = line else { return Ok(()) };
        if self.budget.admits(line.at_ns, line.text.len()) {
            // At the position before this line: a batch may end between the two.
            self.tell_dropped().await?;
            self.position.set(error, mark);
            return self.hand_on(line).await;
        }
        self.position.set(error, mark);
        let tell_at = Instant::now() + TELL;
        let dropped = Dropped { count: 0, first: line.at_ns, last: line.at_ns, tell_at };
        let dropped = self.dropped.get_or_insert(dropped);
        dropped.count += 1;
        dropped.last = line.at_ns;
        Ok(())
    }

    async fn tell_dropped(&mut self) -> Result<(), Over> {
        let Some(Dropped { count, first, last, .. }) = self.dropped.take() else { return Ok(()) };
        self.hand_on(LogLine { at_ns: first, until_ns: last, dropped: count, ..LogLine::default() }).await
    }

    async fn hand_on(&mut self, line: LogLine) -> Result<(), Over> {
        let (container, source) = (self.container.clone(), Arc::clone(&self.source));
        let item = Item { container, source, line, position: self.position };
        self.items.send(item).await.map_err(|_| Over)
    }

    fn pending(&mut self, error: bool) -> &mut Pending {
        if error { &mut self.error } else { &mut self.out }
    }
}

impl Pending {
    /// Whether an entry of then was taken in another life. What follows the first that was not is all new, whatever its
    /// time: a clock may have been set back.
    fn knows(&mut self, at: Moment) -> bool {
        let Some((mark, seen)) = &mut self.known else { return false };
        if at < mark.at {
            return true;
        }
        if at == mark.at && *seen < mark.count {
            *seen += 1;
            return true;
        }
        self.known = None;
        false
    }

    fn add(&mut self, entry: &Entry<'_>, at: Moment) {
        let begin = || LogLine { at_ns: at.nanos(), error: entry.error, ..LogLine::default() };
        let line = self.line.get_or_insert_with(begin);
        let room = MAX_TEXT.saturating_sub(line.text.len());
        let kept = entry.text.get(..room).unwrap_or(entry.text);
        line.text.extend_from_slice(kept);
        line.cut = line.cut.saturating_add(u32::try_from(entry.text.len() - kept.len()).unwrap_or(u32::MAX));
    }
}

async fn tell_at(dropped: Option<&Dropped>) {
    match dropped {
        Some(dropped) => sleep_until(dropped.tell_at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { lines: 1_000, bytes: 1 << 20 };

    fn reader(position: Position) -> (Reader, mpsc::Receiver<Item>) {
        let (items, taken) = mpsc::channel(64);
        let source = Arc::new(Key { stack: "shop".into(), service: "web".into(), number: 1 });
        let began = Moment::of(protocol::Timestamp::from_millis(1_795_435_200_000));
        (Reader::new(("c".to_owned().into(), source), began, position, RATE, items), taken)
    }

    fn output(error: bool, fraction: u32, text: &str) -> LogOutput {
        let message = format!("2026-11-23T12:00:00.{fraction:09}Z {text}").into();
        if error { LogOutput::StdErr { message } } else { LogOutput::StdOut { message } }
    }

    fn texts(taken: &mut mpsc::Receiver<Item>) -> Vec<(String, Position)> {
        let text = |item: Item| (String::from_utf8(item.line.text).unwrap(), item.position);
        std::iter::from_fn(|| taken.try_recv().ok()).map(text).collect()
    }

    #[tokio::test]
    async fn it_goes_on_after_the_very_entry_that_was_taken_last() {
        // Two of one moment, and a stream that is a little behind the other.
        let log = [
            output(false, 5, "one\n"),
            output(false, 5, "two\n"),
            output(true, 3, "oops\n"),
            output(false, 5, "three\n"),
            output(true, 9, "again\n"),
        ];
        let (mut first, mut taken) = reader(Position::default());
        for output in &log {
            assert!(first.take(output).await.is_ok());
        }
        let all = texts(&mut taken);
        for (index, (_, position)) in all.iter().enumerate() {
            let (mut next, mut taken) = reader(*position);
            for output in &log {
                assert!(next.take(output).await.is_ok());
            }
            assert_eq!(texts(&mut taken), all[index + 1..], "after {index}");
        }
        assert_eq!(all.len(), 5);
    }

    #[tokio::test]
    async fn what_was_written_before_it_was_turned_on_is_left_alone() {
        let (mut reader, mut taken) = reader(Position::default());
        let before = LogOutput::StdOut { message: "2026-11-23T11:59:59.000000000Z old\n".into() };
        assert!(reader.take(&before).await.is_ok());
        assert!(reader.take(&output(false, 0, "new\n")).await.is_ok());
        assert_eq!(texts(&mut taken).into_iter().map(|(text, _)| text).collect::<Vec<_>>(), ["new"]);
    }

    #[tokio::test]
    async fn a_long_line_that_comes_in_pieces_is_one_and_is_not_half_taken() {
        let (mut reader, mut taken) = reader(Position::default());
        let piece = "x".repeat(6_000);
        assert!(reader.take(&output(false, 1, &piece)).await.is_ok());
        assert!(reader.take(&output(true, 2, "oops\n")).await.is_ok());
        let item = taken.try_recv().unwrap();
        assert_eq!(item.position.out, None, "the piece is not taken yet");
        assert!(reader.take(&output(false, 1, &format!("{piece}\n"))).await.is_ok());
        let item = taken.try_recv().unwrap();
        assert_eq!((item.line.text.len(), item.line.cut), (MAX_TEXT, 12_000 - MAX_TEXT as u32));
        assert_eq!(item.position.out.map(|mark| mark.count), Some(2));
    }

    #[tokio::test]
    async fn what_is_too_much_is_counted_in_its_place_with_its_times() {
        let (mut first, mut taken) = reader(Position::default());
        first.budget = Budget::new(Rate { lines: 1, bytes: 1_000 });
        let mut log: Vec<LogOutput> = (0..10).map(|number| output(false, number, &format!("{number}\n"))).collect();
        log.push(LogOutput::StdOut { message: "2026-11-23T12:00:09.000000000Z later\n".into() });
        for output in &log {
            assert!(first.take(output).await.is_ok());
        }
        let items: Vec<Item> = std::iter::from_fn(|| taken.try_recv().ok()).collect();
        let said: Vec<_> = items.iter().map(|item| (item.line.dropped, item.line.at_ns % 100)).collect();
        assert_eq!(said, [(0, 0), (0, 1), (0, 2), (0, 3), (6, 4), (0, 0)]);
        assert_eq!(items[4].line.until_ns % 100, 9);
        // A batch may end with the count.
        let (mut next, mut taken) = reader(items[4].position);
        for output in &log {
            assert!(next.take(output).await.is_ok());
        }
        assert_eq!(texts(&mut taken).into_iter().map(|(text, _)| text).collect::<Vec<_>>(), ["later"]);
    }
}
