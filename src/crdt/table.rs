//! A node's replicated tables in memory: the reference for every storage, and the disk of
//! simulated nodes. It keeps cells as the merge sees them, under names; a table's definition only
//! says which of them are shown. So nothing has to be done to park what is not known yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::change::{
    Batch, CellChange, Changeset, Class, Commit, Key, Name, OWN_BYTES_MAX, OWN_ROWS_MAX, Piece,
    Refusal, RowChange, RowEvent, RowEvents, RowOp, Stamp, TableChanges, TableEvents, death_of,
    is_harmless, keeps_tombstones, owns,
};
use super::content::{self, Look, Mend, Mended, Sight};
use super::definition::Definition;
use super::draft::{Draft, Write};
use super::fingerprint::NameHash;
use super::pack;
use super::row::{COUNT_MAX, ColumnId, Fate, Incoming, RowClock, RowTold};
use super::sheet::{Row, Shape, Sheet};
use super::storage::{
    Begun, Bookmark, Collected, Extract, Floor, Inspected, LENGTH_DROPPED_MAX, Part, Past, Settled,
    Staging, Storage, StorageError, Tidied, Tidy,
};
use crate::types::{Epoch, Hlc, NodeId, Origin, Seq, Value, Version, Wall};

/// What a row and a cell weigh in [`Storage::load`], beside their key and value: bytes.
const ENTRY_BYTES: usize = 16;

/// All replicated tables of one node, in memory. A clone shares what neither side changes.
#[derive(Clone, Debug)]
pub struct Table {
    pub(super) origin: Origin,
    /// How far the origin was held when the storage was opened.
    trusted: Version,
    seq: Seq,
    at: Hlc,
    pub(super) heads: OrdMap<Origin, Version>,
    pub(super) sheets: OrdMap<Name, Sheet>,
    /// Each row under each of its [`RowClock::stamps`].
    index: OrdSet<(Stamp, Name, Key)>,
    /// When the commits in the index were made, where that is known.
    times: OrdMap<Stamp, Wall>,
    /// The sum of all rows' hashes.
    pub(super) fingerprint: u64,
    refusals: u64,
    /// Parts of pulls that wait for their rest.
    staged: OrdMap<Staging, Vec<Part>>,
    /// Every dead row, under its only stamp.
    graves: OrdSet<(Stamp, Name, Key)>,
    pub(super) floor: OrdMap<Origin, Version>,
    /// See [`Floor::length`].
    length: u64,
    /// See [`Floor::longest`].
    longest: u64,
    forgotten: OrdMap<NodeId, Epoch>,
    /// See [`Floor::in_force`].
    in_force: OrdMap<NodeId, Epoch>,
    members: OrdMap<NodeId, Epoch>,
    settled: Option<Origin>,
    /// Origins that are retired; they are no heads.
    retired: OrdMap<Origin, Version>,
    era: u64,
    erased: u64,
    /// While this node rejoins: what the peer has told of rows.
    confirmed: Option<OrdMap<(Name, Key), RowTold>>,
}

impl Table {
    /// Makes the empty storage of a node that writes as `origin`.
    pub fn new(origin: Origin, definitions: &[Definition]) -> Result<Self, Refusal> {
        let mut table = Self {
            origin,
            trusted: Version(0),
            seq: Seq::default(),
            at: Hlc::default(),
            heads: OrdMap::new(),
            sheets: OrdMap::new(),
            index: OrdSet::new(),
            times: OrdMap::new(),
            fingerprint: 0,
            refusals: 0,
            staged: OrdMap::new(),
            graves: OrdSet::new(),
            floor: OrdMap::new(),
            length: 0,
            longest: 0,
            forgotten: OrdMap::new(),
            in_force: OrdMap::new(),
            members: OrdMap::new(),
            settled: None,
            retired: OrdMap::new(),
            era: 1,
            erased: 0,
            confirmed: None,
        };
        for definition in definitions {
            table.grow(definition)?;
        }
        Ok(table)
    }

    /// Adds a table, or columns to a table, and shows what was parked for them. The commit has the
    /// rows that became visible or show a value they did not show before.
    pub fn define(&mut self, now: Wall, definition: &Definition) -> Result<Commit, Refusal> {
        let rows = self.grow(definition)?;
        let table = Arc::clone(definition.info());
        let tables = if rows.is_empty() {
            vec![]
        } else {
            vec![TableEvents { table, rows: RowEvents::Each(rows) }]
        };
        Ok(self.conclude(now, tables, None, vec![]))
    }

    /// Says in which live row two storages differ first; `None`: in none.
    pub fn first_difference(&self, other: &Self) -> Option<String> {
        let of = |table: &Self, (name, key): &(Name, Key)| {
            let (_, sheet) = table.sheet(name)?;
            sheet.rows.get(key).filter(|row| row.clock.is_alive()).map(|row| format!("{row:?}"))
        };
        let mut places = self.places().chain(other.places());
        let place = places.find(|place| of(self, place) != of(other, place))?;
        let words = |row: Option<String>| row.unwrap_or_else(|| "nothing".to_owned());
        let (ours, theirs) = (words(of(self, &place)), words(of(other, &place)));
        let key = pack::unpack(&place.1);
        Some(format!("{} {key:?}: {ours} and {theirs}", place.0))
    }

    /// Takes a change of a row whoever may write it. For a simulation of storages that make this
    /// mistake.
    pub(crate) fn force(&mut self, stamp: Stamp, changes: &TableChanges) {
        let sheet = self.sheets.entry(Arc::clone(&changes.table)).or_default();
        let ids: Vec<Option<ColumnId>> =
            changes.columns.iter().map(|column| sheet.column_or_new(column)).collect();
        for change in &changes.rows {
            self.apply_row(stamp, &changes.table, &ids, change);
        }
    }

    /// Forgets what a process forgets when it ends: the counters. Rows and heads stay.
    pub fn restart(&mut self) {
        self.seq = Seq::default();
        self.refusals = 0;
        self.staged.clear();
        self.trusted = self.head(self.origin);
    }

    pub(super) fn sheet(&self, table: &str) -> Option<(&Name, &Sheet)> {
        self.sheets.get_key_value(table)
    }

    /// Returns a row as the table shows it; `None`: it is not there.
    pub(super) fn image(&self, table: &str, key: &Key) -> Option<Vec<Value>> {
        let (_, sheet) = self.sheet(table)?;
        sheet.image(key, sheet.rows.get(key)?)
    }
}

impl Storage for Table {
    fn origin(&self) -> Origin {
        self.origin
    }

    fn commit(&mut self, now: Wall, ops: &[RowOp]) -> Result<Option<Commit>, StorageError> {
        let mut draft = Draft::new(self);
        for op in ops {
            draft.carry_out(op)?;
        }
        let writes = draft.net(self.origin.node)?;
        if writes.is_empty() {
            return Ok(None);
        }
        let version = self.head(self.origin).next();
        let stamp = Stamp { origin: self.origin, version };
        let mut touched = Touched::default();
        for write in &writes {
            touched.note(&write.table, &write.key, || write.before.clone());
            self.write(stamp, write);
        }
        self.times.insert(stamp, now);
        self.heads.insert(self.origin, version);
        let changeset = Some(Arc::new(self.extract(stamp).0));
        let events = self.events(touched);
        Ok(Some(self.conclude(now, events, changeset, vec![(self.origin, version)])))
    }

    fn apply(&mut self, now: Wall, batch: &Batch) -> Result<Commit, StorageError> {
        let mut touched = Touched::default();
        for piece in &batch.pieces {
            let head = self.head(piece.origin);
            if self.takes(piece, head) {
                self.apply_piece(piece, false, head, &mut touched);
                self.heads.insert(piece.origin, piece.through);
            }
        }
        let named: BTreeSet<Origin> = batch.pieces.iter().map(|piece| piece.origin).collect();
        let heads = named.into_iter().map(|origin| (origin, self.head(origin))).collect();
        let events = self.events(touched);
        Ok(self.conclude(now, events, None, heads))
    }

    fn load(
        &self,
        origin: Origin,
        from: impl Into<Bookmark>,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        let Bookmark { after, part } = from.into();
        let head = self.head(origin);
        let mut piece = Piece { origin, after, through: after, changesets: Vec::new() };
        let mut bytes = 0;
        while let Some(stamp) = self.next_stamp(origin, piece.through, head) {
            let first = if stamp.version == after.next() { part } else { 0 };
            let left = if piece.changesets.is_empty() { bytes_max } else { usize::MAX };
            let (changeset, changeset_bytes, rest) = self.extract_parts(stamp, first, left);
            bytes += changeset_bytes;
            if bytes > bytes_max && !piece.changesets.is_empty() {
                return Ok(Extract { piece, head, part: 0 });
            }
            if !changeset.tables.is_empty() {
                piece.changesets.push(Arc::new(changeset));
            }
            if let Some(part) = rest {
                piece.through = Version(stamp.version.0 - 1);
                return Ok(Extract { piece, head, part });
            }
            piece.through = stamp.version;
        }
        piece.through = after.max(head);
        Ok(Extract { piece, head, part: 0 })
    }

    fn stage(&mut self, staging: Staging, parts: &[Part]) -> Result<(), StorageError> {
        self.staged.entry(staging).or_default().extend_from_slice(parts);
        Ok(())
    }

    fn apply_staged(
        &mut self,
        now: Wall,
        staging: Staging,
        last: &Piece,
    ) -> Result<Commit, StorageError> {
        let mut touched = Touched::default();
        let parts = self.staged.remove(&staging).unwrap_or_default();
        let head = self.head(last.origin);
        if self.takes(last, head) {
            for Part { piece, is_cut } in &parts {
                self.apply_piece(piece, *is_cut, head, &mut touched);
            }
            self.apply_piece(last, false, head, &mut touched);
            self.heads.insert(last.origin, last.through);
        }
        let events = self.events(touched);
        let heads = vec![(last.origin, self.head(last.origin))];
        Ok(self.conclude(now, events, None, heads))
    }

    fn unstage(&mut self, staging: Staging) -> Result<(), StorageError> {
        self.staged.remove(&staging);
        Ok(())
    }

    fn heads(&self) -> Result<Vec<(Origin, Version)>, StorageError> {
        Ok(self.heads.iter().map(|(origin, head)| (*origin, *head)).collect())
    }

    fn begin_epoch(&mut self, now: Wall, above: Epoch) -> Result<Begun, StorageError> {
        let origin = self.next_origin(above)?;
        let (ended, trusted) = (self.origin, self.trusted.min(self.head(self.origin)));
        self.origin = origin;
        self.trusted = Version(0);
        match trusted {
            Version(0) => drop(self.heads.remove(&ended)),
            trusted => drop(self.heads.insert(ended, trusted)),
        }
        let commits = self.renew(now, move |table, stamp| {
            stamp.origin == ended && (is_owned(table) || stamp.version > trusted)
        });
        Ok(Begun { origin: self.origin, ended: (ended, trusted), commits })
    }

    fn withdraw(&mut self, now: Wall) -> Result<Vec<Commit>, StorageError> {
        let me = self.origin;
        let is_past = |stamp: Stamp| stamp.origin.node == me.node && stamp.origin.epoch < me.epoch;
        let is_left = |row: &Row| row.clock.is_alive() && is_past(row.clock.life().stamp);
        Ok(self.write_places(now, &self.owned(is_left), delete))
    }

    fn fingerprint(&self) -> Result<u64, StorageError> {
        Ok(self.fingerprint)
    }

    fn floor(&self) -> Result<Floor, StorageError> {
        Ok(Floor {
            heads: listed(&self.floor),
            length: self.length,
            forgotten: listed(&self.forgotten),
            in_force: listed(&self.in_force),
            members: listed(&self.members),
            settled: self.settled,
            is_rejoining: self.confirmed.is_some(),
            harmless: self.harmless(),
            longest: self.longest.max(self.length),
            retired: listed(&self.retired),
            era: self.era,
            erased: self.erased,
        })
    }

    fn tombstones(&self) -> Result<u64, StorageError> {
        Ok(self.graves.len() as u64)
    }

    fn meet(
        &mut self,
        members: &[(NodeId, Epoch)],
        forgotten: &[(NodeId, Epoch)],
    ) -> Result<(), StorageError> {
        raise(&mut self.members, members);
        raise(&mut self.forgotten, forgotten);
        Ok(())
    }

    fn collect(
        &mut self,
        heads: &[(Origin, Version)],
        forgotten: &[(NodeId, Epoch)],
        rows_max: usize,
    ) -> Result<Collected, StorageError> {
        self.raise_floor(heads, 0);
        raise(&mut self.forgotten, forgotten);
        raise(&mut self.in_force, forgotten);
        let covered = self.covered_graves(rows_max + 1);
        let is_done = covered.len() <= rows_max;
        let mut collected = Collected { dropped: 0, is_done };
        for (_, table, key) in covered.iter().take(rows_max) {
            self.length = self.length.max(self.sheets[table].rows[key].clock.life().length);
            self.remove_row(table, key);
            collected.dropped += 1;
        }
        Ok(collected)
    }

    fn rejoin(
        &mut self,
        now: Wall,
        held: &[(Origin, Version)],
        length: u64,
    ) -> Result<Begun, StorageError> {
        let known = held.iter().map(|(origin, _)| *origin);
        let known = known.filter(|origin| origin.node == self.origin.node);
        let above = known.map(|origin| origin.epoch).max().unwrap_or_default();
        let (ended, origin) = (self.origin, self.next_origin(above)?);
        self.origin = origin;
        self.trusted = Version(0);
        self.settled = None;
        self.length = self.length.max(length);
        self.heads.clear();
        self.retired.clear();
        self.members.clear();
        let held: OrdMap<Origin, Version> = held.iter().copied().collect();
        let mut commits: Vec<Commit> = self.drop_foreign_news(now, &held).into_iter().collect();
        self.confirmed = Some(OrdMap::new());
        let renewed = self.renew(now, move |table, stamp| {
            let is_mine = stamp.origin.node == origin.node && stamp.origin != origin;
            let is_lost =
                if is_owned(table) { stamp.origin == ended } else { !is_covered(&held, stamp) };
            is_mine && is_lost
        });
        commits.extend(renewed);
        Ok(Begun { origin, ended: (ended, Version(0)), commits })
    }

    fn settle(&mut self, now: Wall, past: &Past) -> Result<Settled, StorageError> {
        self.settled = Some(self.origin);
        self.era = self.era.max(past.era.held);
        self.erased = self.erased.max(past.era.erased);
        self.raise_floor(&past.floor, past.length);
        for (origin, head) in &past.retired {
            if !self.heads.contains_key(origin) && *origin != self.origin {
                self.retired.entry(*origin).or_insert(*head);
            }
        }
        let confirmed = self.confirmed.take();
        let is_confirmed = |place: &(Name, Key)| {
            confirmed.as_ref().is_none_or(|confirmed| confirmed.contains_key(place))
        };
        let unconfirmed: Vec<_> = self.places().filter(|place| !is_confirmed(place)).collect();
        let known = self.heads.clone().union(self.retired.clone());
        let me = self.origin;
        let mut settled = Settled::default();
        let mut touched = Touched::default();
        for (table, key) in unconfirmed {
            let Some(row) = self.sheets[&table].rows.get(&key).cloned() else { continue };
            let life = row.clock.life();
            // A tombstone that the peer cannot know is told. A row is told only by who gave it life:
            // others may know of its death already.
            let is_told = !life.is_alive() && !is_covered(&known, life.stamp);
            if life.stamp.origin == me || is_told || keeps_tombstones(&table) {
                continue;
            }
            let is_lost = |stamp: Stamp| stamp.origin == me || !is_covered(&known, stamp);
            settled.dropped += usize::from(life.is_alive());
            settled.lost += usize::from(row.clock.stamps().into_iter().any(is_lost));
            touched.note(&table, &key, || self.image(&table, &key));
            self.remove_row(&table, &key);
        }
        let events = self.events(touched);
        if !events.is_empty() {
            settled.commits.push(self.conclude(now, events, None, vec![]));
        }
        if let Some(confirmed) = &confirmed {
            let is_heard = |stamp: Stamp| stamp.origin != me && is_covered(&known, stamp);
            settled.commits.extend(self.leave_out(now, confirmed, is_heard));
        }
        let again = self.born_too_low();
        let length = self.length;
        settled.renewed = again.len();
        let begin = |_: &(Name, Key), row: &Row, stamp: Stamp| {
            let mut row = row.clone();
            row.clock.begun_again(length, stamp);
            row
        };
        settled.commits.extend(self.write_places(now, &again, begin));
        let Some(confirmed) = confirmed else { return Ok(settled) };
        let known = self.heads.clone().union(self.retired.clone());
        let say_again = |place: &(Name, Key), row: &Row, stamp: Stamp| {
            let mut row = row.clone();
            let told = confirmed.get(place).map_or(0, |told| told.length);
            let is_told = !is_owned(&place.0) && told >= row.clock.life().length;
            row.clock.say_again(stamp, is_told, |old| !is_covered(&known, old));
            row
        };
        let beyond = self.rows_that(|place, row| {
            // Of this node's own rows those that live under an earlier epoch are withdrawn.
            let life = row.clock.life();
            let is_own = !life.is_alive() && life.stamp.origin.node == me.node;
            let any = Stamp { origin: me, version: Version(0) };
            (is_own || !is_owned(&place.0)) && say_again(place, row, any).clock != row.clock
        });
        settled.commits.extend(self.write_places(now, &beyond, say_again));
        Ok(settled)
    }

    fn depart(
        &mut self,
        now: Wall,
        under: Origin,
        held: &[(Origin, Version)],
    ) -> Result<Vec<Commit>, StorageError> {
        let of_node = |origin: &Origin| origin.node == under.node;
        let here = self.heads.iter().filter(|(origin, _)| of_node(origin));
        if !here.map(|(origin, head)| (*origin, *head)).eq(held.iter().copied()) {
            return Ok(Vec::new());
        }
        let is_left = |row: &Row| row.clock.is_alive() && of_node(&row.clock.life().stamp.origin);
        let places = self.owned(is_left);
        if places.is_empty() {
            return Ok(Vec::new());
        }
        raise(&mut self.forgotten, &[(under.node, under.epoch)]);
        let mut commits = self.write_places_as((now, Wall(0), under), &places, delete);
        commits.iter_mut().for_each(|commit| commit.changeset = None);
        Ok(commits)
    }

    fn tidy(&mut self, tidy: &Tidy) -> Result<Tidied, StorageError> {
        let mut tidied = Tidied { looked_at: tidy.ask.len(), ..Tidied::default() };
        for (origin, head) in &tidy.retire {
            let is_held = self.heads.get(origin).is_some_and(|held| held <= head);
            if is_held && self.is_spent(*origin) {
                self.heads.remove(origin);
                self.retired.insert(*origin, *head);
                tidied.retired.push((*origin, *head));
            }
        }
        for origin in &tidy.erase {
            if self.is_spent(*origin) && !self.heads.contains_key(origin) {
                self.retired.remove(origin);
                self.floor.remove(origin);
                tidied.erased.push(*origin);
            }
        }
        for node in &tidy.gone {
            self.forgotten.remove(node);
            self.in_force.remove(node);
            self.members.remove(node);
        }
        self.era = self.era.max(tidy.era);
        self.erased = self.erased.max(tidy.erased);
        let held = tidy.ask.iter().filter_map(|origin| self.heads.get_key_value(origin));
        let spent = held.filter(|(origin, _)| self.is_spent(**origin));
        tidied.spent = spent.map(|(origin, head)| (*origin, *head)).collect();
        Ok(tidied)
    }

    fn inspect(&self, table: &str, key: &[Value]) -> Result<Option<Inspected>, StorageError> {
        let key = pack::pack(key).map_err(|error| Refusal(error.to_string()))?;
        Ok(self.sheet(table).and_then(|(_, sheet)| sheet.inspect(&key)))
    }

    fn refusals(&self) -> u64 {
        self.refusals
    }

    fn look(&self, look: &Look) -> Result<Sight, StorageError> {
        content::look(self, look)
    }

    fn mend(&mut self, now: Wall, mend: &Mend) -> Result<Mended, StorageError> {
        Ok(self.mend_rows(now, mend))
    }

    fn recount(&mut self) -> Result<(), StorageError> {
        self.recount_rows();
        Ok(())
    }
}

/// Rows that a commit wrote, each with what it was before, in the order in which they were
/// written first.
#[derive(Default)]
pub(super) struct Touched {
    order: Vec<(Name, Key)>,
    before: BTreeMap<(Name, Key), Option<Vec<Value>>>,
}

impl Touched {
    pub(super) fn note(
        &mut self,
        table: &Name,
        key: &Key,
        before: impl FnOnce() -> Option<Vec<Value>>,
    ) {
        let place = (Arc::clone(table), Arc::clone(key));
        let order = &mut self.order;
        self.before.entry(place.clone()).or_insert_with(|| {
            order.push(place);
            before()
        });
    }
}

/// Local writes, and what is told of any commit.
impl Table {
    fn write(&mut self, stamp: Stamp, write: &Write) {
        let (_, sheet) = self.sheet(&write.table).expect("the draft found the table");
        let shape = sheet.shape.as_ref().expect("the draft found it defined");
        let held = sheet.rows.get(&write.key);
        let is_owned = Class::of(&write.table) == Class::Owned;
        // Where nothing is forgotten no life is above what is held.
        let length = if is_harmless(&write.table) { 0 } else { self.length };
        let dropped = RowClock::dropped(length);
        let held_clock = RowClock::last(held.map(|row| &row.clock), dropped.as_ref());
        let row = match (held, &write.now) {
            (Some(held), None) => {
                let mut clock = held.clock.clone();
                clock.deleted(stamp);
                Row { clock, values: BTreeMap::new() }
            }
            (Some(held), Some(now)) if held.clock.is_alive() => {
                let before = write.before.as_ref().expect("a live row of a defined table shows");
                let mut row = Row::clone(held);
                let mut changed: Vec<_> = shape.cells(now).collect();
                if is_owned {
                    row.values.clear();
                    row.clock.replaced(stamp, changed.iter().map(|(id, _)| *id));
                } else {
                    let unchanged: BTreeMap<_, _> = shape.cells(before).collect();
                    changed.retain(|(id, value)| unchanged[id] != *value);
                    row.clock.updated(stamp, changed.iter().map(|(id, _)| *id));
                }
                row.values.extend(changed.into_iter().map(|(id, value)| (id, value.clone())));
                row
            }
            (_, Some(now)) => {
                let ids = shape.cells(now).map(|(id, _)| id);
                let clock = match &write.from {
                    Some(from) if !is_owned => RowClock::moved(held_clock, from, stamp, ids),
                    Some(_) | None => RowClock::inserted(held_clock, stamp, ids),
                };
                let values = shape.cells(now).map(|(id, value)| (id, value.clone())).collect();
                Row { clock, values }
            }
            (None, None) => unreachable!("the sides of a write differ"),
        };
        self.put_row(&write.table, &write.key, row);
    }

    pub(super) fn events(&self, touched: Touched) -> Vec<TableEvents> {
        let mut tables: Vec<TableEvents> = Vec::new();
        let Touched { order, mut before } = touched;
        for place in order {
            let before = before.remove(&place).flatten();
            let (name, key) = &place;
            let row = self.image(name, key);
            let shape = self.sheet(name).and_then(|(_, sheet)| sheet.shape.as_ref());
            let Some(shape) = shape.filter(|_| before != row) else { continue };
            let key = pack::unpack(key).expect("a key is checked before its row is kept");
            let event = RowEvent { key, existed: before.is_some(), row };
            match tables.iter_mut().find(|events| events.table.name == *name) {
                Some(events) => events.rows.push(event),
                None => tables.push(TableEvents {
                    table: Arc::clone(shape.definition.info()),
                    rows: RowEvents::Each(vec![event]),
                }),
            }
        }
        tables
    }

    pub(super) fn conclude(
        &mut self,
        now: Wall,
        tables: Vec<TableEvents>,
        changeset: Option<Arc<Changeset>>,
        heads: Vec<(Origin, Version)>,
    ) -> Commit {
        self.seq = Seq(self.seq.0 + 1);
        self.at = self.at.tick(now);
        Commit { seq: self.seq, at: self.at, tables, changeset, heads }
    }

    pub(super) fn head(&self, origin: Origin) -> Version {
        let held = self.heads.get(&origin).or_else(|| self.retired.get(&origin));
        held.copied().unwrap_or_default()
    }
}

/// This node's own rows, when an epoch begins or rows of an earlier one are withdrawn.
impl Table {
    /// Returns an origin of this node that never was.
    fn next_origin(&self, above: Epoch) -> Result<Origin, StorageError> {
        let mine = |origin: &&Origin| origin.node == self.origin.node;
        let held = self.heads.keys().filter(mine).map(|origin| origin.epoch).max();
        let last = above.max(self.origin.epoch).max(held.unwrap_or_default());
        let epoch = last.later_by(1).ok_or_else(|| {
            StorageError::Failed("this node has used up its epochs; give it a new id".to_owned())
        })?;
        Ok(Origin { epoch, ..self.origin })
    }

    /// Stamps anew, table by table, what `is_ended` names.
    fn renew(&mut self, now: Wall, is_ended: impl Fn(&str, Stamp) -> bool) -> Vec<Commit> {
        let places = self.rows_that(|(name, _), row| {
            row.clock.stamps().into_iter().any(|stamp| is_ended(name, stamp))
        });
        let restamp = |(table, _): &(Name, Key), row: &Row, stamp: Stamp| {
            let mut row = row.clone();
            row.clock.restamp(stamp, |old| is_ended(table, old));
            row
        };
        self.write_places(now, &places, restamp)
    }

    /// Writes rows in commits of bounded size. What may be told at once comes first: see
    /// [`is_harmless`].
    fn write_places(
        &mut self,
        now: Wall,
        places: &[(Name, Key)],
        write: impl Fn(&(Name, Key), &Row, Stamp) -> Row,
    ) -> Vec<Commit> {
        self.write_places_as((now, now, self.origin), places, write)
    }

    /// As [`Table::write_places`], now, as if written at another time and by another origin.
    fn write_places_as(
        &mut self,
        as_of: (Wall, Wall, Origin),
        places: &[(Name, Key)],
        write: impl Fn(&(Name, Key), &Row, Stamp) -> Row,
    ) -> Vec<Commit> {
        let is_first = |(table, _): &(Name, Key)| is_harmless(table);
        let (first, last): (Vec<_>, Vec<_>) = places.iter().cloned().partition(is_first);
        let mut commits = self.write_in_order(as_of, &first, &write);
        commits.extend(self.write_in_order(as_of, &last, &write));
        commits
    }

    /// Lists the rows of owned tables that `is_wanted` chooses. Instances go before their nodes and
    /// checks.
    fn owned(&self, is_wanted: impl Fn(&Row) -> bool) -> Vec<(Name, Key)> {
        self.rows_that(|(name, _), row| is_owned(name) && is_wanted(row))
    }

    fn write_in_order(
        &mut self,
        (now, at, origin): (Wall, Wall, Origin),
        places: &[(Name, Key)],
        write: impl Fn(&(Name, Key), &Row, Stamp) -> Row,
    ) -> Vec<Commit> {
        let mut commits = Vec::new();
        let mut left = places;
        while !left.is_empty() {
            let version = self.head(origin).next();
            let stamp = Stamp { origin, version };
            let mut touched = Touched::default();
            let (mut rows, mut bytes) = (0, 0);
            while let Some((place, rest)) = left.split_first() {
                let (name, key) = place;
                let held = Arc::clone(&self.sheets[name].rows[key]);
                let row = write(place, &held, stamp);
                let cells = row.values.values().map(|value| value.bytes() + ENTRY_BYTES);
                let row_bytes = key.len() + ENTRY_BYTES + cells.sum::<usize>();
                if rows == OWN_ROWS_MAX || (rows > 0 && bytes + row_bytes > OWN_BYTES_MAX) {
                    break;
                }
                (rows, bytes) = (rows + 1, bytes + row_bytes);
                touched.note(name, key, || self.image(name, key));
                self.put_row(name, key, row);
                left = rest;
            }
            self.times.insert(stamp, at);
            self.heads.insert(origin, version);
            let changeset = Some(Arc::new(self.extract(stamp).0));
            let events = self.events(touched);
            commits.push(self.conclude(now, events, changeset, vec![(origin, version)]));
        }
        commits
    }
}

fn listed<K: Ord + Copy, V: Copy>(map: &OrdMap<K, V>) -> Vec<(K, V)> {
    map.iter().map(|(key, value)| (*key, *value)).collect()
}

fn delete(_: &(Name, Key), row: &Row, stamp: Stamp) -> Row {
    let mut clock = row.clock.clone();
    clock.deleted(stamp);
    Row { clock, values: BTreeMap::new() }
}

/// Tombstones that go, and a node that rejoins.
impl Table {
    fn raise_floor(&mut self, heads: &[(Origin, Version)], length: u64) {
        for (origin, head) in heads {
            let floor = self.floor.entry(*origin).or_default();
            *floor = (*floor).max(*head);
        }
        self.length = self.length.max(length);
    }

    /// Lists tombstones that the floor covers, at most so many.
    fn covered_graves(&self, count_max: usize) -> Vec<(Stamp, Name, Key)> {
        let mut covered = Vec::new();
        for (origin, floor) in &self.floor {
            let from = first_place(Stamp { origin: *origin, version: Version(0) });
            let of_origin = self.graves.range(from..);
            let below = of_origin
                .take_while(|(stamp, ..)| stamp.origin == *origin && stamp.version <= *floor)
                .filter(|(_, table, key)| {
                    let length = self.sheets[table].rows[key].clock.life().length;
                    length <= LENGTH_DROPPED_MAX && !keeps_tombstones(table)
                });
            covered.extend(below.take(count_max - covered.len()).cloned());
        }
        covered
    }

    /// Tells whether nothing is left of an origin.
    fn is_spent(&self, origin: Origin) -> bool {
        let mut of_origin = self.index.range(first_place(Stamp { origin, version: Version(0) })..);
        of_origin.next().is_none_or(|(stamp, ..)| stamp.origin != origin)
    }

    /// See [`Floor::harmless`].
    fn harmless(&self) -> Version {
        let of_me =
            self.index.range(first_place(Stamp { origin: self.origin, version: Version(0) })..);
        let mut of_me = of_me.take_while(|(stamp, ..)| stamp.origin == self.origin);
        let first = of_me.find(|(_, table, _)| !is_harmless(table));
        first.map_or(self.head(self.origin), |(stamp, ..)| Version(stamp.version.0 - 1))
    }

    /// Lists the shared rows that this origin gave life, at or below lives that were dropped.
    fn born_too_low(&self) -> Vec<(Name, Key)> {
        let is_too_low = |(table, key): &(Name, Key)| {
            let life = self.sheets[table].rows[key].clock.life();
            let is_mine = life.is_alive() && life.stamp.origin == self.origin;
            is_mine && life.length <= self.length && !is_harmless(table)
        };
        self.places().filter(is_too_low).collect()
    }

    /// Lists all rows there are.
    fn places(&self) -> impl Iterator<Item = (Name, Key)> {
        let of_sheet = |(name, sheet): (&Name, &Sheet)| {
            let name = Arc::clone(name);
            let keys: Vec<Key> = sheet.rows.keys().cloned().collect();
            keys.into_iter().map(move |key| (Arc::clone(&name), key))
        };
        let places: Vec<_> = self.sheets.iter().flat_map(of_sheet).collect();
        places.into_iter()
    }

    /// Forgets the rows of other owners that a peer with these heads cannot know: it is not for this
    /// node to say them again. They come from their owners, if these have them still.
    fn drop_foreign_news(&mut self, now: Wall, held: &OrdMap<Origin, Version>) -> Option<Commit> {
        let me = self.origin.node;
        let mut touched = Touched::default();
        let owned: Vec<_> = self.places().filter(|(table, _)| is_owned(table)).collect();
        for (table, key) in owned {
            let stamp = self.sheets[&table].rows[&key].clock.life().stamp;
            if stamp.origin.node != me && !is_covered(held, stamp) {
                touched.note(&table, &key, || self.image(&table, &key));
                self.remove_row(&table, &key);
            }
        }
        let events = self.events(touched);
        (!events.is_empty()).then(|| self.conclude(now, events, None, vec![]))
    }

    /// Lists the rows that are wanted, dead ones too, in the order in which they are written.
    fn rows_that(&self, is_wanted: impl Fn(&(Name, Key), &Row) -> bool) -> Vec<(Name, Key)> {
        let of_sheet = |(name, sheet): (&Name, &Sheet)| {
            let places = sheet.rows.keys().map(|key| (Arc::clone(name), Arc::clone(key)));
            places.filter(|place| is_wanted(place, &sheet.rows[&place.1])).collect::<Vec<_>>()
        };
        self.sheets.iter().rev().flat_map(of_sheet).collect()
    }

    /// Lets go of the cells of shared rows that a peer has heard of and does not have.
    fn leave_out(
        &mut self,
        now: Wall,
        confirmed: &OrdMap<(Name, Key), RowTold>,
        is_heard: impl Fn(Stamp) -> bool,
    ) -> Option<Commit> {
        let mut touched = Touched::default();
        for ((table, key), told) in confirmed {
            if is_owned(table) || keeps_tombstones(table) {
                continue;
            }
            let Some(held) = self.sheets[table].rows.get(key) else { continue };
            let mut row = (**held).clone();
            let left_out = row.clock.leave_out(told, &is_heard);
            if !left_out.is_empty() {
                touched.note(table, key, || self.image(table, key));
                row.values.retain(|column, _| !left_out.contains(column));
                self.put_row(table, key, row);
            }
        }
        let events = self.events(touched);
        (!events.is_empty()).then(|| self.conclude(now, events, None, vec![]))
    }

    /// Forgets a row, and all that is derived from it.
    pub(super) fn remove_row(&mut self, table: &Name, key: &Key) {
        let sheet = self.sheets.get_mut(table).expect("whoever has a row for it has the table");
        let Some(row) = sheet.rows.remove(key) else { return };
        let hash = sheet.hash(table, key, &row);
        self.fingerprint = self.fingerprint.wrapping_sub(hash);
        self.bury(table, key, &row, false);
        self.unlink(table, key, row.clock.stamps().iter());
    }

    /// Keeps the graves in line with a row that comes or goes.
    fn bury(&mut self, table: &Name, key: &Key, row: &Row, comes: bool) {
        if row.clock.is_alive() {
            return;
        }
        let grave = (row.clock.life().stamp, Arc::clone(table), Arc::clone(key));
        if comes {
            self.graves.insert(grave);
        } else {
            self.graves.remove(&grave);
        }
    }
}

fn raise(held: &mut OrdMap<NodeId, Epoch>, other: &[(NodeId, Epoch)]) {
    for (node, epoch) in other {
        let entry = held.entry(*node).or_insert(*epoch);
        *entry = (*entry).max(*epoch);
    }
}

fn is_covered(heads: &OrdMap<Origin, Version>, stamp: Stamp) -> bool {
    heads.get(&stamp.origin).is_some_and(|head| stamp.version <= *head)
}

fn is_owned(table: &str) -> bool {
    Class::of(table) == Class::Owned
}

/// Remote changes.
impl Table {
    /// Tells whether a piece joins what is held of its origin, and may be taken.
    fn takes(&self, piece: &Piece, head: Version) -> bool {
        let is_retired = self.retired.contains_key(&piece.origin);
        let joins = piece.after <= head && head < piece.through && !is_retired;
        joins && piece.through.0 <= COUNT_MAX && piece.origin != self.origin
    }

    fn apply_piece(&mut self, piece: &Piece, is_cut: bool, head: Version, touched: &mut Touched) {
        let through = if is_cut { piece.through.next() } else { piece.through };
        for changeset in &piece.changesets {
            let Stamp { origin, version } = changeset.stamp;
            if origin != piece.origin || version > through {
                self.refusals += changeset.tables.iter().map(|t| t.rows.len() as u64).sum::<u64>();
            } else if version > head {
                changeset.tables.iter().for_each(|t| self.apply_table(changeset.stamp, t, touched));
                if self.next_stamp(origin, Version(version.0 - 1), version).is_some() {
                    self.times.insert(changeset.stamp, changeset.at);
                }
            }
        }
    }

    fn apply_table(&mut self, stamp: Stamp, changes: &TableChanges, touched: &mut Touched) {
        let name = &changes.table;
        let sheet = self.sheets.entry(Arc::clone(name)).or_default();
        let key_columns = sheet.definition().map(|definition| definition.info().key.len());
        let ids: Vec<Option<ColumnId>> =
            changes.columns.iter().map(|column| sheet.column_or_new(column)).collect();
        for change in &changes.rows {
            if !may_write(stamp.origin, name, &change.key, key_columns) {
                self.refusals += 1;
                continue;
            }
            touched.note(name, &change.key, || self.image(name, &change.key));
            self.apply_row(stamp, name, &ids, change);
        }
    }

    fn apply_row(
        &mut self,
        stamp: Stamp,
        table: &Name,
        ids: &[Option<ColumnId>],
        change: &RowChange,
    ) {
        let cell = |cell: &'_ CellChange| ids.get(usize::from(cell.column)).copied().flatten();
        let cells = change
            .cells
            .iter()
            .filter_map(|change| Some((cell(change)?, change.count, &change.value)))
            .collect();
        let incoming = Incoming { class: Class::of(table), stamp, life: change.life, cells };
        let place = (Arc::clone(table), Arc::clone(&change.key));
        let told = self.confirmed.as_mut().map(|confirmed| {
            let told = confirmed.entry(place).or_default();
            let before = told.length;
            told.add(&incoming);
            before
        });
        let held = self.sheets[table].rows.get(&change.key).cloned();
        let mut clock = held.as_ref().map(|row| row.clock.clone());
        let held_value = |id| &held.as_ref().expect("it has a clock, so it is held").values[&id];
        let merged = RowClock::merge(&mut clock, &incoming, held_value);
        let Some(mut clock) = clock else { return };
        let mut values = match (merged.fate, &held) {
            (Fate::Stay, Some(held)) => held.values.clone(),
            (Fate::Stay | Fate::Appear | Fate::StartOver | Fate::Vanish, _) => BTreeMap::new(),
        };
        values.extend(merged.take.into_iter().map(|(id, value)| (id, value.clone())));
        if let Some(told) = told {
            let is_unheard = |stamp: Stamp| stamp.version > self.head(stamp.origin);
            clock.yield_to(&incoming, told, |id| &values[&id], is_unheard);
        }
        if held.is_some_and(|held| held.clock == clock) && !merged.is_changed {
            return;
        }
        self.put_row(table, &change.key, Row { clock, values });
    }
}

/// Tells whether a change by `origin` may make a row of this key. Except for the number of key
/// columns, which a parked table learns later, all nodes decide alike.
pub(super) fn may_write(
    origin: Origin,
    table: &str,
    key: &Key,
    key_columns: Option<usize>,
) -> bool {
    let Ok(columns) = pack::unpack(key) else { return false };
    let is_key = key_columns.is_none_or(|count| count == columns.len());
    let is_owner = match Class::of(table) {
        Class::Owned => owns(origin.node, &columns[0]),
        Class::Shared => true,
    };
    is_key && is_owner && !columns.contains(&Value::Null)
}

/// What is left of a commit.
impl Table {
    /// Returns the first stamp of the origin with rows left, after `after` and up to `through`.
    fn next_stamp(&self, origin: Origin, after: Version, through: Version) -> Option<Stamp> {
        if after >= through {
            return None;
        }
        let from = Stamp { origin, version: after.next() };
        let (stamp, _, _) = self.index.range(first_place(from)..).next()?;
        (stamp.origin == origin && stamp.version <= through).then_some(*stamp)
    }

    /// Returns what is left of a commit, and how much it weighs in bytes.
    fn extract(&self, stamp: Stamp) -> (Changeset, usize) {
        let mut rows: BTreeMap<&Name, Vec<&Key>> = BTreeMap::new();
        for (table, key) in self.places_of(stamp) {
            rows.entry(table).or_default().push(key);
        }
        self.extract_rows(stamp, rows)
    }

    /// As [`Table::extract`], from a part on and as far as `bytes_max` goes. Returns also where the
    /// rest begins, if any is left. Each row is a part, by the hash of its place: rows that go or
    /// come meanwhile do not renumber the others. Each node has numbers of its own, as on a disk.
    fn extract_parts(
        &self,
        stamp: Stamp,
        first: u64,
        bytes_max: usize,
    ) -> (Changeset, usize, Option<u64>) {
        let mut parts: BTreeMap<u64, Vec<(&Name, &Key)>> = BTreeMap::new();
        for place in self.places_of(stamp) {
            parts.entry(part_of(self.origin.node, place)).or_default().push(place);
        }
        let mut rows: BTreeMap<&Name, Vec<&Key>> = BTreeMap::new();
        let (mut bytes, mut rest) = (0, None);
        for (part, places) in parts.range(first..) {
            if bytes > bytes_max {
                rest = Some(*part);
                break;
            }
            for (table, key) in places {
                bytes += self.sheets[*table]
                    .extract(stamp, table, &[*key])
                    .rows
                    .iter()
                    .map(row_bytes)
                    .sum::<usize>();
                rows.entry(table).or_default().push(key);
            }
        }
        rows.values_mut().for_each(|keys| keys.sort_unstable());
        let (changeset, bytes) = self.extract_rows(stamp, rows);
        (changeset, bytes, rest)
    }

    /// Lists the rows that hold something of a commit.
    fn places_of(&self, stamp: Stamp) -> impl Iterator<Item = (&Name, &Key)> {
        let of_stamp = self.index.range(first_place(stamp)..);
        let of_stamp = of_stamp.take_while(move |(other, _, _)| *other == stamp);
        of_stamp.map(|(_, table, key)| (table, key))
    }

    fn extract_rows(&self, stamp: Stamp, rows: BTreeMap<&Name, Vec<&Key>>) -> (Changeset, usize) {
        let at = self.times.get(&stamp).copied().unwrap_or_default();
        let tables: Vec<TableChanges> = rows
            .into_iter()
            .map(|(table, keys)| self.sheets[table].extract(stamp, table, &keys))
            .collect();
        let bytes = tables.iter().flat_map(|table| &table.rows).map(row_bytes).sum();
        (Changeset { stamp, at, tables }, bytes)
    }

    /// Keeps a row, and all that is derived from rows in line with it.
    pub(super) fn put_row(&mut self, table: &Name, key: &Key, row: Row) {
        let sheet = self.sheets.get_mut(table).expect("whoever has a row for it has the table");
        let hash = sheet.hash(table, key, &row);
        let death = death_of(table, row.clock.life());
        self.longest =
            self.longest.max(Some(death).filter(|d| *d <= LENGTH_DROPPED_MAX).unwrap_or(0));
        let stamps = row.clock.stamps();
        let row = Arc::new(row);
        let old = sheet.rows.insert(Arc::clone(key), Arc::clone(&row));
        let old_hash = old.as_ref().map_or(0, |old| sheet.hash(table, key, old));
        self.fingerprint = self.fingerprint.wrapping_sub(old_hash).wrapping_add(hash);
        if let Some(old) = &old {
            self.bury(table, key, old, false);
        }
        self.bury(table, key, &row, true);
        let old_stamps = old.map(|old| old.clock.stamps()).unwrap_or_default();
        self.unlink(table, key, old_stamps.difference(&stamps));
        for stamp in stamps.difference(&old_stamps) {
            self.index.insert((*stamp, Arc::clone(table), Arc::clone(key)));
        }
    }

    fn unlink<'a>(&mut self, table: &Name, key: &Key, stamps: impl Iterator<Item = &'a Stamp>) {
        for stamp in stamps {
            self.index.remove(&(*stamp, Arc::clone(table), Arc::clone(key)));
            let before = Version(stamp.version.0.saturating_sub(1));
            if self.next_stamp(stamp.origin, before, stamp.version).is_none() {
                self.times.remove(stamp);
            }
        }
    }
}

/// Returns the number of the part that a row is on a node; never 0.
fn part_of(node: NodeId, (table, key): (&Name, &Key)) -> u64 {
    let salt = NameHash::of("").row(&node.0).number();
    // Numbers that travel have 63 bits.
    (NameHash::of(table).row(key).number().wrapping_add(salt) >> 1).max(1)
}

fn first_place(stamp: Stamp) -> (Stamp, Name, Key) {
    (stamp, Name::from(""), Key::default())
}

fn row_bytes(row: &RowChange) -> usize {
    let cells = row.cells.iter().map(|cell| cell.value.bytes() + ENTRY_BYTES);
    row.key.len() + ENTRY_BYTES + cells.sum::<usize>()
}

/// New tables and columns.
impl Table {
    fn grow(&mut self, definition: &Definition) -> Result<Vec<RowEvent>, Refusal> {
        let name = &definition.info().name;
        let sheet = self.sheets.entry(Arc::clone(name)).or_default();
        let old = sheet.shape.clone();
        if let Some(old) = &old {
            old.definition.check_growth(definition)?;
        }
        let ids = definition.info().columns.iter().map(|column| sheet.column_or_new(column));
        let ids = ids
            .collect::<Option<_>>()
            .ok_or_else(|| Refusal(format!("table {name}: too many columns were written to it")))?;
        let shape = Shape { definition: definition.clone(), ids };
        let is_new = |id: &ColumnId| old.as_ref().is_none_or(|old| !old.ids.contains(id));
        let new_ids: Vec<ColumnId> = shape.ids.iter().copied().filter(is_new).collect();
        sheet.shape = Some(shape);
        self.drop_impossible_rows(name, definition.info().key.len());
        Ok(self.sheets[name].rows_shown_by(old.is_none(), &new_ids))
    }

    /// Leaves out rows that were parked before anybody here knew how many columns their key has.
    fn drop_impossible_rows(&mut self, table: &Name, key_columns: usize) {
        let sheet = self.sheets[table].clone();
        for key in sheet.rows.keys() {
            let count = pack::unpack(key).map_or(0, |columns| columns.len());
            if count != key_columns {
                self.refusals += 1;
                self.remove_row(table, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::suite::{self, Bench, histories};
    use crate::types::NodeId;

    struct Memory;

    impl Bench for Memory {
        type Disk = Table;

        fn open(&mut self, node: NodeId, definitions: &[Definition]) -> Table {
            Table::new(suite::origin(node), definitions).unwrap()
        }

        fn reopen(&mut self, mut disk: Table) -> Table {
            disk.restart();
            disk
        }

        fn define(&mut self, disk: &mut Table, definition: &Definition) {
            disk.define(suite::NOW, definition).unwrap();
        }
    }

    crate::storage_suite!(Memory);
    crate::collecting_suite!(Memory);

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]

        #[test]
        fn replicas_agree_whatever_happens_on_the_way(
            replica_count in 3..6_usize,
            words in prop::collection::vec(any::<u32>(), 0..120),
        ) {
            histories::play(&mut Checked, replica_count, &words);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn replicas_agree_though_tombstones_go(
            replica_count in 2..6_usize,
            words in prop::collection::vec(any::<u32>(), 0..150),
        ) {
            histories::play_collecting(&mut Checked, replica_count, &words);
        }
    }

    /// Checks after each step that all that is derived from rows is what the rows say.
    struct Checked;

    impl Bench for Checked {
        type Disk = CheckedTable;

        fn open(&mut self, node: NodeId, definitions: &[Definition]) -> CheckedTable {
            CheckedTable(Memory.open(node, definitions))
        }

        fn reopen(&mut self, disk: CheckedTable) -> CheckedTable {
            CheckedTable(Memory.reopen(disk.0))
        }

        fn define(&mut self, disk: &mut CheckedTable, definition: &Definition) {
            Memory.define(&mut disk.0, definition);
        }
    }

    struct CheckedTable(Table);

    impl CheckedTable {
        fn check(&self) {
            let table = &self.0;
            let mut fingerprint = 0_u64;
            let (mut index, mut graves) = (OrdSet::new(), OrdSet::new());
            for (name, sheet) in &table.sheets {
                for (key, row) in &sheet.rows {
                    fingerprint = fingerprint.wrapping_add(sheet.hash(name, key, row));
                    if !row.clock.is_alive() {
                        let stamp = row.clock.life().stamp;
                        graves.insert((stamp, Arc::clone(name), Arc::clone(key)));
                    }
                    let stamps = row.clock.stamps().into_iter();
                    index.extend(stamps.map(|stamp| (stamp, Arc::clone(name), Arc::clone(key))));
                }
            }
            assert_eq!(table.fingerprint, fingerprint);
            assert_eq!(table.index, index);
            assert_eq!(table.graves, graves);
            let is_indexed = |stamp: &Stamp| index.iter().any(|(other, _, _)| other == stamp);
            assert!(table.times.keys().all(is_indexed), "times are kept no longer than rows");
        }
    }

    impl Storage for CheckedTable {
        fn origin(&self) -> Origin {
            self.0.origin()
        }

        fn commit(&mut self, now: Wall, ops: &[RowOp]) -> Result<Option<Commit>, StorageError> {
            let commit = self.0.commit(now, ops);
            self.check();
            commit
        }

        fn apply(&mut self, now: Wall, batch: &Batch) -> Result<Commit, StorageError> {
            let commit = self.0.apply(now, batch);
            self.check();
            commit
        }

        fn load(
            &self,
            origin: Origin,
            from: impl Into<Bookmark>,
            bytes_max: usize,
        ) -> Result<Extract, StorageError> {
            self.0.load(origin, from, bytes_max)
        }

        fn stage(&mut self, staging: Staging, parts: &[Part]) -> Result<(), StorageError> {
            self.0.stage(staging, parts)
        }

        fn apply_staged(
            &mut self,
            now: Wall,
            staging: Staging,
            last: &Piece,
        ) -> Result<Commit, StorageError> {
            let commit = self.0.apply_staged(now, staging, last);
            self.check();
            commit
        }

        fn unstage(&mut self, staging: Staging) -> Result<(), StorageError> {
            self.0.unstage(staging)
        }

        fn heads(&self) -> Result<Vec<(Origin, Version)>, StorageError> {
            self.0.heads()
        }

        fn withdraw(&mut self, now: Wall) -> Result<Vec<Commit>, StorageError> {
            let commits = self.0.withdraw(now);
            self.check();
            commits
        }

        fn begin_epoch(&mut self, now: Wall, above: Epoch) -> Result<Begun, StorageError> {
            let begun = self.0.begin_epoch(now, above);
            self.check();
            begun
        }

        fn fingerprint(&self) -> Result<u64, StorageError> {
            self.0.fingerprint()
        }

        fn floor(&self) -> Result<Floor, StorageError> {
            self.0.floor()
        }

        fn tombstones(&self) -> Result<u64, StorageError> {
            self.0.tombstones()
        }

        fn meet(
            &mut self,
            members: &[(NodeId, Epoch)],
            forgotten: &[(NodeId, Epoch)],
        ) -> Result<(), StorageError> {
            self.0.meet(members, forgotten)
        }

        fn collect(
            &mut self,
            heads: &[(Origin, Version)],
            forgotten: &[(NodeId, Epoch)],
            rows_max: usize,
        ) -> Result<Collected, StorageError> {
            let collected = self.0.collect(heads, forgotten, rows_max);
            self.check();
            collected
        }

        fn rejoin(
            &mut self,
            now: Wall,
            held: &[(Origin, Version)],
            length: u64,
        ) -> Result<Begun, StorageError> {
            let begun = self.0.rejoin(now, held, length);
            self.check();
            begun
        }

        fn settle(&mut self, now: Wall, past: &Past) -> Result<Settled, StorageError> {
            let settled = self.0.settle(now, past);
            self.check();
            settled
        }

        fn depart(
            &mut self,
            now: Wall,
            under: Origin,
            held: &[(Origin, Version)],
        ) -> Result<Vec<Commit>, StorageError> {
            let commits = self.0.depart(now, under, held);
            self.check();
            commits
        }

        fn tidy(&mut self, tidy: &Tidy) -> Result<Tidied, StorageError> {
            let tidied = self.0.tidy(tidy);
            self.check();
            tidied
        }

        fn inspect(&self, table: &str, key: &[Value]) -> Result<Option<Inspected>, StorageError> {
            self.0.inspect(table, key)
        }

        fn refusals(&self) -> u64 {
            self.0.refusals()
        }

        fn look(&self, look: &Look) -> Result<Sight, StorageError> {
            self.0.look(look)
        }

        fn mend(&mut self, now: Wall, mend: &Mend) -> Result<Mended, StorageError> {
            let mended = self.0.mend(now, mend);
            self.check();
            mended
        }

        fn recount(&mut self) -> Result<(), StorageError> {
            self.0.recount()
        }
    }

    fn put(id: i64, w: &str) -> RowOp {
        let row = vec![("id", id.into()), ("v", "a".into()), ("w", w.into())];
        RowOp::Put { table: "t", row, keep: &[] }
    }

    #[test]
    fn a_definition_tells_which_rows_show_what_they_did_not_show() {
        let mut from = Memory.open(suite::A, &[suite::t()]);
        from.commit(suite::NOW, &[put(1, "x"), put(2, "x")]).unwrap();
        from.commit(
            suite::NOW,
            &[RowOp::Delete { table: "t", matching: vec![("id", 2.into())], except: None }],
        )
        .unwrap();
        let mut to = Memory.open(suite::B, &[]);
        let piece = from.load(from.origin(), Version(0), usize::MAX).unwrap().piece;
        let parked = to.apply(suite::NOW, &Batch { pieces: vec![piece] }).unwrap();
        assert_eq!(parked.tables, []);

        let narrow = Definition::new("t", &[("id", Value::Null), ("v", Value::Null)], &["id"]);
        let shown = to.define(suite::NOW, &narrow.unwrap()).unwrap();
        assert_eq!(shown.seq.0, parked.seq.0 + 1);
        assert_eq!(
            shown.tables[0].rows.each(),
            [RowEvent {
                key: vec![1.into()],
                existed: false,
                row: Some(vec![1.into(), "a".into()]),
            }]
        );

        let columns =
            [("w", Value::Null), ("v", Value::Null), ("u", Value::Null), ("id", Value::Null)];
        let wide = Definition::new("t", &columns, &["id"]).unwrap();
        let shown = to.define(suite::NOW, &wide).unwrap();
        assert_eq!(&shown.tables[0].table, wide.info());
        assert_eq!(
            shown.tables[0].rows.each(),
            [RowEvent {
                key: vec![1.into()],
                existed: true,
                row: Some(vec!["x".into(), "a".into(), Value::Null, 1.into()]),
            }]
        );
        assert_eq!(to.define(suite::NOW, &wide).unwrap().tables, []);
        to.define(suite::NOW, &suite::t()).unwrap_err();
        assert_eq!(to.define(suite::NOW, &wide).unwrap().tables, []);
    }

    #[test]
    fn a_clone_goes_its_own_way() {
        let mut table = Memory.open(suite::A, &[suite::t()]);
        table.commit(suite::NOW, &[put(1, "x")]).unwrap();
        let before = table.clone();
        let second = table.commit(suite::NOW, &[put(1, "y")]).unwrap().unwrap();
        let mut crashed = before.clone();
        crashed.restart();
        assert_eq!(crashed.fingerprint(), before.fingerprint());
        let again = crashed.commit(suite::NOW, &[put(1, "y")]).unwrap().unwrap();
        assert_eq!((again.seq, again.changeset), (Seq(1), second.changeset));
        assert!(again.at >= second.at);
    }

    #[test]
    fn the_last_epoch_is_the_last() {
        let mut table = Memory.open(suite::A, &[]);
        let error = table.begin_epoch(suite::NOW, Epoch::MAX).unwrap_err();
        assert!(error.to_string().contains("give it a new id"), "{error}");
        assert_eq!(table.origin(), suite::origin(suite::A));
    }
}
