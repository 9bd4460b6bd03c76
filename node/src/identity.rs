//! Who this node is: key, certificates and hub, in one file that is replaced atomically, and keys that wait for
//! their certificate.

mod format;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pki::{CertificateDer, KeyError, NodeIdentity, PrivateKey, TrustError};
use protocol::{NodeId, NodeKind, TenantId};

use crate::file::{self, FileError};

/// An enrolled node.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub node: NodeId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is.
    pub kind: NodeKind,
    /// Its name for people.
    pub name: String,
    /// The hub's address, `host:port`.
    pub hub: String,
    /// The fleet's root certificates, the only anchors the hub is judged by; never none.
    pub roots: Vec<CertificateDer<'static>>,
    /// The key and certificates in use.
    pub credential: Arc<Credential>,
    /// The other ones, kept until the next take their place: those before these, all that a hub knows whose database is of a
    /// time before; or, where that has this node go back, those after these, all that the right database takes.
    pub previous: Option<Arc<Credential>>,
}

impl Identity {
    /// SHA-256 of the public keys of the roots.
    pub fn root_pins(&self) -> Vec<[u8; 32]> {
        self.roots.iter().filter_map(|root| pki::trust::pin(root).ok()).collect()
    }

    /// The same node with its other credential in use; `None` when it has no other.
    pub(crate) fn swapped(&self) -> Option<Self> {
        let other = self.previous.clone()?;
        Some(Self { credential: other, previous: Some(Arc::clone(&self.credential)), ..self.clone() })
    }
}

/// A private key and the certificate chain issued for it.
#[derive(Debug)]
pub struct Credential {
    key: PrivateKey,
    chain: Vec<CertificateDer<'static>>,
    sequence: u64,
    subject: NodeIdentity,
}

impl Credential {
    /// Joins a key with its chain: leaf first, then the tenant's intermediate. `sequence` is the leaf's number.
    ///
    /// # Errors
    /// [`CredentialError`] when the leaf is not a node's or is for another key.
    pub fn new(key: PrivateKey, chain: Vec<CertificateDer<'static>>, sequence: u64) -> Result<Self, CredentialError> {
        let subject = pki::node_identity(&chain)?;
        if subject.spki_sha256 != key.spki_sha256() {
            return Err(CredentialError::OtherKey);
        }
        Ok(Self { key, chain, sequence, subject })
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's number among those of this node: 1 for the enrollment's, one more for each after it.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What the leaf says.
    pub fn subject(&self) -> &NodeIdentity {
        &self.subject
    }
}

/// A certificate that does not belong where it is.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Not a node's certificate.
    #[error("the certificate is not a node's")]
    Certificate(#[from] TrustError),
    /// Issued for another key.
    #[error("the certificate is for another key")]
    OtherKey,
}

/// What a key without a certificate waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// An enrollment with the token whose secret hashes to this: another token gets another key.
    Enroll([u8; 32]),
    /// A renewal of the credential in use, or recovery from it.
    Renew,
}

impl Pending {
    fn file(self) -> &'static str {
        match self {
            Self::Enroll(_) => "enroll-key.json",
            Self::Renew => "renew-key.json",
        }
    }
}

/// Where a node keeps its identity.
#[derive(Clone, Debug)]
pub struct IdentityStore(Place);

#[derive(Clone, Debug)]
enum Place {
    Directory(PathBuf),
    Memory(Arc<Mutex<Memory>>),
}

#[derive(Debug, Default)]
struct Memory {
    identity: Option<Identity>,
    pending: Option<(Pending, zeroize::Zeroizing<String>)>,
}

const IDENTITY: &str = "identity.json";
/// An identity of ours is under 8 KiB.
const MAX_FILE: u64 = 256 * 1024;

impl IdentityStore {
    /// A store in the node's state directory, which need not exist yet.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self(Place::Directory(path.into()))
    }

    /// A store that is gone with the process, for simulated nodes.
    pub fn memory() -> Self {
        Self(Place::Memory(Arc::default()))
    }

    /// The file that holds the identity; `None` in memory.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.0 {
            Place::Directory(directory) => Some(directory.join(IDENTITY)),
            Place::Memory(_) => None,
        }
    }

    /// Gives files that root made in the service's directory to the user that the directory belongs to.
    pub fn hand_over(&self) {
        match &self.0 {
            Place::Directory(directory) => file::hand_over(directory),
            Place::Memory(_) => {}
        }
    }

    /// The identity, or `None` when this node never enrolled.
    ///
    /// # Errors
    /// [`IdentityError`] when there is one and it can't be used; the message says what to do.
    pub fn load(&self) -> Result<Option<Identity>, IdentityError> {
        match &self.0 {
            Place::Directory(directory) => {
                let path = directory.join(IDENTITY);
                let Some(bytes) = read(&path)? else { return Ok(None) };
                match format::parse_identity(&bytes) {
                    Ok(identity) => Ok(Some(identity)),
                    Err(damage) => Err(IdentityError::Damaged { path, source: damage }),
                }
            }
            Place::Memory(memory) => Ok(lock(memory).identity.clone()),
        }
    }

    /// Replaces the identity; on return it is durable.
    ///
    /// # Errors
    /// [`IdentityError::File`]; the old identity then stands.
    pub fn save(&self, identity: &Identity) -> Result<(), IdentityError> {
        match &self.0 {
            Place::Directory(directory) => {
                Ok(file::replace(&directory.join(IDENTITY), &format::print_identity(identity))?)
            }
            Place::Memory(memory) => {
                lock(memory).identity = Some(identity.clone());
                Ok(())
            }
        }
    }

    /// The key that waits for `pending`, made and stored durably when there is none: a request may only leave with a
    /// key that a crash can't lose. A key that is already `in_use` waits for nothing any more and is replaced.
    ///
    /// # Errors
    /// [`IdentityError`] when no key can be made or stored.
    pub fn pending_key(&self, pending: Pending, in_use: Option<&Credential>) -> Result<PrivateKey, IdentityError> {
        let waiting = self.waiting_key(pending)?;
        let used = in_use.map(|credential| credential.subject.spki_sha256);
        if let Some(key) = waiting.filter(|key| Some(key.spki_sha256()) != used) {
            return Ok(key);
        }
        let key = PrivateKey::generate().map_err(IdentityError::Key)?;
        match &self.0 {
            Place::Directory(directory) => {
                file::replace(&directory.join(pending.file()), &format::print_pending(pending, &key))?;
            }
            Place::Memory(memory) => lock(memory).pending = Some((pending, key.to_pem())),
        }
        Ok(key)
    }

    /// Forgets the key that waited for `pending`, once its certificate is saved.
    ///
    /// # Errors
    /// [`IdentityError::File`] when the file can't be removed.
    pub fn forget_pending(&self, pending: Pending) -> Result<(), IdentityError> {
        match &self.0 {
            Place::Directory(directory) => Ok(file::remove(&directory.join(pending.file()))?),
            Place::Memory(memory) => {
                lock(memory).pending.take_if(|(waiting, _)| *waiting == pending);
                Ok(())
            }
        }
    }

    fn waiting_key(&self, pending: Pending) -> Result<Option<PrivateKey>, IdentityError> {
        match &self.0 {
            Place::Directory(directory) => {
                let path = directory.join(pending.file());
                let Some(bytes) = read(&path)? else { return Ok(None) };
                match format::parse_pending(&bytes) {
                    Ok((waits_for, key)) => Ok((waits_for == pending).then_some(key)),
                    Err(damage) => {
                        tracing::warn!(path = %path.display(), %damage, "a waiting key is damaged; making a new one");
                        Ok(None)
                    }
                }
            }
            Place::Memory(memory) => match &lock(memory).pending {
                Some((waits_for, pem)) if *waits_for == pending => {
                    PrivateKey::from_pem(pem).map(Some).map_err(IdentityError::Key)
                }
                _ => Ok(None),
            },
        }
    }
}

/// A node's identity could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The identity file is there and is not an identity.
    #[error(
        "the identity file {} is damaged; move it away and enroll again with a new join token (a copy from before the last \
         renewal would have the hub freeze this node)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Damage,
    },
    /// No key could be made.
    #[error("cannot make a private key")]
    Key(#[source] KeyError),
    /// A certificate is not this node's.
    #[error("the hub sent a certificate that can't be used; look at the hub's log")]
    Credential(#[from] CredentialError),
}

pub use format::Damage;

fn read(path: &Path) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, FileError> {
    Ok(file::read(path, MAX_FILE)?.map(zeroize::Zeroizing::new))
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
