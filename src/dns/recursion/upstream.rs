//! One question to one server: over UDP, and over TCP where the reply was cut.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::key::Key;
use super::reply::Reply;

/// The longest reply over UDP that is read, in bytes: more than was asked for, for servers that do not
/// mind.
const UDP_BYTES_MAX: usize = 4_096;

/// Packets that are no reply to the question, before the question is asked over TCP, where nobody else
/// can get a word in.
const STRANGERS_MAX: usize = 8;

/// Asks a server. The caller gives it a time; nothing is left behind when it is given up.
///
/// # Errors
/// There is no way to the server, or what it said was no reply.
pub async fn exchange(server: SocketAddr, key: &Key) -> io::Result<Reply> {
    let mut has_edns = true;
    loop {
        let reply = match over_udp(server, key, has_edns).await? {
            Some(reply) if !reply.is_truncated => reply,
            // Cut, or somebody else wants to be heard.
            Some(_) | None => over_tcp(server, key, has_edns).await?,
        };
        // RFC 6891, section 7: so says who does not know EDNS.
        let is_puzzled = matches!(reply.code, ResponseCode::FormErr | ResponseCode::NotImp);
        if !(has_edns && is_puzzled && !reply.has_edns) {
            return Ok(reply);
        }
        has_edns = false;
    }
}

/// Asks over UDP, from a port that nobody can guess; `None`: too much came that was no reply.
async fn over_udp(server: SocketAddr, key: &Key, has_edns: bool) -> io::Result<Option<Reply>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = rand::random();
    socket.send(&key.message(id, has_edns)).await?;
    let mut buffer = [0; UDP_BYTES_MAX];
    for _ in 0..STRANGERS_MAX {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = Reply::read(&buffer[..length], id, key) {
            return Ok(Some(reply));
        }
    }
    Ok(None)
}

async fn over_tcp(server: SocketAddr, key: &Key, has_edns: bool) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let id = rand::random();
    let message = key.message(id, has_edns);
    let length = u16::try_from(message.len()).expect("a question has fewer than 300 bytes");
    stream.write_all(&[&length.to_be_bytes()[..], &message].concat()).await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    let reply = Reply::read(&bytes, id, key);
    reply.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "that is no reply"))
}
