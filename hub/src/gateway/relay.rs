//! Tails of one session: tells the node what is to be read, and hands on what it reads.

use std::collections::HashSet;
use std::time::Instant;

use protocol::frame::MAX_LOG;
use protocol::message::{TailEnd, TailUpload, ToNode, tail_upload};
use protocol::session::HubSession;
use protocol::tail::MAX_BATCH;
use protocol::{SessionId, TailId};
use serde_json::json;
use tracing::{debug, warn};
use transport::{CloseCode, Connection, FrameReader, StreamError};

use super::Gateway;
use super::rate::{Budget, Rate};
use super::session::{Over, now};
use crate::audit::{self, Actor, Record, action};
use crate::tails::{EndReason, Tails};
use crate::telemetry::state::Ended;
use pki::NodeIdentity;

/// Batches of one session: four tails of a node that keeps to its bounds send half of that.
const BATCHES: Rate = Rate(200.0);

/// What this session has told the node to read.
pub(super) struct Relay {
    tails: Tails,
    session: SessionId,
    told: HashSet<TailId>,
}

impl Relay {
    pub(super) fn new(tails: &Tails, session: SessionId) -> Self {
        Self { tails: tails.clone(), session, told: HashSet::new() }
    }

    /// What to send now: what somebody wants to read since, and what nobody reads any more.
    pub(super) fn collect(&mut self, identity: &NodeIdentity, machine: &HubSession) -> Vec<ToNode> {
        let wanted = self.tails.of(identity.node, self.session);
        let mut messages = Vec::new();
        self.told.retain(|id| {
            let still = wanted.iter().any(|tail| tail.id == *id);
            if !still {
                messages.extend(machine.stop_tail(*id));
            }
            still
        });
        for tail in wanted {
            if self.told.insert(tail.id) {
                messages.extend(machine.start_tail(&tail));
            }
        }
        messages
    }

    /// The node did not know a message.
    pub(super) fn unsupported(&self) {
        self.tails.unsupported(self.session);
    }
}

/// The log streams, one after the other: a node opens its first when it has something for it.
pub(super) async fn take_logs(
    gateway: &Gateway,
    connection: &Connection,
    identity: &NodeIdentity,
    session: SessionId,
) -> Over {
    let mut budget = Budget::new(BATCHES, Instant::now());
    loop {
        let Ok((_, mut reader)) = connection.accept(MAX_LOG).await else { return Over::Node(Ended::Lost) };
        // Boxed, as in the session: few nodes have a log that is read.
        match Box::pin(take_log(gateway, &mut reader, identity, session, &mut budget)).await {
            Ok(()) | Err(StreamError::Reset) => {}
            Err(StreamError::Closed(_)) => return Over::Node(Ended::Lost),
            Err(error) => return Over::Close(CloseCode::Malformed, error.to_string()),
        }
    }
}

async fn take_log(
    gateway: &Gateway,
    reader: &mut FrameReader,
    identity: &NodeIdentity,
    session: SessionId,
    budget: &mut Budget,
) -> Result<(), StreamError> {
    while let Some(upload) = reader.recv::<TailUpload>().await? {
        match upload.message {
            Some(tail_upload::Message::Lines(lines)) => match TailId::from_bytes(&lines.tail_id) {
                Ok(id) if lines.lines.len() <= MAX_BATCH => gateway.tails.relay(session, id, lines),
                _ => debug!(node = %identity.node, "lines of a log that can't be are left out"),
            },
            Some(tail_upload::Message::End(end)) => ended(gateway, identity, session, end).await,
            None => {}
        }
        let wait = budget.spend(1, Instant::now());
        if !wait.is_zero() {
            // What is not read fills the stream's window, and the node leaves lines out.
            tokio::time::sleep(wait).await;
        }
    }
    Ok(())
}

async fn ended(gateway: &Gateway, identity: &NodeIdentity, session: SessionId, end: TailEnd) {
    let Ok(id) = TailId::from_bytes(&end.tail_id) else { return };
    let known = gateway.tails.of(identity.node, session).iter().any(|tail| tail.id == id);
    let reason = gateway.tails.ended(session, id, end.reason(), &end.message);
    if reason != EndReason::Refused || !known {
        return;
    }
    let record = Record {
        actor: Actor::node(identity.node),
        action: action::TAIL_REFUSED,
        tenant: Some(identity.tenant.clone()),
        subject: identity.node.to_string(),
        detail: json!({ "tail": id.to_string(), "reason": end.message.chars().take(500).collect::<String>() }),
        remote: None,
    };
    if let Err(error) = audit::record(&gateway.database, now(), record).await {
        warn!(node = %identity.node, %error, "that a node refused to show a log was not audited");
    }
}

#[cfg(test)]
mod tests;
