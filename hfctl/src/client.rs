//! The hub's API over HTTP: requests, pages, streams, and its errors as ours.

use std::io::{BufReader, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Request, Response};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, BodyReader};

use crate::config::Config;
use crate::failure::Failure;
use crate::output::complain;
use crate::trust::Trust;

/// How long the hub may take to be reached, and to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A stream that says nothing for so long is dead: the hub says something every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// How long a hub may be away while something at it is waited for, and how long until it is asked again.
const AWAY_FOR: Duration = Duration::from_secs(600);
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Items asked for at once.
const PAGE: u32 = 500;

/// A hub and a token for it.
pub(crate) struct Client {
    agent: Agent,
    streams: Agent,
    url: String,
    token: String,
}

/// What an error's body says (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next_cursor: Option<String>,
}

impl Client {
    /// The hub of a configuration.
    pub(crate) fn new(config: &Config) -> Result<Self, Failure> {
        let url = config.url.as_deref().ok_or_else(|| {
            Failure::Usage(
                "no hub is known: run hfctl login, or set HYPERFACTORY_HFCTL_URL and HYPERFACTORY_HFCTL_TOKEN".into(),
            )
        })?;
        let token = config.token.as_ref().ok_or_else(|| {
            Failure::Usage(format!("no token for {url} is known: run hfctl login, or set HYPERFACTORY_HFCTL_TOKEN"))
        })?;
        Self::to(url, token.expose(), &config.ca_file.as_deref().map_or(Trust::System, Trust::File))
    }

    /// A hub by its address.
    pub(crate) fn to(url: &str, token: &str, trust: &Trust<'_>) -> Result<Self, Failure> {
        let url = url.trim().trim_end_matches('/');
        let secure = url.starts_with("https://");
        if !secure && !url.starts_with("http://") {
            return Err(Failure::Usage(format!(
                "{url:?} is not the address of a hub: it starts with https:// or http://"
            )));
        }
        let token = token.trim();
        if !token.starts_with("hft_") || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let hint = if token.starts_with("hfj_") {
                "; this is a join token, which enrolls a node"
            } else if token.starts_with("hfl_") {
                "; this is a sign-in link's code, for a browser"
            } else {
                ""
            };
            return Err(Failure::Usage(format!(
                "the token is not an API token (hft_…){hint}: make one with hyperfactory-hub api-token, or on the dashboard"
            )));
        }
        let mut tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        if secure {
            tls = tls.root_certs(RootCerts::Specific(Arc::new(trust.certificates()?)));
        }
        let tls = tls.build();
        let agent = |config: ureq::config::ConfigBuilder<ureq::typestate::AgentScope>| {
            let config = config.tls_config(tls.clone()).http_status_as_error(false).max_redirects(0);
            config
                .user_agent(concat!("hfctl/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(CONNECT_WITHIN))
                .build()
                .new_agent()
        };
        Ok(Self {
            agent: agent(Agent::config_builder().timeout_global(Some(ANSWER_WITHIN))),
            streams: agent(Agent::config_builder().timeout_per_read(Some(SILENCE))),
            url: url.to_owned(),
            token: token.to_owned(),
        })
    }

    /// The hub's address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// `GET path?query`.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, Option<&str>)]) -> Result<T, Failure> {
        let request = self.request(Request::get(self.address(path, query))).body(());
        let answer = self.agent.run(request.map_err(|error| bad_url(&self.url, &error))?);
        self.read(self.check(answer)?)
    }

    /// What the hub shows at `path`, an address outside of its API, as text.
    pub(crate) fn text(&self, path: &str) -> Result<String, Failure> {
        let request = self.request(Request::get(format!("{}/{path}", self.url))).body(());
        let answer = self.agent.run(request.map_err(|error| bad_url(&self.url, &error))?);
        self.check(answer)?.body_mut().read_to_string().map_err(|error| self.unreachable(&error))
    }

    /// `POST path` with a JSON body.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Failure> {
        let request = self.request(Request::post(self.address(path, &[]))).header("content-type", "application/json");
        let request = request.body(body.to_string()).map_err(|error| bad_url(&self.url, &error))?;
        let answer = self.agent.run(request);
        self.read(self.check(answer)?)
    }

    /// `PUT path` with a JSON body.
    pub(crate) fn put<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Failure> {
        let request = self.request(Request::put(self.address(path, &[]))).header("content-type", "application/json");
        let request = request.body(body.to_string()).map_err(|error| bad_url(&self.url, &error))?;
        let answer = self.agent.run(request);
        self.read(self.check(answer)?)
    }

    /// `POST path` with a JSON body, for what must not be done twice: when the hub does not answer, it is asked once more for the same.
    /// `list` shows what was done, for whoever gets no answer then either.
    pub(crate) fn post_once<T: DeserializeOwned>(&self, path: &str, body: &Value, list: &str) -> Result<T, Failure> {
        let key = once();
        let mut arrived = false;
        let mut send = || {
            let request =
                self.request(Request::post(self.address(path, &[]))).header("content-type", "application/json");
            let request = request.header("idempotency-key", &key).body(body.to_string());
            let answer = self.agent.run(request.map_err(|error| bad_url(&self.url, &error))?);
            arrived |= may_have_arrived(&answer);
            self.read(self.check(answer)?)
        };
        let answer = match send() {
            Err(Failure::Away(_)) => send(),
            answer => answer,
        };
        answer.map_err(|failure| match failure {
            Failure::Away(why) if arrived => {
                let why = why.trim_end_matches('.');
                Failure::Away(format!(
                    "{why}. It may have been asked for all the same: look at {list} before you ask again"
                ))
            }
            other => other,
        })
    }

    /// `POST path` with a JSON body, where the answer says no more than that it is done.
    pub(crate) fn act(&self, path: &str, body: &Value) -> Result<(), Failure> {
        let request = self.request(Request::post(self.address(path, &[]))).header("content-type", "application/json");
        let request = request.body(body.to_string()).map_err(|error| bad_url(&self.url, &error))?;
        self.check(self.agent.run(request)).map(drop)
    }

    /// `DELETE path`.
    pub(crate) fn delete(&self, path: &str) -> Result<(), Failure> {
        self.deleted(path, &[]).map(drop)
    }

    /// `DELETE path?query`, and what the hub answers.
    pub(crate) fn reset<T: DeserializeOwned>(&self, path: &str, query: &[(&str, Option<&str>)]) -> Result<T, Failure> {
        self.read(self.deleted(path, query)?)
    }

    fn deleted(&self, path: &str, query: &[(&str, Option<&str>)]) -> Result<Response<Body>, Failure> {
        let request = self.request(Request::delete(self.address(path, query))).body(());
        self.check(self.agent.run(request.map_err(|error| bad_url(&self.url, &error))?))
    }

    /// Every item of a list, or the first `limit`.
    pub(crate) fn list(
        &self,
        path: &str,
        query: &[(&str, Option<&str>)],
        limit: Option<u32>,
    ) -> Result<Vec<Value>, Failure> {
        let mut items: Vec<Value> = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let wanted = limit.map_or(PAGE, |limit| limit.saturating_sub(items.len() as u32).clamp(1, PAGE));
            let size = wanted.to_string();
            let mut query = query.to_vec();
            query.extend([("limit", Some(&*size)), ("cursor", cursor.as_deref())]);
            let page: Page = self.get(path, &query)?;
            items.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() || limit.is_some_and(|limit| items.len() >= limit as usize) {
                return Ok(items);
            }
        }
    }

    /// A stream of server-sent events, from the one after `last` on.
    pub(crate) fn stream(
        &self,
        path: &str,
        query: &[(&str, Option<&str>)],
        last: Option<&str>,
    ) -> Result<BufReader<BodyReader<'static>>, Failure> {
        let mut request = self.request(Request::get(self.address(path, query)));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = self.streams.run(request.body(()).map_err(|error| bad_url(&self.url, &error))?);
        let body = self.check(answer)?.into_body();
        Ok(BufReader::new(body.into_with_config().limit(u64::MAX).reader()))
    }

    fn address(&self, path: &str, query: &[(&str, Option<&str>)]) -> String {
        let given = query.iter().filter_map(|(name, value)| Some(format!("{name}={}", escaped((*value)?))));
        let given = given.collect::<Vec<_>>().join("&");
        format!("{}/api/v1/{path}{}{given}", self.url, if given.is_empty() { "" } else { "?" })
    }

    fn request(&self, request: ureq::http::request::Builder) -> ureq::http::request::Builder {
        request
            .header("authorization", format!("Bearer {}", self.token))
            .header("accept", "application/json, */*;q=0.1")
    }

    fn check(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let mut response = answer.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let problem = response.body_mut().read_json::<Problem>().ok();
        // A hub whose database is away says so; a proxy does when the hub is.
        let away = matches!(status.as_u16(), 502..=504);
        let Some(Problem { detail }) = problem else {
            if away {
                return Err(Failure::Away(format!(
                    "{} is not there: what is in front of it answered {status}",
                    self.url
                )));
            }
            return Err(Failure::Failed(format!(
                "{} answered {status}, but not as a Hyperfactory hub does: check the address with hfctl login",
                self.url
            )));
        };
        Err(match status.as_u16() {
            401 => Failure::Refused(format!(
                "{} does not take the token: {}. Then run hfctl login.",
                self.url,
                detail.trim_end_matches('.')
            )),
            403 => Failure::Refused(detail),
            400 | 415 | 422 => Failure::Usage(detail),
            _ if away => Failure::Away(detail),
            _ => Failure::Failed(detail),
        })
    }

    fn read<T: DeserializeOwned>(&self, mut response: Response<Body>) -> Result<T, Failure> {
        response.body_mut().with_config().limit(64 * 1024 * 1024).read_json().map_err(|error| match error {
            ureq::Error::Json(error) => Failure::Failed(format!(
                "the answer of {} is not that of a Hyperfactory hub: {error}; check the address with hfctl login",
                self.url
            )),
            other => self.unreachable(&other),
        })
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let url = &self.url;
        let unknown = "check the address, or this machine's DNS";
        match error {
            ureq::Error::HostNotFound => Failure::Failed(format!("the host of {url} is not known: {unknown}")),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failure::Failed(format!("{url} is not an address: run hfctl login"))
            }
            ureq::Error::Rustls(error) => Failure::Failed(insecure(url, error)),
            ureq::Error::Timeout(_) => {
                Failure::Away(format!("{url} does not answer in time: is the hub running, and the way to it open?"))
            }
            ureq::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
                Failure::Away(format!("nothing listens at {url}: is the hub running? (hyperfactory-hub serve)"))
            }
            ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(error) => Failure::Failed(insecure(url, error)),
                // The system's resolver has no error kind of its own.
                None if error.to_string().contains("lookup") => {
                    Failure::Failed(format!("the host of {url} is not known: {unknown} ({error})"))
                }
                None => Failure::Away(format!("{url} can't be reached: {error}")),
            },
            other => Failure::Away(format!("{url} can't be reached: {other}")),
        }
    }
}

/// Asks again while the hub is away, which is said once: it may be restarted or updated, and what it has begun goes on.
pub(crate) fn patiently<T>(mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let (began, mut said) = (Instant::now(), false);
    loop {
        match ask() {
            Err(Failure::Away(why)) if began.elapsed() < AWAY_FOR => {
                if !std::mem::replace(&mut said, true) {
                    complain(&format!("hfctl: {why}; trying again"));
                }
                std::thread::sleep(AGAIN_AFTER);
            }
            answer => return answer,
        }
    }
}

/// What TLS does not like about a hub.
pub(crate) fn insecure(url: &str, error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(_) => format!(
            "the certificate of {url} is not trusted ({error}): name its authority with hfctl login --ca-file, or, if it is \
             the hub's own, with the --fingerprint that hyperfactory-hub http-authority prints"
        ),
        rustls::Error::InvalidMessage(_) => format!("{url} does not speak HTTPS: is its address http://…?"),
        other => format!("no secure connection to {url}: {other}"),
    }
}

/// Whether the hub may have done what it was asked for: there was a connection to it.
fn may_have_arrived<T>(answer: &Result<T, ureq::Error>) -> bool {
    match answer {
        Err(ureq::Error::Io(error)) => !matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown
                | ErrorKind::AddrNotAvailable
        ),
        Err(ureq::Error::Timeout(during)) => !matches!(during, ureq::Timeout::Resolve | ureq::Timeout::Connect),
        Err(ureq::Error::HostNotFound | ureq::Error::ConnectionFailed) => false,
        _ => true,
    }
}

fn bad_url(url: &str, error: &ureq::http::Error) -> Failure {
    Failure::Usage(format!("{url:?} is not the address of a hub ({error}): run hfctl login"))
}

/// A text that nobody has used before: the time in ns, and this process.
fn once() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("hfctl-{}-{}", now.as_nanos(), std::process::id())
}

/// Text as it may stand in an address.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_reached_the_hub_can_not_have_been_done() {
        let arrived = |error: ureq::Error| may_have_arrived::<()>(&Err(error));
        let io = |kind: ErrorKind| ureq::Error::Io(kind.into());
        for kind in [ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable] {
            assert!(!arrived(io(kind)), "{kind}");
        }
        for error in [
            ureq::Error::HostNotFound,
            ureq::Error::ConnectionFailed,
            ureq::Error::Timeout(ureq::Timeout::Resolve),
            ureq::Error::Timeout(ureq::Timeout::Connect),
        ] {
            assert!(!arrived(error));
        }
        for error in [
            io(ErrorKind::ConnectionReset),
            io(ErrorKind::UnexpectedEof),
            ureq::Error::Timeout(ureq::Timeout::RecvResponse),
            ureq::Error::Timeout(ureq::Timeout::Global),
        ] {
            assert!(arrived(error));
        }
        assert!(may_have_arrived(&Ok(())));
    }
}
