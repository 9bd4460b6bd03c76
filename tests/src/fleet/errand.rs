//! What a simulated node does with commands when somebody is to find out later what was done: its journal and an account of
//! what came and what was done are in files, which outlive a kill.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ::node::Commands;
use ::node::commands::{Job, Policy, Work};
use anyhow::Context;
use protocol::CommandId;
use protocol::command::{Action, Ending};
use protocol::message::CommandState;
use rand::RngExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The account's name in its folder.
pub const ACCOUNT: &str = "account";

/// What a node can be sent for, as a script's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Has its effect at once.
    Count,
    /// Has its effect after a while, or none when it is stopped before.
    Linger,
    /// Has none, and fails.
    Fail,
}

impl Errand {
    /// The script's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Linger => "linger",
            Self::Fail => "fail",
        }
    }
}

impl FromStr for Errand {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let errand = [Self::Count, Self::Linger, Self::Fail].into_iter().find(|errand| errand.as_str() == text);
        errand.with_context(|| format!("{text:?} is no errand"))
    }
}

/// A line of the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A process began.
    Life,
    /// A command came, perhaps not for the first time.
    Came(CommandId),
    /// It was begun.
    Began(CommandId),
    /// It has had its effect.
    Did(CommandId),
}

impl Line {
    fn write(self) -> String {
        match self {
            Self::Life => "life\n".to_owned(),
            Self::Came(id) => format!("came {id}\n"),
            Self::Began(id) => format!("began {id}\n"),
            Self::Did(id) => format!("did {id}\n"),
        }
    }
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let unreadable = || format!("the account has a line {text:?}");
        let id = |id: &str| id.parse::<CommandId>().with_context(unreadable);
        match text.split_once(' ') {
            None if text == "life" => Ok(Self::Life),
            Some(("came", of)) => Ok(Self::Came(id(of)?)),
            Some(("began", of)) => Ok(Self::Began(id(of)?)),
            Some(("did", of)) => Ok(Self::Did(id(of)?)),
            _ => anyhow::bail!(unreadable()),
        }
    }
}

/// A folder for journals, and the account; clones write to the same.
#[derive(Clone, Debug)]
pub struct Errands {
    folder: PathBuf,
    account: Arc<File>,
}

impl Errands {
    /// Opens the folder for a new life of the process.
    ///
    /// # Errors
    /// When it can't be made or written.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(ACCOUNT);
        let account = File::options().create(true).append(true).open(&path);
        let account = account.with_context(|| format!("cannot write {}", path.display()))?;
        let errands = Self { folder: folder.to_owned(), account: Arc::new(account) };
        errands.note(Line::Life).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(errands)
    }

    /// The desk of the node of a number.
    pub(super) fn desk(&self, index: usize, tasks: &TaskTracker, shutdown: &CancellationToken) -> Commands {
        let (came, does) = (self.clone(), self.clone());
        let policy: Policy =
            Arc::new(move |order| came.note(Line::Came(order.id)).map_err(|error| format!("no account: {error}")));
        let work: Work = Arc::new(move |job| {
            let errands = does.clone();
            Box::pin(async move { errands.run(job).await })
        });
        let journal = self.folder.join(format!("{index:05}.commands"));
        Commands::start(Some(journal), policy, work, tasks, shutdown.clone())
    }

    async fn run(&self, job: Job) -> Ending {
        let failed = |why: &str| Ending::new(CommandState::Failed, why);
        let errand = match &job.action {
            Action::Script { name } => name.parse::<Errand>(),
            _ => return failed("a simulated node is sent for errands alone"),
        };
        let Ok(errand) = errand else { return failed("no such errand") };
        if self.note(Line::Began(job.id)).is_err() {
            return failed("no account can be kept");
        }
        let millis = match errand {
            Errand::Fail => return failed("as it was told to"),
            Errand::Count => rand::rng().random_range(0..5),
            Errand::Linger => rand::rng().random_range(100..600),
        };
        job.output.write(format!("{}\n", job.id)).await;
        tokio::select! {
            biased;
            () = job.stop.cancelled() => return Ending::new(CommandState::Cancelled, "before it had any effect"),
            () = tokio::time::sleep(Duration::from_millis(millis)) => {}
        }
        match self.note(Line::Did(job.id)) {
            Ok(()) => Ending::new(CommandState::Succeeded, ""),
            Err(_) => failed("no account can be kept"),
        }
    }

    /// One write, which a kill leaves whole or undone.
    fn note(&self, line: Line) -> std::io::Result<()> {
        (&*self.account).write_all(line.write().as_bytes())
    }
}
