//! Tells a message that comes again from a new one under the packet id of an earlier one.
//!
//! A broker that lost what it knew last (a kill between two of Mosquitto's snapshots) gives ids out again that are in use
//! as far as the bridge knows. So an id alone says nothing: the same message is what the broker calls a repetition and what
//! has the same content. Anything else is new: a record too many is better than one too few.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::wire::Publish;

/// What the broker may send again.
#[derive(Debug, Default)]
pub(super) struct Repetitions {
    contents: RandomState,
    /// Messages that the connections before left unacknowledged, by their packet ids.
    under_way: HashMap<u16, Known>,
    /// Messages with quality of service 2 that are here and that the broker has not released.
    unreleased: HashMap<u16, Content>,
}

/// A message that is here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Its number.
    pub(super) number: u64,
    pub(super) content: Content,
}

/// By what a message's content is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content(u64);

/// What a message is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Coming {
    /// It was not here before.
    New(Content),
    /// It is the one of this number, of a connection before.
    Again(Known),
    /// It came by this connection, too.
    Twice(Content),
}

impl Repetitions {
    /// What a message with quality of service 1 or 2 is. It counts as here from now on.
    pub(super) fn judge(&mut self, publish: &Publish) -> Coming {
        let Publish { topic, payload, content_type, properties, .. } = publish;
        let content = Content(self.contents.hash_one((topic, payload, content_type, properties)));
        let again = |before: Content| publish.duplicate && before == content;
        if !self.under_way.is_empty()
            && let Some(known) = self.under_way.remove(&publish.packet_id).filter(|known| again(known.content))
        {
            return Coming::Again(known);
        }
        if publish.qos == 2 && self.unreleased.insert(publish.packet_id, content).is_some_and(again) {
            return Coming::Twice(content);
        }
        Coming::New(content)
    }

    /// The broker has released the packet id. One that is not known was received by the process before this one.
    pub(super) fn released(&mut self, packet_id: u16) {
        self.unreleased.remove(&packet_id);
    }

    /// The connection is down, and left these unacknowledged.
    pub(super) fn left(&mut self, unacknowledged: impl Iterator<Item = (u16, Known)>) {
        self.under_way.extend(unacknowledged);
    }

    /// The broker knows nothing of the session.
    pub(super) fn forget(&mut self) {
        self.under_way.clear();
        self.unreleased.clear();
    }
}
