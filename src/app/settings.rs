//! From the checked configuration to each room's own settings.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use super::{StartError, identity};
use crate::config::agent::{Consul, Tombstones};
use crate::config::parse::{Span, socket_address};
use crate::config::{Agent, file};
use crate::dns::clients::Networks;
use crate::dns::config::{
    ByService, NSID_BYTES_MAX, Order, Secure, Soa, UDP_BYTES_MAX, UDP_BYTES_MIN, Zone,
};
use crate::dns::recursion::servers::Strategy;
use crate::ingest::Token;
use crate::{dns, health, http, ingest, replica};

const DNS_PORT: u16 = 53;
const TLS_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;
/// Less time than this no server could keep to.
const RECURSOR_TIMEOUT_MIN: Duration = Duration::from_millis(50);

/// Returns how this node answers DNS.
pub(super) fn dns(agent: &Agent) -> Result<dns::Config, StartError> {
    let options = &agent.dns_options;
    let defaults = dns::Config::default();
    let zone = |text: &str| {
        Zone::parse(text).map_err(|error| StartError(format!("[dns] domain: {error}")))
    };
    let primary = zone(options.domain.as_deref().unwrap_or("internal"))?;
    let others = match &options.alt_domains {
        Some(names) => names.iter().map(|name| zone(name)).collect::<Result<Vec<_>, _>>()?,
        None => vec![zone("consul")?],
    };
    let node = || agent.node.clone().unwrap_or_else(identity::host_name);
    let ttls = options.service_ttl.iter().map(|(name, span)| (name.as_str(), seconds(span.0)));
    let passing = options.only_passing_services.iter();
    let passing = passing.map(|(name, is_only)| (name.as_str(), *is_only));
    let orders = options.order.iter().map(|(name, text)| Ok((name.as_str(), order(name, text)?)));
    let mut config = dns::Config {
        order: ByService::new(orders.collect::<Result<Vec<_>, StartError>>()?),
        only_passing_of: ByService::new(passing),
        listen: agent.dns.clone(),
        datacenter: agent.datacenter.clone(),
        only_passing: options.only_passing.unwrap_or(defaults.only_passing),
        node_ttl: options.node_ttl.map_or(defaults.node_ttl, |span| seconds(span.0)),
        service_ttl: ByService::new(ttls),
        soa: soa(&options.soa, defaults.soa),
        udp_answer_limit: options.udp_answer_limit.unwrap_or(defaults.udp_answer_limit),
        a_record_limit: options.a_record_limit.unwrap_or(defaults.a_record_limit),
        enable_truncate: options.enable_truncate.unwrap_or(defaults.enable_truncate),
        node_meta_txt: options.additional_node_meta_txt.unwrap_or(defaults.node_meta_txt),
        nsid: options.nsid.clone().unwrap_or_else(node),
        name_servers: options.name_servers.clone().unwrap_or(defaults.name_servers),
        udp_bytes_max: options.udp_bytes_max.unwrap_or(defaults.udp_bytes_max),
        disable_compression: options.disable_compression.unwrap_or(defaults.disable_compression),
        allow_query: networks("allow_query", &options.allow_query, defaults.allow_query)?,
        stranger_rate: options.stranger_rate.unwrap_or(defaults.stranger_rate),
        stranger_factor: options.stranger_factor.unwrap_or(defaults.stranger_factor),
        recursion: recursion(options, &agent.dns)?,
        secure: secure(options)?,
        ..defaults
    }
    .with_zones(primary, others);
    if config.nsid.len() > NSID_BYTES_MAX && options.nsid.is_some() {
        return Err(StartError(format!(
            "[dns] nsid has {} bytes; at most {NSID_BYTES_MAX} are told, so write it shorter",
            config.nsid.len()
        )));
    }
    if !(UDP_BYTES_MIN..=UDP_BYTES_MAX).contains(&config.udp_bytes_max) {
        return Err(StartError(format!(
            "[dns] udp_bytes_max is {}; it is {UDP_BYTES_MIN} to {UDP_BYTES_MAX}",
            config.udp_bytes_max
        )));
    }
    config.nsid.truncate(config.nsid.floor_char_boundary(NSID_BYTES_MAX));
    if options.srv_targets_in_consul == Some(true) {
        config.targets_in = config.zone_named("consul");
        if config.targets_in.is_none() {
            return Err(StartError(
                "[dns] srv_targets_in_consul needs 'consul' among domain and alt_domains"
                    .to_owned(),
            ));
        }
    }
    Ok(config)
}

fn order(service: &str, text: &str) -> Result<Order, StartError> {
    match text {
        "random" => Ok(Order::Random),
        "weighted" => Ok(Order::Weighted),
        "near" => Ok(Order::Near),
        _ => Err(StartError(format!(
            "[dns.order] '{service}' is '{text}'; it is 'random', 'weighted' or 'near'"
        ))),
    }
}

/// Returns where DNS is spoken over TLS.
fn secure(options: &file::Dns) -> Result<Option<Secure>, StartError> {
    let addresses = |key: &str, texts: &Option<Vec<String>>, port| {
        let texts = texts.as_deref().unwrap_or_default().iter();
        let read = |text: &String| {
            socket_address(text, port).map_err(|error| StartError(format!("[dns] {key}: {error}")))
        };
        texts.map(read).collect::<Result<Vec<_>, _>>()
    };
    let tls = addresses("tls_listen", &options.tls_listen, TLS_PORT)?;
    let https = addresses("https_listen", &options.https_listen, HTTPS_PORT)?;
    let is_wanted = !tls.is_empty() || !https.is_empty();
    match (&options.tls_cert, &options.tls_key) {
        (Some(cert), Some(key)) if is_wanted => {
            let files = dns::secure::Files { cert: cert.clone(), key: key.clone() };
            Ok(Some(Secure { files, tls, https }))
        }
        (None, None) if !is_wanted => Ok(None),
        _ => Err(StartError(
            "[dns] tls_cert and tls_key go together, and with tls_listen or https_listen: write \
             those that are missing"
                .to_owned(),
        )),
    }
}

/// Returns whom this node asks about names that are not its own.
fn recursion(
    options: &file::Dns,
    listen: &[(SocketAddr, bool)],
) -> Result<dns::recursion::Config, StartError> {
    let defaults = dns::recursion::Config::default();
    let servers = |key: &str, texts: &[String]| {
        let server = |text: &String| {
            let address = socket_address(text, DNS_PORT)
                .ok()
                .filter(|address| !address.ip().is_unspecified() && address.port() > 0)
                .ok_or_else(|| {
                    let example = "192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53";
                    StartError(format!(
                        "[dns] {key}: '{text}' is no server; write it like {example}"
                    ))
                })?;
            let is_own = |(own, _): &(SocketAddr, bool)| {
                own.port() == address.port()
                    && (own.ip() == address.ip()
                        || own.ip().is_unspecified() && address.ip().is_loopback())
            };
            if listen.iter().any(is_own) {
                return Err(StartError(format!(
                    "[dns] {key}: {address} is this node itself; name the server that it is to ask"
                )));
            }
            Ok(address)
        };
        texts.iter().map(server).collect::<Result<Vec<_>, _>>()
    };
    let strategy = match options.recursor_strategy.as_deref() {
        None | Some("sequential") => Strategy::Sequential,
        Some("random") => Strategy::Random,
        Some(other) => {
            return Err(StartError(format!(
                "[dns] recursor_strategy is '{other}'; it is 'sequential' or 'random'"
            )));
        }
    };
    let domain = |(name, texts): (&String, &Vec<String>)| {
        let zone =
            Zone::parse(name).map_err(|error| StartError(format!("[dns.forward] {error}")))?;
        if texts.is_empty() {
            return Err(StartError(format!("[dns.forward] '{name}' has no server; name one")));
        }
        Ok((zone, servers(&format!("forward.{name}"), texts)?))
    };
    let or = |span: Option<Span>, default| span.map_or(default, |span| span.0);
    Ok(dns::recursion::Config {
        servers: servers("recursors", options.recursors.as_deref().unwrap_or_default())?,
        domains: options.forward.iter().map(domain).collect::<Result<_, _>>()?,
        strategy,
        timeout: or(options.recursor_timeout, defaults.timeout).max(RECURSOR_TIMEOUT_MIN),
        clients: networks("allow_recursion", &options.allow_recursion, defaults.clients)?,
        cache_entries: options.recursor_cache_entries.unwrap_or(defaults.cache_entries),
        ttl_max: or(options.recursor_ttl_max, defaults.ttl_max),
        negative_ttl_max: or(options.recursor_negative_ttl_max, defaults.negative_ttl_max),
    })
}

fn networks(
    key: &str,
    texts: &Option<Vec<String>>,
    default: Networks,
) -> Result<Networks, StartError> {
    let Some(texts) = texts else { return Ok(default) };
    Networks::parse(texts).map_err(|error| StartError(format!("[dns] {key}: {error}")))
}

/// Returns how this node replicates. What is told of a round is passed on often enough for the round
/// to end before the next.
pub(super) fn replica(tombstones: &Tombstones) -> replica::Config {
    let Tombstones { collect, every, forget_after } = *tombstones;
    let defaults = replica::Config::default();
    replica::Config {
        collect,
        round_every: every,
        tell_every: defaults.tell_every.min(every / 10),
        tell_after: defaults.tell_after.min(every),
        forget_after,
        alone_after: defaults.alone_after.min(every * 6),
        ..defaults
    }
}

/// Returns how many files the process may open.
fn files_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Returns how many connections HTTP takes. The other half of the files is for the database, DNS,
/// checks and the cluster.
fn connections(asked: [Option<usize>; 3], files_max: usize) -> http::Limits {
    let [total, per_address, per_loopback] = asked;
    let defaults = http::Limits::default();
    let total = total.unwrap_or_else(|| defaults.total.min(files_max / 2)).max(1);
    http::Limits {
        total,
        per_address: per_address.unwrap_or(defaults.per_address),
        // Others find a seat whatever the host's own programs do.
        per_loopback: per_loopback.unwrap_or_else(|| defaults.per_loopback.min(total - total / 4)),
    }
}

/// Returns where and how this node answers HTTP.
pub(super) fn http(agent: &Agent) -> http::Config {
    http::Config {
        addresses: agent.http.clone(),
        hosts: agent.http_hosts.clone(),
        limits: connections(agent.http_connections, files_max()),
        script_checks: agent.checks.enable_script_checks.unwrap_or_default(),
    }
}

/// Returns who answers what this node does not serve.
pub(super) fn upstream(agent: &Agent) -> Result<Option<http::Upstream>, StartError> {
    let Some((url, is_for_all)) = agent.upstream.clone() else { return Ok(None) };
    let config = http::UpstreamConfig { url, is_for_all };
    let told = |reason| StartError(format!("requests cannot be passed on to Consul: {reason}"));
    http::Upstream::new(config).map(Some).map_err(told)
}

/// Returns how this node's checks are run.
pub(super) fn health(checks: &file::Checks) -> health::Config {
    let defaults = health::Config::default();
    health::Config {
        enable_script_checks: checks.enable_script_checks.unwrap_or(defaults.enable_script_checks),
        enable_local_script_checks: checks
            .enable_local_script_checks
            .unwrap_or(defaults.enable_local_script_checks),
        output_bytes_max: checks.output_bytes_max.unwrap_or(defaults.output_bytes_max),
        update_interval: checks.update_interval.map_or(defaults.update_interval, |span| span.0),
        ..defaults
    }
}

fn soa(options: &file::Soa, defaults: Soa) -> Soa {
    let or = |span: Option<Span>, default| span.map_or(default, |span| seconds(span.0));
    Soa {
        refresh: or(options.refresh, defaults.refresh),
        retry: or(options.retry, defaults.retry),
        expire: or(options.expire, defaults.expire),
        min_ttl: or(options.min_ttl, defaults.min_ttl),
    }
}

/// DNS counts whole seconds.
fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// Returns how the host's Consul agent is mirrored.
pub(super) fn ingest(consul: &Consul) -> ingest::Config {
    let mut config = ingest::Config::new(&consul.url);
    config.token = consul.token.clone().map(Token);
    config.interval = consul.interval;
    config.guard.period = consul.grace;
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(options: &str, expected: &str) {
        let file = file::File::parse(&format!("[dns]\n{options}")).unwrap();
        let listen = [(([0, 0, 0, 0], 53).into(), false), (([192, 0, 2, 9], 8_600).into(), false)];
        let found = match recursion(&file.dns, &listen) {
            Ok(config) => format!("{:?}", config.all_servers().collect::<Vec<_>>()),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{options}");
    }

    #[test]
    fn connections_leave_files_for_all_else() {
        let of = |asked, files| {
            let limits = connections(asked, files);
            (limits.total, limits.per_address, limits.per_loopback)
        };
        assert_eq!(of([None; 3], usize::MAX), (16_384, 200, 12_288));
        assert_eq!(of([None; 3], 1_024), (512, 200, 384));
        assert_eq!(of([Some(20_000), Some(9), None], 1_024), (20_000, 9, 12_288));
        assert_eq!(of([Some(1), None, Some(5)], 1_024), (1, 200, 5));
        assert_eq!(of([None; 3], 0).0, 1);
    }

    #[test]
    fn servers_for_other_names_are_read_with_their_ports() {
        check("", "[]");
        check("recursors = ['192.0.2.1', '[2001:db8::1]:54']", "[192.0.2.1:53, [2001:db8::1]:54]");
        check(
            "recursors = ['192.0.2.1']\n[dns.forward]\n'a.b' = ['192.0.2.2:1']",
            "[192.0.2.1:53, 192.0.2.2:1]",
        );
    }

    #[test]
    fn what_cannot_be_asked_is_said() {
        check(
            "recursors = ['dns.example.com']",
            "[dns] recursors: 'dns.example.com' is no server; write it like 192.0.2.1, 192.0.2.1:53 \
             or [2001:db8::1]:53",
        );
        let itself = "is this node itself; name the server that it is to ask";
        check("recursors = ['127.0.0.1']", &format!("[dns] recursors: 127.0.0.1:53 {itself}"));
        check(
            "forward = { 'a.b' = ['192.0.2.9:8600'] }",
            &format!("[dns] forward.a.b: 192.0.2.9:8600 {itself}"),
        );
        check("forward = { 'a.b' = [] }", "[dns.forward] 'a.b' has no server; name one");
        check(
            "recursor_strategy = 'fastest'",
            "[dns] recursor_strategy is 'fastest'; it is 'sequential' or 'random'",
        );
        check(
            "allow_recursion = ['10.0.0.0/40']",
            "[dns] allow_recursion: '10.0.0.0/40' is no network; write it like 10.0.0.0/8, \
             2001:db8::/32 or 192.0.2.1, or as 'private' or 'any'",
        );
    }
}
