//! Upkeep: what is kept for a time is looked through once a minute, and what is over goes a little at a time.

mod asked;

use std::time::Duration;

use store::StoreError;
use tokio_util::sync::CancellationToken;

pub use asked::Asked;

/// How often it is looked for what is to go.
const EVERY: Duration = Duration::from_secs(60);
/// Between two transactions, so that others get their turn.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// A round: waits for its moment, then does `work`. What fails is tried again in the next one; says whether there is one, and
/// after `stop` there is none.
pub(crate) async fn round(
    of: &str,
    work: impl Future<Output = Result<(), StoreError>>,
    stop: &CancellationToken,
) -> bool {
    if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
        return false;
    }
    match stop.run_until_cancelled(work).await {
        Some(Ok(())) => true,
        Some(Err(error)) => {
            tracing::warn!(%error, of, "what is over was not deleted");
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rounds_go_on_after_one_that_failed_and_end_in_the_middle_of_one() {
        let (stop, begun) = (CancellationToken::new(), AtomicU32::new(0));
        let work = || async {
            match begun.fetch_add(1, Ordering::Relaxed) {
                0 => Err(StoreError::Statement(store::sqlx::Error::PoolClosed)),
                1 => Ok(()),
                _ => {
                    stop.cancel();
                    std::future::pending().await
                }
            }
        };
        while round("nothing", work(), &stop).await {}
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        assert!(!round("nothing", work(), &stop).await);
        assert_eq!(begun.load(Ordering::Relaxed), 3, "not even begun");
    }
}
