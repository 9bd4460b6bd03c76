//! Who looks at the dashboard: the cookie, signing in and out, and proof that a form is ours.

use axum::Form;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub(super) use super::format::capital;
use super::format::{Clock, escaped};
use super::layout::{Viewer, alone};
use super::{OrShown as _, Shown, sign_in as views};
use crate::access::{AccessError, Principal, SESSION_LIFETIME, Session};
use crate::api::extract::{Query, Remote};
use crate::api::problem::Problem;
use crate::web::App;

const COOKIE: &str = "hyperfactory_session";

/// Somebody who is signed in.
#[derive(Clone)]
pub(super) struct Visitor {
    pub(super) session: Session,
    /// The cookie's value.
    pub(super) cookie: String,
}

impl Visitor {
    pub(super) fn principal(&self) -> &Principal {
        &self.session.principal
    }

    pub(super) fn viewer(&self) -> Viewer {
        let principal = self.principal();
        Viewer {
            name: principal.name.clone(),
            role: principal.role.into(),
            tenant: principal.tenant.as_ref().map(ToString::to_string),
            csrf: self.session.csrf.clone(),
        }
    }
}

/// What somebody gets who is not.
pub(super) enum Away {
    /// The sign-in page, and then back.
    SignIn(String),
    /// The same page once more: it was opened from elsewhere, and the browser held the cookie back.
    Again(App),
    /// The gate itself failed.
    Failed(Shown),
}

impl IntoResponse for Away {
    fn into_response(self) -> Response {
        match self {
            Self::SignIn(next) if next == "/" => Redirect::to("/sign-in").into_response(),
            Self::SignIn(next) => Redirect::to(&format!("/sign-in?next={}", escaped(&next))).into_response(),
            // A cookie with SameSite=Strict does not come with a link on another site; it does with our own refresh.
            Self::Again(app) => {
                let clock = Clock { now: app.now(), live: false };
                let again = maud::html! { meta http-equiv="refresh" content="0"; p { "One moment…" } };
                Html(alone("One moment", clock, &again).into_string()).into_response()
            }
            Self::Failed(shown) => shown.into_response(),
        }
    }
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Away;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Away> {
        let next = if parts.method == Method::GET { parts.uri.to_string() } else { "/".to_owned() };
        let Some(cookie) = cookie(&parts.headers) else {
            let elsewhere = parts.headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
            return Err(if elsewhere && parts.method == Method::GET {
                Away::Again(app.clone())
            } else {
                Away::SignIn(next)
            });
        };
        let Ok(Remote(remote)) = Remote::from_request_parts(parts, app).await;
        match app.state.access.session(&cookie, app.now()).await {
            Ok(mut session) => {
                session.principal = session.principal.at(remote);
                Ok(Self { session, cookie })
            }
            Err(AccessError::Invalid) => Err(Away::SignIn(next)),
            Err(error) => Err(Away::Failed(Shown { app: app.clone(), problem: error.into() })),
        }
    }
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value.to_owned())
}

/// A form of this dashboard: it holds the session's token.
pub(super) trait Ours: DeserializeOwned {
    /// The form's token.
    fn csrf(&self) -> &str;
}

/// Says of forms with a field `csrf` that they are ours.
macro_rules! ours {
    ($($form:ty),+) => {$(
        impl $crate::dashboard::session::Ours for $form {
            fn csrf(&self) -> &str {
                &self.csrf
            }
        }
    )+};
}
pub(super) use ours;

/// Somebody who is signed in and sends a form that this dashboard gave them.
pub(super) struct Sent<T> {
    pub(super) visitor: Visitor,
    pub(super) form: T,
}

impl<T: Ours> FromRequest<App> for Sent<T> {
    type Rejection = Away;

    async fn from_request(request: Request, app: &App) -> Result<Self, Away> {
        let failed = |problem| Away::Failed(Shown { app: app.clone(), problem });
        let (mut parts, body) = request.into_parts();
        let visitor = Visitor::from_request_parts(&mut parts, app).await?;
        let from_here = same_origin(&parts.headers);
        let form = Form::<T>::from_request(Request::from_parts(parts, body), app).await;
        let Form(form) = form.map_err(|error| failed(Problem::malformed(error.body_text())))?;
        if !from_here || !visitor.session.csrf_matches(form.csrf()) {
            let said = "This form did not come from this dashboard, or is from an earlier sign-in. Go back, reload the page and try again.";
            return Err(failed(Problem::forbidden(said).to(visitor.principal())));
        }
        Ok(Self { visitor, form })
    }
}

/// Whether a browser says that the request comes from this site's own page. Old browsers say nothing.
fn same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match (text(header::HeaderName::from_static("sec-fetch-site")), text(header::ORIGIN), text(header::HOST)) {
        (Some(site), ..) => matches!(site, "same-origin" | "none"),
        (None, Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, from)| from == host),
        (None, origin, _) => origin.is_none(),
    }
}

#[derive(Deserialize)]
pub(super) struct Asked {
    link: Option<String>,
    next: Option<String>,
}

/// `GET /sign-in`
pub(super) async fn page(State(app): State<App>, query: Result<Query<Asked>, Problem>) -> Result<Response, Shown> {
    let Query(asked) = query.or_shown(&app)?;
    let next = local(asked.next.as_deref());
    let content = match &asked.link {
        Some(code) => views::link(code),
        None => views::token(None, next),
    };
    Ok(shown(&app, StatusCode::OK, &content))
}

#[derive(Deserialize)]
pub(super) struct Code {
    code: String,
    next: Option<String>,
}

/// `POST /sign-in`
pub(super) async fn sign_in(
    State(app): State<App>,
    Remote(remote): Remote,
    headers: HeaderMap,
    form: Result<Form<Code>, axum::extract::rejection::FormRejection>,
) -> Result<Response, Shown> {
    let Form(form) = form.map_err(|error| Problem::malformed(error.body_text())).or_shown(&app)?;
    let next = local(form.next.as_deref());
    if !same_origin(&headers) {
        let detail = "This sign-in was started by another site. Open the dashboard's own sign-in page.";
        return Err(Problem::forbidden(detail)).or_shown(&app);
    }
    match app.state.access.sign_in(&form.code, remote, app.now()).await {
        Ok(signed_in) => {
            let secure = if app.state.secure { "; Secure" } else { "" };
            let value = format!(
                "{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}{secure}",
                signed_in.cookie,
                SESSION_LIFETIME.as_secs()
            );
            let mut response = Redirect::to(next).into_response();
            let value = HeaderValue::from_str(&value).map_err(|error| Problem::internal(&error)).or_shown(&app)?;
            response.headers_mut().insert(header::SET_COOKIE, value);
            Ok(response)
        }
        Err(error @ AccessError::Store(_)) => Err(error).or_shown(&app),
        Err(error) => {
            let said = capital(&error.to_string());
            let problem = Problem::from(error);
            Ok(shown(&app, problem.status(), &views::token(Some(&said), next)))
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Nothing {
    csrf: String,
}

ours!(Nothing);

/// `POST /sign-out`
pub(super) async fn sign_out(
    State(app): State<App>,
    Remote(remote): Remote,
    sent: Sent<Nothing>,
) -> Result<Response, Shown> {
    app.state.access.sign_out(&sent.visitor.cookie, remote, app.now()).await.or_shown(&app)?;
    let mut response = Redirect::to("/sign-in").into_response();
    let gone = HeaderValue::from_static("hyperfactory_session=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    response.headers_mut().insert(header::SET_COOKIE, gone);
    Ok(response)
}

fn shown(app: &App, status: StatusCode, content: &maud::Markup) -> Response {
    let clock = Clock { now: app.now(), live: false };
    (status, Html(alone("Sign in", clock, content).into_string())).into_response()
}

/// A path of this dashboard to go on to, and no address of another site.
fn local(next: Option<&str>) -> &str {
    let plain = |next: &&str| {
        next.starts_with('/')
            && !next.starts_with("//")
            && !next.contains('\\')
            && next.bytes().all(|b| b.is_ascii_graphic())
    };
    next.filter(plain).unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_signing_in_nobody_is_sent_to_another_site() {
        assert_eq!(local(Some("/nodes/1?range=24h")), "/nodes/1?range=24h");
        for bad in ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "", "/a\nb"] {
            assert_eq!(local(Some(bad)), "/", "{bad:?}");
        }
    }

    #[test]
    fn a_form_from_another_site_is_told_apart() {
        let from = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            same_origin(&headers)
        };
        assert!(from(&[("sec-fetch-site", "same-origin")]));
        assert!(!from(&[("sec-fetch-site", "cross-site")]));
        assert!(!from(&[("sec-fetch-site", "same-site")]));
        assert!(from(&[("origin", "http://hub:7080"), ("host", "hub:7080")]));
        assert!(!from(&[("origin", "http://evil.example"), ("host", "hub:7080")]));
        assert!(!from(&[("origin", "null"), ("host", "hub:7080")]));
        assert!(from(&[("host", "hub:7080")]));
    }
}
