//! From a question to the records that answer it, read from one view.
//!
//! What exists and what is empty follows Consul: a service without a healthy instance does not
//! exist, a node does whatever its health. Deviations from Consul 1.8 are on purpose and stand
//! with the code: TXT on a service gives its meta and no A records, AAAA on an IPv4 `.addr` name
//! gives no A record, the zone itself and `ns` have addresses.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::choose::Random;
use super::config::{Config, Zone};
use super::hosts::{Want, address_of_node, meta_of, meta_of_services};
use super::name::Name;
use super::packet::Query;
use super::question::{self, Lookup};
use super::record::{Data, Record, Sections};
use super::recursion::known::{Known, Missing};
use crate::catalog::{NodeEntry, View};
use crate::live::Distances;

/// The zone in which names are as with Consul where that is not as it should be.
const CONSUL: &str = "consul";

/// What an answer depends on beside the question.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub view: &'a View,
    pub config: &'a Config,
    /// What other servers said so far; `None`: nobody else is asked for this client.
    pub known: Option<&'a Known>,
    /// How far away other nodes are; `None`: nobody knows.
    pub distances: Option<&'a Distances>,
    /// Decides the order of records.
    pub seed: u64,
    /// The SOA's.
    pub serial: u32,
}

/// Gathers the records for a question; `None`: others are to be asked.
pub fn resolve<'a>(given: Given<'a>, query: &Query) -> Option<Sections<'a>> {
    let Given { view, config, known, distances, seed, serial } = given;
    let question = question::read(&query.text, &config.zones);
    let asked = &config.zones[question.zone];
    let is_strict = asked.as_str() != CONSUL && config.targets_in.is_none();
    let zone = config.targets_in.map_or(asked, |index| &config.zones[index]);
    let keeps_ttls = matches!(question.lookup, Lookup::Node { .. });
    let missing = Missing::new();
    let random = Random(seed);
    let mut resolver = Resolver {
        is_strict,
        view,
        config,
        query,
        zone,
        random,
        serial,
        known,
        distances,
        keeps_ttls,
        missing,
    };
    let is_elsewhere = match question.lookup {
        Lookup::Outside => true,
        Lookup::Reverse(ip) => ip.is_none_or(|ip| resolver.reverse_name(ip).is_none()),
        _ => false,
    };
    if is_elsewhere && resolver.may_ask_others(&query.text) {
        return None;
    }
    let sections = resolver.here(question.lookup);
    Some(Sections {
        is_recursion_available: sections.is_recursion_available || known.is_some(),
        missing: resolver.missing,
        ..sections
    })
}

impl<'a> Resolver<'a, '_> {
    /// Tells whether others may be asked about a name. Only for who wants it: what is remembered of
    /// others is nobody's business.
    pub fn may_ask_others(&self, name: &str) -> bool {
        self.known.is_some()
            && self.query.is_recursion_desired
            && self.config.recursion.is_for(name)
    }

    /// Tells whether records of the zone itself are an answer: where it was asked for, and as with Consul
    /// below it, whether the name exists or not. Resolvers refuse the latter, since their owner is not who
    /// was asked for.
    fn tells_of_zone(&self) -> bool {
        !self.is_strict || self.query.text == self.zone.as_str()
    }

    fn here(&mut self, lookup: Lookup<'_>) -> Sections<'a> {
        match (lookup, self.query.kind) {
            (Lookup::Outside, _) => refused_outside(),
            (Lookup::Reverse(ip), _) => self.reverse(ip),
            (_, RecordType::SOA) if self.tells_of_zone() => self.zone_start(),
            (_, RecordType::NS) if self.tells_of_zone() => self.zone_servers(),
            (Lookup::Apex, _) => self.apex(),
            (Lookup::Service { .. } | Lookup::Endpoint { .. } | Lookup::Query { .. }, _) => {
                self.service(lookup)
            }
            (Lookup::Node { node, datacenter }, _) => self.node(node, datacenter),
            (Lookup::Address(ip), _) => self.address(ip),
            (Lookup::Nothing, _) => self.no_such_name(),
        }
    }
}

/// Not our zone. As with Consul the reply carries no OPT record even when the question did.
fn refused_outside<'a>() -> Sections<'a> {
    Sections { has_edns: false, ..Sections::refused(ResponseCode::Refused) }
}

/// What it takes to answer one question.
pub struct Resolver<'a, 'q> {
    pub view: &'a View,
    pub config: &'a Config,
    pub query: &'q Query,
    /// The zone that names in the reply are in.
    pub zone: &'a Zone,
    /// Whether the RFCs count where Consul does otherwise: in all zones but `consul`, whose clients know
    /// it so, as long as targets stay in the zone that was asked.
    is_strict: bool,
    pub random: Random,
    serial: u32,
    /// What other servers said so far; `None`: nobody else is asked for this client.
    pub known: Option<&'a Known>,
    /// How far away other nodes are; `None`: nobody knows.
    pub distances: Option<&'a Distances>,
    /// Whether records of other servers keep their TTLs: those beside a service have the service's.
    pub keeps_ttls: bool,
    /// What is to be asked of others for the answer to be whole.
    pub missing: Missing,
}

impl<'a> Resolver<'a, '_> {
    fn service(&mut self, lookup: Lookup<'_>) -> Sections<'a> {
        let kind = self.query.kind;
        let are_endpoints = matches!(kind, RecordType::SRV | RecordType::HTTPS | RecordType::SVCB);
        let chosen =
            if are_endpoints { self.choose_endpoints(lookup) } else { self.choose(lookup) };
        if chosen.instances.is_empty() {
            return self.no_such_name();
        }
        let mut sections = Sections::empty(ResponseCode::NoError);
        sections.answers.reserve(chosen.instances.len());
        if are_endpoints {
            self.push_endpoints(&chosen, &mut sections);
        } else {
            let want = Want::new(kind, chosen.ttl);
            let answers = &mut sections.answers;
            self.push_instances(Name::Question, &chosen.instances, want, answers);
        }
        if self.query.kind == RecordType::TXT && sections.answers.is_empty() {
            let (instances, ttl) = (&chosen.instances, chosen.ttl);
            sections.answers = meta_of_services(Name::Question, instances, ttl);
        }
        if sections.answers.is_empty() {
            sections.authorities.push(self.soa());
        }
        sections
    }

    /// A node resolves whatever its health is: it does so until it leaves the catalog. An empty
    /// answer carries no SOA in `consul`, as there.
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
        if sections.answers.is_empty() && self.is_strict {
            sections.authorities.push(self.soa());
        }
        sections
    }

    /// The address is in the name. What is none gets an empty answer in `consul`, as there.
    fn address(&self, ip: Option<IpAddr>) -> Sections<'a> {
        let mut sections = Sections::empty(ResponseCode::NoError);
        let want = Want::new(self.query.kind, self.config.node_ttl);
        match ip {
            Some(ip) if want.includes(ip) => {
                sections.answers.push(Record::address(Name::Question, want.ttl, ip));
            }
            Some(_) => sections.authorities.push(self.soa()),
            None if self.is_strict => return self.no_such_name(),
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
                is_recursion_available: true,
                ..Sections::refused(ResponseCode::ServFail)
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
            self.view.node_by_key(&instance.node.key)?.instance(&instance.service.id)
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
        let is_there = self.is_strict
            && question::is_between(&self.query.text, self.zone, &self.config.datacenter);
        let code = if is_there { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let mut sections = Sections::empty(code);
        sections.authorities.push(self.soa());
        sections
    }

    fn soa(&self) -> Record<'a> {
        let times = self.config.soa;
        let data = Data::Soa { zone: self.zone, serial: self.serial, times };
        Record { owner: Name::Zone(self.zone), ttl: times.min_ttl, data }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use hickory_proto::op::Message;

    use crate::catalog::Status;
    use crate::catalog::queries::{Dns, PreparedQuery, Template, Wanted};
    use crate::dns::answer::{Request, Transport, answer_into};
    use crate::dns::config::{ByService, Config, Order, Soa};
    use crate::dns::testing::{Catalog, ME, data_of, question, show};
    use crate::live::Distances;

    /// Three instances of `app`, one of them by its node's address; `n2` is another member.
    fn catalog() -> Catalog {
        Catalog::new()
            .node(N2, "n2", "10.0.0.2", &[("rack", "r2"), ("rfc1035-note", "plain text")])
            .instance("app app-1 10.1.0.1:8001 blue")
            .instance("app app-2 10.1.0.2:8002 green,v1.2")
            .instance_on(N2, "app app-3 :8003 blue")
    }

    const N2: &str = "22222222-2222-2222-2222-222222222222";

    fn check(catalog: &Catalog, question: &str, expected: &str) {
        assert_eq!(show(catalog, &Config::default(), question), expected, "{question}");
    }

    #[test]
    fn short_and_long_names_of_a_service_give_the_same_in_both_zones() {
        let catalog = catalog();
        for name in [
            "app.internal.",
            "app.consul.",
            "app.service.consul.",
            "app.service.dc1.internal.",
            "app.service.dc1.dc.internal.",
            "_app._tcp.internal.",
            "_app._tcp.service.consul.",
            "_app._tcp.dc1.consul.",
        ] {
            let addresses = ["10.0.0.2", "10.1.0.1", "10.1.0.2"];
            let lines = addresses.map(|address| format!("{name} A {address}"));
            check(&catalog, &format!("{name} A"), &lines.join(", "));
        }
    }

    #[test]
    fn the_owner_repeats_the_questions_case() {
        check(&catalog(), "gReEn.APP.Internal. A", "gReEn.APP.Internal. A 10.1.0.2");
    }

    #[test]
    fn a_label_before_a_service_selects_by_tag_or_else_by_id() {
        let catalog = catalog().instance("app blue 10.1.0.9:1 odd");
        check(&catalog, "v1.2.app.internal. A", "v1.2.app.internal. A 10.1.0.2");
        check(&catalog, "app-3.app.internal. A", "app-3.app.internal. A 10.0.0.2");
        // An instance's id never hides a tag.
        let both = "blue.app.internal. A 10.0.0.2, blue.app.internal. A 10.1.0.1";
        check(&catalog, "blue.app.internal. A", both);
        check(&catalog, "none.app.internal. A", "NXDomain  | internal. SOA");
        // Consul knows no instances by id: long names do not either.
        check(&catalog, "app-3.app.service.consul. A", "NXDomain  | consul. SOA");
    }

    /// A query for the instances of `app` that have no tag `green`, and a template for the others.
    fn with_queries(catalog: Catalog) -> Catalog {
        let wanted = |service: &str, tag: &str| Wanted {
            service: service.to_owned(),
            tags: Some(vec![tag.to_owned()]),
            ..Wanted::default()
        };
        let query = PreparedQuery {
            name: "App-Q".to_owned(),
            service: wanted("app", "!green"),
            dns: Dns { ttl: "12s".to_owned() },
            ..PreparedQuery::default()
        };
        let template = PreparedQuery {
            name: "geo-".to_owned(),
            service: wanted("${name.suffix}", "green"),
            template: Template { kind: "name_prefix_match".to_owned(), ..Template::default() },
            ..PreparedQuery::default()
        };
        catalog.query("00000000-0000-0000-0000-00000000000a", &query).query("t", &template)
    }

    #[test]
    fn a_prepared_query_answers_to_its_name_its_id_and_those_of_its_template() {
        let catalog = with_queries(catalog()).check("app-1", Status::Warning);
        for name in
            ["app-q.query.internal.", "APP-Q.query.dc1.consul.", "_app-q._tcp.query.consul."]
        {
            let lines = ["10.0.0.2", "10.1.0.1"].map(|ip| format!("{name} 12 A {ip}"));
            check(&catalog, &format!("{name} A"), &lines.join(", "));
        }
        let id = "00000000-0000-0000-0000-00000000000A.query.internal.";
        check(&catalog, &format!("{id} A"), &format!("{id} 12 A 10.0.0.2, {id} 12 A 10.1.0.1"));
        check(&catalog, "geo-app.query.internal. A", "geo-app.query.internal. A 10.1.0.2");
        for (name, zone) in [
            ("geo-db.query.internal.", "internal"),
            ("t.query.internal.", "internal"),
            ("app-q.query.dc2.internal.", "internal"),
            ("app-q.consul.", "consul"),
        ] {
            check(&catalog, &format!("{name} A"), &format!("NXDomain  | {zone}. SOA"));
        }
        // Critical instances are nobody's answer, whatever the query says of warnings.
        let catalog = catalog.check("app-1", Status::Critical);
        let name = "app-q.query.internal.";
        check(&catalog, &format!("{name} A"), &format!("{name} 12 A 10.0.0.2"));
        let srv = show(&catalog, &Config::default(), "app-q.query.internal. SRV");
        assert!(
            srv.starts_with("app-q.query.internal. 12 SRV 1 10 8003 n2.node.dc1.internal."),
            "{srv}"
        );
    }

    #[test]
    fn several_tags_select_those_that_carry_all_of_them() {
        let catalog = catalog()
            .instance("app app-4 10.1.0.4:1 green,blue")
            .instance("app app-5 10.1.0.5:1 blue,v1.2,eu");
        check(&catalog, "blue.green.app.internal. A", "blue.green.app.internal. A 10.1.0.4");
        let name = "EU.v1.2.blue.app.service.consul.";
        check(&catalog, &format!("{name} A"), &format!("{name} A 10.1.0.5"));
        check(&catalog, "blue.v1.app.internal. A", "NXDomain  | internal. SOA");
        // One tag with a dot is not two.
        let catalog = catalog.instance("app app-6 10.1.0.6:1 green.blue");
        check(&catalog, "green.blue.app.internal. A", "green.blue.app.internal. A 10.1.0.6");
        let many = "blue.".repeat(9);
        check(&catalog, &format!("{many}app.internal. A"), "NXDomain  | internal. SOA");
    }

    /// Tells how often each address came first, of a thousand answers.
    fn firsts(catalog: &Catalog, config: &Config, distances: &Distances) -> BTreeMap<String, u32> {
        let packet = question("app.internal. A", 1_232);
        let mut firsts = BTreeMap::new();
        for seed in 0..1_000 {
            let request = Request {
                packet: &packet,
                transport: Transport::Udp,
                seed,
                now_unix: 1,
                client: None,
                known: None,
                distances: Some(distances),
            };
            let mut reply = Vec::new();
            answer_into(&catalog.view, config, request, &mut reply);
            let reply = Message::from_vec(&reply).unwrap();
            *firsts.entry(data_of(&reply.answers[0])).or_default() += 1;
        }
        firsts
    }

    #[test]
    fn a_weighted_service_is_answered_by_the_weights_of_its_instances() {
        // Of those that pass the weight is 10, of those that warn 2.
        let catalog = catalog().check("app-1", Status::Warning);
        let config =
            Config { order: ByService::new([("app", Order::Weighted)]), ..Config::default() };
        let firsts = firsts(&catalog, &config, &Distances::new());
        let of = |address: &str| firsts[address];
        assert!((50..140).contains(&of("10.1.0.1")), "one of eleven: {firsts:?}");
        assert!((390..520).contains(&of("10.1.0.2")), "five of eleven: {firsts:?}");
        assert!((390..520).contains(&of("10.0.0.2")), "{firsts:?}");
    }

    #[test]
    fn a_near_service_is_answered_by_the_distances_of_its_nodes() {
        const N3: &str = "33333333-3333-3333-3333-333333333333";
        let far = Catalog::new()
            .node(N2, "n2", "10.0.0.2", &[])
            .node(N3, "n3", "10.0.0.3", &[])
            .instance_on(N2, "app a2 :1")
            .instance_on(N3, "app a3 :1");
        let config = Config { order: ByService::new([("a*", Order::Near)]), ..Config::default() };
        let millis = |key: &str, millis| (key.parse().unwrap(), Duration::from_millis(millis));
        let unknown = firsts(&far, &config, &Distances::new());
        assert_eq!(unknown.len(), 2, "nobody is nearer: {unknown:?}");
        let one = firsts(&far, &config, &[millis(N3, 7)].into());
        assert_eq!(one, [("10.0.0.3".to_owned(), 1_000)].into());
        let both = [millis(N2, 3), millis(N3, 7)].into();
        assert_eq!(firsts(&far, &config, &both), [("10.0.0.2".to_owned(), 1_000)].into());
        let here = far.instance("app a1 :1");
        assert_eq!(firsts(&here, &config, &both), [("127.0.0.1".to_owned(), 1_000)].into());
    }

    #[test]
    fn of_some_services_those_that_warn_are_left_out() {
        let catalog = catalog().check("app-2", Status::Warning);
        let config =
            Config { only_passing_of: ByService::new([("app", true)]), ..Config::default() };
        let found = show(&catalog, &config, "green.app.internal. A");
        assert_eq!(found, "NXDomain  | internal. SOA");
        check(&catalog, "green.app.internal. A", "green.app.internal. A 10.1.0.2");
    }

    #[test]
    fn a_service_tells_its_meta_and_how_it_is_spoken_to() {
        let mut catalog = Catalog::new().instance("web w1 10.1.0.1:8443 h2,blue");
        let meta = [("version", "7"), ("alpn", "h3, grpc")];
        let mut service = crate::catalog::Service {
            id: "w2".to_owned(),
            name: "web".to_owned(),
            address: "2001:db8::2".to_owned(),
            meta: meta.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Default::default()
        };
        catalog.put_service(ME, &service);
        (service.id, service.address) = ("w3".to_owned(), "10.1.0.3".to_owned());
        catalog.put_service(ME, &service);
        let catalog = catalog.check("w3", Status::Warning);
        let texts = ["\"alpn=h3, grpc\"", "\"version=7\""];
        let texts = texts.map(|text| format!("web.internal. TXT {text}"));
        check(&catalog, "web.internal. TXT", &texts.join(", "));
        check(
            &catalog,
            "web.internal. HTTPS",
            "web.internal. HTTPS 1 0a010001.addr.dc1.internal. alpn=h2, port=8443 ipv4hint=10.1.0.1,, \
             web.internal. HTTPS 1 20010db8000000000000000000000002.addr.dc1.internal. \
             alpn=h3,grpc, ipv6hint=2001:db8::2,, \
             web.internal. HTTPS 2 0a010003.addr.dc1.internal. alpn=h3,grpc, ipv4hint=10.1.0.3, |  | \
             0a010001.addr.dc1.internal. A 10.1.0.1, 0a010003.addr.dc1.internal. A 10.1.0.3, \
             20010db8000000000000000000000002.addr.dc1.internal. AAAA 2001:db8::2",
        );
        let catalog = catalog.instance("plain p1 10.1.0.9:80 blue");
        check(&catalog, "plain.internal. HTTPS", "| internal. SOA");
        check(
            &catalog,
            "plain.internal. SVCB",
            "plain.internal. SVCB 1 0a010009.addr.dc1.internal. port=80 ipv4hint=10.1.0.9, |  | \
             0a010009.addr.dc1.internal. A 10.1.0.9",
        );
    }

    #[test]
    fn a_name_keeps_its_meaning_when_instances_fall_ill() {
        let catalog = catalog().check("app-2", Status::Critical);
        check(&catalog, "green.app.internal. A", "NXDomain  | internal. SOA");
        check(&catalog, "app-2.app.internal. A", "NXDomain  | internal. SOA");
    }

    #[test]
    fn an_rfc2782_name_under_a_service_selects_where_it_is_a_tag() {
        let catalog = catalog().instance("app app-4 10.1.0.4:80 http");
        let http = "_http._tcp.app.internal. A 10.1.0.4";
        check(&catalog, "_http._tcp.app.internal. A", http);
        let grpc = ["10.0.0.2", "10.1.0.1", "10.1.0.2", "10.1.0.4"];
        let grpc = grpc.map(|address| format!("_grpc._tcp.app.internal. A {address}"));
        check(&catalog, "_grpc._tcp.app.internal. A", &grpc.join(", "));
        check(&catalog, "_app._tcp.dc9.internal. A", "NXDomain  | internal. SOA");
    }

    #[test]
    fn srv_targets_stay_in_the_zone_that_was_asked_and_differ_by_address() {
        check(
            &catalog(),
            "blue.app.service.internal. SRV",
            "blue.app.service.internal. SRV 1 10 8001 0a010001.addr.dc1.internal., \
             blue.app.service.internal. SRV 1 10 8003 n2.node.dc1.internal. |  | \
             0a010001.addr.dc1.internal. A 10.1.0.1, \
             n2.node.dc1.internal. A 10.0.0.2, \
             n2.node.dc1.internal. TXT \"plain text\", n2.node.dc1.internal. TXT \"rack=r2\"",
        );
        let config = Config { node_meta_txt: false, targets_in: Some(1), ..Config::default() };
        let expected = "app-3.app.internal. SRV 1 10 8003 n2.node.dc1.consul. |  | \
                        n2.node.dc1.consul. A 10.0.0.2";
        assert_eq!(show(&catalog(), &config, "app-3.app.internal. SRV"), expected);
    }

    #[test]
    fn an_srv_target_is_a_name_that_resolves_even_where_the_node_has_none() {
        let catalog = catalog().external("no good..name", "10.9.9.9");
        let catalog = catalog.instance_on(&format!("{ME}/no good..name"), "ext e1 :1");
        let answer = show(&catalog, &Config::default(), "ext.internal. SRV");
        let expected = "ext.internal. SRV 1 10 1 0a090909.addr.dc1.internal. |  | \
                        0a090909.addr.dc1.internal. A 10.9.9.9";
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_warning_gives_the_warning_weight_and_leaves_only_where_configured() {
        let catalog = Catalog::new().instance("app a 10.0.0.1:1").check("a", Status::Warning);
        let config = Config { node_meta_txt: false, ..Config::default() };
        let answer = show(&catalog, &config, "app.internal. SRV");
        assert!(answer.starts_with("app.internal. SRV 1 2 1 "), "{answer}");
        let config = Config { only_passing: true, ..config };
        assert_eq!(show(&catalog, &config, "app.internal. SRV"), "NXDomain  | internal. SOA");
    }

    #[test]
    fn a_port_that_srv_cannot_say_is_left_out() {
        let catalog = Catalog::new().instance("app a 10.0.0.1:65536").instance("app b 10.0.0.2:1");
        let answer = show(&catalog, &Config::default(), "app.internal. SRV");
        assert_eq!(answer.matches("SRV").count(), 1, "{answer}");
    }

    #[test]
    fn a_host_name_becomes_an_alias_that_is_followed_in_our_own_zones() {
        let catalog = catalog()
            .instance("db d1 db.example.com.:5432 far")
            .instance("db d2 N2.node.consul:5432 near")
            .instance("loop l1 loop.service.internal:1")
            .external("one", "two.node.internal")
            .external("two", "three.node.internal")
            .external("three", "two.node.internal");
        let far = "far.db.internal. CNAME db.example.com.";
        check(&catalog, "far.db.internal. A", far);
        check(&catalog, "far.db.internal. MX", far);
        let near = "N2.node.consul. A 10.0.0.2, near.db.internal. CNAME N2.node.consul.";
        check(&catalog, "near.db.internal. A", near);
        check(&catalog, "near.db.internal. AAAA", "near.db.internal. CNAME N2.node.consul.");
        check(&catalog, "near.db.internal. CNAME", "near.db.internal. CNAME N2.node.consul.");
        // An instance that names the name that was asked means its node.
        let own = "loop.service.internal. A 127.0.0.1";
        check(&catalog, "loop.service.internal. A", own);
        // A circle is left before it closes.
        let circle = "one.node.internal. CNAME two.node.internal., \
                      two.node.internal. CNAME three.node.internal.";
        check(&catalog, "one.node.internal. A", circle);
    }

    #[test]
    fn an_alias_is_given_only_where_no_instance_has_an_ip_address() {
        let catalog =
            Catalog::new().instance("db d1 db.example.com:1").instance("db d2 10.0.0.7:1");
        check(&catalog, "db.internal. A", "db.internal. A 10.0.0.7");
        check(&catalog, "db.internal. AAAA", "| internal. SOA");
    }

    #[test]
    fn one_address_is_given_once_and_each_family_where_it_is_asked() {
        let catalog = Catalog::new()
            .instance("app a 10.0.0.1:1")
            .instance("app b 10.0.0.1:2")
            .instance("app c 2001:db8::1:3");
        check(&catalog, "app.internal. A", "app.internal. A 10.0.0.1");
        check(&catalog, "app.internal. AAAA", "app.internal. AAAA 2001:db8::1");
        let any = "app.internal. A 10.0.0.1, app.internal. AAAA 2001:db8::1";
        check(&catalog, "app.internal. ANY", any);
        check(&catalog, "app.internal. TXT", "| internal. SOA");
    }

    #[test]
    fn nodes_resolve_by_name_and_id_in_any_health_with_their_meta() {
        let meta = "n2.node.consul. TXT \"plain text\", n2.node.consul. TXT \"rack=r2\"";
        check(&catalog(), "n2.node.consul. A", &format!("n2.node.consul. A 10.0.0.2 |  | {meta}"));
        check(&catalog(), "n2.node.consul. TXT", meta);
        // As in Consul: no SOA.
        check(&catalog(), "n2.node.consul. AAAA", &format!("|  | {meta}"));
        let by_id = format!("{ME}.node.dc1.internal.");
        check(&catalog(), &format!("{by_id} A"), &format!("{by_id} A 127.0.0.1"));
        check(&catalog(), "n2.node.dc9.internal. A", "NXDomain  | internal. SOA");
        check(&catalog(), "n9.node.internal. A", "NXDomain  | internal. SOA");
    }

    #[test]
    fn other_datacenters_answer_under_their_name_alone() {
        let mut catalog = catalog();
        let far = crate::catalog::Node {
            name: "far".to_owned(),
            address: "10.7.0.1".to_owned(),
            datacenter: "DC2".to_owned(),
            ..Default::default()
        };
        catalog.put_node("33333333-3333-3333-3333-333333333333", &far);
        let catalog = catalog.instance_on("33333333-3333-3333-3333-333333333333", "geo g1 :1");
        check(&catalog, "geo.service.consul. A", "NXDomain  | consul. SOA");
        check(&catalog, "geo.service.dc2.consul. A", "geo.service.dc2.consul. A 10.7.0.1");
        check(&catalog, "far.node.dc2.consul. A", "far.node.dc2.consul. A 10.7.0.1");
        check(&catalog, "_geo._tcp.dc2.consul. A", "_geo._tcp.dc2.consul. A 10.7.0.1");
    }

    #[test]
    fn the_zone_itself_names_and_is_this_node() {
        let catalog = Catalog::new();
        check(&catalog, "internal. A", "internal. A 127.0.0.1");
        check(&catalog, "ns.internal. A", "ns.internal. A 127.0.0.1");
        check(&catalog, "internal. AAAA", "| internal. SOA");
        let servers = "internal. NS n1.node.dc1.internal.";
        let glue = "n1.node.dc1.internal. A 127.0.0.1";
        check(&catalog, "internal. NS", &format!("{servers} |  | {glue}"));
        check(&catalog, "internal. SOA", &format!("internal. SOA | {servers} | {glue}"));
        check(&Catalog::empty(), "internal. NS", "| internal. SOA");
    }

    #[test]
    fn addresses_in_names_are_read_and_garbage_is_empty() {
        let catalog = Catalog::new();
        check(&catalog, "7f000001.addr.internal. A", "7f000001.addr.internal. A 127.0.0.1");
        check(&catalog, "7f000001.addr.internal. AAAA", "| internal. SOA");
        check(&catalog, "zz.addr.internal. A", "NXDomain  | internal. SOA");
        check(&catalog, "zz.addr.consul. A", "");
    }

    #[test]
    fn in_consul_names_are_as_there_and_elsewhere_as_they_should_be() {
        let catalog = catalog();
        let servers = "consul. NS n1.node.dc1.consul.";
        let glue = "n1.node.dc1.consul. A 127.0.0.1";
        for name in ["app.service.consul.", "none.consul.", "service.consul."] {
            let soa = format!("consul. SOA | {servers} | {glue}");
            check(&catalog, &format!("{name} SOA"), &soa);
            check(&catalog, &format!("{name} NS"), &format!("{servers} |  | {glue}"));
        }
        for kind in ["SOA", "NS"] {
            check(&catalog, &format!("app.internal. {kind}"), "| internal. SOA");
            check(&catalog, &format!("none.internal. {kind}"), "NXDomain  | internal. SOA");
            check(&catalog, &format!("ns.internal. {kind}"), "| internal. SOA");
        }
        // There are names below these.
        for name in ["service", "node.dc1", "_tcp.service.dc1", "addr", "dc1"] {
            check(&catalog, &format!("{name}.internal. A"), "| internal. SOA");
            check(&catalog, &format!("{name}.consul. A"), "NXDomain  | consul. SOA");
        }
        let meta = "n2.node.internal. TXT \"plain text\", n2.node.internal. TXT \"rack=r2\"";
        check(&catalog, "n2.node.internal. AAAA", &format!("| internal. SOA | {meta}"));
    }

    #[test]
    fn reverse_names_are_answered_for_nodes_then_services_and_else_left_to_others() {
        let catalog = catalog();
        let node = "2.0.0.10.in-addr.arpa. PTR n2.node.dc1.consul.";
        check(&catalog, "2.0.0.10.in-addr.arpa. PTR", node);
        let service = "1.0.1.10.in-addr.arpa. PTR app.service.dc1.consul.";
        check(&catalog, "1.0.1.10.in-addr.arpa. PTR", service);
        check(&catalog, "1.0.1.10.in-addr.arpa. A", "");
        check(&catalog, "9.9.9.9.in-addr.arpa. PTR", "ServFail");
        check(&catalog, "in-addr.arpa. PTR", "ServFail");
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        check(&catalog(), "example.com. A", "Refused");
        check(&catalog(), ". NS", "Refused");
        check(&catalog(), "app.internal. AXFR", "Refused");
    }

    #[test]
    fn ttls_are_the_configured_ones_and_follow_the_service_into_its_additionals() {
        let config = Config {
            node_ttl: 5,
            service_ttl: ByService::new([("*", 10), ("app", 30)]),
            soa: Soa { min_ttl: 15, ..Soa::default() },
            node_meta_txt: false,
            ..Config::default()
        };
        let shown = |question| show(&catalog(), &config, question);
        let srv = "app-3.app.internal. 30 SRV 1 10 8003 n2.node.dc1.internal. |  | \
                   n2.node.dc1.internal. 30 A 10.0.0.2";
        assert_eq!(shown("app-3.app.internal. SRV"), srv);
        assert_eq!(shown("n1.node.internal. A"), "n1.node.internal. 5 A 127.0.0.1");
        assert_eq!(shown("none.internal. A"), "NXDomain  | internal. 15 SOA");
    }
}
