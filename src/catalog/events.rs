//! Events: a name and a few bytes, told once to all nodes that they are for.
//!
//! What a node was told stays in its memory until it ends, the last few hundred at most. An event that
//! arrives late, since its node or this one was cut off, is passed over: who acts on events acts at
//! once or not at all.

use std::sync::Arc;

use imbl::Vector;
use regex::{Regex, RegexBuilder};

use super::model::lower;
use super::view::NodeEntry;
use crate::types::NodeId;

/// How many events are kept, as in Consul.
const KEPT_MAX: usize = 256;
/// How old an event may be when it arrives, in milliseconds.
const AGE_MAX: u64 = 60_000;
/// How much memory a filter may take, taken apart.
const FILTER_BYTES_MAX: usize = 1 << 18;
/// The index where there is no event.
const INDEX_MIN: u64 = 1;

/// What was fired.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// A UUID.
    pub id: String,
    pub name: String,
    pub payload: Vec<u8>,
    /// Regular expressions; empty: everybody. The nodes, the services that run there, and their tags.
    pub node_filter: String,
    pub service_filter: String,
    pub tag_filter: String,
    /// Milliseconds since 1970.
    pub fired_at: u64,
}

/// An event that this node was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    pub event: Event,
    /// The how manieth it was.
    pub number: u64,
}

/// A filter that is no regular expression, or too large a one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

/// The events that this node was told and that are for it, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Events {
    held: Vector<Arc<Told>>,
    told: u64,
}

impl Events {
    /// Lists the events of a name, or all, the oldest first.
    pub fn of<'a>(&'a self, name: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Told>> + 'a {
        self.held.iter().filter(move |told| name.is_none_or(|name| told.event.name == name))
    }

    /// Returns what clients wait to change: Consul's hash of the last event's id, by which they also
    /// find out which events they have seen. It is 1 where there is none.
    pub fn index(&self, name: Option<&str>) -> u64 {
        self.of(name).last().map_or(INDEX_MIN, |told| index_of(&told.event.id))
    }

    /// Takes an event, if it is new and for this node, and tells whether it did.
    pub(super) fn take_in(&mut self, now: u64, own: Option<&NodeEntry>, event: Event) -> bool {
        let is_late = event.fired_at.saturating_add(AGE_MAX) < now;
        let is_known = self.held.iter().any(|told| told.event.id == event.id);
        if is_late || is_known || !is_for(own, &event) {
            return false;
        }
        self.told += 1;
        self.held.push_back(Arc::new(Told { event, number: self.told }));
        if self.held.len() > KEPT_MAX {
            self.held.pop_front();
        }
        true
    }
}

/// Reads a filter.
pub fn filter(text: &str) -> Result<Regex, FilterError> {
    let mut builder = RegexBuilder::new(text);
    let regex = builder.size_limit(FILTER_BYTES_MAX).dfa_size_limit(FILTER_BYTES_MAX).build();
    regex.map_err(|error| {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default();
        FilterError(last.trim_start_matches("error: ").to_owned())
    })
}

/// Tells whether an event is for a node. A filter that is none, which only SQL can write, is nobody's.
fn is_for(own: Option<&NodeEntry>, event: &Event) -> bool {
    let matches = |text: &str, of: &str| filter(text).is_ok_and(|filter| filter.is_match(of));
    let Event { node_filter, service_filter, tag_filter, .. } = event;
    if !node_filter.is_empty() && !own.is_some_and(|own| matches(node_filter, &own.info.node.name))
    {
        return false;
    }
    if service_filter.is_empty() {
        return true;
    }
    let mut instances = own.into_iter().flat_map(NodeEntry::instances);
    instances.any(|instance| {
        let service = &instance.service;
        matches(service_filter, &service.name)
            && (tag_filter.is_empty()
                || service
                    .tags
                    .iter()
                    .any(|tag| matches(tag_filter, &lower(tag)) || matches(tag_filter, tag)))
    })
}

/// Returns the index that stands for an id: its halves, one over the other.
fn index_of(id: &str) -> u64 {
    let bytes = id.parse::<NodeId>().unwrap_or_default().0;
    let half = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    (half(0) ^ half(8)).max(INDEX_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u8, name: &str) -> Event {
        let id = NodeId((u128::from(id) + 1_000).to_be_bytes()).to_string();
        Event { id, name: name.to_owned(), fired_at: 1_000, ..Event::default() }
    }

    #[test]
    fn the_index_is_consuls() {
        // As a real Consul 1.8.7 showed it for this event.
        assert_eq!(index_of("eb513899-4eb0-dc75-499e-4cdb675da156"), 11_731_723_381_843_524_899);
        assert_eq!(Events::default().index(None), 1);
    }

    #[test]
    fn an_event_is_taken_once_and_in_time() {
        let mut events = Events::default();
        assert!(events.take_in(1_000 + AGE_MAX, None, event(1, "a")));
        assert!(!events.take_in(1_000, None, event(1, "a")));
        assert!(!events.take_in(1_001 + AGE_MAX, None, event(2, "a")));
        assert!(events.take_in(0, None, event(3, "b")));
        let names: Vec<_> = events.of(None).map(|told| (&*told.event.name, told.number)).collect();
        assert_eq!(names, [("a", 1), ("b", 2)]);
        assert_eq!(events.index(Some("b")), events.index(None));
        assert_ne!(events.index(Some("a")), 1);
        let for_nobody = Event { node_filter: "x".to_owned(), ..event(4, "c") };
        assert!(!events.take_in(0, None, for_nobody));
        let for_nobody = Event { node_filter: "(".to_owned(), ..event(5, "c") };
        assert!(!events.take_in(0, None, for_nobody));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut events = Events::default();
        for number in 0..u64::try_from(KEPT_MAX).unwrap() + 5 {
            let id = NodeId(u128::from(number + 1).to_be_bytes()).to_string();
            assert!(events.take_in(0, None, Event { id, ..event(0, "a") }));
        }
        assert_eq!(events.of(None).count(), KEPT_MAX);
        assert_eq!(events.of(None).next().unwrap().number, 6);
    }
}
