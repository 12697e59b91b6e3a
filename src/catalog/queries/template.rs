//! Templates: how the name that was asked becomes part of the question.
//!
//! `${name.full}`, `${name.prefix}` (the template's own name), `${name.suffix}`, `${match(N)}` (the
//! N-th group of the regular expression, 0 for all that it found) and `${agent.segment}` (always
//! empty here). `$${` stands for `${`. Consul takes arithmetic and conditions as well; nobody is
//! known to use them, and they are refused.

use std::convert::Infallible;

use regex::{Regex, RegexBuilder};

use super::definition::{PreparedQuery, Wanted};

/// The one kind there is.
pub const KIND: &str = "name_prefix_match";

/// How much memory a regular expression may take, taken apart.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// A template that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("failed compiling template: Bad Template.Type '{0}'")]
    Kind(String),
    #[error("failed compiling template: Bad Regexp: {0}")]
    Regexp(String),
    #[error("failed compiling template: Bad format '{text}' in {field}: parse error: {why}")]
    Format { field: String, text: String, why: &'static str },
    #[error(
        "failed compiling template: Bad evaluation for '{text}' in {field}: unknown variable \
         accessed: {name}"
    )]
    Variable { field: String, text: String, name: String },
}

/// A template that was read and makes sense.
#[derive(Clone, Debug)]
pub struct Compiled {
    regexp: Option<Regex>,
}

impl Compiled {
    /// Reads all of a template.
    pub fn new(query: &PreparedQuery) -> Result<Self, TemplateError> {
        let template = &query.template;
        if template.kind != KIND {
            return Err(TemplateError::Kind(template.kind.clone()));
        }
        query.service.map(|field, text| {
            let parts = parts(text).map_err(|flaw| flaw.in_text(field, text))?;
            Ok(parts.len().to_string())
        })?;
        if template.regexp.is_empty() {
            return Ok(Self { regexp: None });
        }
        let mut builder = RegexBuilder::new(&template.regexp);
        let regexp = builder.size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX).build();
        let why = |error: regex::Error| {
            let text = error.to_string();
            text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        };
        Ok(Self { regexp: Some(regexp.map_err(|error| TemplateError::Regexp(why(error)))?) })
    }

    /// Puts a name into the question.
    pub fn render(&self, query: &PreparedQuery, name: &str) -> Wanted {
        let captures = self.regexp.as_ref().and_then(|regexp| regexp.captures(name));
        let group = |at: usize| captures.as_ref().and_then(|captures| captures.get(at));
        let suffix = name.get(query.name.len()..).unwrap_or_default();
        let fill = |_: &str, text: &str| {
            let parts = parts(text).unwrap_or_default();
            let parts = parts.into_iter().map(|part| match part {
                Part::Literal(text) => text,
                Part::Full => name,
                Part::Prefix => &query.name,
                Part::Suffix => suffix,
                Part::Match(at) => group(at).map_or("", |group| group.as_str()),
                Part::Segment => "",
            });
            Ok::<_, Infallible>(parts.collect())
        };
        let Ok(mut wanted) = query.service.map(fill);
        if query.template.remove_empty_tags
            && let Some(tags) = &mut wanted.tags
        {
            tags.retain(|tag| !tag.trim().is_empty());
        }
        wanted
    }
}

/// A piece of a text with variables in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part<'t> {
    Literal(&'t str),
    Full,
    Prefix,
    Suffix,
    Segment,
    Match(usize),
}

/// What is wrong with a text.
#[derive(PartialEq, Eq, Debug)]
enum Flaw {
    Open,
    Expression,
    Variable(String),
}

impl Flaw {
    fn in_text(self, field: &str, text: &str) -> TemplateError {
        let (field, text) = (field.to_owned(), text.to_owned());
        match self {
            Self::Open => TemplateError::Format { field, text, why: "${ without its }" },
            Self::Expression => TemplateError::Format {
                field,
                text,
                why: "only variables and match(N) are understood",
            },
            Self::Variable(name) => TemplateError::Variable { field, text, name },
        }
    }
}

fn parts(text: &str) -> Result<Vec<Part<'_>>, Flaw> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            parts.extend([Part::Literal(&rest[..at - 1]), Part::Literal("${")]);
            rest = &rest[at + 2..];
            continue;
        }
        parts.push(Part::Literal(&rest[..at]));
        let (inside, after) = rest[at + 2..].split_once('}').ok_or(Flaw::Open)?;
        parts.push(variable(inside.trim())?);
        rest = after;
    }
    parts.push(Part::Literal(rest));
    Ok(parts)
}

fn variable(name: &str) -> Result<Part<'_>, Flaw> {
    match name {
        "name.full" => return Ok(Part::Full),
        "name.prefix" => return Ok(Part::Prefix),
        "name.suffix" => return Ok(Part::Suffix),
        "agent.segment" => return Ok(Part::Segment),
        _ => {}
    }
    let group = name.strip_prefix("match(").and_then(|rest| rest.strip_suffix(')'));
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    match group.map(|group| group.trim().parse::<usize>()) {
        Some(Ok(group)) => Ok(Part::Match(group)),
        None if !name.is_empty() && name.chars().all(is_name) => {
            Err(Flaw::Variable(name.to_owned()))
        }
        Some(Err(_)) | None => Err(Flaw::Expression),
    }
}

#[cfg(test)]
mod tests {
    use super::super::definition::Template;
    use super::*;

    fn template(service: &str, regexp: &str) -> PreparedQuery {
        let kind = KIND.to_owned();
        PreparedQuery {
            name: "geo-".to_owned(),
            template: Template { kind, regexp: regexp.to_owned(), remove_empty_tags: true },
            service: Wanted {
                service: service.to_owned(),
                tags: Some(vec!["${match(2)}".to_owned(), "!rep".to_owned()]),
                node_meta: Some([("seg".to_owned(), "${agent.segment}".to_owned())].into()),
                ..Wanted::default()
            },
            ..PreparedQuery::default()
        }
    }

    #[test]
    fn a_name_fills_all_texts() {
        for (service, regexp, name, filled) in [
            ("${name.suffix}", "", "geo-Web", "Web"),
            ("a ${name.prefix}|${ name.full } b", "", "geo-x", "a geo-|geo-x b"),
            ("${match(1)}-${match(0)}", "^geo-(.*?)-([^-]+)$", "geo-a-b", "a-geo-a-b"),
            ("${match(1)}${match(9)}", "^geo-(.*?)-([^-]+)$", "geo-a", ""),
            ("$${name.full}$", "", "geo-x", "${name.full}$"),
            ("plain", "", "geo-x", "plain"),
        ] {
            let query = template(service, regexp);
            let wanted = Compiled::new(&query).unwrap().render(&query, name);
            assert_eq!(wanted.service, filled, "{service}");
        }
        let query = template("x", "^geo-(.*?)-([^-]+)$");
        let compiled = Compiled::new(&query).unwrap();
        let tags = |name| compiled.render(&query, name).tags.unwrap();
        assert_eq!(tags("geo-a-v1"), ["v1", "!rep"]);
        assert_eq!(tags("geo-a"), ["!rep"]);
        assert_eq!(compiled.render(&query, "geo-a").node_meta.unwrap()["seg"], "");
    }

    #[test]
    fn what_is_no_template_is_told_where_and_why() {
        for (service, regexp, why) in [
            ("${name.suffix", "", "Bad format '${name.suffix' in Service.Service: parse error"),
            ("${bogus.x}", "", "in Service.Service: unknown variable accessed: bogus.x"),
            ("${match(x)}", "", "only variables and match(N) are understood"),
            ("${1 + 1}", "", "only variables and match(N) are understood"),
            ("${}", "", "only variables and match(N) are understood"),
            ("x", "(", "failed compiling template: Bad Regexp: "),
            ("x", "(a{999}){999}", "Bad Regexp: Compiled regex exceeds size limit"),
        ] {
            let error = Compiled::new(&template(service, regexp)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let mut query = template("x", "");
        query.service.tags = Some(vec!["a".to_owned(), "${b}".to_owned()]);
        let error = Compiled::new(&query).unwrap_err().to_string();
        assert!(error.contains("'${b}' in Service.Tags[1]"), "{error}");
        query.template.kind = "bogus".to_owned();
        let error = Compiled::new(&query).unwrap_err().to_string();
        assert_eq!(error, "failed compiling template: Bad Template.Type 'bogus'");
    }
}
