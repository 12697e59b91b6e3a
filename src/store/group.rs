//! Group commit: many callers, each with a transaction of its own inside one of SQLite's, share
//! one sync of the disk. Who fails is rolled back alone; nobody's work is true before the group's
//! commit.
//!
//! SQLite sometimes rolls back more than was asked: when a statement is interrupted, runs out of
//! memory or says `OR ROLLBACK`, everything since `BEGIN` is gone. Then the group does the other
//! callers' work again, from what it noted of it: rows and batches, not statements, whose second
//! run could say something else.

use std::sync::Arc;
use std::time::Instant;

use rusqlite::ErrorCode;

use super::apply::Merge;
use super::capture::Net;
use super::database::{HeadsMark, Moment, NamesMark, Store, failed, fault_text};
use super::local::{self, RecordError};
use super::ops;
use super::schema::{self, Mode, SCHEMA_TABLE, SchemaChange, SchemaError, SchemaRequest};
use super::sql::{Statement, Transacted};
use super::statements::{self, SqlError};
use crate::crdt::content::Mend;
use crate::crdt::storage::{Past, StorageError, Tidy};
use crate::crdt::{Batch, Commit, Part, Piece, Refusal, RowOp, Staging, Stamp};
use crate::types::{Epoch, NodeId, Origin, Seq, Version, Wall};

/// What SQLite says when the index beside the log cannot grow.
const IOERR_SHMSIZE: std::ffi::c_int = 10 | (19 << 8);

/// Callers who share one sync. Dropped without [`Group::commit`], nothing of it has happened.
#[derive(Debug)]
pub struct Group<'a> {
    pub(super) store: &'a mut Store,
    pub(super) now: Wall,
    start: Moment,
    /// What was known of names when the group began.
    names: NamesMark,
    pub(super) commits: Vec<Arc<Commit>>,
    pub(super) done: Vec<Done>,
    is_begun: bool,
    /// Why nothing of the group can happen any more.
    lost: Option<String>,
}

/// What a caller did, as it can be done again.
#[derive(Debug)]
pub(super) enum Done {
    /// Row changes, and operations on this node's own tables.
    Local(Vec<Net>, Vec<RowOp>),
    Applied(Batch),
    Staged(Staging, Vec<Part>),
    Unstaged(Staging),
    AppliedStaged(Staging, Piece),
    /// Nobody remembers all of it.
    Large,
    Epoch {
        origin: Origin,
        trusted: Version,
    },
    Withdrawn,
    Met {
        members: Vec<(NodeId, Epoch)>,
        forgotten: Vec<(NodeId, Epoch)>,
    },
    Collected {
        heads: Vec<(Origin, Version)>,
        forgotten: Vec<(NodeId, Epoch)>,
        rows_max: usize,
    },
    Rejoined {
        origin: Origin,
        held: Vec<(Origin, Version)>,
        length: u64,
    },
    Settled(Past),
    Departed {
        under: Origin,
        held: Vec<(Origin, Version)>,
    },
    Tidied(Tidy),
    Mended(Mend),
    Recounted,
}

impl<'a> Group<'a> {
    pub(super) fn new(store: &'a mut Store, now: Wall) -> Self {
        let (start, names) = (store.now, store.mark_names());
        let lost = store.broken.clone();
        Self {
            store,
            now,
            start,
            names,
            commits: Vec::new(),
            done: Vec::new(),
            is_begun: false,
            lost,
        }
    }

    /// Carries out row operations: all or none. Returns the version they made; `None`: nothing
    /// replicated changed.
    pub fn ops(&mut self, ops: &[RowOp]) -> Result<Option<Version>, StorageError> {
        self.caller(failed_text, |group| group.carry_out(ops))
    }

    fn carry_out(&mut self, ops: &[RowOp]) -> Result<Option<Version>, StorageError> {
        let store = &mut *self.store;
        store.capture.start();
        for op in ops {
            ops::carry_out(store, op)?;
        }
        let captured = store.capture.finish().map_err(Refusal)?;
        let nets = self.held(captured).map_err(|error| Refusal(error.to_string()))?;
        let store = &mut *self.store;
        let nets = local::without_unclaimed(store, nets).map_err(failed)?;
        let local = &*store.local.info.name;
        let locals = ops.iter().filter(|op| ops::table_of(op) == local).cloned();
        let locals: Vec<RowOp> = locals.collect();
        let version = self.record(&nets).map_err(|error| match error {
            RecordError::Sqlite(error) => failed(error),
            refused => Refusal(refused.to_string()).into(),
        })?;
        self.done.push(Done::Local(nets, locals));
        Ok(version)
    }

    /// Runs a user's statements: all or none.
    pub fn sql(
        &mut self,
        statements: &[Statement],
        deadline: Option<Instant>,
    ) -> Result<Transacted, SqlError> {
        let last = statements.len().saturating_sub(1);
        self.caller(SqlError::Failed, |group| {
            let store = &mut *group.store;
            store.capture.start();
            let outcomes = statements::run(store, statements, deadline)?;
            let refused = |message| SqlError::Statement { index: last, message };
            let captured = store.capture.finish().map_err(refused)?;
            let recorded = group.record_captured(captured, deadline);
            let version = recorded.map_err(|error| match error {
                RecordError::Sqlite(error) => SqlError::Failed(fault_text(&error)),
                RecordError::Ended(ended) => ended.into(),
                too_large => refused(too_large.to_string()),
            })?;
            Ok(Transacted { outcomes, version, origin: group.store.now.origin })
        })
    }

    /// As [`Group::sql`], whoever waits meanwhile: only the deadline ends it.
    pub fn sql_long(
        &mut self,
        statements: &[Statement],
        deadline: Option<Instant>,
    ) -> Result<Transacted, SqlError> {
        self.store.gate.be_patient(true);
        let result = self.sql(statements, deadline);
        self.store.gate.be_patient(false);
        result
    }

    /// Changes the schema: all that the request says, or nothing. With `dry_run` nothing, either.
    pub fn schema(&mut self, request: &SchemaRequest) -> Result<SchemaChange, SchemaError> {
        let done = self.caller(
            |text| Halt::Error(SchemaError::Failed(text)),
            |group| {
                let store = &mut *group.store;
                let failed = |error: rusqlite::Error| SchemaError::from(error);
                let (writes, change) =
                    schema::plan(request, &store.conn, &store.tables, &store.origins)?;
                let before = schema::asides(&store.conn).map_err(failed)?;
                store.capture.start();
                schema::write_rows(&store.conn, &writes).map_err(failed)?;
                let nets = store.capture.finish_held().map_err(SchemaError::Failed)?;
                group.record(&nets).map_err(|error| SchemaError::Failed(error.to_string()))?;
                group.done.push(Done::Local(nets, Vec::new()));
                let after = schema::asides(&group.store.conn).map_err(failed)?;
                if let Some(aside) = after.into_iter().find(|aside| !before.contains(aside)) {
                    let error = refused_aside(request, aside);
                    if request.mode != Mode::Start {
                        return Err(error.into());
                    }
                    // A node's file may be older than the schema, and must not keep it from starting.
                    let mut notes = change.notes;
                    notes.push(format!("nothing of the schema files was added: {error}"));
                    let nothing = SchemaChange { notes, ..SchemaChange::default() };
                    return Err(Halt::DryRun(nothing));
                }
                if request.dry_run { Err(Halt::DryRun(change)) } else { Ok(change) }
            },
        );
        match done {
            Ok(change) | Err(Halt::DryRun(change)) => Ok(change),
            Err(Halt::Error(error)) => Err(error),
        }
    }

    /// Writes rows of the schema as no change of it would.
    #[cfg(test)]
    pub fn forge(&mut self, sql: &str) {
        let forged = self.caller(failed_text, |group| {
            group.store.capture.start();
            group.store.conn.execute_batch(sql).map_err(failed)?;
            let nets = group.store.capture.finish_held().map_err(Refusal)?;
            group.record(&nets).map_err(|error| StorageError::Failed(error.to_string()))
        });
        forged.expect("a test writes what SQLite takes");
    }

    /// Merges a batch from other nodes. Returns the head of every origin that it names.
    pub fn apply(&mut self, batch: &Batch) -> Result<Vec<(Origin, Version)>, StorageError> {
        self.caller(failed_text, |group| {
            let heads = group.merge(batch).map_err(failed)?;
            group.done.push(Done::Applied(batch.clone()));
            Ok(heads)
        })
    }

    /// Makes the work of all callers true with one sync of the disk. Returns what became true, in
    /// order: a commit for each caller who changed something.
    ///
    /// # Errors
    /// Nobody's work happened. Each caller may ask again, but see [`Store::fault`].
    pub fn commit(mut self) -> Result<Vec<Arc<Commit>>, StorageError> {
        if let Some(lost) = self.lost.take() {
            return Err(StorageError::Failed(lost));
        }
        if !self.is_begun {
            return Ok(Vec::new());
        }
        if let Err(error) = self.store.save().and_then(|()| self.run("COMMIT")) {
            return Err(StorageError::Failed(self.note_fault(&error)));
        }
        self.is_begun = false;
        self.store.settle();
        self.store.tell_asides(self.names);
        Ok(std::mem::take(&mut self.commits))
    }

    /// Returns the origin of this node's own writes.
    pub fn origin(&self) -> Origin {
        self.store.now.origin
    }

    /// Returns a life that no row died in a longer one of (see [`crate::crdt::Floor::longest`]).
    pub fn longest(&self) -> u64 {
        self.store.sums.longest().max(self.store.now.length)
    }

    /// Tells whether a large transaction is in the group: no other caller's work may follow it, since
    /// nobody could do it again.
    pub fn is_large(&self) -> bool {
        matches!(self.done.last(), Some(Done::Large))
    }

    /// Runs one caller's work in a savepoint of its own.
    pub(super) fn caller<T, E>(
        &mut self,
        failed: impl Fn(String) -> E,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        if let Some(lost) = &self.lost {
            return Err(failed(lost.clone()));
        }
        if self.is_large() {
            return Err(failed("nothing may share a commit with a large transaction".to_owned()));
        }
        if !self.is_begun {
            // Who comes next in the group would wait for the lock as long as this one did.
            if let Err(error) = self.begin() {
                let reason = begin_fault(&error);
                self.lose(reason.clone());
                return Err(failed(reason));
            }
        }
        // The first one's own transaction is the group's.
        let is_first = self.done.is_empty() && self.commits.is_empty();
        if !is_first {
            self.run("SAVEPOINT caller").map_err(|error| failed(fault_text(&error)))?;
        }
        let before = self.store.now;
        let mark = self.store.mark();
        let (commits, done) = (self.commits.len(), self.done.len());
        let names = self.store.mark_names();
        let result = work(self).and_then(|value| {
            if !is_first {
                self.run("RELEASE caller").map_err(|error| failed(fault_text(&error)))?;
            }
            Ok(value)
        });
        if result.is_err() {
            self.store.capture.stop();
            self.store.now = before;
            self.store.undo_to(mark);
            self.commits.truncate(commits);
            self.done.truncate(done);
            self.roll_back_caller(is_first, names);
        }
        result
    }

    fn roll_back_caller(&mut self, is_first: bool, names: NamesMark) {
        let undone = if is_first {
            let is_over = self.store.conn.is_autocommit();
            let ended = if is_over { Ok(()) } else { self.run("ROLLBACK") };
            ended
                .and_then(|()| self.store.forget_names_after(names))
                .map(|()| self.is_begun = false)
                .map_err(|error| self.note_fault(&error))
        } else if self.store.conn.is_autocommit() {
            self.do_again()
        } else {
            self.run("ROLLBACK TO caller")
                .and_then(|()| self.run("RELEASE caller"))
                .and_then(|()| self.store.forget_names_after(names))
                .map_err(|error| self.note_fault(&error))
        };
        if let Err(reason) = undone {
            self.lose(format!("the group was given up: {reason}"));
        }
    }

    /// Does the work of all callers again, after SQLite rolled everything back.
    fn do_again(&mut self) -> Result<(), String> {
        self.store.now = self.start;
        self.store.undo_to(HeadsMark::default());
        let commits = std::mem::take(&mut self.commits);
        let done = std::mem::take(&mut self.done);
        self.store
            .forget_names_after(self.names)
            .and_then(|()| self.begin())
            .map_err(|error| self.note_fault(&error))?;
        for work in &done {
            let again = match work {
                Done::Local(nets, locals) => self.write_again(nets, locals),
                Done::Applied(batch) => self.merge(batch).map(drop).map_err(failed),
                Done::Staged(staging, parts) => {
                    self.stage_again(*staging, Some(parts)).map_err(failed)
                }
                Done::Unstaged(staging) => self.stage_again(*staging, None).map_err(failed),
                Done::AppliedStaged(staging, last) => {
                    self.merge_staged(*staging, last).map(drop).map_err(failed)
                }
                Done::Large => Err(failed_text(
                    "SQLite took back a large transaction together with a later one".to_owned(),
                )),
                Done::Epoch { origin, trusted } => self.enter(*origin, *trusted).map_err(failed),
                Done::Withdrawn => self.withdraw_all().map_err(failed),
                Done::Met { members, forgotten } => {
                    self.note_members(members, forgotten).map_err(failed)
                }
                Done::Collected { heads, forgotten, rows_max } => {
                    let done = self.drop_tombstones(heads, forgotten, *rows_max);
                    done.map(drop).map_err(failed)
                }
                Done::Rejoined { origin, held, length } => {
                    self.leave(*origin, held, *length).map_err(failed)
                }
                Done::Settled(past) => self.settle_down(past).map(drop).map_err(failed),
                Done::Departed { under, held } => self.withdraw_of(*under, held).map_err(failed),
                Done::Tidied(tidy) => self.tidy_up(tidy).map(drop).map_err(failed),
                Done::Mended(mend) => self.mend_rows(mend).map(drop).map_err(failed),
                Done::Recounted => self.recount_all().map_err(failed),
            };
            again.map_err(|error| error.to_string())?;
        }
        if self.commits != commits {
            return Err("the same work did not make the same commits".to_owned());
        }
        self.done = done;
        Ok(())
    }

    fn write_again(&mut self, nets: &[Net], locals: &[RowOp]) -> Result<(), StorageError> {
        let store = &*self.store;
        // Those that go make place for those that come.
        for net in nets {
            if let (Some(before), None) = (&net.before, &net.after) {
                let key: Vec<_> = net.table.key_of(before).cloned().collect();
                net.table.delete_row(&store.conn, &key).map_err(failed)?;
            }
        }
        for net in nets {
            match (&net.before, &net.after) {
                (None, Some(after)) => net.table.insert_row(&store.conn, after),
                (Some(before), Some(after)) if before == after => Ok(()),
                (Some(before), Some(after)) => net.table.update_row(&store.conn, before, after),
                (_, None) => Ok(()),
            }
            .map_err(failed)?;
        }
        for op in locals {
            ops::carry_out(store, op)?;
        }
        self.record(nets).map_err(|error| StorageError::Failed(error.to_string()))?;
        Ok(())
    }

    pub(super) fn record(&mut self, nets: &[Net]) -> Result<Option<Version>, RecordError> {
        if nets.is_empty() {
            return Ok(None);
        }
        let store = &mut *self.store;
        let origin = store.now.origin;
        let version = store.origins.head(origin).next();
        let stamp = Stamp { origin, version };
        let made = (stamp, self.now);
        let changeset = local::record(store, made, nets)?;
        store.origins.advance(origin, version);
        let mut tables = local::events(nets);
        if nets.iter().any(|net| schema::is_schema(&net.table.info.name)) {
            tables.extend(store.bring_in_line()?);
        }
        self.conclude(Commit {
            seq: Seq::default(),
            at: self.store.now.at,
            tables,
            changeset: Some(Arc::new(changeset)),
            heads: vec![(origin, version)],
        });
        Ok(Some(version))
    }

    fn merge(&mut self, batch: &Batch) -> rusqlite::Result<Vec<(Origin, Version)>> {
        let store = &mut *self.store;
        let mut merge = Merge::new(store);
        let heads = merge.batch(batch)?;
        let mut tables = merge.write()?;
        let (refusals, quarantined) = (merge.refusals, merge.quarantined);
        let changed = std::mem::take(&mut merge.changed);
        store.now.refusals += refusals;
        store.now.quarantined += quarantined;
        if store.tables.id_of(SCHEMA_TABLE).is_some_and(|id| changed.contains(&id)) {
            tables.extend(store.bring_in_line()?);
        }
        let commit = Commit {
            seq: Seq::default(),
            at: store.now.at,
            tables,
            changeset: None,
            heads: heads.clone(),
        };
        self.conclude(commit);
        Ok(heads)
    }

    /// Gives a commit its place in the order of all commits.
    pub(super) fn conclude(&mut self, commit: Commit) {
        let now = &mut self.store.now;
        now.seq = Seq(now.seq.0 + 1);
        now.at = now.at.tick(self.now);
        self.commits.push(Arc::new(Commit { seq: now.seq, at: now.at, ..commit }));
    }

    fn begin(&mut self) -> rusqlite::Result<()> {
        self.run("BEGIN IMMEDIATE")?;
        self.is_begun = true;
        self.store.look_for_foreign_commits()
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.store.conn.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    fn lose(&mut self, reason: String) {
        self.lost = Some(reason);
        self.commits.clear();
        self.done.clear();
    }

    /// Says what failed. After the disk did, what SQLite holds in memory and what is on the disk
    /// may differ, and nothing more is written.
    fn note_fault(&mut self, error: &rusqlite::Error) -> String {
        self.store.note_fault(error)
    }
}

impl Store {
    /// See [`Group::note_fault`].
    pub(super) fn note_fault(&mut self, error: &rusqlite::Error) -> String {
        let code = error.sqlite_error_code();
        // Without room for the log's index nothing was written, as without room for the log.
        let is_full =
            error.sqlite_error().is_some_and(|error| error.extended_code == IOERR_SHMSIZE);
        let is_broken =
            matches!(code, Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt));
        if is_broken && !is_full {
            let fault = format!("the disk failed ({error}); nothing is written until a restart");
            self.broken = Some(fault);
        }
        fault_text(error)
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if !self.is_begun {
            return;
        }
        if !self.store.conn.is_autocommit() {
            // Should this fail, SQLite rolls back by itself with the next thing it does.
            let _ = self.run("ROLLBACK");
        }
        self.store.now = self.start;
        self.store.undo_to(HeadsMark::default());
        self.store.capture.stop();
        if let Err(error) = self.store.forget_names_after(self.names) {
            self.store.broken = Some(failed(error).to_string());
        }
    }
}

/// Says why a transaction could not begin, and what to do.
fn begin_fault(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program holds the write lock of the database, such as an sqlite3 shell in a transaction: nothing was written; end that program's transaction (fuser names who has tribune.db open) and try again".to_owned()
        }
        _ => fault_text(error),
    }
}

/// Why a change of the schema is rolled back.
enum Halt {
    Error(SchemaError),
    /// That was what the caller wanted.
    DryRun(SchemaChange),
}

impl From<SchemaError> for Halt {
    fn from(error: SchemaError) -> Self {
        Self::Error(error)
    }
}

/// Says what cannot be carried out of a change that somebody asks for here.
fn refused_aside(
    request: &SchemaRequest,
    (kind, table, name, reason): (String, String, String, String),
) -> SchemaError {
    let file = request.sources.first().map(|source| source.file.clone()).unwrap_or_default();
    let is_column = kind == "column";
    let reason = if kind == "index" { format!("index {name}: {reason}") } else { reason };
    SchemaError::Rule { file, table, column: is_column.then_some(name), reason }
}

fn failed_text(message: String) -> StorageError {
    StorageError::Failed(message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::crdt::storage::Storage;
    use crate::store::Waiting;
    use crate::store::trial::{ME, NOW, T, Trial, changes, events, in_memory, plain, run};
    use crate::types::Value;

    const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        INSERT INTO t SELECT 1000 + max(i), 1, 1 FROM n";

    fn put(id: i64, v: &str) -> Vec<RowOp> {
        vec![RowOp::Put {
            table: "kv",
            row: vec![("key", format!("k{id}").into()), ("value", Value::Blob(v.into()))],
            keep: &[],
        }]
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(30))
    }

    #[test]
    fn callers_share_a_commit_and_get_versions_of_their_own() {
        let mut trial = Trial::new(T);
        let mut group = trial.store.group(NOW);
        assert_eq!(group.ops(&put(1, "a")).unwrap(), Some(Version(1)));
        let insert = [plain("INSERT INTO t (id) VALUES (1)")];
        assert_eq!(group.sql(&insert, None).unwrap().version, Some(Version(2)));
        assert_eq!(group.ops(&put(1, "a")).unwrap(), None, "nothing changed");
        assert_eq!(group.ops(&put(1, "b")).unwrap(), Some(Version(3)));
        let commits = group.commit().unwrap();
        let seqs: Vec<u64> = commits.iter().map(|commit| commit.seq.0).collect();
        assert_eq!(seqs, [1, 2, 3]);
        assert!(commits.windows(2).all(|pair| pair[0].at < pair[1].at));
        assert_eq!(changes(&commits[2]), ["kv['k1']@1 value:2=x'62'"]);

        let trial = trial.reopen();
        let me = trial.store.origin();
        assert_eq!(trial.store.heads().unwrap(), [(me, Version(3))]);
        assert_eq!(trial.rows("SELECT id, v, w FROM t"), ["1 NULL 'dw'"]);
    }

    #[test]
    fn a_lock_that_another_program_holds_is_waited_for_once_a_group() {
        let mut trial = Trial::new(T);
        let shell = rusqlite::Connection::open(trial.store.path().unwrap()).unwrap();
        shell.execute_batch("BEGIN IMMEDIATE").unwrap();
        trial.store.conn.busy_timeout(std::time::Duration::from_millis(300)).unwrap();
        let begun = Instant::now();
        let mut group = trial.store.group(NOW);
        for id in 0..100 {
            let error = group.ops(&put(id, "a")).unwrap_err().to_string();
            assert!(error.contains("another program holds the write lock"), "{error}");
        }
        assert!(group.commit().is_err());
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
        shell.execute_batch("ROLLBACK").unwrap();
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
    }

    #[test]
    fn who_fails_is_rolled_back_alone() {
        let mut trial = Trial::new(T);
        let mut group = trial.store.group(NOW);
        group.ops(&put(1, "a")).unwrap();
        let fails =
            [plain("INSERT INTO t (id) VALUES (1), (2)"), plain("INSERT INTO t (id) VALUES (2)")];
        let error = group.sql(&fails, None).unwrap_err();
        let SqlError::Statement { index: 1, message } = error else { panic!("{error}") };
        assert_eq!(message, "UNIQUE constraint failed: t.id");
        let missing = Refusal("no such row".to_owned());
        let require = RowOp::Require {
            table: "kv",
            matching: vec![("key", "x".into())],
            otherwise: missing.clone(),
        };
        let ops = [put(2, "b"), vec![require]].concat();
        assert_eq!(group.ops(&ops), Err(StorageError::Refused(missing)));
        group.sql(&[plain("INSERT INTO t (id) VALUES (3)")], None).unwrap();
        let commits = group.commit().unwrap();
        assert_eq!(commits.len(), 2);
        assert_eq!(commits[1].heads[0].1, Version(2), "versions are dense");
        assert_eq!(trial.rows("SELECT id FROM t"), ["3"]);
        assert_eq!(trial.rows("SELECT key FROM kv"), ["'k1'"]);
    }

    /// Runs a group in which one caller makes SQLite roll everything back.
    fn check_others_survive(culprit: &str, deadline: Option<Instant>, reason: &str) {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t VALUES (1, 'a', 'b'), (2, 'a', 'b')"]);
        let foreign = foreign_batch();

        let mut group = trial.store.group(NOW);
        group.ops(&put(1, "a")).unwrap();
        let random = [
            plain("UPDATE t SET v = random(), id = 7 WHERE id = 1 RETURNING v"),
            plain("DELETE FROM t WHERE id = 2"),
            plain("INSERT INTO t (id, v) VALUES (1, random())"),
        ];
        let told = group.sql(&random, None).unwrap();
        group.apply(&foreign).unwrap();
        let check = vec![("id", "c".into()), ("definition", "{}".into())];
        group.ops(&[RowOp::Put { table: "__tribune_checks", row: check, keep: &[] }]).unwrap();
        let before = group.commits.clone();
        assert_eq!(before.len(), 3);

        let error = group.sql(&[plain("INSERT INTO t (id) VALUES (50)"), plain(culprit)], deadline);
        assert!(error.as_ref().unwrap_err().to_string().contains(reason), "{error:?}");
        assert_eq!(group.commits, before);
        group.ops(&put(2, "b")).unwrap();
        let commits = group.commit().unwrap();
        assert_eq!(commits[..3], before[..]);
        assert_eq!(commits[3].heads[0].1, Version(4));

        let (_, rows) = told.outcomes[0].returned.clone().unwrap();
        assert_eq!(trial.rows("SELECT v FROM t WHERE id = 7"), [rows[0][0].to_string()]);
        assert_eq!(trial.rows("SELECT id FROM t ORDER BY id"), ["1", "7", "30"]);
        assert_eq!(trial.rows("SELECT count(*) FROM kv"), ["2"]);
        assert_eq!(trial.rows("SELECT id FROM __tribune_checks"), ["'c'"]);
        let fingerprint = trial.store.fingerprint().unwrap();
        let trial = trial.reopen();
        assert_eq!(trial.store.fingerprint().unwrap(), fingerprint);
        assert_eq!(trial.store.heads().unwrap().len(), 2);
    }

    #[test]
    fn an_epoch_and_a_withdrawal_survive_a_callers_rollback() {
        let mut trial = Trial::new(T);
        let service = |id: &str| {
            let row = vec![("node_id", ME.to_string().into()), ("id", id.into())];
            RowOp::Put { table: "services", row, keep: &[] }
        };
        trial.store.commit(NOW, &[service("old")]).unwrap();
        let mut trial = trial.reopen();
        let first = trial.store.origin();
        let mut lost = trial.store.load(first, Version(0), usize::MAX).unwrap().piece;
        let known = trial.store.heads().unwrap();

        let mut group = trial.store.group(NOW);
        group.ops(&[service("burnt")]).unwrap();
        let (origin, ended) = group.begin_epoch(first.epoch).unwrap();
        assert_eq!((vec![ended], origin.node), (known, ME));
        // What peers still had of this node comes back, and nobody claims it.
        lost.after = Version(1);
        lost.through = Version(9);
        lost.changesets = vec![Arc::new(returned(first))];
        group.apply(&Batch { pieces: vec![lost] }).unwrap();
        assert_eq!(group.withdraw().unwrap(), 1);
        let before = group.commits.clone();
        assert_eq!(before.len(), 4);
        let culprit = [plain("INSERT OR ROLLBACK INTO t (id) VALUES (5), (5)")];
        group.sql(&culprit, None).unwrap_err();
        assert_eq!(group.commit().unwrap(), before);
        let ids = trial.rows("SELECT id FROM services ORDER BY id");
        assert_eq!(ids, ["'burnt'", "'old'"]);
        let heads = trial.store.heads().unwrap();
        assert_eq!(heads, [(first, Version(9)), (origin, Version(2))]);
    }

    /// A registration of this node that its disk has lost.
    fn returned(origin: Origin) -> crate::crdt::Changeset {
        let mut other = Trial::new("").store;
        let row = vec![("node_id", ME.to_string().into()), ("id", "lost".into())];
        let put = RowOp::Put { table: "services", row, keep: &[] };
        let commit = other.commit(NOW, &[put]).unwrap().unwrap();
        let mut changeset = Arc::unwrap_or_clone(commit.changeset.unwrap());
        changeset.stamp = Stamp { origin, version: Version(9) };
        for row in changeset.tables.iter_mut().flat_map(|table| &mut table.rows) {
            row.life.stamp = changeset.stamp;
        }
        changeset
    }

    fn foreign_batch() -> Batch {
        let mut other = in_memory(NodeId([0x22; 16]), T);
        let (_, commit) = run(&mut other, &["INSERT INTO t (id) VALUES (30)"]).unwrap();
        let changeset = commit.unwrap().changeset.unwrap();
        Batch { pieces: vec![crate::crdt::Piece::of(changeset)] }
    }

    #[test]
    fn an_interrupted_caller_does_not_take_the_others_along() {
        check_others_survive(ENDLESS, soon(), "interrupted");
    }

    #[test]
    fn a_transaction_that_others_wait_for_is_undone_and_takes_nobody_along() {
        let mut trial = Trial::new(T);
        let waiting = Arc::new(Waiting::default());
        trial.store.yield_to(Arc::clone(&waiting));
        let mut group = trial.store.group(NOW);
        group.ops(&put(1, "a")).unwrap();
        let small = [plain("INSERT INTO t (id) VALUES (1)")];
        group.sql(&small, None).unwrap();
        waiting.begin();
        assert_eq!(group.sql(&[plain(ENDLESS)], None), Err(SqlError::Yielded));
        // Nor does it help to be many statements of a few steps each.
        let one = plain("UPDATE t SET v = 1 WHERE id = 1");
        assert_eq!(group.sql(&vec![one; 3], None), Err(SqlError::Yielded));
        waiting.renew(false);
        group.ops(&put(2, "a")).unwrap();
        assert_eq!(group.commit().unwrap().len(), 3);
        assert_eq!(trial.rows("SELECT id, v FROM t"), ["1 NULL"]);
        assert_eq!(trial.rows("SELECT count(*) FROM kv"), ["2"]);
        trial.write(&["UPDATE t SET v = 1"]);
    }

    #[test]
    fn a_caller_who_rolls_back_does_not_take_the_others_along() {
        let culprit = "INSERT OR ROLLBACK INTO t (id) VALUES (50)";
        check_others_survive(culprit, None, "UNIQUE constraint failed");
    }

    #[test]
    fn a_deadline_that_has_passed_stops_before_the_first_statement() {
        let mut trial = Trial::new(T);
        let mut group = trial.store.group(NOW);
        let past = Some(Instant::now());
        assert_eq!(group.sql(&[plain("SELECT 1")], past), Err(SqlError::TimedOut));
        assert_eq!(group.sql(&[plain(ENDLESS)], soon()), Err(SqlError::TimedOut));
        assert_eq!(group.commit().unwrap(), []);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
    }

    #[test]
    fn a_group_that_is_dropped_has_not_happened() {
        let mut trial = Trial::new(T);
        let before = trial.store.now;
        let mut group = trial.store.group(NOW);
        group.ops(&put(1, "a")).unwrap();
        group.apply(&foreign_batch()).unwrap();
        group.begin_epoch(Epoch(4)).unwrap();
        group.ops(&put(2, "a")).unwrap();
        drop(group);
        assert_eq!(trial.store.now, before);
        assert_eq!(trial.store.heads().unwrap(), []);
        assert_eq!(trial.rows("SELECT count(*) FROM kv"), ["0"]);
        assert_eq!(trial.write(&["INSERT INTO t (id) VALUES (1)"]).heads[0].1, Version(1));
    }

    #[test]
    fn an_epoch_is_kept_and_starts_from_version_one() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        let mut trial = trial.reopen();
        let above = Epoch(trial.store.origin().epoch.0 + 6);
        let mut group = trial.store.group(NOW);
        let (origin, _) = group.begin_epoch(above).unwrap();
        assert_eq!((origin.node, origin.epoch), (ME, Epoch(above.0 + 1)));
        group.sql(&[plain("UPDATE t SET v = 1")], None).unwrap();
        let commits = group.commit().unwrap();
        assert_eq!(commits[0].heads, [(origin, Version(1))]);
        assert_eq!(events(&commits[0]), ["=t 1 1 'dw'"]);
        let trial = trial.reopen();
        assert_eq!(trial.store.origin(), origin);
        assert_eq!(trial.store.identity().epoch, Epoch(above.0 + 1));
        assert_eq!(trial.store.heads().unwrap().len(), 2);
    }

    #[test]
    fn checks_of_this_node_make_no_version() {
        let mut trial = Trial::new("");
        let row = |id: &str| {
            vec![("id", id.into()), ("service_id", "s".into()), ("definition", "{}".into())]
        };
        let put = |id| RowOp::Put { table: "__tribune_checks", row: row(id), keep: &[] };
        let mut group = trial.store.group(NOW);
        assert_eq!(group.ops(&[put("a"), put("b"), put("c")]).unwrap(), None);
        let gone = RowOp::Delete {
            table: "__tribune_checks",
            matching: vec![("service_id", "s".into())],
            except: Some(("id", vec!["b".into()])),
        };
        assert_eq!(group.ops(&[gone]).unwrap(), None);
        assert_eq!(group.commit().unwrap(), []);
        let definitions = trial.readers().check_definitions().unwrap();
        assert_eq!(definitions, [("b".to_owned(), "s".to_owned(), "{}".to_owned())]);
    }
}
