//! `/v1/catalog/register` and `/v1/catalog/deregister`: what runs no agent of its own, written by
//! whoever watches it from outside.
//!
//! External nodes belong to the whole cluster: any node takes a registration, and any other may
//! take it back. What a member runs belongs to that member. Consul takes such a write and undoes it
//! a minute later, when the member's agent looks; here it is refused at once, with one exception:
//! the tags of an instance that was registered with `EnableTagOverride`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;

use super::dto::external::{Deregistration, Registration};
use super::query::Query;
use super::reading::json;
use crate::catalog::model::{Node, Service, Source, external_id, lower};
use crate::catalog::{CatalogEdit, Check, Command, NodeEntry, View};
use crate::http::Face;
use crate::http::body::{REGISTER_BYTES_MAX, read};
use crate::http::error::Fault;

/// `PUT /v1/catalog/register`.
pub async fn register(
    State(face): State<Arc<Face>>,
    uri: Uri,
    body: Body,
) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    let edits = {
        let bytes = read(body, REGISTER_BYTES_MAX).await?;
        let registration = Registration::read(&bytes, &face.host.local().datacenter)?;
        edits_of(&face.host.feed().view(), registration)?
    };
    carry_out(&face, edits).await?;
    Ok(json(&query, &true))
}

/// `PUT /v1/catalog/deregister`. What is not there is no error.
pub async fn deregister(
    State(face): State<Arc<Face>>,
    uri: Uri,
    body: Body,
) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    let bytes = read(body, REGISTER_BYTES_MAX).await?;
    let wanted = Deregistration::read(&bytes, &face.host.local().datacenter)?;
    let view = face.host.feed().view();
    match view.node_named(&wanted.node).filter(|entry| external_id(&entry.info.key).is_none()) {
        Some(entry) => deregister_of_member(&face, entry, &wanted).await?,
        None => {
            let row = row_of(&view, &wanted.node);
            carry_out(&face, vec![removal(row, wanted)]).await?;
        }
    }
    Ok(json(&query, &true))
}

async fn carry_out(face: &Face, edits: Vec<CatalogEdit>) -> Result<(), Fault> {
    if !edits.is_empty() {
        face.host.submit(Command::Edit(edits)).await?;
    }
    Ok(())
}

/// Returns where the external node of a name stands, or would: who wrote it over SQL may have taken
/// another key than its name in lower case.
fn row_of(view: &View, name: &str) -> String {
    let held = view.node_named(name).and_then(|entry| external_id(&entry.info.key));
    held.map_or_else(|| lower(name).into_owned(), str::to_owned)
}

/// Returns how to take something out of the catalog; refused where a member's agent has it.
pub fn removal_of(view: &View, wanted: Deregistration) -> Result<CatalogEdit, Fault> {
    match view.node_named(&wanted.node).filter(|entry| external_id(&entry.info.key).is_none()) {
        Some(entry) => Err(belongs(entry)),
        None => Ok(removal(row_of(view, &wanted.node), wanted)),
    }
}

fn removal(node: String, wanted: Deregistration) -> CatalogEdit {
    let Deregistration { node: _, service_id, check_id } = wanted;
    match (service_id.is_empty(), check_id.is_empty()) {
        (false, _) => CatalogEdit::RemoveService { node, service_id },
        (true, false) => CatalogEdit::RemoveCheck { node, check_id },
        (true, true) => CatalogEdit::RemoveNode { node },
    }
}

/// Returns what a registration changes; nothing where all of it is so already.
pub fn edits_of(view: &View, registration: Registration) -> Result<Vec<CatalogEdit>, Fault> {
    let Registration { mut node, skips_node, service, checks } = registration;
    let held = view.node_named(&node.name);
    if let Some(entry) = held.filter(|entry| external_id(&entry.info.key).is_none()) {
        let same_node = skips_node || node.address == entry.info.node.address;
        return edits_of_member(entry, same_node, service, &checks);
    }
    let row = row_of(view, &node.name);
    let mut edits = Vec::new();
    if !skips_node {
        keep_identity(view, &mut node, held)?;
        edits.push(CatalogEdit::PutNode { row: row.clone(), node });
    }
    edits.extend(service.map(|service| CatalogEdit::PutService { node: row.clone(), service }));
    edits
        .extend(checks.into_iter().map(|check| CatalogEdit::PutCheck { node: row.clone(), check }));
    Ok(edits)
}

/// An id names one node for good. Consul renames the node that has it, and whoever takes the new
/// name out of the catalog takes the old one with it.
fn keep_identity(view: &View, node: &mut Node, held: Option<&Arc<NodeEntry>>) -> Result<(), Fault> {
    let held_id = held.map_or("", |entry| entry.info.node.external_id.as_str());
    if node.external_id.is_empty() {
        held_id.clone_into(&mut node.external_id);
        return Ok(());
    }
    let (id, name) = (&node.external_id, &node.name);
    if !held_id.is_empty() && held_id != id {
        return Err(Fault::internal(format!(
            "Node name {name} is reserved by node {held_id} with name {}; deregister that node \
             first",
            held.map_or("", |entry| &entry.info.node.name),
        )));
    }
    match view.node(id) {
        Some(other) if lower(&other.info.node.name) != lower(name) => {
            Err(Fault::internal(format!(
                "Node ID {id} belongs to node {}, which would be renamed to {name}; deregister it \
                 first, or register {name} under an ID of its own or none",
                other.info.node.name
            )))
        }
        Some(_) | None => Ok(()),
    }
}

fn edits_of_member(
    entry: &NodeEntry,
    same_node: bool,
    service: Option<Service>,
    checks: &[Check],
) -> Result<Vec<CatalogEdit>, Fault> {
    let is_held = |wanted: &Check| {
        entry.check(&wanted.id).is_some_and(|held| {
            held.check.status == wanted.status && held.check.service_id == wanted.service_id
        })
    };
    if !same_node || !checks.iter().all(is_held) {
        return Err(belongs(entry));
    }
    let Some(wanted) = service else { return Ok(Vec::new()) };
    let held = entry.instance(&wanted.id).filter(|held| {
        let held = &held.service;
        held.name == wanted.name && held.port == wanted.port && held.address == wanted.address
    });
    match held {
        Some(held) if held.service.tags == wanted.tags => Ok(Vec::new()),
        Some(held) if held.service.enable_tag_override && held.service.source != Source::Consul => {
            Ok(vec![CatalogEdit::PutTags {
                node: Arc::clone(&entry.info.key),
                service_id: wanted.id,
                tags: wanted.tags,
            }])
        }
        Some(_) | None => Err(belongs(entry)),
    }
}

/// A member that is gone for good is forgotten, with all that ran on it.
async fn deregister_of_member(
    face: &Face,
    entry: &NodeEntry,
    wanted: &Deregistration,
) -> Result<(), Fault> {
    let is_there = match (wanted.service_id.as_str(), wanted.check_id.as_str()) {
        ("", "") => true,
        ("", check) => entry.check(check).is_some(),
        (service, _) => entry.instance(service).is_some(),
    };
    if !is_there {
        return Ok(());
    }
    let is_whole = wanted.service_id.is_empty() && wanted.check_id.is_empty();
    match entry.info.member.filter(|_| is_whole && !entry.info.is_up) {
        Some(member) => Ok(face.host.forget(member).await?),
        None => Err(belongs(entry)),
    }
}

fn belongs(entry: &NodeEntry) -> Fault {
    let name = &entry.info.node.name;
    Fault::internal(format!(
        "Node {name} runs its own agent, which alone says what is on it: use that agent \
         (/v1/agent/service/register, /v1/agent/check/register and their deregister), or, for a \
         node that will not return, /v1/agent/force-leave/{name}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::{Status, Weights, key_of};
    use crate::http::support::{Bench, me, node as host, one_service, service as web};

    const UUID: &str = "aaaaaaaa-0000-0000-0000-000000000006";

    /// The member `n1`, and `Printer` with the instance `ipp` and two checks.
    fn bench() -> Bench {
        let mut rows = one_service();
        let node = Node { external_id: UUID.to_owned(), ..host("Printer", "10.0.0.9") };
        rows.external_node(&node);
        rows.external_service("Printer", &web("ipp", "ipp"));
        let up = |id: &str, service_id: &str| Check {
            id: id.to_owned(),
            status: Status::Passing,
            service_id: service_id.to_owned(),
            definition: r#"{"HTTP":"http://x/","Interval":"10s"}"#.to_owned(),
            ..Check::default()
        };
        rows.external_check("Printer", &up("ping", ""));
        rows.external_check("Printer", &up("get", "ipp"));
        Bench::new(me(), "n1", rows)
    }

    fn edits(bench: &Bench) -> Vec<CatalogEdit> {
        match bench.last_command() {
            Some(Command::Edit(edits)) => edits,
            other => panic!("{other:?}"),
        }
    }

    async fn refusal(bench: &Bench, path: &str, body: &str) -> String {
        let reply = bench.put(path, body).await;
        assert_eq!((reply.status.as_u16(), bench.last_command()), (500, None), "{body}");
        reply.text
    }

    #[tokio::test]
    async fn an_external_node_is_shown_as_it_was_registered() {
        let bench = bench();
        let entries = bench.get("/v1/health/service/ipp?passing").await.json();
        assert_eq!(entries[0]["Node"]["ID"], UUID);
        assert_eq!(entries[0]["Node"]["Node"], "Printer");
        let checks = entries[0]["Checks"].as_array().unwrap();
        assert_eq!(checks.len(), 2, "no agent, no serfHealth");
        assert_eq!(checks[0]["Definition"]["Interval"], "10s");
        for name in ["printer", UUID] {
            let node = bench.get(&format!("/v1/catalog/node/{name}")).await.json();
            assert_eq!(node["Services"]["ipp"]["Port"], 8080, "{name}");
        }
    }

    #[tokio::test]
    async fn a_registration_is_one_command() {
        let bench = bench();
        let body = r#"{"Node":"Scanner","Address":"scan.example","NodeMeta":{"a":"b"},
            "Service":{"Service":"scan","Port":1,"Weights":{"Passing":0,"Warning":0}},
            "Check":{"Name":"alive","Definition":{"TCP":"x:1","IntervalDuration":"5s"}},
            "Checks":[{"CheckID":"c","Status":"passing","ServiceID":"scan"}]}"#;
        let reply = bench.put("/v1/catalog/register", body).await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, "true"));
        let edits = edits(&bench);
        let [
            CatalogEdit::PutNode { row, node },
            CatalogEdit::PutService { node: on, service },
            CatalogEdit::PutCheck { check: alive, .. },
            CatalogEdit::PutCheck { check: c, .. },
        ] = &edits[..]
        else {
            panic!("{edits:?}")
        };
        assert_eq!((node.name.as_str(), node.datacenter.as_str()), ("Scanner", "dc1"));
        assert_eq!((row.as_str(), on.as_str()), ("scanner", "scanner"));
        assert_eq!(service.id, "scan");
        assert_eq!(service.weights, Weights::default());
        assert_eq!(
            (alive.id.as_str(), alive.status, alive.kind.as_str()),
            ("alive", Status::Critical, "tcp")
        );
        assert_eq!((c.service_id.as_str(), c.status), ("scan", Status::Passing));
    }

    #[tokio::test]
    async fn an_id_stays_with_its_name() {
        let path = "/v1/catalog/register";
        let renamed = format!(r#"{{"Node":"other","Address":"x","ID":"{UUID}"}}"#);
        let text = refusal(&bench(), path, &renamed).await;
        assert!(text.contains("belongs to node Printer"), "{text}");
        let of_member = format!(r#"{{"Node":"other","Address":"x","ID":"{}"}}"#, me());
        assert!(refusal(&bench(), path, &of_member).await.contains("belongs to node n1"));
        let second =
            r#"{"Node":"PRINTER","Address":"x","ID":"bbbbbbbb-0000-0000-0000-000000000000"}"#;
        assert!(refusal(&bench(), path, second).await.contains("is reserved by node"));
        // Without an id it keeps the one that it has.
        let bench = bench();
        bench.put(path, r#"{"Node":"printer","Address":"10.0.0.10"}"#).await;
        let [CatalogEdit::PutNode { node, .. }] = &edits(&bench)[..] else { panic!() };
        assert_eq!(node.external_id, UUID);
        // A name that is another's id is a name.
        let named = format!(r#"{{"Node":"{UUID}","Address":"x"}}"#);
        bench.put(path, &named).await;
        let [CatalogEdit::PutNode { row, node }] = &edits(&bench)[..] else { panic!() };
        assert_eq!((row.as_str(), node.name.as_str()), (UUID, UUID));
    }

    #[tokio::test]
    async fn a_member_alone_says_what_it_runs() {
        let (register, deregister) = ("/v1/catalog/register", "/v1/catalog/deregister");
        for (path, body) in [
            (register, r#"{"Node":"n1","Address":"10.9.9.9"}"#),
            (
                register,
                r#"{"Node":"N1","Address":"x","SkipNodeUpdate":true,"Service":{"Service":"new"}}"#,
            ),
            (register, r#"{"Node":"n1","SkipNodeUpdate":true,"Check":{"Name":"new"}}"#),
            (
                register,
                r#"{"Node":"n1","SkipNodeUpdate":true,
                    "Service":{"ID":"web-1","Service":"web","Port":8080,"Tags":["edited"]}}"#,
            ),
            (deregister, r#"{"Node":"n1"}"#),
            (deregister, r#"{"Node":"n1","ServiceID":"web-1"}"#),
        ] {
            let text = refusal(&bench(), path, body).await;
            assert!(text.starts_with("Node n1 runs its own agent"), "{text}");
        }
        // What is so already, or is not there, is no change.
        for (path, body) in [
            (register, r#"{"Node":"n1","Address":"127.0.0.1"}"#),
            (
                register,
                r#"{"Node":"n1","SkipNodeUpdate":true,
                    "Service":{"ID":"web-1","Service":"web","Port":8080}}"#,
            ),
            (deregister, r#"{"Node":"n1","ServiceID":"nosuch"}"#),
        ] {
            let bench = bench();
            let reply = bench.put(path, body).await;
            assert_eq!((reply.text.as_str(), bench.last_command()), ("true", None), "{body}");
        }
    }

    #[tokio::test]
    async fn tags_may_be_edited_where_the_registration_says_so() {
        let bench = bench();
        bench.change(|rows| {
            let open = Service { enable_tag_override: true, ..web("web-2", "web") };
            rows.service(&key_of(me()), &open);
        });
        let body = r#"{"Node":"n1","Address":"127.0.0.1",
            "Service":{"ID":"web-2","Service":"web","Port":8080,"Tags":["v4","drained"]}}"#;
        assert_eq!(bench.put("/v1/catalog/register", body).await.text, "true");
        let expected = CatalogEdit::PutTags {
            node: key_of(me()),
            service_id: "web-2".to_owned(),
            tags: vec!["v4".to_owned(), "drained".to_owned()],
        };
        assert_eq!(edits(&bench), [expected]);
    }

    #[tokio::test]
    async fn whatever_is_taken_out_need_not_be_there() {
        let node = "x".to_owned();
        let id = "y".to_owned();
        for (body, expected) in [
            (r#"{"Node":"X"}"#, CatalogEdit::RemoveNode { node: node.clone() }),
            (
                r#"{"Node":"X","ServiceID":"y"}"#,
                CatalogEdit::RemoveService { node: node.clone(), service_id: id.clone() },
            ),
            (r#"{"Node":"X","CheckID":"y"}"#, CatalogEdit::RemoveCheck { node, check_id: id }),
        ] {
            let bench = bench();
            assert_eq!(bench.put("/v1/catalog/deregister", body).await.text, "true");
            assert_eq!(edits(&bench), [expected]);
        }
    }

    #[tokio::test]
    async fn a_body_with_a_fault_is_refused_in_consuls_words() {
        let path = "/v1/catalog/register";
        for (body, expected) in [
            (r#"{"Address":"10.1.1.1"}"#, "Must provide node"),
            (r#"{"Node":"e1"}"#, "Must provide address if SkipNodeUpdate is not set"),
            (r#"{"Node":"e1","Address":"x","Datacenter":"dc9"}"#, "No path to datacenter"),
            (r#"{"Node":"e1","Address":"x","ID":"e1"}"#, "Invalid node ID \"e1\": not a UUID"),
            (
                r#"{"Node":"e1","Address":"x","Check":{"Name":"c","Status":"weird"}}"#,
                "Invalid check status: \"weird\"; it must be 'passing', 'warning' or 'critical'",
            ),
        ] {
            assert_eq!(refusal(&bench(), path, body).await, expected);
        }
        let text = refusal(&bench(), "/v1/catalog/deregister", "{}").await;
        assert_eq!(text, "Must provide node");
        assert_eq!(bench().put(path, "").await.status, 400);
    }
}
