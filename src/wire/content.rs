//! Looks at rows and what was seen as bytes: names and stamps stand once for all rows.

use super::codec::{DecodeError, Reader, Writer};
use crate::crdt::change::{Key, Life, Name, Stamp};
use crate::crdt::content::{Mark, Range, RowState, Seen, Stretch};
use crate::crdt::merge::CellClock;
use crate::types::Origin;

/// The shortest elements on the wire, by which a list's length is judged before it is read.
const RANGE_BYTES_MIN: usize = 1 + 8;
const NAME_BYTES_MIN: usize = 2;
const STAMP_BYTES_MIN: usize = Origin::BYTES + 1;
const ROW_BYTES_MIN: usize = 4;
const CELL_BYTES_MIN: usize = 4;

/// How many ranges one look has at most: nobody asks about half as many.
const RANGES_MAX: usize = 4_096;

pub(super) fn write_mark(writer: &mut Writer, mark: Mark) {
    writer.raw(&mark.heads.to_be_bytes());
    writer.raw(&mark.fingerprint.to_be_bytes());
}

pub(super) fn read_mark(reader: &mut Reader<'_>) -> Result<Mark, DecodeError> {
    let heads = u64::from_be_bytes(reader.array()?);
    Ok(Mark { heads, fingerprint: u64::from_be_bytes(reader.array()?) })
}

pub(super) fn write_stretch(writer: &mut Writer, stretch: &Stretch) {
    writer.bytes(stretch.table.as_bytes());
    writer.bytes(&stretch.after);
    writer.count(stretch.ranges.len());
    for range in &stretch.ranges {
        write_end(writer, range.to.as_ref());
        writer.raw(&range.hash.to_be_bytes());
    }
}

pub(super) fn read_stretch(reader: &mut Reader<'_>) -> Result<Stretch, DecodeError> {
    let (table, after) = (reader.name()?, reader.key()?);
    let ranges = reader.list(RANGE_BYTES_MIN, |reader| {
        Ok(Range { to: read_end(reader)?, hash: u64::from_be_bytes(reader.array()?) })
    })?;
    if ranges.len() > RANGES_MAX {
        return Err(DecodeError::Impossible("a look at more than 4,096 ranges"));
    }
    let mut last = Some(&after);
    for range in &ranges {
        let rises = last.is_some_and(|last| range.to.as_ref().is_none_or(|to| to > last));
        if !rises {
            return Err(DecodeError::Impossible("ranges do not follow each other"));
        }
        last = range.to.as_ref();
    }
    Ok(Stretch { table, after, ranges })
}

/// No key is empty, so an empty one stands for none.
fn write_end(writer: &mut Writer, key: Option<&Key>) {
    writer.bytes(key.map_or(&[], |key| key));
}

fn read_end(reader: &mut Reader<'_>) -> Result<Option<Key>, DecodeError> {
    Ok(Some(reader.key()?).filter(|key| !key.is_empty()))
}

pub(super) fn write_seen(writer: &mut Writer, seen: &Seen) {
    write_mark(writer, seen.mark);
    writer.count(seen.looked);
    writer.count(seen.differing.len());
    seen.differing.iter().for_each(|index| writer.varint(u64::from(*index)));
    write_end(writer, seen.cut.as_ref());
    let columns = sorted(seen.rows.iter().flat_map(|row| row.cells.iter().map(|cell| &cell.0)));
    let stamps: Vec<Stamp> = seen.rows.iter().flat_map(RowState::stamps).collect();
    let stamps = sorted(&stamps);
    writer.count(columns.len());
    columns.iter().for_each(|name| writer.bytes(name.as_bytes()));
    writer.count(stamps.len());
    for stamp in &stamps {
        writer.origin(stamp.origin);
        writer.varint(stamp.version.0);
    }
    let stamp_at = |stamp: Stamp| stamps.partition_point(|other| **other < stamp) as u64;
    writer.count(seen.rows.len());
    for row in &seen.rows {
        writer.bytes(&row.key);
        writer.varint(row.life.length);
        writer.varint(stamp_at(row.life.stamp));
        writer.count(row.cells.len());
        for (column, clock, value) in &row.cells {
            writer.varint(columns.partition_point(|other| *other < column) as u64);
            writer.varint(clock.count);
            writer.varint(stamp_at(clock.stamp));
            writer.value(value);
        }
    }
}

fn sorted<'a, T: Ord>(all: impl IntoIterator<Item = &'a T>) -> Vec<&'a T> {
    let mut all: Vec<&T> = all.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    all
}

pub(super) fn read_seen(reader: &mut Reader<'_>) -> Result<Seen, DecodeError> {
    let mark = read_mark(reader)?;
    let looked = usize::try_from(reader.number()?).map_err(|_| DecodeError::Short)?;
    let differing = reader.list(1, |reader| {
        u16::try_from(reader.number()?).map_err(|_| DecodeError::Number("a range above 16 bits"))
    })?;
    let cut = read_end(reader)?;
    let columns = reader.list(NAME_BYTES_MIN, Reader::name)?;
    let stamps = reader.list(STAMP_BYTES_MIN, |reader| {
        Ok(Stamp { origin: reader.origin()?, version: reader.version()? })
    })?;
    let rows = reader.list(ROW_BYTES_MIN, |reader| read_row(reader, &columns, &stamps))?;
    Ok(Seen { mark, looked, differing, rows, cut })
}

fn read_row(
    reader: &mut Reader<'_>,
    columns: &[Name],
    stamps: &[Stamp],
) -> Result<RowState, DecodeError> {
    let key = reader.key()?;
    let life = Life { length: reader.number()?, stamp: *pick(reader, stamps)? };
    let cells = reader.list(CELL_BYTES_MIN, |reader| {
        let column = Name::clone(pick(reader, columns)?);
        let clock = CellClock { count: reader.number()?, stamp: *pick(reader, stamps)? };
        Ok((column, clock, reader.value()?))
    })?;
    if key.is_empty() || life.length == 0 || !(life.is_alive() || cells.is_empty()) {
        return Err(DecodeError::Impossible("a row that does not live has cells"));
    }
    Ok(RowState { key, life, cells })
}

fn pick<'l, T>(reader: &mut Reader<'_>, list: &'l [T]) -> Result<&'l T, DecodeError> {
    let index = usize::try_from(reader.number()?).ok();
    index.and_then(|index| list.get(index)).ok_or(DecodeError::Impossible("a number names nothing"))
}
