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
/// Answers kept. When full, the oldest goes: its call, sent again, then takes effect again.
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
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(Arc<Mutex<HashMap<Call, Answer>>>);

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
    /// Does `work` once for the caller's key, and answers repetitions as it was answered then. Without a key, does it.
    pub(crate) async fn once<T: Serialize>(
        &self,
        caller: &Caller,
        key: IdempotencyKey,
        request: &impl Serialize,
        now: Timestamp,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<Response, Problem> {
        let encoded = |value: T| serde_json::to_value(value).map_err(|error| Problem::internal(&error));
        let Some(key) = key.0 else {
            return Ok((StatusCode::CREATED, Json(encoded(work.await?)?)).into_response());
        };
        let call = (caller.0.token.clone().unwrap_or_else(|| caller.0.name.clone()), key);
        let mut fingerprint = [0; 32];
        let asked = serde_json::to_vec(request).map_err(|error| Problem::internal(&error))?;
        fingerprint.copy_from_slice(digest(&SHA256, &asked).as_ref());
        if let Some((status, body)) = self.begin(&call, fingerprint, now)? {
            let replayed = [(REPLAYED, HeaderValue::from_static("true"))];
            return Ok((status, replayed, Json(body)).into_response());
        }
        // Whatever ends the work without an answer, also the caller hanging up, lets it be tried again.
        let begun = Begun { answers: self, call: &call };
        let body = encoded(work.await?)?;
        begun.answer(StatusCode::CREATED, body.clone());
        Ok((StatusCode::CREATED, Json(body)).into_response())
    }

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
            answers.retain(|_, answer| now.since(answer.at) < KEPT_FOR);
            let oldest =
                answers.iter().filter(|(_, answer)| answer.given.is_some()).min_by_key(|(_, answer)| answer.at);
            match oldest.map(|(call, _)| call.clone()) {
                Some(oldest) if answers.len() >= KEPT => drop(answers.remove(&oldest)),
                _ => {}
            }
        }
        answers.insert(call.clone(), Answer { fingerprint, at: now, given: None });
        Ok(None)
    }
}

struct Begun<'a> {
    answers: &'a Answers,
    call: &'a Call,
}

impl Begun<'_> {
    fn answer(self, status: StatusCode, body: Value) {
        let mut answers = self.answers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answers.get_mut(self.call) {
            answer.given = Some((status, body));
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut answers = self.answers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.get(self.call).is_some_and(|answer| answer.given.is_none()) {
            answers.remove(self.call);
        }
    }
}
