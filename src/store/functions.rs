//! Functions of SQLite that a user's statement could hold a connection with for hours, in bounded
//! form. SQLite compares text byte by byte in `instr`, `replace`, `trim` and `unhex`, which for two
//! texts of megabytes takes longer than anyone waits, and looks at no deadline meanwhile. These do
//! the same and refuse a long second argument.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{Value as Sql, ValueRef};
use rusqlite::{Connection, Error, Result};

use super::limits::{PATTERN_BYTES_MAX, ROW_BYTES_MAX};

/// Replaces the unbounded functions of a connection.
pub fn bound(conn: &Connection) -> Result<()> {
    // As SQLite's own: the same for the same arguments, and allowed in a schema.
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_INNOCUOUS;
    conn.create_scalar_function("instr", 2, flags, |context| instr(context))?;
    conn.create_scalar_function("replace", 3, flags, |context| replace(context))?;
    conn.create_scalar_function("unhex", 2, flags, |context| unhex(context))?;
    for (name, left, right) in
        [("trim", true, true), ("ltrim", true, false), ("rtrim", false, true)]
    {
        conn.create_scalar_function(name, 2, flags, move |context| trim(context, left, right))?;
    }
    Ok(())
}

/// Returns where the second argument begins in the first: in characters from 1, or bytes if both
/// are blobs; 0: nowhere.
fn instr(context: &Context<'_>) -> Result<Option<i64>> {
    let are_blobs = [0, 1].iter().all(|at| matches!(context.get_raw(*at), ValueRef::Blob(_)));
    let (Some(text), Some(part)) = (bytes(context, 0)?, pattern(context, 1, "instr")?) else {
        return Ok(None);
    };
    // As SQLite's own: in texts only what begins with a character is looked at, and the first byte.
    let mut count = 0_i64;
    let mut rest = &text[..];
    let Some((first, others)) = part.split_first() else { return Ok(Some(1)) };
    while rest.len() >= part.len() {
        count += 1;
        if rest[0] == *first && rest[1..].starts_with(others) {
            return Ok(Some(count));
        }
        let is_next = |byte: &u8| are_blobs || is_start(*byte);
        rest = &rest[1..];
        rest = &rest[rest.iter().position(is_next).unwrap_or(rest.len())..];
    }
    Ok(Some(0))
}

fn replace(context: &Context<'_>) -> Result<Sql> {
    let (Some(text), Some(part)) = (bytes(context, 0)?, pattern(context, 1, "replace")?) else {
        return Ok(Sql::Null);
    };
    // As SQLite's own, to whose C a text that begins with NUL is empty.
    if part.first().is_none_or(|byte| *byte == 0) {
        return as_text(text.into_owned());
    }
    let Some(new) = bytes(context, 2)? else { return Ok(Sql::Null) };
    let mut made = Vec::with_capacity(text.len());
    let mut rest = &text[..];
    while let Some(at) = find(rest, &part) {
        made.extend_from_slice(&rest[..at]);
        made.extend_from_slice(&new);
        if made.len() > ROW_BYTES_MAX {
            return Err(refused("string or blob too big".to_owned()));
        }
        rest = &rest[at + part.len()..];
    }
    made.extend_from_slice(rest);
    as_text(made)
}

fn trim(context: &Context<'_>, left: bool, right: bool) -> Result<Sql> {
    let (Some(text), Some(set)) = (bytes(context, 0)?, pattern(context, 1, "trim")?) else {
        return Ok(Sql::Null);
    };
    // As SQLite's own: the set ends at a NUL, what is trimmed is compared byte by byte, and of two
    // characters that fit the first of the set counts.
    let set = set.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut places = BTreeMap::new();
    for (place, character) in characters(set).enumerate() {
        places.entry(character).or_insert(place);
    }
    let lengths: BTreeSet<usize> = places.keys().map(|character| character.len()).collect();
    let length_of_first = |rest: &[u8], is_left: bool| {
        let fits = |length: &usize| {
            let from = rest.len().checked_sub(*length)?;
            let end = if is_left { &rest[..*length] } else { &rest[from..] };
            Some((*places.get(end)?, *length))
        };
        lengths.iter().filter_map(fits).min().map(|(_, length)| length)
    };
    let mut rest = &text[..];
    while left && let Some(length) = length_of_first(rest, true) {
        rest = &rest[length..];
    }
    while right && let Some(length) = length_of_first(rest, false) {
        rest = &rest[..rest.len() - length];
    }
    as_text(rest.to_vec())
}

/// Code points that no text holds.
const NO_CHARACTERS: [char; 2] = ['\u{fffe}', '\u{ffff}'];

/// Reads pairs of hex digits; between pairs the characters of the second argument are passed over.
fn unhex(context: &Context<'_>) -> Result<Option<Vec<u8>>> {
    let (Some(text), Some(set)) = (bytes(context, 0)?, pattern(context, 1, "unhex")?) else {
        return Ok(None);
    };
    let not_text = || refused("unhex: the text is not UTF-8".to_owned());
    let text = str::from_utf8(&text).map_err(|_| not_text())?;
    let set = str::from_utf8(&set).map_err(|_| not_text())?;
    // Which of them SQLite takes for the same depends on where they stand.
    if text.contains(NO_CHARACTERS) || set.contains(NO_CHARACTERS) {
        return Err(refused("unhex: U+FFFE and U+FFFF are no characters".to_owned()));
    }
    let set: BTreeSet<char> = set.chars().collect();
    let mut made = Vec::with_capacity(text.len() / 2);
    let digit = |c: char| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    // A NUL is the end.
    let mut rest = text.split('\0').next().unwrap_or_default().chars();
    while let Some(c) = rest.next() {
        if let Some(high) = digit(c) {
            let Some(low) = rest.next().and_then(digit) else { return Ok(None) };
            made.push(high << 4 | low);
        } else if !set.contains(&c) {
            return Ok(None);
        }
    }
    Ok(Some(made))
}

/// Returns an argument as the text that SQLite would make of it; `None`: NULL.
fn bytes<'a>(context: &'a Context<'_>, at: usize) -> Result<Option<Cow<'a, [u8]>>> {
    Ok(match context.get_raw(at) {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(Cow::Borrowed(bytes)),
        ValueRef::Integer(number) => Some(Cow::Owned(number.to_string().into_bytes())),
        ValueRef::Real(number) => Some(Cow::Owned(real_text(number)?.into_bytes())),
    })
}

/// Writes a real as SQLite does where it wants a text. Only SQLite knows its last digit.
fn real_text(number: f64) -> Result<String> {
    thread_local! {
        static SCRATCH: OnceCell<Connection> = const { OnceCell::new() };
    }
    SCRATCH.with(|scratch| {
        if scratch.get().is_none() {
            // Whoever was here first is this thread, which was not.
            let _ = scratch.set(Connection::open_in_memory()?);
        }
        let conn = scratch.get().expect("it was set above");
        conn.prepare_cached("SELECT ?1 || ''")?.query_row([number], |row| row.get(0))
    })
}

/// Returns the argument that is looked for.
fn pattern<'a>(
    context: &'a Context<'_>,
    at: usize,
    function: &str,
) -> Result<Option<Cow<'a, [u8]>>> {
    let bytes = bytes(context, at)?;
    if bytes.as_ref().is_some_and(|bytes| bytes.len() > PATTERN_BYTES_MAX) {
        return Err(refused(format!(
            "{function}: the second argument is longer than {PATTERN_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    let Some((first, others)) = part.split_first() else { return Some(0) };
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|byte| byte == first) {
        from += at + 1;
        if text[from..].starts_with(others) {
            return Some(from - 1);
        }
    }
    None
}

/// Cuts text into characters as SQLite does: bytes that continue belong to what a byte of many
/// began, and stand for themselves otherwise.
fn characters(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = *rest.first()?;
        let more = rest[1..].iter().take_while(|byte| first >= 0xc0 && !is_start(**byte)).count();
        let (character, others) = rest.split_at(1 + more);
        rest = others;
        Some(character)
    })
}

fn is_start(byte: u8) -> bool {
    byte & 0xc0 != 0x80
}

/// SQLite would make a text of any bytes. One that is not UTF-8 could be stored nowhere, and is
/// refused here.
fn as_text(bytes: Vec<u8>) -> Result<Sql> {
    String::from_utf8(bytes)
        .map(Sql::Text)
        .map_err(|_| refused("the result is not UTF-8".to_owned()))
}

fn refused(reason: String) -> Error {
    Error::UserFunctionError(reason.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(conn: &Connection, call: &str, params: &[Sql]) -> std::result::Result<Sql, String> {
        conn.query_row(&format!("SELECT {call}"), rusqlite::params_from_iter(params), |row| {
            row.get(0)
        })
        .map_err(|error| error.to_string())
    }

    fn ours() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        bound(&conn).unwrap();
        conn
    }

    fn value() -> impl Strategy<Value = Sql> {
        prop_oneof![
            Just(Sql::Null),
            (-20_i64..120).prop_map(Sql::Integer),
            prop_oneof![
                Just(0.5),
                Just(-1e100),
                Just(3.0),
                Just(1.0 / 3.0),
                Just(1e15),
                Just(1e14),
                Just(0.0001),
                Just(0.000012),
                Just(f64::INFINITY),
                Just(123_456.789)
            ]
            .prop_map(Sql::Real),
            "[ab1.ü€]{0,6}".prop_map(Sql::Text),
            "[a-b0-1]{0,6}".prop_map(Sql::Text),
            "[ab]{0,3}".prop_map(|text: String| Sql::Blob(text.into_bytes())),
            // Pieces of characters, bytes that are none, and NUL.
            proptest::collection::vec(
                prop_oneof![
                    Just(b'a'),
                    Just(b'1'),
                    Just(0),
                    Just(0xc3),
                    Just(0xbc),
                    Just(0x82),
                    Just(0xe2),
                    Just(0xff)
                ],
                0..6,
            )
            .prop_map(Sql::Blob),
            "[a\0ü\u{fffd}\u{ffff}1]{0,5}".prop_map(Sql::Text),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn they_say_what_sqlites_own_say(a in value(), b in value(), c in value()) {
            let (own, theirs) = (ours(), Connection::open_in_memory().unwrap());
            for call in [
                "instr(?1, ?2)", "trim(?1, ?2)", "ltrim(?1, ?2)", "rtrim(?1, ?2)",
                "unhex(?1, ?2)", "replace(?1, ?2, ?3)",
            ] {
                let count = if call.contains("?3") { 3 } else { 2 };
                let params = [a.clone(), b.clone(), c.clone()];
                let found = run(&own, call, &params[..count]);
                if found.as_ref().is_err_and(|error| error.contains("not UTF-8")) {
                    let is_broken = |value: &Sql| {
                        matches!(value, Sql::Blob(bytes) if str::from_utf8(bytes).is_err())
                    };
                    let cuts = |value: &Sql| matches!(value, Sql::Blob(_));
                    prop_assert!(params.iter().any(is_broken) || params.iter().any(cuts));
                    continue;
                }
                if found.as_ref().is_err_and(|error| error.contains("no characters")) {
                    let holds = |value: &Sql| match value {
                        Sql::Text(text) => text.contains(NO_CHARACTERS),
                        _ => false,
                    };
                    prop_assert!(call.starts_with("unhex") && params[..2].iter().any(holds));
                    continue;
                }
                prop_assert_eq!(found, run(&theirs, call, &params[..count]), "{}", call);
            }
        }
    }

    #[test]
    fn long_patterns_and_results_are_refused() {
        let conn = ours();
        for (call, reason) in [
            ("instr('a', printf('%.*c', 1001, 'a'))", "longer than 1000 bytes"),
            ("trim('a', printf('%.*c', 1001, 'a'))", "longer than 1000 bytes"),
            ("replace('a', printf('%.*c', 1001, 'a'), '')", "longer than 1000 bytes"),
            ("unhex('a', printf('%.*c', 1001, 'a'))", "longer than 1000 bytes"),
            ("replace(printf('%.*c', 100000, 'a'), 'a', printf('%.*c', 100000, 'b'))", "too big"),
        ] {
            let error = run(&conn, call, &[]).unwrap_err();
            assert!(error.contains(reason), "{call}: {error}");
        }
    }
}
