//! Replies as bytes: names with compression, records, and cutting to size.
//!
//! hickory's encoder is not used for replies: it remembers only the first 64 labels for
//! compression, so that an SRV answer of two dozen instances, which Consul fits into 4,096 bytes,
//! would be cut; and it allocates for each label. Its decoder reads every reply in the tests.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::EdnsCode;

use super::answer::Transport;
use super::config::Config;
use super::name::{Name, Spelling};
use super::packet::Query;
use super::record::{Alpn, Data, Options, Record, Sections};

/// The length of a message's header.
pub const HEADER_BYTES: usize = 12;
/// The reply's limit without EDNS, and the least with it (RFC 6891, section 6.2.3).
const PLAIN_UDP_BYTES_MAX: usize = 512;
/// A TCP message has its length in 16 bits.
const TCP_BYTES_MAX: usize = 65_535;
/// Replies over TLS are as long as a multiple of this (RFC 8467, section 4.1), in bytes.
const PADDED_BYTES: usize = 468;
/// The smallest record that answers can consist of: a compressed owner and an IPv4 address.
const RECORD_BYTES_MIN: usize = 16;
/// Names that later ones may point to. Past it names are written in full where no earlier one
/// fits, so that a hostile catalog cannot make writing quadratic.
const NAMES_MAX: usize = 1_024;
/// Pointers have 14 bits.
const POINTER_MAX: usize = 0x3fff;
const CLASS_IN: u16 = 1;

/// Writes a reply into `out`, cut to what the client can take; returns whether it says so (TC).
pub fn write(
    out: &mut Vec<u8>,
    query: &Query,
    (sections, options): (&Sections<'_>, &Options<'_>),
    transport: Transport,
    config: &Config,
) -> bool {
    let said = (sections, options);
    let limit = bytes_max(query, transport, config);
    let total = sections.answers.len();
    let most = answers_max(query, transport, config, limit).min(total);
    if most == total {
        encode(out, query, said, &Cut::Whole, config);
        if out.len() <= limit {
            return false;
        }
    }
    // As Consul does: what is beside the answers goes first, all but one address for each SRV.
    let kept = largest(most, |answers| {
        encode(out, query, said, &Cut::Down { answers, is_truncated: false }, config);
        out.len() <= limit
    });
    let is_truncated = kept < total && transport == Transport::Udp && config.enable_truncate;
    encode(out, query, said, &Cut::Down { answers: kept, is_truncated }, config);
    is_truncated
}

/// Writes an OPT record for a reply that others wrote; empty where the client has none.
pub fn opt(query: &Query, options: &Options<'_>, config: &Config) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(edns) = query.edns {
        let mut writer = Writer { out: &mut out, names: Vec::new(), compress: false };
        writer.opt(ResponseCode::NoError, options, config);
        // RFC 3225, section 3.
        out[7] |= if edns.is_dnssec_ok { 0x80 } else { 0 };
    }
    out
}

/// Returns the OPT record of a reply that has no options and a code below 16.
pub fn plain_opt(config: &Config) -> [u8; 11] {
    let [high, low] = config.udp_bytes_max.to_be_bytes();
    [0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]
}

/// Writes what follows a record's owner, with all names in full; `None`: it leads back to the question.
pub fn uncompressed(out: &mut Vec<u8>, record: &Record<'_>) -> Option<()> {
    if let Data::Srv { target: Name::Question, .. } = record.data {
        return None;
    }
    Writer { out, names: Vec::new(), compress: false }.rest(record);
    Some(())
}

/// Leaves the header and the question of a reply, and says that the rest is to be had over TCP.
pub fn cut(reply: &mut Vec<u8>) {
    let mut at = HEADER_BYTES;
    if reply.get(5) == Some(&1) {
        // It was written here, in full.
        while reply[at] > 0 {
            at += 1 + usize::from(reply[at]);
        }
        at += 5;
    }
    reply.truncate(at);
    reply[2] |= 0x02;
    reply[6..HEADER_BYTES].fill(0);
}

/// Writes a header alone: for what cannot be read, and for what was not understood.
pub fn write_header(out: &mut Vec<u8>, request_header: &[u8], code: ResponseCode) {
    out.clear();
    out.extend_from_slice(&request_header[..2]);
    // Opcode and RD as they came.
    out.push(0x80 | request_header[2] & 0x79);
    out.push(code.low());
    out.resize(HEADER_BYTES, 0);
}

/// Returns how long a reply may be, in bytes.
pub fn bytes_max(query: &Query, transport: Transport, config: &Config) -> usize {
    limit(query.edns.map(|edns| edns.payload_bytes_max), transport, config)
}

/// Returns how long a reply may be, in bytes, to a client that takes so much, if it says.
pub fn limit(payload_bytes_max: Option<u16>, transport: Transport, config: &Config) -> usize {
    match (transport, payload_bytes_max) {
        (Transport::Tcp | Transport::Tls, _) => TCP_BYTES_MAX,
        (Transport::Udp, None) => PLAIN_UDP_BYTES_MAX,
        (Transport::Udp, Some(theirs)) => {
            let ours = usize::from(config.udp_bytes_max).max(PLAIN_UDP_BYTES_MAX);
            usize::from(theirs).clamp(PLAIN_UDP_BYTES_MAX, ours)
        }
    }
}

/// Returns how many answers a client gets at most over UDP that takes so much, if it says; 0: as many
/// as fit.
pub fn answers_limit(payload_bytes_max: Option<u16>, config: &Config) -> usize {
    let is_plain = payload_bytes_max.is_none_or(|max| usize::from(max) <= PLAIN_UDP_BYTES_MAX);
    if is_plain { config.udp_answer_limit } else { 0 }
}

fn answers_max(query: &Query, transport: Transport, config: &Config, limit: usize) -> usize {
    let fitting = limit / RECORD_BYTES_MIN;
    let most = answers_limit(query.edns.map(|edns| edns.payload_bytes_max), config);
    if transport == Transport::Udp && most > 0 { fitting.min(most) } else { fitting }
}

/// Finds the largest number up to `most` that fits, by halving. 0 always fits: a header, a
/// question, an SOA and an OPT record have fewer than 512 bytes when no answer is there.
fn largest(most: usize, mut fits: impl FnMut(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

enum Cut {
    Whole,
    /// So many answers, with one address for each.
    Down {
        answers: usize,
        is_truncated: bool,
    },
}

fn encode(
    out: &mut Vec<u8>,
    query: &Query,
    (sections, options): (&Sections<'_>, &Options<'_>),
    cut: &Cut,
    config: &Config,
) {
    let (answers, is_truncated) = match *cut {
        Cut::Whole => (&sections.answers[..], false),
        Cut::Down { answers, is_truncated } => (&sections.answers[..answers], is_truncated),
    };
    out.clear();
    let mut writer =
        Writer { out, names: Vec::with_capacity(32), compress: !config.disable_compression };
    writer.header(query, sections, is_truncated);
    writer.question(query);
    let answer_count = writer.records(answers.iter());
    let authority_count = writer.records(sections.authorities.iter());
    let mut additional_count = match cut {
        Cut::Whole => writer.records(sections.additionals.iter()),
        Cut::Down { answers, .. } => {
            let kept = sections.addresses.iter().take(*answers).flatten();
            writer.records(kept.map(|index| &sections.additionals[*index]))
        }
    };
    if sections.has_edns && query.edns.is_some() {
        writer.opt(sections.code, options, config);
        additional_count += 1;
    }
    writer.count(6, answer_count);
    writer.count(8, authority_count);
    writer.count(10, additional_count);
}

struct Writer<'o> {
    out: &'o mut Vec<u8>,
    /// The hash of each name written so far, from each of its labels on, and where it stands.
    names: Vec<(u32, u16)>,
    compress: bool,
}

impl Writer<'_> {
    fn header(&mut self, query: &Query, sections: &Sections<'_>, is_truncated: bool) {
        self.u16(query.id);
        let first = [
            (0x80, true),
            (0x04, sections.is_authoritative),
            (0x02, is_truncated),
            (0x01, query.is_recursion_desired),
        ];
        self.out.push(first.iter().map(|(bit, set)| if *set { *bit } else { 0 }).sum());
        let second = [(0x80, sections.is_recursion_available), (0x10, query.is_checking_disabled)];
        let bits: u8 = second.iter().map(|(bit, set)| if *set { *bit } else { 0 }).sum();
        self.out.push(bits | sections.code.low());
        self.u16(1);
        self.out.resize(HEADER_BYTES, 0);
    }

    /// Fills in a section's count, which stands at `offset`.
    fn count(&mut self, offset: usize, count: u16) {
        self.out[offset..offset + 2].copy_from_slice(&count.to_be_bytes());
    }

    fn question(&mut self, query: &Query) {
        self.spelling(&query.name, false);
        self.u16(query.kind.into());
        self.u16(query.class.into());
    }

    fn records<'a: 'r, 'r>(&mut self, records: impl Iterator<Item = &'r Record<'a>>) -> u16 {
        let mut count = 0;
        for record in records {
            self.record(record);
            count += 1;
        }
        count
    }

    fn record(&mut self, record: &Record<'_>) {
        self.name(&record.owner, true);
        self.rest(record);
    }

    /// Writes a record behind its owner.
    fn rest(&mut self, record: &Record<'_>) {
        self.u16(kind_of(&record.data).into());
        self.u16(CLASS_IN);
        self.u32(record.ttl);
        let length_at = self.out.len();
        self.u16(0);
        self.data(&record.data);
        self.end_of(length_at);
    }

    fn data(&mut self, data: &Data<'_>) {
        match data {
            Data::A(v4) => self.out.extend_from_slice(&v4.octets()),
            Data::Aaaa(v6) => self.out.extend_from_slice(&v6.octets()),
            Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => self.name(name, true),
            Data::Srv { weight, port, target } => {
                self.u16(1);
                self.u16(*weight);
                self.u16(*port);
                // RFC 2782: the target is not compressed. Later names may point to it.
                self.name(target, false);
            }
            Data::Svcb { priority, target, alpn, port, hint, .. } => {
                self.u16(*priority);
                self.name(target, false);
                self.svc_params(*alpn, *port, *hint);
            }
            Data::Txt { key, value } => self.txt(key, value),
            Data::Soa { zone, serial, times } => {
                self.name(&Name::Within("ns", zone), true);
                self.name(&Name::Within("hostmaster", zone), true);
                let numbers = [*serial, times.refresh, times.retry, times.expire, times.min_ttl];
                numbers.iter().for_each(|number| self.u32(*number));
            }
        }
    }

    /// Writes the parameters of an SVCB record, in the order of their keys (RFC 9460, section 2.2).
    fn svc_params(&mut self, alpn: Alpn<'_>, port: u16, hint: Option<IpAddr>) {
        if alpn.protocols().next().is_some() {
            let length_at = self.begin(1);
            for protocol in alpn.protocols() {
                self.out.push(u8::try_from(protocol.len()).expect("at most 255 bytes"));
                self.out.extend_from_slice(protocol.as_bytes());
            }
            self.end_of(length_at);
        }
        if port > 0 {
            let length_at = self.begin(3);
            self.u16(port);
            self.end_of(length_at);
        }
        if let Some(ip) = hint {
            let length_at = self.begin(if ip.is_ipv4() { 4 } else { 6 });
            match ip {
                IpAddr::V4(v4) => self.out.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => self.out.extend_from_slice(&v6.octets()),
            }
            self.end_of(length_at);
        }
    }

    /// Begins a parameter or an option. Returns where its length is to stand.
    fn begin(&mut self, key: u16) -> usize {
        self.u16(key);
        self.u16(0);
        self.out.len() - 2
    }

    /// Fills in the length of what was written behind it.
    fn end_of(&mut self, length_at: usize) {
        let length = self.out.len() - length_at - 2;
        self.count(length_at, u16::try_from(length).expect("record data has its own limits"));
    }

    /// Writes one entry of a node's meta: `key=value` (RFC 1464), or the bare value where the key
    /// begins with `rfc1035-`, as Consul has it.
    fn txt(&mut self, key: &str, value: &str) {
        let length_at = self.out.len();
        self.out.push(0);
        let is_bare = key.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("rfc1035-"));
        if is_bare {
            self.out.extend_from_slice(value.as_bytes());
        } else {
            self.quoted(key, true);
            self.out.push(b'=');
            self.quoted(value, false);
        }
        self.out.truncate(length_at + 1 + TXT_BYTES_MAX);
        self.split_strings(length_at);
    }

    /// Writes a text with RFC 1464's quotes: a grave accent before itself, and in a key before
    /// `=` and before blanks at either end.
    fn quoted(&mut self, text: &str, is_key: bool) {
        let ends = text.len() - text.trim_start_matches([' ', '\t']).len()
            ..text.trim_end_matches([' ', '\t']).len();
        for (at, byte) in text.bytes().enumerate() {
            let is_end_blank = is_key && !ends.contains(&at) && matches!(byte, b' ' | b'\t');
            if byte == b'`' || (is_key && byte == b'=') || is_end_blank {
                self.out.push(b'`');
            }
            self.out.push(byte);
        }
    }

    /// Splits what was written since `length_at`, whose first byte is to be a length, into
    /// strings of at most 255 bytes.
    fn split_strings(&mut self, length_at: usize) {
        let mut at = length_at;
        loop {
            let length = (self.out.len() - at - 1).min(255);
            self.out[at] = u8::try_from(length).expect("at most 255");
            at += 1 + length;
            if at == self.out.len() {
                return;
            }
            self.out.insert(at, 0);
        }
    }

    fn opt(&mut self, code: ResponseCode, options: &Options<'_>, config: &Config) {
        self.out.push(0);
        self.u16(RecordType::OPT.into());
        self.u16(config.udp_bytes_max);
        // The upper bits of the code, version 0, no flags.
        self.out.extend_from_slice(&[code.high(), 0, 0, 0]);
        let length_at = self.out.len();
        self.u16(0);
        let nsid = (!options.nsid.is_empty()).then_some(options.nsid.as_bytes());
        let said =
            [(EdnsCode::NSID, nsid), (EdnsCode::Cookie, options.cookie.as_ref().map(|c| &c[..]))];
        for (code, data) in said {
            let Some(data) = data else { continue };
            let option_at = self.begin(code.into());
            self.out.extend_from_slice(data);
            self.end_of(option_at);
        }
        if options.is_padded {
            let option_at = self.begin(EdnsCode::Padding.into());
            self.out.resize(self.out.len().next_multiple_of(PADDED_BYTES), 0);
            self.end_of(option_at);
        }
        self.end_of(length_at);
    }

    fn name(&mut self, name: &Name<'_>, compress: bool) {
        if *name == Name::Question && self.compress {
            return self.pointer(HEADER_BYTES);
        }
        let spelled = match name {
            Name::Question => self.question_again(),
            _ => Spelling::of(name),
        };
        self.spelling(&spelled.expect("resolve.rs makes only speakable records"), compress);
    }

    /// Reads the question's name back from where it was written, in full.
    fn question_again(&self) -> Option<Spelling> {
        let mut at = HEADER_BYTES;
        Spelling::of_labels(std::iter::from_fn(|| {
            let length = usize::from(self.out[at]);
            let label = &self.out[at + 1..at + 1 + length];
            at += 1 + length;
            (length > 0).then_some(label)
        }))
    }

    fn spelling(&mut self, spelling: &Spelling, compress: bool) {
        let mut hashes = [0; 128];
        let mut hash = 0x811c_9dc5;
        for index in (0..spelling.count()).rev() {
            hash = hash_label(hash, spelling.label(index));
            hashes[index] = hash;
        }
        let known = match compress && self.compress {
            true => (0..spelling.count())
                .find_map(|from| Some((from, self.find(hashes[from], spelling, from)?))),
            false => None,
        };
        let written = known.map_or(spelling.count(), |(from, _)| from);
        for (index, hash) in hashes.iter().enumerate().take(written) {
            self.remember(*hash);
            let label = spelling.label(index);
            self.out.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
            self.out.extend_from_slice(label);
        }
        match known {
            Some((_, offset)) => self.pointer(offset),
            None => self.out.push(0),
        }
    }

    fn remember(&mut self, hash: u32) {
        let at = self.out.len();
        if at <= POINTER_MAX && self.names.len() < NAMES_MAX {
            self.names.push((hash, u16::try_from(at).expect("at most 14 bits")));
        }
    }

    /// Finds where the labels of a name from `from` on stand already.
    fn find(&self, hash: u32, spelling: &Spelling, from: usize) -> Option<usize> {
        let alike = self.names.iter().filter(|(known, _)| *known == hash);
        alike.map(|(_, at)| usize::from(*at)).find(|at| self.stands_at(*at, spelling, from))
    }

    fn stands_at(&self, mut at: usize, spelling: &Spelling, from: usize) -> bool {
        for index in from..spelling.count() {
            at = self.follow(at);
            let label = spelling.label(index);
            let end = at + 1 + label.len();
            if usize::from(self.out[at]) != label.len() || self.out.get(at + 1..end) != Some(label)
            {
                return false;
            }
            at = end;
        }
        self.out[self.follow(at)] == 0
    }

    /// Follows our own pointer, if there is one; it never leads to another.
    fn follow(&self, at: usize) -> usize {
        if self.out[at] & 0xc0 != 0xc0 {
            return at;
        }
        usize::from(self.out[at] & 0x3f) << 8 | usize::from(self.out[at + 1])
    }

    fn pointer(&mut self, offset: usize) {
        self.u16(0xc000 | u16::try_from(offset).expect("only offsets of 14 bits are remembered"));
    }

    fn u16(&mut self, number: u16) {
        self.out.extend_from_slice(&number.to_be_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.out.extend_from_slice(&number.to_be_bytes());
    }
}

/// The longest TXT data that is written, before it is split: what is longer loses its end.
const TXT_BYTES_MAX: usize = 4_096;

fn kind_of(data: &Data<'_>) -> RecordType {
    match data {
        Data::A(_) => RecordType::A,
        Data::Aaaa(_) => RecordType::AAAA,
        Data::Cname(_) => RecordType::CNAME,
        Data::Ptr(_) => RecordType::PTR,
        Data::Ns(_) => RecordType::NS,
        Data::Srv { .. } => RecordType::SRV,
        Data::Svcb { is_https: true, .. } => RecordType::HTTPS,
        Data::Svcb { is_https: false, .. } => RecordType::SVCB,
        Data::Txt { .. } => RecordType::TXT,
        Data::Soa { .. } => RecordType::SOA,
    }
}

/// FNV-1a over a label and its length, so that `a.b` and `ab` differ.
fn hash_label(hash: u32, label: &[u8]) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let length = u8::try_from(label.len()).expect("a label has at most 63 bytes");
    label.iter().fold(step(hash, length), |hash, byte| step(hash, *byte))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;
    use crate::dns::testing::{Catalog, ask, data_of, question};

    fn big(instances: usize) -> Catalog {
        let meta = [("rack", "r1"), ("note", "something of some length")];
        let catalog = Catalog::empty().node(crate::dns::testing::ME, "n1", "127.0.0.1", &meta);
        let line =
            |n: usize| format!("big big-{n} 10.{}.{}.{}:9000", n >> 16, (n >> 8) & 255, n & 255);
        (0..instances).fold(catalog, |catalog, n| catalog.instance(&line(n)))
    }

    fn check(
        catalog: &Catalog,
        config: &Config,
        text: &str,
        edns: u16,
        expected: [usize; 2],
        is_cut: bool,
    ) {
        let reply = ask(&catalog.view, config, &question(text, edns), Transport::Udp);
        let counts = [reply.answers.len(), reply.additionals.len()];
        assert_eq!((counts, reply.metadata.truncation), (expected, is_cut), "{text} {edns}");
    }

    #[test]
    fn an_answer_that_does_not_fit_is_cut_and_says_so() {
        let (catalog, config) = (big(100), Config::default());
        check(&catalog, &config, "big.internal. A", 0, [30, 0], true);
        check(&catalog, &config, "big.internal. A", 1_232, [74, 0], true);
        check(&catalog, &config, "big.internal. A", 65_535, [74, 0], true);
        check(&catalog, &config, "big.internal. SRV", 1_232, [19, 19], true);
    }

    #[test]
    fn like_consul_an_answer_is_cut_without_a_word() {
        let (catalog, config) = (big(100), Config::default().like_consul());
        check(&catalog, &config, "big.internal. A", 0, [3, 0], false);
        check(&catalog, &config, "big.internal. A", 512, [3, 0], false);
        check(&catalog, &config, "big.internal. SRV", 0, [3, 3], false);
        check(&catalog, &config, "big.internal. A", 4_096, [100, 0], false);
        let config = Config { a_record_limit: 2, ..config };
        check(&catalog, &config, "big.internal. A", 4_096, [2, 0], false);
        check(&catalog, &config, "big.internal. SRV", 0, [3, 3], false);
    }

    #[test]
    fn what_is_beside_the_answers_goes_before_an_answer_does() {
        let (catalog, config) = (big(10), Config::default());
        check(&catalog, &config, "big.internal. SRV", 4_096, [10, 10], false);
        check(&big(3), &config, "big.internal. SRV", 4_096, [3, 9], false);
    }

    #[test]
    fn over_tcp_everything_comes_up_to_the_longest_message() {
        let tcp = |instances: usize, text: &str| -> Message {
            ask(&big(instances).view, &Config::default(), &question(text, 0), Transport::Tcp)
        };
        let whole = tcp(300, "big.internal. SRV");
        assert_eq!((whole.answers.len(), whole.additionals.len()), (300, 900));
        let cut = tcp(5_000, "big.internal. A");
        assert_eq!((cut.answers.len(), cut.metadata.truncation), (4_094, false));
    }

    #[test]
    fn each_instance_is_as_likely_as_any_other_to_survive_the_cut() {
        let (catalog, packet) = (big(24), question("big.internal. A", 0));
        let config = Config::default().like_consul();
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for seed in 0..800 {
            let super::super::Reply::Bytes(bytes) =
                super::super::answer(&catalog.view, &config, &packet, Transport::Udp, seed, 1)
            else {
                panic!("no reply");
            };
            for record in &Message::from_vec(&bytes).unwrap().answers {
                *counts.entry(data_of(record)).or_default() += 1;
            }
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|count| (60..145).contains(count)), "{counts:?}");
    }

    #[test]
    fn without_compression_every_name_stands_in_full() {
        let packet = question("big.internal. SRV", 4_096);
        let ask = |config: &Config| ask(&big(3).view, config, &packet, Transport::Udp);
        let in_full = Config { disable_compression: true, ..Config::default() };
        let sorted = |mut message: Message| {
            message.answers.sort();
            message.additionals.sort();
            message
        };
        assert_eq!(sorted(ask(&in_full)), sorted(ask(&Config::default())));
    }

    #[test]
    fn meta_is_quoted_by_rfc_1464_and_split_at_255_bytes() {
        let long = "x".repeat(300);
        let meta = [(" a=b` ", "c=`d"), ("long", &*long), ("RFC1035-raw", "just=this")];
        let catalog = Catalog::empty().node(crate::dns::testing::ME, "n1", "127.0.0.1", &meta);
        let packet = question("n1.node.internal. TXT", 4_096);
        let reply = ask(&catalog.view, &Config::default(), &packet, Transport::Udp);
        let mut texts: Vec<String> = reply.answers.iter().map(data_of).collect();
        texts.sort();
        let split = format!("\"long={}\" \"{}\"", "x".repeat(250), "x".repeat(50));
        assert_eq!(texts, ["\"` a`=b``` =c=``d\"", "\"just=this\"", &split]);
    }
}
