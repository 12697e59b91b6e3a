//! Pieces that came before what they follow. They may be dropped at any time: whatever is missing
//! is pulled in the end.

use std::collections::BTreeMap;

use crate::crdt::Piece;
use crate::types::{Origin, Time, Version};

/// What waits for a missing version.
///
/// At the brim a newcomer is refused, never one that waits already: a piece that was passed on
/// when it came must not be forgotten and then passed on again.
#[derive(Clone, Debug)]
pub struct Reorder {
    waiting: BTreeMap<(Origin, Version), Early>,
    /// How many bytes wait of each origin, for those of which any do.
    origins: BTreeMap<Origin, usize>,
    bytes: usize,
    bytes_max: usize,
    origin_bytes_max: usize,
}

#[derive(Clone, Debug)]
struct Early {
    piece: Piece,
    bytes: usize,
    since: Time,
}

/// What became of an early piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// It waits.
    Waiting,
    /// The same, or more, waits already.
    Known,
    /// There is no room for it.
    Full,
}

impl Reorder {
    /// Makes an empty one, with its limits in bytes: for one origin, and for all together.
    pub fn new(origin_bytes_max: usize, bytes_max: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            origins: BTreeMap::new(),
            bytes: 0,
            bytes_max,
            origin_bytes_max,
        }
    }

    /// Keeps a piece of about `bytes` until its `after` is held.
    pub fn keep(&mut self, now: Time, piece: Piece, bytes: usize) -> Kept {
        let key = (piece.origin, piece.after);
        if self.waiting.get(&key).is_some_and(|early| early.piece.through >= piece.through) {
            return Kept::Known;
        }
        let of_origin = self.origins.get(&piece.origin).copied().unwrap_or(0);
        if of_origin + bytes > self.origin_bytes_max || self.bytes + bytes > self.bytes_max {
            return Kept::Full;
        }
        self.remove(key);
        *self.origins.entry(piece.origin).or_default() += bytes;
        self.bytes += bytes;
        self.waiting.insert(key, Early { piece, bytes, since: now });
        Kept::Waiting
    }

    /// Tells whether a version of an origin waits.
    pub fn holds(&self, origin: Origin, version: Version) -> bool {
        let before = self.waiting.range((origin, Version(0))..(origin, version)).next_back();
        before.is_some_and(|(_, early)| early.piece.through >= version)
    }

    /// Lists the origins of which something waits.
    pub fn origins(&self) -> impl Iterator<Item = Origin> {
        self.origins.keys().copied()
    }

    /// Takes out a piece that joins on to `reached`, if one waits; drops what is covered by it.
    pub fn take(&mut self, origin: Origin, reached: Version) -> Option<Piece> {
        if !self.origins.contains_key(&origin) {
            return None;
        }
        loop {
            let (key, _) = self.waiting.range((origin, Version(0))..=(origin, reached)).next()?;
            let early = self.remove(*key)?;
            if early.piece.through > reached {
                return Some(early.piece);
            }
        }
    }

    /// Drops everything that has waited since before `oldest`.
    pub fn drop_older(&mut self, oldest: Time) {
        let old: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, early)| early.since < oldest)
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            self.remove(key);
        }
    }

    /// Drops everything of an origin.
    pub fn drop_origin(&mut self, origin: Origin) {
        let keys: Vec<_> = self
            .waiting
            .range((origin, Version(0))..=(origin, Version(u64::MAX)))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.remove(key);
        }
    }

    /// Returns how many bytes wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tells whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn remove(&mut self, key: (Origin, Version)) -> Option<Early> {
        let early = self.waiting.remove(&key)?;
        self.bytes -= early.bytes;
        let of_origin = self.origins.get_mut(&key.0)?;
        *of_origin -= early.bytes;
        if *of_origin == 0 {
            self.origins.remove(&key.0);
        }
        Some(early)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::origin;

    fn piece(node: u8, after: u64, through: u64) -> Piece {
        Piece {
            origin: origin(node),
            after: Version(after),
            through: Version(through),
            changesets: Vec::new(),
        }
    }

    #[test]
    fn a_piece_is_given_out_when_what_it_follows_is_there() {
        let mut reorder = Reorder::new(100, 100);
        assert_eq!(reorder.keep(Time(0), piece(1, 3, 4), 10), Kept::Waiting);
        assert_eq!(reorder.keep(Time(0), piece(1, 3, 4), 10), Kept::Known);
        assert_eq!(reorder.keep(Time(0), piece(1, 2, 3), 10), Kept::Waiting);
        assert_eq!(reorder.take(origin(1), Version(1)), None);
        assert_eq!(reorder.take(origin(2), Version(9)), None);
        assert_eq!(reorder.take(origin(1), Version(2)), Some(piece(1, 2, 3)));
        assert_eq!(reorder.take(origin(1), Version(3)), Some(piece(1, 3, 4)));
        assert!(reorder.is_empty());
        assert_eq!(reorder.bytes(), 0);
    }

    #[test]
    fn what_was_overtaken_is_dropped_on_the_way() {
        let mut reorder = Reorder::new(100, 100);
        reorder.keep(Time(0), piece(1, 3, 4), 10);
        reorder.keep(Time(0), piece(1, 4, 5), 10);
        assert_eq!(reorder.take(origin(1), Version(5)), None);
        assert!(reorder.is_empty());
    }

    #[test]
    fn at_the_brim_the_newcomer_is_refused() {
        let mut reorder = Reorder::new(20, 30);
        assert_eq!(reorder.keep(Time(0), piece(1, 3, 4), 15), Kept::Waiting);
        assert_eq!(reorder.keep(Time(0), piece(1, 5, 6), 6), Kept::Full);
        assert_eq!(reorder.keep(Time(5), piece(2, 5, 6), 15), Kept::Waiting);
        assert_eq!(reorder.keep(Time(5), piece(3, 5, 6), 1), Kept::Full);
        reorder.drop_older(Time(5));
        assert_eq!(reorder.bytes(), 15);
        reorder.drop_origin(origin(2));
        assert!(reorder.is_empty());
    }
}
