//! Bytes from anybody are answered with an error, never with a panic.

use hyperfactory_pki::{
    Authority, CertificateDer, DataKey, MasterKey, Owner, PrivateKey, Stretch, node_identity, roots, trust,
    verify_request,
};
use proptest::prelude::*;
use std::slice::from_ref;

use crate::fleet::{Fleet, NOW};

fn feed(bytes: &[u8], fleet: &Fleet, (master, key): &(MasterKey, DataKey)) {
    let certificate = CertificateDer::from(bytes.to_vec());
    let _ = verify_request(bytes);
    let _ = node_identity(&[certificate.clone(), fleet.acme.certificate_der().clone()]);
    let _ = node_identity(&[fleet.node(NOW).chain[0].clone(), certificate.clone()]);
    let _ = trust::check_root(&certificate, &fleet.root.spki_sha256());
    let _ = trust::pin(&certificate);
    let _ = roots::prove(&[fleet.root_der()], from_ref(&certificate), from_ref(&certificate), NOW);
    let _ = fleet.root.link(&certificate, NOW);
    let _ = trust::validity(&certificate);
    let _ = Authority::open(bytes, bytes, key);
    let _ = PrivateKey::from_pkcs8(bytes);
    let _ = key.open("nodes", bytes);
    let _ = master.unwrap(Owner::Fleet, bytes);
    let _ = Stretch::from_bytes(bytes);
    let _ = PrivateKey::from_pem(&String::from_utf8_lossy(bytes));
}

/// Real structures with some bytes changed reach deeper than noise does.
fn mangled() -> impl Strategy<Value = (usize, Vec<(prop::sample::Index, u8)>, prop::sample::Index)> {
    (0..7usize, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8), any::<prop::sample::Index>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_and_mangled_bytes_are_never_a_panic(
        noise in prop::collection::vec(any::<u8>(), 0..600),
        (which, changes, cut) in mangled(),
    ) {
        thread_local!(static FLEET: (Fleet, (MasterKey, DataKey), Vec<Vec<u8>>) = {
            let fleet = Fleet::new();
            let master = MasterKey::from_bytes([3; 32]).expect("a key");
            let key = DataKey::generate(fleet.acme.role().owner()).expect("a key");
            let samples = vec![
                fleet.root_der().to_vec(),
                fleet.acme.certificate_der().to_vec(),
                fleet.node(NOW).chain[0].to_vec(),
                PrivateKey::generate().expect("a key").certificate_request().expect("a request"),
                fleet.acme.seal_key(&key).expect("sealed"),
                master.wrap(&key).expect("wrapped"),
                PrivateKey::generate().expect("a key").to_pkcs8().to_vec(),
            ];
            (fleet, (master, key), samples)
        });
        FLEET.with(|(fleet, keys, samples)| {
            feed(&noise, fleet, keys);
            let mut sample = samples[which].clone();
            for (at, byte) in &changes {
                let at = at.index(sample.len());
                sample[at] = *byte;
            }
            feed(&sample, fleet, keys);
            sample.truncate(cut.index(sample.len()));
            feed(&sample, fleet, keys);
        });
    }
}
