//! Waiting for something to become true, instead of sleeping and hoping.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// A deadline that only a failure reaches, also on a busy machine with two cores.
pub const SOON: Duration = Duration::from_secs(30);

/// How long between two looks: short against what is waited for, long against the looking.
const PAUSE: Duration = Duration::from_millis(25);

/// Looks by `probe` until it gives a value; fails after `within`, saying `what` was waited for and what was last in the way.
///
/// An error of the probe is a "not yet": what starts up refuses connections for a while.
pub fn until<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        let outcome = probe();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if begun.elapsed() >= within {
            return Err(late(what, within, outcome.err()));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The same for a probe that awaits, such as one that looks at a page in the browser.
pub async fn until_async<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        let outcome = probe().await;
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if begun.elapsed() >= within {
            return Err(late(what, within, outcome.err()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn late(what: &str, within: Duration, last: Option<anyhow::Error>) -> anyhow::Error {
    match last {
        Some(error) => error.context(format!("waited {} s for: {what}", within.as_secs())),
        None => anyhow!("waited {} s for: {what}", within.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_on_the_way_is_no_failure() -> Result<()> {
        let mut looks = 0;
        let value = until("the third look", SOON, || {
            looks += 1;
            match looks {
                1 => Err(anyhow!("refused")),
                2 => Ok(None),
                _ => Ok(Some(looks)),
            }
        })?;
        assert_eq!(value, 3);
        Ok(())
    }

    #[test]
    fn giving_up_says_what_was_waited_for_and_what_was_in_the_way() {
        let error = until::<()>("a page", Duration::ZERO, || Err(anyhow!("connection refused"))).unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 0 s for: a page: connection refused");
    }
}
