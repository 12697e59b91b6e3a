//! How many connections there may be: in all, and from one address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The limits on connections. Past them a new connection is closed at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// In all. Default: 16,384.
    pub total: usize,
    /// From one address. Default: 200, as in Consul.
    pub per_address: usize,
    /// From each loopback address, behind which all programs of the host stand. Default: 12,288,
    /// so that the host's own programs leave seats for others.
    pub per_loopback: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: 16_384, per_address: 200, per_loopback: 12_288 }
    }
}

/// The seats for connections.
#[derive(Debug)]
pub struct Seats {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

impl Seats {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, taken: Mutex::default() })
    }

    /// Takes a seat for a connection from this address, or `None` when there is none left.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let address = address.to_canonical();
        let limit =
            if address.is_loopback() { self.limits.per_loopback } else { self.limits.per_address };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let held = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.total >= self.limits.total || held >= limit {
            return None;
        }
        taken.total += 1;
        taken.by_address.insert(address, held + 1);
        drop(taken);
        Some(Seat { seats: Arc::clone(self), address })
    }

    fn free(&self, address: IpAddr) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        let held = taken.by_address.get_mut(&address).expect("a seat was taken from this address");
        *held -= 1;
        if *held == 0 {
            taken.by_address.remove(&address);
        }
    }
}

/// One connection's seat, free again when it is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.free(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_cannot_take_all_seats() {
        let seats = Seats::new(Limits { total: 4, per_address: 2, per_loopback: 3 });
        let one = [seats.take(ip("10.0.0.1")), seats.take(ip("::ffff:10.0.0.1"))];
        assert!(one.iter().all(Option::is_some));
        assert!(seats.take(ip("10.0.0.1")).is_none());
        let other = [seats.take(ip("10.0.0.2")), seats.take(ip("127.0.0.1"))];
        assert!(other.iter().all(Option::is_some));
        assert!(seats.take(ip("10.0.0.3")).is_none(), "all four are taken");
        drop(one);
        assert!(seats.take(ip("10.0.0.1")).is_some());
        drop(other);
        let taken = seats.taken.lock().unwrap();
        assert_eq!((taken.total, taken.by_address.len()), (0, 0));
    }
}
