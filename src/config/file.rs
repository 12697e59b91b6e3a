//! The configuration file as it is written: TOML, every key optional, unknown keys refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;
use super::parse::Span;

/// The whole file. `contrib/config.example.toml` lists every key with its default.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The node's name. Default: the certificate's, else the host's.
    pub node: Option<String>,
    /// The node's id, a UUID. Default: the certificate's, else the one in the data directory.
    pub node_id: Option<String>,
    /// Default `dc1`.
    pub datacenter: Option<String>,
    /// The address under which others reach this host: an IP address or a host name.
    /// Default: the gossip address, or the one this host would use to reach the outside.
    pub address: Option<String>,
    /// Where the database lives. Default `/var/lib/tribune`.
    pub data_dir: Option<PathBuf>,
    /// Files, or directories of `*.sql` files, with tables beside the fixed ones.
    pub schema: Option<Vec<PathBuf>>,
    /// Facts about the host that catalog readers can filter by.
    pub node_meta: BTreeMap<String, String>,
    pub log: Log,
    pub http: Http,
    pub dns: Dns,
    pub watchdog: Watchdog,
    pub gossip: Gossip,
    pub consul: Consul,
    pub kv: Kv,
    pub checks: Checks,
    pub tombstones: Tombstones,
}

/// What is logged, and how. Logs go to the standard error output.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or a filter such as
    /// `info,tribune::dns=debug`. Default `info`.
    pub level: Option<String>,
    /// `plain` or `json`. Default `plain`.
    pub format: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Default `["127.0.0.1:8500"]`.
    pub listen: Option<Vec<String>>,
    /// Host names that requests to a loopback address may carry, beside addresses, names without
    /// a dot and those of private zones: it keeps foreign web pages out. Default none.
    pub hosts: Option<Vec<String>>,
    /// Connections in all. Default 16,384, or half of the files that the system lets it open.
    pub connections_max: Option<usize>,
    /// Connections from one address of another host. Default 200, as in Consul.
    pub connections_per_client_max: Option<usize>,
    /// Connections from each loopback address, behind which all programs of the host stand. Default
    /// 12,288, or three quarters of those in all.
    pub connections_per_loopback_max: Option<usize>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Default `["127.0.0.1:8600"]`, and port 53 of both loopback addresses where the system
    /// permits it.
    pub listen: Option<Vec<String>>,
    /// The zone that answers belong to. Default `internal`.
    pub domain: Option<String>,
    /// Zones with the same content. Default `["consul"]`.
    pub alt_domains: Option<Vec<String>>,
    /// Leaves out instances that warn, too. Default false.
    pub only_passing: Option<bool>,
    /// TTL of answers about nodes. Default `0s`.
    pub node_ttl: Option<Span>,
    /// TTLs of answers about services: by name, by `prefix*`, or `*`. Default none: 0.
    pub service_ttl: BTreeMap<String, Span>,
    /// In which order instances are answered, by name, by `prefix*`, or `*`: `random`, `weighted` or `near`
    /// (by measured round trips). Default none: random.
    pub order: BTreeMap<String, String>,
    /// Services whose instances that warn are left out, too, by name, by `prefix*`, or `*`. Default none.
    pub only_passing_services: BTreeMap<String, bool>,
    /// At most this many A or AAAA records an answer; 0: no limit. Default 0.
    pub a_record_limit: Option<usize>,
    /// At most this many records in an answer over UDP; 0: as many as fit. Default 0.
    pub udp_answer_limit: Option<usize>,
    /// Sets the truncation flag when an answer over UDP was cut. Default true.
    pub enable_truncate: Option<bool>,
    /// What a client is told that asks which server answered (NSID), at most 64 bytes; empty: nothing.
    /// Default: the node's name as it is configured, else the host's.
    pub nsid: Option<String>,
    /// SRV targets stay in `consul.` whatever zone was asked, as Consul 1.8 has it. Default false.
    pub srv_targets_in_consul: Option<bool>,
    /// Node meta as TXT records beside SRV answers. Default true.
    pub additional_node_meta_txt: Option<bool>,
    /// Names of the nodes that the zones' NS records list. Default none: this node alone.
    pub name_servers: Option<Vec<String>>,
    /// The largest answer over UDP, 512 to 4096 bytes. Default 1232, which crosses every path.
    pub udp_bytes_max: Option<u16>,
    /// Writes every name in full. Default false.
    pub disable_compression: Option<bool>,
    /// A certificate in PEM form, with those that lead to its CA, and its key: for DNS over TLS and HTTPS.
    /// They are read again when they change. Default none.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// Where DNS over TLS is spoken (RFC 7858); its usual port is 853. Default none.
    pub tls_listen: Option<Vec<String>>,
    /// Where DNS over HTTPS is spoken (RFC 8484), under `/dns-query`. Default none.
    pub https_listen: Option<Vec<String>>,
    /// Networks whose questions are answered; others are refused. Default `["any"]`.
    pub allow_query: Option<Vec<String>>,
    /// Answers a second over UDP to a network of strangers; 0: no limit. Default 200.
    pub stranger_rate: Option<u32>,
    /// How many times longer than its question an answer over UDP to a stranger may be; 0: no limit.
    /// Default 10.
    pub stranger_factor: Option<usize>,
    /// Servers that are asked about names outside of the zones. Default none: such names are refused.
    pub recursors: Option<Vec<String>>,
    /// How long one of them may take. Default `2s`.
    pub recursor_timeout: Option<Span>,
    /// Which one is asked first: `sequential` or `random`. Default `sequential`.
    pub recursor_strategy: Option<String>,
    /// How many of their answers are remembered; 0: none. Default 10000.
    pub recursor_cache_entries: Option<usize>,
    /// How long an answer is remembered at most. Default `24h`.
    pub recursor_ttl_max: Option<Span>,
    /// How long it is remembered at most that there is nothing. Default `5m`.
    pub recursor_negative_ttl_max: Option<Span>,
    /// Networks for whom other servers are asked. Default `["private"]`.
    pub allow_recursion: Option<Vec<String>>,
    /// Servers that are asked about the names of one domain. Default none.
    pub forward: BTreeMap<String, Vec<String>>,
    pub soa: Soa,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watchdog {
    /// How long the engine, the writer or a DNS loop may stand still before the process ends, so
    /// that it is started afresh; ten times as long where it waits for the disk. `0s`: for ever.
    /// Default `30s`.
    pub limit: Option<Span>,
}

/// When deleted rows are forgotten.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tombstones {
    /// Forgets them once every member is known to hold the delete. The same on all nodes. Default
    /// true.
    pub collect: Option<bool>,
    /// How often all members are asked what they hold. Default `10m`.
    pub every: Option<Span>,
    /// How long a member may be away before the others no longer wait for it. Should it return later,
    /// it takes over all rows of another node. Default `72h`.
    pub forget_after: Option<Span>,
}

/// The SOA record's times.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Soa {
    /// Default `1h`.
    pub refresh: Option<Span>,
    /// Default `10m`.
    pub retry: Option<Span>,
    /// Default `24h`.
    pub expire: Option<Span>,
    /// How long a resolver may remember that a name does not exist. Default `0s`.
    pub min_ttl: Option<Span>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gossip {
    /// Default `0.0.0.0:7401`, or `127.0.0.1:7401` without certificates.
    pub listen: Option<String>,
    /// The address that other nodes should dial, when it is not the one listened on.
    pub advertise: Option<String>,
    /// Members to join by: `host:port` or `host`, any one of which is enough.
    pub join: Option<Vec<String>>,
    /// A node that starts without a database asks the members above for a snapshot of theirs, and
    /// gets the rest like any other node. Default true.
    pub snapshot: Option<bool>,
    /// How many bytes a second of other nodes' changes are sent to all peers together: those passed on,
    /// and answers to who is behind. Sensible: 1 to 100 MiB. Default 8,388,608.
    pub send_bytes_per_second: Option<u64>,
    /// The cluster's CA certificate, this node's certificate and its key, as PEM files.
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The number of this node's region. Default 0.
    pub scope: Option<u16>,
    /// How long a change may be known to exist, and be missing here, until `/v1/status/ready` answers
    /// 503. Default `30s`.
    pub ready_lag_max: Option<Span>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Consul {
    /// The Consul agent on this host, such as `http://127.0.0.1:8500`. Default: none is read.
    pub url: Option<String>,
    pub token: Option<String>,
    /// A file that holds the token, in place of `token`.
    pub token_file: Option<PathBuf>,
    /// How often the agent is read where it cannot be waited on. Default `1s`.
    pub interval: Option<Span>,
    /// For how long an agent must keep saying that most of its services are gone. Default `30s`.
    pub grace: Option<Span>,
    /// Passes on to the agent, unchanged, what this node does not serve (ACLs, Connect, Raft), and
    /// keys, sessions and their transactions as a whole. Who may reach the HTTP port reaches the
    /// agent then; what a client may there, its own token says. Default false.
    pub proxy: Option<bool>,
    /// Lists this node as a server in the service `consul`, with this port. Default: it is not there.
    pub server_port: Option<u16>,
}

/// Keys and values.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kv {
    /// The Consul agent that keeps keys and sessions, such as `http://10.0.0.1:8500`: all that asks
    /// for them is passed on to it, unchanged. Default: this cluster keeps keys, and has no locks.
    pub upstream: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checks {
    /// Runs script checks whoever registered them. Anyone who can reach the HTTP port can then
    /// run programs on this host. Default false.
    pub enable_script_checks: Option<bool>,
    /// Runs script checks that come from files on this host. Default false.
    pub enable_local_script_checks: Option<bool>,
    /// Longest output kept of a check, in bytes. Default 4096.
    pub output_bytes_max: Option<usize>,
    /// How often a changed output is replicated while the status stays the same. Default `5m`.
    pub update_interval: Option<Span>,
}

impl File {
    /// Reads a file. The error names the file, the line, and the key that is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::new(format!(
                "cannot read the configuration file {}: {error}",
                path.display()
            ))
        })?;
        Self::parse(&text)
            .map_err(|error| ConfigError::new(format!("{}: {}", path.display(), error.0)))
    }

    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::new(error.to_string().trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = File::parse("node = \"a\"\n[dns]\nlisten_on = []\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("listen_on"), "{error}");
    }

    #[test]
    fn a_wrong_duration_says_how_to_write_one() {
        let error = File::parse("[dns]\nnode_ttl = \"5 parsecs\"\n").unwrap_err().to_string();
        assert!(error.contains("write it like 500ms"), "{error}");
    }

    #[test]
    fn the_example_lists_every_default_and_parses() {
        let example = include_str!("../../contrib/config.example.toml");
        let uncommented: String = example
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        File::parse(example).expect("the example as it stands");
        let all = File::parse(&uncommented).expect("the example with every setting switched on");
        assert!(all.consul.url.is_some() && all.checks.update_interval.is_some());
    }
}
