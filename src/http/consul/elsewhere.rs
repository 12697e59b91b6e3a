//! What Consul has and Tribune has not: each path answers at once with the reason, and none hangs.

use axum::http::StatusCode;

use crate::http::error::Fault;

/// A path, all below it, and why there is nothing.
pub struct Place {
    pub path: &'static str,
    pub status: StatusCode,
    pub reason: &'static str,
}

const NO_EVENTS: &str = "Events are not here";
const NO_MESH: &str = "Connect must be enabled in order to use this endpoint";
const NO_ACL: &str = "ACL support disabled";
const NO_SERVERS: &str = "There are no Raft servers here to operate; every node has the catalog";

/// Where there is nothing.
pub const PLACES: &[Place] = &[
    not_here("/v1/event", NO_EVENTS),
    not_here("/v1/operator", NO_SERVERS),
    not_here("/v1/snapshot", "Back up with `tribune backup`; there is no Raft log to snapshot"),
    not_here(
        "/v1/coordinate",
        "Network coordinates are not here; ?near=_agent sorts by round trip",
    ),
    not_here("/v1/internal", "The pages of Consul's web interface are not here"),
    not_here("/v1/agent/monitor", "The log is not streamed; read the process's standard error"),
    // These say what a Consul says that has the feature turned off.
    refused("/v1/config", NO_MESH),
    refused("/v1/connect", NO_MESH),
    refused("/v1/discovery-chain", NO_MESH),
    refused("/v1/agent/connect", NO_MESH),
    Place { path: "/v1/acl", status: StatusCode::UNAUTHORIZED, reason: NO_ACL },
    Place { path: "/v1/agent/token", status: StatusCode::UNAUTHORIZED, reason: NO_ACL },
];

const fn not_here(path: &'static str, reason: &'static str) -> Place {
    Place { path, status: StatusCode::NOT_IMPLEMENTED, reason }
}

const fn refused(path: &'static str, reason: &'static str) -> Place {
    Place { path, status: StatusCode::INTERNAL_SERVER_ERROR, reason }
}

/// `PUT /v1/agent/leave`: only who may stop the process may make it leave.
pub async fn leave() -> Fault {
    Fault::not_here("Stop the process to leave: it says goodbye to its peers (SIGTERM)")
}

/// `PUT /v1/agent/reload`.
pub async fn reload() -> Fault {
    Fault::not_here("Reloading over HTTP is not here; send the process a SIGHUP")
}

/// `PUT /v1/agent/join/:address`: who may join is decided by certificates, not by a request.
pub async fn join() -> Fault {
    Fault::not_here("Joining over HTTP is not here; start the agent with --join")
}
