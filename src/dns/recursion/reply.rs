//! What another server replied: kept as the bytes that it sent, with the places in them that change
//! when it is passed on. Nothing is written anew, so records of kinds that are not known here get
//! through as they are.

use std::ops::Range;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::key::Key;
use crate::dns::wire::HEADER_BYTES;

/// A record behind its owner's name: type, class, TTL and length.
const FIXED_BYTES: usize = 10;

/// A reply that belongs to the question that was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    bytes: Vec<u8>,
    pub code: ResponseCode,
    /// It was cut: the whole is to be had over TCP.
    pub is_truncated: bool,
    /// The server has checked its signatures.
    pub is_authentic: bool,
    /// The server speaks EDNS.
    pub has_edns: bool,
    /// How long it may be kept, in seconds; `None`: not at all, as nobody said how long.
    pub ttl: Option<u32>,
    /// Where TTLs stand in `bytes`.
    ttls: Vec<usize>,
    records: Vec<Place>,
}

/// An answer's place in the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    owner: usize,
    kind: u16,
    data: Range<usize>,
}

/// What an answer says, of the kinds that aliases lead to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// Without the final dot.
    pub owner: String,
    /// Seconds.
    pub ttl: u32,
    pub data: ForeignData,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ForeignData {
    A([u8; 4]),
    Aaaa([u8; 16]),
    Cname(String),
}

/// What a client sees of the question that it asked.
pub struct Shown<'q> {
    pub id: u16,
    /// The question's name as the client wrote it, on the wire.
    pub name: &'q [u8],
    pub is_recursion_desired: bool,
    pub is_checking_disabled: bool,
    /// The client understands "authentic data".
    pub wants_authentic: bool,
    /// The largest reply the client takes, in bytes.
    pub bytes_max: usize,
    /// Our own OPT record; empty: the client has none.
    pub opt: &'q [u8],
    /// Seconds since the reply came.
    pub age: u32,
    /// At most this is said to be left, in seconds.
    pub ttl_max: u32,
    /// At least this is said to be left, in seconds: of what is too old, and still better than nothing.
    pub ttl_min: u32,
}

impl Reply {
    /// Reads a reply; `None`: it is malformed, or belongs to another question.
    pub fn read(bytes: &[u8], id: u16, key: &Key) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let is_reply = header[2] & 0xf8 == 0x80;
        if number(0) != id || !is_reply || number(4) != 1 || !key.is_question_of(bytes) {
            return None;
        }
        let mut reply = Self {
            bytes: Vec::new(),
            code: ResponseCode::from(0, header[3] & 0x0f),
            is_truncated: header[2] & 0x02 != 0,
            is_authentic: header[3] & 0x20 != 0,
            has_edns: false,
            ttl: None,
            ttls: Vec::new(),
            records: Vec::new(),
        };
        let counts = [number(6), number(8), number(10)];
        let mut walk = Walk { bytes, at: HEADER_BYTES + key.question_bytes() };
        let kept = reply.walk(&mut walk, counts)?;
        reply.bytes = bytes[..walk.at].to_vec();
        reply.bytes[10..12].copy_from_slice(&kept.to_be_bytes());
        Some(reply)
    }

    /// Walks over all records. Returns how many additional ones are kept: those before the OPT record,
    /// which is between two servers and usually the last. `walk` ends behind them.
    fn walk(&mut self, walk: &mut Walk<'_>, counts: [u16; 3]) -> Option<u16> {
        let (mut positive, mut negative) = (None, None);
        let sooner = |held: Option<u32>, ttl: u32| Some(held.map_or(ttl, |held| held.min(ttl)));
        for (section, count) in counts.iter().enumerate() {
            for index in 0..*count {
                let begin = walk.at;
                let record = walk.next()?;
                if section == 2 && record.kind == u16::from(RecordType::OPT) {
                    self.has_edns = true;
                    self.code = ResponseCode::from(record.ttl_bytes[0], self.code.low());
                    for _ in index + 1..*count {
                        walk.next()?;
                    }
                    walk.at = begin;
                    self.settle_ttl(counts[0], positive, negative);
                    return Some(index);
                }
                // RFC 2181, section 8: with the upper bit set it is none.
                let ttl = u32::from_be_bytes(record.ttl_bytes);
                let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
                positive = sooner(positive, ttl);
                if section == 1 && record.kind == u16::from(RecordType::SOA) {
                    // The minimum is its last field (RFC 2308, section 3).
                    let minimum = walk.bytes[record.data.clone()].last_chunk()?;
                    negative = sooner(negative, ttl.min(u32::from_be_bytes(*minimum)));
                }
                self.ttls.push(record.ttl_at);
                if section == 0 {
                    let (owner, kind, data) = (begin, record.kind, record.data);
                    self.records.push(Place { owner, kind, data });
                }
            }
        }
        self.settle_ttl(counts[0], positive, negative);
        Some(counts[2])
    }

    fn settle_ttl(&mut self, answers: u16, positive: Option<u32>, negative: Option<u32>) {
        self.ttl = match self.code {
            ResponseCode::NoError if answers > 0 => {
                positive.map(|ttl| negative.map_or(ttl, |negative| negative.min(ttl)))
            }
            ResponseCode::NoError | ResponseCode::NXDomain => negative.min(positive),
            _ => None,
        };
    }

    /// Tells whether a server that replies so knows: another one need not be asked.
    pub fn is_settled(&self) -> bool {
        matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain)
    }

    /// Tells whether it says that there is nothing.
    pub fn is_negative(&self) -> bool {
        self.code != ResponseCode::NoError || self.records.is_empty()
    }

    /// Tells how many bytes it takes in memory, about.
    pub fn weight(&self) -> usize {
        size_of::<Self>()
            + self.bytes.capacity()
            + self.ttls.capacity() * size_of::<usize>()
            + self.records.capacity() * size_of::<Place>()
    }

    /// Writes it for a client. Returns whether it was cut.
    pub fn write(&self, out: &mut Vec<u8>, shown: &Shown<'_>) -> bool {
        out.clear();
        out.extend_from_slice(&self.bytes);
        let opt = if self.has_edns { shown.opt } else { &[] };
        let is_cut = self.is_truncated || out.len() + opt.len() > shown.bytes_max;
        let question_end = HEADER_BYTES + shown.name.len() + 4;
        // Of the same length: what points to it still does.
        out[HEADER_BYTES..HEADER_BYTES + shown.name.len()].copy_from_slice(shown.name);
        if is_cut {
            out.truncate(question_end);
            out[6..HEADER_BYTES].fill(0);
        } else {
            for at in &self.ttls {
                let ttl: &mut [u8; 4] = (&mut out[*at..*at + 4]).try_into().expect("four bytes");
                let left = u32::from_be_bytes(*ttl).saturating_sub(shown.age);
                *ttl = left.min(shown.ttl_max).max(shown.ttl_min).to_be_bytes();
            }
        }
        if !opt.is_empty() {
            out.extend_from_slice(opt);
            // The upper bits of the code.
            let at = out.len() - opt.len() + 5;
            out[at] = self.code.high();
            let count = u16::from_be_bytes([out[10], out[11]]).saturating_add(1);
            out[10..12].copy_from_slice(&count.to_be_bytes());
        }
        out[..2].copy_from_slice(&shown.id.to_be_bytes());
        let bit = |bit: u8, is_set: bool| if is_set { bit } else { 0 };
        out[2] = 0x80 | bit(0x02, is_cut) | bit(0x01, shown.is_recursion_desired);
        out[3] = 0x80
            | bit(0x20, self.is_authentic && shown.wants_authentic)
            | bit(0x10, shown.is_checking_disabled)
            | self.code.low();
        is_cut
    }

    /// Lists the answers of the kinds that aliases lead to; `None`: a name in them is malformed.
    pub fn foreign(&self) -> Option<Vec<Foreign>> {
        let mut list = Vec::new();
        for place in &self.records {
            let data = &self.bytes[place.data.clone()];
            let data = match RecordType::from(place.kind) {
                RecordType::A => ForeignData::A(data.try_into().ok()?),
                RecordType::AAAA => ForeignData::Aaaa(data.try_into().ok()?),
                RecordType::CNAME => ForeignData::Cname(name_at(&self.bytes, place.data.start)?),
                _ => continue,
            };
            let ttl_at = place.data.start - 6;
            let ttl = self.bytes[ttl_at..].first_chunk().map(|ttl| u32::from_be_bytes(*ttl))?;
            list.push(Foreign { owner: name_at(&self.bytes, place.owner)?, ttl, data });
        }
        Some(list)
    }
}

/// Goes over records without looking into them.
struct Walk<'b> {
    bytes: &'b [u8],
    at: usize,
}

struct Record {
    kind: u16,
    ttl_at: usize,
    ttl_bytes: [u8; 4],
    data: Range<usize>,
}

impl Walk<'_> {
    fn next(&mut self) -> Option<Record> {
        self.skip_name()?;
        let fixed: &[u8; FIXED_BYTES] = self.bytes.get(self.at..)?.first_chunk()?;
        let start = self.at + FIXED_BYTES;
        let data = start..start + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let record = Record {
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            ttl_at: self.at + 4,
            ttl_bytes: [fixed[4], fixed[5], fixed[6], fixed[7]],
            data: data.clone(),
        };
        self.at = data.end;
        (data.end <= self.bytes.len()).then_some(record)
    }

    fn skip_name(&mut self) -> Option<()> {
        loop {
            match *self.bytes.get(self.at)? {
                0 => self.at += 1,
                length @ 1..0x40 => {
                    self.at += 1 + usize::from(length);
                    continue;
                }
                0xc0.. => self.at += 2,
                _ => return None,
            }
            return Some(());
        }
    }
}

/// Reads a name that may point to earlier ones; `None` when it is malformed, runs in a circle, or is no
/// text.
fn name_at(bytes: &[u8], mut at: usize) -> Option<String> {
    let mut name = String::new();
    // Each pointer leads further to the front, so that it ends.
    let mut before = at + 1;
    loop {
        match *bytes.get(at)? {
            0 => return (!name.is_empty()).then_some(name),
            length @ 1..0x40 => {
                let end = at + 1 + usize::from(length);
                let label = std::str::from_utf8(bytes.get(at + 1..end)?).ok()?;
                if label.contains('.') || name.len() + label.len() > 254 {
                    return None;
                }
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(label);
                at = end;
            }
            high @ 0xc0.. => {
                let to = usize::from(high & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
                if to >= before {
                    return None;
                }
                (at, before) = (to, to);
            }
            _ => return None,
        }
    }
}
