//! Whether the hub's row of a command is true, by what its node says of it.

use protocol::command::State;

use super::account::Account;
use crate::fleet::Errand;

/// A command's row at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) state: State,
    pub(super) told: bool,
    pub(super) output_bytes: u64,
    /// Bytes of output that a success has.
    pub(super) output_due: u64,
}

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It had its effect more than once.
    Twice,
    /// Nobody knows what came of it.
    Lost,
    /// The row says something else than the node.
    Untrue,
}

/// Judges a row. `agent`: of a real agent, which may be stopped between a script's effect and its end, and of which
/// effects alone are known.
pub(super) fn judge(row: &Row, errand: Errand, account: &Account, agent: bool) -> Result<(), Wrong> {
    if account.effects > 1 || account.begun > 1 {
        return Err(Wrong::Twice);
    }
    let true_ = match row.state {
        State::Queued | State::Delivered | State::Running => return Err(Wrong::Lost),
        State::Unknown if !row.told => return Err(Wrong::Lost),
        State::Succeeded => {
            row.told && errand != Errand::Fail && account.effects == 1 && row.output_bytes == row.output_due
        }
        State::Failed => row.told && errand == Errand::Fail && account.effects == 0,
        State::Expired => account.begun == 0 && account.effects == 0,
        State::Cancelled => account.effects == 0 || agent,
        // Only who was killed does not know.
        State::Unknown => !account.begun_by_survivor,
    };
    if true_ { Ok(()) } else { Err(Wrong::Untrue) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUE: u64 = 37;

    fn row(state: State) -> Row {
        Row { state, told: true, output_bytes: DUE, output_due: DUE }
    }

    fn done(effects: u64) -> Account {
        Account { came: 1, begun: effects.min(1), begun_by_survivor: true, effects }
    }

    #[test]
    fn a_row_is_true_when_the_node_says_the_same() {
        let nothing = Account::default();
        let killed = Account { begun: 1, effects: 1, ..nothing };
        let verdict = |state, errand, account: &Account| judge(&row(state), errand, account, false);
        for (state, errand, account) in [
            (State::Succeeded, Errand::Count, done(1)),
            (State::Failed, Errand::Fail, nothing),
            (State::Expired, Errand::Count, nothing),
            (State::Cancelled, Errand::Linger, nothing),
            (State::Unknown, Errand::Count, killed),
            (State::Unknown, Errand::Count, nothing),
        ] {
            assert_eq!(verdict(state, errand, &account), Ok(()), "{state} {account:?}");
        }
        for (state, errand, account, wrong) in [
            (State::Succeeded, Errand::Count, done(2), Wrong::Twice),
            (State::Succeeded, Errand::Count, Account { begun: 2, ..done(1) }, Wrong::Twice),
            (State::Succeeded, Errand::Count, nothing, Wrong::Untrue),
            (State::Succeeded, Errand::Fail, done(1), Wrong::Untrue),
            (State::Failed, Errand::Count, nothing, Wrong::Untrue),
            (State::Failed, Errand::Fail, done(1), Wrong::Untrue),
            (State::Expired, Errand::Count, Account { begun: 1, ..nothing }, Wrong::Untrue),
            (State::Cancelled, Errand::Count, done(1), Wrong::Untrue),
            (State::Unknown, Errand::Count, done(1), Wrong::Untrue),
            (State::Running, Errand::Count, done(1), Wrong::Lost),
            (State::Queued, Errand::Count, nothing, Wrong::Lost),
        ] {
            assert_eq!(verdict(state, errand, &account), Err(wrong), "{state} {account:?}");
        }
        let untold = Row { told: false, ..row(State::Unknown) };
        assert_eq!(judge(&untold, Errand::Count, &killed, false), Err(Wrong::Lost));
        let short = Row { output_bytes: DUE - 1, ..row(State::Succeeded) };
        assert_eq!(judge(&short, Errand::Count, &done(1), false), Err(Wrong::Untrue));
        assert_eq!(judge(&row(State::Cancelled), Errand::Linger, &done(1), true), Ok(()), "stopped after its effect");
    }
}
