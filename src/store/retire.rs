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
const KEEP_ORDINAL: &str = "UPDATE __tribune_collection SET last_ordinal = max(last_ordinal, ?1)";
const FORGET_FLOOR: &str = "DELETE FROM __tribune_floor WHERE origin = ?1";
const FORGET_NODE: [&str; 2] = [
    "DELETE FROM __tribune_forgotten WHERE node = ?1",
    "DELETE FROM __tribune_members WHERE node = ?1",
];

/// How many names one tidying looks at for those that it is to retire or to erase, and as many for
/// those that it is asked for. Most origins show with the first that something is left.
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
        let mut tidied = Tidied::default();
        let mut looks = LOOKS_MAX;
        for origin in &tidy.retire {
            if store.is_spent(origin.0, &mut looks)? == Some(true)
                && store.origins.retire(&store.conn, *origin)?
            {
                tidied.retired.push(*origin);
            }
        }
        for origin in &tidy.erase {
            let is_held = store.origins.head(*origin) > Version(0);
            if (is_held && !store.origins.is_retired(*origin))
                || store.is_spent(*origin, &mut looks)? != Some(true)
            {
                continue;
            }
            store.erase(*origin)?;
            store.conn.prepare_cached(FORGET_FLOOR)?.execute([origin.to_bytes()])?;
            tidied.erased.push(*origin);
        }
        for node in &tidy.gone {
            for sql in FORGET_NODE {
                store.conn.prepare_cached(sql)?.execute([&node.0[..]])?;
            }
        }
        let numbers = (tidy.era.cast_signed(), tidy.erased.cast_signed());
        store.conn.prepare_cached(TIDY)?.execute(numbers)?;
        let mut looks = LOOKS_MAX;
        for origin in &tidy.ask {
            let head = store.origins.head(*origin);
            let is_head = head > Version(0) && !store.origins.is_retired(*origin);
            if is_head {
                let Some(is_spent) = store.is_spent(*origin, &mut looks)? else { break };
                tidied.spent.extend(is_spent.then_some((*origin, head)));
            }
            tidied.looked_at += 1;
        }
        Ok(tidied)
    }
}

impl Store {
    fn erase(&mut self, origin: Origin) -> rusqlite::Result<()> {
        if let Some(ordinal) = self.origins.erase(&self.conn, origin)? {
            self.conn.prepare_cached(KEEP_ORDINAL)?.execute([ordinal])?;
        }
        Ok(())
    }

    /// Forgets the origins of which neither a version is held nor anything left: those that a peer did
    /// not know any more whose rows this node has taken.
    pub(super) fn erase_what_is_not_held(&mut self) -> rusqlite::Result<()> {
        for origin in self.origins.all() {
            let is_idle = self.origins.head(origin) == Version(0) && origin != self.now.origin;
            let mut looks = usize::MAX;
            if is_idle && self.is_spent(origin, &mut looks)? == Some(true) {
                self.erase(origin)?;
            }
        }
        Ok(())
    }

    /// Tells whether nothing is left of an origin, and rids the log of what it finds to be idle on the
    /// way (`None`: `looks` are used up; the next time it is a shorter one).
    fn is_spent(&mut self, origin: Origin, looks: &mut usize) -> rusqlite::Result<Option<bool>> {
        let Some(ordinal) = self.origins.number_of(origin) else { return Ok(Some(true)) };
        let mut place = (Version(0), -1);
        loop {
            let parts = log::parts(&self.conn, ordinal, place, Version(i64::MAX.unsigned_abs()))?;
            if parts.is_empty() {
                return Ok(Some(true));
            }
            for part in parts {
                place = (part.version, part.number);
                // One that cannot be read says nothing, and stays for the doctor.
                let Ok(names) = log::names(&part.rows) else { return Ok(Some(false)) };
                if *looks == 0 {
                    return Ok(None);
                }
                *looks = looks.saturating_sub(names.len());
                let stamp = Stamp { origin, version: part.version };
                for (table, key) in names {
                    if log::is_left(&self.conn, &self.origins, stamp, (table, &key))? {
                        return Ok(Some(false));
                    }
                }
                log::rewrite(&self.conn, (ordinal, part.version, part.number), Vec::new())?;
            }
        }
    }
}
