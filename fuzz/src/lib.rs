//! What the fuzz targets check, as plain functions of bytes. `tests/fuzz.rs` includes this file, so
//! that the ordinary tests compile it and hold it against the seeds. How bytes come about, and the
//! fuzzer itself, are not here.

mod dns;
mod merge;

pub use dns::dns_packet;
pub use merge::merge_changes;

use tribune::crdt::{Piece, RowClock, pack};
use tribune::types::{Epoch, Origin};
use tribune::wire::{Message, decode, encode, piece_bytes};

/// Whatever is read as a message is written in one way, which is no longer than what was read, and
/// read again as the same message.
pub fn decode_message(bytes: &[u8]) {
    let Ok(message) = decode(bytes) else { return };
    let written = encode(&message);
    assert_eq!(decode(&written).as_ref(), Ok(&message));
    assert_eq!(encode(&message), written);
    // A node passes on what it was told, so that must not grow on the way.
    assert!(written.len() <= bytes.len(), "{} bytes became {}", bytes.len(), written.len());
    if let Message::Push { piece, .. } | Message::Pulled { piece, .. } = message {
        counts_no_less_than_the_truth(piece);
    }
}

/// Queues count pieces by an estimate.
fn counts_no_less_than_the_truth(piece: Piece) {
    let counted = piece_bytes(&piece);
    let envelope = 3;
    let written = encode(&Message::Push { hops: 0, piece }).len() - envelope;
    assert!(written <= counted, "{written} bytes were counted as {counted}");
}

/// There is one way to write a key, and the bytes of two keys compare as the keys do.
pub fn packed_key(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let (one, other) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let keys = [one, other].map(pack::unpack);
    for (key, bytes) in keys.iter().zip([one, other]) {
        if let Ok(key) = key {
            assert_eq!(pack::pack(key).as_deref(), Ok(bytes));
        }
    }
    if let [Ok(left), Ok(right)] = keys {
        assert_eq!(one.cmp(other), left.cmp(&right), "{left:?} and {right:?}");
    }
}

/// There is one way to write a row's clock, and only that one is read.
pub fn row_clock(bytes: &[u8]) {
    if let Ok(clock) = RowClock::from_bytes(bytes, origin_of) {
        assert_eq!(clock.to_bytes(number_of), bytes);
    }
}

/// Numbers the origins of one node by their epochs.
pub fn number_of(origin: Origin) -> u64 {
    origin.epoch.0
}

fn origin_of(number: u64) -> Option<Origin> {
    Some(Origin { epoch: Epoch(number), ..Origin::default() })
}
