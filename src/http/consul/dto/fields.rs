//! Reading JSON as Go's decoder does: keys without case, `null` as absent, and its error texts.
//!
//! Clients write `EnableTagOverride`, `enabletagoverride` and `enable_tag_override`; all are the
//! same key here. Unknown keys are passed over: newer clients send some that older servers lack.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::http::error::Fault;
use crate::types::duration;

/// How deep objects and arrays may stand in each other. Registrations need five levels.
const DEPTH_MAX: usize = 64;

/// Reads a request body; anything but one JSON value is a fault of the request.
pub fn decode(body: &[u8]) -> Result<Value, Fault> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(fault("EOF"));
    }
    if depth(body) > DEPTH_MAX {
        return Err(fault(format!("nested deeper than {DEPTH_MAX} levels")));
    }
    serde_json::from_slice(body).map_err(|error| fault(error.to_string()))
}

/// An object whose fields are asked for by name.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
}

impl Default for Fields<'_> {
    /// An object without fields.
    fn default() -> Self {
        static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        Self { map: &NOTHING }
    }
}

impl<'a> Fields<'a> {
    /// Takes a whole body.
    pub fn of_body(value: &'a Value) -> Result<Self, Fault> {
        match value {
            Value::Object(map) => Ok(Self { map }),
            other => Err(fault(format!(
                "json: cannot unmarshal {} into Go value of type struct",
                name_of(other)
            ))),
        }
    }

    /// Takes a whole body that is a list of objects; `kind` is what Go calls it.
    pub fn of_list(value: &'a Value, kind: &str) -> Result<Vec<Self>, Fault> {
        match value {
            Value::Array(items) => items.iter().map(|item| Self::of_item(item, "")).collect(),
            other => Err(fault(format!(
                "json: cannot unmarshal {} into Go value of type {kind}",
                name_of(other)
            ))),
        }
    }

    /// Tells whether no field is there, or only nulls.
    pub fn is_empty(&self) -> bool {
        self.map.values().all(Value::is_null)
    }

    /// Returns the fields that are there, under the names that they were sent with.
    pub fn present(&self) -> BTreeMap<String, Value> {
        let there = self.map.iter().filter(|(_, value)| !value.is_null());
        there.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Tells whether a field is there and not `null`.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Returns a text, empty when it is absent.
    pub fn text(&self, name: &str) -> Result<String, Fault> {
        match self.find(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(mismatch(other, name, "string")),
        }
    }

    /// Returns an integer, 0 when it is absent.
    pub fn integer(&self, name: &str) -> Result<i64, Fault> {
        match self.find(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| mismatch(value, name, "int")),
        }
    }

    /// Returns an integer without a sign, 0 when it is absent.
    pub fn unsigned(&self, name: &str) -> Result<u64, Fault> {
        match self.find(name) {
            None => Ok(0),
            Some(value) => value.as_u64().ok_or_else(|| mismatch(value, name, "uint64")),
        }
    }

    /// Returns a boolean, false when it is absent.
    pub fn boolean(&self, name: &str) -> Result<bool, Fault> {
        match self.find(name) {
            None => Ok(false),
            Some(Value::Bool(truth)) => Ok(*truth),
            Some(other) => Err(mismatch(other, name, "bool")),
        }
    }

    /// Returns nanoseconds: of a Go duration, or an integer as it is; 0 when it is absent.
    pub fn duration(&self, name: &str) -> Result<i64, Fault> {
        match self.find(name) {
            None => Ok(0),
            Some(Value::String(text)) if text.is_empty() => Ok(0),
            Some(Value::String(text)) => {
                duration::parse(text).map_err(|error| fault(error.to_string()))
            }
            Some(value @ Value::Number(number)) => number
                .as_i64()
                .or_else(|| number.as_f64().map(|nanos| nanos as i64))
                .ok_or_else(|| mismatch(value, name, "time.Duration")),
            Some(other) => Err(mismatch(other, name, "time.Duration")),
        }
    }

    /// Returns a list of texts, empty when it is absent.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, Fault> {
        self.list(name, "[]string")?.iter().map(|item| text_in(item, name)).collect()
    }

    /// Returns a map of texts; its keys stay as they are.
    pub fn text_map(&self, name: &str) -> Result<BTreeMap<String, String>, Fault> {
        self.entries(name, "map[string]string")?
            .map(|(key, item)| Ok((key.clone(), text_in(item, name)?)))
            .collect()
    }

    /// Returns a map of lists of texts; its keys stay as they are.
    pub fn texts_map(&self, name: &str) -> Result<BTreeMap<String, Vec<String>>, Fault> {
        self.entries(name, "map[string][]string")?
            .map(|(key, item)| {
                let values = match item {
                    Value::Array(items) => {
                        items.iter().map(|item| text_in(item, name)).collect::<Result<_, _>>()?
                    }
                    other => return Err(mismatch(other, name, "[]string")),
                };
                Ok((key.clone(), values))
            })
            .collect()
    }

    /// Returns a map of objects; its keys stay as they are.
    pub fn object_map(&self, name: &str) -> Result<Vec<(&'a str, Fields<'a>)>, Fault> {
        self.entries(name, "map[string]struct")?
            .map(|(key, item)| Ok((key.as_str(), Self::of_item(item, name)?)))
            .collect()
    }

    /// Returns an object, if it is there and not `null`.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Fault> {
        self.find(name).map(|item| Self::of_item(item, name)).transpose()
    }

    /// Returns a list of objects; `null`s in it are passed over.
    pub fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, Fault> {
        self.list(name, "[]struct")?
            .iter()
            .filter(|item| !item.is_null())
            .map(|item| Self::of_item(item, name))
            .collect()
    }

    fn of_item(item: &'a Value, name: &str) -> Result<Self, Fault> {
        match item {
            Value::Object(map) => Ok(Self { map }),
            other => Err(mismatch(other, name, "struct")),
        }
    }

    fn list(&self, name: &str, wanted: &str) -> Result<&'a [Value], Fault> {
        match self.find(name) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(mismatch(other, name, wanted)),
        }
    }

    fn entries(
        &self,
        name: &str,
        wanted: &str,
    ) -> Result<impl Iterator<Item = (&'a String, &'a Value)> + use<'a>, Fault> {
        let map = match self.find(name) {
            None => None,
            Some(Value::Object(map)) => Some(map),
            Some(other) => return Err(mismatch(other, name, wanted)),
        };
        Ok(map.into_iter().flatten())
    }

    /// Finds a field; the exact spelling wins over the others, and `null` is absent.
    fn find(&self, name: &str) -> Option<&'a Value> {
        let found = self.map.get(name).or_else(|| {
            self.map.iter().find(|(key, _)| is_same_key(key, name)).map(|(_, value)| value)
        })?;
        if found.is_null() { None } else { Some(found) }
    }
}

/// Compares without case and without the underscores of `snake_case`.
fn is_same_key(key: &str, name: &str) -> bool {
    let plain = |text: &'_ str| {
        text.bytes().filter(|byte| *byte != b'_').map(|byte| byte.to_ascii_lowercase()).collect()
    };
    let (key, name): (Vec<u8>, Vec<u8>) = (plain(key), plain(name));
    key == name
}

fn text_in(item: &Value, name: &str) -> Result<String, Fault> {
    match item {
        Value::String(text) => Ok(text.clone()),
        // Go leaves the zero value where it meets null.
        Value::Null => Ok(String::new()),
        other => Err(mismatch(other, name, "string")),
    }
}

fn mismatch(found: &Value, name: &str, wanted: &str) -> Fault {
    let found = match found {
        Value::Number(number) if !number.is_i64() => format!("number {number}"),
        other => name_of(other).to_owned(),
    };
    fault(format!("json: cannot unmarshal {found} into Go struct field .{name} of type {wanted}"))
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn fault(reason: impl std::fmt::Display) -> Fault {
    Fault::bad_request(format!("Request decode failed: {reason}"))
}

/// Returns how deep the brackets of a text stand in each other, strings left out.
fn depth(body: &[u8]) -> usize {
    let (mut now, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                now += 1;
                deepest = deepest.max(now);
            }
            b'}' | b']' if !in_string => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of<T: std::fmt::Debug>(
        body: &str,
        ask: impl FnOnce(Fields<'_>) -> Result<T, Fault>,
    ) -> String {
        let value = match decode(body.as_bytes()) {
            Ok(value) => value,
            Err(fault) => return fault.text,
        };
        Fields::of_body(&value).and_then(ask).unwrap_err().text
    }

    #[test]
    fn every_spelling_of_a_key_is_the_same_key() {
        for key in ["EnableTagOverride", "enabletagoverride", "enable_tag_override"] {
            let value = decode(format!("{{\"{key}\":true}}").as_bytes()).unwrap();
            assert!(
                Fields::of_body(&value).unwrap().boolean("EnableTagOverride").unwrap(),
                "{key}"
            );
        }
    }

    #[test]
    fn null_is_absent_and_unknown_keys_do_not_matter() {
        let value = decode(br#"{"Tags":null,"Port":null,"Bogus":[{"x":1}],"Check":null}"#).unwrap();
        let fields = Fields::of_body(&value).unwrap();
        assert_eq!(fields.texts("Tags").unwrap(), Vec::<String>::new());
        assert_eq!(fields.integer("Port").unwrap(), 0);
        assert!(fields.object("Check").unwrap().is_none());
    }

    #[test]
    fn a_wrong_type_is_told_in_gos_words() {
        let text = fault_of(r#"{"Port":"80"}"#, |fields| fields.integer("Port"));
        assert_eq!(
            text,
            "Request decode failed: json: cannot unmarshal string into Go struct field .Port of type int"
        );
        let text = fault_of(r#"{"Port":8.5}"#, |fields| fields.integer("Port"));
        assert!(text.contains("cannot unmarshal number 8.5 into"), "{text}");
        let text = fault_of("[1]", |fields| fields.integer("Port"));
        assert!(text.contains("cannot unmarshal array into Go value"), "{text}");
    }

    #[test]
    fn a_broken_body_is_refused_with_the_place() {
        assert_eq!(fault_of("", |_| Ok(())), "Request decode failed: EOF");
        let text = fault_of("{\"a\":}", |_| Ok(()));
        assert!(text.starts_with("Request decode failed:") && text.contains("column 6"), "{text}");
        assert!(fault_of("{\"a\":NaN}", |_| Ok(())).contains("line 1"));
        assert!(fault_of("{\"a\":1e999}", |_| Ok(())).contains("out of range"));
        let deep = format!("{{\"a\":{}}}", "[".repeat(5_000));
        assert!(fault_of(&deep, |_| Ok(())).contains("deeper than 64"));
        let brackets_in_text = format!("{{\"a\":\"\\\"{}\"}}", "[".repeat(99));
        assert!(decode(brackets_in_text.as_bytes()).is_ok());
    }

    #[test]
    fn durations_are_texts_or_nanoseconds() {
        let value = decode(br#"{"a":"10s","b":5000000000,"c":""}"#).unwrap();
        let fields = Fields::of_body(&value).unwrap();
        assert_eq!(fields.duration("A").unwrap(), 10_000_000_000);
        assert_eq!(fields.duration("B").unwrap(), 5_000_000_000);
        assert_eq!(fields.duration("C").unwrap(), 0);
        let text = fault_of(r#"{"TTL":"10"}"#, |fields| fields.duration("TTL"));
        assert_eq!(text, "Request decode failed: time: invalid duration \"10\"");
    }
}
