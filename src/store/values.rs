//! Values on their way into SQLite and out of it, and the one check that decides what a value may
//! be: it holds for local writes and for what arrives alike.

use std::borrow::Cow;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

use super::limits::VALUE_BYTES_MAX;
use crate::types::Value;

/// Why a value cannot be replicated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadValue {
    #[error("a text is not valid UTF-8")]
    NotUtf8,
    #[error("a value has {0} bytes; the largest allowed has {VALUE_BYTES_MAX}")]
    TooLong(usize),
    #[error("SQLite did not hand out a value (code {0})")]
    Unreadable(i32),
}

/// A value bound to a parameter, without a copy.
pub struct Bound<'a>(pub &'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Blob(bytes) => ValueRef::Blob(bytes),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Real(number) => ValueRef::Real(*number),
            Value::Integer(number) => ValueRef::Integer(*number),
        }))
    }
}

/// Reads a value of any size; only its text is checked.
pub fn read(value: ValueRef<'_>) -> Result<Value, BadValue> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
        ValueRef::Text(bytes) => {
            Value::Text(std::str::from_utf8(bytes).map_err(|_| BadValue::NotUtf8)?.to_owned())
        }
        ValueRef::Real(number) => Value::real(number),
        ValueRef::Integer(number) => Value::Integer(number),
    })
}

/// Reads a value that is shown to a person or a program: a text that is not UTF-8 is repaired.
pub fn show(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Text(bytes) => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
        other => read(other).unwrap_or_default(),
    }
}

/// Tells whether a value may be replicated.
pub fn check(value: &Value) -> Result<(), BadValue> {
    let bytes = value.bytes();
    if bytes > VALUE_BYTES_MAX { Err(BadValue::TooLong(bytes)) } else { Ok(()) }
}

/// Quotes a name for SQL: any name, whatever is in it.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text for a message: short enough for one line.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 80;
    match text.char_indices().nth(CHARS_MAX) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]).into(),
    }
}
