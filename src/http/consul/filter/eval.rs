//! An expression held against a shape, and asked of objects.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::{Operator, Shape, Tree};
use crate::http::consul::query::boolean;

/// What a compiled regular expression may take, and what it may take while it runs, in bytes.
const REGEX_BYTES_MAX: usize = 256 * 1024;

/// An expression whose paths exist, with its words in the types that they are compared with.
#[derive(Clone, Debug)]
pub enum Test {
    Or(Box<Test>, Box<Test>),
    And(Box<Test>, Box<Test>),
    Not(Box<Test>),
    Match { path: Vec<Step>, question: Question, is_negative: bool },
}

/// One name of a path. A field that an object's JSON leaves out has its zero value; a key that a map
/// does not have leads nowhere.
#[derive(Clone, Debug)]
pub enum Step {
    Field(String),
    Key(String),
}

/// What is asked at the end of a path.
#[derive(Clone, Debug)]
pub enum Question {
    Text(String),
    Integer(i64),
    Bool(bool),
    /// A part of a text, an element of a list or a key of a map.
    Has(String),
    Empty,
    Like(Regex),
}

impl Test {
    pub fn new(tree: &Tree, shape: &Shape) -> Result<Self, String> {
        let both = |one: &Tree, other: &Tree| {
            Ok::<_, String>((Box::new(Self::new(one, shape)?), Box::new(Self::new(other, shape)?)))
        };
        Ok(match tree {
            Tree::Or(one, other) => both(one, other).map(|(one, other)| Self::Or(one, other))?,
            Tree::And(one, other) => both(one, other).map(|(one, other)| Self::And(one, other))?,
            Tree::Not(one) => Self::Not(Box::new(Self::new(one, shape)?)),
            Tree::Match(path, operator, word) => {
                let (steps, at) = steps(path, shape)?;
                let word = word.as_deref().unwrap_or_default();
                Self::Match {
                    question: question(&path.join("."), *operator, word, at)?,
                    path: steps,
                    is_negative: operator.is_negative(),
                }
            }
        })
    }

    pub fn holds(&self, object: &Value) -> bool {
        match self {
            Self::Or(one, other) => one.holds(object) || other.holds(object),
            Self::And(one, other) => one.holds(object) && other.holds(object),
            Self::Not(one) => !one.holds(object),
            Self::Match { path, question, is_negative } => {
                ask(object, path, question, *is_negative)
            }
        }
    }
}

/// Finds what a path leads to.
fn steps<'a>(path: &[String], shape: &'a Shape) -> Result<(Vec<Step>, &'a Shape), String> {
    let mut at = shape;
    let mut steps = Vec::with_capacity(path.len());
    for (place, name) in path.iter().enumerate() {
        if let Shape::List(element) = at {
            at = element;
        }
        let inner = match at {
            Shape::Object(fields) => {
                let field = fields.iter().find(|(field, _)| field == name);
                field.map(|(_, shape)| (Step::Field(name.clone()), shape))
            }
            Shape::Map(value) => Some((Step::Key(name.clone()), *value)),
            Shape::Text | Shape::Integer | Shape::Bool | Shape::Texts | Shape::List(_) => None,
        };
        let error = || format!("Selector {:?} is not valid", path[..=place].join("."));
        let (step, inner) = inner.ok_or_else(error)?;
        steps.push(step);
        at = inner;
    }
    Ok((steps, at))
}

/// Makes the question that an operator asks of values of a type.
fn question(
    selector: &str,
    operator: Operator,
    word: &str,
    at: &Shape,
) -> Result<Question, String> {
    let coerce = |error: String| {
        format!("Failed to coerce value {word:?} for selector {selector:?}: {error}")
    };
    let question = match (at, operator) {
        (Shape::Text, Operator::Equal | Operator::NotEqual) => Question::Text(word.to_owned()),
        (Shape::Integer, Operator::Equal | Operator::NotEqual) => {
            Question::Integer(integer(word).map_err(coerce)?)
        }
        (Shape::Bool, Operator::Equal | Operator::NotEqual) => {
            let truth = boolean(word);
            let error = || format!("strconv.ParseBool: parsing {word:?}: invalid syntax");
            Question::Bool(truth.ok_or_else(error).map_err(coerce)?)
        }
        (Shape::Text | Shape::Texts | Shape::Map(_), Operator::In | Operator::NotIn) => {
            Question::Has(word.to_owned())
        }
        (
            Shape::Texts | Shape::Map(_) | Shape::List(_),
            Operator::IsEmpty | Operator::IsNotEmpty,
        ) => Question::Empty,
        (Shape::Text, Operator::Matches | Operator::NotMatches) => Question::Like(regex(word)?),
        _ => {
            return Err(format!(
                "Invalid match operator {:?} for selector {selector:?}",
                operator.name()
            ));
        }
    };
    Ok(question)
}

fn regex(word: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(word);
    let limited = builder.size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX);
    limited.build().map_err(|error| {
        let why = error.to_string();
        let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("Failed to compile regular expression {word:?}: error parsing regexp: {why}")
    })
}

/// Reads an integer as Go does that finds the base in the prefix.
fn integer(word: &str) -> Result<i64, String> {
    let error = |why: &str| format!("strconv.ParseInt: parsing {word:?}: {why}");
    let (is_negative, digits) = match word.as_bytes() {
        [b'-', ..] => (true, &word[1..]),
        [b'+', ..] => (false, &word[1..]),
        _ => (false, word),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return Err(error("invalid syntax"));
    }
    let number = i128::from_str_radix(digits, base).map_err(|_| error("value out of range"))?;
    let number = if is_negative { -number } else { number };
    i64::try_from(number).map_err(|_| error("value out of range"))
}

fn ask(value: &Value, path: &[Step], question: &Question, is_negative: bool) -> bool {
    let [step, rest @ ..] = path else { return answer(value, question) != is_negative };
    if let Value::Array(elements) = value {
        return elements.iter().any(|element| ask(element, path, question, is_negative));
    }
    let (Step::Field(name) | Step::Key(name)) = step;
    match (value.get(name), step) {
        (Some(inner), _) => ask(inner, rest, question, is_negative),
        (None, Step::Key(_)) => is_negative,
        // Below a field that is not there, too, a key leads nowhere.
        (None, Step::Field(_)) if rest.iter().any(|step| matches!(step, Step::Key(_))) => {
            is_negative
        }
        (None, Step::Field(_)) => answer_zero(question) != is_negative,
    }
}

/// Answers for an empty text or list, 0 or false.
fn answer_zero(question: &Question) -> bool {
    match question {
        Question::Text(word) => word.is_empty(),
        Question::Integer(number) => *number == 0,
        Question::Bool(truth) => !truth,
        Question::Has(_) => false,
        Question::Empty => true,
        Question::Like(regex) => regex.is_match(""),
    }
}

fn answer(value: &Value, question: &Question) -> bool {
    let is_empty = match value {
        Value::Null => true,
        Value::Array(elements) => elements.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    match (question, value) {
        (Question::Empty, _) => is_empty,
        (Question::Text(word), Value::String(text)) => text == word,
        (Question::Integer(number), Value::Number(held)) => held.as_i64() == Some(*number),
        (Question::Bool(truth), Value::Bool(held)) => held == truth,
        (Question::Has(word), Value::String(text)) => text.contains(word.as_str()),
        (Question::Has(word), Value::Array(elements)) => {
            elements.iter().any(|element| element.as_str() == Some(word))
        }
        (Question::Has(word), Value::Object(fields)) => fields.contains_key(word),
        (Question::Like(regex), Value::String(text)) => regex.is_match(text),
        _ => false,
    }
}
