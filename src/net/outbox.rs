//! What waits to be sent to one peer: a bounded queue for each lane.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::replica::Lane;

/// A stream of a connection, and the queue before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Track {
    Lane(Lane),
    /// Datagrams that came before the connection, or that are too long for its path.
    Datagrams,
}

impl Track {
    pub const ALL: [Self; 5] = [
        Self::Lane(Lane::Control),
        Self::Lane(Lane::Own),
        Self::Lane(Lane::Relay),
        Self::Lane(Lane::Repair),
        Self::Datagrams,
    ];

    /// The first byte of the stream, which tells the receiver what it carries.
    pub fn tag(self) -> u8 {
        match self {
            Self::Lane(Lane::Control) => 1,
            Self::Lane(Lane::Own) => 2,
            Self::Lane(Lane::Relay) => 3,
            Self::Lane(Lane::Repair) => 4,
            Self::Datagrams => 5,
        }
    }

    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|track| track.tag() == tag)
    }

    /// QUIC's stream priority: the higher goes first.
    pub fn priority(self) -> i32 {
        match self {
            Self::Datagrams => 4,
            Self::Lane(Lane::Control) => 3,
            Self::Lane(Lane::Own) => 2,
            Self::Lane(Lane::Relay) => 1,
            Self::Lane(Lane::Repair) => 0,
        }
    }

    /// How many bytes may wait. A single frame above it is taken when nothing else waits. What
    /// does not fit is dropped and said to be; digests and pulls make up for it.
    fn bytes_max(self) -> usize {
        match self {
            Self::Lane(Lane::Control) => 256 * 1024,
            Self::Lane(Lane::Own | Lane::Relay) => 1024 * 1024,
            Self::Lane(Lane::Repair) => 512 * 1024,
            Self::Datagrams => 64 * 1024,
        }
    }

    fn index(self) -> usize {
        usize::from(self.tag() - 1)
    }
}

/// Something for this peer was dropped because its queue was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overrun;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queues: Mutex<[Queue; Track::ALL.len()]>,
    filled: [Notify; Track::ALL.len()],
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Puts a frame into a queue. A full queue of relays loses its oldest, any other refuses the
    /// new one.
    pub fn push(&self, track: Track, frame: Bytes) -> Result<(), Overrun> {
        let pushed = self.lock()[track.index()].push(track, frame);
        self.filled[track.index()].notify_one();
        pushed
    }

    /// Waits for the next frame. May be cancelled without losing one.
    pub async fn next(&self, track: Track) -> Bytes {
        loop {
            let filled = self.filled[track.index()].notified();
            if let Some(frame) = self.pop(track) {
                return frame;
            }
            filled.await;
        }
    }

    /// Drops all that waits.
    pub fn clear(&self) {
        *self.lock() = Default::default();
    }

    pub fn is_empty(&self) -> bool {
        self.lock().iter().all(|queue| queue.frames.is_empty())
    }

    fn pop(&self, track: Track) -> Option<Bytes> {
        self.lock()[track.index()].pop()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Queue; Track::ALL.len()]> {
        self.queues.lock().expect("no code under this lock can panic")
    }
}

impl Queue {
    fn push(&mut self, track: Track, frame: Bytes) -> Result<(), Overrun> {
        let mut dropped = Ok(());
        while !self.frames.is_empty() && self.bytes + frame.len() > track.bytes_max() {
            if track != Track::Lane(Lane::Relay) {
                return Err(Overrun);
            }
            self.pop();
            dropped = Err(Overrun);
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        dropped
    }

    fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Track = Track::Lane(Lane::Own);
    const RELAY: Track = Track::Lane(Lane::Relay);

    fn frame(first: u8, bytes: usize) -> Bytes {
        let mut frame = vec![0; bytes];
        frame[0] = first;
        frame.into()
    }

    #[test]
    fn a_full_queue_of_relays_loses_its_oldest_another_refuses_the_newest() {
        let outbox = Outbox::default();
        for track in [OWN, RELAY] {
            assert_eq!(outbox.push(track, frame(1, 600_000)), Ok(()));
            assert_eq!(outbox.push(track, frame(2, 600_000)), Err(Overrun));
        }
        assert_eq!(outbox.pop(OWN).unwrap()[0], 1);
        assert_eq!(outbox.pop(RELAY).unwrap()[0], 2);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_frame_above_the_limit_is_taken_when_nothing_waits() {
        let outbox = Outbox::default();
        assert_eq!(outbox.push(OWN, frame(1, 6_000_000)), Ok(()));
        assert_eq!(outbox.push(OWN, frame(2, 1)), Err(Overrun));
        outbox.clear();
        assert_eq!(outbox.push(OWN, frame(3, 1)), Ok(()));
    }

    #[test]
    fn every_track_has_its_own_tag_and_queue() {
        for (index, track) in Track::ALL.into_iter().enumerate() {
            assert_eq!(track.index(), index);
            assert_eq!(Track::from_tag(track.tag()), Some(track));
        }
        assert_eq!(Track::from_tag(0), None);
    }
}
