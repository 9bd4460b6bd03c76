//! From one fleet root to the next: links, several roots at a time, and lists of roots that nobody should take.

use std::slice::from_ref;
use std::sync::Arc;

use hyperfactory_pki::authority::ROOT_LIFETIME;
use hyperfactory_pki::roots::{self, MAX_ROOTS, RootsError};
use hyperfactory_pki::tls::{self, FixedClock, HubCertificate, HubChain, HubTls, TrustedRoots};
use hyperfactory_pki::{Authority, CertificateDer, Distrust, Summary, TrustError};
use proptest::prelude::*;
use protocol::Timestamp;
use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};

use crate::fleet::{DAY, Fleet, HOUR, NOW, forge_under};
use crate::handshake::handshake;

/// A fleet on its way from one root to the next.
struct Rotation {
    old: Fleet,
    new: Fleet,
    link: CertificateDer<'static>,
}

impl Rotation {
    fn new() -> Self {
        let (old, new) = (Fleet::new(), Fleet::new());
        let link = old.root.link(&new.root_der(), NOW).expect("a link");
        Self { old, new, link }
    }

    /// What a hub of the new root shows, with this as its list of roots.
    fn new_hub(&self, roots: Vec<CertificateDer<'static>>) -> HubCertificate {
        let (key, leaf) = self.new.hub_server(NOW);
        let chain = HubChain { links: vec![self.link.clone()], roots, ..self.new.hub_chain(leaf) };
        HubCertificate::new(chain, &key).expect("a pair")
    }

    fn hub_chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.new.hub_server(NOW).1, self.new.hub_der(), self.link.clone()]
    }
}

fn pin(fleet: &Fleet) -> [u8; 32] {
    fleet.root.spki_sha256()
}

#[test]
fn a_node_that_knows_the_old_root_alone_accepts_a_hub_of_the_new_one_by_its_link() {
    let rotation = Rotation::new();
    let node = rotation.old.node(NOW);
    let server = rotation.old.server_config_with(rotation.new_hub(vec![rotation.new.root_der()]), NOW, |_| false);
    handshake(&rotation.old.node_config(&node, NOW), &server).expect("a session");
    let stranger = Fleet::new();
    let failed = handshake(&stranger.node_config(&node, NOW), &server).err().expect("another fleet's");
    assert_eq!(failed.distrust(), Some(Distrust::ForeignRoot));
}

#[test]
fn a_token_may_pin_the_old_root_or_the_new_one() {
    let rotation = Rotation::new();
    for roots in [[&rotation.new, &rotation.old], [&rotation.old, &rotation.new]] {
        let roots = roots.map(Fleet::root_der).to_vec();
        let server = rotation.new.server_config_with(rotation.new_hub(roots), NOW, |_| false);
        for fleet in [&rotation.old, &rotation.new] {
            let client = tls::enroll_config(pin(fleet), Arc::new(FixedClock(NOW))).expect("a configuration");
            handshake(&client, &server).expect("enrollment");
        }
        let client = tls::enroll_config([7; 32], Arc::new(FixedClock(NOW))).expect("a configuration");
        let failed = handshake(&client, &server).err().expect("another pin");
        assert_eq!(failed.distrust(), Some(Distrust::WrongPin));
    }
}

#[test]
fn a_link_to_the_pinned_root_is_not_that_root() {
    let rotation = Rotation::new();
    let server = rotation.new.server_config_with(rotation.new_hub(vec![rotation.old.root_der()]), NOW, |_| false);
    let client = tls::enroll_config(pin(&rotation.new), Arc::new(FixedClock(NOW))).expect("a configuration");
    assert!(handshake(&client, &server).is_err());
}

#[test]
fn a_hub_trusts_the_nodes_of_all_its_roots_and_forgets_one_while_it_serves() {
    let rotation = Rotation::new();
    let roots = TrustedRoots::new(&[rotation.old.root_der(), rotation.new.root_der()]).expect("two roots");
    let (certificate, clock) = (rotation.new_hub(Vec::new()), Arc::new(FixedClock(NOW)));
    let server = tls::server_config(HubTls { roots: roots.clone(), certificate, denied: Arc::new(|_| false), clock })
        .expect("a configuration");
    let attempt = |fleet: &Fleet| {
        let node = fleet.node(NOW);
        let known = [rotation.old.root_der()];
        let client = tls::node_config(node.chain, &node.key, &known, Arc::new(FixedClock(NOW))).expect("config");
        handshake(&client, &server).map(drop)
    };
    attempt(&rotation.old).expect("a node of the old root");
    attempt(&rotation.new).expect("a node of the new root");

    assert!(roots.replace(&[]).is_err() && roots.replace(&[CertificateDer::from(vec![1])]).is_err());
    attempt(&rotation.old).expect("what is no list of roots changes nothing");
    roots.replace(&[rotation.new.root_der()]).expect("replaced");
    assert_eq!(attempt(&rotation.old).expect_err("forgotten").distrust(), Some(Distrust::ForeignRoot));
    attempt(&rotation.new).expect("a node of the new root");
}

#[test]
fn of_two_roots_the_one_that_has_ended_is_named_as_ended_and_the_other_still_serves() {
    let (ended, fleet) = (Fleet::at(NOW.minus(ROOT_LIFETIME + DAY)), Fleet::new());
    let node = fleet.node(NOW);
    let roots = [ended.root_der(), fleet.root_der()];
    let client = |roots: &[CertificateDer<'_>]| {
        tls::node_config(node.chain.clone(), &node.key, roots, Arc::new(FixedClock(NOW))).expect("a configuration")
    };
    handshake(&client(&roots), &fleet.server_config(NOW)).expect("a session");
    let late = ended.server_config(NOW.minus(ROOT_LIFETIME));
    let failed = handshake(&client(&roots), &late).err().expect("ended");
    assert_eq!(failed.distrust(), Some(Distrust::NotValidNow), "{failed:?}");
}

#[test]
fn a_link_has_the_roots_name_and_key_and_ends_with_the_first_of_the_two() {
    let (old, new) = (Fleet::at(NOW.minus(DAY * 1000)), Fleet::new());
    let read = |der: &CertificateDer<'_>| Summary::of(der).expect("a certificate");
    for (by, to, ends) in [(&old, &new, &old), (&new, &old, &old)] {
        let link = read(&by.root.link(&to.root_der(), NOW).expect("a link"));
        assert_eq!(link.spki_sha256, pin(to));
        assert_eq!(link.not_after, ends.root.not_after());
        assert_ne!(link.serial, read(&to.root_der()).serial);
    }
    assert!(old.root.link(&old.root_der(), NOW).is_err(), "to itself");
    assert!(old.root.link(new.acme.certificate_der(), NOW).is_err(), "to an intermediate");
    assert!(old.root.link(new.acme_kafka.certificate_der(), NOW).is_err(), "to a tenant's root");
    assert!(old.acme.link(&new.root_der(), NOW).is_err(), "by an intermediate");
    assert!(old.root.link(&new.root_der(), old.root.not_after().plus(HOUR)).is_err(), "after the end");
}

#[test]
fn a_new_root_is_taken_when_it_is_linked_and_the_old_one_is_dropped_when_another_leads_to_the_hub() {
    let rotation = Rotation::new();
    let (old, new) = (rotation.old.root_der(), rotation.new.root_der());
    let links = [rotation.link.clone()];
    let old_hub = [rotation.old.hub_server(NOW).1, rotation.old.hub_der()];
    let new_hub = rotation.hub_chain();
    let known = [old.clone()];

    roots::accept(&known, &[old.clone(), new.clone()], &links, &old_hub, NOW).expect("prepare");
    roots::accept(&known, &[old.clone(), new.clone()], &links, &new_hub, NOW).expect("issue new");
    roots::accept(&known, from_ref(&new), &links, &new_hub, NOW).expect("one that was away all the time");
    roots::accept(&[old.clone(), new.clone()], from_ref(&new), &[], &new_hub[..2], NOW).expect("retire");
    roots::accept(&[old.clone(), new.clone()], from_ref(&old), &[], &old_hub, NOW).expect("back");

    let refused = |wanted: &[CertificateDer<'_>], links: &[CertificateDer<'_>], hub: &[CertificateDer<'_>], now| {
        roots::accept(&known, wanted, links, hub, now).expect_err("refused")
    };
    let both = [old.clone(), new.clone()];
    assert_eq!(refused(&[], &links, &old_hub, NOW), RootsError::None);
    assert_eq!(refused(&both, &[], &old_hub, NOW), RootsError::Unproved);
    assert_eq!(refused(from_ref(&new), &links, &old_hub, NOW), RootsError::NotThisHub);
    assert_eq!(refused(&[old.clone(), old.clone()], &links, &old_hub, NOW), RootsError::Twice);
    assert_eq!(refused(&[old.clone(), rotation.link.clone()], &links, &old_hub, NOW), TrustError::NotRoot.into());
    let ended = rotation.old.root.not_after().plus(HOUR);
    assert_eq!(refused(&both, &links, &old_hub, ended), TrustError::RootValidity.into());
    let many = vec![old; MAX_ROOTS + 1];
    assert!(matches!(refused(&many, &links, &old_hub, NOW), RootsError::TooMany { .. }));
}

#[test]
fn links_of_two_rotations_lead_from_the_first_root_to_the_third_in_any_order() {
    let (first, third) = (Rotation::new(), Fleet::new());
    let second = first.new.root.link(&third.root_der(), NOW).expect("a link");
    let hub = [third.hub_server(NOW).1, third.hub_der(), second.clone(), first.link.clone()];
    let (known, wanted) = ([first.old.root_der()], [third.root_der()]);
    for links in [[first.link.clone(), second.clone()], [second.clone(), first.link.clone()]] {
        roots::accept(&known, &wanted, &links, &hub, NOW).expect("proved");
    }
    assert_eq!(roots::prove(&known, &wanted, &[second], NOW), Err(RootsError::Unproved), "a step is missing");
}

#[test]
fn a_link_that_the_known_root_did_not_sign_proves_nothing() {
    let (fleet, stranger) = (Fleet::new(), Fleet::new());
    let wanted = [stranger.root_der()];
    let proved = |link: CertificateDer<'static>| roots::prove(&[fleet.root_der()], &wanted, &[link], NOW);
    let link = fleet.root.link(&wanted[0], NOW).expect("a link");
    assert_eq!(proved(link.clone()), Ok(()));

    let mut signed_badly = link.to_vec();
    *signed_badly.last_mut().expect("a signature") ^= 1;
    assert_eq!(proved(signed_badly.into()), Err(RootsError::Unproved));
    // Its own root signs the link under the known root's name.
    let third = Fleet::new();
    assert_eq!(proved(third.root.link(&wanted[0], NOW).expect("a link")), Err(RootsError::Unproved));
    // A tenant's authority signs one; and the root signs an authority of another name, or with the stranger's key alone.
    let authority = |by: &Authority| {
        forge_under(by, |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.extended_key_usages.clear();
            params.subject_alt_names.clear();
        })
        .chain
        .remove(0)
    };
    for by in [&fleet.acme, &fleet.root] {
        assert_eq!(proved(authority(by)), Err(RootsError::Unproved));
    }
    assert_eq!(proved(fleet.acme.certificate_der().clone()), Err(RootsError::Unproved));
}

#[test]
fn a_link_that_has_ended_proves_nothing() {
    let (old, new) = (Fleet::at(NOW.minus(ROOT_LIFETIME - HOUR)), Fleet::new());
    let link = old.root.link(&new.root_der(), NOW).expect("a link");
    let (known, wanted) = ([old.root_der()], [new.root_der()]);
    assert_eq!(roots::prove(&known, &wanted, from_ref(&link), NOW), Ok(()));
    assert_eq!(roots::prove(&known, &wanted, &[link], NOW.plus(HOUR * 2)), Err(RootsError::Unproved));
}

/// Certificates of two fleets on their way to a next root, of a stranger, and noise.
fn material() -> (Rotation, Vec<CertificateDer<'static>>) {
    let (rotation, stranger) = (Rotation::new(), Fleet::new());
    let mut mangled = rotation.link.to_vec();
    mangled[200] ^= 4;
    let pool = vec![
        rotation.old.root_der(),
        rotation.new.root_der(),
        stranger.root_der(),
        rotation.link.clone(),
        stranger.root.link(&rotation.new.root_der(), NOW).expect("a link"),
        stranger.root.link(&rotation.old.root_der(), NOW).expect("a link"),
        rotation.new.root.link(&rotation.old.root_der(), NOW).expect("a link"),
        rotation.old.acme.certificate_der().clone(),
        rotation.old.hub_der(),
        mangled.into(),
        CertificateDer::from(Vec::new()),
    ];
    (rotation, pool)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_list_comes_a_node_keeps_a_root_that_leads_to_its_hub_and_takes_none_that_is_not_linked(
        lists in prop::collection::vec(
            (prop::collection::vec(0..11usize, 0..6), prop::collection::vec(0..11usize, 0..6), any::<bool>(), -4000..4000i64),
            1..6,
        ),
    ) {
        thread_local!(static MATERIAL: (Rotation, Vec<CertificateDer<'static>>) = material());
        MATERIAL.with(|(rotation, pool)| {
            let old_hub = vec![rotation.old.hub_server(NOW).1, rotation.old.hub_der()];
            let new_hub = rotation.hub_chain();
            let (ours, theirs) = (&pool[..2], &pool[2]);
            let mut known = vec![rotation.old.root_der()];
            for (wanted, links, new, days) in lists {
                let at = Timestamp::from_millis(NOW.millis() + days * 86_400_000);
                let pick = |list: Vec<usize>| list.into_iter().map(|index| pool[index].clone()).collect::<Vec<_>>();
                let (wanted, links) = (pick(wanted), pick(links));
                let hub = if new { &new_hub } else { &old_hub };
                if roots::accept(&known, &wanted, &links, hub, at).is_ok() {
                    known = wanted;
                    assert!(roots::leads_to(&known, hub, at));
                }
                assert!(!known.is_empty() && known.iter().all(|root| ours.contains(root)) && !known.contains(theirs));
            }
        });
    }
}
