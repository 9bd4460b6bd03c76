//! Commands.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Time;
use crate::commands;
use protocol::command::State;

/// How a command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// Stored; its node has not been told.
    Queued,
    /// Handed to its node, which may have it.
    Delivered,
    /// Its node has begun.
    Running,
    /// Done.
    Succeeded,
    /// Not done, or not wholly.
    Failed,
    /// Its deadline came before it began.
    Expired,
    /// Taken back before it began, or stopped.
    Cancelled,
    /// It may have been done, wholly or in part, and nobody can say.
    Unknown,
}

impl From<State> for CommandState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Delivered => Self::Delivered,
            State::Running => Self::Running,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Expired => Self::Expired,
            State::Cancelled => Self::Cancelled,
            State::Unknown => Self::Unknown,
        }
    }
}

impl From<CommandState> for State {
    fn from(state: CommandState) -> Self {
        match state {
            CommandState::Queued => Self::Queued,
            CommandState::Delivered => Self::Delivered,
            CommandState::Running => Self::Running,
            CommandState::Succeeded => Self::Succeeded,
            CommandState::Failed => Self::Failed,
            CommandState::Expired => Self::Expired,
            CommandState::Cancelled => Self::Cancelled,
            CommandState::Unknown => Self::Unknown,
        }
    }
}

/// One action for one node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Command {
    /// Its id.
    pub id: String,
    /// The request it is part of.
    pub request: String,
    /// Whose node.
    pub tenant: String,
    /// The node's id.
    pub node: String,
    /// The node's name; absent when it has been removed.
    pub node_name: Option<String>,
    /// The action's name.
    pub action: String,
    /// What it does, in words.
    pub what: String,
    /// What is greater goes first.
    pub priority: u32,
    /// Why, as the requester says.
    pub reason: String,
    /// Who asked for it.
    pub requested_by: String,
    /// How it stands.
    pub state: CommandState,
    /// The state is the node's own word. Without it, an end is the hub's judgement, and the node's word may still follow.
    pub told: bool,
    /// The node's own policy, or its version, did not allow it.
    pub refused: bool,
    /// What came of it.
    pub message: String,
    /// When it was asked for.
    pub created_at: Time,
    /// Until when it may start.
    pub deadline: Time,
    /// When it was handed to the node.
    pub delivered_at: Option<Time>,
    /// When the node began.
    pub started_at: Option<Time>,
    /// When it came to its end.
    pub ended_at: Option<Time>,
    /// Who took it back.
    pub cancelled_by: Option<String>,
    /// Bytes of its output.
    pub output_bytes: u64,
    /// Bytes of output that were too many and are not kept.
    pub output_dropped: u64,
}

/// A command with what it put out.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CommandDetail {
    /// The command.
    #[serde(flatten)]
    pub command: Command,
    /// What it put out so far; bytes that are no text are replaced.
    pub output: String,
}

/// A request that was taken, or that would be.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Ordered {
    /// The request's id; absent in a preview.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What it does, in words.
    pub what: String,
    /// How many nodes are meant.
    pub nodes: usize,
    /// Which they are, in a preview: asked for with it as `expected`, nothing is done once others are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// One for each node.
    pub commands: Vec<OrderedCommand>,
}

/// What a request means for one node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OrderedCommand {
    /// The command's id; in a preview, one that may be signed.
    pub id: String,
    /// The node's id.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// Whether it has a session: if not, the command waits for it until its deadline.
    pub online: bool,
}

impl Command {
    /// A command as it stands; `node_name` is its node's.
    pub(crate) fn of(command: commands::Command, node_name: Option<String>) -> Self {
        let what = command.action.as_ref().map_or_else(|| command.name.clone(), ToString::to_string);
        Self {
            id: command.id.to_string(),
            request: command.request,
            tenant: command.tenant.to_string(),
            node: command.node.to_string(),
            node_name,
            action: command.name,
            what,
            priority: command.priority,
            reason: command.reason,
            requested_by: command.requested_by,
            state: command.state.into(),
            told: command.told,
            refused: command.refused,
            message: command.message,
            created_at: Time(command.created_at),
            deadline: Time(command.deadline),
            delivered_at: command.delivered_at.map(Time),
            started_at: command.started_at.map(Time),
            ended_at: command.ended_at.map(Time),
            cancelled_by: command.cancelled_by,
            output_bytes: command.output_bytes,
            output_dropped: command.output_dropped,
        }
    }

    /// Whether more is to come.
    pub fn is_open(&self) -> bool {
        State::from(self.state).is_open()
    }
}
