//! Which rows each version wrote, so that what is left of an origin's versions is found again.
//!
//! A version names its rows once, when it is written. Whoever reads the log looks at each row's
//! clock, and passes over a row that has been overwritten since: nothing is looked up or removed
//! when that happens. Names that say nothing any more are swept away, a few for each row that is
//! overwritten, so that the log stays within a multiple of what is left.
//!
//! ```text
//! part = table*                               numbers are varints, as in a row's clock
//! table = table's number, how many keys, key*
//! key  = how many bytes it shares with the one before, how many more it has, these
//! ```
//!
//! Keys are sorted, so those of one commit cost a few bytes each. A part is self-contained, and
//! small enough to lie in one page with others.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::Type;
use tracing::warn;
use uuid::Uuid;

use super::clocks::{self, Place};
use super::origins::{Ordinal, Origins};
use super::tables::TableId;
use crate::crdt::record::{put_number, take_number};
use crate::crdt::storage::Bookmark;
use crate::crdt::{Key, Stamp};
use crate::types::{Version, Wall};

/// From this size on a part is full. SQLite moves what is larger than about a thousand bytes of an
/// entry to pages of its own.
const PART_BYTES: usize = 900;

/// How many rows must have been overwritten before a sweep is worth its while.
const SWEEP_WORTH: u64 = 512;

/// How many names a commit looks at beyond as many as it has left idle itself.
const SWEEP_MOST: u64 = 4_096;

const INSERT: &str = "INSERT OR IGNORE INTO __tribune_log (origin, version, part, at, rows)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const SELECT_LAST: &str = "SELECT part FROM __tribune_log WHERE origin = ?1 AND version = ?2
    ORDER BY part DESC LIMIT 1";
const DELETE_AFTER: &str = "DELETE FROM __tribune_log WHERE origin = ?1 AND version > ?2";
const SELECT_FROM: &str = "SELECT version, part, at, rows FROM __tribune_log
    WHERE origin = ?1 AND (version, part) >= (?2, ?3) AND version <= ?4 ORDER BY version, part";
const SELECT_NEXT: &str = "SELECT origin, version, part, rows FROM __tribune_log
    WHERE (origin, version, part) > (?1, ?2, ?3) ORDER BY origin, version, part LIMIT 64";
const SELECT_PARTS: &str = "SELECT version, part, rows FROM __tribune_log
    WHERE origin = ?1 AND (version, part) > (?2, ?3) AND version <= ?4
    ORDER BY version, part LIMIT 64";
const UPDATE: &str = "UPDATE __tribune_log SET rows = ?4
    WHERE origin = ?1 AND version = ?2 AND part = ?3";
const DELETE: &str = "DELETE FROM __tribune_log WHERE origin = ?1 AND version = ?2 AND part = ?3";

/// When the commits of stamps were made that are new in a transaction.
pub type Times = BTreeMap<Stamp, Wall>;

type Names = BTreeMap<Stamp, BTreeMap<TableId, Vec<Key>>>;

/// How many bytes of rows one part may name, unless a single row has more: whoever pulls gets at least
/// a part at a time, in one message.
const PART_ROWS_BYTES: usize = 1 << 20;

/// What a transaction adds to the log.
#[derive(Debug, Default)]
pub struct Entries {
    rows: Names,
    /// Those before them, which share no part with them.
    full: Vec<Names>,
    /// What the rows in `rows` weigh, where that is known.
    bytes: usize,
    /// How many names it leaves idle.
    overwritten: u64,
}

impl Entries {
    /// Notes that a row has a stamp that it did not have before.
    pub fn add(&mut self, stamp: Stamp, table: TableId, key: &Key) {
        self.rows.entry(stamp).or_default().entry(table).or_default().push(Arc::clone(key));
    }

    /// Says how many bytes the row has that is noted next.
    pub fn weigh(&mut self, bytes: usize) {
        if self.bytes > 0 && self.bytes + bytes > PART_ROWS_BYTES {
            self.full.push(std::mem::take(&mut self.rows));
            self.bytes = 0;
        }
        self.bytes += bytes;
    }

    /// Notes that a row has lost a stamp.
    pub fn overwrite(&mut self) {
        self.overwritten += 1;
    }

    /// Writes all of it. `times` says when a stamp's commit was made, where that is known.
    /// Returns how many names became idle.
    pub fn write(
        self,
        conn: &Connection,
        origins: &mut Origins,
        times: &Times,
    ) -> rusqlite::Result<u64> {
        let mut insert = conn.prepare_cached(INSERT)?;
        for (stamp, tables) in self.full.into_iter().chain([self.rows]).flatten() {
            let (ordinal, version) = (origins.ordinal(stamp.origin), stamp.version.0.cast_signed());
            let at = times.get(&stamp).map_or(0, |at| at.0.cast_signed());
            let mut writer = PartWriter::default();
            let mut parts = Vec::new();
            for (table, mut keys) in tables {
                keys.sort_unstable();
                parts.append(&mut writer.table(table, &keys));
            }
            parts.extend(Some(writer.bytes).filter(|bytes| !bytes.is_empty()));
            let mut next = 0;
            for part in parts {
                if insert.execute((ordinal, version, next, at, &part))? == 0 {
                    // A row brought along the stamp of its life, whose own version comes only now.
                    next = 1 + conn
                        .prepare_cached(SELECT_LAST)?
                        .query_row((ordinal, version), |row| row.get::<_, i64>(0))?;
                    insert.execute((ordinal, version, next, at, &part))?;
                }
                next += 1;
            }
        }
        Ok(self.overwritten)
    }
}

/// Writes names into parts.
#[derive(Debug, Default)]
struct PartWriter {
    bytes: Vec<u8>,
}

impl PartWriter {
    /// Adds sorted keys of a table. Returns the parts that became full.
    fn table(&mut self, table: TableId, keys: &[Key]) -> Vec<Vec<u8>> {
        let mut full = Vec::new();
        let mut left = keys;
        while !left.is_empty() {
            let room = PART_BYTES.saturating_sub(self.bytes.len());
            let mut names = Vec::new();
            let mut before: &[u8] = &[];
            let mut count = 0;
            for key in left {
                if names.len() >= room && count > 0 {
                    break;
                }
                put_key(&mut names, before, key);
                before = key;
                count += 1;
            }
            put_number(&mut self.bytes, u64::from(table));
            put_number(&mut self.bytes, count as u64);
            self.bytes.append(&mut names);
            left = &left[count..];
            if self.bytes.len() >= PART_BYTES {
                full.push(std::mem::take(&mut self.bytes));
            }
        }
        full
    }
}

fn put_key(bytes: &mut Vec<u8>, before: &[u8], key: &[u8]) {
    let shared = before.iter().zip(key).take_while(|(a, b)| a == b).count();
    put_number(bytes, shared as u64);
    put_number(bytes, (key.len() - shared) as u64);
    bytes.extend_from_slice(&key[shared..]);
}

/// Reads the names of a part.
pub fn names(part: &[u8]) -> rusqlite::Result<Vec<(TableId, Key)>> {
    read_names(part).ok_or_else(|| {
        let damage = "a part of the log of versions cannot be read";
        rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, damage.into())
    })
}

fn read_names(mut part: &[u8]) -> Option<Vec<(TableId, Key)>> {
    let mut names = Vec::new();
    while !part.is_empty() {
        let table = TableId::try_from(take_number(&mut part)?).ok()?;
        let count = take_number(&mut part)?;
        let mut key = Vec::new();
        for _ in 0..count {
            let shared = usize::try_from(take_number(&mut part)?).ok()?;
            let length = usize::try_from(take_number(&mut part)?).ok()?;
            if shared > key.len() {
                return None;
            }
            key.truncate(shared);
            let (more, rest) = part.split_at_checked(length)?;
            key.extend_from_slice(more);
            part = rest;
            names.push((table, Key::from(key.as_slice())));
        }
    }
    Some(names)
}

/// Calls `each` with every name of the origin's versions after `after`, up to `through`, in the
/// order of versions, as long as it says to go on: version, time of its commit, table, key.
pub fn visit(
    conn: &Connection,
    ordinal: Ordinal,
    (after, through): (Version, Version),
    mut each: impl FnMut(Version, Wall, TableId, Key) -> rusqlite::Result<bool>,
) -> rusqlite::Result<()> {
    visit_parts(conn, ordinal, (after.into(), through), |part| {
        for (table, key) in part.names {
            if !each(part.version, part.at, table, key)? {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// One part of a version.
pub struct LogPart {
    pub version: Version,
    pub part: u64,
    /// When the commit was made, if that is known.
    pub at: Wall,
    pub names: Vec<(TableId, Key)>,
}

/// As [`visit`], part by part, from a place within a version on.
pub fn visit_parts(
    conn: &Connection,
    ordinal: Ordinal,
    (from, through): (Bookmark, Version),
    mut each: impl FnMut(LogPart) -> rusqlite::Result<bool>,
) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(SELECT_FROM)?;
    let number = |number: u64| number.min(i64::MAX.unsigned_abs()).cast_signed();
    let first = (number(from.after.0.saturating_add(1)), number(from.part));
    let mut rows = statement.query((ordinal, first.0, first.1, number(through.0)))?;
    while let Some(row) = rows.next()? {
        let part = LogPart {
            version: Version(row.get::<_, i64>(0)?.cast_unsigned()),
            part: row.get::<_, i64>(1)?.cast_unsigned(),
            at: Wall(row.get::<_, i64>(2)?.cast_unsigned()),
            names: names(row.get_ref(3)?.as_blob()?)?,
        };
        if !each(part)? {
            return Ok(());
        }
    }
    Ok(())
}

/// A part of the log.
#[derive(Debug)]
pub struct Part {
    pub version: Version,
    pub number: i64,
    /// What [`names`] reads.
    pub rows: Vec<u8>,
}

/// Returns the next parts of an origin's log after a part of a version, up to the end of `through`.
/// None: there are no more.
pub fn parts(
    conn: &Connection,
    ordinal: Ordinal,
    (version, number): (Version, i64),
    through: Version,
) -> rusqlite::Result<Vec<Part>> {
    let mut statement = conn.prepare_cached(SELECT_PARTS)?;
    let place = (ordinal, version.0.cast_signed(), number, through.0.cast_signed());
    let parts = statement.query_map(place, |row| {
        let version = Version(row.get::<_, i64>(0)?.cast_unsigned());
        Ok(Part { version, number: row.get(1)?, rows: row.get(2)? })
    })?;
    parts.collect()
}

/// Forgets all versions of an origin after `after`. Nothing may be left of them.
pub fn forget_after(conn: &Connection, ordinal: Ordinal, after: Version) -> rusqlite::Result<()> {
    conn.prepare_cached(DELETE_AFTER)?.execute((ordinal, after.0.cast_signed()))?;
    Ok(())
}

/// Goes round the log, again and again, and looks at a name for each row that is overwritten. So the
/// log has as many idle names as others, when it has grown as far as it does.
#[derive(Debug, Default)]
pub struct Sweeper {
    /// How many names were left idle and not made up for.
    owed: u64,
    /// Those of them that came since the last run.
    fresh: u64,
    /// The part that was looked at last.
    place: (Ordinal, i64, i64),
}

impl Sweeper {
    /// Begins somewhere in the log: whoever always began at its start, and was restarted daily, would
    /// never come to its end.
    pub fn new(origins: &Origins) -> Self {
        let (chance, number) = Uuid::new_v4().as_u64_pair();
        let heads = origins.heads();
        let place = usize::try_from(chance).ok().and_then(|at| at.checked_rem(heads.len()));
        let place = place.map(|place| {
            let (origin, head) = heads[place];
            let version = number % head.0.max(1);
            (origins.number_of(origin).unwrap_or(0), version.cast_signed(), 0)
        });
        Self { place: place.unwrap_or_default(), ..Self::default() }
    }

    /// Notes that so many names became idle.
    pub fn owe(&mut self, overwritten: u64) {
        self.owed = self.owed.saturating_add(overwritten);
        self.fresh = self.fresh.saturating_add(overwritten);
    }

    /// Leaves what became idle just now to later runs: it is too much for one commit.
    pub fn put_off(&mut self) {
        self.fresh = 0;
    }

    /// Tells whether there is enough to do for a sweep to be worth its while.
    pub fn is_due(&self) -> bool {
        self.owed >= SWEEP_WORTH
    }

    /// Sweeps, if there is enough to do. Call it within a transaction that is committed anyway.
    pub fn run(&mut self, conn: &Connection, origins: &Origins) -> rusqlite::Result<()> {
        let fresh = std::mem::take(&mut self.fresh);
        if !self.is_due() {
            return Ok(());
        }
        let mut left = self.owed.min(SWEEP_MOST.max(fresh));
        self.owed -= left;
        let mut ends = 0;
        while left > 0 && ends < 2 {
            match self.sweep(conn, origins, left)? {
                Some(seen) => left = left.saturating_sub(seen),
                // The end of the log: from the beginning again, but not more than once round.
                None => {
                    self.place = (0, 0, 0);
                    ends += 1;
                }
            }
        }
        Ok(())
    }

    /// Looks at a few parts. Returns how many names they had; `None`: there are no more.
    fn sweep(
        &mut self,
        conn: &Connection,
        origins: &Origins,
        most: u64,
    ) -> rusqlite::Result<Option<u64>> {
        let mut statement = conn.prepare_cached(SELECT_NEXT)?;
        let mut rows = statement.query(self.place)?;
        let mut parts = Vec::new();
        let mut seen = 0;
        let mut last = None;
        while seen < most
            && let Some(row) = rows.next()?
        {
            let place = (row.get(0)?, row.get(1)?, row.get(2)?);
            last = Some(place);
            match names(row.get_ref(3)?.as_blob()?) {
                Ok(names) => {
                    seen += names.len() as u64;
                    parts.push((place, names));
                }
                Err(error) => warn_of(&error),
            }
        }
        drop(rows);
        let Some(last) = last else { return Ok(None) };
        self.place = last;
        for (place, names) in parts {
            match sweep_part(conn, origins, place, names) {
                Err(error @ rusqlite::Error::FromSqlConversionFailure(..)) => warn_of(&error),
                swept => swept?,
            }
        }
        Ok(Some(seen.max(1)))
    }
}

/// Whoever writes now is not to blame for it, and nothing is lost by going on.
fn warn_of(error: &rusqlite::Error) {
    warn!(%error, "The log of versions could not be swept; run `tribune doctor`");
}

fn sweep_part(
    conn: &Connection,
    origins: &Origins,
    (ordinal, version, part): (Ordinal, i64, i64),
    names: Vec<(TableId, Key)>,
) -> rusqlite::Result<()> {
    let Some(origin) = origins.of_number(ordinal) else { return Ok(()) };
    let stamp = Stamp { origin, version: Version(version.cast_unsigned()) };
    let count = names.len();
    let mut kept = Vec::new();
    for (table, key) in names {
        if is_left(conn, origins, stamp, (table, &key))? {
            kept.push((table, key));
        }
    }
    if kept.len() == count {
        return Ok(());
    }
    rewrite(conn, (ordinal, stamp.version, part), kept)
}

/// Keeps some of a part's names, in their order.
pub fn rewrite(
    conn: &Connection,
    (ordinal, version, part): (Ordinal, Version, i64),
    kept: Vec<(TableId, Key)>,
) -> rusqlite::Result<()> {
    let version = version.0.cast_signed();
    if kept.is_empty() {
        conn.prepare_cached(DELETE)?.execute((ordinal, version, part))?;
        return Ok(());
    }
    let mut left: BTreeMap<TableId, Vec<Key>> = BTreeMap::new();
    for (table, key) in kept {
        left.entry(table).or_default().push(key);
    }
    let mut writer = PartWriter::default();
    for (table, keys) in left {
        // Fewer names than were in the part: they may fill it, but never go beyond.
        let full = writer.table(table, &keys);
        writer.bytes = [full.concat(), std::mem::take(&mut writer.bytes)].concat();
    }
    conn.prepare_cached(UPDATE)?.execute((ordinal, version, part, writer.bytes))?;
    Ok(())
}

/// Tells whether anything of a version is left in a row.
pub fn is_left(
    conn: &Connection,
    origins: &Origins,
    stamp: Stamp,
    (table, key): Place<'_>,
) -> rusqlite::Result<bool> {
    let clock = clocks::read(conn, origins, table, key)?;
    Ok(clock.is_some_and(|clock| clock.has_stamp(stamp)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::Storage;
    use crate::store::trial::{T, Trial};

    fn key(bytes: &[u8]) -> Key {
        bytes.into()
    }

    fn parts_of(tables: &BTreeMap<TableId, Vec<Key>>) -> Vec<Vec<u8>> {
        let mut writer = PartWriter::default();
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for (table, keys) in tables {
            parts.extend(writer.table(*table, keys));
        }
        parts.extend(Some(writer.bytes).filter(|bytes| !bytes.is_empty()));
        parts
    }

    proptest! {
        #[test]
        fn names_survive_their_parts(
            tables in prop::collection::btree_map(
                0..300_u32,
                prop::collection::btree_set(prop::collection::vec(0..4_u8, 0..200), 1..60),
                0..4,
            ),
        ) {
            let tables: BTreeMap<TableId, Vec<Key>> = tables
                .into_iter()
                .map(|(table, keys)| (table, keys.iter().map(|bytes| key(bytes)).collect()))
                .collect();
            let parts = parts_of(&tables);
            let read: Vec<_> = parts.iter().flat_map(|part| names(part).unwrap()).collect();
            let written: Vec<_> = tables
                .iter()
                .flat_map(|(table, keys)| keys.iter().map(|key| (*table, key.clone())))
                .collect();
            prop_assert_eq!(read, written);
            prop_assert!(parts.iter().all(|part| part.len() < PART_BYTES + 210));
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = names(&bytes);
        }
    }

    #[test]
    fn neighbouring_keys_cost_few_bytes() {
        let keys: Vec<Key> =
            (0..1_000_i64).map(|n| crate::crdt::pack::pack(&[n.into()]).unwrap()).collect();
        let bytes: usize = parts_of(&[(1, keys)].into()).iter().map(Vec::len).sum();
        assert!(bytes < 3_200, "{bytes}");
    }

    fn named(trial: &Trial) -> usize {
        let mut statement = trial.store.conn.prepare("SELECT rows FROM __tribune_log").unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut count = 0;
        while let Some(row) = rows.next().unwrap() {
            count += names(row.get_ref(0).unwrap().as_blob().unwrap()).unwrap().len();
        }
        count
    }

    #[test]
    fn the_log_stays_within_a_multiple_of_what_is_left() {
        let mut trial = Trial::new(T);
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300)
            INSERT INTO t (id, v) SELECT i, 0 FROM n";
        trial.write(&[fill]);
        // One cell of each row stays under its first version.
        for round in 1..40 {
            trial.write(&[&format!("UPDATE t SET v = {round} WHERE id % 3 < 2")]);
            trial.write(&[&format!("UPDATE t SET v = {round} WHERE id = 2")]);
        }
        let left = 300 + 200 + 1;
        let held = named(&trial);
        assert!(held < 3 * left + SWEEP_WORTH as usize, "{held} names for {left}");
        // Nothing that counts was swept away.
        let me = trial.store.origin();
        let all = trial.store.load(me, Version(0), usize::MAX).unwrap().piece;
        let rows: usize =
            all.changesets.iter().flat_map(|set| &set.tables).map(|table| table.rows.len()).sum();
        assert!(rows >= left, "{rows}");
        let mut other = crate::store::trial::in_memory(crate::types::NodeId([0x22; 16]), T);
        other.apply(crate::store::trial::NOW, &crate::crdt::Batch { pieces: vec![all] }).unwrap();
        assert_eq!(
            other.inspect("t", &[3.into()]).unwrap(),
            trial.store.inspect("t", &[3.into()]).unwrap()
        );
        // What is deleted leaves one name a row, and that is all.
        trial.write(&["DELETE FROM t"]);
        for _ in 0..40 {
            trial.write(&["INSERT INTO t (id) VALUES (1)"]);
            trial.write(&["DELETE FROM t"]);
        }
        let held = named(&trial);
        assert!(held < 3 * 300 + 2 * SWEEP_WORTH as usize, "{held}");
        // What commits were too small for is made up for while nobody waits.
        trial.store.sweeper.owe(100_000);
        trial.store.maintain().unwrap();
        assert!(!trial.store.sweeper.is_due());
        assert!(named(&trial) < 400);
    }

    #[test]
    fn a_part_that_cannot_be_read_stops_neither_commits_nor_the_sweep() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 0)"]);
        let spoil = "UPDATE __tribune_log SET rows = x'ff' WHERE version = 1";
        trial.store.conn.execute(spoil, []).unwrap();
        for round in 1..2_000 {
            trial.write(&[&format!("UPDATE t SET v = {round}")]);
        }
        let parts = trial.rows("SELECT count(*) FROM __tribune_log");
        assert!(parts[0].parse::<usize>().unwrap() < 2_000, "{parts:?}");
    }
}
