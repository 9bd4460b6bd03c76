//! The proof with which a node whose certificate is taken no more shows that it is still the one that has the key.

use protocol::NodeId;
use rustls::pki_types::CertificateDer;

use crate::certificate::Facts;
use crate::key::{KeyError, PrivateKey, sha256};
use crate::request::RequestedKey;

/// Label of the TLS exporter whose value is part of the proof: a signature is worth nothing on another connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-hyperfactory-recover/1";
/// Number of the certificate a node gets when it enrolls.
pub const FIRST_SEQUENCE: u64 = 1;

const DOMAIN: &[u8] = b"hyperfactory-recover/1 proof";

/// What is signed. Nothing of it comes from one side alone but the request, which is the node's to choose.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The hub's challenge.
    pub nonce: &'a [u8; 32],
    /// The connection's exporter value for [`EXPORTER_LABEL`].
    pub exporter: &'a [u8; 32],
    /// Who asks.
    pub node: NodeId,
    /// Number of the certificate whose key signs.
    pub sequence: u64,
    /// The PKCS#10 request for the new key.
    pub certificate_request: &'a [u8],
}

impl Claim<'_> {
    /// Signs it with the key the node was certified for.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the operating system has no randomness to sign with.
    pub fn sign(&self, key: &PrivateKey) -> Result<Vec<u8>, KeyError> {
        key.sign_bytes(&self.text())
    }

    /// Whether `signature` is of the key that `certificate` was issued for.
    pub fn is_signed_by(&self, certificate: &CertificateDer<'_>, signature: &[u8]) -> bool {
        let Some(facts) = Facts::parse(certificate) else { return false };
        RequestedKey::from_trusted_spki(facts.spki.to_vec()).verify(&self.text(), signature)
    }

    /// Each field after its length: no two claims give the same bytes.
    fn text(&self) -> Vec<u8> {
        let (node, sequence) = (self.node.to_bytes(), self.sequence.to_be_bytes());
        let request = sha256(self.certificate_request);
        let fields: [&[u8]; 6] = [DOMAIN, self.nonce, self.exporter, &node, &sequence, &request];
        fields.iter().flat_map(|field| [&(field.len() as u64).to_be_bytes()[..], field].concat()).collect()
    }
}

#[cfg(test)]
mod tests {
    use protocol::{NodeKind, Timestamp};

    use super::*;
    use crate::authority::{Authority, INTERMEDIATE_LIFETIME, NODE_LIFETIME, ROOT_LIFETIME};

    #[test]
    fn a_proof_holds_for_one_key_and_one_claim() {
        let now = Timestamp::from_millis(1_790_000_000_000);
        let root = Authority::create_root(now, ROOT_LIFETIME).expect("a root");
        let tenant = "acme".parse().expect("a slug");
        let authority = root.issue_tenant_intermediate(&tenant, now, INTERMEDIATE_LIFETIME).expect("an intermediate");
        let (key, node) = (PrivateKey::generate().expect("a key"), NodeId::new(now, [1; 10]));
        let leaf = |key: &PrivateKey| {
            let issued = authority.issue_node(&key.public_key(), node, NodeKind::Agent, now, NODE_LIFETIME);
            CertificateDer::from(issued.expect("a certificate"))
        };
        let claim = Claim { nonce: &[1; 32], exporter: &[2; 32], node, sequence: 3, certificate_request: b"a request" };
        let signature = claim.sign(&key).expect("signed");
        let certificate = leaf(&key);
        assert!(claim.is_signed_by(&certificate, &signature));
        let others = [
            Claim { nonce: &[9; 32], ..claim },
            Claim { exporter: &[9; 32], ..claim },
            Claim { node: NodeId::new(now, [9; 10]), ..claim },
            Claim { sequence: 4, ..claim },
            Claim { certificate_request: b"another", ..claim },
        ];
        for other in others {
            assert!(!other.is_signed_by(&certificate, &signature), "{other:?}");
        }
        assert!(!claim.is_signed_by(&leaf(&PrivateKey::generate().expect("a key")), &signature));
        assert!(!claim.is_signed_by(&certificate, &[]) && !claim.is_signed_by(&certificate, &signature[1..]));
        assert!(!claim.is_signed_by(&CertificateDer::from(vec![1]), &signature));
    }

    #[test]
    fn the_signed_text_is_the_published_one() {
        let node = NodeId::new(Timestamp::from_millis(1), [7; 10]);
        let claim = Claim { nonce: &[1; 32], exporter: &[2; 32], node, sequence: 258, certificate_request: b"" };
        let mut expected = vec![0, 0, 0, 0, 0, 0, 0, 28];
        expected.extend(b"hyperfactory-recover/1 proof");
        expected.extend([0, 0, 0, 0, 0, 0, 0, 32]);
        expected.extend([1; 32]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 32]);
        expected.extend([2; 32]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 16]);
        expected.extend(node.to_bytes());
        expected.extend([0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 32]);
        expected.extend(sha256(b""));
        assert_eq!(claim.text(), expected);
    }
}
