//! Durations and addresses as people write them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::ConfigError;

/// A duration as the configuration file has it: `"500ms"`, `"10s"`, `"1m30s"`, `"24h"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span(pub Duration);

/// Reads a duration: numbers, each with a unit of `ms`, `s`, `m` or `h`, greatest first or not.
pub fn duration(text: &str) -> Result<Duration, ConfigError> {
    let refuse = || {
        ConfigError::new(format!(
            "'{text}' is not a duration; write it like 500ms, 10s, 1m30s or 24h"
        ))
    };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(refuse());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let number: f64 = rest[..digits].parse().map_err(|_| refuse())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ms" => number / 1_000.0,
            "s" => number,
            "m" => number * 60.0,
            "h" => number * 3_600.0,
            _ => return Err(refuse()),
        };
        rest = &rest[unit_end..];
        total += Duration::try_from_secs_f64(seconds).map_err(|_| refuse())?;
    }
    Ok(total)
}

/// Reads `address:port`, `[v6]:port`, or an address alone, which gets `port`.
pub fn socket_address(text: &str, port: u16) -> Result<SocketAddr, ConfigError> {
    let text = text.trim();
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    if let Some(port) = text.strip_prefix(':').and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port));
    }
    Err(ConfigError::new(format!(
        "'{text}' is not an address to listen on; write it like 127.0.0.1:{port} or [::1]:{port}"
    )))
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration like \"10s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                duration(text).map(Span).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_sum_of_numbers_with_units() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5_400)));
        for wrong in ["", "10", "s", "10 parsecs", "-1s", "1e99h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_without_a_port_gets_the_usual_one() {
        assert_eq!(socket_address("127.0.0.2", 8500), Ok("127.0.0.2:8500".parse().unwrap()));
        assert_eq!(socket_address("::1", 53), Ok("[::1]:53".parse().unwrap()));
        assert_eq!(socket_address("[::1]", 53), Ok("[::1]:53".parse().unwrap()));
        assert_eq!(socket_address(":9500", 8500), Ok("0.0.0.0:9500".parse().unwrap()));
        let error = socket_address("localhost:x", 8500).unwrap_err().to_string();
        assert!(error.contains("'localhost:x' is not an address to listen on"), "{error}");
    }
}
