//! The SQL API's JSON: statements and parameters in, values and events out.

use serde_json::Value as Json;

use crate::live::query::Event;
use crate::live::rows::Kind;
use crate::store::{Params, Statement};
use crate::types::Value;

/// Reads a statement in any of its four forms: an object with `query`, a text, or an array of the
/// text and its parameters.
pub(super) fn statement(json: Json) -> Result<Statement, String> {
    match json {
        Json::String(sql) => Ok(Statement { sql, params: Params::None }),
        Json::Object(mut object) => {
            let Some(Json::String(sql)) = object.remove("query") else {
                return Err(no_statement());
            };
            // Where both are given, the positional ones win.
            let params = object.remove("params").filter(|params| !params.is_null());
            let params = params.or_else(|| object.remove("named_params"));
            Ok(Statement { sql, params: parameters(params.unwrap_or(Json::Null))? })
        }
        Json::Array(parts) => match <[Json; 2]>::try_from(parts) {
            Ok([Json::String(sql), params @ (Json::Array(_) | Json::Object(_))]) => {
                Ok(Statement { sql, params: parameters(params)? })
            }
            _ => Err(no_statement()),
        },
        Json::Null | Json::Bool(_) | Json::Number(_) => Err(no_statement()),
    }
}

/// Reads an array of statements.
pub(super) fn statements(json: Json) -> Result<Vec<Statement>, String> {
    match json {
        Json::Array(list) => list.into_iter().map(statement).collect(),
        other => Err(format!("invalid type: {}, expected a sequence", kind_of(&other))),
    }
}

fn no_statement() -> String {
    "data did not match any variant of untagged enum Statement: write \"SQL\", [\"SQL\", [values]], \
     [\"SQL\", {\":name\": value}] or {\"query\": \"SQL\", \"params\": [values]}"
        .to_owned()
}

fn parameters(json: Json) -> Result<Params, String> {
    match json {
        Json::Null => Ok(Params::None),
        Json::Array(list) => Ok(Params::Positional(list.into_iter().map(parameter).collect())),
        Json::Object(named) => Ok(Params::Named(
            named.into_iter().map(|(name, json)| (name, parameter(json))).collect(),
        )),
        other @ (Json::Bool(_) | Json::Number(_) | Json::String(_)) => {
            Err(format!("invalid type: {}, expected parameters", kind_of(&other)))
        }
    }
}

/// Reads one parameter. An array of bytes is a blob; any other array, and an object, is bound as
/// its JSON text.
fn parameter(json: Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::from(truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => Value::real(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Text(text),
        Json::Array(list) => match bytes(&list) {
            Some(bytes) => Value::Blob(bytes),
            None => Value::Text(Json::Array(list).to_string()),
        },
        Json::Object(object) => Value::Text(Json::Object(object).to_string()),
    }
}

fn bytes(list: &[Json]) -> Option<Vec<u8>> {
    list.iter().map(|json| json.as_u64().and_then(|byte| u8::try_from(byte).ok())).collect()
}

fn kind_of(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "sequence",
        Json::Object(_) => "map",
    }
}

/// Returns a value as JSON. An infinite real has no JSON and becomes null.
pub(super) fn value(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(number) => Json::from(*number),
        // Always with a point or an exponent, so that a client can tell it from an integer.
        Value::Real(number) => {
            serde_json::Number::from_f64(*number).map_or(Json::Null, Json::Number)
        }
        Value::Text(text) => Json::from(text.as_str()),
        Value::Blob(bytes) => Json::from(bytes.as_slice()),
    }
}

/// Returns a row's values as a JSON array.
pub(super) fn values(row: &[Value]) -> Json {
    Json::Array(row.iter().map(value).collect())
}

/// Appends one event as a line.
pub(super) fn push_line(lines: &mut Vec<u8>, json: &Json) {
    // Writing JSON to memory cannot fail: every key is a text.
    serde_json::to_writer(&mut *lines, json).expect("JSON in memory");
    lines.push(b'\n');
}

/// Returns an error as a line.
pub(super) fn error_line(text: &str) -> Vec<u8> {
    let mut line = Vec::new();
    push_line(&mut line, &serde_json::json!({ "error": text }));
    line
}

/// Returns a subscription's event in the format of the stream; `None` for the one that is told by
/// breaking the stream off.
pub(super) fn event(event: &Event) -> Option<Json> {
    Some(match event {
        Event::Columns(names) => serde_json::json!({ "columns": names }),
        Event::Row(row, cells) => serde_json::json!({ "row": [row, values(cells)] }),
        Event::EndOfRows { took, change_id } => {
            serde_json::json!({ "eoq": { "time": took.as_secs_f64(), "change_id": change_id } })
        }
        Event::Change(change) => {
            let kind = match change.kind {
                Kind::Insert => "insert",
                Kind::Update => "update",
                Kind::Delete => "delete",
            };
            serde_json::json!({ "change": [kind, change.row, values(&change.cells), change.id] })
        }
        Event::Failed(text) => serde_json::json!({ "error": text }),
        Event::Interrupted => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Statement, String> {
        statement(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_statement_has_four_forms() {
        let plain = Statement { sql: "select 1".into(), params: Params::None };
        assert_eq!(read(r#""select 1""#), Ok(plain.clone()));
        assert_eq!(read(r#"{"query":"select 1","params":null,"named_params":null}"#), Ok(plain));
        let positional = Params::Positional(vec![Value::Integer(1)]);
        assert_eq!(read(r#"["select ?",[1]]"#).unwrap().params, positional);
        assert_eq!(
            read(r#"{"query":"q","params":[1],"named_params":{":a":2}}"#).unwrap().params,
            positional
        );
        let named = Params::Named(vec![(":a".into(), Value::from("x"))]);
        assert_eq!(read(r#"["select :a",{":a":"x"}]"#).unwrap().params, named);
        for wrong in [r#"["select 1"]"#, r#"["select ?",1]"#, "7", "{}", r#"["q",1,2]"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_kind_of_parameter_binds() {
        let Params::Positional(values) =
            read(r#"["q",[null,true,1,18446744073709551615,1.5,"t",[1,255],[],[1,300],{"a":1}]]"#)
                .unwrap()
                .params
        else {
            panic!("not positional");
        };
        assert_eq!(
            values,
            [
                Value::Null,
                Value::Integer(1),
                Value::Integer(1),
                Value::Real(18_446_744_073_709_552_000.0),
                Value::Real(1.5),
                Value::from("t"),
                Value::Blob(vec![1, 255]),
                Value::Blob(vec![]),
                Value::from("[1,300]"),
                Value::from(r#"{"a":1}"#),
            ]
        );
    }

    #[test]
    fn values_keep_their_kind_in_json() {
        let row = [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Real(1.0),
            Value::Real(1e300),
            Value::Real(f64::INFINITY),
            Value::from("a\0b"),
            Value::Blob(vec![0, 255]),
        ];
        assert_eq!(
            values(&row).to_string(),
            r#"[null,-9223372036854775808,1.0,1e+300,null,"a\u0000b",[0,255]]"#
        );
    }
}
