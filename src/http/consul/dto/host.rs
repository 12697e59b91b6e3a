//! What Consul's agent tells of itself and of its fellow members.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::catalog::View;
use crate::node::Local;
use crate::node::handle::{MemberState, MemberStatus};
use crate::telemetry::{Family, Points};

/// The version of Consul whose API this face speaks. Clients read it to decide what they may ask:
/// Nomad needs one that parses, the command line prints it.
pub const CONSUL_VERSION: &str = "1.8.7";

/// A member: `agent/members`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Member {
    pub name: String,
    pub addr: String,
    pub port: u16,
    pub tags: BTreeMap<&'static str, String>,
    /// 1 alive, 2 leaving, 3 left, 4 failed.
    pub status: u8,
    pub protocol_min: u8,
    pub protocol_max: u8,
    pub protocol_cur: u8,
    pub delegate_min: u8,
    pub delegate_max: u8,
    pub delegate_cur: u8,
}

impl Member {
    /// Tells a member in Consul's words. It is called a server: like one, it answers from its own
    /// copy of the catalog.
    pub fn of(member: &MemberStatus, view: &View) -> Self {
        let id = member.id.to_string();
        let node = view.node_by_key(&id).map(|entry| &entry.info.node);
        let tags = BTreeMap::from([
            ("acls", "0".to_owned()),
            ("build", format!("{CONSUL_VERSION}:")),
            ("dc", node.map_or_else(String::new, |node| node.datacenter.clone())),
            ("id", id.clone()),
            ("port", member.gossip.port().to_string()),
            ("role", "consul".to_owned()),
            ("segment", String::new()),
            ("tribune", node.map_or_else(String::new, |node| node.version.clone())),
            ("vsn", "2".to_owned()),
            ("vsn_max", "3".to_owned()),
            ("vsn_min", "2".to_owned()),
        ]);
        Self {
            name: node.map_or(id, |node| node.name.clone()),
            addr: member.gossip.ip().to_string(),
            port: member.gossip.port(),
            tags,
            status: status_of(member.state),
            protocol_min: 1,
            protocol_max: 5,
            protocol_cur: 2,
            delegate_min: 2,
            delegate_max: 5,
            delegate_cur: 4,
        }
    }
}

fn status_of(state: MemberState) -> u8 {
    match state {
        // Serf, too, calls a suspect alive until it is sure.
        MemberState::Alive | MemberState::Suspect => 1,
        MemberState::Left => 3,
        MemberState::Down => 4,
    }
}

/// `agent/self`. Clients read `Config` (Prometheus, Nomad, the command line) and `Member.Tags`.
pub fn own(local: &Local, members: &[MemberStatus], view: &View) -> Value {
    let member = members.iter().find(|member| member.id == local.id);
    let entry = view.own();
    let services = entry.map_or(0, |entry| entry.instances().len());
    let checks = entry.map_or(0, |entry| {
        let of_instances: usize = entry.instances().map(|one| one.checks.len()).sum();
        // `serfHealth` is among the node's checks, and is not the agent's.
        entry.checks.len().saturating_sub(1) + of_instances
    });
    let id = local.id.to_string();
    json!({
        "Config": {
            "Datacenter": local.datacenter,
            "NodeName": local.name,
            "NodeID": id,
            "Revision": concat!("tribune-", env!("CARGO_PKG_VERSION")),
            "Server": true,
            "Version": CONSUL_VERSION,
        },
        "DebugConfig": {
            "ConnectEnabled": false,
            "Datacenter": local.datacenter,
            "GRPCPort": -1,
            "GRPCTLSPort": -1,
            "NodeID": id,
            "NodeName": local.name,
        },
        "Coord": null,
        "Member": member.map(|member| Member::of(member, view)),
        "Stats": {
            "agent": { "checks": checks.to_string(), "services": services.to_string() },
            "build": { "version": env!("CARGO_PKG_VERSION"), "prerelease": "", "revision": "" },
            "consul": { "server": "true", "acl": "disabled" },
            "serf_lan": { "members": members.len().to_string() },
        },
        "Meta": entry.map(|entry| &entry.info.node.meta),
    })
}

/// `agent/metrics` in Consul's JSON. `at` is its time stamp, as text.
pub fn metrics(at: &str, families: &[(&'static str, Family)]) -> Value {
    let (mut gauges, mut counters, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    for (room, family) in families {
        let unit = family.unit.map_or_else(String::new, |unit| format!(".{unit}"));
        let name = format!("tribune.{room}.{}{unit}", family.what);
        match &family.points {
            Points::Counter(points) => counters.extend(points.iter().map(|(labels, value)| {
                let labels: BTreeMap<_, _> = labels.iter().cloned().collect();
                aggregate(&name, labels, *value, *value as f64)
            })),
            Points::Gauge(points) => gauges.extend(points.iter().map(|(labels, value)| {
                let labels: BTreeMap<_, _> = labels.iter().cloned().collect();
                json!({ "Name": name, "Value": value, "Labels": labels })
            })),
            Points::Histogram(points) => samples.extend(points.iter().map(|(labels, held)| {
                let labels: BTreeMap<_, _> = labels.iter().cloned().collect();
                aggregate(&name, labels, held.count, held.sum)
            })),
        }
    }
    json!({
        "Timestamp": at,
        "Gauges": gauges,
        "Points": [],
        "Counters": counters,
        "Samples": samples,
    })
}

/// Count and sum are kept since the process started; the rest of Consul's figures are not kept,
/// and show what count and sum say of them.
fn aggregate(name: &str, labels: BTreeMap<&'static str, String>, count: u64, sum: f64) -> Value {
    let mean = if count == 0 { 0.0 } else { sum / count as f64 };
    json!({
        "Name": name, "Count": count, "Rate": 0.0, "Sum": sum,
        "Min": 0.0, "Max": 0.0, "Mean": mean, "Stddev": 0.0, "Labels": labels,
    })
}

/// `agent/version`, as Consul has it from 1.12 on.
pub fn version() -> Value {
    json!({
        "SHA": "",
        "BuildDate": "1970-01-01T00:00:01Z",
        "HumanVersion": CONSUL_VERSION,
        "FIPS": "",
        "Tribune": env!("CARGO_PKG_VERSION"),
    })
}

/// `agent/host`: what the kernel says of the machine. `at_nanos` is the time since 1970.
pub fn machine(at_nanos: u128) -> Value {
    let kernel = rustix::system::uname();
    let state = rustix::system::sysinfo();
    let unit = u64::from(state.mem_unit.max(1));
    let total = state.totalram.saturating_mul(unit);
    let free = state.freeram.saturating_mul(unit);
    let uptime = u64::try_from(state.uptime).unwrap_or(0);
    let now = u64::try_from(at_nanos / 1_000_000_000).unwrap_or(0);
    json!({
        "Memory": { "total": total, "free": free, "used": total.saturating_sub(free) },
        "CPU": [],
        "Host": {
            "hostname": kernel.nodename().to_string_lossy(),
            "uptime": uptime,
            "bootTime": now.saturating_sub(uptime),
            "procs": state.procs,
            "os": "linux",
            "kernelVersion": kernel.release().to_string_lossy(),
            "kernelArch": kernel.machine().to_string_lossy(),
        },
        "Disk": {},
        "CollectionTime": u64::try_from(at_nanos).unwrap_or(u64::MAX),
        "Errors": null,
    })
}
