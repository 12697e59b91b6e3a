//! This node's own rows when an epoch begins, and those of an earlier one that come back from
//! others. Both are written by their clocks: what a row holds does not change by a new stamp.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::Connection;

use super::changes::Telling;
use super::clocks::{self, Hot, Notes};
use super::database::{Store, UPDATE_EPOCH, failed};
use super::group::{Done, Group};
use super::local::push_event;
use super::log::{self, Sweeper, Times};
use super::origins::Origins;
use super::parked;
use super::sums::Sums;
use super::tables::{TableId, Tables};
use super::tombstones;
use crate::crdt::change::{OWN_BYTES_MAX, OWN_ROWS_MAX, is_harmless};
use crate::crdt::storage::StorageError;
use crate::crdt::{
    Changeset, Class, ColumnId, Commit, Key, Name, RowClock, RowEvent, Stamp, TableEvents, pack,
};
use crate::types::{Epoch, Origin, Seq, Value, Version, Wall};

/// Instances go before their nodes and checks: one without its checks would look well.
pub(super) type Place = (Reverse<Name>, Key, TableId);

impl Group<'_> {
    /// Begins a new epoch for this node's own writes: see
    /// [`Storage::begin_epoch`](crate::crdt::storage::Storage::begin_epoch). Returns the new
    /// origin, and the one that ended with how far it is held now.
    pub fn begin_epoch(
        &mut self,
        above: Epoch,
    ) -> Result<(Origin, (Origin, Version)), StorageError> {
        self.caller(StorageError::Failed, |group| {
            let me = group.store.now.origin;
            let origin = group.next_origin(above)?;
            let trusted = group.store.now.trusted.min(group.store.origins.head(me));
            group.enter(origin, trusted).map_err(failed)?;
            group.done.push(Done::Epoch { origin, trusted });
            Ok((origin, (me, trusted)))
        })
    }

    /// Returns an origin of this node that never was.
    pub(super) fn next_origin(&self, above: Epoch) -> Result<Origin, StorageError> {
        let me = self.store.now.origin;
        let held = self.store.origins.heads();
        let mine = held.iter().filter(|(origin, _)| origin.node == me.node);
        let last = mine.map(|(origin, _)| origin.epoch).max().unwrap_or_default();
        let last = last.max(me.epoch).max(above);
        let epoch = last.later_by(1).ok_or_else(|| {
            let full = "this node has used up its epochs; give it a new id";
            StorageError::Failed(full.to_owned())
        })?;
        Ok(Origin { epoch, ..me })
    }

    /// Goes on under the epoch that the store was opened with: `write` puts it down, and this
    /// node's rows of `ended` are written again.
    pub(super) fn resume(
        &mut self,
        ended: Origin,
        write: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), StorageError> {
        self.caller(StorageError::Failed, |group| {
            write(&group.store.conn).map_err(failed)?;
            let trusted = group.store.origins.head(ended);
            group.renew(ended, trusted).map_err(failed)
        })
    }

    /// Deletes what of this node's own rows stands under an earlier epoch: see
    /// [`Storage::withdraw`](crate::crdt::storage::Storage::withdraw). Returns how many commits
    /// that took.
    pub fn withdraw(&mut self) -> Result<usize, StorageError> {
        self.caller(StorageError::Failed, |group| {
            let before = group.commits.len();
            group.withdraw_all().map_err(failed)?;
            group.done.push(Done::Withdrawn);
            Ok(group.commits.len() - before)
        })
    }

    /// Ends the present epoch, whose origin is held up to `trusted` from now on.
    pub(super) fn enter(&mut self, origin: Origin, trusted: Version) -> rusqlite::Result<()> {
        let ended = self.store.now.origin;
        self.store.conn.execute(UPDATE_EPOCH, [origin.epoch.0.cast_signed()])?;
        self.store.now.origin = origin;
        self.store.now.trusted = Version(0);
        self.store.origins.set_back(ended, trusted);
        self.renew(ended, trusted)?;
        // Of what was beyond nothing is left, and it may come back under the same names.
        let ordinal = self.store.origins.ordinal(ended);
        tombstones::look_again(&self.store.conn, ended, trusted)?;
        log::forget_after(&self.store.conn, ordinal, trusted)
    }

    /// Stamps anew what the ended origin wrote: of owned rows all, of others what it wrote beyond
    /// `trusted`.
    fn renew(&mut self, ended: Origin, trusted: Version) -> rusqlite::Result<()> {
        let mut places = self.places_of(ended, Class::Owned, Version(0))?;
        places.append(&mut self.places_of(ended, Class::Shared, trusted)?);
        self.write_places(&places, &Act::Renew { ended, trusted })
    }

    pub(super) fn withdraw_all(&mut self) -> rusqlite::Result<()> {
        let me = self.store.now.origin;
        let is_past = |origin: &Origin| origin.node == me.node && origin.epoch < me.epoch;
        let places = self.owned_by(is_past)?;
        self.write_places(&places, &Act::Withdraw)
    }

    /// Lists the live rows of owned tables that hold a stamp of such an origin.
    pub(super) fn owned_by(
        &mut self,
        is_wanted: impl Fn(&Origin) -> bool,
    ) -> rusqlite::Result<BTreeSet<Place>> {
        let mut places = BTreeSet::new();
        for origin in self.store.origins.all().into_iter().filter(is_wanted) {
            let of_origin = self.places_of(origin, Class::Owned, Version(0))?;
            places.append(&mut self.those_that(|_, clock| clock.is_alive(), of_origin)?);
        }
        Ok(places)
    }

    /// Leaves only the places whose rows' clocks are wanted.
    pub(super) fn those_that(
        &self,
        is_wanted: impl Fn(&Place, &RowClock) -> bool,
        places: BTreeSet<Place>,
    ) -> rusqlite::Result<BTreeSet<Place>> {
        let Store { conn, origins, .. } = &*self.store;
        let mut wanted = BTreeSet::new();
        for place in places {
            let clock = clocks::read(conn, origins, place.2, &place.1)?;
            if clock.is_some_and(|clock| is_wanted(&place, &clock)) {
                wanted.insert(place);
            }
        }
        Ok(wanted)
    }

    /// Writes rows in commits of bounded size.
    pub(super) fn write_places(
        &mut self,
        places: &BTreeSet<Place>,
        act: &Act,
    ) -> rusqlite::Result<()> {
        self.write_places_as((self.store.now.origin, self.now), places, act)
    }

    /// As [`Group::write_places`], as if written by another origin and at another time.
    pub(super) fn write_places_as(
        &mut self,
        as_of: (Origin, Wall),
        places: &BTreeSet<Place>,
        act: &Act,
    ) -> rusqlite::Result<()> {
        // What may be told at once comes first: see [`is_harmless`].
        let is_first = |(name, ..): &&Place| is_harmless(&name.0);
        let (first, last): (Vec<_>, Vec<_>) = places.iter().partition(is_first);
        self.write_in_order(as_of, &first, act)?;
        self.write_in_order(as_of, &last, act)
    }

    fn write_in_order(
        &mut self,
        (origin, at): (Origin, Wall),
        places: &[&Place],
        act: &Act,
    ) -> rusqlite::Result<()> {
        let mut left = places.iter().copied().peekable();
        while left.peek().is_some() {
            let store = &mut *self.store;
            store.gate.beat();
            let version = store.origins.head(origin).next();
            let stamp = Stamp { origin, version };
            let mut piece = Piecework::new(store, (stamp, at));
            while let Some(place) = left.peek() {
                if !piece.write(place, act)? {
                    break;
                }
                left.next();
            }
            let (changeset, tables) = piece.finish()?;
            let store = &mut *self.store;
            store.origins.advance(origin, version);
            let (seq, at) = (Seq::default(), store.now.at);
            let heads = vec![(origin, version)];
            self.conclude(Commit { seq, at, tables, changeset: Some(changeset), heads });
        }
        Ok(())
    }

    /// Lists the rows of tables of a class that hold a stamp of the origin beyond `after`.
    pub(super) fn places_of(
        &mut self,
        origin: Origin,
        class: Class,
        after: Version,
    ) -> rusqlite::Result<BTreeSet<Place>> {
        let store = &*self.store;
        let mut places = BTreeSet::new();
        let Some(ordinal) = store.origins.number_of(origin) else { return Ok(places) };
        let all = (after, Version(u64::MAX));
        log::visit(&store.conn, ordinal, all, |version, _, table, key| {
            let Some(entry) = store.tables.get_entry(table) else { return Ok(true) };
            let name = &entry.name;
            let stamp = Stamp { origin, version };
            let is_left = || log::is_left(&store.conn, &store.origins, stamp, (table, &key));
            if Class::of(name) == class && !entry.is_dropped && is_left()? {
                places.insert((Reverse(name.clone()), key, table));
            }
            Ok(true)
        })?;
        Ok(places)
    }
}

/// What is done to rows.
pub(super) enum Act {
    Renew {
        ended: Origin,
        trusted: Version,
    },
    Withdraw,
    /// Stamps anew what `ended` wrote of owned rows, and of others what this node wrote and a peer
    /// with these heads does not hold.
    Rejoin {
        ended: Origin,
        held: BTreeMap<Origin, Version>,
    },
    /// Says rows again, above lives of that length.
    Begin {
        length: u64,
    },
    /// Says again what is beyond these heads, but for lives of such a length that others told of.
    SayAgain {
        heads: BTreeMap<Origin, Version>,
        told: BTreeMap<Place, u64>,
    },
}

impl Act {
    pub(super) fn on(&self, clock: &mut RowClock, place: &Place, stamp: Stamp) {
        let class = Class::of(&place.0.0);
        let beyond = |heads: &BTreeMap<Origin, Version>, old: Stamp| {
            heads.get(&old.origin).is_none_or(|head| old.version > *head)
        };
        match self {
            Self::Withdraw => clock.deleted(stamp),
            Self::Renew { ended, trusted } => {
                clock.restamp(stamp, |old| {
                    old.origin == *ended && (class == Class::Owned || old.version > *trusted)
                });
            }
            Self::Rejoin { ended, held } => {
                clock.restamp(stamp, |old| {
                    let is_mine = old.origin.node == stamp.origin.node;
                    is_mine
                        && old.origin != stamp.origin
                        && match class {
                            Class::Owned => old.origin == *ended,
                            Class::Shared => beyond(held, old),
                        }
                });
            }
            Self::Begin { length } => clock.begun_again(*length, stamp),
            Self::SayAgain { heads, told } => {
                let told = told.get(place).copied().unwrap_or(0);
                clock.say_again(stamp, told >= clock.life().length, |old| beyond(heads, old));
            }
        }
    }
}

/// One commit while its rows are written.
struct Piecework<'a> {
    conn: &'a Connection,
    names: &'a Tables,
    origins: &'a mut Origins,
    has_parked: &'a BTreeSet<TableId>,
    hot: &'a mut Hot,
    sums: &'a mut Sums,
    sweeper: &'a mut Sweeper,
    stamp: Stamp,
    times: Times,
    notes: Notes,
    telling: Telling<'a>,
    tables: Vec<TableEvents>,
    rows: usize,
    bytes: usize,
}

impl<'a> Piecework<'a> {
    fn new(store: &'a mut Store, (stamp, at): (Stamp, Wall)) -> Self {
        let Store { conn, tables, origins, has_parked, hot, sums, sweeper, .. } = store;
        Self {
            conn,
            names: tables,
            origins,
            has_parked,
            hot,
            sums,
            sweeper,
            stamp,
            times: Times::from([(stamp, at)]),
            notes: Notes::default(),
            telling: Telling::new(conn, tables, (stamp, at)),
            tables: Vec::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Writes a row; `false`: it has no room in this commit.
    fn write(&mut self, place: &Place, act: &Act) -> rusqlite::Result<bool> {
        let (_, key, table) = place;
        let held = clocks::read(self.conn, self.origins, *table, key)?;
        let Some(held) = held else { return Ok(true) };
        let mut clock = held.clone();
        act.on(&mut clock, place, self.stamp);
        let left = self.telling.read(*table, key, &clock)?;
        let bytes = left.bytes();
        let is_full = self.rows == OWN_ROWS_MAX || self.bytes + bytes > OWN_BYTES_MAX;
        if is_full && self.rows > 0 {
            return Ok(false);
        }
        (self.rows, self.bytes) = (self.rows + 1, self.bytes + bytes);
        self.telling.add(*table, left);
        self.sum(*table, key, (&held, &clock))?;
        if held.is_alive() && !clock.is_alive() {
            self.delete(*table, key)?;
        }
        let clocks = (Some(&held), &clock);
        self.notes.write_clock(self.conn, self.origins, self.hot, (*table, key), clocks)?;
        Ok(true)
    }

    /// Notes the row's new clock in the sum of its table; its cells hold what they held.
    fn sum(
        &mut self,
        table: TableId,
        key: &Key,
        (held, clock): (&RowClock, &RowClock),
    ) -> rusqlite::Result<()> {
        let ids: Vec<ColumnId> = held.cells().map(|(id, _)| id).collect();
        let values = self.telling.values(table, key, ids.iter().copied())?;
        let values: BTreeMap<ColumnId, Value> = ids.into_iter().zip(values).collect();
        let value = |id| values.get(&id).unwrap_or(&Value::Null);
        let entry = (table, self.names.entry(table));
        self.notes.sums.turn(entry, key, Some((held, value)), Some((clock, value)));
        Ok(())
    }

    fn finish(self) -> rusqlite::Result<(Arc<Changeset>, Vec<TableEvents>)> {
        self.notes.close(self.conn, self.origins, (self.sums, self.sweeper), &self.times)?;
        Ok((self.telling.finish(), self.tables))
    }

    fn delete(&mut self, table: TableId, key: &Key) -> rusqlite::Result<()> {
        if self.has_parked.contains(&table) {
            parked::write(self.conn, (table, key), [])?;
        }
        let Some(home) = &self.names.entry(table).table else { return Ok(()) };
        let key = pack::unpack(key).unwrap_or_default();
        // A row that SQLite refused was never shown.
        if home.read_row(self.conn, &key)?.is_some() {
            home.delete_row(self.conn, &key)?;
            push_event(&mut self.tables, home, RowEvent { key, existed: true, row: None });
        }
        Ok(())
    }
}
