//! Frames on a stream: a length as four big-endian bytes, then that many bytes of one message.

/// The greatest changeset that a node may write, in encoded bytes, and with it the greatest frame.
/// A commit travels whole, and a receiver holds a few frames per peer in memory.
pub const CHANGESET_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a message may add around the greatest changeset.
pub const ENVELOPE_BYTES_MAX: usize = 1024;

/// The greatest message in a frame. A longer one closes the stream before a byte of it is read.
pub const FRAME_BYTES_MAX: usize = CHANGESET_BYTES_MAX + ENVELOPE_BYTES_MAX;
