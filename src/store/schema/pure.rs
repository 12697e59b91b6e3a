//! The functions that may stand in a schema: those that come to the same on every node, and among
//! them those that never fail, of which an index may be made.

use super::text::{name_of, tokens};

/// What comes to the same for the same arguments, wherever it runs. Date functions are here since
/// SQLite itself refuses `now` and local time in a schema.
const PURE: [&str; 68] = [
    "->",
    "->>",
    "abs",
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "date",
    "datetime",
    "format",
    "glob",
    "hex",
    "if",
    "ifnull",
    "iif",
    "instr",
    "json",
    "json_array",
    "json_array_length",
    "json_error_position",
    "json_extract",
    "json_insert",
    "json_object",
    "json_patch",
    "json_pretty",
    "json_quote",
    "json_remove",
    "json_replace",
    "json_set",
    "json_type",
    "json_valid",
    "jsonb",
    "jsonb_array",
    "jsonb_extract",
    "jsonb_insert",
    "jsonb_object",
    "jsonb_patch",
    "jsonb_remove",
    "jsonb_replace",
    "jsonb_set",
    "julianday",
    "length",
    "like",
    "likelihood",
    "likely",
    "lower",
    "ltrim",
    "max",
    "min",
    "nullif",
    "octet_length",
    "printf",
    "quote",
    "replace",
    "round",
    "rtrim",
    "sign",
    "strftime",
    "substr",
    "substring",
    "time",
    "trim",
    "typeof",
    "unhex",
    "unicode",
    "unixepoch",
    "unlikely",
    "upper",
];

/// Those that no value makes fail, and that make nothing longer than what they are given.
const SAFE: [&str; 15] = [
    "coalesce",
    "if",
    "ifnull",
    "iif",
    "length",
    "likelihood",
    "likely",
    "lower",
    "nullif",
    "octet_length",
    "sign",
    "typeof",
    "unicode",
    "unlikely",
    "upper",
];

/// Words that may stand before a bracket and are no functions.
const WORDS: [&str; 24] = [
    "AND", "AS", "ASC", "BETWEEN", "BY", "CASE", "CAST", "COLLATE", "DESC", "DISTINCT", "ELSE",
    "END", "FROM", "IN", "IS", "ISNULL", "NOT", "NOTNULL", "NULL", "ON", "OR", "THEN", "WHEN",
    "WHERE",
];

/// Operators that may fail: on a pattern or a path that is none, or on what becomes too long.
const UNSAFE: [&str; 8] = ["->", "->>", "||", "LIKE", "GLOB", "REGEXP", "MATCH", "RAISE"];

pub(super) fn is_pure(function: &str) -> bool {
    PURE.iter().any(|pure| pure.eq_ignore_ascii_case(function))
}

/// Finds what may fail in an expression that SQLite has read.
pub(super) fn fallible(sql: &str) -> Option<String> {
    let tokens = tokens(sql);
    let is_one_of =
        |names: &[&str], token: &str| names.iter().any(|name| name.eq_ignore_ascii_case(token));
    tokens.iter().enumerate().find_map(|(at, token)| {
        if is_one_of(&UNSAFE, token) {
            return Some((*token).to_owned());
        }
        let is_before_bracket = tokens.get(at + 1) == Some(&"(");
        let starts = |c: char| c.is_alphanumeric() || "_\"`[".contains(c) || !c.is_ascii();
        if !is_before_bracket || !token.starts_with(starts) || is_one_of(&WORDS, token) {
            return None;
        }
        let name = name_of(token);
        (!is_one_of(&SAFE, &name)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_fail_is_found_however_it_is_written() {
        for (sql, found) in [
            (
                "( a , lower ( b ) COLLATE NOCASE DESC ) WHERE a IN ( 1 , 2 ) AND ( b IS NOT ( 3 ) )",
                None,
            ),
            ("( CASE WHEN ( a > 1 ) THEN ( coalesce ( a , 0 ) ) ELSE - ( a ) END )", None),
            ("( CAST ( a AS TEXT ) )", None),
            ("( abs ( a ) )", Some("abs")),
            ("( \"ABS\" ( a ) )", Some("ABS")),
            ("( [json_extract] ( a , '$' ) )", Some("json_extract")),
            ("( a -> '$.x' )", Some("->")),
            ("( a ) WHERE b LIKE 'x'", Some("LIKE")),
            ("( a || b )", Some("||")),
        ] {
            assert_eq!(fallible(sql).as_deref(), found, "{sql}");
        }
    }

    #[test]
    fn every_function_that_is_named_here_exists() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        for name in PURE.iter().chain(&SAFE).filter(|name| !name.starts_with('-')) {
            let sql = "SELECT count(*) FROM pragma_function_list WHERE name = ?1";
            let count: i64 = conn.query_row(sql, [name], |row| row.get(0)).unwrap();
            assert!(count > 0 || *name == "if", "{name}");
        }
        assert!(SAFE.iter().all(|name| is_pure(name)));
        for name in ["random", "changes", "total_changes", "last_insert_rowid", "sqlite_version"] {
            assert!(!is_pure(name));
        }
    }
}
