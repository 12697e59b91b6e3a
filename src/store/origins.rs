//! How far this node holds each origin's versions, and the small numbers that stand for origins.
//! What changed is written once a group; until then a mark leads back to what was before.

use std::collections::BTreeMap;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use crate::types::{Origin, Version};

const SELECT_AFTER: &str = "SELECT ordinal, origin, value FROM __tribune_origins
    LEFT JOIN __tribune_heads ON id = ordinal WHERE ordinal > ?1 ORDER BY ordinal";
const SELECT_HEAD: &str = "SELECT value FROM __tribune_heads WHERE id = ?1";
const INSERT: &str = "INSERT OR IGNORE INTO __tribune_origins (ordinal, origin) VALUES (?1, ?2)";
const UPSERT_HEAD: &str = "REPLACE INTO __tribune_heads (id, value) VALUES (?1, ?2)";

/// A number that stands for an origin in this node's tables: from 1, without holes.
pub type Ordinal = i64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    ordinal: Ordinal,
    head: Version,
}

/// All origins of the database.
#[derive(Debug, Default)]
pub struct Origins {
    held: BTreeMap<Origin, Held>,
    /// By ordinal, the first at 0.
    numbered: Vec<Origin>,
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
            let damaged = |damage: String| {
                rusqlite::Error::FromSqlConversionFailure(1, Type::Blob, damage.into())
            };
            let (ordinal, bytes): (Ordinal, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let origin = Origin::from_bytes(&bytes)
                .ok_or_else(|| damaged(format!("an origin has {} bytes", bytes.len())))?;
            if ordinal != origins.next_ordinal() {
                return Err(damaged(format!("no origin has the number {}", ordinal - 1)));
            }
            let head = row.get::<_, Option<i64>>(2)?.unwrap_or(0);
            origins.numbered.push(origin);
            origins.held.insert(origin, Held { ordinal, head: Version(head.cast_unsigned()) });
        }
        Ok(())
    }

    /// Returns what a number stands for.
    pub fn of_number(&self, ordinal: Ordinal) -> Option<Origin> {
        let place = usize::try_from(ordinal).ok()?.checked_sub(1)?;
        self.numbered.get(place).copied()
    }

    /// Returns how far the origin's versions are held; 0: not at all.
    pub fn head(&self, origin: Origin) -> Version {
        self.held.get(&origin).map_or(Version(0), |held| held.head)
    }

    /// Returns the origin's number, if the database has heard of it.
    pub fn number_of(&self, origin: Origin) -> Option<Ordinal> {
        self.held.get(&origin).map(|held| held.ordinal)
    }

    /// Lists the origins of which there is something.
    pub fn heads(&self) -> Vec<(Origin, Version)> {
        let held = self.held.iter().map(|(origin, held)| (*origin, held.head));
        held.filter(|(_, head)| *head > Version(0)).collect()
    }

    /// Returns the origin's number; an unheard-of origin gets the next one.
    pub fn ordinal(&mut self, origin: Origin) -> Ordinal {
        if let Some(held) = self.held.get(&origin) {
            return held.ordinal;
        }
        let ordinal = self.next_ordinal();
        self.numbered.push(origin);
        self.set(origin, Held { ordinal, head: Version(0) });
        ordinal
    }

    /// Moves an origin's head up.
    pub fn advance(&mut self, origin: Origin, head: Version) {
        let ordinal = self.ordinal(origin);
        assert!(head >= self.head(origin), "only an epoch that ends takes a head back");
        self.set(origin, Held { ordinal, head });
    }

    /// Lists all origins, those of which only a number is known too.
    pub fn all(&self) -> Vec<Origin> {
        self.held.keys().copied().collect()
    }

    /// Takes an origin's head back: what was held beyond is no more than anybody's guess.
    pub fn set_back(&mut self, origin: Origin, head: Version) {
        let ordinal = self.ordinal(origin);
        self.set(origin, Held { ordinal, head });
    }

    /// Returns a mark to come back to.
    pub fn mark(&self) -> usize {
        self.changes.len()
    }

    /// Takes back what was changed since the mark.
    pub fn undo_to(&mut self, mark: usize) {
        for (origin, before) in self.changes.drain(mark..).rev() {
            match before {
                Some(before) => self.held.insert(origin, before),
                None => {
                    self.numbered.pop();
                    self.held.remove(&origin)
                }
            };
        }
    }

    /// Writes what was changed since the last [`Origins::settle`].
    pub fn save(&self, conn: &Connection) -> rusqlite::Result<()> {
        let mut changed: Vec<Origin> = self.changes.iter().map(|(origin, _)| *origin).collect();
        changed.sort_unstable();
        changed.dedup();
        for origin in changed {
            let held = self.held[&origin];
            if self.changes.contains(&(origin, None)) {
                conn.prepare_cached(INSERT)?.execute((held.ordinal, origin.to_bytes()))?;
            }
            let head = (held.ordinal, held.head.0.cast_signed());
            conn.prepare_cached(UPSERT_HEAD)?.execute(head)?;
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
        i64::try_from(self.numbered.len()).expect("origins are fewer than there are numbers") + 1
    }
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
}
