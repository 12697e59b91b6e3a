//! Users' SQL as it passes through: statements, parameters, results. Nothing here reads the text.

use std::time::Duration;

use crate::types::{Origin, Value, Version};

/// One SQL statement with its parameters.
#[derive(Clone, PartialEq, Debug)]
pub struct Statement {
    pub sql: String,
    pub params: Params,
}

/// What a statement's parameters are bound to.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Params {
    #[default]
    None,
    Positional(Vec<Value>),
    /// Names carry their prefix: `:name`, `@name` or `$name`.
    Named(Vec<(String, Value)>),
}

/// What one statement of a transaction did.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outcome {
    pub rows_affected: usize,
    pub took: Duration,
    /// Columns and rows of a statement that returns some (`RETURNING`).
    pub returned: Option<(Vec<String>, Vec<Vec<Value>>)>,
}

/// What a transaction did.
#[derive(Clone, PartialEq, Debug)]
pub struct Transacted {
    pub outcomes: Vec<Outcome>,
    /// The version it made; `None` when nothing replicated changed.
    pub version: Option<Version>,
    pub origin: Origin,
}
