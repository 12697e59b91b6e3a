//! What an operator may choose about names that are not ours.

use std::net::SocketAddr;
use std::time::Duration;

use super::servers::Strategy;
use crate::dns::clients::Networks;
use crate::dns::config::Zone;

/// Whom to ask, for whom, and for how long to remember.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Who is asked about all names that no domain below has. Default nobody.
    pub servers: Vec<SocketAddr>,
    /// Who is asked about the names of a domain. Default none.
    pub domains: Vec<(Zone, Vec<SocketAddr>)>,
    /// Which one first. Default as written.
    pub strategy: Strategy,
    /// How long one server may take. Default 2 s.
    pub timeout: Duration,
    /// For whom others are asked. Default private networks and this host: who answers whole strangers
    /// is used by them against others.
    pub clients: Networks,
    /// How many replies are remembered; 0: none. Default 10,000.
    pub cache_entries: usize,
    /// How long a reply is remembered at most. Default a day.
    pub ttl_max: Duration,
    /// How long it is remembered at most that there is nothing. Default five minutes.
    pub negative_ttl_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            domains: Vec::new(),
            strategy: Strategy::default(),
            timeout: Duration::from_secs(2),
            clients: Networks::private(),
            cache_entries: 10_000,
            ttl_max: Duration::from_secs(86_400),
            negative_ttl_max: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// Tells whether anybody is ever asked.
    pub fn is_on(&self) -> bool {
        !self.servers.is_empty() || !self.domains.is_empty()
    }

    /// Tells whether there is anybody to ask about a name, in lower case and without its final dot.
    pub fn is_for(&self, name: &str) -> bool {
        let domains = self.domains.iter();
        !self.servers.is_empty()
            || domains.map(|(zone, _)| zone).any(|zone| is_below(name, zone.as_str()))
    }

    /// Lists all servers.
    pub fn all_servers(&self) -> impl Iterator<Item = SocketAddr> {
        let of_domains = self.domains.iter().flat_map(|(_, servers)| servers);
        self.servers.iter().chain(of_domains).copied()
    }
}

/// Tells whether a name is a domain's, or the domain itself; the empty domain has all.
pub fn is_below(name: &str, domain: &str) -> bool {
    let before = name.strip_suffix(domain);
    before.is_some_and(|before| domain.is_empty() || before.is_empty() || before.ends_with('.'))
}
