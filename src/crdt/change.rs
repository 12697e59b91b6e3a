//! A change in each of its states: asked for, made, travelling, and become true.
//!
//! [`RowOp`] is what a face asks for. [`Changeset`] is what one commit of one origin changed.
//! [`Piece`] is a run of changesets as it travels. [`Commit`] is what became true on this node.

use std::sync::Arc;

use crate::types::{Hlc, NodeId, Origin, Seq, Value, Version, Wall};

/// A table's or column's name, shared by all that mention it.
pub type Name = Arc<str>;

/// A row's primary key as [`crate::crdt::pack`] writes it: bytes that sort as the values do.
pub type Key = Arc<[u8]>;

/// Who wrote a cell, and in which commit. Equal stamps are the same write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Stamp {
    pub origin: Origin,
    pub version: Version,
}

impl Stamp {
    /// Orders the writes of one node by when it made them: its epochs only rise, and within one
    /// its versions do. Between nodes it says nothing of time, but is total all the same.
    pub fn recency(self) -> impl Ord + Copy {
        (self.origin.epoch, self.version, self.origin)
    }
}

/// Which life a row is in, and who began it.
///
/// The length counts births and deaths: odd is alive, even is dead, and it only rises. A greater
/// length replaces the row whole: every cell falls back to its column's default. Two nodes that
/// begin the same life at once agree on the greater stamp.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Life {
    pub length: u64,
    pub stamp: Stamp,
}

impl Life {
    /// Tells whether the row exists in this life.
    pub fn is_alive(self) -> bool {
        self.length % 2 == 1
    }
}

/// One commit of one origin, whole: the unit that becomes visible or does not.
///
/// Of an older commit only the cells that nobody overwrote since may be left; a version of which
/// nothing is left is not sent at all (see [`Piece`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changeset {
    pub stamp: Stamp,
    /// When it was committed, by its origin's clock: for lag metrics, never for merging.
    pub at: Wall,
    pub tables: Vec<TableChanges>,
}

/// The changes of one table within a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableChanges {
    pub table: Name,
    /// The columns that [`CellChange::column`] counts.
    pub columns: Vec<Name>,
    pub rows: Vec<RowChange>,
}

/// What one commit says of one row. It stands alone: life travels with the cells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowChange {
    pub key: Key,
    /// The row's life as its writer knew it. The row is dead: there are no cells.
    pub life: Life,
    pub cells: Vec<CellChange>,
}

/// A cell's new value; its stamp is the changeset's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CellChange {
    /// An index into [`TableChanges::columns`].
    pub column: u16,
    /// How often the cell was written in this life: the greater count wins.
    pub count: u64,
    pub value: Value,
}

/// "Of `origin`, this is all that is left of the versions after `after` up to `through`."
///
/// A fresh commit is the piece (version - 1, version]. Whoever holds `after` or more and applies
/// the piece holds `through`. Changesets are in rising version; versions of which nothing is left
/// are missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    pub origin: Origin,
    pub after: Version,
    pub through: Version,
    pub changesets: Vec<Arc<Changeset>>,
}

impl Piece {
    /// Makes the piece of one fresh commit.
    pub fn of(changeset: Arc<Changeset>) -> Self {
        let Stamp { origin, version } = changeset.stamp;
        Self {
            origin,
            after: Version(version.0.saturating_sub(1)),
            through: version,
            changesets: vec![changeset],
        }
    }
}

/// Pieces that are to become true together, at most one an origin.
///
/// Applying it and moving the heads to each piece's `through` is one database transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    pub pieces: Vec<Piece>,
}

/// What became true on this node by one commit, local or remote.
#[derive(Clone, PartialEq, Debug)]
pub struct Commit {
    pub seq: Seq,
    /// This node's clock at the commit, in milliseconds, always rising.
    pub at: Hlc,
    /// Rows that really differ from before, in the order in which they were changed.
    pub tables: Vec<TableEvents>,
    /// What to tell the other nodes: for a local commit that changed something. A large one has
    /// none, see [`Commit::large`].
    pub changeset: Option<Arc<Changeset>>,
    /// The heads, as they now are, of the origins that this commit was about: this node's own, or
    /// those that the batch named.
    pub heads: Vec<(Origin, Version)>,
}

impl Commit {
    /// Returns the version that the commit made of `me`, the origin of this node's own writes, if
    /// that is too large to be told whole: the others hear of its head, and pull it in parts.
    pub fn large(&self, me: Origin) -> Option<Version> {
        let own = self.heads.iter().find(|(origin, _)| *origin == me && self.changeset.is_none());
        own.map(|(_, version)| *version)
    }
}

/// A table's shape at the time of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableInfo {
    pub name: Name,
    /// All replicated columns, in the order of the table; [`RowEvent::row`] follows it.
    pub columns: Vec<Name>,
    /// Indexes into `columns`, in the order of the primary key.
    pub key: Vec<usize>,
}

/// A commit's rows of one table.
#[derive(Clone, PartialEq, Debug)]
pub struct TableEvents {
    pub table: Arc<TableInfo>,
    pub rows: RowEvents,
}

/// Which rows of a table a commit changed.
#[derive(Clone, PartialEq, Debug)]
pub enum RowEvents {
    /// These.
    Each(Vec<RowEvent>),
    /// More than are listed: whoever watches the table reads it again. Never of a table of
    /// [`Class::Owned`], from whose rows the catalog is folded.
    Many,
}

impl RowEvents {
    /// Returns the rows that are listed.
    pub fn each(&self) -> &[RowEvent] {
        match self {
            Self::Each(rows) => rows,
            Self::Many => &[],
        }
    }

    /// Adds a row to those that are listed, if any are.
    pub fn push(&mut self, row: RowEvent) {
        match self {
            Self::Each(rows) => rows.push(row),
            Self::Many => {}
        }
    }
}

/// One row before and after a commit. At least one side is there, and the sides differ.
#[derive(Clone, PartialEq, Debug)]
pub struct RowEvent {
    /// The primary key, in the key's column order.
    pub key: Vec<Value>,
    /// Whether the row existed before.
    pub existed: bool,
    /// The row as it now stands, in the order of [`TableInfo::columns`]; `None`: it is gone.
    pub row: Option<Vec<Value>>,
}

/// A write to the fixed tables, said in rows: what typed commands become.
///
/// Only `catalog/rows.rs` makes these, only a [`storage::Storage`](crate::crdt::storage::Storage)
/// carries them out. A list of them is one transaction: all or none. What counts is its net
/// effect: a row that is inserted and deleted is nothing, one that is deleted and inserted again
/// is updated. Values are equal as [`Value`]s are, so NULL equals NULL.
///
/// A row that ends as it began is not touched. There is one exception: an owned row that stands
/// under an earlier epoch of this node is claimed by that, and written again as it is (see
/// [`storage::Storage::withdraw`](crate::crdt::storage::Storage::withdraw)).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowOp {
    /// Writes the whole row; columns that it does not name take their defaults. Where the row
    /// exists already, the columns named in `keep` stay as they are.
    Put { table: &'static str, row: Vec<(&'static str, Value)>, keep: &'static [&'static str] },
    /// Sets columns of every row whose columns equal `matching`. Key columns too: the row moves to
    /// the new key, where none may be.
    Set {
        table: &'static str,
        matching: Vec<(&'static str, Value)>,
        set: Vec<(&'static str, Value)>,
    },
    /// Deletes every row whose columns equal `matching`, but those named in `except`: values of
    /// one column.
    Delete {
        table: &'static str,
        matching: Vec<(&'static str, Value)>,
        except: Option<(&'static str, Vec<Value>)>,
    },
    /// Gives up the transaction with `otherwise` unless a row matches. What is built on a row of
    /// this node's own claims it.
    Require { table: &'static str, matching: Vec<(&'static str, Value)>, otherwise: Refusal },
}

/// How many rows one commit holds at most that begins an epoch or withdraws rows.
pub const OWN_ROWS_MAX: usize = 500;

/// How many bytes such a commit holds at most, unless a single row has more: half of what a
/// transaction may have.
pub const OWN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a command was not carried out. Nothing was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Who may write a table's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Each row belongs to the node whose id begins its key; only that node writes it, and each
    /// write replaces the row whole, under one stamp. The latest write is the row, however often
    /// the row was written before: an owner that lost its disk cannot know how often that was.
    Owned,
    /// Any node writes any row; concurrent writes merge cell by cell.
    Shared,
}

impl Class {
    /// Returns the class of a table: a pure function of its name, so that all replicas agree.
    pub fn of(table: &str) -> Self {
        match table {
            "nodes" | "services" | "checks" => Self::Owned,
            _ => Self::Shared,
        }
    }
}

/// The table that describes the others.
pub const SCHEMA_TABLE: &str = "tribune_schema";

/// Tells whether deleted rows of a table are remembered for good: how often a name was used is part
/// of the name, so the schema's rows never begin anew.
pub fn keeps_tombstones(table: &str) -> bool {
    table == SCHEMA_TABLE
}

/// Tells whether a write of a table can bring no row back that was deleted, whatever its writer has
/// forgotten: an owner's last word is the row, and what is remembered for good is never forgotten.
pub fn is_harmless(table: &str) -> bool {
    Class::of(table) == Class::Owned || keeps_tombstones(table)
}

/// Returns the longest life in which a row of a table may have died, as far as its present life
/// tells, where that may be forgotten.
pub fn death_of(table: &str, life: Life) -> u64 {
    if is_harmless(table) { 0 } else { life.length & !1 }
}

/// Tells whether `writer` may write a row of an owned table with this first key column.
///
/// The column holds the owner's id, or `<owner's id>/<name>` for an external node, which belongs
/// to the node that registered it.
pub fn owns(writer: NodeId, first_key_column: &Value) -> bool {
    let Some(text) = first_key_column.as_text() else { return false };
    let owner = text.split_once('/').map_or(text, |(owner, _)| owner);
    // The text must be exactly what the id prints: no second spelling of one owner.
    owner == writer.to_string()
}
