//! A node of a history: its store, in memory or in files, and what can happen to either. In files
//! a kill leaves what was written, and a power cut a part of the log.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::twins::{copy, fresh};
use crate::crdt::Storage;
use crate::store::life::{BOOTS, LIFE_FILE, MILLISECONDS};
use crate::store::open::{DATABASE_FILE, wal_path};
use crate::store::schema::fixed_sources;
use crate::store::values::{quote, show};
use crate::store::{OpenConfig, Store};
use crate::types::{Epoch, NodeId, Origin, Version};

/// A moment after this program was written, at which each history begins.
const BEGINNING: u64 = 1_800_000_000_000;

/// Where files are quick to write and to sync, if there is such a place.
const IN_MEMORY: &str = "/dev/shm";

/// The log's header, and a frame of it: a header and a page.
const HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24 + 4_096;

/// Sets the clock to where each history begins.
pub(super) fn begin_history() {
    MILLISECONDS.set(Some(BEGINNING));
}

/// Nobody starts, or begins an epoch, twice in one millisecond.
pub(super) fn pass_a_millisecond() {
    MILLISECONDS.set(MILLISECONDS.get().map(|now| now + 1));
}

/// A node's machine.
pub(super) struct Machine {
    pub node: NodeId,
    /// There is always one, but within the methods that exchange it.
    store: Option<Store>,
    files: Option<Files>,
    image: Option<Image>,
}

struct Files {
    home: TempDir,
    config: OpenConfig,
    /// How many data directories there were.
    directories: u32,
    /// How often the machine was started.
    boots: u64,
    /// What the files show that end where one of these says, earliest first.
    states: Vec<State>,
    /// How long the log was when the last commit was acknowledged.
    acknowledged: usize,
}

/// What a store showed when its log had come so far.
#[derive(Clone)]
struct State {
    log_bytes: usize,
    heads: BTreeMap<Origin, Version>,
    rows: Vec<String>,
}

enum Image {
    Memory(Box<Store>),
    Files(Pages),
}

/// A data directory's files.
#[derive(Clone)]
struct Pages {
    database: Vec<u8>,
    log: Vec<u8>,
    life: Vec<u8>,
}

/// How a node's process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    /// Killed: the kernel holds what was written.
    Kill,
    /// The power fails somewhere in what was not acknowledged: of the log so much is left, in
    /// parts of 1,000 of the bytes in doubt.
    Power { left: usize },
    /// As before, but anything of the log may be missing: the disk did not keep its word.
    Lie { left: usize },
}

impl Machine {
    pub fn new(node: NodeId, in_files: bool) -> Self {
        if !in_files {
            return Self { node, store: Some(in_memory(node)), files: None, image: None };
        }
        let place = Path::new(IN_MEMORY);
        let home = if place.is_dir() {
            tempfile::tempdir_in(place).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let config = OpenConfig {
            data_dir: home.path().join("0"),
            node: Some(node),
            name: "history".to_owned(),
            ..OpenConfig::default()
        };
        let files =
            Files { home, config, directories: 1, boots: 1, states: Vec::new(), acknowledged: 0 };
        let mut machine = Self { node, store: None, files: Some(files), image: None };
        machine.open();
        machine.forget_log();
        machine
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    pub fn store_mut(&mut self) -> &mut Store {
        self.store.as_mut().expect("it is open")
    }

    pub fn is_in_files(&self) -> bool {
        self.files.is_some()
    }

    /// Notes what a loss of power after this moment must leave: call it after each commit.
    pub fn acknowledge(&mut self) {
        self.note();
        if let Some(files) = &mut self.files {
            files.acknowledged = files.states.last().map_or(0, |state| state.log_bytes);
        }
    }

    /// Notes what a loss of power may leave.
    pub fn note(&mut self) {
        let Some(files) = &self.files else { return };
        let log = wal_path(&files.config.data_dir.join(DATABASE_FILE));
        let log_bytes = fs::metadata(log).map_or(0, |log| log.len());
        let state = self.state(usize::try_from(log_bytes).unwrap());
        self.files.as_mut().expect("it is in files").states.push(state);
    }

    /// Folds the log into the database: nothing of it can be lost any more.
    pub fn forget_log(&mut self) {
        if self.files.is_some() {
            self.store_mut().checkpoint().unwrap();
        }
        let state = self.state(0);
        if let Some(files) = &mut self.files {
            (files.states, files.acknowledged) = (vec![state], 0);
        }
    }

    fn state(&self, log_bytes: usize) -> State {
        let heads = self.store().heads().unwrap().into_iter().collect();
        State { log_bytes, heads, rows: rows(self.store()) }
    }

    /// The process ends in order, and begins again.
    pub fn restart(&mut self) {
        let before = self.state(0);
        let origin = self.store().origin();
        if self.files.is_some() {
            drop(self.store.take());
            self.open();
        } else {
            self.store = Some(copy(self.store()));
        }
        assert_eq!(self.store().origin(), origin, "it goes on as it was");
        self.holds(&before);
        if let Some(files) = &mut self.files {
            (files.states, files.acknowledged) = (vec![before], 0);
        }
        self.acknowledge();
    }

    /// The process ends otherwise, and begins again with what is left.
    pub fn cut(&mut self, cut: Cut) {
        let files = self.files.as_ref().expect("only files can be cut");
        let (directory, states) = (files.config.data_dir.clone(), files.states.clone());
        let pages = Pages::read(&directory);
        let whole = pages.log.len();
        let part = |from: usize, left: usize| {
            let until = from + (whole - from) * left.min(1_000) / 1_000;
            let in_frame = until.saturating_sub(HEADER_BYTES) % FRAME_BYTES;
            // Every other one is where a frame ends.
            if left.is_multiple_of(2) { until.saturating_sub(in_frame).max(from) } else { until }
        };
        let until = match cut {
            Cut::Kill => whole,
            Cut::Power { left } => part(files.acknowledged, left),
            Cut::Lie { left } => part(0, left),
        };
        let before = states.iter().rev().find(|state| state.log_bytes <= until);
        let before = before.expect("the first is of an empty log").clone();
        let origin = self.store().origin();
        drop(self.store.take());
        pages.write(&directory, until);
        if cut != Cut::Kill {
            self.files.as_mut().expect("it is in files").boots += 1;
        }
        self.open();
        // A log that a checkpoint emptied looks like one that somebody else removed.
        let counts_on = cut == Cut::Kill && whole > 0;
        assert_eq!(self.store().origin() == origin, counts_on, "{cut:?} at {until} of {whole}");
        self.holds(&before);
        self.forget_log();
    }

    /// Checks that a store shows what it showed before, and knows as much.
    fn holds(&self, before: &State) {
        let mut now = self.state(0);
        // What was written again at the start stands under the new origin.
        if !before.heads.contains_key(&self.store().origin()) {
            now.heads.remove(&self.store().origin());
        }
        assert_eq!(now.heads, before.heads, "the heads after a start");
        assert_eq!(now.rows, before.rows, "the rows after a start");
    }

    /// Puts a copy of the disk away.
    pub fn make_image(&mut self) {
        self.image = Some(match &self.files {
            None => Image::Memory(Box::new(copy(self.store()))),
            Some(files) => Image::Files(Pages::read(&files.config.data_dir)),
        });
    }

    pub fn has_image(&self) -> bool {
        self.image.is_some()
    }

    /// Goes on with the copy that was put away. `is_noticed`: it is where it was not before, as
    /// after a restore, so that the store begins a new epoch by itself; otherwise only peers can
    /// tell. `above`: no epoch of this node that anybody has heard of is greater.
    pub fn set_back(&mut self, is_noticed: bool, above: Epoch) {
        match self.image.take() {
            None => {}
            Some(Image::Memory(image)) => self.store = Some(copy(&image)),
            Some(Image::Files(pages)) => {
                drop(self.store.take());
                if is_noticed {
                    self.move_on();
                }
                let files = self.files.as_ref().expect("it is in files");
                let until = pages.log.len();
                pages.write(&files.config.data_dir, until);
                self.open();
                let origin = self.store().origin();
                assert!(!is_noticed || origin.epoch > above, "{origin} after a restore");
                self.forget_log();
            }
        }
    }

    /// Goes on with an empty disk.
    pub fn wipe(&mut self, above: Epoch) {
        if self.files.is_none() {
            self.store = Some(in_memory(self.node));
            return;
        }
        drop(self.store.take());
        self.move_on();
        self.open();
        assert!(self.store().origin().epoch > above, "{} is no new name", self.store().origin());
        self.forget_log();
    }

    /// Takes another data directory.
    fn move_on(&mut self) {
        let files = self.files.as_mut().expect("it is in files");
        // Kept until the end, so that nothing gets its inode.
        files.config.data_dir = files.home.path().join(files.directories.to_string());
        files.directories += 1;
        fs::create_dir(&files.config.data_dir).unwrap();
    }

    fn open(&mut self) {
        pass_a_millisecond();
        let files = self.files.as_ref().expect("it is in files");
        BOOTS.set(files.boots);
        self.store = Some(Store::open(&files.config).unwrap());
    }
}

impl Pages {
    fn read(directory: &Path) -> Self {
        let database = directory.join(DATABASE_FILE);
        Self {
            log: fs::read(wal_path(&database)).unwrap_or_default(),
            database: fs::read(database).unwrap(),
            life: fs::read(directory.join(LIFE_FILE)).unwrap(),
        }
    }

    /// Puts the files where they were, or where none are, with so much of the log.
    fn write(&self, directory: &Path, log_bytes: usize) {
        let database = directory.join(DATABASE_FILE);
        fs::write(&database, &self.database).unwrap();
        fs::write(wal_path(&database), &self.log[..log_bytes]).unwrap();
        fs::write(directory.join(LIFE_FILE), &self.life).unwrap();
        let _ = fs::remove_file(directory.join("tribune.db-shm"));
    }
}

fn in_memory(node: NodeId) -> Store {
    fresh(node, fixed_sources())
}

/// All rows of all tables that are not the store's own, a line each.
pub(super) fn rows(store: &Store) -> Vec<String> {
    let mut lines = Vec::new();
    for table in tables(store) {
        let found = query(store, &format!("SELECT * FROM {}", quote(&table)));
        lines.extend(found.into_iter().map(|row| format!("{table}: {row}")));
    }
    lines.sort();
    lines
}

/// What SQLite says of those tables and of their indexes.
pub(super) fn shapes(store: &Store) -> Vec<String> {
    // A column without a definition that was added in place is followed by a blank.
    let sql = "SELECT type, name, tbl_name, replace(sql, ' ,', ',') FROM sqlite_schema
         WHERE type IN ('table', 'index') AND tbl_name NOT LIKE '\\_\\_tribune%' ESCAPE '\\'
         ORDER BY type, name";
    let shapes = query(store, sql);
    shapes.into_iter().map(|shape| shape.replace(" )", ")")).collect()
}

/// The names of those tables.
fn tables(store: &Store) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table'
        AND name NOT LIKE '\\_\\_tribune%' ESCAPE '\\' AND name NOT LIKE 'sqlite%' ORDER BY name";
    let mut statement = store.conn.prepare_cached(sql).unwrap();
    let names = statement.query_map([], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

/// The columns of a table, each with whether it belongs to the key.
pub(super) fn columns(store: &Store, table: &str) -> Vec<(String, bool)> {
    let sql = format!("SELECT name, pk > 0 FROM pragma_table_info('{table}')");
    let mut statement = store.conn.prepare(&sql).unwrap();
    let columns = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    columns.map(Result::unwrap).collect()
}

fn query(store: &Store, sql: &str) -> Vec<String> {
    let mut statement = store.conn.prepare(sql).unwrap();
    let width = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values = (0..width).map(|at| show(row.get_ref(at).unwrap()).to_string());
        Ok(values.collect::<Vec<_>>().join(" "))
    });
    rows.unwrap().map(Result::unwrap).collect()
}
