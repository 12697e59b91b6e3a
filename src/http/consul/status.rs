//! `/v1/status/…`: what clients ping. There is no leader, so each node names itself.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;

use super::query::{Datacenter, Query};
use super::reading::json;
use crate::http::Face;
use crate::http::error::Fault;
use crate::node::handle::MemberState;

/// `GET /v1/status/leader`: the node that knows all that there is to know here is this one.
pub async fn leader(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = asked(&face, &uri)?;
    Ok(json(&query, &face.host.local().gossip))
}

/// `GET /v1/status/peers`: the members that are alive.
pub async fn peers(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = asked(&face, &uri)?;
    let alive = |state| matches!(state, MemberState::Alive | MemberState::Suspect);
    let members = face.host.members().into_iter().filter(|member| alive(member.state));
    Ok(json(&query, &members.map(|member| member.gossip).collect::<Vec<_>>()))
}

fn asked(face: &Face, uri: &Uri) -> Result<Query, Fault> {
    let query = Query::of(uri);
    Datacenter::of(&query, face.host.local(), &face.host.feed().view())?;
    Ok(query)
}
