//! Which of several servers is asked first: the configured order, but for those that do not answer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::dns::choose::Random;

/// In which order servers are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Strategy {
    /// As they were written down.
    #[default]
    Sequential,
    /// Another one each time.
    Random,
}

/// How long a server rests at first: one lost packet is no failure, two in a row are.
const REST_MIN: Duration = Duration::from_secs(1);
/// How long it rests at most before it is tried again.
const REST_MAX: Duration = Duration::from_secs(30);

/// Servers for one domain.
#[derive(Debug)]
pub struct Servers {
    strategy: Strategy,
    list: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// In a row.
    failures: u32,
    rests_until: Option<Instant>,
    /// It sends questions back to us.
    is_circle: bool,
}

impl Servers {
    pub fn new(addresses: &[SocketAddr], strategy: Strategy) -> Self {
        let server = |address: &SocketAddr| Server {
            address: *address,
            failures: 0,
            rests_until: None,
            is_circle: false,
        };
        Self { strategy, list: addresses.iter().map(server).collect() }
    }

    /// Returns whom to ask, one after the other. Those that rest come last: there may be nobody else.
    pub fn order(&self, now: Instant, seed: u64) -> Vec<SocketAddr> {
        let mut order: Vec<&Server> = self.list.iter().filter(|server| !server.is_circle).collect();
        if self.strategy == Strategy::Random {
            Random(seed).shuffle(&mut order);
        }
        order.sort_by_key(|server| server.rests_until.filter(|until| *until > now));
        order.iter().map(|server| server.address).collect()
    }

    /// Notes that a server answered, or did not in time or did not want to.
    pub fn note(&mut self, now: Instant, address: SocketAddr, is_well: bool) {
        let Some(server) = self.list.iter_mut().find(|server| server.address == address) else {
            return;
        };
        if is_well {
            (server.failures, server.rests_until) = (0, None);
            return;
        }
        server.failures = server.failures.saturating_add(1);
        if server.failures > 1 {
            let rest = REST_MIN * 2_u32.saturating_pow((server.failures - 2).min(10));
            server.rests_until = Some(now + rest.min(REST_MAX));
        }
    }

    /// Never asks a server again: it sends questions back to us. Returns whether that is new.
    pub fn leave_out(&mut self, address: SocketAddr) -> bool {
        let of = self.list.iter_mut().filter(|server| server.address == address);
        let mut is_new = false;
        of.for_each(|server| is_new |= !std::mem::replace(&mut server.is_circle, true));
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], n))
    }

    fn ports(servers: &Servers, now: Instant, seed: u64) -> Vec<u16> {
        servers.order(now, seed).iter().map(SocketAddr::port).collect()
    }

    #[test]
    fn who_fails_twice_is_asked_last_until_it_has_rested() {
        let mut servers = Servers::new(&[1, 2, 3].map(address), Strategy::Sequential);
        let now = Instant::now();
        assert_eq!(ports(&servers, now, 0), [1, 2, 3]);
        servers.note(now, address(1), false);
        assert_eq!(ports(&servers, now, 0), [1, 2, 3]);
        servers.note(now, address(1), false);
        assert_eq!(ports(&servers, now, 0), [2, 3, 1]);
        assert_eq!(ports(&servers, now + REST_MIN, 0), [1, 2, 3]);
        (0..40).for_each(|_| servers.note(now, address(2), false));
        assert_eq!(ports(&servers, now, 0), [3, 1, 2]);
        assert_eq!(ports(&servers, now + REST_MAX, 0), [1, 2, 3]);
        servers.note(now, address(1), true);
        servers.note(now, address(1), false);
        assert_eq!(ports(&servers, now, 0), [1, 3, 2]);
    }

    #[test]
    fn at_random_each_comes_first_now_and_then() {
        let servers = Servers::new(&[1, 2, 3].map(address), Strategy::Random);
        let now = Instant::now();
        let firsts: std::collections::BTreeSet<u16> =
            (0..64).map(|seed| ports(&servers, now, seed)[0]).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn who_sends_questions_back_is_left_out_for_good() {
        let mut servers = Servers::new(&[1, 2].map(address), Strategy::Sequential);
        assert!(servers.leave_out(address(1)) && !servers.leave_out(address(1)));
        assert_eq!(ports(&servers, Instant::now(), 0), [2]);
    }
}
