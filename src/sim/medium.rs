//! What a simulated node keeps its rows on: a storage that outlives its process and can be copied.
//! The model in memory is one; SQLite, which is of the world, comes in from outside as another.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::crdt::storage::{Bookmark, Extract, StorageError};
use crate::crdt::{Batch, Definition, RowOp, Storage, Table};
use crate::types::{Origin, Wall};

/// A simulated node's disk, and the storage that the node's process has opened on it.
pub trait Medium: Storage + fmt::Debug {
    /// See [`Storage::load`].
    fn load_from(
        &self,
        origin: Origin,
        from: Bookmark,
        bytes_max: usize,
    ) -> Result<Extract, StorageError>;

    /// The process has ended at once, in the midst of `torn` if of anything, and the next one opens
    /// what is there: all that was committed, and nothing of what was torn.
    fn restart(&mut self, torn: Option<&Torn>) -> Result<(), String>;

    /// Returns a copy of what is on disk. It is of use after [`Medium::restart`]; where it takes the
    /// place of what it was made of, nothing tells that it is a copy.
    fn copy(&self) -> Result<Box<dyn Medium>, String>;

    /// Says in which live row two disks differ first, as far as it can.
    fn difference(&self, other: &dyn Medium) -> Option<String>;

    /// Says what is wrong with the medium itself, whatever it was asked.
    fn fault(&self) -> Option<String> {
        None
    }

    /// How many bytes of small rows are never parted, however little a piece may have: see
    /// [`Storage::load`].
    fn part_bytes(&self) -> usize {
        1_000
    }

    /// See [`Table::define`]. Nothing tells of what became visible.
    fn define(&mut self, now: Wall, definition: &Definition) -> Result<(), String>;

    /// Changes or loses a live row past all that writes, if the medium can. Returns which: see
    /// [`Table::damage`].
    fn damage(&mut self, _nth: usize, _loses_row: bool, _is_kept: bool) -> Option<String> {
        None
    }

    fn as_any(&self) -> &dyn Any;

    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Work that was under way when a process ended.
#[derive(Clone, Debug)]
pub struct Torn {
    pub work: Work,
    /// How much of it has reached the disk: so many of 65,536 parts, never all.
    pub left: u16,
}

/// What a disk may be in the midst of.
#[derive(Clone, Debug)]
pub enum Work {
    Commit(Vec<RowOp>),
    Apply(Batch),
}

/// Where the disks of a simulation are from.
pub trait Media: fmt::Debug {
    /// Makes the empty disk of a node that writes as `origin`, with these tables.
    fn create(
        &mut self,
        origin: Origin,
        definitions: &[Definition],
    ) -> Result<Box<dyn Medium>, String>;
}

/// The model in memory: quick, and the same in any number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InMemory;

impl Media for InMemory {
    fn create(
        &mut self,
        origin: Origin,
        definitions: &[Definition],
    ) -> Result<Box<dyn Medium>, String> {
        let table = Table::new(origin, definitions).map_err(|error| error.to_string())?;
        Ok(Box::new(table))
    }
}

impl Medium for Table {
    fn load_from(
        &self,
        origin: Origin,
        from: Bookmark,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        self.load(origin, from, bytes_max)
    }

    fn restart(&mut self, _torn: Option<&Torn>) -> Result<(), String> {
        Self::restart(self);
        Ok(())
    }

    fn copy(&self) -> Result<Box<dyn Medium>, String> {
        Ok(Box::new(self.clone()))
    }

    fn difference(&self, other: &dyn Medium) -> Option<String> {
        self.first_difference(other.as_any().downcast_ref()?)
    }

    fn define(&mut self, now: Wall, definition: &Definition) -> Result<(), String> {
        Self::define(self, now, definition).map(drop).map_err(|error| error.to_string())
    }

    fn damage(&mut self, nth: usize, loses_row: bool, is_kept: bool) -> Option<String> {
        Self::damage(self, nth, loses_row, is_kept)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// A disk of any kind.
#[derive(Debug)]
pub(super) struct AnyMedium(Box<dyn Medium>);

impl AnyMedium {
    /// Says in which live row two disks differ first.
    pub(super) fn first_difference(&self, other: &Self) -> Option<String> {
        self.difference(&*other.0)
    }

    pub(super) fn try_copy(&self) -> Result<Self, String> {
        self.copy().map(Self)
    }
}

impl From<Box<dyn Medium>> for AnyMedium {
    fn from(medium: Box<dyn Medium>) -> Self {
        Self(medium)
    }
}

impl Deref for AnyMedium {
    type Target = dyn Medium;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl DerefMut for AnyMedium {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut *self.0
    }
}
