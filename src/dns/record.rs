//! Records and the sections they stand in, borrowed from the view and the configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;

use super::config::{Soa, Zone};
use super::name::Name;
use super::recursion::known::Missing;
use crate::catalog::Service;

/// One record of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    pub owner: Name<'a>,
    /// Seconds.
    pub ttl: u32,
    pub data: Data<'a>,
}

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data<'a> {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(Name<'a>),
    Ptr(Name<'a>),
    Ns(Name<'a>),
    /// The priority is always 1, as Consul has it.
    Srv {
        weight: u16,
        port: u16,
        target: Name<'a>,
    },
    /// Where and how a service is reached (RFC 9460).
    Svcb {
        /// HTTPS, or SVCB for whatever else is spoken there.
        is_https: bool,
        /// The lowest is tried first; never 0.
        priority: u16,
        target: Name<'a>,
        alpn: Alpn<'a>,
        /// 0: the protocol's own.
        port: u16,
        hint: Option<IpAddr>,
    },
    /// One entry of a node's or a service's meta: see [`txt`](super::wire).
    Txt {
        key: &'a str,
        value: &'a str,
    },
    Soa {
        zone: &'a Zone,
        serial: u32,
        times: Soa,
    },
}

/// Which protocols an instance speaks (RFC 7301): what its meta `alpn` lists, with commas, or else
/// those of its tags that are names of such protocols.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alpn<'a>(&'a Service);

/// The tags that count: protocols that clients look for in HTTPS records.
const ALPN_TAGS: [&str; 3] = ["h3", "h2", "http/1.1"];

impl<'a> Alpn<'a> {
    pub fn of(service: &'a Service) -> Self {
        Self(service)
    }

    /// Lists the protocols, each of 1 to 255 bytes.
    pub fn protocols(self) -> impl Iterator<Item = &'a str> {
        let meta = self.0.meta.get("alpn").map(String::as_str);
        let listed = meta.unwrap_or_default().split(',').map(str::trim);
        let tags = if meta.is_some() { &[] } else { &self.0.tags[..] };
        let tags = tags.iter().map(String::as_str).filter(|tag| ALPN_TAGS.contains(tag));
        listed.chain(tags).filter(|protocol| (1..=255).contains(&protocol.len())).take(ALPN_MAX)
    }
}

/// An instance has no more protocols than so many.
const ALPN_MAX: usize = 8;

impl<'a> Record<'a> {
    /// Makes an A or AAAA record, whichever the address is.
    pub fn address(owner: Name<'a>, ttl: u32, ip: IpAddr) -> Self {
        let data = match ip {
            IpAddr::V4(v4) => Data::A(v4),
            IpAddr::V6(v6) => Data::Aaaa(v6),
        };
        Self { owner, ttl, data }
    }

    /// Tells whether it is an A or AAAA record.
    pub fn is_address(&self) -> bool {
        matches!(self.data, Data::A(_) | Data::Aaaa(_))
    }

    /// Tells whether all its names can stand in a message.
    pub fn is_speakable(&self) -> bool {
        let data = match &self.data {
            Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => name.is_speakable(),
            Data::Srv { target, .. } | Data::Svcb { target, .. } => target.is_speakable(),
            Data::A(_) | Data::Aaaa(_) | Data::Txt { .. } | Data::Soa { .. } => true,
        };
        data && self.owner.is_speakable()
    }
}

/// What a reply says, before its size is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sections<'a> {
    pub code: ResponseCode,
    pub is_authoritative: bool,
    pub is_recursion_available: bool,
    /// Whether an EDNS question gets an EDNS reply.
    pub has_edns: bool,
    pub answers: Vec<Record<'a>>,
    pub authorities: Vec<Record<'a>>,
    pub additionals: Vec<Record<'a>>,
    /// For each answer, the additional record that gives its target an address: what stays with
    /// it when the reply is cut. Empty, or as long as `answers`.
    pub addresses: Vec<Option<usize>>,
    /// Hosts that it leads to and that others know more about.
    pub missing: Missing,
}

/// EDNS options of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options<'a> {
    /// Which server this is; empty: it is not said.
    pub nsid: &'a str,
    pub cookie: Option<[u8; 24]>,
    /// The reply is filled up, so that its length says less.
    pub is_padded: bool,
}

impl Sections<'_> {
    /// Makes a reply that says only that there is none.
    pub fn refused(code: ResponseCode) -> Self {
        Self { is_authoritative: false, ..Self::empty(code) }
    }

    /// Makes an authoritative reply of one code and no records.
    pub fn empty(code: ResponseCode) -> Self {
        Self {
            code,
            is_authoritative: true,
            is_recursion_available: false,
            has_edns: true,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            addresses: Vec::new(),
            missing: Missing::new(),
        }
    }
}
