//! `/v1/status/…`: what clients ping. There is no leader: the first of those who are listed as servers
//! is named, so that all nodes name the same one, and without any each node names itself.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;

use super::query::{Datacenter, Query};
use super::reading::json;
use crate::catalog::View;
use crate::catalog::model::{SERVERS, Source};
use crate::http::Face;
use crate::http::error::Fault;
use crate::node::handle::MemberState;

/// `GET /v1/status/leader`.
pub async fn leader(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = asked(&face, &uri)?;
    let leader = servers(&face.host.feed().view()).into_iter().next();
    Ok(json(&query, &leader.unwrap_or_else(|| face.host.local().gossip.to_string())))
}

/// `GET /v1/status/peers`: the servers, or the members that are alive.
pub async fn peers(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = asked(&face, &uri)?;
    let servers = servers(&face.host.feed().view());
    if !servers.is_empty() {
        return Ok(json(&query, &servers));
    }
    let alive = |state| matches!(state, MemberState::Alive | MemberState::Suspect);
    let members = face.host.members().into_iter().filter(|member| alive(member.state));
    Ok(json(&query, &members.map(|member| member.gossip).collect::<Vec<_>>()))
}

/// Lists the nodes that are up and stand for Consul's servers, as `address:port`.
fn servers(view: &View) -> Vec<String> {
    let entry = view.service(SERVERS).into_iter();
    let servers = entry
        .flat_map(|entry| &entry.instances)
        .filter(|instance| instance.service.source == Source::Agent && instance.node.is_up);
    let at = servers.map(|server| (server.address(), server.service.port));
    at.map(|(address, port)| match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{address}:{port}"),
    })
    .collect()
}

/// Reads what a page is asked that waits for nothing.
pub fn asked(face: &Face, uri: &Uri) -> Result<Query, Fault> {
    let query = Query::of(uri);
    Datacenter::of(&query, face.host.local(), &face.host.feed().view())?;
    Ok(query)
}
