//! Which instances a name means: by service, datacenter, tag or id, and health.

use std::sync::Arc;
use std::time::Duration;

use super::config::Order;
use super::hosts::weight_of;
use super::question::{self, Lookup, Select};
use super::resolve::Resolver;
use crate::catalog::model::lower;
use crate::catalog::view::NodeInfo;
use crate::catalog::{Instance, Node, NodeEntry, ServiceEntry, Status, queries};

/// A name has fewer tags than so many before its service: more would only make it slow to read.
const TAGS_MAX: usize = 8;

/// Instances that may be given out, and the TTL of what is said about them.
pub struct Chosen<'a> {
    pub instances: Vec<&'a Instance>,
    pub ttl: u32,
    pub order: Order,
}

impl Chosen<'_> {
    fn none() -> Self {
        Self { instances: Vec::new(), ttl: 0, order: Order::Random }
    }
}

impl<'a> Resolver<'a, '_> {
    /// Finds the instances that a name means and that are well enough, in their service's order.
    pub fn choose(&mut self, lookup: Lookup<'_>) -> Chosen<'a> {
        let mut chosen = self.select(lookup);
        self.order(&mut chosen);
        chosen
    }

    /// Finds the endpoints that a name means and that are well enough, in their service's order.
    pub fn choose_endpoints(&mut self, lookup: Lookup<'_>) -> Chosen<'a> {
        let mut chosen = self.select(lookup);
        self.leave_one_of_each(&mut chosen.instances);
        self.order(&mut chosen);
        chosen
    }

    fn order(&mut self, chosen: &mut Chosen<'a>) {
        let instances = &mut chosen.instances;
        self.random.shuffle(instances);
        match chosen.order {
            Order::Random => {}
            Order::Weighted => {
                // Each waits for a time that is shorter, on average, by its weight, and the first one to
                // come is the first: so the chances of all others are right among themselves, too.
                let random = &mut self.random;
                let mut wait = |instance: &Instance| match weight_of(instance) {
                    0 => f64::INFINITY,
                    weight => -random.next_fraction().ln() / f64::from(weight),
                };
                let mut waits: Vec<(f64, &Instance)> =
                    instances.iter().map(|instance| (wait(instance), *instance)).collect();
                waits.sort_by(|one, other| one.0.total_cmp(&other.0));
                *instances = waits.into_iter().map(|(_, instance)| instance).collect();
            }
            Order::Near => instances.sort_by_key(|instance| self.distance(&instance.node)),
        }
    }

    /// Returns how far away a node is. Those of which nobody knows are the farthest.
    fn distance(&self, info: &NodeInfo) -> Duration {
        match info.member {
            Some(member) if member == self.view.me() => Duration::ZERO,
            Some(member) => {
                let measured = self.distances.and_then(|distances| distances.get(&member));
                measured.copied().unwrap_or(Duration::MAX)
            }
            None => Duration::MAX,
        }
    }

    fn select(&self, lookup: Lookup<'_>) -> Chosen<'a> {
        match lookup {
            Lookup::Service { service, select, datacenter } => {
                self.choose_of(service, &[select], datacenter)
            }
            Lookup::Endpoint { name, proto, last } => self.choose_endpoint(name, proto, last),
            Lookup::Query { name, datacenter } => self.choose_query(name, datacenter),
            Lookup::Outside
            | Lookup::Apex
            | Lookup::Node { .. }
            | Lookup::Address(_)
            | Lookup::Reverse(_)
            | Lookup::Nothing => Chosen::none(),
        }
    }

    /// `_<name>._<proto>.<last>`: our own datacenter wins, as in Consul; then a service of that
    /// name; then another datacenter.
    ///
    /// An instance has one port, so the RFC 2782 name selects only where it is a tag.
    fn choose_endpoint(&self, name: &str, proto: &str, last: &str) -> Chosen<'a> {
        let proto = question::select_proto(proto);
        let is_own = last.eq_ignore_ascii_case(&self.config.datacenter);
        let Some(entry) = (if is_own { None } else { self.view.service(last) }) else {
            return self.choose_of(name, &[proto], Some(last));
        };
        let is_tag = entry.instances.iter().any(|instance| has_tag(instance, name));
        let select = if is_tag { Select::Tag(name) } else { Select::All };
        self.choose_of(last, &[select, proto], None)
    }

    /// What a prepared query finds, in its order and for the time that it says. A template has no answer
    /// to its id.
    fn choose_query(&self, name: &str, datacenter: Option<&str>) -> Chosen<'a> {
        let Ok(Some(resolved)) = self.view.queries().resolve(name) else { return Chosen::none() };
        let (wanted, own) = (&*resolved.wanted, self.config.datacenter.as_str());
        let distance = |info: &NodeInfo| self.distance(info);
        let found = queries::find(self.view, wanted, datacenter.unwrap_or(own), own, distance);
        let service = lower(&wanted.service);
        let of_service = || self.config.service_ttl.of(&service);
        let is_near = matches!(&*wanted.near, "_agent" | "_ip")
            || self
                .view
                .own()
                .is_some_and(|me| me.info.node.name.eq_ignore_ascii_case(&wanted.near));
        Chosen {
            instances: found.instances.into_iter().map(Arc::as_ref).collect(),
            ttl: resolved.entry.query.dns.seconds().unwrap_or_else(of_service),
            order: if is_near { Order::Near } else { self.config.order.of(&service) },
        }
    }

    fn choose_of(
        &self,
        service: &str,
        selects: &[Select<'_>],
        datacenter: Option<&str>,
    ) -> Chosen<'a> {
        let Some(entry) = self.view.service(service) else {
            return Chosen::none();
        };
        let selects = selects.iter().filter_map(|select| match *select {
            Select::All => None,
            Select::Tag(word) => Some((Reading::of(entry, word, false), word)),
            Select::TagOrId(word) => Some((Reading::of(entry, word, true), word)),
        });
        let selects: Vec<(Reading, &str)> = selects.collect();
        let only_passing = self.config.only_passing || self.config.only_passing_of.of(service);
        let is_well = |status: Status| match status {
            Status::Passing => true,
            Status::Warning => !only_passing,
            Status::Critical => false,
        };
        let is_chosen = |instance: &&Arc<Instance>| {
            is_well(instance.status)
                && self.is_in(&instance.node.node, datacenter)
                && selects.iter().all(|(reading, word)| reading.selects(instance, word))
        };
        Chosen {
            instances: entry.instances.iter().filter(is_chosen).map(Arc::as_ref).collect(),
            ttl: self.config.service_ttl.of(service),
            order: self.config.order.of(service),
        }
    }

    /// Tells whether a node is in a datacenter; `None` means our own. A node that names none is
    /// in ours.
    pub fn is_in(&self, node: &Node, datacenter: Option<&str>) -> bool {
        let asked = datacenter.unwrap_or(&self.config.datacenter);
        self.datacenter_of(node).eq_ignore_ascii_case(asked)
    }

    /// Finds a node by name or id in a datacenter.
    pub fn node_in(&self, name: &str, datacenter: Option<&str>) -> Option<&'a Arc<NodeEntry>> {
        self.view.node(name).filter(|entry| self.is_in(&entry.info.node, datacenter))
    }

    /// Returns the datacenter that names of a node say.
    pub fn datacenter_of(&self, node: &'a Node) -> &'a str {
        if node.datacenter.is_empty() { &self.config.datacenter } else { &node.datacenter }
    }
}

/// How a word before a service selects: it is looked at before any instance is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    /// As one tag, dots and all.
    Tag,
    /// As several tags with dots between them.
    Tags,
    Id,
}

impl Reading {
    /// Chooses the first reading under which any instance, well or not, is meant.
    fn of(entry: &ServiceEntry, word: &str, may_be_id: bool) -> Self {
        let any =
            |reading: Self| entry.instances.iter().any(|instance| reading.selects(instance, word));
        let readings = [Self::Tag, Self::Tags].into_iter().find(|reading| any(*reading));
        readings.unwrap_or(if may_be_id { Self::Id } else { Self::Tag })
    }

    fn selects(self, instance: &Instance, word: &str) -> bool {
        match self {
            Self::Tag => has_tag(instance, word),
            Self::Tags => has_tags(instance, word),
            Self::Id => instance.service.id.eq_ignore_ascii_case(word),
        }
    }
}

/// Tells whether a word is made of tags of an instance, with dots between them. A tag may have dots
/// of its own.
fn has_tags(instance: &Instance, word: &str) -> bool {
    let dots = || word.match_indices('.').map(|(at, _)| at);
    if !(1..TAGS_MAX).contains(&dots().count()) {
        return false;
    }
    // Whether tags end before the dot, or the end, that is so many bytes in.
    let mut ends = [false; TAGS_MAX];
    let places: Vec<usize> = dots().chain([word.len()]).collect();
    for (place, end) in places.iter().enumerate() {
        let is_reached = |start: usize| start == 0 || ends[start - 1];
        let begin = |start: usize| if start == 0 { 0 } else { places[start - 1] + 1 };
        ends[place] = (0..=place)
            .any(|start| is_reached(start) && has_tag(instance, &word[begin(start)..*end]));
    }
    ends[places.len() - 1]
}

fn has_tag(instance: &Instance, tag: &str) -> bool {
    instance.service.tags.iter().any(|own| own.eq_ignore_ascii_case(tag))
}

/// A stream of numbers from a seed (splitmix64): enough to spread load, no secret.
pub struct Random(pub u64);

impl Random {
    /// Returns the next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number above 0, up to 1.
    pub fn next_fraction(&mut self) -> f64 {
        ((self.next_number() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Puts items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let choices = last as u64 + 1;
            // The product's upper half is below `choices`, as evenly as 64 bits allow.
            let pick = (u128::from(self.next_number()) * u128::from(choices)) >> 64;
            items.swap(last, usize::try_from(pick).expect("below the length of a slice"));
        }
    }
}
