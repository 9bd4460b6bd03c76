//! What can be wrong with a chain, one thing at a time: each of these changes a good chain in one place.

mod encoding;
mod extensions;
mod fields;
mod names;
mod paths;

use std::sync::Arc;

use hyperfactory_pki::{Authority, CertificateDer, HUB_SERVER_NAME};
use protocol::Timestamp;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

use crate::draft::{Certificate, Draft, Key};
use crate::fleet::{Fleet, node_name, stolen_key};
use crate::judges::{CLIENT, Door, SERVER};

/// The place in a chain that a mutation changes. Two of different parts go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Path,
    /// The leaf's names, and all constraints to them.
    Names,
    PathLength,
    LeafPurpose,
    IssuerPurpose,
    LeafUsage,
    IssuerUsage,
    LeafBasic,
    IssuerBasic,
    Root,
    LeafValidity,
    IssuerValidity,
    LeafExtensions,
    IssuerExtensions,
    LeafSerial,
    IssuerSerial,
    Version,
    LeafSignature,
    IssuerSignature,
    LeafKey,
    IssuerKey,
    Encoding,
}

pub(crate) struct Mutation {
    pub(crate) name: String,
    pub(crate) part: Part,
    /// The doors that open all the same.
    pub(crate) opens: &'static [Door],
    /// Whether it goes together with one of another part: what replaces or drops a part of the chain does not.
    pub(crate) combines: bool,
    apply: Box<dyn Fn(&Site, &mut Draft)>,
}

impl Mutation {
    pub(crate) fn apply(&self, site: &Site, draft: &mut Draft) {
        (self.apply)(site, draft);
    }
}

/// All of them.
pub(crate) fn catalogue() -> Vec<Mutation> {
    let mut list = Catalogue(Vec::new());
    paths::add(&mut list);
    names::add(&mut list);
    extensions::add(&mut list);
    fields::add(&mut list);
    encoding::add(&mut list);
    list.0
}

pub(crate) struct Catalogue(Vec<Mutation>);

impl Catalogue {
    /// One that leaves the chain good.
    fn good(&mut self, part: Part, name: impl Into<String>, apply: impl Fn(&Site, &mut Draft) + 'static) -> &mut Self {
        self.add(&[Door::Hub, Door::Node], part, name.into(), apply)
    }

    /// One that nothing and nobody may be let in with.
    fn bad(&mut self, part: Part, name: impl Into<String>, apply: impl Fn(&Site, &mut Draft) + 'static) -> &mut Self {
        self.add(&[], part, name.into(), apply)
    }

    /// One that the standard allows: a node still takes the hub for the hub, but the hub gives its nodes no such thing.
    fn strange(
        &mut self,
        part: Part,
        name: impl Into<String>,
        apply: impl Fn(&Site, &mut Draft) + 'static,
    ) -> &mut Self {
        self.add(&[Door::Node], part, name.into(), apply)
    }

    fn add(
        &mut self,
        opens: &'static [Door],
        part: Part,
        name: String,
        apply: impl Fn(&Site, &mut Draft) + 'static,
    ) -> &mut Self {
        self.0.push(Mutation { name, part, opens, combines: true, apply: Box::new(apply) });
        self
    }

    /// The last one goes together with no other.
    fn alone(&mut self) {
        self.0.last_mut().expect("one").combines = false;
    }
}

/// Where chains are drafted for: a door, the fleet that stands behind it, and keys and certificates to change them with.
pub(crate) struct Site {
    pub(crate) now: Timestamp,
    /// The name in the good leaf, one that is not its issuer's to give, and the issuer's subtree.
    pub(crate) own: String,
    pub(crate) others: String,
    pub(crate) subtree: String,
    /// The purpose here, and the one at the other door.
    pub(crate) purpose: &'static str,
    pub(crate) other_purpose: &'static str,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) next_root: CertificateDer<'static>,
    /// The root introduced by the next one.
    pub(crate) link: CertificateDer<'static>,
    /// An intermediate of another tenant.
    pub(crate) other_issuer: CertificateDer<'static>,
    pub(crate) other_issuer_key: Arc<Key>,
    pub(crate) keys: Keys,
    good: Vec<Certificate>,
}

pub(crate) struct Keys {
    pub(crate) stranger: Arc<Key>,
    pub(crate) p384: Arc<Key>,
    pub(crate) ed25519: Arc<Key>,
    pub(crate) p521: Arc<Key>,
    pub(crate) rsa_2048: Arc<Key>,
    pub(crate) rsa_1024: Arc<Key>,
}

impl Site {
    pub(crate) fn new(door: Door, fleet: &Fleet, now: Timestamp, folder: &std::path::Path) -> Self {
        let next = Authority::create_root(now, std::time::Duration::from_secs(86_400 * 3650)).expect("a root");
        let (issuer, key, leaf) = match door {
            Door::Hub => {
                let mut node = fleet.node(now);
                (&fleet.acme, node.key, node.chain.remove(0))
            }
            Door::Node => {
                let (key, leaf) = fleet.hub_server(now);
                (&fleet.hub, key, leaf)
            }
        };
        let key_of = |authority| Key::copy(stolen_key(authority).serialized_der());
        Self {
            now,
            own: if door == Door::Hub { node_name("acme") } else { HUB_SERVER_NAME.to_owned() },
            others: if door == Door::Hub { node_name("other") } else { "hub.example.internal".to_owned() },
            subtree: if door == Door::Hub { "acme.nodes.hyperfactory.internal" } else { HUB_SERVER_NAME }.to_owned(),
            purpose: if door == Door::Hub { CLIENT } else { SERVER },
            other_purpose: if door == Door::Hub { SERVER } else { CLIENT },
            root: fleet.root_der(),
            next_root: next.certificate_der().clone(),
            link: next.link(&fleet.root_der(), now).expect("a link"),
            other_issuer: fleet.other.certificate_der().clone(),
            other_issuer_key: key_of(&fleet.other),
            keys: Keys {
                stranger: Key::generate(&PKCS_ECDSA_P256_SHA256),
                p384: Key::generate(&PKCS_ECDSA_P384_SHA384),
                ed25519: Key::generate(&PKCS_ED25519),
                p521: Key::by_openssl(folder, "p521.pem", "EC", "ec_paramgen_curve:P-521"),
                rsa_2048: Key::by_openssl(folder, "rsa-2048.pem", "RSA", "rsa_keygen_bits:2048"),
                rsa_1024: Key::by_openssl(folder, "rsa-1024.pem", "RSA", "rsa_keygen_bits:1024"),
            },
            good: vec![
                Certificate::of(&fleet.root_der(), key_of(&fleet.root)),
                Certificate::of(issuer.certificate_der(), key_of(issuer)),
                Certificate::of(&leaf, Key::copy(&key.to_pkcs8())),
            ],
        }
    }

    /// The good chain, as the hub issues it.
    pub(crate) fn draft(&self) -> Draft {
        Draft { path: self.good.clone(), afterwards: Vec::new() }
    }
}
