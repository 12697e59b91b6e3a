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

/// A cookie as a client sent it: its own part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked(pub [u8; CLIENT_BYTES]);

impl Asked {
    /// Reads the option; `None`: it has a length that none can have, and the question is malformed
    /// (RFC 7873, section 5.2.2).
    pub fn read(option: &[u8]) -> Option<Self> {
        let (client, server) = option.split_first_chunk()?;
        (server.is_empty() || SERVER_BYTES.contains(&server.len())).then_some(Self(*client))
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
        let mut cookie = [0; CLIENT_BYTES + OWN_BYTES];
        cookie[..CLIENT_BYTES].copy_from_slice(&asked.0);
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
        let (cookies, asked) = (Cookies::default(), Asked([7; 8]));
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let cookie = cookies.answer(asked, client, 77);
        assert_eq!((&cookie[..8], &cookie[8..16]), (&[7; 8][..], &[1, 0, 0, 0, 0, 0, 0, 77][..]));
        assert_eq!(cookie, cookies.answer(asked, client, 77));
        let others = [
            cookies.answer(Asked([8; 8]), client, 77),
            cookies.answer(asked, "192.0.2.2".parse().unwrap(), 77),
            cookies.answer(asked, client, 78),
            Cookies::default().answer(asked, client, 77),
        ];
        assert!(others.iter().all(|other| other[16..] != cookie[16..]));
    }
}
