//! What the DNS room counted since the process started. Whoever shows it reads it when asked.

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::answer::Outcome;

/// Counters of all listeners together; they only rise.
#[derive(Debug, Default)]
pub struct Counters {
    pub kinds: Kinds,
    pub codes: Codes,
    /// Replies over UDP that said they were cut.
    pub truncated: AtomicU64,
    /// Packets that got no reply: too short, themselves a reply, or from an address that no
    /// client has.
    pub dropped: AtomicU64,
    /// Packets whose answering panicked: each is a bug. They were answered with SERVFAIL.
    pub panics: AtomicU64,
    /// Replies that the system would not send.
    pub send_errors: AtomicU64,
    /// TCP connections that were accepted, and those closed at once because of a limit.
    pub tcp_accepted: AtomicU64,
    pub tcp_refused: AtomicU64,
    /// Replies over UDP to strangers that were cut or not sent, as they were too long or too many.
    pub restrained: AtomicU64,
    pub recursion: Recursion,
}

/// Names that others were asked about.
#[derive(Debug, Default)]
pub struct Recursion {
    /// Questions that servers were asked.
    pub asked: AtomicU64,
    /// Those that were answered from memory.
    pub cached: AtomicU64,
    /// Those that no server answered, or had an answer to.
    pub failed: AtomicU64,
    /// Those for which a reply was given that was too old, as there was no other.
    pub stale: AtomicU64,
    /// Those that were not asked, as too many were waiting.
    pub shed: AtomicU64,
    /// Servers that send questions back to this node.
    pub circles: AtomicU64,
}

/// Questions by the type that was asked.
#[derive(Debug, Default)]
pub struct Kinds {
    pub a: AtomicU64,
    pub aaaa: AtomicU64,
    pub srv: AtomicU64,
    pub any: AtomicU64,
    pub txt: AtomicU64,
    pub ptr: AtomicU64,
    pub soa: AtomicU64,
    pub ns: AtomicU64,
    /// Any other type.
    pub other: AtomicU64,
    /// Packets whose question could not be read.
    pub unreadable: AtomicU64,
}

/// Replies by response code.
#[derive(Debug, Default)]
pub struct Codes {
    pub no_error: AtomicU64,
    pub nx_domain: AtomicU64,
    pub refused: AtomicU64,
    pub form_err: AtomicU64,
    pub not_imp: AtomicU64,
    pub serv_fail: AtomicU64,
    /// Any other code.
    pub other: AtomicU64,
}

impl Counters {
    /// Counts an answered packet.
    pub fn count(&self, outcome: &Outcome) {
        add_one(self.kinds.of(outcome.kind));
        add_one(self.codes.of(outcome.code));
        if outcome.is_truncated {
            add_one(&self.truncated);
        }
    }
}

impl Kinds {
    fn of(&self, kind: Option<RecordType>) -> &AtomicU64 {
        match kind {
            None => &self.unreadable,
            Some(RecordType::A) => &self.a,
            Some(RecordType::AAAA) => &self.aaaa,
            Some(RecordType::SRV) => &self.srv,
            Some(RecordType::ANY) => &self.any,
            Some(RecordType::TXT) => &self.txt,
            Some(RecordType::PTR) => &self.ptr,
            Some(RecordType::SOA) => &self.soa,
            Some(RecordType::NS) => &self.ns,
            Some(_) => &self.other,
        }
    }
}

impl Codes {
    fn of(&self, code: ResponseCode) -> &AtomicU64 {
        match code {
            ResponseCode::NoError => &self.no_error,
            ResponseCode::NXDomain => &self.nx_domain,
            ResponseCode::Refused => &self.refused,
            ResponseCode::FormErr => &self.form_err,
            ResponseCode::NotImp => &self.not_imp,
            ResponseCode::ServFail => &self.serv_fail,
            _ => &self.other,
        }
    }
}

/// Adds one: no other memory depends on the order.
pub fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
