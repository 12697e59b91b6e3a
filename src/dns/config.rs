//! What an operator may choose about DNS. Where it was written down is another room's business.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::clients::Networks;
use super::{recursion, secure};

/// How the node answers DNS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where to listen, over UDP and TCP. The second part is true where it is no error that the
    /// address cannot be bound. Port 0 takes any free port.
    pub listen: Vec<(SocketAddr, bool)>,
    /// Threads for each UDP address, at least 1. Default: one a core, at most 4.
    pub udp_workers: usize,
    /// The zones we answer for, all with the same content; the first is the primary one. Never
    /// empty. Default `internal`, `consul`.
    pub zones: Vec<Zone>,
    /// The zone that SRV targets, SOA and NS stay in whatever zone was asked, as Consul 1.8 has
    /// it: an index into `zones`. `None`: the zone that was asked. Default `None`.
    pub targets_in: Option<usize>,
    /// The zone of the names in PTR answers: an index into `zones`. Default: `consul` as long as
    /// it is served, so that a migration changes no reverse name; then the primary zone.
    pub reverse_in: usize,
    /// The datacenter meant by names that do not say one.
    pub datacenter: String,
    /// Names of the nodes that the zones' NS records list. Default none: only this node, the one
    /// node of which we know that it answers whoever asks here.
    pub name_servers: Vec<String>,
    /// Leaves out instances that warn, too. Default false.
    pub only_passing: bool,
    /// TTL of answers about nodes, in seconds. Default 0.
    pub node_ttl: u32,
    /// TTLs of answers about services. Default 0 for all.
    pub service_ttl: ByService<u32>,
    /// In which order a service's instances are answered. Default random.
    pub order: ByService<Order>,
    /// Whose instances that warn are left out, too. Default nobody's.
    pub only_passing_of: ByService<bool>,
    /// The times of the SOA record.
    pub soa: Soa,
    /// The largest reply over UDP, in bytes, 512 to 4096. A client's smaller EDNS buffer counts;
    /// without EDNS the limit is 512. Default 1232, which crosses every path unfragmented.
    pub udp_bytes_max: u16,
    /// At most this many records in an answer to a client without EDNS (or with a buffer of 512
    /// bytes) over UDP; 0: as many as fit. Consul has 3. Default 0.
    pub udp_answer_limit: usize,
    /// At most this many A or AAAA records an answer, over UDP and TCP; 0: no limit. Default 0.
    pub a_record_limit: usize,
    /// Sets the truncation flag when an answer over UDP was cut, so that the client asks again
    /// over TCP. Consul has false. Default true.
    pub enable_truncate: bool,
    /// Node meta as TXT records beside answers about nodes and beside SRV. Default true.
    pub node_meta_txt: bool,
    /// What a client is told that asks which server answered (NSID, RFC 5001), at most
    /// [`NSID_BYTES_MAX`] bytes; empty: nothing. Default empty.
    pub nsid: String,
    /// Writes every name in full. Default false.
    pub disable_compression: bool,
    /// DNS over TLS and HTTPS. Default none.
    pub secure: Option<Secure>,
    /// Who is answered; others are refused. Default everybody.
    pub allow_query: Networks,
    /// Replies a second over UDP to a network of strangers (256 addresses, a /56), which may be
    /// victims in whose name somebody else asks; 0: no limit. Strangers are those outside of private
    /// networks that have brought no cookie of ours. Default 200.
    pub stranger_rate: u32,
    /// How many times longer than its question a reply over UDP to a stranger may be; longer ones are
    /// cut, so that they are asked for over TCP; 0: no limit. Default 10.
    pub stranger_factor: usize,
    /// Who is asked about names outside of the zones. Default nobody.
    pub recursion: recursion::Config,
}

/// DNS over TLS (RFC 7858) and over HTTPS (RFC 8484, under `/dns-query`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secure {
    pub files: secure::Files,
    /// Where TLS is spoken.
    pub tls: Vec<SocketAddr>,
    /// Where HTTPS is.
    pub https: Vec<SocketAddr>,
}

/// The longest [`Config::nsid`].
pub const NSID_BYTES_MAX: usize = 64;

/// The smallest and the largest value of [`Config::udp_bytes_max`].
pub const UDP_BYTES_MIN: u16 = 512;
pub const UDP_BYTES_MAX: u16 = 4096;

/// More workers for one address than this bring nothing: the sockets' own work dominates.
const UDP_WORKERS_MAX: usize = 4;

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            listen: vec![(SocketAddr::from(([127, 0, 0, 1], 8600)), false)],
            udp_workers: cores.min(UDP_WORKERS_MAX),
            zones: vec![Zone::literal("internal"), Zone::literal("consul")],
            targets_in: None,
            reverse_in: 1,
            datacenter: "dc1".to_owned(),
            name_servers: Vec::new(),
            only_passing: false,
            node_ttl: 0,
            service_ttl: ByService::default(),
            order: ByService::default(),
            only_passing_of: ByService::default(),
            soa: Soa::default(),
            udp_bytes_max: 1232,
            udp_answer_limit: 0,
            a_record_limit: 0,
            enable_truncate: true,
            node_meta_txt: true,
            nsid: String::new(),
            disable_compression: false,
            secure: None,
            allow_query: Networks::any(),
            stranger_rate: 200,
            stranger_factor: 10,
            recursion: recursion::Config::default(),
        }
    }
}

impl Config {
    /// Takes over the zones, the primary one first, and sets [`Config::reverse_in`] to its
    /// default for them.
    #[must_use]
    pub fn with_zones(mut self, primary: Zone, others: Vec<Zone>) -> Self {
        self.zones = vec![primary];
        for zone in others {
            if !self.zones.contains(&zone) {
                self.zones.push(zone);
            }
        }
        self.reverse_in = self.zone_named("consul").unwrap_or(0);
        self
    }

    /// Makes answers as Consul 1.8 does by default, where that differs from ours: at most three
    /// records without EDNS, no truncation flag, the client's word for how much it can take, and
    /// targets in one zone.
    #[must_use]
    pub fn like_consul(mut self) -> Self {
        self.targets_in = Some(self.zone_named("consul").unwrap_or(0));
        self.udp_answer_limit = 3;
        self.enable_truncate = false;
        self.udp_bytes_max = UDP_BYTES_MAX;
        self
    }

    /// Finds a zone by its name, without the final dot.
    pub fn zone_named(&self, name: &str) -> Option<usize> {
        self.zones.iter().position(|zone| zone.text.eq_ignore_ascii_case(name))
    }
}

/// A zone's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zone {
    // Private: lower case, without the final dot, each label 1 to 63 bytes, not the root, and
    // short enough that any sensible name fits before it.
    text: String,
}

/// The text cannot be the name of a zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' cannot be a DNS domain: it needs letters, digits, '-' and '_', at most 63 between dots"
)]
pub struct ZoneError(pub String);

/// Leaves 155 bytes of the 255 for what stands before a zone.
const ZONE_BYTES_MAX: usize = 100;

impl Zone {
    /// Reads a zone's name, with or without its final dot.
    pub fn parse(text: &str) -> Result<Self, ZoneError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(is_fine);
        if name.len() > ZONE_BYTES_MAX || !name.split('.').all(is_label) {
            return Err(ZoneError(text.to_owned()));
        }
        Ok(Self { text: name })
    }

    /// Returns the name in lower case, without the final dot.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn literal(text: &'static str) -> Self {
        Self { text: text.to_owned() }
    }
}

/// A choice by service: what is set for the exact name, else for the longest `prefix*`, else for `*`,
/// else the default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ByService<T> {
    exact: BTreeMap<String, T>,
    /// The longest first.
    prefixes: Vec<(String, T)>,
}

impl<T: Copy + Default> ByService<T> {
    /// Takes the table as an operator writes it.
    pub fn new<'a>(table: impl IntoIterator<Item = (&'a str, T)>) -> Self {
        let mut choice = Self::default();
        for (name, value) in table {
            let name = name.to_lowercase();
            match name.strip_suffix('*') {
                Some(prefix) => choice.prefixes.push((prefix.to_owned(), value)),
                None => {
                    choice.exact.insert(name, value);
                }
            }
        }
        choice.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        choice
    }

    /// Returns what is set for a service, whose name is in lower case.
    pub fn of(&self, service: &str) -> T {
        if let Some(value) = self.exact.get(service) {
            return *value;
        }
        let longest = self.prefixes.iter().find(|(prefix, _)| service.starts_with(prefix.as_str()));
        longest.map_or_else(T::default, |(_, value)| *value)
    }

    /// Lists what is set.
    pub fn values(&self) -> impl Iterator<Item = T> {
        self.exact.values().chain(self.prefixes.iter().map(|(_, value)| value)).copied()
    }
}

/// In which order a service's instances are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// Each one as often first as the others.
    #[default]
    Random,
    /// Each one first as often as its weight is greater than the others'.
    Weighted,
    /// Those on nodes with the shortest round trips first, each as often as others of the same.
    Near,
}

/// The times in the SOA record, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Soa {
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    /// How long a resolver may remember that a name does not exist. Default 0: not at all.
    pub min_ttl: u32,
}

impl Default for Soa {
    fn default() -> Self {
        Self { refresh: 3600, retry: 600, expire: 86_400, min_ttl: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_name_wins_over_the_longest_prefix_and_that_over_the_star() {
        let ttl = ByService::new([("*", 10), ("ca*", 7), ("cache-*", 3), ("Web", 30)]);
        let of = ["web", "web2", "cafe", "cache-a"].map(|service| ttl.of(service));
        assert_eq!(of, [30, 10, 7, 3]);
        assert_eq!(ByService::<u32>::default().of("web"), 0);
    }

    #[test]
    fn a_zone_is_read_with_or_without_its_dot_and_never_the_root() {
        assert_eq!(Zone::parse("Internal.").unwrap(), Zone::parse("internal").unwrap());
        assert_eq!(Zone::parse("svc.example.com").unwrap().as_str(), "svc.example.com");
        for wrong in ["", ".", "a..b", "a b", ".internal", &"x".repeat(64)] {
            assert_eq!(Zone::parse(wrong), Err(ZoneError(wrong.to_owned())));
        }
    }

    #[test]
    fn reverse_names_stay_in_consul_as_long_as_it_is_served() {
        let zone = |text| Zone::parse(text).unwrap();
        assert_eq!(Config::default().with_zones(zone("a"), vec![zone("consul")]).reverse_in, 1);
        assert_eq!(Config::default().with_zones(zone("a"), vec![zone("a")]).reverse_in, 0);
    }
}
