//! From the checked configuration to each room's own settings.

use std::time::Duration;

use super::{StartError, identity};
use crate::config::agent::{Consul, Tombstones};
use crate::config::parse::Span;
use crate::config::{Agent, file};
use crate::dns::config::{NSID_BYTES_MAX, ServiceTtl, Soa, Zone};
use crate::ingest::Token;
use crate::{dns, health, http, ingest, replica};

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
    let mut config = dns::Config {
        listen: agent.dns.clone(),
        datacenter: agent.datacenter.clone(),
        only_passing: options.only_passing.unwrap_or(defaults.only_passing),
        node_ttl: options.node_ttl.map_or(defaults.node_ttl, |span| seconds(span.0)),
        service_ttl: ServiceTtl::new(ttls),
        soa: soa(&options.soa, defaults.soa),
        udp_answer_limit: options.udp_answer_limit.unwrap_or(defaults.udp_answer_limit),
        a_record_limit: options.a_record_limit.unwrap_or(defaults.a_record_limit),
        enable_truncate: options.enable_truncate.unwrap_or(defaults.enable_truncate),
        node_meta_txt: options.additional_node_meta_txt.unwrap_or(defaults.node_meta_txt),
        nsid: options.nsid.clone().unwrap_or_else(node),
        ..defaults
    }
    .with_zones(primary, others);
    if config.nsid.len() > NSID_BYTES_MAX && options.nsid.is_some() {
        return Err(StartError(format!(
            "[dns] nsid has {} bytes; at most {NSID_BYTES_MAX} are told, so write it shorter",
            config.nsid.len()
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

/// Returns where and how this node answers HTTP.
pub(super) fn http(agent: &Agent) -> http::Config {
    http::Config {
        addresses: agent.http.clone(),
        hosts: agent.http_hosts.clone(),
        script_checks: agent.checks.enable_script_checks.unwrap_or_default(),
        ..http::Config::default()
    }
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
