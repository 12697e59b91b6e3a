//! Frames on a stream: a length as four big-endian bytes, then that many bytes of one message.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::wire::{Message, encode};

/// The greatest changeset that a node may write, in encoded bytes, and with it the greatest frame.
/// A commit travels whole, and a receiver holds a few frames per peer in memory.
pub const CHANGESET_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a message may add around the greatest changeset.
pub const ENVELOPE_BYTES_MAX: usize = 1024;

/// The greatest message in a frame. A longer one closes the stream before a byte of it is read.
pub const FRAME_BYTES_MAX: usize = CHANGESET_BYTES_MAX + ENVELOPE_BYTES_MAX;

/// The length in front of each frame.
const LENGTH_BYTES: usize = 4;

/// Why a stream cannot be read on. Its sender does not keep to the rules: close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame's length is above [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is above the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// The frame is empty.
    #[error("a frame is empty")]
    Empty,
}

/// Puts a frame around a message.
pub fn encode_frame(message: &Message) -> Bytes {
    let body = encode(message);
    debug_assert!(body.len() <= FRAME_BYTES_MAX, "the replica holds pieces to the limit");
    let mut frame = BytesMut::with_capacity(LENGTH_BYTES + body.len());
    frame.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    frame.put_slice(&body);
    frame.freeze()
}

/// Cuts a stream into frames, however the bytes come in.
///
/// Read into [`FrameReader::buffer_mut`], then take frames until there is none. The buffer holds
/// at most one frame and what one read brought with it.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    /// Returns the buffer that the stream's bytes are appended to.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Takes the next frame's message off the stream; `None`: its bytes are not all there yet.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 {
            return Err(FrameError::Empty);
        }
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Tells whether the stream may end here: between two frames.
    pub fn is_between_frames(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Origin, Version};
    use crate::wire::{Neighbour, decode};

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let messages = [
            Message::Neighbour(Neighbour::Accepted),
            Message::Hello { origin: Origin::default(), head: Version(3), era: 1, asks: false },
            Message::Heads(Vec::new()),
        ];
        let stream: Vec<u8> = messages.iter().flat_map(encode_frame).collect();
        for step in 1..stream.len() {
            let mut reader = FrameReader::default();
            let mut read = Vec::new();
            for bytes in stream.chunks(step) {
                reader.buffer_mut().extend_from_slice(bytes);
                while let Some(frame) = reader.next_frame().unwrap() {
                    read.push(decode(&frame).unwrap());
                }
            }
            assert_eq!(read, messages, "cut into {step} bytes");
            assert!(reader.is_between_frames());
        }
    }

    #[test]
    fn a_frame_is_written_so() {
        let frame = encode_frame(&Message::Neighbour(Neighbour::Refused));
        assert_eq!(frame[..], [0, 0, 0, 3, 1, 3, 3]);
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_by_its_length_alone() {
        let mut reader = FrameReader::default();
        reader.buffer_mut().extend_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(reader.next_frame(), Err(FrameError::TooLong(u32::MAX as usize)));
    }
}
