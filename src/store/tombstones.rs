//! The floor below which tombstones of deleted rows were dropped, and the dropping itself. When it
//! may be done is the replica's business; taking a peer's rows whole is not done here yet.

use rusqlite::Connection;

use super::clocks;
use super::database::{Store, failed};
use super::tables::TableId;
use crate::crdt::RowClock;
use crate::crdt::storage::{Collected, Floor, LENGTH_DROPPED_MAX, StorageError};
use crate::types::{Epoch, NodeId, Origin, Version};

const SELECT_FLOOR: &str = "SELECT origin, version FROM __tribune_floor";
const SELECT_FORGOTTEN: &str = "SELECT node, epoch FROM __tribune_forgotten";
const SELECT_MEMBERS: &str = "SELECT node, epoch FROM __tribune_members";
const MEET: &str = "INSERT INTO __tribune_members (node, epoch) VALUES (?1, ?2)
    ON CONFLICT (node) DO UPDATE SET epoch = max(epoch, excluded.epoch)";
const SELECT_COLLECTION: &str = "SELECT length, settled FROM __tribune_collection";
const RAISE_FLOOR: &str = "INSERT INTO __tribune_floor (origin, version) VALUES (?1, ?2)
    ON CONFLICT (origin) DO UPDATE SET version = max(version, excluded.version)";
const FORGET: &str = "INSERT INTO __tribune_forgotten (node, epoch) VALUES (?1, ?2)
    ON CONFLICT (node) DO UPDATE SET epoch = max(epoch, excluded.epoch)";
const RAISE_LENGTH: &str = "UPDATE __tribune_collection SET length = max(length, ?1)";
const SETTLE: &str = "UPDATE __tribune_collection SET settled = ?1";
// A dead row has one stamp only, so it stands in the record itself.
const SELECT_COVERED: &str = "SELECT tbl, key, clock FROM __tribune_rows
    WHERE origin = ?1 AND version <= ?2";
const SELECT_CLOCKS: &str = "SELECT clock FROM __tribune_rows";
const DELETE: &str = "DELETE FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";

/// A tombstone that may go.
struct Grave {
    table: TableId,
    key: Vec<u8>,
    length: u64,
}

impl Store {
    pub(super) fn read_floor(&self) -> rusqlite::Result<Floor> {
        let conn = &self.conn;
        let mut floor = Floor::default();
        let mut statement = conn.prepare_cached(SELECT_FLOOR)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let version = Version(row.get::<_, i64>(1)?.cast_unsigned());
            floor
                .heads
                .extend(Origin::from_bytes(row.get_ref(0)?.as_blob()?).map(|o| (o, version)));
        }
        floor.forgotten = nodes(conn, SELECT_FORGOTTEN)?;
        floor.members = nodes(conn, SELECT_MEMBERS)?;
        let (length, settled) = conn.prepare_cached(SELECT_COLLECTION)?.query_row([], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, Option<Vec<u8>>>(1)?))
        })?;
        floor.length = length;
        floor.settled = settled.and_then(|bytes| Origin::from_bytes(&bytes));
        Ok(floor)
    }

    pub(super) fn count_tombstones(&self) -> rusqlite::Result<u64> {
        let mut statement = self.conn.prepare_cached(SELECT_CLOCKS)?;
        let mut rows = statement.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            count += u64::from(!clocks::decode(row.get_ref(0)?.as_blob()?)?.is_alive());
        }
        Ok(count)
    }

    pub(super) fn drop_tombstones(
        &self,
        heads: &[(Origin, Version)],
        forgotten: &[(NodeId, Epoch)],
        rows_max: usize,
    ) -> Result<Collected, StorageError> {
        let transaction = self.conn.unchecked_transaction().map_err(failed)?;
        raise(&transaction, heads, forgotten).map_err(failed)?;
        let floor = self.read_floor().map_err(failed)?.heads;
        let mut graves = Vec::new();
        for (origin, head) in floor {
            let Some(ordinal) = self.origins.number_of(origin) else { continue };
            let left = rows_max + 1 - graves.len();
            graves.extend(covered(&transaction, ordinal, head, left).map_err(failed)?);
        }
        let is_done = graves.len() <= rows_max;
        graves.truncate(rows_max);
        for grave in &graves {
            drop_grave(&transaction, grave).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(Collected { dropped: graves.len(), is_done })
    }

    pub(super) fn note_members(&self, members: &[(NodeId, Epoch)]) -> Result<(), StorageError> {
        let transaction = self.conn.unchecked_transaction().map_err(failed)?;
        for (node, epoch) in members {
            transaction.execute(MEET, (&node.0[..], epoch.0)).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    pub(super) fn note_settled(
        &self,
        heads: &[(Origin, Version)],
        length: u64,
    ) -> Result<(), StorageError> {
        let transaction = self.conn.unchecked_transaction().map_err(failed)?;
        raise(&transaction, heads, &[]).map_err(failed)?;
        transaction.execute(RAISE_LENGTH, [length.cast_signed()]).map_err(failed)?;
        let origin = self.now.origin.to_bytes();
        transaction.execute(SETTLE, [&origin[..]]).map_err(failed)?;
        transaction.commit().map_err(failed)
    }
}

fn nodes(conn: &Connection, sql: &str) -> rusqlite::Result<Vec<(NodeId, Epoch)>> {
    let mut statement = conn.prepare_cached(sql)?;
    let nodes = statement.query_map([], |row| Ok((NodeId(row.get(0)?), Epoch(row.get(1)?))))?;
    nodes.collect()
}

fn raise(
    conn: &Connection,
    heads: &[(Origin, Version)],
    forgotten: &[(NodeId, Epoch)],
) -> rusqlite::Result<()> {
    for (origin, head) in heads {
        let bytes = origin.to_bytes();
        conn.prepare_cached(RAISE_FLOOR)?.execute((&bytes[..], head.0.cast_signed()))?;
    }
    for (node, epoch) in forgotten {
        conn.prepare_cached(FORGET)?.execute((&node.0[..], epoch.0))?;
    }
    Ok(())
}

fn covered(
    conn: &Connection,
    ordinal: i64,
    head: Version,
    count_max: usize,
) -> rusqlite::Result<Vec<Grave>> {
    let mut statement = conn.prepare_cached(SELECT_COVERED)?;
    let mut rows = statement.query((ordinal, head.0.cast_signed()))?;
    let mut graves = Vec::new();
    while let Some(row) = rows.next()?.filter(|_| graves.len() < count_max) {
        let clock: RowClock = clocks::decode(row.get_ref(2)?.as_blob()?)?;
        let length = clock.life().length;
        if !clock.is_alive() && length <= LENGTH_DROPPED_MAX {
            graves.push(Grave { table: row.get(0)?, key: row.get(1)?, length });
        }
    }
    Ok(graves)
}

fn drop_grave(conn: &Connection, grave: &Grave) -> rusqlite::Result<()> {
    conn.prepare_cached(RAISE_LENGTH)?.execute([grave.length.cast_signed()])?;
    conn.prepare_cached(DELETE)?.execute((grave.table, &grave.key))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::crdt::storage::Storage;
    use crate::crdt::{RowOp, suite};
    use crate::store::schema::Source;
    use crate::store::{OpenConfig, Store};

    #[test]
    fn churn_does_not_grow_the_file() {
        let schema = "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v TEXT)".to_owned();
        let schema = [Source { file: "t.sql".to_owned(), sql: schema }];
        let mut store = Store::in_memory(&OpenConfig::default(), &schema).unwrap();
        let mut pages = Vec::new();
        for round in 0..12 {
            for id in 0..100_i64 {
                let id = round * 100 + id;
                let row = vec![("id", id.into()), ("v", "some words".into())];
                let put = RowOp::Put { table: "t", row, keep: &[] };
                store.commit(suite::NOW, &[put]).unwrap();
                let matching = vec![("id", id.into())];
                let delete = RowOp::Delete { table: "t", matching, except: None };
                store.commit(suite::NOW, &[delete]).unwrap();
            }
            let heads = store.heads().unwrap();
            while !store.collect(&heads, &[], 30).unwrap().is_done {}
            assert_eq!(store.tombstones().unwrap(), 0);
            let sql = "PRAGMA page_count";
            pages.push(store.conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap());
        }
        assert_eq!(pages[2], pages[11], "{pages:?}");
    }
}
