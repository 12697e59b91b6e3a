//! What the view costs: folds, look-ups and memory, for a fleet of 1,000 services with three
//! instances each, and for one service with 5,000.
//!
//! `cargo bench --bench view` prints a table; run by `cargo test --benches` it is a small test.

#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tribune::catalog::model::{Check, Node, NodeKey, Service, Status, key_of};
use tribune::catalog::rows::{self, Row};
use tribune::catalog::view::Liveness;
use tribune::catalog::{Topic, View};
use tribune::crdt::{Commit, Name, RowEvent, RowEvents, TableEvents, TableInfo};
use tribune::types::{Hlc, NodeId, Seq, Value};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ME: NodeId = NodeId([0xff; 16]);

fn main() {
    let is_full = std::env::args().any(|arg| arg == "--bench");
    let (services, crowd, rounds) = if is_full { (1_000, 5_000, 2_000) } else { (10, 20, 10) };
    println!("{:<52}{:>14}", "", "each");
    wide(services, rounds);
    crowded(crowd, rounds);
}

/// Many services with three instances each, ten instances a node.
fn wide(services: usize, rounds: usize) {
    let fleet = Fleet { nodes: (services * 3).div_ceil(10), services, instances: services * 3 };
    println!("{services} services x 3 instances on {} nodes", fleet.nodes);
    let view = fleet.load();
    let held = fleet.changes(view, rounds);
    let names: Vec<String> = (0..services).map(|number| format!("service-{number}")).collect();
    let look_ups = time(rounds, |round| {
        black_box(held.service(&names[round * 7 % services]));
    });
    print("look a service up", look_ups);
    let topics: Vec<Topic> = names.iter().map(|n| Topic::Health(n.as_str().into())).collect();
    print(
        "its index",
        time(rounds, |round| {
            black_box(held.index(&topics[round * 7 % services]));
        }),
    );
}

/// One service with all the instances, two a node.
fn crowded(instances: usize, rounds: usize) {
    let fleet = Fleet { nodes: instances.div_ceil(2), services: 1, instances };
    println!("1 service x {instances} instances on {} nodes", fleet.nodes);
    let view = fleet.load();
    fleet.changes(view, rounds);
}

struct Fleet {
    nodes: usize,
    services: usize,
    instances: usize,
}

impl Fleet {
    fn node(&self, number: usize) -> NodeId {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        NodeId(id)
    }

    fn key(&self, instance: usize) -> NodeKey {
        key_of(self.node(instance % self.nodes))
    }

    fn check(&self, instance: usize, status: Status, output: &str) -> Row {
        let id = format!("service:i-{instance}");
        let check = Check {
            id,
            name: "HTTP on port 8080".to_owned(),
            status,
            output: output.to_owned(),
            service_id: format!("i-{instance}"),
            kind: "http".to_owned(),
            ..Check::default()
        };
        rows::check_row(&self.key(instance), &check)
    }

    /// Folds everything as one commit, as a node does when it starts.
    fn load(&self) -> View {
        let mut tables = Vec::new();
        for number in 0..self.nodes {
            let name = format!("node-{number}");
            let address = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
            let node = Node { name, address, datacenter: "dc1".to_owned(), ..Node::default() };
            tables.push((rows::NODES, 1, rows::node_row(&key_of(self.node(number)), &node)));
        }
        for instance in 0..self.instances {
            let service = Service {
                id: format!("i-{instance}"),
                name: format!("service-{}", instance % self.services),
                tags: vec!["v1".to_owned(), "http".to_owned()],
                port: 8080,
                meta: [("version".to_owned(), "1.2.3".to_owned())].into(),
                ..Service::default()
            };
            tables.push((rows::SERVICES, 2, rows::service_row(&self.key(instance), &service)));
            tables.push((rows::CHECKS, 2, self.check(instance, Status::Passing, "")));
        }
        let commit = commit(1_000, &tables);
        let rows = tables.len() as u32;
        // The commit stays until the memory is read, so that the view takes fresh memory.
        let (start, before) = (Instant::now(), resident_bytes());
        let (view, touched) = View::new(ME).fold(&commit);
        let (took, bytes) = (start.elapsed(), resident_bytes().saturating_sub(before));
        assert!(view.services().count() == self.services && touched.len() > self.services);
        drop(commit);
        print(&format!("fold {rows} rows as one commit (a row)"), took / rows);
        let label = "memory of an instance, with its check and its node";
        println!("  {label:<50}{:>12} B", bytes / self.instances);

        let start = Instant::now();
        let (_, touched) = view.fold_liveness(Hlc(view.index_max() + 1), Liveness::Settled);
        assert!(touched.contains(&Topic::Checks));
        print("fold the loss of all nodes (a node)", start.elapsed() / self.nodes as u32);
        view
    }

    /// Times small commits, one after the other, and returns the last view.
    fn changes(&self, mut view: View, rounds: usize) -> View {
        let mut at = 2_000;
        let mut fold = |label: &str, tables: &dyn Fn(usize) -> Vec<(&'static str, usize, Row)>| {
            let commits: Vec<Commit> = (0..rounds)
                .map(|round| {
                    at += 1;
                    commit(at, &tables(round))
                })
                .collect();
            let took = time(rounds, |round| view = view.fold(&commits[round]).0);
            print(label, took);
        };
        let row = |row| vec![(rows::CHECKS, 2, row)];
        fold("fold a check that turns critical", &|round| {
            row(self.check(round % self.instances, Status::Critical, "refused"))
        });
        fold("fold an output alone", &|round| {
            row(self.check(round % self.instances, Status::Critical, &round.to_string()))
        });
        fold("fold a check of a whole node", &|round| {
            let status = [Status::Passing, Status::Warning][round / self.nodes % 2];
            let check = Check { id: "disk".to_owned(), status, ..Check::default() };
            row(rows::check_row(&self.key(round), &check))
        });
        let took = time(rounds, |round| {
            let change = match round / self.nodes % 2 {
                0 => Liveness::Down(self.node(round % self.nodes)),
                _ => Liveness::Up(self.node(round % self.nodes)),
            };
            view = view.fold_liveness(Hlc(view.index_max() + 1), change).0;
        });
        print("fold a node's death", took);
        view
    }
}

fn commit(at: u64, tables: &[(&'static str, usize, Row)]) -> Commit {
    let tables = tables.iter().map(|(table, key_columns, row)| {
        let columns = row.iter().map(|(column, _)| Name::from(*column)).collect();
        let row: Vec<Value> = row.iter().map(|(_, value)| value.clone()).collect();
        let key = row[..*key_columns].to_vec();
        let info = TableInfo { name: (*table).into(), columns, key: (0..*key_columns).collect() };
        let rows = vec![RowEvent { key, existed: false, row: Some(row) }];
        TableEvents { table: Arc::new(info), rows: RowEvents::Each(rows) }
    });
    let (tables, heads) = (tables.collect(), Vec::new());
    Commit { seq: Seq(at), at: Hlc(at), tables, changeset: None, heads }
}

fn time(rounds: usize, mut step: impl FnMut(usize)) -> Duration {
    let start = Instant::now();
    (0..rounds).for_each(&mut step);
    start.elapsed() / rounds as u32
}

fn print(label: &str, each: Duration) {
    println!("  {label:<50}{:>11.2} us", each.as_nanos() as f64 / 1_000.0);
}

/// Returns the process's resident memory where the system tells.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or_default() * 4_096
}
