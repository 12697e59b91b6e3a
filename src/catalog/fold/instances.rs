//! One instance, and the lists that it stands in.

use std::cmp::Ordering;
use std::mem;
use std::sync::Arc;

use super::{Edits, Fold, Host};
use crate::catalog::memo::Memo;
use crate::catalog::model::{Service, Source, Status, lower};
use crate::catalog::view::{Checks, Instance, RowKey, ServiceEntry, Topic};

impl Fold {
    pub(super) fn fold_instance(
        &mut self,
        host: &Host<'_>,
        id: Arc<str>,
        change: Option<Option<Service>>,
        edits: &mut Edits,
    ) {
        let row: RowKey = (Arc::clone(host.key), Arc::clone(&id));
        let old = self.view.instances.get(&row).cloned();
        let service = match (change, &old) {
            (Some(service), _) => service,
            (None, Some(old)) => Some(old.registered()),
            // Checks came for an instance that is not here yet.
            (None, None) => return,
        };
        let new = service.map(|service| {
            Arc::new(self.instance(host, old.as_deref(), service, self.checks_of(&row)))
        });
        match &new {
            Some(new) => self.view.instances.insert(row, Arc::clone(new)),
            None => self.view.instances.remove(&row),
        };
        let old = old.filter(|_| host.old.is_some());
        let new = new.filter(|_| host.info.is_some());
        self.compare_instances(old.as_deref(), new.as_deref());
        let ip = |instance: &Arc<Instance>| instance.service.address.parse().ok();
        self.put_address(host.key, Some(&id), old.as_ref().and_then(ip), new.as_ref().and_then(ip));
        if let Some(old) = old {
            self.service_edits(&old).gone.push(Arc::clone(&old));
            edits.gone.push(old);
        }
        if let Some(new) = new {
            self.service_edits(&new).come.push(Arc::clone(&new));
            edits.come.push(new);
        }
    }

    fn checks_of(&self, row: &RowKey) -> Checks {
        // What speaks for no instance speaks for the node, even where an id is empty.
        let is_named = !row.1.is_empty();
        self.view.spoken_for.get(row).filter(|_| is_named).cloned().unwrap_or_default()
    }

    fn instance(
        &self,
        host: &Host<'_>,
        old: Option<&Instance>,
        mut service: Service,
        checks: Checks,
    ) -> Instance {
        let row: RowKey = (Arc::clone(host.key), service.id.as_str().into());
        let edited = self.view.tag_overrides.get(&row);
        let registered_tags = edited
            .filter(|_| takes_edited_tags(&service))
            .map(|edited| mem::replace(&mut service.tags, edited.to_vec()));
        let (create_index, modify_index) = match old {
            Some(old) if old.service.serves_like(&service) => (old.create_index, old.modify_index),
            Some(old) => (old.create_index, self.at),
            None => (self.at, self.at),
        };
        let statuses = host.checks.iter().chain(checks.iter()).map(|entry| entry.check.status);
        Instance {
            status: statuses.max().unwrap_or(Status::Passing),
            node: host.info(),
            service,
            registered_tags,
            checks,
            node_checks: Arc::clone(&host.checks),
            create_index,
            modify_index,
        }
    }

    fn service_edits(&mut self, instance: &Instance) -> &mut Edits {
        self.services.entry(lower(&instance.service.name).into()).or_default()
    }

    pub(super) fn fold_service(&mut self, name: Arc<str>, edits: Edits) {
        let old = self.view.services.get(&name);
        let instances = old.map_or(&[][..], |old| &old.instances);
        let instances = edited(instances, edits, by_place);
        if let Some(first) = instances.first() {
            let spelled = first.service.name.as_str();
            let spelled = if *spelled == *name { Arc::clone(&name) } else { spelled.into() };
            let entry = ServiceEntry { name: spelled, instances, memo: Memo::default() };
            self.view.services.insert(name, Arc::new(entry));
        } else if self.view.services.remove(&name).is_some() {
            self.view.service_gone_at = self.at;
            for topic in [Topic::Health, Topic::Instances, Topic::ServiceChecks] {
                self.view.indexes.remove(&topic(Arc::clone(&name)));
            }
        }
    }
}

/// Tells whether edits of an instance's tags in the catalog count. What is mirrored from a Consul
/// agent has that agent's word on it, edits included.
fn takes_edited_tags(service: &Service) -> bool {
    service.enable_tag_override && service.source != Source::Consul
}

fn by_place(a: &Instance, b: &Instance) -> Ordering {
    lower(&a.node.node.name)
        .cmp(&lower(&b.node.node.name))
        .then_with(|| a.node.key.cmp(&b.node.key))
        .then_with(|| a.service.id.cmp(&b.service.id))
}

/// Returns a sorted list after some of it went and others came. What goes is in the list; an
/// instance that changed goes and comes.
///
/// Each edit is a binary search, and what stays is copied in runs: a list of thousands changes in
/// microseconds.
pub(super) fn edited(
    list: &[Arc<Instance>],
    edits: Edits,
    order: impl Fn(&Instance, &Instance) -> Ordering,
) -> Vec<Arc<Instance>> {
    let place = |instance: &Instance| list.partition_point(|at| order(at, instance).is_lt());
    let Edits { gone, mut come } = edits;
    come.sort_by(|a, b| order(a, b));
    let come = come.into_iter().map(|new| (place(&new), Some(new)));
    let mut steps: Vec<_> = come.chain(gone.iter().map(|old| (place(old), None))).collect();
    // At one place what comes stands before what goes; the sort is stable.
    steps.sort_by_key(|(at, new)| (*at, new.is_none()));

    let mut result = Vec::with_capacity((list.len() + steps.len()).saturating_sub(2 * gone.len()));
    let mut copied = 0;
    for (at, new) in steps {
        result.extend_from_slice(&list[copied..at]);
        copied = at;
        match new {
            Some(new) => result.push(new),
            None => copied += 1,
        }
    }
    result.extend_from_slice(&list[copied..]);
    result
}
