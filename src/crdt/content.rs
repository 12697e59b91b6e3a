//! Rows held against another node's: hashes over stretches of a table, and single rows with all of
//! their clocks. When what is looked at, and whose word counts, is the replica's business.
//!
//! Hashes are made from the rows as they are, not from what is kept of them, so what changed a row
//! past the merge is found, too. Dead rows have none: nodes forget them at different times.

use std::collections::BTreeSet;

use super::change::{Commit, Key, Life, Name, Stamp};
use super::fingerprint::row_hash;
use super::merge::CellClock;
use super::storage::StorageError;
use crate::types::{NodeId, Origin, Value, Version};

/// How many ranges one look at a stretch has: enough to come down to few rows with the next, few
/// enough that the message is some kilobytes.
const RANGES_MAX: usize = 64;

/// How many bytes of keys the ranges of one look name, at most, but for a single longer key.
const RANGE_BYTES_MAX: usize = 24 * 1024;

/// How many bytes of whole rows one answer has, about, but always one row.
const STATE_BYTES_MAX: usize = 48 * 1024;

/// How many rows are read to answer one look. What lies beyond is left to the next.
const HELD_ROWS_MAX: usize = 32_768;

/// How many rows are read at a time.
const PAGE_ROWS: usize = 2_048;

/// What a row and a cell weigh beside their key and value, in bytes.
const ENTRY_BYTES: usize = 32;

/// What a whole storage holds, in a few bytes, from one snapshot. Nodes at rest that hold the same
/// heads have the same fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    pub heads: u64,
    /// The one that is kept: see [`super::fingerprint`].
    pub fingerprint: u64,
}

/// A place among all rows: behind this key of this table. An empty key is before all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub table: Name,
    pub key: Key,
}

/// Some rows of a table, in ranges that follow each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    pub table: Name,
    /// The first range begins behind this key; an empty one is before all.
    pub after: Key,
    pub ranges: Vec<Range>,
}

/// A run of rows, and the sum of their hashes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The last key that may be in it; `None`: it goes to the end of the table.
    pub to: Option<Key>,
    pub hash: u64,
}

impl Stretch {
    /// Returns the range that a key falls into; one behind the last where it falls into none.
    pub fn range_of(&self, key: &Key) -> usize {
        self.ranges.partition_point(|range| range.to.as_ref().is_some_and(|to| to < key))
    }

    /// Returns behind which key a range begins, and with which it ends.
    pub fn bounds(&self, index: usize) -> Option<(Key, Option<Key>)> {
        let to = self.ranges.get(index)?.to.clone();
        let before = index.checked_sub(1).and_then(|index| self.ranges.get(index));
        let after = before.and_then(|range| range.to.clone());
        Some((after.unwrap_or_else(|| self.after.clone()), to))
    }
}

/// A row, live or dead, as far as the merge knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowState {
    pub key: Key,
    pub life: Life,
    /// Each cell that was written in this life, by column.
    pub cells: Vec<(Name, CellClock, Value)>,
}

impl RowState {
    /// Returns its part of the fingerprint.
    pub fn hash(&self, table: &str) -> u64 {
        if !self.life.is_alive() {
            return 0;
        }
        let cells = self.cells.iter().map(|(column, clock, value)| (&**column, *clock, value));
        row_hash(table, &self.key, self.life, cells)
    }

    /// Returns all stamps that it names.
    pub fn stamps(&self) -> BTreeSet<Stamp> {
        self.cells.iter().map(|(_, clock, _)| clock.stamp).chain([self.life.stamp]).collect()
    }

    /// Returns what it weighs, about.
    pub fn bytes(&self) -> usize {
        let cells = self.cells.iter().map(|(_, _, value)| value.bytes() + ENTRY_BYTES);
        self.key.len() + ENTRY_BYTES + cells.sum::<usize>()
    }
}

/// What a storage is asked to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// Its own rows behind a place, so many of one table, in few ranges.
    Survey { from: Place, rows_max: usize },
    /// Its own rows of a part of a table, each in a range of its own.
    Rows { table: Name, after: Key, to: Option<Key> },
    /// Another node's stretch, against its own rows. `wants_rows`: the rows of ranges that differ,
    /// too.
    Against { stretch: Stretch, wants_rows: bool },
}

/// What it saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sight {
    /// Of its own rows. Where `next` is `None` these were the last of all tables.
    Own { mark: Mark, stretch: Stretch, rows: usize, next: Option<Place> },
    /// Of another node's stretch.
    Against(Seen),
}

/// How another node's stretch compares.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    pub mark: Mark,
    /// How many ranges, from the first on, were looked at.
    pub looked: usize,
    /// Which of them differ, rising.
    pub differing: Vec<u16>,
    /// The rows of those, dead ones too, where they were wanted.
    pub rows: Vec<RowState>,
    /// Up to which key that is all of them; `None`: it is all.
    pub cut: Option<Key>,
}

/// Whose word counts where two rows have one clock, which is one write, and different values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Two nodes say the same: so it was.
    Two,
    /// One node says so: it is right about what it wrote itself, and wrong about what this node
    /// wrote. Of others' writes the greater value stays.
    One(NodeId),
}

/// Rows of a table as others have them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mend {
    pub table: Name,
    pub rows: Vec<(Trust, RowState)>,
    /// Rows that two others lack, without so much as a tombstone.
    pub gone: Vec<Key>,
}

/// What mending did.
#[derive(Clone, PartialEq, Debug)]
pub struct Mended {
    pub commit: Commit,
    /// The rows that are others now, with the origin that gave them life.
    pub rows: Vec<(Key, Origin)>,
}

/// Rows that may be looked at: of a storage, or of a snapshot of one.
pub trait Content {
    /// Returns what all rows and heads come to.
    fn mark(&self) -> Result<Mark, StorageError>;

    /// Lists the tables of which anything is known, those that are dropped left out, by name.
    fn table_names(&self) -> Result<Vec<Name>, StorageError>;

    /// Lists a table's live rows behind a key, at most so many, with their hashes. A row that cannot
    /// be read has a hash that no row has.
    fn row_hashes(
        &self,
        table: &str,
        after: &[u8],
        rows_max: usize,
    ) -> Result<Vec<(Key, u64)>, StorageError>;

    /// Lists a table's rows, dead ones too, behind a key and up to another one, at most so many.
    /// What cannot be read is left out.
    fn row_states(
        &self,
        table: &str,
        after: &[u8],
        to: Option<&[u8]>,
        rows_max: usize,
    ) -> Result<Vec<RowState>, StorageError>;
}

/// Looks at rows as one is asked to.
pub fn look(content: &impl Content, look: &Look) -> Result<Sight, StorageError> {
    match look {
        Look::Survey { from, rows_max } => survey(content, from, *rows_max),
        Look::Rows { table, after, to } => by_row(content, table, after, to.as_ref()),
        Look::Against { stretch, wants_rows } => {
            against(content, stretch, *wants_rows).map(Sight::Against)
        }
    }
}

fn survey(content: &impl Content, from: &Place, rows_max: usize) -> Result<Sight, StorageError> {
    let mark = content.mark()?;
    let names = content.table_names()?;
    let mut names = names.into_iter().skip_while(|name| *name < from.table);
    let Some(table) = names.next() else {
        let stretch =
            Stretch { table: from.table.clone(), after: from.key.clone(), ranges: Vec::new() };
        return Ok(Sight::Own { mark, stretch, rows: 0, next: None });
    };
    let after = if table == from.table { from.key.clone() } else { Key::default() };
    let rows = content.row_hashes(&table, &after, rows_max)?;
    let is_end = rows.len() < rows_max;
    let ranges = in_ranges(&rows, rows.len().div_ceil(RANGES_MAX).max(1), is_end);
    let next = match ranges.last().and_then(|range| range.to.clone()) {
        Some(key) => Some(Place { table: table.clone(), key }),
        None => names.next().map(|table| Place { table, key: Key::default() }),
    };
    let rows = rows.len();
    Ok(Sight::Own { mark, stretch: Stretch { table, after, ranges }, rows, next })
}

/// Divides rows into ranges of equal size. Where they go to the end of the table, so does the last.
fn in_ranges(rows: &[(Key, u64)], size: usize, is_end: bool) -> Vec<Range> {
    let sum = |rows: &[(Key, u64)]| rows.iter().fold(0, |sum: u64, row| sum.wrapping_add(row.1));
    let mut ranges: Vec<Range> = Vec::new();
    let mut bytes = 0;
    for run in rows.chunks(size) {
        let to = run.last().map(|(key, _)| key.clone());
        bytes += to.as_ref().map_or(0, |key| key.len());
        if bytes > RANGE_BYTES_MAX && !ranges.is_empty() {
            return ranges;
        }
        ranges.push(Range { to, hash: sum(run) });
    }
    match ranges.last_mut() {
        Some(last) if is_end => last.to = None,
        None => ranges.push(Range { to: None, hash: 0 }),
        Some(_) => {}
    }
    ranges
}

fn by_row(
    content: &impl Content,
    table: &Name,
    after: &Key,
    to: Option<&Key>,
) -> Result<Sight, StorageError> {
    let mark = content.mark()?;
    let mut rows = content.row_hashes(table, after, PAGE_ROWS)?;
    let is_page = rows.len() == PAGE_ROWS;
    let within = |key: &Key| to.is_none_or(|to| key <= to);
    let is_end = !is_page || rows.iter().any(|(key, _)| !within(key));
    rows.retain(|(key, _)| within(key));
    let mut ranges = in_ranges(&rows, 1, false);
    let is_all = is_end && ranges.len() >= rows.len();
    // What others have behind the last of them.
    let ends_with = rows.last().map(|(key, _)| key);
    if is_all && !rows.is_empty() && ends_with != to {
        ranges.push(Range { to: to.cloned(), hash: 0 });
    } else if rows.is_empty() {
        ranges = vec![Range { to: to.cloned(), hash: 0 }];
    }
    let last = ranges.last().and_then(|range| range.to.clone());
    let next = last.filter(|key| to.is_none_or(|to| key < to));
    let next = next.map(|key| Place { table: table.clone(), key });
    let (table, after) = (table.clone(), after.clone());
    let stretch = Stretch { table, after, ranges };
    Ok(Sight::Own { mark, stretch, rows: rows.len(), next })
}

fn against(
    content: &impl Content,
    stretch: &Stretch,
    wants_rows: bool,
) -> Result<Seen, StorageError> {
    let mut seen = Seen { mark: content.mark()?, ..Seen::default() };
    let mut place = stretch.after.clone();
    let mut rows = Vec::<(Key, u64)>::new().into_iter().peekable();
    let (mut read, mut is_end) = (0, false);
    for (index, range) in (0..).zip(&stretch.ranges) {
        let within = |key: &Key| range.to.as_ref().is_none_or(|to| key <= to);
        let mut sum: u64 = 0;
        loop {
            if rows.peek().is_none() && !is_end && read < HELD_ROWS_MAX {
                let page = content.row_hashes(&stretch.table, &place, PAGE_ROWS)?;
                is_end = page.len() < PAGE_ROWS;
                read += page.len();
                if let Some((key, _)) = page.last() {
                    place = key.clone();
                }
                rows = page.into_iter().peekable();
            }
            let Some((_, hash)) = rows.next_if(|(key, _)| within(key)) else { break };
            sum = sum.wrapping_add(hash);
        }
        let is_whole = is_end || rows.peek().is_some() || range.to.as_ref() == Some(&place);
        // A range that is too long to be looked at is nothing like the other node's.
        if !is_whole && index > 0 {
            break;
        }
        seen.looked += 1;
        if !is_whole || sum != range.hash {
            seen.differing.push(index);
        }
        if !is_whole {
            break;
        }
    }
    if wants_rows {
        tell_rows(content, stretch, &mut seen)?;
    }
    Ok(seen)
}

fn tell_rows(
    content: &impl Content,
    stretch: &Stretch,
    seen: &mut Seen,
) -> Result<(), StorageError> {
    let mut bytes = 0;
    for index in seen.differing.clone() {
        let Some((mut after, to)) = stretch.bounds(usize::from(index)) else { break };
        loop {
            const ROWS: usize = 64;
            let rows = content.row_states(&stretch.table, &after, to.as_deref(), ROWS)?;
            let is_last = rows.len() < ROWS;
            for row in rows {
                bytes += row.bytes();
                if bytes > STATE_BYTES_MAX && !seen.rows.is_empty() {
                    seen.cut = Some(after);
                    return Ok(());
                }
                after = row.key.clone();
                seen.rows.push(row);
            }
            if is_last {
                break;
            }
        }
    }
    Ok(())
}

/// Tells whether heads cover all that a row names.
pub fn is_covered(row: &RowState, head: impl Fn(Origin) -> Version) -> bool {
    row.stamps().into_iter().all(|stamp| stamp.version <= head(stamp.origin))
}

impl Trust {
    /// Tells whether a value replaces another one under the same clock.
    pub fn replaces(self, me: NodeId, stamp: Stamp, held: &Value, theirs: &Value) -> bool {
        match self {
            Self::Two => true,
            Self::One(_) if stamp.origin.node == me => false,
            Self::One(node) if stamp.origin.node == node => true,
            Self::One(_) => theirs > held,
        }
    }
}
