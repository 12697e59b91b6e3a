//! One way through all rows: each clock against its row, its origin's head and the log of versions,
//! and the sum of each table.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use rusqlite::Connection;

use super::super::changes::{Found, Reader};
use super::super::clocks;
use super::super::copy::Doing;
use super::super::log;
use super::super::origins::Origins;
use super::super::sums::Sums;
use super::super::tables::{Entry, Table, TableId, Tables, read_at};
use super::super::values::{excerpt, quote};
use super::hold::{Look, is_interrupted};
use super::{Finding, Kind};
use crate::crdt::change::owns;
use crate::crdt::fingerprint::row_hash;
use crate::crdt::{Class, ColumnId, Key, RowClock, Stamp, pack};
use crate::types::{Origin, Value, Version};

const COUNT_HOLES: &str = "SELECT
    (SELECT count(*) <> coalesce(max(id) + 1, 0) FROM __tribune_tables) +
    (SELECT count(*) FROM __tribune_columns WHERE tbl NOT IN (SELECT id FROM __tribune_tables))
    + (SELECT count(*) FROM (SELECT tbl FROM __tribune_columns GROUP BY tbl
        HAVING count(*) <> max(id) + 1))
    + (SELECT count(*) FROM (SELECT DISTINCT tbl FROM __tribune_rows)
        WHERE tbl NOT IN (SELECT id FROM __tribune_tables))";
/// Sums are taken row by row; a bare `count(*)` reads all pages without asking whether to end.
const COUNT_CLOCKS: &str = "SELECT coalesce(sum(1), 0) FROM __tribune_rows";
const SELECT_CLOCKS: &str = "SELECT key, clock FROM __tribune_rows WHERE tbl = ?1 ORDER BY key";
const SELECT_CLOCK: &str = "SELECT 1 FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";
const SELECT_LOG: &str = "SELECT origin, version, rows FROM __tribune_log ORDER BY origin, version";
const SELECT_PARKED: &str = "SELECT DISTINCT reason, key, col FROM __tribune_parked
    WHERE tbl = ?1 ORDER BY reason, key";

/// How many rows are read between two looks at the node beside it.
pub(super) const ROWS_A_LOOK: u64 = 4_096;

/// How many of a table's names are held in memory at a time, while those are looked for that are
/// missing: some 32 MiB.
const NAMES_MAX: u64 = 2 << 20;

/// What a table holds, and its part of the fingerprint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableSum {
    pub name: String,
    /// Rows that exist, those that are kept aside too.
    pub live: u64,
    /// Rows that are deleted; their clocks stay.
    pub dead: u64,
    /// The sum of the rows' hashes (see [`crate::crdt::fingerprint`]).
    pub fingerprint: u64,
}

/// What a walk brings back.
pub(super) struct Walked {
    pub tables: Tables,
    pub origins: Origins,
    /// By name; tables without any row are left out. Empty when it is cut.
    pub sums: Vec<TableSum>,
    pub findings: Vec<Finding>,
    /// Whether it was ended before it was through.
    pub is_cut: bool,
}

/// Which rows have which stamps, in a few bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Names {
    count: u64,
    /// Of the hashes of all.
    sum: u64,
}

impl Names {
    fn add(&mut self, hash: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash);
    }
}

fn name_hash(stamp: Stamp, table: TableId, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (stamp, table, key).hash(&mut hasher);
    hasher.finish()
}

/// A walk under way.
pub(super) struct Walk<'a> {
    conn: &'a Connection,
    tables: &'a Tables,
    origins: &'a Origins,
    /// The one that the node writes under.
    own: Option<Origin>,
    found: BTreeMap<(Kind, TableId), Finding>,
    /// The stamps that the rows of each table have, which the log of versions must name.
    stamps: BTreeMap<TableId, Names>,
    done: u64,
    total: u64,
}

impl<'a> Walk<'a> {
    /// Goes through the rows of a database that SQLite says is whole. The inner error: it is so
    /// wrong that no row can be told from another.
    pub fn through(
        conn: &'a Connection,
        own: Option<Origin>,
        look: &mut Look<'_>,
    ) -> rusqlite::Result<Result<Walked, Finding>> {
        if count(conn, COUNT_HOLES)? > 0 {
            return Ok(Err(Finding::of(Kind::NamesWrong)));
        }
        let (tables, origins) = (Tables::read(conn)?, Origins::read(conn)?);
        let mut sums = Vec::new();
        let (findings, is_cut) = {
            let total = count(conn, COUNT_CLOCKS)?;
            let found = BTreeMap::new();
            let (tables, origins) = (&tables, &origins);
            let stamps = BTreeMap::new();
            let mut walk = Walk { conn, tables, origins, own, found, stamps, done: 0, total };
            let is_cut = match walk.all(&mut sums, look) {
                Err(error) if is_interrupted(&error) => true,
                through => through.map(|()| false)?,
            };
            (walk.found.into_values().collect(), is_cut)
        };
        if is_cut {
            sums.clear();
        }
        sums.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Ok(Walked { tables, origins, sums, findings, is_cut }))
    }

    fn all(&mut self, sums: &mut Vec<TableSum>, look: &mut Look<'_>) -> rusqlite::Result<()> {
        let mut made = Vec::new();
        for id in 0..self.tables.entries().len() {
            let id = TableId::try_from(id).expect("table ids are numbers of this type");
            // What a drop leaves of clocks and values counts for nothing: nodes hold it or not, as
            // it reached them.
            if self.tables.entry(id).is_dropped {
                continue;
            }
            let sum = self.table(id, look)?;
            made.push((id, sum.fingerprint));
            if sum.live + sum.dead > 0 {
                sums.push(sum);
            }
        }
        self.sums(&made)?;
        self.log(look)
    }

    /// Looks about once in so many rows.
    fn step(&mut self, look: &mut Look<'_>) -> rusqlite::Result<()> {
        self.done += 1;
        if self.done.is_multiple_of(ROWS_A_LOOK) {
            look.at(Doing::Reading, self.done.min(self.total), self.total)?;
        }
        Ok(())
    }

    fn table(&mut self, id: TableId, look: &mut Look<'_>) -> rusqlite::Result<TableSum> {
        let entry = self.tables.entry(id);
        let name = entry.name.to_string();
        let mut sum = TableSum { name, live: 0, dead: 0, fingerprint: 0 };
        let mut reader =
            Reader { conn: self.conn, tables: self.tables, has_parked: BTreeMap::new() };
        let mut statement = self.conn.prepare(SELECT_CLOCKS)?;
        let mut rows = statement.query([id])?;
        let mut present = 0;
        let mut stamps = Names::default();
        while let Some(row) = rows.next()? {
            self.step(look)?;
            let key: Key = row.get_ref(0)?.as_blob()?.into();
            let Ok(clock) = clocks::decode(self.origins, row.get_ref(1)?.as_blob()?) else {
                self.note(Kind::ClockUnreadable, id, &key);
                continue;
            };
            clock.stamps().into_iter().for_each(|stamp| stamps.add(name_hash(stamp, id, &key)));
            self.heads_of(id, &key, &clock);
            if clock.is_alive() {
                sum.live += 1;
            } else {
                sum.dead += 1;
            }
            let Some(hash) = self.row(&mut reader, id, &key, &clock, &mut present)? else {
                continue;
            };
            sum.fingerprint = sum.fingerprint.wrapping_add(hash);
        }
        self.stamps.insert(id, stamps);
        if let Some(table) = &entry.table {
            self.rows_without_clock(id, table, present)?;
        }
        self.parked(id)?;
        Ok(sum)
    }

    /// Holds what was written of a row against the heads of those who wrote it. A life does not
    /// count: each change of a row brings it along, so it may well arrive before its own version.
    fn heads_of(&mut self, id: TableId, key: &Key, clock: &RowClock) {
        let dropped = &self.tables.entry(id).dropped;
        let cells = clock.cells().filter(|(column, _)| !dropped.contains(column));
        let beyond = cells
            .map(|(_, cell)| cell.stamp)
            .filter(|stamp| stamp.version > self.origins.head(stamp.origin));
        let (mut is_own, mut is_others) = (false, false);
        for stamp in beyond {
            let is_mine = self.own == Some(stamp.origin);
            is_own |= is_mine;
            is_others |= !is_mine;
        }
        if is_own {
            self.note(Kind::BeyondHead, id, key);
        }
        if is_others {
            self.note(Kind::HeadBehind, id, key);
        }
    }

    /// Holds a clock against its row, and returns the row's hash; `None`: it has none.
    fn row(
        &mut self,
        reader: &mut Reader<'_>,
        id: TableId,
        key: &Key,
        clock: &RowClock,
        present: &mut u64,
    ) -> rusqlite::Result<Option<u64>> {
        let entry = self.tables.entry(id);
        if clock.cells().any(|(column, _)| usize::from(column.0) >= entry.columns.len()) {
            self.note(Kind::ClockUnreadable, id, key);
            return Ok(None);
        }
        let found = match reader.find(id, key) {
            Ok(found) => found,
            Err(rusqlite::Error::FromSqlConversionFailure(..)) => {
                *present += 1;
                self.note(Kind::ValueUnreadable, id, key);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        *present += u64::from(found.row.is_some());
        if let Some(kind) = judge(&found, clock) {
            self.note(kind, id, key);
        }
        let owner = pack::unpack(key).unwrap_or_default().into_iter().next().unwrap_or_default();
        let is_owned = found.home.is_some_and(|home| home.class == Class::Owned);
        if is_owned && !owns(clock.life().stamp.origin.node, &owner) {
            self.note(Kind::ForeignOwner, id, key);
        }
        Ok(Some(hash(entry, key, clock, found, |id| !entry.dropped.contains(&id))))
    }

    /// Finds the rows that no clock stands for, if there are any: `present` rows have one.
    fn rows_without_clock(
        &mut self,
        id: TableId,
        table: &Table,
        present: u64,
    ) -> rusqlite::Result<()> {
        let name = quote(&table.info.name);
        if count(self.conn, &format!("SELECT coalesce(sum(1), 0) FROM {name}"))? == present {
            return Ok(());
        }
        let key: Vec<String> =
            table.info.key.iter().map(|&place| quote(&table.info.columns[place])).collect();
        let sql = format!("SELECT {} FROM {name}", key.join(", "));
        let mut statement = self.conn.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values: rusqlite::Result<Vec<Value>> =
                (0..key.len()).map(|index| read_at(row, index)).collect();
            let Some(key) = values.ok().and_then(|values| pack::pack(&values).ok()) else {
                self.note(Kind::ValueUnreadable, id, &[]);
                continue;
            };
            if !self.conn.prepare_cached(SELECT_CLOCK)?.exists((id, &*key))? {
                self.note(Kind::RowUnknown, id, &key);
            }
        }
        Ok(())
    }

    /// Lists what is kept aside, and why.
    fn parked(&mut self, id: TableId) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(SELECT_PARKED)?;
        let mut rows = statement.query([id])?;
        let mut last: Option<(Option<String>, Vec<u8>)> = None;
        while let Some(row) = rows.next()? {
            let (reason, key): (Option<String>, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let is_dropped = self.tables.entry(id).dropped.contains(&ColumnId(row.get(2)?));
            let is_told = last.as_ref().is_some_and(|last| last.0 == reason && last.1 == key);
            if is_dropped || is_told {
                continue;
            }
            let kind = if reason.is_some() { Kind::Quarantined } else { Kind::Parked };
            let finding = self.finding(kind, id);
            finding.add(|| match &reason {
                Some(reason) => format!("{}: {}", show_key(&key), excerpt(reason)),
                None => show_key(&key),
            });
            last = Some((reason, key));
        }
        Ok(())
    }

    /// Holds the log of versions, which other nodes' pulls read, against the rows: each stamp of a
    /// row must be named in it. Names of rows that were overwritten since are left to be swept.
    fn log(&mut self, look: &mut Look<'_>) -> rusqlite::Result<()> {
        let mut named: BTreeMap<TableId, Names> = BTreeMap::new();
        let mut statement = self.conn.prepare(SELECT_LOG)?;
        let mut rows = statement.query([])?;
        // A version may name a row twice.
        let mut seen: HashSet<u64> = HashSet::new();
        let mut last = None;
        while let Some(row) = rows.next()? {
            self.step(look)?;
            let version = Version(row.get::<_, i64>(1)?.cast_unsigned());
            let origin = self.origins.of_number(row.get(0)?);
            let (Some(origin), Ok(names)) = (origin, log::names(row.get_ref(2)?.as_blob()?)) else {
                let finding = Finding { count: 0, ..Finding::of(Kind::LogUnreadable) };
                let found = self.found.entry((Kind::LogUnreadable, 0)).or_insert(finding);
                found.add(|| format!("version {}", version.0));
                continue;
            };
            let stamp = Stamp { origin, version };
            if last.replace(stamp) != Some(stamp) {
                seen.clear();
            }
            for (table, key) in names {
                let hash = name_hash(stamp, table, &key);
                // A clock that cannot be read was told already.
                let is_left = || log::is_left(self.conn, self.origins, stamp, (table, &key));
                if seen.insert(hash) && is_left().unwrap_or(false) {
                    named.entry(table).or_default().add(hash);
                }
            }
        }
        let named = |table| named.get(table).copied().unwrap_or_default();
        let lacking = self.stamps.iter().filter(|(table, stamps)| named(table) != **stamps);
        let lacking: Vec<(TableId, u64)> =
            lacking.map(|(table, stamps)| (*table, stamps.count)).collect();
        lacking.into_iter().try_for_each(|(table, count)| self.unnamed(table, count, look))
    }

    /// Finds the rows of a table that the log does not name under each of their stamps. It goes
    /// through both as often as the names have no room in memory at once.
    fn unnamed(&mut self, id: TableId, count: u64, look: &mut Look<'_>) -> rusqlite::Result<()> {
        let shares = count.div_ceil(NAMES_MAX).max(1);
        for share in 0..shares {
            let is_of_share = |hash: u64| hash % shares == share;
            let mut named = HashSet::new();
            let mut statement = self.conn.prepare(SELECT_LOG)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                self.step(look)?;
                let version = Version(row.get::<_, i64>(1)?.cast_unsigned());
                let origin = self.origins.of_number(row.get(0)?);
                let names = log::names(row.get_ref(2)?.as_blob()?).unwrap_or_default();
                let Some(origin) = origin else { continue };
                let names = names.iter().filter(|(table, _)| *table == id);
                let hashes = names.map(|(_, key)| name_hash(Stamp { origin, version }, id, key));
                named.extend(hashes.filter(|hash| is_of_share(*hash)));
            }
            let mut statement = self.conn.prepare(SELECT_CLOCKS)?;
            let mut rows = statement.query([id])?;
            while let Some(row) = rows.next()? {
                self.step(look)?;
                let key = row.get_ref(0)?.as_blob()?;
                let Ok(clock) = clocks::decode(self.origins, row.get_ref(1)?.as_blob()?) else {
                    continue;
                };
                let mut hashes = clock.stamps().into_iter().map(|it| name_hash(it, id, key));
                if hashes.any(|hash| is_of_share(hash) && !named.contains(&hash)) {
                    self.note(Kind::IndexWrong, id, key);
                }
            }
        }
        Ok(())
    }

    /// Holds the sums that every commit moves against the rows.
    fn sums(&mut self, sums: &[(TableId, u64)]) -> rusqlite::Result<()> {
        let kept = Sums::read(self.conn)?;
        for (id, sum) in sums {
            let kept = kept.of(*id, self.tables.entry(*id));
            if kept != *sum {
                self.finding(Kind::SumWrong, *id)
                    .add(|| format!("{kept:016x} is kept, its rows make {sum:016x}"));
            }
        }
        Ok(())
    }

    fn note(&mut self, kind: Kind, id: TableId, key: &[u8]) {
        self.finding(kind, id).add(|| show_key(key));
    }

    fn finding(&mut self, kind: Kind, id: TableId) -> &mut Finding {
        let table = Some(self.tables.entry(id).name.to_string());
        let fresh = || Finding { kind, table, count: 0, examples: Vec::new() };
        self.found.entry((kind, id)).or_insert_with(fresh)
    }
}

fn count(conn: &Connection, sql: &str) -> rusqlite::Result<u64> {
    conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
}

/// Tells what is wrong between a clock and what there is of its row.
fn judge(found: &Found<'_>, clock: &RowClock) -> Option<Kind> {
    let Found { home, fits, row, parked } = found;
    // Another node's schema is ahead: there is no table that could have the row.
    (*home)?;
    match (clock.is_alive(), row) {
        (true, None) if !fits => Some(Kind::Quarantined),
        // It is kept aside, with its values and the reason.
        (true, None) if !parked.is_empty() => None,
        (true, None) => Some(Kind::RowGone),
        (false, Some(_)) => Some(Kind::RowUndead),
        (true, Some(_)) | (false, None) => None,
    }
}

/// Returns a row's part of the fingerprint, which is made of those columns that are `kept`. Its
/// clock names no column that has no name.
pub(in super::super) fn hash(
    table: &Entry,
    key: &[u8],
    clock: &RowClock,
    found: Found<'_>,
    kept: impl Fn(ColumnId) -> bool,
) -> u64 {
    let cells: Vec<_> = clock.cells().filter(|(id, _)| kept(*id)).collect();
    let values = found.values(cells.iter().map(|(id, _)| *id));
    let cells = cells
        .iter()
        .zip(&values)
        .map(|((id, clock), value)| (&*table.columns[usize::from(id.0)], *clock, value));
    if clock.is_alive() { row_hash(&table.name, key, clock.life(), cells) } else { 0 }
}

/// Shows a key as the values of its columns.
pub(super) fn show_key(key: &[u8]) -> String {
    match pack::unpack(key) {
        Ok(values) => {
            let values: Vec<String> = values.iter().map(Value::to_string).collect();
            excerpt(&values.join(", ")).into_owned()
        }
        Err(_) if key.is_empty() => "a key that is no text".to_owned(),
        Err(_) => "a key that cannot be read".to_owned(),
    }
}
