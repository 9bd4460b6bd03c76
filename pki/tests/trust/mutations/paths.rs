//! Path building and path length: what is sent, in which order, by whom it was issued, how long the path is.

use std::sync::Arc;

use hyperfactory_pki::CertificateDer;

use super::{Catalogue, Part, Site};
use crate::der::{self, COMMON_NAME, PRINTABLE, UTF8, context, explicit, name, sequence};
use crate::draft::{AUTHORITY_KEY_ID, BASIC_CONSTRAINTS, Certificate, Draft, NAME_CONSTRAINTS, SUBJECT_KEY_ID};
use crate::draft::{EXTENDED_KEY_USAGE, KEY_USAGE};
use crate::mutations::extensions::{authority, usage};
use crate::mutations::names;

pub(super) fn add(list: &mut Catalogue) {
    sent(list);
    anchors(list);
    issuers(list);
    key_ids(list);
    lengths(list);
}

/// What is sent besides the leaf.
fn sent(list: &mut Catalogue) {
    list.good(Part::Path, "as issued", |_, _| {});
    list.strange(Part::Path, "root sent too", |site, draft| {
        let root = site.root.clone();
        draft.afterwards(move |shown| shown.chain.push(root.clone()));
    });
    list.bad(Part::Path, "no intermediate", |_, draft| draft.afterwards(|shown| shown.chain.truncate(1)));
    list.bad(Part::Path, "intermediate first", |_, draft| draft.afterwards(|shown| shown.chain.reverse())).alone();
    list.strange(Part::Path, "intermediate twice", |_, draft| {
        draft.afterwards(|shown| shown.chain.push(shown.chain[1].clone()));
    });
    list.strange(Part::Path, "stranger's intermediate before", |site, draft| {
        let other = site.other_issuer.clone();
        draft.afterwards(move |shown| shown.chain.insert(1, other.clone()));
    });
    list.bad(Part::Path, "stranger's intermediate instead", |site, draft| {
        let other = site.other_issuer.clone();
        draft.afterwards(move |shown| shown.chain[1] = other.clone());
    });
    list.bad(Part::Path, "leaf alone, signed by itself", |site, draft| {
        let mut leaf = draft.leaf().clone();
        leaf.give(&site.keys.stranger);
        let alone = CertificateDer::from(leaf.signed_by(&leaf));
        let key = Arc::clone(&site.keys.stranger);
        draft.afterwards(move |shown| {
            shown.chain = vec![alone.clone()];
            shown.key = Arc::clone(&key);
        });
    })
    .alone();
    list.bad(Part::Path, "root as the holder", |_, draft| {
        let key = Arc::clone(&draft.root().key);
        draft.afterwards(move |shown| {
            shown.chain = shown.anchors.clone();
            shown.key = Arc::clone(&key);
        });
    })
    .alone();
    list.bad(Part::Path, "intermediate as the holder", |_, draft| {
        let key = Arc::clone(&draft.issuer().key);
        draft.afterwards(move |shown| {
            shown.chain.remove(0);
            shown.key = Arc::clone(&key);
        });
    })
    .alone();
}

/// What is trusted.
fn anchors(list: &mut Catalogue) {
    list.bad(Part::Path, "another fleet's root trusted", |site, draft| {
        let next = site.next_root.clone();
        draft.afterwards(move |shown| shown.anchors = vec![next.clone()]);
    });
    list.good(Part::Path, "two roots trusted, the right one last", |site, draft| {
        let next = site.next_root.clone();
        draft.afterwards(move |shown| shown.anchors.insert(0, next.clone()));
    });
    list.good(Part::Path, "two roots of one name trusted, the right one last", |site, draft| {
        let twin = twin(site, draft.root());
        draft.afterwards(move |shown| shown.anchors.insert(0, twin.clone()));
    });
    list.bad(Part::Path, "only the other root of this name trusted", |site, draft| {
        let twin = twin(site, draft.root());
        draft.afterwards(move |shown| shown.anchors = vec![twin.clone()]);
    });
    list.good(Part::Path, "root issued anew for its key trusted", |_, draft| {
        let mut renewed = draft.root().clone();
        renewed.serial[1] ^= 1;
        let renewed = CertificateDer::from(renewed.signed_by(&renewed));
        draft.afterwards(move |shown| shown.anchors = vec![renewed.clone()]);
    });
    list.strange(Part::Path, "the next root trusted, its link to this one sent", |site, draft| {
        let (next, link) = (site.next_root.clone(), site.link.clone());
        draft.afterwards(move |shown| {
            shown.anchors = vec![next.clone()];
            shown.chain.push(link.clone());
        });
    });
    list.bad(Part::Path, "the next root trusted, no link sent", |site, draft| {
        let next = site.next_root.clone();
        draft.afterwards(move |shown| shown.anchors = vec![next.clone()]);
    });
    list.bad(Part::Path, "a link trusted for a root", |site, draft| {
        let link = site.link.clone();
        draft.afterwards(move |shown| shown.anchors = vec![link.clone()]);
    });
    list.bad(Part::Path, "the intermediate trusted for a root", |_, draft| {
        draft.afterwards(|shown| shown.anchors = vec![shown.chain[1].clone()]);
    });
    list.bad(Part::Path, "the leaf trusted for a root", |_, draft| {
        draft.afterwards(|shown| shown.anchors = vec![shown.chain[0].clone()]);
    });
}

/// Who issued what.
fn issuers(list: &mut Catalogue) {
    list.strange(Part::Path, "leaf of the root itself", |_, draft| drop(draft.path.remove(1))).alone();
    list.bad(Part::Path, "leaf of an honest leaf", |site, draft| {
        let mut below = draft.leaf().clone();
        below.give(&site.keys.stranger);
        draft.path.push(below);
    })
    .alone();
    list.bad(Part::Path, "leaf of another tenant's intermediate", |site, draft| {
        *draft.issuer() = Certificate::of(&site.other_issuer, Arc::clone(&site.other_issuer_key));
    })
    .alone();
    list.bad(Part::Path, "leaf names another issuer", |_, draft| {
        draft.leaf().issuer = Some(name(&[(COMMON_NAME, UTF8, "somebody")]));
    });
    list.bad(Part::Path, "leaf names its issuer in upper case", |_, draft| {
        draft.leaf().issuer = Some(recoded(&draft.issuer().subject, UTF8, true));
    });
    list.bad(Part::Path, "leaf names its issuer in another kind of string", |_, draft| {
        draft.leaf().issuer = Some(recoded(&draft.issuer().subject, PRINTABLE, false));
    });
    list.bad(Part::Path, "intermediate with a new key sent, leaf of the old one", |site, draft| {
        let twin = twin_of(site, draft);
        draft.afterwards(move |shown| shown.chain[1] = twin.clone());
    });
    list.strange(Part::Path, "both intermediates of one name sent, the right one last", |site, draft| {
        let twin = twin_of(site, draft);
        draft.afterwards(move |shown| shown.chain.insert(1, twin.clone()));
    });
    list.strange(Part::Path, "both intermediates of one name sent, the right one first", |site, draft| {
        let twin = twin_of(site, draft);
        draft.afterwards(move |shown| shown.chain.push(twin.clone()));
    });
    list.strange(Part::Path, "both intermediates of one name and one key identifier sent", |site, draft| {
        let id = draft.issuer().extension(SUBJECT_KEY_ID).value.clone();
        let mut twin = draft.issuer().clone();
        twin.give(&site.keys.stranger);
        twin.set(SUBJECT_KEY_ID, false, id);
        let twin = CertificateDer::from(twin.signed_by(draft.root()));
        draft.afterwards(move |shown| shown.chain.insert(1, twin.clone()));
    });
    list.good(Part::Path, "intermediate issued anew for its key sent", |_, draft| {
        let mut renewed = draft.issuer().clone();
        renewed.serial[1] ^= 1;
        let renewed = CertificateDer::from(renewed.signed_by(draft.root()));
        draft.afterwards(move |shown| shown.chain[1] = renewed.clone());
    })
    .alone();
    list.strange(Part::Path, "expired and renewed intermediate sent", |_, draft| {
        let mut expired = draft.issuer().clone();
        expired.not_after = der::utc("250101000000Z");
        expired.not_before = der::utc("240101000000Z");
        let expired = CertificateDer::from(expired.signed_by(draft.root()));
        draft.afterwards(move |shown| shown.chain.insert(1, expired.clone()));
    })
    .alone();
}

/// Key identifiers.
fn key_ids(list: &mut Catalogue) {
    list.bad(Part::LeafExtensions, "leaf without authority key identifier", |_, draft| {
        draft.leaf().remove(AUTHORITY_KEY_ID);
    });
    list.bad(Part::LeafExtensions, "leaf with another authority key identifier", |_, draft| {
        draft.leaf().set(AUTHORITY_KEY_ID, false, sequence(&[&context(0, &[7; 20])]));
        draft.leaf().keeps_authority_key_id = true;
    });
    list.bad(Part::LeafExtensions, "leaf with an empty authority key identifier", |_, draft| {
        draft.leaf().set(AUTHORITY_KEY_ID, false, sequence(&[]));
        draft.leaf().keeps_authority_key_id = true;
    });
    list.bad(Part::LeafExtensions, "leaf names another serial of its issuer", |_, draft| {
        let id = context(0, &draft.issuer().extension(SUBJECT_KEY_ID).value[2..]);
        let root = explicit(1, &explicit(4, &draft.root().subject));
        draft.leaf().set(AUTHORITY_KEY_ID, false, sequence(&[&id, &root, &context(2, &[0x41; 16])]));
        draft.leaf().keeps_authority_key_id = true;
    });
    list.good(Part::LeafExtensions, "leaf without subject key identifier", |_, draft| {
        draft.leaf().remove(SUBJECT_KEY_ID);
    });
    list.bad(Part::IssuerExtensions, "intermediate without subject key identifier", |_, draft| {
        draft.issuer().remove(SUBJECT_KEY_ID);
        draft.leaf().keeps_authority_key_id = true;
    });
    list.bad(Part::IssuerExtensions, "intermediate without authority key identifier", |_, draft| {
        draft.issuer().remove(AUTHORITY_KEY_ID);
    });
    list.bad(Part::IssuerExtensions, "intermediate with another authority key identifier", |_, draft| {
        draft.issuer().set(AUTHORITY_KEY_ID, false, sequence(&[&context(0, &[7; 20])]));
        draft.issuer().keeps_authority_key_id = true;
    });
    list.good(Part::Root, "root without authority key identifier", |_, draft| draft.root().remove(AUTHORITY_KEY_ID));
}

/// Path length.
fn lengths(list: &mut Catalogue) {
    list.good(Part::PathLength, "intermediate without path length", |_, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, authority(None));
    });
    list.good(Part::PathLength, "intermediate with path length 3", |_, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, authority(Some(&[3])));
    });
    list.bad(Part::PathLength, "intermediate with a negative path length", |_, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, authority(Some(&[0xff])));
    });
    list.bad(Part::PathLength, "path length 0 and an authority below", |site, draft| below(site, draft, "below"))
        .alone();
    list.bad(Part::PathLength, "path length 0 and an authority of the same name below", |site, draft| {
        below(site, draft, "");
    })
    .alone();
    list.strange(Part::PathLength, "no path length and an authority below", |site, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, authority(None));
        below(site, draft, "below");
    })
    .alone();
    list.strange(Part::PathLength, "path length 1 and an authority below", |site, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, authority(Some(&[1])));
        below(site, draft, "below");
    })
    .alone();
    list.bad(Part::PathLength, "an authority below that widens the name constraints", |site, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, authority(None));
        below(site, draft, "below");
        draft.path[2].set(NAME_CONSTRAINTS, true, names::permitted(&["hyperfactory.internal"]));
        draft.leaf().set(crate::draft::ALTERNATIVE_NAMES, false, names::dns(&[&site.others]));
    })
    .alone();
    list.bad(Part::PathLength, "ten authorities below", |site, draft| {
        draft.issuer().set(BASIC_CONSTRAINTS, true, authority(None));
        for number in 0..10 {
            below(site, draft, &format!("below {number}"));
        }
    })
    .alone();
}

/// Puts an authority between the leaf and its issuer, called as the issuer where there is no other name.
fn below(site: &Site, draft: &mut Draft, called: &str) {
    let mut middle = draft.issuer().clone();
    middle.serial[1] ^= 1;
    middle.give(&site.keys.stranger);
    middle.set(BASIC_CONSTRAINTS, true, authority(None));
    middle.set(KEY_USAGE, true, usage(&[5, 6]));
    middle.remove(NAME_CONSTRAINTS);
    middle.remove(EXTENDED_KEY_USAGE);
    if !called.is_empty() {
        middle.subject = name(&[(COMMON_NAME, UTF8, called)]);
    }
    draft.path.insert(draft.path.len() - 1, middle);
}

/// A root of the same name and another key.
fn twin(site: &Site, root: &Certificate) -> CertificateDer<'static> {
    let mut twin = root.clone();
    twin.give(&site.keys.stranger);
    twin.signed_by(&twin).into()
}

/// The intermediate with another key.
fn twin_of(site: &Site, draft: &mut Draft) -> CertificateDer<'static> {
    let mut twin = draft.issuer().clone();
    twin.serial[1] ^= 1;
    twin.give(&site.keys.stranger);
    twin.signed_by(draft.root()).into()
}

/// A name with its strings in another kind, or in upper case.
fn recoded(subject: &[u8], kind: u8, upper: bool) -> Vec<u8> {
    let (_, subject) = <x509_parser::prelude::X509Name<'_> as x509_parser::prelude::FromDer<'_, _>>::from_der(subject)
        .expect("a name");
    let attributes: Vec<_> = subject
        .iter_attributes()
        .map(|attribute| {
            let text = attribute.as_str().expect("text");
            (attribute.attr_type().to_id_string(), if upper { text.to_uppercase() } else { text.to_owned() })
        })
        .collect();
    name(&attributes.iter().map(|(oid, text)| (oid.as_str(), kind, text.as_str())).collect::<Vec<_>>())
}
