//! For tests: catalogs made of rows, a node that only remembers what it was told, requests that
//! need no socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::freshness::Freshness;
use super::guard::Guard;
use super::{Demand, Face, Host, Reports, Upstream, routes};
use crate::catalog::events::Event;
use crate::catalog::model::{Check, Node, Service, key_of, lower};
use crate::catalog::queries::PreparedQuery;
use crate::catalog::rows::{
    CHECKS, EVENTS, EXTERNAL_CHECKS, EXTERNAL_NODES, EXTERNAL_SERVICES, KEYS, NODES, QUERIES,
    SERVICES, check_row, event_row, external_check_row, external_node_row, key_row, node_row,
    query_row, service_row,
};
use crate::catalog::{Command, Status, View};
use crate::crdt::{Commit, RowEvent, RowEvents, TableEvents, TableInfo};
use crate::health::ReportError;
use crate::live::Feed;
use crate::node::handle::{MemberState, MemberStatus};
use crate::node::{Local, Relation, Standing, SubmitError};
use crate::types::{Hlc, NodeId, Seq, Value};

/// The catalog's rows at one moment: table and key to the row.
#[derive(Clone, Default)]
pub struct Rows(BTreeMap<Place, Row>);

type Place = (&'static str, Vec<Value>);
type Row = Vec<(&'static str, Value)>;

impl Rows {
    pub fn node(&mut self, key: &str, node: &Node) {
        self.put(NODES, 1, node_row(key, node));
    }

    pub fn service(&mut self, node: &str, service: &Service) {
        self.put(SERVICES, 2, service_row(node, service));
    }

    pub fn check(&mut self, node: &str, check: &Check) {
        self.put(CHECKS, 2, check_row(node, check));
    }

    pub fn external_node(&mut self, node: &Node) {
        self.put(EXTERNAL_NODES, 1, external_node_row(&lower(&node.name), node));
    }

    pub fn external_service(&mut self, node: &str, service: &Service) {
        self.put(EXTERNAL_SERVICES, 2, service_row(&lower(node), service));
    }

    pub fn external_check(&mut self, node: &str, check: &Check) {
        self.put(EXTERNAL_CHECKS, 2, external_check_row(&lower(node), check));
    }

    pub fn key(&mut self, key: &str, value: &[u8], flags: u64) {
        self.put(KEYS, 1, key_row(key, value, flags));
    }

    pub fn query(&mut self, id: &str, query: &PreparedQuery) {
        self.put(QUERIES, 1, query_row(id, query));
    }

    pub fn event(&mut self, place: &str, event: &Event) {
        self.put(EVENTS, 1, event_row(place, event));
    }

    fn put(&mut self, table: &'static str, keys: usize, row: Row) {
        let key = row[..keys].iter().map(|(_, value)| value.clone()).collect();
        self.0.insert((table, key), row);
    }

    /// Returns the commit that leads from `before` to these rows.
    pub fn commit_from(&self, before: &Self, seq: u64) -> Commit {
        let mut rows: BTreeMap<&'static str, Vec<RowEvent>> = BTreeMap::new();
        for ((table, key), row) in &self.0 {
            let old = before.0.get(&(*table, key.clone()));
            if old != Some(row) {
                let values = row.iter().map(|(_, value)| value.clone()).collect();
                rows.entry(table).or_default().push(RowEvent {
                    key: key.clone(),
                    existed: old.is_some(),
                    row: Some(values),
                });
            }
        }
        for (table, key) in before.0.keys().filter(|place| !self.0.contains_key(*place)) {
            let gone = RowEvent { key: key.clone(), existed: true, row: None };
            rows.entry(table).or_default().push(gone);
        }
        let shape = |table: &str| {
            let (place, row) = self
                .0
                .iter()
                .chain(&before.0)
                .find(|((name, _), _)| *name == table)
                .expect("the table has a row before or after");
            TableInfo {
                name: table.into(),
                columns: row.iter().map(|(column, _)| (*column).into()).collect(),
                key: (0..place.1.len()).collect(),
            }
        };
        Commit {
            seq: Seq(seq),
            at: Hlc(1_000 + seq),
            tables: rows
                .into_iter()
                .map(|(table, rows)| TableEvents {
                    table: Arc::new(shape(table)),
                    rows: RowEvents::Each(rows),
                })
                .collect(),
            changeset: None,
            heads: Vec::new(),
        }
    }
}

/// The id of the node that most tests run as.
pub fn me() -> NodeId {
    "11111111-1111-1111-1111-111111111111".parse().expect("it is a UUID")
}

/// A catalog of one node `n1` with an instance `web-1` that has a TTL check.
pub fn one_service() -> Rows {
    let mut rows = Rows::default();
    let key = key_of(me());
    rows.node(&key, &node("n1", "127.0.0.1"));
    rows.service(&key, &service("web-1", "web"));
    rows.check(&key, &ttl_check("web-1-ttl", "web-1", Status::Passing));
    rows
}

pub fn node(name: &str, address: &str) -> Node {
    Node {
        name: name.to_owned(),
        address: address.to_owned(),
        datacenter: "dc1".to_owned(),
        ..Node::default()
    }
}

pub fn service(id: &str, name: &str) -> Service {
    Service { id: id.to_owned(), name: name.to_owned(), port: 8080, ..Service::default() }
}

pub fn ttl_check(id: &str, service_id: &str, status: Status) -> Check {
    Check {
        id: id.to_owned(),
        name: id.to_owned(),
        status,
        service_id: service_id.to_owned(),
        kind: "ttl".to_owned(),
        ..Check::default()
    }
}

/// A node that has a feed and remembers commands.
pub struct FakeHost {
    pub local: Local,
    pub feed: Arc<Feed>,
    pub commands: Mutex<Vec<Command>>,
    /// What the next commands meet.
    pub refusal: Mutex<Option<SubmitError>>,
    pub standing: Mutex<Standing>,
    /// Whom it was told to forget.
    pub forgotten: Mutex<Vec<NodeId>>,
    /// Whom it was told to join by.
    pub joined: Mutex<Vec<SocketAddr>>,
    /// The other members, and how far away they are.
    pub round_trips: Mutex<Vec<(NodeId, Duration)>>,
    /// Reports as they came in; only TTL checks named here take any.
    pub reports: Mutex<Vec<(String, Status, String)>>,
    /// The checks that were registered.
    pub registered: Mutex<Vec<String>>,
    pub ttl_checks: Vec<&'static str>,
    pub outputs: BTreeMap<&'static str, &'static str>,
}

impl Host for FakeHost {
    fn local(&self) -> &Local {
        &self.local
    }

    fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    fn members(&self) -> Vec<MemberStatus> {
        let member = |id, round_trip| MemberStatus {
            id,
            gossip: self.local.gossip,
            state: MemberState::Alive,
            round_trip,
            versions_behind: 0,
            is_unequal: false,
            relation: Relation::default(),
        };
        let others = self.round_trips.lock().unwrap();
        let others = others.iter().map(|(id, round_trip)| member(*id, Some(*round_trip)));
        std::iter::once(member(self.local.id, None)).chain(others).collect()
    }

    fn standing(&self) -> Standing {
        self.standing.lock().unwrap().clone()
    }

    fn submit(&self, command: Command) -> BoxFuture<'_, Result<(), SubmitError>> {
        self.commands.lock().unwrap().push(command);
        let refusal = self.refusal.lock().unwrap().clone();
        Box::pin(std::future::ready(refusal.map_or(Ok(()), Err)))
    }

    fn forget(&self, node: NodeId) -> BoxFuture<'_, Result<(), SubmitError>> {
        self.forgotten.lock().unwrap().push(node);
        let refusal = self.refusal.lock().unwrap().clone();
        Box::pin(std::future::ready(refusal.map_or(Ok(()), Err)))
    }

    fn join(&self, targets: Vec<SocketAddr>) -> BoxFuture<'_, Result<(), SubmitError>> {
        self.joined.lock().unwrap().extend(targets);
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Reports for FakeHost {
    fn report(
        &self,
        check_id: String,
        status: Status,
        output: String,
    ) -> BoxFuture<'_, Result<(), ReportError>> {
        let result = if self.ttl_checks.contains(&check_id.as_str()) {
            self.reports.lock().unwrap().push((check_id, status, output));
            Ok(())
        } else {
            Err(ReportError::NotTtl(check_id))
        };
        Box::pin(std::future::ready(result))
    }

    fn registered(&self, check_ids: Vec<String>) -> BoxFuture<'_, ()> {
        self.registered.lock().unwrap().extend(check_ids);
        Box::pin(std::future::ready(()))
    }

    fn output(&self, check_id: &str) -> Option<String> {
        self.outputs.get(check_id).map(|output| (*output).to_owned())
    }
}

/// A whole face over a catalog, without a socket.
#[derive(Clone)]
pub struct Bench {
    pub router: Router,
    pub host: Arc<FakeHost>,
    pub face: Arc<Face>,
    /// What was asked of the process, until somebody takes it.
    pub demands: Arc<Mutex<Option<mpsc::Receiver<Demand>>>>,
    rows: Arc<Mutex<(Rows, u64)>>,
}

impl Bench {
    pub fn new(me: NodeId, name: &str, rows: Rows) -> Self {
        Self::with_upstream(me, name, rows, None)
    }

    pub fn with_upstream(me: NodeId, name: &str, rows: Rows, upstream: Option<Upstream>) -> Self {
        let (view, _) = View::new(me).fold(&rows.commit_from(&Rows::default(), 1));
        let host = Arc::new(FakeHost {
            local: Local {
                id: me,
                name: name.to_owned(),
                datacenter: "dc1".to_owned(),
                address: "127.0.0.1".to_owned(),
                gossip: "127.0.0.1:7401".parse().unwrap(),
            },
            feed: Arc::new(Feed::new(view)),
            commands: Mutex::default(),
            refusal: Mutex::default(),
            standing: Mutex::default(),
            forgotten: Mutex::default(),
            joined: Mutex::default(),
            round_trips: Mutex::default(),
            reports: Mutex::default(),
            registered: Mutex::default(),
            ttl_checks: vec!["web-1-ttl"],
            outputs: BTreeMap::from([("web-1-ttl", "all good")]),
        });
        let (sender, demands) = mpsc::channel(1);
        let face = Arc::new(Face {
            host: Arc::clone(&host) as Arc<dyn Host>,
            reports: Arc::clone(&host) as Arc<dyn Reports>,
            metrics: Arc::default(),
            stats: Arc::default(),
            stopping: CancellationToken::new(),
            script_checks: false,
            upstream,
            demands: sender,
        });
        let guard = Guard { stats: Arc::clone(&face.stats), hosts: Arc::new([]) };
        let fresh = Freshness {
            host: Arc::clone(&face.host),
            stats: Arc::clone(&face.stats),
            stopping: face.stopping.clone(),
        };
        let router = routes::router(Arc::clone(&face), Router::new(), (guard, fresh));
        Self {
            router,
            host,
            face,
            demands: Arc::new(Mutex::new(Some(demands))),
            rows: Arc::new(Mutex::new((rows, 1))),
        }
    }

    /// Changes the catalog by one commit.
    pub fn change(&self, edit: impl FnOnce(&mut Rows)) {
        let mut held = self.rows.lock().unwrap();
        let before = held.0.clone();
        edit(&mut held.0);
        held.1 += 1;
        let commit = held.0.commit_from(&before, held.1);
        self.host.feed.publish(&Arc::new(commit));
    }

    /// Waits until a blocking query waits.
    pub async fn until_somebody_waits(&self) {
        while self.face.stats.waiting.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "").await
    }

    pub async fn put(&self, path: &str, body: &str) -> Reply {
        self.ask("PUT", path, body).await
    }

    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::from(body.to_owned()))
            .expect("tests ask for paths that are some");
        let response = self.router.clone().oneshot(request).await.expect("it never fails");
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.expect("bodies are in memory").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("bodies are text");
        Reply { status: head.status, headers: head.headers, text }
    }

    pub fn last_command(&self) -> Option<Command> {
        self.host.commands.lock().unwrap().last().cloned()
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn index(&self) -> u64 {
        self.header("x-consul-index").parse().unwrap()
    }
}
