//! HTTPS on a hub that runs: what browsers, OpenSSL and those who come the wrong way get.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use hyperfactory_hub::check::{self, Outcome};
use hyperfactory_hub::config::{Config, HttpTls};
use hyperfactory_hub::hub::Hub;
use hyperfactory_hub::web::http_authority;
use pki::{Authority, WebName, pem};
use tempfile::TempDir;
use tokio::sync::Notify;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::*;

/// A hub that serves, and the authority that its clients trust.
struct Live {
    home: TempDir,
    url: String,
    authority: Vec<u8>,
    link: String,
    reload: Arc<Notify>,
    shutdown: CancellationToken,
    running: JoinSet<anyhow::Result<()>>,
}

fn config(home: &TempDir) -> Config {
    let local = "127.0.0.1:0".parse().expect("an address");
    Config { state_dir: home.path().join("hub"), quic_listen: local, http_listen: local, ..Config::default() }
}

/// With a certificate from files, as somebody else issues it; gives its authority.
fn with_files(home: &TempDir, names: &[&str], now: Timestamp) -> (Config, Authority) {
    let names: Vec<WebName> = names.iter().map(|name| name.parse().expect("a name")).collect();
    let authority = Authority::create_web(&names, now).expect("an authority");
    let key = PrivateKey::generate().expect("a key");
    let leaf = authority.issue_web_server(&key.public_key(), &names, now).expect("a certificate");
    let (certificate, secret) = (home.path().join("fullchain.pem"), home.path().join("key.pem"));
    let chain = pem::certificates([&leaf.into(), authority.certificate_der()]);
    std::fs::write(&certificate, chain).expect("written");
    std::fs::write(&secret, key.to_pem()).expect("written");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
    let config = Config { http_certificate: Some(certificate), http_key: Some(secret), ..config(home) };
    (config, authority)
}

impl Live {
    async fn start(home: TempDir, config: &Config, authority: Vec<u8>) -> Self {
        let shutdown = CancellationToken::new();
        let hub = Hub::open(config, &shutdown).await.expect("a hub");
        let grant = Site::grant(Role::Admin, None);
        let link = hub.domain().access.create_sign_in_link(grant, &Actor::system(), now()).await.expect("a link");
        let (url, reload) = (hub.endpoints().http.clone(), hub.reload());
        let mut running = JoinSet::new();
        running.spawn(hub.run(shutdown.clone()));
        Self { home, url, authority, link, reload, shutdown, running }
    }

    async fn with_files() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let (config, authority) = with_files(&home, &["localhost"], now());
        Self::start(home, &config, authority.certificate_der().to_vec()).await
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.running.join_next().await.expect("it runs").expect("no panic").expect("it ends well");
    }

    /// `localhost:PORT`.
    fn place(&self) -> String {
        self.url.strip_prefix("https://").expect("HTTPS").to_owned()
    }

    /// One request over a connection of its own.
    async fn get(&self, path: &str) -> Result<Response<ureq::Body>, ureq::Error> {
        self.get_trusting(&self.authority, path).await
    }

    async fn get_trusting(&self, authority: &[u8], path: &str) -> Result<Response<ureq::Body>, ureq::Error> {
        let (agent, url) = (agent(authority), format!("{}{path}", self.url));
        tokio::task::spawn_blocking(move || agent.get(&url).call()).await.expect("no panic")
    }

    /// Whether clients that trust `authority` alone reach it.
    async fn shows(&self, authority: &Authority) -> bool {
        self.get_trusting(authority.certificate_der(), "/healthz").await.is_ok()
    }

    async fn openssl(&self, arguments: &[&str]) -> (bool, String) {
        let authority = self.home.path().join("authority.pem");
        std::fs::write(&authority, pem::certificates([&self.authority.clone().into()])).expect("written");
        let mut command = Command::new("openssl");
        command.args(["s_client", "-brief", "-verify_return_error", "-verify_hostname", "localhost"]);
        command.args(["-connect", &self.place(), "-CAfile"]).arg(authority).args(arguments).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = output.expect("openssl is installed: it is the judge of this test");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn agent(authority: &[u8]) -> ureq::Agent {
    let roots = RootCerts::Specific(Arc::new(vec![Certificate::from_der(authority).to_owned()]));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder().provider(TlsProvider::Rustls);
    let tls = tls.unversioned_rustls_crypto_provider(provider).root_certs(roots).build();
    ureq::Agent::config_builder().tls_config(tls).max_redirects(0).timeout_global(Some(PATIENCE)).build().new_agent()
}

/// Asks again until the answer is yes.
async fn until(what: &str, asked: impl AsyncFn() -> bool) {
    let yes = async {
        while !asked().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, yes).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_certificate_serves_browsers_which_are_told_to_insist_on_https() {
    let live = Live::with_files().await;
    assert!(live.url.starts_with("https://localhost:"), "{}", live.url);
    let page = live.get("/sign-in").await.expect("a page");
    assert_eq!(page.headers()["strict-transport-security"], "max-age=31536000");
    let (agent, url, link) = (agent(&live.authority), live.url.clone(), live.link.clone());
    let signed_in = move || agent.post(format!("{url}/sign-in")).send_form([("code", &*link)]);
    let signed_in = tokio::task::spawn_blocking(signed_in).await.expect("no panic").expect("signed in");
    let cookie = signed_in.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_gets_both_versions_of_tls_and_http_1() {
    let live = Live::with_files().await;
    for (option, spoken) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let (done, said) = live.openssl(&[option]).await;
        assert!(done && said.contains(spoken) && said.contains("Verification: OK"), "{said}");
    }
    let (done, said) = live.openssl(&["-alpn", "h2"]).await;
    assert!(!done && said.contains("no application protocol"), "{said}");
    assert!(live.openssl(&["-alpn", "h2,http/1.1"]).await.0);
    let (done, said) = live.openssl(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).await;
    assert!(!done, "{said}");
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hubs_own_certificate_is_trusted_by_its_authority_and_insists_on_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let config = Config { http_tls: Some(HttpTls::Own), ..config(&home) };
    let domain = hyperfactory_hub::hub::Domain::open(&config).await.expect("a domain");
    let authority = http_authority(&config, &domain).await.expect("an authority");
    domain.database.close().await;
    let first = ureq::tls::parse_pem(authority.pem.as_bytes()).next().expect("a block").expect("PEM");
    let ureq::tls::PemItem::Certificate(certificate) = first else { panic!("no certificate") };
    let live = Live::start(home, &config, certificate.der().to_vec()).await;
    assert!(live.url.starts_with("https://127.0.0.1:"), "{}", live.url);
    let page = live.get("/sign-in").await.expect("a page");
    assert!(!page.headers().contains_key("strict-transport-security"));
    let (done, said) = live.openssl(&[]).await;
    assert!(done, "{said}");
    let other = Authority::create_web(&["localhost".parse().expect("a name")], now()).expect("an authority");
    assert!(!live.shows(&other).await);
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_without_a_restart_and_a_wrong_one_is_not() {
    let live = Live::with_files().await;
    let (_, renewed) = with_files(&live.home, &["localhost"], now());
    assert!(!live.shows(&renewed).await);
    live.reload.notify_one();
    until("the new one", async || live.shows(&renewed).await).await;

    std::fs::write(live.home.path().join("key.pem"), PrivateKey::generate().expect("a key").to_pem()).expect("written");
    live.reload.notify_one();
    let refused = "hyperfactory_hub_https_certificates_refused_total 1";
    until("a refusal", async || {
        let answer = live.get_trusting(renewed.certificate_der(), "/metrics").await;
        answer.and_then(|mut answer| answer.body_mut().read_to_string()).expect("metrics").contains(refused)
    })
    .await;
    assert!(live.shows(&renewed).await);
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_without_tls_is_told_and_who_stalls_stops_nobody() {
    let live = Live::with_files().await;
    let place = live.place();
    let stalled: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = TcpStream::connect(&place).expect("a connection");
            if number % 2 == 0 {
                stream.write_all(&[22, 3, 1, 2, 0, 1]).expect("the start of a hello");
            }
            stream
        })
        .collect();
    let page = live.get("/healthz").await.expect("an answer beside them");
    assert_eq!(page.status(), 200);
    let plain = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(place).expect("a connection");
        stream.write_all(b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    });
    let answer = plain.await.expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(&format!("use {}", live.url)), "{answer}");
    drop(stalled);
    live.stop().await;
}

#[tokio::test]
async fn check_judges_the_pair_before_a_browser_does() {
    let home = tempfile::tempdir().expect("a directory");
    let found = async |config: &Config| {
        let findings = check::all(config).await;
        let found = findings.into_iter().find(|finding| finding.subject == "https").expect("a finding");
        (found.outcome, found.said)
    };
    let says = async |config: &Config, outcome, word: &str| {
        let (judged, said) = found(config).await;
        assert!(judged == outcome && said.contains(word), "{judged:?}: {said}");
    };
    says(&config(&home), Outcome::Ok, "plain HTTP").await;
    let everywhere = "0.0.0.0:0".parse().expect("an address");
    says(&Config { http_listen: everywhere, ..config(&home) }, Outcome::Warn, "in the clear").await;
    says(&Config { http_tls: Some(HttpTls::Own), ..config(&home) }, Outcome::Ok, "http-authority").await;

    let days = |days: u64| Duration::from_secs(days * 86_400);
    let (good, _) = with_files(&home, &["hub.example", "192.0.2.7"], now());
    says(&good, Outcome::Ok, "hub.example 192.0.2.7, until").await;
    let elsewhere = Config { public_url: Some("https://fleet.example".into()), ..good.clone() };
    says(&elsewhere, Outcome::Warn, "not for fleet.example").await;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(home.path().join("key.pem"), open).expect("set");
    says(&good, Outcome::Warn, "everybody on this machine can read").await;
    let (ending, _) = with_files(&home, &["hub.example"], now().minus(days(80)));
    says(&ending, Outcome::Warn, "see why nobody renews").await;
    let (expired, _) = with_files(&home, &["hub.example"], now().minus(days(100)));
    says(&expired, Outcome::Fail, "has expired").await;
    std::fs::write(home.path().join("key.pem"), PrivateKey::generate().expect("a key").to_pem()).expect("written");
    says(&good, Outcome::Fail, "is not that of the certificate").await;
    std::fs::remove_file(home.path().join("key.pem")).expect("removed");
    says(&good, Outcome::Fail, "http-key can't be read").await;
    says(&Config { http_key: None, ..good }, Outcome::Fail, "set `http-key`").await;
}
