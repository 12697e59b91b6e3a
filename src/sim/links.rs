//! What befalls single links: one-way deafness and clogs. Delays, losses and sides are the
//! network's.

use std::collections::BTreeMap;

use super::NodeIndex;

/// Links that do not carry what they should. `M` is a message on its way.
#[derive(Debug)]
pub(super) struct Links<M> {
    /// Nodes of side 0 do not hear those of side 1. Empty: everybody hears everybody.
    deaf: Vec<u8>,
    /// By sender and receiver: what is held.
    clogged: BTreeMap<(NodeIndex, NodeIndex), Vec<M>>,
}

impl<M> Default for Links<M> {
    fn default() -> Self {
        Self { deaf: Vec::new(), clogged: BTreeMap::new() }
    }
}

impl<M> Links<M> {
    pub(super) fn deafen(&mut self, sides: &[u8]) {
        self.deaf.clear();
        self.deaf.extend_from_slice(sides);
    }

    pub(super) fn heal(&mut self) {
        self.deaf.clear();
    }

    /// Tells whether the second hears the first.
    pub(super) fn carries(&self, from: NodeIndex, to: NodeIndex) -> bool {
        self.deaf.is_empty() || self.deaf[from.0] <= self.deaf[to.0]
    }

    pub(super) fn clog(&mut self, from: NodeIndex, to: NodeIndex) {
        self.clogged.entry((from, to)).or_default();
    }

    pub(super) fn is_clogged(&self, from: NodeIndex, to: NodeIndex) -> bool {
        self.clogged.contains_key(&(from, to))
    }

    /// Holds a message of a link that is clogged.
    pub(super) fn hold(&mut self, from: NodeIndex, to: NodeIndex, message: M) {
        self.clogged.entry((from, to)).or_default().push(message);
    }

    /// Frees a link, and returns what was held, in its order.
    pub(super) fn free(&mut self, from: NodeIndex, to: NodeIndex) -> Vec<M> {
        self.clogged.remove(&(from, to)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeIndex = NodeIndex(0);
    const B: NodeIndex = NodeIndex(1);

    #[test]
    fn one_hears_the_other_and_not_the_other_way_round() {
        let mut links = Links::<u8>::default();
        assert!(links.carries(A, B) && links.carries(B, A));
        links.deafen(&[0, 1]);
        assert!(links.carries(A, B) && !links.carries(B, A));
        links.heal();
        assert!(links.carries(B, A));
    }

    #[test]
    fn what_a_clogged_link_holds_comes_in_its_order_and_once() {
        let mut links = Links::default();
        assert!(!links.is_clogged(A, B));
        links.clog(A, B);
        assert!(links.is_clogged(A, B) && !links.is_clogged(B, A));
        links.hold(A, B, 1);
        links.hold(A, B, 2);
        assert_eq!(links.free(A, B), [1, 2]);
        assert!(!links.is_clogged(A, B));
        assert!(links.free(A, B).is_empty());
    }
}
