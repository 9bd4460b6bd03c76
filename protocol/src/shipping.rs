//! Shipped logs: what a batch of lines may hold, and how many batches may be under way.

/// Most containers in one batch.
pub const MAX_SOURCES: usize = 256;
/// Most lines in one batch.
pub const MAX_LINES: usize = 4096;
/// Longest text of a line, in bytes; the rest of it is cut off.
pub const MAX_TEXT: usize = crate::tail::MAX_TEXT;
/// Most bytes of an encoded batch before it is compressed.
pub const MAX_RAW: usize = 128 * 1024;
/// Most batches sent and not acknowledged, and their bytes: less than the hub buffers of a connection, so that telemetry
/// and commands have room beside them, whatever is shipped.
pub const WINDOW: (usize, usize) = (16, 96 * 1024);
