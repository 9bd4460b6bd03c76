//! What a bridge shows its tenant's brokers: a key, a certificate from the hub and the roots that go with it, in one file
//! that is replaced atomically.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pki::{CertificateDer, KeyError, PrivateKey, RequestError, Summary, TrustError, kafka_principal};
use protocol::{NodeId, Timestamp};
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use crate::file::{self, FileError};

const CREDENTIAL: &str = "kafka.pem";
const WAITING_KEY: &str = "kafka-key.pem";
/// One of ours is under 8 KiB.
const MAX_FILE: u64 = 64 * 1024;

/// A key, the certificate for it, and the roots that the brokers are judged by.
pub struct KafkaCredential {
    key: PrivateKey,
    certificate: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    summary: Summary,
}

impl KafkaCredential {
    /// Joins them.
    ///
    /// # Errors
    /// [`KafkaError`] when the certificate is not `bridge`'s for this key, or of none of the roots.
    pub fn new(
        bridge: NodeId,
        key: PrivateKey,
        certificate: CertificateDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, KafkaError> {
        let credential = Self::read(key, certificate, roots)?;
        if credential.summary.common_name.as_deref() != Some(&*kafka_principal(bridge)) {
            return Err(KafkaError::OtherBridge);
        }
        Ok(credential)
    }

    fn read(
        key: PrivateKey,
        certificate: CertificateDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, KafkaError> {
        let summary = Summary::of(&certificate)?;
        if summary.spki_sha256 != key.spki_sha256() {
            return Err(KafkaError::OtherKey);
        }
        let mut issued = false;
        for root in &roots {
            let root = Summary::of(root)?;
            issued |= root.is_ca && root.issuer_key_id == summary.issuer_key_id;
        }
        if summary.is_ca || !issued {
            return Err(KafkaError::Foreign);
        }
        Ok(Self { key, certificate, roots, summary })
    }

    /// The private key in PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }

    /// The certificate in PEM.
    pub fn certificate_pem(&self) -> String {
        pki::pem::certificates([&self.certificate])
    }

    /// The roots in PEM.
    pub fn roots_pem(&self) -> String {
        pki::pem::certificates(&self.roots)
    }

    /// What the certificate says.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    pub(crate) fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Whether this is what the hub gave.
    pub(crate) fn is(&self, certificate: &[u8], roots: &[Vec<u8>]) -> bool {
        *self.certificate == *certificate && self.roots.iter().map(|root| &**root).eq(roots)
    }
}

/// Where a bridge keeps it.
#[derive(Clone, Debug)]
pub struct KafkaStore {
    directory: PathBuf,
}

impl KafkaStore {
    /// In the bridge's state directory.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self { directory: path.into() }
    }

    /// The file: key, certificate and roots, in PEM. When it changes, there is a new credential.
    pub fn path(&self) -> PathBuf {
        self.directory.join(CREDENTIAL)
    }

    /// The credential, or `None` when the hub never gave one.
    ///
    /// # Errors
    /// When the file can't be read, or is damaged.
    pub fn load(&self) -> Result<Option<KafkaCredential>, KafkaError> {
        let path = self.path();
        let Some(text) = read(&path)? else { return Ok(None) };
        let damaged = |source: KafkaError| KafkaError::Damaged { path: path.clone(), source: Box::new(source) };
        let parsed = (|| {
            let key = PrivateKey::from_pem(&text)?;
            let mut certificates = pki::pem::read_certificates(&text)?.into_iter();
            let certificate = certificates.next().ok_or(KafkaError::Foreign)?;
            KafkaCredential::read(key, certificate, certificates.collect())
        })();
        parsed.map(Some).map_err(damaged)
    }

    /// Replaces it; on return it is durable.
    ///
    /// # Errors
    /// [`KafkaError::File`]; the old one then stands.
    pub fn save(&self, credential: &KafkaCredential) -> Result<(), KafkaError> {
        let mut text = credential.key_pem();
        text.push_str(&credential.certificate_pem());
        text.push_str(&credential.roots_pem());
        Ok(file::replace(&self.path(), text.as_bytes())?)
    }

    /// The key that waits for its certificate, made and stored durably when there is none: asking again with it gives the
    /// same certificate.
    pub(crate) fn waiting_key(&self) -> Result<PrivateKey, KafkaError> {
        let path = self.directory.join(WAITING_KEY);
        match read(&path)?.map(|text| PrivateKey::from_pem(&text)) {
            Some(Ok(key)) => return Ok(key),
            Some(Err(damage)) => {
                tracing::warn!(path = %path.display(), %damage, "a waiting key is damaged; making a new one");
            }
            None => {}
        }
        let key = PrivateKey::generate()?;
        file::replace(&path, key.to_pem().as_bytes())?;
        Ok(key)
    }

    /// Forgets the key that waited, once its certificate is saved.
    pub(crate) fn forget_waiting(&self) -> Result<(), KafkaError> {
        Ok(file::remove(&self.directory.join(WAITING_KEY))?)
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, KafkaError> {
    let Some(bytes) = file::read(path, MAX_FILE)?.map(Zeroizing::new) else { return Ok(None) };
    Ok(Some(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())))
}

/// How the Kafka certificate stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaStatus {
    /// When the one in use ends; `None`: there is none yet.
    pub not_after: Option<Timestamp>,
    /// When it is due to be renewed; `None` before the hub has said so.
    pub renew_at: Option<Timestamp>,
    /// Why the last attempt to have one failed, and what to do; `None` when all is in order.
    pub trouble: Option<String>,
    /// Attempts to have another one that have ended, one way or the other.
    pub attempts: u64,
}

/// Tries a credential at the brokers, beside the one in use; an error says what they made of it.
pub type Trial = Arc<dyn Fn(&KafkaCredential) -> Result<(), String> + Send + Sync>;

/// What a link needs to keep a bridge's Kafka certificate.
#[derive(Clone)]
pub struct Kafka {
    /// Where it is.
    pub store: KafkaStore,
    /// A new one is tried before it takes the place of one that still holds. It may take seconds.
    pub trial: Trial,
    /// Notified, it has a new one fetched now.
    pub renew: Arc<Notify>,
    /// Where it is told how the certificate stands.
    pub status: watch::Sender<KafkaStatus>,
}

/// There is no Kafka certificate to use.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is there and can't be used.
    #[error("the Kafka certificate in {} is damaged; move the file away, and the hub gives another one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KafkaError>,
    },
    /// No key, or none could be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No certificates.
    #[error(transparent)]
    Pem(#[from] RequestError),
    /// Not a certificate.
    #[error("a Kafka certificate can't be read")]
    Certificate(#[from] TrustError),
    /// Issued for another key.
    #[error("the Kafka certificate is for another key")]
    OtherKey,
    /// Issued to another bridge.
    #[error("the Kafka certificate names another bridge; look at the hub's log")]
    OtherBridge,
    /// Of none of the roots.
    #[error("the Kafka certificate is of none of the roots that came with it; look at the hub's log")]
    Foreign,
    /// The process ends.
    #[error("the process is shutting down")]
    Stopped,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use pki::Authority;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    /// A tenant's Kafka root.
    pub(crate) fn plane(now: Timestamp) -> Authority {
        Authority::create_kafka_root(&"acme".parse().expect("a slug"), now, DAY * 3650).expect("a root")
    }

    /// What the root issues for this key.
    pub(crate) fn certified(root: &Authority, key: &PrivateKey, bridge: NodeId, now: Timestamp) -> Vec<u8> {
        root.issue_kafka_client(&key.public_key(), bridge, now, DAY * 90).expect("a certificate")
    }

    fn bridge() -> NodeId {
        NodeId::new(Timestamp::from_millis(1), [9; 10])
    }

    #[test]
    fn a_credential_survives_its_file_and_the_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("tempdir");
        let store = KafkaStore::directory(directory.path().join("state"));
        assert!(store.load().expect("none").is_none());
        let (now, waiting) = (Timestamp::from_millis(1_790_000_000_000), store.waiting_key().expect("a key"));
        assert_eq!(store.waiting_key().expect("the same").spki_sha256(), waiting.spki_sha256());
        let (root, next) = (plane(now), plane(now));
        let leaf = certified(&root, &waiting, bridge(), now);
        let roots = vec![next.certificate_der().clone(), root.certificate_der().clone()];
        let credential = KafkaCredential::new(bridge(), waiting, leaf.clone().into(), roots.clone()).expect("a pair");
        store.save(&credential).expect("saved");
        store.forget_waiting().expect("forgotten");
        let read = store.load().expect("readable").expect("there");
        let ders: Vec<Vec<u8>> = roots.iter().map(|root| root.to_vec()).collect();
        assert!(read.is(&leaf, &ders) && !read.is(&leaf, &ders[..1]));
        assert_eq!(read.key().spki_sha256(), credential.key().spki_sha256());
        assert_eq!(std::fs::metadata(store.path()).expect("there").permissions().mode() & 0o777, 0o600);
        assert_ne!(store.waiting_key().expect("a new one").spki_sha256(), read.key().spki_sha256());

        std::fs::write(store.path(), "cut").expect("written");
        assert!(store.load().err().expect("damaged").to_string().contains("kafka.pem"));
    }

    #[test]
    fn what_is_another_bridges_or_of_another_root_is_not_taken() {
        let now = Timestamp::from_millis(1_790_000_000_000);
        let (root, other) = (plane(now), plane(now));
        let made = |certified_by: &Authority, whom: NodeId, own: bool| {
            let (key, strange) = (PrivateKey::generate().expect("a key"), PrivateKey::generate().expect("a key"));
            let leaf = certified(certified_by, if own { &key } else { &strange }, whom, now);
            KafkaCredential::new(bridge(), key, leaf.into(), vec![root.certificate_der().clone()])
        };
        assert!(made(&root, bridge(), true).is_ok());
        assert!(matches!(made(&root, bridge(), false), Err(KafkaError::OtherKey)));
        assert!(matches!(made(&other, bridge(), true), Err(KafkaError::Foreign)));
        let stranger = NodeId::new(Timestamp::from_millis(2), [8; 10]);
        assert!(matches!(made(&root, stranger, true), Err(KafkaError::OtherBridge)));
    }
}
