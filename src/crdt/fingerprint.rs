//! The hash by which nodes tell whether they hold the same rows.
//!
//! A fingerprint is the wrapping sum of the hashes of all lives and cells, so it does not depend on
//! their order and can be kept up to date cell by cell: subtract the old hash, add the new one.
//! What is left out, a column that was dropped, is a sum of its own that does not count. Rows are
//! hashed as the merge sees them, under the names of their columns: a parked row counts like any
//! other, and a cell that was never written (it shows its column's default) does not count. So
//! nodes with different schemas have the same fingerprint when they hold the same writes. Dead
//! rows do not count: nodes forget them at different times.
//!
//! It guards against faults, not against forgery: whoever may write can make rows that collide.

use super::change::{Life, Stamp};
use super::merge::CellClock;
use crate::types::{Origin, Value, Version};

/// Returns a live row's part of the fingerprint. `key` is the packed key; `cells` are all cells that
/// have a clock, in any order.
pub fn row_hash<'a>(
    table: &str,
    key: &[u8],
    life: Life,
    cells: impl IntoIterator<Item = (&'a str, CellClock, &'a Value)>,
) -> u64 {
    let row = NameHash::of(table).row(key);
    let cells = cells
        .into_iter()
        .map(|(column, clock, value)| row.cell(NameHash::of(column), clock_hash(clock), value));
    cells.fold(row.life(life), u64::wrapping_add)
}

/// Returns a hash of heads, whatever their order.
pub fn heads_hash(heads: impl IntoIterator<Item = (Origin, Version)>) -> u64 {
    let hash = |(origin, version)| Hasher::default().stamp(Stamp { origin, version }).finish();
    heads.into_iter().map(hash).fold(0, u64::wrapping_add)
}

/// The hash of a table's or a column's name: whoever hashes many rows makes it once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NameHash(u64);

/// The hash of a row's place: its table and its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlaceHash(u64);

/// The hash of a cell's clock, which the cells of a write share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockHash(u64);

impl NameHash {
    pub fn of(name: &str) -> Self {
        Self(Hasher::default().bytes(name.as_bytes()).finish())
    }

    /// Returns the hash of one row's place in the table of this name.
    pub fn row(self, key: &[u8]) -> PlaceHash {
        PlaceHash(Hasher(self.0).bytes(key).finish())
    }
}

impl PlaceHash {
    /// Returns it as a number.
    pub fn number(self) -> u64 {
        self.0
    }

    /// Returns what the row's life adds to the fingerprint.
    pub fn life(self, life: Life) -> u64 {
        Hasher(self.0).number(life.length).stamp(life.stamp).finish()
    }

    /// Returns what a cell adds to the fingerprint.
    pub fn cell(self, column: NameHash, clock: ClockHash, value: &Value) -> u64 {
        Hasher(self.0).number(column.0).number(clock.0).value(value).finish()
    }
}

/// Returns the hash of a cell's clock.
pub fn clock_hash(clock: CellClock) -> ClockHash {
    ClockHash(Hasher::default().number(clock.count).stamp(clock.stamp).finish())
}

/// A chain of 64 by 64 bit multiplications whose halves are folded into each other, as in wyhash:
/// a word at a time. Never to be changed while nodes of different releases compare what it says;
/// the golden value below holds it.
#[derive(Clone, Copy)]
struct Hasher(u64);

/// Any odd numbers without a pattern: the fractions of the square roots of 2 and 3.
const SEED: u64 = 0x6a09_e667_f3bc_c909;
const STEP: u64 = 0xbb67_ae85_84ca_a73b;

impl Default for Hasher {
    fn default() -> Self {
        Self(SEED)
    }
}

impl Hasher {
    fn number(self, number: u64) -> Self {
        Self(fold(self.0 ^ number, STEP).wrapping_add(SEED))
    }

    /// The length goes first, so that no two lists of fields run into each other.
    fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let state = self.number(bytes.len() as u64);
        let state = words.iter().fold(state, |state, word| state.number(u64::from_le_bytes(*word)));
        if rest.is_empty() {
            return state;
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        state.number(u64::from_le_bytes(last))
    }

    fn stamp(self, stamp: Stamp) -> Self {
        self.bytes(&stamp.origin.to_bytes()).number(stamp.version.0)
    }

    fn value(self, value: &Value) -> Self {
        match value {
            Value::Null => self.number(0),
            Value::Blob(bytes) => self.number(1).bytes(bytes),
            Value::Text(text) => self.number(2).bytes(text.as_bytes()),
            Value::Real(number) => self.number(3).number(number.to_bits()),
            Value::Integer(number) => self.number(4).number(number.cast_unsigned()),
        }
    }

    fn finish(self) -> u64 {
        fold(self.0, STEP ^ SEED)
    }
}

/// Multiplies, and folds the upper half of the product into the lower.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn stamp(version: u64) -> Stamp {
        let origin = Origin { node: NodeId([1; 16]), ..Origin::default() };
        Stamp { origin, version: Version(version) }
    }

    #[test]
    fn a_row_has_a_golden_hash() {
        let life = Life { length: 1, stamp: stamp(1) };
        let clock = CellClock { count: 1, stamp: stamp(1) };
        let values =
            [Value::Null, Value::Blob(vec![1]), "a".into(), Value::Real(0.5), Value::Integer(-1)];
        let cells = ["a", "b", "c", "d", "e"].into_iter().zip(&values);
        let cells: Vec<_> = cells.map(|(column, value)| (column, clock, value)).collect();
        let hash = row_hash("t", b"key", life, cells.clone());
        assert_eq!(hash, 13_682_069_504_305_613_423, "the hash must never change");
        assert_eq!(row_hash("t", b"key", life, cells.into_iter().rev()), hash);
    }

    #[test]
    fn every_part_of_a_row_counts() {
        let life = Life { length: 1, stamp: stamp(1) };
        let clock = CellClock { count: 1, stamp: stamp(1) };
        let (a, b) = (Value::from("a"), Value::from("b"));
        let later = Life { stamp: stamp(2), ..life };
        let recounted = CellClock { count: 2, ..clock };
        let restamped = CellClock { stamp: stamp(2), ..clock };
        let hashes = [
            row_hash("t", b"k", life, []),
            row_hash("u", b"k", life, []),
            row_hash("tk", b"", life, []),
            row_hash("t", b"l", life, []),
            row_hash("t", b"k", Life { length: 2, ..life }, []),
            row_hash("t", b"k", later, []),
            row_hash("t", b"k", life, [("v", clock, &a)]),
            row_hash("t", b"k", life, [("v", clock, &b)]),
            row_hash("t", b"k", life, [("w", clock, &a)]),
            row_hash("t", b"k", life, [("v", recounted, &a)]),
            row_hash("t", b"k", life, [("v", restamped, &a)]),
            row_hash("t", b"k", life, [("v", clock, &a), ("w", clock, &b)]),
            // Values that change places.
            row_hash("t", b"k", life, [("v", clock, &b), ("w", clock, &a)]),
        ];
        let different: std::collections::BTreeSet<u64> = hashes.into_iter().collect();
        assert_eq!(different.len(), hashes.len());
    }
}
