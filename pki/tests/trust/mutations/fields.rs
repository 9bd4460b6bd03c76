//! Validity, serial numbers, versions, signatures and keys.

use std::sync::Arc;
use std::time::Duration;

use protocol::Timestamp;

use super::{Catalogue, Part, Site};
use crate::der::{bits, digits, generalized, oid, sequence, time, tlv, utc};
use crate::draft::{Certificate, Draft, Hash, Key};

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn add(list: &mut Catalogue) {
    validity(list);
    times(list);
    serials(list);
    versions(list);
    signatures(list);
    keys(list);
}

/// One of the certificates of a chain.
type Which = fn(&mut Draft) -> &mut Certificate;

fn validity(list: &mut Catalogue) {
    let all: [(&str, Part, Which); 3] = [
        ("leaf", Part::LeafValidity, Draft::leaf),
        ("intermediate", Part::IssuerValidity, Draft::issuer),
        ("root", Part::Root, Draft::root),
    ];
    for (name, part, which) in all {
        list.bad(part, format!("{name} expired"), move |site, draft| {
            which(draft).not_before = time(site.now.minus(DAY * 30));
            which(draft).not_after = time(site.now.minus(DAY));
        });
        list.bad(part, format!("{name} not yet valid"), move |site, draft| {
            which(draft).not_before = time(site.now.plus(DAY));
        });
        list.bad(part, format!("{name} ends before it begins"), move |site, draft| {
            which(draft).not_before = time(site.now.plus(DAY));
            which(draft).not_after = time(site.now.minus(DAY));
        });
        list.good(part, format!("{name} without a known end"), move |_, draft| {
            which(draft).not_after = generalized("99991231235959Z");
        });
    }
    list.good(Part::LeafValidity, "leaf outlives its issuer", |site, draft| {
        draft.leaf().not_after = time(site.now.plus(DAY * 2000));
    });
    list.good(Part::LeafValidity, "leaf older than its issuer", |site, draft| {
        draft.leaf().not_before = time(site.now.minus(DAY * 2000));
    });
    list.good(Part::IssuerValidity, "intermediate outlives the root", |site, draft| {
        draft.issuer().not_after = time(site.now.plus(DAY * 5000));
    });
}

/// Times that are not written as they should be.
fn times(list: &mut Catalogue) {
    let short = |at: Timestamp| digits(at)[2..12].to_owned();
    list.bad(Part::LeafValidity, "leaf's end without seconds", move |site, draft| {
        draft.leaf().not_after = utc(&format!("{}Z", short(site.now.plus(DAY * 2))));
    });
    list.bad(Part::LeafValidity, "leaf's end in a time zone", |site, draft| {
        draft.leaf().not_after = utc(&format!("{}+0000", &digits(site.now.plus(DAY * 2))[2..]));
    });
    list.bad(Part::LeafValidity, "leaf's end of this century in four digits", |site, draft| {
        draft.leaf().not_after = generalized(&format!("{}Z", digits(site.now.plus(DAY * 2))));
    });
    list.bad(Part::LeafValidity, "leaf's end with a fraction of a second", |_, draft| {
        draft.leaf().not_after = generalized("20551231235959.5Z");
    });
    list.bad(Part::LeafValidity, "leaf's end in a thirteenth month", |_, draft| {
        draft.leaf().not_after = utc("491331000000Z");
    });
    list.bad(Part::LeafValidity, "leaf's end in the last century", |_, draft| {
        draft.leaf().not_after = utc("991231235959Z");
    });
    list.bad(Part::LeafValidity, "leaf's end a text", |_, draft| {
        draft.leaf().not_after = tlv(crate::der::UTF8, b"491231000000Z");
    });
}

fn serials(list: &mut Catalogue) {
    let numbers: [(&str, &[u8]); 7] = [
        ("zero", &[0]),
        ("negative", &[0x80; 16]),
        ("of 21 bytes", &[0x42; 21]),
        ("of 20 bytes and a sign", &[&[0], &[0xff; 20][..]].concat().leak()[..]),
        ("with needless zeroes before", &[&[0, 0], &[0x42; 14][..]].concat().leak()[..]),
        ("of no bytes", &[]),
        ("of one byte", &[7]),
    ];
    for (name, number) in numbers {
        let legal = name == "of one byte" || name == "with needless zeroes before";
        let add = |list: &mut Catalogue, part, name: String, which: Which| {
            let apply = move |_: &Site, draft: &mut Draft| which(draft).serial = number.to_vec();
            match legal {
                true if part == Part::LeafSerial && number.len() == 1 => list.strange(part, name, apply),
                true if number.len() == 1 => list.good(part, name, apply),
                _ => list.bad(part, name, apply),
            };
        };
        add(list, Part::LeafSerial, format!("leaf's serial {name}"), Draft::leaf);
        add(list, Part::IssuerSerial, format!("intermediate's serial {name}"), Draft::issuer);
    }
    list.strange(Part::LeafSerial, "leaf's serial of 20 bytes", |_, draft| draft.leaf().serial = vec![0x42; 20]);
    list.good(Part::LeafSerial, "leaf's serial the intermediate's", |_, draft| {
        draft.leaf().serial = draft.issuer().serial.clone();
    });
    list.good(Part::IssuerSerial, "intermediate's serial the root's", |_, draft| {
        draft.issuer().serial = draft.root().serial.clone();
    });
}

fn versions(list: &mut Catalogue) {
    let all: [(&str, Which); 3] = [("leaf", Draft::leaf), ("intermediate", Draft::issuer), ("root", Draft::root)];
    for (name, which) in all {
        list.bad(Part::Version, format!("{name} of version 1, with extensions"), move |_, draft| {
            which(draft).version = None;
        });
        list.bad(Part::Version, format!("{name} of version 1, in so many words"), move |_, draft| {
            which(draft).version = Some(0);
        });
        list.bad(Part::Version, format!("{name} of version 2, with extensions"), move |_, draft| {
            which(draft).version = Some(1);
        });
        list.bad(Part::Version, format!("{name} of version 4"), move |_, draft| which(draft).version = Some(3));
        list.bad(Part::Version, format!("{name} of version 1, without extensions"), move |_, draft| {
            which(draft).version = None;
            which(draft).extensions.clear();
        })
        .alone();
    }
    list.bad(Part::Version, "leaf with unique identifiers", |_, draft| {
        draft.leaf().unique_ids = [tlv(0x81, &[0, 1]), tlv(0x82, &[0, 2])].concat();
    });
    list.bad(Part::Version, "leaf without extensions", |_, draft| draft.leaf().extensions.clear()).alone();
    list.bad(Part::Version, "intermediate without extensions", |_, draft| draft.issuer().extensions.clear()).alone();
}

fn signatures(list: &mut Catalogue) {
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().expect("a byte") ^= 1;
    let all: [(&str, Part, Which); 2] =
        [("leaf", Part::LeafSignature, Draft::leaf), ("intermediate", Part::IssuerSignature, Draft::issuer)];
    for (name, part, which) in all {
        list.bad(part, format!("{name}'s signature with a bit flipped"), move |_, draft| {
            which(draft).forge = Some(flip);
        });
        list.bad(part, format!("{name}'s signature empty"), move |_, draft| which(draft).forge = Some(Vec::clear));
        list.bad(part, format!("{name}'s signature with a byte more"), move |_, draft| {
            which(draft).forge = Some(|signature| signature.push(0));
        });
        list.bad(part, format!("{name}'s signature of zeroes"), move |_, draft| {
            which(draft).forge = Some(|signature| *signature = sequence(&[&[2, 1, 0], &[2, 1, 0]]));
        });
        list.bad(part, format!("{name} signed by a stranger"), move |site, draft| {
            which(draft).signer = Some(Arc::clone(&site.keys.stranger));
        });
        list.bad(part, format!("{name} signed by itself"), move |_, draft| {
            which(draft).signer = Some(Arc::clone(&which(draft).key));
        });
        list.bad(part, format!("{name} changed after it was signed"), move |_, draft| {
            which(draft).damage = Some(|whole| {
                // Among the bytes of the public key or of the names.
                let middle = whole.len() / 2;
                whole[middle] ^= 1;
            });
        })
        .alone();
        list.bad(part, format!("{name} signed with SHA-1"), move |_, draft| which(draft).hash = Hash::Sha1);
        list.bad(part, format!("{name}'s two algorithms differ"), move |site, draft| {
            which(draft).outer_algorithm = Some(site.keys.stranger.algorithm(Hash::Sha384));
        });
        list.bad(part, format!("{name}'s algorithm another than it was signed with"), move |site, draft| {
            let wrong = site.keys.stranger.algorithm(Hash::Sha384);
            (which(draft).algorithm, which(draft).outer_algorithm) = (Some(wrong.clone()), Some(wrong));
        });
        list.bad(part, format!("{name}'s algorithm unknown"), move |_, draft| {
            let unknown = sequence(&[&oid("1.2.3.4")]);
            (which(draft).algorithm, which(draft).outer_algorithm) = (Some(unknown.clone()), Some(unknown));
        });
        list.bad(part, format!("{name}'s algorithm with parameters"), move |_, draft| {
            let odd = sequence(&[&oid("1.2.840.10045.4.3.2"), &tlv(5, &[])]);
            (which(draft).algorithm, which(draft).outer_algorithm) = (Some(odd.clone()), Some(odd));
        });
    }
    list.good(Part::LeafSignature, "leaf signed with SHA-384", |_, draft| draft.leaf().hash = Hash::Sha384);
    list.bad(Part::Root, "root's own signature with a bit flipped", move |_, draft| draft.root().forge = Some(flip));
}

fn keys(list: &mut Catalogue) {
    let kinds: [(&str, fn(&Site) -> &Arc<Key>, [bool; 3]); 5] = [
        ("P-384", |site| &site.keys.p384, [true, true, true]),
        ("Ed25519", |site| &site.keys.ed25519, [true, true, true]),
        ("RSA 2048", |site| &site.keys.rsa_2048, [true, true, true]),
        ("RSA 1024", |site| &site.keys.rsa_1024, [false; 3]),
        ("P-521", |site| &site.keys.p521, [false; 3]),
    ];
    let places: [(&str, Part, Which); 3] = [
        ("leaf", Part::LeafKey, Draft::leaf),
        ("intermediate", Part::IssuerKey, Draft::issuer),
        ("root", Part::Root, Draft::root),
    ];
    for (kind, key, fine) in kinds {
        for ((place, part, which), fine) in places.into_iter().zip(fine) {
            let apply = move |site: &Site, draft: &mut Draft| {
                which(draft).give(key(site));
                let long = kind == "P-384";
                // What P-384 signs is hashed with SHA-384.
                if long && place == "root" {
                    (draft.root().hash, draft.issuer().hash) = (Hash::Sha384, Hash::Sha384);
                } else if long && place == "intermediate" {
                    draft.leaf().hash = Hash::Sha384;
                }
            };
            let name = format!("{place} with an {kind} key");
            if fine {
                list.good(part, name, apply)
            } else {
                list.bad(part, name, apply)
            };
        }
    }
    list.bad(Part::LeafKey, "leaf's point compressed", |_, draft| {
        let spki = draft.leaf().spki.clone();
        let point = &spki[spki.len() - 64..];
        let short = [&[2 + (point[63] & 1)], &point[..32]].concat();
        draft.leaf().spki = sequence(&[&curve(&oid("1.2.840.10045.3.1.7")), &bits(0, &short)]);
    });
    list.bad(Part::LeafKey, "leaf's point not on the curve", |_, draft| {
        let last = draft.leaf().spki.len() - 1;
        draft.leaf().spki[last] ^= 1;
    });
    list.bad(Part::LeafKey, "leaf's curve unknown", |_, draft| {
        let spki = draft.leaf().spki.clone();
        let point = spki[spki.len() - 65..].to_vec();
        draft.leaf().spki = sequence(&[&curve(&oid("1.2.3.4")), &bits(0, &point)]);
    });
    list.bad(Part::IssuerKey, "intermediate's point compressed", |_, draft| {
        let spki = draft.issuer().spki.clone();
        let point = &spki[spki.len() - 64..];
        let short = [&[2 + (point[63] & 1)], &point[..32]].concat();
        draft.issuer().spki = sequence(&[&curve(&oid("1.2.840.10045.3.1.7")), &bits(0, &short)]);
    });
}

/// Identifier of a key on this curve.
fn curve(name: &[u8]) -> Vec<u8> {
    sequence(&[&oid("1.2.840.10045.2.1"), name])
}
