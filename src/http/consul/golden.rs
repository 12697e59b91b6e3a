//! Holds the pages against recordings of a real Consul 1.8.7.
//!
//! The catalog of each recorded moment is folded into a view; every recorded request then goes
//! through the whole router, as the agent it was sent to. Names, nulls, order and headers must be
//! the same; what may differ stands below, with the reason.

use std::collections::BTreeSet;

use serde_json::Value;

use super::dto::external::Registration;
use crate::catalog::model::{Node, SERF_HEALTH};
use crate::http::support::{Bench, Reply, Rows};
use crate::types::NodeId;

/// Requests whose answers differ on purpose or for now.
const DEVIATIONS: &[(&str, &str)] = &[
    ("h073", "members carry this program's ports and tags, not Serf's"),
    ("h074", "there is no leader: each node names its own gossip address"),
    ("h077", "unknown fields are passed over: newer clients send some"),
    ("h084", "prepared queries are not here"),
    ("h085", "prepared queries are not here"),
    ("h088", "keys and values are not here"),
    ("h089", "keys and values are not here"),
    ("h091", "keys and values are not here"),
    ("h093", "sessions are not here"),
];

/// Names whose recorded values are not compared.
const IGNORED: &[&str] = &[
    // The scenario's catalog form does not say what type a check had.
    "Type",
];

/// Requests whose lists Consul sends in no order that means anything: they are compared as sets.
const UNORDERED: &[(&str, &str)] = &[
    ("h006", "tags come in random order; here they are sorted"),
    ("h071", "an agent's checks come in random order; here by id"),
    ("h098", "?passing moves the last instance into each gap; here the order stays"),
    ("h103", "?passing, the same"),
];

#[tokio::test]
async fn answers_are_those_of_the_recorded_consul() {
    let scenario = golden("scenario.json");
    let recordings = golden("http.json");
    let mut compared = 0;
    let mut failures = Vec::new();
    for recording in recordings["requests"].as_array().unwrap() {
        let id = recording["id"].as_str().unwrap();
        if DEVIATIONS.iter().any(|(deviant, _)| *deviant == id) {
            continue;
        }
        let phase = recording["phase"].as_str().unwrap();
        let agent = recording["agent"].as_str().unwrap();
        let path = recording["path"].as_str().unwrap();
        let bench = bench(&scenario, phase, agent, path);
        let body = match &recording["request_body"] {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let reply = bench.ask(recording["method"].as_str().unwrap(), path, &body).await;
        compared += 1;
        let is_ordered = UNORDERED.iter().all(|(unordered, _)| *unordered != id);
        let differences = differences(&recording["expect"], &reply, is_ordered);
        if !differences.is_empty() {
            failures.push(format!("{id} {path}\n    {}", differences.join("\n    ")));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {compared} differ\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert_eq!(compared, recordings["requests"].as_array().unwrap().len() - DEVIATIONS.len());
}

#[tokio::test]
async fn fields_are_sent_in_the_recorded_order() {
    let scenario = golden("scenario.json");
    let text = golden_text("http.json");
    for (id, phase, path) in [
        ("h002", "base", "/v1/catalog/nodes"),
        ("h009", "base", "/v1/catalog/service/web"),
        ("h018", "base", "/v1/catalog/node/n2"),
        ("h022", "base", "/v1/catalog/node-services/Ext-Mixed"),
        ("h027", "base", "/v1/health/service/web"),
        ("h055", "base", "/v1/health/state/critical"),
        ("h060", "base", "/v1/agent/services"),
        ("h063", "base", "/v1/agent/service/web-1"),
        ("h066", "base", "/v1/agent/checks"),
        ("h068", "base", "/v1/agent/health/service/id/web-1"),
    ] {
        let reply = bench(&scenario, phase, "n1", path).get(path).await;
        assert_eq!(keys(&reply.text), keys(recorded_body(&text, id)), "{id} {path}");
    }
}

/// Finds the text of a recorded body.
fn recorded_body<'a>(recordings: &'a str, id: &str) -> &'a str {
    let from = recordings.find(&format!("\"id\": \"{id}\"")).expect("it was recorded");
    let from = from + recordings[from..].find("\"body_json\":").expect("it has a JSON body");
    let from = from + "\"body_json\":".len();
    let mut bodies = serde_json::Deserializer::from_str(&recordings[from..]).into_iter::<Value>();
    bodies.next().expect("something follows").unwrap();
    &recordings[from..from + bodies.byte_offset()]
}

/// Lists the keys of a JSON text in their order.
fn keys(text: &str) -> Vec<&str> {
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find('"') {
        let string = &rest[begin + 1..];
        let mut escaped = false;
        let end = string.find(|c| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        });
        let end = end.expect("strings end");
        rest = &string[end + 1..];
        if rest.trim_start().starts_with(':') {
            keys.push(&string[..end]);
        }
    }
    keys
}

fn golden(name: &str) -> Value {
    serde_json::from_str(&golden_text(name)).unwrap()
}

fn golden_text(name: &str) -> String {
    let path = format!("{}/tests/golden/consul/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn bench(scenario: &Value, phase: &str, agent: &str, path: &str) -> Bench {
    let id: NodeId = scenario["nodes"][agent]["node_id"].as_str().unwrap().parse().unwrap();
    let mut rows = Rows::default();
    let bodies = scenario["catalog_register_equivalent"]["phases"][phase].as_array().unwrap();
    // Consul's servers put the service `consul` into the catalog; no agent lists it as its own.
    let is_own = |body: &Value| body["Service"]["ID"] == "consul";
    for body in bodies.iter().filter(|body| !(path.starts_with("/v1/agent/") && is_own(body))) {
        load(&mut rows, scenario, body);
    }
    Bench::new(id, agent, rows)
}

/// Puts what one body of `catalog/register` says into rows: those of an agent, or of a node without.
fn load(rows: &mut Rows, scenario: &Value, body: &Value) {
    let text = serde_json::to_vec(body).unwrap();
    let Registration { node, skips_node, service, checks } =
        Registration::read(&text, "dc1").unwrap();
    let name = node.name.clone();
    let Some(key) = scenario["nodes"][&name]["node_id"].as_str() else {
        if !skips_node {
            rows.external_node(&node);
        }
        service.iter().for_each(|service| rows.external_service(&name, service));
        checks.iter().for_each(|check| rows.external_check(&name, check));
        return;
    };
    if !skips_node {
        rows.node(key, &Node { external_id: String::new(), ..node });
    }
    service.iter().for_each(|service| rows.service(key, service));
    // That of the agent itself is derived from membership here.
    checks.iter().filter(|check| check.id != SERF_HEALTH).for_each(|check| rows.check(key, check));
}

fn differences(expected: &Value, reply: &Reply, is_ordered: bool) -> Vec<String> {
    let status = expected["status"].as_u64().unwrap();
    if status != u64::from(reply.status.as_u16()) {
        return vec![format!("status {status}, got {} {}", reply.status, reply.text)];
    }
    let mut found = Vec::new();
    for (name, value) in expected["headers"].as_object().unwrap() {
        let (value, got) = (value.as_str().unwrap(), reply.header(&name.to_lowercase()));
        let is_same = match value {
            "<index>" => got.parse::<u64>().is_ok_and(|index| index > 0),
            "<ms>" => got.parse::<u64>().is_ok(),
            "<hash>" => !got.is_empty(),
            value => got == value,
        };
        if !is_same {
            found.push(format!("header {name}: {value:?}, got {got:?}"));
        }
    }
    match (&expected["body_json"], expected["body_text"].as_str()) {
        (_, Some(text)) if text != reply.text => {
            found.push(format!("text {text:?}, got {:?}", reply.text));
        }
        (_, Some(_)) => {}
        (json, None) if is_ordered => compare("", json, &reply.json(), &mut found),
        (json, None) => compare("", &sorted(json), &sorted(&reply.json()), &mut found),
    }
    found
}

/// Sorts every list by what names its items: ids before all else.
fn sorted(json: &Value) -> Value {
    let name = |item: &Value| {
        let ids = ["ID", "CheckID"].map(|id| item[id].to_string());
        (item["Service"]["ID"].to_string(), ids, item.as_str().unwrap_or_default().to_owned())
    };
    match json {
        Value::Array(items) => {
            let mut items: Vec<_> = items.iter().map(sorted).collect();
            items.sort_by_key(name);
            Value::Array(items)
        }
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, item)| (key.clone(), sorted(item))).collect())
        }
        other => other.clone(),
    }
}

fn compare(path: &str, expected: &Value, got: &Value, found: &mut Vec<String>) {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            let names: BTreeSet<_> = expected.keys().chain(got.keys()).collect();
            for name in names.into_iter().filter(|name| !IGNORED.contains(&name.as_str())) {
                match (expected.get(name), got.get(name)) {
                    (Some(expected), Some(got)) => {
                        compare(&format!("{path}/{name}"), expected, got, found);
                    }
                    (Some(_), None) => found.push(format!("{path}/{name}: missing")),
                    (None, _) => found.push(format!("{path}/{name}: too much")),
                }
            }
        }
        (Value::Array(expected), Value::Array(got)) if expected.len() == got.len() => {
            for (place, (expected, got)) in expected.iter().zip(got).enumerate() {
                compare(&format!("{path}[{place}]"), expected, got, found);
            }
        }
        (Value::String(text), got) if text.starts_with('<') => {
            let is_same = match text.as_str() {
                "<index>" => got.as_u64().is_some_and(|index| index > 0),
                "<hash>" => got.as_str().is_some_and(|hash| !hash.is_empty()),
                _ => false,
            };
            if !is_same {
                found.push(format!("{path}: {text}, got {got}"));
            }
        }
        (expected, got) if expected == got => {}
        (expected, got) => found.push(format!("{path}: {expected}, got {got}")),
    }
}
