//! `/crl/{authority}`: revocation lists, for programs that verify certificates. No sign-in: they are no secret.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::extract::Path;
use super::problem::Problem;
use crate::web::App;

/// The revocation list of an authority (RFC 5280), in DER: `application/pkix-crl`. A new one is made at the latest a day
/// after the last; one is good for seven days.
#[utoipa::path(get, path = "/crl/{authority}", tag = "pki", params(("authority" = i64, Path)), security(()), responses(
    (status = 200, content_type = "application/pkix-crl"),
))]
pub(crate) async fn show(State(app): State<App>, Path(authority): Path<i64>) -> Result<Response, Problem> {
    let list = app.state.revocation_lists.get(authority, app.now()).await.map_err(|error| Problem::internal(&error))?;
    let list = list.ok_or_else(|| Problem::not_found(format!("There is no authority {authority}.")))?;
    let headers = [(header::CONTENT_TYPE, "application/pkix-crl"), (header::CACHE_CONTROL, "max-age=300")];
    Ok((headers, list.der.to_vec()).into_response())
}
