//! The grammar, read as Consul's parser reads it: one alternative after the other, and what was
//! expected at the farthest place that any of them reached goes into the error.

use std::collections::BTreeSet;

use super::{Operator, PARTS_MAX, Tree};

const SPACES: &str = r"[ \t\r\n]";
const LETTER: &str = "[a-zA-Z]";
const WORD: &str = "[a-zA-Z0-9_]";
const DIGIT: &str = "[0-9]";
const FIRST_DIGIT: &str = "[1-9]";
const END: &str = "EOF";

/// Reads a whole expression, or says where and why it is none.
pub fn parse(text: &str) -> Result<Tree, String> {
    let mut reader = Reader { text, at: 0, farthest: 0, expected: BTreeSet::new(), parts: 0 };
    let read = reader.whole();
    read.map_err(|fault| match fault {
        Fault::Missed => reader.missed(),
        Fault::Broken(text) => text,
    })
}

/// Why a rule did not apply.
enum Fault {
    /// Another may.
    Missed,
    /// None will.
    Broken(String),
}

type Read<T> = Result<T, Fault>;

struct Reader<'a> {
    text: &'a str,
    at: usize,
    farthest: usize,
    /// What would have led on at the farthest place.
    expected: BTreeSet<String>,
    parts: usize,
}

impl Reader<'_> {
    fn whole(&mut self) -> Read<Tree> {
        self.spaces();
        let tree = self.or()?;
        self.spaces();
        if self.at == self.text.len() {
            return Ok(tree);
        }
        Err(self.miss(END.to_owned()))
    }

    fn or(&mut self) -> Read<Tree> {
        let left = self.and()?;
        match self.further("or")? {
            true => Ok(Tree::Or(Box::new(left), Box::new(self.or()?))),
            false => Ok(left),
        }
    }

    fn and(&mut self) -> Read<Tree> {
        let left = self.not()?;
        match self.further("and")? {
            true => Ok(Tree::And(Box::new(left), Box::new(self.and()?))),
            false => Ok(left),
        }
    }

    /// Reads a connective with space around it, or stays where it is.
    fn further(&mut self, word: &str) -> Read<bool> {
        let start = self.at;
        let found = self.some_spaces().and_then(|()| self.literal(word));
        match found.and_then(|()| self.some_spaces()) {
            Ok(()) => self.deeper().map(|()| true),
            Err(fault) => self.back(start, fault).map(|()| false),
        }
    }

    fn not(&mut self) -> Read<Tree> {
        let start = self.at;
        match self.literal("not").and_then(|()| self.some_spaces()) {
            Ok(()) => {
                self.deeper()?;
                match self.not() {
                    Ok(tree) => return Ok(Tree::Not(Box::new(tree))),
                    Err(fault) => self.back(start, fault)?,
                }
            }
            Err(fault) => self.back(start, fault)?,
        }
        self.grouping()
    }

    fn grouping(&mut self) -> Read<Tree> {
        if let Err(fault) = self.literal("(") {
            let start = self.at;
            self.back(start, fault)?;
            return self.comparison();
        }
        self.deeper()?;
        self.spaces();
        let tree = self.or()?;
        self.spaces();
        match self.literal(")") {
            Ok(()) => Ok(tree),
            Err(_) => Err(self.broken(self.at, "grouping", "Unmatched parentheses")),
        }
    }

    fn comparison(&mut self) -> Read<Tree> {
        let start = self.at;
        match self.selector() {
            Ok(path) => match self.of_selector(path) {
                Ok(tree) => return Ok(tree),
                Err(fault) => self.back(start, fault)?,
            },
            Err(fault) => self.back(start, fault)?,
        }
        let word = self.value()?;
        let operator =
            self.spaced(&[(&["in"], Operator::In), (&["not", "in"], Operator::NotIn)])?;
        let at = self.at;
        match self.selector() {
            Ok(path) => Ok(Tree::Match(path, operator, Some(word))),
            Err(Fault::Missed) => Err(self.broken(at, "match", "Invalid selector")),
            Err(broken) => Err(broken),
        }
    }

    fn of_selector(&mut self, path: Vec<String>) -> Read<Tree> {
        let start = self.at;
        for (sign, operator) in [("==", Operator::Equal), ("!=", Operator::NotEqual)] {
            self.spaces();
            match self.literal(sign) {
                Ok(()) => {
                    self.spaces();
                    let word = self.value()?;
                    return Ok(Tree::Match(path, operator, Some(word)));
                }
                Err(fault) => self.back(start, fault)?,
            }
        }
        let operator = self.spaced(&[
            (&["contains"], Operator::In),
            (&["not", "contains"], Operator::NotIn),
            (&["matches"], Operator::Matches),
            (&["not", "matches"], Operator::NotMatches),
        ]);
        match operator {
            Ok(operator) => match self.value() {
                Ok(word) => return Ok(Tree::Match(path, operator, Some(word))),
                Err(fault) => self.back(start, fault)?,
            },
            Err(fault) => self.back(start, fault)?,
        }
        let start = self.at;
        for (words, operator) in [
            (&["is", "empty"][..], Operator::IsEmpty),
            (&["is", "not", "empty"], Operator::IsNotEmpty),
        ] {
            match self.words(words) {
                Ok(()) => return Ok(Tree::Match(path, operator, None)),
                Err(fault) => self.back(start, fault)?,
            }
        }
        Err(Fault::Missed)
    }

    /// Reads the first of several operators that is there, with space around it.
    fn spaced(&mut self, operators: &[(&[&str], Operator)]) -> Read<Operator> {
        let start = self.at;
        for (words, operator) in operators {
            match self.words(words).and_then(|()| self.some_spaces()) {
                Ok(()) => return Ok(*operator),
                Err(fault) => self.back(start, fault)?,
            }
        }
        Err(Fault::Missed)
    }

    /// Reads words, each with space before it.
    fn words(&mut self, words: &[&str]) -> Read<()> {
        words.iter().try_for_each(|word| {
            self.some_spaces()?;
            self.literal(word)
        })
    }

    fn selector(&mut self) -> Read<Vec<String>> {
        let mut path = vec![self.identifier()?];
        loop {
            let start = self.at;
            let name = self.literal(".").and_then(|()| self.identifier());
            match name {
                Ok(name) => path.push(name),
                Err(fault) => {
                    self.back(start, fault)?;
                    match self.literal("[") {
                        Ok(()) => path.push(self.index()?),
                        Err(fault) => {
                            self.back(start, fault)?;
                            return Ok(path);
                        }
                    }
                }
            }
        }
    }

    fn index(&mut self) -> Read<String> {
        self.spaces();
        let at = self.at;
        let name = match self.string() {
            Ok(name) => name,
            Err(Fault::Missed) => return Err(self.broken(at, "index", "Invalid index")),
            Err(broken) => return Err(broken),
        };
        self.spaces();
        match self.literal("]") {
            Ok(()) => Ok(name),
            Err(_) => Err(self.broken(self.at, "index", "Unclosed index expression")),
        }
    }

    fn identifier(&mut self) -> Read<String> {
        let start = self.at;
        if !self.peek().is_some_and(|c| c.is_ascii_alphabetic()) {
            return Err(self.miss(LETTER.to_owned()));
        }
        self.at += 1;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.at += 1;
        }
        let _ = self.miss(WORD.to_owned());
        Ok(self.text[start..self.at].to_owned())
    }

    fn value(&mut self) -> Read<String> {
        let start = self.at;
        match self.selector() {
            Ok(path) => return Ok(path.join(".")),
            Err(fault) => self.back(start, fault)?,
        }
        match self.number() {
            Ok(number) => return Ok(number),
            Err(fault) => self.back(start, fault)?,
        }
        self.string()
    }

    fn number(&mut self) -> Read<String> {
        let start = self.at;
        if let Err(fault) = self.literal("-") {
            self.back(start, fault)?;
        }
        match self.peek() {
            Some('0') => self.at += 1,
            Some('1'..='9') => self.digits(),
            _ => {
                let _ = self.miss(quoted("0"));
                return Err(self.miss(FIRST_DIGIT.to_owned()));
            }
        }
        let whole = self.at;
        if self.peek() == Some('.') {
            self.at += 1;
            if self.peek().is_some_and(|c| c.is_ascii_digit()) {
                self.digits();
            } else {
                let _ = self.miss(DIGIT.to_owned());
                self.at = whole;
            }
        }
        match self.peek() {
            None | Some(' ' | '\t' | '\r' | '\n' | ')') => Ok(self.text[start..self.at].to_owned()),
            Some(_) => Err(self.broken(self.at, "number", "Invalid number literal")),
        }
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        let _ = self.miss(DIGIT.to_owned());
    }

    /// A text between backticks stands for itself; one between quotes has Go's escapes.
    fn string(&mut self) -> Read<String> {
        let start = self.at;
        let quote = match self.peek() {
            Some(quote @ ('`' | '"')) => quote,
            _ => {
                let _ = self.miss(quoted("`"));
                return Err(self.miss(quoted("\"")));
            }
        };
        let Some(length) = self.text[start + 1..].find(quote) else {
            return Err(self.broken(self.text.len(), "string", "Unterminated string literal"));
        };
        let inner = &self.text[start + 1..start + 1 + length];
        self.at = start + length + 2;
        if quote == '`' {
            // Go leaves carriage returns out.
            return Ok(inner.replace('\r', ""));
        }
        unescaped(inner).ok_or_else(|| self.broken(start, "string", "invalid syntax"))
    }

    /// Reads space, if there is any.
    fn spaces(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
        let _ = self.miss(SPACES.to_owned());
    }

    fn some_spaces(&mut self) -> Read<()> {
        let start = self.at;
        self.spaces();
        if self.at == start { Err(Fault::Missed) } else { Ok(()) }
    }

    fn literal(&mut self, word: &str) -> Read<()> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.miss(quoted(word)))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    /// Notes what was not there.
    fn miss(&mut self, expected: String) -> Fault {
        if self.at > self.farthest {
            self.farthest = self.at;
            self.expected.clear();
        }
        if self.at == self.farthest {
            self.expected.insert(expected);
        }
        Fault::Missed
    }

    /// Goes back to try the next alternative, unless there can be none.
    fn back(&mut self, start: usize, fault: Fault) -> Read<()> {
        self.at = start;
        match fault {
            Fault::Missed => Ok(()),
            broken @ Fault::Broken(_) => Err(broken),
        }
    }

    fn deeper(&mut self) -> Read<()> {
        self.parts += 1;
        if self.parts <= PARTS_MAX {
            return Ok(());
        }
        let why = format!("more than {} parts", PARTS_MAX);
        Err(self.broken(self.at, "expression", &why))
    }

    fn broken(&self, at: usize, rule: &str, why: &str) -> Fault {
        Fault::Broken(format!("{}: rule \"{rule}\": {why}", self.place(at)))
    }

    fn missed(&self) -> String {
        let is_end = |word: &&String| word.as_str() == END;
        let words = self.expected.iter().filter(|word| !is_end(word));
        let words: Vec<&str> =
            words.chain(self.expected.iter().filter(is_end)).map(String::as_str).collect();
        let list = match words.as_slice() {
            [] => String::new(),
            [one] => (*one).to_owned(),
            [others @ .., last] => format!("{} or {last}", others.join(", ")),
        };
        format!("{}: no match found, expected: {list}", self.place(self.farthest))
    }

    /// `line:column (offset)`; the first two count from 1, the last one bytes from 0.
    fn place(&self, at: usize) -> String {
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("{line}:{column} ({at})")
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn quoted(word: &str) -> String {
    format!("{word:?}")
}

/// Reads Go's escapes between double quotes; `None` for what is none.
fn unescaped(inner: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    let number = |rest: &mut std::str::Chars<'_>, first: Option<char>, count: usize, base: u32| {
        let digits: String = first.into_iter().chain(rest.take(count)).collect();
        let is_whole = digits.chars().all(|c| c.is_digit(base));
        let length = count + usize::from(first.is_some());
        (is_whole && digits.len() == length).then(|| u32::from_str_radix(&digits, base).ok())?
    };
    while let Some(c) = rest.next() {
        if c == '\n' {
            return None;
        }
        if c != '\\' {
            bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let byte = match rest.next()? {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            'x' => u8::try_from(number(&mut rest, None, 2, 16)?).ok()?,
            first @ '0'..='7' => u8::try_from(number(&mut rest, Some(first), 2, 8)?).ok()?,
            kind @ ('u' | 'U') => {
                let count = if kind == 'u' { 4 } else { 8 };
                let c = char::from_u32(number(&mut rest, None, count, 16)?)?;
                bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            _ => return None,
        };
        bytes.push(byte);
    }
    // JSON has no texts that are not UTF-8, so nothing could equal one.
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
