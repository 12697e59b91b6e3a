//! Prepared queries: questions that are stored under a name, and asked over HTTP and DNS.
//!
//! A template answers to every name that begins with its own; of several the longest. Any node
//! writes queries, so two may be given one name at the same time: the one with the lower id has it,
//! on every node alike.

mod definition;
mod run;
mod template;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;

pub use definition::{Dns, Failover, PreparedQuery, Template, Wanted};
pub use run::{Found, find};
pub use template::{Compiled, TemplateError};

use super::model::lower;

/// A query with the indexes that Consul's API shows.
#[derive(Clone, Debug)]
pub struct QueryEntry {
    pub id: Arc<str>,
    pub query: PreparedQuery,
    /// Of a template what it is when it is taken apart. One that makes no sense, which only SQL can
    /// write, answers to no name.
    template: Option<Arc<Compiled>>,
    pub create_index: u64,
    pub modify_index: u64,
}

/// A query that a name means, with the name put into it.
#[derive(Clone, Debug)]
pub struct Resolved<'a> {
    pub entry: &'a Arc<QueryEntry>,
    pub wanted: Cow<'a, Wanted>,
}

/// A template was asked for by its id, which leaves nothing to put into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("prepared query templates can only be resolved up by name, not by ID")]
pub struct TemplateById;

/// All prepared queries at one moment.
#[derive(Clone, Debug, Default)]
pub struct Queries {
    held: OrdMap<Arc<str>, Arc<QueryEntry>>,
    /// Names in lower case to ids in ascending order.
    names: OrdMap<Arc<str>, Arc<[Arc<str>]>>,
    /// The same of templates.
    prefixes: OrdMap<Arc<str>, Arc<[Arc<str>]>>,
}

impl Queries {
    /// Lists the queries in the order of their ids.
    pub fn all(&self) -> impl Iterator<Item = &Arc<QueryEntry>> {
        self.held.values()
    }

    /// Finds a query by its id.
    pub fn get(&self, id: &str) -> Option<&Arc<QueryEntry>> {
        self.held.get(id)
    }

    /// Finds the query or template with exactly this name, compared without case.
    pub fn named(&self, name: &str, is_template: bool) -> Option<&Arc<QueryEntry>> {
        let names = if is_template { &self.prefixes } else { &self.names };
        self.held.get(names.get(lower(name).as_ref())?.first()?)
    }

    /// Finds what a name or an id means: a query by its id, one by its name, a template.
    pub fn resolve(&self, name_or_id: &str) -> Result<Option<Resolved<'_>>, TemplateById> {
        if let Some(entry) = self.get(name_or_id) {
            if entry.query.is_template() {
                return Err(TemplateById);
            }
            return Ok(Some(Resolved { entry, wanted: Cow::Borrowed(&entry.query.service) }));
        }
        if let Some(entry) = self.named(name_or_id, false) {
            return Ok(Some(Resolved { entry, wanted: Cow::Borrowed(&entry.query.service) }));
        }
        if self.prefixes.is_empty() {
            return Ok(None);
        }
        let name = lower(name_or_id);
        let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]).rev();
        let mut templates = ends.filter_map(|end| self.named(&name[..end], true));
        Ok(templates.find_map(|entry| {
            let wanted = entry.template.as_ref()?.render(&entry.query, name_or_id);
            Some(Resolved { entry, wanted: Cow::Owned(wanted) })
        }))
    }

    /// Takes over a row of the table, or that it went, and tells whether anything changed.
    pub(super) fn take_in(&mut self, at: u64, id: &Arc<str>, row: Option<PreparedQuery>) -> bool {
        let old = self.held.get(id).cloned();
        if old.as_ref().map(|old| &old.query) == row.as_ref() {
            return false;
        }
        if let Some(old) = &old {
            self.rename(old, false);
        }
        let Some(query) = row else {
            self.held.remove(id);
            return true;
        };
        let template = if query.is_template() { Compiled::new(&query).ok() } else { None };
        let entry = Arc::new(QueryEntry {
            id: Arc::clone(id),
            query,
            template: template.map(Arc::new),
            create_index: old.map_or(at, |old| old.create_index),
            modify_index: at,
        });
        self.rename(&entry, true);
        self.held.insert(Arc::clone(id), entry);
        true
    }

    fn rename(&mut self, entry: &QueryEntry, is_come: bool) {
        let is_template = entry.query.is_template();
        if entry.query.name.is_empty() && !is_template {
            return;
        }
        let names = if is_template { &mut self.prefixes } else { &mut self.names };
        let name = lower(&entry.query.name);
        let held = names.get(name.as_ref()).cloned().unwrap_or_default();
        let mut ids: BTreeSet<Arc<str>> = held.iter().cloned().collect();
        if is_come {
            ids.insert(Arc::clone(&entry.id));
        } else {
            ids.remove(&entry.id);
        }
        if ids.is_empty() {
            names.remove(name.as_ref());
        } else {
            names.insert(name.into_owned().into(), ids.into_iter().collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, service: &str) -> PreparedQuery {
        let wanted = Wanted { service: service.to_owned(), ..Wanted::default() };
        PreparedQuery { name: name.to_owned(), service: wanted, ..PreparedQuery::default() }
    }

    fn template(name: &str, service: &str) -> PreparedQuery {
        let template = Template { kind: template::KIND.to_owned(), ..Template::default() };
        PreparedQuery { template, ..query(name, service) }
    }

    fn queries(list: impl IntoIterator<Item = (&'static str, PreparedQuery)>) -> Queries {
        let mut queries = Queries::default();
        for (at, (id, query)) in (10..).zip(list) {
            assert!(queries.take_in(at, &id.into(), Some(query)));
        }
        queries
    }

    fn means(queries: &Queries, name: &str) -> Option<String> {
        queries.resolve(name).unwrap().map(|found| found.wanted.service.clone())
    }

    #[test]
    fn a_name_means_a_query_and_only_then_the_longest_template() {
        let queries = queries([
            ("1", query("Geo-db", "exact")),
            ("2", template("geo-", "${name.suffix} of geo")),
            ("3", template("GEO-d", "${name.suffix} of ${name.prefix}")),
            ("4", template("", "${name.full}")),
        ]);
        for (name, service) in [
            ("geo-DB", "exact"),
            ("1", "exact"),
            ("geo-Web", "Web of geo"),
            ("geo-", " of geo"),
            ("geo-Dx", "x of GEO-d"),
            ("ge", "ge"),
            ("", ""),
        ] {
            assert_eq!(means(&queries, name).as_deref(), Some(service), "{name}");
        }
        assert_eq!(queries.resolve("2").unwrap_err(), TemplateById);
    }

    #[test]
    fn the_lower_id_has_the_name_and_leaves_it_to_the_other() {
        let mut queries =
            queries([("b", query("x", "of b")), ("a", query("X", "of a")), ("c", query("", ""))]);
        assert_eq!(means(&queries, "x").as_deref(), Some("of a"));
        assert!(!queries.take_in(20, &"a".into(), Some(query("X", "of a"))));
        assert!(queries.take_in(20, &"a".into(), Some(query("y", "of a"))));
        assert_eq!(means(&queries, "x").as_deref(), Some("of b"));
        let entry = queries.get("a").unwrap();
        assert_eq!((entry.create_index, entry.modify_index), (11, 20));
        assert!(queries.take_in(30, &"b".into(), None));
        assert!(!queries.take_in(40, &"b".into(), None));
        assert_eq!((means(&queries, "x"), means(&queries, "")), (None, None));
        assert_eq!(queries.all().map(|entry| &*entry.id).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn a_template_that_makes_no_sense_answers_to_no_name() {
        let queries = queries([("1", template("a", "${")), ("2", template("", "${name.full}"))]);
        assert_eq!(means(&queries, "abc").as_deref(), Some("abc"));
    }
}
