//! `hfctl alert`.

use clap::{Subcommand, ValueEnum};

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, text, time};

/// Which alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    /// Those that go on.
    Open,
    /// Those that ended.
    Closed,
    /// Both.
    All,
}

#[derive(Subcommand)]
pub(crate) enum Alert {
    /// Lists alerts, newest first.
    List {
        /// Which ones.
        #[arg(long, value_enum, default_value_t = State::Open)]
        state: State,
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<String>,
        /// At most so many.
        #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
}

impl Alert {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let Self::List { state, tenant, limit } = self;
        let wanted = match state {
            State::Open => Some("open"),
            State::Closed => Some("closed"),
            State::All => None,
        };
        let alerts = client.list("alerts", &[("state", wanted), ("tenant", tenant.as_deref())], Some(limit))?;
        let heads = ["SEVERITY", "RULE", "NODE", "TENANT", "SUBJECT", "BEGAN", "ENDED", "MESSAGE"];
        let row = |alert: &serde_json::Value| {
            [
                text(alert, "/severity"),
                text(alert, "/rule"),
                text(alert, "/node_name"),
                text(alert, "/tenant"),
                text(alert, "/subject"),
                time(alert, "/opened_at"),
                time(alert, "/closed_at"),
                text(alert, "/message"),
            ]
        };
        output.list(alerts, heads, row, if state == State::Open { "no open alerts" } else { "no alerts" })
    }
}
