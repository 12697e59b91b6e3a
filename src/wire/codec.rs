//! The letters of the dialect: varints, strings, values, and a reader that never panics.
//!
//! Numbers are LEB128 varints in their shortest form, signed ones zigzag. Strings and lists begin
//! with their length. A length is held against the bytes that are left before anything is
//! allocated for it, and everything allocated is charged to a budget: a message that is short on
//! the wire must not become great in memory.

use std::sync::Arc;

use super::frame::FRAME_BYTES_MAX;
use crate::crdt::{Key, Name};
use crate::types::{Epoch, Origin, Value, Version};

/// The longest name of a table or column.
pub const NAME_BYTES_MAX: usize = 512;

/// The greatest number of any kind: SQLite's integers end here, and one more is still a number.
pub const NUMBER_MAX: u64 = i64::MAX as u64;

/// What one message may occupy in memory. The greatest legal commit, 50,000 cells in 8 MiB, needs
/// about twice its bytes.
pub const DECODED_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

/// Why bytes are not a message. Nothing of it is used; whether the connection stays is the
/// shell's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A version of the protocol that this node does not speak.
    #[error("protocol version {0} is not known here")]
    UnknownVersion(u8),
    /// A kind of message that this version of the protocol does not have.
    #[error("message kind {0} is not known here")]
    UnknownKind(u8),
    /// The bytes end within something.
    #[error("the message ends too early")]
    Short,
    /// Bytes are left behind the message.
    #[error("{0} bytes are left behind the message")]
    Trailing(usize),
    /// The message would occupy more memory than [`DECODED_BYTES_MAX`].
    #[error("the message would occupy too much memory")]
    TooLarge,
    /// A number is too great, or not in its shortest form.
    #[error("a number is out of its range: {0}")]
    Number(&'static str),
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    NotUtf8,
    /// Something is well-formed but cannot be: see the text.
    #[error("{0}")]
    Impossible(&'static str),
}

/// Bytes being written. Writing cannot fail.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Returns what was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(low_bits(number) | 0x80);
            number >>= 7;
        }
        self.bytes.push(low_bits(number));
    }

    pub fn count(&mut self, count: usize) {
        self.varint(count as u64);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }

    pub fn origin(&mut self, origin: Origin) {
        self.raw(&origin.to_bytes());
    }

    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.byte(0),
            Value::Blob(bytes) => {
                self.byte(1);
                self.bytes(bytes);
            }
            Value::Text(text) => {
                self.byte(2);
                self.bytes(text.as_bytes());
            }
            Value::Real(number) => {
                self.byte(3);
                self.raw(&number.to_bits().to_be_bytes());
            }
            Value::Integer(number) => {
                self.byte(4);
                self.varint(zigzag(*number));
            }
        }
    }
}

/// Bytes being read. Each method takes what it names off the front.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// How many bytes may still be allocated.
    budget: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, budget: DECODED_BYTES_MAX }
    }

    /// Returns how many bytes were not read.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Checks that everything was read.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }

    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.raw(1)?[0])
    }

    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (front, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(front)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (front, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(*front)
    }

    /// Reads a varint of at most 64 bits, in its shortest form.
    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Number("above 64 bits"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                let is_shortest = byte != 0 || shift == 0;
                return is_shortest.then_some(number).ok_or(DecodeError::Number("overlong"));
            }
        }
        Err(DecodeError::Number("above 64 bits"))
    }

    /// Reads a number up to [`NUMBER_MAX`].
    pub fn number(&mut self) -> Result<u64, DecodeError> {
        let number = self.varint()?;
        if number > NUMBER_MAX {
            return Err(DecodeError::Number("above 63 bits"));
        }
        Ok(number)
    }

    pub fn version(&mut self) -> Result<Version, DecodeError> {
        self.number().map(Version)
    }

    /// Reads a version as its distance from an earlier one.
    pub fn version_after(&mut self, earlier: Version) -> Result<Version, DecodeError> {
        // Both are at most 63 bits, so the sum fits.
        let version = earlier.0 + self.number()?;
        if version > NUMBER_MAX {
            return Err(DecodeError::Number("a version above 63 bits"));
        }
        Ok(Version(version))
    }

    pub fn origin(&mut self) -> Result<Origin, DecodeError> {
        let origin = Origin::from_bytes(self.raw(Origin::BYTES)?).ok_or(DecodeError::Short)?;
        if origin.epoch > Epoch::MAX {
            return Err(DecodeError::Number("an epoch above 63 bits"));
        }
        Ok(origin)
    }

    /// Reads a list. `bytes_min` is what its shortest element takes on the wire.
    pub fn list<T>(
        &mut self,
        bytes_min: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.length(bytes_min)?;
        self.charge(count.saturating_mul(size_of::<T>()))?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(element(self)?);
        }
        Ok(list)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.length(1)?;
        self.raw(length)
    }

    pub fn name(&mut self) -> Result<Name, DecodeError> {
        let bytes = self.bytes()?;
        if bytes.is_empty() || bytes.len() > NAME_BYTES_MAX {
            return Err(DecodeError::Impossible("a name is empty or longer than 512 bytes"));
        }
        self.charge(bytes.len() + SHARED_BYTES)?;
        std::str::from_utf8(bytes).map(Arc::from).map_err(|_| DecodeError::NotUtf8)
    }

    pub fn key(&mut self) -> Result<Key, DecodeError> {
        let bytes = self.bytes()?;
        self.charge(bytes.len() + SHARED_BYTES)?;
        Ok(Arc::from(bytes))
    }

    pub fn value(&mut self) -> Result<Value, DecodeError> {
        match self.byte()? {
            0 => Ok(Value::Null),
            1 => self.owned().map(Value::Blob),
            2 => {
                String::from_utf8(self.owned()?).map(Value::Text).map_err(|_| DecodeError::NotUtf8)
            }
            3 => {
                let number = f64::from_bits(u64::from_be_bytes(self.array()?));
                if number.is_nan() {
                    return Err(DecodeError::Impossible("a real is not a number"));
                }
                Ok(Value::real(number))
            }
            4 => self.varint().map(|number| Value::Integer(unzigzag(number))),
            _ => Err(DecodeError::Impossible("a value is of no known kind")),
        }
    }

    /// Takes `bytes` off the budget of memory.
    pub fn charge(&mut self, bytes: usize) -> Result<(), DecodeError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(DecodeError::TooLarge)?;
        Ok(())
    }

    fn owned(&mut self) -> Result<Vec<u8>, DecodeError> {
        let bytes = self.bytes()?;
        self.charge(bytes.len())?;
        Ok(bytes.to_vec())
    }

    fn length(&mut self, bytes_min: usize) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.number()?).map_err(|_| DecodeError::Short)?;
        if count > self.rest.len() / bytes_min {
            return Err(DecodeError::Short);
        }
        Ok(count)
    }
}

/// The two counters in front of what an `Arc` shares.
pub const SHARED_BYTES: usize = 2 * size_of::<usize>();

fn low_bits(number: u64) -> u8 {
    (number & 0x7f) as u8
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(number: u64) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.varint(number);
        writer.into_bytes()
    }

    #[test]
    fn a_varint_has_one_spelling() {
        assert_eq!(written(300), [0xac, 0x02]);
        assert_eq!(written(u64::MAX).len(), 10);
        let overlong = Reader::new(&[0x80, 0x00]).varint();
        assert_eq!(overlong, Err(DecodeError::Number("overlong")));
        let wide = Reader::new(&[0xff; 10]).varint();
        assert_eq!(wide, Err(DecodeError::Number("above 64 bits")));
        assert_eq!(Reader::new(&[0x80]).varint(), Err(DecodeError::Short));
    }

    #[test]
    fn a_list_is_refused_before_it_is_allocated() {
        let mut bytes = written(NUMBER_MAX);
        bytes.extend([0; 8]);
        let list = Reader::new(&bytes).list(1, Reader::byte);
        assert_eq!(list, Err(DecodeError::Short));
    }

    #[test]
    fn what_is_short_on_the_wire_cannot_become_great_in_memory() {
        let mut bytes = written(5_000_000);
        bytes.resize(5_000_010, 0);
        let list = Reader::new(&bytes).list(1, |reader| reader.byte().map(u128::from));
        assert_eq!(list, Err(DecodeError::TooLarge));
    }

    #[test]
    fn a_real_that_sqlite_cannot_store_is_refused() {
        let mut writer = Writer::default();
        writer.value(&Value::Real(f64::NAN));
        let value = Reader::new(&writer.into_bytes()).value();
        assert_eq!(value, Err(DecodeError::Impossible("a real is not a number")));
    }

    proptest! {
        #[test]
        fn numbers_survive(number in any::<u64>(), signed in any::<i64>()) {
            prop_assert_eq!(Reader::new(&written(number)).varint(), Ok(number));
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }
    }
}
