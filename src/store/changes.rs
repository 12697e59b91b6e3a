//! What is left of an origin's versions, read back from the clocks and the rows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use super::database::failed;
use super::log::LogPart;
use super::open::open_reader;
use super::origins::Origins;
use super::tables::{Table, TableId, Tables};
use super::{clocks, log, parked};
use crate::crdt::storage::{Bookmark, Extract, StorageError};
use crate::crdt::{
    CellChange, Changeset, ColumnId, Key, Life, Name, Piece, RowChange, RowClock, Stamp,
    TableChanges, pack,
};
use crate::types::{Origin, Value, Version, Wall};

/// What a row and a cell weigh beside their key and value, in bytes.
const ENTRY_BYTES: usize = 16;

/// Reads changes on a connection of its own, from any one thread, while the writer writes.
#[derive(Debug)]
pub struct Loader {
    conn: Connection,
    tables: Tables,
    /// What `tables` was read at.
    schema: Option<SchemaMark>,
    origins: Origins,
}

impl Loader {
    /// Opens a database that a [`Store`](super::Store) has open.
    pub fn open(database: &Path) -> Result<Self, StorageError> {
        let conn = open_reader(database).map_err(failed)?;
        let (tables, origins) = (Tables::default(), Origins::default());
        Ok(Self { conn, tables, schema: None, origins })
    }

    /// Returns what is left of an origin's versions: see
    /// [`Storage::load`](crate::crdt::storage::Storage::load). All of it is from one snapshot.
    pub fn load(
        &mut self,
        origin: Origin,
        from: impl Into<Bookmark>,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        self.within_snapshot(origin, |snapshot, tables, origins| {
            load((snapshot, tables, origins), origin, from.into(), bytes_max).map_err(failed)
        })
    }

    /// Begins a snapshot, in which the names and the head of an origin are known.
    pub(super) fn within_snapshot<T>(
        &mut self,
        origin: Origin,
        work: impl FnOnce(&Connection, &Tables, &Origins) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let Self { conn, tables, schema, origins } = self;
        let snapshot = conn.unchecked_transaction().map_err(failed)?;
        let now = schema_of(&snapshot).map_err(failed)?;
        if *schema != Some(now) {
            *tables = Tables::read(&snapshot).map_err(failed)?;
            *schema = Some(now);
        }
        origins.renew(&snapshot, origin).map_err(failed)?;
        work(&snapshot, tables, origins)
    }

    /// Returns the held head of every origin, from one snapshot.
    pub fn heads(&mut self) -> Result<Vec<(Origin, Version)>, StorageError> {
        let origins = Origins::read(&self.conn).map_err(failed)?;
        Ok(origins.heads())
    }
}

/// What changes when a table or a column comes or is dropped, or a name is given a number.
type SchemaMark = (i64, i64, i64, i64);

/// A life's length is whatever another node says, so the lengths are summed in two halves, which
/// cannot overflow. They only grow: so does one of the sums.
fn schema_of(conn: &Connection) -> rusqlite::Result<SchemaMark> {
    let version = conn.pragma_query_value(None, "schema_version", |row| row.get(0))?;
    conn.prepare_cached(
        "SELECT (SELECT count(*) FROM __tribune_tables) + (SELECT count(*) FROM __tribune_columns),
            coalesce(sum(length >> 32), 0), coalesce(sum(length & 4294967295), 0)
         FROM __tribune_names",
    )?
    .query_row([], |row| Ok((version, row.get(0)?, row.get(1)?, row.get(2)?)))
}

/// See [`Loader::load`]. The connection is in a transaction, or nobody else writes meanwhile.
pub(super) fn load(
    (conn, tables, origins): (&Connection, &Tables, &Origins),
    origin: Origin,
    from: Bookmark,
    bytes_max: usize,
) -> rusqlite::Result<Extract> {
    let after = from.after;
    let mut piece = Piece { origin, after, through: after, changesets: Vec::new() };
    let head = origins.head(origin);
    let Some(ordinal) = origins.number_of(origin).filter(|_| after < head) else {
        return Ok(Extract { piece, head, part: 0 });
    };
    let mut reader = Reader { conn, tables, has_parked: BTreeMap::new() };
    let mut builder = Builder::new(Stamp { origin, version: after });
    let mut bytes = 0;
    // Where it is cut: before a version, or before this part of the one that is read.
    let mut cut = None;
    log::visit_parts(conn, ordinal, (from, head), |LogPart { version, part, at, names }| {
        if version != builder.stamp.version {
            let next = Builder::new(Stamp { origin, version });
            std::mem::replace(&mut builder, next).close(tables, &mut piece);
        } else if bytes > bytes_max {
            // Of a version that began here: one that follows others is left for the next piece, and
            // so is one of which nothing was left in the parts so far.
            cut = Some(if builder.tables.is_empty() { 0 } else { part });
            return Ok(false);
        }
        let stamp = builder.stamp;
        let mut rows = Vec::new();
        let mut part_bytes = 0;
        for (table, key) in names {
            let dropped = tables.get_entry(table).is_none_or(|entry| entry.is_dropped);
            let clock = if dropped { None } else { clocks::read(conn, origins, table, &key)? };
            let Some(clock) = clock.filter(|clock| clock.has_stamp(stamp)) else { continue };
            let change = reader.read(stamp, table, key, &clock)?;
            // All that this version wrote of the row was dropped with its columns.
            if change.cells.is_empty() && clock.life().stamp != stamp {
                continue;
            }
            part_bytes += change.bytes();
            rows.push((table, change));
            if bytes + part_bytes > bytes_max && !piece.changesets.is_empty() {
                cut = Some(0);
                return Ok(false);
            }
        }
        // A part alone may be large already: it shares a message with no other then. One of which
        // nothing is left takes no room.
        if bytes > 0 && part_bytes > 0 && bytes + part_bytes > bytes_max {
            cut = Some(part);
            return Ok(false);
        }
        bytes += part_bytes;
        builder.at = builder.at.max(at);
        for (table, change) in rows {
            builder.tables.entry(table).or_default().push(change);
        }
        Ok(true)
    })?;
    match cut {
        Some(0) => {}
        Some(_) => {
            let through = Version(builder.stamp.version.0 - 1);
            builder.close(tables, &mut piece);
            piece.through = through;
        }
        None => {
            builder.close(tables, &mut piece);
            piece.through = head;
        }
    }
    Ok(Extract { piece, head, part: cut.unwrap_or(0) })
}

/// One version's rows, while they are read.
struct Builder {
    stamp: Stamp,
    at: Wall,
    tables: BTreeMap<TableId, Vec<Left>>,
}

/// What a commit tells of rows, each as the commit is about to leave it.
pub(super) struct Telling<'a> {
    reader: Reader<'a>,
    builder: Builder,
}

impl<'a> Telling<'a> {
    pub fn new(conn: &'a Connection, tables: &'a Tables, (stamp, at): (Stamp, Wall)) -> Self {
        let reader = Reader { conn, tables, has_parked: BTreeMap::new() };
        Self { reader, builder: Builder { at, ..Builder::new(stamp) } }
    }

    /// Reads what the commit says of a row with this clock.
    pub fn read(&mut self, table: TableId, key: &Key, clock: &RowClock) -> rusqlite::Result<Left> {
        self.reader.read(self.builder.stamp, table, Arc::clone(key), clock)
    }

    /// Returns a row's values in some columns, as they are.
    pub fn values(
        &mut self,
        table: TableId,
        key: &Key,
        columns: impl IntoIterator<Item = ColumnId>,
    ) -> rusqlite::Result<Vec<Value>> {
        self.reader.values(table, key, columns)
    }

    pub fn add(&mut self, table: TableId, row: Left) {
        self.builder.tables.entry(table).or_default().push(row);
    }

    pub fn finish(mut self) -> Arc<Changeset> {
        for rows in self.builder.tables.values_mut() {
            rows.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
        self.builder.changeset(self.reader.tables)
    }
}

/// What is left of one version in one row.
pub(super) struct Left {
    key: Key,
    life: Life,
    /// Rising.
    cells: Vec<(ColumnId, u64, Value)>,
}

impl Left {
    /// Returns what it weighs, as [`Storage::load`](crate::crdt::storage::Storage::load) counts.
    pub fn bytes(&self) -> usize {
        let cells = self.cells.iter().map(|(_, _, value)| value.bytes() + ENTRY_BYTES);
        self.key.len() + ENTRY_BYTES + cells.sum::<usize>()
    }
}

impl Builder {
    fn new(stamp: Stamp) -> Self {
        Self { stamp, at: Wall(0), tables: BTreeMap::new() }
    }

    fn close(mut self, tables: &Tables, piece: &mut Piece) {
        if self.tables.is_empty() {
            return;
        }
        for rows in self.tables.values_mut() {
            rows.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            rows.dedup_by(|a, b| a.key == b.key);
        }
        piece.through = self.stamp.version;
        piece.changesets.push(self.changeset(tables));
    }

    fn changeset(self, tables: &Tables) -> Arc<Changeset> {
        let Self { stamp, at, .. } = self;
        let mut changes: Vec<TableChanges> = self
            .tables
            .into_iter()
            .map(|(table, rows)| travelling(&tables.entry(table).name, tables, table, rows))
            .collect();
        changes.sort_unstable_by(|a, b| a.table.cmp(&b.table));
        Arc::new(Changeset { stamp, at, tables: changes })
    }
}

fn travelling(name: &Name, tables: &Tables, table: TableId, rows: Vec<Left>) -> TableChanges {
    let mut used: Vec<ColumnId> =
        rows.iter().flat_map(|row| row.cells.iter().map(|(id, _, _)| *id)).collect();
    used.sort_unstable();
    used.dedup();
    let number_of = |id: ColumnId| {
        let number = used.partition_point(|other| *other < id);
        u16::try_from(number).expect("there are as many columns as column ids at most")
    };
    let rows = rows.into_iter().map(|row| RowChange {
        key: row.key,
        life: row.life,
        cells: row
            .cells
            .into_iter()
            .map(|(id, count, value)| CellChange { column: number_of(id), count, value })
            .collect(),
    });
    TableChanges {
        table: Arc::clone(name),
        rows: rows.collect(),
        columns: used
            .iter()
            .map(|id| Arc::clone(&tables.entry(table).columns[usize::from(id.0)]))
            .collect(),
    }
}

/// Reads rows with their clocks, wherever their values are.
pub(super) struct Reader<'a> {
    pub conn: &'a Connection,
    pub tables: &'a Tables,
    /// Whether a table has parked values, once that was asked.
    pub has_parked: BTreeMap<TableId, bool>,
}

impl Reader<'_> {
    fn read(
        &mut self,
        stamp: Stamp,
        table: TableId,
        key: Key,
        clock: &RowClock,
    ) -> rusqlite::Result<Left> {
        let dropped = &self.tables.entry(table).dropped;
        let cells = clock.cells_of(stamp).filter(|(id, _)| !dropped.contains(id));
        let mut cells: Vec<(ColumnId, u64)> = cells.collect();
        cells.sort_unstable();
        let values = if cells.is_empty() {
            Vec::new()
        } else {
            self.values(table, &key, cells.iter().map(|(id, _)| *id))?
        };
        let cells = cells.into_iter().zip(values).map(|((id, count), value)| (id, count, value));
        Ok(Left { key, life: clock.life(), cells: cells.collect() })
    }

    /// Returns a live row's values in some columns.
    pub fn values(
        &mut self,
        table: TableId,
        key: &Key,
        columns: impl IntoIterator<Item = ColumnId>,
    ) -> rusqlite::Result<Vec<Value>> {
        Ok(self.find(table, key)?.values(columns))
    }

    /// Finds what there is of a row's values.
    pub fn find(&mut self, table: TableId, key: &Key) -> rusqlite::Result<Found<'_>> {
        let parked = if self.has_parked(table)? {
            parked::read(self.conn, table, key)?
        } else {
            parked::Values::new()
        };
        let home = self.tables.entry(table).table.as_ref();
        let key_values = pack::unpack(key).unwrap_or_default();
        let fits = home.is_some_and(|home| home.check_key(&key_values).is_ok());
        let row = match home {
            Some(home) if fits => home.read_row(self.conn, &key_values)?,
            Some(_) | None => None,
        };
        Ok(Found { home, fits, row, parked })
    }

    fn has_parked(&mut self, table: TableId) -> rusqlite::Result<bool> {
        if let Some(has) = self.has_parked.get(&table) {
            return Ok(*has);
        }
        let has = self
            .conn
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM __tribune_parked WHERE tbl = ?1)")?
            .query_row([table], |row| row.get(0))?;
        self.has_parked.insert(table, has);
        Ok(has)
    }
}

/// What there is of a row's values.
pub(super) struct Found<'a> {
    /// `None`: this node's schema does not have the table.
    pub home: Option<&'a Arc<Table>>,
    /// Whether the table can hold a row with this key.
    pub fits: bool,
    /// As the table has it.
    pub row: Option<Vec<Value>>,
    pub parked: parked::Values,
}

impl Found<'_> {
    /// Returns the values of some columns of a live row.
    pub fn values(mut self, columns: impl IntoIterator<Item = ColumnId>) -> Vec<Value> {
        let Self { home, row, parked, .. } = &mut self;
        // What is parked counts: the row that SQLite has may be older, where it refused a newer.
        let value_of = |id: ColumnId| {
            let place = home.and_then(|home| home.place(id));
            match (parked.remove(&id), place) {
                (Some(value), _) => value,
                (None, Some(place)) => match &row {
                    Some(row) => row[place].clone(),
                    None => {
                        home.map(|home| home.columns[place].default.clone()).unwrap_or_default()
                    }
                },
                (None, None) => Value::Null,
            }
        };
        columns.into_iter().map(value_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crdt::Batch;
    use crate::crdt::storage::Storage;
    use crate::store::trial::{NOW, T, Trial, in_memory, run};
    use crate::types::NodeId;

    #[test]
    fn a_loader_reads_what_the_writer_would() {
        let mut trial = Trial::new(T);
        let mut loader = Loader::open(trial.store.path().unwrap()).unwrap();
        let me = trial.store.origin();
        assert_eq!(loader.load(me, Version(0), 100).unwrap().head, Version(0));
        for sql in [
            "INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b')",
            "UPDATE t SET v = 'c' WHERE id = 1",
            "INSERT INTO kv (key) VALUES ('k')",
            "DELETE FROM t WHERE id = 2",
        ] {
            trial.write(&[sql]);
        }
        for bytes_max in [1, 60, 100_000] {
            for after in 0..6 {
                let here = trial.store.load(me, Version(after), bytes_max).unwrap();
                let there = loader.load(me, Version(after), bytes_max).unwrap();
                assert_eq!(here, there);
                assert!(after >= 4 || !here.piece.changesets.is_empty());
            }
        }
        assert_eq!(loader.heads().unwrap(), [(me, Version(4))]);
        // Another node's table becomes known while the loader is open.
        let mut other =
            in_memory(NodeId([0x22; 16]), "CREATE TABLE u (a TEXT NOT NULL PRIMARY KEY, b);");
        let (_, commit) = run(&mut other, &["INSERT INTO u VALUES ('x', 'y')"]).unwrap();
        let changeset = commit.unwrap().changeset.unwrap();
        let piece = Piece::of(Arc::clone(&changeset));
        trial.store.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
        let there = loader.load(other.origin(), Version(0), 100).unwrap();
        assert_eq!(there.piece.changesets, [changeset]);
    }

    #[test]
    fn what_is_cut_within_a_version_ends_with_rows_of_it() {
        let mut trial = Trial::new(T);
        let me = trial.store.origin();
        trial.write(&["INSERT INTO t (id) VALUES (-1)"]);
        // More than one part of the log, of which the first has nothing left.
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000)
            INSERT INTO t (id) SELECT i FROM n";
        trial.write(&[fill]);
        trial.write(&["DELETE FROM t WHERE id BETWEEN 1 AND 400"]);
        let mut from = Bookmark::from(Version(0));
        let mut told = Vec::new();
        while from.after < Version(3) {
            let extract = trial.store.load(me, from, 1).unwrap();
            let last = extract.piece.changesets.last().unwrap().stamp.version;
            assert_eq!(last > extract.piece.through, extract.part > 0, "{last}, {extract:?}");
            told.push((extract.piece.through.0, extract.part > 0));
            from = extract.end();
        }
        assert_eq!(told[..2], [(1, false), (1, true)]);
    }

    #[test]
    fn a_loader_on_another_thread_never_claims_more_than_its_snapshot() {
        let mut trial = Trial::new(T);
        let me = trial.store.origin();
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        let mut loader = Loader::open(trial.store.path().unwrap()).unwrap();
        let reader = std::thread::spawn(move || {
            let mut last = Version(0);
            while last < Version(200) {
                let extract = loader.load(me, Version(0), usize::MAX).unwrap();
                assert!(extract.head >= last);
                last = extract.head;
                // Each commit overwrites the one before: of the head there is always something.
                let newest = extract.piece.changesets.last().unwrap();
                assert_eq!(newest.stamp.version, extract.head);
                assert_eq!(extract.piece.through, extract.head);
            }
        });
        for n in 0..199 {
            trial.write(&[&format!("UPDATE t SET v = {n}")]);
        }
        reader.join().unwrap();
    }
}
