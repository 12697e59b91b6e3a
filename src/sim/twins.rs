//! Two storages side by side, told the same: whatever one answers, the other must answer, too.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::medium::{Media, Medium, Torn};
use crate::crdt::content::{Look, Mend, Mended, Sight};
use crate::crdt::storage::{
    Begun, Bookmark, Collected, Extract, Floor, Inspected, Past, Settled, StorageError, Tidied,
    Tidy,
};
use crate::crdt::{
    Batch, Changeset, Commit, Definition, Part, Piece, RowEvent, RowEvents, RowOp, Staging,
    Storage, TableEvents,
};
use crate::types::{Epoch, NodeId, Origin, Value, Version, Wall};

/// Makes disks of two kinds at a time.
#[derive(Debug)]
pub struct SideBySide<A, B>(pub A, pub B);

impl<A: Media, B: Media> Media for SideBySide<A, B> {
    fn create(
        &mut self,
        origin: Origin,
        definitions: &[Definition],
    ) -> Result<Box<dyn Medium>, String> {
        let one = self.0.create(origin, definitions)?;
        let other = self.1.create(origin, definitions)?;
        Ok(Box::new(Twins { one, other, fault: RefCell::default() }))
    }
}

/// Two disks that must not be told apart. The first is believed.
#[derive(Debug)]
struct Twins {
    one: Box<dyn Medium>,
    other: Box<dyn Medium>,
    /// Where they differed first.
    fault: RefCell<Option<String>>,
}

impl Twins {
    /// Notes a difference, and returns the first answer.
    fn same<T: PartialEq + fmt::Debug>(&self, what: &str, one: T, other: T) -> T {
        if one != other {
            self.complain(format!("{what}: one storage says {one:?}, the other {other:?}"));
        }
        one
    }

    fn complain(&self, fault: String) {
        self.fault.borrow_mut().get_or_insert(fault);
    }

    /// Compares what two storages did. Afterwards they hold the same.
    fn did<T>(
        &self,
        what: &str,
        one: Result<T, StorageError>,
        other: Result<T, StorageError>,
        told: impl Fn(&T) -> Vec<&Commit>,
    ) -> Result<T, StorageError> {
        match (&one, &other) {
            (Ok(one), Ok(other)) => {
                let (one, other) = (told(one), told(other));
                self.same(what, one.len(), other.len());
                for (one, other) in one.into_iter().zip(other) {
                    self.same(what, Told::of(one, other), Told::of(other, one));
                }
            }
            (Err(StorageError::Refused(_)), Err(StorageError::Refused(_))) => {}
            (Ok(_) | Err(_), Ok(_) | Err(_)) => self.complain(format!(
                "{what}: one storage succeeds and the other fails: {:?}, {:?}",
                one.as_ref().err(),
                other.as_ref().err()
            )),
        }
        let print = (self.one.fingerprint(), self.other.fingerprint());
        self.same("fingerprint", print.0, print.1).map(drop).unwrap_or_default();
        one
    }
}

/// What a commit tells, in an order that both can keep to.
#[derive(PartialEq, Debug)]
struct Told<'a> {
    heads: Vec<(Origin, Version)>,
    changeset: Option<ToldChangeset<'a>>,
    rows: NetRows<'a>,
}

type ToldChangeset<'a> = &'a Changeset;

/// Whether a row existed before a commit, and what it is after it. How many steps lie between is the
/// business of each storage.
type Net<'a> = (bool, Option<&'a [Value]>);

/// The rows that a commit changed, by table and key.
pub(super) type NetRows<'a> = BTreeMap<(&'a str, &'a [Value]), Net<'a>>;

/// Returns what became of each row in a commit. What came and went was never there.
pub(super) fn net_rows(commit: &Commit) -> NetRows<'_> {
    let mut rows = NetRows::new();
    for (table, event) in commit.tables.iter().flat_map(rows_of) {
        let net = rows.entry((table, &event.key[..])).or_insert((event.existed, None));
        net.1 = event.row.as_deref();
    }
    rows.retain(|_, (existed, row)| *existed || row.is_some());
    rows
}

impl<'a> Told<'a> {
    /// `other` is the same commit of the other storage.
    fn of(commit: &'a Commit, other: &Commit) -> Self {
        let mut heads = commit.heads.clone();
        heads.sort_unstable();
        let mut rows = net_rows(commit);
        // In several steps a row may come back to what it was: who tells of each step tells of that.
        let of_other = net_rows(other);
        let is_in_steps = |place: &(&str, &[Value])| {
            let all = commit.tables.iter().flat_map(rows_of);
            all.filter(|(table, event)| (*table, &event.key[..]) == *place).count() > 1
        };
        rows.retain(|place, (existed, row)| {
            of_other.contains_key(place) || !(*existed && row.is_some() && is_in_steps(place))
        });
        Self { heads, changeset: commit.changeset.as_deref(), rows }
    }
}

fn rows_of(table: &TableEvents) -> Vec<(&str, &RowEvent)> {
    match &table.rows {
        RowEvents::Each(rows) => rows.iter().map(|row| (&*table.table.name, row)).collect(),
        RowEvents::Many => Vec::new(),
    }
}

fn one(commit: &Commit) -> Vec<&Commit> {
    vec![commit]
}

impl Storage for Twins {
    fn origin(&self) -> Origin {
        self.same("origin", self.one.origin(), self.other.origin())
    }

    fn commit(&mut self, now: Wall, ops: &[RowOp]) -> Result<Option<Commit>, StorageError> {
        let (a, b) = (self.one.commit(now, ops), self.other.commit(now, ops));
        self.did("commit", a, b, |commit| commit.iter().collect())
    }

    fn apply(&mut self, now: Wall, batch: &Batch) -> Result<Commit, StorageError> {
        let (a, b) = (self.one.apply(now, batch), self.other.apply(now, batch));
        self.did("apply", a, b, one)
    }

    fn load(
        &self,
        origin: Origin,
        from: impl Into<Bookmark>,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        self.load_from(origin, from.into(), bytes_max)
    }

    fn stage(&mut self, staging: Staging, parts: &[Part]) -> Result<(), StorageError> {
        let (a, b) = (self.one.stage(staging, parts), self.other.stage(staging, parts));
        self.same("stage", a, b)
    }

    fn apply_staged(
        &mut self,
        now: Wall,
        staging: Staging,
        last: &Piece,
    ) -> Result<Commit, StorageError> {
        let a = self.one.apply_staged(now, staging, last);
        let b = self.other.apply_staged(now, staging, last);
        self.did("apply what was staged", a, b, one)
    }

    fn unstage(&mut self, staging: Staging) -> Result<(), StorageError> {
        let (a, b) = (self.one.unstage(staging), self.other.unstage(staging));
        self.same("unstage", a, b)
    }

    fn heads(&self) -> Result<Vec<(Origin, Version)>, StorageError> {
        let sorted = |heads: Result<Vec<_>, _>| {
            heads.map(|mut heads: Vec<(Origin, Version)>| {
                heads.sort_unstable();
                heads
            })
        };
        self.same("heads", sorted(self.one.heads()), sorted(self.other.heads()))
    }

    fn begin_epoch(&mut self, now: Wall, above: Epoch) -> Result<Begun, StorageError> {
        let (a, b) = (self.one.begin_epoch(now, above), self.other.begin_epoch(now, above));
        self.did("begin an epoch", a, b, |begun| begun.commits.iter().collect())
    }

    fn withdraw(&mut self, now: Wall) -> Result<Vec<Commit>, StorageError> {
        let (a, b) = (self.one.withdraw(now), self.other.withdraw(now));
        self.did("withdraw", a, b, |commits| commits.iter().collect())
    }

    fn fingerprint(&self) -> Result<u64, StorageError> {
        self.same("fingerprint", self.one.fingerprint(), self.other.fingerprint())
    }

    fn floor(&self) -> Result<Floor, StorageError> {
        let (a, b) = (self.one.floor()?, self.other.floor()?);
        let of = |floor: &Floor| {
            let retired = floor.retired.clone();
            (floor.length, floor.settled, floor.is_rejoining, retired, floor.era, floor.erased)
        };
        // Who has settled may say everything.
        let is_settled = a.settled == Some(self.one.origin());
        if of(&a) != of(&b) || (a.harmless != b.harmless && !is_settled) {
            self.complain(format!("floor: one storage says {a:?}, the other {b:?}"));
        }
        Ok(a)
    }

    fn tombstones(&self) -> Result<u64, StorageError> {
        self.same("tombstones", self.one.tombstones(), self.other.tombstones())
    }

    fn meet(
        &mut self,
        members: &[(NodeId, Epoch)],
        forgotten: &[(NodeId, Epoch)],
    ) -> Result<(), StorageError> {
        let (a, b) = (self.one.meet(members, forgotten), self.other.meet(members, forgotten));
        self.same("meet", a, b)
    }

    fn collect(
        &mut self,
        heads: &[(Origin, Version)],
        forgotten: &[(NodeId, Epoch)],
        rows_max: usize,
    ) -> Result<Collected, StorageError> {
        // How many rows one call looks at is the business of each.
        let mut sum = Collected::default();
        while !sum.is_done {
            let collected = self.one.collect(heads, forgotten, rows_max)?;
            sum.dropped += collected.dropped;
            sum.is_done = collected.is_done;
        }
        while !self.other.collect(heads, forgotten, rows_max)?.is_done {}
        self.tombstones()?;
        Ok(sum)
    }

    fn rejoin(
        &mut self,
        now: Wall,
        held: &[(Origin, Version)],
        length: u64,
    ) -> Result<Begun, StorageError> {
        let (a, b) = (self.one.rejoin(now, held, length), self.other.rejoin(now, held, length));
        self.did("rejoin", a, b, |begun| begun.commits.iter().collect())
    }

    fn settle(&mut self, now: Wall, past: &Past) -> Result<Settled, StorageError> {
        let a = self.one.settle(now, past);
        let b = self.other.settle(now, past);
        self.did("settle", a, b, |settled| settled.commits.iter().collect())
    }

    fn depart(
        &mut self,
        now: Wall,
        under: Origin,
        held: &[(Origin, Version)],
    ) -> Result<Vec<Commit>, StorageError> {
        let (a, b) = (self.one.depart(now, under, held), self.other.depart(now, under, held));
        self.did("depart", a, b, |commits| commits.iter().collect())
    }

    fn tidy(&mut self, tidy: &Tidy) -> Result<Tidied, StorageError> {
        let (a, b) = (self.one.tidy(tidy), self.other.tidy(tidy));
        self.same("tidy", a, b)
    }

    fn inspect(&self, table: &str, key: &[Value]) -> Result<Option<Inspected>, StorageError> {
        self.same("a row", self.one.inspect(table, key), self.other.inspect(table, key))
    }

    fn refusals(&self) -> u64 {
        self.same("refusals", self.one.refusals(), self.other.refusals())
    }

    fn look(&self, look: &Look) -> Result<Sight, StorageError> {
        self.same("a look at rows", self.one.look(look), self.other.look(look))
    }

    fn mend(&mut self, now: Wall, mend: &Mend) -> Result<Mended, StorageError> {
        let (a, b) = (self.one.mend(now, mend), self.other.mend(now, mend));
        self.did("mend", a, b, |mended| vec![&mended.commit])
    }

    fn recount(&mut self) -> Result<(), StorageError> {
        let (a, b) = (self.one.recount(), self.other.recount());
        self.same("recount", a, b)
    }
}

impl Medium for Twins {
    fn load_from(
        &self,
        origin: Origin,
        from: Bookmark,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        let a = self.one.load_from(origin, from, bytes_max)?;
        let b = self.other.load_from(origin, from, bytes_max)?;
        self.same("head", a.head, b.head);
        // Where a version is cut is the business of each: a pull must go on with the one it began
        // with, and with whole versions both say the same.
        if a.part == 0 && b.part == 0 && from.part == 0 && a.piece.through == b.piece.through {
            // A commit's time may be forgotten.
            let timeless = |extract: &Extract| {
                let mut piece = extract.piece.clone();
                for changeset in &mut piece.changesets {
                    *changeset = Arc::new(Changeset { at: Wall(0), ..Changeset::clone(changeset) });
                }
                piece
            };
            self.same("piece", timeless(&a), timeless(&b));
        }
        Ok(a)
    }

    fn restart(&mut self, torn: Option<&Torn>) -> Result<(), String> {
        self.one.restart(torn)?;
        self.other.restart(torn)?;
        self.same("after a restart", self.one.fingerprint(), self.other.fingerprint())
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    fn copy(&self) -> Result<Box<dyn Medium>, String> {
        let (one, other) = (self.one.copy()?, self.other.copy()?);
        Ok(Box::new(Self { one, other, fault: self.fault.clone() }))
    }

    fn difference(&self, other: &dyn Medium) -> Option<String> {
        let other: &Self = other.as_any().downcast_ref()?;
        self.one.difference(&*other.one).or_else(|| self.other.difference(&*other.other))
    }

    fn fault(&self) -> Option<String> {
        let of_either = || self.one.fault().or_else(|| self.other.fault());
        self.fault.borrow().clone().or_else(of_either)
    }

    fn part_bytes(&self) -> usize {
        self.one.part_bytes().max(self.other.part_bytes())
    }

    fn define(&mut self, now: Wall, definition: &Definition) -> Result<(), String> {
        self.one.define(now, definition)?;
        self.other.define(now, definition)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
