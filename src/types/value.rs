//! SQLite's five kinds of value, in the order that decides a merge.

use std::cmp::Ordering;
use std::fmt;

/// A value as SQLite stores it.
///
/// The order is total and decides between two concurrent writes of one cell: by storage class
/// first (NULL < BLOB < TEXT < REAL < INTEGER), then bytes bytewise and numbers numerically within
/// their class. An integer 1 is therefore larger than a real 9.5.
#[derive(Clone, Debug, Default)]
pub enum Value {
    #[default]
    Null,
    Blob(Vec<u8>),
    Text(String),
    /// Never NaN: SQLite stores NaN as NULL, and so does [`Value::real`].
    Real(f64),
    Integer(i64),
}

impl Value {
    /// Returns a real, or NULL for NaN, which SQLite cannot store; -0.0 becomes 0.0 as it does
    /// in SQLite's storage.
    pub fn real(number: f64) -> Self {
        if number.is_nan() { Self::Null } else { Self::Real(number + 0.0) }
    }

    /// Returns the text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Blob(_) | Self::Real(_) | Self::Integer(_) => None,
        }
    }

    /// Returns the integer, if it is one.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            Self::Null | Self::Blob(_) | Self::Real(_) | Self::Text(_) => None,
        }
    }

    /// Returns how many bytes the value occupies on the wire, but for its header.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Blob(bytes) => bytes.len(),
            Self::Text(text) => text.len(),
            Self::Real(_) | Self::Integer(_) => 8,
        }
    }

    fn class(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Blob(_) => 1,
            Self::Text(_) => 2,
            Self::Real(_) => 3,
            Self::Integer(_) => 4,
        }
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Blob(a), Self::Blob(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Self::Real(a), Self::Real(b)) => a.total_cmp(b),
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (a, b) => a.class().cmp(&b.class()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Integer(i64::from(truth))
    }
}

/// The value as an SQL literal would show it: for logs and test output.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Blob(bytes) => {
                f.write_str("x'")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str("'")
            }
            Self::Text(text) => write!(f, "'{}'", text.replace('\'', "''")),
            Self::Real(number) => write!(f, "{number:?}"),
            Self::Integer(number) => number.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_order_by_class_and_then_within_it() {
        let ascending = [
            Value::Null,
            Value::Blob(vec![]),
            Value::Blob(vec![0xff]),
            Value::from(""),
            Value::from("Z"),
            Value::from("a"),
            Value::from("ab"),
            Value::Real(f64::NEG_INFINITY),
            Value::Real(9.5),
            Value::Integer(i64::MIN),
            Value::Integer(1),
        ];
        assert!(ascending.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn what_sqlite_cannot_store_never_becomes_a_real() {
        assert_eq!(Value::real(f64::NAN), Value::Null);
        assert_eq!(Value::real(-0.0).to_string(), "0.0");
    }
}
