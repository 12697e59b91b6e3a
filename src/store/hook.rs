//! SQLite's pre-update hook: what a statement is about to change, row by row. It is the one place
//! that speaks to SQLite without rusqlite, whose own binding of it cannot be built without clang.
#![expect(unsafe_code, reason = "SQLite calls back with pointers; see each SAFETY below")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;

use rusqlite::Connection;
use rusqlite::ffi;

use super::limits::VALUE_BYTES_MAX;
use super::values::BadValue;
use crate::types::Value;

/// What happens to a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowAction {
    Insert,
    Update,
    Delete,
}

/// One row that is about to change. It lives only as long as the callback that is told of it.
pub struct RowChanging<'a> {
    db: *mut ffi::sqlite3,
    pub action: RowAction,
    /// As the schema spells it.
    pub table: &'a str,
    _callback: PhantomData<&'a ()>,
}

impl RowChanging<'_> {
    /// Reads a column as it was. `cid` counts all columns of the table, generated ones too. There
    /// is nothing to read of an insert.
    pub fn before(&self, cid: usize) -> Result<Value, BadValue> {
        self.column(cid, ffi::sqlite3_preupdate_old)
    }

    /// Reads a column as it will be. There is nothing to read of a delete.
    pub fn after(&self, cid: usize) -> Result<Value, BadValue> {
        self.column(cid, ffi::sqlite3_preupdate_new)
    }

    fn column(
        &self,
        cid: usize,
        read: unsafe extern "C" fn(*mut ffi::sqlite3, c_int, *mut *mut ffi::sqlite3_value) -> c_int,
    ) -> Result<Value, BadValue> {
        let cid = c_int::try_from(cid).map_err(|_| BadValue::Unreadable(ffi::SQLITE_RANGE))?;
        let mut value = ptr::null_mut();
        // SAFETY: `db` is the connection whose callback is running (this struct does not outlive
        // it), and `value` is a place to write a pointer to. SQLite itself checks `cid`.
        let code = unsafe { read(self.db, cid, &raw mut value) };
        if code != ffi::SQLITE_OK || value.is_null() {
            return Err(BadValue::Unreadable(code));
        }
        // SAFETY: SQLite said OK, so `value` points to a value that stays until the callback ends.
        unsafe { copy(value) }
    }
}

/// Calls `on_change` for each row of the main database that any statement of this connection is
/// about to change, for as long as the connection lives. It must not use the connection.
pub fn watch<F>(conn: &Connection, on_change: F) -> rusqlite::Result<()>
where
    F: FnMut(&RowChanging<'_>) + Send + 'static,
{
    let state = Box::into_raw(Box::new(on_change));
    // SAFETY: the handle is used for these two calls only, while `conn` is borrowed. SQLite owns
    // `state` from here on: it frees it by `free` when the connection closes, after which no hook
    // runs, and also when the call fails. One thread at a time uses a connection, so the callback
    // is never entered twice; `F` is Send because that thread may change.
    unsafe {
        let db = conn.handle();
        let code =
            ffi::sqlite3_set_clientdata(db, CLIENT_DATA.as_ptr(), state.cast(), Some(free::<F>));
        if code != ffi::SQLITE_OK {
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        }
        ffi::sqlite3_preupdate_hook(db, Some(callback::<F>), state.cast());
    }
    Ok(())
}

const CLIENT_DATA: &CStr = c"tribune_capture";

/// # Safety
/// `state` came from `Box::into_raw` of a `Box<F>` and is not used afterwards.
unsafe extern "C" fn free<F>(state: *mut c_void) {
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(state.cast::<F>()) });
}

/// # Safety
/// Only SQLite calls this, with the `state` that `watch` gave it.
unsafe extern "C" fn callback<F: FnMut(&RowChanging<'_>)>(
    state: *mut c_void,
    db: *mut ffi::sqlite3,
    action: c_int,
    database: *const c_char,
    table: *const c_char,
    _old_rowid: i64,
    _new_rowid: i64,
) {
    // SAFETY: SQLite passes terminated names that stay for the length of the call.
    let (database, table) = unsafe { (CStr::from_ptr(database), CStr::from_ptr(table)) };
    let action = match action {
        ffi::SQLITE_INSERT => RowAction::Insert,
        ffi::SQLITE_UPDATE => RowAction::Update,
        ffi::SQLITE_DELETE => RowAction::Delete,
        _ => return,
    };
    // A name that is not UTF-8 cannot be one of ours: those came out of SQLite as texts.
    let Ok(table) = table.to_str() else { return };
    if database != c"main" {
        return;
    }
    // SAFETY: `state` is the closure that `watch` boxed; nothing else refers to it now.
    let on_change = unsafe { &mut *state.cast::<F>() };
    on_change(&RowChanging { db, action, table, _callback: PhantomData });
}

/// Copies a value out, and checks what may be replicated of it.
///
/// # Safety
/// `value` points to a value of SQLite's that stays unchanged during the call.
unsafe fn copy(value: *mut ffi::sqlite3_value) -> Result<Value, BadValue> {
    // SAFETY: the caller's promise; the order is the documented one: a pointer first, then its
    // length, which is in bytes of UTF-8. A null pointer stands for no bytes, or for no memory.
    unsafe {
        Ok(match ffi::sqlite3_value_type(value) {
            ffi::SQLITE_INTEGER => Value::Integer(ffi::sqlite3_value_int64(value)),
            ffi::SQLITE_FLOAT => Value::real(ffi::sqlite3_value_double(value)),
            ffi::SQLITE_TEXT => {
                let start = ffi::sqlite3_value_text(value);
                let bytes = bytes_at(start.cast(), ffi::sqlite3_value_bytes(value))?;
                let text = std::str::from_utf8(bytes).map_err(|_| BadValue::NotUtf8)?;
                Value::Text(text.to_owned())
            }
            ffi::SQLITE_BLOB => {
                let start = ffi::sqlite3_value_blob(value);
                let bytes = bytes_at(start.cast(), ffi::sqlite3_value_bytes(value))?;
                Value::Blob(bytes.to_vec())
            }
            _ => Value::Null,
        })
    }
}

/// # Safety
/// `start` is null or the beginning of `length` bytes that stay as long as the slice is used.
unsafe fn bytes_at<'a>(start: *const u8, length: c_int) -> Result<&'a [u8], BadValue> {
    let length = usize::try_from(length).unwrap_or(0);
    if length > VALUE_BYTES_MAX {
        return Err(BadValue::TooLong(length));
    }
    if length == 0 {
        return Ok(&[]);
    }
    if start.is_null() {
        return Err(BadValue::Unreadable(ffi::SQLITE_NOMEM));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(start, length) })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Runs `sql` on a table and lists what the hook said, one line a row.
    fn check(table: &str, cids: &[usize], sql: &str, expected: &[&str]) {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(table).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ours = Arc::clone(&seen);
        let cids = cids.to_vec();
        watch(&conn, move |row| {
            let read = |is_there: bool, read: &dyn Fn(usize) -> Result<Value, BadValue>| {
                let values = cids.iter().map(|cid| match read(*cid) {
                    Ok(value) => value.to_string(),
                    Err(bad) => format!("{bad:?}"),
                });
                if is_there { values.collect::<Vec<_>>().join(",") } else { "-".to_owned() }
            };
            let old = read(row.action != RowAction::Insert, &|cid| row.before(cid));
            let new = read(row.action != RowAction::Delete, &|cid| row.after(cid));
            ours.lock().unwrap().push(format!("{:?} {} {old} > {new}", row.action, row.table));
        })
        .unwrap();
        conn.execute_batch(sql).unwrap();
        assert_eq!(*seen.lock().unwrap(), expected, "{sql}");
        assert!(conn.close().is_ok());
    }

    const T: &str = "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v, w DEFAULT 'dw');";

    #[test]
    fn inserts_updates_and_deletes_are_seen_with_all_columns() {
        check(
            T,
            &[0, 1, 2],
            "INSERT INTO t (id, v) VALUES (1, x'00'); UPDATE t SET w = 2.5; DELETE FROM t WHERE id = 1",
            &[
                "Insert t - > 1,x'00','dw'",
                "Update t 1,x'00','dw' > 1,x'00',2.5",
                "Delete t 1,x'00',2.5 > -",
            ],
        );
    }

    #[test]
    fn a_delete_without_where_is_seen_row_by_row() {
        check(
            T,
            &[0],
            "INSERT INTO t (id) VALUES (1), (2); DELETE FROM t",
            &["Insert t - > 1", "Insert t - > 2", "Delete t 1 > -", "Delete t 2 > -"],
        );
    }

    #[test]
    fn replace_is_seen_as_delete_and_insert() {
        let sql = "INSERT INTO t VALUES (1, 'a', 'b'); REPLACE INTO t (id, v) VALUES (1, 'c')";
        let expected =
            ["Insert t - > 1,'a','b'", "Delete t 1,'a','b' > -", "Insert t - > 1,'c','dw'"];
        check(T, &[0, 1, 2], sql, &expected);
        let without =
            "CREATE TABLE t (id TEXT, v, w DEFAULT 'dw', PRIMARY KEY (id)) WITHOUT ROWID;";
        let expected =
            ["Insert t - > '1','a','b'", "Delete t '1','a','b' > -", "Insert t - > '1','c','dw'"];
        check(without, &[0, 1, 2], sql, &expected);
        let text = "CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, v, w DEFAULT 'dw');";
        check(text, &[0, 1, 2], sql, &expected);
    }

    #[test]
    fn keys_that_change_are_seen() {
        let sql = "INSERT INTO t (id, v) VALUES (1, 'a'); UPDATE t SET id = 2";
        check(T, &[0, 1], sql, &["Insert t - > 1,'a'", "Update t 1,'a' > 2,'a'"]);
    }

    #[test]
    fn columns_are_counted_with_the_generated_ones() {
        check(
            "CREATE TABLE t (g AS (a + 1), a NOT NULL PRIMARY KEY, s AS (a * 2) STORED, b);",
            &[1, 3],
            "INSERT INTO t (a, b) VALUES (5, 6); UPDATE t SET b = 7; DELETE FROM t",
            &["Insert t - > 5,6", "Update t 5,6 > 5,7", "Delete t 5,7 > -"],
        );
        check(
            "CREATE TABLE t (g AS (a + 1), b, a NOT NULL PRIMARY KEY, s AS (a * 2) STORED) WITHOUT ROWID;",
            &[1, 2],
            "INSERT INTO t (a, b) VALUES (5, 6); UPDATE t SET b = 7; DELETE FROM t",
            &["Insert t - > 6,5", "Update t 6,5 > 7,5", "Delete t 7,5 > -"],
        );
    }

    #[test]
    fn columns_that_were_added_later_show_their_default() {
        check(
            "CREATE TABLE t (a NOT NULL PRIMARY KEY); INSERT INTO t VALUES (1);
             ALTER TABLE t ADD COLUMN b DEFAULT 'x';",
            &[0, 1],
            "UPDATE t SET a = 2; DELETE FROM t",
            &["Update t 1,'x' > 2,'x'", "Delete t 2,'x' > -"],
        );
    }

    #[test]
    fn bad_texts_and_huge_values_are_told_apart() {
        let too_long = VALUE_BYTES_MAX + 1;
        check(
            T,
            &[1],
            &format!(
                "INSERT INTO t (id, v) VALUES (1, CAST(x'ff' AS TEXT)), (2, zeroblob({too_long}))"
            ),
            &["Insert t - > NotUtf8", &format!("Insert t - > TooLong({too_long})")],
        );
    }
}
