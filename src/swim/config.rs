//! The knobs of membership, and what they become for a cluster of a given size.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use super::codec::ENVELOPE_BYTES;

/// The longest membership datagram in bytes. It fits into a QUIC datagram at the smallest path
/// MTU that QUIC allows (1,200 bytes of UDP payload, less header, tag and frame type).
pub const DATAGRAM_BYTES_MAX: usize = 1_150;

/// The settings of [`crate::swim::Swim`].
///
/// [`Config::default`] suits one to some ten thousand nodes with round trips up to 250 ms: in a
/// cluster of three a crash is seen after 5 to 7 s, in one of a thousand after some 15 s. Loss of
/// 10 % raises no false alarm; see the tests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// How often one member is probed. Sensible: 0.5 to 5 s.
    pub probe_period: Duration,
    /// How long a direct answer may take before others are asked to probe; the ping is repeated
    /// at half of it. Less than half of `probe_period`.
    pub probe_timeout: Duration,
    /// How long a suspect has for its defence in a cluster of up to ten; it grows with the
    /// logarithm of the size.
    pub suspicion: Duration,
    /// How often pending news is sent to three random members.
    pub gossip_period: Duration,
    /// How often two members that seem dead are greeted: what heals a cut through the middle.
    pub greet_dead_period: Duration,
    /// The first and the longest wait between two greetings of a node that has not answered yet.
    pub announce_wait: (Duration, Duration),
    /// How long a dead node is remembered.
    pub forget_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(500),
            suspicion: Duration::from_secs(4),
            gossip_period: Duration::from_millis(200),
            greet_dead_period: Duration::from_secs(20),
            announce_wait: (Duration::from_secs(1), Duration::from_secs(30)),
            forget_after: Duration::from_secs(48 * 3_600),
        }
    }
}

impl Config {
    /// Settings for a cluster on one host: the same patience with a silent member (the host may
    /// be busy), but quicker to greet those who come back.
    pub fn local() -> Self {
        Self {
            probe_timeout: Duration::from_millis(300),
            greet_dead_period: Duration::from_secs(5),
            announce_wait: (Duration::from_millis(500), Duration::from_secs(5)),
            ..Self::default()
        }
    }

    /// Returns foca's settings for `members` nodes (this one included) and a node whose own
    /// `health` is so bad (0 good, 8 worst).
    ///
    /// Of these only the suspicion and the number of transmissions may differ between two calls:
    /// foca takes no other change at run time.
    pub(super) fn for_size(&self, members: usize, health: u8) -> foca::Config {
        let nonzero = |n: usize| NonZeroUsize::new(n).expect("a constant above zero");
        let periodic = |frequency: Duration, members: usize| {
            Some(foca::PeriodicParams { frequency, num_members: nonzero(members) })
        };
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_timeout,
            num_indirect_probes: nonzero(5),
            max_transmissions: transmissions(members),
            suspect_to_down_after: self.suspicion_for(members, health),
            remove_down_after: Some(self.forget_after),
            max_packet_size: nonzero(DATAGRAM_BYTES_MAX - ENVELOPE_BYTES),
            notify_down_members: true,
            periodic_announce: periodic(Duration::from_secs(30), 1),
            // This node does so itself: foca forgets with its verdicts whom to greet.
            periodic_announce_to_down_members: None,
            periodic_gossip: periodic(self.gossip_period, 3),
        }
    }

    /// Lifeguard's idea: who has reason to distrust himself gives others more time, up to three
    /// times as much.
    fn suspicion_for(&self, members: usize, health: u8) -> Duration {
        let size = members.max(10) as f64;
        let distrust = 1.0 + f64::from(health.min(HEALTH_WORST)) / 4.0;
        self.suspicion.mul_f64(size.log10() * distrust)
    }
}

/// The worst own health: suspicion takes three times as long.
pub(super) const HEALTH_WORST: u8 = 8;

/// How often one piece of news is passed on. 12 reaches a thousand nodes with 10 % loss and 16
/// ten thousand; a handful of nodes has heard all after half of it.
fn transmissions(members: usize) -> NonZeroU8 {
    let count = match members {
        0..=16 => 6,
        17..=128 => 9,
        129..=2_000 => 12,
        _ => 16,
    };
    NonZeroU8::new(count).expect("a constant above zero")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicion_grows_with_the_cluster_and_with_bad_health() {
        let config = Config::default();
        let seconds = |members, health| config.suspicion_for(members, health).as_secs_f64();
        assert_eq!(seconds(3, 0), 4.0);
        assert_eq!(seconds(1_000, 0), 12.0);
        assert_eq!(seconds(10_000, 0), 16.0);
        assert_eq!(seconds(3, HEALTH_WORST), 12.0);
        assert_eq!(seconds(3, 200), 12.0);
    }

    #[test]
    fn the_timeouts_leave_room_for_the_indirect_probe() {
        for config in [Config::default(), Config::local()] {
            assert!(config.probe_timeout * 2 <= config.probe_period);
            assert!(config.announce_wait.0 <= config.announce_wait.1);
        }
    }
}
