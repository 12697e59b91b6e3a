//! Random histories: replicas that write and hear of each other in any order, with losses and
//! repetitions, and must agree when everything has got about. Whoever tests draws the words.

use std::collections::BTreeMap;

use super::*;
use crate::crdt::storage::Inspected;

/// Rows as the events of commits tell of them: (table, key) to row.
type Mirror = BTreeMap<(String, Vec<Value>), Vec<Value>>;

/// Plays the history that `words` spell on up to five replicas, lets them catch up, and holds them
/// to agree. Returns the fingerprint, which must be the same for any kind of storage.
pub fn play<T: Bench>(bench: &mut T, replica_count: usize, words: &[u32]) -> u64 {
    play_on(bench, replica_count, words, false)
}

/// Plays a history in which tombstones are dropped as soon as they may be, and replicas that were
/// away meanwhile, and not asked, take all rows of another when they return.
pub fn play_collecting<T: Bench>(bench: &mut T, replica_count: usize, words: &[u32]) -> u64 {
    play_on(bench, replica_count, words, true)
}

fn play_on<T: Bench>(bench: &mut T, replica_count: usize, words: &[u32], collects: bool) -> u64 {
    let nodes = (1..=5).map(|number| NodeId([number; 16])).take(replica_count);
    let replicas = nodes.map(|node| Replica::new(bench.open(node, &all_tables()), node)).collect();
    let mut play = Play { replicas, sent: Vec::new(), losses: 0, collects, away: None };
    for word in words {
        play.step(bench, *word);
    }
    play.bring_back();
    play.settle();
    let newcomer = Replica::new(bench.open(NodeId([9; 16]), &all_tables()), NodeId([9; 16]));
    play.replicas.push(newcomer);
    if collects {
        play.rejoin(replica_count, 0);
    }
    play.settle();
    play.check()
}

struct Play<D> {
    replicas: Vec<Replica<D>>,
    /// Every piece of news there ever was: any of it may come late, twice or never.
    sent: Vec<Piece>,
    /// How many disks were lost.
    losses: u32,
    /// Whether tombstones are dropped.
    collects: bool,
    /// A replica that hears nothing and is not heard, and for which nobody waits.
    away: Option<usize>,
}

struct Replica<D> {
    disk: D,
    node: NodeId,
    mirror: Mirror,
}

/// Cuts small numbers off a random word.
struct Dice(u32);

impl Dice {
    fn roll(&mut self, sides: u32) -> u32 {
        let rolled = self.0 % sides;
        self.0 /= sides;
        rolled
    }

    fn pick<E>(&mut self, list: &[E]) -> Option<usize> {
        let sides = u32::try_from(list.len()).ok().filter(|sides| *sides > 0)?;
        usize::try_from(self.roll(sides)).ok()
    }
}

impl<D: Storage> Play<D> {
    fn step<T: Bench<Disk = D>>(&mut self, bench: &mut T, word: u32) {
        let mut dice = Dice(word);
        let kind = dice.roll(if self.collects { 22 } else { 18 });
        let me = dice.pick(&self.replicas).expect("there are replicas");
        if self.away == Some(me) && kind >= 8 {
            return self.bring_back();
        }
        match kind {
            0..8 => {
                let ops: Vec<RowOp> = self.replicas[me].ops(&mut dice);
                let news = self.replicas[me].write(&ops);
                self.sent.extend(news.filter(|_| self.away != Some(me)));
            }
            18..21 => self.collect(me),
            21 => {
                self.bring_back();
                self.away = (self.replicas.len() > 2).then_some(me);
            }
            8..12 => {
                let Some(first) = dice.pick(&self.sent) else { return };
                // News comes in runs, so that some of it joins.
                let length = 1 + usize::try_from(dice.roll(4)).expect("it is small");
                let run = self.sent.iter().skip(first).take(length).cloned();
                let batch = Batch { pieces: run.collect() };
                self.replicas[me].apply(&batch);
            }
            12..15 => {
                let from = dice.pick(&self.replicas).expect("there are replicas");
                let parts = dice.roll(3) + 1;
                let bytes_max = 1 + 60 * usize::try_from(dice.roll(4)).expect("it is small");
                if self.away != Some(from) {
                    self.pull(me, from, parts, bytes_max);
                }
            }
            15 => {
                let above = Epoch(dice.roll(3));
                self.sent.extend(self.replicas[me].begin_epoch(above));
            }
            16 => self.sent.extend(self.replicas[me].withdraw()),
            _ => {
                // An empty disk, under an epoch that no earlier one had. Somebody has what was on the
                // lost one: else what overwrote a shared cell may be gone for good, while others
                // hold the versions that it took the cell from (see ARCHITECTURE.md).
                self.losses += 1;
                self.bring_back();
                let other = (me + 1) % self.replicas.len();
                self.pull(other, me, u32::MAX, 200);
                let node = self.replicas[me].node;
                self.replicas[me] = Replica::new(bench.open(node, &all_tables()), node);
                let above = Epoch(1_000 * self.losses);
                self.sent.extend(self.replicas[me].begin_epoch(above));
                if self.collects {
                    self.rejoin(me, other);
                }
            }
        }
    }

    /// Drops what tombstones may go: every replica that is not away holds the deletes, and this one
    /// holds all that anybody holds or that is still on its way.
    fn collect(&mut self, me: usize) {
        let present = || self.replicas.iter().enumerate().filter(|(i, _)| self.away != Some(*i));
        let mut low: BTreeMap<Origin, u64> =
            self.replicas[me].disk.heads().unwrap().into_iter().map(|(o, v)| (o, v.0)).collect();
        let holds =
            |origin: Origin, version: Version| head(&self.replicas[me].disk, origin) >= version.0;
        for (_, other) in present() {
            for (origin, version) in other.disk.heads().unwrap() {
                if !holds(origin, version) {
                    return;
                }
            }
            for (origin, low) in &mut low {
                *low = (*low).min(head(&other.disk, *origin));
            }
        }
        if !self.sent.iter().all(|piece| holds(piece.origin, piece.through)) {
            return;
        }
        let low: Vec<_> = low.into_iter().map(|(origin, head)| (origin, Version(head))).collect();
        let disk = &mut self.replicas[me].disk;
        let before = disk.fingerprint().unwrap();
        while !disk.collect(&low, &[], 2).unwrap().is_done {}
        assert_eq!(disk.fingerprint().unwrap(), before, "nobody sees it");
    }

    /// Ends the absence of whoever is away.
    fn bring_back(&mut self) {
        if let Some(away) = self.away.take() {
            self.rejoin(away, (away + 1) % self.replicas.len());
        }
    }

    /// Takes all rows of another replica.
    fn rejoin(&mut self, me: usize, host: usize) {
        let heads = self.replicas[host].disk.heads().unwrap();
        let floor = self.replicas[host].disk.floor().unwrap();
        let Begun { commits, .. } =
            self.replicas[me].disk.rejoin(NOW, &heads, floor.length).unwrap();
        let mut said = self.replicas[me].learn_all(&commits);
        self.pull(me, host, u32::MAX, 200);
        let settled = self.replicas[me].disk.settle(NOW, &floor.heads, floor.length).unwrap();
        said.extend(self.replicas[me].learn_all(&settled.commits));
        // Now it may speak.
        self.sent.extend(said);
    }

    /// Pulls some parts of each origin, which may leave the rest for another time.
    fn pull(&mut self, to: usize, from: usize, parts: u32, bytes_max: usize) -> bool {
        let mut moved = false;
        for (origin, _) in self.replicas[from].disk.heads().unwrap() {
            for _ in 0..parts {
                let after = Version(head(&self.replicas[to].disk, origin));
                let extract = self.replicas[from].disk.load(origin, after, bytes_max).unwrap();
                if extract.piece.through <= after {
                    break;
                }
                self.replicas[to].apply(&Batch { pieces: vec![extract.piece] });
                assert!(head(&self.replicas[to].disk, origin) > after.0, "a part brings one on");
                moved = true;
            }
        }
        moved
    }

    fn settle(&mut self) {
        let mut moved = true;
        while moved {
            moved = false;
            for to in 0..self.replicas.len() {
                for from in 0..self.replicas.len() {
                    moved |= to != from && self.pull(to, from, u32::MAX, 200);
                }
            }
        }
    }

    fn check(&self) -> u64 {
        let first = &self.replicas[0];
        for replica in &self.replicas {
            assert_eq!(replica.disk.heads().unwrap(), first.disk.heads().unwrap());
            assert_eq!(replica.mirror, first.mirror, "{} and {}", replica.node, first.node);
            assert_eq!(replica.disk.refusals(), 0);
            for (table, key) in self.keys() {
                let inspected = replica.disk.inspect(table, &key).unwrap();
                let known = first.disk.inspect(table, &key).unwrap();
                let is_alive = |inspected: &Inspected| inspected.row.is_some();
                let (ours, theirs) = match self.collects {
                    true => (inspected.clone().filter(is_alive), known.filter(is_alive)),
                    false => (inspected.clone(), known),
                };
                assert_eq!(ours, theirs, "{table} {key:?}");
                let row = inspected.and_then(|inspected| inspected.row);
                assert_eq!(row.as_ref(), replica.mirror.get(&(table.to_owned(), key)));
            }
            assert_eq!(replica.disk.fingerprint().unwrap(), first.disk.fingerprint().unwrap());
        }
        first.disk.fingerprint().unwrap()
    }

    /// Lists every key that a history may write.
    fn keys(&self) -> Vec<(&'static str, Vec<Value>)> {
        let mut keys: Vec<(&'static str, Vec<Value>)> =
            IDS.map(|id| ("t", vec![Value::from(id)])).collect();
        for a in 0..2_i64 {
            keys.extend((0..2_i64).map(|b| ("pairs", vec![a.into(), b.into()])));
        }
        for replica in &self.replicas {
            let owner = Value::from(replica.node.to_string());
            keys.extend(SERVICES.map(|id| ("services", vec![owner.clone(), id.into()])));
        }
        keys
    }
}

const IDS: std::ops::Range<i64> = 1..5;
const SERVICES: [&str; 2] = ["web", "db"];

impl<D: Storage> Replica<D> {
    fn new(disk: D, node: NodeId) -> Self {
        Self { disk, node, mirror: Mirror::new() }
    }

    /// Draws a transaction of one to three operations.
    fn ops(&self, dice: &mut Dice) -> Vec<RowOp> {
        let count = dice.roll(3) + 1;
        (0..count).map(|_| self.op(dice)).collect()
    }

    fn op(&self, dice: &mut Dice) -> RowOp {
        let id = i64::from(dice.roll(4)) + IDS.start;
        // Few values, so that equal ones meet.
        let value = [Value::Null, "a".into(), "b".into(), 1.into(), Value::Blob(vec![0])]
            [dice.pick(&[(); 5]).expect("there are five")]
        .clone();
        let owner = self.node.to_string();
        let service = SERVICES[usize::try_from(id % 2).expect("it is 0 or 1")];
        let pair = || vec![("a", Value::from(id % 2)), ("b", Value::from(id / 2 % 2))];
        match dice.roll(12) {
            0..2 => put(id, value),
            2 => {
                RowOp::Put { table: "t", row: vec![("id", id.into()), ("w", value)], keep: &["v"] }
            }
            3 => set(id, "v", value),
            4 => set(id, "w", value),
            5 => {
                RowOp::Set { table: "t", matching: vec![("v", value)], set: vec![("w", id.into())] }
            }
            6 => delete(id),
            7 => set(id, "id", i64::from(dice.roll(4)) + IDS.start),
            8 => RowOp::Put { table: "pairs", row: pair(), keep: &[] },
            9 => RowOp::Delete { table: "pairs", matching: pair(), except: None },
            10 => put_service(&owner, service, "x", id),
            _ => RowOp::Delete {
                table: "services",
                matching: vec![("node_id", owner.into()), ("id", service.into())],
                except: None,
            },
        }
    }

    /// Commits; a key that moved onto another row is refused, and then nothing may have happened.
    fn write(&mut self, ops: &[RowOp]) -> Option<Piece> {
        let before = self.disk.fingerprint().unwrap();
        match self.disk.commit(NOW, ops) {
            Ok(Some(commit)) => {
                let told = &commit.changeset.as_ref().unwrap().tables;
                assert!(told.iter().any(|table| !table.rows.is_empty()), "a version of nothing");
                // What nobody sees is an owned row that was claimed.
                let is_seen = !commit.tables.is_empty();
                assert!(is_seen || told.iter().all(|table| &*table.table == "services"));
                self.learn(&commit);
                Some(news(&commit))
            }
            Ok(None) | Err(StorageError::Refused(_)) => {
                assert_eq!(self.disk.fingerprint().unwrap(), before);
                None
            }
            Err(StorageError::Failed(error)) => panic!("{error}"),
        }
    }

    fn begin_epoch(&mut self, above: Epoch) -> Vec<Piece> {
        let Begun { origin, commits, .. } = self.disk.begin_epoch(NOW, above).unwrap();
        assert_eq!(self.disk.origin(), origin);
        assert!(commits.iter().all(|commit| commit.tables.is_empty()), "nobody sees it");
        commits.iter().map(news).collect()
    }

    fn withdraw(&mut self) -> Vec<Piece> {
        let commits = self.disk.withdraw(NOW).unwrap();
        commits.iter().for_each(|commit| self.learn(commit));
        commits.iter().map(news).collect()
    }

    fn apply(&mut self, batch: &Batch) {
        let commit = self.disk.apply(NOW, batch).unwrap();
        self.learn(&commit);
        for (origin, version) in &commit.heads {
            assert_eq!(head(&self.disk, *origin), version.0);
        }
    }

    /// Folds commits into the mirror, and returns what they tell others.
    fn learn_all(&mut self, commits: &[Commit]) -> Vec<Piece> {
        commits.iter().for_each(|commit| self.learn(commit));
        commits.iter().filter(|commit| commit.changeset.is_some()).map(news).collect()
    }

    /// Folds events into the mirror, which must have been as they say before.
    fn learn(&mut self, commit: &Commit) {
        for events in &commit.tables {
            for event in &events.rows {
                let place = (events.table.name.to_string(), event.key.clone());
                let before = match &event.row {
                    Some(row) => self.mirror.insert(place, row.clone()),
                    None => self.mirror.remove(&place),
                };
                assert_eq!(before.is_some(), event.existed);
                assert_ne!(before, event.row, "an event without a difference");
            }
        }
    }
}
