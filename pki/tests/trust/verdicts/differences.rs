//! Where the judges differ, by name, and why ours is right.

use crate::judges::Door;

/// Why judges differ. Ours accepts what another refuses in the first case alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Of several issuers of one name and key identifier, OpenSSL and GnuTLS take the first and GnuTLS one that has ended;
    /// webpki tries each, and one has signed: what is accepted is proved all the same. A hub sends none twice.
    FirstIssuer,
    /// webpki takes any certificate for an anchor, and reads its name and key alone; ours takes a fleet's root, whole and in
    /// its time.
    AnyAnchor,
    /// Rules of RFC 5280 that webpki does not look at (key usage, criticality, key identifiers, serial numbers, times), and
    /// some nobody else does: the crate's `profile` does. A key that is only for agreement signs no handshake (RFC 8446,
    /// section 4.4.2.2).
    Profile,
    /// Judges who see no handshake do not use the leaf's own key. Ours asks for a proof of possession with a key of a kind
    /// that TLS has, and strong enough.
    NoProof,
    /// Allowed by the standard, but nothing that a hub gives its nodes: two certificates; one DNS name of one form, in one
    /// subtree; one purpose; a serial number of 16 bytes.
    NoSuchThing,
    /// OpenSSL and GnuTLS take the common name for a host name where there are no names, webpki never does. Ours wants a name
    /// where names belong.
    CommonName,
    /// webpki refuses names that no host can have; the other two read them as text.
    NoHostName,
    /// webpki refuses every name below a constraint to directories; OpenSSL applies it to the subject, GnuTLS does in part.
    Directories,
    /// Names are to be compared without regard to case and kind of string (section 7.1). webpki compares bytes, OpenSSL
    /// prepares both, GnuTLS the kind of string alone. No authority of ours has two spellings.
    NamesByBytes,
    /// webpki counts authorities that issued themselves against the path length, and stops at six. A fleet has two.
    LongPath,
    /// webpki takes no authority for a leaf.
    AuthorityForLeaf,
    /// webpki knows no policies and no other extension of the kind, so it refuses them where critical, as it must.
    Policies,
    /// `ring` has neither P-521 nor compressed points. A hub issues for no such key.
    KindOfKey,
    /// OpenSSL and GnuTLS read BER, versions that there are not, bytes that nobody signed or asked for. webpki reads DER.
    LooseEncoding,
    /// GnuTLS alone accepts: it reads past what is malformed or unknown to it, or sorts the chain and judges another
    /// certificate than the first.
    GnutlsReadsLess,
}

const BOTH: &[Door] = &[Door::Hub, Door::Node];
const HUB: &[Door] = &[Door::Hub];
const NODE: &[Door] = &[Door::Node];

/// A reason, the doors, who accepts (ours, webpki, OpenSSL, GnuTLS), and the chains it is about.
pub(super) struct Difference(
    pub(super) Why,
    pub(super) &'static [Door],
    pub(super) &'static str,
    pub(super) &'static [&'static str],
);

pub(super) const DIFFERENCES: &[Difference] = &[
    Difference(Why::FirstIssuer, NODE, "+++-", &["expired and renewed intermediate sent"]),
    Difference(Why::FirstIssuer, NODE, "++--", &["both intermediates of one name and one key identifier sent"]),
    Difference(Why::AnyAnchor, BOTH, "-+++", &["root with path length 1", "root's own signature with a bit flipped"]),
    Difference(
        Why::AnyAnchor,
        BOTH,
        "-+-+",
        &[
            "a link trusted for a root",
            "root for the other purpose",
            "root of version 1, without extensions",
            "root without basic constraints",
            "root without key usage",
            "root without subject key identifier",
            "root's basic constraints not critical",
            "the intermediate trusted for a root",
        ],
    ),
    Difference(
        Why::AnyAnchor,
        BOTH,
        "-+--",
        &[
            "root ends before it begins",
            "root expired",
            "root for revocation lists alone",
            "root not yet valid",
            "root that is no authority",
            "root with an unknown critical extension",
            "root with path length 0",
        ],
    ),
    Difference(Why::Profile, NODE, "-+++", &["leaf for key encipherment"]),
    Difference(
        Why::Profile,
        BOTH,
        "-+++",
        &[
            "intermediate's serial negative",
            "intermediate's serial of 20 bytes and a sign",
            "intermediate's serial of 21 bytes",
            "intermediate's serial zero",
            "leaf for key agreement",
            "leaf's end of this century in four digits",
            "leaf's serial negative",
            "leaf's serial of 20 bytes and a sign",
            "leaf's serial of 21 bytes",
            "leaf's serial zero",
            "name constraints empty",
            "name constraints not critical",
        ],
    ),
    Difference(
        Why::Profile,
        BOTH,
        "-++-",
        &["an address with half a mask", "an extension twice in the intermediate", "an extension twice in the leaf"],
    ),
    Difference(
        Why::Profile,
        BOTH,
        "-+-+",
        &[
            "intermediate without authority key identifier",
            "intermediate without key usage",
            "intermediate without subject key identifier",
            "intermediate's basic constraints not critical",
            "intermediate's serial of no bytes",
            "intermediate's serial with needless zeroes before",
            "leaf for certificate signing",
            "leaf for nothing",
            "leaf for revocation lists",
            "leaf for signatures and certificate signing",
            "leaf names another serial of its issuer",
            "leaf with a path length",
            "leaf with an empty authority key identifier",
            "leaf without authority key identifier",
            "leaf's serial of no bytes",
            "leaf's serial with needless zeroes before",
            "no subject, names not critical",
        ],
    ),
    Difference(
        Why::Profile,
        BOTH,
        "-+--",
        &[
            "intermediate for revocation lists",
            "intermediate for signatures",
            "intermediate with another authority key identifier",
            "leaf with another authority key identifier",
        ],
    ),
    Difference(Why::NoProof, BOTH, "-+++", &["leaf with an P-521 key"]),
    Difference(Why::NoProof, BOTH, "-++-", &["leaf's point compressed"]),
    Difference(Why::NoProof, BOTH, "-+-+", &["leaf's point not on the curve"]),
    Difference(Why::NoProof, BOTH, "-+--", &["leaf with an RSA 1024 key", "leaf's curve unknown"]),
    Difference(
        Why::NoSuchThing,
        HUB,
        "-+++",
        &[
            "URI only",
            "a directory name only",
            "a registered id only",
            "another kind of name only",
            "both intermediates of one name sent, the right one first",
            "both intermediates of one name sent, the right one last",
            "e-mail only",
            "everything permitted",
            "intermediate twice",
            "leaf for both purposes",
            "leaf for no purpose",
            "leaf for this and an unknown purpose",
            "leaf for this and any purpose",
            "leaf of the root itself",
            "leaf's serial of 20 bytes",
            "leaf's serial of one byte",
            "no name constraints",
            "no names at all",
            "no path length and an authority below",
            "only a URI permitted",
            "only an address permitted",
            "only an e-mail permitted",
            "own name and a URI",
            "own name and a directory name",
            "own name and a registered id",
            "own name and an e-mail",
            "own name and another kind of name",
            "own name and one below it",
            "own name in upper case",
            "own name twice",
            "own subtree and other's permitted",
            "path length 1 and an authority below",
            "root sent too",
            "stranger's intermediate before",
            "subtree in upper case",
            "subtree with a dot before",
            "the next root trusted, its link to this one sent",
            "wildcard in the subtree",
        ],
    ),
    Difference(Why::NoSuchThing, HUB, "-++-", &["expired and renewed intermediate sent"]),
    Difference(Why::NoSuchThing, HUB, "-+-+", &["an empty list of names", "leaf for key encipherment"]),
    Difference(
        Why::NoSuchThing,
        HUB,
        "-+--",
        &["both intermediates of one name and one key identifier sent", "leaf without extensions"],
    ),
    Difference(Why::CommonName, HUB, "-+++", &["common name only, own"]),
    Difference(Why::CommonName, HUB, "-+-+", &["common name only, other's"]),
    Difference(Why::CommonName, NODE, "--++", &["common name only, own"]),
    Difference(
        Why::NoHostName,
        HUB,
        "--++",
        &[
            "a dot and own name",
            "a name that is not ASCII",
            "a name with a space",
            "other's name, a zero byte and own name",
            "wildcard within a label",
        ],
    ),
    Difference(Why::Directories, BOTH, "--++", &["the leaf's directory permitted"]),
    Difference(Why::Directories, BOTH, "--+-", &["another directory excluded"]),
    Difference(Why::Directories, BOTH, "---+", &["another directory permitted"]),
    Difference(Why::NamesByBytes, BOTH, "--++", &["leaf names its issuer in another kind of string"]),
    Difference(Why::NamesByBytes, BOTH, "--+-", &["leaf names its issuer in upper case"]),
    Difference(Why::LongPath, BOTH, "--++", &["ten authorities below"]),
    Difference(Why::LongPath, BOTH, "--+-", &["path length 0 and an authority of the same name below"]),
    Difference(
        Why::AuthorityForLeaf,
        BOTH,
        "--++",
        &["leaf that is an authority", "leaf that is an authority and may issue"],
    ),
    Difference(Why::Policies, BOTH, "--++", &["a critical policy in the leaf", "any policy inhibited"]),
    Difference(Why::Policies, BOTH, "--+-", &["an explicit policy required and none given"]),
    Difference(Why::Policies, BOTH, "---+", &["must be stapled"]),
    Difference(Why::KindOfKey, BOTH, "--++", &["intermediate with an P-521 key", "root with an P-521 key"]),
    Difference(Why::KindOfKey, BOTH, "--+-", &["intermediate's point compressed"]),
    Difference(Why::LooseEncoding, HUB, "--+-", &["leaf of version 1, without extensions"]),
    Difference(
        Why::LooseEncoding,
        BOTH,
        "--++",
        &[
            "intermediate of version 4",
            "intermediate that is an authority by another truth than DER's",
            "intermediate with an extension critical by another truth than DER's",
            "intermediate with its length in too many bytes",
            "intermediate's algorithm with parameters",
            "leaf of version 4",
            "leaf with a byte after its basic constraints",
            "leaf with an extension critical by another truth than DER's",
            "leaf with its length in too many bytes",
            "leaf with unique identifiers",
            "leaf's algorithm with parameters",
            "root of version 4",
        ],
    ),
    Difference(
        Why::LooseEncoding,
        BOTH,
        "--+-",
        &[
            "intermediate of indefinite length",
            "intermediate with a byte after it",
            "intermediate with a byte after its basic constraints",
            "leaf of indefinite length",
            "leaf with a byte after it",
            "leaf with a byte after its names",
        ],
    ),
    Difference(
        Why::GnutlsReadsLess,
        HUB,
        "---+",
        &[
            "a five-byte address only",
            "intermediate as the holder",
            "intermediate first",
            "own name and a dot",
            "root as the holder",
        ],
    ),
    Difference(
        Why::GnutlsReadsLess,
        BOTH,
        "---+",
        &[
            "intermediate with a negative path length",
            "leaf for any purpose",
            "leaf with an empty list of purposes",
            "leaf's end without seconds",
            "own name and a five-byte address",
            "subtree with a dot after",
            "subtree with a maximum",
            "subtree with a minimum",
        ],
    ),
];
