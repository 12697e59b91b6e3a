//! What Consul has and Tribune has not: each path answers at once with the reason, and none hangs.

use axum::http::StatusCode;

/// A path, all below it, and why there is nothing.
pub struct Place {
    pub path: &'static str,
    pub status: StatusCode,
    pub reason: &'static str,
}

const NO_MESH: &str = "Connect must be enabled in order to use this endpoint";
const NO_ACL: &str = "ACL support disabled";
const NO_SERVERS: &str = "There are no Raft servers here to operate; every node has the catalog";

/// Where there is nothing.
pub const PLACES: &[Place] = &[
    not_here("/v1/operator", NO_SERVERS),
    not_here("/v1/snapshot", "Back up with `tribune backup`; there is no Raft log to snapshot"),
    not_here("/v1/internal", "The pages of Consul's web interface are not here"),
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
