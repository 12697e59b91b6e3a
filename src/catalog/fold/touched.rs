//! Whose answers changed: what stood there against what stands there now.

use std::sync::Arc;

use super::Fold;
use crate::catalog::model::{NodeKey, lower};
use crate::catalog::view::{CheckEntry, Checks, Instance, NodeEntry, Topic};

impl Fold {
    pub(super) fn compare_nodes(
        &mut self,
        key: &NodeKey,
        old: Option<&NodeEntry>,
        new: Option<&NodeEntry>,
    ) {
        let node = || Topic::Node(Arc::clone(key));
        let checks = || [Topic::Checks, Topic::NodeChecks(Arc::clone(key))];
        match (old, new) {
            (None, None) => {}
            (Some(one), None) | (None, Some(one)) => {
                self.touch([Topic::Nodes, node()]);
                if !one.checks.is_empty() {
                    self.touch(checks());
                }
            }
            (Some(old), Some(new)) => {
                if old.info.node != new.info.node {
                    self.touch([Topic::Nodes, node()]);
                }
                let is_renamed = old.info.node.name != new.info.node.name;
                if is_renamed && !new.checks.is_empty() || differ(&old.checks, &new.checks) {
                    self.touch(checks());
                }
            }
        }
    }

    pub(super) fn compare_instances(&mut self, old: Option<&Instance>, new: Option<&Instance>) {
        match (old, new) {
            (None, None) => {}
            (Some(one), None) | (None, Some(one)) => self.touch_whole(one),
            (Some(old), Some(new)) if lower(&old.service.name) != lower(&new.service.name) => {
                self.touch_whole(old);
                self.touch_whole(new);
            }
            (Some(old), Some(new)) => self.compare_versions(old, new),
        }
    }

    /// Touches all that shows an instance which came or went.
    fn touch_whole(&mut self, instance: &Instance) {
        self.touch_service(instance);
        if !instance.checks.is_empty() {
            self.touch_checks(instance);
        }
    }

    fn compare_versions(&mut self, old: &Instance, new: &Instance) {
        let name = &new.service.name;
        if !old.service.serves_like(&new.service) {
            self.touch_service(new);
        }
        if !old.node.node.serves_like(&new.node.node) {
            self.touch([Topic::health(name), Topic::instances(name)]);
        }
        if differ(&old.node_checks, &new.node_checks) || differ(&old.checks, &new.checks) {
            self.touch([Topic::health(name)]);
        }
        // Each check shows its node's name and its service's name and tags.
        let is_relabelled = old.node.node.name != new.node.node.name
            || old.service.name != new.service.name
            || old.service.tags != new.service.tags;
        if differ(&old.checks, &new.checks) || is_relabelled && !new.checks.is_empty() {
            self.touch_checks(new);
        }
    }

    fn touch_service(&mut self, instance: &Instance) {
        let name = &instance.service.name;
        self.touch([
            Topic::Services,
            Topic::health(name),
            Topic::instances(name),
            Topic::Node(Arc::clone(&instance.node.key)),
        ]);
    }

    fn touch_checks(&mut self, instance: &Instance) {
        let name = &instance.service.name;
        self.touch([
            Topic::Checks,
            Topic::health(name),
            Topic::service_checks(name),
            Topic::NodeChecks(Arc::clone(&instance.node.key)),
        ]);
    }
}

/// Tells whether two lists of checks say different things. A check's index moves exactly then.
fn differ(a: &Checks, b: &Checks) -> bool {
    let what = |entry: &CheckEntry| (entry.create_index, entry.modify_index);
    let is_same = |(a, b): (&Arc<CheckEntry>, &Arc<CheckEntry>)| {
        Arc::ptr_eq(a, b) || (a.check.id == b.check.id && what(a) == what(b))
    };
    if Arc::ptr_eq(a, b) {
        return false;
    }
    a.len() != b.len() || !a.iter().zip(&**b).all(is_same)
}
