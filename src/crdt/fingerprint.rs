//! The hash by which nodes tell whether they hold the same rows.
//!
//! A fingerprint is the wrapping sum of its rows' hashes, so it does not depend on their order and
//! can be kept up to date row by row: subtract the old hash, add the new one. Rows are hashed as
//! the merge sees them, under the names of their columns: a parked row counts like any other, and
//! a cell that was never written (it shows its column's default) does not count. So nodes with
//! different schemas have the same fingerprint when they hold the same writes.
//!
//! It guards against faults, not against forgery: whoever may write can make rows that collide.

use super::change::{Life, Stamp};
use super::merge::CellClock;
use crate::types::Value;

/// Returns a row's part of the fingerprint. `key` is the packed key; `cells` are all cells that
/// have a clock, in any order.
pub fn row_hash<'a>(
    table: &str,
    key: &[u8],
    life: Life,
    cells: impl IntoIterator<Item = (&'a str, CellClock, &'a Value)>,
) -> u64 {
    let row = Hasher::default().bytes(table.as_bytes()).bytes(key);
    let cells = cells.into_iter().map(|(column, clock, value)| {
        row.bytes(column.as_bytes()).number(clock.count).stamp(clock.stamp).value(value).finish()
    });
    cells.fold(row.number(life.length).stamp(life.stamp).finish(), u64::wrapping_add)
}

/// FNV-1a, 64 bits, with a last step that lets each bit of the state reach each bit of the hash:
/// sums of bare FNV hashes would collide too easily. Never to be changed while nodes of different
/// releases compare what it says; the golden value below holds it.
#[derive(Clone, Copy)]
struct Hasher(u64);

impl Default for Hasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher {
    fn raw(self, bytes: &[u8]) -> Self {
        let step =
            |state: u64, byte: &u8| (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(bytes.iter().fold(self.0, step))
    }

    fn number(self, number: u64) -> Self {
        self.raw(&number.to_le_bytes())
    }

    /// The length goes first, so that no two lists of fields run into each other.
    fn bytes(self, bytes: &[u8]) -> Self {
        self.number(bytes.len() as u64).raw(bytes)
    }

    fn stamp(self, stamp: Stamp) -> Self {
        self.raw(&stamp.origin.to_bytes()).number(stamp.version.0)
    }

    fn value(self, value: &Value) -> Self {
        match value {
            Value::Null => self.raw(&[0]),
            Value::Blob(bytes) => self.raw(&[1]).bytes(bytes),
            Value::Text(text) => self.raw(&[2]).bytes(text.as_bytes()),
            Value::Real(number) => self.raw(&[3]).number(number.to_bits()),
            Value::Integer(number) => self.raw(&[4]).raw(&number.to_le_bytes()),
        }
    }

    fn finish(self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, Origin, Version};

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
        assert_eq!(hash, 3_725_449_300_234_972_413, "the hash must never change");
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
