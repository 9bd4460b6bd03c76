//! How an identity and a waiting key stand in their files: JSON, with certificates in Base64.

use data_encoding::{BASE64, HEXLOWER};
use pki::{CertificateDer, KeyError, PrivateKey};
use protocol::id::IdError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use zeroize::{Zeroize, Zeroizing};

use super::{Credential, CredentialError, Identity, Pending};

/// The version this build writes, and the only one it reads.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    node: String,
    tenant: String,
    kind: String,
    name: String,
    hub: String,
    roots: Vec<String>,
    credential: CredentialFile,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<CredentialFile>,
}

#[derive(Serialize, Deserialize)]
struct CredentialFile {
    key: String,
    chain: Vec<String>,
    sequence: u64,
}

impl Drop for CredentialFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
struct PendingFile {
    format: u32,
    /// Hash of the join token's secret in hexadecimal; absent for a renewal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    key: String,
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

pub(super) fn print_identity(identity: &Identity) -> Zeroizing<Vec<u8>> {
    let credential = |credential: &Credential| CredentialFile {
        key: credential.key().to_pem().to_string(),
        chain: credential.chain().iter().map(|certificate| BASE64.encode(certificate)).collect(),
        sequence: credential.sequence(),
    };
    print(&IdentityFile {
        format: FORMAT,
        node: identity.node.to_string(),
        tenant: identity.tenant.to_string(),
        kind: identity.kind.to_string(),
        name: identity.name.clone(),
        hub: identity.hub.clone(),
        roots: identity.roots.iter().map(|root| BASE64.encode(root)).collect(),
        credential: credential(&identity.credential),
        previous: identity.previous.as_deref().map(credential),
    })
}

pub(super) fn parse_identity(bytes: &[u8]) -> Result<Identity, Damage> {
    let file: IdentityFile = parse(bytes)?;
    let identity = Identity {
        node: file.node.parse()?,
        tenant: file.tenant.parse()?,
        kind: file.kind.parse()?,
        credential: Arc::new(credential(&file.credential)?),
        previous: file.previous.as_ref().map(credential).transpose()?.map(Arc::new),
        roots: file.roots.iter().map(|root| certificate(root)).collect::<Result<_, _>>()?,
        name: file.name,
        hub: file.hub,
    };
    if identity.roots.is_empty() {
        return Err(Damage::NoRoot);
    }
    for credential in [Some(&identity.credential), identity.previous.as_ref()].into_iter().flatten() {
        let subject = credential.subject();
        if (subject.node, subject.kind, &subject.tenant) != (identity.node, identity.kind, &identity.tenant) {
            return Err(Damage::OtherNode);
        }
    }
    Ok(identity)
}

pub(super) fn print_pending(pending: Pending, key: &PrivateKey) -> Zeroizing<Vec<u8>> {
    let token = match pending {
        Pending::Enroll(token) => Some(HEXLOWER.encode(&token)),
        Pending::Renew => None,
    };
    print(&PendingFile { format: FORMAT, token, key: key.to_pem().to_string() })
}

pub(super) fn parse_pending(bytes: &[u8]) -> Result<(Pending, PrivateKey), Damage> {
    let file: PendingFile = parse(bytes)?;
    let pending = match &file.token {
        Some(token) => {
            let hash = HEXLOWER.decode(token.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
            Pending::Enroll(hash.ok_or(Damage::Encoding)?)
        }
        None => Pending::Renew,
    };
    Ok((pending, PrivateKey::from_pem(&file.key)?))
}

/// What is wrong with a file of the identity.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// Not the JSON that was written.
    #[error("it is not the JSON that was written")]
    Syntax(#[source] serde_json::Error),
    /// Written by another release.
    #[error("it has format {0}, and this release reads format {FORMAT}; use the release that wrote it")]
    Format(u32),
    /// An id that is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Base64 or hexadecimal that is none.
    #[error("a certificate or hash in it is not encoded as it should be")]
    Encoding,
    /// The key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificates can't be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// No hub could be trusted.
    #[error("it names no root of the fleet")]
    NoRoot,
    /// The certificate names another node.
    #[error("its certificate names another node than the file does")]
    OtherNode,
}

fn print(file: &impl Serialize) -> Zeroizing<Vec<u8>> {
    // Strings and numbers always serialize; room for all of it keeps the key out of outgrown buffers.
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 * 1024));
    let _ = serde_json::to_writer_pretty(&mut *bytes, file);
    bytes.push(b'\n');
    bytes
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, Damage> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(Damage::Syntax)?;
    if head.format != FORMAT {
        return Err(Damage::Format(head.format));
    }
    serde_json::from_slice(bytes).map_err(Damage::Syntax)
}

fn credential(file: &CredentialFile) -> Result<Credential, Damage> {
    let chain = file.chain.iter().map(|text| certificate(text)).collect::<Result<_, _>>()?;
    Ok(Credential::new(PrivateKey::from_pem(&file.key)?, chain, file.sequence)?)
}

fn certificate(text: &str) -> Result<CertificateDer<'static>, Damage> {
    BASE64.decode(text.as_bytes()).map(CertificateDer::from).map_err(|_| Damage::Encoding)
}
