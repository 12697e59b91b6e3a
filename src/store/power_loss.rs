//! What a loss of power leaves behind: the log is cut at every frame, and inside of frames, and
//! the database opened as it then is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::life::{BOOTS, LIFE_FILE};
use super::open::{DATABASE_FILE, wal_path};
use super::trial::{T, Trial};
use super::vfs::disk::{self, Recording};
use super::{OpenConfig, OpenError, Store};
use crate::crdt::Commit;
use crate::crdt::storage::Storage;
use crate::types::{Origin, Version};

/// The log's header, and a frame of it: a header and a page.
const HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24 + 4_096;

/// What was true once a commit was acknowledged.
struct Acknowledged {
    /// How long the log was then.
    log_bytes: usize,
    head: Version,
    fingerprint: u64,
}

/// A database that was written to, and what a machine finds of it that went down.
struct Scene {
    trial: Option<Trial>,
    config: OpenConfig,
    origin: Origin,
    history: Vec<Acknowledged>,
    /// Every name that was given away.
    sent: BTreeSet<(Origin, Version)>,
    database: Vec<u8>,
    log: Vec<u8>,
    life: String,
}

impl Scene {
    /// Commits of one and of many pages: rows come, change and go.
    fn play() -> Self {
        let mut trial = Trial::new(T);
        // From here on the log holds nothing but what follows.
        trial.store.checkpoint().unwrap();
        let mut scene = Self {
            config: trial.config.clone(),
            origin: trial.store.origin(),
            history: Vec::new(),
            sent: BTreeSet::new(),
            database: Vec::new(),
            log: Vec::new(),
            life: String::new(),
            trial: None,
        };
        scene.note(&trial.store, None);
        for i in 0..8 {
            let insert = format!("INSERT INTO t (id, v) VALUES ({i}, randomblob({}))", i * 1_000);
            let commit = trial.write(&[&insert]);
            scene.note(&trial.store, Some(&commit));
            let commit = trial.write(&[
                "UPDATE t SET w = coalesce(w, 0) || 'x'",
                &format!("DELETE FROM t WHERE id = {}", i - 3),
            ]);
            scene.note(&trial.store, Some(&commit));
        }
        scene.database = fs::read(scene.path(DATABASE_FILE)).unwrap();
        scene.log = fs::read(wal_path(&scene.path(DATABASE_FILE))).unwrap();
        scene.life = fs::read_to_string(scene.path(LIFE_FILE)).unwrap();
        let last = scene.history.last().unwrap().log_bytes;
        assert_eq!(last, scene.log.len(), "what was acknowledged is in the file");
        scene.trial = Some(trial);
        scene
    }

    fn note(&mut self, store: &Store, commit: Option<&Commit>) {
        let log = fs::metadata(wal_path(store.path().unwrap())).map_or(0, |log| log.len());
        self.history.push(Acknowledged {
            log_bytes: usize::try_from(log).unwrap(),
            head: commit.map_or(Version(0), |commit| commit.heads[0].1),
            fingerprint: store.fingerprint().unwrap(),
        });
        if let Some(commit) = commit {
            self.sent.insert((self.origin, commit.heads[0].1));
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.config.data_dir.join(file)
    }

    /// As if the machine had been started afresh: the boot that the database names is another.
    fn reboot(&mut self) {
        let boot = super::life::Mark::new().boot.expect("the kernel names its boots");
        let places: Vec<usize> = (0..self.database.len() - boot.len())
            .filter(|at| self.database[*at..].starts_with(boot.as_bytes()))
            .collect();
        assert!(!places.is_empty() && !self.log.windows(boot.len()).any(|w| w == boot.as_bytes()));
        for at in places {
            self.database[at..at + boot.len()].fill(b'0');
        }
    }

    /// Puts the files back as they were, with the log cut, under the names and inodes they had,
    /// and opens the database.
    fn open_cut(&mut self, log_bytes: usize) -> Store {
        self.try_cut(log_bytes).unwrap()
    }

    fn try_cut(&mut self, log_bytes: usize) -> Result<Store, OpenError> {
        // Closing it lets go of the lock.
        drop(self.trial.take().map(|trial| {
            let Trial { store, dir, .. } = trial;
            drop(store);
            // The directory has to stay.
            dir.keep()
        }));
        let database = self.path(DATABASE_FILE);
        fs::write(&database, &self.database).unwrap();
        fs::write(wal_path(&database), &self.log[..log_bytes]).unwrap();
        fs::write(self.path(LIFE_FILE), &self.life).unwrap();
        let _ = fs::remove_file(self.path("tribune.db-shm"));
        Store::open(&self.config)
    }

    /// Every frame's end, and places inside of frames: in the header, and in the page.
    fn cuts(&self) -> Vec<usize> {
        let ends = (HEADER_BYTES..=self.log.len()).step_by(FRAME_BYTES);
        let cuts = ends.flat_map(|end| [end, end + 10, end + 24 + 2_000]);
        [0, 16].into_iter().chain(cuts).filter(|cut| *cut <= self.log.len()).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Best effort: it is below the system's temporary directory.
        if let Some(home) = self.config.data_dir.parent() {
            let _ = fs::remove_dir_all(home);
        }
    }
}

fn write_one(store: &mut Store) -> (Origin, Version) {
    let (_, commit) = super::trial::run(store, &["INSERT INTO t (id) VALUES (99)"]).unwrap();
    commit.unwrap().heads[0]
}

#[test]
fn a_cut_log_shows_whole_commits_and_no_name_is_given_twice() {
    let mut scene = Scene::play();
    scene.reboot();
    let cuts = scene.cuts();
    assert!(cuts.len() > 80, "{} cuts", cuts.len());
    let mut endangered = 0;
    for cut in cuts {
        let mut store = scene.open_cut(cut);
        let left = scene.history.iter().rev().find(|commit| commit.log_bytes <= cut);
        let left = left.unwrap_or(&scene.history[0]);
        let head = store.heads().unwrap().iter().find(|(o, _)| *o == scene.origin).map(|h| h.1);
        assert_eq!(head.unwrap_or_default(), left.head, "cut at {cut}");
        assert!(store.fingerprint().unwrap() == left.fingerprint, "cut at {cut}: rows and clocks");
        let name = write_one(&mut store);
        assert!(!scene.sent.contains(&name), "cut at {cut}: {name:?} was given away before");
        assert!(name.0.epoch > scene.origin.epoch);
        // The name that the old epoch would have given next: without a new one it were twice.
        endangered += usize::from(scene.sent.contains(&(scene.origin, left.head.next())));
    }
    assert!(endangered > 40, "only {endangered} cuts lose a commit: the test shows nothing");
}

#[test]
fn a_killed_process_has_lost_nothing_and_counts_on() {
    let mut scene = Scene::play();
    let whole = scene.log.len();
    let mut store = scene.open_cut(whole);
    assert!(store.fingerprint().unwrap() == scene.history.last().unwrap().fingerprint);
    let last = scene.history.last().unwrap().head;
    assert_eq!(write_one(&mut store), (scene.origin, last.next()));
}

#[test]
fn the_whole_file_is_read_after_a_loss_of_power_and_not_after_a_kill() {
    const PAGE: usize = 4_096;
    let mut scene = Scene::play();
    let whole = scene.log.len();
    let seen = (1..scene.database.len() / PAGE).filter(|page| {
        let held = scene.database.clone();
        scene.database[page * PAGE..page * PAGE + 200].fill(0x55);
        let is_seen_after_kill = scene.try_cut(whole).is_err();
        scene.reboot();
        let after_reboot = scene.try_cut(whole).err();
        scene.database = held;
        !is_seen_after_kill && matches!(after_reboot, Some(OpenError::Damaged { .. }))
    });
    assert!(seen.count() > 3, "no page is read after a loss of power alone");
}

#[test]
fn a_copy_from_the_life_that_ended_last_is_noticed_too() {
    let mut trial = Trial::new(T);
    let mut sent = BTreeSet::from([trial.write(&["INSERT INTO t (id) VALUES (1)"]).heads[0]]);
    let copy = trial.dir.path().join("copy.db");
    let shell = rusqlite::Connection::open(trial.store.path().unwrap()).unwrap();
    shell.backup("main", &copy, None::<fn(rusqlite::backup::Progress)>).unwrap();
    drop(shell);
    sent.insert(trial.write(&["INSERT INTO t (id) VALUES (2)"]).heads[0]);
    let Trial { store, dir, config } = trial;
    drop(store);
    // The same inode, the same life: only what the end wrote differs.
    fs::write(config.data_dir.join(DATABASE_FILE), fs::read(copy).unwrap()).unwrap();
    let mut store = Store::open(&config).unwrap();
    let name = write_one(&mut store);
    assert!(!sent.contains(&name), "{name:?} was given away before");
    drop((store, dir));
}

#[test]
fn a_copy_without_a_log_of_its_own_is_not_changed_by_the_log_of_a_killed_node() {
    for sqlite_makes_it in [true, false] {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1, randomblob(9000))"]);
        let copy = trial.dir.path().join("copy.db");
        if sqlite_makes_it {
            let shell = rusqlite::Connection::open(trial.store.path().unwrap()).unwrap();
            shell.execute("VACUUM INTO ?1", [copy.to_str()]).unwrap();
        } else {
            let (data_dir, target) = (trial.config.data_dir.clone(), copy.clone());
            let request = super::backup::Backup { data_dir, target, force: false };
            let mut watch =
                super::copy::Watch { is_cancelled: Arc::default(), progress: &mut |_| {} };
            super::backup::backup(&request, &mut watch).unwrap();
        }
        for id in 2..20 {
            trial.write(&[&format!("INSERT INTO t (id, v) VALUES ({id}, randomblob(9000))")]);
        }
        let database = trial.config.data_dir.join(DATABASE_FILE);
        let log = fs::read(wal_path(&database)).unwrap();
        let life = fs::read(trial.config.data_dir.join(LIFE_FILE)).unwrap();
        let Trial { store, dir, config } = trial;
        drop(store);
        // Killed, and then the copy written over what was left.
        fs::write(&database, fs::read(copy).unwrap()).unwrap();
        fs::write(wal_path(&database), log).unwrap();
        fs::write(config.data_dir.join(LIFE_FILE), life).unwrap();
        let store = Store::open(&config).unwrap();
        let held: i64 =
            store.conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(held, 1, "the copy as it was");
        let set_aside = fs::read_dir(&config.data_dir).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().contains("db-wal.not-its-own")
        });
        assert_eq!(set_aside.count(), 1);
        drop((store, dir));
    }
}

#[test]
fn a_backup_that_was_copied_over_the_database_is_noticed() {
    let mut scene = Scene::play();
    // The backup is older than the last start; its copy has the same inode.
    let (backup, log) = (scene.database.clone(), scene.log.clone());
    drop(scene.open_cut(log.len()));
    let life = fs::read_to_string(scene.path(LIFE_FILE)).unwrap();
    assert!(life.ends_with("closed\n"), "{life}");
    fs::write(scene.path(DATABASE_FILE), &backup).unwrap();
    let mut store = Store::open(&scene.config).unwrap();
    let name = write_one(&mut store);
    assert!(!scene.sent.contains(&name), "{name:?} was given away before");
}

/// What the marks cannot tell, so that nobody believes they do: a log that lost its end although
/// the machine never went down. Then only a peer can say so: `replica` begins the new epoch.
#[test]
fn a_tail_that_vanishes_under_a_running_machine_is_for_peers_to_notice() {
    let mut scene = Scene::play();
    let cut = scene.history[5].log_bytes;
    let mut store = scene.open_cut(cut);
    assert!(scene.sent.contains(&write_one(&mut store)));
}

/// A store whose disk was recorded, from its opening on.
struct Recorded {
    trial: Trial,
    recording: Recording,
    /// What the disk held before.
    before: BTreeMap<PathBuf, Vec<u8>>,
    life: String,
    origin: Origin,
    /// How much had been asked of the disk when it was open.
    opened: usize,
    /// After each commit: how much had been asked of the disk, and the fingerprint.
    history: BTreeMap<Version, (usize, u64)>,
}

impl Recorded {
    /// Commits of one and of many pages, in between the log is folded into the database.
    fn play(is_synced: bool) -> Self {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1000, 'before')"]);
        let Trial { store, dir, config } = trial;
        drop(store);
        let database = config.data_dir.join(DATABASE_FILE);
        let before = BTreeMap::from([(database.clone(), fs::read(&database).unwrap())]);
        disk::begin();
        let mut trial = Trial { store: Store::open(&config).unwrap(), dir, config };
        if !is_synced {
            trial.store.conn.pragma_update(None, "synchronous", "OFF").unwrap();
        }
        let opened = disk::count();
        let held = trial.store.heads().unwrap()[0];
        let mut history = BTreeMap::from([(held.1, (opened, trial.store.fingerprint().unwrap()))]);
        for i in 0..24 {
            let large = if i % 6 == 5 { 60_000 } else { i * 200 };
            let commit = trial.write(&[
                &format!("INSERT INTO t (id, v) VALUES ({i}, randomblob({large}))"),
                "UPDATE t SET w = coalesce(w, 0) || 'x' WHERE id % 3 = 0",
                &format!("DELETE FROM t WHERE id = {}", i - 7),
            ]);
            let told = (disk::count(), trial.store.fingerprint().unwrap());
            history.insert(commit.heads[0].1, told);
            if i % 7 == 3 {
                trial.store.checkpoint().unwrap();
            }
        }
        let life = fs::read_to_string(trial.config.data_dir.join(LIFE_FILE)).unwrap();
        let recording = disk::end();
        Self { trial, recording, before, life, origin: held.0, opened, history }
    }

    /// Loses the power at so many moments. Returns what was found wrong.
    fn lose_power(self, seed: u64, times: usize) -> Vec<String> {
        let Self { trial, recording, before, life, origin, opened, history } = self;
        let Trial { store, dir, config } = trial;
        drop(store);
        let mut rng = SmallRng::seed_from_u64(seed);
        let moments = recording.actions.len() - opened;
        assert!(moments > 100, "{moments} moments");
        let mut faults = Vec::new();
        for _ in 0..times {
            let after = opened + rng.random_range(0..=moments);
            BOOTS.set(BOOTS.get() + 1);
            for (path, bytes) in recording.lose_power(after, &before, &mut rng) {
                fs::write(path, bytes).unwrap();
            }
            fs::write(config.data_dir.join(LIFE_FILE), &life).unwrap();
            let _ = fs::remove_file(config.data_dir.join("tribune.db-shm"));
            let acknowledged = history.iter().rev().find(|(_, (asked, _))| *asked <= after);
            let fault = check(&config, origin, &history, *acknowledged.unwrap().0);
            faults.extend(fault.err().map(|fault| format!("after {after}: {fault}")));
        }
        drop(dir);
        faults
    }
}

/// Opens what is left, and looks whether all is there that was acknowledged, and nothing by halves.
fn check(
    config: &OpenConfig,
    origin: Origin,
    history: &BTreeMap<Version, (usize, u64)>,
    acknowledged: Version,
) -> Result<(), String> {
    let mut store = Store::open(config).map_err(|error| error.to_string())?;
    let heads = store.heads().unwrap();
    let head = heads.iter().find(|(it, _)| *it == origin).map_or(Version(0), |(_, head)| *head);
    if head < acknowledged {
        return Err(format!("{head} is left of {acknowledged}"));
    }
    if store.fingerprint().unwrap() != history[&head].1 {
        return Err(format!("{head} is not what it was"));
    }
    let integrity = store.conn.query_row("PRAGMA integrity_check", [], |row| row.get(0));
    if integrity != Ok("ok".to_owned()) {
        return Err(format!("{integrity:?}"));
    }
    let (name, _) = write_one(&mut store);
    if name.epoch > origin.epoch { Ok(()) } else { Err(format!("{name} goes on")) }
}

#[test]
fn a_disk_that_forgets_what_was_not_synced_has_all_that_was_acknowledged() {
    let seed = rand::random();
    println!("seed {seed}");
    let faults = Recorded::play(true).lose_power(seed, 120);
    assert_eq!(faults, [""; 0], "seed {seed}");
}

#[test]
fn without_syncs_a_disk_that_forgets_is_found_to_lose_what_was_acknowledged() {
    let faults = Recorded::play(false).lose_power(1, 40);
    assert!(faults.len() > 20, "{faults:?}");
}
