//! Telling peers what is held: digests of the heads that moved, and the comparison of two whole
//! ledgers in three messages (hashes, heads of the buckets that differ, heads of which more is
//! held here).

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::SmallRng;

use super::Config;
use crate::ledger::{BUCKETS, Ledger, bucket_of};
use crate::types::{NodeId, Origin, Time, Version};
use crate::wire::{BucketSet, Message};

/// How many heads one digest tells of: about 100 KiB. The rest goes with the next one.
pub(super) const DIGEST_HEADS_MAX: usize = 4_096;

/// How many heads one message of a comparison tells of: about 2 MiB. Buckets beyond it wait for
/// the next comparison.
const COMPARE_HEADS_MAX: usize = 80_000;

/// When to tell whom.
#[derive(Debug)]
pub(super) struct Digests {
    /// When the moved heads are told; `None`: none moved.
    digest_at: Option<Time>,
    compare_at: Option<Time>,
    /// Origins that came by pulling: neighbours, who expect pushes, have to be told of them.
    pulled: BTreeSet<Origin>,
    /// Peers to which messages were lost: when their ledgers are compared.
    overrun: BTreeMap<NodeId, Time>,
    config: Config,
}

impl Digests {
    pub(super) fn new(config: Config) -> Self {
        Self {
            digest_at: None,
            compare_at: None,
            pulled: BTreeSet::new(),
            overrun: BTreeMap::new(),
            config,
        }
    }

    pub(super) fn on_moved(&mut self, now: Time) {
        self.digest_at.get_or_insert(now + self.config.digest_every);
    }

    pub(super) fn at_once(&mut self, now: Time) {
        self.digest_at = Some(now);
    }

    pub(super) fn on_pulled(&mut self, origin: Origin) {
        self.pulled.insert(origin);
    }

    /// Takes the origins that came by pulling and are on disk, as many as fit into a digest.
    pub(super) fn take_pulled(&mut self, is_on_disk: impl Fn(Origin) -> bool) -> Vec<Origin> {
        let on_disk: Vec<Origin> = self
            .pulled
            .iter()
            .filter(|origin| is_on_disk(**origin))
            .take(DIGEST_HEADS_MAX)
            .copied()
            .collect();
        for origin in &on_disk {
            self.pulled.remove(origin);
        }
        on_disk
    }

    /// A comparison found a difference: look again before long, until there is none. Any of its
    /// messages may have been lost.
    pub(super) fn on_difference(&mut self, now: Time, rng: &mut SmallRng) {
        let soon = now + self.config.compare_again_after.mul_f64(rng.random_range(0.8..1.2));
        self.compare_at = Some(self.compare_at.map_or(soon, |at| at.min(soon)));
    }

    /// While a peer's queue overruns again and again, one comparison per digest interval is enough.
    pub(super) fn on_overrun(&mut self, now: Time, node: NodeId) {
        self.overrun.entry(node).or_insert(now + self.config.digest_every);
    }

    pub(super) fn on_peer_down(&mut self, node: NodeId) {
        self.overrun.remove(&node);
    }

    pub(super) fn is_digest_due(&self, now: Time) -> bool {
        self.digest_at.is_some_and(|at| at <= now)
    }

    /// The digests are sent; `more`: they did not hold everything.
    pub(super) fn on_told(&mut self, now: Time, more: bool) {
        self.digest_at = more.then(|| now + self.config.digest_every);
    }

    pub(super) fn is_compare_due(&mut self, now: Time, rng: &mut SmallRng) -> bool {
        let every = self.config.compare_every;
        let at =
            *self.compare_at.get_or_insert_with(|| now + every.mul_f64(rng.random_range(0.0..1.0)));
        if at > now {
            return false;
        }
        self.compare_at = Some(now + every.mul_f64(rng.random_range(0.8..1.2)));
        true
    }

    pub(super) fn overrun_due(&mut self, now: Time) -> Vec<NodeId> {
        let due: Vec<_> =
            self.overrun.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
        for node in &due {
            self.overrun.remove(node);
        }
        due
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let overrun = self.overrun.values().min().copied();
        [self.digest_at, self.compare_at, overrun].into_iter().flatten().min()
    }
}

/// Answers a peer's hashes with the heads of the buckets that differ.
pub(super) fn answer_hashes(ledger: &Ledger, hashes: &[u64; BUCKETS]) -> Message {
    let mut counts = [0_usize; BUCKETS];
    for (origin, _) in ledger.heads() {
        counts[usize::from(bucket_of(origin))] += 1;
    }
    let mut buckets = BucketSet::default();
    let mut count = 0;
    for bucket in 0..=u8::MAX {
        let index = usize::from(bucket);
        if hashes[index] != ledger.hashes()[index] && count <= COMPARE_HEADS_MAX {
            count += counts[index];
            buckets.insert(bucket);
        }
    }
    let heads = ledger.heads().filter(|(origin, _)| buckets.contains(bucket_of(*origin)));
    Message::BucketHeads { buckets, heads: heads.collect() }
}

/// Answers a peer's heads with those of which this node holds more.
pub(super) fn answer_heads(
    ledger: &Ledger,
    buckets: &BucketSet,
    theirs: &[(Origin, Version)],
) -> Message {
    let theirs: BTreeMap<Origin, Version> = theirs.iter().copied().collect();
    let more = ledger.heads().filter(|(origin, head)| {
        buckets.contains(bucket_of(*origin))
            && theirs.get(origin).is_none_or(|theirs| theirs < head)
    });
    Message::Heads(more.take(COMPARE_HEADS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::origin;

    #[test]
    fn two_ledgers_learn_from_each_other_in_three_messages() {
        let a: Ledger = [(origin(1), Version(5)), (origin(2), Version(1))].into_iter().collect();
        let b: Ledger = [(origin(1), Version(3)), (origin(3), Version(7)), (origin(2), Version(1))]
            .into_iter()
            .collect();
        let Message::BucketHeads { buckets, heads } = answer_hashes(&b, a.hashes()) else {
            panic!("hashes are answered with heads")
        };
        assert_eq!(heads, [(origin(1), Version(3)), (origin(3), Version(7))]);
        let more = answer_heads(&a, &buckets, &heads);
        assert_eq!(more, Message::Heads(vec![(origin(1), Version(5))]));
    }

    #[test]
    fn equal_ledgers_have_nothing_to_say() {
        let ledger: Ledger = [(origin(1), Version(5))].into_iter().collect();
        let Message::BucketHeads { buckets, heads } = answer_hashes(&ledger, ledger.hashes())
        else {
            panic!("hashes are answered with heads")
        };
        assert!(buckets.is_empty() && heads.is_empty());
    }

    #[test]
    fn one_comparison_serves_many_overruns() {
        let mut digests = Digests::new(Config::default());
        let node = origin(1).node;
        digests.on_overrun(Time(0), node);
        digests.on_overrun(Time(9), node);
        assert_eq!(digests.overrun_due(Time(499_999)), []);
        assert_eq!(digests.overrun_due(Time(500_000)), [node]);
        assert_eq!(digests.overrun_due(Time(900_000)), []);
        assert_eq!(digests.deadline(), None);
    }
}
