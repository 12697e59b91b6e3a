//! A visitor's connection, from the side that has the snapshot.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::super::Shared;
use super::super::counters::Counters;
use super::super::link::subject;
use super::super::tls::SNAPSHOT_ALPN;
use super::super::why::{Close, why as why_of};
use super::{
    Answer, Denial, Made, Maker, Making, PIECE_BYTES, PIECES_WAITING_MAX, Request,
    TRANSFER_BYTES_PER_SECOND, checksum, transfer_time,
};

/// When a visitor who came while another is served should come back.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// How often a visitor hears how far the making is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How many bytes of a snapshot may be on their way; the rest waits on the disk.
const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// How long the last of it may be on its way, beside the time in which something has to move.
const LAST_TIME: Duration = Duration::from_secs(SEND_WINDOW_BYTES / TRANSFER_BYTES_PER_SECOND);

/// How far a visit has come.
enum Stage {
    Begun,
    /// It is being made, if it is worth it.
    Asked,
    /// The visitor was told that there is none.
    Declined,
    /// The snapshot is on its way; the visitor says whether it has arrived.
    Offered {
        bytes: u64,
    },
}

/// Why a visit broke off.
type Broken = String;

/// Tells whether whoever began a connection comes for a snapshot.
pub(in crate::net) fn is_visit(connection: &Connection) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|protocol| protocol == SNAPSHOT_ALPN)
}

/// Serves a visitor until it is gone.
pub(in crate::net) async fn serve(shared: &Shared, connection: Connection) {
    let Ok(_seat) = shared.snapshots.visitors.clone().try_acquire_owned() else {
        return connection.close(Close::Crowded.code(), b"too many ask for a snapshot");
    };
    let visitor = subject(&connection).map_or_else(String::new, |subject| subject.name);
    let begun = Instant::now();
    let mut stage = Stage::Begun;
    let ended = tokio::select! {
        biased;
        ended = answer(shared, &connection, &mut stage) => ended,
        error = connection.closed() => Err(why_of(&error).to_string()),
    };
    if matches!(stage, Stage::Begun) {
        // It has found what it wants elsewhere, perhaps.
        return connection.close(Close::Unwanted.code(), b"nothing was asked for");
    }
    // What was said must arrive first: the other side has the last word.
    let wait = shared.config.snapshot_stall + LAST_TIME;
    let last = timeout(wait, connection.closed()).await.ok();
    let is_done = matches!(&last, Some(ConnectionError::ApplicationClosed(close))
        if Close::from_code(close.error_code) == Some(Close::Done));
    connection.close(Close::Stuck.code(), b"the visit takes too long");
    let counters = &shared.counters;
    let why = match (stage, ended) {
        (Stage::Declined, _) => return Counters::one(&counters.snapshots_declined),
        (Stage::Offered { bytes }, _) if is_done => {
            info!(visitor, bytes, took = ?begun.elapsed(), "A snapshot was sent");
            return Counters::one(&counters.snapshots_sent);
        }
        (_, Err(why)) => why,
        (_, Ok(())) => last.map_or_else(
            || "the visitor does not say whether it arrived".to_owned(),
            |error| why_of(&error).to_string(),
        ),
    };
    Counters::one(&counters.snapshots_failed);
    info!(visitor, why, "A snapshot was not sent to its end");
}

async fn answer(shared: &Shared, connection: &Connection, stage: &mut Stage) -> Result<(), Broken> {
    let stall = shared.config.snapshot_stall;
    connection.set_send_window(SEND_WINDOW_BYTES);
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(1));
    let asked = timeout(stall, asked(shared, connection)).await;
    let (mut stream, request) = asked.map_err(|_| "it asks for nothing".to_owned())??;
    *stage = Stage::Asked;
    let mut saying = Saying { stream: &mut stream, stall };
    let Some(maker) = shared.snapshots.maker.get() else {
        let why = "it has just begun to start".to_owned();
        return saying.no(&Answer::Refused { why }, stage).await;
    };
    if shared.closing.is_cancelled() {
        return saying.no(&Answer::Refused { why: "it stops".to_owned() }, stage).await;
    }
    let Ok(turn) = shared.snapshots.turn.clone().try_acquire_owned() else {
        return saying.no(&Answer::Busy { retry_after: BUSY_RETRY }, stage).await;
    };
    let (made, turn) = make(maker, request, turn, &mut saying).await?;
    let made = match made {
        Ok(made) => made,
        Err(Denial::NotWorthIt { bytes }) => {
            return saying.no(&Answer::NotWorthIt { bytes }, stage).await;
        }
        Err(Denial::Refused(why)) => {
            warn!(why, "A snapshot that another node asks for cannot be made");
            return saying.no(&Answer::Refused { why }, stage).await;
        }
    };
    let bytes = made.bytes;
    *stage = Stage::Offered { bytes };
    saying.say(&Answer::Snapshot { bytes, format: made.format }).await?;
    let limit = transfer_time(bytes);
    let sent = tokio::select! {
        sent = timeout(limit, saying.send(shared, made)) => {
            sent.unwrap_or_else(|_| Err(format!("it took more than {limit:?}")))
        }
        () = shared.closing.cancelled() => Err("this node stops".to_owned()),
    };
    drop(turn);
    if sent.is_err() {
        // Before the connection is closed: while much is on its way, quinn does not get out that it
        // is. And dropping the stream would be to say that this was all.
        let is_stopping = shared.closing.is_cancelled();
        let close = if is_stopping { Close::Stopping } else { Close::Unwanted };
        let _ = stream.reset(close.code());
    }
    sent
}

/// Waits for a visitor's request.
async fn asked(shared: &Shared, connection: &Connection) -> Result<(SendStream, Request), Broken> {
    let (out, mut stream) =
        connection.accept_bi().await.map_err(|error| why_of(&error).to_string())?;
    let request = read_request(&mut stream).await;
    match request {
        Some(request) => Ok((out, request)),
        None => {
            Counters::one(&shared.counters.refused);
            connection.close(Close::Fault.code(), b"not a request for a snapshot");
            Err("it asks for something else".to_owned())
        }
    }
}

async fn read_request(stream: &mut RecvStream) -> Option<Request> {
    let mut bytes = [0; Request::BYTES];
    stream.read_exact(&mut bytes).await.ok()?;
    Request::decode(&bytes)
}

/// Ends the making when nobody waits for it any more.
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has the snapshot made, and tells the visitor meanwhile that it goes on. The turn is given back
/// only once the thread that makes it has ended, whoever may have gone away by then.
async fn make(
    maker: &Maker,
    request: Request,
    turn: OwnedSemaphorePermit,
    saying: &mut Saying<'_>,
) -> Result<(Result<Made, Denial>, OwnedSemaphorePermit), Broken> {
    let abandoned = Abandoned(Arc::default());
    let (tell, told) = watch::channel((0, 0));
    let (maker, is_cancelled) = (Arc::clone(maker), Arc::clone(&abandoned.0));
    let mut making = tokio::task::spawn_blocking(move || {
        let progress = &mut |done, total| {
            // Nobody listens any more: then it is cancelled, too.
            let _ = tell.send((done, total));
        };
        (maker(&request, &mut Making { progress, is_cancelled }), turn)
    });
    let mut ticks = interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            made = &mut making => {
                return made.map_err(|error| format!("making it broke off: {error}"));
            }
            _ = ticks.tick() => {
                let (done, total) = *told.borrow();
                saying.say(&Answer::Making { done, total }).await?;
            }
        }
    }
}

/// What is said to a visitor. Each piece of it must find room in time.
struct Saying<'a> {
    stream: &'a mut SendStream,
    stall: Duration,
}

impl Saying<'_> {
    /// Says what ends the visit.
    async fn no(&mut self, answer: &Answer, stage: &mut Stage) -> Result<(), Broken> {
        *stage = Stage::Declined;
        self.say(answer).await?;
        self.stream.finish().map_err(|error| error.to_string())
    }

    async fn say(&mut self, answer: &Answer) -> Result<(), Broken> {
        self.write(answer.encode().into()).await
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), Broken> {
        match timeout(self.stall, self.stream.write_chunk(piece)).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err("it does not read on".to_owned()),
        }
    }

    /// Sends a file and its checksum.
    async fn send(&mut self, shared: &Shared, made: Made) -> Result<(), Broken> {
        let (sender, mut pieces) = mpsc::channel(PIECES_WAITING_MAX);
        tokio::task::spawn_blocking(move || read(made, &sender));
        while let Some(piece) = pieces.recv().await {
            let piece = piece.map_err(|error| format!("the copy cannot be read: {error}"))?;
            let bytes = piece.len();
            self.write(piece).await?;
            Counters::add(&shared.counters.snapshot_bytes_sent, bytes);
        }
        self.stream.finish().map_err(|error| error.to_string())
    }
}

/// Reads a file in pieces, the last of which is its checksum, for as long as somebody takes them.
fn read(made: Made, pieces: &mpsc::Sender<std::io::Result<Bytes>>) {
    let Made { mut file, bytes, .. } = made;
    let mut sum = checksum();
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let mut piece = vec![0; length];
        let read = file.read_exact(&mut piece);
        sum.update(&piece);
        left -= length as u64;
        let is_broken = read.is_err();
        let is_taken = pieces.blocking_send(read.map(|()| piece.into())).is_ok();
        if is_broken || !is_taken {
            return;
        }
    }
    // Nobody is left to miss it.
    let _ = pieces.blocking_send(Ok(Bytes::copy_from_slice(sum.finish().as_ref())));
}
