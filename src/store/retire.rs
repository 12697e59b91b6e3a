//! Forgetting who is gone: the rows of a node that will not return, and origins of which nothing is
//! left. When it may be done is the replica's business.

use std::sync::Arc;

use super::database::{Store, failed};
use super::epochs::Act;
use super::group::{Done, Group};
use super::log;
use super::tombstones::raise;
use crate::crdt::Stamp;
use crate::crdt::storage::{StorageError, Tidied, Tidy};
use crate::types::{Origin, Version, Wall};

const TIDY: &str = "UPDATE __tribune_collection SET era = max(era, ?1), erased = max(erased, ?2)";
const FORGET_FLOOR: &str = "DELETE FROM __tribune_floor WHERE origin = ?1";
const FORGET_NODE: [&str; 2] = [
    "DELETE FROM __tribune_forgotten WHERE node = ?1",
    "DELETE FROM __tribune_members WHERE node = ?1",
];

/// How many names one tidying looks at. Most origins show with the first that something is left.
const LOOKS_MAX: usize = 4_096;

impl Group<'_> {
    /// Deletes the rows of a node that is forgotten: see
    /// [`Storage::depart`](crate::crdt::storage::Storage::depart). The commits are the group's.
    /// Returns the head of the origin that deleted them; 0: there were none.
    pub fn depart(
        &mut self,
        under: Origin,
        held: &[(Origin, Version)],
    ) -> Result<Version, StorageError> {
        self.caller(StorageError::Failed, |group| {
            group.withdraw_of(under, held).map_err(failed)?;
            group.done.push(Done::Departed { under, held: held.to_vec() });
            Ok(group.store.origins.head(under))
        })
    }

    /// Retires and erases origins: see [`Storage::tidy`](crate::crdt::storage::Storage::tidy).
    pub fn tidy(&mut self, tidy: &Tidy) -> Result<Tidied, StorageError> {
        self.caller(StorageError::Failed, |group| {
            let tidied = group.tidy_up(tidy).map_err(failed)?;
            group.done.push(Done::Tidied(tidy.clone()));
            Ok(tidied)
        })
    }

    pub(super) fn withdraw_of(
        &mut self,
        under: Origin,
        held: &[(Origin, Version)],
    ) -> rusqlite::Result<()> {
        let of_node = |origin: &Origin| origin.node == under.node;
        let mut here = self.store.origins.heads();
        here.retain(|(origin, _)| of_node(origin));
        if here != held {
            return Ok(());
        }
        let places = self.owned_by(of_node)?;
        if places.is_empty() {
            return Ok(());
        }
        raise(&self.store.conn, &[], &[(under.node, under.epoch)])?;
        let first = self.commits.len();
        self.write_places_as((under, Wall(0)), &places, &Act::Withdraw)?;
        for commit in &mut self.commits[first..] {
            Arc::make_mut(commit).changeset = None;
        }
        Ok(())
    }

    pub(super) fn tidy_up(&mut self, tidy: &Tidy) -> rusqlite::Result<Tidied> {
        let store = &mut *self.store;
        let mut looks = LOOKS_MAX;
        let mut tidied = Tidied::default();
        for origin in &tidy.retire {
            if store.is_spent(origin.0, &mut looks)?
                && store.origins.retire(&store.conn, *origin)?
            {
                tidied.retired.push(*origin);
            }
        }
        for origin in &tidy.erase {
            if store.origins.erase(&store.conn, *origin)? {
                store.conn.prepare_cached(FORGET_FLOOR)?.execute([origin.to_bytes()])?;
            }
        }
        for node in &tidy.gone {
            for sql in FORGET_NODE {
                store.conn.prepare_cached(sql)?.execute([&node.0[..]])?;
            }
        }
        let numbers = (tidy.era.cast_signed(), tidy.erased.cast_signed());
        store.conn.prepare_cached(TIDY)?.execute(numbers)?;
        for origin in &tidy.ask {
            let head = store.origins.head(*origin);
            let is_head = head > Version(0) && !store.origins.is_retired(*origin);
            if is_head && store.is_spent(*origin, &mut looks)? {
                tidied.spent.push((*origin, head));
            }
        }
        Ok(tidied)
    }
}

impl Store {
    /// Tells whether nothing is left of an origin, and rids the log of what it finds to be idle on the
    /// way. With `looks` used up the answer is no.
    fn is_spent(&mut self, origin: Origin, looks: &mut usize) -> rusqlite::Result<bool> {
        let Some(ordinal) = self.origins.number_of(origin) else { return Ok(false) };
        let mut place = (Version(0), -1);
        loop {
            let parts = log::parts(&self.conn, ordinal, place, Version(i64::MAX.unsigned_abs()))?;
            if parts.is_empty() {
                return Ok(true);
            }
            for part in parts {
                place = (part.version, part.number);
                // One that cannot be read says nothing, and stays for the doctor.
                let Ok(names) = log::names(&part.rows) else { return Ok(false) };
                let stamp = Stamp { origin, version: part.version };
                for (table, key) in names {
                    if *looks == 0 || log::is_left(&self.conn, &self.origins, stamp, (table, &key))?
                    {
                        return Ok(false);
                    }
                    *looks -= 1;
                }
                log::rewrite(&self.conn, (ordinal, part.version, part.number), Vec::new())?;
            }
        }
    }
}
