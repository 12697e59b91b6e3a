//! Which questions are the same to another server.

use hickory_proto::rr::RecordType;

use crate::dns::name::Spelling;
use crate::dns::packet::Query;
use crate::dns::wire::HEADER_BYTES;

/// What we can take over UDP of another server, in bytes.
const UDP_BYTES_MAX: u16 = 1_232;
const CLASS_IN: u16 = 1;

/// A question for another server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// The name in lower case, as it is on the wire.
    name: Box<[u8]>,
    kind: u16,
    /// The client wants signatures, or checks them itself: the replies differ.
    is_dnssec_ok: bool,
    is_checking_disabled: bool,
}

impl Key {
    /// Takes a client's question.
    pub fn of(query: &Query) -> Self {
        Self {
            name: wire_name(&query.name).to_ascii_lowercase().into(),
            kind: query.kind.into(),
            is_dnssec_ok: query.edns.is_some_and(|edns| edns.is_dnssec_ok),
            is_checking_disabled: query.is_checking_disabled,
        }
    }

    /// Makes a question of our own; `None`: no message can hold that name.
    pub fn own(host: &str, kind: RecordType) -> Option<Self> {
        let labels = host.strip_suffix('.').unwrap_or(host).split('.');
        let name = wire_name(&Spelling::of_labels(labels.map(str::as_bytes))?);
        let name = name.to_ascii_lowercase().into();
        Some(Self { name, kind: kind.into(), is_dnssec_ok: false, is_checking_disabled: false })
    }

    /// Returns the name on the wire.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Tells how many bytes the question takes on the wire.
    pub fn question_bytes(&self) -> usize {
        self.name.len() + 4
    }

    /// Tells whether a message's question is this one, in whatever case.
    pub fn is_question_of(&self, message: &[u8]) -> bool {
        let end = HEADER_BYTES + self.name.len();
        let name = message.get(HEADER_BYTES..end);
        let is_name = name.is_some_and(|name| name.eq_ignore_ascii_case(&self.name));
        let [kind, class] = [self.kind, CLASS_IN].map(u16::to_be_bytes);
        is_name && message.get(end..end + 4) == Some(&[kind[0], kind[1], class[0], class[1]])
    }

    /// Writes the question as a message. Without EDNS for a server that does not know it.
    pub fn message(&self, id: u16, has_edns: bool) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER_BYTES + self.question_bytes() + 11);
        message.extend_from_slice(&id.to_be_bytes());
        // Recursion is desired, and whether the data was found authentic (RFC 6840, section 5.7).
        message.push(0x01);
        message.push(0x20 | if self.is_checking_disabled { 0x10 } else { 0 });
        message.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(has_edns)]);
        message.extend_from_slice(&self.name);
        message.extend_from_slice(&self.kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        if has_edns {
            message.push(0);
            message.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
            message.extend_from_slice(&UDP_BYTES_MAX.to_be_bytes());
            message.extend_from_slice(&[0, 0, if self.is_dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
        }
        message
    }
}

/// Writes a name as labels, each after its length.
pub fn wire_name(name: &Spelling) -> Vec<u8> {
    let mut wire = Vec::with_capacity(64);
    for index in 0..name.count() {
        let label = name.label(index);
        wire.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        wire.extend_from_slice(label);
    }
    wire.push(0);
    wire
}
