//! One packet in, one reply out: a function of the view, without clock, socket or lock.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RecordType};

use super::config::Config;
use super::packet::{self, Packet, Query};
use super::record::Sections;
use super::resolve::resolve;
use super::wire;
use crate::catalog::View;

/// How a packet came, which decides how long its reply may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Udp,
    /// Without the two bytes of length.
    Tcp,
}

/// A packet, and the circumstances its reply may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'p> {
    pub packet: &'p [u8],
    pub transport: Transport,
    /// Decides the order of records.
    pub seed: u64,
    /// Seconds since 1970: the SOA's serial.
    pub now_unix: u32,
}

/// What becomes of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Bytes(Vec<u8>),
    /// The packet was too short to have an id, or itself a reply.
    Silence,
}

/// What a reply was about, for counting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The type that was asked; `None` where the question could not be read.
    pub kind: Option<RecordType>,
    pub code: ResponseCode,
    pub is_truncated: bool,
}

/// Answers a packet.
pub fn answer(
    view: &View,
    config: &Config,
    packet: &[u8],
    transport: Transport,
    seed: u64,
    now_unix: u32,
) -> Reply {
    let mut bytes = Vec::with_capacity(512);
    match answer_into(view, config, Request { packet, transport, seed, now_unix }, &mut bytes) {
        Some(_) => Reply::Bytes(bytes),
        None => Reply::Silence,
    }
}

/// Answers a packet into a buffer that is used again. `None`: nothing is to be sent.
pub fn answer_into(
    view: &View,
    config: &Config,
    request: Request<'_>,
    out: &mut Vec<u8>,
) -> Option<Outcome> {
    let query = match packet::read(request.packet) {
        Packet::Query(query) => query,
        Packet::Refused(code) => {
            wire::write_header(out, request.packet, code);
            return Some(Outcome { kind: None, code, is_truncated: false });
        }
        Packet::Ignored => return None,
    };
    let sections = match refusal(&query) {
        Some(code) => Sections { is_authoritative: false, ..Sections::empty(code) },
        None => resolve(view, config, &query, request.seed, request.now_unix),
    };
    let is_truncated = wire::write(out, &query, &sections, request.transport, config);
    Some(Outcome { kind: Some(query.kind), code: sections.code, is_truncated })
}

/// Refuses what is well formed and still not for us, whatever its name.
fn refusal(query: &Query) -> Option<ResponseCode> {
    if query.edns.is_some_and(|edns| edns.version > 0) {
        return Some(ResponseCode::BADVERS);
    }
    if !matches!(query.class, DNSClass::IN | DNSClass::ANY) {
        return Some(ResponseCode::Refused);
    }
    // There is no zone to transfer: the catalog has its own ways to be copied.
    match query.kind {
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        _ => None,
    }
}
