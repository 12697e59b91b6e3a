//! What other servers said of the hosts that aliases and SRV targets lead to, for one answer.

use std::collections::{BTreeMap, BTreeSet};

use hickory_proto::rr::RecordType;

use super::reply::Foreign;

/// Hosts that one answer leads to and that others are asked about. More are left to the client.
pub const HOSTS_MAX: usize = 16;

/// A host, in lower case and without its final dot, and which addresses of it are wanted.
pub type Wanted = (String, RecordType);

/// What was said.
#[derive(Debug, Default)]
pub struct Known {
    of: BTreeMap<Wanted, Vec<Foreign>>,
}

impl Known {
    /// Nothing, so far.
    pub const NOTHING: &'static Self = &Self { of: BTreeMap::new() };

    /// Takes over what was said; an empty list where nobody knew.
    pub fn add(&mut self, wanted: Wanted, said: Vec<Foreign>) {
        self.of.insert(wanted, said);
    }

    /// Returns what was said; `None`: nobody was asked.
    pub fn get(&self, wanted: &Wanted) -> Option<&[Foreign]> {
        self.of.get(wanted).map(Vec::as_slice)
    }
}

/// What is to be asked before an answer is whole.
pub type Missing = BTreeSet<Wanted>;
