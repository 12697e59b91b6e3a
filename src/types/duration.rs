//! Durations as Go writes them: `1m30s`, `100ms`, `1.5h`.

use std::time::Duration;

/// The text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time: invalid duration \"{0}\"")]
pub struct InvalidDuration(pub String);

/// Reads a duration and returns it in nanoseconds, which may be negative.
///
/// A number needs a unit (`ns`, `us`, `ms`, `s`, `m`, `h`), but for a plain `0`.
pub fn parse(text: &str) -> Result<i64, InvalidDuration> {
    parse_unsigned(text.strip_prefix(['-', '+']).unwrap_or(text))
        .map(|nanos| if text.starts_with('-') { -nanos } else { nanos })
        .ok_or_else(|| InvalidDuration(text.to_owned()))
}

/// Returns the duration of so many nanoseconds; nothing is left of a negative one.
pub fn from_nanos(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

fn parse_unsigned(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    if text.is_empty() {
        return None;
    }
    let mut nanos = 0_i64;
    let mut rest = text;
    while !rest.is_empty() {
        let (term, after) = parse_term(rest)?;
        nanos = nanos.checked_add(term)?;
        rest = after;
    }
    Some(nanos)
}

/// Reads one number with its unit; returns its nanoseconds and what follows.
fn parse_term(text: &str) -> Option<(i64, &str)> {
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let unit_end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_end);
    let unit = nanos_of(unit)?;
    let whole = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()? };
    let nanos = whole.checked_mul(unit)?.checked_add(fraction_of(fraction, unit))?;
    Some((nanos, rest))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Returns `0.<digits>` of a unit, in whole nanoseconds. Digits past the tenth change nothing.
fn fraction_of(digits: &str, unit: i64) -> i64 {
    let mut scale = i128::from(unit);
    let mut scaled = 0_i128;
    let mut divisor = 1_i128;
    for digit in digits.bytes().take(18) {
        scaled = scaled * 10 + i128::from(digit - b'0');
        divisor *= 10;
    }
    scale *= scaled;
    i64::try_from(scale / divisor).unwrap_or(0)
}

fn nanos_of(unit: &str) -> Option<i64> {
    match unit {
        "ns" => Some(1),
        "us" | "µs" | "μs" => Some(1_000),
        "ms" => Some(1_000_000),
        "s" => Some(1_000_000_000),
        "m" => Some(60_000_000_000),
        "h" => Some(3_600_000_000_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let read = [
            ("0", 0),
            ("10s", 10_000_000_000),
            ("1m30s", 90_000_000_000),
            ("100ms", 100_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("-5s", -5_000_000_000),
            ("+5s", 5_000_000_000),
            ("120000ms", 120_000_000_000),
            ("3us", 3_000),
            ("3µs", 3_000),
            ("0.000000001s", 1),
            ("24h0m0s", 86_400_000_000_000),
        ];
        for (text, nanos) in read {
            assert_eq!(parse(text), Ok(nanos), "{text}");
        }
        for text in
            ["", "5", "s", ".s", "1d", "1m30", "1 s", "--1s", "1e3s", "9999999h", "-", "1s ago"]
        {
            assert_eq!(parse(text), Err(InvalidDuration(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_negative_duration_leaves_nothing() {
        assert_eq!(from_nanos(-1), Duration::ZERO);
        assert_eq!(from_nanos(1_500_000_000), Duration::from_millis(1_500));
    }
}
