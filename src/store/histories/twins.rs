//! Histories that the store and the model of `crdt::table` both play: row operations, schemas that
//! differ and grow, epochs, disks that are lost and set back.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rusqlite::backup::Backup;

use super::Tally;
use crate::crdt::suite::histories::play_and_tell;
use crate::crdt::suite::{self, Bench};
use crate::crdt::{Definition, Storage, Table};
use crate::store::open::open_memory;
use crate::store::schema::{Source, literal};
use crate::store::values::quote;
use crate::store::{OpenConfig, Store};
use crate::types::NodeId;

pub(super) fn play(words: &[u64], tally: &mut Tally) {
    let Some((first, words)) = words.split_first() else { return };
    let replicas = 2 + usize::try_from(first % 4).expect("it is small");
    let words: Vec<u32> = words.iter().map(|word| (word >> 32) as u32).collect();
    let (here, told) = play_and_tell(&mut Sqlite, replicas, &words);
    let there = play_and_tell(&mut Memory, replicas, &words);
    assert_eq!((here, told), there, "the store and the model");
    tally.add("skewed replicas", told.skewed.into());
    tally.add("restarts", told.restarts.into());
    tally.add("wipes", told.wipes.into());
    tally.add("restores", told.restores.into());
}

/// Stores in memory; opened again they read everything back.
struct Sqlite;

impl Bench for Sqlite {
    type Disk = Store;

    fn open(&mut self, node: NodeId, definitions: &[Definition]) -> Store {
        let sources: Vec<Source> = definitions.iter().map(source).collect();
        fresh(node, sources)
    }

    fn reopen(&mut self, disk: Store) -> Store {
        copy(&disk)
    }

    fn image(&mut self, disk: &Store) -> Option<Store> {
        Some(copy(disk))
    }

    fn define(&mut self, disk: &mut Store, definition: &Definition) {
        disk.apply_schema(suite::NOW, &[source(definition)]).unwrap();
    }
}

thread_local! {
    /// Empty stores, by their nodes and tables: to copy one takes a fraction of making one.
    static FRESH: RefCell<BTreeMap<(NodeId, Vec<String>), Store>> = const { RefCell::new(BTreeMap::new()) };
}

/// Opens an empty store in memory.
pub(super) fn fresh(node: NodeId, sources: Vec<Source>) -> Store {
    let make = || {
        let config = OpenConfig { node: Some(node), ..OpenConfig::default() };
        Store::in_memory(&config, &sources).unwrap()
    };
    let tables = sources.iter().map(|source| source.sql.clone()).collect();
    FRESH.with_borrow_mut(|fresh| copy(fresh.entry((node, tables)).or_insert_with(make)))
}

/// Opens a copy of a store in memory, as the next process would.
pub(super) fn copy(store: &Store) -> Store {
    let mut conn = open_memory().unwrap();
    Backup::new(&store.conn, &mut conn).unwrap().step(-1).unwrap();
    let config = OpenConfig { node: Some(store.origin().node), ..OpenConfig::default() };
    Store::over_copy(conn, &config).unwrap()
}

/// Writes a definition as SQL.
fn source(definition: &Definition) -> Source {
    let info = definition.info();
    let columns = info.columns.iter().enumerate().zip(definition.defaults());
    let columns = columns.map(|((place, name), default)| {
        let rule = if info.key.contains(&place) {
            "NOT NULL".to_owned()
        } else {
            format!("DEFAULT {}", literal(default))
        };
        format!("{} {rule}", quote(name))
    });
    let key: Vec<String> = info.key.iter().map(|place| quote(&info.columns[*place])).collect();
    let parts: Vec<String> = columns.chain([format!("PRIMARY KEY ({})", key.join(", "))]).collect();
    let sql = format!("CREATE TABLE {} ({})", quote(&info.name), parts.join(", "));
    Source { file: "history.sql".to_owned(), sql }
}

/// The model.
struct Memory;

impl Bench for Memory {
    type Disk = Table;

    fn open(&mut self, node: NodeId, definitions: &[Definition]) -> Table {
        Table::new(suite::origin(node), definitions).unwrap()
    }

    fn reopen(&mut self, mut disk: Table) -> Table {
        disk.restart();
        disk
    }

    fn image(&mut self, disk: &Table) -> Option<Table> {
        Some(disk.clone())
    }

    fn define(&mut self, disk: &mut Table, definition: &Definition) {
        disk.define(suite::NOW, definition).unwrap();
    }
}
