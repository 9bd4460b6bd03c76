//! The certificate of the HTTP side while the hub runs: read again when its files change, or issued anew before it ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use pki::web::{self, Shown};
use pki::{WebCertificate, WebName, pem};
use protocol::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::pair::{Pair, PairError};
use crate::authorities::{Authorities, RENEW_FOR_BROWSERS};
use crate::config::{Config, Encryption};
use crate::hub::{Domain, reachable};
use crate::metrics::Metrics;

/// How often the hub looks at the certificate and its files.
const LOOK: Duration = Duration::from_secs(60);

/// What the HTTP side shows, and where it comes from.
pub(crate) struct Https {
    shown: Shown,
    source: Source,
    public: Option<WebName>,
    /// It was said that the certificate ends soon.
    warned: bool,
}

enum Source {
    Files {
        pair: Pair,
        /// What was last tried; `None` when the files could not be read.
        tried: Option<[u8; 32]>,
    },
    Own {
        authorities: Authorities,
        names: Vec<WebName>,
    },
}

impl Https {
    /// The certificate that the configuration asks for; `None` when it asks for none.
    ///
    /// One that has expired is shown all the same: nodes need the hub, whatever browsers say.
    ///
    /// # Errors
    /// [`PairError`] when the files are of no use; when the hub's own authority can't be opened.
    pub(crate) async fn open(
        config: &Config,
        authorities: &Authorities,
        now: Timestamp,
    ) -> anyhow::Result<Option<Self>> {
        let (certificate, source) = match config.encryption()? {
            Encryption::Off => return Ok(None),
            Encryption::Files(pair) => {
                let contents = pair.contents()?;
                let certificate = pair.parse(&contents)?;
                if let Err(error) = certificate.judge(now) {
                    error!(%error, "no browser will trust this hub");
                }
                if certificate.is_alone() {
                    warn!(
                        file = %pair.certificate.display(),
                        "http-certificate holds one certificate without its authority's: \
                         most clients need the whole chain (fullchain.pem)"
                    );
                }
                (certificate, Source::Files { pair, tried: Some(contents.digest) })
            }
            Encryption::Own => {
                let (authorities, names) = (authorities.clone(), own_names(config)?);
                let failed = "the hub's own certificate for HTTPS can't be issued";
                let certificate = authorities.web_server(&names, now).await.context(failed)?;
                (certificate, Source::Own { authorities, names })
            }
        };
        let public = config.public()?.map(|url| url.host);
        let https = Self { shown: Shown::new(certificate), source, public, warned: false };
        https.mention_other_names(&https.shown.current());
        Ok(Some(https))
    }

    /// The handle to what is shown.
    pub(crate) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Keeps it good until `shutdown`; `reload` has the files read now.
    pub(crate) async fn keep(mut self, reload: Arc<Notify>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
        loop {
            metrics.https_certificate_end.set(self.shown.current().not_after().seconds());
            let asked = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = reload.notified() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            if !self.look(asked, crate::hub::now()).await {
                metrics.https_certificates_refused.inc();
            }
        }
    }

    /// False when there should be another certificate, and there is none that can be used.
    async fn look(&mut self, asked: bool, now: Timestamp) -> bool {
        let until = self.shown.current().not_after();
        let renewed = match &mut self.source {
            Source::Files { pair, tried } => changed(pair, tried, asked, now).map(|read| Ok(read?)),
            Source::Own { authorities, names } if now > until.minus(RENEW_FOR_BROWSERS) => {
                Some(authorities.web_server(names, now).await.map_err(anyhow::Error::from))
            }
            Source::Own { .. } => None,
        };
        let good = match renewed {
            None => true,
            Some(Ok(certificate)) => {
                let names = certificate.names().join(" ");
                info!(names, until = %certificate.not_after(), "another certificate for HTTPS is in use");
                self.mention_other_names(&certificate);
                self.shown.replace(certificate);
                self.warned = false;
                true
            }
            Some(Err(error)) => {
                let error = format!("{error:#}");
                error!(error, %until, "the new certificate for HTTPS is refused, and the one before stays in use");
                false
            }
        };
        let current = self.shown.current();
        if current.ends_soon(now) && !self.warned {
            self.warned = true;
            warn!(until = %current.not_after(), "the certificate for HTTPS ends soon, or has ended: see why nobody renews it");
        }
        good
    }

    fn mention_other_names(&self, certificate: &WebCertificate) {
        if let Some(public) = self.public.as_ref().filter(|public| !certificate.is_for(public)) {
            let names = certificate.names().join(" ");
            warn!(%public, names, "the certificate for HTTPS is not for the host of public-url: browsers will refuse it");
        }
    }
}

/// What the files hold, if that is worth a look: it is other than before, or somebody asked.
fn changed(
    pair: &Pair,
    tried: &mut Option<[u8; 32]>,
    asked: bool,
    now: Timestamp,
) -> Option<Result<WebCertificate, PairError>> {
    let contents = match pair.contents() {
        Ok(contents) => contents,
        // Said once, not every minute.
        Err(error) => return (tried.take().is_some() || asked).then_some(Err(error)),
    };
    if *tried == Some(contents.digest) && !asked {
        return None;
    }
    *tried = Some(contents.digest);
    let certificate = pair.parse(&contents);
    Some(certificate.and_then(|certificate| match certificate.judge(now) {
        Ok(()) => Ok(certificate),
        Err(reason) => Err(pair.unusable(reason)),
    }))
}

/// The authority of the hub's own certificate, for people to trust.
pub struct HttpAuthority {
    /// The file that browsers and `hfctl --ca-file` take.
    pub pem: String,
    /// What `hfctl login --fingerprint` takes.
    pub fingerprint: String,
}

/// The authority of the certificate that the hub issues itself.
///
/// # Errors
/// When it issues none, or the authority can't be opened.
pub async fn http_authority(config: &Config, domain: &Domain) -> anyhow::Result<HttpAuthority> {
    if config.encryption()? != Encryption::Own {
        bail!("this hub issues no certificate for HTTPS itself: set http-tls = \"own\" (HYPERFACTORY_HUB_HTTP_TLS)");
    }
    let authority = domain.authorities.web(&own_names(config)?, crate::hub::now()).await?;
    let certificate = authority.certificate_der();
    Ok(HttpAuthority { pem: pem::certificates([certificate]), fingerprint: web::fingerprint(certificate) })
}

/// What the hub's own certificate is for: the host of `public-url`, or else where it listens; and this machine by itself.
fn own_names(config: &Config) -> anyhow::Result<Vec<WebName>> {
    let listening = config.http_listen.ip();
    let mut names = Vec::new();
    match config.public()? {
        Some(url) => names.push(url.host),
        None if listening.is_unspecified() => {
            // A machine's name need not be a host's, and is then no use to browsers.
            let host = rustix::system::uname().nodename().to_string_lossy().parse();
            names.extend(host.inspect_err(|error| warn!(%error, "this machine has no name for HTTPS: set public-url")));
        }
        None => {}
    }
    if !listening.is_unspecified() {
        names.push(listening.into());
    }
    names.extend("localhost".parse::<WebName>());
    names.extend([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(WebName::from));
    let mut seen = Vec::new();
    names.retain(|name| {
        !seen.contains(name) && {
            seen.push(name.clone());
            true
        }
    });
    Ok(names)
}

/// Base URL of dashboard and API as they are reached: what `public-url` says, or a name in the certificate, or an address
/// of this machine.
pub(crate) fn base_url(
    config: &Config,
    listening: SocketAddr,
    certificate: Option<&WebCertificate>,
) -> anyhow::Result<String> {
    if let Some(url) = config.public()? {
        return Ok(url.base);
    }
    let near = reachable(listening);
    let Some(certificate) = certificate else { return Ok(format!("http://{near}")) };
    let named = (!certificate.is_for(&near.ip().into()))
        .then(|| certificate.names().iter().find(|name| name.parse::<WebName>().is_ok()))
        .flatten();
    Ok(match named {
        Some(name) => format!("https://{name}:{}", near.port()),
        None => format!("https://{near}"),
    })
}

#[cfg(test)]
mod tests;
