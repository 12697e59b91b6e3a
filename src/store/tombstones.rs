//! The floor below which tombstones of deleted rows were dropped, and the dropping itself. When it
//! may be done is the replica's business; taking all rows of a peer is `rejoin`'s.
//!
//! Tombstones are found by the log of versions, never by looking at all rows: of each origin the log
//! is gone through once, as far as the floor has risen, some names at a time. On the way it is rid
//! of names that say nothing any more, so what comes and goes leaves nothing behind.

use rusqlite::Connection;
use tracing::warn;

use super::clocks;
use super::database::{Store, failed};
use super::group::{Done, Group};
use super::log::{self, Part};
use super::origins::Ordinal;
use super::sums::Delta;
use super::tables::TableId;
use crate::crdt::change::keeps_tombstones;
use crate::crdt::storage::{Collected, Floor, LENGTH_DROPPED_MAX, StorageError};
use crate::crdt::{ColumnId, Key, RowClock, Stamp};
use crate::types::{Epoch, NodeId, Origin, Value, Version};

const SELECT_FLOOR: &str = "SELECT origin, version FROM __tribune_floor";
const SELECT_FORGOTTEN: &str = "SELECT node, epoch FROM __tribune_forgotten";
const SELECT_IN_FORCE: &str = "SELECT node, in_force FROM __tribune_forgotten
    WHERE in_force IS NOT NULL";
const SELECT_MEMBERS: &str = "SELECT node, epoch FROM __tribune_members";
const MEET: &str = "INSERT INTO __tribune_members (node, epoch) VALUES (?1, ?2)
    ON CONFLICT (node) DO UPDATE SET epoch = max(epoch, excluded.epoch)";
const SELECT_COLLECTION: &str =
    "SELECT length, settled, is_rejoining, era, erased FROM __tribune_collection";
const RAISE_FLOOR: &str = "INSERT INTO __tribune_floor (origin, version) VALUES (?1, ?2)
    ON CONFLICT (origin) DO UPDATE SET version = max(version, excluded.version)";
const FORGET: &str = "INSERT INTO __tribune_forgotten (node, epoch) VALUES (?1, ?2)
    ON CONFLICT (node) DO UPDATE SET epoch = max(epoch, excluded.epoch)";
const ENFORCE: &str = "UPDATE __tribune_forgotten
    SET in_force = max(coalesce(in_force, 0), ?2) WHERE node = ?1";
const RAISE_LENGTH: &str = "UPDATE __tribune_collection SET length = max(length, ?1)";
const CARRY_SETTLED: &str = "UPDATE __tribune_collection SET settled = ?2 WHERE settled = ?1";
const SELECT_UNSEEN: &str = "SELECT origin, version, seen, part FROM __tribune_floor
    WHERE seen < version OR (seen = version AND part < 9223372036854775807)";
const UPDATE_SEEN: &str = "UPDATE __tribune_floor SET seen = ?2, part = ?3 WHERE origin = ?1";
const LOOK_AGAIN: &str = "UPDATE __tribune_floor SET seen = ?2, part = -1
    WHERE origin = ?1 AND seen > ?2";
const LOOK_AT_ALL: &str = "UPDATE __tribune_floor SET seen = 0, part = -1";

/// How many names are looked at for each tombstone that may be dropped: most versions that insert
/// or change rows have none.
const LOOKS_PER_DROP: usize = 4;

/// So many names are looked at in any case.
const LOOKS_MIN: usize = 1_000;

/// What one collection still may do.
struct Budget {
    looks: usize,
    drops: usize,
}

/// How far the log of an origin was looked through: a version, and a part of it.
type Seen = (Version, i64);

impl Group<'_> {
    /// Notes members: see [`Storage::meet`](crate::crdt::storage::Storage::meet).
    pub fn meet(
        &mut self,
        members: &[(NodeId, Epoch)],
        forgotten: &[(NodeId, Epoch)],
    ) -> Result<(), StorageError> {
        self.caller(StorageError::Failed, |group| {
            group.note_members(members, forgotten).map_err(failed)?;
            let (members, forgotten) = (members.to_vec(), forgotten.to_vec());
            group.done.push(Done::Met { members, forgotten });
            Ok(())
        })
    }

    /// Drops tombstones: see [`Storage::collect`](crate::crdt::storage::Storage::collect). Returns
    /// the floor's length, too, as it is now.
    pub fn collect(
        &mut self,
        heads: &[(Origin, Version)],
        forgotten: &[(NodeId, Epoch)],
        rows_max: usize,
    ) -> Result<(Collected, u64), StorageError> {
        self.caller(StorageError::Failed, |group| {
            let collected = group.drop_tombstones(heads, forgotten, rows_max).map_err(failed)?;
            let (heads, forgotten) = (heads.to_vec(), forgotten.to_vec());
            group.done.push(Done::Collected { heads, forgotten, rows_max });
            Ok((collected, group.store.now.length))
        })
    }

    pub(super) fn note_members(
        &mut self,
        members: &[(NodeId, Epoch)],
        forgotten: &[(NodeId, Epoch)],
    ) -> rusqlite::Result<()> {
        for (node, epoch) in members {
            self.store.conn.prepare_cached(MEET)?.execute((&node.0[..], epoch.0.cast_signed()))?;
        }
        raise(&self.store.conn, &[], forgotten)
    }

    pub(super) fn drop_tombstones(
        &mut self,
        heads: &[(Origin, Version)],
        forgotten: &[(NodeId, Epoch)],
        rows_max: usize,
    ) -> rusqlite::Result<Collected> {
        let store = &mut *self.store;
        raise(&store.conn, heads, forgotten)?;
        for (node, epoch) in forgotten {
            store.conn.prepare_cached(ENFORCE)?.execute((&node.0[..], epoch.0.cast_signed()))?;
        }
        let looks = rows_max.saturating_mul(LOOKS_PER_DROP).max(LOOKS_MIN);
        let mut budget = Budget { looks, drops: rows_max };
        let mut is_done = true;
        for (origin, floor, seen) in unseen(&store.conn)? {
            is_done &= store.drop_of(origin, floor, seen, &mut budget)?;
            if !is_done {
                break;
            }
        }
        Ok(Collected { dropped: rows_max - budget.drops, is_done })
    }
}

impl Store {
    pub(super) fn read_floor(&self) -> rusqlite::Result<Floor> {
        let conn = &self.conn;
        let mut floor = Floor::default();
        let mut statement = conn.prepare_cached(SELECT_FLOOR)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let version = Version(row.get::<_, i64>(1)?.cast_unsigned());
            let origin = Origin::from_bytes(row.get_ref(0)?.as_blob()?);
            floor.heads.extend(origin.map(|origin| (origin, version)));
        }
        floor.forgotten = nodes(conn, SELECT_FORGOTTEN)?;
        floor.in_force = nodes(conn, SELECT_IN_FORCE)?;
        floor.members = nodes(conn, SELECT_MEMBERS)?;
        conn.prepare_cached(SELECT_COLLECTION)?.query_row([], |row| {
            let settled: Option<Vec<u8>> = row.get(1)?;
            floor.settled = settled.and_then(|bytes| Origin::from_bytes(&bytes));
            let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            (floor.era, floor.erased) = (number(3)?, number(4)?);
            Ok(())
        })?;
        floor.retired = self.origins.retired();
        (floor.length, floor.is_rejoining) = (self.now.length, self.now.is_rejoining);
        floor.longest = self.sums.longest().max(floor.length);
        let me = self.now.origin;
        let is_settled = floor.settled == Some(me);
        floor.harmless = if is_settled { self.origins.head(me) } else { self.harmless_until(me)? };
        Ok(floor)
    }

    /// Returns how many rows are dead.
    pub fn count_tombstones(&self) -> u64 {
        let tables = (0..).zip(self.tables.entries());
        tables.map(|(id, entry)| self.sums.dead_of(id, entry)).sum()
    }

    /// Drops tombstones of one origin's versions. Returns whether none is left that may go.
    fn drop_of(
        &mut self,
        origin: Origin,
        floor: Version,
        seen: Seen,
        budget: &mut Budget,
    ) -> rusqlite::Result<bool> {
        let Some(ordinal) = self.origins.number_of(origin) else { return Ok(true) };
        // Nothing is dropped that is not held, whoever says so.
        let floor = floor.min(self.origins.head(origin));
        let mut now = seen;
        let is_done = loop {
            let parts = log::parts(&self.conn, ordinal, now, floor)?;
            if parts.is_empty() {
                now = (floor, i64::MAX);
                break true;
            }
            let mut is_through = true;
            for part in parts {
                let place = (part.version, part.number);
                if !self.drop_in(ordinal, origin, part, budget)? {
                    is_through = false;
                    break;
                }
                now = place;
            }
            if !is_through {
                break false;
            }
        };
        if now > seen {
            let (version, part) = (now.0.0.cast_signed(), now.1);
            self.conn.prepare_cached(UPDATE_SEEN)?.execute((origin.to_bytes(), version, part))?;
        }
        Ok(is_done)
    }

    /// Drops what one part of the log names. Returns whether nothing is left in it that may go.
    fn drop_in(
        &mut self,
        ordinal: Ordinal,
        origin: Origin,
        part: Part,
        budget: &mut Budget,
    ) -> rusqlite::Result<bool> {
        if budget.looks == 0 {
            return Ok(false);
        }
        let names = match log::names(&part.rows) {
            Ok(names) => names,
            Err(error) => {
                warn!(%error, "A part of the log of versions cannot be read; run `tribune doctor`");
                return Ok(true);
            }
        };
        budget.looks = budget.looks.saturating_sub(names.len());
        let stamp = Stamp { origin, version: part.version };
        let count = names.len();
        let (mut kept, mut is_done) = (Vec::new(), true);
        for (table, key) in names {
            let clock = clocks::read(&self.conn, &self.origins, table, &key)?;
            let Some(clock) = clock.filter(|clock| clock.has_stamp(stamp)) else { continue };
            let may_go = self.may_go(table, &clock);
            if may_go && budget.drops > 0 {
                budget.drops -= 1;
                self.drop_tombstone(table, &key, &clock)?;
                continue;
            }
            is_done &= !may_go;
            kept.push((table, key));
        }
        if kept.len() < count {
            log::rewrite(&self.conn, (ordinal, part.version, part.number), kept)?;
        }
        Ok(is_done)
    }

    fn may_go(&self, table: TableId, clock: &RowClock) -> bool {
        let entry = self.tables.get_entry(table).filter(|entry| !entry.is_dropped);
        let is_kept = entry.is_none_or(|entry| keeps_tombstones(&entry.name));
        !clock.is_alive() && clock.life().length <= LENGTH_DROPPED_MAX && !is_kept
    }

    fn drop_tombstone(
        &mut self,
        table: TableId,
        key: &Key,
        clock: &RowClock,
    ) -> rusqlite::Result<()> {
        self.raise_length(clock.life().length)?;
        self.hot.forget_row((table, key));
        clocks::remove(&self.conn, (table, key))?;
        let nothing = |_: ColumnId| -> &'static Value { &Value::Null };
        let gone = None::<(&RowClock, fn(ColumnId) -> &'static Value)>;
        let mut delta = Delta::default();
        delta.turn((table, self.tables.entry(table)), key, Some((clock, nothing)), gone);
        self.sums.add(delta);
        Ok(())
    }

    pub(super) fn raise_length(&mut self, length: u64) -> rusqlite::Result<()> {
        if length > self.now.length {
            self.now.length = length;
            self.conn.prepare_cached(RAISE_LENGTH)?.execute([length.cast_signed()])?;
        }
        Ok(())
    }
}

/// Reads what a store has to know at all times: the floor's length, and whether it takes over all
/// rows of another node.
pub(super) fn read_length(conn: &Connection) -> rusqlite::Result<(u64, bool)> {
    conn.query_row(SELECT_COLLECTION, [], |row| {
        Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(2)?))
    })
}

/// An origin goes on under another name, and what it holds is what it held.
pub(super) fn carry_settled(conn: &Connection, from: Origin, to: Origin) -> rusqlite::Result<()> {
    conn.execute(CARRY_SETTLED, (from.to_bytes(), to.to_bytes()))?;
    Ok(())
}

/// Versions of an origin after `head` may come again.
pub(super) fn look_again(conn: &Connection, origin: Origin, head: Version) -> rusqlite::Result<()> {
    conn.execute(LOOK_AGAIN, (origin.to_bytes(), head.0.cast_signed()))?;
    Ok(())
}

/// All versions of all origins may come again.
pub(super) fn look_at_all(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute(LOOK_AT_ALL, [])?;
    Ok(())
}

pub(super) fn raise(
    conn: &Connection,
    heads: &[(Origin, Version)],
    forgotten: &[(NodeId, Epoch)],
) -> rusqlite::Result<()> {
    for (origin, head) in heads {
        let bytes = origin.to_bytes();
        conn.prepare_cached(RAISE_FLOOR)?.execute((bytes, head.0.cast_signed()))?;
    }
    for (node, epoch) in forgotten {
        conn.prepare_cached(FORGET)?.execute((&node.0[..], epoch.0.cast_signed()))?;
    }
    Ok(())
}

fn nodes(conn: &Connection, sql: &str) -> rusqlite::Result<Vec<(NodeId, Epoch)>> {
    let mut statement = conn.prepare_cached(sql)?;
    let nodes = statement.query_map([], |row| {
        let epoch: i64 = row.get(1)?;
        Ok((NodeId(row.get(0)?), Epoch(epoch.cast_unsigned())))
    })?;
    nodes.collect()
}

/// Lists the origins whose floor has risen since their log was looked through.
fn unseen(conn: &Connection) -> rusqlite::Result<Vec<(Origin, Version, Seen)>> {
    let mut statement = conn.prepare_cached(SELECT_UNSEEN)?;
    let mut rows = statement.query([])?;
    let mut unseen = Vec::new();
    while let Some(row) = rows.next()? {
        let version = |at| row.get::<_, i64>(at).map(|number| Version(number.cast_unsigned()));
        let origin = Origin::from_bytes(row.get_ref(0)?.as_blob()?);
        let (floor, seen) = (version(1)?, (version(2)?, row.get(3)?));
        unseen.extend(origin.map(|origin| (origin, floor, seen)));
    }
    Ok(unseen)
}

#[cfg(test)]
mod tests {
    use crate::crdt::RowOp;
    use crate::crdt::storage::Storage;
    use crate::store::Store;
    use crate::store::schema::{Mode, SchemaRequest, Source};
    use crate::store::trial::{NOW, T, Trial};
    use crate::types::Scope;

    fn churn(store: &mut Store, ids: std::ops::Range<i64>) {
        for id in ids {
            let row = vec![("id", id.into()), ("v", "some words".into())];
            store.commit(NOW, &[RowOp::Put { table: "t", row, keep: &[] }]).unwrap();
            let matching = vec![("id", id.into())];
            store.commit(NOW, &[RowOp::Delete { table: "t", matching, except: None }]).unwrap();
        }
    }

    fn collect(store: &mut Store) {
        let heads = store.heads().unwrap();
        while !store.collect(&heads, &[], 500).unwrap().is_done {}
        assert_eq!(store.tombstones().unwrap(), 0);
    }

    fn number(store: &Store, sql: &str) -> i64 {
        store.conn.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// `TRIBUNE_CHURN=2000000 cargo test --release --lib millions_of_deletes -- --ignored --nocapture`
    #[test]
    #[ignore = "takes minutes; it prints how large the file is as it goes on"]
    fn millions_of_deletes_leave_the_file_as_large_as_one_round_of_them() {
        const ROUND: u64 = 10_000;
        let deletes = std::env::var("TRIBUNE_CHURN").ok().and_then(|text| text.parse().ok());
        let rounds = deletes.unwrap_or(2_000_000_u64) / ROUND;
        let mut trial = Trial::new(T);
        let mut bytes = Vec::new();
        for round in 0..rounds {
            let first = round * ROUND;
            let insert = format!(
                "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n
                    WHERE i < {first} + {ROUND} - 1)
                INSERT INTO t SELECT i * 7919 % 1000003, 'some words', 'others' FROM n"
            );
            trial.write(&[&insert]);
            trial.write(&["DELETE FROM t"]);
            collect(&mut trial.store);
            trial.store.maintain().unwrap();
            if (round + 1) % (rounds / 10).max(1) == 0 {
                bytes.push(number(&trial.store, "PRAGMA page_count") * 4_096);
                println!("{:>9} deletes: {:>9} bytes", (round + 1) * ROUND, bytes[bytes.len() - 1]);
            }
        }
        // Where pages are split is a matter of chance.
        assert!(bytes[bytes.len() - 1] <= bytes[0] * 11 / 10, "{bytes:?}");
    }

    #[test]
    fn the_schema_remembers_what_was_dropped() {
        let mut trial = Trial::new("");
        let apply = |store: &mut Store, sql: &str| {
            let sources = vec![Source { file: "t.sql".to_owned(), sql: sql.to_owned() }];
            let mode = Mode::Apply { allow_drop: true };
            let mut group = store.group(NOW);
            group.schema(&SchemaRequest { sources, mode, dry_run: false }).unwrap();
            group.commit().unwrap();
        };
        apply(&mut trial.store, "CREATE TABLE u (id INTEGER NOT NULL PRIMARY KEY, v);");
        trial.write(&["INSERT INTO u VALUES (1, 1), (2, 2)", "DELETE FROM u WHERE id = 1"]);
        apply(&mut trial.store, "DROP TABLE u;");
        let store = &mut trial.store;
        let before = store.tombstones().unwrap();
        assert!(before >= 2, "the table's row and its columns': {before}");
        let heads = store.heads().unwrap();
        while !store.collect(&heads, &[], 500).unwrap().is_done {}
        assert_eq!(store.tombstones().unwrap(), before);
        apply(&mut trial.store, "CREATE TABLE u (id INTEGER NOT NULL PRIMARY KEY, v);");
        assert_eq!(trial.rows("SELECT count(*) FROM u"), ["0"]);
        let generation = "SELECT max(length) FROM __tribune_names WHERE tbl = 'u'";
        assert_eq!(number(&trial.store, generation), 3, "it is another one");
    }

    #[test]
    fn a_row_that_was_told_of_last_is_not_found_under_its_dropped_clock() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        trial.write(&["DELETE FROM t"]);
        collect(&mut trial.store);
        // Its clock was the last that was written, and is in memory.
        let life = |store: &Store| store.inspect("t", &[1.into()]).unwrap().unwrap().life.length;
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        assert_eq!(life(&trial.store), 3, "above what was dropped");
        trial.write(&["UPDATE t SET v = 7"]);
        let trial = trial.reopen();
        assert_eq!(life(&trial.store), 3);
        assert_eq!(trial.store.floor().unwrap().length, 2, "the next process knows it, too");
    }

    #[test]
    fn a_disk_that_is_taken_at_its_word_stays_settled_and_a_copy_does_not() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        Storage::settle(&mut trial.store, NOW, &crate::crdt::storage::Past::default()).unwrap();
        let settled = |trial: &Trial| {
            let floor = trial.store.floor().unwrap();
            floor.settled == Some(trial.store.origin())
        };
        let first = trial.store.origin();
        let trial = trial.reopen();
        assert!(settled(&trial));
        // Its stream has another name from now on, and what it holds is the same.
        let mut trial = trial;
        trial.config.scope = Scope(7);
        let trial = trial.reopen();
        assert!(trial.store.origin() > first && settled(&trial));
        let second = trial.store.origin();
        trial.store.conn.execute("UPDATE __tribune_node SET file = zeroblob(16)", []).unwrap();
        let trial = trial.reopen();
        assert!(trial.store.origin() > second && !settled(&trial));
    }

    #[test]
    fn churn_does_not_grow_the_file() {
        let mut trial = Trial::new(T);
        let store = &mut trial.store;
        churn(store, 0..1);
        let mut pages = Vec::new();
        for round in 0..12 {
            churn(store, round * 100..round * 100 + 100);
            assert_eq!(store.tombstones().unwrap(), 100);
            collect(store);
            pages.push(number(store, "PRAGMA page_count"));
        }
        assert_eq!(pages[1], pages[11], "{pages:?}");
        assert_eq!(number(store, "SELECT count(*) FROM __tribune_rows WHERE tbl = 4"), 0);
        assert!(number(store, "SELECT count(*) FROM __tribune_log") < 10);
    }
}
