//! What a replica needs of its disk, as a trait with two implementations: SQLite (`store`) and the
//! map model of [`crate::crdt::table`], which the simulator uses. `suite` holds both to the same law.

use std::sync::Arc;

use super::change::{Batch, Commit, Piece, Refusal, RowOp};
use crate::types::{Epoch, Origin, Version, Wall};

/// Why a storage did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Nothing was written; the command itself is at fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing was written; the disk or the database is at fault. The same call may be repeated.
    #[error("the database failed: {0}")]
    Failed(String),
}

/// What [`Storage::load`] cut out of one snapshot.
///
/// The rows of the piece are those that were left at `head`. Only who has applied everything up to
/// `head` sees the origin's rows as they once were; a piece that ends below it is a part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extract {
    pub piece: Piece,
    /// The origin's head in the same snapshot; the piece's `through` when nothing was cut off.
    pub head: Version,
}

/// A node's replicated tables and the heads of every origin it holds.
pub trait Storage {
    /// Carries out a local transaction: all of `ops` or nothing. `None` when nothing changed.
    fn commit(&mut self, now: Wall, ops: &[RowOp]) -> Result<Option<Commit>, StorageError>;

    /// Merges a batch and moves the heads to each piece's `through`, in one transaction.
    ///
    /// A piece that does not join (its `after` is above the held head) or that is wholly held
    /// already is skipped; the heads in the answer say what is true now.
    fn apply(&mut self, now: Wall, batch: &Batch) -> Result<Commit, StorageError>;

    /// Returns what is left of an origin's versions after `after`, from one snapshot: at most
    /// about `bytes_max` bytes of keys, values and 16 bytes for each row and cell, but always at
    /// least one version when there is one.
    fn load(
        &self,
        origin: Origin,
        after: Version,
        bytes_max: usize,
    ) -> Result<Extract, StorageError>;

    /// Returns the held head of every origin.
    fn heads(&self) -> Result<Vec<(Origin, Version)>, StorageError>;

    /// Begins a new epoch for this node's own writes and returns the new origin. Its epoch is
    /// greater than `above`, than the one that ends and than every one it holds versions of.
    fn begin_epoch(&mut self, above: Epoch) -> Result<Origin, StorageError>;

    /// Returns a hash over all rows, live and dead, and their clocks: equal on two nodes that
    /// hold the same versions.
    fn fingerprint(&self) -> Result<u64, StorageError>;
}

/// A commit as it is shared by all who learn of it.
pub type SharedCommit = Arc<Commit>;
