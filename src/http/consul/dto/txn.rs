//! The operations of a transaction.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::external::{check_of, id_of, service_of};
use super::fields::{Fields, decode};
use crate::catalog::model::{Check, Node, Service};
use crate::http::error::Fault;

/// The most operations of one transaction.
const OPS_MAX: usize = 64;

/// One operation. An empty object is none, as in Consul.
pub enum Op {
    Nothing,
    Key(KeyOp),
    Node { verb: String, index: u64, node: Node },
    Service { verb: String, index: u64, node: String, service: Service },
    Check { verb: String, index: u64, node: String, check: Box<Check> },
}

/// An operation on a key.
pub struct KeyOp {
    pub verb: String,
    pub key: String,
    pub value: Vec<u8>,
    pub flags: u64,
    pub index: u64,
    pub session: String,
}

impl Op {
    /// Tells whether it changes anything.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Key(op) => matches!(
                op.verb.as_str(),
                "set" | "cas" | "lock" | "unlock" | "delete" | "delete-tree" | "delete-cas"
            ),
            Self::Node { verb, .. } | Self::Service { verb, .. } | Self::Check { verb, .. } => {
                verb != "get"
            }
        }
    }

    /// Returns the verb of an operation on a key that only one of several writers may win.
    pub fn condition_of_key(&self) -> Option<&str> {
        let Self::Key(op) = self else { return None };
        let verb = op.verb.as_str();
        let is_condition = matches!(
            verb,
            "cas"
                | "lock"
                | "unlock"
                | "delete-cas"
                | "check-index"
                | "check-not-exists"
                | "check-session"
        );
        is_condition.then_some(verb)
    }
}

/// Reads a body. `value_bytes_max` is the longest value of a key.
pub fn ops_of(body: &[u8], datacenter: &str, value_bytes_max: usize) -> Result<Vec<Op>, Fault> {
    let parse = |mut fault: Fault| {
        fault.text = fault.text.replacen("Request decode failed", "Failed to parse body", 1);
        fault
    };
    let body = decode(body).map_err(parse)?;
    let items = Fields::of_list(&body, "api.TxnOps").map_err(parse)?;
    if items.len() > OPS_MAX {
        return Err(Fault::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("Transaction contains too many operations ({} > {OPS_MAX})", items.len()),
        ));
    }
    let ops = items.into_iter().map(|item| op_of(item, datacenter, value_bytes_max));
    ops.collect::<Result<_, _>>().map_err(parse)
}

fn op_of(item: Fields<'_>, datacenter: &str, value_bytes_max: usize) -> Result<Op, Fault> {
    if let Some(fields) = item.object("KV")? {
        return Ok(Op::Key(key_op(&fields, value_bytes_max)?));
    }
    if let Some(op) = item.object("Node")? {
        let fields = op.object("Node")?.unwrap_or_default();
        let node = Node {
            name: fields.text("Node")?,
            address: fields.text("Address")?,
            datacenter: datacenter.to_owned(),
            tagged_addresses: fields.text_map("TaggedAddresses")?,
            meta: fields.text_map("Meta")?,
            external_id: id_of(&fields)?,
            ..Node::default()
        };
        return Ok(Op::Node { verb: op.text("Verb")?, index: index_of(&fields)?, node });
    }
    if let Some(op) = item.object("Service")? {
        let fields = op.object("Service")?.unwrap_or_default();
        let (verb, index) = (op.text("Verb")?, index_of(&fields)?);
        // Only what is written has to be whole.
        let service = match verb.as_str() {
            "set" | "cas" => service_of(&fields)?,
            _ => Service { id: fields.text("ID")?, ..Service::default() },
        };
        return Ok(Op::Service { verb, index, node: op.text("Node")?, service });
    }
    if let Some(op) = item.object("Check")? {
        let fields = op.object("Check")?.unwrap_or_default();
        let (verb, index, node) = (op.text("Verb")?, index_of(&fields)?, fields.text("Node")?);
        let check = match verb.as_str() {
            "set" | "cas" => check_of(&fields)?,
            _ => Check { id: fields.text("CheckID")?, ..Check::default() },
        };
        return Ok(Op::Check { verb, index, node, check: Box::new(check) });
    }
    // What is not understood must not be passed over as if it were done.
    match item.present().into_keys().next() {
        Some(name) => {
            Err(Fault::bad_request(format!("Request decode failed: json: unknown field {name:?}")))
        }
        None => Ok(Op::Nothing),
    }
}

fn key_op(fields: &Fields<'_>, value_bytes_max: usize) -> Result<KeyOp, Fault> {
    let (verb, key) = (fields.text("Verb")?, fields.text("Key")?);
    let value = STANDARD.decode(fields.text("Value")?).map_err(|error| {
        Fault::bad_request(format!("Request decode failed: illegal base64 data: {error}"))
    })?;
    if value.len() > value_bytes_max {
        return Err(Fault::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "Value for key {key:?} is too large ({} > {value_bytes_max} bytes)",
                value.len()
            ),
        ));
    }
    Ok(KeyOp {
        verb,
        key,
        value,
        flags: fields.unsigned("Flags")?,
        index: fields.unsigned("Index")?,
        session: fields.text("Session")?,
    })
}

fn index_of(fields: &Fields<'_>) -> Result<u64, Fault> {
    fields.unsigned("ModifyIndex")
}
