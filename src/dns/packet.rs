//! Packets as they come: read whole, or refused with the code that RFC 1035, 6891 and 8906 want.

use hickory_proto::op::{
    Header, Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode,
};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::cookie::Asked;
use super::name::Spelling;
use super::wire::HEADER_BYTES;

/// The longest packet that is read, in bytes; what is longer is no question.
pub const QUERY_BYTES_MAX: usize = 4_096;

/// A question that can be answered, or refused by its contents.
pub struct Query {
    pub id: u16,
    pub is_recursion_desired: bool,
    pub is_checking_disabled: bool,
    /// It understands AD (RFC 6840, section 5.7).
    pub wants_authentic: bool,
    /// The name in its own case.
    pub name: Spelling,
    /// The name in lower case, with dots between the labels and none at the end.
    pub text: String,
    pub kind: RecordType,
    pub class: DNSClass,
    pub edns: Option<Edns>,
}

/// What a client said of itself by EDNS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edns {
    /// The longest reply it can take over UDP, in bytes.
    pub payload_bytes_max: u16,
    pub version: u8,
    /// It wants signatures (DO, RFC 3225).
    pub is_dnssec_ok: bool,
    /// It wants to know which server answers (RFC 5001).
    pub asks_nsid: bool,
    /// It has filled up its question, and wants the reply filled up (RFC 7830).
    pub asks_padding: bool,
    pub cookie: Option<Asked>,
}

impl Edns {
    /// Takes over what hickory has read; `None`: an option is malformed.
    fn of(edns: &hickory_proto::op::Edns) -> Option<Self> {
        let options = edns.options().as_ref();
        // Of several the first counts (RFC 7873, section 5.2).
        let cookie = options.iter().find_map(|(_, option)| match option {
            EdnsOption::Unknown(code, data) if *code == u16::from(EdnsCode::Cookie) => Some(data),
            _ => None,
        });
        Some(Self {
            payload_bytes_max: edns.max_payload(),
            version: edns.version(),
            is_dnssec_ok: edns.flags().dnssec_ok,
            asks_nsid: options.iter().any(|(code, _)| *code == EdnsCode::NSID),
            asks_padding: options.iter().any(|(code, _)| *code == EdnsCode::Padding),
            cookie: match cookie {
                Some(option) => Some(Asked::read(option)?),
                None => None,
            },
        })
    }
}

/// Why a packet is no question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// To be answered by a header with this code.
    Refused(ResponseCode),
    /// Not to be answered: too short to have an id, or itself a reply.
    Ignored,
}

/// Reads a packet.
pub fn read(bytes: &[u8]) -> Result<Query, Unread> {
    if bytes.len() < HEADER_BYTES {
        return Err(Unread::Ignored);
    }
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = Header::read(&mut decoder) else { return Err(Unread::Ignored) };
    // A reply to a reply could go on for ever.
    if header.message_type == MessageType::Response {
        return Err(Unread::Ignored);
    }
    match header.op_code {
        OpCode::Query => {}
        OpCode::Notify | OpCode::Update => return Err(Unread::Refused(ResponseCode::Refused)),
        OpCode::Status | OpCode::Unknown(_) => return Err(Unread::Refused(ResponseCode::NotImp)),
    }
    if bytes.len() > QUERY_BYTES_MAX {
        return Err(Unread::Refused(ResponseCode::FormErr));
    }
    read_query(&header, &mut decoder).ok_or(Unread::Refused(ResponseCode::FormErr))
}

/// Reads what follows the header; `None` when anything is wrong with it.
fn read_query(header: &Header, decoder: &mut BinDecoder<'_>) -> Option<Query> {
    if header.counts.queries != 1 {
        return None;
    }
    let question = HickoryQuery::read(decoder).ok()?;
    let op = header.op_code;
    let records = |decoder: &mut BinDecoder<'_>, count: u16, is_additional: bool| {
        Message::read_records(decoder, usize::from(count), is_additional, op).ok()
    };
    records(decoder, header.counts.answers, false)?;
    records(decoder, header.counts.authorities, false)?;
    let (_, edns, _) = records(decoder, header.counts.additionals, true)?;
    if !decoder.is_empty() || question.query_type() == RecordType::OPT {
        return None;
    }
    let edns = match &edns {
        Some(edns) => Some(Edns::of(edns)?),
        None => None,
    };
    let name = Spelling::of_labels(question.name().iter())?;
    Some(Query {
        id: header.id,
        is_recursion_desired: header.recursion_desired,
        is_checking_disabled: header.checking_disabled,
        wants_authentic: header.authentic_data || edns.is_some_and(|edns| edns.is_dnssec_ok),
        text: text_of(&name),
        name,
        kind: question.query_type(),
        class: question.query_class(),
        edns,
    })
}

/// Returns a name as text for comparing. A dot or a byte that is no ASCII within a label becomes
/// U+0001, which no catalog name contains, so that it matches nothing.
fn text_of(name: &Spelling) -> String {
    let mut text = String::with_capacity(64);
    for index in 0..name.count() {
        if index > 0 {
            text.push('.');
        }
        for byte in name.label(index) {
            let is_plain = byte.is_ascii() && *byte != b'.';
            text.push(if is_plain { char::from(byte.to_ascii_lowercase()) } else { '\u{1}' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::testing::question;

    /// Reads a packet and says in a word what it was.
    fn check(packet: &[u8], expected: &str) {
        let found = match read(packet) {
            Ok(query) => query.text,
            Err(Unread::Refused(code)) => format!("{code:?}"),
            Err(Unread::Ignored) => "silence".to_owned(),
        };
        assert_eq!(found, expected, "{packet:?}");
    }

    fn with(place: usize, value: u8) -> Vec<u8> {
        let mut packet = question("App.internal. A", 1_232);
        packet[place] = value;
        packet
    }

    #[test]
    fn a_question_is_read_in_lower_case() {
        check(&question("App.internal. A", 0), "app.internal");
        check(&question(". A", 0), "");
    }

    #[test]
    fn too_short_packets_and_replies_are_not_answered() {
        let packet = question("app.internal. A", 0);
        check(&packet[..11], "silence");
        check(&[], "silence");
        check(&with(2, 0x80), "silence");
    }

    #[test]
    fn only_one_whole_question_is_read() {
        let packet = question("app.internal. A", 1_232);
        (12..packet.len()).for_each(|length| check(&packet[..length], "FormErr"));
        check(&with(5, 0), "FormErr");
        check(&with(5, 2), "FormErr");
        check(&[&packet[..], &[0]].concat(), "FormErr");
        check(&[&packet[..], &[0; QUERY_BYTES_MAX]].concat(), "FormErr");
        // A name that points to itself.
        let itself = [&packet[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
        check(&[&itself[..11], &[0], &itself[12..]].concat(), "FormErr");
    }

    #[test]
    fn other_opcodes_are_refused_unread() {
        for (opcode, expected) in
            [(1, "NotImp"), (2, "NotImp"), (4, "Refused"), (5, "Refused"), (15, "NotImp")]
        {
            check(&with(2, opcode << 3), expected);
            check(&with(2, opcode << 3)[..12], expected);
        }
    }

    #[test]
    fn a_second_opt_record_is_a_format_error() {
        let packet = question("app.internal. A", 1_232);
        let mut two = [&packet[..], &packet[packet.len() - 11..]].concat();
        two[11] = 2;
        check(&two, "FormErr");
    }

    #[test]
    fn odd_bytes_in_labels_match_nothing() {
        let mut packet = question("aXb.internal. A", 0);
        for (odd, expected) in [(b'.', "a\u{1}b.internal"), (0xff, "a\u{1}b.internal")] {
            packet[14] = odd;
            check(&packet, expected);
        }
    }
}
