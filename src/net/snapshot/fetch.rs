//! A visitor's connection, from the side that comes for a snapshot.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, ReadError, ReadExactError, RecvStream,
};
use ring::digest;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::dial::SERVER_NAME;
use super::super::endpoint::{self, BindError};
use super::super::link::subject;
use super::super::tls::Identity;
use super::super::why::{Close, DialError, Why, connect_error, dial_error, why};
use super::{
    Answer, CHECKSUM_BYTES, PIECE_BYTES, PIECES_WAITING_MAX, Request, STALL, checksum,
    transfer_time,
};
use crate::types::NodeId;

/// The file is synced every so often, so that the end does not wait for all of it.
const SYNC_EVERY_BYTES: u64 = 16 << 20;

/// How many times as long as a transfer the making may stand still: the other node's disk has more
/// to do.
const MAKING_STALLS: u32 = 3;

/// Why there is no snapshot from a node. The file, where one was begun, is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("its database is small ({bytes} bytes): getting it row by row is as fast")]
    NotWorthIt { bytes: u64 },
    #[error("it sends one to another node at the moment")]
    Busy { retry_after: Duration },
    #[error("it gives none: {0}")]
    Refused(String),
    #[error("it does not go on")]
    Stalled,
    #[error("the connection broke off: {0}")]
    Lost(String),
    #[error("it ended after {received} of {bytes} bytes")]
    Cut { received: u64, bytes: u64 },
    #[error("what arrived is not what was sent (the checksums differ)")]
    Spoilt,
    #[error("it does not keep to the protocol")]
    Fault,
    #[error("writing it failed: {0}")]
    Write(io::Error),
}

impl FetchError {
    /// Tells whether a snapshot was begun, or about to be, and did not arrive: the same node may do
    /// better next time.
    pub fn is_broken(&self) -> bool {
        match self {
            Self::Stalled | Self::Lost(_) | Self::Cut { .. } | Self::Spoilt => true,
            Self::NotWorthIt { .. }
            | Self::Busy { .. }
            | Self::Refused(_)
            | Self::Fault
            | Self::Write(_) => false,
        }
    }
}

/// Somebody who goes to nodes for a snapshot, as the node that the certificate names.
pub struct Visitor {
    endpoint: Endpoint,
    config: ClientConfig,
    stall: Duration,
}

impl Visitor {
    /// Opens a socket at an address of this host, at any port. Called within a tokio runtime.
    pub fn new(local: IpAddr, identity: &Identity) -> Result<Self, BindError> {
        let (endpoint, config) = endpoint::visitor(local, identity)?;
        Ok(Self { endpoint, config, stall: STALL })
    }

    /// Sets how long a node may make no progress.
    #[cfg(test)]
    pub(super) fn with_stall(self, stall: Duration) -> Self {
        Self { stall, ..self }
    }

    /// Connects to a node.
    pub async fn visit(&self, address: SocketAddr, within: Duration) -> Result<Visit, DialError> {
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), address, SERVER_NAME)
            .map_err(|error| connect_error(address, &error))?;
        let connection = match timeout(within, connecting).await {
            Ok(connection) => connection.map_err(|error| dial_error(address, &error))?,
            Err(_) => return Err(DialError::NoAnswer(address)),
        };
        let subject = subject(&connection).ok_or_else(|| DialError::Stranger {
            address,
            why: "its certificate names no node".to_owned(),
        })?;
        let (node, name) = (subject.node, subject.name);
        Ok(Visit { node, name, address, connection, stall: self.stall })
    }

    /// Says goodbye to those who are still visited, and closes the socket.
    pub async fn close(self) {
        self.endpoint.close(Close::Unwanted.code(), b"not needed any more");
        // Who has not heard it by then finds out by itself.
        let _ = timeout(Duration::from_millis(200), self.endpoint.wait_idle()).await;
    }
}

/// A node that is visited.
pub struct Visit {
    /// Whom its certificate names.
    pub node: NodeId,
    pub name: String,
    pub address: SocketAddr,
    connection: Connection,
    stall: Duration,
}

impl Visit {
    /// Tells whether the node has ended the visit.
    pub fn is_over(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Asks for a snapshot, and waits until it is made; `making` hears how far that is, in bytes,
    /// and of how many.
    pub async fn ask(
        &self,
        request: Request,
        making: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Offer, FetchError> {
        let opened = timeout(self.stall, self.connection.open_bi()).await;
        let (mut out, mut stream) =
            opened.map_err(|_| FetchError::Stalled)?.map_err(|error| lost(&error))?;
        // A connection that is gone is told by the answer, which does not come.
        let _ = out.write_all(&request.encode()).await;
        let _ = out.finish();
        let (mut most, mut since) = (0, Instant::now());
        loop {
            match timeout(self.stall, self.answer(&mut stream)).await {
                Ok(Ok(Answer::Making { done, total })) => {
                    if done > most {
                        (most, since) = (done, Instant::now());
                    } else if since.elapsed() > self.stall * MAKING_STALLS {
                        return Err(FetchError::Stalled);
                    }
                    making(done, total);
                }
                Ok(Ok(Answer::Snapshot { bytes, format })) => {
                    let (connection, stall) = (self.connection.clone(), self.stall);
                    return Ok(Offer { bytes, format, connection, stream, stall });
                }
                Ok(Ok(Answer::NotWorthIt { bytes })) => {
                    return Err(self.done(FetchError::NotWorthIt { bytes }));
                }
                Ok(Ok(Answer::Busy { retry_after })) => {
                    return Err(self.done(FetchError::Busy { retry_after }));
                }
                Ok(Ok(Answer::Refused { why })) => {
                    return Err(self.done(FetchError::Refused(why)));
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(FetchError::Stalled),
            }
        }
    }

    /// Ends the visit: there is nothing more to come.
    fn done(&self, error: FetchError) -> FetchError {
        self.connection.close(Close::Done.code(), b"");
        error
    }

    async fn answer(&self, stream: &mut RecvStream) -> Result<Answer, FetchError> {
        let mut head = [0; Answer::HEAD_BYTES];
        read_exact(stream, &mut head).await?;
        let fault = || {
            self.connection.close(Close::Fault.code(), b"not an answer");
            FetchError::Fault
        };
        let (kind, length) = Answer::decode_head(head).ok_or_else(fault)?;
        let mut body = vec![0; length];
        read_exact(stream, &mut body).await?;
        Answer::decode(kind, &body).ok_or_else(fault)
    }
}

/// A snapshot that is about to be sent.
pub struct Offer {
    pub bytes: u64,
    /// The version of its tables.
    pub format: u32,
    connection: Connection,
    stream: RecvStream,
    stall: Duration,
}

impl Offer {
    /// Receives it into an empty file; `progress` hears how many bytes are here. When this returns,
    /// nobody writes to the file any more, and what is in it has the sender's checksum. It is not
    /// all synced.
    pub async fn take(
        mut self,
        file: File,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), FetchError> {
        let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
        let writing = tokio::task::spawn_blocking(move || write(file, pieces));
        let limit = transfer_time(self.bytes);
        let received = timeout(limit, self.receive(sender, progress)).await;
        let received = received.unwrap_or(Err(FetchError::Stalled));
        // Also after a failure: the file may be used anew at once.
        let written = writing.await.map_err(io::Error::other);
        let sum = written.and_then(|written| written).map_err(FetchError::Write)?;
        let wanted = received?;
        if sum.as_ref() != wanted {
            self.connection.close(Close::Fault.code(), b"the checksums differ");
            return Err(FetchError::Spoilt);
        }
        self.connection.close(Close::Done.code(), b"");
        Ok(())
    }

    /// Hands the pieces on, and returns the checksum that follows them.
    async fn receive(
        &mut self,
        pieces: mpsc::Sender<Bytes>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<[u8; CHECKSUM_BYTES], FetchError> {
        let bytes = self.bytes;
        let mut received = 0;
        while received < bytes {
            let length =
                usize::try_from(bytes - received).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            let read = timeout(self.stall, self.stream.read_chunk(length, true));
            let chunk = read.await.map_err(|_| FetchError::Stalled)?;
            let chunk = chunk.map_err(|error| broken(&error))?;
            let Some(chunk) = chunk else { return Err(FetchError::Cut { received, bytes }) };
            received += chunk.bytes.len() as u64;
            if pieces.send(chunk.bytes).await.is_err() {
                // Writing has failed, and says why.
                return Ok([0; CHECKSUM_BYTES]);
            }
            progress(received);
        }
        let mut sum = [0; CHECKSUM_BYTES];
        let read = timeout(self.stall, read_exact(&mut self.stream, &mut sum)).await;
        match read.map_err(|_| FetchError::Stalled)? {
            Err(FetchError::Fault) => Err(FetchError::Cut { received, bytes }),
            read => read.map(|()| sum),
        }
    }
}

/// Writes the pieces of a file until no more come, and returns its checksum.
fn write(mut file: File, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<digest::Digest> {
    let mut sum = checksum();
    let mut unsynced = 0;
    while let Some(piece) = pieces.blocking_recv() {
        sum.update(&piece);
        file.write_all(&piece)?;
        unsynced += piece.len() as u64;
        if unsynced >= SYNC_EVERY_BYTES {
            unsynced = 0;
            file.sync_data()?;
        }
    }
    Ok(sum.finish())
}

async fn read_exact(stream: &mut RecvStream, bytes: &mut [u8]) -> Result<(), FetchError> {
    stream.read_exact(bytes).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(_) => FetchError::Fault,
        ReadExactError::ReadError(error) => broken(&error),
    })
}

fn broken(error: &ReadError) -> FetchError {
    match error {
        ReadError::ConnectionLost(error) => lost(error),
        ReadError::Reset(code) if Close::from_code(*code) == Some(Close::Stopping) => {
            FetchError::Lost(Why::Stopping.to_string())
        }
        ReadError::Reset(_)
        | ReadError::ClosedStream
        | ReadError::IllegalOrderedRead
        | ReadError::ZeroRttRejected => FetchError::Lost("the other node gave it up".to_owned()),
    }
}

fn lost(error: &ConnectionError) -> FetchError {
    match error {
        ConnectionError::TimedOut => FetchError::Stalled,
        error => FetchError::Lost(why(error).to_string()),
    }
}
