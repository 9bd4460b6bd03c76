//! The way in where HTTPS is spoken: a handshake within a deadline, and a word to those who speak plain HTTP.

use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use pki::web::{self, Shown};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::api::problem::Problem;

/// How long a handshake may take, from the accepted connection on.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How much of a misled request is read, so that its sender gets the answer before the end: a reset would overtake it.
const MISLED: u64 = 64 * 1024;

/// Speaks TLS with the certificate that is shown now.
pub(crate) struct Door {
    acceptor: TlsAcceptor,
    /// What plain HTTP is answered.
    misled: Vec<u8>,
}

impl Door {
    /// A door to what people reach as `url`.
    ///
    /// # Errors
    /// None in practice: see [`web::server_config`].
    pub(crate) fn new(shown: Shown, url: &str) -> Result<Self, pki::tls::TlsError> {
        let acceptor = TlsAcceptor::from(Arc::clone(&web::server_config(shown)?));
        let detail = format!("This port speaks HTTPS, and the request came without: use {url}.");
        let body = serde_json::to_string(&Problem::malformed(detail)).unwrap_or_default();
        let misled = format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        Ok(Self { acceptor, misled: misled.into_bytes() })
    }

    /// The same connection, secured.
    ///
    /// # Errors
    /// Why it is none.
    pub(crate) async fn enter(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let entered = async {
            let mut first = [0];
            stream.peek(&mut first).await?;
            // A method's name starts with a letter, a TLS record with its type: 22 (RFC 8446, section 5.1).
            if first[0].is_ascii_alphabetic() {
                self.correct(stream).await?;
                return Err(Error::new(ErrorKind::InvalidData, "plain HTTP"));
            }
            self.acceptor.accept(stream).await
        };
        let late = || Error::new(ErrorKind::TimedOut, "the handshake took too long");
        tokio::time::timeout(HANDSHAKE_WITHIN, entered).await.unwrap_or_else(|_| Err(late()))
    }

    async fn correct(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.write_all(&self.misled).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(MISLED), &mut tokio::io::sink()).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use pki::WebName;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let there = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        (there, listener.accept().await.expect("a connection").0)
    }

    fn door() -> Door {
        let names: [WebName; 1] = ["hub.example".parse().expect("a name")];
        let now = crate::hub::now();
        let authority = pki::Authority::create_web(&names, now).expect("an authority");
        let key = pki::PrivateKey::generate().expect("a key");
        let leaf = authority.issue_web_server(&key.public_key(), &names, now).expect("a certificate");
        let certificate = pki::WebCertificate::issued(vec![leaf.into()], &key).expect("a pair");
        Door::new(Shown::new(certificate), "https://hub.example:7080").expect("a door")
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_go_on_with_the_handshake_is_shown_out() {
        let door = door();
        for begun in [&b""[..], &[22, 3, 1]] {
            let (mut there, here) = pair().await;
            there.write_all(begun).await.expect("sent");
            let before = tokio::time::Instant::now();
            let error = door.enter(here).await.expect_err("no handshake");
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert_eq!(before.elapsed(), HANDSHAKE_WITHIN);
        }
    }

    #[tokio::test]
    async fn plain_http_is_told_where_to_go() {
        let (mut there, here) = pair().await;
        let asking = async {
            there.write_all(b"GET /nodes HTTP/1.1\r\nHost: hub.example:7080\r\n\r\n").await.expect("sent");
            let mut answer = String::new();
            there.read_to_string(&mut answer).await.expect("an answer");
            drop(there);
            answer
        };
        let (answer, entered) = tokio::join!(asking, async { door().enter(here).await });
        assert!(entered.is_err());
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        assert!(head.starts_with("HTTP/1.1 400 ") && head.contains("application/problem+json"), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert!(body["detail"].as_str().is_some_and(|said| said.contains("use https://hub.example:7080")), "{body}");
    }
}
