//! What an agent runs with: flags over environment over file over defaults, checked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use super::ConfigError;
use super::file::{self, File};
use super::parse;
use crate::node::GOSSIP_PORT;
use crate::types::{NodeId, Scope};

/// Ports, as product and clients know them.
pub const HTTP_PORT: u16 = 8500;
pub const DNS_PORT: u16 = 8600;

/// How long a loop of the node may stand still unless told otherwise: a healthy one says every
/// second that it lives.
const WATCHDOG_LIMIT: Duration = Duration::from_secs(30);
const WATCHDOG_LIMIT_MIN: Duration = Duration::from_secs(2);

/// From how many bytes on a database is got whole by a node that has none. Below, the rows come as
/// fast one by one: some 40,000 take a second.
const SNAPSHOT_BYTES_MIN: u64 = 8 << 20;

/// How much of other nodes' changes a node sends a second, unless it is told otherwise.
const SEND_BYTES_PER_SECOND: u64 = 8 << 20;

/// How often all members are asked what they hold, unless told otherwise, so that tombstones may go.
const ROUND_EVERY: Duration = Duration::from_secs(600);
const ROUND_EVERY_MIN: Duration = Duration::from_secs(1);

/// How long a member may be away before nobody waits for it, unless told otherwise.
const FORGET_AFTER: Duration = Duration::from_secs(72 * 3_600);

/// Where the database lives unless something else is said.
pub const DATA_DIR: &str = "/var/lib/tribune";

/// The flags of `tribune agent`, each with its environment variable.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct Flags {
    /// Configuration file (TOML)
    #[arg(long, short, value_name = "FILE", env = "TRIBUNE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Directory of the database [default: /var/lib/tribune]
    #[arg(long, value_name = "DIR", env = "TRIBUNE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Name of this node [default: the certificate's, else the host's]
    #[arg(long, value_name = "NAME", env = "TRIBUNE_NODE")]
    pub node: Option<String>,
    /// Id of this node, a UUID [default: the certificate's, else made once]
    #[arg(long, value_name = "UUID", env = "TRIBUNE_NODE_ID")]
    pub node_id: Option<String>,
    /// Datacenter of this node [default: dc1]
    #[arg(long, value_name = "DC", env = "TRIBUNE_DATACENTER")]
    pub datacenter: Option<String>,
    /// Address under which others reach this host
    #[arg(long, value_name = "ADDR", env = "TRIBUNE_ADDRESS")]
    pub address: Option<String>,
    /// HTTP listener, may be repeated [default: 127.0.0.1:8500]
    #[arg(long, value_name = "ADDR", env = "TRIBUNE_HTTP", value_delimiter = ',')]
    pub http: Vec<String>,
    /// DNS listener, may be repeated [default: 127.0.0.1:8600, and port 53 where permitted]
    #[arg(long, value_name = "ADDR", env = "TRIBUNE_DNS", value_delimiter = ',')]
    pub dns: Vec<String>,
    /// Gossip listener (QUIC over UDP) [default: 0.0.0.0:7401]
    #[arg(long, value_name = "ADDR", env = "TRIBUNE_GOSSIP")]
    pub gossip: Option<String>,
    /// Address of a member to join by, may be repeated
    #[arg(long, value_name = "ADDR", env = "TRIBUNE_JOIN", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Whether a node without a database asks a member for a snapshot of its own [default: true]
    #[arg(long, value_name = "BOOL", env = "TRIBUNE_SNAPSHOT")]
    pub snapshot: Option<bool>,
    /// From how many bytes on a snapshot is worth it: for tests
    #[arg(long, value_name = "BYTES", env = "TRIBUNE_SNAPSHOT_BYTES_MIN", hide = true)]
    pub snapshot_bytes_min: Option<u64>,
    /// The cluster's CA certificate (PEM)
    #[arg(long, value_name = "FILE", env = "TRIBUNE_CA")]
    pub ca: Option<PathBuf>,
    /// This node's certificate (PEM)
    #[arg(long, value_name = "FILE", env = "TRIBUNE_CERT")]
    pub cert: Option<PathBuf>,
    /// The key of this node's certificate (PEM)
    #[arg(long, value_name = "FILE", env = "TRIBUNE_KEY")]
    pub key: Option<PathBuf>,
    /// Consul agent on this host to take services and checks over from
    #[arg(long, value_name = "URL", env = "TRIBUNE_CONSUL")]
    pub consul: Option<String>,
    /// Token for the Consul agent
    #[arg(long, value_name = "TOKEN", env = "TRIBUNE_CONSUL_TOKEN", hide_env_values = true)]
    pub consul_token: Option<String>,
    /// File, or directory of *.sql files, with further tables; may be repeated
    #[arg(long, value_name = "PATH", env = "TRIBUNE_SCHEMA", value_delimiter = ',')]
    pub schema: Vec<PathBuf>,
    /// Log level or filter [default: info]
    #[arg(long, value_name = "LEVEL", env = "TRIBUNE_LOG")]
    pub log: Option<String>,
    /// Log format, plain or json [default: plain]
    #[arg(long, value_name = "FORMAT", env = "TRIBUNE_LOG_FORMAT")]
    pub log_format: Option<String>,
}

/// Checked settings of one agent. No other room asks where a setting came from.
#[derive(Clone, PartialEq, Debug)]
pub struct Agent {
    pub data_dir: PathBuf,
    /// `None`: the certificate's name, else the host's.
    pub node: Option<String>,
    /// `None`: the certificate's id, else the data directory's.
    pub node_id: Option<NodeId>,
    pub datacenter: String,
    /// The address that others reach this host under.
    pub address: String,
    pub node_meta: BTreeMap<String, String>,
    pub schema: Vec<PathBuf>,
    pub http: Vec<SocketAddr>,
    /// Host names that requests to a loopback address may carry, beside the usual ones.
    pub http_hosts: Vec<String>,
    /// Connections in all, from one address, and from one loopback address; none is 0.
    pub http_connections: [Option<usize>; 3],
    /// The second part is true where it is no error that the address cannot be bound.
    pub dns: Vec<(SocketAddr, bool)>,
    pub dns_options: file::Dns,
    pub gossip: Gossip,
    pub consul: Option<Consul>,
    /// The agent that answers what this node does not serve, and whether that is all of it, or keys
    /// and sessions alone.
    pub upstream: Option<(String, bool)>,
    /// The port under which this node is listed as a server in the service `consul`.
    pub server_port: Option<u16>,
    pub checks: file::Checks,
    /// How long a loop of the node may stand still; zero: for ever.
    pub watchdog_limit: Duration,
    pub tombstones: Tombstones,
    pub log_level: String,
    pub log_json: bool,
}

/// How the node meets others.
#[derive(Clone, PartialEq, Debug)]
pub struct Gossip {
    pub listen: SocketAddr,
    /// What other nodes should dial.
    pub advertise: SocketAddr,
    pub join: Vec<String>,
    /// From how many bytes on a node without a database gets a member's whole, before it starts.
    /// `None`: never.
    pub snapshot_bytes_min: Option<u64>,
    /// How much is sent of other nodes' changes.
    pub send_bytes_per_second: u64,
    /// `None`: the node keeps to itself.
    pub tls: Option<Tls>,
    pub scope: Scope,
    /// How far behind the node may be and be ready.
    pub ready_lag_max: Duration,
}

/// How far behind a node may be and be ready, unless said otherwise: a restart catches up in less.
const READY_LAG_MAX: Duration = Duration::from_secs(30);

/// The files of the cluster's identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// When deleted rows are forgotten; see [`file::Tombstones`].
#[derive(Clone, PartialEq, Debug)]
pub struct Tombstones {
    pub collect: bool,
    pub every: Duration,
    pub forget_after: Duration,
}

/// The Consul agent to read.
#[derive(Clone, PartialEq, Debug)]
pub struct Consul {
    pub url: String,
    pub token: Option<String>,
    pub interval: Duration,
    pub grace: Duration,
}

impl Agent {
    /// Lays flags (and the environment in them) over the file that they name, fills in defaults
    /// and checks the whole.
    pub fn from_flags(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        Self::resolve(flags, file)
    }

    fn resolve(flags: Flags, file: File) -> Result<Self, ConfigError> {
        let gossip = gossip(&flags, &file)?;
        let address =
            flags.address.or(file.address).unwrap_or_else(|| gossip.advertise.ip().to_string());
        check_name("address", &address)?;
        if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
            return Err(ConfigError::new(format!(
                "address '{address}' reaches nobody: name the address under which others reach \
                 this host"
            )));
        }
        let datacenter = flags.datacenter.or(file.datacenter).unwrap_or_else(|| "dc1".to_owned());
        check_name("datacenter", &datacenter)?;
        let node = flags.node.or(file.node);
        if let Some(node) = &node {
            check_name("node", node)?;
        }
        let node_id = flags.node_id.or(file.node_id).map(|text| parse_node_id(&text));
        Ok(Self {
            data_dir: flags.data_dir.or(file.data_dir).unwrap_or_else(|| PathBuf::from(DATA_DIR)),
            node,
            node_id: node_id.transpose()?,
            datacenter,
            address,
            node_meta: file.node_meta,
            schema: first_of(flags.schema, file.schema).unwrap_or_default(),
            http_connections: connections(&file.http)?,
            http: addresses(first_of(flags.http, file.http.listen), &["127.0.0.1"], HTTP_PORT)?,
            http_hosts: file.http.hosts.unwrap_or_default(),
            dns: dns_addresses(first_of(flags.dns, file.dns.listen.clone()))?,
            dns_options: file.dns,
            gossip,
            server_port: file.consul.server_port,
            upstream: upstream(flags.consul.as_ref(), &file.consul, file.kv)?,
            consul: consul(flags.consul, flags.consul_token, file.consul)?,
            checks: file.checks,
            watchdog_limit: watchdog_limit(&file.watchdog)?,
            tombstones: tombstones(&file.tombstones)?,
            log_level: flags.log.or(file.log.level).unwrap_or_else(|| "info".to_owned()),
            log_json: log_format(flags.log_format.or(file.log.format))?,
        })
    }
}

pub(super) fn parse_node_id(text: &str) -> Result<NodeId, ConfigError> {
    text.parse().map_err(|error| ConfigError::new(format!("node_id: {error}")))
}

fn gossip(flags: &Flags, file: &File) -> Result<Gossip, ConfigError> {
    let pick = |flag: &Option<PathBuf>, key: &Option<PathBuf>| flag.clone().or(key.clone());
    let tls = tls([
        ("ca", pick(&flags.ca, &file.gossip.ca)),
        ("cert", pick(&flags.cert, &file.gossip.cert)),
        ("key", pick(&flags.key, &file.gossip.key)),
    ])?;
    let default = if tls.is_some() { "0.0.0.0" } else { "127.0.0.1" };
    let text = flags.gossip.as_ref().or(file.gossip.listen.as_ref());
    let listen = parse::socket_address(text.map_or(default, String::as_str), GOSSIP_PORT)?;
    if tls.is_none() && !listen.ip().is_loopback() {
        return Err(ConfigError::new(format!(
            "gossip on {listen} needs certificates: set [gossip] ca, cert and key (`tribune tls \
             ca` and `tribune tls node NAME` make them), or listen on 127.0.0.1"
        )));
    }
    let advertise = match &file.gossip.advertise {
        Some(text) => parse::socket_address(text, listen.port())?,
        None if listen.ip().is_unspecified() => SocketAddr::new(outward(), listen.port()),
        None => listen,
    };
    let join = first_of(flags.join.clone(), file.gossip.join.clone()).unwrap_or_default();
    let bytes_min = flags.snapshot_bytes_min.unwrap_or(SNAPSHOT_BYTES_MIN);
    let is_wanted = flags.snapshot.or(file.gossip.snapshot).unwrap_or(true);
    Ok(Gossip {
        listen,
        advertise,
        join,
        snapshot_bytes_min: is_wanted.then_some(bytes_min),
        send_bytes_per_second: send_bytes_per_second(file)?,
        tls,
        scope: Scope(file.gossip.scope.unwrap_or_default()),
        ready_lag_max: file.gossip.ready_lag_max.map_or(READY_LAG_MAX, |span| span.0),
    })
}

fn send_bytes_per_second(file: &File) -> Result<u64, ConfigError> {
    const MIN: u64 = 64 * 1024;
    match file.gossip.send_bytes_per_second {
        None => Ok(SEND_BYTES_PER_SECOND),
        Some(bytes) if bytes >= MIN => Ok(bytes),
        Some(bytes) => Err(ConfigError::new(format!(
            "[gossip] send_bytes_per_second is {bytes}, but a node that sends less than {MIN} does not \
             keep up with its cluster"
        ))),
    }
}

/// Takes the files of an identity together: all of them or none.
pub(super) fn tls(files: [(&'static str, Option<PathBuf>); 3]) -> Result<Option<Tls>, ConfigError> {
    match files {
        [(_, None), (_, None), (_, None)] => Ok(None),
        [(_, Some(ca)), (_, Some(cert)), (_, Some(key))] => Ok(Some(Tls { ca, cert, key })),
        files => {
            let missing: Vec<&str> =
                files.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
            Err(ConfigError::new(format!(
                "[gossip] needs ca, cert and key together; missing: {}. `tribune tls ca` and \
                 `tribune tls node NAME` make them",
                missing.join(", ")
            )))
        }
    }
}

/// Returns the address this host would send from to reach the outside; loopback without a
/// network. Connecting a UDP socket sends nothing.
fn outward() -> IpAddr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

fn consul(
    url: Option<String>,
    token: Option<String>,
    file: file::Consul,
) -> Result<Option<Consul>, ConfigError> {
    let Some(url) = url.or(file.url) else { return Ok(None) };
    let url = agent_url(&url)?;
    let token = match (token.or(file.token), file.token_file) {
        (Some(_), Some(_)) => {
            return Err(ConfigError::new(
                "[consul] has both a token and a token_file; keep one of them",
            ));
        }
        (Some(token), None) => Some(token),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                ConfigError::new(format!("cannot read the token file {}: {error}", path.display()))
            })?;
            Some(text.trim().to_owned())
        }
        (None, None) => None,
    };
    Ok(Some(Consul {
        url,
        token: token.filter(|token| !token.is_empty()),
        interval: file.interval.map_or(Duration::from_secs(1), |span| span.0),
        grace: file.grace.map_or(Duration::from_secs(30), |span| span.0),
    }))
}

/// Returns the URL of an agent without a slash at its end.
fn agent_url(url: &str) -> Result<String, ConfigError> {
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    if host.is_none_or(|host| host.is_empty() || host.starts_with(['/', ':', '?', '#'])) {
        return Err(ConfigError::new(format!(
            "'{url}' is not the URL of a Consul agent; write it like http://127.0.0.1:8500"
        )));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn upstream(
    url: Option<&String>,
    consul: &file::Consul,
    kv: file::Kv,
) -> Result<Option<(String, bool)>, ConfigError> {
    let url = url.or(consul.url.as_ref());
    let (url, is_for_all) = match (consul.proxy.unwrap_or_default(), url, &kv.upstream) {
        (false, _, None) => return Ok(None),
        (false, _, Some(url)) => (url, false),
        (true, Some(url), None) => (url, true),
        (true, None, _) => {
            return Err(ConfigError::new(
                "[consul] proxy needs to know where the agent is: set [consul] url, or --consul",
            ));
        }
        (true, Some(_), Some(_)) => {
            return Err(ConfigError::new(
                "[consul] proxy passes keys on as well; remove it, or [kv] upstream",
            ));
        }
    };
    Ok(Some((agent_url(url)?, is_for_all)))
}

/// Takes the numbers of connections, none of which may be 0.
fn connections(http: &file::Http) -> Result<[Option<usize>; 3], ConfigError> {
    let named = [
        ("http.connections_max", http.connections_max),
        ("http.connections_per_client_max", http.connections_per_client_max),
        ("http.connections_per_loopback_max", http.connections_per_loopback_max),
    ];
    for (name, number) in named {
        if number == Some(0) {
            return Err(ConfigError::new(format!("{name} is 0: nobody could connect")));
        }
    }
    Ok(named.map(|(_, number)| number))
}

fn dns_addresses(given: Option<Vec<String>>) -> Result<Vec<(SocketAddr, bool)>, ConfigError> {
    let Some(given) = given else {
        let default = |text: &str, optional| (text.parse().expect("a literal address"), optional);
        return Ok(vec![
            default("127.0.0.1:8600", false),
            default("127.0.0.1:53", true),
            default("[::1]:53", true),
        ]);
    };
    given.iter().map(|text| Ok((parse::socket_address(text, DNS_PORT)?, false))).collect()
}

fn addresses(
    given: Option<Vec<String>>,
    default: &[&str],
    port: u16,
) -> Result<Vec<SocketAddr>, ConfigError> {
    match given {
        Some(given) => given.iter().map(|text| parse::socket_address(text, port)).collect(),
        None => default.iter().map(|text| parse::socket_address(text, port)).collect(),
    }
}

fn log_format(word: Option<String>) -> Result<bool, ConfigError> {
    match word.as_deref() {
        None | Some("plain") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => {
            Err(ConfigError::new(format!("log format '{other}' is neither 'plain' nor 'json'")))
        }
    }
}

fn watchdog_limit(file: &file::Watchdog) -> Result<Duration, ConfigError> {
    let limit = file.limit.map_or(WATCHDOG_LIMIT, |span| span.0);
    if !limit.is_zero() && limit < WATCHDOG_LIMIT_MIN {
        return Err(ConfigError::new(format!(
            "[watchdog] limit {limit:?} is too short: healthy parts of the node report every \
             second; choose {WATCHDOG_LIMIT_MIN:?} or more, or 0s to switch it off"
        )));
    }
    Ok(limit)
}

fn tombstones(file: &file::Tombstones) -> Result<Tombstones, ConfigError> {
    let every = file.every.map_or(ROUND_EVERY, |span| span.0);
    let forget_after = file.forget_after.map_or(FORGET_AFTER, |span| span.0);
    if every < ROUND_EVERY_MIN {
        return Err(ConfigError::new(format!(
            "[tombstones] every {every:?} is too short: choose {ROUND_EVERY_MIN:?} or more"
        )));
    }
    if forget_after < every * 2 {
        return Err(ConfigError::new(format!(
            "[tombstones] forget_after {forget_after:?} is too short: whoever is away for less than \
             twice `every` ({every:?}) is missed by nobody"
        )));
    }
    Ok(Tombstones { collect: file.collect.unwrap_or(true), every, forget_after })
}

/// Returns what the flags say, else what the file says.
fn first_of<T>(flags: Vec<T>, file: Option<Vec<T>>) -> Option<Vec<T>> {
    if flags.is_empty() { file } else { Some(flags) }
}

/// Refuses names that could not be told in DNS or in a log line.
fn check_name(what: &str, name: &str) -> Result<(), ConfigError> {
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if name.is_empty() || name.len() > 253 || name.contains(is_odd) {
        return Err(ConfigError::new(format!(
            "{what} '{name}' cannot be used: it needs 1 to 253 characters without blanks or '/'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: Flags, file: &str) -> Result<Agent, ConfigError> {
        Agent::resolve(flags, File::parse(file)?)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let flags = Flags { node: Some("flag".into()), ..Flags::default() };
        let agent = resolve(flags, "node = 'file'\ndatacenter = 'dc9'").unwrap();
        assert_eq!(agent.node.as_deref(), Some("flag"));
        assert_eq!(agent.datacenter, "dc9");
        assert_eq!(agent.http, ["127.0.0.1:8500".parse().unwrap()]);
        assert_eq!(agent.gossip.listen, "127.0.0.1:7401".parse().unwrap());
        assert_eq!(agent.address, "127.0.0.1");
    }

    #[test]
    fn what_is_sent_of_others_has_a_limit_that_is_not_too_low() {
        let limit = |file: &str| resolve(Flags::default(), file).map(|a| a.gossip);
        assert_eq!(limit("").unwrap().send_bytes_per_second, 8 << 20);
        let file = "[gossip]\nsend_bytes_per_second = 1_000_000";
        assert_eq!(limit(file).unwrap().send_bytes_per_second, 1_000_000);
        assert!(limit("[gossip]\nsend_bytes_per_second = 10").is_err());
    }

    #[test]
    fn a_snapshot_is_asked_for_unless_somebody_says_no() {
        let wanted = |snapshot, file: &str| {
            let flags = Flags { snapshot, ..Flags::default() };
            resolve(flags, file).unwrap().gossip.snapshot_bytes_min
        };
        assert_eq!(wanted(None, ""), Some(8 << 20));
        assert_eq!(wanted(None, "[gossip]\nsnapshot = false"), None);
        assert_eq!(wanted(Some(true), "[gossip]\nsnapshot = false"), Some(8 << 20));
        assert_eq!(wanted(Some(false), ""), None);
    }

    #[test]
    fn gossip_beyond_loopback_needs_certificates() {
        let flags = Flags { gossip: Some("0.0.0.0:7401".into()), ..Flags::default() };
        let error = resolve(flags, "").unwrap_err().to_string();
        assert!(
            error.contains("needs certificates") && error.contains("tribune tls ca"),
            "{error}"
        );
    }

    #[test]
    fn half_an_identity_says_which_half_is_missing() {
        let error = resolve(Flags::default(), "[gossip]\nca = 'ca.crt'").unwrap_err().to_string();
        assert!(error.contains("missing: cert, key"), "{error}");
    }

    #[test]
    fn only_the_default_port_53_is_optional() {
        let agent = resolve(Flags::default(), "").unwrap();
        let optional: Vec<bool> = agent.dns.iter().map(|(_, optional)| *optional).collect();
        assert_eq!(optional, [false, true, true]);
        let agent = resolve(Flags::default(), "[dns]\nlisten = ['127.0.0.1:53']").unwrap();
        assert_eq!(agent.dns, [("127.0.0.1:53".parse().unwrap(), false)]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (file, part) in [
            ("node = 'a b'", "node 'a b' cannot be used"),
            ("node_id = 'n1'", "'n1' is not a UUID"),
            ("[http]\nconnections_max = 0", "http.connections_max is 0: nobody could connect"),
            ("[http]\nlisten = ['nowhere']", "'nowhere' is not an address"),
            ("[consul]\nurl = 'consul:8500'", "is not the URL of a Consul agent"),
            ("[kv]\nupstream = 'consul'", "is not the URL of a Consul agent"),
            ("[consul]\nproxy = true", "set [consul] url, or --consul"),
            (
                "[consul]\nproxy = true\nurl = 'http://a'\n[kv]\nupstream = 'http://b'",
                "remove it, or [kv] upstream",
            ),
            ("[log]\nformat = 'xml'", "neither 'plain' nor 'json'"),
            ("address = '0.0.0.0'", "reaches nobody"),
            ("[watchdog]\nlimit = '500ms'", "choose 2s or more, or 0s"),
            ("[tombstones]\nevery = '10ms'", "choose 1s or more"),
            ("[tombstones]\nforget_after = '15m'", "whoever is away for less"),
            ("[consul]\nurl = 'http://'", "is not the URL of a Consul agent"),
        ] {
            let error = resolve(Flags::default(), file).unwrap_err().to_string();
            assert!(error.contains(part), "{file}: {error}");
        }
    }
}
