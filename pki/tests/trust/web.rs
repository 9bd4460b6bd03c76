//! HTTPS of the hub: its own authority, certificates from files, and handshakes with clients that trust a file.

use std::sync::Arc;

use hyperfactory_pki::authority::WEB_SERVER_LIFETIME;
use hyperfactory_pki::tls::FixedClock;
use hyperfactory_pki::web::{self, Shown};
use hyperfactory_pki::{Authority, AuthorityError, CertificateDer, PrivateKey, Role};
use hyperfactory_pki::{DataKey, WebCertificate, WebCertificateError, WebName};
use protocol::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, Error, HandshakeKind, ProtocolVersion, RootCertStore, SupportedProtocolVersion};

use crate::fleet::{DAY, Fleet, HOUR, NOW, forge_under};
use crate::handshake::{Failed, handshake_with};

fn names(names: &[&str]) -> Vec<WebName> {
    names.iter().map(|name| name.parse().expect("a name")).collect()
}

fn issue(authority: &Authority, for_names: &[&str], now: Timestamp) -> WebCertificate {
    let key = PrivateKey::generate().expect("a key");
    let leaf = authority.issue_web_server(&key.public_key(), &names(for_names), now).expect("a certificate");
    WebCertificate::issued(vec![leaf.into(), authority.certificate_der().clone()], &key).expect("a pair")
}

fn client(root: &CertificateDer<'_>, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone().into_owned()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_details(provider, Arc::new(FixedClock(NOW)));
    let mut config =
        builder.with_protocol_versions(versions).expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

#[test]
fn clients_that_trust_the_hubs_own_authority_get_http_1_over_both_versions_and_never_resume() {
    let own = names(&["hub.example", "192.0.2.7"]);
    let authority = Authority::create_web(&own, NOW).expect("an authority");
    let certificate = issue(&authority, &["hub.example", "192.0.2.7"], NOW);
    assert_eq!(certificate.names(), ["hub.example", "192.0.2.7"]);
    assert_eq!(certificate.not_after(), NOW.plus(WEB_SERVER_LIFETIME));
    let server = web::server_config(Shown::new(certificate)).expect("a configuration");
    for (version, spoken) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let client = client(authority.certificate_der(), &[version]);
        for name in ["hub.example", "192.0.2.7", "hub.example"] {
            let done = handshake_with(name, &client, &server).expect("a connection");
            assert_eq!(done.client.protocol_version(), Some(spoken));
            assert_eq!(done.server.alpn_protocol(), Some(&b"http/1.1"[..]));
            assert_eq!(done.client.handshake_kind(), Some(HandshakeKind::Full));
        }
        let other = handshake_with("other.example", &client, &server).map(drop);
        assert!(matches!(other, Err(Failed::Node(Error::InvalidCertificate(_)))), "{other:?}");
    }
}

#[test]
fn another_certificate_is_shown_from_the_next_handshake_on() {
    let authority = Authority::create_web(&names(&["hub.example"]), NOW).expect("an authority");
    let shown = Shown::new(issue(&authority, &["hub.example"], NOW));
    let server = web::server_config(shown.clone()).expect("a configuration");
    let client = client(authority.certificate_der(), &[&TLS13]);
    let leaf = || {
        let done = handshake_with("hub.example", &client, &server).expect("a connection");
        done.client.peer_certificates().expect("a chain")[0].clone()
    };
    let before = leaf();
    assert_eq!(leaf(), before);
    shown.replace(issue(&authority, &["hub.example"], NOW));
    assert_ne!(leaf(), before);
}

#[test]
fn the_authority_speaks_for_its_names_alone() {
    let authority = Authority::create_web(&names(&["hub.example", "::1"]), NOW).expect("an authority");
    assert_eq!(authority.web_names(), names(&["hub.example", "::1"]));
    let key = PrivateKey::generate().expect("a key").public_key();
    for refused in [&["bank.example"][..], &["hub.example", "::2"], &[]] {
        let issued = authority.issue_web_server(&key, &names(refused), NOW);
        assert!(matches!(issued, Err(AuthorityError::NotAllowed { .. })), "{refused:?}");
    }
    let late = authority.issue_web_server(&key, &names(&["::1"]), NOW.plus(DAY * 3651));
    assert!(matches!(late, Err(AuthorityError::NotValid { .. })));
    // One with its key alone gets no further: clients read the constraints too.
    let forged = forge_under(&authority, |params| {
        params.subject_alt_names = vec![crate::fleet::dns("bank.example")];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    let forged = WebCertificate::issued(forged.chain, &forged.key).expect("a pair");
    let server = web::server_config(Shown::new(forged)).expect("a configuration");
    let trusting = client(authority.certificate_der(), &[&TLS13]);
    let met = handshake_with("bank.example", &trusting, &server).map(drop);
    assert!(matches!(met, Err(Failed::Node(Error::InvalidCertificate(_)))), "{met:?}");
}

#[test]
fn the_authority_has_no_part_in_the_fleet() {
    let authority = Authority::create_web(&names(&["hub.hyperfactory.internal"]), NOW).expect("an authority");
    assert!(authority.issue_hub_intermediate(NOW, DAY).is_err());
    assert!(authority.issue_hub_server(&PrivateKey::generate().expect("a key").public_key(), NOW).is_err());
    let fleet = Fleet::new();
    let key = PrivateKey::generate().expect("a key").public_key();
    assert!(fleet.root.issue_web_server(&key, &names(&["hub.example"]), NOW).is_err());
    assert!(fleet.root.web_names().is_empty() && fleet.acme.web_names().is_empty());
}

#[test]
fn the_authority_survives_storage_as_what_it_is() {
    let key = DataKey::generate(Role::Web.owner()).expect("a key");
    let authority = Authority::create_web(&names(&["hub.example"]), NOW).expect("an authority");
    let sealed = authority.seal_key(&key).expect("sealed");
    let opened = Authority::open(authority.certificate_der(), &sealed, &key).expect("opened");
    assert_eq!(*opened.role(), Role::Web);
    assert_eq!(opened.web_names(), names(&["hub.example"]));
    // Sealed for HTTPS, its key opens as no root's.
    let root = Authority::create_root(NOW, DAY).expect("a root");
    assert!(Authority::open(root.certificate_der(), &sealed, &key).is_err());
}

/// A certificate as an ACME client leaves it: PEM of one that somebody else signed.
fn files(alter: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["*.plant.example".to_owned()]).expect("names");
    params.not_before = rcgen::date_time_ymd(2026, 9, 1);
    params.not_after = rcgen::date_time_ymd(2026, 12, 1);
    alter(&mut params);
    (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
}

fn read(certificate: &str, key: &str) -> Result<WebCertificate, WebCertificateError> {
    WebCertificate::from_pem(certificate.as_bytes(), key.as_bytes())
}

#[test]
fn a_pair_of_files_is_read_with_what_it_is_for_and_how_long() {
    let (certificate, key) = files(|_| {});
    let pair = read(&certificate, &key).expect("a pair");
    assert_eq!(pair.names(), ["*.plant.example"]);
    let [wanted, deep, other]: [WebName; 3] =
        ["hub.plant.example", "a.hub.plant.example", "hub.example"].map(|name| name.parse().expect("a name"));
    assert!(pair.is_for(&wanted) && !pair.is_for(&deep) && !pair.is_for(&other));
    assert_eq!(pair.judge(NOW), Ok(()));
    let end = pair.not_after();
    assert_eq!(pair.judge(end), Ok(()));
    assert!(pair.ends_soon(end.minus(DAY * 15)) && !pair.ends_soon(end.minus(DAY * 16)), "of 91 days");
    assert_eq!(pair.judge(end.plus(HOUR)), Err(WebCertificateError::Expired { not_after: end }));
    assert!(matches!(pair.judge(NOW.minus(DAY * 300)), Err(WebCertificateError::NotYet { .. })));
    assert!(!format!("{pair:?}").contains("PRIVATE"));
}

#[test]
fn a_leaf_without_its_authority_is_noticed() {
    let authority = Authority::create_web(&names(&["hub.example"]), NOW).expect("an authority");
    let key = PrivateKey::generate().expect("a key");
    let leaf = authority.issue_web_server(&key.public_key(), &names(&["hub.example"]), NOW).expect("a certificate");
    let leaf = CertificateDer::from(leaf);
    assert!(WebCertificate::issued(vec![leaf.clone()], &key).expect("a pair").is_alone());
    assert!(!WebCertificate::issued(vec![leaf, authority.certificate_der().clone()], &key).expect("a pair").is_alone());
    let (certificate, key) = files(|_| {});
    assert!(!read(&certificate, &key).expect("a pair").is_alone(), "it signed itself");
}

#[test]
fn a_pair_that_does_not_fit_or_can_not_be_read_is_refused_with_the_reason() {
    let (certificate, key) = files(|_| {});
    let (other, other_key) = files(|_| {});
    let refused = |certificate: &str, key: &str| read(certificate, key).map(drop);
    assert_eq!(refused(&certificate, &other_key), Err(WebCertificateError::OtherKey));
    assert_eq!(refused(&format!("{other}{certificate}"), &key), Err(WebCertificateError::OtherKey));
    assert_eq!(refused("", &key), Err(WebCertificateError::NoCertificate));
    assert_eq!(refused(&key, &certificate), Err(WebCertificateError::NoCertificate));
    assert_eq!(refused(&certificate, ""), Err(WebCertificateError::NoKey));
    assert_eq!(refused(&certificate, &certificate), Err(WebCertificateError::NoKey));
    let locked =
        key.replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE").replace("END PRIVATE", "END ENCRYPTED PRIVATE");
    assert_eq!(refused(&certificate, &locked), Err(WebCertificateError::Encrypted));
    let cut = |text: &str| text[..text.len() / 2].to_owned();
    assert_eq!(refused(&cut(&certificate), &key), Err(WebCertificateError::Certificate));
    assert_eq!(refused(&certificate, &cut(&key)), Err(WebCertificateError::Key));
    let garbled = certificate.replacen("MII", "AAA", 1);
    assert_eq!(refused(&garbled, &key), Err(WebCertificateError::Certificate));
}
