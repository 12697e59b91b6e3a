//! What local statements changed: a log of rows before and after, filled by the pre-update hook,
//! and the net effect of a transaction, row by row.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::hook::{self, RowAction, RowChanging};
use super::limits::{KEY_BYTES_MAX, TOUCHED_BYTES_MAX};
use super::tables::{Table, Tables};
use super::values::BadValue;
use crate::crdt::change::owns;
use crate::crdt::{Class, Key, Name, pack};
use crate::types::{NodeId, Value};

/// A row as it was and as it became, each in the order of the table's columns.
#[derive(Debug)]
struct Event {
    table: Arc<Table>,
    old: Option<Vec<Value>>,
    new: Option<Vec<Value>>,
}

/// What one row's changes in a transaction come to.
#[derive(Debug)]
pub struct Net {
    pub table: Arc<Table>,
    pub key: Key,
    /// `None`: it was not there.
    pub before: Option<Vec<Value>>,
    /// `None`: it is not there now.
    pub after: Option<Vec<Value>>,
    /// The key under which the row began this transaction, where that is another one.
    pub moved_from: Option<Key>,
}

/// The log. The hook writes to it, the store reads it: the same thread, one after the other.
#[derive(Debug, Default)]
pub struct Log {
    is_on: bool,
    me: NodeId,
    tables: BTreeMap<Name, Arc<Table>>,
    events: Vec<Event>,
    bytes: usize,
    fault: Option<String>,
}

/// A log that the hook and the store share.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    log: Arc<Mutex<Log>>,
}

impl Capture {
    /// Begins to watch a connection. Nothing is logged before [`Capture::start`].
    pub fn watch(conn: &Connection) -> rusqlite::Result<Self> {
        let capture = Self::default();
        let ours = capture.clone();
        hook::watch(conn, move |row| ours.lock().on_row(row))?;
        Ok(capture)
    }

    /// Says which tables are replicated, and who writes.
    pub fn set_tables(&self, me: NodeId, tables: &Tables) {
        let mut log = self.lock();
        log.me = me;
        let known = tables.entries().iter().filter_map(|entry| entry.table.clone());
        log.tables = known.map(|table| (Arc::clone(&table.info.name), table)).collect();
    }

    /// Logs from now on, into an empty log.
    pub fn start(&self) {
        let mut log = self.lock();
        log.clear();
        log.is_on = true;
    }

    /// Stops, and forgets what was logged.
    pub fn stop(&self) {
        self.lock().clear();
    }

    /// Says what makes the transaction impossible, if anything does.
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    /// Stops, and returns the net effect of what was logged: the rows in the order in which they
    /// were first touched, those that ended as they began left out.
    pub fn finish(&self) -> Result<Vec<Net>, String> {
        let mut log = self.lock();
        let events = std::mem::take(&mut log.events);
        let fault = log.fault.take();
        log.clear();
        drop(log);
        match fault {
            Some(fault) => Err(fault),
            None => net_of(events),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // Nothing panics while it holds the lock; a poisoned one would be as good.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn clear(&mut self) {
        self.is_on = false;
        self.events.clear();
        self.bytes = 0;
        self.fault = None;
    }

    fn on_row(&mut self, row: &RowChanging<'_>) {
        if !self.is_on || self.fault.is_some() {
            return;
        }
        let Some(table) = self.tables.get(row.table) else { return };
        let table = Arc::clone(table);
        if let Err(fault) = self.log_row(row, &table) {
            self.fault = Some(format!("table {}: {fault}", table.info.name));
        }
    }

    fn log_row(&mut self, row: &RowChanging<'_>, table: &Arc<Table>) -> Result<(), String> {
        let old = match row.action {
            RowAction::Insert => None,
            RowAction::Update | RowAction::Delete => Some(self.side(table, |cid| row.old(cid))?),
        };
        let new = match row.action {
            RowAction::Delete => None,
            RowAction::Insert | RowAction::Update => Some(self.side(table, |cid| row.new(cid))?),
        };
        self.events.push(Event { table: Arc::clone(table), old, new });
        Ok(())
    }

    fn side(
        &mut self,
        table: &Table,
        read: impl Fn(usize) -> Result<Value, BadValue>,
    ) -> Result<Vec<Value>, String> {
        let mut values = Vec::with_capacity(table.columns.len());
        for (column, name) in table.columns.iter().zip(&table.info.columns) {
            let value = read(column.cid).map_err(|bad| format!("column {name}: {bad}"))?;
            self.bytes += value.bytes() + 16;
            values.push(column.affinity.seen(value));
        }
        if self.bytes > TOUCHED_BYTES_MAX {
            return Err(format!(
                "the transaction touches rows of more than {TOUCHED_BYTES_MAX} bytes in all; write in smaller transactions"
            ));
        }
        if table.class == Class::Owned && !owns(self.me, &values[table.info.key[0]]) {
            let (column, value) =
                (&table.info.columns[table.info.key[0]], &values[table.info.key[0]]);
            return Err(format!(
                "the row with {column} = {value} belongs to another node; only that node may write it"
            ));
        }
        Ok(values)
    }
}

/// Folds events into one record a row.
fn net_of(events: Vec<Event>) -> Result<Vec<Net>, String> {
    let mut rows = Rows::default();
    for Event { table, old, new } in events {
        let old = old.map(|row| keyed(&table, row)).transpose()?;
        let new = new.map(|row| keyed(&table, row)).transpose()?;
        match (old, new) {
            (Some((key, old)), Some((new_key, new))) if key == new_key => {
                rows.of(&table, key, Some(old)).after = Some(new);
            }
            (Some((key, old)), Some((new_key, new))) => {
                rows.of(&table, Arc::clone(&key), Some(old)).after = None;
                let moved_from = rows.began_as(&table, &key);
                let row = rows.of(&table, new_key, None);
                row.after = Some(new);
                row.moved_from = moved_from;
            }
            (Some((key, old)), None) => rows.of(&table, key, Some(old)).after = None,
            (None, Some((key, new))) => {
                let row = rows.of(&table, key, None);
                row.after = Some(new);
                row.moved_from = None;
            }
            (None, None) => {}
        }
    }
    rows.list.retain(|row| row.before != row.after);
    Ok(rows.list)
}

#[derive(Default)]
struct Rows {
    list: Vec<Net>,
    places: BTreeMap<(u32, Key), usize>,
}

impl Rows {
    /// Returns the row's record. The first event of a row says what it was `before`.
    fn of(&mut self, table: &Arc<Table>, key: Key, before: Option<Vec<Value>>) -> &mut Net {
        let place = *self.places.entry((table.id, Arc::clone(&key))).or_insert_with(|| {
            let table = Arc::clone(table);
            self.list.push(Net { table, key, before, after: None, moved_from: None });
            self.list.len() - 1
        });
        &mut self.list[place]
    }

    /// Returns the key that the row now leaving `key` had when the transaction began; `None`: it
    /// was not there then.
    fn began_as(&self, table: &Arc<Table>, key: &Key) -> Option<Key> {
        let place = *self.places.get(&(table.id, Arc::clone(key)))?;
        let row = &self.list[place];
        if row.before.is_some() { Some(Arc::clone(key)) } else { row.moved_from.clone() }
    }
}

fn keyed(table: &Table, row: Vec<Value>) -> Result<(Key, Vec<Value>), String> {
    let values: Vec<Value> = table.key_of(&row).cloned().collect();
    let key = pack::pack(&values).map_err(|error| format!("table {}: {error}", table.info.name))?;
    if key.len() > KEY_BYTES_MAX {
        return Err(format!(
            "table {}: a primary key has {} bytes; the longest allowed has {KEY_BYTES_MAX}",
            table.info.name,
            key.len(),
        ));
    }
    Ok((key, row))
}
