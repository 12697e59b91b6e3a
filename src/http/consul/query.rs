//! A query string in Consul's dialect: what is present, what is a boolean, what is refused.

use axum::http::Uri;

use super::filter::{Filter, FilterError, Shape};
use crate::catalog::View;
use crate::catalog::view::{Instance, NodeInfo};
use crate::http::error::Fault;
use crate::node::Local;

/// The parameters of a request, in their order, names as they were sent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a URI's query. It cannot fail: what is no parameter is no parameter.
    pub fn of(uri: &Uri) -> Self {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        Self(pairs.map(|axum::extract::Query(pairs)| pairs).unwrap_or_default())
    }

    /// Returns the first value of a parameter.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns the values of a parameter that may be repeated.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Tells whether a parameter is there, whatever its value.
    pub fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    /// Tells whether nothing but these parameters is there.
    pub fn is_only(&self, names: &[&str]) -> bool {
        self.0.iter().all(|(key, _)| names.contains(&key.as_str()))
    }

    /// Returns a boolean: false when absent, true without a value, `None` for nonsense.
    pub fn boolean(&self, name: &str) -> Option<bool> {
        match self.first(name) {
            None => Some(false),
            Some("") => Some(true),
            Some(word) => boolean(word),
        }
    }

    /// Refuses another tenant than the only one there is.
    pub fn refuse_tenancy(&self) -> Result<(), Fault> {
        if self.has("ns") {
            return Err(Fault::bad_request(
                "Bad request: Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise \
                 feature",
            ));
        }
        match self.first("partition") {
            None | Some("" | "default") => Ok(()),
            Some(name) => Err(Fault::bad_request(format!(
                "Bad request: Invalid query parameter: \"partition\" - there is no partition \
                 \"{name}\", only \"default\""
            ))),
        }
    }

    /// Reads the filter of what an endpoint returns; none where it is empty.
    pub fn filter(&self, shape: &Shape) -> Result<Option<Filter>, FilterError> {
        let text = self.first("filter").filter(|text| !text.is_empty());
        text.map(|text| Filter::parse(text, shape)).transpose()
    }
}

/// Reads a boolean as Go does.
pub fn boolean(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Which datacenter's nodes a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datacenter(String);

impl Datacenter {
    /// Takes the one of the query, or this node's own; a datacenter without nodes is unknown.
    pub fn of(query: &Query, local: &Local, view: &View) -> Result<Self, Fault> {
        match query.first("dc") {
            None | Some("") => Ok(Self(local.datacenter.clone())),
            Some(name) if name == local.datacenter || exists(view, name) => {
                Ok(Self(name.to_owned()))
            }
            Some(_) => Err(super::index::leaderless("No path to datacenter")),
        }
    }

    /// Returns what it is called.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Tells whether a node is in it. A node that names none is in every one.
    pub fn holds(&self, info: &NodeInfo) -> bool {
        info.node.datacenter.is_empty() || info.node.datacenter == self.0
    }
}

fn exists(view: &View, datacenter: &str) -> bool {
    view.nodes().any(|entry| entry.info.node.datacenter == datacenter)
}

/// The `node-meta=key:value` parameters: all must hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeMeta(Vec<(String, String)>);

impl NodeMeta {
    pub fn of(query: &Query) -> Self {
        let pairs = query.all("node-meta").map(|pair| {
            let (key, value) = pair.split_once(':').unwrap_or((pair, ""));
            (key.to_owned(), value.to_owned())
        });
        Self(pairs.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells whether a node's meta has all of them.
    pub fn holds(&self, info: &NodeInfo) -> bool {
        self.0.iter().all(|(key, value)| info.node.meta.get(key) == Some(value))
    }
}

/// The `tag` parameters: an instance must have all, whatever their case.
pub fn has_tags(query: &Query, instance: &Instance) -> bool {
    query
        .all("tag")
        .all(|wanted| instance.service.tags.iter().any(|tag| tag.eq_ignore_ascii_case(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&format!("/v1/x?{text}").parse().unwrap())
    }

    #[test]
    fn a_parameter_without_a_value_is_true() {
        for (text, truth) in [
            ("", Some(false)),
            ("passing", Some(true)),
            ("passing=", Some(true)),
            ("passing=1", Some(true)),
            ("passing=False", Some(false)),
            ("passing=maybe", None),
            ("passing=yes", None),
        ] {
            assert_eq!(query(text).boolean("passing"), truth, "{text}");
        }
    }

    #[test]
    fn parameters_are_decoded_and_may_be_repeated() {
        let query = query("tag=a%20b&tag=c+d&x&tag=&y=%zz%ff");
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a b", "c d", ""]);
        assert!(query.has("x") && query.has("y") && !query.has("z"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_and_not_passed_over() {
        let fault = query("ns=default").refuse_tenancy().unwrap_err();
        assert_eq!(fault.status, 400);
        assert!(fault.text.starts_with("Bad request: Invalid query parameter: \"ns\""));
        assert!(query("partition=blue").refuse_tenancy().is_err());
        assert!(query("partition=default&peer=&sg=x").refuse_tenancy().is_ok());
        assert!(query("filter=Nope+%3D%3D+x").filter(&Shape::NODE).is_err());
        assert!(query("filter=").filter(&Shape::NODE).unwrap().is_none());
    }
}
