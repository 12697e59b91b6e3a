//! Which records say where an instance or a node is: addresses, aliases, SRV.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::RecordType;

use super::choose::Chosen;
use super::config::Zone;
use super::name::Name;
use super::question::{self, Lookup};
use super::record::{Alpn, Data, Record, Sections};
use super::recursion::known::HOSTS_MAX;
use super::recursion::reply::ForeignData;
use super::resolve::Resolver;
use crate::catalog::view::NodeInfo;
use crate::catalog::{Instance, Node, NodeEntry, Status};

/// How many host names in our own zones are followed, one from the other.
const ALIASES_MAX: usize = 4;

/// Which records about a host are wanted.
#[derive(Clone, Copy)]
pub struct Want {
    /// A, AAAA or ANY; others want an alias alone, if there is one.
    pub kind: RecordType,
    /// Seconds, for all of them.
    pub ttl: u32,
    /// How many more aliases are followed.
    aliases: usize,
}

impl Want {
    pub fn new(kind: RecordType, ttl: u32) -> Self {
        Self { kind, ttl, aliases: ALIASES_MAX }
    }

    /// Tells whether an address is of a family that is wanted.
    pub fn includes(self, ip: IpAddr) -> bool {
        match self.kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        }
    }
}

impl<'a> Resolver<'a, '_> {
    /// Pushes an SRV record for each instance, or an HTTPS or SVCB record where that was asked, and
    /// beside it what its target needs.
    pub fn push_endpoints(&mut self, chosen: &Chosen<'a>, sections: &mut Sections<'a>) {
        let ttl = chosen.ttl;
        for instance in &chosen.instances {
            let Some((port, target)) = self.endpoint_of(instance) else { continue };
            let (is_https, alpn) =
                (self.query.kind == RecordType::HTTPS, Alpn::of(&instance.service));
            // Whoever sees such a record no longer speaks without TLS to that name (RFC 9460,
            // section 9.5): only who says that it speaks TLS gets one.
            if is_https && alpn.protocols().next().is_none() {
                continue;
            }
            let data = match self.query.kind {
                RecordType::HTTPS | RecordType::SVCB => Data::Svcb {
                    is_https,
                    // It has no weights: who warns is tried last.
                    priority: if instance.status == Status::Passing { 1 } else { 2 },
                    target,
                    alpn,
                    port,
                    hint: self.ip_of(instance),
                },
                _ => Data::Srv { weight: weight_of(instance), port, target },
            };
            sections.answers.push(Record { owner: Name::Question, ttl, data });
            let beside = &mut sections.additionals;
            let first = beside.len();
            self.push_target(instance, target, ttl, beside);
            let address = beside[first..].iter().position(Record::is_address);
            sections.addresses.push(address.map(|offset| first + offset));
            if self.config.node_meta_txt && !instance.node.node.meta.is_empty() {
                let owner = self.name_of(&instance.node, self.zone);
                beside.extend(meta_of(owner, &instance.node, ttl));
            }
        }
    }

    /// Leaves one of the instances that are one endpoint under several ids: always the same one, for
    /// their targets may be called differently, and whoever watches would see servers come and go.
    pub fn leave_one_of_each(&self, instances: &mut Vec<&'a Instance>) {
        let mut seen = BTreeSet::new();
        instances.retain(|instance| {
            self.endpoint_of(instance)
                .is_none_or(|(port, _)| seen.insert((&instance.node.key, instance.address(), port)))
        });
    }

    /// Returns an instance's port and target. One that SRV cannot say is left out rather than said wrong.
    fn endpoint_of(&self, instance: &'a Instance) -> Option<(u16, Name<'a>)> {
        let port = u16::try_from(instance.service.port).ok()?;
        Some((port, self.target_of(instance)?))
    }

    /// Names the host of an instance so that the name is the same for one address only: the node
    /// where the address is the node's, the address itself where the instance has its own.
    fn target_of(&self, instance: &'a Instance) -> Option<Name<'a>> {
        let Some(ip) = self.ip_of(instance) else {
            return Some(Name::Host(instance.address())).filter(Name::is_speakable);
        };
        // The address is the node's also where the instance names the very name that was asked.
        let is_nodes_own = instance.service.address.is_empty() || instance.ip().is_none();
        let by_node = self.name_of(&instance.node, self.zone);
        if is_nodes_own && by_node.is_speakable() {
            return Some(by_node);
        }
        let datacenter = self.datacenter_of(&instance.node.node);
        Some(Name::Address { ip, datacenter, zone: self.zone }).filter(Name::is_speakable)
    }

    fn push_target(
        &mut self,
        instance: &'a Instance,
        target: Name<'a>,
        ttl: u32,
        records: &mut Vec<Record<'a>>,
    ) {
        match (self.ip_of(instance), target) {
            (Some(ip), _) => records.push(Record::address(target, ttl, ip)),
            (None, Name::Host(host)) => self.follow(host, Want::new(RecordType::ANY, ttl), records),
            (None, _) => {}
        }
    }

    /// Returns an instance's address where it is an IP address. An instance whose host name is
    /// the very name that was asked has its node's.
    fn ip_of(&self, instance: &Instance) -> Option<IpAddr> {
        let is_itself = |host: &str| bare(host).eq_ignore_ascii_case(&self.query.text);
        match instance.ip() {
            Some(ip) => Some(ip),
            None if is_itself(instance.address()) => instance.node.node.address.parse().ok(),
            None => None,
        }
    }

    /// Pushes the instances' addresses, each once; or, where none has an IP address, the host
    /// name of one of them.
    pub fn push_instances(
        &mut self,
        owner: Name<'a>,
        instances: &[&'a Instance],
        want: Want,
        records: &mut Vec<Record<'a>>,
    ) {
        let mut seen = BTreeSet::new();
        let (mut host, mut has_ips) = (None, false);
        for instance in instances {
            let address = address_of(instance, want.kind);
            let Some(ip) = address.parse().ok().or_else(|| self.ip_of(instance)) else {
                host = host.or(Some(address).filter(|host| Name::Host(host).is_speakable()));
                continue;
            };
            has_ips = true;
            if want.includes(ip) && seen.insert(ip) {
                records.push(Record::address(owner, want.ttl, ip));
                if seen.len() == self.config.a_record_limit {
                    return;
                }
            }
        }
        if let Some(host) = host.filter(|_| !has_ips) {
            self.push_alias(owner, host, want, records);
        }
    }

    /// Pushes a node's address, or its alias.
    pub fn push_node(
        &mut self,
        owner: Name<'a>,
        entry: &'a NodeEntry,
        want: Want,
        records: &mut Vec<Record<'a>>,
    ) {
        let address = address_of_node(&entry.info.node, want.kind);
        match address.parse() {
            Ok(ip) if want.includes(ip) => records.push(Record::address(owner, want.ttl, ip)),
            Ok(_) => {}
            Err(_) => self.push_alias(owner, address, want, records),
        }
    }

    fn push_alias(
        &mut self,
        owner: Name<'a>,
        host: &'a str,
        want: Want,
        records: &mut Vec<Record<'a>>,
    ) {
        let data = Data::Cname(Name::Host(host));
        let is_circle = records.iter().any(|record| record.data == data);
        if is_circle || !Name::Host(host).is_speakable() {
            return;
        }
        records.push(Record { owner, ttl: want.ttl, data });
        if want.kind != RecordType::CNAME {
            self.follow(host, want, records);
        }
    }

    /// Pushes what a host name leads to. Names outside of our zones that nobody here may ask about are
    /// for the client.
    fn follow(&mut self, host: &'a str, want: Want, records: &mut Vec<Record<'a>>) {
        let Some(aliases) = want.aliases.checked_sub(1) else { return };
        let want = Want { aliases, ..want };
        let text = bare(host).to_ascii_lowercase();
        let (owner, lookup) = (Name::Host(host), question::read(&text, &self.config.zones).lookup);
        match lookup {
            Lookup::Service { .. } | Lookup::Endpoint { .. } | Lookup::Query { .. } => {
                let chosen = self.choose(lookup);
                self.push_instances(owner, &chosen.instances, want, records);
            }
            Lookup::Node { node, datacenter } => {
                if let Some(entry) = self.node_in(node, datacenter) {
                    self.push_node(owner, entry, want, records);
                }
            }
            Lookup::Address(Some(ip)) if want.includes(ip) => {
                records.push(Record::address(owner, want.ttl, ip));
            }
            Lookup::Outside => self.follow_outside(&text, want, records),
            Lookup::Apex | Lookup::Address(_) | Lookup::Reverse(_) | Lookup::Nothing => {}
        }
    }

    /// Pushes what other servers said of a host, or notes that they are to be asked.
    fn follow_outside(&mut self, host: &str, want: Want, records: &mut Vec<Record<'a>>) {
        let Some(known) = self.known.filter(|_| self.may_ask_others(host)) else { return };
        let kinds: &[RecordType] = match want.kind {
            RecordType::ANY => &[RecordType::A, RecordType::AAAA],
            RecordType::A => &[RecordType::A],
            RecordType::AAAA => &[RecordType::AAAA],
            _ => &[],
        };
        for kind in kinds {
            let wanted = (host.to_owned(), *kind);
            let Some(said) = known.get(&wanted) else {
                if self.missing.len() < HOSTS_MAX {
                    self.missing.insert(wanted);
                }
                continue;
            };
            for foreign in said {
                let data = match &foreign.data {
                    ForeignData::A(octets) => Data::A((*octets).into()),
                    ForeignData::Aaaa(octets) => Data::Aaaa((*octets).into()),
                    ForeignData::Cname(target) => Data::Cname(Name::Host(target)),
                };
                let ttl = if self.keeps_ttls { foreign.ttl } else { want.ttl };
                let record = Record { owner: Name::Host(&foreign.owner), ttl, data };
                // Both kinds of addresses come by the same aliases.
                if record.is_speakable() && !records.contains(&record) {
                    records.push(record);
                }
            }
        }
    }

    /// Returns a node's own name in a zone.
    pub fn name_of(&self, info: &'a NodeInfo, zone: &'a Zone) -> Name<'a> {
        let datacenter = self.datacenter_of(&info.node);
        Name::Node { node: &info.node.name, datacenter, zone }
    }
}

/// Returns how much an instance is to get, as it is at present.
pub fn weight_of(instance: &Instance) -> u16 {
    let weights = instance.service.weights;
    let weight = match instance.status {
        Status::Passing => weights.passing,
        Status::Warning | Status::Critical => weights.warning,
    };
    u16::try_from(weight.max(0)).unwrap_or(u16::MAX)
}

/// Returns the address for a kind of question: hosts with two families name the other one in
/// their tagged addresses.
fn address_of(instance: &Instance, kind: RecordType) -> &str {
    if instance.service.address.is_empty() {
        return address_of_node(&instance.node.node, kind);
    }
    let tagged = family_tag(kind).and_then(|tag| instance.service.tagged_addresses.get(tag));
    tagged.map_or(&instance.service.address, |tagged| &tagged.address)
}

/// Returns a node's address for a kind of question: see [`address_of`].
pub fn address_of_node(node: &Node, kind: RecordType) -> &str {
    let tagged = family_tag(kind).and_then(|tag| node.tagged_addresses.get(tag));
    tagged.unwrap_or(&node.address)
}

fn family_tag(kind: RecordType) -> Option<&'static str> {
    match kind {
        RecordType::A => Some("lan_ipv4"),
        RecordType::AAAA => Some("lan_ipv6"),
        _ => None,
    }
}

/// Returns a node's meta as TXT records; none when its name cannot stand in a message.
pub fn meta_of<'a>(
    owner: Name<'a>,
    info: &'a NodeInfo,
    ttl: u32,
) -> impl Iterator<Item = Record<'a>> {
    let entries = if owner.is_speakable() { Some(&info.node.meta) } else { None };
    let texts = entries.into_iter().flatten();
    texts.map(move |(key, value)| Record { owner, ttl, data: Data::Txt { key, value } })
}

/// Returns the services' meta as TXT records, each entry once.
pub fn meta_of_services<'a>(
    owner: Name<'a>,
    instances: &[&'a Instance],
    ttl: u32,
) -> Vec<Record<'a>> {
    let entries = instances.iter().flat_map(|instance| &instance.service.meta);
    let entries: BTreeSet<(&String, &String)> = entries.collect();
    let text = |(key, value): (&'a String, &'a String)| Data::Txt { key, value };
    entries.into_iter().map(|entry| Record { owner, ttl, data: text(entry) }).collect()
}

/// Returns a host name without its final dot.
fn bare(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}
