//! Primary keys as bytes that sort as the keys do, and back.
//!
//! A key is its columns one after the other, and a column is a tag and what belongs to it:
//!
//! | tag | value | bytes after the tag |
//! |---|---|---|
//! | 01 | NULL | none |
//! | 02 | blob | its bytes, each 00 written as 00 FF, then 00 01 |
//! | 03 | text | as a blob, of UTF-8 |
//! | 04 | real | 8, big-endian: all bits flipped where the sign is set, else only the sign |
//! | 05 | integer | 8, big-endian, the sign bit flipped |
//!
//! Tags follow the order of [`Value`]'s classes, so the bytes of two keys compare as the tuples
//! do. There is exactly one way to write a key and only that one is read: equal keys are equal
//! bytes on every node.
//!
//! Corrosion packs keys too, but in another way (a count of columns, then lengths before values).
//! That form is shorter and does not sort, so a range of keys would not be a range of bytes. The
//! two are not exchanged anywhere, and neither can be read as the other.

use super::change::Key;
use crate::types::Value;

/// The most columns a primary key may have. Keys have two or three; the limit keeps hostile ones
/// from costing more than their bytes.
pub const KEY_COLUMNS_MAX: usize = 64;

/// The longest packed key in bytes: room for 64 columns of 1 KiB. Writers refuse longer ones and
/// receivers leave them out, so a key always fits into a frame beside its row.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

const NULL: u8 = 1;
const BLOB: u8 = 2;
const TEXT: u8 = 3;
const REAL: u8 = 4;
const INTEGER: u8 = 5;

/// After a byte 00 of the value itself. Greater than [`END`], so that a value sorts after every
/// one that it begins with.
const ESCAPED: u8 = 0xff;
/// After a byte 00 that ends the value.
const END: u8 = 1;

/// Why a key cannot be packed or unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a primary key has from 1 to {KEY_COLUMNS_MAX} columns")]
    Columns,
    #[error("a primary key is longer than {KEY_BYTES_MAX} bytes")]
    TooLong,
    #[error("a primary key is cut off")]
    Truncated,
    #[error("a primary key has a column of unknown kind {0}")]
    Tag(u8),
    #[error("a text in a primary key is not UTF-8")]
    Utf8,
    #[error("a value in a primary key is not written in the one right way")]
    NotCanonical,
}

/// Packs a key. Reals that SQLite cannot store become what it stores in their place: NaN is NULL
/// and -0.0 is 0.0.
pub fn pack(columns: &[Value]) -> Result<Key, KeyError> {
    pack_all(columns)
}

/// Packs a key whose columns are not side by side: see [`pack`].
pub fn pack_all<'a>(
    columns: impl IntoIterator<Item = &'a Value, IntoIter: ExactSizeIterator + Clone>,
) -> Result<Key, KeyError> {
    let columns = columns.into_iter();
    if columns.len() == 0 || columns.len() > KEY_COLUMNS_MAX {
        return Err(KeyError::Columns);
    }
    let mut bytes = Vec::with_capacity(columns.clone().map(|value| value.bytes() + 3).sum());
    for value in columns {
        pack_value(&mut bytes, value);
    }
    if bytes.len() > KEY_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    Ok(bytes.into())
}

fn pack_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => bytes.push(NULL),
        Value::Blob(blob) => pack_bytes(bytes, BLOB, blob),
        Value::Text(text) => pack_bytes(bytes, TEXT, text.as_bytes()),
        Value::Real(number) if number.is_nan() => bytes.push(NULL),
        Value::Real(number) => {
            bytes.push(REAL);
            // Adding zero turns -0.0 into 0.0.
            bytes.extend_from_slice(&flip_real((number + 0.0).to_bits()).to_be_bytes());
        }
        Value::Integer(number) => {
            bytes.push(INTEGER);
            bytes.extend_from_slice(&flip_integer(*number).to_be_bytes());
        }
    }
}

fn pack_bytes(bytes: &mut Vec<u8>, tag: u8, value: &[u8]) {
    bytes.push(tag);
    for byte in value {
        bytes.push(*byte);
        if *byte == 0 {
            bytes.push(ESCAPED);
        }
    }
    bytes.extend_from_slice(&[0, END]);
}

/// Unpacks what [`pack`] made, and nothing else.
pub fn unpack(bytes: &[u8]) -> Result<Vec<Value>, KeyError> {
    if bytes.len() > KEY_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    let mut rest = bytes;
    let mut columns = Vec::new();
    while let Some((tag, after)) = rest.split_first() {
        if columns.len() == KEY_COLUMNS_MAX {
            return Err(KeyError::Columns);
        }
        rest = after;
        columns.push(unpack_value(*tag, &mut rest)?);
    }
    if columns.is_empty() { Err(KeyError::Columns) } else { Ok(columns) }
}

fn unpack_value(tag: u8, rest: &mut &[u8]) -> Result<Value, KeyError> {
    match tag {
        NULL => Ok(Value::Null),
        BLOB => Ok(Value::Blob(unpack_bytes(rest)?)),
        TEXT => String::from_utf8(unpack_bytes(rest)?).map(Value::Text).map_err(|_| KeyError::Utf8),
        REAL => {
            let number = f64::from_bits(unflip_real(unpack_word(rest)?));
            // NaN and -0.0 have another form already.
            let is_canonical = !number.is_nan() && (number != 0.0 || number.is_sign_positive());
            if is_canonical { Ok(Value::Real(number)) } else { Err(KeyError::NotCanonical) }
        }
        INTEGER => Ok(Value::Integer(unflip_integer(unpack_word(rest)?))),
        unknown => Err(KeyError::Tag(unknown)),
    }
}

fn unpack_bytes(rest: &mut &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut value = Vec::new();
    loop {
        let zero = rest.iter().position(|byte| *byte == 0).ok_or(KeyError::Truncated)?;
        value.extend_from_slice(&rest[..zero]);
        let escape = *rest.get(zero + 1).ok_or(KeyError::Truncated)?;
        *rest = &rest[zero + 2..];
        match escape {
            END => return Ok(value),
            ESCAPED => value.push(0),
            _ => return Err(KeyError::NotCanonical),
        }
    }
}

fn unpack_word(rest: &mut &[u8]) -> Result<u64, KeyError> {
    let (word, after) = rest.split_first_chunk().ok_or(KeyError::Truncated)?;
    *rest = after;
    Ok(u64::from_be_bytes(*word))
}

const SIGN: u64 = 1 << 63;

fn flip_integer(number: i64) -> u64 {
    number.cast_unsigned() ^ SIGN
}

fn unflip_integer(word: u64) -> i64 {
    (word ^ SIGN).cast_signed()
}

fn flip_real(bits: u64) -> u64 {
    if bits & SIGN == 0 { bits | SIGN } else { !bits }
}

fn unflip_real(word: u64) -> u64 {
    if word & SIGN == 0 { !word } else { word & !SIGN }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Values from a small alphabet, so that keys share beginnings, next to values from all over.
    pub(crate) fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            (-2..3_i64).prop_map(Value::Integer),
            any::<f64>().prop_map(Value::real),
            prop::sample::select(vec![0.0, -1.5, 1.5, f64::INFINITY, f64::NEG_INFINITY])
                .prop_map(Value::real),
            prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 254, 255]), 0..5)
                .prop_map(Value::Blob),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Blob),
            "[\0\x01ab]{0,4}".prop_map(Value::Text),
            any::<String>().prop_map(Value::Text),
        ]
    }

    fn key() -> impl Strategy<Value = Vec<Value>> {
        prop::collection::vec(value(), 1..4)
    }

    proptest! {
        #[test]
        fn a_key_survives_its_bytes(key in key()) {
            prop_assert_eq!(unpack(&pack(&key).unwrap()).unwrap(), key);
        }

        #[test]
        fn packed_keys_sort_as_the_keys_do(a in key(), b in key()) {
            prop_assert_eq!(pack(&a).unwrap().cmp(&pack(&b).unwrap()), a.cmp(&b));
        }

        #[test]
        fn whatever_is_read_is_written_the_same_way(
            bytes in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 3, 4, 5, 128, 255]), 0..30),
        ) {
            if let Ok(key) = unpack(&bytes) {
                prop_assert_eq!(&*pack(&key).unwrap(), &bytes[..]);
            }
        }

        #[test]
        fn any_other_length_is_another_key_or_none(key in key(), cut in 1..9_usize) {
            let bytes = pack(&key).unwrap();
            let part = &bytes[..bytes.len().saturating_sub(cut)];
            prop_assert_ne!(unpack(part).ok(), Some(key));
        }
    }

    #[test]
    fn keys_sort_column_by_column() {
        let ascending = [
            vec![Value::Null],
            vec![Value::Null, Value::Null],
            vec![Value::Blob(vec![])],
            vec![Value::Blob(vec![0])],
            vec![Value::Blob(vec![0, 0])],
            vec![Value::Blob(vec![0, 1])],
            vec![Value::Blob(vec![1])],
            vec![Value::from("")],
            vec![Value::from(""), Value::from("z")],
            vec![Value::from("\0")],
            vec![Value::from("a"), Value::from("z")],
            vec![Value::from("ab"), Value::from("a")],
            vec![Value::Real(f64::NEG_INFINITY)],
            vec![Value::Real(-1.0)],
            vec![Value::Real(0.0)],
            vec![Value::Real(1.0)],
            vec![Value::Integer(i64::MIN)],
            vec![Value::Integer(-1)],
            vec![Value::Integer(0)],
            vec![Value::Integer(i64::MAX)],
        ];
        let packed: Vec<Key> = ascending.iter().map(|key| pack(key).unwrap()).collect();
        assert!(packed.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_key_has_golden_bytes() {
        let key = [Value::from("a\0"), Value::Integer(1), Value::Real(-1.0), Value::Null];
        let golden = b"\x03a\x00\xff\x00\x01\x05\x80\0\0\0\0\0\0\x01\x04\x40\x0f\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(&*pack(&key).unwrap(), golden);
    }

    #[test]
    fn what_sqlite_would_store_otherwise_is_packed_as_it_stores_it() {
        assert_eq!(pack(&[Value::Real(f64::NAN)]), pack(&[Value::Null]));
        assert_eq!(pack(&[Value::Real(-0.0)]), pack(&[Value::Real(0.0)]));
    }

    #[test]
    fn malformed_keys_are_refused() {
        let negative_zero = [&[REAL][..], &flip_real((-0.0_f64).to_bits()).to_be_bytes()].concat();
        let nan = [&[REAL][..], &flip_real(f64::NAN.to_bits()).to_be_bytes()].concat();
        let cases: [(&[u8], KeyError); 11] = [
            (b"", KeyError::Columns),
            (&[NULL; KEY_COLUMNS_MAX + 1], KeyError::Columns),
            (&[NULL; KEY_BYTES_MAX + 1], KeyError::TooLong),
            (b"\x00", KeyError::Tag(0)),
            (b"\x01\x06", KeyError::Tag(6)),
            (b"\x05\x80\0\0\0", KeyError::Truncated),
            (b"\x03abc", KeyError::Truncated),
            (b"\x03abc\0", KeyError::Truncated),
            (b"\x02a\0\x02\0\x01", KeyError::NotCanonical),
            (&nan, KeyError::NotCanonical),
            (&negative_zero, KeyError::NotCanonical),
        ];
        for (bytes, error) in cases {
            assert_eq!(unpack(bytes), Err(error), "{bytes:02x?}");
        }
        assert_eq!(unpack(b"\x03\xff\0\x01"), Err(KeyError::Utf8));
        // Corrosion's form of the key (1).
        assert_eq!(unpack(b"\x01\x09\x01"), Err(KeyError::Tag(9)));
    }

    #[test]
    fn keys_over_the_limits_are_not_packed() {
        assert_eq!(pack(&[]), Err(KeyError::Columns));
        assert_eq!(pack(&vec![Value::Null; KEY_COLUMNS_MAX + 1]), Err(KeyError::Columns));
        let fits = Value::Blob(vec![7; KEY_BYTES_MAX - 3]);
        assert_eq!(unpack(&pack(std::slice::from_ref(&fits)).unwrap()), Ok(vec![fits]));
        assert_eq!(pack(&[Value::Blob(vec![7; KEY_BYTES_MAX - 2])]), Err(KeyError::TooLong));
    }
}
