//! What is no DER, or more than one certificate.

use super::{Catalogue, Part};
use crate::draft::{ALTERNATIVE_NAMES, BASIC_CONSTRAINTS, Certificate, Draft};

pub(super) fn add(list: &mut Catalogue) {
    let all: [(&str, fn(&mut Draft) -> &mut Certificate); 2] = [("leaf", Draft::leaf), ("intermediate", Draft::issuer)];
    for (name, which) in all {
        let damages: [(&str, fn(&mut Vec<u8>)); 7] = [
            ("with a byte after it", |whole| whole.push(0)),
            ("with a byte more within it", |whole| {
                whole.push(0);
                add_to_length(whole, 1);
            }),
            ("cut short", |whole| whole.truncate(whole.len() / 2)),
            ("of no bytes", Vec::clear),
            ("of indefinite length", |whole| {
                whole.splice(..4, [0x30, 0x80]);
                whole.extend([0, 0]);
            }),
            ("with its length in too many bytes", |whole| drop(whole.splice(1..2, [0x83, 0]))),
            ("that is rubbish", |whole| *whole = b"rubbish".to_vec()),
        ];
        for (what, damage) in damages {
            list.bad(Part::Encoding, format!("{name} {what}"), move |_, draft| which(draft).damage = Some(damage))
                .alone();
        }
        list.bad(Part::Encoding, format!("{name} with a byte more among what is signed"), move |_, draft| {
            which(draft).distort = Some(|signed| {
                signed.push(0);
                add_to_length(signed, 1);
            });
        });
        list.bad(Part::Encoding, format!("{name} with more after the extensions"), move |_, draft| {
            which(draft).distort = Some(|signed| {
                signed.extend([5, 0]);
                add_to_length(signed, 2);
            });
        });
        // No DER either, and taken by every judge.
        list.good(
            Part::Encoding,
            format!("{name} with an extension that says that it is not critical"),
            move |_, draft| {
                which(draft).set("1.2.3.4", false, vec![5, 0]);
                which(draft).extension("1.2.3.4").critical = vec![1, 1, 0];
            },
        );
        list.bad(
            Part::Encoding,
            format!("{name} with an extension critical by another truth than DER's"),
            move |_, draft| {
                which(draft).extension(BASIC_CONSTRAINTS).critical = vec![1, 1, 1];
            },
        );
        list.bad(Part::Encoding, format!("{name} with a byte after its basic constraints"), move |_, draft| {
            which(draft).extension(BASIC_CONSTRAINTS).value.push(0);
        });
    }
    list.bad(Part::Encoding, "leaf with a byte after its names", |_, draft| {
        draft.leaf().extension(ALTERNATIVE_NAMES).value.push(0);
    });
}

/// To the two bytes of length of a long value.
fn add_to_length(value: &mut [u8], more: u16) {
    let length = u16::from_be_bytes([value[2], value[3]]) + more;
    value[2..4].copy_from_slice(&length.to_be_bytes());
}
