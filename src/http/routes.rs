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

use super::consul::{
    agent, agent_check, agent_service, catalog, coordinate, elsewhere, event, external, health, kv,
    prepared, process, status, txn, upstream,
};
use super::error::Fault;
use super::freshness::{Freshness, fresh};
use super::guard::{Guard, guard, moved_to};
use super::{Face, Upstream};
use crate::telemetry::metrics;

/// Answers shorter than this are not compressed: one packet either way.
pub const GZIP_BYTES_MIN: u16 = 1_400;

type Routes = Router<Arc<Face>>;
type Methods = MethodRouter<Arc<Face>>;

/// Builds the router of the whole face.
///
/// `further` are routes with a state of their own. They stand past compression, since they stream.
pub fn router(face: Arc<Face>, further: Router, (shared, freshness): (Guard, Freshness)) -> Router {
    let compression = CompressionLayer::new().compress_when(SizeAbove::new(GZIP_BYTES_MIN.into()));
    consul(face.upstream.as_ref())
        .layer(compression)
        .merge(streams())
        .with_state(Arc::clone(&face))
        .merge(further)
        .merge(Router::new().fallback(upstream::rest).with_state(face))
        .layer(axum::middleware::from_fn_with_state(freshness, fresh))
        .layer(axum::middleware::from_fn_with_state(shared, guard))
}

fn consul(upstream: Option<&Upstream>) -> Routes {
    let routes = Router::new();
    let routes = pages(routes);
    let routes = agent_pages(routes);
    let routes = catalog_pages(routes);
    let routes = query_pages(routes);
    // What has no page goes upstream.
    let routes = match upstream {
        None => key_pages(routes),
        Some(_) => fixed(routes, "/v1/txn", WRITE, put(upstream::run)),
    };
    if upstream.is_some_and(Upstream::is_for_all) { routes } else { elsewhere_pages(routes) }
}

/// Pages that go on: compression would hold lines back.
fn streams() -> Routes {
    fixed(Router::new(), "/v1/agent/monitor", READ, get(process::monitor))
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
    let routes = fixed(routes, "/v1/agent/leave", WRITE, put(process::leave));
    let routes = fixed(routes, "/v1/agent/reload", WRITE, put(process::reload));
    let routes = tail(routes, "/v1/agent/join/", WRITE, put(process::join));
    let routes = tail(routes, "/v1/agent/force-leave/", WRITE, put(agent::force_leave));

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
    let routes = fixed(routes, "/v1/catalog/register", WRITE, put(external::register));
    let routes = fixed(routes, "/v1/catalog/deregister", WRITE, put(external::deregister));

    let routes = tail(routes, "/v1/health/service/", READ, get(health::service));
    let routes = tail(routes, "/v1/health/connect/", READ, get(catalog::connect));
    let routes = tail(routes, "/v1/health/ingress/", READ, get(catalog::connect));
    let routes = tail(routes, "/v1/health/node/", READ, get(health::node));
    let routes = tail(routes, "/v1/health/checks/", READ, get(health::checks));
    tail(routes, "/v1/health/state/", READ, get(health::state))
}

fn key_pages(routes: Routes) -> Routes {
    let keys = get(kv::get).put(kv::put).delete(kv::delete);
    let routes = tail(routes, "/v1/kv/", "OPTIONS,GET,PUT,DELETE", keys);
    let routes = fixed(routes, "/v1/session/list", READ, get(kv::no_sessions));
    let routes = tail(routes, "/v1/session/node/", READ, get(kv::no_sessions));
    let routes = fixed(routes, "/v1/txn", WRITE, put(txn::run));
    routes.route("/v1/session/{*rest}", axum::routing::any(kv::session))
}

fn query_pages(routes: Routes) -> Routes {
    let routes = fixed(routes, "/v1/coordinate/nodes", READ, get(coordinate::nodes));
    let routes = tail(routes, "/v1/coordinate/node/", READ, get(coordinate::node));
    let routes = fixed(routes, "/v1/coordinate/datacenters", READ, get(coordinate::datacenters));
    let routes = fixed(routes, "/v1/coordinate/update", WRITE, put(coordinate::update));
    let routes = tail(routes, "/v1/event/fire/", WRITE, put(event::fire));
    let routes = fixed(routes, "/v1/event/list", READ, get(event::list));
    let queries = get(prepared::list).post(prepared::create);
    let routes = fixed(routes, "/v1/query", "OPTIONS,GET,POST", queries);
    let query = get(prepared::one).put(prepared::one).delete(prepared::one);
    routes
        .route("/v1/query/", page("GET,PUT,DELETE", query.clone()))
        .route("/v1/query/{*rest}", page("GET,PUT,DELETE", query))
}

/// What Consul has and this node has not answers with the reason, whatever the method.
fn elsewhere_pages(routes: Routes) -> Routes {
    elsewhere::PLACES.iter().fold(routes, |routes, place| {
        let refuse = || axum::routing::any(|| async { Fault::new(place.status, place.reason) });
        routes
            .route(place.path, refuse())
            .route(&format!("{}/", place.path), refuse())
            .route(&format!("{}/{{*rest}}", place.path), refuse())
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

#[cfg(test)]
mod tests {
    use crate::catalog::Service;
    use crate::catalog::model::{Source, key_of};
    use crate::http::support::{Bench, me, node, one_service, service};

    fn bench() -> Bench {
        Bench::new(me(), "n1", one_service())
    }

    #[tokio::test]
    async fn an_unknown_path_is_not_found_and_says_nothing() {
        for path in ["/nosuch", "/v1/agent/services/", "/v1/agent", "/v1/health", "/ui"] {
            let reply = bench().get(path).await;
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (404, ""), "{path}");
            assert!(!reply.headers.contains_key("content-type"), "{path}");
        }
    }

    #[tokio::test]
    async fn a_wrong_method_is_told_the_right_ones() {
        for (method, path, allow) in [
            ("PUT", "/v1/catalog/nodes", "OPTIONS,GET"),
            ("HEAD", "/v1/agent/self", "OPTIONS,GET"),
            ("GET", "/v1/agent/service/register", "OPTIONS,PUT"),
            ("POST", "/v1/agent/service/register", "OPTIONS,PUT"),
            ("DELETE", "/v1/health/service/web", "OPTIONS,GET"),
        ] {
            let reply = bench().ask(method, path, "").await;
            assert_eq!(reply.status, 405, "{method} {path}");
            assert_eq!(reply.header("allow"), allow, "{method} {path}");
            if method != "HEAD" {
                assert_eq!(reply.text, format!("method {method} not allowed"));
            }
        }
        let reply = bench().ask("OPTIONS", "/v1/agent/check/register", "").await;
        assert_eq!((reply.status.as_u16(), reply.header("allow")), (200, "OPTIONS,PUT"));
    }

    #[tokio::test]
    async fn a_doubled_slash_and_a_missing_one_are_sent_to_the_right_path() {
        for (path, target) in [
            ("/v1//catalog/nodes?stale", "/v1/catalog/nodes?stale"),
            ("/v1/health/service?passing", "/v1/health/service/?passing"),
        ] {
            let reply = bench().get(path).await;
            assert_eq!((reply.status.as_u16(), reply.header("location")), (301, target));
        }
    }

    #[tokio::test]
    async fn what_is_not_here_says_so_at_once() {
        for (path, status) in [
            ("/v1/operator/raft/configuration", 501),
            ("/v1/acl/tokens", 401),
            ("/v1/agent/connect/ca/roots", 500),
            ("/v1/agent/join/10.0.0.1", 405),
        ] {
            let reply = bench().get(path).await;
            assert_eq!(reply.status, status, "{path}");
            assert!(reply.text.contains(' ') && !reply.text.contains('\n'), "{}", reply.text);
        }
    }

    #[tokio::test]
    async fn long_answers_are_compressed_for_those_who_ask() {
        use axum::body::Body;
        use axum::http::Request;
        use tower::ServiceExt;

        let bench = bench();
        bench.change(|rows| {
            for count in 0..20 {
                rows.node(&format!("x/{count}"), &node(&format!("node-{count}"), "10.0.0.1"));
            }
        });
        for (path, encoding) in
            [("/v1/catalog/nodes", Some("gzip")), ("/v1/catalog/services", None)]
        {
            let request = Request::get(path).header("accept-encoding", "gzip");
            let request = request.body(Body::empty()).unwrap();
            let response = bench.router.clone().oneshot(request).await.unwrap();
            let found = response.headers().get("content-encoding");
            assert_eq!(found.map(|value| value.to_str().unwrap()), encoding, "{path}");
            assert_eq!(response.headers().get_all("vary").iter().count(), 1);
        }
    }

    #[tokio::test]
    async fn pretty_answers_are_indented_by_four() {
        let reply = bench().get("/v1/catalog/services?pretty").await;
        assert_eq!(reply.text, "{\n    \"web\": []\n}\n");
    }

    #[tokio::test]
    async fn the_node_tells_of_itself() {
        let bench = bench();
        let own = bench.get("/v1/agent/self").await.json();
        assert_eq!(own["Config"]["Datacenter"], "dc1");
        assert_eq!(own["Config"]["NodeName"], "n1");
        assert_eq!(own["Member"]["Tags"]["segment"], "");
        assert_eq!(own["Stats"]["agent"]["checks"], "1");
        let members = bench.get("/v1/agent/members?segment=_all").await.json();
        assert_eq!((&members[0]["Name"], &members[0]["Status"]), (&"n1".into(), &1.into()));
        assert_eq!(bench.get("/v1/agent/members?segment=x").await.status, 500);
        assert_eq!(bench.get("/v1/status/leader").await.text, "\"127.0.0.1:7401\"");
        assert_eq!(bench.get("/v1/status/peers").await.text, "[\"127.0.0.1:7401\"]");
        assert_eq!(bench.get("/v1/status/peers?dc=x").await.text, "No path to datacenter");
        assert!(bench.get("/v1/agent/host").await.json()["Memory"]["total"].as_u64() > Some(0));
        assert_eq!(bench.get("/v1/agent/version").await.json()["HumanVersion"], "1.8.7");
    }

    #[tokio::test]
    async fn servers_are_named_where_there_are_some() {
        let bench = bench();
        bench.change(|rows| {
            let server =
                Service { source: Source::Agent, port: 8300, ..service("consul", "consul") };
            rows.service(&key_of(me()), &server);
        });
        assert_eq!(bench.get("/v1/status/leader").await.text, "\"127.0.0.1:8300\"");
        assert_eq!(bench.get("/v1/status/peers").await.text, "[\"127.0.0.1:8300\"]");
        let services = bench.get("/v1/catalog/services").await.text;
        assert_eq!(services, r#"{"consul":[],"web":[]}"#);
        assert!(bench.get("/v1/agent/services").await.json().get("consul").is_none());
    }

    #[tokio::test]
    async fn a_member_is_forgotten_by_its_name_or_id() {
        let bench = bench();
        let me = bench.host.local.id;
        let unknown = bench.put("/v1/agent/force-leave/nobody", "").await;
        assert_eq!(unknown.status, 500);
        assert_eq!(unknown.text, "agent: No node found with name 'nobody'");
        assert!(bench.host.forgotten.lock().unwrap().is_empty());
        assert_eq!(bench.put("/v1/agent/force-leave/n1", "").await.status, 200);
        // One that the catalog has never heard of may be waited for, too.
        let id = crate::types::NodeId([7; 16]);
        assert_eq!(bench.put(&format!("/v1/agent/force-leave/{id}"), "").await.status, 200);
        assert_eq!(*bench.host.forgotten.lock().unwrap(), [me, id]);
    }

    #[tokio::test]
    async fn metrics_come_as_text_and_as_consuls_json() {
        let bench = bench();
        let stats = std::sync::Arc::clone(&bench.face.stats);
        bench.face.metrics.add("http", move || stats.families());
        bench.get("/nosuch").await;
        for path in ["/metrics", "/v1/agent/metrics?format=prometheus"] {
            let page = bench.get(path).await;
            assert!(
                page.text.contains("tribune_http_answers_total{class=\"4xx\"} 1"),
                "{}",
                page.text
            );
            assert!(page.header("content-type").starts_with("application/openmetrics-text"));
        }
        let json = bench.get("/v1/agent/metrics").await.json();
        let counters = json["Counters"].as_array().unwrap();
        let answers: Vec<_> =
            counters.iter().filter(|one| one["Name"] == "tribune.http.answers").collect();
        assert_eq!(answers[3]["Count"], 1);
        assert_eq!(answers[3]["Labels"]["class"], "4xx");
    }
}
