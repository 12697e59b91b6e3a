//! What a schema may take. Whatever goes beyond it is refused where somebody asks for it, and kept
//! aside where another node's rows say it: by every node alike, so nothing here is a time.

use rusqlite::ErrorCode;

/// The most tables, those that every node has not counted among another node's.
pub(super) const TABLES_MAX: usize = 1_000;

/// The most indexes of one table. Each row that is written is written to all of them.
pub(super) const INDEXES_MAX: usize = 64;

/// The longest definition of one column or index, in bytes.
pub(super) const DEFINITION_BYTES_MAX: usize = 16 << 10;

/// The longest definitions of all columns of a table together, in bytes, with their names: the
/// writer takes no statement of more than 64 KiB, and names may double in quotes.
pub(super) const TABLE_BYTES_MAX: usize = 32 << 10;

/// The longest definitions of all tables and indexes together, in bytes.
pub(super) const SCHEMA_BYTES_MAX: usize = 4 << 20;

/// The longest schema file, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 4 << 20;

/// The largest text or blob that an expression may make of a blank row, in bytes; also the longest
/// statement that makes a table, comments included.
pub(super) const LENGTH_MAX: usize = 256 << 10;

/// The most steps of SQLite's virtual machine for one statement of a file, and for holding one
/// table to the rules.
pub(super) const STEPS_MAX: u64 = 10_000_000;

/// Every how many steps they are counted.
pub(super) const STEPS_AT_ONCE: std::ffi::c_int = 100;

/// How often the columns of a table of which not all go together are tried one after the other.
pub(super) const ROUNDS_MAX: usize = 4;

pub(super) const EXCEEDED: &str =
    "its expressions take more steps, or make longer values, than a schema may";

/// Tells whether SQLite gave up at one of these limits.
pub(super) fn exceeds(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::OperationInterrupted | ErrorCode::TooBig))
}
