//! What a replica needs of its disk, as a trait with two implementations: SQLite (`store`) and the
//! map model of [`crate::crdt::table`], which the simulator uses. `suite` holds both to the same law.

use std::collections::BTreeMap;

use super::change::{Batch, Commit, Life, Name, Piece, Refusal, RowOp};
use super::merge::CellClock;
use crate::types::{Epoch, Origin, Value, Version, Wall};

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
    /// Where the version after `piece.through` was cut: its first rows are the piece's last
    /// changeset, and the rest goes on at this part. 0: the piece has whole versions only.
    pub part: u64,
}

impl Extract {
    /// Returns what is applied when nothing is to follow: the piece with its whole versions.
    pub fn whole(mut self) -> Piece {
        if self.part > 0 {
            self.piece.changesets.pop();
        }
        self.piece
    }

    /// Returns where the rest begins.
    pub fn end(&self) -> Bookmark {
        Bookmark { after: self.piece.through, part: self.part }
    }
}

/// How far somebody has come in an origin's versions: to the end of `after`, and through `part` parts
/// of the version that follows it.
///
/// Which rows make a part is the business of the one storage that was asked: whoever goes on with
/// another one begins that version again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Bookmark {
    pub after: Version,
    pub part: u64,
}

impl From<Version> for Bookmark {
    fn from(after: Version) -> Self {
        Self { after, part: 0 }
    }
}

/// The number of a pull whose parts are kept on disk until the last has come: unique as long as the
/// process lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Staging(pub u64);

/// A part of a pull that is kept until the rest of it has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    pub piece: Piece,
    /// Whether the last changeset is of the version after `piece.through`, and not all of it.
    pub is_cut: bool,
}

/// An epoch has begun.
#[derive(Clone, PartialEq, Debug)]
pub struct Begun {
    /// The origin of this node's writes from now on.
    pub origin: Origin,
    /// The origin that ended, and how far it is held now.
    pub ended: (Origin, Version),
    /// What was written again.
    pub commits: Vec<Commit>,
}

/// A row with its clock, as tests and repair see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspected {
    /// The row in the order of [`super::TableInfo::columns`]; `None`: it is dead.
    pub row: Option<Vec<Value>>,
    pub life: Life,
    /// The clocks of the cells that were written in this life; of parked columns too.
    pub cells: BTreeMap<Name, CellClock>,
}

/// A node's replicated tables and the heads of every origin it holds.
pub trait Storage {
    /// Returns the origin of this node's own writes.
    fn origin(&self) -> Origin;

    /// Carries out a local transaction: all of `ops` or nothing. `None` when nothing changed.
    fn commit(&mut self, now: Wall, ops: &[RowOp]) -> Result<Option<Commit>, StorageError>;

    /// Merges a batch and moves the heads to each piece's `through`, in one transaction.
    ///
    /// A piece that does not join (its `after` is above the held head) or that is wholly held
    /// already is skipped. So is one of this node's present origin: nobody else writes that
    /// stream. Should peers know more of it, begin a new epoch; then it is an origin like any
    /// other. So is a piece that goes beyond [`super::row::COUNT_MAX`]. The answer has the head of every origin that the batch names, moved or not.
    ///
    /// Nothing in a piece makes this fail. A row that the origin may not write, or that cannot
    /// be a row, is left out and counted ([`Storage::refusals`]); the rest of the piece is
    /// applied. Unknown tables and columns are parked: kept with their clocks, passed on by
    /// [`Storage::load`], and part of their table as soon as it has a place for them.
    fn apply(&mut self, now: Wall, batch: &Batch) -> Result<Commit, StorageError>;

    /// Returns what is left of an origin's versions from a place on, from one snapshot: at most
    /// about `bytes_max` bytes of keys, values and 16 bytes for each row and cell, but always at
    /// least one part of a version when there is one. A version that is larger than that is cut
    /// (see [`Extract::part`]); others stay whole. Where a commit's time is not known any more,
    /// [`super::Changeset::at`] is 0.
    fn load(
        &self,
        origin: Origin,
        from: impl Into<Bookmark>,
        bytes_max: usize,
    ) -> Result<Extract, StorageError>;

    /// Keeps parts of one origin under a number, behind those that are kept there already, until
    /// [`Storage::apply_staged`] or [`Storage::unstage`]. Nobody sees a difference. A restart
    /// forgets them.
    fn stage(&mut self, staging: Staging, parts: &[Part]) -> Result<(), StorageError>;

    /// Merges, in one transaction, all parts that are kept under a number, in their order, and then
    /// `last`, which takes up where they begin and ends where the head is to be. The parts are
    /// then forgotten; where it fails they are kept.
    ///
    /// What holds of [`Storage::apply`] holds here, too.
    fn apply_staged(
        &mut self,
        now: Wall,
        staging: Staging,
        last: &Piece,
    ) -> Result<Commit, StorageError>;

    /// Forgets the parts that are kept under a number.
    fn unstage(&mut self, staging: Staging) -> Result<(), StorageError>;

    /// Returns the held head of every origin.
    fn heads(&self) -> Result<Vec<(Origin, Version)>, StorageError>;

    /// Begins a new epoch for this node's own writes and returns the new origin. Its epoch is
    /// greater than `above`, than the one that ends and than every one it holds versions of.
    ///
    /// In the same transaction the node's own rows of the epoch that ends, dead ones too, are
    /// stamped anew: what it wrote under that epoch, and has lost since, cannot replace them any
    /// more. So are its cells of shared tables that it wrote since the storage was opened: their
    /// names may denote something else elsewhere. The head of the ended origin falls back to what
    /// it was then, and what others hold beyond comes as from any other node.
    fn begin_epoch(&mut self, now: Wall, above: Epoch) -> Result<Begun, StorageError>;

    /// Deletes this node's own rows that stand under an epoch before its present one, and returns
    /// the commits. Other nodes had them still, this one has forgotten them, and nobody has written
    /// them again since: writing a row as it is, or building on it, claims it.
    fn withdraw(&mut self, now: Wall) -> Result<Vec<Commit>, StorageError>;

    /// Returns a hash over all rows, live and dead, parked ones too, and their clocks (see
    /// [`crate::crdt::fingerprint`]): equal on two nodes that hold the same versions and nothing
    /// else.
    fn fingerprint(&self) -> Result<u64, StorageError>;

    /// Returns a row of a table that is here, live or dead, with its clock; `None`: nobody ever
    /// wrote it.
    fn inspect(&self, table: &str, key: &[Value]) -> Result<Option<Inspected>, StorageError>;

    /// Returns how many rows of received pieces were left out since the storage was opened:
    /// those of a foreign owner, and those whose key is none.
    fn refusals(&self) -> u64;
}
