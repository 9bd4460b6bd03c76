//! What stands in the certificates that authorities issue.

use hyperfactory_pki::authority::{BACKDATE, HUB_SERVER_LIFETIME, INTERMEDIATE_LIFETIME, NODE_LIFETIME, ROOT_LIFETIME};
use hyperfactory_pki::{
    Authority, AuthorityError, CertificateDer, DataKey, Owner, PrivateKey, RequestError, Role, SealError, ServerNames,
    node_identity, trust, verify_request,
};
use protocol::{NodeKind, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyPair, KeyUsagePurpose};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fleet::{DAY, Fleet, HOUR, NOW, dns, next_node_id, node_id, node_name, stolen_key, tenant, uri};

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).expect("a certificate").1
}

/// Every certificate of a fleet with its issuer's.
fn all(fleet: &Fleet) -> Vec<(CertificateDer<'static>, CertificateDer<'static>)> {
    let root = fleet.root_der();
    vec![
        (root.clone(), root.clone()),
        (fleet.hub_der(), root.clone()),
        (fleet.acme.certificate_der().clone(), root),
        (fleet.hub_server(NOW).1, fleet.hub_der()),
        (fleet.node(NOW).chain[0].clone(), fleet.acme.certificate_der().clone()),
        (fleet.acme_kafka.certificate_der().clone(), fleet.acme_kafka.certificate_der().clone()),
        (kafka_client(&fleet.acme_kafka), fleet.acme_kafka.certificate_der().clone()),
        (kafka_server(&fleet.acme_kafka), fleet.acme_kafka.certificate_der().clone()),
    ]
}

fn kafka_client(root: &Authority) -> CertificateDer<'static> {
    let key = PrivateKey::generate().expect("a key").public_key();
    root.issue_kafka_client(&key, node_id(1), NOW, DAY).expect("a certificate").into()
}

fn kafka_server(root: &Authority) -> CertificateDer<'static> {
    let key = PrivateKey::generate().expect("a key").public_key();
    let names = ServerNames::new(&["kafka.example".into()], &[[192, 0, 2, 7].into()]).expect("names");
    root.issue_kafka_server(&key, &names, NOW, DAY).expect("a certificate").into()
}

#[test]
fn two_certificates_for_one_key_have_two_random_positive_serials() {
    let fleet = Fleet::new();
    let key = PrivateKey::generate().expect("a key").public_key();
    let mut serials = std::collections::HashSet::new();
    for _ in 0..50 {
        let leaf = fleet.acme.issue_node(&key, node_id(1), NodeKind::Agent, NOW, DAY).expect("a certificate");
        let serial = parsed(&leaf).raw_serial().to_vec();
        assert_eq!(serial.len(), 16);
        assert!(serial[0] < 0x80, "positive");
        assert!(serials.insert(serial), "a serial came twice");
    }
}

#[test]
fn both_ends_of_the_validity_are_set_and_the_start_is_backdated() {
    let fleet = Fleet::new();
    let intermediates = [ROOT_LIFETIME, INTERMEDIATE_LIFETIME, INTERMEDIATE_LIFETIME];
    let lives = [&intermediates[..], &[HUB_SERVER_LIFETIME, NODE_LIFETIME, ROOT_LIFETIME, DAY, DAY]].concat();
    for ((certificate, _), life) in all(&fleet).iter().zip(lives) {
        let (from, until) = trust::validity(certificate).expect("a certificate");
        assert_eq!((from, until), (NOW.minus(BACKDATE), NOW.plus(life)));
    }
}

#[test]
fn a_child_lies_within_its_issuers_life() {
    let fleet = Fleet::new();
    let key = PrivateKey::generate().expect("a key").public_key();
    let late = NOW.plus(INTERMEDIATE_LIFETIME - HOUR);
    let leaf = fleet.acme.issue_node(&key, node_id(1), NodeKind::Agent, late, NODE_LIFETIME).expect("a certificate");
    let (_, until) = trust::validity(&leaf.into()).expect("a certificate");
    assert_eq!(until, fleet.acme.not_after());

    let root = Authority::create_root(NOW, DAY).expect("a root");
    let intermediate =
        root.issue_tenant_intermediate(&tenant("acme"), NOW.minus(BACKDATE / 2), INTERMEDIATE_LIFETIME).expect("early");
    assert_eq!((intermediate.not_before(), intermediate.not_after()), (root.not_before(), root.not_after()));
}

#[test]
fn an_authority_issues_nothing_outside_its_life() {
    let fleet = Fleet::new();
    let key = PrivateKey::generate().expect("a key").public_key();
    for at in [NOW.plus(INTERMEDIATE_LIFETIME + HOUR), NOW.minus(HOUR)] {
        let refused = fleet.acme.issue_node(&key, node_id(1), NodeKind::Agent, at, DAY).expect_err("refused");
        assert!(matches!(refused, AuthorityError::NotValid { now, .. } if now == at), "{refused}");
        assert!(refused.to_string().contains("check this machine's clock"), "{refused}");
    }
    let no_life = fleet.acme.issue_node(&key, node_id(1), NodeKind::Agent, fleet.acme.not_after(), DAY);
    assert!(no_life.is_ok(), "the last second counts");
    assert!(matches!(Authority::create_root(NOW, DAY * 366 * 9000), Err(AuthorityError::Lifetime)));
    assert!(matches!(Authority::create_root(Timestamp::from_millis(i64::MIN), DAY), Err(AuthorityError::Lifetime)));
    assert!(matches!(Authority::create_root(Timestamp::from_millis(i64::MAX), DAY), Err(AuthorityError::Lifetime)));
}

#[test]
fn each_authority_issues_only_what_it_is_for() {
    let fleet = Fleet::new();
    let key = PrivateKey::generate().expect("a key").public_key();
    let names = ServerNames::new(&["kafka.example".into()], &[]).expect("names");
    let refusals = [
        fleet.acme.issue_hub_intermediate(NOW, INTERMEDIATE_LIFETIME).err(),
        fleet.hub.issue_tenant_intermediate(&tenant("acme"), NOW, INTERMEDIATE_LIFETIME).err(),
        fleet.acme.issue_hub_server(&key, NOW).err(),
        fleet.root.issue_hub_server(&key, NOW).err(),
        fleet.root.issue_node(&key, node_id(1), NodeKind::Agent, NOW, DAY).err(),
        fleet.hub.issue_node(&key, node_id(1), NodeKind::Agent, NOW, DAY).err(),
        fleet.acme_kafka.issue_node(&key, node_id(1), NodeKind::Agent, NOW, DAY).err(),
        fleet.acme_kafka.issue_hub_server(&key, NOW).err(),
        fleet.acme_kafka.issue_tenant_intermediate(&tenant("acme"), NOW, DAY).err(),
        fleet.acme.issue_kafka_client(&key, node_id(1), NOW, DAY).err(),
        fleet.root.issue_kafka_client(&key, node_id(1), NOW, DAY).err(),
        fleet.acme.issue_kafka_server(&key, &names, NOW, DAY).err(),
        fleet.root.sign_intermediate(&Role::Root, &key, NOW, DAY).err(),
        fleet.root.sign_intermediate(&Role::Kafka(tenant("acme")), &key, NOW, DAY).err(),
    ];
    for refusal in refusals {
        assert!(matches!(refusal, Some(AuthorityError::NotAllowed { .. })), "{refusal:?}");
    }
    assert_eq!(*fleet.acme.role(), Role::Nodes(tenant("acme")));
    assert_eq!(*fleet.acme_kafka.role(), Role::Kafka(tenant("acme")));
}

#[test]
fn a_kafka_clients_subject_is_its_principal_and_nothing_else() {
    let fleet = Fleet::new();
    let der = kafka_client(&fleet.acme_kafka);
    let client = parsed(&der);
    let principal = format!("CN=bridge:{}", node_id(1));
    assert_eq!(client.subject().to_string(), principal);
    assert_eq!(principal, format!("CN={}", hyperfactory_pki::kafka_principal(node_id(1))));
    assert!(client.subject_alternative_name().expect("readable").is_none());
    let purposes = client.extended_key_usage().expect("readable").expect("there").value;
    assert!(purposes.client_auth && !purposes.server_auth && !purposes.any);
}

#[test]
fn a_brokers_certificate_carries_the_names_asked_for_and_serves_alone() {
    let fleet = Fleet::new();
    let der = kafka_server(&fleet.acme_kafka);
    let server = parsed(&der);
    let names = &server.subject_alternative_name().expect("readable").expect("there").value.general_names;
    assert_eq!(*names, [GeneralName::DNSName("kafka.example"), GeneralName::IPAddress(&[192, 0, 2, 7])]);
    let purposes = server.extended_key_usage().expect("readable").expect("there").value;
    assert!(purposes.server_auth && !purposes.client_auth && !purposes.any);
}

#[test]
fn key_usage_basic_and_name_constraints_are_critical() {
    let fleet = Fleet::new();
    for (certificate, _) in all(&fleet) {
        let certificate = parsed(&certificate);
        let mut seen = 0;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_) => seen += 1,
                ParsedExtension::NameConstraints(_) => {}
                _ => continue,
            }
            assert!(extension.critical, "{} in {}", extension.oid, certificate.subject());
        }
        assert_eq!(seen, 2, "{}", certificate.subject());
    }
}

#[test]
fn every_authority_key_identifier_is_the_issuers_subject_key_identifier() {
    let fleet = Fleet::new();
    for (certificate, issuer) in all(&fleet) {
        let (certificate, issuer) = (parsed(&certificate), parsed(&issuer));
        let issuer_id = issuer.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let authority_id = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
            _ => None,
        });
        assert!(issuer_id.is_some());
        assert_eq!(authority_id, issuer_id, "{}", certificate.subject());
    }
}

#[test]
fn each_certificate_has_one_purpose_and_intermediates_issue_leaves_only() {
    let fleet = Fleet::new();
    let purposes: Vec<_> = all(&fleet)
        .iter()
        .map(|(certificate, _)| {
            let certificate = parsed(certificate);
            let purposes = certificate.extended_key_usage().expect("readable").map(|usage| {
                let usage = usage.value;
                assert!(!usage.any && usage.other.is_empty() && !usage.code_signing && !usage.ocsp_signing);
                (usage.client_auth, usage.server_auth)
            });
            let constraints = certificate.basic_constraints().expect("readable").expect("present").value;
            (purposes, constraints.ca, constraints.path_len_constraint)
        })
        .collect();
    let (client, server) = (Some((true, false)), Some((false, true)));
    assert_eq!(
        purposes,
        [
            (None, true, None),
            (server, true, Some(0)),
            (client, true, Some(0)),
            (server, false, None),
            (client, false, None),
            (None, true, Some(0)),
            (client, false, None),
            (server, false, None),
        ]
    );
}

#[test]
fn a_tenants_intermediate_permits_its_own_subtree_and_no_address() {
    let fleet = Fleet::new();
    let certificate = parsed(fleet.acme.certificate_der());
    let constraints = certificate.name_constraints().expect("readable").expect("present").value;
    let permitted: Vec<_> = constraints.permitted_subtrees.iter().flatten().map(|tree| &tree.base).collect();
    assert_eq!(permitted, [&GeneralName::DNSName("acme.nodes.hyperfactory.internal")]);
    let excluded: Vec<_> = constraints.excluded_subtrees.iter().flatten().map(|tree| &tree.base).collect();
    assert_eq!(excluded, [&GeneralName::IPAddress(&[0; 8]), &GeneralName::IPAddress(&[0; 32])]);
}

#[test]
fn a_request_gives_its_public_key_and_nothing_else() {
    let fleet = Fleet::new();
    let pair = KeyPair::generate().expect("a key");
    let mut wish = CertificateParams::default();
    wish.distinguished_name.push(rcgen::DnType::CommonName, "root of all");
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wish.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    wish.subject_alt_names = vec![dns(&node_name("other")), dns("hub.hyperfactory.internal"), uri("spiffe://other/x")];
    wish.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![0x05, 0x00])];
    let request = wish.serialize_request(&pair).expect("a request");

    let key = verify_request(request.der()).expect("proof of possession");
    let leaf = fleet.acme.issue_node(&key, node_id(7), NodeKind::Bridge, NOW, DAY).expect("a certificate");
    let certificate = parsed(&leaf);
    assert!(!certificate.is_ca());
    let usage = certificate.key_usage().expect("readable").expect("present").value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let names = &certificate.subject_alternative_name().expect("readable").expect("present").value.general_names;
    let name = format!("{}.bridge.acme.nodes.hyperfactory.internal", node_id(7));
    assert_eq!(*names, [GeneralName::DNSName(&name)]);
    assert!(!certificate.subject().to_string().contains("root of all"));
    assert!(!certificate.extensions().iter().any(|extension| extension.oid.to_id_string() == "1.2.3.4"));
    assert_eq!(certificate.public_key().subject_public_key.data.as_ref(), pair.public_key_raw());
}

#[test]
fn requests_for_other_keys_or_without_proof_are_refused() {
    let key = PrivateKey::generate().expect("a key");
    let der = key.certificate_request().expect("a request");
    let requested = verify_request(&der).expect("our own request");
    assert_eq!(requested.spki_sha256(), key.spki_sha256());

    for kind in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let pair = KeyPair::generate_for(kind).expect("a key");
        let request = CertificateParams::default().serialize_request(&pair).expect("a request");
        let requested = verify_request(request.der()).expect("a kind that is issued for");
        let leaf = Fleet::new().acme.issue_node(&requested, node_id(1), NodeKind::Agent, NOW, DAY);
        assert!(leaf.is_ok(), "{kind:?}");
    }

    let mut unproven = der.clone();
    let last = unproven.len() - 1;
    unproven[last] ^= 1;
    assert_eq!(verify_request(&unproven), Err(RequestError::Signature));

    let other = PrivateKey::generate().expect("a key").certificate_request().expect("a request");
    // The other's public key with this one's signature: proof of possession of the wrong key.
    let (start, length) = (der.len() - 70, 65);
    let spki_at = other.windows(2).position(|pair| pair == [0x00, 0x04]).expect("a point") + 1;
    let mut swapped = der.clone();
    swapped[spki_at..spki_at + length].copy_from_slice(&other[spki_at..spki_at + length]);
    assert!(spki_at + length < start);
    assert_eq!(verify_request(&swapped), Err(RequestError::Signature));

    assert_eq!(verify_request(&[]), Err(RequestError::Malformed));
    assert_eq!(verify_request(&der[..der.len() - 1]), Err(RequestError::Malformed));
    assert_eq!(verify_request(&[der.as_slice(), b"x"].concat()), Err(RequestError::Malformed));
    assert_eq!(verify_request(&vec![0x30; 9000]), Err(RequestError::TooLong(9000)));
    assert_eq!(verify_request(RSA_REQUEST), Err(RequestError::KeyKind));
}

/// `openssl req -new -newkey rsa:1024 -nodes -subj /CN=x -outform DER`
const RSA_REQUEST: &[u8] = include_bytes!("rsa-request.der");

#[test]
fn an_authority_comes_back_from_storage_with_its_role() {
    let fleet = Fleet::new();
    for authority in [&fleet.root, &fleet.hub, &fleet.acme, &fleet.acme_kafka] {
        let key = DataKey::generate(authority.role().owner()).expect("a key");
        let sealed = authority.seal_key(&key).expect("sealed");
        let again = Authority::open(authority.certificate_der(), &sealed, &key).expect("opened");
        assert_eq!(again.role(), authority.role());
        assert_eq!(again.spki_sha256(), authority.spki_sha256());
        assert!(!format!("{again:?}").contains("key"), "{again:?}");
    }
}

#[test]
fn a_sealed_authority_opens_for_its_tenant_with_its_data_key_only() {
    let fleet = Fleet::new();
    let key_of = |slug| DataKey::generate(Owner::Tenant(tenant(slug))).expect("a key");
    let (key, stranger, others) = (key_of("acme"), key_of("acme"), key_of("other"));
    let sealed = fleet.acme.seal_key(&key).expect("sealed");
    let open = |certificate: &[u8], sealed: &[u8], key| Authority::open(certificate, sealed, key).expect_err("no");

    let error = open(fleet.acme.certificate_der(), &sealed, &stranger);
    assert!(matches!(error, AuthorityError::Seal(SealError::OtherKey)), "{error:?}");
    assert!(error.to_string().contains("restore the database"), "{error}");

    for (certificate, key) in [(fleet.other.certificate_der(), &key), (fleet.acme.certificate_der(), &others)] {
        let error = open(certificate, &sealed, key);
        assert!(matches!(error, AuthorityError::Owner { .. }), "{error:?}");
    }
    let error = fleet.acme.seal_key(&others).expect_err("another's key");
    assert!(error.to_string().contains("tenant/other"), "{error}");

    let error = open(fleet.acme.certificate_der(), &sealed[..sealed.len() - 1], &key);
    assert!(matches!(error, AuthorityError::Seal(SealError::Truncated)), "{error:?}");

    let leaf = &fleet.node(NOW).chain[0];
    assert!(matches!(open(leaf, &sealed, &key), AuthorityError::Certificate));
    assert!(matches!(open(b"", &sealed, &key), AuthorityError::Certificate));

    let kafka = open(fleet.acme_kafka.certificate_der(), &sealed, &key);
    assert!(matches!(kafka, AuthorityError::Seal(SealError::Refused { .. })), "{kafka:?}");

    let later = fleet
        .root
        .issue_tenant_intermediate(&tenant("acme"), NOW, INTERMEDIATE_LIFETIME)
        .expect("a second one for acme");
    assert!(matches!(open(later.certificate_der(), &sealed, &key), AuthorityError::KeyMismatch));
}

#[test]
fn a_sealed_key_does_not_open_as_another_of_its_owner() {
    let fleet = Fleet::new();
    let key = DataKey::generate(Owner::Fleet).expect("a key");
    let sealed = fleet.root.seal_key(&key).expect("sealed");
    let error = Authority::open(fleet.hub.certificate_der(), &sealed, &key).expect_err("the root's");
    assert!(matches!(error, AuthorityError::Seal(SealError::Refused { .. })), "{error:?}");
}

#[test]
fn a_node_reads_its_own_identity_from_what_it_was_given() {
    let fleet = Fleet::new();
    let key = PrivateKey::generate().expect("a key");
    let node = next_node_id();
    let leaf = fleet.acme.issue_node(&key.public_key(), node, NodeKind::Bridge, NOW, DAY).expect("a certificate");
    let identity = node_identity(&[leaf.into(), fleet.acme.certificate_der().clone()]).expect("an identity");
    assert_eq!((identity.node, identity.kind, &identity.tenant), (node, NodeKind::Bridge, &tenant("acme")));
    assert_eq!(identity.spki_sha256, key.spki_sha256());
    assert_eq!((identity.not_before, identity.not_after), (NOW.minus(BACKDATE), NOW.plus(DAY)));
}

#[test]
fn the_stolen_key_of_these_tests_is_really_the_authoritys() {
    let fleet = Fleet::new();
    let stolen = PrivateKey::from_pkcs8(stolen_key(&fleet.acme).serialized_der()).expect("a key");
    assert_eq!(stolen.spki_sha256(), fleet.acme.spki_sha256());
}
