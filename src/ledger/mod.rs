//! What this node holds of each origin: one head, since versions are applied in order, and what
//! came too early. Who is asked for what is missing is the replica's business.

use std::collections::BTreeMap;

use crate::types::{NodeId, Origin, Version};

pub mod digest;
pub mod reorder;
pub mod round;

pub use digest::{BUCKETS, bucket_of};
pub use reorder::Reorder;
pub use round::Round;

/// A count of moves of heads, by which a link knows what it was told already.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Cursor(u64);

/// The heads of all origins, as they stand on disk.
///
/// Laws: a head never goes down but by [`Ledger::set_back`], [`Ledger::restart`] and
/// [`Ledger::retire`], and is never 0; every version up to it is held. The moves are numbered from
/// 1, and `recent` holds the number of each origin's latest one.
#[derive(Clone, Debug)]
pub struct Ledger {
    heads: BTreeMap<Origin, Head>,
    recent: BTreeMap<Cursor, Origin>,
    moves: Cursor,
    hashes: Box<[u64; BUCKETS]>,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    version: Version,
    moved: Cursor,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            heads: BTreeMap::new(),
            recent: BTreeMap::new(),
            moves: Cursor::default(),
            hashes: Box::new([0; BUCKETS]),
        }
    }
}

impl FromIterator<(Origin, Version)> for Ledger {
    fn from_iter<T: IntoIterator<Item = (Origin, Version)>>(heads: T) -> Self {
        let mut ledger = Self::default();
        for (origin, head) in heads {
            ledger.advance(origin, head);
        }
        ledger
    }
}

impl Ledger {
    /// Returns the origin's head; 0 when nothing of it is held.
    pub fn head(&self, origin: Origin) -> Version {
        self.heads.get(&origin).map_or(Version(0), |head| head.version)
    }

    /// Moves an origin's head up to `head`. Returns whether it was below.
    pub fn advance(&mut self, origin: Origin, head: Version) -> bool {
        let is_below = self.head(origin) < head;
        if is_below {
            self.set(origin, head);
        }
        is_below
    }

    /// Takes the head of an origin back to `head`, where it is above: an origin of this node's own
    /// that has ended, and of which the disk has lost something. It is pulled again from there.
    pub fn set_back(&mut self, origin: Origin, head: Version) {
        if self.head(origin) > head {
            self.set(origin, head);
        }
    }

    /// An origin is retired: it is held no more than one that never was.
    pub fn retire(&mut self, origin: Origin) {
        self.set(origin, Version(0));
    }

    /// Whoever was told of this origin is told once more, as if its head had moved just now.
    pub fn renew(&mut self, origin: Origin) {
        self.set(origin, self.head(origin));
    }

    /// The disk holds nothing any more but these: what was held is pulled again.
    pub fn restart(&mut self, heads: impl IntoIterator<Item = (Origin, Version)>) {
        let held: Vec<Origin> = self.heads.keys().copied().collect();
        held.into_iter().for_each(|origin| self.set(origin, Version(0)));
        for (origin, head) in heads {
            self.advance(origin, head);
        }
    }

    fn set(&mut self, origin: Origin, head: Version) {
        let held = self.heads.remove(&origin);
        let bucket = usize::from(bucket_of(origin));
        if let Some(held) = held {
            self.recent.remove(&held.moved);
            self.hashes[bucket] ^= digest::head_hash(origin, held.version);
        }
        if head == Version(0) {
            return;
        }
        self.moves = Cursor(self.moves.0 + 1);
        self.hashes[bucket] ^= digest::head_hash(origin, head);
        self.heads.insert(origin, Head { version: head, moved: self.moves });
        self.recent.insert(self.moves, origin);
    }

    /// Returns all heads, in the order of their origins.
    pub fn heads(&self) -> impl Iterator<Item = (Origin, Version)> {
        self.heads.iter().map(|(origin, head)| (*origin, head.version))
    }

    /// Returns how many origins are held.
    pub fn origins(&self) -> usize {
        self.heads.len()
    }

    /// Returns where a link that has been told everything stands.
    pub fn cursor(&self) -> Cursor {
        self.moves
    }

    /// Returns the heads that moved after `cursor`, the longest ago first, at most `count_max` of
    /// them, and where a link that was told of them stands.
    pub fn moved_since(
        &self,
        cursor: Cursor,
        count_max: usize,
    ) -> (Vec<(Origin, Version)>, Cursor) {
        let mut told = cursor;
        let heads = self
            .recent
            .range(Cursor(cursor.0 + 1)..)
            .take(count_max)
            .map(|(moved, origin)| {
                told = *moved;
                (*origin, self.head(*origin))
            })
            .collect();
        (heads, told)
    }

    /// Returns the newest origin of a node that something is held of.
    pub fn newest_of(&self, node: NodeId) -> Option<(Origin, Version)> {
        // Scopes come first in the order of origins; a node is nearly always in one.
        self.heads()
            .filter(|(origin, _)| origin.node == node)
            .max_by_key(|(origin, _)| origin.epoch)
    }

    /// Returns a hash of the heads for each bucket.
    pub fn hashes(&self) -> &[u64; BUCKETS] {
        &self.hashes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::types::{Epoch, Scope};

    pub(crate) fn origin(node: u8) -> Origin {
        Origin { scope: Scope(0), node: NodeId([node; 16]), epoch: Epoch(1) }
    }

    #[test]
    fn a_head_never_goes_down() {
        let mut ledger = Ledger::default();
        assert!(ledger.advance(origin(1), Version(3)));
        assert!(!ledger.advance(origin(1), Version(3)));
        assert!(!ledger.advance(origin(1), Version(2)));
        assert_eq!(ledger.head(origin(1)), Version(3));
        assert_eq!(ledger.head(origin(2)), Version(0));
    }

    #[test]
    fn a_link_is_told_of_each_head_once_and_of_its_latest_state() {
        let mut ledger = Ledger::default();
        ledger.advance(origin(1), Version(1));
        ledger.advance(origin(2), Version(1));
        ledger.advance(origin(1), Version(2));
        let (heads, told) = ledger.moved_since(Cursor::default(), 9);
        assert_eq!(heads, [(origin(2), Version(1)), (origin(1), Version(2))]);
        assert_eq!(told, ledger.cursor());
        assert_eq!(ledger.moved_since(told, 9), (Vec::new(), told));
        let (first, told) = ledger.moved_since(Cursor::default(), 1);
        assert_eq!(first, [(origin(2), Version(1))]);
        assert_eq!(ledger.moved_since(told, 9).0, [(origin(1), Version(2))]);
    }

    #[test]
    fn a_head_that_is_set_back_is_as_if_it_had_never_been_higher() {
        let mut ledger: Ledger =
            [(origin(1), Version(5)), (origin(2), Version(5))].into_iter().collect();
        ledger.set_back(origin(1), Version(3));
        ledger.set_back(origin(1), Version(4));
        ledger.set_back(origin(2), Version(0));
        let never: Ledger = [(origin(1), Version(3))].into_iter().collect();
        assert!(ledger.heads().eq(never.heads()));
        assert_eq!(ledger.hashes(), never.hashes());
        assert_eq!(ledger.moved_since(Cursor::default(), 9).0, [(origin(1), Version(3))]);
        assert!(ledger.advance(origin(2), Version(1)));
    }

    #[test]
    fn equal_heads_have_equal_hashes_however_they_came_about() {
        let slow: Ledger = [(origin(1), Version(1)), (origin(2), Version(5))].into_iter().collect();
        let mut ledger: Ledger = [(origin(2), Version(5))].into_iter().collect();
        assert_ne!(slow.hashes(), ledger.hashes());
        ledger.advance(origin(1), Version(1));
        assert_eq!(slow.hashes(), ledger.hashes());
        ledger.advance(origin(1), Version(2));
        assert_ne!(slow.hashes(), ledger.hashes());
    }

    #[test]
    fn the_newest_origin_of_a_node_is_that_of_its_latest_epoch() {
        let second = Origin { epoch: Epoch(2), ..origin(1) };
        let ledger: Ledger =
            [(origin(1), Version(9)), (second, Version(1)), (origin(3), Version(1))]
                .into_iter()
                .collect();
        assert_eq!(ledger.newest_of(NodeId([1; 16])), Some((second, Version(1))));
        assert_eq!(ledger.newest_of(NodeId([2; 16])), None);
    }
}
