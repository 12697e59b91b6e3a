//! How large a text grows while SQLite prepares it: a bound, counted from its tokens.
//!
//! SQLite copies a common table expression for each place that names it, and the expression behind
//! a sub-query's column for each place that uses it. A few hundred bytes of `WITH` or of nested
//! `FROM` so become millions of terms before the first step, and no deadline is looked at
//! meanwhile. What the names mean is not known here; every doubt counts as a copy.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::limits::UNFOLDED_TERMS_MAX;
use super::schema::text::{name_of, tokens};

/// Words of expressions that are no columns.
const WORDS: [&str; 27] = [
    "and", "or", "not", "is", "in", "null", "isnull", "notnull", "like", "glob", "match", "regexp",
    "between", "case", "when", "then", "else", "end", "cast", "collate", "escape", "exists",
    "distinct", "all", "asc", "desc", "by",
];

/// How deep brackets may be nested. SQLite's own parser gives up at about a hundred.
const DEPTH_MAX: usize = 200;

/// How deep the count goes, brackets and tables that use tables together.
const COUNT_DEPTH_MAX: usize = 300;

/// Words that end the columns or the sources of a query.
const ENDS: [&str; 11] = [
    "WHERE",
    "GROUP",
    "HAVING",
    "ORDER",
    "LIMIT",
    "UNION",
    "INTERSECT",
    "EXCEPT",
    "SET",
    "VALUES",
    "RETURNING",
];

/// Says why a text may not be prepared; `None`: it may. The text may hold several statements.
pub fn refusal(sql: &str) -> Option<String> {
    let all = tokens(sql);
    let is_too_large = |statement: &[&str]| match Text::read(statement) {
        Some(text) => text.is_too_large(),
        None => true,
    };
    all.split(|token| *token == ";").any(is_too_large).then(|| {
        format!(
            "the statement would unfold to more than {UNFOLDED_TERMS_MAX} terms: its sub-queries or WITH tables use one another too often"
        )
    })
}

/// A statement's tokens.
struct Text<'a> {
    tokens: &'a [&'a str],
    /// For each bracket that opens, where it closes.
    closes: Vec<usize>,
    /// How deep the count is in brackets and in tables that use tables.
    depth: Cell<usize>,
}

/// What a query unfolds to, in terms.
#[derive(Clone, Copy, Debug)]
struct Size {
    all: u64,
    /// The largest of its columns.
    column: u64,
}

/// Tables of one `WITH`, and those around it.
struct Scope<'s> {
    tables: BTreeMap<String, Table>,
    /// What a column from outside stands for.
    unit: u64,
    outer: Option<&'s Scope<'s>>,
}

struct Table {
    body: (usize, usize),
    /// `None`: not counted yet.
    size: RefCell<Option<Size>>,
    /// While it is counted, it names itself: it is recursive, and SQLite makes no copy.
    is_open: Cell<bool>,
}

/// What the tokens that follow belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Columns,
    Sources,
    Rest,
}

/// A `SELECT`, or what stands before the first.
#[derive(Default)]
struct Arm {
    /// The result's columns, the sources, and all else, as ranges of tokens.
    columns: Vec<(usize, usize)>,
    sources: Vec<(usize, usize)>,
    rest: Vec<(usize, usize)>,
}

/// What the sources of a query come to.
struct Sources {
    all: u64,
    /// What a column of theirs stands for.
    unit: u64,
    /// Conditions and arguments, as ranges of tokens.
    others: Vec<(usize, usize)>,
}

impl<'a> Text<'a> {
    /// `None`: its brackets are nested deeper than SQLite reads.
    fn read(tokens: &'a [&'a str]) -> Option<Self> {
        let mut closes = vec![tokens.len(); tokens.len()];
        let mut open = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            match *token {
                "(" if open.len() == DEPTH_MAX => return None,
                "(" => open.push(at),
                ")" => {
                    if let Some(from) = open.pop() {
                        closes[from] = at;
                    }
                }
                _ => {}
            }
        }
        Some(Self { tokens, closes, depth: Cell::new(0) })
    }

    fn is_too_large(&self) -> bool {
        let outermost = Scope { tables: BTreeMap::new(), unit: 1, outer: None };
        self.query((0, self.tokens.len()), 1, &outermost).all > UNFOLDED_TERMS_MAX
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.eq_ignore_ascii_case(word))
    }

    fn is_query(&self, at: usize) -> bool {
        ["SELECT", "WITH", "VALUES"].iter().any(|word| self.is(at, word))
    }

    /// Counts what is one deeper. A chain of thousands of tables must not end our own stack; beyond
    /// a hundred SQLite refuses it.
    fn deeper<T>(&self, too_deep: T, count: impl FnOnce() -> T) -> T {
        let depth = self.depth.get();
        if depth >= COUNT_DEPTH_MAX {
            return too_deep;
        }
        self.depth.set(depth + 1);
        let counted = count();
        self.depth.set(depth);
        counted
    }

    /// Counts a query, or a whole statement. `unit` is what a column from outside stands for.
    fn query(&self, range: (usize, usize), unit: u64, outer: &Scope<'_>) -> Size {
        let too_deep = Size { all: u64::MAX, column: u64::MAX };
        self.deeper(too_deep, || self.arms(range, unit, outer))
    }

    fn arms(&self, range: (usize, usize), unit: u64, outer: &Scope<'_>) -> Size {
        let mut scope = Scope { tables: BTreeMap::new(), unit, outer: Some(outer) };
        let mut arms = vec![Arm::default()];
        let (mut part, mut from, mut at) = (Part::Rest, range.0, range.0);
        while at < range.1 {
            if self.is(at, "WITH")
                && let Some(after) = self.with(at, range.1, &mut scope)
            {
                arms.last_mut().expect("there is one").take(part, (from, at));
                (from, at) = (after, after);
                continue;
            }
            if let Some(next) = self.part_at(at) {
                arms.last_mut().expect("there is one").take(part, (from, at));
                if self.is(at, "SELECT") {
                    arms.push(Arm::default());
                }
                (part, from) = (next, at + 1);
            }
            at = self.after(at);
        }
        arms.last_mut().expect("there is one").take(part, (from, range.1));
        let mut size = Size { all: 1, column: 1 };
        for arm in arms {
            let arm = self.arm(&arm, unit, &scope);
            size.all = size.all.saturating_add(arm.all);
            size.column = size.column.max(arm.column);
        }
        size
    }

    /// Returns which part a word begins. Only words that SQLite reserves: others may be columns.
    fn part_at(&self, at: usize) -> Option<Part> {
        if self.is(at, "SELECT") {
            return Some(Part::Columns);
        }
        // IS DISTINCT FROM compares.
        let compares = at > 1
            && self.is(at - 1, "DISTINCT")
            && (self.is(at - 2, "IS") || self.is(at - 2, "NOT"));
        if self.is(at, "FROM") && !compares {
            return Some(Part::Sources);
        }
        ENDS.iter().any(|word| self.is(at, word)).then_some(Part::Rest)
    }

    /// Reads the tables of a `WITH`. Returns where it ends; `None`: this is none.
    fn with(&self, at: usize, end: usize, scope: &mut Scope<'_>) -> Option<usize> {
        let mut at = at + 1;
        // A table may have this name.
        if self.is(at, "RECURSIVE") && !self.is(at + 1, "AS") && !self.is(at + 1, "(") {
            at += 1;
        }
        let mut found = BTreeMap::new();
        loop {
            let name = name_of(self.tokens.get(at)?).to_lowercase();
            at += 1;
            if self.is(at, "(") {
                at = self.closes[at] + 1;
            }
            if !self.is(at, "AS") {
                return None;
            }
            at += 1;
            at += usize::from(self.is(at, "NOT"));
            at += usize::from(self.is(at, "MATERIALIZED"));
            if !self.is(at, "(") || at >= end {
                return None;
            }
            let body = (at + 1, self.closes[at]);
            let table = Table { body, size: RefCell::default(), is_open: Cell::new(false) };
            found.insert(name, table);
            at = (self.closes[at] + 1).min(end);
            if !self.is(at, ",") {
                break;
            }
            at += 1;
        }
        scope.tables.extend(found);
        Some(at)
    }

    fn arm(&self, arm: &Arm, unit: u64, scope: &Scope<'_>) -> Size {
        let mut found = Sources { all: 0, unit, others: Vec::new() };
        for range in &arm.sources {
            self.sources(*range, unit, scope, &mut found);
        }
        let Sources { mut all, unit: inner, others } = found;
        let mut column = 1;
        for range in &arm.columns {
            let mut from = range.0;
            let mut at = range.0;
            while at <= range.1 {
                if at == range.1 || self.is(at, ",") {
                    let terms = self.terms((from, at), inner, scope);
                    column = column.max(terms);
                    all = all.saturating_add(terms);
                    from = at + 1;
                }
                at = if at == range.1 { at + 1 } else { self.after(at).min(range.1) };
            }
        }
        for range in arm.rest.iter().chain(&others) {
            all = all.saturating_add(self.terms(*range, inner, scope));
        }
        Size { all, column }
    }

    /// Counts what stands in a FROM. What is left are conditions and arguments.
    fn sources(&self, range: (usize, usize), unit: u64, scope: &Scope<'_>, found: &mut Sources) {
        let mut at = range.0;
        let mut is_next = true;
        while at < range.1 {
            let after = self.after(at).min(range.1);
            let is_group = self.is(at, "(");
            if is_next && is_group && !self.is_query(at + 1) {
                let inside = (at + 1, self.closes[at].min(range.1));
                let is_counted = self.deeper(false, || {
                    self.sources(inside, unit, scope, found);
                    true
                });
                if !is_counted {
                    found.all = u64::MAX;
                    return;
                }
            } else if is_next {
                let size = if is_group {
                    self.query((at + 1, self.closes[at].min(range.1)), unit, scope)
                } else {
                    self.named(self.tokens[at], scope).unwrap_or(Size { all: 1, column: 1 })
                };
                found.all = found.all.saturating_add(size.all);
                found.unit = found.unit.max(size.column);
            } else {
                found.others.push((at, after));
            }
            // `main.` is followed by the table.
            is_next = self.is(at, ",")
                || self.is(at, "JOIN")
                || (is_next && self.is(at + 1, "."))
                || (at > range.0 && self.is(at, ".") && self.is_source_dot(at, range.0));
            at = after;
        }
    }

    fn is_source_dot(&self, at: usize, from: usize) -> bool {
        at == from + 1 || self.is(at - 2, ",") || self.is(at - 2, "JOIN")
    }

    /// Counts a table of a `WITH`; `None`: the name is no such table's.
    fn named(&self, token: &str, scope: &Scope<'_>) -> Option<Size> {
        let name = name_of(token).to_lowercase();
        let mut around = Some(scope);
        while let Some(scope) = around {
            if let Some(table) = scope.tables.get(&name) {
                if table.is_open.get() {
                    return Some(Size { all: 1, column: scope.unit });
                }
                if let Some(size) = *table.size.borrow() {
                    return Some(size);
                }
                table.is_open.set(true);
                let size = self.query(table.body, scope.unit, scope);
                table.is_open.set(false);
                *table.size.borrow_mut() = Some(size);
                return Some(size);
            }
            around = scope.outer;
        }
        None
    }

    /// Counts expressions of columns that stand for `unit` terms each.
    fn terms(&self, range: (usize, usize), unit: u64, scope: &Scope<'_>) -> u64 {
        let mut all = 0_u64;
        let mut at = range.0;
        while at < range.1 {
            let token = self.tokens[at];
            let after = self.after(at).min(range.1);
            let terms = if token == "(" {
                let inside = (at + 1, self.closes[at].min(range.1));
                if self.is_query(at + 1) {
                    self.query(inside, unit, scope).all
                } else {
                    self.deeper(u64::MAX, || self.terms(inside, unit, scope))
                }
            } else if at > 0 && self.is(at - 1, "IN") {
                self.named(token, scope).map_or(1, |size| size.all)
            } else if self.is_column(at) {
                unit
            } else {
                1
            };
            all = all.saturating_add(terms);
            at = after;
        }
        all
    }

    fn is_column(&self, at: usize) -> bool {
        let token = self.tokens[at];
        let first = token.chars().next().unwrap_or(' ');
        if token == "*" {
            // A star that multiplies has something before it.
            return at == 0 || [",", "SELECT", "."].iter().any(|word| self.is(at - 1, word));
        }
        if !(first.is_alphabetic() || matches!(first, '_' | '"' | '`' | '[') || !first.is_ascii()) {
            return false;
        }
        let is_name = self.is(at + 1, ".") || self.is(at + 1, "(");
        let is_alias = at > 0 && self.is(at - 1, "AS");
        !is_name && !is_alias && !WORDS.iter().any(|word| token.eq_ignore_ascii_case(word))
    }

    /// Returns where the next token is, past what is in brackets.
    fn after(&self, at: usize) -> usize {
        if self.is(at, "(") { (self.closes[at] + 1).min(self.tokens.len()) } else { at + 1 }
    }
}

impl Arm {
    fn take(&mut self, part: Part, range: (usize, usize)) {
        if range.0 >= range.1 {
            return;
        }
        match part {
            Part::Columns => self.columns.push(range),
            Part::Sources => self.sources.push(range),
            Part::Rest => self.rest.push(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rusqlite::Connection;

    use super::*;
    use crate::store::values::excerpt;

    fn chain(count: usize, body: &str) -> String {
        let table = |i: usize| {
            let named = |place: usize| body.replace("$P", &format!("c{place}"));
            format!(", c{i}(x) AS {}", named(i - 1))
        };
        let tables: String = (1..=count).map(table).collect();
        format!("WITH c0(x) AS (SELECT value FROM kv){tables} SELECT x FROM c{count}")
    }

    fn nested(count: usize, column: &str) -> String {
        let wrap = |inner: String, _| format!("SELECT {column} AS x FROM ({inner})");
        (0..count).fold("SELECT value AS x FROM kv".to_owned(), wrap)
    }

    #[test]
    fn what_unfolds_to_millions_is_refused_before_sqlite_reads_it() {
        for sql in [
            chain(24, "(SELECT 1 FROM $P, $P)"),
            chain(24, "(SELECT 1 FROM $P AS a JOIN main.$P AS b)"),
            chain(24, "MATERIALIZED (SELECT 1 FROM $P, $P)"),
            chain(24, "NOT MATERIALIZED (SELECT 1 FROM \"$P\", [$P])"),
            chain(24, "(SELECT 1 FROM ($P, ($P)))").replace("SELECT 1 FROM (c", "select 1 FROM (C"),
            chain(24, "(SELECT x FROM $P UNION ALL SELECT x FROM $P)"),
            chain(24, "(SELECT 1 WHERE 1 IN $P AND 2 IN (SELECT x FROM $P))"),
            chain(24, "(SELECT x+x FROM $P)"),
            chain(24, "(SELECT window, x+x FROM $P)"),
            chain(24, "(SELECT $a(') + x+x FROM $P -- '\n)"),
            chain(24, "(\u{feff}SELECT x+x FROM $P)"),
            chain(24, "(SELECT x IS DISTINCT FROM x FROM $P)"),
            chain(24, "(SELECT 1 FROM $P, $P)").replace("WITH", "WITH RECURSIVE"),
            format!("SELECT (SELECT 1 FROM ({}))", chain(24, "(SELECT 1 FROM $P, $P)")),
            format!("INSERT INTO kv (key) {}", chain(24, "(SELECT 1 FROM $P, $P)")),
            format!("SELECT 1; {}", chain(24, "(SELECT 1 FROM $P, $P)")),
            chain(5, "(SELECT x FROM $P, $P, $P, $P, $P, $P, $P, $P, $P, $P, $P, $P, $P, $P)"),
            nested(24, "x + x"),
            nested(12, "CASE WHEN x THEN x ELSE x END"),
            nested(4, &["x"; 90].join("+")),
            nested(24, "(SELECT x + x)"),
            nested(24, "coalesce(x, 1, x)"),
            // Nothing is used twice, but the stack has an end.
            chain(20_000, "(SELECT x FROM $P)"),
            chain(200, &format!("({}SELECT x FROM $P{})", "SELECT (".repeat(90), ")".repeat(90))),
            format!("SELECT 1 FROM {}kv{}", "(".repeat(190), ")".repeat(190)) + &"(".repeat(9_999),
        ] {
            // What counts the terms one by one would not be done in a year.
            let refused = refusal(&sql);
            assert!(refused.is_some_and(|text| text.contains("would unfold")), "{}", excerpt(&sql));
        }
    }

    #[test]
    fn what_people_write_is_let_through() {
        let columns: Vec<String> = (0..100).map(|i| format!("a{i}")).collect();
        let wide = columns.join(", ");
        let values = vec!["(1, 'x')"; 6_000].join(",");
        for sql in [
            format!("INSERT INTO kv (key, value) VALUES {values}"),
            format!("SELECT {wide} FROM (SELECT {wide} FROM (SELECT {wide} FROM (SELECT {wide} FROM (SELECT {wide} FROM t))))"),
            chain(12, "(SELECT a.x FROM $P AS a JOIN kv ON kv.key = a.x WHERE a.x > 1 AND a.x < 9 ORDER BY a.x)"),
            chain(5, "(SELECT coalesce(x, upper(x), CASE WHEN x > 1 THEN x ELSE '-' END) FROM $P)"),
            chain(6, "(SELECT a.x FROM $P AS a JOIN $P AS b ON a.x = b.x)"),
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9), m AS (SELECT * FROM n, n AS o) SELECT count(*) FROM m, m AS k".to_owned(),
            "SELECT key FROM kv WHERE key IN (SELECT id FROM services WHERE EXISTS (SELECT 1 FROM checks WHERE checks.service_id = services.id))".to_owned(),
            nested(10, "x + 1"),
        ] {
            assert_eq!(refusal(&sql), None, "{sql}");
        }
    }

    /// The count is a bound: what passes takes SQLite no time.
    #[test]
    fn what_passes_is_prepared_at_once() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE kv (key, value)").unwrap();
        crate::store::limits::limit(&conn).unwrap();
        let shapes: [&dyn Fn(usize) -> String; 6] = [
            &|count| chain(count, "(SELECT 1 FROM $P, $P)"),
            &|count| chain(count, "(SELECT x+x FROM $P)"),
            &|count| nested(count, "x + x"),
            &|count| nested(count, "CASE WHEN x THEN x ELSE x END"),
            &|count| nested(count.min(3), &["x"; 90].join("+")),
            &|count| nested(count, "(SELECT x + x)"),
        ];
        for shape in shapes {
            let passing = (1..30).map(shape).take_while(|sql| refusal(sql).is_none());
            let largest = passing.last().expect("one passes");
            // Whether SQLite takes it does not matter, but for how long it thinks about it does.
            let begun = Instant::now();
            drop(conn.prepare(&largest));
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(60), "{}: {took:?}", excerpt(&largest));
        }
    }
}
