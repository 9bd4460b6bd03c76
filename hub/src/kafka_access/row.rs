//! One bridge's row, and what is due by it: pure, so that whoever has the row says the same.

use std::time::Duration;

use protocol::command::State as Stands;
use protocol::{NodeId, TenantId, Timestamp};
use store::sqlx::any::AnyRow;
use store::sqlx::{self, Row as _};

use super::State;
use crate::rows::parsed;

/// How long until another attempt, doubled with each, and at most.
const AGAIN_AFTER: Duration = Duration::from_secs(15);
const AGAIN_WITHIN: Duration = Duration::from_secs(3_600);

/// A row, with the command that is on its way for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The bridge.
    pub bridge: NodeId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it may write to.
    pub topics: Vec<String>,
    /// Counts what was wanted for it.
    pub revision: i64,
    /// How it stands.
    pub state: State,
    /// What the command was to bring about.
    pub asked_revision: i64,
    /// Attempts that were in vain, since something else was wanted.
    pub tries: u32,
    /// Before that, there is no other attempt.
    pub retry_at: Timestamp,
    /// As it is shown.
    pub message: String,
    /// When the row changed.
    pub changed_at: Timestamp,
    /// How the command stands and what came of it; `None`: there is none, or none any more.
    pub command: Option<(Stands, String)>,
}

/// What is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// An agent is to be asked.
    Ask,
    /// The brokers have what is wanted; what was done.
    Settle(String),
    /// They have what was wanted before.
    Again,
    /// It was in vain: why, and when to try again.
    Fail(String, Timestamp),
}

impl Row {
    pub(super) const SELECT: &str = "SELECT a.node, a.tenant, a.topics, a.revision, a.state, a.asked_revision, a.tries,
        a.retry_at, a.message, a.changed_at, c.state, c.message FROM kafka_access a LEFT JOIN commands c ON c.id = a.command";

    pub(super) fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let text = |column: usize| row.try_get::<String, _>(column);
        let command = match row.try_get::<Option<String>, _>(10)? {
            Some(stands) => Some((parsed(stands)?, text(11)?)),
            None => None,
        };
        Ok(Self {
            bridge: parsed(text(0)?)?,
            tenant: parsed(text(1)?)?,
            topics: text(2)?.split_ascii_whitespace().map(str::to_owned).collect(),
            revision: row.try_get(3)?,
            state: parsed(text(4)?)?,
            asked_revision: row.try_get(5)?,
            tries: u32::try_from(row.try_get::<i64, _>(6)?).unwrap_or(u32::MAX),
            retry_at: Timestamp::from_millis(row.try_get(7)?),
            message: text(8)?,
            changed_at: Timestamp::from_millis(row.try_get(9)?),
            command,
        })
    }

    /// What is due at `now`; `agent`: somebody is there to be asked.
    pub fn step(&self, agent: bool, now: Timestamp) -> Step {
        match (self.state, &self.command) {
            (State::Placed, _) => Step::Wait,
            (State::Waiting | State::Refused, _) if agent && self.retry_at <= now => Step::Ask,
            (State::Waiting | State::Refused, _) => Step::Wait,
            (State::Asked, Some((stands, _))) if stands.is_open() => Step::Wait,
            (State::Asked, Some((Stands::Succeeded, done))) if self.asked_revision == self.revision => {
                Step::Settle(done.clone())
            }
            (State::Asked, Some((Stands::Succeeded, _)) | None) => Step::Again,
            // What was done by halves is done again as a whole.
            (State::Asked, Some((_, why))) if self.asked_revision == self.revision => {
                let wait = AGAIN_AFTER.saturating_mul(1 << self.tries.min(16)).min(AGAIN_WITHIN);
                Step::Fail(why.clone(), now.plus(wait))
            }
            (State::Asked, Some(_)) => Step::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn row(state: State, command: Option<Stands>) -> Row {
        Row {
            bridge: NodeId::new(NOW, [1; 10]),
            tenant: "acme".parse().expect("a slug"),
            topics: vec!["a.*".into()],
            revision: 2,
            state,
            asked_revision: 2,
            tries: 0,
            retry_at: NOW,
            message: String::new(),
            changed_at: NOW,
            command: command.map(|stands| (stands, "so".into())),
        }
    }

    #[test]
    fn somebody_is_asked_once_and_what_was_wanted_meanwhile_is_asked_for_after_that() {
        assert_eq!(row(State::Waiting, None).step(false, NOW), Step::Wait);
        assert_eq!(row(State::Waiting, None).step(true, NOW), Step::Ask);
        for open in [Stands::Queued, Stands::Delivered, Stands::Running] {
            assert_eq!(row(State::Asked, Some(open)).step(true, NOW), Step::Wait);
        }
        let done = row(State::Asked, Some(Stands::Succeeded));
        assert_eq!(done.step(true, NOW), Step::Settle("so".into()));
        assert_eq!(Row { revision: 3, ..done }.step(true, NOW), Step::Again);
        assert_eq!(row(State::Placed, Some(Stands::Succeeded)).step(true, NOW), Step::Wait);
        assert_eq!(row(State::Asked, None).step(true, NOW), Step::Again, "a command that was deleted");
    }

    #[test]
    fn what_was_in_vain_is_tried_again_later_and_later() {
        for end in [Stands::Failed, Stands::Expired, Stands::Cancelled, Stands::Unknown] {
            let after = |tries| match (Row { tries, ..row(State::Asked, Some(end)) }).step(true, NOW) {
                Step::Fail(why, at) if why == "so" => at.since(NOW),
                other => panic!("{other:?}"),
            };
            assert_eq!((after(0), after(1), after(60)), (AGAIN_AFTER, AGAIN_AFTER * 2, AGAIN_WITHIN));
            let other = Row { revision: 3, ..row(State::Asked, Some(end)) };
            assert_eq!(other.step(true, NOW), Step::Again, "something else is wanted: that is tried at once");
        }
        let refused = Row { retry_at: NOW.plus(AGAIN_AFTER), ..row(State::Refused, None) };
        assert_eq!(refused.step(true, NOW), Step::Wait);
        assert_eq!(refused.step(true, NOW.plus(AGAIN_AFTER)), Step::Ask);
    }
}
