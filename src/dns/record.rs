//! Records and the sections they stand in, borrowed from the view and the configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;

use super::config::{Soa, Zone};
use super::name::Name;

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
    /// One entry of a node's meta: see [`txt`](super::wire).
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
            Data::Srv { target, .. } => target.is_speakable(),
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
}

impl Sections<'_> {
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
        }
    }
}
