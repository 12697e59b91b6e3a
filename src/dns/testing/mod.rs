//! For this room's tests: views made of commits, questions as bytes, replies as text.

pub mod running;

use std::collections::BTreeMap;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::answer::{Reply, Transport, answer};
use super::config::Config;
use crate::catalog::model::{Check, Node, Service, Status};
use crate::catalog::queries::PreparedQuery;
use crate::catalog::rows::{self, check_row, node_row, query_row, service_row};
use crate::catalog::{View, Weights};
use crate::crdt::change::{Commit, RowEvent, RowEvents, TableEvents, TableInfo};
use crate::types::{Hlc, NodeId, Seq, Value};

/// The node that answers in all tests.
pub const ME: &str = "11111111-1111-1111-1111-111111111111";

/// A catalog that grows by commits of one row.
pub struct Catalog {
    pub view: View,
    seq: u64,
}

impl Catalog {
    /// Makes an empty catalog, as this node sees it.
    pub fn empty() -> Self {
        let me: NodeId = ME.parse().unwrap();
        Self { view: View::new(me), seq: 0 }
    }

    /// Makes a catalog with this node in it: `n1` at 127.0.0.1.
    pub fn new() -> Self {
        Self::empty().node(ME, "n1", "127.0.0.1", &[])
    }

    pub fn node(mut self, key: &str, name: &str, address: &str, meta: &[(&str, &str)]) -> Self {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let node = Node {
            name: name.to_owned(),
            address: address.to_owned(),
            datacenter: "dc1".to_owned(),
            meta: meta.iter().map(own).collect::<BTreeMap<_, _>>(),
            ..Node::default()
        };
        self.put_node(key, &node);
        self
    }

    /// Adds an external node, whose key its name is part of.
    pub fn external(self, name: &str, address: &str) -> Self {
        self.node(&format!("{ME}/{name}"), name, address, &[])
    }

    /// Adds an instance on this node: `name id address:port tag,tag`.
    pub fn instance(self, text: &str) -> Self {
        self.instance_on(ME, text)
    }

    pub fn instance_on(mut self, key: &str, text: &str) -> Self {
        let mut words = text.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let (name, id) = (word(), word());
        let (address, port) = word().rsplit_once(':').expect("an address with a port");
        let service = Service {
            id: id.to_owned(),
            name: name.to_owned(),
            tags: word().split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
            address: address.to_owned(),
            port: port.parse().expect("a port"),
            weights: Weights { passing: 10, warning: 2 },
            ..Service::default()
        };
        self.put_service(key, &service);
        self
    }

    /// Gives an instance of this node a check.
    pub fn check(mut self, service_id: &str, status: Status) -> Self {
        let check = Check {
            id: format!("check of {service_id}"),
            service_id: service_id.to_owned(),
            status,
            ..Check::default()
        };
        self.put_check(ME, &check);
        self
    }

    /// Stores a prepared query under an id.
    pub fn query(mut self, id: &str, query: &PreparedQuery) -> Self {
        self.put(rows::QUERIES, &["id"], query_row(id, query));
        self
    }

    pub fn put_node(&mut self, key: &str, node: &Node) {
        self.put(rows::NODES, &["id"], node_row(key, node));
    }

    pub fn put_service(&mut self, key: &str, service: &Service) {
        self.put(rows::SERVICES, &["node_id", "id"], service_row(key, service));
    }

    pub fn put_check(&mut self, key: &str, check: &Check) {
        self.put(rows::CHECKS, &["node_id", "id"], check_row(key, check));
    }

    fn put(&mut self, table: &str, key: &[&str], row: Vec<(&'static str, Value)>) {
        let (columns, values): (Vec<&str>, Vec<Value>) = row.into_iter().unzip();
        let place = |name: &&str| columns.iter().position(|column| column == name).unwrap();
        let key: Vec<usize> = key.iter().map(place).collect();
        let info = TableInfo {
            name: table.into(),
            columns: columns.iter().map(|name| (*name).into()).collect(),
            key: key.clone(),
        };
        let key_values = key.iter().map(|index| values[*index].clone()).collect();
        let event = RowEvent { key: key_values, existed: false, row: Some(values) };
        self.seq += 1;
        let commit = Commit {
            seq: Seq(self.seq),
            at: Hlc(self.seq),
            tables: vec![TableEvents { table: Arc::new(info), rows: RowEvents::Each(vec![event]) }],
            changeset: None,
            heads: Vec::new(),
        };
        self.view = self.view.fold(&commit).0;
    }
}

/// Writes a question, such as `web.service.consul SRV`, with an EDNS buffer unless that is 0.
pub fn question(text: &str, edns_bytes: u16) -> Vec<u8> {
    let (name, kind) = text.split_once(' ').expect("a name and a type");
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    let mut message = Message::new(4_711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind.parse::<RecordType>().unwrap()));
    if edns_bytes > 0 {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(edns_bytes);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// Reads a record: `name ttl type data`.
pub fn record(text: &str) -> Record {
    let mut words = text.splitn(4, ' ');
    let mut word = || words.next().expect("a name, a TTL, a type and data");
    let (name, ttl, kind, data) = (word(), word(), word(), word());
    let kind: RecordType = kind.parse().unwrap();
    let data = RData::try_from_str(kind, data).expect("record data");
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl.parse().unwrap(), data)
}

/// Answers a packet and reads the reply with another's decoder.
pub fn ask(view: &View, config: &Config, packet: &[u8], transport: Transport) -> Message {
    match answer(view, config, packet, transport, 7, 1_700_000_000) {
        Reply::Bytes(bytes) => Message::from_vec(&bytes).expect("a reply that can be read"),
        Reply::Silence => panic!("no reply to {packet:?}"),
    }
}

/// Asks over UDP with an EDNS buffer of 1,232 bytes and shows the reply: its code unless that is
/// NOERROR, then the sections that have records, each sorted: `answers | authorities | additionals`.
pub fn show(catalog: &Catalog, config: &Config, text: &str) -> String {
    let message = ask(&catalog.view, config, &question(text, 1_232), Transport::Udp);
    let code = match message.metadata.response_code {
        ResponseCode::NoError => String::new(),
        code => format!("{code:?} "),
    };
    let section = |records: &[Record]| {
        let mut lines: Vec<String> = records.iter().map(line).collect();
        lines.sort();
        lines.join(", ")
    };
    let sections = [&message.answers, &message.authorities, &message.additionals];
    let sections = sections.map(|records| section(records)).join(" | ");
    format!("{code}{sections}").trim_end_matches([' ', '|']).trim_start().to_owned()
}

/// Shows a record without its TTL where that is 0, and an SOA by its owner alone.
fn line(record: &Record) -> String {
    let ttl = if record.ttl == 0 { String::new() } else { format!(" {}", record.ttl) };
    let (owner, kind) = (record.name.to_ascii(), record.record_type());
    let data = data_of(record);
    if matches!(record.data, RData::SOA(_)) {
        return format!("{owner}{ttl} SOA");
    }
    format!("{owner}{ttl} {kind} {data}")
}

/// Shows a record's data as `dig` does, but for the SOA's serial.
pub fn data_of(record: &Record) -> String {
    match &record.data {
        RData::TXT(txt) => {
            let part = |part: &[u8]| format!("\"{}\"", String::from_utf8_lossy(part));
            txt.txt_data.iter().map(|data| part(data)).collect::<Vec<_>>().join(" ")
        }
        RData::SRV(srv) => {
            format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target.to_ascii())
        }
        RData::SOA(soa) => format!(
            "{} {} <serial> {} {} {} {}",
            soa.mname, soa.rname, soa.refresh, soa.retry, soa.expire, soa.minimum
        ),
        data => data.to_string(),
    }
}
