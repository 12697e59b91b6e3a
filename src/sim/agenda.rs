//! What happens next: an ordered queue in virtual time.

use std::collections::BTreeMap;

use crate::types::Time;

/// Events by the time at which they happen; those of one time in the order of their entry.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    events: BTreeMap<(Time, u64), E>,
    entries: u64,
}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        Self { events: BTreeMap::new(), entries: 0 }
    }

    pub(super) fn enter(&mut self, at: Time, event: E) {
        self.entries += 1;
        self.events.insert((at, self.entries), event);
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn take_next(&mut self) -> Option<(Time, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}
