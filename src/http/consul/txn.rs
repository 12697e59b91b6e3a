//! `/v1/txn`: several operations as one transaction, of keys and of what runs without an agent.
//!
//! A transaction is all or nothing, on this node and on every other. Its conditions are held against
//! what this node knows: `cas` of nodes, services and checks tells a writer that it works from old
//! data, but does not keep two writers at two nodes from both being right. For keys, where such a
//! promise is what locks are made of, conditions are refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::HeaderName;
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;

use super::dto::answers::{HealthCheck, Node, NodeService};
use super::dto::external::{Deregistration, Registration};
use super::dto::txn::{KeyOp, Op, ops_of};
use super::external;
use super::kv::{NO_CONSENSUS, Pair, VALUE_BYTES_MAX};
use super::query::{Datacenter, Query};
use super::reading::json;
use crate::catalog::model::lower;
use crate::catalog::{CatalogEdit, Command, View};
use crate::http::Face;
use crate::http::body::{BODY_BYTES_MAX, read};
use crate::http::error::Fault;
use crate::node::SubmitError;

const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");

/// What an operation is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Thing {
    Key(String),
    /// By its name in lower case, here and below.
    Node(String),
    Service(String, String),
    Check(String, String),
}

/// What an operation shows in the answer.
enum Shown {
    /// As it was before the transaction, or in it and as it is after it.
    Thing { thing: Thing, is_written: bool },
    /// A key that was set: without its value.
    Set(String),
    /// A key that is not there, where that is no error.
    Nothing(String),
}

#[derive(Serialize)]
enum Outcome<'a> {
    #[serde(rename = "KV")]
    Key(Pair<'a>),
    Node(Node<'a>),
    Service(NodeService<'a>),
    Check(HealthCheck<'a>),
}

/// Why an operation failed.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct OpError {
    op_index: usize,
    what: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<'a> {
    results: Option<Vec<Outcome<'a>>>,
    errors: Option<Vec<OpError>>,
    /// Only of a transaction that writes nothing.
    #[serde(flatten)]
    freshness: Option<super::dto::prepared::Freshness>,
}

/// `PUT /v1/txn`: 200, or 409 when an operation failed, and then nothing was done.
pub async fn run(State(face): State<Arc<Face>>, uri: Uri, body: Body) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    let before = face.host.feed().view();
    Datacenter::of(&query, face.host.local(), &before)
        .map_err(|fault| Fault::internal(fault.text))?;
    let bytes = read(body, BODY_BYTES_MAX).await?;
    let ops = ops_of(&bytes, &face.host.local().datacenter, VALUE_BYTES_MAX)?;
    let writes = ops.iter().any(Op::is_write);
    if writes && let Some(verb) = ops.iter().find_map(Op::condition_of_key) {
        let text = format!("Transactions that write on the condition of a key ({verb}) ");
        return Err(Fault::not_here(text + NO_CONSENSUS));
    }
    let mut run = Run { view: &before, written: BTreeMap::new(), edits: Vec::new() };
    let (mut shown, mut errors) = (Vec::new(), Vec::new());
    for (op_index, op) in ops.into_iter().enumerate() {
        match run.take(op) {
            Ok(some) => shown.extend(some),
            Err(what) => errors.push(OpError { op_index, what }),
        }
    }
    let edits = run.edits;
    if errors.is_empty() && !edits.is_empty() {
        match face.host.submit(Command::Edit(edits)).await {
            Err(SubmitError::Refused(refusal)) => {
                errors.push(OpError { op_index: 0, what: refusal.to_string() });
            }
            result => result?,
        }
    }
    let after = face.host.feed().view();
    let is_done = errors.is_empty();
    let results = shown.iter().filter_map(|shown| shown.outcome(&before, &after)).collect();
    let answer = Answer {
        results: is_done.then_some(results),
        errors: (!is_done).then_some(errors),
        freshness: (!writes).then(|| super::dto::prepared::Freshness::of("")),
    };
    let mut response = json(&query, &answer);
    if !writes {
        response.headers_mut().insert(KNOWN_LEADER, HeaderValue::from_static("true"));
    }
    if !is_done {
        *response.status_mut() = StatusCode::CONFLICT;
    }
    Ok(response)
}

/// A transaction that is being worked out.
struct Run<'v> {
    view: &'v View,
    /// What it has written so far, and whether that is there then.
    written: BTreeMap<Thing, bool>,
    edits: Vec<CatalogEdit>,
}

impl Run<'_> {
    fn take(&mut self, op: Op) -> Result<Vec<Shown>, String> {
        match op {
            Op::Nothing => Ok(Vec::new()),
            Op::Key(op) => self.take_key(op),
            Op::Node { verb, index, node } => {
                let thing = Thing::Node(lower(&node.name).into_owned());
                let what = format!("node {:?}", node.name);
                let name = node.name.clone();
                let registration =
                    Registration { node, skips_node: false, service: None, checks: Vec::new() };
                let place = (name, String::new(), String::new());
                self.take_thing(&verb, "Node", index, thing, &what, place, registration)
            }
            Op::Service { verb, index, node, service } => {
                let thing = Thing::Service(lower(&node).into_owned(), service.id.clone());
                let what = format!("service {:?} on node {node:?}", service.id);
                let place = (node.clone(), service.id.clone(), String::new());
                let registration = Registration::on(node, Some(service), Vec::new());
                self.take_thing(&verb, "Service", index, thing, &what, place, registration)
            }
            Op::Check { verb, index, node, check } => {
                let thing = Thing::Check(lower(&node).into_owned(), check.id.clone());
                let what = format!("check {:?} on node {node:?}", check.id);
                let place = (node.clone(), String::new(), check.id.clone());
                let registration = Registration::on(node, None, vec![*check]);
                self.take_thing(&verb, "Check", index, thing, &what, place, registration)
            }
        }
    }

    fn take_key(&mut self, op: KeyOp) -> Result<Vec<Shown>, String> {
        let KeyOp { verb, key, value, flags, index, session } = op;
        let thing = Thing::Key(key.clone());
        let is_here = self.is_here(&thing);
        if key.is_empty() && !verb.ends_with("-tree") {
            return Err("Must provide key".to_owned());
        }
        let show = |is_written| Shown::Thing { thing: thing.clone(), is_written };
        match verb.as_str() {
            "set" => {
                self.write(thing, true, [CatalogEdit::PutKey { key: key.clone(), value, flags }]);
                Ok(vec![Shown::Set(key)])
            }
            "delete" => {
                self.write(thing, false, [CatalogEdit::RemoveKey { key }]);
                Ok(Vec::new())
            }
            "delete-tree" => {
                for key in self.keys_under(&key) {
                    let edit = CatalogEdit::RemoveKey { key: key.clone() };
                    self.write(Thing::Key(key), false, [edit]);
                }
                Ok(Vec::new())
            }
            "get" if is_here => Ok(vec![show(self.written.contains_key(&thing))]),
            "get" => Err(format!("key {key:?} doesn't exist")),
            "get-or-empty" if is_here => Ok(vec![show(self.written.contains_key(&thing))]),
            "get-or-empty" => Ok(vec![Shown::Nothing(key)]),
            "get-tree" => {
                let keys = self.keys_under(&key).into_iter().map(Thing::Key);
                let written = &self.written;
                Ok(keys
                    .map(|thing| {
                        let is_written = written.contains_key(&thing);
                        Shown::Thing { thing, is_written }
                    })
                    .collect())
            }
            "check-index" => match self.view.keys().get(&key) {
                Some(entry) if entry.modify_index == index => Ok(vec![show(false)]),
                Some(entry) => Err(format!(
                    "failed index check for key {key:?}, current modify index {} != {index}",
                    entry.modify_index
                )),
                None => Err(format!("failed to check index for key {key:?}, not found")),
            },
            "check-not-exists" if is_here => Err(format!("key {key:?} exists")),
            "check-not-exists" => Ok(Vec::new()),
            "check-session" if session.is_empty() && is_here => Ok(vec![show(false)]),
            "check-session" => Err(format!(
                "failed session check for key {key:?}, current session \"\" != {session:?}"
            )),
            other => Err(format!("unknown KV verb {other:?}")),
        }
    }

    /// Lists the keys under a prefix, those of this transaction among them.
    fn keys_under(&self, prefix: &str) -> Vec<String> {
        let held = self.view.keys().under(prefix).map(|(key, _)| key.to_string());
        let written = self.written.keys().filter_map(|thing| match thing {
            Thing::Key(key) if key.starts_with(prefix) => Some(key.clone()),
            _ => None,
        });
        let mut keys: Vec<String> = held.chain(written).collect();
        keys.sort();
        keys.dedup();
        keys.retain(|key| self.is_here(&Thing::Key(key.clone())));
        keys
    }

    #[expect(clippy::too_many_arguments, reason = "what the three kinds differ in")]
    fn take_thing(
        &mut self,
        verb: &str,
        kind: &str,
        index: u64,
        thing: Thing,
        what: &str,
        (node, service_id, check_id): (String, String, String),
        registration: Registration,
    ) -> Result<Vec<Shown>, String> {
        if node.is_empty() {
            return Err("Must provide node".to_owned());
        }
        let (is_write, is_conditional) = match verb {
            "get" if self.is_here(&thing) => {
                let is_written = self.written.contains_key(&thing);
                return Ok(vec![Shown::Thing { thing, is_written }]);
            }
            "get" => return Err(format!("{what} doesn't exist")),
            "set" => (true, false),
            "cas" => (true, true),
            "delete" => (false, false),
            "delete-cas" => (false, true),
            other => return Err(format!("unknown {kind} verb {other:?}")),
        };
        if is_conditional && self.index_of(&thing) != index {
            let done = if is_write { "set" } else { "delete" };
            return Err(format!("failed to {done} {what}, index is stale"));
        }
        if !is_write {
            return self.remove(thing, Deregistration { node, service_id, check_id });
        }
        if !matches!(thing, Thing::Node(_)) && !self.is_here(&Thing::Node(lower(&node).into())) {
            return Err("Missing node registration".to_owned());
        }
        let spoken_for = registration.checks.iter().map(|check| &check.service_id);
        for service in spoken_for.filter(|service| !service.is_empty()) {
            if !self.is_here(&Thing::Service(lower(&node).into(), service.clone())) {
                return Err(format!(
                    "failed inserting check: Missing service registration on node {node:?}"
                ));
            }
        }
        let edits = external::edits_of(self.view, registration).map_err(|fault| fault.text)?;
        self.write(thing.clone(), true, edits);
        Ok(vec![Shown::Thing { thing, is_written: true }])
    }

    fn remove(&mut self, thing: Thing, wanted: Deregistration) -> Result<Vec<Shown>, String> {
        if !self.is_here(&thing) {
            return Ok(Vec::new());
        }
        let edit = external::removal_of(self.view, wanted).map_err(|fault| fault.text)?;
        if let Thing::Node(node) = &thing {
            // All that is on it goes with it.
            let on_it: Vec<Thing> =
                self.written.keys().filter(|thing| thing.is_on(node)).cloned().collect();
            self.written.extend(on_it.into_iter().map(|thing| (thing, false)));
        }
        self.write(thing, false, [edit]);
        Ok(Vec::new())
    }

    fn write(
        &mut self,
        thing: Thing,
        is_there: bool,
        edits: impl IntoIterator<Item = CatalogEdit>,
    ) {
        self.written.insert(thing, is_there);
        self.edits.extend(edits);
    }

    /// Tells whether something is there at this point of the transaction.
    fn is_here(&self, thing: &Thing) -> bool {
        if let Some(is_here) = self.written.get(thing) {
            return *is_here;
        }
        let node = match thing {
            Thing::Service(node, _) | Thing::Check(node, _) => Thing::Node(node.clone()),
            Thing::Key(_) | Thing::Node(_) => return thing.index_in(self.view).is_some(),
        };
        self.written.get(&node) != Some(&false) && thing.index_in(self.view).is_some()
    }

    /// Returns the index that a condition is held against: 0 for what is not there, and none that
    /// anybody can know for what this transaction wrote.
    fn index_of(&self, thing: &Thing) -> u64 {
        if self.written.contains_key(thing) {
            return u64::MAX;
        }
        thing.index_in(self.view).unwrap_or(0)
    }
}

impl Thing {
    fn is_on(&self, name: &str) -> bool {
        match self {
            Self::Service(node, _) | Self::Check(node, _) => node == name,
            Self::Key(_) | Self::Node(_) => false,
        }
    }

    fn index_in(&self, view: &View) -> Option<u64> {
        match self {
            Self::Key(key) => Some(view.keys().get(key)?.modify_index),
            Self::Node(name) => Some(view.node_named(name)?.info.modify_index),
            Self::Service(node, id) => Some(view.node_named(node)?.instance(id)?.modify_index),
            Self::Check(node, id) => Some(view.node_named(node)?.check(id)?.modify_index),
        }
    }

    fn outcome<'a>(&'a self, view: &'a View) -> Option<Outcome<'a>> {
        match self {
            Self::Key(key) => Some(Outcome::Key(Pair::of(key, view.keys().get(key)?))),
            Self::Node(name) => Some(Outcome::Node(Node::of(&view.node_named(name)?.info))),
            Self::Service(node, id) => {
                let instance = view.node_named(node)?.instance(id)?;
                Some(Outcome::Service(NodeService::of(instance).with_null_tags()))
            }
            Self::Check(node, id) => {
                let node = view.node_named(node)?;
                let entry = node.check(id)?;
                let instance = node.instance(&entry.check.service_id);
                let service = instance.map(|instance| &instance.service);
                let check = HealthCheck::of(&node.info.node.name, entry, service);
                Some(Outcome::Check(check.with_null_tags()))
            }
        }
    }
}

impl Shown {
    /// Finds what it shows; nothing where another write has taken it away since.
    fn outcome<'a>(&'a self, before: &'a View, after: &'a View) -> Option<Outcome<'a>> {
        match self {
            Self::Thing { thing, is_written: false } => thing.outcome(before),
            Self::Thing { thing, is_written: true } => thing.outcome(after),
            Self::Set(key) => {
                Some(Outcome::Key(Pair::of(key, after.keys().get(key)?).without_value()))
            }
            Self::Nothing(key) => Some(Outcome::Key(Pair::missing(key))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::Status;
    use crate::catalog::{Check, Service};
    use crate::http::support::{Bench, me, node, one_service, service};

    /// The member `n1` with `web-1`; the external node `ext` with `s1` and its check `c1`; two keys.
    fn bench() -> Bench {
        let mut rows = one_service();
        rows.external_node(&node("Ext", "10.0.0.9"));
        rows.external_service("ext", &Service { tags: vec!["t".into()], ..service("s1", "esvc") });
        let check = Check { id: "c1".into(), service_id: "s1".into(), ..Check::default() };
        rows.external_check("ext", &Check { status: Status::Warning, ..check });
        rows.key("a/1", b"x", 3);
        rows.key("a/2", b"", 0);
        Bench::new(me(), "n1", rows)
    }

    async fn answer(bench: &Bench, ops: &str) -> (u16, String) {
        let reply = bench.put("/v1/txn", &format!("[{ops}]")).await;
        (reply.status.as_u16(), reply.text)
    }

    fn edits(bench: &Bench) -> Vec<CatalogEdit> {
        match bench.last_command() {
            Some(Command::Edit(edits)) => edits,
            other => panic!("{other:?}"),
        }
    }

    const READ: &str = r#""Index":0,"LastContact":0,"KnownLeader":true,"ConsistencyLevel":"""#;

    #[tokio::test]
    async fn reads_come_as_consul_shows_them() {
        let bench = bench();
        for (op, result) in [
            (
                r#"{"KV":{"Verb":"get","Key":"a/1"}}"#,
                r#"{"KV":{"LockIndex":0,"Key":"a/1","Flags":3,"Value":"eA==","CreateIndex":1001,"ModifyIndex":1001}}"#,
            ),
            (
                r#"{"KV":{"Verb":"get-tree","Key":"a/2"}}"#,
                r#"{"KV":{"LockIndex":0,"Key":"a/2","Flags":0,"Value":null,"CreateIndex":1001,"ModifyIndex":1001}}"#,
            ),
            (
                r#"{"KV":{"Verb":"get-or-empty","Key":"no"}}"#,
                r#"{"KV":{"LockIndex":0,"Key":"no","Flags":0,"Value":null,"CreateIndex":0,"ModifyIndex":0}}"#,
            ),
            (
                r#"{"KV":{"Verb":"check-index","Key":"a/2","Index":1001}}"#,
                r#"{"KV":{"LockIndex":0,"Key":"a/2","Flags":0,"Value":null,"CreateIndex":1001,"ModifyIndex":1001}}"#,
            ),
            (r#"{"KV":{"Verb":"check-not-exists","Key":"no"}}"#, ""),
            (
                r#"{"Node":{"Verb":"get","Node":{"Node":"EXT"}}}"#,
                r#"{"Node":{"ID":"","Node":"Ext","Address":"10.0.0.9","Datacenter":"dc1","TaggedAddresses":null,"Meta":null,"CreateIndex":1001,"ModifyIndex":1001}}"#,
            ),
            (
                r#"{"Check":{"Verb":"get","Check":{"Node":"ext","CheckID":"c1"}}}"#,
                r#"{"Check":{"Node":"Ext","CheckID":"c1","Name":"","Status":"warning","Notes":"","Output":"","ServiceID":"s1","ServiceName":"esvc","ServiceTags":["t"],"Type":"","Definition":{},"CreateIndex":1001,"ModifyIndex":1001}}"#,
            ),
            ("{}", ""),
        ] {
            let expected = format!(r#"{{"Results":[{result}],"Errors":null,{READ}}}"#);
            assert_eq!(answer(&bench, op).await, (200, expected), "{op}");
        }
        let (status, text) =
            answer(&bench, r#"{"Service":{"Verb":"get","Node":"n1","Service":{"ID":"web-1"}}}"#)
                .await;
        assert_eq!(status, 200);
        assert!(text.contains(r#""ID":"web-1","Service":"web","Tags":null"#), "{text}");
        let all = answer(&bench, r#"{"KV":{"Verb":"get-tree","Key":"a/"}}"#).await.1;
        assert_eq!(all.matches("LockIndex").count(), 2);
        assert!(bench.last_command().is_none());
    }

    #[tokio::test]
    async fn what_fails_is_told_by_its_place_and_nothing_is_done() {
        let bench = bench();
        for (ops, at, what) in [
            (
                r#"{"KV":{"Verb":"set","Key":"b"}},{"KV":{"Verb":"get","Key":"no"}}"#,
                1,
                "key \"no\" doesn't exist",
            ),
            (r#"{"KV":{"Verb":"bogus","Key":"a"}}"#, 0, "unknown KV verb \"bogus\""),
            (r#"{"KV":{"Verb":"set","Key":""}}"#, 0, "Must provide key"),
            (
                r#"{"KV":{"Verb":"check-index","Key":"a/1","Index":1}}"#,
                0,
                "failed index check for key \"a/1\", current modify index 1001 != 1",
            ),
            (r#"{"KV":{"Verb":"check-not-exists","Key":"a/1"}}"#, 0, "key \"a/1\" exists"),
            (
                r#"{"KV":{"Verb":"check-session","Key":"a/1","Session":"s"}}"#,
                0,
                "failed session check for key \"a/1\", current session \"\" != \"s\"",
            ),
            (r#"{"Node":{"Verb":"get","Node":{"Node":"no"}}}"#, 0, "node \"no\" doesn't exist"),
            (r#"{"Node":{"Verb":"bogus","Node":{"Node":"no"}}}"#, 0, "unknown Node verb \"bogus\""),
            (r#"{"Node":{"Verb":"set","Node":{}}}"#, 0, "Must provide node"),
            (
                r#"{"Node":{"Verb":"cas","Node":{"Node":"ext","Address":"10.0.0.2","ModifyIndex":1}}}"#,
                0,
                "failed to set node \"ext\", index is stale",
            ),
            (
                r#"{"Service":{"Verb":"get","Node":"ext","Service":{"ID":"zz"}}}"#,
                0,
                "service \"zz\" on node \"ext\" doesn't exist",
            ),
            (
                r#"{"Service":{"Verb":"set","Node":"no","Service":{"ID":"s","Service":"s"}}}"#,
                0,
                "Missing node registration",
            ),
            (
                r#"{"Check":{"Verb":"cas","Check":{"Node":"ext","CheckID":"c1","Status":"passing","ModifyIndex":1}}}"#,
                0,
                "failed to set check \"c1\" on node \"ext\", index is stale",
            ),
            (
                r#"{"Check":{"Verb":"delete-cas","Check":{"Node":"ext","CheckID":"c1","ModifyIndex":1}}}"#,
                0,
                "failed to delete check \"c1\" on node \"ext\", index is stale",
            ),
            (
                r#"{"Check":{"Verb":"set","Check":{"Node":"ext","CheckID":"c","ServiceID":"no"}}}"#,
                0,
                "Missing service registration on node \"ext\"",
            ),
            (
                r#"{"Node":{"Verb":"delete","Node":{"Node":"ext"}}},{"Service":{"Verb":"get","Node":"ext","Service":{"ID":"s1"}}}"#,
                1,
                "doesn't exist",
            ),
            (r#"{"Node":{"Verb":"delete","Node":{"Node":"n1"}}}"#, 0, "Node n1 runs its own agent"),
            (
                r#"{"Service":{"Verb":"set","Node":"n1","Service":{"ID":"s","Service":"s"}}}"#,
                0,
                "Node n1 runs its own agent",
            ),
        ] {
            let (status, text) = answer(&bench, ops).await;
            assert_eq!(status, 409, "{ops}: {text}");
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(json["Results"].is_null(), "{ops}: {text}");
            let error = &json["Errors"][0];
            assert_eq!(error["OpIndex"], at, "{ops}");
            assert!(error["What"].as_str().unwrap().contains(what), "{ops}: {text}");
        }
        assert!(bench.last_command().is_none());
    }

    #[tokio::test]
    async fn what_is_no_transaction_is_refused() {
        let bench = bench();
        let set = r#"{"KV":{"Verb":"set","Key":"k"}}"#;
        let locks = format!(r#"[{set},{{"KV":{{"Verb":"check-index","Key":"k"}}}}]"#);
        let many = format!("[{}]", vec![set; 65].join(","));
        for (body, status, text) in [
            ("", 400, "Failed to parse body: EOF"),
            (
                "{}",
                400,
                "Failed to parse body: json: cannot unmarshal object into Go value of type api.TxnOps",
            ),
            (r#"[{"Bogus":{}}]"#, 400, "Failed to parse body: json: unknown field \"Bogus\""),
            (
                r#"[{"KV":{"Verb":"set","Key":"a","Value":"!!"}}]"#,
                400,
                "Failed to parse body: illegal base64 data",
            ),
            (r#"[{"KV":{"Verb":"cas","Key":"a"}}]"#, 501, "on the condition of a key (cas)"),
            (r#"[{"KV":{"Verb":"lock","Key":"a"}}]"#, 501, "on the condition of a key (lock)"),
            (&locks, 501, "on the condition of a key (check-index)"),
            (&many, 413, "Transaction contains too many operations (65 > 64)"),
        ] {
            let reply = bench.put("/v1/txn", body).await;
            assert_eq!(reply.status, status, "{body}");
            assert!(reply.text.contains(text), "{body}: {}", reply.text);
        }
        assert_eq!(bench.put("/v1/txn?dc=nope", "[]").await.text, "No path to datacenter");
        assert_eq!(bench.get("/v1/txn").await.header("allow"), "OPTIONS,PUT");
        assert!(bench.last_command().is_none());
    }

    #[tokio::test]
    async fn writes_of_one_transaction_are_one_command_and_see_each_other() {
        let bench = bench();
        let ops = r#"{"KV":{"Verb":"set","Key":"b","Value":"aGk=","Flags":7}},
            {"KV":{"Verb":"get","Key":"b"}},
            {"KV":{"Verb":"delete-tree","Key":"a/"}},
            {"Node":{"Verb":"set","Node":{"Node":"New","Address":"10.0.0.8","Meta":{"a":"b"}}}},
            {"Service":{"Verb":"set","Node":"new","Service":{"ID":"n","Service":"nsvc","Port":1}}},
            {"Check":{"Verb":"set","Check":{"Node":"new","CheckID":"nc","Status":"passing","ServiceID":"n"}}},
            {"Check":{"Verb":"cas","Check":{"Node":"ext","CheckID":"c1","Status":"passing","ServiceID":"s1","ModifyIndex":1001}}},
            {"Service":{"Verb":"delete","Node":"no","Service":{"ID":"gone"}}}"#;
        let (status, text) = answer(&bench, ops).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.ends_with(r#","Errors":null}"#), "{text}");
        let names: Vec<String> = edits(&bench)
            .iter()
            .map(|edit| match edit {
                CatalogEdit::PutKey { key, value, flags } => format!("put {key} {value:?} {flags}"),
                CatalogEdit::RemoveKey { key } => format!("remove {key}"),
                CatalogEdit::PutNode { row, node } => format!("node {row} {}", node.meta["a"]),
                CatalogEdit::PutService { node, service } => {
                    format!("service {node} {}", service.id)
                }
                CatalogEdit::PutCheck { node, check } => format!("check {node} {}", check.id),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            names,
            [
                "put b [104, 105] 7",
                "remove a/1",
                "remove a/2",
                "node new b",
                "service new n",
                "check new nc",
                "check ext c1"
            ]
        );
    }
}
