//! What SQLite makes of a value when it stores it in a column. The writer's values have been
//! through that; what arrives from elsewhere is held to it, since a value that changes when it is
//! stored would win on one node and lose on another.

use crate::types::Value;

const NEGATIVE_ZERO: u64 = 1 << 63;

/// How a column treats values: SQLite's affinities, and the strict types that refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Affinity {
    Blob,
    Text,
    Numeric,
    Integer,
    Real,
}

impl Affinity {
    /// Derives the affinity from a column's declared type, as SQLite does.
    pub fn of(declared: &str, is_strict: bool) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if is_strict && declared == "ANY" {
            Self::Blob
        } else if has("INT") {
            Self::Integer
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Self::Text
        } else if has("BLOB") || declared.is_empty() {
            Self::Blob
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Self::Real
        } else {
            Self::Numeric
        }
    }

    /// A type that declares this affinity.
    pub fn declared(self) -> &'static str {
        match self {
            Self::Blob => "BLOB",
            Self::Text => "TEXT",
            Self::Numeric => "NUMERIC",
            Self::Integer => "INTEGER",
            Self::Real => "REAL",
        }
    }

    /// Tells whether a column of this affinity stores the value as it is.
    pub fn keeps(self, value: &Value) -> bool {
        match (self, value) {
            // SQLite has neither: it stores 0.0 and NULL.
            (_, Value::Real(number)) if number.is_nan() || number.to_bits() == NEGATIVE_ZERO => {
                false
            }
            (Self::Blob, _) | (_, Value::Null | Value::Blob(_)) => true,
            (Self::Text, Value::Text(_)) => true,
            (Self::Text, Value::Integer(_) | Value::Real(_)) => false,
            (Self::Numeric | Self::Integer | Self::Real, Value::Text(text)) => !is_number(text),
            (Self::Numeric | Self::Integer, Value::Integer(_)) => true,
            (Self::Numeric | Self::Integer, Value::Real(number)) => !is_whole(*number),
            (Self::Real, Value::Real(_)) => true,
            (Self::Real, Value::Integer(_)) => false,
        }
    }

    /// Returns the value that the pre-update hook meant: SQLite keeps a whole number of a `REAL`
    /// column as an integer, and shows it to the hook like that when a row is updated.
    pub fn seen(self, value: Value) -> Value {
        match (self, value) {
            #[expect(clippy::cast_precision_loss, reason = "SQLite makes the same conversion")]
            (Self::Real, Value::Integer(number)) => Value::Real(number as f64),
            (_, value) => value,
        }
    }
}

/// Tells whether SQLite would turn the real into an integer without loss.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "that is asked")]
fn is_whole(number: f64) -> bool {
    // The cast saturates, and the ends are where it may have.
    let whole = number as i64;
    whole as f64 == number && whole != i64::MIN && whole != i64::MAX
}

/// Tells whether the whole text is a decimal number, with spaces around it.
fn is_number(text: &str) -> bool {
    let text = text.trim_matches(|c: char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c'));
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let has_mantissa = !(whole.is_empty() && fraction.is_empty());
    let has_exponent = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && is_digits(digits)
    });
    has_mantissa && is_digits(whole) && is_digits(fraction) && has_exponent
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::values::{Bound, read};

    #[test]
    fn what_a_column_keeps_is_what_sqlite_keeps() {
        let texts = [
            "",
            " ",
            "5",
            " 5 ",
            "5.",
            ".5",
            "5.0",
            "+5",
            "-5e3",
            "5e",
            "5e+",
            "1e400",
            "0x10",
            "abc",
            "5 a",
            "\t5\n",
            ".",
            "-",
            "9223372036854775808",
            "1_000",
            "inf",
            "nan",
            "--5",
        ];
        let numbers = [
            0.0,
            5.0,
            5.5,
            -5.0,
            1e15,
            2_251_799_813_685_247.0,
            2_251_799_813_685_248.0,
            1e18,
            -1e18,
            9.3e18,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MIN_POSITIVE,
        ];
        let integers = [0, 1, -1, i64::MAX, i64::MIN];
        let mut values: Vec<Value> = texts.into_iter().map(Value::from).collect();
        values.extend(numbers.map(Value::real));
        values.extend(integers.map(Value::from));
        values.extend([Value::Null, Value::Blob(b"5".to_vec()), Value::Real(-0.0)]);

        let conn = Connection::open_in_memory().unwrap();
        for affinity in
            [Affinity::Blob, Affinity::Text, Affinity::Numeric, Affinity::Integer, Affinity::Real]
        {
            let declared = affinity.declared();
            conn.execute_batch(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t (a {declared})"))
                .unwrap();
            for value in &values {
                let stored = conn
                    .query_row("INSERT INTO t VALUES (?) RETURNING a", [Bound(value)], |row| {
                        Ok(read(row.get_ref(0)?).unwrap())
                    })
                    .unwrap();
                assert_eq!(affinity.keeps(value), stored == *value, "{declared} {value}");
            }
        }
    }

    #[test]
    fn affinities_are_derived_as_sqlite_derives_them() {
        let conn = Connection::open_in_memory().unwrap();
        for declared in [
            "",
            "INT",
            "BIGINT",
            "CHARINT",
            "VARCHAR(10)",
            "TEXT",
            "CLOB",
            "BLOB",
            "REAL",
            "FLOAT",
            "DOUBLE PRECISION",
            "FLOATING POINT",
            "NUMERIC",
            "BOOLEAN",
            "DATETIME",
            "ANY",
            "STRING",
        ] {
            conn.execute_batch(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t (a {declared})"))
                .unwrap();
            let kinds: String = conn
                .query_row(
                    "INSERT INTO t VALUES ('1'), (1), (1.0) RETURNING typeof(a)",
                    [],
                    |row| row.get(0),
                )
                .unwrap();
            let all: Vec<String> = conn
                .prepare("SELECT typeof(a) FROM t")
                .unwrap()
                .query_map([], |row| row.get(0))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            let affinity = Affinity::of(declared, false);
            let expected = match affinity {
                Affinity::Blob => ["text", "integer", "real"],
                Affinity::Text => ["text", "text", "text"],
                Affinity::Numeric | Affinity::Integer => ["integer", "integer", "integer"],
                Affinity::Real => ["real", "real", "real"],
            };
            assert_eq!(all, expected, "{declared} {kinds}");
        }
        assert_eq!(Affinity::of("ANY", true), Affinity::Blob);
    }
}
