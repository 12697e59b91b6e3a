//! UDP: a thread for each socket, which receives what is there, answers it, and sends the replies.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::answer::Transport;
use super::config::Config;
use super::counters::add_one;
use super::errand::Told;
use super::server::{Errands, Worker};
use crate::telemetry::Pulse;

/// How long a thread waits for a packet before it looks whether it is to end.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// What the system keeps for us while we answer, in bytes: some 20,000 questions. Best effort:
/// the system may allow less.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Room for one packet, or for several of one sender that the system hands over at once, in bytes.
const PACKET_BYTES_MAX: usize = 65_536;
/// The largest reply that is tried where a larger one did not fit the path.
const SAFE_REPLY_BYTES: u16 = 1_232;

/// A bound socket, and what it takes to reply from the address that was asked: on a host with
/// several addresses a socket bound to all of them would else reply from any.
pub struct Endpoint {
    socket: UdpSocket,
    state: UdpSocketState,
    address: SocketAddr,
}

impl Endpoint {
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        if let Err(error) = state.set_recv_buffer_size((&socket).into(), RECEIVE_BUFFER_BYTES) {
            debug!(%error, "The receive buffer stays as it is");
        }
        let address = socket.local_addr()?;
        Ok(Self { socket, state, address })
    }

    /// Waits until there is a packet, for at most [`WAIT_MAX`]; false: there is none.
    fn wait(&self) -> io::Result<bool> {
        let mut sockets = [PollFd::new(&self.socket, PollFlags::IN)];
        let limit = Timespec::try_from(WAIT_MAX).expect("less than a second");
        match poll(&mut sockets, Some(&limit)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the packets that are there. Returns how many.
    fn receive(&self, buffers: &mut [u8], metas: &mut [RecvMeta; BATCH_SIZE]) -> io::Result<usize> {
        let mut slices = buffers.chunks_mut(PACKET_BYTES_MAX).map(IoSliceMut::new);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| slices.next().expect("as many as there is room for"));
        self.state.recv((&self.socket).into(), &mut slices, metas)
    }

    fn send(&self, reply: &[u8], to: &RecvMeta) -> io::Result<()> {
        let transmit = Transmit {
            destination: to.addr,
            ecn: None,
            contents: reply,
            segment_size: None,
            src_ip: to.dst_ip,
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }

    /// Sends replies, as many as possible by one call. Returns which failed, and how.
    fn send_all(&self, batch: &Batch, metas: &[RecvMeta]) -> Vec<(usize, io::Error)> {
        let mut failed = Vec::new();
        // Such a socket has to say from which address a reply is to come.
        if self.address.ip().is_unspecified() || batch.replies.len() < 2 {
            for (index, reply) in batch.replies.iter().enumerate() {
                if let Err(error) = self.send(&batch.bytes[reply.bytes.clone()], &metas[reply.meta])
                {
                    failed.push((index, error));
                }
            }
            return failed;
        }
        let slices: Vec<[IoSlice<'_>; 1]> = (batch.replies.iter())
            .map(|reply| [IoSlice::new(&batch.bytes[reply.bytes.clone()])])
            .collect();
        let addresses: Vec<SocketAddrAny> =
            batch.replies.iter().map(|reply| metas[reply.meta].addr.into()).collect();
        let mut controls: Vec<_> = slices.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let parts = slices.iter().zip(&addresses).zip(&mut controls);
        let mut messages: Vec<MMsgHdr<'_>> = parts
            .map(|((slice, address), control)| MMsgHdr::new_with_addr(address, slice, control))
            .collect();
        let mut sent = 0;
        while sent < messages.len() {
            match sendmmsg(&self.socket, &mut messages[sent..], SendFlags::DONTWAIT) {
                Ok(count) => sent += count.max(1),
                Err(Errno::INTR) => {}
                // It is of the first one: the others may be sent still.
                Err(error) => {
                    failed.push((sent, error.into()));
                    sent += 1;
                }
            }
        }
        failed
    }

    /// Tells whether an address can be a client's: not port 0, which nobody can receive on, and
    /// not this socket itself, which would talk to itself for ever.
    fn is_client(&self, meta: &RecvMeta) -> bool {
        let is_self = meta.addr.port() == self.address.port()
            && (meta.addr.ip() == self.address.ip() || Some(meta.addr.ip()) == meta.dst_ip);
        meta.addr.port() != 0 && !is_self
    }
}

/// Replies to packets that came together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    replies: Vec<Ready>,
}

/// A reply, and whose it is.
struct Ready {
    bytes: Range<usize>,
    meta: usize,
    /// Where the question is.
    packet: Range<usize>,
}

/// Answers until the token is cancelled, or until the socket fails for good.
pub fn run(
    endpoint: &Arc<Endpoint>,
    mut worker: Worker,
    errands: &Errands,
    token: &CancellationToken,
    pulse: &Pulse,
) -> io::Result<()> {
    let mut buffers = vec![0; BATCH_SIZE * PACKET_BYTES_MAX];
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    let mut batch = Batch::default();
    let shared = Arc::clone(&worker.shared);
    let cautious = Config { udp_bytes_max: SAFE_REPLY_BYTES, ..shared.config.clone() };
    // Whether all were taken that were there.
    let mut is_empty = true;
    while !token.is_cancelled() {
        if is_empty {
            pulse.beat("waiting for a packet");
            if !endpoint.wait()? {
                worker.rest();
                continue;
            }
        }
        pulse.beat("answering");
        let count = match endpoint.receive(&mut buffers, &mut metas) {
            Ok(count) => count,
            Err(error) if is_passing(&error) => {
                is_empty = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        is_empty = count < BATCH_SIZE;
        batch.bytes.clear();
        batch.replies.clear();
        for (index, meta) in metas[..count].iter().enumerate() {
            if !endpoint.is_client(meta) {
                add_one(&shared.counters.dropped);
                continue;
            }
            let start = index * PACKET_BYTES_MAX;
            let stride = meta.stride.max(1);
            for at in (start..start + meta.len.min(PACKET_BYTES_MAX)).step_by(stride) {
                let packet = at..(at + stride).min(start + meta.len);
                match worker.answer(&buffers[packet.clone()], meta.addr.ip(), Transport::Udp) {
                    Told::Silence => {}
                    Told::Ready => {
                        let begin = batch.bytes.len();
                        batch.bytes.extend_from_slice(&worker.reply);
                        let bytes = begin..batch.bytes.len();
                        batch.replies.push(Ready { bytes, meta: index, packet });
                    }
                    Told::Later(errand) => {
                        let answer = worker.run(errand);
                        errands.spawn(send_later(Arc::clone(endpoint), *meta, answer));
                    }
                }
            }
        }
        for (index, error) in endpoint.send_all(&batch, &metas) {
            let Ready { meta, packet, .. } = &batch.replies[index];
            let (packet, meta) = (&buffers[packet.clone()], &metas[*meta]);
            let mut sent = Err(error);
            if is_too_long(&sent)
                && let Told::Ready =
                    worker.answer_with(Some(&cautious), packet, meta.addr.ip(), Transport::Udp)
            {
                sent = endpoint.send(&worker.reply, meta);
            }
            if sent.is_err() {
                add_one(&shared.counters.send_errors);
            }
        }
    }
    Ok(())
}

/// Sends a reply when it is there. One that is lost is asked for again.
async fn send_later(
    endpoint: Arc<Endpoint>,
    meta: RecvMeta,
    answer: impl Future<Output = Option<Vec<u8>>>,
) {
    if let Some(reply) = answer.await
        && let Err(error) = endpoint.send(&reply, &meta)
    {
        debug!(%error, client = %meta.addr, "A reply could not be sent");
    }
}

/// Tells whether receiving may simply go on: nothing came in time, or an earlier reply of ours
/// found nobody.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, OutOfMemory};
    matches!(
        error.kind(),
        WouldBlock
            | TimedOut
            | Interrupted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkUnreachable
            | OutOfMemory
    )
}

/// Packets are never fragmented, so a path may be too narrow for what was configured.
fn is_too_long(sent: &io::Result<()>) -> bool {
    let code = sent.as_ref().err().and_then(io::Error::raw_os_error);
    code == Some(Errno::MSGSIZE.raw_os_error())
}
