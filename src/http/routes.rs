//! The one list of routes, and the layers that all of them share.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, put};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use super::Face;
use super::consul::{agent, agent_check, agent_service, catalog, elsewhere, health, status};
use super::error::Fault;
use super::guard::{Guard, guard, moved_to};
use crate::telemetry::metrics;

/// Answers shorter than this are not compressed: one packet either way.
const GZIP_BYTES_MIN: u64 = 1_400;

type Routes = Router<Arc<Face>>;
type Methods = MethodRouter<Arc<Face>>;

/// Builds the router of the whole face.
pub fn router(face: Arc<Face>, shared: Guard) -> Router {
    let compression = CompressionLayer::new().compress_when(SizeAbove::new(GZIP_BYTES_MIN));
    let consul = consul().layer(compression).with_state(face);
    // The SQL API joins here, past compression, since it streams:
    // let consul = consul.merge(super::sql::routes(...));
    consul
        .fallback(|| async { Fault::not_found("") })
        .layer(axum::middleware::from_fn_with_state(shared, guard))
}

fn consul() -> Routes {
    let routes = Router::new();
    let routes = pages(routes);
    let routes = agent_pages(routes);
    let routes = catalog_pages(routes);
    elsewhere_pages(routes)
}

fn pages(routes: Routes) -> Routes {
    let routes = fixed(routes, "/", READ, get(agent::root));
    let routes = fixed(routes, "/metrics", READ, get(metrics_page));
    let routes = fixed(routes, "/v1/status/leader", READ, get(status::leader));
    fixed(routes, "/v1/status/peers", READ, get(status::peers))
}

fn agent_pages(routes: Routes) -> Routes {
    let routes = fixed(routes, "/v1/agent/self", READ, get(agent::own));
    let routes = fixed(routes, "/v1/agent/members", READ, get(agent::members));
    let routes = fixed(routes, "/v1/agent/metrics", READ, get(agent::metrics));
    let routes = fixed(routes, "/v1/agent/version", READ, get(agent::version));
    let routes = fixed(routes, "/v1/agent/host", READ, get(agent::host));
    let routes = fixed(routes, "/v1/agent/maintenance", WRITE, put(agent::maintenance));
    let routes = fixed(routes, "/v1/agent/leave", WRITE, put(elsewhere::leave));
    let routes = fixed(routes, "/v1/agent/reload", WRITE, put(elsewhere::reload));
    let routes = tail(routes, "/v1/agent/join/", WRITE, put(elsewhere::join));
    let routes = tail(routes, "/v1/agent/force-leave/", WRITE, put(elsewhere::force_leave));

    let routes = fixed(routes, "/v1/agent/services", READ, get(agent_service::list));
    let routes = tail(routes, "/v1/agent/service/", READ, get(agent_service::one));
    let routes = fixed(routes, "/v1/agent/service/register", WRITE, put(agent_service::register));
    let routes =
        tail(routes, "/v1/agent/service/deregister/", WRITE, put(agent_service::deregister));
    let routes =
        tail(routes, "/v1/agent/service/maintenance/", WRITE, put(agent_service::maintenance));
    let routes =
        tail(routes, "/v1/agent/health/service/id/", READ, get(agent_service::health_by_id));
    let routes =
        tail(routes, "/v1/agent/health/service/name/", READ, get(agent_service::health_by_name));

    let routes = fixed(routes, "/v1/agent/checks", READ, get(agent_check::list));
    let routes = fixed(routes, "/v1/agent/check/register", WRITE, put(agent_check::register));
    let routes = tail(routes, "/v1/agent/check/deregister/", WRITE, put(agent_check::deregister));
    let routes = tail(routes, "/v1/agent/check/pass/", WRITE, put(agent_check::pass));
    let routes = tail(routes, "/v1/agent/check/warn/", WRITE, put(agent_check::warn));
    let routes = tail(routes, "/v1/agent/check/fail/", WRITE, put(agent_check::fail));
    tail(routes, "/v1/agent/check/update/", WRITE, put(agent_check::update))
}

fn catalog_pages(routes: Routes) -> Routes {
    let routes = fixed(routes, "/v1/catalog/datacenters", READ, get(catalog::datacenters));
    let routes = fixed(routes, "/v1/catalog/nodes", READ, get(catalog::nodes));
    let routes = fixed(routes, "/v1/catalog/services", READ, get(catalog::services));
    let routes = tail(routes, "/v1/catalog/service/", READ, get(catalog::service));
    let routes = tail(routes, "/v1/catalog/connect/", READ, get(catalog::connect));
    let routes = tail(routes, "/v1/catalog/gateway-services/", READ, get(catalog::connect));
    let routes = tail(routes, "/v1/catalog/node/", READ, get(catalog::node));
    let routes = tail(routes, "/v1/catalog/node-services/", READ, get(catalog::node_services));
    let routes = fixed(routes, "/v1/catalog/register", WRITE, put(catalog::register));
    let routes = fixed(routes, "/v1/catalog/deregister", WRITE, put(catalog::deregister));

    let routes = tail(routes, "/v1/health/service/", READ, get(health::service));
    let routes = tail(routes, "/v1/health/connect/", READ, get(catalog::connect));
    let routes = tail(routes, "/v1/health/ingress/", READ, get(catalog::connect));
    let routes = tail(routes, "/v1/health/node/", READ, get(health::node));
    let routes = tail(routes, "/v1/health/checks/", READ, get(health::checks));
    tail(routes, "/v1/health/state/", READ, get(health::state))
}

/// What Consul has and this node has not answers with the reason, whatever the method.
fn elsewhere_pages(routes: Routes) -> Routes {
    elsewhere::PLACES.iter().fold(routes, |routes, place| {
        let fault = || async { Fault::new(place.status, place.reason) };
        let routes = routes.route(place.path, axum::routing::any(fault));
        if place.path.ends_with('/') {
            return routes.route(&format!("{}{{*rest}}", place.path), axum::routing::any(fault));
        }
        routes.route(&format!("{}/{{*rest}}", place.path), axum::routing::any(fault))
    })
}

/// Consul's `Allow` for a page that is read, and for one that is written.
const READ: &str = "OPTIONS,GET";
const WRITE: &str = "OPTIONS,PUT";

fn fixed(routes: Routes, path: &str, allow: &'static str, methods: Methods) -> Routes {
    routes.route(path, page(allow, methods))
}

/// A path that ends in a slash, with all that follows it as the last argument. Without the slash
/// clients are sent to the path with it, as by Go's router.
fn tail(routes: Routes, path: &'static str, allow: &'static str, methods: Methods) -> Routes {
    let slashless = path.trim_end_matches('/');
    let redirect = |uri: Uri| async move { moved_to(&format!("{}/", uri.path()), uri.query()) };
    routes
        .route(path, page(allow, methods.clone()))
        .route(&format!("{path}{{*rest}}"), page(allow, methods))
        .route(slashless, axum::routing::any(redirect))
}

/// Adds to a page's methods what Consul answers to the others. `HEAD` is one of the others, as in
/// Consul: a probe that relies on it must fail here as it did there.
fn page(allow: &'static str, methods: Methods) -> Methods {
    let refuse = move |request: Request| async move {
        Ok::<_, Infallible>(Fault::method_not_allowed(request.method().as_str(), allow))
    };
    let list = move || async move { options(allow) };
    methods.head(refuse).options(list).fallback(refuse)
}

fn options(allow: &'static str) -> Response {
    (StatusCode::OK, [(ALLOW, HeaderValue::from_static(allow))]).into_response()
}

async fn metrics_page(State(face): State<Arc<Face>>) -> Response {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], face.metrics.render()).into_response()
}
