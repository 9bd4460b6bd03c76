//! DER by hand (X.690), as much of it as wrong certificates need: rcgen makes none.

use std::time::Duration;

use protocol::Timestamp;

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const UTF8: u8 = 0x0c;
pub(crate) const PRINTABLE: u8 = 0x13;

/// One value: its tag, the length of its content in the fewest bytes, and the content.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut out = vec![tag];
    match content.len() {
        0..0x80 => out.push(content.len() as u8),
        _ => {
            out.push(0x80 | length.len() as u8);
            out.extend(length);
        }
    }
    out.extend(content);
    out
}

pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

/// `content` as it is, be it an integer in DER or not.
pub(crate) fn integer(content: &[u8]) -> Vec<u8> {
    tlv(0x02, content)
}

pub(crate) fn octets(content: &[u8]) -> Vec<u8> {
    tlv(0x04, content)
}

pub(crate) fn bits(unused: u8, content: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[unused], content].concat())
}

/// A primitive value with a context-specific tag.
pub(crate) fn context(tag: u8, content: &[u8]) -> Vec<u8> {
    tlv(0x80 | tag, content)
}

/// A constructed one.
pub(crate) fn explicit(tag: u8, content: &[u8]) -> Vec<u8> {
    tlv(0xa0 | tag, content)
}

pub(crate) fn oid(dotted: &str) -> Vec<u8> {
    let arcs: Vec<u64> = dotted.split('.').map(|arc| arc.parse().expect("a number")).collect();
    let mut content = Vec::new();
    for arc in [&[arcs[0] * 40 + arcs[1]], &arcs[2..]].concat() {
        let groups = (64 - arc.leading_zeros()).div_ceil(7).max(1);
        content.extend((0..groups).rev().map(|group| (arc >> (7 * group)) as u8 & 0x7f | u8::from(group > 0) << 7));
    }
    tlv(0x06, &content)
}

/// A name of one attribute to each RDN: object identifier, tag of the string, text.
pub(crate) fn name(attributes: &[(&str, u8, &str)]) -> Vec<u8> {
    let one = |(kind, tag, text): &(&str, u8, &str)| tlv(0x31, &sequence(&[&oid(kind), &tlv(*tag, text.as_bytes())]));
    tlv(SEQUENCE, &attributes.iter().map(one).collect::<Vec<_>>().concat())
}

pub(crate) const COMMON_NAME: &str = "2.5.4.3";
pub(crate) const ORGANIZATION: &str = "2.5.4.10";

/// A time as RFC 5280, section 4.1.2.5, wants it.
pub(crate) fn time(at: Timestamp) -> Vec<u8> {
    match digits(at) {
        digits if digits.as_str() < "2050" => tlv(0x17, &[&digits.as_bytes()[2..], b"Z"].concat()),
        digits => generalized(&format!("{digits}Z")),
    }
}

pub(crate) fn utc(text: &str) -> Vec<u8> {
    tlv(0x17, text.as_bytes())
}

pub(crate) fn generalized(text: &str) -> Vec<u8> {
    tlv(0x18, text.as_bytes())
}

/// `YYYYMMDDhhmmss`
pub(crate) fn digits(at: Timestamp) -> String {
    let at = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(at.seconds().unsigned_abs());
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    format!("{year:04}{month:02}{day:02}{:02}{:02}{:02}", at.hour(), at.minute(), at.second())
}

#[test]
fn what_is_encoded_by_hand_is_der() {
    assert_eq!(oid("2.5.29.17"), [0x06, 3, 0x55, 0x1d, 0x11]);
    assert_eq!(oid("1.2.840.10045.4.3.2"), [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
    assert_eq!(tlv(0x04, &[7; 127])[..2], [0x04, 127]);
    assert_eq!(tlv(0x04, &[7; 128])[..3], [0x04, 0x81, 128]);
    assert_eq!(tlv(0x04, &[7; 256])[..4], [0x04, 0x82, 1, 0]);
    let at = Timestamp::from_millis(1_790_000_000_000);
    assert_eq!(time(at), [b"\x17\x0d".as_slice(), b"260921141320Z"].concat());
    let far = at.plus(Duration::from_secs(86_400 * 365 * 30));
    assert!(time(far).starts_with(b"\x18\x0f2056"));
}
