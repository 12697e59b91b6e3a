//! Consul's filter language (go-bexpr): `?filter=Service.Meta.version == "2" and v1 in Service.Tags`.
//!
//! An expression is read and held against the shape of what an endpoint returns before anything is
//! waited for; then it is asked of each object, as that object's JSON. The grammar, the operators of
//! each type and the error texts are those that Consul 1.8.7 was seen to have, but for one: to
//! `matches` a key that a map does not have is no match (there it is one, and its `not` too).

mod eval;
mod parse;
mod shape;
#[cfg(test)]
mod tests;

use serde_json::Value;

use self::eval::Test;
pub use self::shape::Shape;

/// The longest expression, in bytes.
const BYTES_MAX: usize = 8 * 1024;
/// How many `and`s, `or`s, `not`s and parentheses an expression may have: each may be read deeper in
/// the stack than the one before.
const PARTS_MAX: usize = 256;

/// Why an expression cannot be used, in Consul's words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Failed to create boolean expression evaluator: {0}")]
pub struct FilterError(String);

/// An expression that can be asked of objects of one shape.
#[derive(Clone, Debug)]
pub struct Filter(Test);

impl Filter {
    /// Reads an expression of at most 8 KiB, of 256 parts.
    pub fn parse(text: &str, shape: &Shape) -> Result<Self, FilterError> {
        if text.len() > BYTES_MAX {
            return Err(FilterError(format!(
                "the expression has {} bytes, at most {BYTES_MAX} are read",
                text.len()
            )));
        }
        let tree = parse::parse(text).map_err(FilterError)?;
        Test::new(&tree, shape).map(Self).map_err(FilterError)
    }

    /// Tells whether an object is as the expression says. What its JSON leaves out is empty, zero or
    /// false.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.holds(object)
    }
}

/// What an expression says, as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Tree {
    Or(Box<Tree>, Box<Tree>),
    And(Box<Tree>, Box<Tree>),
    Not(Box<Tree>),
    /// A path into the object, what to ask there, and the word to ask with.
    Match(Vec<String>, Operator, Option<String>),
}

/// What may be asked of a value. `contains` is `in` the other way round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operator {
    Equal,
    NotEqual,
    In,
    NotIn,
    IsEmpty,
    IsNotEmpty,
    Matches,
    NotMatches,
}

impl Operator {
    /// Returns its name in errors.
    fn name(self) -> &'static str {
        match self {
            Self::Equal => "Equal",
            Self::NotEqual => "Not Equal",
            Self::In => "In",
            Self::NotIn => "Not In",
            Self::IsEmpty => "Is Empty",
            Self::IsNotEmpty => "Is Not Empty",
            Self::Matches => "Matches",
            Self::NotMatches => "Not Matches",
        }
    }

    /// Tells whether it holds where the one that it negates does not.
    fn is_negative(self) -> bool {
        matches!(self, Self::NotEqual | Self::NotIn | Self::IsNotEmpty | Self::NotMatches)
    }
}
