//! Do two members know the same others? Each compares with one by lot, in buckets, and both send what
//! the other lacks. News that is only passed on while it is new does not reach who did not know whom
//! to expect it from: when many nodes start at once, some would not hear of some for half an hour.
//!
//! Only those that are up are compared and sent: what a node believes of the dead it keeps to itself,
//! since a node that was cut off would say it of everybody.

use std::time::Duration;

use foca::Member;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::identity::Identity;
use crate::types::{NodeId, Time};

/// How many buckets members fall into by their ids.
pub(super) const BUCKETS: usize = 32;

/// What is known of the members that are up: of each bucket the sum of their hashes.
pub(super) type Sums = [u64; BUCKETS];

/// How often a node compares what it knows with another.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// How soon it does so again after a difference was found.
const COMPARE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How many members are told of within [`ALLOWANCE_EVERY`]: some 18 kB. Who asks in vain asks another.
const ALLOWANCE: usize = 512;
const ALLOWANCE_EVERY: Duration = Duration::from_secs(1);

/// When to compare, and how much may be told.
#[derive(Debug)]
pub(super) struct Comparer {
    due_at: Time,
    allowance: usize,
    renewed_at: Time,
}

impl Default for Comparer {
    fn default() -> Self {
        Self { due_at: Time(0), allowance: ALLOWANCE, renewed_at: Time(0) }
    }
}

impl Comparer {
    /// Returns whether it is time to compare.
    pub(super) fn is_due(&mut self, now: Time, rng: &mut SmallRng) -> bool {
        if now < self.due_at {
            return false;
        }
        self.due_at = now + COMPARE_EVERY.mul_f64(rng.random_range(0.8..1.2));
        true
    }

    /// Two members did not know the same.
    pub(super) fn differed(&mut self, now: Time) {
        self.due_at = self.due_at.min(now + COMPARE_AGAIN_AFTER);
    }

    /// Returns which members to tell, of those in buckets where the sums differ: all of them, or as
    /// many as may be told, by lot.
    pub(super) fn telling(
        &mut self,
        now: Time,
        rng: &mut SmallRng,
        mut members: Vec<Member<Identity>>,
    ) -> Vec<Member<Identity>> {
        if now.since(self.renewed_at) >= ALLOWANCE_EVERY {
            (self.renewed_at, self.allowance) = (now, ALLOWANCE);
        }
        if members.len() > self.allowance {
            members.shuffle(rng);
            members.truncate(self.allowance);
        }
        self.allowance -= members.len();
        members
    }
}

/// Returns the bucket of a member.
pub(super) fn bucket_of(node: NodeId) -> usize {
    (hash(&node.0) >> 32) as usize % BUCKETS
}

/// Sums up members, this node among them.
pub(super) fn sums_of(members: impl Iterator<Item = Identity>) -> Sums {
    let mut sums = [0_u64; BUCKETS];
    for identity in members {
        let sum = &mut sums[bucket_of(identity.node)];
        let life = hash(&identity.node.0) ^ identity.generation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *sum = sum.wrapping_add(mixed(life));
    }
    sums
}

/// FNV-1a, mixed, so that ids that differ in a byte fall into different buckets.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mixed(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    number = (number ^ (number >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    number ^ (number >> 33)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn identity(number: u8, generation: u64) -> Identity {
        Identity::new(NodeId([number; 16]), ([10, 0, 0, number], 7401).into(), generation)
    }

    #[test]
    fn sums_differ_in_the_bucket_of_a_member_that_is_missing_or_lives_anew() {
        let all = || (0..100).map(|number| identity(number, 1));
        let whole = sums_of(all());
        assert_eq!(whole, sums_of(all().rev()), "whatever the order");
        let without = sums_of(all().filter(|identity| identity.node != NodeId([7; 16])));
        let anew = sums_of(all().map(|i| if i.node.0[0] == 7 { identity(7, 2) } else { i }));
        for other in [without, anew] {
            let differ: Vec<usize> = (0..BUCKETS).filter(|b| whole[*b] != other[*b]).collect();
            assert_eq!(differ, [bucket_of(NodeId([7; 16]))]);
        }
    }

    #[test]
    fn no_more_is_told_in_a_second_than_there_is_an_allowance_for() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut comparer = Comparer::default();
        let members =
            || (0..200).map(|number| Member::alive(identity(number, 1))).collect::<Vec<_>>();
        let now = Time(5_000_000);
        let told: usize = (0..10).map(|_| comparer.telling(now, &mut rng, members()).len()).sum();
        assert_eq!(told, ALLOWANCE);
        let later = now + ALLOWANCE_EVERY;
        assert_eq!(comparer.telling(later, &mut rng, members()).len(), 200);
    }
}
