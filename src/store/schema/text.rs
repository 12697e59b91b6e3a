//! SQL text cut into tokens, and CREATE statements into their parts. SQLite has read every text
//! before it comes here, so it is valid; what its parts mean is not known here.

/// Cuts a text into tokens. Comments and blanks are gone.
pub(in crate::store) fn tokens(sql: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| {
            matches!(c, '\x0b' | '\u{feff}') || c.is_ascii_whitespace()
        });
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else if rest.is_empty() {
            return tokens;
        } else {
            let (token, after) = rest.split_at(token_bytes(rest));
            tokens.push(token);
            rest = after;
        }
    }
}

/// Joins tokens so that they are the same tokens again.
pub(super) fn joined(tokens: &[&str]) -> String {
    tokens.join(" ")
}

/// Tells whether two texts have the same tokens but for the case of words that no quotes keep.
pub(super) fn same(one: &str, other: &str) -> bool {
    let (one, other) = (tokens(one), tokens(other));
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| *one == other || (is_word(one) && one.eq_ignore_ascii_case(other)))
}

fn token_bytes(text: &str) -> usize {
    const OPERATORS: [&str; 11] =
        ["->>", "||", "->", "<=", ">=", "<>", "!=", "==", "<<", ">>", "::"];
    let first = text.chars().next().unwrap_or_default();
    let mut chars = text.chars();
    match first {
        '\'' | '"' | '`' => quoted_bytes(text, first),
        '[' => text.find(']').map_or(text.len(), |end| end + 1),
        'x' | 'X' if text[1..].starts_with('\'') => 1 + quoted_bytes(&text[1..], '\''),
        '$' | '@' | ':' | '#' if text[1..].starts_with(is_word_char) => variable_bytes(text),
        _ if is_number_start(text) => number_bytes(text),
        _ if is_word_char(first) => text.find(|c| !is_word_char(c)).unwrap_or(text.len()),
        _ => {
            chars.next();
            let one = text.len() - chars.as_str().len();
            OPERATORS.iter().find(|op| text.starts_with(**op)).map_or(one, |op| op.len())
        }
    }
}

/// A quote within is written twice.
fn quoted_bytes(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return at + 1;
        }
    }
    text.len()
}

/// SQLite reads the variables of Tcl: whatever follows in brackets, a quote too, is of the name.
fn variable_bytes(text: &str) -> usize {
    let mut rest = &text[1..];
    loop {
        rest = rest.trim_start_matches(is_word_char);
        match rest.strip_prefix("::") {
            Some(more) => rest = more,
            None => break,
        }
    }
    if let Some(inner) = rest.strip_prefix('(')
        && let Some(end) = inner.find(|c: char| c == ')' || c.is_ascii_whitespace())
        && inner[end..].starts_with(')')
    {
        rest = &inner[end + 1..];
    }
    text.len() - rest.len()
}

fn is_number_start(text: &str) -> bool {
    let digits = text.strip_prefix('.').unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit())
}

fn number_bytes(text: &str) -> usize {
    let is_hex = text.starts_with("0x") || text.starts_with("0X");
    let mut before = ' ';
    let end = text.find(|c: char| {
        let is_sign = !is_hex && matches!(c, '+' | '-') && matches!(before, 'e' | 'E');
        before = c;
        !(is_sign || c == '.' || is_word_char(c))
    });
    end.unwrap_or(text.len())
}

fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

fn is_word(token: &str) -> bool {
    token.starts_with(is_word_char) && !is_number_start(token) && !token.ends_with('\'')
}

fn is(token: &str, word: &str) -> bool {
    token.eq_ignore_ascii_case(word)
}

/// Returns the name that a token writes, without its quotes.
pub(in crate::store) fn name_of(token: &str) -> String {
    let unquoted = match token.chars().next() {
        Some(quote @ ('"' | '`' | '\'')) => within(token, quote, quote).map(|inner| {
            let twice = format!("{quote}{quote}");
            inner.replace(&twice, &quote.to_string())
        }),
        Some('[') => within(token, '[', ']').map(str::to_owned),
        _ => None,
    };
    unquoted.unwrap_or_else(|| token.to_owned())
}

/// Returns what stands between two quotes; `None`: one of them is missing.
fn within(token: &str, open: char, close: char) -> Option<&str> {
    token.strip_prefix(open)?.strip_suffix(close)
}

/// Tells whether a token opens a quote and never closes it: the text ends within.
fn is_unterminated(token: &str) -> bool {
    match token.chars().next() {
        Some(quote @ ('"' | '`' | '\'')) => {
            // A quote at the end may be half of one that is written twice.
            within(token, quote, quote)
                .is_none_or(|inner| inner.replace(&format!("{quote}{quote}"), "").contains(quote))
        }
        Some('[') => within(token, '[', ']').is_none(),
        _ => false,
    }
}

/// The parts of a CREATE TABLE, as SQLite keeps its text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TableText {
    /// What follows each column's name, but for `PRIMARY KEY`, in the order of the table.
    pub columns: Vec<String>,
    /// The CHECKs that stand by themselves.
    pub checks: Vec<String>,
}

/// Takes a CREATE TABLE apart.
pub(super) fn table_text(sql: &str) -> TableText {
    let tokens = tokens(sql);
    let mut text = TableText::default();
    let Some(open) = tokens.iter().position(|token| *token == "(") else { return text };
    for part in parts(&tokens[open + 1..open + 1 + inside(&tokens[open..])]) {
        let starts = |word: &&str| part.first().is_some_and(|token| is(token, word));
        if ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"].iter().any(starts) {
            text.checks.extend(checks(part));
        } else if !part.is_empty() {
            text.columns.push(joined(&without_key(&part[1..])));
        }
    }
    text
}

/// Returns what a column is computed of, with its brackets, out of what follows the column's name;
/// of a column that is none, all of it.
pub(super) fn generation_text(definition: &str) -> String {
    let tokens = tokens(definition);
    let is_open = |at: usize| is(tokens[at], "AS") && tokens.get(at + 1) == Some(&"(");
    let Some(at) = (0..tokens.len()).find(|at| is_open(*at)) else { return joined(&tokens) };
    joined(&tokens[at + 1..(at + 3 + inside(&tokens[at + 1..])).min(tokens.len())])
}

/// Returns what follows the table's name in a CREATE INDEX, as SQLite keeps its text.
pub(super) fn index_text(sql: &str) -> String {
    let tokens = tokens(sql);
    let open = tokens.iter().position(|token| *token == "(").unwrap_or(tokens.len());
    joined(&tokens[open..])
}

/// A DROP that stands in a schema's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropStatement {
    pub is_table: bool,
    pub name: String,
    pub if_exists: bool,
}

/// Takes the DROP TABLE and DROP INDEX statements out of a text. The others stay on their lines.
pub(super) fn take_drops(sql: &str) -> (String, Vec<DropStatement>) {
    let (mut left, mut drops) = (String::with_capacity(sql.len()), Vec::new());
    let mut statement: Vec<&str> = Vec::new();
    let offset = |token: &str| token.as_ptr() as usize - sql.as_ptr() as usize;
    let mut from = 0;
    for token in tokens(sql) {
        statement.push(token);
        if token == ";" {
            let to = offset(token) + 1;
            take_statement(&sql[from..to], &statement, &mut left, &mut drops);
            statement.clear();
            from = to;
        }
    }
    take_statement(&sql[from..], &statement, &mut left, &mut drops);
    (left, drops)
}

fn take_statement(
    text: &str,
    statement: &[&str],
    left: &mut String,
    drops: &mut Vec<DropStatement>,
) {
    match drop_of(statement) {
        None => left.push_str(text),
        Some(drop) => {
            drops.push(drop);
            left.extend(text.chars().filter(|c| *c == '\n'));
        }
    }
}

fn drop_of(statement: &[&str]) -> Option<DropStatement> {
    let statement = statement.strip_suffix(&[";"]).unwrap_or(statement);
    let (drop, rest) = statement.split_first()?;
    let (kind, rest) = rest.split_first()?;
    let is_table = is(kind, "TABLE");
    if !is(drop, "DROP") || !(is_table || is(kind, "INDEX")) {
        return None;
    }
    let (name, if_exists) = match rest {
        [name] => (name, false),
        [first, second, name] if is(first, "IF") && is(second, "EXISTS") => (name, true),
        _ => return None,
    };
    if is_unterminated(name) {
        return None;
    }
    Some(DropStatement { is_table, name: name_of(name), if_exists })
}

/// Tells whether a text mentions a name, quoted or not.
pub(super) fn mentions(text: &str, name: &str) -> bool {
    let of_a_name = |token: &&str| !token.starts_with('\'');
    tokens(text).into_iter().filter(of_a_name).any(|token| is(&name_of(token), name))
}

/// Returns how many tokens stand between the bracket that opens `tokens` and the one that closes it.
fn inside(tokens: &[&str]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at.saturating_sub(1);
        }
    }
    tokens.len().saturating_sub(1)
}

/// Cuts tokens at the commas that stand in no brackets.
fn parts<'a, 't>(tokens: &'a [&'t str]) -> Vec<&'a [&'t str]> {
    let mut depth = 0;
    tokens
        .split(|token| {
            match *token {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            depth == 0 && *token == ","
        })
        .collect()
}

/// Lists the CHECKs among a table's constraints, between which commas may be missing.
fn checks(tokens: &[&str]) -> Vec<String> {
    let mut checks = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is(tokens[at], "CHECK") {
            let is_named = at >= 2 && is(tokens[at - 2], "CONSTRAINT");
            let end = (at + 3 + inside(&tokens[at + 1..])).min(tokens.len());
            checks.push(joined(&tokens[if is_named { at - 2 } else { at }..end]));
            at = end;
        } else if tokens[at] == "(" {
            at += 2 + inside(&tokens[at..]);
        } else {
            at += 1;
        }
    }
    checks
}

/// Leaves out `PRIMARY KEY` with what belongs to it: the table says its key by itself.
fn without_key<'t>(tokens: &[&'t str]) -> Vec<&'t str> {
    let mut left: Vec<&str> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|token| is(token, word));
    while at < tokens.len() {
        if tokens[at] == "(" {
            let end = (at + 2 + inside(&tokens[at..])).min(tokens.len());
            left.extend(&tokens[at..end]);
            at = end;
            continue;
        }
        if !(word(at, "PRIMARY") && word(at + 1, "KEY")) {
            left.push(tokens[at]);
            at += 1;
            continue;
        }
        if at >= 2 && word(at - 2, "CONSTRAINT") {
            left.truncate(left.len().saturating_sub(2));
        }
        at += 2;
        if word(at, "ASC") || word(at, "DESC") {
            at += 1;
        }
        if word(at, "ON") && word(at + 1, "CONFLICT") {
            at += 3;
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_what_sqlite_reads() {
        let sql = "a -- c '\n\"b \"\"c\" /* x */ [d e]`f`'it''s' x'00' 1.5e-3 .5 0x1F<=a->>'b'||c.d ö$1;(-1)";
        let expected = [
            "a",
            "\"b \"\"c\"",
            "[d e]",
            "`f`",
            "'it''s'",
            "x'00'",
            "1.5e-3",
            ".5",
            "0x1F",
            "<=",
            "a",
            "->>",
            "'b'",
            "||",
            "c",
            ".",
            "d",
            "ö$1",
            ";",
            "(",
            "-",
            "1",
            ")",
        ];
        assert_eq!(tokens(sql), expected);
        assert_eq!(tokens(&joined(&expected)), expected);
    }

    #[test]
    fn a_table_is_taken_apart() {
        let sql = "CREATE TABLE \"t(,\" (a INT CONSTRAINT k PRIMARY KEY DESC NOT NULL, \"primary\" DECIMAL(3, 2) DEFAULT (1),
            g AS (a + 1) CHECK (g > ')' ), CONSTRAINT x CHECK (a > 1) CHECK (\"check\" IN (1,2)), PRIMARY KEY (a)) STRICT";
        let text = table_text(sql);
        assert_eq!(
            text.columns,
            ["INT NOT NULL", "DECIMAL ( 3 , 2 ) DEFAULT ( 1 )", "AS ( a + 1 ) CHECK ( g > ')' )"]
        );
        assert_eq!(
            text.checks,
            ["CONSTRAINT x CHECK ( a > 1 )", "CHECK ( \"check\" IN ( 1 , 2 ) )"]
        );
        assert_eq!(
            index_text("CREATE INDEX i ON [t]( a DESC ) WHERE a>3"),
            "( a DESC ) WHERE a > 3"
        );
    }

    #[test]
    fn drops_are_taken_out_and_lines_stay() {
        let sql = "CREATE TABLE a (x);\n-- one\nDROP TABLE \"b;\" ;\nDROP INDEX IF EXISTS [i j];CREATE INDEX x ON a (x)";
        let (left, drops) = take_drops(sql);
        assert_eq!(left, "CREATE TABLE a (x);\n\n\nCREATE INDEX x ON a (x)");
        let named = |is_table, name: &str, if_exists| DropStatement {
            is_table,
            name: name.to_owned(),
            if_exists,
        };
        assert_eq!(drops, [named(true, "b;", false), named(false, "i j", true)]);
        assert_eq!(take_drops("DROP VIEW a; DROP TABLE main.a").1, []);
    }

    #[test]
    fn a_quote_that_is_not_closed_is_no_drop() {
        for quote in ["[", "\"", "`", "'"] {
            for name in ["\u{e9}", "a", "", "\u{1f980}x"] {
                let sql = format!("DROP TABLE {quote}{name}");
                assert_eq!(take_drops(&sql), (sql.clone(), vec![]));
                assert_eq!(name_of(&format!("{quote}{name}")), format!("{quote}{name}"));
            }
        }
        assert_eq!(take_drops("DROP TABLE \"a\"\"").1, []);
        assert_eq!(take_drops("DROP TABLE \"a\"\"\"").1[0].name, "a\"");
        assert_eq!(take_drops("DROP TABLE [\u{e9}]").1[0].name, "\u{e9}");
    }

    #[test]
    fn only_the_case_of_bare_words_does_not_matter() {
        assert!(same("int Not NULL /* x */ check(A>1)", "INT NOT null CHECK ( a > 1 )"));
        assert!(!same("DEFAULT 'a'", "DEFAULT 'A'"));
        assert!(!same("DEFAULT 1", "DEFAULT 2"));
        assert!(mentions("CHECK ( \"A b\" > 'c' )", "a B") && !mentions("CHECK ( a > 'c' )", "c"));
    }
}
