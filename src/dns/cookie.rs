//! DNS cookies (RFC 7873): what a server gives a client, so that the client knows a reply to be of
//! the server that it asked, and the server later knows the client to be where it says it is.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// The length of a client's cookie, in bytes.
pub const CLIENT_BYTES: usize = 8;
/// The lengths that a server's part may have, in bytes.
const SERVER_BYTES: std::ops::RangeInclusive<usize> = 8..=32;
/// The length of the server's parts that are made here (RFC 9018, section 4).
const OWN_BYTES: usize = 16;

/// How old a server's part may be, in seconds, and how far ahead of our clock (RFC 9018, section 4.3).
const AGE_MAX: u32 = 3_600;
const AHEAD_MAX: u32 = 300;

/// A cookie as a client sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    client: [u8; CLIENT_BYTES],
    /// Where it has the length of ours: others are of no use here.
    server: Option<[u8; OWN_BYTES]>,
}

impl Asked {
    /// Reads the option; `None`: it has a length that none can have, and the question is malformed
    /// (RFC 7873, section 5.2.2).
    pub fn read(option: &[u8]) -> Option<Self> {
        let (client, server) = option.split_first_chunk()?;
        let is_server = server.is_empty() || SERVER_BYTES.contains(&server.len());
        is_server.then_some(Self { client: *client, server: server.try_into().ok() })
    }
}

/// Makes the server's parts, with a secret that dies with the process.
#[derive(Debug, Default)]
pub struct Cookies {
    secret: RandomState,
}

impl Cookies {
    /// Makes the whole cookie for a client: its own part, then ours, laid out as RFC 9018 has it. The
    /// hash is SipHash of another strength, for nobody but this process has to check it.
    pub fn answer(
        &self,
        asked: Asked,
        client: IpAddr,
        now_unix: u32,
    ) -> [u8; CLIENT_BYTES + OWN_BYTES] {
        self.make(asked.client, client, now_unix)
    }

    /// Tells whether a client has the server's part that it was given a while ago: then it is where it
    /// says it is, for the part was sent there.
    pub fn is_proof(&self, asked: Asked, client: IpAddr, now_unix: u32) -> bool {
        let Some(server) = asked.server else { return false };
        let given = u32::from_be_bytes([server[4], server[5], server[6], server[7]]);
        let is_recent = now_unix.wrapping_sub(given) <= AGE_MAX;
        let is_near = given.wrapping_sub(now_unix) <= AHEAD_MAX;
        (is_recent || is_near) && self.make(asked.client, client, given)[CLIENT_BYTES..] == server
    }

    fn make(
        &self,
        asked: [u8; CLIENT_BYTES],
        client: IpAddr,
        now_unix: u32,
    ) -> [u8; CLIENT_BYTES + OWN_BYTES] {
        let mut cookie = [0; CLIENT_BYTES + OWN_BYTES];
        cookie[..CLIENT_BYTES].copy_from_slice(&asked);
        // Version 1, and three bytes that are reserved.
        cookie[CLIENT_BYTES] = 1;
        cookie[CLIENT_BYTES + 4..CLIENT_BYTES + 8].copy_from_slice(&now_unix.to_be_bytes());
        let hash = self.secret.hash_one((&cookie[..CLIENT_BYTES + 8], client));
        cookie[CLIENT_BYTES + 8..].copy_from_slice(&hash.to_be_bytes());
        cookie
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_has_one_of_the_lengths_that_there_are() {
        let is_read = |length: usize| Asked::read(&vec![7; length]).is_some();
        let lengths: Vec<usize> = (0..60).filter(|length| is_read(*length)).collect();
        assert_eq!(lengths, [8].into_iter().chain(16..=40).collect::<Vec<_>>());
    }

    #[test]
    fn a_servers_part_is_of_one_client_one_moment_and_one_process() {
        let ask = |client: [u8; 8]| Asked::read(&client).unwrap();
        let (cookies, asked) = (Cookies::default(), ask([7; 8]));
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let cookie = cookies.answer(asked, client, 77);
        assert_eq!((&cookie[..8], &cookie[8..16]), (&[7; 8][..], &[1, 0, 0, 0, 0, 0, 0, 77][..]));
        assert_eq!(cookie, cookies.answer(asked, client, 77));
        let others = [
            cookies.answer(ask([8; 8]), client, 77),
            cookies.answer(asked, "192.0.2.2".parse().unwrap(), 77),
            cookies.answer(asked, client, 78),
            Cookies::default().answer(asked, client, 77),
        ];
        assert!(others.iter().all(|other| other[16..] != cookie[16..]));
    }

    #[test]
    fn who_brings_back_its_servers_part_is_where_it_says() {
        let cookies = Cookies::default();
        let [client, other] =
            ["192.0.2.1", "192.0.2.2"].map(|text| text.parse::<IpAddr>().unwrap());
        let asked = Asked::read(&[7; 8]).unwrap();
        let given = cookies.answer(asked, client, 10_000);
        let is_proof =
            |bytes: &[u8], client, now| cookies.is_proof(Asked::read(bytes).unwrap(), client, now);
        assert!(is_proof(&given, client, 10_000) && is_proof(&given, client, 13_600));
        assert!(is_proof(&given, client, 9_700), "a clock was set back");
        assert!(!is_proof(&given, client, 13_601) && !is_proof(&given, client, 9_699));
        assert!(!is_proof(&given, other, 10_000) && !is_proof(&given[..8], client, 10_000));
        for at in 0..given.len() {
            let mut forged = given;
            forged[at] ^= 1;
            assert!(!is_proof(&forged, client, 10_000), "byte {at}");
        }
        assert!(!is_proof(&[&given[..], &[0]].concat(), client, 10_000));
    }
}
