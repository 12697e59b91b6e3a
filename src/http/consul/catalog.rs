//! `/v1/catalog/…`: nodes and services, whatever their health.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use tokio::time::Instant;

use super::dto::answers::{CatalogService, Node, NodeService, NodeServiceList, NodeServices};
use super::filter::Shape;
use super::index;
use super::query::{Datacenter, Query};
use super::reading::{Asked, Reading, Tail, json, text_of};
use super::ready::{OfService, Slot};
use crate::catalog::model::lower;
use crate::catalog::{NodeKey, Topic, View};
use crate::http::Face;
use crate::http::error::Fault;
use crate::http::stats::Gauged;

/// The index of what is not there.
const NOWHERE: u64 = 1;

/// `GET /v1/catalog/datacenters`: this node's own first.
pub async fn datacenters(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let view = face.host.feed().view();
    Ok(json(&Query::of(&uri), &datacenters_in(&view, &face.host.local().datacenter)))
}

fn datacenters_in<'a>(view: &'a View, own: &'a str) -> Vec<&'a str> {
    let all: BTreeSet<_> = view.nodes().map(|entry| entry.info.node.datacenter.as_str()).collect();
    let others = all.into_iter().filter(|name| !name.is_empty() && *name != own);
    std::iter::once(own).chain(others).collect()
}

/// `GET /v1/catalog/nodes`.
pub async fn nodes(
    State(face): State<Arc<Face>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let reading = Reading::begin(&face, &uri, &Shape::NODE, |_| Topic::Nodes).await?;
    let nodes = || -> Vec<_> {
        let nodes = reading.nodes().into_iter().map(|entry| Node::of(&entry.info));
        nodes.filter(|node| reading.keeps(node)).collect()
    };
    if reading.is_common() {
        let kept: Arc<Slot> = reading.view.nodes_memo().get_or_default();
        return Ok(reading.answer_kept(&kept.get(nodes), &headers));
    }
    Ok(reading.answer(&nodes()))
}

/// `GET /v1/catalog/services`: names with all tags that any instance has, sorted: clients must
/// compare them as sets, and those that do not are spared a reload.
pub async fn services(
    State(face): State<Arc<Face>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let reading = Reading::begin(&face, &uri, &Shape::CATALOG_SERVICE, |_| Topic::Services).await?;
    if reading.is_common() {
        let kept: Arc<Slot> = reading.view.services_memo().get_or_default();
        return Ok(reading.answer_kept(&kept.get(|| services_in(&reading)), &headers));
    }
    Ok(reading.answer(&services_in(&reading)))
}

fn services_in(reading: &Reading) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut services = BTreeMap::new();
    for entry in reading.view.services() {
        let wanted = entry.instances.iter().filter(|instance| reading.wants(&instance.node));
        let mut wanted =
            wanted.filter(|instance| reading.keeps(&CatalogService::of(instance))).peekable();
        if wanted.peek().is_some() {
            let tags = wanted.flat_map(|instance| instance.service.tags.iter().map(String::as_str));
            services.insert(&*entry.name, tags.collect());
        }
    }
    services
}

/// `GET /v1/catalog/service/:service`.
pub async fn service(
    State(face): State<Arc<Face>>,
    uri: Uri,
    headers: HeaderMap,
    tail: Tail,
) -> Result<Response, Fault> {
    let asked = Asked::of(&uri, &Shape::CATALOG_SERVICE)?;
    let name = named(tail, "Missing service name")?;
    let topic = Topic::Instances(lower(&name).into());
    let reading = asked.read(&face, |_| topic.clone()).await?;
    let instances = || -> Vec<_> {
        let instances = reading.instances(&name).into_iter();
        let instances = instances.map(|instance| CatalogService::of(instance));
        instances.filter(|instance| reading.keeps(instance)).collect()
    };
    if let Some(entry) = reading.view.service(&name).filter(|_| reading.is_common()) {
        let kept: Arc<OfService> = entry.memo.get_or_default();
        return Ok(reading.answer_kept(&kept.catalog.get(instances), &headers));
    }
    Ok(reading.answer(&instances()))
}

/// `GET /v1/catalog/connect/:service` and its like: there is no mesh, so nothing is capable of it.
pub async fn connect(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
) -> Result<Response, Fault> {
    let asked = Asked::of(&uri, &Shape::CATALOG_SERVICE)?;
    named(tail, "Missing service name")?;
    let reading = asked.read(&face, |_| Topic::Services).await?;
    Ok(reading.answer(&[(); 0]))
}

/// `GET /v1/catalog/node/:node`, by name or id.
pub async fn node(State(face): State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    let (reading, name) = begin_node(&face, &uri, tail).await?;
    let found = reading.node(&name).map(|entry| NodeServices {
        node: Node::of(&entry.info),
        services: entry
            .instances()
            .map(|instance| (instance.service.id.as_str(), NodeService::of(instance)))
            .filter(|(_, service)| reading.keeps(service))
            .collect(),
    });
    Ok(reading.answer(&found))
}

/// `GET /v1/catalog/node-services/:node`, by name or id.
pub async fn node_services(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
) -> Result<Response, Fault> {
    let (reading, name) = begin_node(&face, &uri, tail).await?;
    let found = reading.node(&name);
    Ok(reading.answer(&NodeServiceList {
        node: found.map(|entry| Node::of(&entry.info)),
        services: found.map(|entry| {
            let services = entry.instances().map(|instance| NodeService::of(instance));
            services.filter(|service| reading.keeps(service)).collect()
        }),
    }))
}

/// A node that is not there has the index 1; whoever sends that back waits for it to come.
async fn begin_node(face: &Face, uri: &Uri, tail: Tail) -> Result<(Reading, String), Fault> {
    let asked = Asked::of(uri, &Shape::NODE_SERVICE)?;
    let name = named(tail, "Missing node name")?;
    let view = face.host.feed().view();
    Datacenter::of(&asked.query, face.host.local(), &view)?;
    let waiting = Gauged::new(&face.stats.waiting);
    let view = if asked.options.index == NOWHERE {
        wait_for_node(face, &asked, &name).await
    } else if let Some(entry) = view.node(&name) {
        let topic = Topic::Node(NodeKey::clone(&entry.info.key));
        index::wait(face.host.feed(), &face.stopping, &asked.options, |_| topic.clone()).await
    } else {
        view
    };
    drop(waiting);
    let index = match view.node(&name) {
        Some(entry) => view.index(&Topic::Node(NodeKey::clone(&entry.info.key))),
        None => NOWHERE,
    };
    Ok((Reading::of(asked, face.host.as_ref(), view, index)?, name))
}

/// Waits until a node of this name is there, or the client's time is over.
async fn wait_for_node(face: &Face, asked: &Asked, name: &str) -> Arc<View> {
    let feed = face.host.feed();
    let deadline = Instant::now() + asked.options.wait + index::jitter(asked.options.wait);
    loop {
        let view = feed.view();
        let is_over = Instant::now() >= deadline || face.stopping.is_cancelled();
        if view.node(name).is_some() || is_over {
            return view;
        }
        let seen = view.index(&Topic::Nodes);
        tokio::select! {
            _ = feed.wait(&Topic::Nodes, seen, deadline) => {}
            () = face.stopping.cancelled() => {}
        }
    }
}

/// Returns the name at the end of a path, or the complaint that there is none.
pub fn named(tail: Tail, complaint: &'static str) -> Result<String, Fault> {
    let name = text_of(tail);
    if name.is_empty() { Err(Fault::bad_request(complaint)) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use crate::catalog::model::key_of;
    use crate::http::support::{Bench, Rows, me, node as host, one_service, service as web};

    fn bench() -> Bench {
        Bench::new(me(), "n1", one_service())
    }

    /// A second datacenter, and a node of this one with other meta.
    fn wide() -> Bench {
        let mut rows = one_service();
        let other = "22222222-2222-2222-2222-222222222222";
        let mut far = host("far", "10.0.0.9");
        far.datacenter = "dc2".to_owned();
        rows.node(other, &far);
        rows.service(other, &web("web-9", "web"));
        let third = format!("{}/printer", me());
        let mut near = host("printer", "10.0.0.3");
        near.meta.insert("rack".to_owned(), "r1".to_owned());
        rows.node(&third, &near);
        let mut tagged = web("web-3", "Web");
        tagged.tags = vec!["Blue".to_owned(), "new".to_owned()];
        rows.service(&third, &tagged);
        Bench::new(me(), "n1", rows)
    }

    #[tokio::test]
    async fn a_read_has_consuls_headers_and_an_index_that_is_never_zero() {
        let reply = bench().get("/v1/catalog/nodes?stale").await;
        assert_eq!(reply.status, 200);
        assert!(reply.index() >= 1);
        assert_eq!(reply.header("x-consul-knownleader"), "true");
        assert_eq!(reply.header("x-consul-lastcontact"), "0");
        assert_eq!(reply.header("x-consul-effective-consistency"), "stale");
        assert_eq!(reply.header("content-type"), "application/json");
        assert_eq!(reply.header("vary"), "Accept-Encoding");
        let empty = Bench::new(me(), "n1", Rows::default());
        assert_eq!(empty.get("/v1/catalog/services").await.text, "{}");
        assert_eq!(empty.get("/v1/catalog/services").await.index(), 1);
    }

    #[tokio::test]
    async fn an_answer_stays_in_the_datacenter_that_was_asked_for() {
        let bench = wide();
        let ids = |text: &str| {
            let all: serde_json::Value = serde_json::from_str(text).unwrap();
            let ids = all.as_array().unwrap().iter();
            ids.map(|one| one["ServiceID"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let here = bench.get("/v1/catalog/service/WEB").await;
        assert_eq!(ids(&here.text), ["web-1", "web-3"]);
        let there = bench.get("/v1/catalog/service/web?dc=dc2").await;
        assert_eq!(ids(&there.text), ["web-9"]);
        assert_eq!(bench.get("/v1/catalog/node/far").await.text, "null");
        assert_eq!(bench.get("/v1/catalog/datacenters").await.text, r#"["dc1","dc2"]"#);
        let nowhere = bench.get("/v1/catalog/nodes?dc=dc9").await;
        assert_eq!(
            (nowhere.status.as_u16(), nowhere.text.as_str()),
            (500, "No path to datacenter")
        );
        assert_eq!(nowhere.header("x-consul-knownleader"), "false");
    }

    #[tokio::test]
    async fn tags_and_node_meta_must_all_match() {
        let bench = wide();
        for (query, found) in [
            ("tag=blue", 1),
            ("tag=BLUE&tag=NEW", 1),
            ("tag=blue&tag=old", 0),
            ("node-meta=rack:r1", 1),
            ("node-meta=rack", 0),
            ("node-meta=rack:r1&node-meta=x:y", 0),
            ("near=_agent&recurse&peer=", 2),
        ] {
            let reply = bench.get(&format!("/v1/catalog/service/web?{query}")).await;
            assert_eq!(reply.json().as_array().unwrap().len(), found, "{query}");
        }
        let services = bench.get("/v1/catalog/services?node-meta=rack:r1").await;
        assert_eq!(services.text, r#"{"web":["Blue","new"]}"#);
    }

    #[tokio::test]
    async fn near_this_node_its_own_instances_come_first() {
        let mut rows = Rows::default();
        rows.node(&key_of(me()), &host("zz", "127.0.0.1"));
        rows.service(&key_of(me()), &web("own", "web"));
        let other = "22222222-2222-2222-2222-222222222222";
        rows.node(other, &host("aa", "10.0.0.2"));
        rows.service(other, &web("other", "web"));
        let bench = Bench::new(me(), "zz", rows);
        for (query, first) in
            [("", "other"), ("?near=_agent", "own"), ("?near=ZZ", "own"), ("?near=x", "other")]
        {
            let reply = bench.get(&format!("/v1/catalog/service/web{query}")).await;
            assert_eq!(reply.json()[0]["ServiceID"], first, "{query}");
        }
    }

    #[tokio::test]
    async fn a_blocking_query_wakes_with_the_whole_new_answer() {
        let bench = bench();
        let index = bench.get("/v1/catalog/service/web").await.index();
        let waiting = {
            let bench = bench.clone();
            let path = format!("/v1/catalog/service/web?index={index}&wait=60s");
            tokio::spawn(async move { bench.get(&path).await })
        };
        bench.until_somebody_waits().await;
        bench.change(|rows| rows.service(&key_of(me()), &web("db-1", "db")));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished(), "another service is no news");
        bench.change(|rows| rows.service(&key_of(me()), &web("web-2", "web")));
        let reply = waiting.await.unwrap();
        assert_eq!(reply.json().as_array().unwrap().len(), 2);
        assert!(reply.index() > index);
    }

    #[tokio::test]
    async fn a_blocking_query_ends_with_the_same_answer_when_its_time_is_over() {
        let bench = bench();
        let before = bench.get("/v1/catalog/nodes").await;
        let path = format!("/v1/catalog/nodes?index={}&wait=1ms", before.index());
        let after = bench.get(&path).await;
        assert_eq!((after.text.as_str(), after.index()), (before.text.as_str(), before.index()));
    }

    #[tokio::test]
    async fn an_index_from_elsewhere_is_answered_at_once() {
        let ahead = bench().get("/v1/catalog/nodes?index=99999999999&wait=10m").await;
        assert_eq!(ahead.status, 200);
        assert!(ahead.index() < 99_999_999_999);
    }

    #[tokio::test]
    async fn nobody_is_kept_waiting_when_the_node_goes_down() {
        let bench = bench();
        let index = bench.get("/v1/catalog/nodes").await.index();
        let waiting = {
            let bench = bench.clone();
            tokio::spawn(
                async move { bench.get(&format!("/v1/catalog/nodes?index={index}")).await },
            )
        };
        bench.until_somebody_waits().await;
        bench.face.stopping.cancel();
        assert_eq!(waiting.await.unwrap().index(), index);
    }

    #[tokio::test]
    async fn who_waits_for_a_node_that_is_not_there_is_told_when_it_comes() {
        let bench = bench();
        let reply = bench.get("/v1/catalog/node/late").await;
        assert_eq!((reply.text.as_str(), reply.index()), ("null", 1));
        let waiting = {
            let bench = bench.clone();
            tokio::spawn(async move { bench.get("/v1/catalog/node/late?index=1&wait=60s").await })
        };
        bench.until_somebody_waits().await;
        bench.change(|rows| rows.node("x/early", &host("early", "10.0.0.4")));
        bench.change(|rows| rows.node("x/late", &host("Late", "10.0.0.5")));
        assert_eq!(waiting.await.unwrap().json()["Node"]["Address"], "10.0.0.5");
        let unknown = bench.get("/v1/catalog/node-services/nosuch").await;
        assert_eq!(unknown.text, r#"{"Node":null,"Services":null}"#);
    }

    #[tokio::test]
    async fn faults_come_in_consuls_words() {
        let bench = bench();
        for (path, status, text) in [
            ("/v1/catalog/service/", 400, "Missing service name"),
            ("/v1/catalog/node/", 400, "Missing node name"),
            ("/v1/catalog/nodes?wait=5", 400, "Invalid wait time"),
            ("/v1/catalog/nodes?index=-1", 400, "Invalid index"),
            (
                "/v1/catalog/nodes?stale&consistent",
                400,
                "Cannot specify ?stale with ?consistent, conflicting semantics.",
            ),
        ] {
            let reply = bench.get(path).await;
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (status, text), "{path}");
            assert_eq!(reply.header("content-type"), "text/plain; charset=utf-8");
        }
        assert_eq!(bench.get("/v1/catalog/nodes?ns=default").await.status, 400);
        assert_eq!(bench.get("/v1/catalog/services?filter=x").await.status, 500);
    }
}
