//! Large transactions: recorded from the spill, chunk by chunk, under one version. No changeset is made:
//! the other nodes hear of the version and pull it in parts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;
use tracing::info;

use super::capture::{Captured, Net};
use super::database::Store;
use super::group::{Done, Group};
use super::limits::{TOUCHED_BYTES_MAX, TRANSACTION_BYTES_MAX};
use super::local::{self, RecordError};
use super::origins::Origins;
use super::schema;
use super::spill::{Cursor, Spill};
use super::tables::{Table, TableId};
use crate::crdt::{Class, Commit, RowEvents, Stamp, TableEvents};
use crate::types::{Seq, Value, Version};

impl Group<'_> {
    /// Records what a user's transaction changed: as one that travels whole where it can, else as a
    /// large one.
    pub(super) fn record_captured(
        &mut self,
        captured: Captured,
        deadline: Option<Instant>,
    ) -> Result<Option<Version>, RecordError> {
        let (spill, too_large) = match captured {
            Captured::Held(nets) => {
                let nets = local::without_unclaimed(self.store, nets)?;
                match self.record(&nets) {
                    Err(error @ (RecordError::Cells(_) | RecordError::Bytes(_))) => {
                        if !nets.iter().all(|net| may_be_large(&net.table)) {
                            return Err(error);
                        }
                        let mut spill = self.store.capture.open_spill()?;
                        spill.add_nets(nets)?;
                        (spill, error)
                    }
                    recorded => {
                        self.done.push(Done::Local(nets, Vec::new()));
                        return recorded;
                    }
                }
            }
            Captured::Spilled(spill) => match self.hold(&spill)? {
                Ok(nets) => return self.record_captured(Captured::Held(nets), deadline),
                Err(too_large) => (spill, too_large),
            },
        };
        if !spill.tables().all(|table| may_be_large(table)) {
            return Err(too_large);
        }
        self.record_large(&spill, deadline)
    }

    /// Returns what a command changed, which is never large.
    pub(super) fn held(&self, captured: Captured) -> Result<Vec<Net>, RecordError> {
        match captured {
            Captured::Held(nets) => Ok(nets),
            Captured::Spilled(spill) => self.hold(&spill)?,
        }
    }

    /// Collects the net effect of what was spilled, as far as it may be held in memory.
    fn hold(&self, spill: &Spill) -> Result<Result<Vec<Net>, RecordError>, RecordError> {
        let Store { conn, origins, .. } = &*self.store;
        let (mut nets, mut cursor, mut size) =
            (Vec::new(), Cursor::default(), local::Size::default());
        let mut held = 0;
        loop {
            let chunk = spill.chunk(conn, origins, &mut cursor)?;
            if chunk.is_empty() {
                return Ok(Ok(nets));
            }
            for (net, _) in chunk {
                let is_touched = net.table.class == Class::Owned && net.after.is_some();
                if net.before == net.after && !is_touched {
                    continue;
                }
                size.add(&net);
                let sides = net.before.iter().chain(&net.after).flatten();
                held += sides.map(|value| value.bytes() + 16).sum::<usize>();
                nets.push(net);
            }
            if let Err(too_large) = size.check(self.store.cells_max) {
                return Ok(Err(too_large));
            }
            if held > TOUCHED_BYTES_MAX {
                return Ok(Err(RecordError::Touched(held)));
            }
        }
    }

    /// Writes clocks, names and sums of all that was spilled. Nobody can do that again, so no other
    /// caller follows in this group.
    fn record_large(
        &mut self,
        spill: &Spill,
        deadline: Option<Instant>,
    ) -> Result<Option<Version>, RecordError> {
        let begun = Instant::now();
        let store = &mut *self.store;
        let origin = store.now.origin;
        let version = store.origins.head(origin).next();
        let made = (Stamp { origin, version }, self.now);
        spill.note_clocks(&store.conn, &mut store.origins)?;
        let (mut cursor, mut changed, mut rows) = (Cursor::default(), BTreeSet::new(), 0_u64);
        loop {
            if let Some(ended) = store.gate.is_over(deadline) {
                return Err(RecordError::Ended(ended));
            }
            store.gate.beat();
            let chunk = changed_of(spill, &store.conn, &store.origins, &mut cursor)?;
            let Some(chunk) = chunk else { break };
            check_rows(&chunk)?;
            local::record_chunk(store, made, &chunk)?;
            rows += chunk.len() as u64;
            changed.extend(chunk.iter().map(|(net, _)| net.table.id));
        }
        if changed.is_empty() {
            return Ok(None);
        }
        store.origins.advance(origin, version);
        store.sweeper.put_off();
        let tables = events_of(store, &changed);
        let (seq, at, heads) = (Seq::default(), store.now.at, vec![(origin, version)]);
        self.conclude(Commit { seq, at, tables, changeset: None, heads });
        self.done.push(Done::Large);
        info!(%version, rows, took = ?begun.elapsed(), "A large transaction was recorded; other nodes pull it in parts");
        Ok(Some(version))
    }
}

#[cfg(test)]
impl Store {
    /// Takes what is small for large, over the disk, from now on, or no longer.
    pub(super) fn take_for_large(&mut self, is_large: bool) {
        let (held, cells) = match is_large {
            true => (0, 0),
            false => (super::limits::HELD_BYTES_MAX, super::limits::TRANSACTION_CELLS_MAX),
        };
        self.capture.hold_at_most(held);
        self.cells_max = cells;
    }
}

/// A row that a transaction touched, and the clock that it brought along from another key.
type Touched = (Net, Option<crate::crdt::RowClock>);

/// Returns the rows of the next chunk that differ from what they were; `None`: there are no more.
fn changed_of(
    spill: &Spill,
    conn: &Connection,
    origins: &Origins,
    cursor: &mut Cursor,
) -> rusqlite::Result<Option<Vec<Touched>>> {
    loop {
        let mut chunk = spill.chunk(conn, origins, cursor)?;
        if chunk.is_empty() {
            return Ok(None);
        }
        chunk.retain(|(net, _)| net.before != net.after);
        if !chunk.is_empty() {
            return Ok(Some(chunk));
        }
    }
}

/// A row travels whole.
fn check_rows(chunk: &[Touched]) -> Result<(), RecordError> {
    for (net, _) in chunk {
        let bytes: usize = net.after.iter().flatten().map(Value::bytes).sum();
        if bytes > TRANSACTION_BYTES_MAX {
            let mut size = local::Size::default();
            size.add(net);
            size.check_row()?;
        }
    }
    Ok(())
}

/// Tells whether large transactions may write to a table. A table of the catalog is folded into the
/// view row by row, and its rows are stamped anew with each epoch: neither is made for such numbers.
fn may_be_large(table: &Table) -> bool {
    table.class == Class::Shared && !schema::is_schema(&table.info.name)
}

fn events_of(store: &Store, changed: &BTreeSet<TableId>) -> Vec<TableEvents> {
    let tables = changed.iter().filter_map(|id| store.tables.entry(*id).table.as_ref());
    let events =
        tables.map(|table| TableEvents { table: Arc::clone(&table.info), rows: RowEvents::Many });
    events.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::storage::Storage;
    use crate::crdt::suite::catch_up;
    use crate::store::Store;
    use crate::store::trial::{ME, NOW, T, Trial, in_memory, plain, run};
    use crate::types::{NodeId, Version};

    const YOU: NodeId = NodeId([0x22; 16]);
    const R: &str = "CREATE TABLE r (k REAL NOT NULL, s TEXT NOT NULL, n REAL, PRIMARY KEY (k, s)) WITHOUT ROWID;";
    const FILL: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 40)
        INSERT INTO t (id, v) SELECT i, 'v' || i FROM n";

    /// How a store takes what would be small: as it is, over the disk, or as large.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum How {
        Small,
        Spilled,
        Large,
        /// Large, though all of it was held in memory.
        HeldLarge,
    }

    const ALL: [How; 4] = [How::Small, How::Spilled, How::Large, How::HeldLarge];

    fn opened(how: How) -> Store {
        let mut store = in_memory(ME, &format!("{T} {R}"));
        force(&mut store, how);
        store
    }

    fn force(store: &mut Store, how: How) {
        if matches!(how, How::Spilled | How::Large) {
            store.capture.hold_at_most(0);
        }
        if matches!(how, How::Large | How::HeldLarge) {
            store.cells_max = 0;
        }
    }

    /// All that a store says of itself and of what it wrote.
    fn told(store: &Store) -> Vec<String> {
        let mut told = crate::store::trial::rows(store, "SELECT * FROM t ORDER BY id");
        told.extend(crate::store::trial::rows(store, "SELECT * FROM r ORDER BY k, s"));
        let clocks = "SELECT tbl, hex(key), hex(clock) FROM __tribune_rows ORDER BY tbl, key";
        told.extend(crate::store::trial::rows(store, clocks));
        let extract = store.load(store.origin(), Version(0), usize::MAX).unwrap();
        told.extend(extract.piece.changesets.iter().map(|changeset| format!("{changeset:?}")));
        told.push(format!("{:?} {}", store.heads().unwrap(), store.fingerprint().unwrap()));
        told
    }

    /// Runs transactions in every way, and compares what came of them.
    #[track_caller]
    fn check(transactions: &[&[&str]]) {
        let mut expected = None;
        for how in ALL {
            let mut store = opened(how);
            for statements in transactions {
                let Ok((transacted, commit)) = run(&mut store, statements) else { continue };
                assert_eq!(transacted.version.is_some(), commit.is_some(), "{statements:?}");
                let Some(commit) = commit else { continue };
                let is_large = commit.large(store.origin()).is_some();
                assert_eq!(is_large, matches!(how, How::Large | How::HeldLarge), "{statements:?}");
            }
            let told = told(&store);
            let mut peer = in_memory(YOU, &format!("{T} {R}"));
            while catch_up(&mut peer, &store, store.origin(), 60).is_some() {}
            assert_eq!(peer.fingerprint().unwrap(), store.fingerprint().unwrap(), "{how:?}");
            assert_eq!(expected.get_or_insert(told.clone()), &told, "{how:?}: {transactions:?}");
        }
    }

    #[test]
    fn every_kind_of_change_is_recorded_as_it_would_be_in_memory() {
        let one = "INSERT INTO t VALUES (1, 'a', 'b')";
        check(&[&[FILL], &["UPDATE t SET v = 'x' WHERE id % 2"], &["DELETE FROM t WHERE id < 9"]]);
        check(&[&[FILL], &["DELETE FROM t", FILL]]);
        check(&[&[one], &["UPDATE t SET v = 'x'", "UPDATE t SET v = 'a'"]]);
        check(&[&[one, "DELETE FROM t"], &[one], &["DELETE FROM t", one]]);
        check(&[&[one], &["REPLACE INTO t (id, v, w) VALUES (1, 'a', 'c'), (2, 'n', NULL)"]]);
        let upsert = "INSERT INTO t VALUES (1, 'n', 'n'), (2, x'00', 2.5)
            ON CONFLICT (id) DO UPDATE SET v = excluded.v";
        check(&[&[one], &[upsert]]);
        check(&[&[one], &["INSERT OR IGNORE INTO t VALUES (1, 'n', 'n'), (2, 'n', 'n')"]]);
        check(&[&["INSERT INTO t VALUES (1, 'a', 'b'), (2, NULL, 1) RETURNING id"], &["SELECT 1"]]);
        check(&[&["INSERT INTO r VALUES (1, 'a', 5), (2.5, 'b', NULL)"], &["UPDATE r SET n = 6"]]);
    }

    #[test]
    fn keys_that_change_take_their_clocks_along() {
        check(&[&[FILL], &["UPDATE t SET v = 'x'"], &["UPDATE t SET id = id + 100"]]);
        check(&[&[FILL], &["UPDATE t SET id = id + 100", "UPDATE t SET id = id - 100"]]);
        check(&[&[FILL], &["UPDATE t SET id = id + 100", "UPDATE t SET id = id + 7, v = 'y'"]]);
        let swap = [
            "UPDATE t SET id = 3000 WHERE id = 1",
            "UPDATE t SET id = 1 WHERE id = 2",
            "UPDATE t SET id = 2 WHERE id = 3000",
        ];
        check(&[&[FILL], &["UPDATE t SET v = 'z' WHERE id = 1"], &swap]);
        check(&[&[FILL], &["DELETE FROM t WHERE id = 5", "UPDATE t SET id = 5 WHERE id = 6"]]);
        check(&[&[FILL], &["UPDATE t SET id = 500 WHERE id = 5", "DELETE FROM t WHERE id = 500"]]);
        check(&[
            &[FILL],
            &["UPDATE t SET id = 500 WHERE id = 5", "REPLACE INTO t (id, v) VALUES (500, 'new')"],
        ]);
        check(&[&["INSERT INTO r VALUES (1, 'a', 5)"], &["UPDATE r SET s = 'b'"]]);
        check(&[
            &[FILL],
            &["INSERT INTO t (id) VALUES (99)", "UPDATE t SET id = 98 WHERE id = 99"],
        ]);
    }

    #[test]
    fn what_fails_or_comes_to_nothing_leaves_nothing() {
        check(&[
            &[FILL],
            &[FILL],
            &["INSERT INTO t (id) VALUES (99)", "INSERT INTO nope VALUES (1)"],
        ]);
        check(&[&[FILL], &["DELETE FROM t WHERE id < 9", "UPDATE t SET id = 10"]]);
        check(&[&[FILL, "DELETE FROM t"], &["UPDATE t SET v = 1"]]);
        check(&[&[FILL], &["INSERT OR ROLLBACK INTO t (id) VALUES (1)"], &["DELETE FROM t"]]);
        let mut store = opened(How::Large);
        run(&mut store, &[FILL]).unwrap();
        let before = told(&store);
        // The caller is told no, and so is the group that is dropped.
        let mut group = store.group(NOW);
        group.sql(&[plain("DELETE FROM t")], None).unwrap();
        drop(group);
        assert_eq!(told(&store), before);
    }

    #[test]
    fn nothing_follows_a_large_transaction_in_its_group() {
        let mut store = opened(How::HeldLarge);
        let mut group = store.group(NOW);
        group.sql(&[plain(FILL)], None).unwrap();
        assert!(group.is_large());
        let refused = group.sql(&[plain("DELETE FROM t")], None).unwrap_err().to_string();
        assert!(refused.contains("nothing may share a commit"), "{refused}");
        assert_eq!(group.commit().unwrap().len(), 1);
        assert_eq!(crate::store::trial::rows(&store, "SELECT count(*) FROM t"), ["40"]);
    }

    #[test]
    fn tables_of_the_catalog_keep_their_limit() {
        let mut trial = Trial::new(T);
        force(&mut trial.store, How::Large);
        let service = format!("INSERT INTO services (node_id, id) VALUES ('{ME}', 'web')");
        let refused = trial.refuse(&[&service]);
        assert!(refused.contains("the most allowed are"), "{refused}");
        let refused = trial.refuse(&["INSERT INTO t (id) VALUES (1)", &service]);
        assert!(refused.contains("the most allowed are"), "{refused}");
        trial.write(&["INSERT INTO kv (key, value) VALUES ('a', x'00')"]);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
    }

    #[test]
    fn a_large_transaction_is_a_file_while_it_runs_and_nothing_afterwards() {
        let mut trial = Trial::new(T);
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 60000)
            INSERT INTO t (id, v) SELECT i, 'v' || i FROM n";
        let commit = trial.write(&[fill]);
        assert_eq!(commit.large(trial.store.origin()), Some(Version(1)));
        assert_eq!(commit.tables[0].rows, RowEvents::Many);
        assert!(!trial.config.data_dir.join("tribune.spill").exists());
        let before = trial.store.fingerprint().unwrap();
        let mut trial = trial.reopen();
        assert_eq!(trial.store.fingerprint().unwrap(), before);
        let mut peer = in_memory(YOU, T);
        assert!(catch_up(&mut peer, &trial.store, trial.store.origin(), 256 << 10).is_some());
        assert_eq!(peer.fingerprint().unwrap(), before);
        assert_eq!(crate::store::trial::rows(&peer, "SELECT count(*) FROM t"), ["60000"]);
        // A row that is too much for any frame is refused, alone or among others.
        let wide = "UPDATE t SET v = zeroblob(4194304), w = zeroblob(4194304) WHERE id < 3";
        let refused = trial.refuse(&[wide]);
        assert!(refused.contains("of one row"), "{refused}");
        let other = "UPDATE t SET v = zeroblob(3000000) WHERE id < 5";
        assert!(trial.write(&[other]).large(trial.store.origin()).is_some());
        while catch_up(&mut peer, &trial.store, trial.store.origin(), 256 << 10).is_some() {}
        assert_eq!(peer.fingerprint().unwrap(), trial.store.fingerprint().unwrap());
    }

    fn any_statement() -> impl Strategy<Value = String> {
        let id = || 1..12_i64;
        let value = || prop::sample::select(vec!["NULL", "'a'", "'b'", "1", "2.5", "x'00'"]);
        prop_oneof![
            (id(), value())
                .prop_map(|(id, v)| format!("REPLACE INTO t (id, v) VALUES ({id}, {v})")),
            (id(), value()).prop_map(|(id, v)| format!(
                "INSERT INTO t (id, w) VALUES ({id}, {v}) ON CONFLICT DO UPDATE SET w = excluded.w"
            )),
            (id(), value()).prop_map(|(id, v)| format!("UPDATE t SET v = {v} WHERE id > {id}")),
            id().prop_map(|id| format!("DELETE FROM t WHERE id = {id}")),
            (id(), id()).prop_map(|(from, to)| format!(
                "UPDATE OR REPLACE t SET id = {to} WHERE id = {from}"
            )),
            id().prop_map(|id| format!("UPDATE t SET id = id + {id} WHERE id > 5")),
            (id(), value()).prop_map(|(k, v)| format!("REPLACE INTO r VALUES ({k}, 's', {v})")),
            Just("DELETE FROM t".to_owned()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn random_transactions_come_to_the_same_in_memory_and_over_the_disk(
            transactions in prop::collection::vec(prop::collection::vec(any_statement(), 1..6), 1..6),
        ) {
            let transactions: Vec<Vec<&str>> = transactions
                .iter()
                .map(|statements| statements.iter().map(String::as_str).collect())
                .collect();
            let transactions: Vec<&[&str]> = transactions.iter().map(Vec::as_slice).collect();
            check(&transactions);
        }
    }
}
