//! Questions that a real Consul was asked (`tests/golden/consul`), answered here from the same
//! catalog and compared as sets of records, flags and sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Record;
use serde_json::Value as Json;

use super::answer::{Reply, Transport, answer};
use super::config::{ByService, Config, Soa, Zone};
use super::recursion;
use super::testing::running::{Running, Stub};
use super::testing::{Catalog, ME, data_of, question};
use crate::catalog::model::{Check, Node, SERF_HEALTH, Service, ServiceAddress, Source, Status};
use crate::catalog::{View, Weights};

/// Where we answer otherwise whatever the configuration, on purpose, and why.
const DEVIATIONS: &[(&str, &str)] = &[
    ("d005", "TXT on a service: Consul gives its A records, we have no data of that type"),
    ("d021", "`.dc` behind a datacenter is the form that newer Consuls recommend"),
    ("d070", "AAAA on an IPv4 `.addr` name: Consul gives an A record"),
    ("d088", "prepared queries are not served"),
    ("d090", "prepared queries are not served"),
];

/// Where our default configuration answers otherwise than Consul's, too.
const DEVIATIONS_BY_DEFAULT: &[(&str, &str)] = &[
    ("d081", "as many records as fit and TC, where Consul gives three and no TC"),
    ("d083", "TC where an answer was cut"),
    ("d087", "at most 1,232 bytes, where Consul takes the client's 4,096"),
];

#[test]
fn answers_are_those_of_a_real_consul_that_is_configured_alike() {
    compare_all(config_like, DEVIATIONS);
}

#[test]
fn with_our_defaults_all_but_the_handling_of_long_answers_is_the_same() {
    let ours = |agent: &str| (agent == "n1").then(Config::default);
    compare_all(ours, &[DEVIATIONS, DEVIATIONS_BY_DEFAULT].concat());
}

/// Compares every recording of the agents that `config_of` knows. A deviation that is none is an
/// error as well.
fn compare_all(config_of: impl Fn(&str) -> Option<Config>, deviations: &[(&str, &str)]) {
    let recorded = load("dns.json");
    let views = views();
    let mut compared = 0;
    let mut wrong = Vec::new();
    for query in recorded["queries"].as_array().unwrap() {
        let (id, agent) = (text(&query["id"]), text(&query["agent"]));
        let Some(config) = config_of(agent) else { continue };
        let is_expected = deviations.iter().any(|(deviating, _)| *deviating == id);
        let differences = compare(&views[text(&query["phase"])], &config, query);
        compared += 1;
        if differences.is_empty() == is_expected {
            wrong.push(format!("{id} {}: {differences:?}", text(&query["dig_args"])));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared >= 60, "only {compared} recordings were used");
}

/// The names that the recursor of the recordings knew; all others did not exist.
const ELSEWHERE: [(&str, &str); 3] = [
    ("db1.example.com. A", "db1.example.com. 60 A 192.0.2.50"),
    (
        "www.example.com. A",
        "www.example.com. 60 CNAME web.example.com., web.example.com. 60 A 192.0.2.80",
    ),
    ("www.example.com. AAAA", ""),
];

#[tokio::test]
async fn names_that_are_not_ours_are_answered_as_by_a_real_consul_with_recursors() {
    let recursor = Stub::start(&ELSEWHERE).await;
    let base = config_like("n1").unwrap();
    let recursion = recursion::Config { servers: vec![recursor.address], ..base.recursion.clone() };
    let listen = vec![(SocketAddr::from(([127, 0, 0, 1], 0)), false)];
    let config = Config { recursion, listen, ..base };
    let recorded = load("dns.json");
    let of_n3 = recorded["queries"].as_array().unwrap().iter();
    let mut compared = 0;
    for query in of_n3.filter(|query| text(&query["agent"]) == "n3") {
        let view = views().remove(text(&query["phase"])).unwrap();
        let running = Running::start(config.clone(), view);
        let (packet, _) = packet_of(text(&query["dig_args"]));
        let reply = running.ask_bytes(&packet).await;
        assert_eq!(compare_reply(&reply, query), Vec::<String>::new(), "{}", query["id"]);
        running.stop().await;
        compared += 1;
    }
    assert_eq!(compared, 4);
}

/// What the agents of the recordings without recursors were configured to.
fn config_like(agent: &str) -> Option<Config> {
    let zone = |text| Zone::parse(text).unwrap();
    let base = Config::default().with_zones(zone("consul"), vec![zone("internal")]).like_consul();
    match agent {
        "n1" => Some(base),
        "n2" => Some(Config {
            only_passing: true,
            node_ttl: 5,
            service_ttl: ByService::new([("*", 10), ("web", 30), ("ca*", 7)]),
            enable_truncate: true,
            a_record_limit: 4,
            udp_answer_limit: 5,
            soa: Soa { refresh: 1800, retry: 300, expire: 43_200, min_ttl: 15 },
            node_meta_txt: false,
            ..base
        }),
        _ => None,
    }
}

fn compare(view: &View, config: &Config, query: &Json) -> Vec<String> {
    let (packet, transport) = packet_of(text(&query["dig_args"]));
    match answer(view, config, &packet, transport, 42, 1) {
        Reply::Bytes(bytes) => compare_reply(&bytes, query),
        Reply::Silence => vec!["silence".to_owned()],
    }
}

fn compare_reply(bytes: &[u8], query: &Json) -> Vec<String> {
    let expect = &query["expect"];
    let message = Message::from_vec(bytes).expect("a reply that can be read");
    let mut differences = Vec::new();
    let mut check = |what: &str, expected: String, found: String| {
        if expected != found {
            differences.push(format!("{what}: expected {expected}, found {found}"));
        }
    };
    check("code", text(&expect["rcode"]).to_owned(), code_of(&message));
    check("flags", flags_expected(expect), flags_of(&message));
    check("edns", expect["edns"].to_string(), message.edns.is_some().to_string());
    let is_subset = text(&expect["compare"]).starts_with("subset");
    let sections = [
        ("answer", &message.answers),
        ("authority", &message.authorities),
        ("additional", &message.additionals),
    ];
    for (section, found) in sections {
        let expected = expect[section].as_array().unwrap();
        check(section, expected.len().to_string(), found.len().to_string());
        if !is_subset {
            let expected: Vec<String> = sorted(expected.iter().map(line_expected));
            let found: Vec<String> = sorted(found.iter().map(line_of));
            check(section, expected.join("; "), found.join("; "));
        }
    }
    if is_subset {
        let foreign: Vec<&Record> = message.answers.iter().filter(|one| !is_big(one)).collect();
        check("foreign", "[]".to_owned(), format!("{foreign:?}"));
    }
    // Names are compressed as well as Consul does it: what it fits into a packet, we do.
    check("size", expect["size"].to_string(), bytes.len().to_string());
    differences
}

/// Tells whether a record belongs to the service of 24 instances, of which an answer has some.
fn is_big(record: &Record) -> bool {
    let data = data_of(record);
    data.starts_with("10.50.0.") || data.contains(" 0a3200")
}

fn packet_of(dig_args: &str) -> (Vec<u8>, Transport) {
    let words: Vec<&str> = dig_args.split(' ').collect();
    let (name, kind) = match words[..] {
        ["-x", address] => (
            hickory_proto::rr::Name::from(address.parse::<std::net::IpAddr>().unwrap()).to_ascii(),
            "PTR",
        ),
        [name, kind, ..] => (name.to_owned(), kind),
        _ => panic!("dig arguments {dig_args}"),
    };
    let mut edns = 1_232;
    // dig asks ANY over TCP.
    let mut transport = if kind == "ANY" { Transport::Tcp } else { Transport::Udp };
    let mut is_recursive = true;
    for option in words.iter().filter(|word| word.starts_with('+')) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("+noedns", _) => edns = 0,
            ("+bufsize", bytes) => edns = bytes.parse().unwrap(),
            ("+tcp", _) => transport = Transport::Tcp,
            ("+norecurse", _) => is_recursive = false,
            _ => panic!("dig option {option}"),
        }
    }
    let mut packet = question(&format!("{name} {kind}"), edns);
    if !is_recursive {
        packet[2] &= !1;
    }
    (packet, transport)
}

fn code_of(message: &Message) -> String {
    match message.metadata.response_code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        code => panic!("{code:?}"),
    }
    .to_owned()
}

fn flags_expected(expect: &Json) -> String {
    let flags: BTreeSet<&str> = expect["flags"].as_array().unwrap().iter().map(text).collect();
    format!("{flags:?}")
}

fn flags_of(message: &Message) -> String {
    let of = &message.metadata;
    let flags = [
        ("qr", true),
        ("aa", of.authoritative),
        ("tc", of.truncation),
        ("rd", of.recursion_desired),
        ("ra", of.recursion_available),
    ];
    format!(
        "{:?}",
        flags.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect::<BTreeSet<_>>()
    )
}

fn line_expected(record: &Json) -> String {
    let field = |name: &str| text(&record[name]);
    let mut rdata = field("rdata").to_owned();
    if field("type") == "SOA" {
        let mut words: Vec<&str> = rdata.split(' ').collect();
        words[2] = "<serial>";
        rdata = words.join(" ");
    }
    format!("{} {} {} {rdata}", field("name"), record["ttl"], field("type"))
}

fn line_of(record: &Record) -> String {
    format!("{} {} {} {}", record.name, record.ttl, record.record_type(), data_of(record))
}

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

/// The catalog in each phase of the recordings.
fn views() -> BTreeMap<String, View> {
    let scenario = load("scenario.json");
    let phases = scenario["catalog_register_equivalent"]["phases"].as_object().unwrap().clone();
    let view = |registrations: &Json| {
        let mut catalog = Catalog::empty();
        let mut keys = BTreeMap::new();
        for registration in registrations.as_array().unwrap() {
            register(&mut catalog, &mut keys, registration);
        }
        catalog.view
    };
    phases.iter().map(|(phase, registrations)| (phase.clone(), view(registrations))).collect()
}

/// Takes over one registration. Members of the recorded cluster are members here, by their ids;
/// other nodes are external ones.
fn register(catalog: &mut Catalog, keys: &mut BTreeMap<String, String>, body: &Json) {
    let name = text(&body["Node"]);
    if body["Service"].is_null() {
        let is_member = matches!(name, "n1" | "n2" | "n3");
        let key = if is_member { text(&body["ID"]).to_owned() } else { format!("{ME}/{name}") };
        keys.insert(name.to_owned(), key.clone());
        let node = Node {
            name: name.to_owned(),
            address: text(&body["Address"]).to_owned(),
            datacenter: text(&body["Datacenter"]).to_owned(),
            tagged_addresses: texts(&body["TaggedAddresses"]),
            meta: texts(&body["NodeMeta"]),
            ..Node::default()
        };
        catalog.put_node(&key, &node);
    } else {
        catalog.put_service(&keys[name], &service_of(&body["Service"]));
    }
    for check in body["Checks"].as_array().unwrap() {
        // Membership gives this one.
        if text(&check["CheckID"]) != SERF_HEALTH {
            catalog.put_check(&keys[name], &check_of(check));
        }
    }
}

fn service_of(body: &Json) -> Service {
    let weight = |state: &str| body["Weights"][state].as_i64().unwrap_or(1);
    let tagged = body["TaggedAddresses"].as_object().into_iter().flatten();
    let address = |tagged: &Json| ServiceAddress {
        address: text(&tagged["Address"]).to_owned(),
        port: tagged["Port"].as_i64().unwrap(),
    };
    Service {
        id: text(&body["ID"]).to_owned(),
        name: text(&body["Service"]).to_owned(),
        tags: body["Tags"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|tag| text(tag).to_owned())
            .collect(),
        address: text(&body["Address"]).to_owned(),
        port: body["Port"].as_i64().unwrap_or(0),
        tagged_addresses: tagged.map(|(kind, tagged)| (kind.clone(), address(tagged))).collect(),
        weights: Weights { passing: weight("Passing"), warning: weight("Warning") },
        ..Service::default()
    }
}

fn check_of(body: &Json) -> Check {
    Check {
        id: text(&body["CheckID"]).to_owned(),
        name: text(&body["Name"]).to_owned(),
        status: Status::parse(text(&body["Status"])).unwrap(),
        service_id: text(&body["ServiceID"]).to_owned(),
        source: Source::Consul,
        ..Check::default()
    }
}

fn texts(json: &Json) -> BTreeMap<String, String> {
    let entries = json.as_object().into_iter().flatten();
    entries.map(|(key, value)| (key.clone(), text(value).to_owned())).collect()
}

fn text(json: &Json) -> &str {
    json.as_str().unwrap_or_default()
}

fn load(file: &str) -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/consul").join(file);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
