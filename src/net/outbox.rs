//! What waits to be sent to one peer: a bounded queue for each lane, and the order within it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

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
    /// does not fit is dropped and said to be; digests and pulls make up for it. Own commits are not
    /// dropped while the connection lives: a peer for which so many wait is stuck, and is closed.
    fn bytes_max(self) -> usize {
        match self {
            Self::Lane(Lane::Control) => 256 * 1024,
            Self::Lane(Lane::Own) => 8 * 1024 * 1024,
            Self::Lane(Lane::Relay) => 1024 * 1024,
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
pub(super) enum Overrun {
    /// The oldest of the queue, or the new one.
    Dropped,
    /// The new one, which must not be dropped while there is a connection.
    Stuck,
}

/// A frame that waits for one or several peers.
#[derive(Clone, Debug)]
pub struct Parcel {
    frame: Bytes,
    /// What must stay in its order with others of the same number; 0: nothing.
    series: u64,
    /// To how many peers it has gone.
    sends: Arc<AtomicU32>,
}

impl Parcel {
    /// Makes one of a frame with its length. `series`: frames of one number reach a peer in the order
    /// in which they were queued for it, such as the commits of one origin; 0: in any order.
    pub fn new(frame: Bytes, series: u64) -> Self {
        Self { frame, series, sends: Arc::default() }
    }

    /// Returns how many bytes the frame has, with its length.
    pub fn bytes(&self) -> usize {
        self.frame.len()
    }
}

impl From<Bytes> for Parcel {
    fn from(frame: Bytes) -> Self {
        Self::new(frame, 0)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queues: Mutex<[Queue; Track::ALL.len()]>,
    filled: [Notify; Track::ALL.len()],
}

#[derive(Debug, Default)]
struct Queue {
    parcels: VecDeque<Parcel>,
    bytes: usize,
}

/// Among how many of the newest relays the next one is chosen.
const CHOICE_MAX: usize = 256;

impl Outbox {
    /// Puts a frame into a queue. A full queue of relays loses its oldest, any other refuses the
    /// new one.
    pub fn push(&self, track: Track, parcel: impl Into<Parcel>) -> Result<(), Overrun> {
        let pushed = self.lock()[track.index()].push(track, parcel.into());
        self.filled[track.index()].notify_one();
        pushed
    }

    /// Waits until something waits to be sent.
    pub async fn ready(&self, track: Track) {
        loop {
            let filled = self.filled[track.index()].notified();
            if !self.lock()[track.index()].parcels.is_empty() {
                return;
            }
            filled.await;
        }
    }

    /// Takes the next frame. Of relays that is one that has gone to the fewest peers, and of those
    /// the newest, so that a slow link carries what is on few nodes yet; but the oldest of its
    /// origin, since each follows the one before.
    pub fn pop(&self, track: Track) -> Option<Bytes> {
        self.lock()[track.index()].pop(track)
    }

    /// Drops all that waits.
    pub fn clear(&self) {
        *self.lock() = Default::default();
    }

    pub fn is_empty(&self) -> bool {
        self.lock().iter().all(|queue| queue.parcels.is_empty())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Queue; Track::ALL.len()]> {
        self.queues.lock().expect("no code under this lock can panic")
    }
}

impl Queue {
    fn push(&mut self, track: Track, parcel: Parcel) -> Result<(), Overrun> {
        let mut dropped = Ok(());
        while !self.parcels.is_empty() && self.bytes + parcel.bytes() > track.bytes_max() {
            match track {
                Track::Lane(Lane::Relay) => drop(self.take(0)),
                Track::Lane(Lane::Own) => return Err(Overrun::Stuck),
                Track::Lane(Lane::Control | Lane::Repair) | Track::Datagrams => {
                    return Err(Overrun::Dropped);
                }
            }
            dropped = Err(Overrun::Dropped);
        }
        self.bytes += parcel.bytes();
        self.parcels.push_back(parcel);
        dropped
    }

    fn pop(&mut self, track: Track) -> Option<Bytes> {
        let place = if track == Track::Lane(Lane::Relay) { self.next_relay()? } else { 0 };
        let parcel = self.take(place)?;
        parcel.sends.fetch_add(1, Ordering::Relaxed);
        Some(parcel.frame)
    }

    fn next_relay(&self) -> Option<usize> {
        let newest_first = self.parcels.iter().enumerate().rev().take(CHOICE_MAX);
        // Of several least ones the first is returned.
        let fewest = newest_first.min_by_key(|(_, parcel)| parcel.sends.load(Ordering::Relaxed));
        let (place, chosen) = fewest?;
        if chosen.series == 0 {
            return Some(place);
        }
        self.parcels.iter().position(|parcel| parcel.series == chosen.series)
    }

    fn take(&mut self, place: usize) -> Option<Parcel> {
        let parcel = self.parcels.remove(place)?;
        self.bytes -= parcel.bytes();
        Some(parcel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Track = Track::Lane(Lane::Own);
    const RELAY: Track = Track::Lane(Lane::Relay);
    const REPAIR: Track = Track::Lane(Lane::Repair);

    fn frame(first: u8, bytes: usize) -> Bytes {
        let mut frame = vec![0; bytes];
        frame[0] = first;
        frame.into()
    }

    #[test]
    fn a_full_queue_of_relays_loses_its_oldest_another_refuses_the_newest() {
        let outbox = Outbox::default();
        for track in [REPAIR, RELAY] {
            assert_eq!(outbox.push(track, frame(1, 400_000)), Ok(()));
            let second = outbox.push(track, frame(2, 700_000));
            assert_eq!(second, Err(Overrun::Dropped));
        }
        assert_eq!(outbox.pop(REPAIR).unwrap()[0], 1);
        assert_eq!(outbox.pop(RELAY).unwrap()[0], 2);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_peer_that_takes_no_own_commits_is_stuck() {
        let outbox = Outbox::default();
        for _ in 0..8 {
            assert_eq!(outbox.push(OWN, frame(1, 1024 * 1024)), Ok(()));
        }
        assert_eq!(outbox.push(OWN, frame(2, 1)), Err(Overrun::Stuck));
        outbox.clear();
        assert_eq!(outbox.push(OWN, frame(3, 1)), Ok(()));
    }

    #[test]
    fn a_frame_above_the_limit_is_taken_when_nothing_waits() {
        let outbox = Outbox::default();
        assert_eq!(outbox.push(REPAIR, frame(1, 6_000_000)), Ok(()));
        assert_eq!(outbox.push(REPAIR, frame(2, 1)), Err(Overrun::Dropped));
    }

    #[test]
    fn of_relays_those_go_first_that_went_to_the_fewest_and_then_the_newest() {
        let (here, there) = (Outbox::default(), Outbox::default());
        let parcels = [1, 2, 3].map(|first| Parcel::from(frame(first, 9)));
        for parcel in &parcels {
            here.push(RELAY, parcel.clone()).unwrap();
            there.push(RELAY, parcel.clone()).unwrap();
        }
        assert_eq!(here.pop(RELAY).unwrap()[0], 3);
        assert_eq!(there.pop(RELAY).unwrap()[0], 2, "the third went to a peer already");
        assert_eq!(here.pop(RELAY).unwrap()[0], 1);
        assert_eq!(there.pop(RELAY).unwrap()[0], 3);
    }

    #[test]
    fn relays_of_one_origin_stay_in_their_order() {
        let outbox = Outbox::default();
        for (first, series) in [(1, 7), (2, 8), (3, 7)] {
            outbox.push(RELAY, Parcel::new(frame(first, 9), series)).unwrap();
        }
        let order = [(); 3].map(|()| outbox.pop(RELAY).unwrap()[0]);
        assert_eq!(order, [1, 3, 2]);
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
