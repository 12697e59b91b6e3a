//! What all members hold: a statement that grows as it is passed around, until every member has
//! added its own heads to it. Who starts one and passes it on is the replica's business.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Epoch, NodeId, Origin, Version};

/// Heads by origin.
pub type Heads = BTreeMap<Origin, Version>;

/// Nodes, each with an epoch.
pub type Nodes = BTreeMap<NodeId, Epoch>;

/// One asking of all members for their heads.
///
/// Merging is commutative, associative and idempotent, so it may travel any way. A member that
/// adds its heads twice says of the first time what it says of the second: heads on a disk only
/// rise, and a disk that was set back speaks under a new epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Round {
    pub number: u64,
    /// Who has added its heads, as of which epoch.
    pub told: Nodes,
    /// Whom those who told know to be members, and the latest epoch of theirs that they met.
    pub known: Nodes,
    /// Who is no member any more, up to which epoch.
    pub forgotten: Nodes,
    /// What each who told holds at least. An origin that one of them does not hold is missing.
    pub low: Heads,
    /// What some who told holds.
    pub high: Heads,
    /// Of those, the origins of which nothing is left with anybody who told: they write no more, and
    /// all that they wrote is overwritten or forgotten.
    pub spent: BTreeSet<Origin>,
    /// Of those, the origins that everybody who told of them has retired.
    pub retired: BTreeSet<Origin>,
    /// The least of the eras that were told (see [`Told::era`]); 0: nobody has told.
    pub era: u64,
}

/// What a member adds to a round.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// What it holds, of retired origins too.
    pub heads: Heads,
    /// The origins of which nothing is left with it.
    pub spent: BTreeSet<Origin>,
    /// Those that it has retired, which are all spent.
    pub retired: BTreeSet<Origin>,
    /// Its era: at least the number of the last round of which it knows on disk that it told it.
    pub era: u64,
}

impl Round {
    pub fn new(number: u64) -> Self {
        Self { number, ..Self::default() }
    }

    /// Adds a member's heads, and whom it knows and forgot.
    pub fn tell(&mut self, me: Origin, what: Told, known: &Nodes, forgotten: &Nodes) {
        let Told { heads, spent, retired, era } = what;
        let told = Nodes::from([(me.node, me.epoch)]);
        self.merge(&Self {
            number: self.number,
            known: known.clone(),
            forgotten: forgotten.clone(),
            low: heads.clone(),
            high: heads,
            told,
            spent,
            retired,
            era,
        });
    }

    /// Takes in what another statement of the same round says.
    pub fn merge(&mut self, other: &Self) {
        match (self.told.is_empty(), other.told.is_empty()) {
            (_, true) => {}
            (true, false) => self.low = other.low.clone(),
            (false, false) => {
                self.low.retain(|origin, low| match other.low.get(origin) {
                    Some(theirs) => {
                        *low = (*low).min(*theirs);
                        true
                    }
                    None => false,
                });
            }
        }
        self.era = match (self.told.is_empty(), other.told.is_empty()) {
            (_, true) => self.era,
            (true, false) => other.era,
            (false, false) => self.era.min(other.era),
        };
        self.spent = of_both((&self.spent, &self.high), (&other.spent, &other.high));
        self.retired = of_both((&self.retired, &self.high), (&other.retired, &other.high));
        raise(&mut self.high, &other.high);
        raise(&mut self.told, &other.told);
        raise(&mut self.known, &other.known);
        raise(&mut self.forgotten, &other.forgotten);
    }

    /// Notes whom this node knows and forgot, without its heads.
    pub fn note(&mut self, known: &Nodes, forgotten: &Nodes) {
        raise(&mut self.known, known);
        raise(&mut self.forgotten, forgotten);
    }

    /// Tells whether a member has added its heads under its latest epoch.
    pub fn is_told_by(&self, node: NodeId, epoch: Epoch) -> bool {
        self.told.get(&node).is_some_and(|told| *told >= epoch)
    }

    /// Lists the members that have not added their heads.
    pub fn awaited(&self) -> impl Iterator<Item = NodeId> {
        let is_member =
            |node: &NodeId, epoch: Epoch| self.forgotten.get(node).is_none_or(|last| epoch > *last);
        self.known
            .iter()
            .filter(move |(node, epoch)| is_member(node, **epoch))
            .filter(|(node, epoch)| !self.is_told_by(**node, **epoch))
            .map(|(node, _)| *node)
    }

    /// Tells whether every member has added its heads.
    pub fn is_whole(&self) -> bool {
        !self.told.is_empty() && self.awaited().next().is_none()
    }
}

/// Returns the origins that are in the set of each side which has heard of them.
fn of_both(
    (ours, we_heard): (&BTreeSet<Origin>, &Heads),
    (theirs, they_heard): (&BTreeSet<Origin>, &Heads),
) -> BTreeSet<Origin> {
    let all = ours.union(theirs);
    let is_left_out = |origin: &Origin| {
        (we_heard.contains_key(origin) && !ours.contains(origin))
            || (they_heard.contains_key(origin) && !theirs.contains(origin))
    };
    all.copied().filter(|origin| !is_left_out(origin)).collect()
}

/// Raises each entry to the other's.
pub fn raise<K: Ord + Copy, V: Ord + Copy>(held: &mut BTreeMap<K, V>, other: &BTreeMap<K, V>) {
    for (key, value) in other {
        let entry = held.entry(*key).or_insert(*value);
        *entry = (*entry).max(*value);
    }
}

/// Tells whether `heads` reach as far as `goal`, of each origin.
pub fn reaches(head: impl Fn(Origin) -> Version, goal: &Heads) -> bool {
    goal.iter().all(|(origin, version)| head(*origin) >= *version)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::tests::origin;

    fn node(number: u8) -> NodeId {
        origin(number).node
    }

    fn nodes(list: &[u8]) -> Nodes {
        list.iter().map(|number| (node(*number), Epoch(1))).collect()
    }

    fn heads(list: &[(u8, u64)]) -> Heads {
        list.iter().map(|(number, version)| (origin(*number), Version(*version))).collect()
    }

    fn told(number: u8, held: &[(u8, u64)], known: &[u8]) -> Round {
        let mut round = Round::new(1);
        let what = Told { heads: heads(held), era: 1, ..Told::default() };
        round.tell(origin(number), what, &nodes(known), &Nodes::new());
        round
    }

    #[test]
    fn a_round_is_whole_when_all_that_anybody_knows_have_told() {
        let mut round = told(1, &[(1, 5), (2, 3)], &[1, 2]);
        assert_eq!(round.awaited().collect::<Vec<_>>(), [node(2)]);
        round.merge(&told(2, &[(1, 4), (2, 9), (3, 1)], &[1, 2, 3]));
        assert_eq!(round.awaited().collect::<Vec<_>>(), [node(3)], "whom only one has met");
        round.merge(&told(3, &[(1, 4), (2, 2), (3, 1)], &[3]));
        assert!(round.is_whole());
        assert_eq!(round.low, heads(&[(1, 4), (2, 2)]), "the origin that one does not hold is out");
        assert_eq!(round.high, heads(&[(1, 5), (2, 9), (3, 1)]));
    }

    #[test]
    fn a_later_epoch_has_to_tell_again_and_outlives_being_forgotten() {
        let mut round = told(1, &[(1, 1)], &[1]);
        round.merge(&told(2, &[(1, 1)], &[2]));
        assert!(round.is_whole());
        round.note(&Nodes::from([(node(2), Epoch(2))]), &Nodes::new());
        assert_eq!(round.awaited().collect::<Vec<_>>(), [node(2)]);
        round.note(&Nodes::new(), &Nodes::from([(node(2), Epoch(2))]));
        assert!(round.is_whole());
        round.note(&Nodes::from([(node(2), Epoch(3))]), &Nodes::new());
        assert!(!round.is_whole());
    }

    #[test]
    fn an_origin_is_spent_and_retired_where_it_is_so_for_all_who_hold_it() {
        let told = |number: u8, held: &[(u8, u64)], spent: &[u8], retired: &[u8], era| {
            let origins = |numbers: &[u8]| numbers.iter().map(|number| origin(*number)).collect();
            let (spent, retired) = (origins(spent), origins(retired));
            let what = Told { heads: heads(held), spent, retired, era };
            let mut round = Round::new(1);
            round.tell(origin(number), what, &nodes(&[number]), &Nodes::new());
            round
        };
        let mut round = told(1, &[(4, 1), (5, 1), (6, 1), (7, 1)], &[4, 5, 6, 7], &[4, 5], 9);
        round.merge(&told(2, &[(4, 1), (5, 1), (6, 1)], &[4, 5], &[4], 7));
        assert!(round.spent.iter().eq([&origin(4), &origin(5), &origin(7)]));
        assert!(round.retired.iter().eq([&origin(4)]));
        assert_eq!(round.era, 7);
    }

    fn any_round() -> impl Strategy<Value = Round> {
        let told = (1..5_u8, prop::collection::vec((1..5_u8, 1..9_u64, 0..3_u8), 0..4), 1..5_u64)
            .prop_map(|(number, held, era)| {
                let of = |least: u8| -> BTreeSet<Origin> {
                    let heads: BTreeMap<u8, u8> =
                        held.iter().map(|(o, _, left)| (*o, *left)).collect();
                    heads
                        .iter()
                        .filter(|(_, left)| **left >= least)
                        .map(|(o, _)| origin(*o))
                        .collect()
                };
                let (spent, retired) = (of(1), of(2));
                let held: Vec<(u8, u64)> = held.iter().map(|(o, head, _)| (*o, *head)).collect();
                let mut round = Round::new(1);
                let what = Told { heads: heads(&held), spent, retired, era };
                round.tell(origin(number), what, &nodes(&[number]), &Nodes::new());
                round
            });
        prop::collection::vec(told, 0..3).prop_map(|parts| {
            let mut round = Round::new(1);
            parts.iter().for_each(|part| round.merge(part));
            round
        })
    }

    proptest! {
        #[test]
        fn it_may_travel_any_way([a, b, c] in [any_round(), any_round(), any_round()]) {
            let join = |a: &Round, b: &Round| {
                let mut joined = a.clone();
                joined.merge(b);
                joined
            };
            prop_assert_eq!(join(&a, &a), a.clone());
            prop_assert_eq!(join(&a, &b), join(&b, &a));
            prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        }
    }
}
