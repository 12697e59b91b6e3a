//! Names in replies: kept as their parts until they are written, so that making a record
//! allocates nothing.

use std::net::IpAddr;

use super::config::Zone;

/// The longest name on the wire, in bytes (RFC 1035, section 2.3.4).
pub const NAME_BYTES_MAX: usize = 255;
/// The longest label, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;
/// A name of one-byte labels has this many.
const LABELS_MAX: usize = 127;

/// A name in a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name<'a> {
    /// The name that was asked, in the question's own case.
    Question,
    /// A zone itself.
    Zone(&'a Zone),
    /// `<word>.<zone>`.
    Within(&'static str, &'a Zone),
    /// `<node>.node.<datacenter>.<zone>`.
    Node { node: &'a str, datacenter: &'a str, zone: &'a Zone },
    /// `<service>.service.<datacenter>.<zone>`.
    Service { service: &'a str, datacenter: &'a str, zone: &'a Zone },
    /// `<hex>.addr.<datacenter>.<zone>`.
    Address { ip: IpAddr, datacenter: &'a str, zone: &'a Zone },
    /// A host name as somebody registered it, with or without its final dot.
    Host(&'a str),
}

impl Name<'_> {
    /// Tells whether the name can stand in a DNS message at all. Node names and addresses come
    /// from registrations, which may hold anything.
    pub fn is_speakable(&self) -> bool {
        *self == Name::Question || Spelling::of(self).is_some()
    }
}

/// A name as labels of bytes, ready to be written.
pub struct Spelling {
    bytes: [u8; NAME_BYTES_MAX],
    /// Where each label ends in `bytes`; labels carry no length here.
    ends: [u8; LABELS_MAX],
    count: usize,
}

impl Spelling {
    /// Spells a name; `None` when a label is empty or too long, or the whole is, or the name is
    /// [`Name::Question`], which only its question can spell.
    pub fn of(name: &Name<'_>) -> Option<Self> {
        let mut spelling = Self::empty();
        match *name {
            Name::Question => return None,
            Name::Zone(zone) => spelling.push_text(zone.as_str())?,
            Name::Within(word, zone) => {
                spelling.push(word.as_bytes())?;
                spelling.push_text(zone.as_str())?;
            }
            Name::Node { node, datacenter, zone } => {
                spelling.push_text(node)?;
                spelling.push_tail(b"node", datacenter, zone)?;
            }
            Name::Service { service, datacenter, zone } => {
                spelling.push_text(service)?;
                spelling.push_tail(b"service", datacenter, zone)?;
            }
            Name::Address { ip, datacenter, zone } => {
                spelling.push_hex(ip)?;
                spelling.push_tail(b"addr", datacenter, zone)?;
            }
            Name::Host(host) => spelling.push_text(host.strip_suffix('.').unwrap_or(host))?,
        }
        Some(spelling)
    }

    /// Spells a name from its labels.
    pub fn of_labels<'l>(labels: impl Iterator<Item = &'l [u8]>) -> Option<Self> {
        let mut spelling = Self::empty();
        for label in labels {
            spelling.push(label)?;
        }
        Some(spelling)
    }

    /// Returns how many labels there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns a label, counted from the left.
    pub fn label(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { usize::from(self.ends[index - 1]) };
        &self.bytes[start..usize::from(self.ends[index])]
    }

    fn empty() -> Self {
        Self { bytes: [0; NAME_BYTES_MAX], ends: [0; LABELS_MAX], count: 0 }
    }

    /// Pushes the labels of a text with dots between them.
    fn push_text(&mut self, text: &str) -> Option<()> {
        text.split('.').try_for_each(|label| self.push(label.as_bytes()))
    }

    fn push_tail(&mut self, kind: &[u8], datacenter: &str, zone: &Zone) -> Option<()> {
        self.push(kind)?;
        // A node outside of any datacenter is named without one.
        if !datacenter.is_empty() {
            self.push_text(datacenter)?;
        }
        self.push_text(zone.as_str())
    }

    fn push_hex(&mut self, ip: IpAddr) -> Option<()> {
        let mut hex = [0; 32];
        let octets: &[u8] = match &ip {
            IpAddr::V4(v4) => &v4.octets(),
            IpAddr::V6(v6) => &v6.octets(),
        };
        for (pair, octet) in hex.chunks_exact_mut(2).zip(octets) {
            pair[0] = HEX_DIGITS[usize::from(octet >> 4)];
            pair[1] = HEX_DIGITS[usize::from(octet & 0x0f)];
        }
        self.push(&hex[..2 * octets.len()])
    }

    fn push(&mut self, label: &[u8]) -> Option<()> {
        if label.is_empty() || label.len() > LABEL_BYTES_MAX {
            return None;
        }
        let start = if self.count == 0 { 0 } else { usize::from(self.ends[self.count - 1]) };
        let end = start + label.len();
        // On the wire each label has its length before it, and the root its zero at the end.
        if end + self.count + 2 > NAME_BYTES_MAX {
            return None;
        }
        self.bytes[start..end].copy_from_slice(label);
        self.ends[self.count] = u8::try_from(end).expect("a name has at most 255 bytes");
        self.count += 1;
        Some(())
    }
}

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: Name<'_>, expected: Option<&str>) {
        let shown = Spelling::of(&name).map(|spelling| {
            let label = |index| String::from_utf8_lossy(spelling.label(index)).into_owned();
            (0..spelling.count()).map(label).collect::<Vec<_>>().join(".")
        });
        assert_eq!(shown.as_deref(), expected);
    }

    #[test]
    fn names_are_spelled_from_their_parts() {
        let zone = &Zone::parse("consul").unwrap();
        let datacenter = "dc1";
        check(Name::Within("ns", zone), Some("ns.consul"));
        check(Name::Node { node: "n1", datacenter, zone }, Some("n1.node.dc1.consul"));
        check(Name::Node { node: "n1", datacenter: "", zone }, Some("n1.node.consul"));
        let (v4, v6) = ("10.20.0.2".parse().unwrap(), "2001:db8::1".parse().unwrap());
        check(Name::Address { ip: v4, datacenter, zone }, Some("0a140002.addr.dc1.consul"));
        let expected = "20010db8000000000000000000000001.addr.dc1.consul";
        check(Name::Address { ip: v6, datacenter, zone }, Some(expected));
        check(Name::Host("db1.example.com."), Some("db1.example.com"));
    }

    #[test]
    fn what_no_message_can_hold_is_not_spelled() {
        for host in ["", ".", "a..b", ".a", &"x".repeat(64), &"abcdefg.".repeat(32)] {
            check(Name::Host(host), None);
        }
        let longest = ["x".repeat(63), "x".repeat(63), "x".repeat(63), "x".repeat(61)].join(".");
        assert!(Name::Host(&longest).is_speakable());
        assert!(!Name::Host(&format!("{longest}x")).is_speakable());
        assert!(Name::Host(&["x"; 127].join(".")).is_speakable());
        assert!(!Name::Host(&["x"; 128].join(".")).is_speakable());
    }
}
