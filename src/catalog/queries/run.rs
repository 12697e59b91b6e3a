//! What a prepared query finds in a view.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::definition::Wanted;
use crate::catalog::model::{Status, lower};
use crate::catalog::view::{Instance, NodeInfo, View};

/// Instances that a query found, in their service's order.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// Where they are: all are in one datacenter.
    pub datacenter: String,
    /// In how many other datacenters it looked.
    pub failovers: usize,
    pub instances: Vec<&'a Arc<Instance>>,
}

/// Finds the instances that are wanted in a datacenter; where there is none, in those that the query
/// names to fall back on. `own` is this node's: nodes that name none are in it. `distance` says
/// how far away a node is.
pub fn find<'a>(
    view: &'a View,
    wanted: &Wanted,
    datacenter: &str,
    own: &str,
    distance: impl Fn(&NodeInfo) -> Duration,
) -> Found<'a> {
    let entry = if wanted.connect { None } else { view.service(&wanted.service) };
    let mut by_place: BTreeMap<String, Vec<&Arc<Instance>>> = BTreeMap::new();
    for instance in entry.iter().flat_map(|entry| &entry.instances) {
        if is_wanted(instance, wanted) {
            by_place.entry(place_of(&instance.node, own)).or_default().push(instance);
        }
    }
    let asked = lower(datacenter).into_owned();
    if let Some(instances) = by_place.remove(&asked) {
        return Found { datacenter: datacenter.to_owned(), failovers: 0, instances };
    }
    let mut failovers = 0;
    for (place, name) in fallbacks(view, wanted, &asked, own, distance) {
        failovers += 1;
        if let Some(instances) = by_place.remove(&place) {
            return Found { datacenter: name, failovers, instances };
        }
    }
    Found { datacenter: datacenter.to_owned(), failovers, instances: Vec::new() }
}

/// Lists the other datacenters to look in that exist, each once: in lower case and as they are
/// called.
fn fallbacks(
    view: &View,
    wanted: &Wanted,
    asked: &str,
    own: &str,
    distance: impl Fn(&NodeInfo) -> Duration,
) -> Vec<(String, String)> {
    let failover = &wanted.failover;
    let named = failover.datacenters.as_deref().unwrap_or_default();
    if failover.nearest_n <= 0 && named.is_empty() {
        return Vec::new();
    }
    // Each is as far away as the nearest of its nodes.
    let mut known: BTreeMap<String, (Duration, String)> = BTreeMap::new();
    for entry in view.nodes() {
        let info = &entry.info;
        let name = if info.node.datacenter.is_empty() { own } else { &info.node.datacenter };
        let far = distance(info);
        let held = known.entry(place_of(info, own)).or_insert((far, name.to_owned()));
        held.0 = held.0.min(far);
    }
    known.remove(asked);
    let mut nearest: Vec<(&String, &(Duration, String))> = known.iter().collect();
    nearest.sort_by_key(|(_, (far, _))| *far);
    let mut places: Vec<(String, String)> = nearest
        .into_iter()
        .take(usize::try_from(failover.nearest_n).unwrap_or(0))
        .map(|(place, (_, name))| (place.clone(), name.clone()))
        .collect();
    for name in named {
        let place = lower(name).into_owned();
        if let Some((_, name)) = known.get(&place)
            && places.iter().all(|(held, _)| *held != place)
        {
            places.push((place, name.clone()));
        }
    }
    places
}

fn place_of(info: &NodeInfo, own: &str) -> String {
    let named = &info.node.datacenter;
    lower(if named.is_empty() { own } else { named }).into_owned()
}

fn is_wanted(instance: &Instance, wanted: &Wanted) -> bool {
    let ignored = wanted.ignore_check_ids.as_deref().unwrap_or_default();
    let counted = instance.all_checks().filter(|entry| !ignored.contains(&entry.check.id));
    let is_well = match counted.map(|entry| entry.check.status).max() {
        None | Some(Status::Passing) => true,
        Some(Status::Warning) => !wanted.only_passing,
        Some(Status::Critical) => false,
    };
    let has_tag = |tag: &str| instance.service.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
    let mut tags = wanted.tags.iter().flatten();
    let holds = |held: &BTreeMap<String, String>, wanted: &Option<BTreeMap<String, String>>| {
        wanted.iter().flatten().all(|(key, value)| held.get(key) == Some(value))
    };
    is_well
        && tags.all(|tag| match tag.strip_prefix('!') {
            Some(unwanted) => !has_tag(unwanted),
            None => has_tag(tag),
        })
        && holds(&instance.node.node.meta, &wanted.node_meta)
        && holds(&instance.service.meta, &wanted.service_meta)
}
