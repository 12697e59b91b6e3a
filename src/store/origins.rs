//! How far this node holds each origin's versions, and the small numbers that stand for origins.
//! What changed is written once a group; until then a mark leads back to what was before.

use std::collections::BTreeMap;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use crate::types::{Origin, Version};

const SELECT_AFTER: &str =
    "SELECT ordinal, origin, value, ordinal IN (SELECT ordinal FROM __tribune_retired)
    FROM __tribune_origins
    LEFT JOIN __tribune_heads ON id = ordinal WHERE ordinal > ?1 ORDER BY ordinal";
const SELECT_LAST: &str = "SELECT last_ordinal FROM __tribune_collection";
const SELECT_HEAD: &str = "SELECT value FROM __tribune_heads WHERE id = ?1";
const INSERT: &str = "INSERT OR IGNORE INTO __tribune_origins (ordinal, origin) VALUES (?1, ?2)";
const UPDATE_HEAD: &str = "UPDATE __tribune_heads SET value = ?2 WHERE id = ?1";
const INSERT_HEAD: &str = "INSERT INTO __tribune_heads (id, value) VALUES (?1, ?2)";
const RETIRE: &str = "INSERT OR IGNORE INTO __tribune_retired (ordinal) VALUES (?1)";
const ERASE: [&str; 3] = [
    "DELETE FROM __tribune_retired WHERE ordinal = ?1",
    "DELETE FROM __tribune_heads WHERE id = ?1",
    "DELETE FROM __tribune_origins WHERE ordinal = ?1",
];

/// A number that stands for an origin in this node's tables: from 1 on, and never for another one.
pub type Ordinal = i64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    ordinal: Ordinal,
    head: Version,
    is_retired: bool,
}

/// All origins of the database.
#[derive(Debug, Default)]
pub struct Origins {
    held: BTreeMap<Origin, Held>,
    /// In the order of their numbers. Those that were erased are missing.
    numbered: Vec<(Ordinal, Origin)>,
    /// The greatest number that was given, to one that is erased perhaps: other connections may know
    /// what it stood for, and other processes.
    last: Ordinal,
    /// What was changed since the last [`Origins::settle`], oldest first, and what it was before.
    changes: Vec<(Origin, Option<Held>)>,
}

impl Origins {
    pub fn read(conn: &Connection) -> rusqlite::Result<Self> {
        let mut origins = Self::default();
        origins.read_further(conn)?;
        Ok(origins)
    }

    /// Reads, from a database that another connection writes, the origins that are new to it and the
    /// head of one. The heads of others stay as they were read.
    pub fn renew(&mut self, conn: &Connection, origin: Origin) -> rusqlite::Result<()> {
        self.read_further(conn)?;
        if let Some(held) = self.held.get_mut(&origin) {
            let mut statement = conn.prepare_cached(SELECT_HEAD)?;
            let head =
                statement.query_row([held.ordinal], |row| row.get::<_, i64>(0)).optional()?;
            held.head = Version(head.unwrap_or(0).cast_unsigned());
        }
        Ok(())
    }

    fn read_further(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let origins = self;
        let mut statement = conn.prepare_cached(SELECT_AFTER)?;
        let mut rows = statement.query([origins.next_ordinal() - 1])?;
        while let Some(row) = rows.next()? {
            let (ordinal, bytes): (Ordinal, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let origin = Origin::from_bytes(&bytes).ok_or_else(|| {
                let damage = format!("an origin has {} bytes", bytes.len());
                rusqlite::Error::FromSqlConversionFailure(1, Type::Blob, damage.into())
            })?;
            let head = Version(row.get::<_, Option<i64>>(2)?.unwrap_or(0).cast_unsigned());
            origins.numbered.push((ordinal, origin));
            origins.last = ordinal;
            origins.held.insert(origin, Held { ordinal, head, is_retired: row.get(3)? });
        }
        let last = conn.prepare_cached(SELECT_LAST)?.query_row([], |row| row.get(0))?;
        origins.last = origins.last.max(last);
        Ok(())
    }

    /// Returns what a number stands for.
    pub fn of_number(&self, ordinal: Ordinal) -> Option<Origin> {
        // Where none is missing it is in its place.
        let place = usize::try_from(ordinal).ok()?.checked_sub(1)?;
        let in_place = self.numbered.get(place).filter(|(number, _)| *number == ordinal);
        let found = in_place.or_else(|| self.numbered.get(place_of(&self.numbered, ordinal).ok()?));
        found.map(|(_, origin)| *origin)
    }

    /// Returns how far the origin's versions are held; 0: not at all.
    pub fn head(&self, origin: Origin) -> Version {
        self.held.get(&origin).map_or(Version(0), |held| held.head)
    }

    /// Returns the origin's number, if the database has heard of it.
    pub fn number_of(&self, origin: Origin) -> Option<Ordinal> {
        self.held.get(&origin).map(|held| held.ordinal)
    }

    /// Lists the origins of which there is something, but for retired ones.
    pub fn heads(&self) -> Vec<(Origin, Version)> {
        let held = self.held.iter().filter(|(_, held)| !held.is_retired);
        let held = held.map(|(origin, held)| (*origin, held.head));
        held.filter(|(_, head)| *head > Version(0)).collect()
    }

    /// Lists how far all origins are held, retired ones too.
    pub fn all_heads(&self) -> impl Iterator<Item = (Origin, Version)> {
        self.held.iter().map(|(origin, held)| (*origin, held.head))
    }

    /// Lists the origins that are retired, and how far they were held.
    pub fn retired(&self) -> Vec<(Origin, Version)> {
        let retired = self.held.iter().filter(|(_, held)| held.is_retired);
        retired.map(|(origin, held)| (*origin, held.head)).collect()
    }

    pub fn is_retired(&self, origin: Origin) -> bool {
        self.held.get(&origin).is_some_and(|held| held.is_retired)
    }

    /// Retires an origin that is held, up to `head` at most, and of which nothing is left: from now on
    /// it is held so far. Returns whether it is so now.
    pub fn retire(
        &mut self,
        conn: &Connection,
        (origin, head): (Origin, Version),
    ) -> rusqlite::Result<bool> {
        let is_head = |held: &Held| (Version(1)..=head).contains(&held.head) && !held.is_retired;
        let Some(held) = self.held.get(&origin).copied().filter(is_head) else {
            return Ok(false);
        };
        conn.prepare_cached(RETIRE)?.execute([held.ordinal])?;
        self.set(origin, Held { head, is_retired: true, ..held });
        Ok(true)
    }

    /// Retires an origin of which nothing is held.
    pub fn take_over(
        &mut self,
        conn: &Connection,
        (origin, head): (Origin, Version),
    ) -> rusqlite::Result<()> {
        if self.head(origin) > Version(0) {
            return Ok(());
        }
        let ordinal = self.ordinal(origin);
        conn.prepare_cached(RETIRE)?.execute([ordinal])?;
        self.set(origin, Held { ordinal, head, is_retired: true });
        Ok(())
    }

    /// Forgets an origin that is retired, or of which nothing is held. Returns its number if it was one.
    pub fn erase(
        &mut self,
        conn: &Connection,
        origin: Origin,
    ) -> rusqlite::Result<Option<Ordinal>> {
        let may_go = |held: &Held| held.is_retired || held.head == Version(0);
        let Some(held) = self.held.get(&origin).copied().filter(may_go) else {
            return Ok(None);
        };
        for sql in ERASE {
            conn.prepare_cached(sql)?.execute([held.ordinal])?;
        }
        self.numbered.retain(|(_, numbered)| *numbered != origin);
        self.held.remove(&origin);
        self.changes.push((origin, Some(held)));
        Ok(Some(held.ordinal))
    }

    /// Returns the origin's number; an unheard-of origin gets the next one.
    pub fn ordinal(&mut self, origin: Origin) -> Ordinal {
        if let Some(held) = self.held.get(&origin) {
            return held.ordinal;
        }
        let ordinal = self.next_ordinal();
        self.last = ordinal;
        self.numbered.push((ordinal, origin));
        self.set(origin, Held { ordinal, head: Version(0), is_retired: false });
        ordinal
    }

    /// Moves an origin's head up.
    pub fn advance(&mut self, origin: Origin, head: Version) {
        let ordinal = self.ordinal(origin);
        assert!(head >= self.head(origin), "only an epoch that ends takes a head back");
        assert!(!self.is_retired(origin), "of a retired origin nothing comes any more");
        self.set(origin, Held { ordinal, head, is_retired: false });
    }

    /// Lists all origins, those of which only a number is known too.
    pub fn all(&self) -> Vec<Origin> {
        self.held.keys().copied().collect()
    }

    /// Takes an origin's head back: what was held beyond is no more than anybody's guess.
    pub fn set_back(&mut self, origin: Origin, head: Version) {
        let ordinal = self.ordinal(origin);
        self.set(origin, Held { ordinal, head, is_retired: false });
    }

    /// Returns a mark to come back to.
    pub fn mark(&self) -> usize {
        self.changes.len()
    }

    /// Takes back what was changed since the mark.
    pub fn undo_to(&mut self, mark: usize) {
        for (origin, before) in self.changes.drain(mark..).rev() {
            match before {
                Some(before) => {
                    if let Err(place) = place_of(&self.numbered, before.ordinal) {
                        self.numbered.insert(place, (before.ordinal, origin));
                    }
                    self.held.insert(origin, before)
                }
                None => {
                    let undone = self.numbered.pop();
                    self.last = undone.map_or(self.last, |(ordinal, _)| ordinal - 1);
                    self.held.remove(&origin)
                }
            };
        }
    }

    /// Writes what was changed since the last [`Origins::settle`].
    pub fn save(&self, conn: &Connection) -> rusqlite::Result<()> {
        // Of each: whether it is new.
        let mut changed: BTreeMap<Origin, bool> = BTreeMap::new();
        for (origin, before) in &self.changes {
            *changed.entry(*origin).or_default() |= before.is_none();
        }
        for (origin, is_new) in changed {
            let Some(held) = self.held.get(&origin) else { continue };
            if is_new {
                conn.prepare_cached(INSERT)?.execute((held.ordinal, origin.to_bytes()))?;
            }
            let head = (held.ordinal, held.head.0.cast_signed());
            if conn.prepare_cached(UPDATE_HEAD)?.execute(head)? == 0 {
                conn.prepare_cached(INSERT_HEAD)?.execute(head)?;
            }
        }
        Ok(())
    }

    /// Notes that what [`Origins::save`] wrote is committed.
    pub fn settle(&mut self) {
        self.changes.clear();
    }

    fn set(&mut self, origin: Origin, held: Held) {
        let before = self.held.insert(origin, held);
        if before != Some(held) {
            self.changes.push((origin, before));
        }
    }

    fn next_ordinal(&self) -> Ordinal {
        self.last + 1
    }
}

fn place_of(numbered: &[(Ordinal, Origin)], ordinal: Ordinal) -> Result<usize, usize> {
    numbered.binary_search_by_key(&ordinal, |(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, NodeId, Scope};

    #[test]
    fn a_mark_leads_back_to_what_was() {
        let origin = |node| Origin { scope: Scope(0), node: NodeId([node; 16]), epoch: Epoch(1) };
        let mut origins = Origins::default();
        origins.advance(origin(1), Version(5));
        let mark = origins.mark();
        origins.advance(origin(1), Version(7));
        assert_eq!(origins.ordinal(origin(2)), 2);
        origins.undo_to(mark);
        assert_eq!(origins.heads(), [(origin(1), Version(5))]);
        assert_eq!(origins.ordinal(origin(3)), 2);
        assert_eq!(origins.heads(), [(origin(1), Version(5))], "nothing of it is held");
    }

    #[test]
    fn an_erased_origin_leaves_its_number_to_nobody() {
        let trial = crate::store::trial::Trial::new("");
        let conn = &trial.store.conn;
        let origin = |node| Origin { scope: Scope(0), node: NodeId([node; 16]), epoch: Epoch(1) };
        let mut origins = Origins::read(conn).unwrap();
        let first = origins.ordinal(origin(1));
        origins.advance(origin(2), Version(5));
        origins.save(conn).unwrap();
        origins.settle();
        let mark = origins.mark();
        assert!(!origins.retire(conn, (origin(2), Version(4))).unwrap(), "that is not its head");
        assert_eq!(origins.erase(conn, origin(2)).unwrap(), None, "it is not retired");
        assert!(origins.retire(conn, (origin(2), Version(6))).unwrap());
        assert!(!origins.heads().contains(&(origin(2), Version(5))));
        assert_eq!(origins.retired(), [(origin(2), Version(6))]);
        let held = origins.mark();
        assert_eq!(origins.erase(conn, origin(2)).unwrap(), Some(first + 1));
        assert_eq!(origins.ordinal(origin(3)), first + 2);
        assert_eq!(origins.of_number(first + 1), None);
        assert_eq!(origins.of_number(first + 2), Some(origin(3)));
        origins.save(conn).unwrap();
        let read = Origins::read(conn).unwrap();
        assert_eq!((read.number_of(origin(2)), read.number_of(origin(3))), (None, Some(first + 2)));
        assert_eq!(read.of_number(first + 1), None);
        assert_eq!(read.of_number(first + 2), Some(origin(3)));
        origins.undo_to(held);
        assert_eq!(origins.of_number(first + 1), Some(origin(2)));
        assert!(origins.is_retired(origin(2)));
        origins.undo_to(mark);
        assert_eq!(origins.heads(), [(origin(2), Version(5))]);
    }
}
