//! Counters that must never be mixed.

/// An origin's commit count: dense, from 1. Version 0 means "nothing of this origin".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Version(pub u64);

impl Version {
    /// Returns the version that follows this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Which life of a node wrote something. It rises whenever the tail of the previous one could
/// have been lost, so that a name (origin, version) never denotes two contents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The last one that SQLite's integers hold.
    pub const MAX: Self = Self(i64::MAX.cast_unsigned());

    /// Returns the next epoch, or this one where it is the last.
    #[must_use]
    pub fn next(self) -> Self {
        self.later_by(1).unwrap_or(self)
    }

    /// Returns the epoch that is later by `leap`, if there is one.
    #[must_use]
    pub fn later_by(self, leap: u64) -> Option<Self> {
        self.0.checked_add(leap).map(Self).filter(|epoch| *epoch <= Self::MAX)
    }
}

/// How many commits became true on this node since it started, local and remote alike.
/// It orders what this node tells its watchers and means nothing elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Seq(pub u64);
