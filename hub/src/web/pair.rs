//! The two files of a certificate that somebody else renews.

use std::path::{Path, PathBuf};

use pki::{WebCertificate, WebCertificateError};
use ring::digest::{Context, SHA256};

/// Certificate and key, where an ACME client keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// `http-certificate`.
    pub(crate) certificate: PathBuf,
    /// `http-key`.
    pub(crate) key: PathBuf,
}

/// The files' bytes, and what tells them from others.
pub(crate) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    pub(crate) digest: [u8; 32],
}

/// Files that don't make a certificate.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// One can't be read.
    #[error("{key} can't be read from {path}: see that it exists and that this user may read it", path = path.display())]
    Unreadable {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// They don't belong together, or are no certificate.
    #[error("http-certificate {certificate} and http-key {key} can't be used", certificate = certificate.display(), key = key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        #[source]
        source: WebCertificateError,
    },
}

impl Pair {
    /// What the files hold now.
    ///
    /// # Errors
    /// [`PairError::Unreadable`].
    pub(crate) fn contents(&self) -> Result<Contents, PairError> {
        let certificate = read("http-certificate", &self.certificate)?;
        let key = read("http-key", &self.key)?;
        let mut digest = Context::new(&SHA256);
        digest.update(&certificate.len().to_be_bytes());
        digest.update(&certificate);
        digest.update(&key);
        let mut fixed = [0; 32];
        fixed.copy_from_slice(digest.finish().as_ref());
        Ok(Contents { certificate, key, digest: fixed })
    }

    /// The certificate in `contents`, whether or not it is valid now.
    ///
    /// # Errors
    /// [`PairError::Unusable`].
    pub(crate) fn parse(&self, contents: &Contents) -> Result<WebCertificate, PairError> {
        WebCertificate::from_pem(&contents.certificate, &contents.key).map_err(|source| self.unusable(source))
    }

    pub(crate) fn unusable(&self, source: WebCertificateError) -> PairError {
        PairError::Unusable { certificate: self.certificate.clone(), key: self.key.clone(), source }
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, PairError> {
    std::fs::read(path).map_err(|source| PairError::Unreadable { key, path: path.to_owned(), source })
}
