//! pkilint, a linter of certificates by RFC 5280, over every kind of certificate and revocation list there is.
//!
//! It does not judge how long something is valid, path lengths, or names against constraints: `verdicts` does.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hyperfactory_pki::authority::{INTERMEDIATE_LIFETIME, NODE_LIFETIME, ROOT_LIFETIME};
use hyperfactory_pki::{
    Authority, PrivateKey, Revocation, RevocationReason, Serial, ServerNames, Summary, verify_request,
};
use protocol::NodeKind;
use rcgen::KeyPair;

use crate::der::utc;
use crate::draft::{BASIC_CONSTRAINTS, Certificate, KEY_USAGE, Key};
use crate::fleet::{DAY, Fleet, NOW, node_id, stolen_key, tenant};

/// What pkilint says above NOTICE and is not to be mended, each with the reason: of which, by which code, about what.
const ARGUED: &[(&str, &str, &str)] = &[
    // It wants a dot in every name. A hub that is used on its own machine has the name "localhost" (RFC 6761, section 6.3),
    // and browsers find that name nowhere else.
    ("HTTPS authority", "pkix.invalid_domain_name_syntax", "\"localhost\""),
    ("HTTPS authority for names alone", "pkix.invalid_domain_name_syntax", "\"localhost\""),
    ("web server", "pkix.invalid_domain_name_syntax", "\"localhost\""),
];

#[test]
fn pkilint_finds_nothing_above_notice_in_any_certificate_or_list() {
    let mut lint = Lint::new();
    let fleet = Fleet::new();
    authorities(&mut lint, &fleet);
    leaves(&mut lint, &fleet);
    let argued = |finding: &Finding, (name, code, about): &(&str, &str, &str)| {
        finding.name == *name && finding.code == *code && finding.message.contains(about)
    };
    let findings = lint.run();
    for known in ARGUED {
        assert!(findings.iter().any(|finding| argued(finding, known)), "no longer found: {known:?}");
    }
    let found: Vec<_> = findings
        .iter()
        .filter(|finding| !ARGUED.iter().any(|known| argued(finding, known)))
        .map(|Finding { name, severity, code, place, message }| {
            format!("{name}: {severity} {code} at {place} {message}")
        })
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A linter that never finds anything proves nothing.
#[test]
fn pkilint_finds_what_is_wrong_with_others() {
    let fleet = Fleet::new();
    let mut lint = Lint::new();
    let root = Certificate::of(&fleet.root_der(), Key::copy(stolen_key(&fleet.root).serialized_der()));
    let mut wrong = |name: &str, alter: fn(&mut Certificate)| {
        let mut certificate = root.clone();
        alter(&mut certificate);
        lint.certificate(name, &certificate.signed_by(&certificate));
    };
    wrong("honest", |_| {});
    wrong("negative serial", |certificate| certificate.serial = vec![0x80; 16]);
    wrong("basic constraints not critical", |certificate| certificate.extension(BASIC_CONSTRAINTS).critical.clear());
    wrong("no key usage", |certificate| certificate.remove(KEY_USAGE));
    wrong("time zone", |certificate| certificate.not_after = utc("350101000000+0000"));
    wrong("version 1", |certificate| certificate.version = None);
    lint.issued("signed by another", &fleet.hub_der(), fleet.other.certificate_der());
    lint.add("crl", "no list", fleet.root_der().as_ref(), "");
    let mut names: Vec<_> = lint.run().into_iter().map(|finding| finding.name).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "negative serial",
            "basic constraints not critical",
            "no key usage",
            "time zone",
            "version 1",
            "signed by another",
            "no list"
        ]
    );
}

/// Every kind of authority, and its revocation lists: empty, and with each reason.
fn authorities(lint: &mut Lint, fleet: &Fleet) {
    let names = ["hub.example", "localhost", "192.0.2.7", "::1"].map(|name| name.parse().expect("a name"));
    let web = Authority::create_web(&names, NOW).expect("an authority");
    let for_addresses = Authority::create_web(&names[2..], NOW).expect("an authority");
    let for_names = Authority::create_web(&names[..2], NOW).expect("an authority");
    let next = Authority::create_root(NOW, ROOT_LIFETIME).expect("a root");
    // A root that will be there when years have four digits.
    let old = Authority::create_root(NOW, DAY * 365 * 30).expect("a root");
    let root = &fleet.root;
    for (name, authority, issuer) in [
        ("root", root, root),
        ("root of thirty years", &old, &old),
        ("hub intermediate", &fleet.hub, root),
        ("nodes intermediate", &fleet.acme, root),
        ("Kafka root", &fleet.acme_kafka, &fleet.acme_kafka),
        ("HTTPS authority", &web, &web),
        ("HTTPS authority for addresses alone", &for_addresses, &for_addresses),
        ("HTTPS authority for names alone", &for_names, &for_names),
    ] {
        lint.certificate(name, authority.certificate_der());
        lint.issued(name, authority.certificate_der(), issuer.certificate_der());
        let list = |revoked: Vec<Revocation>| authority.revocation_list(revoked, NOW, DAY * 7).expect("a list");
        lint.add("crl", &format!("empty list of the {name}"), &list(Vec::new()), "");
        let every = REASONS.iter().enumerate().map(|(index, reason)| revoked(index, *reason));
        lint.add("crl", &format!("list of the {name} with every reason"), &list(every.collect()), "");
        for (index, reason) in REASONS.into_iter().enumerate() {
            let one = list(vec![revoked(index, reason)]);
            lint.add("crl", &format!("list of the {name} with {reason:?}"), &one, "");
        }
    }
    for (name, from, to) in [("link to the next root", root, &next), ("link back", &next, root)] {
        let link = from.link(to.certificate_der(), NOW).expect("a link");
        lint.certificate(name, &link);
        lint.issued(name, &link, from.certificate_der());
    }
    let server = PrivateKey::generate().expect("a key").public_key();
    let leaf = web.issue_web_server(&server, &names, NOW).expect("a certificate");
    lint.leaf("web server", &leaf, &web);
}

const REASONS: [RevocationReason; 10] = [
    RevocationReason::Unspecified,
    RevocationReason::KeyCompromise,
    RevocationReason::CaCompromise,
    RevocationReason::AffiliationChanged,
    RevocationReason::Superseded,
    RevocationReason::CessationOfOperation,
    RevocationReason::CertificateHold,
    RevocationReason::RemoveFromCrl,
    RevocationReason::PrivilegeWithdrawn,
    RevocationReason::AaCompromise,
];

fn revoked(index: usize, reason: RevocationReason) -> Revocation {
    let serial: Serial = format!("{:032x}", (0x42 << 120_u32) + index as u128).parse().expect("a serial");
    Revocation { serial, at: NOW.minus(Duration::from_secs(60)), reason }
}

/// Every kind of leaf, for every kind of key.
fn leaves(lint: &mut Lint, fleet: &Fleet) {
    let (_, hub) = fleet.hub_server(NOW);
    lint.leaf("hub server", &hub, &fleet.hub);
    let names = ServerNames::new(&["kafka.example".into()], &[[192, 0, 2, 7].into()]).expect("names");
    for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let pair = KeyPair::generate_for(kind).expect("a key");
        let request = rcgen::CertificateParams::default().serialize_request(&pair).expect("a request");
        let key = verify_request(request.der()).expect("proof of possession");
        for node in [NodeKind::Agent, NodeKind::Bridge] {
            let leaf = fleet.acme.issue_node(&key, node_id(1), node, NOW, NODE_LIFETIME).expect("a certificate");
            lint.leaf(&format!("{} with {kind:?}", node.as_str()), &leaf, &fleet.acme);
        }
        let client = fleet.acme_kafka.issue_kafka_client(&key, node_id(1), NOW, DAY * 90).expect("a certificate");
        lint.leaf(&format!("Kafka client with {kind:?}"), &client, &fleet.acme_kafka);
        let server = fleet.acme_kafka.issue_kafka_server(&key, &names, NOW, DAY * 90).expect("a certificate");
        lint.leaf(&format!("Kafka server with {kind:?}"), &server, &fleet.acme_kafka);
    }
    // The longest name that a tenant may have.
    let long = "a".repeat(protocol::TenantId::MAX);
    let longest = fleet.root.issue_tenant_intermediate(&tenant(&long), NOW, INTERMEDIATE_LIFETIME).expect("issued");
    lint.certificate("nodes intermediate of a long name", longest.certificate_der());
    let key = PrivateKey::generate().expect("a key").public_key();
    let leaf = longest.issue_node(&key, node_id(1), NodeKind::Bridge, NOW, NODE_LIFETIME).expect("a certificate");
    lint.leaf("node of a long name", &leaf, &longest);
}

/// Documents for pkilint, in a folder.
struct Lint {
    folder: tempfile::TempDir,
    work: String,
    count: usize,
}

/// What it says about one of them.
struct Finding {
    name: String,
    severity: String,
    code: String,
    place: String,
    message: String,
}

impl Lint {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), work: String::new(), count: 0 }
    }

    fn leaf(&mut self, name: &str, der: &[u8], issuer: &Authority) {
        assert!(!Summary::of(der).expect("a certificate").is_ca);
        self.certificate(name, der);
        self.issued(name, der, issuer.certificate_der());
    }

    fn certificate(&mut self, name: &str, der: &[u8]) {
        self.add("certificate", name, der, "");
    }

    /// The pair of a certificate and its issuer's.
    fn issued(&mut self, name: &str, der: &[u8], issuer: &[u8]) {
        let issuer = self.write(issuer);
        self.add("issued", name, der, issuer.to_str().expect("UTF-8"));
    }

    fn add(&mut self, what: &str, name: &str, der: &[u8], issuer: &str) {
        let path = self.write(der);
        let end = if issuer.is_empty() { String::new() } else { format!("\t{issuer}") };
        writeln!(self.work, "{what}\t{name}\t{}{end}", path.display()).expect("written");
    }

    fn write(&mut self, der: &[u8]) -> PathBuf {
        self.count += 1;
        let path = self.folder.path().join(format!("{}.der", self.count));
        std::fs::write(&path, der).expect("written");
        path
    }

    fn run(&self) -> Vec<Finding> {
        let python = std::env::var_os("HYPERFACTORY_TEST_PKILINT")
            .expect("HYPERFACTORY_TEST_PKILINT names the Python that has pkilint; ./test installs it and sets it");
        let work = self.folder.path().join("work");
        std::fs::write(&work, &self.work).expect("written");
        let output = Command::new(python)
            .args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/trust/lint.py")])
            .stdin(std::fs::File::open(work).expect("there"))
            .output()
            .expect("Python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let mut findings: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        let end = findings.pop().expect("a last line");
        assert_eq!(end, ["linted", &self.work.lines().count().to_string()]);
        let finding = |fields: Vec<&str>| {
            let [name, severity, code, place, message] = <[&str; 5]>::try_from(fields).expect("five fields");
            let [name, severity, code, place, message] = [name, severity, code, place, message].map(str::to_owned);
            Finding { name, severity, code, place, message }
        };
        findings.into_iter().map(finding).collect()
    }
}
