//! `Idempotency-Key`: a creating call that is sent again has one effect and one answer.
//!
//! Answers are kept in memory for a day. They hold secrets that are shown once, so they are written nowhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use protocol::Timestamp;
use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::extract::Caller;
use super::problem::Problem;
use crate::web::App;

/// The request's header.
const KEY: &str = "idempotency-key";
/// Says that an answer is an earlier one.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Longest key.
const MAX_KEY: usize = 255;
/// How long answers are kept.
const KEPT_FOR: Duration = Duration::from_secs(86_400);
/// Answers kept, and calls at work. When full, the oldest answer goes: its call, sent again, then takes effect again. When all
/// are at work, one more is told to come back.
const KEPT: usize = 4_096;

/// The key a caller gave, if any.
#[derive(Clone, Debug)]
pub(crate) struct IdempotencyKey(Option<String>);

impl FromRequestParts<App> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get(KEY) else { return Ok(Self(None)) };
        let key = value.to_str().ok().filter(|key| (1..=MAX_KEY).contains(&key.len()));
        let key = key.ok_or_else(|| {
            Problem::malformed(format!("Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters."))
        })?;
        Ok(Self(Some(key.to_owned())))
    }
}

impl IdempotencyKey {
    /// The key itself.
    pub(crate) fn into_inner(self) -> Option<String> {
        self.0
    }
}

/// The calls that can be repeated.
#[derive(Debug)]
pub(crate) struct Answers {
    known: Known,
    at_work: TaskTracker,
}

#[derive(Clone, Debug, Default)]
struct Known(Arc<Mutex<HashMap<Call, Answer>>>);

/// One caller's one key.
type Call = (String, String);

#[derive(Clone, Debug)]
struct Answer {
    fingerprint: [u8; 32],
    at: Timestamp,
    /// `None` while the first call is at work.
    given: Option<(StatusCode, Value)>,
}

impl Answers {
    /// None yet. Work with a key is done in `at_work`.
    pub(crate) fn new(at_work: TaskTracker) -> Self {
        Self { known: Known::default(), at_work }
    }

    /// Does `work` once for the caller's key, and answers repetitions as it was answered then. Without a key, does it.
    pub(crate) async fn once<T: Serialize + Send + 'static>(
        &self,
        caller: &Caller,
        key: IdempotencyKey,
        request: &impl Serialize,
        now: Timestamp,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<Response, Problem> {
        let Some(key) = key.0 else {
            return Ok((StatusCode::CREATED, Json(encoded(work.await?)?)).into_response());
        };
        let call = (caller.0.token.clone().unwrap_or_else(|| caller.0.name.clone()), key);
        let mut fingerprint = [0; 32];
        let asked = serde_json::to_vec(request).map_err(|error| Problem::internal(&error))?;
        fingerprint.copy_from_slice(digest(&SHA256, &asked).as_ref());
        if let Some((status, body)) = self.known.begin(&call, fingerprint, now)? {
            let replayed = [(REPLAYED, HeaderValue::from_static("true"))];
            return Ok((status, replayed, Json(body)).into_response());
        }
        // Whatever ends the work without an answer lets it be tried again. The caller's hanging up does not end it: it may be
        // committed by then, and done again it would take effect twice.
        let begun = Begun { known: self.known.clone(), call };
        let working = self.at_work.spawn(async move {
            let body = encoded(work.await?)?;
            begun.answer(StatusCode::CREATED, body.clone());
            Ok::<_, Problem>(body)
        });
        let body = working.await.map_err(|error| Problem::internal(&error))??;
        Ok((StatusCode::CREATED, Json(body)).into_response())
    }
}

fn encoded<T: Serialize>(value: T) -> Result<Value, Problem> {
    serde_json::to_value(value).map_err(|error| Problem::internal(&error))
}

impl Known {
    fn begin(
        &self,
        call: &Call,
        fingerprint: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<(StatusCode, Value)>, Problem> {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = answers.get(call).filter(|earlier| now.since(earlier.at) < KEPT_FOR) {
            if earlier.fingerprint != fingerprint {
                return Err(Problem::invalid("This Idempotency-Key was used for another request; use a new key."));
            }
            return match &earlier.given {
                Some(given) => Ok(Some(given.clone())),
                None => {
                    Err(Problem::conflict("The first request with this Idempotency-Key is still at work; try again."))
                }
            };
        }
        if answers.len() >= KEPT {
            answers.retain(|_, answer| answer.given.is_none() || now.since(answer.at) < KEPT_FOR);
        }
        if answers.len() >= KEPT {
            let given = answers.iter().filter(|(_, answer)| answer.given.is_some());
            let oldest = given.min_by_key(|(_, answer)| answer.at).map(|(call, _)| call.clone());
            let busy = "As many calls with an Idempotency-Key are at work as may be at once; try again soon.";
            answers.remove(&oldest.ok_or_else(|| Problem::unavailable(busy, Duration::from_secs(5)))?);
        }
        answers.insert(call.clone(), Answer { fingerprint, at: now, given: None });
        Ok(None)
    }
}

struct Begun {
    known: Known,
    call: Call,
}

impl Begun {
    fn answer(self, status: StatusCode, body: Value) {
        let mut answers = self.known.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answers.get_mut(&self.call) {
            answer.given = Some((status, body));
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut answers = self.known.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.get(&self.call).is_some_and(|answer| answer.given.is_none()) {
            answers.remove(&self.call);
        }
    }
}
