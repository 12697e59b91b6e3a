//! A row's clock as bytes: the one record that a storage keeps beside each row.
//!
//! ```text
//! record = life length, stamp, group*            a number is a varint: 7 bits a byte, low first
//! group  = twice the count, columns              its stamp is the life's
//!        | twice the count and one, stamp, columns    to the end of the record
//! stamp  = origin's number, version
//! columns = length in bytes, then a bit for each column number, low first, the last byte not 0
//! ```
//!
//! The storage chooses the numbers of origins, as it does those of columns; neither leaves it.
//! There is one way to write a clock, and only that one is read. A row that was written in one
//! piece takes some 9 bytes.

use super::change::{Life, Stamp};
use super::merge::CellClock;
use super::row::{ColumnId, Group, RowClock};
use crate::types::{Origin, Version};

/// The greatest count that a record can say. Nobody comes near it (see
/// [`COUNT_MAX`](super::row::COUNT_MAX)).
const COUNT_MAX: u64 = u64::MAX >> 1;

/// The bytes are not a row's clock: the database is damaged, or from a newer release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a row's clock cannot be read: {0}")]
pub struct RecordError(&'static str);

impl RowClock {
    /// Returns the clock as bytes; equal clocks are equal bytes as long as `number` gives each
    /// origin the same number.
    pub fn to_bytes(&self, mut number: impl FnMut(Origin) -> u64) -> Vec<u8> {
        let mut writer = Writer { bytes: Vec::with_capacity(16) };
        let life = self.life();
        writer.number(life.length);
        writer.stamp(life.stamp, &mut number);
        for group in self.groups() {
            let CellClock { count, stamp } = group.clock;
            let is_lifes = stamp == life.stamp;
            writer.number(count.min(COUNT_MAX) << 1 | u64::from(!is_lifes));
            if !is_lifes {
                writer.stamp(stamp, &mut number);
            }
            writer.columns(&group.columns);
        }
        writer.bytes
    }

    /// Reads what [`RowClock::to_bytes`] wrote, and nothing else. `origin` returns what a number
    /// stands for.
    pub fn from_bytes(
        bytes: &[u8],
        origin: impl Fn(u64) -> Option<Origin>,
    ) -> Result<Self, RecordError> {
        let mut reader = Reader { rest: bytes, origin };
        let life = Life { length: reader.number()?, stamp: reader.stamp()? };
        let mut groups = Vec::new();
        while !reader.rest.is_empty() {
            let count = reader.number()?;
            let stamp = if count & 1 == 0 { life.stamp } else { reader.stamp()? };
            if count & 1 == 1 && stamp == life.stamp {
                return Err(RecordError("a group repeats the stamp of the life"));
            }
            let clock = CellClock { count: count >> 1, stamp };
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
    let mut clocks: Vec<_> = groups.iter().map(|group| group.clock).collect();
    clocks.sort_unstable_by_key(|clock| (clock.count, clock.stamp));
    if clocks.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(RecordError("two groups have the same clock"));
    }
    let mut columns: Vec<_> = groups.iter().flat_map(|group| &group.columns).collect();
    columns.sort_unstable();
    if columns.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(RecordError("a column is in two groups"));
    }
    Ok(())
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn number(&mut self, number: u64) {
        put_number(&mut self.bytes, number);
    }

    fn stamp(&mut self, stamp: Stamp, number: &mut impl FnMut(Origin) -> u64) {
        self.number(number(stamp.origin));
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

/// Appends a number as a varint.
pub fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a varint off the front of some bytes; `None`: there is none in its shortest form.
pub fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            // A last byte of zero says nothing: the number has a shorter form.
            return (*byte != 0 || shift == 0).then_some(number);
        }
    }
    None
}

struct Reader<'a, F> {
    rest: &'a [u8],
    origin: F,
}

impl<'a, F: Fn(u64) -> Option<Origin>> Reader<'a, F> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(RecordError("it is cut"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, RecordError> {
        if self.rest.is_empty() {
            return Err(RecordError("it is cut"));
        }
        take_number(&mut self.rest).ok_or(RecordError("a number is not in its shortest form"))
    }

    fn stamp(&mut self) -> Result<Stamp, RecordError> {
        let number = self.number()?;
        let origin = (self.origin)(number);
        let origin = origin.ok_or(RecordError("it refers to an origin that is not known"))?;
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

    /// Origins are numbered by their nodes, and further epochs after all of them.
    fn number(origin: Origin) -> u64 {
        (origin.epoch.0 - 1) << 8 | u64::from(origin.node.0[0])
    }

    fn origin(number: u64) -> Option<Origin> {
        let node = number.to_le_bytes()[0];
        let epoch = Epoch((number >> 8) + 1);
        (node != 0).then(|| Origin { epoch, ..stamp(node, 0).origin })
    }

    fn write(clock: &RowClock) -> Vec<u8> {
        clock.to_bytes(number)
    }

    fn read(bytes: &[u8]) -> Result<RowClock, RecordError> {
        RowClock::from_bytes(bytes, origin)
    }

    #[test]
    fn a_record_has_golden_bytes() {
        let mut clock = RowClock::inserted(None, stamp(7, 300), columns(0..9));
        clock.updated(stamp(8, 1), columns(0..1));
        let golden = [1, 7, 0xac, 2, 5, 8, 1, 1, 0b1, 2, 2, 0b1111_1110, 0b1];
        assert_eq!(write(&clock), golden);
        assert_eq!(read(&golden), Ok(clock));
    }

    #[test]
    fn a_row_written_in_one_piece_takes_few_bytes() {
        let clock = RowClock::inserted(None, stamp(7, 1_000_000), columns(2..13));
        assert_eq!(write(&clock).len(), 9);
    }

    #[test]
    fn extremes_survive() {
        let mut clock = RowClock::inserted(None, stamp(1, u64::MAX), [ColumnId(u16::MAX)]);
        assert_eq!(read(&write(&clock)), Ok(clock.clone()));
        clock.deleted(stamp(1, 0));
        assert_eq!(read(&write(&clock)), Ok(clock));
    }

    #[test]
    fn damaged_records_are_refused() {
        let dead = |tail: &[u8]| {
            let mut clock = RowClock::inserted(None, stamp(1, 1), []);
            clock.deleted(stamp(1, 2));
            [&write(&clock)[..], tail].concat()
        };
        let live =
            |tail: &[u8]| [&write(&RowClock::inserted(None, stamp(1, 1), []))[..], tail].concat();
        let cases: [(Vec<u8>, &str); 14] = [
            (vec![], "it is cut"),
            (vec![1], "it is cut"),
            (vec![1, 0, 1], "it refers to an origin that is not known"),
            (dead(&[2, 1, 1]), "a dead row has cells"),
            (live(&[2, 1]), "it is cut"),
            (live(&[3, 1]), "it is cut"),
            (live(&[3, 1, 1, 1, 1]), "a group repeats the stamp of the life"),
            (live(&[3, 1, 0x81, 0, 1, 1]), "a number is not in its shortest form"),
            (live(&[0xff; 10]), "a number is not in its shortest form"),
            (live(&[2, 0]), "its columns are not in their shortest form"),
            (live(&[2, 2, 1, 0]), "its columns are not in their shortest form"),
            (live(&[2, 1, 2, 4, 1, 1]), "its groups are out of order"),
            (live(&[2, 1, 1, 2, 1, 2]), "two groups have the same clock"),
            (live(&[2, 1, 3, 4, 1, 2]), "a column is in two groups"),
        ];
        for (bytes, error) in cases {
            assert_eq!(read(&bytes), Err(RecordError(error)), "{bytes:02x?}");
        }
        let wide = live(&[2, 0x81, 0x40]);
        assert_eq!(read(&wide), Err(RecordError("it has too many columns")));
    }

    proptest! {
        #[test]
        fn a_clock_survives_its_bytes(changes in changes()) {
            if let Some(clock) = State::of(Class::Shared, &changes).clock {
                prop_assert_eq!(read(&write(&clock)), Ok(clock));
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
                let mut bytes = write(&clock);
                let place = place.index(bytes.len());
                bytes[place] = byte;
                if cut {
                    bytes.truncate(place);
                }
                if let Ok(read) = read(&bytes) {
                    prop_assert_eq!(write(&read), bytes);
                }
            }
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&bytes);
        }
    }
}
