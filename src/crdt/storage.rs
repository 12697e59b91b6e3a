//! What a replica needs of its disk, as a trait with two implementations: SQLite (`store`) and the
//! map model of [`crate::crdt::table`], which the simulator uses. `suite` holds both to the same law.

use std::collections::BTreeMap;

use super::change::{Batch, Commit, Life, Name, Piece, Refusal, RowOp};
use super::content::{Look, Mend, Mended, Sight};
use super::merge::CellClock;
use crate::types::{Epoch, NodeId, Origin, Value, Version, Wall};

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

/// How far a storage has dropped the tombstones of deleted rows, and under which name it may speak.
///
/// It is durable, and rises in the transaction that drops.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Floor {
    /// Of each origin, the version up to which tombstones may be missing.
    pub heads: Vec<(Origin, Version)>,
    /// No row that was dropped had a longer life. A row that is not held begins above it.
    pub length: u64,
    /// Who is no member any more until it begins a later epoch than this one of its own: it is not
    /// asked whether it holds the deletes.
    pub forgotten: Vec<(NodeId, Epoch)>,
    /// Those of them that were when tombstones were dropped last, up to which epoch.
    pub in_force: Vec<(NodeId, Epoch)>,
    /// The members that were met, and the latest epoch of theirs (see [`Storage::meet`]).
    pub members: Vec<(NodeId, Epoch)>,
    /// The origin of this node that settled (see [`Storage::settle`]); `None`: none has.
    pub settled: Option<Origin>,
    /// [`Storage::rejoin`] has begun, and [`Storage::settle`] has not ended it.
    pub is_rejoining: bool,
    /// Of this node's own origin, the version up to which nothing is left but what is harmless (see
    /// [`crate::crdt::change::is_harmless`]): it may be told before the origin has settled.
    pub harmless: Version,
    /// No shared row that was ever held here died in a longer life, nor did one whose tombstone was
    /// dropped. It is a bound: it may be greater.
    pub longest: u64,
    /// Origins that are retired (see [`Storage::tidy`]), and how far they were held.
    pub retired: Vec<(Origin, Version)>,
    /// See [`Tidy::era`]; 1 on a new disk.
    pub era: u64,
    /// See [`Tidy::erased`]; 0: nothing was ever erased.
    pub erased: u64,
}

/// How old what a disk holds may be, and what others have to hold: see [`Tidy`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Era {
    /// See [`Tidy::era`].
    pub held: u64,
    /// See [`Tidy::erased`].
    pub erased: u64,
}

/// What a member has forgotten for good. Who is let in by it takes it over, with its rows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Past {
    /// Its [`Floor::heads`]: what is missing there may be missing here.
    pub floor: Vec<(Origin, Version)>,
    /// Its [`Floor::length`], or more.
    pub length: u64,
    pub era: Era,
    /// Its [`Floor::retired`].
    pub retired: Vec<(Origin, Version)>,
}

/// What is to be forgotten of origins that write no more: see [`Storage::tidy`].
///
/// Rounds ([`crate::ledger::Round`]) are numbered. A disk with an era of so much or more knows of
/// every origin that was erased in a round up to that one that it was retired, so it holds no row
/// that was deleted by it. Who comes back with a disk of an earlier era than what was erased takes
/// all rows anew: of the deletes nothing is left that could be told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tidy {
    /// Spent origins that every member holds, up to these heads at most: from now on they are retired,
    /// and held so far. They are no heads any more, nothing of them is taken, and whoever asks is told
    /// that nothing is left.
    pub retire: Vec<(Origin, Version)>,
    /// Origins that write no more: which of them are spent?
    pub ask: Vec<Origin>,
    /// Origins that no member holds any more: nothing of them is remembered, nor of tombstones of
    /// theirs that were dropped. Those stay that are held, and those of which something is left.
    pub erase: Vec<Origin>,
    /// Members that were forgotten, and of which no origin is left: so are they.
    pub gone: Vec<NodeId>,
    /// The era is at least this from now on: the number of the next round that this node tells.
    pub era: u64,
    /// The number of the latest round in which something was erased.
    pub erased: u64,
}

/// What [`Storage::tidy`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tidied {
    /// Which of those to be retired are: those of which nothing is left, if they are held so far.
    pub retired: Vec<(Origin, Version)>,
    /// How many of those that were asked for were looked at, from the first on: one call looks at a
    /// bounded number of rows.
    pub looked_at: usize,
    /// Of which of these nothing is left, and how far they are held.
    pub spent: Vec<(Origin, Version)>,
    /// Which of those to be erased are.
    pub erased: Vec<Origin>,
}

/// What [`Storage::collect`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// How many tombstones were dropped.
    pub dropped: usize,
    /// Whether none is left that may go. If not, ask again.
    pub is_done: bool,
}

/// A node has settled: what that changed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Settled {
    /// Rows that went, if any did, then what was written again.
    pub commits: Vec<Commit>,
    /// How many rows of this node's own making were said again.
    pub renewed: usize,
    /// How many rows went that the peer does not have: they were deleted while this node was away.
    pub dropped: usize,
    /// How many of these held writes that the peer had not heard of. Where this node made them they
    /// are lost; others may have theirs still.
    pub lost: usize,
}

/// The longest life whose tombstone is dropped. Nobody reaches it by writing; where somebody claims
/// to have, the tombstone stays, or no row could ever be inserted above it.
pub const LENGTH_DROPPED_MAX: u64 = super::row::COUNT_MAX / 2;

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
    ) -> Result<Extract, StorageError>
    where
        Self: Sized;

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

    /// Returns the held head of every origin that is not retired.
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

    /// Returns a hash over all live rows, parked ones too, and their clocks (see
    /// [`crate::crdt::fingerprint`]): equal on two nodes that hold the same versions and nothing
    /// else. Dead rows do not count: nodes drop their tombstones at different times.
    fn fingerprint(&self) -> Result<u64, StorageError>;

    /// Returns how far tombstones were dropped.
    fn floor(&self) -> Result<Floor, StorageError>;

    /// Returns how many tombstones are held: rows that are dead, parked ones too.
    fn tombstones(&self) -> Result<u64, StorageError>;

    /// Notes members that were met, for [`Floor::members`], and nodes that are none any more, for
    /// [`Floor::forgotten`]. Whom a node did not know when it starts again it would not ask before it
    /// drops tombstones; and it would listen to whom others listen to no more.
    fn meet(
        &mut self,
        members: &[(NodeId, Epoch)],
        forgotten: &[(NodeId, Epoch)],
    ) -> Result<(), StorageError>;

    /// Raises the floor to `heads`, adds `forgotten` to it, in force, and drops at most `rows_max`
    /// tombstones whose stamps it covers, in one transaction. Nobody sees a difference. From then on a
    /// row that is not held, or died in an earlier life, begins above [`Floor::length`], whoever
    /// inserts it here.
    ///
    /// The caller knows that every member holds these heads, and that nothing of an earlier life
    /// of a dropped row can still come here: see [`crate::replica`]. A tombstone whose life is
    /// above [`LENGTH_DROPPED_MAX`] stays, and so do those that are remembered for good (see
    /// [`crate::crdt::change::keeps_tombstones`]). One call looks at a bounded number of rows.
    fn collect(
        &mut self,
        heads: &[(Origin, Version)],
        forgotten: &[(NodeId, Epoch)],
        rows_max: usize,
    ) -> Result<Collected, StorageError>;

    /// Begins to take a peer's rows in the place of this node's, which was away for so long that
    /// deletes are not told any more that it has not heard of. `held` are the peer's heads, `length`
    /// is its [`Floor::length`].
    ///
    /// In one transaction, or in several of which the first says that it has begun: a new epoch
    /// begins, as by [`Storage::begin_epoch`], but what is stamped anew is what this node wrote and
    /// the peer does not hold, or has not held: `held` names what it has retired, too. All heads but
    /// that of the new origin fall to 0, and none is retired any more; no member is known. Rows of
    /// other owners under stamps that the peer does not hold go, tombstones too: only their owners may
    /// say them again. All other rows stay visible, and are noted as unconfirmed.
    ///
    /// From then on [`Storage::apply`] confirms each row that it is told of, whatever becomes of the
    /// change, and takes its stamps where it says what is here under stamps that are beyond the
    /// heads ([`super::RowClock::yield_to`]). Begun again, it begins from the start.
    fn rejoin(
        &mut self,
        now: Wall,
        held: &[(Origin, Version)],
        length: u64,
    ) -> Result<Begun, StorageError>;

    /// Notes that this node's origin may speak: it holds all that one settled member held, and takes
    /// over that member's past. Its era is at least as late, and what was retired there and is not held
    /// here is retired.
    ///
    /// Shared rows that this origin inserted, which nobody has heard of, begin again above every
    /// life that was dropped.
    ///
    /// It ends what [`Storage::rejoin`] began. Rows that are still unconfirmed were deleted, or come
    /// again from who inserted them, and go without a trace. But those that this node itself
    /// inserted and the peer could not know of stay; so do tombstones that the heads do not cover,
    /// and all rows of tables whose tombstones are remembered for good. Of shared rows that were told
    /// of, those cells go that the peer held once and has not told of. What is left in other
    /// shared rows of versions that the heads do not cover is said again as this node's own, but for
    /// stamps of lives that were told of since; so are dead rows of its own.
    fn settle(&mut self, now: Wall, past: &Past) -> Result<Settled, StorageError>;

    /// Deletes the rows that a node owns which is forgotten, as the node itself would have done: under
    /// an origin of it that never was, `under`, whose versions every member writes by itself. They
    /// are the same everywhere, since `held` are the heads of all of the node's origins with every
    /// member. Nothing happens where they are others here. Returns the commits, without their
    /// changesets: nobody has to be told.
    ///
    /// The node is forgotten up to that epoch from now on. Should it be alive, it is told so, goes on
    /// under a later epoch and says its rows again.
    fn depart(
        &mut self,
        now: Wall,
        under: Origin,
        held: &[(Origin, Version)],
    ) -> Result<Vec<Commit>, StorageError>;

    /// Retires and erases origins that write no more, in one transaction. Nobody sees a difference.
    ///
    /// The caller knows that every member is in the same state: see [`crate::replica`].
    fn tidy(&mut self, tidy: &Tidy) -> Result<Tidied, StorageError>;

    /// Returns a row of a table that is here, live or dead, with its clock; `None`: nobody ever
    /// wrote it, or it is dead and its tombstone was dropped.
    fn inspect(&self, table: &str, key: &[Value]) -> Result<Option<Inspected>, StorageError>;

    /// Returns how many rows of received pieces were left out since the storage was opened:
    /// those of a foreign owner, and those whose key is none.
    fn refusals(&self) -> u64;

    /// Looks at rows, to hold them against another node's: see [`super::content`].
    fn look(&self, look: &Look) -> Result<Sight, StorageError>;

    /// Merges whole rows as others have them, in one transaction, and removes those that are gone
    /// elsewhere. Heads stay.
    ///
    /// A row that names a version that is not held here is left out: it would show a part of it.
    /// Where a cell has the same clock and another value, [`Trust`](super::content::Trust) decides. A
    /// row goes only if the floor covers all that it names: then every member held it once, and
    /// whoever lacks it dropped its tombstone.
    fn mend(&mut self, now: Wall, mend: &Mend) -> Result<Mended, StorageError>;

    /// Adds the fingerprint up anew, from the rows as they are.
    fn recount(&mut self) -> Result<(), StorageError>;
}
