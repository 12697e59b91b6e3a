//! Random writes to two tables. Many come in pairs: two rows that are always written together and
//! alike, so that whoever sees them apart has seen half a transaction.

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::crdt::{Definition, RowOp};
use crate::types::{NodeId, Value};

/// How many pairs each node owns in `services`.
pub(super) const OWNED_PAIRS: u8 = 3;

/// How many further ones a large transaction writes, all of them: many times what a small answer to
/// a want carries.
const LARGE_PAIRS: u8 = 16;

/// How many pairs all nodes share in `kv`.
const SHARED_PAIRS: u8 = 2;

/// How many keys of `kv` all nodes write without any order.
const FREE_KEYS: u8 = 6;

/// How many rows of `notes` there are.
const NOTES: u8 = 8;

/// The columns of `kv`, in their order.
pub(super) const KV_COLUMNS: [&str; 3] = ["key", "value", "flags"];

/// Which tables a node has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Schema {
    /// All but `notes`.
    Old,
    /// `notes` too, but for its column `mark`.
    Half,
    /// All.
    Whole,
}

/// The tables of the simulation: one whose rows have owners, one that is shared, and another shared
/// one that nodes may get later than others.
pub(super) fn definitions(schema: Schema) -> Vec<Definition> {
    let text = |name| (name, Value::from(""));
    let number = |name| (name, Value::Integer(0));
    let services = [text("node_id"), text("id"), text("name"), number("port")];
    let kv = KV_COLUMNS.map(|name| if name == "flags" { number(name) } else { text(name) });
    let notes = [text("key"), text("note"), number("mark")];
    let notes = if schema == Schema::Half { &notes[..2] } else { &notes[..] };
    let mut definitions = vec![
        Definition::new("services", &services, &["node_id", "id"]),
        Definition::new("kv", &kv, &["key"]),
    ];
    if schema > Schema::Old {
        definitions.push(Definition::new("notes", notes, &["key"]));
    }
    let definitions = definitions.into_iter();
    definitions.map(|definition| definition.expect("the definitions above are sound")).collect()
}

/// The keys of `notes`.
pub(super) fn note_keys() -> impl Iterator<Item = Value> {
    (0..NOTES).map(|note| Value::from(format!("n{note}")))
}

/// Draws a transaction that writes what only nodes of this schema know; `None`: another one.
pub(super) fn draw_note(rng: &mut SmallRng, schema: Schema, serial: i64) -> Option<Vec<RowOp>> {
    if schema == Schema::Old || rng.random_bool(0.7) {
        return None;
    }
    let key = Value::from(format!("n{}", rng.random_range(0..NOTES)));
    if rng.random_bool(0.2) {
        let matching = vec![("key", key)];
        return Some(vec![RowOp::Delete { table: "notes", matching, except: None }]);
    }
    let note = Value::from(format!("v{}", rng.random_range(0..3)));
    let mut row = vec![("key", key), ("note", note)];
    if schema == Schema::Whole {
        row.push(("mark", Value::Integer(serial)));
    }
    Some(vec![RowOp::Put { table: "notes", row, keep: &[] }])
}

/// Draws one transaction of a node. `serial` makes its values differ from all others.
pub(super) fn draw(rng: &mut SmallRng, me: NodeId, serial: i64) -> Vec<RowOp> {
    match rng.random_range(0..11) {
        10 => draw_large(rng, me, serial),
        0..4 => {
            // Neither rising nor always new: what decides must be who wrote last.
            let port = if rng.random_bool(0.3) { serial % 3 } else { serial * 7_919 % 10_007 };
            put_owned_pair(me, rng.random_range(0..OWNED_PAIRS), port)
        }
        4 => {
            let matching = vec![
                ("node_id", Value::from(me.to_string())),
                ("name", Value::from(pair_name(rng.random_range(0..OWNED_PAIRS)))),
            ];
            vec![RowOp::Delete { table: "services", matching, except: None }]
        }
        5 => (0..OWNED_PAIRS).flat_map(|pair| put_owned_pair(me, pair, serial)).collect(),
        6 | 7 => {
            let pair = rng.random_range(0..SHARED_PAIRS);
            // Few different values, so that concurrent writes are equal now and then.
            let value = format!("v{}", rng.random_range(0..3));
            ["a", "b"].map(|side| put_kv(format!("pair{pair}/{side}"), &value, serial)).to_vec()
        }
        8 => {
            let key = free_key(rng);
            let matching = vec![("key", Value::from(key))];
            vec![RowOp::Delete { table: "kv", matching, except: None }]
        }
        _ => {
            let value = format!("v{}", rng.random_range(0..3));
            vec![put_kv(free_key(rng), &value, rng.random_range(0..2))]
        }
    }
}

/// Draws a large transaction: pairs of the node's own, and rows that all share.
fn draw_large(rng: &mut SmallRng, me: NodeId, serial: i64) -> Vec<RowOp> {
    let pairs = OWNED_PAIRS..OWNED_PAIRS + LARGE_PAIRS;
    let mut ops: Vec<RowOp> = pairs.flat_map(|pair| put_owned_pair(me, pair, serial)).collect();
    let value = format!("v{}", rng.random_range(0..3)).repeat(20);
    // No pairs: what another node overwrites between two parts of a pull is missing in the second.
    ops.extend((0..2 * LARGE_PAIRS).map(|row| put_kv(format!("large{row}"), &value, serial)));
    ops
}

/// Draws one transaction of a workload in which rows come and go. Rows of `kv` whose key begins with
/// `u` are born once only.
pub(super) fn draw_churn(rng: &mut SmallRng, me: NodeId, serial: i64) -> Vec<RowOp> {
    let recent = |rng: &mut SmallRng| {
        let key = unique(serial - serial % 3 - 3 * rng.random_range(1..8));
        vec![("key", Value::from(key))]
    };
    match (serial % 3, rng.random_range(0..10)) {
        (0, _) => vec![put_kv(unique(serial), "born", serial)],
        (1, 0..8) => {
            vec![RowOp::Delete { table: "kv", matching: recent(rng), except: None }]
        }
        (_, 0..3) => {
            let matching = recent(rng);
            vec![RowOp::Set { table: "kv", matching, set: vec![("flags", serial.into())] }]
        }
        // Rows that are born and die again and again, anywhere.
        (_, 3..8) => {
            let key = format!("r{}", rng.random_range(0..4));
            match rng.random_bool(0.5) {
                true => vec![put_kv(key, "again", serial)],
                false => {
                    let matching = vec![("key", Value::from(key))];
                    vec![RowOp::Delete { table: "kv", matching, except: None }]
                }
            }
        }
        _ => draw(rng, me, serial),
    }
}

fn unique(serial: i64) -> String {
    format!("u{serial}")
}

/// Returns the key of a row that is born once only.
pub(super) fn unique_key<'a>(table: &str, key: &'a [Value]) -> Option<&'a Value> {
    let [key] = key else { return None };
    let is_unique = table == "kv" && key.as_text()?.starts_with('u');
    is_unique.then_some(key)
}

/// The rows of `services` that a node may own.
pub(super) fn owned_keys(owner: NodeId) -> impl Iterator<Item = [Value; 2]> {
    (0..OWNED_PAIRS + LARGE_PAIRS)
        .flat_map(|pair| [format!("a{pair}"), format!("b{pair}")])
        .map(move |id| [Value::from(owner.to_string()), Value::from(id)])
}

/// Returns the key of the row's twin; `None`: it has none.
pub(super) fn twin_of(table: &str, key: &[Value]) -> Option<Vec<Value>> {
    let last = key.last()?.as_text()?;
    let twin = match table {
        "services" => match last.split_at_checked(1)? {
            ("a", pair) => format!("b{pair}"),
            (_, pair) => format!("a{pair}"),
        },
        _ => match last.rsplit_once('/')? {
            (pair, "a") => format!("{pair}/b"),
            (pair, _) => format!("{pair}/a"),
        },
    };
    let mut key = key.to_vec();
    *key.last_mut()? = Value::from(twin);
    Some(key)
}

fn put_owned_pair(me: NodeId, pair: u8, port: i64) -> Vec<RowOp> {
    let put = |side: &str| RowOp::Put {
        table: "services",
        row: vec![
            ("node_id", Value::from(me.to_string())),
            ("id", Value::from(format!("{side}{pair}"))),
            ("name", Value::from(pair_name(pair))),
            ("port", Value::Integer(port)),
        ],
        keep: &[],
    };
    vec![put("a"), put("b")]
}

fn put_kv(key: String, value: &str, flags: i64) -> RowOp {
    let row = vec![
        ("key", Value::from(key)),
        ("value", Value::from(value)),
        ("flags", Value::Integer(flags)),
    ];
    RowOp::Put { table: "kv", row, keep: &[] }
}

fn free_key(rng: &mut SmallRng) -> String {
    format!("k{}", rng.random_range(0..FREE_KEYS))
}

fn pair_name(pair: u8) -> String {
    format!("pair{pair}")
}
