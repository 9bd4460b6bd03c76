use std::fs;
use std::time::Duration;

use pki::{Authority, verify_request};
use protocol::Timestamp;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

pub(crate) struct Fleet {
    root: Authority,
    tenant: Authority,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let now = Timestamp::from_millis(1_790_000_000_000);
        let root = Authority::create_root(now, DAY * 3650).expect("a root");
        let tenant =
            root.issue_tenant_intermediate(&"acme".parse().expect("a slug"), now, DAY * 365).expect("an intermediate");
        Self { root, tenant }
    }

    pub(crate) fn credential(&self, key: PrivateKey, node: NodeId) -> Result<Credential, CredentialError> {
        let requested = verify_request(&key.certificate_request().expect("a request")).expect("proved");
        let leaf = self
            .tenant
            .issue_node(&requested, node, NodeKind::Agent, self.root.not_before().plus(DAY), DAY * 7)
            .expect("a certificate");
        Credential::new(key, vec![leaf.into(), self.tenant.certificate_der().clone()], 7)
    }

    fn other_root() -> CertificateDer<'static> {
        let now = Timestamp::from_millis(1_790_000_000_000);
        Authority::create_root(now, DAY * 3650).expect("a root").certificate_der().clone()
    }

    pub(crate) fn identity(&self) -> Identity {
        let node = NodeId::new(Timestamp::from_millis(1), [9; 10]);
        let key = PrivateKey::generate().expect("a key");
        Identity {
            node,
            tenant: "acme".parse().expect("a slug"),
            kind: NodeKind::Agent,
            name: "plant-1".to_owned(),
            hub: "hub.example:7443".to_owned(),
            roots: vec![self.root.certificate_der().clone(), Self::other_root()],
            credential: Arc::new(self.credential(key, node).expect("a pair")),
            previous: None,
        }
    }
}

fn store() -> (tempfile::TempDir, IdentityStore) {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = IdentityStore::directory(directory.path().join("state"));
    (directory, store)
}

#[test]
fn an_identity_survives_its_file_with_the_credential_before_it() {
    let (_directory, store) = store();
    assert!(store.load().expect("readable").is_none());
    let fleet = Fleet::new();
    let mut identity = fleet.identity();
    identity.previous = Some(fleet.identity().credential);
    store.save(&identity).expect("saved");
    let again = store.load().expect("readable").expect("there");
    assert_eq!((again.node, &again.tenant, again.kind), (identity.node, &identity.tenant, identity.kind));
    assert_eq!((&again.name, &again.hub, &again.roots), (&identity.name, &identity.hub, &identity.roots));
    assert_eq!(again.credential.subject(), identity.credential.subject());
    assert_eq!(again.credential.sequence(), 7);
    assert_eq!(again.credential.key().spki_sha256(), identity.credential.key().spki_sha256());
    assert_eq!(again.previous.expect("kept").subject().serial, identity.previous.expect("given").subject().serial);
}

#[test]
fn a_damaged_file_is_an_error_that_says_what_to_do_and_stays_as_it_is() {
    let (_directory, store) = store();
    let fleet = Fleet::new();
    store.save(&fleet.identity()).expect("saved");
    let path = store.path().expect("on disk");
    let whole = fs::read_to_string(&path).expect("text");
    let other = fleet.identity().node.to_string().replace('9', "8");
    let damaged = [
        String::new(),
        "\0\0\0\0".to_owned(),
        whole[..whole.len() / 2].to_owned(),
        whole.replace("\"format\": 2", "\"format\": 99"),
        whole.replace("\"roots\": [", "\"roots\": [], \"_\": ["),
        whole.replace("\"acme\"", "\"ACME\""),
        whole.replace("\"acme\"", "\"other\""),
        whole.replace("\"agent\"", "\"bridge\""),
        whole.replace(&fleet.identity().node.to_string(), &other),
        whole.replace("BEGIN PRIVATE", "BEGIN PUBLIC"),
        whole.replacen("\"chain\": [", "\"chain\": [\"MIIB\",", 1),
    ];
    for text in damaged {
        fs::write(&path, &text).expect("written");
        let error = store.load().expect_err(&text);
        assert!(matches!(error, IdentityError::Damaged { .. }), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("move it away and enroll again") && said.contains("freeze"), "{said}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), text);
    }
}

#[test]
fn a_certificate_for_another_key_is_refused() {
    let fleet = Fleet::new();
    let identity = fleet.identity();
    let stranger = PrivateKey::generate().expect("a key");
    let paired = Credential::new(stranger, identity.credential.chain().to_vec(), 1);
    assert!(matches!(paired, Err(CredentialError::OtherKey)));
}

#[test]
fn a_waiting_key_is_the_same_until_it_is_forgotten_or_belongs_to_another_token() {
    let (_directory, on_disk) = store();
    for store in [on_disk, IdentityStore::memory()] {
        let (ours, other) = (Pending::Enroll([1; 32]), Pending::Enroll([2; 32]));
        let spki = |pending| store.pending_key(pending, None).expect("a key").spki_sha256();
        let first = spki(ours);
        assert_eq!(spki(ours), first);
        assert_ne!(spki(other), first);
        let third = spki(ours);
        assert_ne!(third, first, "the other token's key took its place");
        store.forget_pending(ours).expect("forgotten");
        assert_ne!(spki(ours), third);
    }
}

#[test]
fn a_waiting_key_that_is_in_use_already_is_not_certified_again() {
    let fleet = Fleet::new();
    let store = IdentityStore::memory();
    let key = store.pending_key(Pending::Renew, None).expect("a key");
    let spki = key.spki_sha256();
    // The renewal was saved, and the crash came before its key was forgotten.
    let credential = fleet.credential(key, fleet.identity().node).expect("a pair");
    let next = store.pending_key(Pending::Renew, Some(&credential)).expect("a key");
    assert_ne!(next.spki_sha256(), spki);
}

#[test]
fn a_damaged_waiting_key_gives_way_to_a_new_one() {
    let (directory, store) = store();
    store.pending_key(Pending::Renew, None).expect("a key");
    fs::write(directory.path().join("state/renew-key.json"), "{").expect("written");
    store.pending_key(Pending::Renew, None).expect("a new key");
}
