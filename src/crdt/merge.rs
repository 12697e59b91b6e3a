//! The merge order, and a row's clock: all that decides which of two writes stays.
//!
//! A row's clock is a lattice: a [`Life`] that only rises, and under it a cell for each column
//! that somebody wrote in this life. Joining two clocks keeps the greater life (a greater length
//! drops every cell of the lesser one) and of each cell the greater write: first the count, then
//! the value, then the stamp. There is no equal case but the same write, so the join is
//! commutative, associative and idempotent; the tests below this file draw random histories and
//! hold it to that.
//!
//! Rows that have an owner are a simpler lattice: the greatest write of the owner is the row.

use std::cmp::Ordering;

use super::change::{Life, Stamp};
use crate::types::Value;

/// A cell's clock: how often it was written in this life, and by whom last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CellClock {
    pub count: u64,
    pub stamp: Stamp,
}

/// What to do with the row's life when a change arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LifeVerdict {
    /// The change is of a life that is over: nothing of it counts.
    Past,
    /// The same life, begun by the same or a greater write: look at the cells.
    Same,
    /// The same life, but the change knows a greater beginning: take its stamp over, then look at
    /// the cells.
    Restamped,
    /// A later life: drop every cell, take the life over, then look at the cells.
    Later,
}

/// Compares the life that a change brings with the row's own (`None`: never heard of the row).
pub fn judge_life(held: Option<Life>, incoming: Life) -> LifeVerdict {
    let Some(held) = held else { return LifeVerdict::Later };
    match incoming.length.cmp(&held.length) {
        Ordering::Less => LifeVerdict::Past,
        Ordering::Greater => LifeVerdict::Later,
        Ordering::Equal if incoming.stamp > held.stamp => LifeVerdict::Restamped,
        Ordering::Equal => LifeVerdict::Same,
    }
}

/// Compares the life of an owned row that a change brings with the row's own. In a table of this
/// class every write replaces the row whole and puts its stamp on the life, so the latest write is
/// the row: neither the length of the life nor the counts of cells have a say.
pub fn judge_owned_life(held: Option<Life>, incoming: Life) -> LifeVerdict {
    let Some(held) = held else { return LifeVerdict::Later };
    // The length tells only writes apart that nobody honest makes: two under one stamp.
    let rank = |life: Life| (life.stamp.recency(), life.length);
    match rank(incoming).cmp(&rank(held)) {
        Ordering::Less => LifeVerdict::Past,
        Ordering::Greater => LifeVerdict::Later,
        Ordering::Equal => LifeVerdict::Same,
    }
}

/// What to do with one cell, within the same life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CellVerdict {
    /// The held write is the greater one, or the same.
    Keep,
    /// Take over value and clock.
    Take,
    /// The values are equal: take over the clock alone.
    Restamp,
}

/// Compares an incoming cell with the held one. `value` gives the held value and is asked only
/// when the counts are equal.
pub fn judge_cell<'a>(
    held: Option<CellClock>,
    value: impl FnOnce() -> &'a Value,
    incoming: CellClock,
    incoming_value: &Value,
) -> CellVerdict {
    let Some(held) = held else { return CellVerdict::Take };
    match incoming.count.cmp(&held.count) {
        Ordering::Less => CellVerdict::Keep,
        Ordering::Greater => CellVerdict::Take,
        Ordering::Equal => match incoming_value.cmp(value()) {
            Ordering::Less => CellVerdict::Keep,
            Ordering::Greater => CellVerdict::Take,
            Ordering::Equal if incoming.stamp > held.stamp => CellVerdict::Restamp,
            Ordering::Equal => CellVerdict::Keep,
        },
    }
}
