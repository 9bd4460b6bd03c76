//! What an operator's signature on a command is over: this node, this command, this action, until this time.

use crate::message::OperatorSignature;
use crate::{CommandId, NodeId, Timestamp};

/// What the signature begins with, so that it can't stand for anything else.
const CONTEXT: &[u8] = b"hyperfactory/1 command";

/// An operator's signature, as it came with a command. Whether it is good, and whose key it is, is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Ed25519 public key (RFC 8032).
    pub key: [u8; 32],
    /// Over [`Signature::message`].
    pub bytes: [u8; 64],
    /// By the wall clock; it counts no longer after this.
    pub not_after: Timestamp,
}

impl Signature {
    /// What is signed: each part after its length as 8 bytes, most significant first.
    pub fn message(node: NodeId, command: CommandId, arguments: &[u8], not_after: Timestamp) -> Vec<u8> {
        let mut message = Vec::new();
        let until = not_after.millis().to_be_bytes();
        for part in [CONTEXT, &node.to_bytes(), &command.to_bytes(), arguments, &until] {
            message.extend((part.len() as u64).to_be_bytes());
            message.extend(part);
        }
        message
    }

    /// Reads one; `None` when its parts have not the lengths they must have.
    pub(crate) fn read(message: &OperatorSignature) -> Option<Self> {
        Some(Self {
            key: message.public_key.as_slice().try_into().ok()?,
            bytes: message.signature.as_slice().try_into().ok()?,
            not_after: Timestamp::from_millis(message.not_after_ms),
        })
    }
}

impl From<&Signature> for OperatorSignature {
    fn from(signature: &Signature) -> Self {
        Self {
            public_key: signature.key.to_vec(),
            signature: signature.bytes.to_vec(),
            not_after_ms: signature.not_after.millis(),
        }
    }
}
