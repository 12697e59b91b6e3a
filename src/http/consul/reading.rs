//! One read of the catalog: what was asked, the view to answer from, and the answer's shape.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Path;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::filter::{Filter, Shape};
use super::index::{self, Options};
use super::query::{Datacenter, NodeMeta, Query, has_tags};
use super::ready::Ready;
use crate::catalog::view::NodeInfo;
use crate::catalog::{Instance, NodeEntry, Topic, View};
use crate::http::error::Fault;
use crate::http::stats::Gauged;
use crate::http::{Face, Host};
use crate::types::NodeId;

/// Parameters that change when an answer comes, not what it shows. `passing` does, and has an answer of
/// its own.
const COMMON: &[&str] = &["index", "wait", "stale", "consistent", "cached", "passing", "token"];

/// What follows the last slash of a path; nothing at all where the path ends there.
pub type Tail = Option<Path<String>>;

/// Returns the tail as text.
pub fn text_of(tail: Tail) -> String {
    tail.map(|Path(text)| text).unwrap_or_default()
}

/// A request's parameters, read and accepted.
pub struct Asked {
    pub query: Query,
    pub options: Options,
    filter: Option<Filter>,
    /// Whether the answer says how consistent it is.
    tells_consistency: bool,
}

impl Asked {
    /// Reads them, in Consul's order of complaints. A filter is of what the endpoint returns.
    pub fn of(uri: &Uri, shape: &Shape) -> Result<Self, Fault> {
        let query = Query::of(uri);
        query.refuse_tenancy()?;
        let options = Options::of(&query)?;
        let filter = query.filter(shape).map_err(|error| index::leaderless(error.to_string()))?;
        Ok(Self { query, options, filter, tells_consistency: true })
    }

    /// Reads what an endpoint is asked that filters nothing and says nothing of consistency.
    pub fn unfiltered(uri: &Uri) -> Result<Self, Fault> {
        let query = Query::of(uri);
        query.refuse_tenancy()?;
        let options = Options::of(&query)?;
        Ok(Self { query, options, filter: None, tells_consistency: false })
    }

    /// Reads what a list of prepared queries is asked: it filters nothing.
    pub fn of_queries(uri: &Uri) -> Result<Self, Fault> {
        Ok(Self { tells_consistency: true, ..Self::unfiltered(uri)? })
    }

    /// Waits as was asked for and takes the view that is true then.
    pub async fn read(
        self,
        face: &Face,
        topic_of: impl Fn(&View) -> Topic,
    ) -> Result<Reading, Fault> {
        let begun = Instant::now();
        // Before the wait: who asks for a datacenter that is none learns it at once.
        Datacenter::of(&self.query, face.host.local(), &face.host.feed().view())?;
        let waiting = Gauged::new(&face.stats.waiting);
        let view = index::wait(face.host.feed(), &face.stopping, &self.options, &topic_of).await;
        drop(waiting);
        if self.options.index == 0 {
            face.stats.latency.observe(begun.elapsed());
        }
        let index = view.index(&topic_of(&view));
        Reading::of(self, face.host.as_ref(), view, index)
    }
}

/// A view to answer from, and how.
pub struct Reading {
    pub view: Arc<View>,
    pub query: Query,
    options: Options,
    index: u64,
    datacenter: Datacenter,
    meta: NodeMeta,
    near: Option<Near>,
    filter: Option<Filter>,
    tells_consistency: bool,
}

impl Reading {
    /// Puts a reading together; the view is the one after any wait.
    pub fn of(asked: Asked, host: &dyn Host, view: Arc<View>, index: u64) -> Result<Self, Fault> {
        let Asked { query, options, filter, tells_consistency } = asked;
        Ok(Self {
            datacenter: Datacenter::of(&query, host.local(), &view)?,
            meta: NodeMeta::of(&query),
            near: Near::of(&query, host),
            filter,
            tells_consistency,
            view,
            query,
            options,
            index,
        })
    }

    /// Waits and reads what depends on one topic.
    pub async fn begin(
        face: &Face,
        uri: &Uri,
        shape: &Shape,
        topic_of: impl Fn(&View) -> Topic,
    ) -> Result<Self, Fault> {
        Asked::of(uri, shape)?.read(face, topic_of).await
    }

    /// Lists the nodes that were asked for, in Consul's order or, with `?near`, nearest first.
    pub fn nodes(&self) -> Vec<&Arc<NodeEntry>> {
        let mut nodes: Vec<_> = self.view.nodes().filter(|entry| self.wants(&entry.info)).collect();
        if let Some(near) = &self.near {
            nodes.sort_by_key(|entry| near.distance(&entry.info));
        }
        nodes
    }

    /// Finds a node by name or id, if it is in the datacenter that was asked for.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeEntry>> {
        self.view.node(name).filter(|entry| self.datacenter.holds(&entry.info))
    }

    /// Lists a service's instances that were asked for, in Consul's order or nearest first.
    pub fn instances(&self, service: &str) -> Vec<&Arc<Instance>> {
        let entry = self.view.service(service);
        let all = entry.into_iter().flat_map(|entry| &entry.instances);
        let mut instances: Vec<_> = all
            .filter(|instance| self.wants(&instance.node) && has_tags(&self.query, instance))
            .collect();
        if let Some(near) = &self.near {
            instances.sort_by_key(|instance| near.distance(&instance.node));
        }
        instances
    }

    /// Tells whether a node is among those that were asked for.
    pub fn wants(&self, info: &NodeInfo) -> bool {
        self.datacenter.holds(info) && self.meta.holds(info)
    }

    /// Tells whether `?filter` leaves an object in the answer.
    pub fn keeps(&self, object: &impl Serialize) -> bool {
        passes(self.filter.as_ref(), object)
    }

    /// Tells whether the answer is the one that most ask for, and may be a kept one: nothing that was
    /// asked changes what it shows.
    pub fn is_common(&self) -> bool {
        self.query.is_only(COMMON)
    }

    /// Answers with a body that is kept.
    pub fn answer_kept(&self, ready: &Ready, asked: &HeaderMap) -> Response {
        let mut response = ready.answer(asked);
        self.head(response.headers_mut());
        response
    }

    /// Answers with a body and all of the headers.
    pub fn answer(&self, body: &impl Serialize) -> Response {
        let mut response = json(&self.query, body);
        self.head(response.headers_mut());
        response
    }

    /// Answers that there is no such thing, with the headers by which to wait for it.
    pub fn miss(&self) -> Response {
        let mut response = Fault::not_found("").into_response();
        self.head(response.headers_mut());
        response
    }

    /// Adds the headers of an answer.
    pub fn head(&self, headers: &mut HeaderMap) {
        if self.tells_consistency {
            index::head(headers, &self.options, self.index);
        } else {
            index::head_plainly(headers, self.index);
        }
    }
}

/// `?near=_agent`, or this node's name: the only place from which distances are known.
pub struct Near {
    me: NodeId,
    round_trips: BTreeMap<NodeId, Duration>,
}

impl Near {
    fn of(query: &Query, host: &dyn Host) -> Option<Self> {
        let name = query.first("near")?;
        let local = host.local();
        if name != "_agent" && !name.eq_ignore_ascii_case(&local.name) {
            return None;
        }
        Some(Self::here(host))
    }

    /// Measures from this node.
    pub fn here(host: &dyn Host) -> Self {
        let local = host.local();
        let measured = host.members().into_iter();
        let round_trips = measured
            .filter_map(|member| member.round_trip.map(|round_trip| (member.id, round_trip)))
            .collect();
        Self { me: local.id, round_trips }
    }

    /// Nodes of unknown distance come last, in the order that they had.
    pub fn distance(&self, info: &NodeInfo) -> Duration {
        match info.member {
            Some(member) if member == self.me => Duration::ZERO,
            Some(member) => self.round_trips.get(&member).copied().unwrap_or(Duration::MAX),
            None => Duration::MAX,
        }
    }
}

/// Tells whether an object is as a filter says; without one it is.
pub fn passes(filter: Option<&Filter>, object: &impl Serialize) -> bool {
    filter.is_none_or(|filter| {
        // What could not be written as JSON could not be answered with either.
        serde_json::to_value(object).is_ok_and(|value| filter.matches(&value))
    })
}

/// Answers with JSON; `?pretty` spreads it over lines.
pub fn json(query: &Query, body: &impl Serialize) -> Response {
    let mut text = Vec::with_capacity(1024);
    let written = if query.has("pretty") {
        let four_spaces = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        body.serialize(&mut serde_json::Serializer::with_formatter(&mut text, four_spaces))
            .map(|()| text.push(b'\n'))
    } else {
        serde_json::to_writer(&mut text, body)
    };
    match written {
        Ok(()) => {
            let mut response = text.into_response();
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        }
        // Only a map whose keys are no texts could do this, and there is none.
        Err(error) => Fault::internal(format!("the answer is no JSON: {error}")).into_response(),
    }
}

/// The answer to a write: 200 and nothing else.
pub fn done() -> Response {
    ().into_response()
}
