//! What the network tells the engine, and the bounded way there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::net::link::Process;
use crate::net::subject::Validity;
use crate::net::why::{DialError, Why};
use crate::replica::Lane;
use crate::types::NodeId;

/// Something happened on the network.
///
/// For each node, `Connected` and `Disconnected` alternate, and frames and datagrams come between
/// the two; after a `Disconnected` a few that were on their way may still follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// There is a connection to a node of this cluster, whoever began it.
    Connected {
        node: NodeId,
        name: String,
        address: SocketAddr,
        round_trip: Duration,
        /// Of the protocol: the newest that both speak.
        version: u8,
        /// From when until when the other side's certificate counts.
        certificate: Option<Validity>,
    },
    /// There is none any more. Frames that were queued or on their way are lost.
    Disconnected { node: NodeId, why: Why },
    /// A [`crate::net::Net::dial`] found this node.
    Answered { node: NodeId, address: SocketAddr },
    /// A connection could not be made, or was refused by this side. `node` is whom it was for, if
    /// that was known.
    DialFailed { address: SocketAddr, node: Option<NodeId>, error: DialError },
    /// A membership datagram came. Its sender is whom the certificate names.
    Datagram { from: NodeId, bytes: Bytes },
    /// One message, without the length that frames it.
    Frame { from: NodeId, lane: Lane, bytes: Bytes },
    /// A connection in use measured its round trip; at most three times within
    /// [`crate::net::Config::silence`].
    RoundTrip { node: NodeId, round_trip: Duration },
    /// Another process uses this node's certificate, and has dialled this one: a copied data
    /// directory. At most once a minute for each address.
    Twin { address: SocketAddr, process: Process },
    /// The endpoint broke down; nothing more will be received. The node should stop.
    EndpointLost,
}

/// How many bytes of frames may wait for the engine. Beyond it, streams are not read on, and
/// QUIC's flow control holds the senders back.
const FRAME_BYTES_WAITING_MAX: usize = 32 * 1024 * 1024;

/// What a frame counts for at least, so that a flood of tiny ones is bounded as well.
const FRAME_BYTES_MIN: usize = 512;

/// How many datagrams and measurements may wait for the engine. Beyond it they are dropped.
const DATAGRAMS_WAITING_MAX: usize = 8_192;

/// The receiving end: the engine's.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::UnboundedReceiver<(Event, Option<OwnedSemaphorePermit>)>,
}

impl Events {
    /// Waits for the next event; `None` once the network is closed and all is delivered.
    pub async fn recv(&mut self) -> Option<Event> {
        self.receiver.recv().await.map(|(event, _room)| event)
    }

    /// Returns the next event if there is one already.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.receiver.try_recv().ok().map(|(event, _room)| event)
    }
}

/// The sending end. The channel itself has no limit, so that the order of connections and
/// disconnections can be fixed under a lock; what peers can send at will is limited by permits.
#[derive(Debug)]
pub(super) struct EventSender {
    sender: mpsc::UnboundedSender<(Event, Option<OwnedSemaphorePermit>)>,
    frame_bytes: Arc<Semaphore>,
    datagrams: Arc<Semaphore>,
}

pub(super) fn channel() -> (EventSender, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let frame_bytes = Arc::new(Semaphore::new(FRAME_BYTES_WAITING_MAX));
    let datagrams = Arc::new(Semaphore::new(DATAGRAMS_WAITING_MAX));
    (EventSender { sender, frame_bytes, datagrams }, Events { receiver })
}

impl EventSender {
    /// Tells what happens as often as connections come and go, and no oftener.
    pub fn tell(&self, event: Event) {
        // Without a receiver the node is going down, and nobody is there to be told.
        let _ = self.sender.send((event, None));
    }

    /// Tells what may be lost. Returns whether there was room for it.
    pub fn offer(&self, event: Event) -> bool {
        let Ok(room) = self.datagrams.clone().try_acquire_owned() else { return false };
        let _ = self.sender.send((event, Some(room)));
        true
    }

    /// Waits until there is room for a frame, and tells it.
    pub async fn frame(&self, from: NodeId, lane: Lane, bytes: Bytes) {
        let size = bytes.len().clamp(FRAME_BYTES_MIN, FRAME_BYTES_WAITING_MAX);
        let size = u32::try_from(size).expect("the limit fits into 32 bits");
        let room = self.frame_bytes.clone().acquire_many_owned(size).await;
        let room = room.expect("this semaphore is never closed");
        let _ = self.sender.send((Event::Frame { from, lane, bytes }, Some(room)));
    }
}
