//! `/v1/agent/leave`, `reload`, `join` and `monitor`: what an operator asks of the process itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;
use tokio::time::{Instant, interval, timeout};
use tracing::Level;

use super::query::Query;
use super::reading::{Tail, done, text_of};
use crate::http::error::{Fault, PLAIN};
use crate::http::{Demand, Face};
use crate::node::handle::MemberState;
use crate::node::look_up;
use crate::telemetry::{Format, monitor};

/// How long the process may take to read its files again.
const RELOAD_WITHIN: Duration = Duration::from_secs(30);
/// How long a node to join by may take to become a member.
const JOIN_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const JOIN_LOOK: Duration = Duration::from_millis(50);

/// `GET /v1/agent/monitor`: the log from now on, a line each, until the client goes.
pub async fn monitor(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    let word = query.first("loglevel").filter(|word| !word.is_empty()).unwrap_or("info");
    let level = match word.to_ascii_lowercase().as_str() {
        "trace" => Level::TRACE,
        "debug" => Level::DEBUG,
        "info" => Level::INFO,
        "warn" => Level::WARN,
        "err" | "error" => Level::ERROR,
        _ => {
            let text = format!("Bad request: Unknown log level: {word}");
            return Err(Fault::bad_request(text));
        }
    };
    let format = if query.has("logjson") { Format::Json } else { Format::Plain };
    let lines = monitor::watch(level, format);
    let stopping = face.stopping.clone();
    let stream = futures_util::stream::unfold((lines, stopping), |(mut lines, stopping)| async {
        let line = tokio::select! {
            line = lines.next() => line,
            () = stopping.cancelled() => return None,
        };
        Some((Ok::<_, Infallible>(line), (lines, stopping)))
    });
    let mut response = Body::from_stream(stream).into_response();
    response.headers_mut().insert(CONTENT_TYPE, PLAIN);
    Ok(response)
}

/// `PUT /v1/agent/leave`: stops the process as SIGTERM does, with a goodbye to the cluster.
pub async fn leave(State(face): State<Arc<Face>>) -> Result<Response, Fault> {
    demand(&face, Demand::Leave).await?;
    Ok(done())
}

/// `PUT /v1/agent/reload`: reads files again as SIGHUP does, and tells how that went.
pub async fn reload(State(face): State<Arc<Face>>) -> Result<Response, Fault> {
    let (reply, answer) = oneshot::channel();
    demand(&face, Demand::Reload(reply)).await?;
    match timeout(RELOAD_WITHIN, answer).await {
        Ok(Ok(Ok(()))) => Ok(done()),
        Ok(Ok(Err(why))) => Err(Fault::internal(why)),
        Ok(Err(_)) => Err(Fault::come_again("The node is stopping")),
        Err(_) => Err(Fault::internal("The node has not read its files again in 30 s")),
    }
}

async fn demand(face: &Face, demand: Demand) -> Result<(), Fault> {
    face.demands.send(demand).await.map_err(|_| {
        Fault::not_here("This process takes no such request over HTTP; send it a signal")
    })
}

/// `PUT /v1/agent/join/:address`: dials another node, and waits until it is a member. Which nodes
/// belong together is decided by their certificates.
pub async fn join(State(face): State<Arc<Face>>, tail: Tail) -> Result<Response, Fault> {
    let target = text_of(tail);
    let failed = |why: &str| {
        Fault::internal(format!("1 error occurred:\n\t* Failed to join {target}: {why}\n\n"))
    };
    let addresses = look_up(&target).await.map_err(|error| failed(&error.to_string()))?;
    let is_member = || {
        let members = face.host.members();
        let mut alive = members
            .iter()
            .filter(|member| matches!(member.state, MemberState::Alive | MemberState::Suspect));
        alive.any(|member| addresses.contains(&member.gossip))
    };
    if is_member() {
        return Ok(done());
    }
    face.host.join(addresses.clone()).await?;
    let deadline = Instant::now() + JOIN_WITHIN;
    let mut looks = interval(JOIN_LOOK);
    while Instant::now() < deadline {
        tokio::select! {
            _ = looks.tick() => {}
            () = face.stopping.cancelled() => return Err(Fault::come_again("The node is stopping")),
        }
        if is_member() {
            return Ok(done());
        }
    }
    Err(failed("it has not become a member in 10 s; this node's log says why, and goes on trying"))
}

#[cfg(test)]
mod tests {
    use crate::http::Demand;
    use crate::http::support::{Bench, me, one_service};

    #[tokio::test]
    async fn leaving_and_reloading_are_the_processs_business() {
        let bench = Bench::new(me(), "n1", one_service());
        assert_eq!(bench.put("/v1/agent/leave", "").await.status, 200);
        let mut demands = bench.demands.lock().unwrap().take().unwrap();
        assert!(matches!(demands.recv().await, Some(Demand::Leave)));
        for (answer, status, text) in [
            (Ok(()), 200, ""),
            (Err("the certificates: no".to_owned()), 500, "the certificates: no"),
        ] {
            let asking = bench.clone();
            let asked = tokio::spawn(async move { asking.put("/v1/agent/reload", "").await });
            let Some(Demand::Reload(reply)) = demands.recv().await else { panic!("no demand") };
            reply.send(answer).unwrap();
            let reply = asked.await.unwrap();
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (status, text));
        }
        drop(demands);
        assert_eq!(bench.put("/v1/agent/leave", "").await.status, 501);
        assert_eq!(bench.get("/v1/agent/reload").await.status, 405);
    }

    #[tokio::test]
    async fn a_monitor_streams_until_the_node_stops() {
        let bench = Bench::new(me(), "n1", one_service());
        let reply = bench.get("/v1/agent/monitor?loglevel=bogus").await;
        let text = "Bad request: Unknown log level: bogus";
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (400, text));
        bench.face.stopping.cancel();
        let reply = bench.get("/v1/agent/monitor?loglevel=DEBUG&logjson").await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, ""));
        assert_eq!(reply.header("content-type"), "text/plain; charset=utf-8");
    }

    #[tokio::test(start_paused = true)]
    async fn joining_dials_and_waits_for_a_member() {
        let bench = Bench::new(me(), "n1", one_service());
        // The node itself is a member already.
        assert_eq!(bench.put("/v1/agent/join/127.0.0.1:7401", "").await.status, 200);
        assert!(bench.host.joined.lock().unwrap().is_empty());
        let reply = bench.put("/v1/agent/join/127.0.0.1:7999?wan=1", "").await;
        assert_eq!(reply.status, 500);
        assert!(reply.text.contains("Failed to join 127.0.0.1:7999: it has not become a member"));
        assert_eq!(*bench.host.joined.lock().unwrap(), ["127.0.0.1:7999".parse().unwrap()]);
        let reply = bench.put("/v1/agent/join/", "").await;
        assert!(reply.text.contains("Failed to join : "), "{}", reply.text);
    }
}
