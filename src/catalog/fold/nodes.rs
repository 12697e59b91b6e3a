//! One node, its checks and what of it is looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use super::{Changes, Edits, Fold, Host};
use crate::catalog::model::{Check, Node, NodeKey, SERF_HEALTH, Status, lower, member_of};
use crate::catalog::view::{CheckEntry, Checks, NodeEntry, NodeInfo, RowKey, Topic};

/// By id what a list of checks gets, or loses.
type CheckEdits = BTreeMap<Arc<str>, Option<Arc<CheckEntry>>>;

impl Fold {
    pub(super) fn fold_node(&mut self, key: &NodeKey, changes: Changes) {
        let old = self.view.nodes.get(key).cloned();
        let stirred = self.put_checks(key, changes.checks);
        let info = self.node_info(key, old.as_deref(), changes.node);
        let checks = self.node_checks(key, old.as_deref(), info.as_deref());
        let host = Host { key, old, info, checks };
        let mut ids: BTreeSet<Arc<str>> = changes.services.keys().cloned().collect();
        ids.extend(self.put_tags(key, changes.tags));
        if host.is_as_before() {
            ids.extend(stirred);
        } else {
            ids.extend(self.ids_on(key));
        }
        if host.is_as_before() && ids.is_empty() {
            return;
        }
        let mut edits = Edits::default();
        let mut services = changes.services;
        for id in ids {
            let change = services.remove(&id);
            self.fold_instance(&host, id, change, &mut edits);
        }
        self.put_node(host, edits);
    }

    /// Stores checks and returns the ids of the instances that they speak for, or spoke for.
    fn put_checks(
        &mut self,
        key: &NodeKey,
        changes: BTreeMap<Arc<str>, Option<Check>>,
    ) -> BTreeSet<Arc<str>> {
        let mut lists: BTreeMap<Arc<str>, CheckEdits> = BTreeMap::new();
        for (id, check) in changes {
            let row: RowKey = (Arc::clone(key), Arc::clone(&id));
            let old = match &check {
                Some(_) => self.view.checks.get(&row).cloned(),
                None => self.view.checks.remove(&row),
            };
            let new = check.map(|check| Arc::new(self.check_entry(old.as_deref(), check)));
            if let Some(new) = &new {
                self.view.checks.insert(row, Arc::clone(new));
            }
            // Membership alone says how a member's agent is: a stored row of that name is not seen.
            if &*id == SERF_HEALTH && member_of(key).is_some() {
                continue;
            }
            let mut put = |entry: &CheckEntry, edit| {
                let list = lists.entry(entry.check.service_id.as_str().into()).or_default();
                list.insert(Arc::clone(&id), edit);
            };
            if let Some(old) = &old {
                put(old, None);
            }
            if let Some(new) = &new {
                put(new, Some(Arc::clone(new)));
            }
        }
        let stirred = lists.keys().cloned().collect();
        for (service_id, edits) in lists {
            self.edit_spoken_for((Arc::clone(key), service_id), &edits);
        }
        stirred
    }

    /// Stores tags that stand in the place of others, and returns whose they are.
    fn put_tags(
        &mut self,
        key: &NodeKey,
        changes: BTreeMap<Arc<str>, Option<Vec<String>>>,
    ) -> Vec<Arc<str>> {
        let ids = changes.keys().cloned().collect();
        for (id, tags) in changes {
            match tags {
                Some(tags) => {
                    self.view.tag_overrides.insert((Arc::clone(key), id), tags.into());
                }
                None => {
                    self.view.tag_overrides.remove(&(Arc::clone(key), id));
                }
            }
        }
        ids
    }

    fn check_entry(&self, old: Option<&CheckEntry>, check: Check) -> CheckEntry {
        let (create_index, modify_index) = match old {
            Some(old) if old.check.speaks_like(&check) => (old.create_index, old.modify_index),
            Some(old) => (old.create_index, self.at),
            None => (self.at, self.at),
        };
        CheckEntry { check, create_index, modify_index }
    }

    fn edit_spoken_for(&mut self, row: RowKey, edits: &CheckEdits) {
        let old = self.view.spoken_for.get(&row).cloned().unwrap_or_default();
        let kept = old.iter().filter(|entry| !edits.contains_key(entry.check.id.as_str()));
        let mut list: Vec<_> = kept.chain(edits.values().flatten()).cloned().collect();
        list.sort_by(|a, b| a.check.id.cmp(&b.check.id));
        if list.is_empty() {
            self.view.spoken_for.remove(&row);
        } else {
            self.view.spoken_for.insert(row, list.into());
        }
    }

    /// Returns the node as it is now; the same allocation where nothing changed.
    fn node_info(
        &self,
        key: &NodeKey,
        old: Option<&NodeEntry>,
        change: Option<Option<Node>>,
    ) -> Option<Arc<NodeInfo>> {
        let old = old.map(|entry| &entry.info);
        let member = member_of(key);
        let is_up = member.is_none_or(|member| self.view.is_up(member));
        let node = match (change, old) {
            (Some(node), _) => node?,
            (None, Some(old)) => old.node.clone(),
            (None, None) => return None,
        };
        let (create_index, modify_index) = match old {
            Some(old) if old.node == node => (old.create_index, old.modify_index),
            Some(old) => (old.create_index, self.at),
            None => (self.at, self.at),
        };
        let key = Arc::clone(key);
        let info = NodeInfo { key, member, node, is_up, create_index, modify_index };
        match old {
            Some(old) if **old == info => Some(Arc::clone(old)),
            _ => Some(Arc::new(info)),
        }
    }

    /// Returns the checks that speak for the node; the same allocation where nothing changed.
    fn node_checks(
        &self,
        key: &NodeKey,
        old: Option<&NodeEntry>,
        info: Option<&NodeInfo>,
    ) -> Checks {
        let Some(info) = info else { return Checks::default() };
        let stored = self.view.spoken_for.get(&(Arc::clone(key), Arc::default()));
        let mut list: Vec<_> = stored.into_iter().flat_map(|list| list.iter().cloned()).collect();
        if info.member.is_some() {
            let at = list.partition_point(|entry| entry.check.id.as_str() < SERF_HEALTH);
            list.insert(at, self.serf_health(old, info));
        }
        match old {
            Some(old) if is_same_list(&old.checks, &list) => Arc::clone(&old.checks),
            _ => list.into(),
        }
    }

    fn serf_health(&self, old: Option<&NodeEntry>, info: &NodeInfo) -> Arc<CheckEntry> {
        let is_serf_health = |entry: &&Arc<CheckEntry>| entry.check.id == SERF_HEALTH;
        let old = old.and_then(|old| old.checks.iter().find(is_serf_health));
        let (status, output) = match info.is_up {
            true => (Status::Passing, "Agent alive and reachable"),
            false => (Status::Critical, "Agent not live or unreachable"),
        };
        match old {
            Some(old) if old.check.status == status => Arc::clone(old),
            _ => Arc::new(self.check_entry(
                old.map(|old| &**old),
                Check {
                    id: SERF_HEALTH.to_owned(),
                    name: "Serf Health Status".to_owned(),
                    status,
                    output: output.to_owned(),
                    ..Check::default()
                },
            )),
        }
    }

    fn ids_on(&self, key: &NodeKey) -> Vec<Arc<str>> {
        let first: RowKey = (Arc::clone(key), Arc::default());
        let rows = self.view.instances.range(first..).map(|(row, _)| row);
        rows.take_while(|row| row.0 == *key).map(|row| Arc::clone(&row.1)).collect()
    }

    fn put_node(&mut self, host: Host<'_>, edits: Edits) {
        let Host { key, old, info, checks } = host;
        let new = info.map(|info| {
            let mut instances = old.as_ref().map_or_else(OrdMap::new, |old| old.instances.clone());
            for gone in &edits.gone {
                instances.remove(gone.service.id.as_str());
            }
            for come in edits.come {
                instances.insert(come.service.id.as_str().into(), come);
            }
            Arc::new(NodeEntry { info, checks, instances })
        });
        self.compare_nodes(key, old.as_deref(), new.as_deref());
        self.put_name(key, old.as_deref(), new.as_deref());
        let ip = |entry: &Arc<NodeEntry>| entry.info.node.address.parse().ok();
        self.put_address(key, None, old.as_ref().and_then(ip), new.as_ref().and_then(ip));
        match new {
            Some(new) => drop(self.view.nodes.insert(Arc::clone(key), new)),
            None if old.is_some() => {
                self.view.nodes.remove(key);
                self.view.node_gone_at = self.at;
                self.view.indexes.remove(&Topic::Node(Arc::clone(key)));
                self.view.indexes.remove(&Topic::NodeChecks(Arc::clone(key)));
            }
            None => {}
        }
    }

    fn put_name(&mut self, key: &NodeKey, old: Option<&NodeEntry>, new: Option<&NodeEntry>) {
        let name = |entry: &NodeEntry| lower(&entry.info.node.name).into_owned();
        let (old, new) = (old.map(name), new.map(name));
        if old == new {
            return;
        }
        for (name, is_new) in [(old, false), (new, true)] {
            let Some(name) = name else { continue };
            let held = self.view.names.get(name.as_str()).cloned().unwrap_or_default();
            let mut keys: BTreeSet<NodeKey> = held.iter().cloned().collect();
            if is_new {
                keys.insert(Arc::clone(key));
            } else {
                keys.remove(key);
            }
            if keys.is_empty() {
                self.view.names.remove(name.as_str());
            } else {
                self.view.names.insert(name.into(), keys.into_iter().collect());
            }
        }
    }

    pub(super) fn put_address(
        &mut self,
        key: &NodeKey,
        id: Option<&Arc<str>>,
        old: Option<IpAddr>,
        new: Option<IpAddr>,
    ) {
        if old == new {
            return;
        }
        let holder = |ip: IpAddr| (ip.to_canonical(), Arc::clone(key), id.cloned());
        if let Some(ip) = old {
            self.view.addresses.remove(&holder(ip));
        }
        if let Some(ip) = new {
            self.view.addresses.insert(holder(ip));
        }
    }
}

impl Host<'_> {
    /// Tells whether its instances need not be made anew for its sake.
    fn is_as_before(&self) -> bool {
        match (&self.old, &self.info) {
            (None, None) => true,
            (Some(old), Some(info)) => {
                Arc::ptr_eq(&old.info, info) && Arc::ptr_eq(&old.checks, &self.checks)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// Returns what an instance shows of its node; an empty one while the row is not here.
    pub(super) fn info(&self) -> Arc<NodeInfo> {
        self.info.clone().unwrap_or_else(|| {
            Arc::new(NodeInfo {
                key: Arc::clone(self.key),
                member: None,
                node: Node::default(),
                is_up: false,
                create_index: 0,
                modify_index: 0,
            })
        })
    }
}

fn is_same_list(a: &[Arc<CheckEntry>], b: &[Arc<CheckEntry>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}
