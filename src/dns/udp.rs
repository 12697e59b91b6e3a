//! UDP: a thread for each socket, which receives, answers and sends, one packet after the other.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::io::Errno;
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
/// The system may hand over several packets of one sender at once, up to this many bytes.
const BATCH_BYTES_MAX: usize = 65_536;
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
        // The state is made for event loops; a thread of its own rather waits.
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(WAIT_MAX))?;
        if let Err(error) = state.set_recv_buffer_size((&socket).into(), RECEIVE_BUFFER_BYTES) {
            debug!(%error, "The receive buffer stays as it is");
        }
        let address = socket.local_addr()?;
        Ok(Self { socket, state, address })
    }

    /// Waits for packets, for at most [`WAIT_MAX`].
    fn receive(&self, buffer: &mut [u8]) -> io::Result<RecvMeta> {
        let mut meta = [RecvMeta::default()];
        let mut buffers = [IoSliceMut::new(buffer)];
        self.state.recv((&self.socket).into(), &mut buffers, &mut meta)?;
        Ok(meta[0])
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

    /// Tells whether an address can be a client's: not port 0, which nobody can receive on, and
    /// not this socket itself, which would talk to itself for ever.
    fn is_client(&self, meta: &RecvMeta) -> bool {
        let is_self = meta.addr.port() == self.address.port()
            && (meta.addr.ip() == self.address.ip() || Some(meta.addr.ip()) == meta.dst_ip);
        meta.addr.port() != 0 && !is_self
    }
}

/// Answers until the token is cancelled, or until the socket fails for good.
pub fn run(
    endpoint: &Arc<Endpoint>,
    mut worker: Worker,
    errands: &Errands,
    token: &CancellationToken,
    pulse: &Pulse,
) -> io::Result<()> {
    let mut buffer = vec![0; BATCH_BYTES_MAX];
    let shared = Arc::clone(&worker.shared);
    let cautious = Config { udp_bytes_max: SAFE_REPLY_BYTES, ..shared.config.clone() };
    while !token.is_cancelled() {
        pulse.beat("waiting for a packet");
        let meta = match endpoint.receive(&mut buffer) {
            Ok(meta) => meta,
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(error),
        };
        pulse.beat("answering");
        if !endpoint.is_client(&meta) {
            add_one(&shared.counters.dropped);
            continue;
        }
        let client = meta.addr.ip();
        for packet in buffer[..meta.len].chunks(meta.stride.max(1)) {
            match worker.answer(packet, client, Transport::Udp) {
                Told::Silence => continue,
                Told::Ready => {}
                Told::Later(errand) => {
                    let answer = worker.run(errand);
                    errands.spawn(send_later(Arc::clone(endpoint), meta, answer));
                    continue;
                }
            }
            let mut sent = endpoint.send(&worker.reply, &meta);
            if is_too_long(&sent)
                && let Told::Ready =
                    worker.answer_with(Some(&cautious), packet, client, Transport::Udp)
            {
                sent = endpoint.send(&worker.reply, &meta);
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
