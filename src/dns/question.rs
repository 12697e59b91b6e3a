//! What a name asks for: a pure function of the name and our zones, blind to what exists.
//!
//! Under each of our zones, alike and without regard to case:
//!
//! | name | what |
//! |---|---|
//! | (the zone itself), `ns` | the serving node |
//! | `[tag.]<service>.service[.<dc>[.dc]]` | a service; the tag may contain dots, or be several |
//! | `_<service>._<proto or tag>[.service][.<dc>[.dc]]` | RFC 2782; `_tcp` is no tag |
//! | `<node>.node[.<dc>[.dc]]` | a node, by name or id; the name may contain dots |
//! | `<hex>.addr[.<dc>]` | the address that is written in the name |
//! | `<query>.query[.<dc>[.dc]]` | a prepared query, by name or id; the name may contain dots |
//! | `_<query>._<any>.query[.<dc>[.dc]]` | the same |
//! | `<service>` | a service, in short |
//! | `<tag or id>.<service>` | those with a tag, or one instance by id; either may contain dots |
//! | `_<name>._<proto>.<service>` | a service, as SRV clients ask that know its domain |
//!
//! Long forms win: a name with a reserved word (`service`, `node`, `addr`, `query`, `connect`,
//! `ingress`, `virtual`) anywhere after its first label is read as a long form only, and when it
//! is none, it does not exist. The rightmost reserved word decides. So a service that is called
//! `node` is found under `node.service.<zone>`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::config::Zone;

/// What a name asks for. Parts are in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup<'q> {
    /// Not in our zones.
    Outside,
    /// A zone itself, or `ns` in it.
    Apex,
    Service {
        service: &'q str,
        select: Select<'q>,
        datacenter: Option<&'q str>,
    },
    /// `_<name>._<proto>.<last>`: Consul reads `last` as a datacenter; we read it as a service
    /// where there is one.
    Endpoint {
        name: &'q str,
        proto: &'q str,
        last: &'q str,
    },
    Node {
        node: &'q str,
        datacenter: Option<&'q str>,
    },
    /// A prepared query, by its name or id.
    Query {
        name: &'q str,
        datacenter: Option<&'q str>,
    },
    /// An address written in hexadecimal; `None`: it is none.
    Address(Option<IpAddr>),
    /// Who has this address; `None`: the name is no whole address.
    Reverse(Option<IpAddr>),
    /// In our zone, but of no form that we know.
    Nothing,
}

/// Which instances of a service are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select<'q> {
    All,
    /// Those that carry the tag; when no instance of the service, well or not, carries it: those that
    /// carry all of several tags with dots between them.
    Tag(&'q str),
    /// The same; when there is none, either: those with this id.
    TagOrId(&'q str),
}

/// A name that was understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question<'q> {
    /// The zone it is in: an index into the list of zones. 0 when it is in none.
    pub zone: usize,
    pub lookup: Lookup<'q>,
}

/// Reads a name in lower case, labels joined by dots, without the final dot.
pub fn read<'q>(name: &'q str, zones: &[Zone]) -> Question<'q> {
    let Some((zone, rest)) = split_zone(name, zones) else {
        return Question { zone: 0, lookup: read_reverse(name) };
    };
    Question { zone, lookup: read_inside(rest) }
}

/// Finds the longest of our zones that the name is in, and what stands before it.
fn split_zone<'q>(name: &'q str, zones: &[Zone]) -> Option<(usize, &'q str)> {
    let before = |zone: &Zone| match name.strip_suffix(zone.as_str())? {
        "" => Some(""),
        rest => rest.strip_suffix('.'),
    };
    let found = zones.iter().enumerate().filter_map(|(index, zone)| Some((index, before(zone)?)));
    found.min_by_key(|(_, rest)| rest.len())
}

fn read_inside(rest: &str) -> Lookup<'_> {
    if rest.is_empty() || rest == "ns" {
        return Lookup::Apex;
    }
    let mut end = rest.len();
    loop {
        let start = rest[..end].rfind('.').map_or(0, |dot| dot + 1);
        let (before, after) = (before(rest, start), rest[end..].trim_start_matches('.'));
        match &rest[start..end] {
            "service" => return read_service(before, after),
            "node" => return read_node(before, after),
            "addr" => return read_address(before),
            "query" => return read_query(before, after),
            "connect" | "ingress" | "virtual" => return Lookup::Nothing,
            _ if start == 0 => return read_short(rest),
            _ => end = start - 1,
        }
    }
}

/// Tells whether a name stands between a zone and names that exist, and is nobody's itself: whoever is
/// told that it does not exist need not ask for those below it (RFC 8020).
pub fn is_between(name: &str, zone: &Zone, datacenter: &str) -> bool {
    let rest = name.strip_suffix(zone.as_str()).and_then(|rest| rest.strip_suffix('.'));
    rest.is_some_and(|rest| {
        let mut labels = rest.split('.');
        labels.all(|label| {
            matches!(label, "service" | "node" | "addr" | "query" | "dc" | "_tcp" | "_udp")
                || label.eq_ignore_ascii_case(datacenter)
        })
    })
}

/// Returns what stands before the label that begins at `start`, without the dot.
fn before(text: &str, start: usize) -> &str {
    &text[..start.saturating_sub(1)]
}

fn read_service<'q>(before: &'q str, after: &'q str) -> Lookup<'q> {
    let Some(datacenter) = read_datacenter(after) else { return Lookup::Nothing };
    if before.is_empty() {
        return Lookup::Nothing;
    }
    if let Some((service, proto)) = read_pair(before) {
        return Lookup::Service { service, select: select_proto(proto), datacenter };
    }
    let (select, service) = match before.rsplit_once('.') {
        Some((tag, service)) => (Select::Tag(tag), service),
        None => (Select::All, before),
    };
    Lookup::Service { service, select, datacenter }
}

fn read_node<'q>(node: &'q str, after: &'q str) -> Lookup<'q> {
    match read_datacenter(after) {
        Some(datacenter) if !node.is_empty() => Lookup::Node { node, datacenter },
        _ => Lookup::Nothing,
    }
}

fn read_query<'q>(before: &'q str, after: &'q str) -> Lookup<'q> {
    let name = read_pair(before).map_or(before, |(name, _)| name);
    match read_datacenter(after) {
        Some(datacenter) if !name.is_empty() => Lookup::Query { name, datacenter },
        _ => Lookup::Nothing,
    }
}

/// Consul does not look at the datacenter here: the address is in the name.
fn read_address(hex: &str) -> Lookup<'_> {
    if hex.is_empty() || hex.contains('.') {
        return Lookup::Nothing;
    }
    // `from_str_radix` would take a sign, too.
    let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    Lookup::Address(match hex.len() {
        8 if is_hex => u32::from_str_radix(hex, 16).ok().map(|bits| Ipv4Addr::from(bits).into()),
        32 if is_hex => u128::from_str_radix(hex, 16).ok().map(|bits| Ipv6Addr::from(bits).into()),
        _ => None,
    })
}

/// Reads what may follow a reserved word: nothing, `<dc>` or `<dc>.dc`.
fn read_datacenter(after: &str) -> Option<Option<&str>> {
    if after.is_empty() {
        return Some(None);
    }
    let datacenter = after.strip_suffix(".dc").unwrap_or(after);
    (!datacenter.contains('.')).then_some(Some(datacenter))
}

fn read_short(rest: &str) -> Lookup<'_> {
    if let Some(lookup) = read_rfc2782(rest) {
        return lookup;
    }
    let (select, service) = match rest.rsplit_once('.') {
        Some((tag_or_id, service)) => (Select::TagOrId(tag_or_id), service),
        None => (Select::All, rest),
    };
    Lookup::Service { service, select, datacenter: None }
}

/// Reads `_<service>._<proto>` with or without something behind it.
fn read_rfc2782(rest: &str) -> Option<Lookup<'_>> {
    let second_dot = rest.match_indices('.').nth(1).map(|(at, _)| at);
    let (pair, after) = match second_dot {
        Some(dot) => (&rest[..dot], &rest[dot + 1..]),
        None => (rest, ""),
    };
    let (service, proto) = read_pair(pair)?;
    if !after.is_empty() && !after.contains('.') {
        return Some(Lookup::Endpoint { name: service, proto, last: after });
    }
    let datacenter = read_datacenter(after)?;
    Some(Lookup::Service { service, select: select_proto(proto), datacenter })
}

/// Reads exactly `_<one>._<two>`.
fn read_pair(text: &str) -> Option<(&str, &str)> {
    let (one, two) = text.split_once('.')?;
    let (one, two) = (one.strip_prefix('_')?, two.strip_prefix('_')?);
    (!two.contains('.')).then_some((one, two))
}

/// Reads the second label of RFC 2782 as Consul does: everything but `_tcp` is a tag.
pub fn select_proto(proto: &str) -> Select<'_> {
    if proto == "tcp" { Select::All } else { Select::Tag(proto) }
}

fn read_reverse(name: &str) -> Lookup<'_> {
    if let Some(rest) = inside(name, "in-addr.arpa") {
        return Lookup::Reverse(read_octets(rest));
    }
    match inside(name, "ip6.arpa") {
        Some(rest) => Lookup::Reverse(read_nibbles(rest)),
        None => Lookup::Outside,
    }
}

fn inside<'q>(name: &'q str, zone: &str) -> Option<&'q str> {
    let rest = name.strip_suffix(zone)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
}

fn read_octets(reversed: &str) -> Option<IpAddr> {
    let mut octets = [0; 4];
    let mut labels = reversed.split('.');
    for octet in octets.iter_mut().rev() {
        let label = labels.next()?;
        // One spelling each: no sign, no leading zero.
        if label.len() > 1 && !label.starts_with(|first: char| ('1'..='9').contains(&first)) {
            return None;
        }
        *octet = label.parse().ok()?;
    }
    labels.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

fn read_nibbles(reversed: &str) -> Option<IpAddr> {
    let mut bits: u128 = 0;
    let mut labels = reversed.split('.');
    for nibble in 0..32 {
        let mut label = labels.next()?.chars();
        let digit = label.next()?.to_digit(16)?;
        if label.next().is_some() {
            return None;
        }
        bits |= u128::from(digit) << (4 * nibble);
    }
    labels.next().is_none().then(|| Ipv6Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a name and shows it in short.
    fn check(name: &str, expected: &str) {
        let zones = ["internal", "consul", "svc.internal"].map(|zone| Zone::parse(zone).unwrap());
        let question = read(name, &zones);
        let dc =
            |datacenter: Option<&str>| datacenter.map_or(String::new(), |dc| format!(" in {dc}"));
        let shown = match question.lookup {
            Lookup::Service { service, select: Select::All, datacenter } => {
                format!("service {service}{}", dc(datacenter))
            }
            Lookup::Service { service, select: Select::Tag(tag), datacenter } => {
                format!("service {service} tag {tag}{}", dc(datacenter))
            }
            Lookup::Service { service, select: Select::TagOrId(word), datacenter } => {
                format!("service {service} tag or id {word}{}", dc(datacenter))
            }
            Lookup::Endpoint { name, proto, last } => format!("endpoint {name} {proto} {last}"),
            Lookup::Query { name, datacenter } => format!("query {name}{}", dc(datacenter)),
            Lookup::Node { node, datacenter } => format!("node {node}{}", dc(datacenter)),
            Lookup::Address(Some(ip)) | Lookup::Reverse(Some(ip)) => ip.to_string(),
            Lookup::Address(None) => "no address".to_owned(),
            Lookup::Reverse(None) => "no whole address".to_owned(),
            Lookup::Apex => format!("apex of {}", zones[question.zone].as_str()),
            Lookup::Nothing => "nothing".to_owned(),
            Lookup::Outside => "outside".to_owned(),
        };
        assert_eq!(shown, expected, "{name}");
    }

    #[test]
    fn long_forms_are_read_as_consul_reads_them() {
        check("web.service.consul", "service web");
        check("web.service.internal", "service web");
        check("web.service.dc1.consul", "service web in dc1");
        check("web.service.dc1.dc.consul", "service web in dc1");
        check("v1.web.service.consul", "service web tag v1");
        check("v1.2.job_runner.service.consul", "service job_runner tag v1.2");
        check("_web._tcp.service.consul", "service web");
        check("_web._v2.service.dc1.consul", "service web tag v2 in dc1");
        check("_web._udp.service.consul", "service web tag udp");
        check("a._web._tcp.service.consul", "service _tcp tag a._web");
        check("n1.node.consul", "node n1");
        check("a.b.node.dc2.consul", "node a.b in dc2");
        check("web-q.query.consul", "query web-q");
        check("a.b.query.dc2.internal", "query a.b in dc2");
        check("_web-q._tcp.query.consul", "query web-q");
        check("7f000001.addr.consul", "127.0.0.1");
        check("7f000001.addr.dc9.consul", "127.0.0.1");
        check("20010db8000000000000000000000001.addr.consul", "2001:db8::1");
    }

    #[test]
    fn what_only_looks_like_a_long_form_is_nothing() {
        for name in [
            "service.consul",
            "node.consul",
            "addr.consul",
            "query.consul",
            "web.service.a.b.consul",
            "n1.node.a.b.consul",
            "a.7f000001.addr.consul",
            "q.query.a.b.consul",
            "web.connect.consul",
            "web.virtual.consul",
        ] {
            check(name, "nothing");
        }
        for hex in ["7f00001", "7f0000011", "7f00000g", "+f000001", "zz"] {
            check(&format!("{hex}.addr.consul"), "no address");
        }
    }

    #[test]
    fn short_forms_name_a_service_and_may_select() {
        check("app.internal", "service app");
        check("app.consul", "service app");
        check("v1.app.internal", "service app tag or id v1");
        check("app-1.eu.app.internal", "service app tag or id app-1.eu");
        check("_app._tcp.internal", "service app");
        check("_app._blue.internal", "service app tag blue");
        check("_http._tcp.app.internal", "endpoint http tcp app");
        check("_app._tcp.dc1.dc.internal", "service app in dc1");
        check("_odd.internal", "service _odd");
    }

    #[test]
    fn a_reserved_word_wins_wherever_it_stands() {
        check("node.app.internal", "nothing");
        check("db.node.app.internal", "node db in app");
        check("node.service.internal", "service node");
        check("service.service.internal", "service service");
        check("web.service.node.internal", "node web.service");
    }

    #[test]
    fn the_longest_zone_counts_and_only_at_a_dot() {
        check("internal", "apex of internal");
        check("ns.consul", "apex of consul");
        check("svc.internal", "apex of svc.internal");
        check("web.svc.internal", "service web");
        for name in ["", "com", "example.com", "myinternal", "web.internal.example"] {
            check(name, "outside");
        }
    }

    #[test]
    fn reverse_names_are_whole_addresses_or_none() {
        check("1.0.0.127.in-addr.arpa", "127.0.0.1");
        check(&format!("1.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(23)), "2001:db8::1");
        for name in [
            "in-addr.arpa",
            "0.127.in-addr.arpa",
            "1.1.0.0.127.in-addr.arpa",
            "01.0.0.127.in-addr.arpa",
            "256.0.0.127.in-addr.arpa",
            "+1.0.0.127.in-addr.arpa",
            "ip6.arpa",
            "1.0.ip6.arpa",
        ] {
            check(name, "no whole address");
        }
        check("arpa", "outside");
    }
}
