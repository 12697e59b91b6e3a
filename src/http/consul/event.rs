//! `/v1/event/…`: events, fired at any node and told to all.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::header::HeaderName;
use axum::http::{HeaderValue, Uri};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use uuid::Uuid;

use super::query::{Datacenter, Query};
use super::reading::{Asked, Tail, json, text_of};
use crate::catalog::events::{Event, filter};
use crate::catalog::{CatalogEdit, Command, Topic};
use crate::http::Face;
use crate::http::body::read;
use crate::http::error::Fault;

const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
/// The longest payload, name and filters together: Consul's limit of an event.
const EVENT_BYTES_MAX: usize = 512;
/// What is read of a body, so that its sender learns of the limit.
const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    /// In base64; `null` where it is empty.
    payload: Option<String>,
    node_filter: &'a str,
    service_filter: &'a str,
    tag_filter: &'a str,
    version: u8,
    #[serde(rename = "LTime")]
    l_time: u64,
}

impl<'a> Shown<'a> {
    fn of(event: &'a Event, l_time: u64) -> Self {
        let payload = Some(&event.payload).filter(|payload| !payload.is_empty());
        Self {
            id: &event.id,
            name: &event.name,
            payload: payload.map(|payload| STANDARD.encode(payload)),
            node_filter: &event.node_filter,
            service_filter: &event.service_filter,
            tag_filter: &event.tag_filter,
            version: 1,
            l_time,
        }
    }
}

/// `PUT /v1/event/fire/:name`, with the payload as its body.
pub async fn fire(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
    body: Body,
) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    let name = text_of(tail);
    if name.is_empty() {
        return Err(Fault::bad_request("Missing name"));
    }
    let text = |name: &str| query.first(name).unwrap_or_default().to_owned();
    let event = Event {
        id: Uuid::new_v4().to_string(),
        name,
        payload: read(body, BODY_BYTES_MAX).await?.to_vec(),
        node_filter: text("node"),
        service_filter: text("service"),
        tag_filter: text("tag"),
        fired_at: now_millis(),
    };
    check(&event)?;
    Datacenter::of(&query, face.host.local(), &face.host.feed().view())
        .map_err(|fault| Fault::internal(fault.text))?;
    let edit = CatalogEdit::Fire(Box::new(event.clone()));
    face.host.submit(Command::Edit(vec![edit])).await?;
    Ok(json(&query, &Shown::of(&event, 0)))
}

fn check(event: &Event) -> Result<(), Fault> {
    let Event { name, payload, node_filter, service_filter, tag_filter, .. } = event;
    if service_filter.is_empty() && !tag_filter.is_empty() {
        return Err(Fault::internal("Cannot provide tag filter without service filter"));
    }
    let filters = [("node", node_filter), ("service", service_filter), ("tag", tag_filter)];
    for (what, text) in filters {
        filter(text).map_err(|error| Fault::internal(format!("Invalid {what} filter: {error}")))?;
    }
    let texts = [name, node_filter, service_filter, tag_filter];
    let bytes = payload.len() + texts.iter().map(|text| text.len()).sum::<usize>();
    if bytes > EVENT_BYTES_MAX {
        return Err(Fault::internal(format!(
            "user event exceeds configured limit of {EVENT_BYTES_MAX} bytes: name, payload and \
             filters are {bytes}"
        )));
    }
    Ok(())
}

/// `GET /v1/event/list`: those that this node was told since it started.
pub async fn list(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let asked = Asked::unfiltered(&uri)?;
    let name = asked.query.first("name").unwrap_or_default().to_owned();
    let reading = asked.read(&face, |_| Topic::Events(name.as_str().into())).await?;
    let name = Some(name.as_str()).filter(|name| !name.is_empty());
    let events = reading.view.events();
    let shown: Vec<_> = events.of(name).map(|told| Shown::of(&told.event, told.number)).collect();
    let mut response = json(&reading.query, &shown);
    response.headers_mut().insert(INDEX, HeaderValue::from(events.index(name)));
    Ok(response)
}

fn now_millis() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::key_of;
    use crate::http::support::{Bench, me, one_service, service};

    fn event(id: u8, name: &str) -> Event {
        let id = crate::types::NodeId((u128::from(id) + 1_000).to_be_bytes()).to_string();
        Event { id, name: name.to_owned(), fired_at: u64::MAX, ..Event::default() }
    }

    #[tokio::test]
    async fn an_event_is_fired_as_it_was_asked() {
        let bench = Bench::new(me(), "n1", one_service());
        let reply = bench.put("/v1/event/fire/deploy?node=n.*&service=web&tag=v1", "hello").await;
        let id = reply.json()["ID"].as_str().unwrap().to_owned();
        assert_eq!(
            reply.text,
            format!(
                r#"{{"ID":"{id}","Name":"deploy","Payload":"aGVsbG8=","NodeFilter":"n.*","ServiceFilter":"web","TagFilter":"v1","Version":1,"LTime":0}}"#
            )
        );
        let Some(Command::Edit(edits)) = bench.last_command() else { panic!("no edit") };
        let [CatalogEdit::Fire(fired)] = edits.as_slice() else { panic!("{edits:?}") };
        assert_eq!((&fired.id, &*fired.payload), (&id, b"hello".as_slice()));
        assert!(fired.fired_at > 1_700_000_000_000);
    }

    #[tokio::test]
    async fn what_is_no_event_is_refused() {
        let bench = Bench::new(me(), "n1", one_service());
        let long = "x".repeat(512);
        for (path, body, status, text) in [
            ("", "", 400, "Missing name"),
            ("x?node=(", "", 500, "Invalid node filter: "),
            ("x?service=(", "", 500, "Invalid service filter: "),
            ("x?tag=a", "", 500, "Cannot provide tag filter without service filter"),
            ("x?dc=nope", "", 500, "No path to datacenter"),
            ("x", &long, 500, "user event exceeds configured limit of 512 bytes"),
        ] {
            let reply = bench.put(&format!("/v1/event/fire/{path}"), body).await;
            assert_eq!(reply.status, status, "{path}");
            assert!(reply.text.contains(text), "{path}: {}", reply.text);
        }
        assert!(bench.last_command().is_none());
        assert_eq!(bench.put("/v1/event/fire/x", &long[1..]).await.status, 200);
        assert_eq!(bench.put("/v1/event/list", "").await.status, 405);
    }

    #[tokio::test]
    async fn events_are_listed_where_they_are_for_and_wake_those_who_wait() {
        let bench = Bench::new(me(), "n1", one_service());
        let none = bench.get("/v1/event/list?name=deploy").await;
        assert_eq!((none.text.as_str(), none.index()), ("[]", 1));
        let asking = bench.clone();
        let waiting =
            tokio::spawn(
                async move { asking.get("/v1/event/list?name=deploy&index=1&wait=60s").await },
            );
        bench.until_somebody_waits().await;
        bench.change(|rows| rows.event("x/0", &event(7, "other")));
        bench.change(|rows| rows.event("x/1", &event(8, "deploy")));
        let woken = waiting.await.unwrap();
        assert_eq!(woken.json()[0]["Name"], "deploy");
        let all = bench.get("/v1/event/list").await;
        assert_eq!((all.json().as_array().unwrap().len(), all.index()), (2, woken.index()));
        // Who asks again with that index waits.
        let again = bench.get(&format!("/v1/event/list?index={}&wait=10ms", all.index())).await;
        assert_eq!(again.index(), all.index());
        bench.change(|rows| {
            rows.service(
                &key_of(me()),
                &crate::catalog::Service { tags: vec!["V1".into()], ..service("db", "db") },
            );
        });
        for (place, node, service, tag) in [
            ("x/2", "^n1$", "", ""),
            ("x/3", "^n2$", "", ""),
            ("x/4", "", "^db$", "^v1$"),
            ("x/5", "", "^db$", "v2"),
            ("x/6", "", "none", ""),
        ] {
            let (node_filter, service_filter) = (node.to_owned(), service.to_owned());
            let tag_filter = tag.to_owned();
            let id = place.as_bytes()[2];
            let filtered = Event { node_filter, service_filter, tag_filter, ..event(id, place) };
            bench.change(|rows| rows.event(place, &filtered));
        }
        let listed = bench.get("/v1/event/list").await.json();
        let names: Vec<_> = listed.as_array().unwrap().iter().map(|event| &event["Name"]).collect();
        assert_eq!(names, ["other", "deploy", "x/2", "x/4"]);
    }
}
