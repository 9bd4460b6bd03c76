//! The desk with a real journal: what a session hears, and what another process finds.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::message::{CommandOutcome, to_hub};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A desk, as a process has it, and how often it has acted.
struct Process {
    commands: Commands,
    acts: Arc<AtomicUsize>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Process {
    /// One whose jobs put out a line and end well, or never end.
    fn start(journal: &Path, ends: bool) -> Self {
        Self::of(journal, move |_| async move {
            if !ends {
                std::future::pending::<()>().await;
            }
            Ending::new(CommandState::Succeeded, "as ordered")
        })
    }

    /// One whose jobs put out a line and then do `rest`, with what tells them to stop.
    fn of<E: Future<Output = Ending> + Send + 'static>(
        journal: &Path,
        rest: impl Fn(CancellationToken) -> E + Send + Sync + 'static,
    ) -> Self {
        let (acts, tasks, stop) = (Arc::<AtomicUsize>::default(), TaskTracker::new(), CancellationToken::new());
        let counted = Arc::clone(&acts);
        let work: Work = Arc::new(move |job| {
            counted.fetch_add(1, Ordering::SeqCst);
            let rest = rest(job.stop);
            Box::pin(async move {
                job.output.write("done\n").await;
                rest.await
            })
        });
        let policy: Policy = Arc::new(|order| match order.action {
            Action::Drain => Ok(()),
            _ => Err("only drains here".into()),
        });
        let commands = Commands::start(Some(journal.to_owned()), policy, work, &tasks, stop.clone());
        tasks.close();
        Self { commands, acts, tasks, stop }
    }

    async fn order(&self, number: u8, action: Action) {
        let arguments = action.to_bytes();
        let order = Order { id: id(number), action, remaining: MINUTE, priority: 0, arguments, signature: None };
        self.commands.give(Input::Order(Box::new(order))).await;
    }

    async fn stop(self) -> usize {
        self.stop.cancel();
        self.tasks.wait().await;
        self.acts.load(Ordering::SeqCst)
    }
}

fn id(number: u8) -> CommandId {
    CommandId::new(Timestamp::from_millis(1_790_000_000_000), [number; 10])
}

/// Waits until that is told of a command.
async fn told(session: &mut mpsc::Receiver<ToHub>, number: u8, state: CommandState) {
    loop {
        let message = session.recv().await.expect("the desk is there").message.expect("a message");
        if let to_hub::Message::Outcome(outcome) = message
            && (outcome.state(), outcome.command_id) == (state, id(number).to_bytes().to_vec())
        {
            return;
        }
    }
}

/// What is told until a command has ended: its output, and how it ended.
async fn heard(session: &mut mpsc::Receiver<ToHub>) -> (Vec<u8>, CommandOutcome) {
    let mut output = Vec::new();
    loop {
        match session.recv().await.expect("the desk is there").message.expect("a message") {
            to_hub::Message::Output(piece) => {
                assert_eq!(piece.offset, output.len() as u64);
                output.extend(piece.data);
            }
            to_hub::Message::Outcome(outcome) if outcome.state().is_end() => return (output, outcome),
            to_hub::Message::Outcome(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_end_is_told_in_each_session_and_by_each_process_until_it_is_stored_and_the_act_is_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = directory.path().join("commands");
    let first = Process::start(&journal, true);
    let mut session = first.commands.connect().await;
    first.order(1, Action::Drain).await;
    let told = heard(&mut session).await;
    assert_eq!((&*told.0, told.1.state(), &*told.1.message), (&b"done\n"[..], CommandState::Succeeded, "as ordered"));
    // The session breaks before the hub says that it is stored; the hub sends the command again.
    let mut session = first.commands.connect().await;
    first.order(1, Action::Drain).await;
    assert_eq!(heard(&mut session).await, told);
    assert_eq!(first.stop().await, 1);

    let second = Process::start(&journal, true);
    let mut session = second.commands.connect().await;
    assert_eq!(heard(&mut session).await, told, "another process knows it all the same");
    second.commands.give(Input::Stored(id(1))).await;
    let mut session = second.commands.connect().await;
    second.order(1, Action::Drain).await;
    let again = heard(&mut session).await.1;
    assert_eq!((again.state(), &*again.message), (CommandState::Succeeded, "told before"));
    second.order(2, Action::Drain).await;
    assert_eq!(heard(&mut session).await.1.command_id, id(2).to_bytes());
    assert_eq!(second.stop().await, 1, "the second command alone");
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_when_the_process_ends_is_unknown_to_the_next() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = directory.path().join("commands");
    let first = Process::start(&journal, false);
    let mut session = first.commands.connect().await;
    first.order(1, Action::Drain).await;
    told(&mut session, 1, CommandState::Running).await;
    assert_eq!(first.stop().await, 1);
    let second = Process::start(&journal, true);
    let mut session = second.commands.connect().await;
    second.order(1, Action::Drain).await;
    let (_, outcome) = heard(&mut session).await;
    assert_eq!(outcome.state(), CommandState::Unknown);
    assert!(outcome.message.contains("may have been done"), "{}", outcome.message);
    assert_eq!(second.stop().await, 0);
}

#[tokio::test]
async fn what_ends_because_the_process_stops_is_cancelled_only_where_the_hub_asked_for_that() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = directory.path().join("commands");
    // What is told to stop takes its time over it, until the process stops.
    let stopping = CancellationToken::new();
    let stopped = stopping.clone();
    let first = Process::of(&journal, move |stop| {
        let stopping = stopping.clone();
        async move {
            stop.cancelled().await;
            stopping.cancelled().await;
            Ending::new(CommandState::Cancelled, "half of it is done")
        }
    });
    let mut session = first.commands.connect().await;
    for number in [1, 2] {
        first.order(number, Action::Drain).await;
        told(&mut session, number, CommandState::Running).await;
    }
    first.commands.give(Input::Cancel(id(1))).await;
    // The desk takes inputs in their order.
    first.order(3, Action::Diagnostics).await;
    told(&mut session, 3, CommandState::Refused).await;
    stopped.cancel();
    assert_eq!(first.stop().await, 2);

    let second = Process::start(&journal, true);
    let mut session = second.commands.connect().await;
    let mut ends = [heard(&mut session).await.1, heard(&mut session).await.1];
    ends.sort_by(|one, other| one.command_id.cmp(&other.command_id));
    let [cancelled, unknown] = ends;
    assert_eq!((cancelled.state(), &*cancelled.message), (CommandState::Cancelled, "half of it is done"));
    assert_eq!(unknown.state(), CommandState::Unknown);
    assert!(unknown.message.ends_with("while this was under way: half of it is done"), "{}", unknown.message);
    assert_eq!(second.stop().await, 0);
}

#[tokio::test]
async fn what_the_policy_forbids_is_refused_and_with_a_damaged_journal_all_is_unknown() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = directory.path().join("commands");
    let process = Process::start(&journal, true);
    let mut session = process.commands.connect().await;
    process.order(1, Action::Diagnostics).await;
    let (_, refused) = heard(&mut session).await;
    assert_eq!((refused.state(), &*refused.message), (CommandState::Refused, "only drains here"));
    process.order(2, Action::Drain).await;
    heard(&mut session).await;
    assert_eq!(process.stop().await, 1);

    let mut bytes = std::fs::read(&journal).expect("a journal");
    bytes[9] ^= 0xff;
    std::fs::write(&journal, bytes).expect("damaged");
    let process = Process::start(&journal, true);
    let mut session = process.commands.connect().await;
    // It was done, and the hub has not heard so; another may have been.
    process.order(2, Action::Drain).await;
    process.order(3, Action::Diagnostics).await;
    process.commands.give(Input::Cancel(id(4))).await;
    for number in [2, 3, 4] {
        let (_, unknown) = heard(&mut session).await;
        assert_eq!((unknown.state(), unknown.command_id), (CommandState::Unknown, id(number).to_bytes().to_vec()));
        assert!(unknown.message.contains("may have done this before"), "{}", unknown.message);
        assert!(unknown.message.contains("is damaged at byte 0"), "{}", unknown.message);
    }
    assert_eq!(process.stop().await, 0);
}
