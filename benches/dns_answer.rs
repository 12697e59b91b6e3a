//! What one DNS answer costs: 1,000 services of 3 instances each, asked one after the other.
//!
//! `cargo bench --bench dns_answer`; with `--test` it runs small and only checks that all answer.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tribune::catalog::model::{Node, Service};
use tribune::catalog::rows::{self, node_row, service_row};
use tribune::catalog::{View, Weights};
use tribune::crdt::change::{Commit, RowEvent, RowEvents, TableEvents, TableInfo};
use tribune::dns::answer::{Answered, Request, Transport, answer_and_learn, answer_into};
use tribune::dns::choose::Random;
use tribune::dns::config::Config;
use tribune::dns::fast::Fast;
use tribune::types::{Hlc, NodeId, Seq, Value};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let (services, rounds) = if is_test { (10, 1) } else { (1_000, 500) };
    let view = view(services);
    for kind in [RecordType::A, RecordType::SRV] {
        let packets: Vec<Vec<u8>> = (0..services).map(|n| question(n, kind)).collect();
        let nanos = measure(&view, &packets, rounds);
        let again = measure_again(&view, &packets, rounds);
        println!(
            "{kind}: {nanos} ns an answer that is worked out, {again} ns one that was before \
             ({services} services of 3 instances)"
        );
    }
}

/// Returns the nanoseconds of one answer, on average.
fn measure(view: &View, packets: &[Vec<u8>], rounds: usize) -> u128 {
    let config = Config::default();
    let mut reply = Vec::with_capacity(4_096);
    let start = Instant::now();
    for round in 0..rounds {
        for packet in packets {
            let (seed, transport) = (round as u64, Transport::Udp);
            let request = Request {
                packet,
                transport,
                seed,
                now_unix: 1,
                client: None,
                known: None,
                distances: None,
            };
            let answered = answer_into(view, &config, request, &mut reply);
            assert!(matches!(answered, Answered::Reply(_)), "a reply");
            assert_eq!(reply[7], 3, "three answers");
        }
    }
    start.elapsed().as_nanos() / (rounds * packets.len()) as u128
}

/// Returns the nanoseconds of one answer that was worked out before, on average.
fn measure_again(view: &View, packets: &[Vec<u8>], rounds: usize) -> u128 {
    let config = Config::default();
    let view = Arc::new(view.clone());
    let mut fast = Fast::new(Arc::clone(&view), &config);
    let (transport, mut reply) = (Transport::Udp, Vec::with_capacity(4_096));
    for packet in packets {
        let request = Request {
            packet,
            transport,
            seed: 1,
            now_unix: 1,
            client: None,
            known: None,
            distances: None,
        };
        answer_and_learn(&view, &config, request, Some(&mut fast), &mut reply);
    }
    let mut random = Random(1);
    let start = Instant::now();
    for _ in 0..rounds {
        for packet in packets {
            reply.clear();
            let circumstances = (transport, false);
            let outcome = fast.answer(packet, circumstances, &config, &mut random, &mut reply);
            assert!(outcome.is_some(), "it is known");
            assert_eq!(reply[7], 3, "three answers");
        }
    }
    start.elapsed().as_nanos() / (rounds * packets.len()) as u128
}

fn question(service: usize, kind: RecordType) -> Vec<u8> {
    let name = Name::from_ascii(format!("service-{service}.internal.")).expect("a name");
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1_232);
    message.set_edns(edns);
    message.to_vec().expect("a question")
}

fn view(services: usize) -> View {
    let nodes: Vec<NodeId> = (1..=3).map(|n| NodeId([n; 16])).collect();
    let mut view = View::new(nodes[0]);
    for (index, id) in nodes.iter().enumerate() {
        let node = Node {
            name: format!("node-{index}"),
            address: format!("10.0.0.{index}"),
            datacenter: "dc1".to_owned(),
            ..Node::default()
        };
        view = fold(&view, rows::NODES, &["id"], vec![node_row(&id.to_string(), &node)]);
        let rows = (0..services).map(|n| {
            let service = Service {
                id: format!("service-{n}-{index}"),
                name: format!("service-{n}"),
                port: 8_000,
                weights: Weights::default(),
                ..Service::default()
            };
            service_row(&id.to_string(), &service)
        });
        view = fold(&view, rows::SERVICES, &["node_id", "id"], rows.collect());
    }
    view
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
