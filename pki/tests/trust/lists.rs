//! Revocation lists, as those read them who fetch them: a tenant's brokers, mostly, which use OpenSSL.

use std::time::{Duration, SystemTime};

use hyperfactory_pki::authority::NODE_LIFETIME;
use hyperfactory_pki::{Authority, CertificateDer, PrivateKey, Revocation, RevocationReason, Serial};
use protocol::{NodeKind, Timestamp};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::fleet::{DAY, Fleet, HOUR, NOW, node_id};
use crate::judges::{Tools, run};

const LIFETIME: Duration = Duration::from_secs(7 * 86_400);

fn serial(der: &[u8]) -> Serial {
    let (_, certificate) = X509Certificate::from_der(der).expect("a certificate");
    data_encoding::HEXLOWER.encode(certificate.raw_serial()).parse().expect("a serial")
}

fn revoked(der: &[u8], at: Timestamp) -> Revocation {
    Revocation { serial: serial(der), at, reason: RevocationReason::KeyCompromise }
}

/// rcgen derives the identifier anew, by a method of the list's, unless it is told.
#[test]
fn a_lists_authority_key_identifier_is_the_issuers_subject_key_identifier() {
    let fleet = Fleet::new();
    for authority in [&fleet.root, &fleet.hub, &fleet.acme, &fleet.acme_kafka] {
        let der = authority.revocation_list([], NOW, LIFETIME).expect("a list");
        let (rest, list) = CertificateRevocationList::from_der(&der).expect("a list");
        let (_, issuer) = X509Certificate::from_der(authority.certificate_der()).expect("a certificate");
        let own = issuer.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
        let named = list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
            _ => None,
        });
        assert!(own.is_some() && rest.is_empty());
        assert_eq!(named, own, "{authority:?}");
        assert_eq!(list.issuer().as_raw(), issuer.subject().as_raw());
    }
}

/// One certificate for a key is revoked, another for the same key is not: their serial numbers tell them apart.
#[test]
fn openssl_refuses_what_is_listed_and_takes_no_list_that_is_late() {
    let now = SystemTime::now().into();
    let fleet = Fleet::at(now);
    let key = PrivateKey::generate().expect("a key").public_key();
    let nodes = || fleet.acme.issue_node(&key, node_id(1), NodeKind::Bridge, now, NODE_LIFETIME * 3).expect("issued");
    let clients = || fleet.acme_kafka.issue_kafka_client(&key, node_id(1), now, DAY * 90).expect("issued");
    judge_lists(&fleet.acme, [nodes(), nodes()], now, &["-partial_chain"]);
    judge_lists(&fleet.acme_kafka, [clients(), clients()], now, &[]);
}

fn judge_lists(authority: &Authority, leaves: [Vec<u8>; 2], now: Timestamp, more: &[&str]) {
    let tools = Tools::new();
    let [gone, good] = leaves.map(CertificateDer::from);
    let root = [authority.certificate_der().clone()];
    let judge = |leaf: &CertificateDer<'static>, list: &[u8], at: Timestamp| {
        let (der, pem) = (tools.folder().join("list.der"), tools.folder().join("list.pem"));
        std::fs::write(&der, list).expect("written");
        let mut read = std::process::Command::new("openssl");
        run(read.args(["crl", "-inform", "DER", "-in"]).arg(der).arg("-out").arg(&pem)).expect("a list");
        let list = pem.to_str().expect("UTF-8").to_owned();
        let at = at.seconds().to_string();
        let with = ["-crl_check", "-CRLfile", &list, "-purpose", "sslclient", "-attime", &at];
        tools.openssl(&root, std::slice::from_ref(leaf), &[&with[..], more].concat())
    };
    let refused = |verdict: Result<(), String>, because: &str| {
        let said = verdict.expect_err(because);
        assert!(said.contains(because), "{said}");
    };
    let empty = authority.revocation_list([], now, LIFETIME).expect("a list");
    let list = authority.revocation_list([revoked(&gone, now)], now, LIFETIME).expect("a list");
    assert_eq!(judge(&gone, &empty, now), Ok(()));
    refused(judge(&gone, &list, now), "certificate revoked");
    assert_eq!(judge(&good, &list, now), Ok(()));
    refused(judge(&good, &list, now.plus(LIFETIME + HOUR)), "CRL has expired");
    refused(judge(&good, &list, now.minus(Duration::from_secs(300))), "CRL is not yet valid");
    let stranger = Fleet::at(now).acme.revocation_list([], now, LIFETIME).expect("a list");
    refused(judge(&good, &stranger, now), "unable to get certificate CRL");
}
