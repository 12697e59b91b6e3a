//! DNS: any packet gets one whole reply or none, and the short way says what the long way says.

use std::sync::{Arc, LazyLock};

use hickory_proto::op::{Message, MessageType};
use tribune::catalog::View;
use tribune::catalog::model::{Node, Service};
use tribune::catalog::rows::{self, node_row, service_row};
use tribune::crdt::change::{Commit, RowEvent, RowEvents, TableEvents, TableInfo};
use tribune::dns::answer::{Answered, Request, Transport, answer_and_learn};
use tribune::dns::choose::Random;
use tribune::dns::config::Config;
use tribune::dns::fast::Fast;
use tribune::dns::recursion::key::Key;
use tribune::dns::recursion::reply::{Reply, Shown};
use tribune::types::{Hlc, NodeId, Seq, Value};

/// Answers a packet: the first byte says how it came.
pub fn dns_packet(bytes: &[u8]) {
    let Some((how, packet)) = bytes.split_first() else { return };
    let transport = [Transport::Udp, Transport::Tcp, Transport::Tls][usize::from(how % 3)];
    let config = Config { nsid: "n1".to_owned(), ..Config::default() };
    let view = Arc::clone(&VIEW);
    let mut fast = Fast::new(Arc::clone(&view), &config);
    let request = Request {
        packet,
        transport,
        seed: 7,
        now_unix: 1,
        client: None,
        known: None,
        distances: None,
    };
    let mut reply = Vec::new();
    let answered = answer_and_learn(&view, &config, request, Some(&mut fast), &mut reply);
    let is_silent = packet.len() < 12 || packet[2] & 0x80 != 0;
    let outcome = match answered {
        Answered::Silence => return assert!(is_silent, "a question is answered"),
        Answered::Reply(outcome) => outcome,
        Answered::Incomplete(..) | Answered::Elsewhere(_) => panic!("nobody else may be asked"),
    };
    assert!(!is_silent, "neither a reply nor what is too short is answered");
    let shown = show(&reply);
    assert_eq!(reply[..2], packet[..2]);
    if transport == Transport::Udp {
        assert!(reply.len() <= 1_232, "{} bytes", reply.len());
    }
    let mut short = Vec::new();
    let random = &mut Random(9);
    if let Some(again) = fast.answer(packet, (transport, false), &config, random, &mut short) {
        assert_eq!((show(&short), again), (shown, outcome));
    }
    upstream(packet);
}

/// Shows all of a reply but the order of its records.
fn show(reply: &[u8]) -> String {
    let message = Message::from_vec(reply).expect("a reply that can be read");
    assert_eq!(message.metadata.message_type, MessageType::Response);
    let sections = [&message.answers, &message.authorities, &message.additionals].map(|records| {
        let mut lines: Vec<String> = records.iter().map(ToString::to_string).collect();
        lines.sort();
        lines
    });
    format!("{:?} {:?} {:?} {sections:?}", message.metadata, message.queries, message.edns)
}

/// Takes the bytes for another server's reply.
fn upstream(bytes: &[u8]) {
    let Ok(asked) = Message::from_vec(bytes) else { return };
    let Some(query) = asked.queries.first() else { return };
    let Some(key) = Key::own(&query.name().to_ascii(), query.query_type()) else { return };
    let mut bytes = bytes.to_vec();
    bytes[2] = 0x80;
    let Some(reply) = Reply::read(&bytes, asked.metadata.id, &key) else { return };
    let _ = reply.foreign();
    let mut out = Vec::new();
    let shown = Shown {
        id: 3,
        name: key.name(),
        is_recursion_desired: true,
        is_checking_disabled: false,
        wants_authentic: true,
        bytes_max: 1_232,
        opt: &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0],
        age: 5,
        ttl_max: 60,
        ttl_min: 0,
    };
    let is_cut = reply.write(&mut out, &shown);
    assert!(is_cut || out.len() <= 1_232);
    assert_eq!(out[..2], [0, 3]);
}

static VIEW: LazyLock<Arc<View>> = LazyLock::new(|| Arc::new(view()));

fn view() -> View {
    let id = NodeId([1; 16]);
    let meta = [("rack".to_owned(), "r1".to_owned())].into();
    let node = Node {
        name: "n1".to_owned(),
        address: "10.0.0.1".to_owned(),
        datacenter: "dc1".to_owned(),
        meta,
        ..Node::default()
    };
    let view = View::new(id);
    let view = fold(&view, rows::NODES, &["id"], vec![node_row(&id.to_string(), &node)]);
    let service = |name: &str, n: u8, address: String| {
        let service = Service {
            id: format!("{name}{n}"),
            name: name.to_owned(),
            address,
            port: 80 + i64::from(n),
            tags: vec!["blue".to_owned(), format!("t{n}"), "h2".to_owned()],
            ..Service::default()
        };
        service_row(&id.to_string(), &service)
    };
    let apps = (0..40).map(|n| service("app", n, format!("10.1.0.{n}")));
    let dbs = (0..3).map(|n| service("db", n, String::new()));
    let out = [service("out", 1, "db.example.com".to_owned())];
    fold(&view, rows::SERVICES, &["node_id", "id"], apps.chain(dbs).chain(out).collect())
}

/// Folds rows of one table into a view, as one commit.
fn fold(view: &View, table: &str, key: &[&str], rows: Vec<Vec<(&'static str, Value)>>) -> View {
    let columns: Vec<&str> = rows[0].iter().map(|(name, _)| *name).collect();
    let place = |name: &&str| columns.iter().position(|column| column == name).expect("a column");
    let key: Vec<usize> = key.iter().map(place).collect();
    let event = |row: Vec<(&str, Value)>| {
        let values: Vec<Value> = row.into_iter().map(|(_, value)| value).collect();
        let key = key.iter().map(|index| values[*index].clone()).collect();
        RowEvent { key, existed: false, row: Some(values) }
    };
    let events = rows.into_iter().map(event).collect();
    let columns = columns.iter().map(|name| (*name).into()).collect();
    let info = TableInfo { name: table.into(), columns, key: key.clone() };
    let tables = vec![TableEvents { table: Arc::new(info), rows: RowEvents::Each(events) }];
    let at = Hlc(view.index_max() + 1);
    view.fold(&Commit { seq: Seq(at.0), at, tables, changeset: None, heads: Vec::new() }).0
}
