//! `/v1/query/…`: prepared queries, written by any node and asked at any.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use rand::seq::SliceRandom;
use uuid::Uuid;

use super::dto::answers::ServiceEntry;
use super::dto::prepared::{Created, Executed, Explained, Freshness, Sent, Shown};
use super::index::{self, Options};
use super::query::{Datacenter, Query, boolean};
use super::reading::{Asked, Near, Tail, done, json, text_of};
use crate::catalog::queries::{self, PreparedQuery, Resolved};
use crate::catalog::{CatalogEdit, Command, Topic, View};
use crate::http::Face;
use crate::http::body::{REGISTER_BYTES_MAX, read};
use crate::http::error::Fault;
use crate::http::serve::Ends;

/// What is no id of a query.
const NO_ID: &str = "failed prepared query lookup: index error: UUID must be 36 characters";
/// Consul's `Allow` for what is asked of a query.
const GET: &str = "GET";

/// `GET /v1/query`: all of them.
pub async fn list(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let reading = Asked::of_queries(&uri)?.read(&face, |_| Topic::Queries).await?;
    let all = reading.view.queries().all();
    let shown: Vec<_> = all.map(|entry| Shown::of(entry, &entry.query.service)).collect();
    Ok(reading.answer(&shown))
}

/// `POST /v1/query`.
pub async fn create(
    State(face): State<Arc<Face>>,
    uri: Uri,
    body: Body,
) -> Result<Response, Fault> {
    let (asked, sent) = taken(&face, &uri, body).await?;
    if !sent.id.is_empty() {
        return Err(Fault::internal("ID must be empty when creating a new prepared query"));
    }
    let id = Uuid::new_v4().to_string();
    put(&face, id.clone(), sent.query).await?;
    Ok(json(&asked, &Created { id }))
}

/// `/v1/query/:id` to read, replace and remove one, `/v1/query/:name/execute` and `…/explain`.
pub async fn one(
    State(face): State<Arc<Face>>,
    method: Method,
    uri: Uri,
    ends: Option<Extension<Ends>>,
    tail: Tail,
    body: Body,
) -> Result<Response, Fault> {
    let path = text_of(tail);
    let asked_for = |what: &str| match path.strip_suffix(what) {
        Some("") => Some(path.as_str()),
        Some(name) => name.strip_suffix('/'),
        None => None,
    };
    let (executed, explained) = (asked_for("execute"), asked_for("explain"));
    let is_read = method == Method::GET;
    match (executed, explained) {
        (None, None) if is_read => shown(&face, &uri, &path).await,
        (None, None) if method == Method::PUT => replace(&face, &uri, path, body).await,
        (None, None) => remove(&face, &uri, path).await,
        _ if !is_read => Err(Fault::method_not_allowed(method.as_str(), GET)),
        (Some(name), _) => execute(&face, &uri, name, ends.map(|Extension(ends)| ends)),
        (None, Some(name)) => explain(&face, &uri, name),
    }
}

async fn shown(face: &Face, uri: &Uri, id: &str) -> Result<Response, Fault> {
    let asked = Asked::of_queries(uri)?;
    let id = uuid(id).ok_or_else(|| index::leaderless(NO_ID))?;
    let reading = asked.read(face, |_| Topic::Queries).await?;
    match reading.view.queries().get(&id) {
        Some(entry) => Ok(reading.answer(&[Shown::of(entry, &entry.query.service)])),
        None => Err(Fault::not_found("Query not found")),
    }
}

async fn replace(face: &Face, uri: &Uri, id: String, body: Body) -> Result<Response, Fault> {
    let (_, sent) = taken(face, uri, body).await?;
    put(face, existing(face, &id)?, sent.query).await?;
    Ok(done())
}

async fn remove(face: &Face, uri: &Uri, id: String) -> Result<Response, Fault> {
    accept(face, uri)?;
    let edit = CatalogEdit::RemoveQuery { id: existing(face, &id)? };
    face.host.submit(Command::Edit(vec![edit])).await?;
    Ok(done())
}

async fn taken(face: &Face, uri: &Uri, body: Body) -> Result<(Query, Sent), Fault> {
    let query = accept(face, uri)?;
    let sent = Sent::read(&read(body, REGISTER_BYTES_MAX).await?)?;
    Ok((query, sent))
}

fn accept(face: &Face, uri: &Uri) -> Result<Query, Fault> {
    let query = Query::of(uri);
    query.refuse_tenancy()?;
    Datacenter::of(&query, face.host.local(), &face.host.feed().view())
        .map_err(|fault| Fault::internal(fault.text))?;
    Ok(query)
}

/// Stores a query whose name is free.
async fn put(face: &Face, id: String, query: PreparedQuery) -> Result<(), Fault> {
    if let Some(why) = name_taken(&face.host.feed().view(), &id, &query) {
        return Err(Fault::internal(why));
    }
    face.host.submit(Command::Edit(vec![CatalogEdit::PutQuery { id, query }])).await?;
    Ok(())
}

/// Queries and templates share one space of names.
fn name_taken(view: &View, id: &str, query: &PreparedQuery) -> Option<String> {
    let held = [false, true].map(|is_template| view.queries().named(&query.name, is_template));
    held.into_iter().flatten().find(|held| *held.id != *id)?;
    Some(match query.name.as_str() {
        "" => "a query template with an empty name already exists".to_owned(),
        name => format!("name '{name}' aliases an existing query name"),
    })
}

fn existing(face: &Face, id: &str) -> Result<String, Fault> {
    let known = uuid(id)
        .ok_or_else(|| Fault::internal(format!("Prepared Query lookup failed: {NO_ID}")))?;
    match face.host.feed().view().queries().get(&known) {
        Some(_) => Ok(known),
        None => {
            let text = format!("Cannot modify non-existent prepared query: '{known}'");
            Err(Fault::internal(text))
        }
    }
}

/// Reads an id in the one way that Consul takes, and returns it in lower case.
fn uuid(text: &str) -> Option<String> {
    let parsed = if text.len() == 36 { Uuid::parse_str(text).ok() } else { None };
    parsed.map(|id| id.to_string())
}

/// Instances come in random order, or with `near` those of the nearest nodes first.
fn execute(face: &Face, uri: &Uri, name: &str, ends: Option<Ends>) -> Result<Response, Fault> {
    let query = Query::of(uri);
    query.refuse_tenancy()?;
    let options = Options::of(&query)?;
    let limit = match query.first("limit") {
        None | Some("") => 0,
        Some(text) => text.parse::<i64>().map_err(|_| {
            Fault::internal(format!("Bad limit: strconv.Atoi: parsing {text:?}: invalid syntax"))
        })?,
    };
    let connect = match query.first("connect") {
        None | Some("") => false,
        Some(text) => boolean(text).ok_or_else(|| {
            Fault::internal(format!(
                "Error parsing 'connect' value: strconv.ParseBool: parsing {text:?}: invalid syntax"
            ))
        })?,
    };
    let view = face.host.feed().view();
    let local = face.host.local();
    let datacenter = Datacenter::of(&query, local, &view)?;
    let resolved = resolve(&view, name)?;
    let mut wanted = resolved.wanted.into_owned();
    wanted.connect |= connect;
    let everywhere = Near::here(&*face.host);
    let distance = |info: &_| everywhere.distance(info);
    let mut found = queries::find(&view, &wanted, datacenter.name(), &local.datacenter, distance);
    found.instances.shuffle(&mut rand::rng());
    let near = query.first("near").filter(|near| !near.is_empty()).unwrap_or(&wanted.near);
    let is_here = match near {
        "_agent" => true,
        "_ip" => ends.is_some_and(|ends| {
            let ip = ends.peer.ip().to_canonical();
            ip.is_loopback() || local.address.parse() == Ok(ip)
        }),
        name => name.eq_ignore_ascii_case(&local.name),
    };
    if is_here {
        found.instances.sort_by_key(|instance| everywhere.distance(&instance.node));
    }
    if let Ok(limit) = usize::try_from(limit)
        && limit > 0
    {
        found.instances.truncate(limit);
    }
    let nodes = found.instances.iter().map(|instance| ServiceEntry::with_nulls(instance));
    let body = Executed {
        service: &wanted.service,
        nodes: nodes.collect(),
        dns: &resolved.entry.query.dns,
        datacenter: found.datacenter,
        failovers: found.failovers,
        freshness: Freshness::of(options.consistency.as_str()),
    };
    Ok(answer(&query, &options, &body))
}

fn explain(face: &Face, uri: &Uri, name: &str) -> Result<Response, Fault> {
    let query = Query::of(uri);
    query.refuse_tenancy()?;
    let options = Options::of(&query)?;
    let view = face.host.feed().view();
    Datacenter::of(&query, face.host.local(), &view)?;
    let resolved = resolve(&view, name)?;
    let body = Explained {
        query: Shown::of(resolved.entry, &resolved.wanted),
        freshness: Freshness::of(options.consistency.as_str()),
    };
    Ok(answer(&query, &options, &body))
}

fn resolve<'v>(view: &'v View, name: &str) -> Result<Resolved<'v>, Fault> {
    let id = uuid(name);
    match view.queries().resolve(id.as_deref().unwrap_or(name)) {
        Ok(Some(resolved)) => Ok(resolved),
        Ok(None) => Err(Fault::not_found("Query not found")),
        Err(error) => Err(index::leaderless(error.to_string())),
    }
}

/// Nobody waits for what a query finds: the index is the least there is.
fn answer(query: &Query, options: &Options, body: &impl serde::Serialize) -> Response {
    let mut response = json(query, body).into_response();
    index::head(response.headers_mut(), options, 1);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Status;
    use crate::catalog::model::key_of;
    use crate::catalog::queries::{Template, Wanted};
    use crate::http::support::{Bench, me, node, one_service, service, ttl_check};

    const WEB: &str = "11111111-0000-0000-0000-000000000001";
    const GEO: &str = "11111111-0000-0000-0000-000000000002";

    /// `web` three times on this node (well, warning, critical) and once in dc2; two queries.
    fn bench() -> Bench {
        let mut rows = one_service();
        let key = key_of(me());
        rows.service(
            &key,
            &crate::catalog::Service {
                tags: vec!["v1".into()],
                meta: [("version".into(), "2".into())].into(),
                ..service("web-2", "web")
            },
        );
        rows.check(&key, &ttl_check("w2", "web-2", Status::Warning));
        rows.service(&key, &service("web-3", "web"));
        rows.check(&key, &ttl_check("w3", "web-3", Status::Critical));
        let far = format!("{}/far", me());
        let at = crate::catalog::Node { datacenter: "dc2".into(), ..node("far", "10.0.0.9") };
        rows.node(&far, &at);
        rows.service(&far, &service("web-9", "web"));
        rows.service(&far, &service("db-9", "db"));
        rows.query(WEB, &query("web-q", "web", |wanted| wanted.only_passing = true));
        let geo = query("geo-", "${name.suffix}", |wanted| {
            wanted.failover.datacenters = Some(vec!["dc3".into(), "DC2".into()]);
        });
        let template = Template { kind: "name_prefix_match".into(), ..Template::default() };
        rows.query(GEO, &PreparedQuery { template, ..geo });
        Bench::new(me(), "n1", rows)
    }

    fn query(name: &str, service: &str, change: impl FnOnce(&mut Wanted)) -> PreparedQuery {
        let mut wanted = Wanted { service: service.to_owned(), ..Wanted::default() };
        change(&mut wanted);
        PreparedQuery { name: name.to_owned(), service: wanted, ..PreparedQuery::default() }
    }

    async fn found(bench: &Bench, path: &str) -> (Vec<String>, String, u64) {
        let reply = bench.get(&format!("/v1/query/{path}")).await;
        assert_eq!((reply.status.as_u16(), reply.index()), (200, 1), "{}", reply.text);
        let json = reply.json();
        let nodes = json["Nodes"].as_array().unwrap().iter();
        let mut ids: Vec<_> =
            nodes.map(|node| node["Service"]["ID"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        let datacenter = json["Datacenter"].as_str().unwrap().to_owned();
        (ids, datacenter, json["Failovers"].as_u64().unwrap())
    }

    #[tokio::test]
    async fn a_query_is_shown_as_consul_shows_it() {
        let bench = bench();
        let reply = bench.get(&format!("/v1/query/{WEB}")).await;
        assert_eq!(
            reply.text,
            format!(
                r#"[{{"ID":"{WEB}","Name":"web-q","Session":"","Token":"","Template":{{"Type":"","Regexp":"","RemoveEmptyTags":false}},"Service":{{"Service":"web","Failover":{{"NearestN":0,"Datacenters":null}},"OnlyPassing":true,"IgnoreCheckIDs":null,"Near":"","Tags":null,"NodeMeta":null,"ServiceMeta":null,"Connect":false}},"DNS":{{"TTL":""}},"CreateIndex":1001,"ModifyIndex":1001}}]"#
            )
        );
        assert_eq!(reply.header("x-consul-effective-consistency"), "leader");
        let all = bench.get("/v1/query").await.json();
        assert_eq!((&all[0]["Name"], &all[1]["ID"]), (&"web-q".into(), &GEO.into()));
        let shown = bench.get("/v1/query/geo-Db/explain").await.json();
        assert_eq!(shown["Query"]["Service"]["Service"], "Db");
        assert_eq!(
            (&shown["KnownLeader"], &shown["ConsistencyLevel"]),
            (&true.into(), &"leader".into())
        );
        for (path, status, text) in [
            ("web-q", 500, NO_ID),
            ("", 500, NO_ID),
            ("00000000-0000-0000-0000-000000000000", 404, "Query not found"),
            ("nosuch/explain", 404, "Query not found"),
            ("execute", 404, "Query not found"),
            (
                &format!("{GEO}/execute"),
                500,
                "prepared query templates can only be resolved up by name, not by ID",
            ),
        ] {
            let reply = bench.get(&format!("/v1/query/{path}")).await;
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (status, text), "{path}");
        }
    }

    #[tokio::test]
    async fn a_query_finds_what_is_well_and_falls_back_on_other_datacenters() {
        let bench = bench();
        let own =
            |ids: &[&str]| (ids.iter().map(|id| (*id).to_owned()).collect(), "dc1".to_owned(), 0);
        assert_eq!(found(&bench, "WEB-q/execute").await, own(&["web-1"]));
        assert_eq!(
            found(&bench, &format!("{}/execute", WEB.to_uppercase())).await,
            own(&["web-1"])
        );
        assert_eq!(found(&bench, "geo-web/execute").await, own(&["web-1", "web-2"]));
        assert_eq!(found(&bench, "geo-web/execute?limit=1&near=_agent").await.0.len(), 1);
        assert_eq!(found(&bench, "geo-web/execute?limit=-1").await.0.len(), 2);
        assert_eq!(found(&bench, "geo-web/execute?connect=true").await, (vec![], "dc1".into(), 1));
        assert_eq!(found(&bench, "geo-db/execute").await, (vec!["db-9".into()], "dc2".into(), 1));
        assert_eq!(found(&bench, "web-q/execute?dc=dc2").await.0, ["web-9"]);
        for (change, ids) in [
            ((|wanted| wanted.tags = Some(vec!["V1".into()])) as fn(&mut Wanted), &["web-2"][..]),
            (|wanted| wanted.tags = Some(vec!["!v1".into()]), &["web-1"]),
            (
                |wanted| wanted.service_meta = Some([("version".into(), "2".into())].into()),
                &["web-2"],
            ),
            (|wanted| wanted.node_meta = Some([("no".into(), "x".into())].into()), &[]),
            (
                |wanted| wanted.ignore_check_ids = Some(vec!["w3".into()]),
                &["web-1", "web-2", "web-3"],
            ),
            (|wanted| wanted.connect = true, &[]),
        ] {
            bench.change(|rows| rows.query(WEB, &query("web-q", "web", change)));
            assert_eq!(found(&bench, "web-q/execute").await, own(ids));
        }
        let nearest = query("web-q", "db", |wanted| wanted.failover.nearest_n = 1);
        bench.change(|rows| rows.query(WEB, &nearest));
        assert_eq!(found(&bench, "web-q/execute").await.1, "dc2");
    }

    #[tokio::test]
    async fn lists_that_are_empty_are_null_in_what_a_query_finds() {
        let bench = bench();
        let json = bench.get("/v1/query/web-q/execute").await.json();
        let entry = &json["Nodes"][0];
        assert!(entry["Service"]["Tags"].is_null() && entry["Checks"][0]["ServiceTags"].is_null());
        assert_eq!((&json["Service"], &json["DNS"]["TTL"]), (&"web".into(), &"".into()));
    }

    #[tokio::test]
    async fn a_query_is_stored_replaced_and_removed() {
        let bench = bench();
        let body = r#"{"name":"b","token":"secret","service":{"service":"web","tags":["a"],
            "failover":{"datacenters":["dc2"],"NearestN":2}},"dns":{"ttl":"1m"},"Newer":1}"#;
        let reply = bench.ask("POST", "/v1/query", body).await;
        let id = reply.json()["ID"].as_str().unwrap().to_owned();
        let mut stored = query("b", "web", |wanted| {
            wanted.tags = Some(vec!["a".into()]);
            wanted.failover.nearest_n = 2;
            wanted.failover.datacenters = Some(vec!["dc2".into()]);
        });
        stored.dns.ttl = "1m".to_owned();
        let edit = CatalogEdit::PutQuery { id, query: stored };
        assert_eq!(bench.last_command(), Some(Command::Edit(vec![edit])));
        let path = format!("/v1/query/{WEB}");
        let reply = bench.put(&path, r#"{"Name":"web-q","Service":{"Service":"x"}}"#).await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, ""));
        let edit = CatalogEdit::PutQuery { id: WEB.into(), query: query("web-q", "x", |_| {}) };
        assert_eq!(bench.last_command(), Some(Command::Edit(vec![edit])));
        assert_eq!(bench.ask("DELETE", &path, "").await.status, 200);
        let edit = CatalogEdit::RemoveQuery { id: WEB.into() };
        assert_eq!(bench.last_command(), Some(Command::Edit(vec![edit])));
    }

    #[tokio::test]
    async fn what_is_no_query_is_refused_and_changes_nothing() {
        let bench = bench();
        for (body, status, text) in [
            ("", 400, "Request decode failed: EOF"),
            ("{}", 500, "Invalid prepared query: Must be bound to a session"),
            (
                r#"{"Name":"a"}"#,
                500,
                "Invalid prepared query: Must provide a Service name to query",
            ),
            (
                r#"{"Name":"WEB-q","Service":{"Service":"w"}}"#,
                500,
                "name 'WEB-q' aliases an existing query name",
            ),
            (
                r#"{"Name":"geo-","Service":{"Service":"w"}}"#,
                500,
                "name 'geo-' aliases an existing query name",
            ),
            (
                r#"{"ID":"x","Name":"b","Service":{"Service":"w"}}"#,
                500,
                "ID must be empty when creating a new prepared query",
            ),
            (
                r#"{"Name":"b","Service":{"Service":"w"},"DNS":{"TTL":"bad"}}"#,
                500,
                "Invalid prepared query: Bad DNS TTL 'bad': time: invalid duration \"bad\"",
            ),
            (
                r#"{"Name":"b","Service":{"Service":"w"},"DNS":{"TTL":"-2s"}}"#,
                500,
                "Invalid prepared query: DNS TTL '-2000000000', must be >=0",
            ),
            (
                r#"{"Name":"b","Service":{"Service":"w","Failover":{"NearestN":-1}}}"#,
                500,
                "Invalid prepared query: Bad NearestN '-1', must be >= 0",
            ),
            (
                r#"{"Name":"b","Service":{"Service":"${x}"},"Template":{"Type":"name_prefix_match"}}"#,
                500,
                "failed compiling template: Bad evaluation for '${x}' in Service.Service: unknown variable accessed: x",
            ),
        ] {
            let reply = bench.ask("POST", "/v1/query", body).await;
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (status, text), "{body}");
        }
        let bound = r#"{"Name":"b","Service":{"Service":"w"},"Session":"s"}"#;
        assert_eq!(bench.ask("POST", "/v1/query", bound).await.status, 501);
        let good = r#"{"Name":"b","Service":{"Service":"w"}}"#;
        let gone = "/v1/query/00000000-0000-0000-0000-000000000000";
        for (method, path, status) in [
            ("PUT", gone, 500),
            ("DELETE", gone, 500),
            ("PUT", "/v1/query/bogus", 500),
            ("DELETE", "/v1/query/bogus", 500),
            ("POST", "/v1/query?dc=nope", 500),
            ("PUT", "/v1/query", 405),
            ("POST", gone, 405),
            ("PUT", "/v1/query/web-q/execute", 405),
            ("DELETE", "/v1/query/web-q/explain", 405),
        ] {
            assert_eq!(bench.ask(method, path, good).await.status, status, "{method} {path}");
        }
        for (path, text) in [
            ("limit=x", "Bad limit: strconv.Atoi: parsing \"x\": invalid syntax"),
            (
                "connect=x",
                "Error parsing 'connect' value: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            ("dc=nope", "No path to datacenter"),
        ] {
            let reply = bench.get(&format!("/v1/query/web-q/execute?{path}")).await;
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (500, text));
        }
        assert!(bench.last_command().is_none());
    }
}
