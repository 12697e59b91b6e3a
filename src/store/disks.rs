//! The store as the disk of simulated nodes: in memory, or in files whose process is killed in the
//! midst of its work and which are copied and put back.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::open::{DATABASE_FILE, wal_path};
use super::schema::{Source, literal};
use super::values::quote;
use super::{OpenConfig, Store, life::LIFE_FILE};
use crate::crdt::content::{Look, Mend, Mended, Sight};
use crate::crdt::storage::{
    Begun, Bookmark, Collected, Extract, Floor, Inspected, Past, Settled, StorageError, Tidied,
    Tidy,
};
use crate::crdt::{Batch, Commit, Definition, Key, Part, Piece, RowOp, Staging, Storage};
use crate::sim::medium::{Media, Medium, Torn, Work};
use crate::types::{Epoch, NodeId, Origin, Value, Version, Wall};

/// Databases in memory. A node that starts again reads everything back from a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SqliteInMemory;

/// Databases in files, each in a directory of its own that goes when nobody needs it any more.
#[derive(Debug)]
pub struct SqliteInFiles {
    root: PathBuf,
    directories: usize,
}

impl SqliteInFiles {
    /// Makes the directories within `root`, which is there.
    pub fn within(root: &Path) -> Self {
        Self { root: root.to_owned(), directories: 0 }
    }
}

impl Media for SqliteInMemory {
    fn create(
        &mut self,
        origin: Origin,
        definitions: &[Definition],
    ) -> Result<Box<dyn Medium>, String> {
        let config = config_of(origin, PathBuf::new());
        let sources: Vec<Source> = definitions.iter().map(source).collect();
        let store = Store::in_memory(&config, &sources).map_err(words)?;
        let state = State::Open(Box::new(store));
        Ok(Box::new(SqliteDisk { config, home: None, state, tables: sources }))
    }
}

impl Media for SqliteInFiles {
    fn create(
        &mut self,
        origin: Origin,
        definitions: &[Definition],
    ) -> Result<Box<dyn Medium>, String> {
        let home = Home(self.root.join(self.directories.to_string()));
        self.directories += 1;
        let config = config_of(origin, home.0.clone());
        let tables: Vec<Source> = definitions.iter().map(source).collect();
        let store = Store::open_with(&config, &tables).map_err(words)?;
        let (home, state) = (Some(Rc::new(home)), State::Open(Box::new(store)));
        Ok(Box::new(SqliteDisk { config, home, state, tables }))
    }
}

/// A directory that is removed in the end.
#[derive(Debug)]
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        // Whoever made the root removes what is left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A node's database.
#[derive(Debug)]
struct SqliteDisk {
    config: OpenConfig,
    /// `None`: it is in memory.
    home: Option<Rc<Home>>,
    state: State,
    /// The tables that it has.
    tables: Vec<Source>,
}

#[derive(Debug)]
enum State {
    Open(Box<Store>),
    /// As files were at a moment.
    Still(Pages),
    /// Between two processes.
    Nobodys,
}

/// A data directory's files.
#[derive(Clone, Debug)]
struct Pages {
    database: Vec<u8>,
    log: Vec<u8>,
    life: Vec<u8>,
}

impl Pages {
    fn read(directory: &Path) -> std::io::Result<Self> {
        let database = directory.join(DATABASE_FILE);
        Ok(Self {
            log: fs::read(wal_path(&database))?,
            database: fs::read(database)?,
            life: fs::read(directory.join(LIFE_FILE))?,
        })
    }

    /// Writes into the files that are there, which so keep their names for the system, with so much
    /// of the log.
    fn write(&self, directory: &Path, log_bytes: usize) -> std::io::Result<()> {
        let database = directory.join(DATABASE_FILE);
        fs::write(&database, &self.database)?;
        fs::write(wal_path(&database), &self.log[..log_bytes])?;
        fs::write(directory.join(LIFE_FILE), &self.life)?;
        match fs::remove_file(super::backup::shm_path(&database)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl SqliteDisk {
    fn store(&self) -> &Store {
        match &self.state {
            State::Open(store) => store,
            State::Still(_) | State::Nobodys => unreachable!("a copy is opened before it is used"),
        }
    }

    fn store_mut(&mut self) -> &mut Store {
        match &mut self.state {
            State::Open(store) => store,
            State::Still(_) | State::Nobodys => unreachable!("a copy is opened before it is used"),
        }
    }

    /// Kills the process that has the files open. Returns the files, and how much of the log is left.
    fn kill(&mut self, torn: Option<&Torn>) -> Result<(Pages, usize), String> {
        let log = wal_path(&self.config.data_dir.join(DATABASE_FILE));
        let acknowledged = fs::metadata(&log).map_err(words)?.len();
        let acknowledged = usize::try_from(acknowledged).map_err(words)?;
        if let Some(torn) = torn {
            // Whether it would have succeeded is nobody's business any more.
            let _ = match &torn.work {
                Work::Commit(ops) => self.store_mut().commit(Wall(0), ops).map(drop),
                Work::Apply(batch) => self.store_mut().apply(Wall(0), batch).map(drop),
            };
        }
        let pages = Pages::read(&self.config.data_dir).map_err(words)?;
        let torn_bytes = pages.log.len().saturating_sub(acknowledged);
        let left = torn.map_or(0, |torn| (torn_bytes * usize::from(torn.left)) >> 16);
        Ok((pages, acknowledged + left))
    }

    fn open_files(&mut self, torn: Option<&Torn>) -> Result<(), String> {
        let before = match &self.state {
            State::Open(store) => Some((store.origin(), store.heads(), store.fingerprint())),
            State::Still(_) | State::Nobodys => None,
        };
        let (pages, log_bytes) = match &self.state {
            State::Open(_) => self.kill(torn)?,
            State::Still(pages) => (pages.clone(), pages.log.len()),
            State::Nobodys => return Err("its files could not be opened before".to_owned()),
        };
        // The store that was killed closes in order here; what it does to the files is undone.
        self.state = State::Nobodys;
        pages.write(&self.config.data_dir, log_bytes).map_err(words)?;
        let store = Store::open_with(&self.config, &self.tables).map_err(words)?;
        let after = (store.origin(), store.heads(), store.fingerprint());
        if before.as_ref().is_some_and(|before| *before != after) {
            return Err(format!("a kill changes what is there: {before:?}, then {after:?}"));
        }
        self.state = State::Open(Box::new(store));
        Ok(())
    }

    /// What is there of each row, by origins.
    fn rows(&self) -> Result<BTreeMap<(String, Key), Vec<String>>, StorageError> {
        let mut rows: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for (origin, _) in self.heads()? {
            let piece = self.store().load(origin, Version(0), usize::MAX)?.piece;
            let tables = piece.changesets.iter().flat_map(|changeset| &changeset.tables);
            for (table, row) in tables.flat_map(|t| t.rows.iter().map(move |row| (t, row))) {
                let place = (table.table.to_string(), row.key.clone());
                rows.entry(place).or_default().push(format!("{row:?}"));
            }
        }
        Ok(rows)
    }
}

impl Medium for SqliteDisk {
    fn load_from(
        &self,
        origin: Origin,
        from: Bookmark,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        self.store().load(origin, from, bytes_max)
    }

    fn restart(&mut self, torn: Option<&Torn>) -> Result<(), String> {
        if self.home.is_some() {
            return self.open_files(torn);
        }
        let copy = self.store().copy_in_memory(&self.config).map_err(words)?;
        self.state = State::Open(Box::new(copy));
        Ok(())
    }

    fn copy(&self) -> Result<Box<dyn Medium>, String> {
        let state = match (&self.state, &self.home) {
            (State::Open(_), Some(home)) => State::Still(Pages::read(&home.0).map_err(words)?),
            (State::Still(pages), _) => State::Still(pages.clone()),
            (State::Open(store), None) => {
                State::Open(Box::new(store.copy_in_memory(&self.config).map_err(words)?))
            }
            (State::Nobodys, _) => return Err("its files could not be opened before".to_owned()),
        };
        let (config, home) = (self.config.clone(), self.home.clone());
        Ok(Box::new(Self { config, home, state, tables: self.tables.clone() }))
    }

    fn difference(&self, other: &dyn Medium) -> Option<String> {
        let other: &Self = other.as_any().downcast_ref()?;
        let (ours, theirs) = (self.rows().ok()?, other.rows().ok()?);
        let places = ours.keys().chain(theirs.keys());
        let place = places.into_iter().find(|place| ours.get(*place) != theirs.get(*place))?;
        Some(format!("{place:?}: {:?} and {:?}", ours.get(place), theirs.get(place)))
    }

    fn fault(&self) -> Option<String> {
        match &self.state {
            State::Open(store) => store.fault().map(str::to_owned),
            State::Still(_) | State::Nobodys => None,
        }
    }

    /// The rows whose keys share an entry of the log: some 64 small ones.
    fn part_bytes(&self) -> usize {
        4_000
    }

    fn define(&mut self, now: Wall, definition: &Definition) -> Result<(), String> {
        let source = source(definition);
        let sources = std::slice::from_ref(&source);
        self.store_mut().apply_schema(now, sources).map_err(words)?;
        if !self.tables.contains(&source) {
            self.tables.push(source);
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Storage for SqliteDisk {
    fn origin(&self) -> Origin {
        self.store().origin()
    }

    fn commit(&mut self, now: Wall, ops: &[RowOp]) -> Result<Option<Commit>, StorageError> {
        self.store_mut().commit(now, ops)
    }

    fn apply(&mut self, now: Wall, batch: &Batch) -> Result<Commit, StorageError> {
        self.store_mut().apply(now, batch)
    }

    fn load(
        &self,
        origin: Origin,
        from: impl Into<Bookmark>,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        self.store().load(origin, from, bytes_max)
    }

    fn stage(&mut self, staging: Staging, parts: &[Part]) -> Result<(), StorageError> {
        self.store_mut().stage(staging, parts)
    }

    fn apply_staged(
        &mut self,
        now: Wall,
        staging: Staging,
        last: &Piece,
    ) -> Result<Commit, StorageError> {
        self.store_mut().apply_staged(now, staging, last)
    }

    fn unstage(&mut self, staging: Staging) -> Result<(), StorageError> {
        self.store_mut().unstage(staging)
    }

    fn heads(&self) -> Result<Vec<(Origin, Version)>, StorageError> {
        self.store().heads()
    }

    fn begin_epoch(&mut self, now: Wall, above: Epoch) -> Result<Begun, StorageError> {
        self.store_mut().begin_epoch(now, above)
    }

    fn withdraw(&mut self, now: Wall) -> Result<Vec<Commit>, StorageError> {
        Storage::withdraw(self.store_mut(), now)
    }

    fn fingerprint(&self) -> Result<u64, StorageError> {
        self.store().fingerprint()
    }

    fn floor(&self) -> Result<Floor, StorageError> {
        self.store().floor()
    }

    fn tombstones(&self) -> Result<u64, StorageError> {
        self.store().tombstones()
    }

    fn meet(
        &mut self,
        members: &[(NodeId, Epoch)],
        forgotten: &[(NodeId, Epoch)],
    ) -> Result<(), StorageError> {
        Storage::meet(self.store_mut(), members, forgotten)
    }

    fn collect(
        &mut self,
        heads: &[(Origin, Version)],
        forgotten: &[(NodeId, Epoch)],
        rows_max: usize,
    ) -> Result<Collected, StorageError> {
        self.store_mut().collect(heads, forgotten, rows_max)
    }

    fn rejoin(
        &mut self,
        now: Wall,
        held: &[(Origin, Version)],
        length: u64,
    ) -> Result<Begun, StorageError> {
        self.store_mut().rejoin(now, held, length)
    }

    fn settle(&mut self, now: Wall, past: &Past) -> Result<Settled, StorageError> {
        Storage::settle(self.store_mut(), now, past)
    }

    fn depart(
        &mut self,
        now: Wall,
        under: Origin,
        held: &[(Origin, Version)],
    ) -> Result<Vec<Commit>, StorageError> {
        Storage::depart(self.store_mut(), now, under, held)
    }

    fn tidy(&mut self, tidy: &Tidy) -> Result<Tidied, StorageError> {
        Storage::tidy(self.store_mut(), tidy)
    }

    fn inspect(&self, table: &str, key: &[Value]) -> Result<Option<Inspected>, StorageError> {
        self.store().inspect(table, key)
    }

    fn refusals(&self) -> u64 {
        self.store().refusals()
    }

    fn look(&self, look: &Look) -> Result<Sight, StorageError> {
        self.store().look(look)
    }

    fn mend(&mut self, now: Wall, mend: &Mend) -> Result<Mended, StorageError> {
        self.store_mut().mend(now, mend)
    }

    fn recount(&mut self) -> Result<(), StorageError> {
        self.store_mut().recount()
    }
}

/// How the database of a simulated node is opened: its epochs are not those of the machine's clock.
fn config_of(origin: Origin, data_dir: PathBuf) -> OpenConfig {
    OpenConfig {
        data_dir,
        node: Some(origin.node),
        name: "simulated".to_owned(),
        scope: origin.scope,
        first_epoch: Some(origin.epoch),
        ..OpenConfig::default()
    }
}

/// Writes a definition as SQL.
fn source(definition: &Definition) -> Source {
    let info = definition.info();
    let columns = info.columns.iter().enumerate().zip(definition.defaults());
    let columns = columns.map(|((place, name), default)| {
        let rule = match info.key.contains(&place) {
            true => "NOT NULL".to_owned(),
            false => format!("DEFAULT {}", literal(default)),
        };
        format!("{} {rule}", quote(name))
    });
    let key: Vec<String> = info.key.iter().map(|place| quote(&info.columns[*place])).collect();
    let parts: Vec<String> = columns.chain([format!("PRIMARY KEY ({})", key.join(", "))]).collect();
    let sql = format!("CREATE TABLE {} ({})", quote(&info.name), parts.join(", "));
    Source { file: "simulated.sql".to_owned(), sql }
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &str) -> Vec<RowOp> {
        let row = vec![("key", Value::from("k")), ("value", Value::from(value))];
        vec![RowOp::Put { table: "kv", row, keep: &[] }]
    }

    fn kv() -> Definition {
        let columns = [("key", Value::from("")), ("value", Value::from(""))];
        Definition::new("kv", &columns, &["key"]).unwrap()
    }

    fn shown(disk: &dyn Medium) -> Option<Value> {
        let held = disk.inspect("kv", &[Value::from("k")]).unwrap();
        held.and_then(|inspected| inspected.row).map(|row| row[1].clone())
    }

    #[test]
    fn a_kill_keeps_what_was_committed_and_nothing_of_what_was_torn() {
        let root = tempfile::tempdir().unwrap();
        let origin = Origin { node: NodeId([7; 16]), epoch: Epoch(1), ..Origin::default() };
        let mut disk = SqliteInFiles::within(root.path()).create(origin, &[kv()]).unwrap();
        assert_eq!(disk.origin(), origin);
        disk.commit(Wall(1), &put("first")).unwrap();
        for left in [0, 1, 30_000, 60_000, u16::MAX] {
            let torn = Torn { work: Work::Commit(put("second")), left };
            disk.restart(Some(&torn)).unwrap();
            assert_eq!(shown(&*disk), Some(Value::from("first")), "{left}");
        }
        disk.restart(None).unwrap();
        assert_eq!(disk.origin(), origin, "a kill begins no epoch");
        assert_eq!(shown(&*disk), Some(Value::from("first")));
    }

    #[test]
    fn a_copy_takes_the_place_of_what_it_was_made_of_and_nothing_tells() {
        let root = tempfile::tempdir().unwrap();
        let origin = Origin { node: NodeId([7; 16]), epoch: Epoch(1), ..Origin::default() };
        let media: [Box<dyn Media>; 2] =
            [Box::new(SqliteInFiles::within(root.path())), Box::new(SqliteInMemory)];
        for mut media in media {
            let mut disk = media.create(origin, &[kv()]).unwrap();
            disk.commit(Wall(1), &put("first")).unwrap();
            let image = disk.copy().unwrap();
            disk.commit(Wall(2), &put("second")).unwrap();
            for _ in 0..2 {
                let copy = image.copy().unwrap();
                disk = copy;
                disk.restart(None).unwrap();
                assert_eq!(disk.origin(), origin);
                assert_eq!(shown(&*disk), Some(Value::from("first")));
                disk.commit(Wall(3), &put("third")).unwrap();
                disk.restart(None).unwrap();
                assert_eq!(shown(&*disk), Some(Value::from("third")));
            }
        }
    }
}
