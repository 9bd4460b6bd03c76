//! Name constraints: names in the leaf under the issuer's constraints, and other constraints over the leaf's name.

use super::{Catalogue, Part};
use crate::der::{self, COMMON_NAME, ORGANIZATION, UTF8, context, explicit, integer, name, oid, sequence, tlv};
use crate::draft::{ALTERNATIVE_NAMES, NAME_CONSTRAINTS};

pub(super) fn add(list: &mut Catalogue) {
    dns_names(list);
    other_names(list);
    subjects(list);
    constraints(list);
}

fn dns_names(list: &mut Catalogue) {
    list.bad(Part::Names, "other's name", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&site.others]));
    });
    list.bad(Part::Names, "own name and other's", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&site.own, &site.others]));
    });
    list.bad(Part::Names, "a name that only ends like the subtree", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("x.evil{}", site.subtree)]));
    });
    list.bad(Part::Names, "wildcard above the subtree", |site, draft| {
        let (_, above) = site.subtree.split_once('.').expect("a dot");
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("*.{above}")]));
    });
    list.bad(Part::Names, "wildcard over everything", |_, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&["*"]));
    });
    list.bad(Part::Names, "wildcard in the subtree", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("*.{}", site.subtree)]));
    });
    list.bad(Part::Names, "wildcard within a label", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("a*.agent.{}", site.subtree)]));
    });
    list.strange(Part::Names, "own name twice", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&site.own, &site.own]));
    });
    list.strange(Part::Names, "own name and one below it", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&site.own, &format!("x.{}", site.own)]));
    });
    list.strange(Part::Names, "own name in upper case", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&site.own.to_uppercase()]));
    });
    list.bad(Part::Names, "own name and a dot", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("{}.", site.own)]));
    });
    list.bad(Part::Names, "a dot and own name", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!(".{}", site.own)]));
    });
    list.bad(Part::Names, "an empty name", |_, draft| draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[""])));
    list.bad(Part::Names, "other's name, a zero byte and own name", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("{}\0.{}", site.others, site.own)]));
    });
    list.bad(Part::Names, "own name, a zero byte and other's name", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("{}\0.{}", site.own, site.others)]));
    });
    list.bad(Part::Names, "a name that is not ASCII", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("ä.{}", site.own)]));
    });
    list.bad(Part::Names, "a name with a space", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, dns(&[&format!("x y.{}", site.own)]));
    });
}

fn other_names(list: &mut Catalogue) {
    list.bad(Part::Names, "no names at all", |_, draft| draft.leaf().remove(ALTERNATIVE_NAMES));
    list.bad(Part::Names, "an empty list of names", |_, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[]));
    });
    let uri = |site: &super::Site| context(6, format!("spiffe://{}/x", site.others).as_bytes());
    let email = |site: &super::Site| context(1, format!("x@{}", site.others).as_bytes());
    let (v4, v6) = (context(7, &[127, 0, 0, 1]), context(7, &[0; 16]));
    let directory = explicit(4, &name(&[(ORGANIZATION, UTF8, "other")]));
    let other_name = explicit(0, &[oid("1.3.6.1.4.1.311.20.2.3"), explicit(0, &tlv(UTF8, b"root@other"))].concat());
    let registered = context(8, &oid("1.2.3.4")[2..]);
    list.bad(Part::Names, "URI only", move |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[&uri(site)]));
    });
    list.strange(Part::Names, "own name and a URI", move |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[&own(site), &uri(site)]));
    });
    list.bad(Part::Names, "e-mail only", move |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[&email(site)]));
    });
    list.strange(Part::Names, "own name and an e-mail", move |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[&own(site), &email(site)]));
    });
    for (kind, address) in [("an IPv4", v4), ("an IPv6", v6), ("a five-byte", context(7, &[1, 2, 3, 4, 5]))] {
        let both = address.clone();
        list.bad(Part::Names, format!("{kind} address only"), move |_, draft| {
            draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[&address]));
        });
        list.bad(Part::Names, format!("own name and {kind} address"), move |site, draft| {
            draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[&own(site), &both]));
        });
    }
    for (kind, other) in
        [("a directory name", directory), ("another kind of name", other_name), ("a registered id", registered)]
    {
        let both = other.clone();
        list.bad(Part::Names, format!("{kind} only"), move |_, draft| {
            draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[&other]));
        });
        list.strange(Part::Names, format!("own name and {kind}"), move |site, draft| {
            draft.leaf().set(ALTERNATIVE_NAMES, false, sequence(&[&own(site), &both]));
        });
    }
}

fn subjects(list: &mut Catalogue) {
    list.bad(Part::Names, "common name only, other's", |site, draft| {
        draft.leaf().remove(ALTERNATIVE_NAMES);
        draft.leaf().subject = name(&[(COMMON_NAME, UTF8, &site.others)]);
    });
    list.bad(Part::Names, "common name only, own", |site, draft| {
        draft.leaf().remove(ALTERNATIVE_NAMES);
        draft.leaf().subject = name(&[(COMMON_NAME, UTF8, &site.own)]);
    });
    list.good(Part::Names, "common name of other's beside own name", |site, draft| {
        draft.leaf().subject = name(&[(COMMON_NAME, UTF8, &site.others)]);
    });
    list.bad(Part::Names, "no subject, names not critical", |_, draft| draft.leaf().subject = sequence(&[]));
    list.good(Part::Names, "no subject, names critical", |site, draft| {
        draft.leaf().subject = sequence(&[]);
        draft.leaf().set(ALTERNATIVE_NAMES, true, dns(&[&site.own]));
    });
    list.good(Part::Names, "names critical", |site, draft| {
        draft.leaf().set(ALTERNATIVE_NAMES, true, dns(&[&site.own]));
    });
}

fn constraints(list: &mut Catalogue) {
    list.strange(Part::Names, "no name constraints", |_, draft| draft.issuer().remove(NAME_CONSTRAINTS));
    list.bad(Part::Names, "name constraints not critical", |_, draft| {
        draft.issuer().extension(NAME_CONSTRAINTS).critical = Vec::new();
    });
    list.bad(Part::Names, "name constraints empty", |_, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, sequence(&[]))
    });
    list.good(Part::Names, "no address excluded", |site, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, permitted(&[&site.subtree]));
    });
    list.bad(Part::Names, "other's subtree permitted", |site, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, permitted(&[&site.others]));
    });
    list.strange(Part::Names, "own subtree and other's permitted", |site, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, permitted(&[&site.subtree, &site.others]));
    });
    list.strange(Part::Names, "everything permitted", |_, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, permitted(&[""]));
    });
    list.bad(Part::Names, "own name excluded", |site, draft| {
        let all = constrained(&[der::context(2, site.subtree.as_bytes())], &[der::context(2, site.own.as_bytes())]);
        draft.issuer().set(NAME_CONSTRAINTS, true, all);
    });
    list.bad(Part::Names, "every DNS name excluded", |site, draft| {
        let all = constrained(&[der::context(2, site.subtree.as_bytes())], &[der::context(2, b"")]);
        draft.issuer().set(NAME_CONSTRAINTS, true, all);
    });
    list.strange(Part::Names, "subtree in upper case", |site, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, permitted(&[&site.subtree.to_uppercase()]));
    });
    list.bad(Part::Names, "subtree with a dot before", |site, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, permitted(&[&format!(".{}", site.subtree)]));
    });
    list.bad(Part::Names, "subtree with a dot after", |site, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, permitted(&[&format!("{}.", site.subtree)]));
    });
    list.bad(Part::Names, "subtree with a wildcard", |site, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, permitted(&[&format!("*.{}", site.subtree)]));
    });
    list.strange(Part::Names, "only an address permitted", |_, draft| {
        let address = context(7, &[192, 0, 2, 0, 255, 255, 255, 0]);
        draft.issuer().set(NAME_CONSTRAINTS, true, constrained(&[address], &[]));
    });
    list.strange(Part::Names, "only an e-mail permitted", |_, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, constrained(&[context(1, b"example.com")], &[]));
    });
    list.strange(Part::Names, "only a URI permitted", |_, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, constrained(&[context(6, b"example.com")], &[]));
    });
    list.bad(Part::Names, "another directory permitted", |_, draft| {
        let directory = explicit(4, &name(&[(ORGANIZATION, UTF8, "somebody else")]));
        draft.issuer().set(NAME_CONSTRAINTS, true, constrained(&[directory], &[]));
    });
    list.bad(Part::Names, "the leaf's directory permitted", |_, draft| {
        let directory = explicit(4, &draft.leaf().subject);
        draft.issuer().set(NAME_CONSTRAINTS, true, constrained(&[directory], &[]));
    });
    list.bad(Part::Names, "another directory excluded", |site, draft| {
        let directory = explicit(4, &name(&[(ORGANIZATION, UTF8, "somebody else")]));
        let all = constrained(&[context(2, site.subtree.as_bytes())], &[directory]);
        draft.issuer().set(NAME_CONSTRAINTS, true, all);
    });
    list.bad(Part::Names, "subtree with a minimum", |site, draft| {
        let subtree = sequence(&[&context(2, site.subtree.as_bytes()), &context(0, &[1])]);
        draft.issuer().set(NAME_CONSTRAINTS, true, sequence(&[&explicit(0, &subtree)]));
    });
    list.bad(Part::Names, "subtree with a maximum", |site, draft| {
        let subtree = sequence(&[&context(2, site.subtree.as_bytes()), &context(1, &[9])]);
        draft.issuer().set(NAME_CONSTRAINTS, true, sequence(&[&explicit(0, &subtree)]));
    });
    list.bad(Part::Names, "an address with half a mask", |site, draft| {
        let all = constrained(&[context(2, site.subtree.as_bytes())], &[context(7, &[0; 6])]);
        draft.issuer().set(NAME_CONSTRAINTS, true, all);
    });
    list.bad(Part::Names, "name constraints that are rubbish", |_, draft| {
        draft.issuer().set(NAME_CONSTRAINTS, true, integer(&[7]));
    });
    list.good(Part::LeafExtensions, "name constraints in the leaf", |_, draft| {
        draft.leaf().set(NAME_CONSTRAINTS, true, permitted(&["example.com"]));
    });
    list.bad(Part::Names, "root permits another subtree alone", |_, draft| {
        draft.root().set(NAME_CONSTRAINTS, true, permitted(&["example.com"]));
    });
    list.bad(Part::Names, "root excludes the own name", |site, draft| {
        let all = constrained(&[], &[context(2, site.own.as_bytes())]);
        draft.root().set(NAME_CONSTRAINTS, true, all);
    });
}

fn own(site: &super::Site) -> Vec<u8> {
    context(2, site.own.as_bytes())
}

/// Value of a list of DNS names.
pub(super) fn dns(names: &[&str]) -> Vec<u8> {
    tlv(der::SEQUENCE, &names.iter().map(|name| context(2, name.as_bytes())).collect::<Vec<_>>().concat())
}

/// Value of constraints to DNS subtrees.
pub(super) fn permitted(subtrees: &[&str]) -> Vec<u8> {
    let subtrees: Vec<_> = subtrees.iter().map(|subtree| context(2, subtree.as_bytes())).collect();
    constrained(&subtrees, &[])
}

/// Value of constraints to and against subtrees, each a general name in DER.
fn constrained(permitted: &[Vec<u8>], excluded: &[Vec<u8>]) -> Vec<u8> {
    let list = |tag, bases: &[Vec<u8>]| match bases {
        [] => Vec::new(),
        bases => explicit(tag, &bases.iter().map(|base| sequence(&[base])).collect::<Vec<_>>().concat()),
    };
    sequence(&[&list(0, permitted), &list(1, excluded)])
}
