//! One connection from greeting to end: what comes in, what goes out, and whether it still lives.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, WriteError};
use rustls::pki_types::CertificateDer;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Shared;
use super::counters::Counters;
use super::endpoint::STREAMS_MAX;
use super::event::Event;
use super::outbox::{Outbox, Track};
use super::peers::{Claim, Link};
use super::subject::NodeSubject;
use super::tls::peer_of;
use super::turns::Turns;
use super::why::{Close, DialError, Why, dial_error, why};
use crate::types::NodeId;
use crate::wire::FrameReader;

/// How long the two greetings may take.
const GREETING: Duration = Duration::from_secs(5);

/// How long a replaced connection is still listened to, for what is on its way.
const RETIREMENT: Duration = Duration::from_secs(5);

/// How long a piece of a frame may wait for the peer to make room for it.
const STUCK: Duration = Duration::from_secs(10);

/// In which pieces a frame is written, so that a slow path is told from a stuck one.
const PIECE_BYTES: usize = 64 * 1024;

/// From which size on a frame must wait for one of the few places for long ones, before memory is
/// kept for it.
pub(super) const LONG_FRAME_BYTES: usize = 64 * 1024;

/// How long a frame may take once it has begun.
const FRAME_TIME: Duration = Duration::from_secs(60);

/// The first thing each side says, on a stream of its own. Until both have said it, the dialler
/// does not know whether the other side has accepted its certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Greeting {
    /// Drawn at random by each process.
    instance: u64,
    /// How many connections the dialler has begun; 0 from the other side.
    attempt: u64,
}

impl Greeting {
    const TAG: u8 = 0x10;
    const VERSION: u8 = 1;
    const BYTES: usize = 18;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&[Self::TAG, Self::VERSION]);
        bytes[2..10].copy_from_slice(&self.instance.to_be_bytes());
        bytes[10..].copy_from_slice(&self.attempt.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        if bytes[..2] != [Self::TAG, Self::VERSION] {
            return None;
        }
        let instance = u64::from_be_bytes(bytes[2..10].try_into().ok()?);
        let attempt = u64::from_be_bytes(bytes[10..].try_into().ok()?);
        Some(Self { instance, attempt })
    }
}

/// What is known of a connection that this node begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialled {
    /// Who is expected to answer; `None` for a join target.
    pub node: Option<NodeId>,
    pub attempt: u64,
}

/// Finds out who is at the other end, and whether we are to speak to each other.
pub(super) async fn establish(
    shared: &Shared,
    connection: Connection,
    dialled: Option<Dialled>,
) -> Result<Link, DialError> {
    let address = connection.remote_address();
    let subject = subject(&connection).ok_or_else(|| DialError::Stranger {
        address,
        why: "its certificate names no node".to_owned(),
    })?;
    let wanted = dialled.and_then(|dialled| dialled.node);
    if let Some(wanted) = wanted.filter(|wanted| *wanted != subject.node) {
        connection.close(Close::WrongNode.code(), b"dialled for another node");
        let (found, name) = (subject.node, subject.name);
        return Err(DialError::WrongNode { address, wanted, found, name });
    }
    let attempt = dialled.map_or(0, |dialled| dialled.attempt);
    let mine = Greeting { instance: shared.instance, attempt };
    let theirs = match timeout(GREETING, greet(&connection, mine)).await {
        Ok(Ok(theirs)) => theirs,
        Ok(Err(error)) => return Err(dial_error(address, &error)),
        Err(_) => return Err(DialError::NoAnswer(address)),
    };
    if theirs.instance == shared.instance {
        connection.close(Close::Itself.code(), b"this node itself");
        return Err(DialError::Itself(address));
    }
    if subject.node == shared.me {
        connection.close(Close::Twin.code(), b"a certificate in use by another process");
        return Err(DialError::Twin(address));
    }
    let (dialer, attempt) = match dialled {
        Some(dialled) => (shared.me, dialled.attempt),
        None => (subject.node, theirs.attempt),
    };
    let claim = Claim { dialer, attempt, instance: theirs.instance, since: Instant::now() };
    Ok(Link {
        id: shared.next_number(),
        node: subject.node,
        name: subject.name,
        connection,
        claim,
        retired: shared.stop.child_token(),
        closed_for: OnceLock::new(),
    })
}

pub(super) fn subject(connection: &Connection) -> Option<NodeSubject> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    peer_of(identity.first()?)
}

async fn greet(connection: &Connection, mine: Greeting) -> Result<Greeting, ConnectionError> {
    let fault = || {
        connection.close(Close::Fault.code(), b"no greeting");
        connection.close_reason().unwrap_or(ConnectionError::LocallyClosed)
    };
    let mut out = connection.open_uni().await?;
    out.write_all(&mine.encode()).await.map_err(|_| fault())?;
    out.finish().map_err(|_| fault())?;
    let mut stream = connection.accept_uni().await?;
    let mut bytes = [0; Greeting::BYTES];
    match stream.read_exact(&mut bytes).await {
        Ok(()) => Greeting::decode(&bytes).ok_or_else(fault),
        Err(_) => Err(connection.close_reason().unwrap_or_else(fault)),
    }
}

/// Serves a connection until it ends, and says why it did.
pub(super) async fn serve(shared: &Arc<Shared>, link: &Link, outbox: &Outbox) -> Why {
    let connection = &link.connection;
    let mut closed = pin!(connection.closed());
    let mut writers = pin!(write_all_tracks(shared, link, outbox));
    let mut readers = FuturesUnordered::new();
    let mut pulse = Pulse::new(link);
    let mut ticks = interval(shared.config.pulse());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let retirement = async {
        link.retired.cancelled().await;
        sleep(RETIREMENT).await;
    };
    let mut retirement = pin!(retirement);
    loop {
        tokio::select! {
            error = &mut closed => return why(&error),
            stream = connection.accept_uni(), if readers.len() < STREAMS_MAX as usize => {
                match stream {
                    Ok(stream) => readers.push(read_stream(shared, link, stream)),
                    Err(error) => return why(&error),
                }
            }
            Some(read) = readers.next(), if !readers.is_empty() => {
                if let Err(fault) = read {
                    return end(link, Close::Fault, fault);
                }
            }
            datagram = connection.read_datagram() => match datagram {
                Ok(bytes) => on_datagram(shared, link, bytes),
                Err(error) => return why(&error),
            },
            ended = &mut writers => {
                return end(link, Close::Stuck, ended);
            }
            _ = ticks.tick() => {
                if pulse.is_silent(shared, link) {
                    return end(link, Close::Silent, Why::Silent);
                }
            }
            () = &mut retirement => return end(link, Close::Replaced, Why::Replaced),
        }
    }
}

/// Closes a connection, unless that is why we are here.
fn end(link: &Link, close: Close, reason: Why) -> Why {
    if let Some(error) = link.connection.close_reason() {
        return why(&error);
    }
    link.close(close, reason.clone());
    reason
}

fn on_datagram(shared: &Shared, link: &Link, bytes: Bytes) {
    // An empty one only shows that the other side lives.
    if bytes.is_empty() {
        return;
    }
    let event = Event::Datagram { from: link.node, bytes };
    let counters = &shared.counters;
    let is_taken = shared.events.offer(event);
    let counter = if is_taken { &counters.datagrams_received } else { &counters.datagrams_dropped };
    Counters::one(counter);
}

/// Reads the frames of one stream to its end. An error is a breach of the rules.
async fn read_stream(shared: &Shared, link: &Link, mut stream: RecvStream) -> Result<(), Why> {
    let mut tag = [0];
    if stream.read_exact(&mut tag).await.is_err() {
        return Ok(());
    }
    let fault = |text: &str| Err(Why::Fault(text.to_owned()));
    let Some(track) = Track::from_tag(tag[0]) else { return fault("an unknown kind of stream") };
    let mut reader = FrameReader::default();
    let mut room = None;
    loop {
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => deliver(shared, link.node, track, frame).await,
                Ok(None) => break,
                Err(error) => return fault(&error.to_string()),
            }
            room = None;
        }
        room = room_for_long_frame(shared, &mut reader, room).await;
        let read = stream.read_chunk(PIECE_BYTES, true);
        let chunk = if reader.is_between_frames() {
            read.await
        } else {
            match timeout(FRAME_TIME, read).await {
                Ok(chunk) => chunk,
                Err(_) => return fault("a frame does not go on"),
            }
        };
        match chunk {
            Ok(Some(chunk)) => reader.buffer_mut().extend_from_slice(&chunk.bytes),
            Ok(None) if reader.is_between_frames() => return Ok(()),
            Ok(None) => return fault("a stream ends within a frame"),
            // The connection is gone, or the sender has dropped the stream: told elsewhere.
            Err(_) => return Ok(()),
        }
    }
}

/// Waits for a place among the long frames, if one has begun that needs it, and only then keeps
/// memory for it: its length is no more than a claim until the bytes are here.
async fn room_for_long_frame(
    shared: &Shared,
    reader: &mut FrameReader,
    room: Option<OwnedSemaphorePermit>,
) -> Option<OwnedSemaphorePermit> {
    let buffer = reader.buffer_mut();
    let length = buffer.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    if room.is_some() || length < LONG_FRAME_BYTES {
        return room;
    }
    let missing = (length + 4).saturating_sub(buffer.len());
    let room = shared.long_frames.clone().acquire_owned().await.ok();
    reader.buffer_mut().reserve(missing);
    room
}

async fn deliver(shared: &Shared, from: NodeId, track: Track, bytes: Bytes) {
    match track {
        Track::Lane(lane) => {
            Counters::one(&shared.counters.frames_received);
            Counters::add(&shared.counters.frame_bytes_received, bytes.len());
            shared.events.frame(from, lane, bytes).await;
        }
        Track::Datagrams => {
            Counters::one(&shared.counters.datagrams_received);
            shared.events.offer(Event::Datagram { from, bytes });
        }
    }
}

/// Writes what the outbox holds, each track on its own stream, until one cannot go on.
async fn write_all_tracks(shared: &Shared, link: &Link, outbox: &Outbox) -> Why {
    let turns = Turns::default();
    let write = |track| write_track(shared, link, (outbox, &turns), track);
    let mut tracks: FuturesUnordered<_> = Track::ALL.into_iter().map(write).collect();
    while let Some(written) = tracks.next().await {
        if let Err(why) = written {
            return why;
        }
    }
    // Retired: nothing more to write, and the end is not ours to decide.
    std::future::pending().await
}

async fn write_track(
    shared: &Shared,
    link: &Link,
    (outbox, turns): (&Outbox, &Turns),
    track: Track,
) -> Result<(), Why> {
    let mut stream = None;
    loop {
        let ready = async {
            outbox.ready(track).await;
            shared.budget.wait(track).await;
        };
        tokio::select! {
            biased;
            () = link.retired.cancelled() => return Ok(()),
            () = ready => {}
        }
        // Chosen as late as possible: what is next may have changed meanwhile.
        let Some(frame) = outbox.pop(track) else { continue };
        let bytes = frame.len();
        shared.budget.spend(track, bytes);
        let stream = match &mut stream {
            Some(stream) => stream,
            none => none.insert(open(link, track).await?),
        };
        write_frame(stream, (turns, track), frame).await?;
        Counters::one(&shared.counters.frames_sent);
        Counters::add(&shared.counters.frame_bytes_sent, bytes);
    }
}

async fn open(link: &Link, track: Track) -> Result<SendStream, Why> {
    let lost = |error: WriteError| Why::Lost(error.to_string());
    let opened = timeout(STUCK, link.connection.open_uni()).await.map_err(|_| Why::Stuck)?;
    let mut stream = opened.map_err(|error| why(&error))?;
    // Fails only for a stream that is closed, which the write will tell.
    let _ = stream.set_priority(track.priority());
    stream.write_all(&[track.tag()]).await.map_err(lost)?;
    Ok(stream)
}

async fn write_frame(
    stream: &mut SendStream,
    (turns, track): (&Turns, Track),
    mut frame: Bytes,
) -> Result<(), Why> {
    while !frame.is_empty() {
        let piece = frame.split_to(frame.len().min(PIECE_BYTES));
        turns.wait(track, piece.len()).await;
        let written = timeout(STUCK, stream.write_chunk(piece)).await;
        turns.passed(track);
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Why::Lost(error.to_string())),
            Err(_) => return Err(Why::Stuck),
        }
    }
    Ok(())
}

/// Watches whether the other side still answers.
struct Pulse {
    sent: u64,
    received: u64,
    /// Since when something is owed an answer.
    owed_since: Option<Instant>,
    quiet_since: Instant,
}

impl Pulse {
    fn new(link: &Link) -> Self {
        let stats = link.connection.stats();
        Self {
            sent: stats.udp_tx.datagrams,
            received: stats.udp_rx.datagrams,
            owed_since: None,
            quiet_since: Instant::now(),
        }
    }

    /// Looks at what was sent and received since the last time. Returns whether the other side
    /// has been silent for too long.
    fn is_silent(&mut self, shared: &Shared, link: &Link) -> bool {
        let now = Instant::now();
        let stats = link.connection.stats();
        let (has_sent, has_received) =
            (stats.udp_tx.datagrams != self.sent, stats.udp_rx.datagrams != self.received);
        (self.sent, self.received) = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
        if has_received {
            self.owed_since = None;
            shared.peers().touch(link.node, now);
            let round_trip = link.connection.rtt();
            shared.events.offer(Event::RoundTrip { node: link.node, round_trip });
        } else if has_sent {
            self.owed_since.get_or_insert(now);
        }
        if has_sent || has_received {
            self.quiet_since = now;
        }
        self.keep_alive(shared, link, now);
        self.owed_since.is_some_and(|since| now - since >= shared.config.silence)
    }

    fn keep_alive(&mut self, shared: &Shared, link: &Link, now: Instant) {
        // One pulse early: the next look may come a little late.
        let is_due = now - self.quiet_since + shared.config.pulse() >= shared.config.keep_alive;
        if is_due && !link.retired.is_cancelled() && shared.peers().is_pinned(link.node) {
            // Refused only where the connection has ended, which is told elsewhere.
            let _ = link.connection.send_datagram(Bytes::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_as_it_was_written_and_nothing_else_is() {
        let greeting = Greeting { instance: 0x0102_0304_0506_0708, attempt: 9 };
        let bytes = greeting.encode();
        assert_eq!(bytes[..10], [0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Greeting::decode(&bytes), Some(greeting));
        let mut other = bytes;
        other[1] = 2;
        assert_eq!(Greeting::decode(&other), None);
    }
}
