//! Answers that go on: server-sent events from somebody who knows what comes next.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, stream};

/// Said when nothing else was, so that both ends notice when the other is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Who knows what comes next.
pub(crate) trait Follow: Send + 'static {
    /// The next event; `None` at the stream's end.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

/// The stream of what comes next.
pub(crate) fn follow(follower: impl Follow) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = stream::unfold(follower, async |mut follower| Some((Ok(follower.next().await?), follower)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
