//! What nodes say to each other, as bytes: messages, their encoding, and frames on a stream.
//! Who says what to whom is the replica's business; SWIM's packets have a dialect of their own.

use std::fmt;
use std::time::Duration;

use crate::crdt::Piece;
use crate::crdt::content::{Mark, Seen, Stretch};
use crate::crdt::storage::Era;
use crate::ledger::round::Nodes;
use crate::ledger::{BUCKETS, Round};
use crate::types::{Epoch, Origin, Version};

pub mod change;
pub mod codec;
mod content;
pub mod frame;
pub mod message;

#[cfg(test)]
pub(crate) mod golden;

pub use change::{changeset_bytes, piece_bytes};
pub use codec::DecodeError;
pub use frame::{FrameError, FrameReader, encode_frame};
pub use message::{decode, decode_part, encode, encode_part, read};

/// The first byte of every message: the newest version of the protocol that this release speaks.
///
/// It rises when something that an earlier release must understand changes its meaning. A new kind
/// of message, or a field more at the end of one, needs no new version: who does not know it passes
/// over it.
pub const PROTOCOL_VERSION: u8 = 1;

/// In the hops of a [`Message::Push`]: it went over a link between distant nodes.
pub const HOPS_FAR: u8 = 0x80;

/// The versions of the protocol that a node speaks, the first and the last included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Versions {
    pub min: u8,
    pub max: u8,
}

impl Versions {
    /// What this release speaks: its own version and that of the release before.
    pub const SPOKEN: Self = Self { min: 1, max: PROTOCOL_VERSION };

    /// Returns the newest version that both speak.
    pub fn common(self, other: Self) -> Option<u8> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }

    /// Tells whether a version is among them.
    pub fn contains(self, version: u8) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "version {}", self.max),
            false => write!(f, "versions {} to {}", self.min, self.max),
        }
    }
}

/// Everything that one replica may say to another.
///
/// Each message stands alone: it may be lost, doubled or overtaken, and what it should have
/// brought about comes about later by another one.
#[derive(Clone, PartialEq, Debug)]
pub enum Message {
    /// "I write as `origin` and hold `head` of it." Said to each new neighbour, answered by
    /// [`Message::Known`]: a node whose disk lost its tail learns of it here. `era`: see
    /// [`crate::crdt::Floor::era`]; 0: the sender holds nothing that could have been deleted. `asks`: the
    /// receiver is to say the same of itself, again perhaps.
    Hello { origin: Origin, head: Version, era: u64, asks: bool },
    /// "The newest of your node's origins that I hold something of, and how far." An origin of
    /// version 0 says that nothing newer than the question is known.
    Known { origin: Origin, head: Version },
    /// About being neighbours who push to each other.
    Neighbour(Neighbour),
    /// A fresh commit on its way through the cluster. `hops` counts the nodes that passed it on, as
    /// a last stop, and has the bit [`HOPS_FAR`] once it went over a link between distant nodes.
    Push { hops: u8, piece: Piece },
    /// "These fresh commits are here; I push them to whom asks for them with [`Message::Take`]."
    Offer(Vec<Offer>),
    /// "Push me these, which you offered." Answered by a [`Message::Push`] for each that is still at
    /// hand.
    Take(Vec<(Origin, Version)>),
    /// "I hold these heads": those that changed since the last digest on this link, or those in
    /// which a peer was seen to be behind.
    Heads(Vec<(Origin, Version)>),
    /// A hash of the sender's heads for each bucket. Answered by [`Message::BucketHeads`] when
    /// some differ.
    Buckets(Box<[u64; BUCKETS]>),
    /// All heads that the sender holds in these buckets. Answered by [`Message::Heads`] with
    /// those in which the receiver holds more.
    BucketHeads { buckets: BucketSet, heads: Vec<(Origin, Version)> },
    /// "Send me what is left of this origin after `after`; of the next version I have the first `part`
    /// parts, as you number them." Answered by [`Message::Pulled`], [`Message::Busy`] or
    /// [`Message::Gone`]. `is_whole`: the sender takes all rows of the receiver's, and may be given
    /// what lies below the floor.
    Want { request: RequestId, origin: Origin, after: Version, part: u64, is_whole: bool },
    /// The answer to a want: what the sender holds durably, possibly nothing new. Where the piece
    /// ends below `head`, it was cut to size, and the rest is asked for separately.
    Pulled { request: RequestId, piece: Piece, head: Version, cut: Cut },
    /// "Not now; ask me again after this long, or ask somebody else."
    Busy { request: RequestId, retry_after: Duration },
    /// "Of what you want I have dropped tombstones up to `floor`, beyond what you hold: take all my
    /// rows, or you keep some that were deleted."
    Gone { request: RequestId, floor: Version },
    /// "I write as `origin` and have yet to catch up before I speak." Answered by
    /// [`Message::Welcome`]. `era`: as in [`Message::Hello`].
    Join { origin: Origin, era: u64 },
    /// "I count you as a member from now on, and hold these heads." Where `is_settled` is false the
    /// sender has yet to catch up itself, and there are none. `floor`: up to where tombstones may be
    /// missing in its rows. `length`: no row whose tombstone went had a longer life. `era`: the
    /// sender's. `retired`: origins of which nothing was left at these heads, and nothing is taken any
    /// more. `forgotten`: who is no member any more, up to which epoch.
    Welcome {
        is_settled: bool,
        length: u64,
        heads: Vec<(Origin, Version)>,
        floor: Vec<(Origin, Version)>,
        era: Era,
        retired: Vec<(Origin, Version)>,
        forgotten: Nodes,
    },
    /// What all members hold, as far as the sender has heard. Answered by the same where the
    /// receiver has heard more.
    Round(Box<Round>),
    /// "Your node was taken for gone up to the epoch `last`: what you write under this origin is not
    /// heard. Take all my rows, and go on under a later one."
    Forgotten { origin: Origin, last: Epoch },
    /// "My rows of this stretch come to these sums, and all that I hold to this mark." Answered by
    /// [`Message::Seen`], or by nothing where the receiver has better things to do.
    /// `wants_rows`: with the rows of ranges that differ.
    Look { request: RequestId, mark: Mark, stretch: Stretch, wants_rows: bool },
    /// The answer to a look.
    Seen { request: RequestId, seen: Box<Seen> },
}

/// A fresh commit that a peer has, and about how many bytes it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    pub origin: Origin,
    pub version: Version,
    pub bytes: u64,
}

/// The handshake by which two nodes become neighbours, and cease to be: a link that pushes is
/// held by both sides or by none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Neighbour {
    /// "Be my neighbour." Urgent: the asker has none, so that even a node with enough takes it.
    Ask { urgent: bool },
    /// "Yes": from now on each pushes to the other.
    Accepted,
    /// "I have enough."
    Refused,
    /// "You bring me nothing new, and I have others: shall we part?" Answered by
    /// [`Neighbour::Ended`], or by nothing where the receiver has too few others.
    Part,
    /// "We are not neighbours (any more)."
    Ended,
}

/// Where a piece begins and ends within versions: large ones travel in several pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cut {
    /// How many parts of the version after the piece's `after` it leaves out.
    pub from: u64,
    /// The piece's last changeset is of the version after its `through`, and goes to before this
    /// part. 0: there is none.
    pub to: u64,
}

/// Names a want among those of its asker, so that the answer finds back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RequestId(pub u64);

/// A set of buckets, one bit each; bucket 0 is the lowest bit of the first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BucketSet(pub [u8; BUCKETS / 8]);

impl BucketSet {
    /// Adds a bucket.
    pub fn insert(&mut self, bucket: u8) {
        self.0[usize::from(bucket / 8)] |= 1 << (bucket % 8);
    }

    /// Tells whether the bucket is in the set.
    pub fn contains(&self, bucket: u8) -> bool {
        self.0[usize::from(bucket / 8)] & (1 << (bucket % 8)) != 0
    }

    /// Tells whether no bucket is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_speak_the_newest_version_that_both_know() {
        let of = |min, max| Versions { min, max };
        assert_eq!(of(1, 2).common(of(2, 3)), Some(2));
        assert_eq!(of(2, 3).common(of(1, 2)), Some(2));
        assert_eq!(of(1, 3).common(of(1, 3)), Some(3));
        assert_eq!(of(1, 1).common(of(2, 3)), None);
        assert_eq!(of(2, 3).common(of(1, 1)), None);
        assert_eq!(of(1, 1).to_string(), "version 1");
        assert_eq!(of(2, 3).to_string(), "versions 2 to 3");
    }
}
