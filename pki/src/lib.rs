//! Issues and judges the certificates of a Hyperfactory fleet.
//!
//! One fleet root signs the hub's intermediate and one intermediate per tenant; a tenant's intermediate signs its
//! nodes. A tenant's Kafka plane has a root of its own. Time is a parameter everywhere. Keys, serials and nonces come from the operating system.

mod anchors;
pub mod authority;
mod certificate;
pub mod distrust;
pub mod inspect;
pub mod kafka;
pub mod key;
pub mod name;
pub mod offline;
pub mod operator;
pub mod passphrase;
pub mod pem;
mod profile;
pub mod recovery;
pub mod renewal;
pub mod request;
pub mod revocation;
pub mod roots;
pub mod seal;
pub mod serial;
pub mod summary;
pub mod tls;

pub mod token;
pub mod trust;
mod verifier;
pub mod web;

pub use authority::{Authority, AuthorityError, Role};
pub use distrust::Distrust;
pub use kafka::{ServerNameError, ServerNames, kafka_principal};
pub use key::{KeyError, PrivateKey};
pub use name::{HUB_SERVER_NAME, NodeName};
pub use offline::{AnswerError, LockedKey, UnlockError};
pub use operator::{OperatorKey, OperatorKeyError, OperatorPublicKey};
pub use passphrase::{Passphrase, PassphraseError, Stretch};
pub use request::{RequestError, RequestedKey, verify_request};
pub use revocation::{Revocation, RevocationReason};
pub use rustls::pki_types::CertificateDer;
pub use seal::{DataKey, MasterKey, Owner, SealError};
pub use serial::Serial;
pub use summary::Summary;
pub use token::{JoinToken, TokenError};
pub use trust::{NodeIdentity, TrustError, node_identity};
pub use web::{WebCertificate, WebCertificateError, WebName};
