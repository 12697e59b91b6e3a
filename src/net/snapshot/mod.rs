//! Snapshots: how a node gets another's whole database as one file, and how it is sent. What is in
//! the file, and how it is made, is not known here.
//!
//! Who comes for a snapshot is a visitor. It speaks a protocol of its own over the same port and
//! with the same certificates, on a connection that carries nothing else: it is no member yet, or
//! it is the command `tribune snapshot` beside a node that is one, under the same certificate. With
//! the greeting of a link it would take that node's place. And so the file has a window and a
//! congestion control of its own, and does not stand before anything that nodes tell each other.

mod fetch;
mod serve;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ring::digest;
use tokio::sync::Semaphore;

pub use self::fetch::{FetchError, Offer, Visit, Visitor};
pub(super) use self::serve::{is_visit, serve};

/// How long a snapshot may make no progress, on either side.
pub const STALL: Duration = Duration::from_secs(10);

/// How long a transfer may take: this, and a second for each so many bytes. A side that goes on just
/// fast enough not to be stuck holds up the other: its start, or the turn of others and the room of
/// a copy.
const TRANSFER_TIME: Duration = Duration::from_secs(60);
const TRANSFER_BYTES_PER_SECOND: u64 = 256 * 1024;

/// In which pieces the file is read and written.
const PIECE_BYTES: usize = 64 * 1024;

/// How many pieces wait between the disk and the network, on either side.
const PIECES_WAITING_MAX: usize = 16;

/// How many visitors there may be at the same time. Most of them are told to come back later, which
/// takes a moment. Beyond it a connection is closed at once.
const VISITORS_MAX: usize = 32;

/// What follows the file: a hash of it. QUIC sees to it that nothing changes on the way; this sees
/// to the disks and the programs at both ends.
const CHECKSUM_BYTES: usize = 32;

/// How long a text of another node's may be.
const TEXT_BYTES_MAX: usize = 512;

/// What a visitor asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The newest version of the tables that it can read.
    pub format_max: u32,
    /// From how many bytes on a snapshot is worth its while; 0: in any case.
    pub bytes_min: u64,
}

/// A snapshot that was made.
#[derive(Debug)]
pub struct Made {
    /// It need not have a name any more.
    pub file: File,
    pub bytes: u64,
    /// The version of its tables.
    pub format: u32,
}

/// Why none was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denial {
    /// There are only so many bytes.
    NotWorthIt { bytes: u64 },
    /// One sentence.
    Refused(String),
}

/// How far the making is, and whether anybody still waits for it.
pub struct Making<'a> {
    /// Bytes: done, and of how many.
    pub progress: &'a mut dyn FnMut(u64, u64),
    pub is_cancelled: Arc<AtomicBool>,
}

/// Makes a snapshot, on a thread that may block. One is made at a time.
pub type Maker = Arc<dyn Fn(&Request, &mut Making<'_>) -> Result<Made, Denial> + Send + Sync>;

/// Where visitors are received.
pub(super) struct Office {
    maker: OnceLock<Maker>,
    visitors: Arc<Semaphore>,
    /// Held while one is made and sent.
    turn: Arc<Semaphore>,
}

impl Default for Office {
    fn default() -> Self {
        let visitors = Arc::new(Semaphore::new(VISITORS_MAX));
        Self { maker: OnceLock::new(), visitors, turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Office {
    pub fn open(&self, maker: Maker) {
        let is_first = self.maker.set(maker).is_ok();
        assert!(is_first, "a node says once how it makes snapshots");
    }
}

impl Request {
    const TAG: u8 = 0x20;
    const VERSION: u8 = 1;
    const BYTES: usize = 14;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&[Self::TAG, Self::VERSION]);
        bytes[2..6].copy_from_slice(&self.format_max.to_be_bytes());
        bytes[6..].copy_from_slice(&self.bytes_min.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        if bytes[..2] != [Self::TAG, Self::VERSION] {
            return None;
        }
        let format_max = u32::from_be_bytes(bytes[2..6].try_into().ok()?);
        let bytes_min = u64::from_be_bytes(bytes[6..].try_into().ok()?);
        Some(Self { format_max, bytes_min })
    }
}

/// What a visitor is told: how far the making is, any number of times, and then one of the others.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    /// Bytes. 0 of 0: it has not begun.
    Making {
        done: u64,
        total: u64,
    },
    /// So many bytes follow, and their checksum.
    Snapshot {
        bytes: u64,
        format: u32,
    },
    NotWorthIt {
        bytes: u64,
    },
    /// Another visitor has the turn.
    Busy {
        retry_after: Duration,
    },
    Refused {
        why: String,
    },
}

impl Answer {
    const TAG: u8 = 0x21;
    /// Tag, kind, and the length of what follows.
    const HEAD_BYTES: usize = 4;

    fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Making { done, total } => (0, [done.to_be_bytes(), total.to_be_bytes()].concat()),
            Self::Snapshot { bytes, format } => {
                (1, [&bytes.to_be_bytes()[..], &format.to_be_bytes()].concat())
            }
            Self::NotWorthIt { bytes } => (2, bytes.to_be_bytes().to_vec()),
            Self::Busy { retry_after } => {
                let millis = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
                (3, millis.to_be_bytes().to_vec())
            }
            Self::Refused { why } => {
                let end = why.floor_char_boundary(TEXT_BYTES_MAX);
                (4, why.as_bytes()[..end].to_vec())
            }
        };
        let length = u16::try_from(body.len()).expect("no answer is longer than a text may be");
        [&[Self::TAG, kind][..], &length.to_be_bytes(), &body].concat()
    }

    /// Reads what says how long the rest is; `None`: it is no answer.
    fn decode_head(head: [u8; Self::HEAD_BYTES]) -> Option<(u8, usize)> {
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        (head[0] == Self::TAG && length <= TEXT_BYTES_MAX).then_some((head[1], length))
    }

    fn decode(kind: u8, body: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = body.get(at..at + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let short = |at: usize| {
            let bytes = body.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        Some(match kind {
            // What a later release adds behind these is passed over.
            0 => Self::Making { done: number(0)?, total: number(8)? },
            1 => Self::Snapshot { bytes: number(0)?, format: short(8)? },
            2 => Self::NotWorthIt { bytes: number(0)? },
            3 => Self::Busy { retry_after: Duration::from_millis(short(0)?.into()) },
            // It goes into a log.
            4 => {
                Self::Refused { why: String::from_utf8_lossy(body).replace(char::is_control, " ") }
            }
            _ => return None,
        })
    }
}

/// Returns how long the transfer of so many bytes may take.
fn transfer_time(bytes: u64) -> Duration {
    TRANSFER_TIME + Duration::from_secs(bytes / TRANSFER_BYTES_PER_SECOND)
}

/// Adds up the checksum of a file that comes by in pieces.
fn checksum() -> digest::Context {
    digest::Context::new(&digest::SHA256)
}

const _: () = assert!(CHECKSUM_BYTES == digest::SHA256_OUTPUT_LEN);
