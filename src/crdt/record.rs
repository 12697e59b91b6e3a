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
//! piece takes about 33 bytes: an origin, four small numbers and a bit for each column.

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
