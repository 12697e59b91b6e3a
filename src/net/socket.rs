//! The UDP socket, counted: what really goes over the network, handshakes and all.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::counters::Counters;

/// See the module.
#[derive(Debug)]
pub(super) struct Counted {
    socket: Arc<dyn AsyncUdpSocket>,
    counters: Arc<Counters>,
}

impl Counted {
    pub fn new(socket: Arc<dyn AsyncUdpSocket>, counters: Arc<Counters>) -> Self {
        Self { socket, counters }
    }
}

/// In how many packets so many bytes travel, each of `segment` bytes but the last.
fn packets(bytes: usize, segment: usize) -> usize {
    bytes.div_ceil(segment.max(1))
}

impl AsyncUdpSocket for Counted {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)?;
        let bytes = transmit.contents.len();
        let segment = transmit.segment_size.unwrap_or(bytes);
        Counters::add(&self.counters.packets_sent, packets(bytes, segment));
        Counters::add(&self.counters.packet_bytes_sent, bytes);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.socket.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &received {
            for meta in &meta[..*count] {
                Counters::add(&self.counters.packets_received, packets(meta.len, meta.stride));
                Counters::add(&self.counters.packet_bytes_received, meta.len);
            }
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
