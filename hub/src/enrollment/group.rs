//! Enrollments and renewals that come at once share a transaction, and are in the audit log by one append.
//!
//! A transaction of its own for each would be bounded by the disk, and on PostgreSQL by the one head of the audit log,
//! which is held until the commit. Whoever has no more patience is not waited for: what was committed takes effect.

use std::net::IpAddr;
use std::sync::Weak;
use std::time::Duration;

use pki::{NodeIdentity, RequestedKey};
use protocol::Timestamp;
use protocol::message::EnrollRequest;
use store::group::{Apply, Limits};
use store::{StoreError, Transaction};

use super::{Enrollment, Failure, Inner, Issued};
use crate::audit::{self, Record};
use crate::authorities::AuthoritiesError;
use crate::telemetry::state::{Certificate, Member};

/// Over a thousand that wait, a node waits with its request. A group holds SQLite's one writer for some 30 ms at most.
pub(super) const LIMITS: Limits =
    Limits { queue: 1024, group: 64, linger: Duration::from_millis(5), company: Duration::ZERO };

/// What is asked for; the proof of possession has been checked.
pub(super) enum Operation {
    /// A token is to become a node.
    Enroll(Enroll),
    /// A node is to have its next certificate.
    Renew(Renew),
}

pub(super) struct Enroll {
    pub(super) request: EnrollRequest,
    pub(super) key: RequestedKey,
    pub(super) remote: IpAddr,
    pub(super) now: Timestamp,
}

pub(super) struct Renew {
    pub(super) identity: NodeIdentity,
    pub(super) key: RequestedKey,
    /// The next certificate's number.
    pub(super) sequence: u64,
    pub(super) now: Timestamp,
}

/// A certificate, and whose it is.
pub(super) struct Given {
    pub(super) member: Member,
    pub(super) issued: Issued,
    pub(super) sequence: u64,
    /// What the audit log says of it; nothing of one that was given before and whose answer was lost.
    pub(super) record: Option<Record>,
}

/// Writes the groups. Not the door itself, which holds the queue that leads here.
pub(super) struct Writer(pub(super) Weak<Inner>);

impl Apply for Writer {
    type Operation = Operation;
    type Outcome = Result<Given, Failure>;

    async fn apply(
        &mut self,
        transaction: &mut Transaction,
        operations: &[&Operation],
    ) -> Result<Vec<Self::Outcome>, StoreError> {
        // Without a door, there is nobody who waits.
        let Some(door) = self.0.upgrade().map(Enrollment) else { return Ok(Vec::new()) };
        let (mut outcomes, mut records) = (Vec::with_capacity(operations.len()), Vec::new());
        let mut now = Timestamp::default();
        for operation in operations {
            let (given, at) = match operation {
                Operation::Enroll(enroll) => (door.admit(transaction, enroll).await, enroll.now),
                Operation::Renew(renew) => (door.follow(transaction, renew).await, renew.now),
            };
            let given = match given {
                // Nobody was refused or put off after anything was written of theirs. Any other failure may have left
                // something: all is undone, and the others are tried without this one.
                Ok(_) | Err(Failure::Refused(_) | Failure::Authorities(AuthoritiesError::AwaitingSignature(_))) => {
                    given
                }
                Err(Failure::Store(error)) => return Err(error),
                Err(failure) => return Err(StoreError::Act(Box::new(failure))),
            };
            if let Ok(Given { record: Some(record), .. }) = &given {
                records.push(record.clone());
                now = now.max(at);
            }
            outcomes.push(given);
        }
        if !records.is_empty() {
            audit::append_all(transaction, now, records).await?;
        }
        Ok(outcomes)
    }

    fn committed(&mut self, operations: &[&Operation], outcomes: &[Self::Outcome]) {
        let Some(inner) = self.0.upgrade() else { return };
        for (operation, outcome) in operations.iter().zip(outcomes) {
            let Ok(Given { member, issued, sequence, record: Some(_) }) = outcome else { continue };
            match operation {
                Operation::Enroll(_) => {
                    inner.registry.enrolled(&issued.identity, *sequence, issued.authority);
                    let certificate = Certificate::from(&issued.identity);
                    inner.fleet.enrolled(member.clone());
                    inner.fleet.certificate(member.node, certificate);
                }
                Operation::Renew(_) => inner.registry.issued(&issued.identity, *sequence, issued.authority),
            }
        }
    }
}
