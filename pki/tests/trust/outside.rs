//! Judges from outside: OpenSSL and GnuTLS read our chains as we do.

use std::process::Command;
use std::slice::from_ref;
use std::time::SystemTime;

use hyperfactory_pki::{Authority, CertificateDer, PrivateKey};
use protocol::Timestamp;

use crate::fleet::{DAY, Fleet, Node, dns, forge_under, node_name};
use crate::judges::{CLIENT, SERVER, Tools, Verdict, run};

/// A fleet of today, for judges that take no other time, with its certificates as files.
struct Files {
    fleet: Fleet,
    now: Timestamp,
    tools: Tools,
}

impl Files {
    fn new() -> Self {
        let now = SystemTime::now().into();
        Self { fleet: Fleet::at(now), now, tools: Tools::new() }
    }

    /// A leaf of acme's key, valid today.
    fn forge(&self, alter: impl FnOnce(&mut rcgen::CertificateParams)) -> Node {
        forge_under(&self.fleet.acme, |params| {
            let second = |time: Timestamp| {
                rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(time.seconds().unsigned_abs())
            };
            params.not_before = second(self.now);
            params.not_after = second(self.now.plus(DAY));
            alter(params);
        })
    }

    fn openssl(&self, chain: &[CertificateDer<'_>], root: &CertificateDer<'_>, more: &[&str]) -> Verdict {
        self.tools.openssl(from_ref(root), chain, more)
    }

    fn certtool(&self, chain: &[CertificateDer<'_>], root: &CertificateDer<'_>, purpose: &str) -> Verdict {
        self.tools.certtool(from_ref(root), chain, &["--verify-purpose", purpose])
    }
}

fn openssl_accepts(files: &Files, chain: &[CertificateDer<'_>], more: &[&str]) {
    assert_eq!(files.openssl(chain, &files.fleet.root_der(), more), Ok(()));
}

fn openssl_refuses(files: &Files, chain: &[CertificateDer<'_>], more: &[&str], because: &str) {
    let said = files.openssl(chain, &files.fleet.root_der(), more).expect_err(because);
    assert!(said.contains(because), "{said}");
}

#[test]
fn both_judges_accept_a_nodes_chain_and_the_hubs() {
    let files = Files::new();
    let root = files.fleet.root_der();
    let node = files.fleet.node(files.now).chain;
    let hub = [files.fleet.hub_server(files.now).1, files.fleet.hub_der()];
    openssl_accepts(&files, &node, &["-purpose", "sslclient"]);
    openssl_accepts(&files, &hub, &["-purpose", "sslserver", "-verify_hostname", "hub.hyperfactory.internal"]);
    for (chain, purpose) in [(node.as_slice(), CLIENT), (hub.as_slice(), SERVER)] {
        assert_eq!(files.certtool(chain, &root, purpose), Ok(()));
    }
}

#[test]
fn both_judges_accept_a_hub_of_the_next_root_by_the_link_the_old_one_signed() {
    let files = Files::new();
    let next = Fleet::at(files.now);
    let link = files.fleet.root.link(&next.root_der(), files.now).expect("a link");
    let chain = [next.hub_server(files.now).1, next.hub_der(), link];
    openssl_accepts(&files, &chain, &["-purpose", "sslserver"]);
    openssl_refuses(&files, &chain[..2], &[], "unable to get local issuer");
    assert_eq!(files.certtool(&chain, &files.fleet.root_der(), SERVER), Ok(()));
}

#[test]
fn both_judges_refuse_another_fleets_chain() {
    let files = Files::new();
    let foreign = Fleet::at(files.now);
    let chain = foreign.node(files.now).chain;
    openssl_refuses(&files, &chain, &[], "unable to get local issuer");
    assert!(files.certtool(&chain, &files.fleet.root_der(), CLIENT).is_err());
}

#[test]
fn both_judges_refuse_another_tenants_name() {
    let files = Files::new();
    let forged = files.forge(|params| params.subject_alt_names = vec![dns(&node_name("other"))]);
    openssl_refuses(&files, &forged.chain, &[], "permitted subtree violation");
    let honest = files.forge(|_| {});
    openssl_accepts(&files, &honest.chain, &["-purpose", "sslclient"]);
    let root = files.fleet.root_der();
    assert!(files.certtool(&forged.chain, &root, CLIENT).is_err());
    assert_eq!(files.certtool(&honest.chain, &root, CLIENT), Ok(()));
}

#[test]
fn both_judges_refuse_an_address_where_a_name_belongs() {
    let files = Files::new();
    let forged = files.forge(|params| {
        params.subject_alt_names.push(rcgen::SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
    });
    openssl_refuses(&files, &forged.chain, &[], "excluded subtree violation");
    assert!(files.certtool(&forged.chain, &files.fleet.root_der(), CLIENT).is_err());
}

#[test]
fn both_judges_refuse_a_certificate_for_the_other_purpose() {
    let files = Files::new();
    let node = files.fleet.node(files.now).chain;
    openssl_refuses(&files, &node, &["-purpose", "sslserver"], "unsuitable certificate purpose");
    assert!(files.certtool(&node, &files.fleet.root_der(), SERVER).is_err());
}

#[test]
fn openssl_refuses_a_chain_outside_its_time() {
    let files = Files::new();
    let node = files.fleet.node(files.now).chain;
    let at = |time: Timestamp| time.seconds().to_string();
    openssl_refuses(&files, &node, &["-attime", &at(files.now.plus(DAY * 30))], "certificate has expired");
    openssl_refuses(&files, &node, &["-attime", &at(files.now.minus(DAY))], "not yet valid");
}

#[test]
fn both_judges_refuse_a_node_that_issues() {
    let files = Files::new();
    let node = files.fleet.node(files.now);
    let issuer = rcgen::Issuer::from_ca_cert_der(&node.chain[0], &node.key).expect("an issuer");
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![dns(&node_name("acme"))];
    let leaf = params.signed_by(&hyperfactory_pki::PrivateKey::generate().expect("a key"), &issuer).expect("signed");
    let chain = [&[leaf.der().clone()], node.chain.as_slice()].concat();
    assert!(files.openssl(&chain, &files.fleet.root_der(), &[]).is_err());
    assert!(files.certtool(&chain, &files.fleet.root_der(), CLIENT).is_err());
}

#[test]
fn both_judges_trust_the_authority_for_https_with_the_hubs_names_and_no_others() {
    let files = Files::new();
    let names = ["hub.example", "localhost", "192.0.2.7", "::1"].map(|name| name.parse().expect("a name"));
    let authority = Authority::create_web(&names, files.now).expect("an authority");
    let root = authority.certificate_der().clone();
    let key = PrivateKey::generate().expect("a key");
    let leaf = authority.issue_web_server(&key.public_key(), &names, files.now).expect("a certificate");
    let chain = [leaf.into(), root.clone()];
    for wanted in [["-verify_hostname", "hub.example"], ["-verify_ip", "192.0.2.7"], ["-verify_ip", "::1"]] {
        assert_eq!(files.openssl(&chain, &root, &[&["-purpose", "sslserver"], &wanted[..]].concat()), Ok(()));
    }
    assert_eq!(files.certtool(&chain[..1], &root, SERVER), Ok(()));

    for name in [dns("bank.example"), rcgen::SanType::IpAddress(std::net::Ipv4Addr::new(192, 0, 2, 8).into())] {
        let forged = forge_under(&authority, |params| {
            params.not_after = rcgen::date_time_ymd(2100, 1, 1);
            params.subject_alt_names = vec![name];
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        });
        let said = files.openssl(&forged.chain, &root, &[]).expect_err("not its to name");
        assert!(said.contains("permitted subtree violation"), "{said}");
        assert!(files.certtool(&forged.chain[..1], &root, SERVER).is_err());
    }
}

#[test]
fn openssl_reads_our_request_as_proof_of_possession() {
    let files = Files::new();
    let path = files.tools.folder().join("request.der");
    let request = PrivateKey::generate().expect("a key").certificate_request().expect("a request");
    std::fs::write(&path, request).expect("written");
    let mut command = Command::new("openssl");
    assert_eq!(run(command.args(["req", "-inform", "DER", "-verify", "-noout", "-in"]).arg(path)), Ok(()));
}
