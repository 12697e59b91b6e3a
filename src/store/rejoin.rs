//! A node that was away for so long that deletes are not told any more takes over all rows of a
//! peer: what the peer does not have was deleted, unless this node made it. Which peer, and when, is
//! the replica's business.
//!
//! Rows stay visible meanwhile. Those that the peer tells of are noted in `__tribune_confirmed`; when
//! it has told of all, the others are looked at, which is the only step that reads all clocks.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension};

use super::apply::Merge;
use super::changes::Reader;
use super::clocks;
use super::database::{Store, UPDATE_EPOCH, failed};
use super::epochs::{Act, Place};
use super::group::{Done, Group};
use super::local::push_event;
use super::log;
use super::parked;
use super::staged::Told;
use super::sums::Delta;
use super::tables::TableId;
use super::tombstones::{look_at_all, raise};
use crate::crdt::change::{is_harmless, keeps_tombstones};
use crate::crdt::storage::{Past, Settled, StorageError};
use crate::crdt::{
    Class, ColumnId, Commit, Incoming, Key, RowClock, RowEvent, RowTold, Stamp, TableEvents, pack,
};
use crate::types::{Origin, Seq, Value, Version};

const FORGET_MEMBERS: &str = "DELETE FROM __tribune_members";
const UNRETIRE: &str = "DELETE FROM __tribune_retired";
const LEAVE: &str = "UPDATE __tribune_collection SET settled = NULL, is_rejoining = 1";
const SETTLE: &str = "UPDATE __tribune_collection SET settled = ?1, is_rejoining = 0,
        era = max(era, ?2), erased = max(erased, ?3)";
const CONFIRM: &str =
    "INSERT INTO __tribune_confirmed (tbl, key, length, columns) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT DO UPDATE SET length = ?3, columns = ?4";
const SELECT_CONFIRMED: &str =
    "SELECT length, columns FROM __tribune_confirmed WHERE tbl = ?1 AND key = ?2";
const SELECT_TOLD: &str = "SELECT tbl, key, clock, length, columns
    FROM __tribune_confirmed JOIN __tribune_rows USING (tbl, key)";
const FORGET_CONFIRMED: &str = "DELETE FROM __tribune_confirmed";
const SELECT_UNCONFIRMED: &str = "SELECT tbl, key, clock FROM __tribune_rows AS r
    WHERE NOT EXISTS (SELECT 1 FROM __tribune_confirmed AS c WHERE c.tbl = r.tbl AND c.key = r.key)";
const SELECT_TABLE: &str = "SELECT tbl, key, clock FROM __tribune_rows WHERE tbl = ?1";

/// After how many rows the watchdog hears that a long step gets on.
const ROWS_AT_ONCE: usize = 1_000;

/// Notes what a change tells of a row. Returns the longest life that was told of before.
pub(super) fn confirm(
    conn: &Connection,
    place: (TableId, &[u8]),
    change: &Incoming<'_>,
) -> rusqlite::Result<u64> {
    let held = read_told(conn, place)?;
    let is_new = held.is_none();
    let mut told = held.unwrap_or_default();
    let before = told.length;
    if told.add(change) || is_new {
        let columns: Vec<u8> = told.columns.iter().flat_map(|id| id.0.to_be_bytes()).collect();
        let length = told.length.cast_signed();
        conn.prepare_cached(CONFIRM)?.execute((place.0, place.1, length, columns))?;
    }
    Ok(before)
}

/// Returns what the peer has told of a row; `None`: nothing.
fn read_told(conn: &Connection, place: (TableId, &[u8])) -> rusqlite::Result<Option<RowTold>> {
    let mut statement = conn.prepare_cached(SELECT_CONFIRMED)?;
    statement.query_row(place, |row| told_at(row, 0)).optional()
}

/// Reads what was told, from two columns of a result.
fn told_at(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<RowTold> {
    let columns = row.get_ref(at + 1)?.as_blob()?.chunks_exact(2);
    let columns = columns.map(|id| ColumnId(u16::from_be_bytes([id[0], id[1]]))).collect();
    Ok(RowTold { length: row.get::<_, i64>(at)?.cast_unsigned(), columns })
}

type Heads = BTreeMap<Origin, Version>;

impl Group<'_> {
    /// Begins to take over a peer's rows: see
    /// [`Storage::rejoin`](crate::crdt::storage::Storage::rejoin). Returns the new origin, and the one
    /// that ended.
    pub fn rejoin(
        &mut self,
        held: &[(Origin, Version)],
        length: u64,
    ) -> Result<(Origin, Origin), StorageError> {
        self.caller(StorageError::Failed, |group| {
            let me = group.store.now.origin;
            let mine = held.iter().filter(|(origin, _)| origin.node == me.node);
            let above = mine.map(|(origin, _)| origin.epoch).max().unwrap_or_default();
            let origin = group.next_origin(above)?;
            group.leave(origin, held, length).map_err(failed)?;
            group.done.push(Done::Rejoined { origin, held: held.to_vec(), length });
            Ok((origin, me))
        })
    }

    /// Notes that this node may speak: see
    /// [`Storage::settle`](crate::crdt::storage::Storage::settle). The commits are the group's.
    pub fn settle(&mut self, past: &Past) -> Result<Settled, StorageError> {
        self.caller(StorageError::Failed, |group| {
            let settled = group.settle_down(past).map_err(failed)?;
            group.done.push(Done::Settled(past.clone()));
            Ok(settled)
        })
    }

    pub(super) fn leave(
        &mut self,
        origin: Origin,
        held: &[(Origin, Version)],
        length: u64,
    ) -> rusqlite::Result<()> {
        let store = &mut *self.store;
        let ended = store.now.origin;
        store.conn.execute(UPDATE_EPOCH, [origin.epoch.0.cast_signed()])?;
        store.conn.execute(LEAVE, [])?;
        store.conn.execute(FORGET_CONFIRMED, [])?;
        look_at_all(&store.conn)?;
        (store.now.origin, store.now.trusted) = (origin, Version(0));
        store.now.is_rejoining = true;
        store.raise_length(length)?;
        store.conn.execute(UNRETIRE, [])?;
        store.conn.execute(FORGET_MEMBERS, [])?;
        for origin in store.origins.all() {
            store.origins.set_back(origin, Version(0));
        }
        let held: Heads = held.iter().copied().collect();
        self.drop_foreign_news(&held)?;
        let mut places = self.places_of(ended, Class::Owned, Version(0))?;
        let mine = |other: &Origin| other.node == origin.node && *other != origin;
        for origin in self.store.origins.all().into_iter().filter(mine) {
            let after = held.get(&origin).copied().unwrap_or_default();
            places.append(&mut self.places_of(origin, Class::Shared, after)?);
        }
        self.write_places(&places, &Act::Rejoin { ended, held })
    }

    /// Forgets the rows of other owners that a peer with these heads cannot know.
    fn drop_foreign_news(&mut self, held: &Heads) -> rusqlite::Result<()> {
        let me = self.store.now.origin.node;
        let ids = (0..).zip(self.store.tables.entries());
        let is_owned = |name: &str| Class::of(name) == Class::Owned;
        let owned = ids.filter(|(_, entry)| is_owned(&entry.name) && !entry.is_dropped);
        let owned: Vec<TableId> = owned.map(|(id, _)| id).collect();
        let mut gone = Vec::new();
        for id in owned {
            self.store.each_clock(SELECT_TABLE, [id], |place, clock, _| {
                let stamp = clock.life().stamp;
                if stamp.origin.node != me && !is_covered(held, stamp) {
                    gone.push((place, clock));
                }
                Ok(())
            })?;
        }
        self.remove(gone)
    }

    pub(super) fn settle_down(&mut self, past: &Past) -> rusqlite::Result<Settled> {
        let me = self.store.now.origin;
        let was_rejoining = std::mem::take(&mut self.store.now.is_rejoining);
        raise(&self.store.conn, &past.floor, &[])?;
        self.store.raise_length(past.length)?;
        for retired in past.retired.iter().filter(|(origin, _)| *origin != me) {
            let store = &mut *self.store;
            store.origins.take_over(&store.conn, *retired)?;
        }
        let numbers = [past.era.held, past.era.erased].map(u64::cast_signed);
        self.store.conn.execute(SETTLE, (me.to_bytes(), numbers[0], numbers[1]))?;
        let mut settled = Settled::default();
        if was_rejoining {
            let heads: Heads = self.store.origins.all_heads().collect();
            self.drop_unconfirmed(&heads, &mut settled)?;
            self.leave_out(&heads)?;
        }
        let again = self.born_too_low()?;
        settled.renewed = again.len();
        self.write_places(&again, &Act::Begin { length: self.store.now.length })?;
        if was_rejoining {
            self.say_again()?;
            self.store.conn.execute(FORGET_CONFIRMED, [])?;
            self.store.erase_what_is_not_held()?;
        }
        Ok(settled)
    }

    fn drop_unconfirmed(&mut self, heads: &Heads, settled: &mut Settled) -> rusqlite::Result<()> {
        let store = &*self.store;
        let me = store.now.origin;
        let mut gone = Vec::new();
        store.each_clock(SELECT_UNCONFIRMED, [], |(table, key), clock, _| {
            let Some(entry) = store.tables.get_entry(table) else { return Ok(()) };
            let life = clock.life();
            // A tombstone that the peer cannot know is told. A row is told only by who gave it
            // life: others may know of its death already.
            let is_told = !clock.is_alive() && !is_covered(heads, life.stamp);
            let is_mine = life.stamp.origin == me;
            if is_mine || is_told || entry.is_dropped || keeps_tombstones(&entry.name) {
                return Ok(());
            }
            let is_lost = |stamp: Stamp| stamp.origin == me || !is_covered(heads, stamp);
            settled.dropped += usize::from(clock.is_alive());
            settled.lost += usize::from(clock.stamps().into_iter().any(is_lost));
            gone.push(((table, key), clock));
            Ok(())
        })?;
        self.remove(gone)
    }

    /// Lets go of the cells of shared rows that the peer has heard of and does not have.
    fn leave_out(&mut self, heads: &Heads) -> rusqlite::Result<()> {
        let store = &*self.store;
        let me = store.now.origin;
        let is_heard = |stamp: Stamp| stamp.origin != me && is_covered(heads, stamp);
        let mut left_out = Vec::new();
        store.each_clock(SELECT_TOLD, [], |place, mut clock, row| {
            let Some(entry) = store.tables.get_entry(place.0) else { return Ok(()) };
            let is_owned = Class::of(&entry.name) == Class::Owned;
            if is_owned || entry.is_dropped || keeps_tombstones(&entry.name) {
                return Ok(());
            }
            let columns = clock.leave_out(&told_at(row, 3)?, is_heard);
            if !columns.is_empty() {
                left_out.push((place, clock, columns));
            }
            Ok(())
        })?;
        let mut told = Told::default();
        for rows in left_out.chunks(ROWS_AT_ONCE) {
            let mut merge = Merge::new(self.store);
            for ((table, key), clock, columns) in rows {
                merge.leave_out((*table, key), clock, columns)?;
            }
            told.add(merge.write()?);
            self.store.gate.beat();
        }
        self.tell(told);
        Ok(())
    }

    /// Says again what is left of versions that nobody told of: in shared rows, and of this node's own
    /// the dead. Its own that live under an earlier epoch are withdrawn.
    fn say_again(&mut self) -> rusqlite::Result<()> {
        let me = self.store.now.origin;
        // With the versions that were written since the node settled.
        let heads: Heads = self.store.origins.all_heads().collect();
        let mut beyond = BTreeSet::new();
        let mut told = BTreeMap::new();
        for (origin, head) in &heads {
            let shared = self.places_of(*origin, Class::Shared, *head)?;
            for place in shared {
                let of_row = read_told(&self.store.conn, (place.2, &place.1))?;
                told.extend(of_row.map(|of_row| (place.clone(), of_row.length)));
                beyond.insert(place);
            }
            if origin.node == me.node {
                let of_me = self.places_of(*origin, Class::Owned, *head)?;
                beyond.append(&mut self.those_that(|_, clock| !clock.is_alive(), of_me)?);
            }
        }
        let act = Act::SayAgain { heads, told };
        let any = Stamp { origin: me, version: Version(0) };
        let is_changed = |place: &Place, clock: &RowClock| {
            let mut said = clock.clone();
            act.on(&mut said, place, any);
            said != *clock
        };
        let unheard = self.those_that(is_changed, beyond)?;
        self.write_places(&unheard, &act)
    }

    /// Lists the shared rows that this origin gave life, at or below lives that were dropped.
    fn born_too_low(&mut self) -> rusqlite::Result<BTreeSet<Place>> {
        let (me, length) = (self.store.now.origin, self.store.now.length);
        let mut places = BTreeSet::new();
        for (name, key, table) in self.places_of(me, Class::Shared, Version(0))? {
            let Store { conn, origins, .. } = &*self.store;
            let clock = clocks::read(conn, origins, table, &key)?;
            let life = clock.filter(RowClock::is_alive).map(|clock| clock.life());
            let is_low = life.is_some_and(|life| life.stamp.origin == me && life.length <= length);
            if is_low && !keeps_tombstones(&name.0) {
                places.insert((name, key, table));
            }
        }
        Ok(places)
    }

    /// Forgets rows without a trace. Who watches sees them go.
    fn remove(&mut self, rows: Vec<((TableId, Key), RowClock)>) -> rusqlite::Result<()> {
        let mut told = Told::default();
        for rows in rows.chunks(ROWS_AT_ONCE) {
            let mut tables = Vec::new();
            for ((table, key), clock) in rows {
                self.store.remove_row((*table, key), clock, &mut tables)?;
            }
            told.add(tables);
            self.store.gate.beat();
        }
        self.tell(told);
        Ok(())
    }

    /// Tells those who watch of rows that changed without a version.
    fn tell(&mut self, told: Told) {
        let tables = told.tables;
        if !tables.is_empty() {
            let (seq, at) = (Seq::default(), self.store.now.at);
            self.conclude(Commit { seq, at, tables, changeset: None, heads: Vec::new() });
        }
    }
}

impl Store {
    /// See [`Floor::harmless`](crate::crdt::Floor::harmless).
    pub(super) fn harmless_until(&self, me: Origin) -> rusqlite::Result<Version> {
        let head = self.origins.head(me);
        let Some(ordinal) = self.origins.number_of(me) else { return Ok(head) };
        let mut until = head;
        log::visit(&self.conn, ordinal, (Version(0), head), |version, _, table, key| {
            let Some(entry) = self.tables.get_entry(table) else { return Ok(true) };
            if entry.is_dropped || is_harmless(&entry.name) {
                return Ok(true);
            }
            let stamp = Stamp { origin: me, version };
            let is_left = log::is_left(&self.conn, &self.origins, stamp, (table, &key))?;
            if is_left {
                until = Version(version.0 - 1);
            }
            Ok(!is_left)
        })?;
        Ok(until)
    }

    fn each_clock(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        mut each: impl FnMut((TableId, Key), RowClock, &rusqlite::Row<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        let mut count = 0_usize;
        while let Some(row) = rows.next()? {
            count += 1;
            if count.is_multiple_of(ROWS_AT_ONCE) {
                self.gate.beat();
            }
            let clock = clocks::decode(&self.origins, row.get_ref(2)?.as_blob()?)?;
            each((row.get(0)?, row.get_ref(1)?.as_blob()?.into()), clock, row)?;
        }
        Ok(())
    }

    pub(super) fn remove_row(
        &mut self,
        (table, key): (TableId, &Key),
        clock: &RowClock,
        events: &mut Vec<TableEvents>,
    ) -> rusqlite::Result<()> {
        let ids: Vec<ColumnId> = clock.cells().map(|(id, _)| id).collect();
        let mut reader =
            Reader { conn: &self.conn, tables: &self.tables, has_parked: BTreeMap::new() };
        let values = reader.values(table, key, ids.iter().copied())?;
        let values: BTreeMap<ColumnId, Value> = ids.into_iter().zip(values).collect();
        let value = |id| values.get(&id).unwrap_or(&Value::Null);
        let gone = None::<(&RowClock, fn(ColumnId) -> &'static Value)>;
        let mut delta = Delta::default();
        delta.turn((table, self.tables.entry(table)), key, Some((clock, value)), gone);
        self.sums.add(delta);
        if self.has_parked.contains(&table) {
            parked::write(&self.conn, (table, key), [])?;
        }
        if let Some(home) = &self.tables.entry(table).table {
            let key = pack::unpack(key).unwrap_or_default();
            if home.read_row(&self.conn, &key)?.is_some() {
                home.delete_row(&self.conn, &key)?;
                push_event(events, home, RowEvent { key, existed: true, row: None });
            }
        }
        self.hot.forget_row((table, key));
        clocks::remove(&self.conn, (table, key))?;
        self.sweeper.owe(clock.stamps().len() as u64);
        Ok(())
    }
}

fn is_covered(heads: &Heads, stamp: Stamp) -> bool {
    heads.get(&stamp.origin).is_some_and(|head| stamp.version <= *head)
}

#[cfg(test)]
mod tests {
    use crate::crdt::RowEvents;
    use crate::crdt::storage::{Past, Storage};
    use crate::crdt::suite::catch_up;
    use crate::store::limits::EVENT_ROWS_MAX;
    use crate::store::trial::{ME, NOW, T, in_memory, rows, run, source};
    use crate::types::NodeId;

    const YOU: NodeId = NodeId([0x22; 16]);

    #[test]
    fn rows_that_come_or_go_by_the_thousand_are_told_as_many() {
        let mut from = in_memory(YOU, T);
        let count = EVENT_ROWS_MAX + 1;
        let fill = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {count})
            INSERT INTO t (id) SELECT i FROM n"
        );
        run(&mut from, &[&fill]).unwrap();
        let mut to = in_memory(ME, "");
        while catch_up(&mut to, &from, from.origin(), 1 << 20).is_some() {}
        let (_, shown) = to.apply_schema(NOW, &[source(T)]).unwrap();
        let shown = shown.expect("the table shows what was parked for it");
        assert_eq!((shown.tables.len(), &shown.tables[0].rows), (1, &RowEvents::Many));
        assert_eq!(rows(&to, "SELECT count(*) FROM t"), [count.to_string()]);
        // The peer it turns to has none of them.
        Storage::rejoin(&mut to, NOW, &[], 0).unwrap();
        let settled = Storage::settle(&mut to, NOW, &Past::default()).unwrap();
        assert_eq!((settled.dropped, settled.commits.len()), (count, 1));
        assert_eq!(settled.commits[0].tables[0].rows, RowEvents::Many);
        assert_eq!(to.origins.number_of(from.origin()), None, "of which nothing is left");
        assert_eq!(rows(&to, "SELECT count(*) FROM t"), ["0"]);
    }
}
