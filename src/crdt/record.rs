//! A row's clock as bytes: the one record that a storage keeps beside each row.
//!
//! ```text
//! record = 01, life length, stamp, group*          a number is a varint: 7 bits a byte, low first
//! group  = count, stamp, columns                   to the end of the record
//! stamp  = origin, version
//! origin = index of an origin that this record has named before
//!        | how many it has named before, then the 22 bytes of one more
//! columns = length in bytes, then a bit for each column number, low first, the last byte not 0
//! ```
//!
//! There is one way to write a clock, and only that one is read. A row that its owner wrote in one
//! piece takes some 36 bytes: an origin, a few small numbers and a bit for each column.

use std::collections::BTreeSet;

use super::change::{Life, Stamp};
use super::merge::CellClock;
use super::row::{ColumnId, Group, RowClock};
use crate::types::{Origin, Version};

/// The first byte: which way of writing a clock follows.
const FORMAT: u8 = 1;

/// The bytes are not a row's clock: the database is damaged, or from a newer release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a row's clock cannot be read: {0}")]
pub struct RecordError(&'static str);

impl RowClock {
    /// Returns the clock as bytes; equal clocks are equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer { bytes: vec![FORMAT], origins: Vec::new() };
        writer.number(self.life().length);
        writer.stamp(self.life().stamp);
        for group in self.groups() {
            writer.number(group.clock.count);
            writer.stamp(group.clock.stamp);
            writer.columns(&group.columns);
        }
        writer.bytes
    }

    /// Reads what [`RowClock::to_bytes`] wrote, and nothing else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let Some((&FORMAT, rest)) = bytes.split_first() else {
            return Err(RecordError("its format is unknown"));
        };
        let mut reader = Reader { rest, origins: Vec::new() };
        let life = Life { length: reader.number()?, stamp: reader.stamp()? };
        let mut groups = Vec::new();
        while !reader.rest.is_empty() {
            let clock = CellClock { count: reader.number()?, stamp: reader.stamp()? };
            groups.push(Group { clock, columns: reader.columns()? });
        }
        check_groups(life, &groups)?;
        Ok(Self::from_groups(life, groups))
    }
}

/// The laws that [`RowClock`] states for its groups.
fn check_groups(life: Life, groups: &[Group]) -> Result<(), RecordError> {
    if !life.is_alive() && !groups.is_empty() {
        return Err(RecordError("a dead row has cells"));
    }
    if !groups.windows(2).all(|pair| pair[0].columns[0] < pair[1].columns[0]) {
        return Err(RecordError("its groups are out of order"));
    }
    let mut columns = BTreeSet::new();
    let mut clocks = BTreeSet::new();
    for group in groups {
        if !clocks.insert((group.clock.count, group.clock.stamp)) {
            return Err(RecordError("two groups have the same clock"));
        }
        if !group.columns.iter().all(|column| columns.insert(*column)) {
            return Err(RecordError("a column is in two groups"));
        }
    }
    Ok(())
}

struct Writer {
    bytes: Vec<u8>,
    origins: Vec<Origin>,
}

impl Writer {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn stamp(&mut self, stamp: Stamp) {
        let known = self.origins.iter().position(|origin| *origin == stamp.origin);
        self.number(known.unwrap_or(self.origins.len()) as u64);
        if known.is_none() {
            self.origins.push(stamp.origin);
            self.bytes.extend_from_slice(&stamp.origin.to_bytes());
        }
        self.number(stamp.version.0);
    }

    fn columns(&mut self, columns: &[ColumnId]) {
        let last = columns.last().expect("a group is never empty");
        let length = usize::from(last.0) / 8 + 1;
        self.number(length as u64);
        let start = self.bytes.len();
        self.bytes.resize(start + length, 0);
        for column in columns {
            self.bytes[start + usize::from(column.0) / 8] |= 1 << (column.0 % 8);
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    origins: Vec<Origin>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(RecordError("it is cut"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, RecordError> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // A last byte of zero says nothing: the number has a shorter form.
                if byte == 0 && shift > 0 {
                    break;
                }
                return Ok(number);
            }
        }
        Err(RecordError("a number is not in its shortest form"))
    }

    fn stamp(&mut self) -> Result<Stamp, RecordError> {
        let index = self.number()?;
        if index == self.origins.len() as u64 {
            let origin = Origin::from_bytes(self.take(Origin::BYTES)?)
                .ok_or(RecordError("an origin is malformed"))?;
            if self.origins.contains(&origin) {
                return Err(RecordError("it names an origin twice"));
            }
            self.origins.push(origin);
        }
        let origin = usize::try_from(index).ok().and_then(|index| self.origins.get(index));
        let origin = *origin.ok_or(RecordError("it refers to an origin that it does not name"))?;
        Ok(Stamp { origin, version: Version(self.number()?) })
    }

    fn columns(&mut self) -> Result<Vec<ColumnId>, RecordError> {
        let length = self.number()?;
        let bitmap = match usize::try_from(length) {
            // A bit for each number that a column may have.
            Ok(length) if length <= (usize::from(u16::MAX) + 1) / 8 => self.take(length)?,
            Ok(_) | Err(_) => return Err(RecordError("it has too many columns")),
        };
        if bitmap.last().is_none_or(|byte| *byte == 0) {
            return Err(RecordError("its columns are not in their shortest form"));
        }
        let mut columns = Vec::new();
        for (place, byte) in (0_u16..).zip(bitmap) {
            let bits = (0..8).filter(|bit| byte & (1 << bit) != 0);
            columns.extend(bits.map(|bit| ColumnId(place * 8 + bit)));
        }
        Ok(columns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::Class;
    use crate::crdt::row::tests::{State, changes};
    use crate::types::{Epoch, NodeId, Scope};

    fn stamp(node: u8, version: u64) -> Stamp {
        let origin = Origin { scope: Scope(0), node: NodeId([node; 16]), epoch: Epoch(1) };
        Stamp { origin, version: Version(version) }
    }

    fn columns(range: std::ops::Range<u16>) -> impl Iterator<Item = ColumnId> {
        range.map(ColumnId)
    }

    #[test]
    fn a_record_has_golden_bytes() {
        let mut clock = RowClock::inserted(None, stamp(7, 300), columns(0..9));
        clock.updated(stamp(8, 1), columns(0..1));
        let mut golden = vec![FORMAT, 1, 0];
        golden.extend(stamp(7, 0).origin.to_bytes());
        golden.extend([0xac, 2, 2, 1]);
        golden.extend(stamp(8, 0).origin.to_bytes());
        golden.extend([1, 1, 0b1, 1, 0, 0xac, 2, 2, 0b1111_1110, 0b1]);
        assert_eq!(clock.to_bytes(), golden);
        assert_eq!(RowClock::from_bytes(&golden), Ok(clock));
    }

    #[test]
    fn a_row_written_in_one_piece_takes_few_bytes() {
        let clock = RowClock::inserted(None, stamp(7, 1_000_000), columns(2..13));
        assert_eq!(clock.to_bytes().len(), 36);
    }

    #[test]
    fn extremes_survive() {
        let mut clock = RowClock::inserted(None, stamp(1, u64::MAX), [ColumnId(u16::MAX)]);
        assert_eq!(RowClock::from_bytes(&clock.to_bytes()), Ok(clock.clone()));
        clock.deleted(stamp(1, 0));
        assert_eq!(RowClock::from_bytes(&clock.to_bytes()), Ok(clock));
    }

    #[test]
    fn damaged_records_are_refused() {
        let dead = |tail: &[u8]| {
            let mut clock = RowClock::inserted(None, stamp(1, 1), []);
            clock.deleted(stamp(1, 2));
            [&clock.to_bytes()[..], tail].concat()
        };
        let live = |tail: &[u8]| {
            [&RowClock::inserted(None, stamp(1, 1), []).to_bytes()[..], tail].concat()
        };
        let cases: [(Vec<u8>, &str); 13] = [
            (vec![], "its format is unknown"),
            (vec![2], "its format is unknown"),
            (vec![FORMAT], "it is cut"),
            (dead(&[1, 0, 1, 1, 1]), "a dead row has cells"),
            (live(&[1, 0, 1, 1]), "it is cut"),
            (live(&[1, 2]), "it refers to an origin that it does not name"),
            (live(&[1, 0, 0x81, 0, 1, 1]), "a number is not in its shortest form"),
            (live(&[0xff; 10]), "a number is not in its shortest form"),
            (live(&[1, 0, 1, 0]), "its columns are not in their shortest form"),
            (live(&[1, 0, 1, 2, 1, 0]), "its columns are not in their shortest form"),
            (live(&[1, 0, 1, 1, 2, 2, 0, 1, 1, 1]), "its groups are out of order"),
            (live(&[1, 0, 1, 1, 1, 1, 0, 1, 1, 2]), "two groups have the same clock"),
            (live(&[1, 0, 1, 1, 3, 2, 0, 1, 1, 2]), "a column is in two groups"),
        ];
        for (bytes, error) in cases {
            assert_eq!(RowClock::from_bytes(&bytes), Err(RecordError(error)), "{bytes:02x?}");
        }
        let twice = live(&[&[1, 1][..], &stamp(1, 1).origin.to_bytes(), &[1, 1, 1]].concat());
        assert_eq!(RowClock::from_bytes(&twice), Err(RecordError("it names an origin twice")));
        let wide = live(&[1, 0, 1, 0x81, 0x40]);
        assert_eq!(RowClock::from_bytes(&wide), Err(RecordError("it has too many columns")));
    }

    proptest! {
        #[test]
        fn a_clock_survives_its_bytes(changes in changes()) {
            if let Some(clock) = State::of(Class::Shared, &changes).clock {
                prop_assert_eq!(RowClock::from_bytes(&clock.to_bytes()), Ok(clock));
            }
        }

        #[test]
        fn whatever_is_read_is_written_the_same_way(
            changes in changes(),
            place in any::<prop::sample::Index>(),
            byte in 0..5_u8,
            cut in any::<bool>(),
        ) {
            if let Some(clock) = State::of(Class::Shared, &changes).clock {
                let mut bytes = clock.to_bytes();
                let place = place.index(bytes.len());
                bytes[place] = byte;
                if cut {
                    bytes.truncate(place);
                }
                if let Ok(read) = RowClock::from_bytes(&bytes) {
                    prop_assert_eq!(read.to_bytes(), bytes);
                }
            }
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = RowClock::from_bytes(&[&[FORMAT][..], &bytes].concat());
        }
    }
}
