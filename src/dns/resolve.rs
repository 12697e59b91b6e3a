//! From a question to the records that answer it, read from one view.
//!
//! What exists and what is empty follows Consul: a service without a healthy instance does not
//! exist, a node does whatever its health. Deviations from Consul 1.8 are on purpose and stand
//! with the code: TXT on a service gives no A records, AAAA on an IPv4 `.addr` name gives no A
//! record, the zone itself and `ns` have addresses.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::choose::Random;
use super::config::{Config, Zone};
use super::hosts::{Want, address_of_node, meta_of};
use super::name::Name;
use super::packet::Query;
use super::question::{self, Lookup};
use super::record::{Data, Record, Sections};
use crate::catalog::{NodeEntry, View};

/// Gathers the records for a question. `seed` decides their order, `serial` is the SOA's.
pub fn resolve<'a>(
    view: &'a View,
    config: &'a Config,
    query: &Query,
    seed: u64,
    serial: u32,
) -> Sections<'a> {
    let question = question::read(&query.text, &config.zones);
    let zone = &config.zones[config.targets_in.unwrap_or(question.zone)];
    let mut resolver = Resolver { view, config, query, zone, random: Random(seed), serial };
    match (question.lookup, query.kind) {
        (Lookup::Outside, _) => refused_outside(),
        (Lookup::Reverse(ip), _) => resolver.reverse(ip),
        // Consul answers these for any name in its zone, whether it exists or not.
        (_, RecordType::SOA) => resolver.zone_start(),
        (_, RecordType::NS) => resolver.zone_servers(),
        (Lookup::Apex, _) => resolver.apex(),
        (Lookup::Service { .. } | Lookup::Endpoint { .. }, _) => resolver.service(question.lookup),
        (Lookup::Node { node, datacenter }, _) => resolver.node(node, datacenter),
        (Lookup::Address(ip), _) => resolver.address(ip),
        (Lookup::Nothing, _) => resolver.no_such_name(),
    }
}

/// Not our zone. As with Consul the reply carries no OPT record even when the question did.
fn refused_outside<'a>() -> Sections<'a> {
    Sections {
        is_authoritative: false,
        has_edns: false,
        ..Sections::empty(ResponseCode::Refused)
    }
}

/// What it takes to answer one question.
pub struct Resolver<'a, 'q> {
    pub view: &'a View,
    pub config: &'a Config,
    pub query: &'q Query,
    /// The zone that names in the reply are in.
    pub zone: &'a Zone,
    pub random: Random,
    serial: u32,
}

impl<'a> Resolver<'a, '_> {
    fn service(&mut self, lookup: Lookup<'_>) -> Sections<'a> {
        let chosen = self.choose(lookup);
        if chosen.instances.is_empty() {
            return self.no_such_name();
        }
        let mut sections = Sections::empty(ResponseCode::NoError);
        if self.query.kind == RecordType::SRV {
            self.push_srv(&chosen, &mut sections);
        } else {
            let want = Want::new(self.query.kind, chosen.ttl);
            let answers = &mut sections.answers;
            self.push_instances(Name::Question, &chosen.instances, want, answers);
        }
        if sections.answers.is_empty() {
            sections.authorities.push(self.soa());
        }
        sections
    }

    /// A node resolves whatever its health is: it does so until it leaves the catalog. An empty
    /// answer carries no SOA, as in Consul.
    fn node(&mut self, name: &str, datacenter: Option<&str>) -> Sections<'a> {
        let Some(entry) = self.node_in(name, datacenter) else { return self.no_such_name() };
        let (kind, ttl) = (self.query.kind, self.config.node_ttl);
        let mut sections = Sections::empty(ResponseCode::NoError);
        if kind != RecordType::TXT {
            self.push_node(Name::Question, entry, Want::new(kind, ttl), &mut sections.answers);
        }
        let meta = meta_of(Name::Question, &entry.info, ttl);
        if matches!(kind, RecordType::TXT | RecordType::ANY) {
            sections.answers.extend(meta);
        } else if self.config.node_meta_txt {
            sections.additionals.extend(meta);
        }
        sections
    }

    /// The address is in the name. What is none gets an empty answer, as in Consul.
    fn address(&self, ip: Option<IpAddr>) -> Sections<'a> {
        let mut sections = Sections::empty(ResponseCode::NoError);
        let want = Want::new(self.query.kind, self.config.node_ttl);
        match ip {
            Some(ip) if want.includes(ip) => {
                sections.answers.push(Record::address(Name::Question, want.ttl, ip));
            }
            Some(_) => sections.authorities.push(self.soa()),
            None => {}
        }
        sections
    }

    fn apex(&mut self) -> Sections<'a> {
        let mut sections = Sections::empty(ResponseCode::NoError);
        let want = Want::new(self.query.kind, self.config.node_ttl);
        for entry in self.servers() {
            let ip = address_of_node(&entry.info.node, want.kind).parse().ok();
            if let Some(ip) = ip.filter(|ip| want.includes(*ip)) {
                sections.answers.push(Record::address(Name::Question, want.ttl, ip));
            }
        }
        if sections.answers.is_empty() {
            sections.authorities.push(self.soa());
        }
        sections
    }

    /// Who has an address: its node, else a service that registered it. Reverse names have TTL 0
    /// whatever is configured.
    ///
    /// An address that nobody has gets SERVFAIL with RA, as in Consul: we do not own the reverse
    /// zones, and after NXDOMAIN a stub resolver would not ask its next server.
    fn reverse(&self, ip: Option<IpAddr>) -> Sections<'a> {
        let Some(name) = ip.and_then(|ip| self.reverse_name(ip)) else {
            return Sections {
                is_authoritative: false,
                is_recursion_available: true,
                ..Sections::empty(ResponseCode::ServFail)
            };
        };
        let mut sections = Sections::empty(ResponseCode::NoError);
        if matches!(self.query.kind, RecordType::PTR | RecordType::ANY) {
            let data = Data::Ptr(name);
            sections.answers.push(Record { owner: Name::Question, ttl: 0, data });
        }
        sections
    }

    fn reverse_name(&self, ip: IpAddr) -> Option<Name<'a>> {
        let zone = &self.config.zones[self.config.reverse_in];
        let (nodes, instances) = self.view.at_address(ip);
        // Asked again by key, so that the name lives as long as the view does.
        let of_nodes = nodes.iter().filter_map(|entry| self.view.node_by_key(&entry.info.key));
        let node_names = of_nodes.map(|entry| self.name_of(&entry.info, zone));
        let of_instances = instances.iter().filter_map(|instance| {
            let entry = self.view.node_by_key(&instance.node.key)?;
            entry.instances.iter().find(|known| known.service.id == instance.service.id)
        });
        let service_names = of_instances.map(|instance| Name::Service {
            service: &instance.service.name,
            datacenter: self.datacenter_of(&instance.node.node),
            zone,
        });
        node_names.chain(service_names).find(Name::is_speakable)
    }

    fn zone_start(&self) -> Sections<'a> {
        let mut sections = Sections::empty(ResponseCode::NoError);
        sections.answers.push(self.soa());
        let (servers, addresses) = self.name_servers();
        sections.authorities = servers;
        sections.additionals = addresses;
        sections
    }

    fn zone_servers(&self) -> Sections<'a> {
        let mut sections = Sections::empty(ResponseCode::NoError);
        (sections.answers, sections.additionals) = self.name_servers();
        if sections.answers.is_empty() {
            sections.authorities.push(self.soa());
        }
        sections
    }

    /// Returns the NS records and the addresses they need.
    fn name_servers(&self) -> (Vec<Record<'a>>, Vec<Record<'a>>) {
        let (mut servers, mut addresses) = (Vec::new(), Vec::new());
        let ttl = self.config.node_ttl;
        for entry in self.servers() {
            let name = self.name_of(&entry.info, self.zone);
            if !name.is_speakable() {
                continue;
            }
            servers.push(Record { owner: Name::Zone(self.zone), ttl, data: Data::Ns(name) });
            if let Ok(ip) = entry.info.node.address.parse() {
                addresses.push(Record::address(name, ttl, ip));
            }
        }
        (servers, addresses)
    }

    fn servers(&self) -> Vec<&'a Arc<NodeEntry>> {
        let named = &self.config.name_servers;
        if named.is_empty() {
            return self.view.own().into_iter().collect();
        }
        named.iter().filter_map(|name| self.view.node(name)).collect()
    }

    fn no_such_name(&self) -> Sections<'a> {
        let mut sections = Sections::empty(ResponseCode::NXDomain);
        sections.authorities.push(self.soa());
        sections
    }

    fn soa(&self) -> Record<'a> {
        let times = self.config.soa;
        let data = Data::Soa { zone: self.zone, serial: self.serial, times };
        Record { owner: Name::Zone(self.zone), ttl: times.min_ttl, data }
    }
}

