//! Chains that webpki or a careless reader would take, and that are refused all the same.

use std::sync::Arc;
use std::time::Duration;

use hyperfactory_pki::{CertificateDer, TrustError, node_identity, trust};
use rustls::RootCertStore;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;

use crate::fleet::{Fleet, NOW, Node, dns, forge_under, node_name, tenant, uri};

/// What webpki alone says of a chain under the fleet root.
fn webpki_accepts(fleet: &Fleet, chain: &[CertificateDer<'static>]) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(fleet.root_der()).expect("an anchor");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a verifier");
    let now = UnixTime::since_unix_epoch(Duration::from_millis(NOW.millis().unsigned_abs()));
    verifier.verify_client_cert(&chain[0], &chain[1..], now).is_ok()
}

fn judged(node: &Node) -> Result<(), TrustError> {
    node_identity(&node.chain).map(drop)
}

#[test]
fn a_leaf_of_one_tenant_that_claims_another_is_refused_in_code() {
    let fleet = Fleet::new();
    let forged = fleet.forge(|params| params.subject_alt_names = vec![dns(&node_name("other"))]);
    assert_eq!(judged(&forged), Err(TrustError::OtherTenant { claimed: tenant("other"), issuer: tenant("acme") }));
    assert!(!webpki_accepts(&fleet, &forged.chain), "webpki refuses it too, by the name constraint");
}

#[test]
fn the_other_tenants_intermediate_in_the_chain_does_not_help() {
    let fleet = Fleet::new();
    let mut forged = fleet.forge(|params| params.subject_alt_names = vec![dns(&node_name("other"))]);
    forged.chain[1] = fleet.other.certificate_der().clone();
    assert_eq!(judged(&forged), Err(TrustError::NotIssuer));
    forged.chain.push(fleet.acme.certificate_der().clone());
    assert_eq!(judged(&forged), Err(TrustError::ChainLength(3)));
}

#[test]
fn a_leaf_without_a_dns_name_passes_webpki_and_is_refused() {
    let fleet = Fleet::new();
    let mut common_name = rcgen::DistinguishedName::new();
    common_name.push(rcgen::DnType::CommonName, node_name("other"));
    let forged = fleet.forge(|params| {
        params.subject_alt_names.clear();
        params.distinguished_name = common_name;
    });
    assert!(webpki_accepts(&fleet, &forged.chain), "the trap this test is for");
    assert_eq!(judged(&forged), Err(TrustError::Names));
}

#[test]
fn a_leaf_with_a_uri_passes_webpki_and_is_refused() {
    let fleet = Fleet::new();
    let only_uri = fleet.forge(|params| params.subject_alt_names = vec![uri("spiffe://other/node")]);
    assert!(webpki_accepts(&fleet, &only_uri.chain), "the trap this test is for");
    assert_eq!(judged(&only_uri), Err(TrustError::Names));

    let both = fleet.forge(|params| params.subject_alt_names.push(uri("spiffe://other/node")));
    assert!(webpki_accepts(&fleet, &both.chain));
    assert_eq!(judged(&both), Err(TrustError::Names));
}

#[test]
fn a_leaf_has_exactly_one_name_of_exactly_one_form() {
    let fleet = Fleet::new();
    let own = node_name("acme");
    let names = [
        vec![dns(&own), dns(&own)],
        vec![dns(&own), dns(&node_name("other"))],
        vec![dns("acme.nodes.hyperfactory.internal")],
        vec![dns(&own.to_uppercase())],
        vec![dns("*.agent.acme.nodes.hyperfactory.internal")],
        vec![dns(&format!("x.{own}"))],
        vec![dns(&format!("{own}."))],
        vec![dns(&own.replace("agent", "hub"))],
    ];
    for names in names {
        let shown = format!("{names:?}");
        let forged = fleet.forge(|params| params.subject_alt_names = names);
        assert_eq!(judged(&forged), Err(TrustError::Names), "{shown}");
    }
}

#[test]
fn a_leaf_that_is_an_authority_or_has_a_strange_serial_is_refused() {
    let fleet = Fleet::new();
    let authority = fleet.forge(|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert_eq!(judged(&authority), Err(TrustError::NotIssuer));
    let serial = fleet.forge(|params| params.serial_number = Some(vec![7].into()));
    assert_eq!(judged(&serial), Err(TrustError::Serial));
}

#[test]
fn a_certificate_that_can_be_read_two_ways_is_refused() {
    let fleet = Fleet::new();
    let names = [&[0x30, 77, 0x82, 75], node_name("acme").as_bytes()].concat();
    let twice = fleet.forge(|params| {
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], names)];
    });
    assert_eq!(judged(&twice), Err(TrustError::Malformed));

    let mut longer = fleet.node(NOW);
    longer.chain[0] = [longer.chain[0].as_ref(), b"x"].concat().into();
    assert_eq!(judged(&longer), Err(TrustError::Malformed));
}

#[test]
fn a_leaf_of_the_root_or_of_the_hubs_intermediate_is_no_node() {
    let fleet = Fleet::new();
    for authority in [&fleet.root, &fleet.hub] {
        let forged = forge_under(authority, |_| {});
        assert_eq!(judged(&forged), Err(TrustError::NotTenantIssuer));
    }
}

#[test]
fn a_leaf_cannot_stand_in_for_an_intermediate() {
    let fleet = Fleet::new();
    let node = fleet.node(NOW);
    assert_eq!(node_identity(&[node.chain[0].clone(), node.chain[0].clone()]), Err(TrustError::NotIssuer));
    assert_eq!(node_identity(&node.chain[..1]), Err(TrustError::ChainLength(1)));
    assert_eq!(node_identity(&[]), Err(TrustError::ChainLength(0)));
}

#[test]
fn reencoding_a_signature_changes_the_fingerprint_and_not_the_identity() {
    let fleet = Fleet::new();
    let node = fleet.node(NOW);
    let twin = Node { chain: vec![malleated(&node.chain[0]), node.chain[1].clone()], key: node.key };
    assert_ne!(twin.chain[0], node.chain[0], "another fingerprint");
    assert!(webpki_accepts(&fleet, &twin.chain), "the trap this test is for");
    assert_eq!(node_identity(&twin.chain), node_identity(&node.chain), "the denylist sees the same certificate");
}

#[test]
fn a_pin_is_the_roots_key_and_the_root_signs_itself() {
    let fleet = Fleet::new();
    let root = fleet.root_der();
    let pin = fleet.root.spki_sha256();
    assert_eq!(trust::pin(&root), Ok(pin));
    assert_eq!(trust::check_root(&root, &pin), Ok(()));
    assert_eq!(trust::check_root(&Fleet::new().root_der(), &pin), Err(TrustError::WrongPin));
    assert_eq!(trust::check_root(&CertificateDer::from(vec![0x30, 0]), &pin), Err(TrustError::Malformed));

    let acme_pin = fleet.acme.spki_sha256();
    assert_eq!(trust::check_root(fleet.acme.certificate_der(), &acme_pin), Err(TrustError::NotRoot));
    let mut altered = root.to_vec();
    let year = altered.windows(4).position(|bytes| bytes == b"\x17\x0d26").expect("a date") + 3;
    altered[year] = b'5';
    assert_eq!(trust::check_root(&altered.into(), &pin), Err(TrustError::NotRoot), "the signature no longer matches");
}

/// The same certificate with `s` of its ECDSA signature replaced by `n - s`, which verifies as well.
fn malleated(certificate: &[u8]) -> CertificateDer<'static> {
    const N: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
        0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).expect("a certificate");
    let signature = parsed.signature_value.data.to_vec();
    let r_end = 4 + usize::from(signature[3]);
    let s = &signature[r_end + 2..];
    let mut padded = [0; 32];
    let s = s.strip_prefix(&[0]).unwrap_or(s);
    padded[32 - s.len()..].copy_from_slice(s);
    let (mut borrow, mut negated) = (0i32, [0; 32]);
    for index in (0..32).rev() {
        let difference = i32::from(N[index]) - i32::from(padded[index]) - borrow;
        borrow = i32::from(difference < 0);
        negated[index] = (difference & 0xff) as u8;
    }
    let integer = |bytes: &[u8]| {
        let first = bytes.iter().position(|byte| *byte != 0).expect("not zero");
        let bytes = &bytes[first..];
        let padding: &[u8] = if bytes[0] & 0x80 == 0 { &[] } else { &[0] };
        [&[0x02, (bytes.len() + padding.len()) as u8], padding, bytes].concat()
    };
    let body = [&signature[2..r_end], &integer(&negated)].concat();
    let bits = [&[0x00, 0x30, body.len() as u8], body.as_slice()].concat();
    let tail = [&[0x03, bits.len() as u8], bits.as_slice()].concat();
    let kept =
        [parsed.tbs_certificate.as_ref(), &certificate[certificate.len() - signature.len() - 3 - 12..][..12]].concat();
    let content = [kept, tail].concat();
    let length = u16::try_from(content.len()).expect("a short certificate").to_be_bytes();
    [&[0x30, 0x82], length.as_slice(), &content].concat().into()
}
