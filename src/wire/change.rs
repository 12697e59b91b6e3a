//! Pieces and changesets as bytes: names stand once for each table of a commit, and stamps are
//! written as their difference from the commit's own.

use std::sync::Arc;

use super::codec::{DecodeError, Reader, SHARED_BYTES, Writer};
use crate::crdt::{CellChange, Changeset, Life, Piece, RowChange, Stamp, TableChanges};
use crate::types::{Origin, Version, Wall};

/// The shortest elements on the wire, by which a list's length is judged before it is read.
const CHANGESET_BYTES_MIN: usize = 3;
const TABLE_BYTES_MIN: usize = 4;
const NAME_BYTES_MIN: usize = 2;
const ROW_BYTES_MIN: usize = 4;
const CELL_BYTES_MIN: usize = 3;

/// How a row's life is stamped, compared with the commit it travels in.
const LIFE_OF_THIS_COMMIT: u8 = 0;
const LIFE_OF_THIS_ORIGIN: u8 = 1;
const LIFE_OF_ANOTHER: u8 = 2;

/// Returns what a changeset occupies on the wire: never less than the truth, and little more.
/// A writer refuses what is above [`super::frame::CHANGESET_BYTES_MAX`]; queues count with it.
pub fn changeset_bytes(changeset: &Changeset) -> usize {
    const HEAD: usize = 30;
    const ROW: usize = 50;
    const CELL: usize = 14;
    let tables = changeset.tables.iter().map(|table| {
        let names = table.columns.iter().map(|name| name.len() + 2).sum::<usize>();
        let rows = table.rows.iter().map(|row| {
            let cells = row.cells.iter().map(|cell| CELL + cell_value_bytes(cell)).sum::<usize>();
            ROW + row.key.len() + cells
        });
        HEAD + table.table.len() + names + rows.sum::<usize>()
    });
    HEAD + tables.sum::<usize>()
}

/// Returns what a piece occupies on the wire: never less than the truth.
pub fn piece_bytes(piece: &Piece) -> usize {
    const HEAD: usize = Origin::BYTES + 30;
    HEAD + piece.changesets.iter().map(|changeset| changeset_bytes(changeset)).sum::<usize>()
}

/// An integer takes up to ten bytes as a varint, two more than in memory.
fn cell_value_bytes(cell: &CellChange) -> usize {
    cell.value.bytes() + 10
}

pub(super) fn write_piece(writer: &mut Writer, piece: &Piece) {
    writer.origin(piece.origin);
    writer.varint(piece.after.0);
    write_distance(writer, piece.after, piece.through);
    writer.count(piece.changesets.len());
    let mut previous = piece.after;
    for changeset in &piece.changesets {
        write_distance(writer, previous, changeset.stamp.version);
        previous = changeset.stamp.version;
        write_changeset(writer, changeset);
    }
}

/// Reads a piece. One that `is_cut` ends with a changeset of the version after its `through`.
pub(super) fn read_piece(reader: &mut Reader<'_>, is_cut: bool) -> Result<Piece, DecodeError> {
    let origin = reader.origin()?;
    let after = reader.version()?;
    let through = reader.version_after(after)?;
    let last = if is_cut { through.next() } else { through };
    let mut previous = after;
    let changesets = reader.list(CHANGESET_BYTES_MIN, |reader| {
        let version = reader.version_after(previous)?;
        if version == previous || version > last {
            return Err(DecodeError::Impossible("a piece's versions do not rise to its end"));
        }
        previous = version;
        reader.charge(size_of::<Changeset>() + SHARED_BYTES)?;
        read_changeset(reader, Stamp { origin, version }).map(Arc::new)
    })?;
    if is_cut && previous != last {
        return Err(DecodeError::Impossible("a piece is cut within a version that is not in it"));
    }
    Ok(Piece { origin, after, through, changesets })
}

/// A distance that went wrong is written as 0, which no reader accepts.
fn write_distance(writer: &mut Writer, from: Version, to: Version) {
    writer.varint(to.0.saturating_sub(from.0));
}

fn write_changeset(writer: &mut Writer, changeset: &Changeset) {
    writer.varint(changeset.at.0);
    writer.count(changeset.tables.len());
    for table in &changeset.tables {
        writer.bytes(table.table.as_bytes());
        writer.count(table.columns.len());
        table.columns.iter().for_each(|name| writer.bytes(name.as_bytes()));
        writer.count(table.rows.len());
        table.rows.iter().for_each(|row| write_row(writer, changeset.stamp, row));
    }
}

fn read_changeset(reader: &mut Reader<'_>, stamp: Stamp) -> Result<Changeset, DecodeError> {
    let at = Wall(reader.number()?);
    let tables = reader.list(TABLE_BYTES_MIN, |reader| {
        let table = reader.name()?;
        let columns = reader.list(NAME_BYTES_MIN, Reader::name)?;
        let rows = reader.list(ROW_BYTES_MIN, |reader| read_row(reader, stamp, columns.len()))?;
        Ok(TableChanges { table, columns, rows })
    })?;
    Ok(Changeset { stamp, at, tables })
}

fn write_row(writer: &mut Writer, stamp: Stamp, row: &RowChange) {
    writer.bytes(&row.key);
    writer.varint(row.life.length);
    let begun = row.life.stamp;
    if begun == stamp {
        writer.byte(LIFE_OF_THIS_COMMIT);
    } else if begun.origin == stamp.origin {
        writer.byte(LIFE_OF_THIS_ORIGIN);
        writer.varint(begun.version.0);
    } else {
        writer.byte(LIFE_OF_ANOTHER);
        writer.origin(begun.origin);
        writer.varint(begun.version.0);
    }
    writer.count(row.cells.len());
    for cell in &row.cells {
        writer.varint(u64::from(cell.column));
        writer.varint(cell.count);
        writer.value(&cell.value);
    }
}

fn read_row(
    reader: &mut Reader<'_>,
    stamp: Stamp,
    columns: usize,
) -> Result<RowChange, DecodeError> {
    let key = reader.key()?;
    let length = reader.number()?;
    let begun = match reader.byte()? {
        LIFE_OF_THIS_COMMIT => stamp,
        LIFE_OF_THIS_ORIGIN => Stamp { origin: stamp.origin, version: reader.version()? },
        LIFE_OF_ANOTHER => Stamp { origin: reader.origin()?, version: reader.version()? },
        _ => return Err(DecodeError::Impossible("a row's life is stamped in no known way")),
    };
    let life = Life { length, stamp: begun };
    let cells = reader.list(CELL_BYTES_MIN, |reader| read_cell(reader, columns))?;
    if length == 0 || !(life.is_alive() || cells.is_empty()) {
        return Err(DecodeError::Impossible("a row that does not live has cells"));
    }
    Ok(RowChange { key, life, cells })
}

fn read_cell(reader: &mut Reader<'_>, columns: usize) -> Result<CellChange, DecodeError> {
    let column = u16::try_from(reader.number()?)
        .ok()
        .filter(|column| usize::from(*column) < columns)
        .ok_or(DecodeError::Impossible("a cell is of a column that its table does not have"))?;
    Ok(CellChange { column, count: reader.number()?, value: reader.value()? })
}
