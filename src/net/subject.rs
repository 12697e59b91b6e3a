//! Whom a certificate is for: the URI that names a cluster and a node, written and read.

use std::fmt;
use std::time::{Duration, SystemTime};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::types::{ClusterId, NodeId};

const SCHEME: &str = "tribune://";

/// The longest node name in bytes.
pub const NAME_BYTES_MAX: usize = 253;

/// Who the holder of a node's certificate is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSubject {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub name: String,
}

/// What a certificate of ours is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Subject {
    Ca(ClusterId),
    Node(NodeSubject),
}

/// From when until when a certificate counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// How long before its end a certificate is told of, each time more urgently. One that is short-lived
/// is not told of before a third of its life is left.
const TOLD_BEFORE: [Duration; 3] = [days(30), days(7), days(1)];

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

impl Validity {
    /// Returns how long it still counts; `None`: no more.
    pub fn left(self, now: SystemTime) -> Option<Duration> {
        self.not_after.duration_since(now).ok().filter(|left| !left.is_zero())
    }

    /// Returns how urgent it is to renew it: 0 not at all, 4 too late.
    pub fn urgency(self, now: SystemTime) -> usize {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let Some(left) = self.left(now) else { return TOLD_BEFORE.len() + 1 };
        TOLD_BEFORE.iter().filter(|before| left < (**before).min(life / 3)).count()
    }

    /// Says that it has expired or soon will; `None`: there is time.
    pub fn note(self, now: SystemTime) -> Option<String> {
        match (self.urgency(now), self.left(now)) {
            (0, _) => None,
            (_, Some(left)) => Some(format!("its certificate expires in {}", words(left))),
            (_, None) => Some("its certificate has expired".to_owned()),
        }
    }

    /// Returns the time in which both count.
    pub fn and(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            not_after: self.not_after.min(other.not_after),
        }
    }
}

/// Says how long something takes, in the largest unit that fits.
pub fn words(span: Duration) -> String {
    let seconds = span.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    if count == 1 { format!("1 {unit}") } else { format!("{count} {unit}s") }
}

/// Why a certificate does not say whom it is for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SubjectError {
    #[error("it cannot be read as a certificate")]
    NotACertificate,
    #[error("it names no node and no cluster (no URI that begins with {SCHEME})")]
    NoUri,
    #[error("it names more than one node or cluster")]
    ManyUris,
    #[error(
        "its URI '{0}' is not of the form tribune://CLUSTER/ca or tribune://CLUSTER/node/ID/NAME"
    )]
    BadUri(String),
}

/// Reads whom a certificate is for. Whether it can be believed is decided by its signature.
pub(super) fn subject_of(der: &[u8]) -> Result<(Subject, Validity), SubjectError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| SubjectError::NotACertificate)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| SubjectError::NotACertificate)?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or(SubjectError::NoUri)?;
    if uris.next().is_some() {
        return Err(SubjectError::ManyUris);
    }
    let subject = parse(uri).ok_or_else(|| SubjectError::BadUri(shortened(uri)))?;
    let validity = Validity {
        not_before: system_time(certificate.validity().not_before.timestamp()),
        not_after: system_time(certificate.validity().not_after.timestamp()),
    };
    Ok((subject, validity))
}

/// The URI as it stands in a certificate.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ca(cluster) => write!(f, "{SCHEME}{cluster}/ca"),
            Self::Node(NodeSubject { cluster, node, name }) => {
                write!(f, "{SCHEME}{cluster}/node/{node}/{}", percent_encoded(name))
            }
        }
    }
}

fn parse(uri: &str) -> Option<Subject> {
    let mut parts = uri.strip_prefix(SCHEME)?.split('/');
    let cluster = parts.next()?.parse().ok()?;
    let subject = match parts.next()? {
        "ca" => Subject::Ca(cluster),
        "node" => {
            let node = parts.next()?.parse().ok()?;
            let name = percent_decoded(parts.next()?)?;
            is_name(&name).then_some(())?;
            Subject::Node(NodeSubject { cluster, node, name })
        }
        _ => return None,
    };
    parts.next().is_none().then_some(subject)
}

/// Returns whether a text can be a node's name: 1 to 253 bytes, no control characters.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(decoded).ok()
}

/// What a stranger wrote, fit for a log: at most so many characters, none of control.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if seconds < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    time.unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str) -> Subject {
        let (cluster, node) = (ClusterId([1; 16]), NodeId([2; 16]));
        Subject::Node(NodeSubject { cluster, node, name: name.to_owned() })
    }

    #[test]
    fn a_node_is_written_as_a_uri() {
        assert_eq!(
            node("web 1/ü").to_string(),
            "tribune://01010101-0101-0101-0101-010101010101/node/\
             02020202-0202-0202-0202-020202020202/web%201%2F%C3%BC"
        );
    }

    #[test]
    fn what_is_not_exactly_such_a_uri_is_refused() {
        let id = "01010101-0101-0101-0101-010101010101";
        assert_eq!(parse(&format!("tribune://{id}/ca")), Some(Subject::Ca(ClusterId([1; 16]))));
        for uri in [
            "tribune://".to_owned(),
            format!("tribune://{id}"),
            format!("tribune://{id}/ca/"),
            format!("tribune://{id}/node/{id}"),
            format!("tribune://{id}/node/{id}/"),
            format!("tribune://{id}/node/{id}/a/b"),
            format!("tribune://{id}/node/{id}/%0A"),
            format!("tribune://{id}/node/{id}/%fz"),
            format!("tribune://{id}/node/x/a"),
            format!("spiffe://{id}/ca"),
        ] {
            assert_eq!(parse(&uri), None, "{uri}");
        }
    }

    #[test]
    fn a_certificate_becomes_more_urgent_towards_its_end() {
        let start = SystemTime::UNIX_EPOCH;
        let of = |life, used| {
            let validity = Validity { not_before: start, not_after: start + life };
            (validity.urgency(start + used), validity.note(start + used).unwrap_or_default())
        };
        let hours = |count: u64| Duration::from_secs(count * 3_600);
        assert_eq!(of(days(90), days(59)).0, 0);
        assert_eq!(of(days(90), days(61)), (1, "its certificate expires in 29 days".to_owned()));
        assert_eq!(of(days(90), days(84)).0, 2);
        assert_eq!(of(days(90), days(89) + hours(1)).0, 3);
        assert_eq!(of(days(90), days(90)), (4, "its certificate has expired".to_owned()));
        assert_eq!(of(days(1), hours(12)).0, 0, "a short-lived one is no reason for noise");
        assert_eq!(of(days(1), hours(17)).0, 3);
    }

    proptest! {
        #[test]
        fn every_name_is_read_as_it_was_written(name in "\\PC{1,60}") {
            prop_assume!(is_name(&name));
            prop_assert_eq!(parse(&node(&name).to_string()), Some(node(&name)));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(subject_of(&bytes).is_err());
        }
    }
}
