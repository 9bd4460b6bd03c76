//! A durable, bounded segment log on disk: what a node keeps until the other side has acknowledged it.
//!
//! Records are opaque bytes, numbered from 1 without a hole within an epoch. A record is a *key* when it can be read
//! without the one before it; any other needs its predecessor. Every number is in the end either delivered or reported
//! as lost: a [`Reader`] gives records and [`LostRange`]s in order, with nothing between them.
//!
//! What never happens: a number is reused within an epoch once it was handed out by a [`Reader`]; a record is handed
//! out before it is durable; a loss is handed out before the cursor that records it is durable; a segment is
//! unlinked before the cursor that says so is durable.
//!
//! ```
//! # fn main() -> Result<(), hyperfactory_spool::SpoolError> {
//! use hyperfactory_spool::{Entry, Options, Spool};
//! # let directory = tempfile::tempdir().unwrap();
//! let options = Options::new(directory.path(), 64 << 20);
//! let (mut spool, recovery) = Spool::open(options, 0x1234_5678)?;
//! assert!(recovery.is_clean());
//! let number = spool.append(b"a record", spool.needs_key())?;
//! spool.sync()?;
//! let mut reader = spool.read_from(number);
//! assert!(matches!(reader.next(&mut spool)?, Some(Entry::Record { sequence: 1, .. })));
//! spool.acknowledge(number)?;
//! # Ok(())
//! # }
//! ```

mod cursor;
mod disk;
mod error;
mod file;
mod ledger;
mod lost;
mod memory;
mod open;
mod options;
mod reader;
mod recovery;
mod room;
mod segment;
mod spool;
mod status;
mod walk;

#[cfg(test)]
mod rehearsal;
#[cfg(test)]
mod tests;

pub use error::SpoolError;
pub use lost::{LostRange, LostReason};
pub use options::{Options, Overflow};
pub use reader::{Entry, Reader};
pub use recovery::Recovery;
pub use spool::Spool;
pub use status::{Fault, FaultKind, Status};
