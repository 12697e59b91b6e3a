//! The common question, read where it lies: one name, class IN, and at most an OPT record without options.

use crate::dns::wire::HEADER_BYTES;

/// An OPT record without options.
const OPT_BYTES: usize = 11;
const OPT: [u8; 3] = [0, 0, 41];
/// Type and class.
const TAIL_BYTES: usize = 4;

/// A question of the common form.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'p> {
    pub id: [u8; 2],
    pub is_recursion_desired: bool,
    pub is_checking_disabled: bool,
    /// Name, type and class, as they came.
    pub question: &'p [u8],
    /// The longest reply over UDP that the client takes, where it speaks EDNS.
    pub payload_bytes_max: Option<u16>,
}

impl<'p> Plain<'p> {
    /// Reads it; `None`: it is of another form, and may be anything.
    pub fn read(packet: &'p [u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = packet.first_chunk()?;
        // RD apart: a question, of the usual kind, neither an answer nor a part of one.
        let is_question = header[2] & 0xfe == 0 && header[3] & 0x8f == 0;
        let counts = [0, 1, 0, 0, 0, 0, 0];
        if !is_question || header[4..11] != counts || header[11] > 1 {
            return None;
        }
        let mut at = HEADER_BYTES;
        loop {
            match *packet.get(at)? {
                0 => break,
                length @ 1..0x40 => at += 1 + usize::from(length),
                _ => return None,
            }
        }
        let end = at + 1 + TAIL_BYTES;
        // The name is within 255 bytes, its last one included.
        if at - HEADER_BYTES >= 255 || packet.get(end - 2..end)? != [0, 1] {
            return None;
        }
        let payload_bytes_max = match (header[11], &packet[end..]) {
            (0, []) => None,
            (1, opt) if opt.len() == OPT_BYTES => Some(Self::read_opt(opt)?),
            _ => return None,
        };
        Some(Self {
            id: [header[0], header[1]],
            is_recursion_desired: header[2] & 0x01 != 0,
            is_checking_disabled: header[3] & 0x10 != 0,
            question: &packet[HEADER_BYTES..end],
            payload_bytes_max,
        })
    }

    fn read_opt(opt: &[u8]) -> Option<u16> {
        let is_plain = opt[..3] == OPT && opt[5] == 0 && opt[6] == 0 && opt[9..] == [0, 0];
        is_plain.then(|| u16::from_be_bytes([opt[3], opt[4]]))
    }
}
