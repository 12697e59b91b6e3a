//! The agent's answers as it spells them, read item by item: one that makes no sense is left
//! aside and named, and the others count.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::catalog::model::{Check, Service, ServiceAddress, Source, Status, Weights};

/// The items of an answer by id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Items<T> {
    pub readable: BTreeMap<String, T>,
    /// Those that could not be read, and why. They are there all the same.
    pub unreadable: BTreeMap<String, String>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self { readable: BTreeMap::new(), unreadable: BTreeMap::new() }
    }
}

impl<T> Items<T> {
    /// Tells whether the answer had this item.
    pub fn mentions(&self, id: &str) -> bool {
        self.readable.contains_key(id) || self.unreadable.contains_key(id)
    }
}

/// Who the agent is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentSelf {
    pub node: String,
    pub datacenter: String,
    pub version: String,
}

/// Reads `/v1/agent/self`.
pub fn read_self(body: &[u8]) -> Result<AgentSelf, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct SelfDto {
        config: ConfigDto,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct ConfigDto {
        node_name: String,
        #[serde(default)]
        datacenter: String,
        #[serde(default)]
        version: String,
    }
    let SelfDto { config } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    Ok(AgentSelf { node: config.node_name, datacenter: config.datacenter, version: config.version })
}

/// Reads `/v1/agent/services`. Fails when the answer as a whole is not what it should be.
pub fn read_services(body: &[u8]) -> Result<Items<Service>, String> {
    read_items(body, service)
}

/// Reads `/v1/agent/checks`. Fails when the answer as a whole is not what it should be.
pub fn read_checks(body: &[u8]) -> Result<Items<Check>, String> {
    read_items(body, check)
}

fn read_items<T, D: DeserializeOwned>(
    body: &[u8],
    convert: fn(String, D) -> Result<T, String>,
) -> Result<Items<T>, String> {
    let all: Option<BTreeMap<String, Value>> =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut items = Items::default();
    for (id, value) in all.unwrap_or_default() {
        let item = serde_json::from_value(value).map_err(|error| error.to_string());
        match item.and_then(|dto| convert(id.clone(), dto)) {
            Ok(item) => {
                items.readable.insert(id, item);
            }
            Err(reason) => {
                items.unreadable.insert(id, reason);
            }
        }
    }
    Ok(items)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceDto {
    service: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    // Missing in newer versions when there is none.
    #[serde(default)]
    port: Option<i64>,
    #[serde(default)]
    address: Option<String>,
    #[serde(default)]
    tagged_addresses: Option<BTreeMap<String, AddressDto>>,
    #[serde(default)]
    weights: Option<WeightsDto>,
    #[serde(default)]
    enable_tag_override: Option<bool>,
    #[serde(default)]
    kind: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AddressDto {
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WeightsDto {
    #[serde(default = "one")]
    passing: i64,
    #[serde(default = "one")]
    warning: i64,
}

fn one() -> i64 {
    1
}

fn service(id: String, dto: ServiceDto) -> Result<Service, String> {
    if id.is_empty() || dto.service.is_empty() {
        return Err("it has no name".to_owned());
    }
    let weights = dto.weights.map_or_else(Weights::default, |weights| Weights {
        passing: weights.passing.clamp(0, 65_535),
        warning: weights.warning.clamp(0, 65_535),
    });
    let addresses = dto.tagged_addresses.unwrap_or_default().into_iter();
    let mut service = Service {
        id,
        name: dto.service,
        tags: dto.tags.unwrap_or_default(),
        address: dto.address.unwrap_or_default(),
        port: dto.port.unwrap_or_default(),
        meta: dto.meta.unwrap_or_default(),
        tagged_addresses: addresses
            .map(|(name, dto)| (name, ServiceAddress { address: dto.address, port: dto.port }))
            .collect(),
        weights,
        enable_tag_override: dto.enable_tag_override.unwrap_or_default(),
        kind: dto.kind.unwrap_or_default(),
        source: Source::Consul,
    };
    drop_derived_addresses(&mut service);
    Ok(service)
}

/// Takes out the tagged addresses that the agent itself adds to every service with an IP address:
/// they repeat its address and port, and our own API adds them again.
fn drop_derived_addresses(service: &mut Service) {
    let derived: &[&str] = match service.address.parse() {
        Ok(IpAddr::V4(_)) => &["lan_ipv4", "wan_ipv4"],
        Ok(IpAddr::V6(_)) => &["lan_ipv6", "wan_ipv6"],
        Err(_) => return,
    };
    for name in derived {
        let repeats = (service.tagged_addresses.get(*name))
            .is_some_and(|tagged| tagged.address == service.address && tagged.port == service.port);
        if repeats {
            service.tagged_addresses.remove(*name);
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CheckDto {
    #[serde(default)]
    name: Option<String>,
    status: String,
    #[serde(default)]
    notes: Option<String>,
    #[serde(default)]
    output: Option<String>,
    #[serde(default, rename = "ServiceID")]
    service_id: Option<String>,
    #[serde(default, rename = "Type")]
    kind: Option<String>,
}

fn check(id: String, dto: CheckDto) -> Result<Check, String> {
    if id.is_empty() {
        return Err("it has no id".to_owned());
    }
    let status =
        Status::parse(&dto.status).ok_or_else(|| format!("{:?} is no status", dto.status))?;
    Ok(Check {
        id,
        name: dto.name.unwrap_or_default(),
        status,
        notes: dto.notes.unwrap_or_default(),
        output: dto.output.unwrap_or_default(),
        service_id: dto.service_id.unwrap_or_default(),
        kind: dto.kind.unwrap_or_default(),
        source: Source::Consul,
        definition: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As Consul 1.8.7 answers for a service with all of its fields.
    const SERVICES: &str = r#"{"web-1": {"ID": "web-1", "Service": "web", "Tags": ["v2", "a"],
        "Meta": {"version": "2"}, "Port": 8080, "Address": "10.0.0.7",
        "TaggedAddresses": {"lan_ipv4": {"Address": "10.0.0.7", "Port": 8080},
            "wan_ipv4": {"Address": "10.0.0.7", "Port": 8080},
            "wan": {"Address": "203.0.113.9", "Port": 443}},
        "Weights": {"Passing": 10, "Warning": 2}, "EnableTagOverride": true,
        "ContentHash": "af", "Kind": "connect-proxy", "Proxy": {"Mode": ""}}}"#;

    #[test]
    fn a_service_is_taken_over_with_all_its_fields() {
        let services = read_services(SERVICES.as_bytes()).unwrap();
        let wan = ServiceAddress { address: "203.0.113.9".to_owned(), port: 443 };
        let expected = Service {
            id: "web-1".to_owned(),
            name: "web".to_owned(),
            tags: vec!["v2".to_owned(), "a".to_owned()],
            address: "10.0.0.7".to_owned(),
            port: 8080,
            meta: BTreeMap::from([("version".to_owned(), "2".to_owned())]),
            tagged_addresses: BTreeMap::from([("wan".to_owned(), wan)]),
            weights: Weights { passing: 10, warning: 2 },
            enable_tag_override: true,
            kind: "connect-proxy".to_owned(),
            source: Source::Consul,
        };
        assert_eq!(services.readable["web-1"], expected);
    }

    #[test]
    fn tagged_addresses_that_say_something_of_their_own_are_kept() {
        let other = SERVICES.replacen(r#""Port": 8080},"#, r#""Port": 8081},"#, 1);
        let services = read_services(other.as_bytes()).unwrap();
        let names: Vec<_> = services.readable["web-1"].tagged_addresses.keys().collect();
        assert_eq!(names, ["lan_ipv4", "wan"]);
    }

    #[test]
    fn a_service_needs_nothing_but_a_name() {
        let body = r#"{"a": {"Service": "a"}, "b": {"Service": "b", "Tags": null, "Meta": null,
            "Port": null, "TaggedAddresses": null, "Weights": null}}"#;
        let services = read_services(body.as_bytes()).unwrap();
        assert_eq!(services.readable.len(), 2, "{:?}", services.unreadable);
        assert_eq!(services.readable["a"].weights, Weights::default());
    }

    #[test]
    fn an_item_that_makes_no_sense_is_named_and_the_others_count() {
        let body = r#"{"good": {"Service": "web"}, "port": {"Service": "web", "Port": "80"},
            "nameless": {"Service": ""}, "list": [], "null": null}"#;
        let services = read_services(body.as_bytes()).unwrap();
        assert_eq!(services.readable.keys().collect::<Vec<_>>(), ["good"]);
        let named: Vec<_> = services.unreadable.keys().collect();
        assert_eq!(named, ["list", "nameless", "null", "port"]);
        assert!(services.mentions("port") && services.mentions("good"));
        assert!(services.unreadable["port"].contains("invalid type: string"));
    }

    #[test]
    fn a_check_is_taken_over_with_all_its_fields() {
        let body = r#"{"service:web-1": {"Node": "n1", "CheckID": "service:web-1",
            "Name": "Service 'web' check", "Status": "warning", "Notes": "n", "Output": "slow",
            "ServiceID": "web-1", "ServiceName": "web", "ServiceTags": [], "Type": "http",
            "Definition": {}, "CreateIndex": 0, "ModifyIndex": 0}}"#;
        let checks = read_checks(body.as_bytes()).unwrap();
        let expected = Check {
            id: "service:web-1".to_owned(),
            name: "Service 'web' check".to_owned(),
            status: Status::Warning,
            notes: "n".to_owned(),
            output: "slow".to_owned(),
            service_id: "web-1".to_owned(),
            kind: "http".to_owned(),
            source: Source::Consul,
            definition: String::new(),
        };
        assert_eq!(checks.readable["service:web-1"], expected);
    }

    #[test]
    fn an_unknown_status_concerns_one_check_only() {
        let body = r#"{"a": {"Status": "unknown"}, "b": {"Status": "passing"}}"#;
        let checks = read_checks(body.as_bytes()).unwrap();
        assert_eq!(checks.unreadable["a"], "\"unknown\" is no status");
        assert!(checks.readable.contains_key("b"));
    }

    #[test]
    fn an_answer_that_is_no_map_is_an_error() {
        for body in ["", "[]", "\"x\"", "{", "<html>"] {
            assert!(read_services(body.as_bytes()).is_err(), "{body}");
        }
        assert_eq!(read_services(b"null").unwrap(), Items::default());
    }

    #[test]
    fn the_agent_says_who_it_is() {
        let body = br#"{"Config": {"Datacenter": "dc1", "NodeName": "n1", "Version": "1.8.7",
            "Server": true}, "Coord": null}"#;
        let agent = read_self(body).unwrap();
        assert_eq!((&*agent.node, &*agent.datacenter, &*agent.version), ("n1", "dc1", "1.8.7"));
        assert!(read_self(b"{}").is_err());
    }

    /// Any JSON at all, up to some depth, with the field names that matter among it.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            Just(Value::from("passing")),
        ];
        let field = prop_oneof![
            Just("Service"),
            Just("Tags"),
            Just("Meta"),
            Just("Port"),
            Just("Address"),
            Just("TaggedAddresses"),
            Just("Weights"),
            Just("Passing"),
            Just("Status"),
            Just("Output"),
            Just("ServiceID"),
            Just("EnableTagOverride"),
            Just("Kind"),
        ];
        leaf.prop_recursive(3, 24, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(field.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn odd_items_never_fail_the_whole_answer(
            odd in prop::collection::btree_map("odd-.{0,6}", any_json(), 0..8)
        ) {
            let ids: Vec<String> = odd.keys().cloned().collect();
            let mut all: serde_json::Map<_, _> = odd.into_iter().collect();
            let good = serde_json::json!({"Service": "web", "Status": "passing"});
            all.insert("good".to_owned(), good);
            let body = serde_json::to_vec(&all).unwrap();
            let services = read_services(&body).unwrap();
            let checks = read_checks(&body).unwrap();
            prop_assert!(services.readable.contains_key("good"));
            prop_assert!(checks.readable.contains_key("good"));
            for id in ids {
                prop_assert!(services.mentions(&id) && checks.mentions(&id));
            }
        }

        #[test]
        fn bytes_that_are_no_answer_are_an_error_and_no_panic(
            body in prop::collection::vec(any::<u8>(), 0..64)
        ) {
            let _ = (read_services(&body), read_checks(&body), read_self(&body));
        }
    }
}
