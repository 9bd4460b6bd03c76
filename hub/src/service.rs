//! What the service manager is told: ready, alive, stopping. Nothing when there is none (sd_notify(3)).

use std::fmt;

use sd_notify::NotifyState;
use store::sqlx;
use store::{Database, Engine};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::gateway::Pulse;

/// Looks within the time after which the service manager gives the hub up: one that fails is no end yet.
const LOOKS: u32 = 4;

/// Tells the service manager that the hub listens.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Tells the service manager that the hub is on its way out.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("sessions say goodbye, and what was taken in is stored")]);
}

/// What has to answer for the hub to count as alive.
pub(crate) struct Vitals {
    pub(crate) gateway: Pulse,
    pub(crate) database: Database,
}

/// What no longer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ailment {
    Gateway,
    Reading,
    Writing,
    /// One of them, before the next look was due.
    Slow,
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "the gateway takes no nodes any more",
            Self::Reading => "the database does not answer",
            Self::Writing => "the database takes no writes",
            Self::Slow => "gateway or database take too long to answer",
        })
    }
}

/// Feeds the service manager's watchdog, if it has one, while the hub is alive; left to starve, it restarts the hub.
pub(crate) async fn attend(vitals: Vitals, shutdown: CancellationToken) {
    let Some(time) = sd_notify::watchdog_enabled() else { return };
    let period = (time / LOOKS).max(std::time::Duration::from_millis(100));
    let mut looks = tokio::time::interval(period);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ailing = false;
    loop {
        let looked = shutdown.run_until_cancelled(async {
            looks.tick().await;
            tokio::time::timeout(period, vitals.look()).await.unwrap_or(Err(Ailment::Slow))
        });
        match looked.await {
            None => return,
            Some(Ok(())) => {
                let status = if ailing { "well again" } else { "" };
                let said = [NotifyState::Watchdog, NotifyState::Status(status)];
                notify(if ailing { &said } else { &said[..1] });
                ailing = false;
            }
            Some(Err(ailment)) => {
                ailing = true;
                tracing::error!("{ailment}: if it stays so, the service manager restarts the hub");
                notify(&[NotifyState::Status(&ailment.to_string())]);
            }
        }
    }
}

impl Vitals {
    async fn look(&self) -> Result<(), Ailment> {
        if !self.gateway.beats().await {
            return Err(Ailment::Gateway);
        }
        let read = sqlx::query_scalar::<_, i64>("SELECT 1").fetch_one(self.database.reader()).await;
        match (read, self.database.engine()) {
            (Ok(_), _) => {}
            (Err(_), Engine::Sqlite) => return Err(Ailment::Reading),
            // A server that is away is not brought back by another hub, which could not even start; /readyz tells of it.
            (Err(_), Engine::Postgres) => return Ok(()),
        }
        let writing = async { Ok::<_, store::StoreError>(self.database.begin_write().await?.rollback().await?) };
        writing.await.map_err(|_| Ailment::Writing)
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use store::on_both_engines;
    use tokio::task::JoinSet;

    use super::*;
    use crate::gateway::pulse;

    /// A gateway that answers for as long as its task is held.
    fn gateway() -> (Pulse, JoinSet<()>) {
        let (gateway, mut asked) = pulse();
        let mut answering = JoinSet::new();
        answering.spawn(async move { while asked.answer().await {} });
        (gateway, answering)
    }

    on_both_engines! {
        async fn the_hub_is_alive_while_its_gateway_answers_and_the_database_takes_writes(test: TestDatabase) {
            let database = test.open().await;
            let (gateway, mut answering) = gateway();
            let vitals = Vitals { gateway, database: database.clone() };
            assert_eq!(vitals.look().await, Ok(()));
            assert_eq!(vitals.look().await, Ok(()), "a look leaves nothing behind");
            answering.shutdown().await;
            assert_eq!(vitals.look().await, Err(Ailment::Gateway));
        }

        async fn a_database_in_this_process_has_to_answer_and_a_server_may_be_away(test: TestDatabase) {
            let database = test.open().await;
            let (gateway, _answering) = gateway();
            let vitals = Vitals { gateway, database: database.clone() };
            database.close().await;
            let judged = match database.engine() {
                Engine::Sqlite => Err(Ailment::Reading),
                Engine::Postgres => Ok(()),
            };
            assert_eq!(vitals.look().await, judged);
        }
    }
}
