//! Two nodes side by side: how far each holds what was written, and the rows that differ although
//! both hold all that was written to them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Rows};

use super::super::changes::Reader;
use super::super::clocks;
use super::super::copy::Doing;
use super::super::database::Identity;
use super::super::image::open_image;
use super::super::migrate;
use super::super::origins::Origins;
use super::super::tables::{TableId, Tables};
use super::hold::{Look, is_interrupted};
use super::walk::{ROWS_A_LOOK, Walk, Walked, hash, show_key};
use super::{Diagnosis, DoctorError, Finding, Kind, Request, Subject, TableSum};
use crate::crdt::{ColumnId, Key, Stamp};
use crate::types::{Origin, Version};

const SELECT_CLOCKS: &str = "SELECT key, clock FROM __tribune_rows WHERE tbl = ?1 ORDER BY key";

/// How many ranges of a table are listed.
const RANGES_MAX: usize = 16;

/// How this database stands to another node's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Comparison {
    pub file: PathBuf,
    pub identity: Identity,
    /// Origins that the two hold unequally far.
    pub heads: Vec<HeadDifference>,
    /// Tables that are not the same on both.
    pub tables: Vec<TableDifference>,
}

/// How far an origin is held here and there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadDifference {
    pub origin: Origin,
    pub here: Version,
    pub there: Version,
}

/// How a table differs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableDifference {
    pub table: String,
    pub fingerprint_here: u64,
    pub fingerprint_there: u64,
    /// Rows that differ since one of the two does not hold their latest writes yet: that is no
    /// fault.
    pub behind: u64,
    /// Rows that differ although both hold all that was written to them.
    pub differing: u64,
    /// Of the differing: rows that only one of the two knows of.
    pub only_here: u64,
    pub only_there: u64,
    /// The differing rows in the order of their keys: runs that no equal row interrupts, the first
    /// sixteen.
    pub ranges: Vec<KeyRange>,
}

/// A run of rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRange {
    pub first: String,
    pub last: String,
    pub rows: u64,
}

impl Diagnosis {
    /// Compares with a backup of another node.
    pub(super) fn compare(
        &mut self,
        conn: &Connection,
        walked: &Walked,
        request: &Request,
        file: &Path,
        look: &mut Look<'_>,
    ) -> Result<(), DoctorError> {
        let mut other = open_image(file)?;
        let path = file.display().to_string();
        let unreadable = |detail: String| DoctorError::Unreadable { path: path.clone(), detail };
        let failed = |error| DoctorError::of(&path, error);
        if other.version < migrate::VERSION {
            return Err(unreadable("it was made by an older tribune".to_owned()));
        }
        let ours = self.identity.as_ref().and_then(|identity| identity.cluster);
        if let (Some(ours), Some(theirs)) = (ours, other.identity.cluster)
            && ours != theirs
        {
            return Err(DoctorError::OtherCluster { path: path.clone(), theirs, ours });
        }
        // Our snapshot is held meanwhile.
        look.hold.watch(&mut other.conn).map_err(failed)?;
        let snapshot = other.conn.unchecked_transaction().map_err(failed)?;
        let theirs = Walk::through(&snapshot, None, look).map_err(failed)?;
        let theirs = theirs.map_err(|finding| unreadable(finding.what()))?;
        if theirs.is_cut {
            return Err(DoctorError::Interrupted);
        }
        let here = Side { conn, tables: &walked.tables, origins: &walked.origins };
        let there = Side { conn: &snapshot, tables: &theirs.tables, origins: &theirs.origins };
        let heads = differing_heads(here.origins, there.origins);
        let mut tables = Vec::new();
        for (name, sums) in side_by_side(&walked.sums, &theirs.sums) {
            let is_dropped =
                [&here, &there].iter().any(|side| side.tables.names().is_table_dropped(name));
            if is_dropped || is_same(&sums) {
                continue;
            }
            let fingerprint = |sum: Option<&TableSum>| sum.map_or(0, |sum| sum.fingerprint);
            let difference = TableDifference {
                table: name.to_owned(),
                fingerprint_here: fingerprint(sums.0),
                fingerprint_there: fingerprint(sums.1),
                ..differing_rows(&here, &there, name, look).map_err(failed)?
            };
            // Only columns that one of the two has dropped already.
            if difference.behind + difference.differing == 0 {
                continue;
            }
            if difference.differing > 0 {
                self.findings.push(diverged(&difference));
            }
            tables.push(difference);
        }
        // A backup is behind its node; a node that lives is not.
        if let (Some(identity), Subject::DataDir(_)) = (&self.identity, &request.subject) {
            let own = heads.iter().find(|head| head.origin == identity.origin());
            if let Some(own) = own.filter(|own| own.there > own.here) {
                let text = format!("{}: here {}, there {}", own.origin, own.here.0, own.there.0);
                self.findings.push(Finding::of(Kind::SetBack).shows(text));
            }
        }
        let identity = other.identity.clone();
        self.comparison = Some(Comparison { file: file.to_owned(), identity, heads, tables });
        Ok(())
    }
}

fn diverged(difference: &TableDifference) -> Finding {
    let mut finding = Finding {
        table: Some(difference.table.clone()),
        count: difference.differing,
        ..Finding::of(Kind::Diverged)
    };
    for range in difference.ranges.iter().take(super::EXAMPLES_MAX) {
        finding.examples.push(if range.rows == 1 {
            range.first.clone()
        } else {
            format!("{} to {} ({} rows)", range.first, range.last, range.rows)
        });
    }
    finding
}

fn differing_heads(here: &Origins, there: &Origins) -> Vec<HeadDifference> {
    let both: BTreeSet<Origin> =
        here.heads().into_iter().chain(there.heads()).map(|(origin, _)| origin).collect();
    let heads = both.into_iter().map(|origin| HeadDifference {
        origin,
        here: here.head(origin),
        there: there.head(origin),
    });
    heads.filter(|head| head.here != head.there).collect()
}

type Both<'a> = (Option<&'a TableSum>, Option<&'a TableSum>);

fn side_by_side<'a>(here: &'a [TableSum], there: &'a [TableSum]) -> BTreeMap<&'a str, Both<'a>> {
    let mut both: BTreeMap<&str, Both<'_>> = BTreeMap::new();
    for sum in here {
        both.entry(&sum.name).or_default().0 = Some(sum);
    }
    for sum in there {
        both.entry(&sum.name).or_default().1 = Some(sum);
    }
    both
}

/// What is deleted one of them may have forgotten.
fn is_same((here, there): &Both<'_>) -> bool {
    let shown = |sum: &TableSum| (sum.live, sum.fingerprint);
    here.map(shown).unwrap_or_default() == there.map(shown).unwrap_or_default()
}

/// One of the two databases.
struct Side<'a> {
    conn: &'a Connection,
    tables: &'a Tables,
    origins: &'a Origins,
}

/// A row as one side has it.
struct Held {
    key: Key,
    /// `None`: it cannot be read, and so it differs.
    hash: Option<u64>,
    /// Of its life and of its cells.
    stamps: Vec<Stamp>,
    is_dead: bool,
}

/// A table as one side has it.
struct Part {
    /// `None`: this side has not heard of it.
    id: Option<TableId>,
    /// The columns that either side has dropped: what is left of them says nothing.
    dropped: BTreeSet<ColumnId>,
}

impl Side<'_> {
    fn reader(&self) -> Reader<'_> {
        Reader { conn: self.conn, tables: self.tables, has_parked: BTreeMap::new() }
    }

    fn part(&self, other: &Self, table: &str) -> Part {
        let id = self.tables.id_of(table);
        let columns = id.map(|id| self.tables.entry(id).columns.iter()).into_iter().flatten();
        let is_dropped = |column: &str| {
            let mut both = [self, other].into_iter();
            both.any(|side| side.tables.names().is_column_dropped(table, column))
        };
        let dropped = (0..).zip(columns).filter(|(_, column)| is_dropped(column));
        Part { id, dropped: dropped.map(|(id, _)| ColumnId(id)).collect() }
    }

    fn next(
        &self,
        reader: &mut Reader<'_>,
        part: &Part,
        rows: &mut Rows<'_>,
    ) -> rusqlite::Result<Option<Held>> {
        let (Some(id), Some(row)) = (part.id, rows.next()?) else { return Ok(None) };
        let key: Key = row.get_ref(0)?.as_blob()?.into();
        let entry = self.tables.entry(id);
        let clock = clocks::decode(self.origins, row.get_ref(1)?.as_blob()?).ok();
        let clock = clock.filter(|clock| {
            clock.cells().all(|(column, _)| usize::from(column.0) < entry.columns.len())
        });
        let kept = |id: ColumnId| !part.dropped.contains(&id);
        let (mut sum, mut stamps) = (None, Vec::new());
        if let Some(clock) = &clock {
            sum = match reader.find(id, &key) {
                Ok(found) => Some(hash(entry, &key, clock, found, kept)),
                Err(error) if is_interrupted(&error) => return Err(error),
                Err(_) => None,
            };
            let cells = clock.cells().filter(|(id, _)| kept(*id));
            stamps = cells.map(|(_, cell)| cell.stamp).chain([clock.life().stamp]).collect();
        }
        let is_dead = clock.is_some_and(|clock| !clock.is_alive());
        Ok(Some(Held { key, hash: sum, stamps, is_dead }))
    }

    /// Tells whether a row holds a write that this side has not got.
    fn lacks(&self, held: Option<&Held>) -> bool {
        held.is_some_and(|held| {
            held.stamps.iter().any(|stamp| stamp.version > self.origins.head(stamp.origin))
        })
    }
}

/// Goes through a table on both sides at once, in the order of keys.
fn differing_rows(
    here: &Side<'_>,
    there: &Side<'_>,
    table: &str,
    look: &mut Look<'_>,
) -> rusqlite::Result<TableDifference> {
    let mut done: u64 = 0;
    look.at(Doing::Comparing, done, 0)?;
    let (part_here, part_there) = (here.part(there, table), there.part(here, table));
    let (mut reader_here, mut reader_there) = (here.reader(), there.reader());
    let mut statement_here = here.conn.prepare(SELECT_CLOCKS)?;
    let mut statement_there = there.conn.prepare(SELECT_CLOCKS)?;
    let mut rows_here = statement_here.query([part_here.id])?;
    let mut rows_there = statement_there.query([part_there.id])?;
    let mut left = here.next(&mut reader_here, &part_here, &mut rows_here)?;
    let mut right = there.next(&mut reader_there, &part_there, &mut rows_there)?;
    let mut difference = TableDifference::default();
    let mut is_run = false;
    loop {
        done += 1;
        if done.is_multiple_of(ROWS_A_LOOK) {
            look.at(Doing::Comparing, done, 0)?;
        }
        let order = match (&left, &right) {
            (None, None) => return Ok(difference),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.key.cmp(&right.key),
        };
        let pair = match order {
            Ordering::Less => (left.as_ref(), None),
            Ordering::Equal => (left.as_ref(), right.as_ref()),
            Ordering::Greater => (None, right.as_ref()),
        };
        difference.take(here, there, pair, &mut is_run);
        if order != Ordering::Greater {
            left = here.next(&mut reader_here, &part_here, &mut rows_here)?;
        }
        if order != Ordering::Less {
            right = there.next(&mut reader_there, &part_there, &mut rows_there)?;
        }
    }
}

impl TableDifference {
    /// Takes one row in, as the two have it. `is_run`: the row before was a differing one.
    fn take(
        &mut self,
        here: &Side<'_>,
        there: &Side<'_>,
        (left, right): (Option<&Held>, Option<&Held>),
        is_run: &mut bool,
    ) {
        let is_equal = match (left, right) {
            (Some(left), Some(right)) => left.hash.is_some() && left.hash == right.hash,
            // The other one has forgotten it, or has not heard of it yet.
            (Some(one), None) | (None, Some(one)) => one.is_dead,
            (None, None) => true,
        };
        if is_equal {
            *is_run = false;
            return;
        }
        if there.lacks(left) || here.lacks(right) {
            self.behind += 1;
            return;
        }
        let Some(held) = left.or(right) else { return };
        self.differing += 1;
        self.only_here += u64::from(right.is_none());
        self.only_there += u64::from(left.is_none());
        let has_room = self.ranges.len() < RANGES_MAX;
        match self.ranges.last_mut() {
            Some(range) if *is_run => {
                range.last = show_key(&held.key);
                range.rows += 1;
            }
            _ if has_room => {
                let key = show_key(&held.key);
                self.ranges.push(KeyRange { first: key.clone(), last: key, rows: 1 });
                *is_run = true;
            }
            _ => {}
        }
    }
}
