//! Commands: what may be ordered, how each end of the wire takes it forward, and what must never be: two effects of one.
//!
//! Both machines are pure. The hub's truth is a row ([`State`] says which change of it is allowed), the node's is a
//! journal ([`NodeCommands`] says what to write in it before what). A command comes again in each session until the hub
//! has stored its end; the node knows it by its id.
//!
//! **Time.** A deadline travels as what is left of it, measured by the hub on a clock that is not set, and the node counts
//! it down on its own monotonic clock: no wall clock takes part, so none can be wrong. What a node has accepted and not
//! started when its process ends is started again only once a hub has said anew how long it may; a reboot, after which the
//! monotonic clock begins anew, so changes nothing.

mod action;
mod hub;
mod node;
mod signature;

use std::time::Duration;

pub(crate) use action::named;
pub use action::{Action, ActionError, Name};
pub use hub::{State, StateError};
pub use node::{Ending, NodeCommands, Phase, Record, Step, TooMany};
pub use signature::Signature;

use crate::message::{Command, CommandOutcome, CommandState};
use crate::{CommandId, Timestamp};

/// Commands a hub has open with one node at once; more wait at the hub.
pub const WINDOW: usize = 32;
/// Commands a node carries out at once; others wait in the order of their priority, and those that collide with one another
/// for each other's end.
pub const AT_ONCE: usize = 4;
/// Ended commands a node remembers. Those before them it takes for known: ids are in the order of their making.
pub const REMEMBERED: usize = 1024;
/// Most bytes of one command's output; what comes after them is counted and dropped.
pub const MAX_OUTPUT: usize = 256 * 1024;
/// Most bytes of output in one message.
pub const CHUNK: usize = 16 * 1024;
/// Most characters of an outcome's message.
pub const MAX_MESSAGE: usize = 1_000;
/// Longest time to a command's deadline.
pub const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// A command as a node takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which one.
    pub id: CommandId,
    /// What to do.
    pub action: Action,
    /// What was left until its deadline when it was sent.
    pub remaining: Duration,
    /// What is greater starts first.
    pub priority: u32,
    /// The action as it came, byte for byte: what a signature is over.
    pub arguments: Vec<u8>,
    /// An operator's signature, not yet judged.
    pub signature: Option<Signature>,
}

impl Order {
    /// Reads a command whose id is known to be good.
    ///
    /// # Errors
    /// [`ActionError`] when its action is none this version knows, or can't be carried out by anyone.
    pub fn read(id: CommandId, command: &Command) -> Result<Self, ActionError> {
        let action = Action::from_bytes(&command.arguments)?;
        let remaining = Duration::from_millis(command.remaining_ms).min(LONGEST);
        Ok(Self {
            id,
            action,
            remaining,
            priority: command.priority,
            arguments: command.arguments.clone(),
            signature: command.signature.as_ref().and_then(Signature::read),
        })
    }

    /// The message that carries `action`, already encoded, at `now` by the clock that `deadline` is of. `shown` is the
    /// deadline by the wall clock.
    pub fn message(
        id: CommandId,
        action: String,
        arguments: Vec<u8>,
        priority: u32,
        (deadline, now): (Timestamp, Timestamp),
        shown: Timestamp,
    ) -> Command {
        Command {
            command_id: id.to_bytes().to_vec(),
            action,
            arguments,
            deadline_ms: shown.millis(),
            remaining_ms: u64::try_from(deadline.since(now).as_millis()).unwrap_or(u64::MAX),
            priority,
            signature: None,
        }
    }
}

/// The answer to a command that this version can't read.
pub fn unsupported(id: CommandId, action: &str, error: &ActionError) -> CommandOutcome {
    let action: String = action.chars().take(64).collect();
    CommandOutcome {
        command_id: id.to_bytes().to_vec(),
        state: CommandState::Unsupported.into(),
        message: format!("this node can't carry out {action:?}: {error}"),
        ..CommandOutcome::default()
    }
}
