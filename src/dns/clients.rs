//! Which clients a rule is for, by their addresses.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks, in any order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Networks(Vec<IpNet>);

/// The text names no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no network; write it like 10.0.0.0/8, 2001:db8::/32 or 192.0.2.1, or as 'private' or 'any'"
)]
pub struct NetworkError(pub String);

/// Networks that nobody outside can send from: this host (RFC 1122), private ones (RFC 1918, 4193), those
/// of one link (RFC 3927, 4291), and those behind a carrier's translation (RFC 6598).
const PRIVATE: [&str; 10] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "0.0.0.0/32",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

impl Networks {
    /// Reads networks, single addresses, and the words `private` and `any`.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, NetworkError> {
        let mut networks = Vec::new();
        for text in texts {
            let text = text.as_ref().trim();
            match text {
                "private" => networks.extend(Self::private().0),
                "any" => networks.extend(Self::any().0),
                text => {
                    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
                    networks.push(network.map_err(|_| NetworkError(text.to_owned()))?);
                }
            }
        }
        Ok(Self(networks))
    }

    /// Everybody.
    pub fn any() -> Self {
        Self(["0.0.0.0/0", "::/0"].map(|text| text.parse().expect("a network")).to_vec())
    }

    /// Those that nobody outside can send from.
    pub fn private() -> Self {
        Self(PRIVATE.map(|text| text.parse().expect("a network")).to_vec())
    }

    /// Tells whether an address is in one of them.
    pub fn contains(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.0.iter().any(|network| network.contains(&client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(texts: &[&str], inside: &[&str], outside: &[&str]) {
        let networks = Networks::parse(texts).unwrap();
        let contains = |text: &&str| networks.contains(text.parse().unwrap());
        assert!(inside.iter().all(contains), "{texts:?} has {inside:?}");
        assert!(!outside.iter().any(contains), "{texts:?} has not {outside:?}");
    }

    #[test]
    fn an_address_is_in_a_network_whichever_way_it_is_written() {
        check(&["10.1.0.0/16"], &["10.1.2.3", "::ffff:10.1.2.3"], &["10.2.0.1", "::1"]);
        check(&["2001:db8::/32", "192.0.2.7"], &["2001:db8::9", "192.0.2.7"], &["192.0.2.8"]);
        check(&["any"], &["8.8.8.8", "2001:4860::1"], &[]);
        check(&[], &[], &["127.0.0.1"]);
    }

    #[test]
    fn private_is_what_no_stranger_can_send_from() {
        let inside = ["127.0.0.53", "10.0.0.1", "172.31.0.1", "192.168.9.9", "100.64.1.1", "::1"];
        check(&["private"], &inside, &["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1"]);
        check(&["private"], &["fd00::1", "fe80::1", "169.254.1.1"], &["fec0::1"]);
    }

    #[test]
    fn what_is_no_network_is_said() {
        for wrong in ["", "10.0.0.0/33", "localhost", "10.0.0"] {
            assert_eq!(Networks::parse(&[wrong]), Err(NetworkError(wrong.to_owned())));
        }
    }
}
