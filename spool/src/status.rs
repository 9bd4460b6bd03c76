//! How a spool is doing, for status pages and messages.

/// How a spool is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Records not acknowledged and not lost.
    pub pending: u64,
    /// Bytes of the segments that hold them.
    pub bytes: u64,
    /// Most bytes the spool may take.
    pub capacity_bytes: u64,
    /// Numbers ever lost in this epoch. It never becomes less.
    pub lost: u64,
    /// What is wrong, if anything is.
    pub fault: Option<Fault>,
}

/// What is wrong with a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of fault.
    pub kind: FaultKind,
    /// What is wrong and what to do, for a person.
    pub message: String,
}

/// The kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The disk takes no more; records are lost, or will be once the reserve is used up.
    DiskFull,
    /// Stored records were damaged; their loss is not acknowledged yet.
    Corrupt,
    /// The disk failed a read or a write.
    Io,
}
