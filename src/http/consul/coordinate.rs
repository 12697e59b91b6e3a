//! `/v1/coordinate/…`: how far away nodes are, in the form of Consul's network coordinates.
//!
//! Consul computes a place for each node in a space of eight dimensions. Here round trips are
//! measured: each node stands at the centre, with a height, which clients add to that of the other
//! one. So what they work out is the measured round trip where this node is one of the two; for two
//! others it is the way by this node, and never less than the truth.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use serde::Serialize;

use super::reading::{Asked, Near, Reading, Tail, text_of};
use super::status::asked;
use crate::catalog::view::NodeInfo;
use crate::catalog::{NodeEntry, Topic};
use crate::http::Face;
use crate::http::error::Fault;

/// The dimensions of a coordinate.
const DIMENSIONS: usize = 8;
/// The least height, in seconds: Consul's.
const HEIGHT_MIN: f64 = 10e-6;
/// How far off a coordinate may be, as a part of itself. A measured one is hardly.
const ERROR: f64 = 0.1;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    node: &'a str,
    segment: &'static str,
    coord: Coord,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Coord {
    vec: [f64; DIMENSIONS],
    error: f64,
    adjustment: f64,
    height: f64,
}

/// What Consul shows of each datacenter's servers.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Area<'a> {
    datacenter: &'a str,
    #[serde(rename = "AreaID")]
    area_id: &'static str,
    coordinates: Vec<Entry<'a>>,
}

/// `GET /v1/coordinate/nodes`: those whose distance is known.
pub async fn nodes(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let reading = Asked::unfiltered(&uri)?.read(&face, |_| Topic::Nodes).await?;
    let near = Near::here(&*face.host);
    let segment = reading.query.first("segment").unwrap_or_default();
    let nodes = if segment.is_empty() { reading.nodes() } else { Vec::new() };
    let entries: Vec<_> = nodes.into_iter().filter_map(|entry| entry_of(entry, &near)).collect();
    Ok(reading.answer(&entries))
}

/// `GET /v1/coordinate/node/:node`: 404 where it is not known.
pub async fn node(State(face): State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    let name = text_of(tail);
    let reading: Reading = Asked::unfiltered(&uri)?.read(&face, |_| Topic::Nodes).await?;
    let near = Near::here(&*face.host);
    let found = reading.node(&name).and_then(|entry| entry_of(entry, &near));
    found.map(|entry| reading.answer(&[entry])).ok_or_else(|| Fault::not_found(""))
}

/// `GET /v1/coordinate/datacenters`: this node alone, which stands for its own datacenter.
pub async fn datacenters(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = asked(&face, &uri)?;
    let view = face.host.feed().view();
    let near = Near::here(&*face.host);
    let area = Area {
        datacenter: &face.host.local().datacenter,
        area_id: "wan",
        coordinates: view.own().and_then(|entry| entry_of(entry, &near)).into_iter().collect(),
    };
    Ok(super::reading::json(&query, &[area]))
}

/// `PUT /v1/coordinate/update`: agents of Consul send what they computed.
pub async fn update() -> Fault {
    Fault::not_here("Coordinates are not taken from others here: nodes measure the round trips")
}

fn entry_of<'a>(entry: &'a NodeEntry, near: &Near) -> Option<Entry<'a>> {
    let coord = coord_of(&entry.info, near)?;
    Some(Entry { node: &entry.info.node.name, segment: "", coord })
}

fn coord_of(info: &NodeInfo, near: &Near) -> Option<Coord> {
    let round_trip = near.distance(info);
    if round_trip == Duration::MAX {
        return None;
    }
    // This node's own height is the other part of the sum.
    let height = (round_trip.as_secs_f64() - HEIGHT_MIN).max(HEIGHT_MIN);
    Some(Coord { vec: [0.0; DIMENSIONS], error: ERROR, adjustment: 0.0, height })
}

#[cfg(test)]
mod tests {
    use crate::catalog::model::key_of;
    use crate::http::support::{Bench, me, node, one_service};
    use crate::types::NodeId;

    #[tokio::test]
    async fn heights_add_up_to_the_measured_round_trip() {
        let mut rows = one_service();
        let (far, unknown) = (NodeId([7; 16]), NodeId([8; 16]));
        rows.node(&key_of(far), &node("far", "10.0.0.7"));
        rows.node(&key_of(unknown), &node("unknown", "10.0.0.8"));
        let bench = Bench::new(me(), "n1", rows);
        bench.host.round_trips.lock().unwrap().push((far, std::time::Duration::from_millis(30)));
        let reply = bench.get("/v1/coordinate/nodes").await;
        let json = reply.json();
        let height = |at: usize| json[at]["Coord"]["Height"].as_f64().unwrap();
        assert_eq!((&json[0]["Node"], &json[1]["Node"]), (&"far".into(), &"n1".into()));
        assert!((height(0) + height(1) - 0.030).abs() < 1e-9, "{}", reply.text);
        assert_eq!(json[0]["Coord"]["Vec"].as_array().unwrap().len(), 8);
        assert_eq!(json.as_array().unwrap().len(), 2);
        assert_eq!(bench.get("/v1/coordinate/node/far").await.json()[0], json[0]);
        assert_eq!(bench.get("/v1/coordinate/node/unknown").await.status, 404);
        assert_eq!(bench.get("/v1/coordinate/nodes?segment=x").await.text, "[]");
        let own = bench.get("/v1/coordinate/datacenters").await.json();
        assert_eq!(own[0]["Coordinates"][0]["Node"], "n1");
        assert_eq!(bench.put("/v1/coordinate/update", "{}").await.status, 501);
    }
}
