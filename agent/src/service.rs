//! What the service manager is told: ready, how it goes, alive, stopping. Nothing when there is none (sd_notify(3)).

use std::sync::Arc;
use std::time::Duration;

use node::LinkStatus;
use node::health::Pulse;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Samples that may be missed before the service manager's watchdog is left to starve.
const MISSED: u32 = 4;

/// Tells the service manager that the agent works.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Tells the service manager that the agent is on its way out.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("sending what is left to the hub")]);
}

/// Tells the service manager how the link stands, and that the agent is alive for as long as it samples.
///
/// A process whose sampling hangs is no longer alive: the watchdog is left to starve, and the manager restarts it.
pub async fn attend(
    pulse: Arc<Pulse>,
    interval: watch::Receiver<Duration>,
    mut link: watch::Receiver<LinkStatus>,
    stop: CancellationToken,
) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    // Twice within the time that the manager waits; without a watchdog the clock only sees to it that it ends.
    let period = sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |time| time / 2);
    let mut feeding = tokio::time::interval(period.max(Duration::from_millis(100)));
    feeding.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = feeding.tick() => {
                let interval = *interval.borrow();
                if is_alive(&pulse, interval) {
                    notify(&[NotifyState::Watchdog]);
                } else {
                    tracing::error!(
                        silence = pulse.age().as_secs(),
                        "no samples are taken any more: leaving it to the service manager to restart the agent"
                    );
                }
            }
            changed = link.changed() => {
                if changed.is_err() {
                    return;
                }
                let status = link.borrow_and_update().state.to_string();
                notify(&[NotifyState::Status(&status)]);
            }
        }
    }
}

fn is_alive(pulse: &Pulse, interval: Duration) -> bool {
    pulse.age() <= interval * MISSED
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_only_while_samples_are_taken() {
        let pulse = Pulse::default();
        let interval = Duration::from_secs(15);
        tokio::time::advance(interval * MISSED).await;
        assert!(is_alive(&pulse, interval));
        tokio::time::advance(Duration::from_millis(10)).await;
        assert!(!is_alive(&pulse, interval));
        assert!(is_alive(&pulse, interval * 2), "as the hub may have it");
        pulse.beat();
        assert!(is_alive(&pulse, interval));
    }
}
