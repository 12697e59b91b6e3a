//! A fold in the making: rows are gathered by node, then each node is made anew where it changed.
//!
//! What a fold touched is found by comparing what stood there with what stands there now, once
//! for each node and each instance. So a row that changes nothing that anybody can see, or that
//! waits for another row, touches nothing.

mod instances;
mod nodes;
#[cfg(test)]
mod tests;
mod touched;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use super::model::{Check, Node, NodeKey, Service, external_key, key_of};
use super::rows;
use super::view::{Checks, Instance, Liveness, NodeEntry, NodeInfo, Topic, View};
use crate::crdt::TableEvents;
use crate::types::Hlc;

/// A view that is being changed.
pub(super) struct Fold {
    view: View,
    /// The index of all that this fold changes.
    at: u64,
    nodes: BTreeMap<NodeKey, Changes>,
    services: BTreeMap<Arc<str>, Edits>,
    touched: BTreeSet<Topic>,
}

/// What came for one node: for each row the new content, or `None` where it went.
#[derive(Default)]
struct Changes {
    node: Option<Option<Node>>,
    services: BTreeMap<Arc<str>, Option<Service>>,
    checks: BTreeMap<Arc<str>, Option<Check>>,
    /// Tags in the place of those that an instance was registered with.
    tags: BTreeMap<Arc<str>, Option<Vec<String>>>,
}

/// What goes from a list of instances, and what comes into it.
#[derive(Default)]
struct Edits {
    gone: Vec<Arc<Instance>>,
    come: Vec<Arc<Instance>>,
}

/// A node before and after.
struct Host<'a> {
    key: &'a NodeKey,
    old: Option<Arc<NodeEntry>>,
    /// `None`: its row is not here.
    info: Option<Arc<NodeInfo>>,
    checks: Checks,
}

impl Fold {
    pub(super) fn begin(view: &View, at: Hlc) -> Self {
        Self {
            // The clocks of commits and of membership are kept by two owners: whoever comes second
            // in one millisecond must still be told apart.
            at: at.0.max(view.index_max + 1),
            view: view.clone(),
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Gathers a table's rows. Other tables than the catalog's are no business of a view.
    pub(super) fn take_in(&mut self, events: &TableEvents) {
        let table = &*events.table.name;
        if table == rows::EVENTS {
            return self.take_in_events(events);
        }
        if !rows::TABLES.contains(&table) {
            return;
        }
        let is_external =
            matches!(table, rows::EXTERNAL_NODES | rows::EXTERNAL_SERVICES | rows::EXTERNAL_CHECKS);
        let columns = &events.table.columns;
        for event in events.rows.each() {
            let Some(node) = rows::text_key(event) else { continue };
            if table == rows::QUERIES {
                let row = event.row.as_deref().map(|row| rows::query_from_row(columns, row));
                if self.view.queries.take_in(self.at, &node, row) {
                    self.touch([Topic::Queries]);
                }
                continue;
            }
            if table == rows::KEYS {
                let row = event.row.as_deref().map(|row| rows::value_from_row(columns, row));
                if self.view.keys.take_in(self.at, &node, row) {
                    self.touch([Topic::Key(node)]);
                }
                continue;
            }
            let node = if is_external { external_key(&node) } else { node };
            let changes = self.nodes.entry(node).or_default();
            let row = event.row.as_deref();
            if matches!(table, rows::NODES | rows::EXTERNAL_NODES) {
                changes.node = Some(row.map(|row| rows::node_from_row(columns, row)));
                continue;
            }
            let Some((_, id)) = rows::owned_key(event) else { continue };
            match table {
                rows::SERVICES | rows::EXTERNAL_SERVICES => {
                    let service = row.map(|row| rows::service_from_row(columns, row));
                    changes.services.insert(id, service);
                }
                rows::TAG_OVERRIDES => {
                    changes.tags.insert(id, row.map(|row| rows::tags_from_row(columns, row)));
                }
                _ => {
                    let check = row.map(|row| rows::check_from_row(columns, row));
                    changes.checks.insert(id, check);
                }
            }
        }
    }

    fn take_in_events(&mut self, events: &TableEvents) {
        for event in events.rows.each() {
            // A place that is empty again tells nobody anything.
            let Some(row) = event.row.as_deref() else { continue };
            let event = rows::event_from_row(&events.table.columns, row);
            let topics = [Topic::Events("".into()), Topic::Events(event.name.as_str().into())];
            let own = self.view.own().cloned();
            if self.view.events.take_in(self.at, own.as_deref(), event) {
                self.touch(topics);
            }
        }
    }

    /// Takes over what membership says, and marks the nodes that it may concern.
    pub(super) fn take_in_liveness(&mut self, change: Liveness) {
        let heard = match change {
            Liveness::Up(member) => Some((member, true)),
            Liveness::Down(member) => Some((member, false)),
            Liveness::Settled => None,
        };
        let Some((member, is_up)) = heard else { return self.settle() };
        if self.view.settled && !is_up {
            self.view.heard.remove(&member);
        } else {
            self.view.heard.insert(member, is_up);
        }
        self.nodes.entry(key_of(member)).or_default();
    }

    fn settle(&mut self) {
        self.view.settled = true;
        // From now on silence says the same.
        self.view.heard =
            self.view.heard.iter().filter(|(_, up)| **up).map(|(m, _)| (*m, true)).collect();
        let members = self.view.nodes.values().filter(|node| node.info.member.is_some());
        let keys = members.map(|node| (Arc::clone(&node.info.key), Changes::default()));
        self.nodes.extend(keys);
    }

    /// Makes the view whole again, and tells which topics were touched.
    pub(super) fn finish(mut self) -> (View, BTreeSet<Topic>) {
        for (key, changes) in mem::take(&mut self.nodes) {
            self.fold_node(&key, changes);
        }
        for (name, edits) in mem::take(&mut self.services) {
            self.fold_service(name, edits);
        }
        self.raise_indexes();
        (self.view, self.touched)
    }

    fn raise_indexes(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        let view = &mut self.view;
        let nodes_changed = self.touched.contains(&Topic::Nodes);
        if nodes_changed {
            view.nodes_memo = Arc::default();
        }
        if nodes_changed || self.touched.contains(&Topic::Services) {
            view.services_memo = Arc::default();
        }
        view.index_max = self.at;
        for topic in &self.touched {
            let is_here = match topic {
                Topic::Services | Topic::Nodes | Topic::Checks | Topic::Queries => true,
                Topic::Health(name) | Topic::Instances(name) | Topic::ServiceChecks(name) => {
                    view.services.contains_key(name)
                }
                Topic::Node(key) | Topic::NodeChecks(key) => view.nodes.contains_key(key),
                // Keys and events hold their indexes themselves.
                Topic::Key(_) | Topic::KeysUnder(_) | Topic::Events(_) => false,
            };
            if is_here {
                view.indexes.insert(topic.clone(), self.at);
            }
        }
    }

    pub(super) fn touch(&mut self, topics: impl IntoIterator<Item = Topic>) {
        self.touched.extend(topics);
    }
}
