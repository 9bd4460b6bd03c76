//! What certificates may be used for, and extensions that are critical, unknown, doubled or wrong.

use super::{Catalogue, Part};
use crate::der::{bits, context, explicit, integer, octets, oid, sequence, tlv};
use crate::draft::{ALTERNATIVE_NAMES, BASIC_CONSTRAINTS, EXTENDED_KEY_USAGE, KEY_USAGE, SUBJECT_KEY_ID, extension};

const ANY: &str = "2.5.29.37.0";
const CODE_SIGNING: &str = "1.3.6.1.5.5.7.3.3";
const UNKNOWN: &str = "1.2.3.4";

pub(super) fn add(list: &mut Catalogue) {
    purposes(list);
    usages(list);
    basic(list);
    roots(list);
    unknown(list);
    policies(list);
}

fn purposes(list: &mut Catalogue) {
    list.strange(Part::LeafPurpose, "leaf for no purpose", |_, draft| draft.leaf().remove(EXTENDED_KEY_USAGE));
    list.strange(Part::LeafPurpose, "leaf for both purposes", |site, draft| {
        draft.leaf().set(EXTENDED_KEY_USAGE, false, purpose(&[site.purpose, site.other_purpose]));
    });
    list.bad(Part::LeafPurpose, "leaf for the other purpose", |site, draft| {
        draft.leaf().set(EXTENDED_KEY_USAGE, false, purpose(&[site.other_purpose]));
    });
    list.bad(Part::LeafPurpose, "leaf for any purpose", |_, draft| {
        draft.leaf().set(EXTENDED_KEY_USAGE, false, purpose(&[ANY]));
    });
    list.strange(Part::LeafPurpose, "leaf for this and any purpose", |site, draft| {
        draft.leaf().set(EXTENDED_KEY_USAGE, false, purpose(&[site.purpose, ANY]));
    });
    list.bad(Part::LeafPurpose, "leaf for code signing", |_, draft| {
        draft.leaf().set(EXTENDED_KEY_USAGE, false, purpose(&[CODE_SIGNING]));
    });
    list.bad(Part::LeafPurpose, "leaf for an unknown purpose", |_, draft| {
        draft.leaf().set(EXTENDED_KEY_USAGE, false, purpose(&[UNKNOWN]));
    });
    list.strange(Part::LeafPurpose, "leaf for this and an unknown purpose", |site, draft| {
        draft.leaf().set(EXTENDED_KEY_USAGE, false, purpose(&[UNKNOWN, site.purpose]));
    });
    list.bad(Part::LeafPurpose, "leaf with an empty list of purposes", |_, draft| {
        draft.leaf().set(EXTENDED_KEY_USAGE, false, sequence(&[]));
    });
    list.good(Part::LeafPurpose, "leaf's purpose critical", |_, draft| {
        draft.leaf().extension(EXTENDED_KEY_USAGE).critical = vec![1, 1, 0xff];
    });
    list.good(Part::IssuerPurpose, "intermediate for no purpose", |_, draft| {
        draft.issuer().remove(EXTENDED_KEY_USAGE);
    });
    list.good(Part::IssuerPurpose, "intermediate for both purposes", |site, draft| {
        draft.issuer().set(EXTENDED_KEY_USAGE, false, purpose(&[site.other_purpose, site.purpose]));
    });
    list.bad(Part::IssuerPurpose, "intermediate for the other purpose", |site, draft| {
        draft.issuer().set(EXTENDED_KEY_USAGE, false, purpose(&[site.other_purpose]));
    });
    list.bad(Part::IssuerPurpose, "intermediate for any purpose", |_, draft| {
        draft.issuer().set(EXTENDED_KEY_USAGE, false, purpose(&[ANY]));
    });
    list.bad(Part::IssuerPurpose, "intermediate for code signing", |_, draft| {
        draft.issuer().set(EXTENDED_KEY_USAGE, false, purpose(&[CODE_SIGNING]));
    });
    list.bad(Part::Root, "root for the other purpose", |site, draft| {
        draft.root().set(EXTENDED_KEY_USAGE, false, purpose(&[site.other_purpose]));
    });
}

fn usages(list: &mut Catalogue) {
    list.good(Part::LeafUsage, "leaf without key usage", |_, draft| draft.leaf().remove(KEY_USAGE));
    list.good(Part::LeafUsage, "leaf's key usage not critical", |_, draft| {
        draft.leaf().extension(KEY_USAGE).critical = Vec::new();
    });
    for (name, bits) in [
        ("leaf for key encipherment", &[2][..]),
        ("leaf for key agreement", &[4]),
        ("leaf for signatures and certificate signing", &[0, 5]),
        ("leaf for certificate signing", &[5]),
        ("leaf for revocation lists", &[6]),
    ] {
        list.bad(Part::LeafUsage, name, move |_, draft| draft.leaf().set(KEY_USAGE, true, usage(bits)));
    }
    list.good(Part::LeafUsage, "leaf for signatures and key agreement", |_, draft| {
        draft.leaf().set(KEY_USAGE, true, usage(&[0, 4]));
    });
    list.bad(Part::LeafUsage, "leaf for nothing", |_, draft| draft.leaf().set(KEY_USAGE, true, bits(0, &[])));
    list.bad(Part::IssuerUsage, "intermediate without key usage", |_, draft| draft.issuer().remove(KEY_USAGE));
    list.bad(Part::IssuerUsage, "intermediate for revocation lists", |_, draft| {
        draft.issuer().set(KEY_USAGE, true, usage(&[6]));
    });
    list.bad(Part::IssuerUsage, "intermediate for signatures", |_, draft| {
        draft.issuer().set(KEY_USAGE, true, usage(&[0]));
    });
    list.good(Part::IssuerUsage, "intermediate for signatures and certificate signing", |_, draft| {
        draft.issuer().set(KEY_USAGE, true, usage(&[0, 5, 6]));
    });
    list.good(Part::IssuerUsage, "intermediate's key usage not critical", |_, draft| {
        draft.issuer().extension(KEY_USAGE).critical = Vec::new();
    });
}

fn basic(list: &mut Catalogue) {
    list.good(Part::LeafBasic, "leaf without basic constraints", |_, draft| draft.leaf().remove(BASIC_CONSTRAINTS));
    list.good(Part::LeafBasic, "leaf's basic constraints not critical", |_, draft| {
        draft.leaf().extension(BASIC_CONSTRAINTS).critical = Vec::new();
    });
    list.bad(Part::LeafBasic, "leaf that is an authority", |_, draft| {
        draft.leaf().set(BASIC_CONSTRAINTS, true, authority(None));
    });
    list.bad(Part::LeafBasic, "leaf that is an authority and may issue", |_, draft| {
        draft.leaf().set(BASIC_CONSTRAINTS, true, authority(None));
        draft.leaf().set(KEY_USAGE, true, usage(&[0, 5]));
    })
    .alone();
    list.bad(Part::LeafBasic, "leaf with a path length", |_, draft| {
        draft.leaf().set(BASIC_CONSTRAINTS, true, sequence(&[&integer(&[0])]));
    });
    // No DER, and yet every judge takes it: certificates of others are full of it.
    list.good(Part::LeafBasic, "leaf that says that it is no authority, which is the default", |_, draft| {
        draft.leaf().set(BASIC_CONSTRAINTS, true, sequence(&[&[1, 1, 0]]));
    });
    list.bad(Part::IssuerBasic, "intermediate without basic constraints", |_, draft| {
        draft.issuer().remove(BASIC_CONSTRAINTS);
    });
    list.bad(Part::IssuerBasic, "intermediate that is no authority", |_, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, sequence(&[]));
    });
    list.bad(Part::IssuerBasic, "intermediate's basic constraints not critical", |_, draft| {
        draft.issuer().extension(BASIC_CONSTRAINTS).critical = Vec::new();
    });
    list.bad(Part::IssuerBasic, "intermediate that is an authority by another truth than DER's", |_, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, sequence(&[&[1, 1, 1], &integer(&[0])]));
    });
}

fn roots(list: &mut Catalogue) {
    list.bad(Part::Root, "root without basic constraints", |_, draft| draft.root().remove(BASIC_CONSTRAINTS));
    list.bad(Part::Root, "root that is no authority", |_, draft| {
        draft.root().set(BASIC_CONSTRAINTS, true, sequence(&[]));
    });
    list.bad(Part::Root, "root's basic constraints not critical", |_, draft| {
        draft.root().extension(BASIC_CONSTRAINTS).critical = Vec::new();
    });
    list.bad(Part::Root, "root with path length 0", |_, draft| {
        draft.root().set(BASIC_CONSTRAINTS, true, authority(Some(&[0])));
    });
    list.bad(Part::Root, "root with path length 1", |_, draft| {
        draft.root().set(BASIC_CONSTRAINTS, true, authority(Some(&[1])));
    });
    list.bad(Part::Root, "root without key usage", |_, draft| draft.root().remove(KEY_USAGE));
    list.bad(Part::Root, "root for revocation lists alone", |_, draft| draft.root().set(KEY_USAGE, true, usage(&[6])));
    list.bad(Part::Root, "root without subject key identifier", |_, draft| {
        draft.root().remove(SUBJECT_KEY_ID);
        draft.issuer().keeps_authority_key_id = true;
    });
    list.bad(Part::Root, "root with an unknown critical extension", |_, draft| {
        draft.root().set(UNKNOWN, true, vec![5, 0]);
    });
}

fn unknown(list: &mut Catalogue) {
    list.good(Part::LeafExtensions, "unknown extension in the leaf", |_, draft| {
        draft.leaf().set(UNKNOWN, false, vec![5, 0]);
    });
    list.bad(Part::LeafExtensions, "unknown critical extension in the leaf", |_, draft| {
        draft.leaf().set(UNKNOWN, true, vec![5, 0]);
    });
    list.good(Part::IssuerExtensions, "unknown extension in the intermediate", |_, draft| {
        draft.issuer().set(UNKNOWN, false, vec![5, 0]);
    });
    list.bad(Part::IssuerExtensions, "unknown critical extension in the intermediate", |_, draft| {
        draft.issuer().set(UNKNOWN, true, vec![5, 0]);
    });
    list.bad(Part::LeafExtensions, "Certificate Transparency's poison in the leaf", |_, draft| {
        draft.leaf().set("1.3.6.1.4.1.11129.2.4.3", true, vec![5, 0]);
    });
    list.bad(Part::LeafExtensions, "an extension twice in the leaf", |_, draft| {
        let twice = extension(UNKNOWN, false, vec![5, 0]);
        draft.leaf().extensions.extend([twice.clone(), twice]);
    });
    list.bad(Part::Names, "two lists of names in the leaf", |site, draft| {
        let others = super::names::dns(&[&site.others]);
        draft.leaf().extensions.push(extension(ALTERNATIVE_NAMES, false, others));
    });
    list.bad(Part::IssuerExtensions, "an extension twice in the intermediate", |_, draft| {
        let twice = extension(UNKNOWN, false, vec![5, 0]);
        draft.issuer().extensions.extend([twice.clone(), twice]);
    });
    list.bad(Part::IssuerBasic, "two basic constraints in the intermediate", |_, draft| {
        draft.issuer().extensions.push(extension(BASIC_CONSTRAINTS, true, authority(None)));
    });
}

/// What our authorities never say, and RFC 5280 lets others say.
fn policies(list: &mut Catalogue) {
    let policy = || sequence(&[&sequence(&[&oid(UNKNOWN)])]);
    list.good(Part::LeafExtensions, "a policy in the leaf", move |_, draft| {
        draft.leaf().set("2.5.29.32", false, policy());
    });
    list.bad(Part::LeafExtensions, "a critical policy in the leaf", move |_, draft| {
        draft.leaf().set("2.5.29.32", true, policy());
    });
    list.bad(Part::IssuerExtensions, "an explicit policy required and none given", |_, draft| {
        draft.issuer().set("2.5.29.36", true, sequence(&[&context(0, &[0])]));
    });
    list.bad(Part::IssuerExtensions, "any policy inhibited", |_, draft| {
        draft.issuer().set("2.5.29.54", true, integer(&[0]));
    });
    list.good(Part::LeafExtensions, "a critical place for revocation lists in the leaf", |_, draft| {
        let place = explicit(0, &explicit(0, &context(6, b"http://example.com/crl")));
        draft.leaf().set("2.5.29.31", true, sequence(&[&sequence(&[&place])]));
    });
    list.bad(Part::LeafExtensions, "must be stapled", |_, draft| {
        draft.leaf().set("1.3.6.1.5.5.7.1.24", true, sequence(&[&integer(&[5])]));
    });
}

/// Value of a key usage with these bits (RFC 5280, section 4.2.1.3).
pub(super) fn usage(set: &[u8]) -> Vec<u8> {
    let last = set.iter().copied().max().expect("one");
    bits(7 - last, &[set.iter().fold(0, |byte, bit| byte | 0x80 >> bit)])
}

fn purpose(purposes: &[&str]) -> Vec<u8> {
    tlv(crate::der::SEQUENCE, &purposes.iter().map(|purpose| oid(purpose)).collect::<Vec<_>>().concat())
}

/// Value of an authority's basic constraints, with the content of the path length's integer.
pub(super) fn authority(path_length: Option<&[u8]>) -> Vec<u8> {
    sequence(&[&[1, 1, 0xff], &path_length.map(integer).unwrap_or_default()])
}

#[test]
fn values_are_as_the_standard_gives_them() {
    assert_eq!(usage(&[5, 6]), [3, 2, 1, 6]);
    assert_eq!(usage(&[0]), [3, 2, 7, 0x80]);
    assert_eq!(authority(Some(&[0])), [0x30, 6, 1, 1, 0xff, 2, 1, 0]);
    assert_eq!(octets(&[5]), [4, 1, 5]);
}
