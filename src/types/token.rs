//! What a write answers with, by which any node can tell whether it holds it.

use std::fmt;
use std::str::FromStr;

use super::id::{NodeId, Origin, Scope};
use super::version::{Epoch, Version};

/// A version of an origin. Whoever holds it holds all that the origin wrote up to it.
///
/// As text: `9f2c3c1e-7d3b-4a55-8c3e-0a6f2f1f5b11/1790000000@42`, with the scope and a colon before
/// it where there is one. It needs no escaping in a query string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Token {
    pub origin: Origin,
    pub version: Version,
}

/// The text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no version: write it as a write answered it, like 9f2c3c1e-7d3b-4a55-8c3e-0a6f2f1f5b11/1790000000@42"
)]
pub struct ParseTokenError;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.origin, self.version.0)
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or(ParseTokenError)
    }
}

fn parse(text: &str) -> Option<Token> {
    let (origin, version) = text.split_once('@')?;
    let (scope, origin) = origin.split_once(':').unwrap_or(("0", origin));
    let (node, epoch) = origin.split_once('/')?;
    let origin = Origin {
        scope: Scope(number(scope)?.try_into().ok()?),
        node: node.parse::<NodeId>().ok()?,
        epoch: Some(Epoch(number(epoch)?)).filter(|epoch| *epoch <= Epoch::MAX)?,
    };
    let version = number(version).filter(|version| i64::try_from(*version).is_ok())?;
    Some(Token { origin, version: Version(version) })
}

/// Digits alone: a sign is no number here.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text() {
        let origin = Origin { scope: Scope(0), node: NodeId([7; 16]), epoch: Epoch(9) };
        let far = Origin { scope: Scope(3), ..origin };
        for token in [origin, far].map(|origin| Token { origin, version: Version(42) }) {
            assert_eq!(token.to_string().parse(), Ok(token));
        }
        let text = "07070707-0707-0707-0707-070707070707/9@42";
        assert_eq!(text.parse(), Ok(Token { origin, version: Version(42) }));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let node = "07070707-0707-0707-0707-070707070707";
        for text in [
            "".to_owned(),
            "42".to_owned(),
            format!("{node}@42"),
            format!("{node}/9"),
            format!("{node}/9@"),
            format!("{node}/9@+4"),
            format!("{node}/-1@4"),
            format!("{node}/9223372036854775808@4"),
            format!("70000:{node}/9@4"),
            format!("{node}/9@9223372036854775808"),
            format!("{node}/9@4 "),
        ] {
            assert_eq!(text.parse::<Token>(), Err(ParseTokenError), "{text}");
        }
    }
}
