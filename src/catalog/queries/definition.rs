//! What a prepared query asks, in the form of `prepared_queries.definition`: Consul's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::duration;

/// A stored question. See <https://developer.hashicorp.com/consul/api-docs/query>.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PreparedQuery {
    /// What it answers to, or of a template how such names begin. Without regard to case; empty: it
    /// has its id alone, and as a template takes every name.
    #[serde(skip)]
    pub name: String,
    pub template: Template,
    pub service: Wanted,
    #[serde(rename = "DNS")]
    pub dns: Dns,
}

impl PreparedQuery {
    /// Tells whether it answers to all names that begin with its own.
    pub fn is_template(&self) -> bool {
        !self.template.kind.is_empty()
    }
}

/// How a name becomes part of the question.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Template {
    /// Empty: this is no template. Else `name_prefix_match`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Whose groups `${match(N)}` stands for.
    pub regexp: String,
    pub remove_empty_tags: bool,
}

/// Which instances are wanted. Absent and empty are told apart, since they are shown so.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Wanted {
    pub service: String,
    pub failover: Failover,
    /// Whether instances that warn are left out, too.
    pub only_passing: bool,
    /// Checks that do not count.
    #[serde(rename = "IgnoreCheckIDs")]
    pub ignore_check_ids: Option<Vec<String>>,
    /// Whose nearest come first: `_agent`, `_ip` or a node's name; empty: nobody's.
    pub near: String,
    /// All of these, and none of those that follow a `!`.
    pub tags: Option<Vec<String>>,
    pub node_meta: Option<BTreeMap<String, String>>,
    pub service_meta: Option<BTreeMap<String, String>>,
    /// Whether proxies of a mesh are wanted: there are none.
    pub connect: bool,
}

/// Where to look when the own datacenter has nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Failover {
    /// In so many of the nearest datacenters.
    pub nearest_n: i64,
    /// Then in these, in their order.
    pub datacenters: Option<Vec<String>>,
}

/// What is said over DNS.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Dns {
    /// A duration as Go writes it; empty: as is configured for the service.
    #[serde(rename = "TTL")]
    pub ttl: String,
}

impl Dns {
    /// Returns the TTL in whole seconds; `None`: there is none, or what is there is none.
    pub fn seconds(&self) -> Option<u32> {
        let nanos = duration::parse(&self.ttl).ok().filter(|nanos| *nanos >= 0)?;
        u32::try_from(nanos / 1_000_000_000).ok()
    }
}

impl Wanted {
    /// Returns the same with each of its texts put through `change`, which is told where the text
    /// stands.
    pub(super) fn map<E>(
        &self,
        mut change: impl FnMut(&str, &str) -> Result<String, E>,
    ) -> Result<Self, E> {
        let mut list = |field: &str, list: &Option<Vec<String>>| {
            let texts = list.as_ref().map(|texts| {
                let each = texts.iter().enumerate();
                each.map(|(at, text)| change(&format!("{field}[{at}]"), text)).collect()
            });
            texts.transpose()
        };
        let ignore_check_ids = list("Service.IgnoreCheckIDs", &self.ignore_check_ids)?;
        let tags = list("Service.Tags", &self.tags)?;
        let datacenters = list("Service.Failover.Datacenters", &self.failover.datacenters)?;
        let mut map = |field: &str, map: &Option<BTreeMap<String, String>>| {
            let texts = map.as_ref().map(|map| {
                map.iter()
                    .map(|(key, text)| {
                        Ok((key.clone(), change(&format!("{field}[{key:?}]"), text)?))
                    })
                    .collect()
            });
            texts.transpose()
        };
        let node_meta = map("Service.NodeMeta", &self.node_meta)?;
        let service_meta = map("Service.ServiceMeta", &self.service_meta)?;
        Ok(Self {
            service: change("Service.Service", &self.service)?,
            failover: Failover { nearest_n: self.failover.nearest_n, datacenters },
            only_passing: self.only_passing,
            ignore_check_ids,
            near: change("Service.Near", &self.near)?,
            tags,
            node_meta,
            service_meta,
            connect: self.connect,
        })
    }
}
