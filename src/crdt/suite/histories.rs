//! Random histories: replicas that write and hear of each other in any order, with losses and
//! repetitions, know more or fewer tables, are restarted, set back and wiped, and must agree when
//! everything has got about. Whoever tests draws the words.

use std::collections::BTreeMap;

use super::graves::past_of;
use super::*;
use crate::crdt::storage::Inspected;

/// Rows as the events of commits tell of them: (table, key) to row.
type Mirror = BTreeMap<(String, Vec<Value>), Vec<Value>>;

/// Plays the history that `words` spell on up to five replicas, lets them catch up, and holds them
/// to agree. Returns the fingerprint, which must be the same for any kind of storage.
pub fn play<T: Bench>(bench: &mut T, replica_count: usize, words: &[u32]) -> u64 {
    play_and_tell(bench, replica_count, words).0
}

/// Plays a history in which tombstones are dropped as soon as they may be, and replicas that were
/// away meanwhile, and not asked, take all rows of another when they return.
pub fn play_collecting<T: Bench>(bench: &mut T, replica_count: usize, words: &[u32]) -> u64 {
    play_on(bench, replica_count, words, true).0
}

/// What happened in a history, beside writes and exchanges.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// Replicas that did not know the whole schema from the start.
    pub skewed: u32,
    pub restarts: u32,
    pub wipes: u32,
    /// Disks that were set back to what they once held.
    pub restores: u32,
}

/// As [`play`], and says what happened.
pub fn play_and_tell<T: Bench>(bench: &mut T, replica_count: usize, words: &[u32]) -> (u64, Told) {
    play_on(bench, replica_count, words, false)
}

fn play_on<T: Bench>(
    bench: &mut T,
    replica_count: usize,
    words: &[u32],
    collects: bool,
) -> (u64, Told) {
    let nodes = (1..=5).map(|number| NodeId([number; 16])).take(replica_count);
    // Some know the whole schema from the start, others learn of it in between or at the end.
    let mut skew = Dice(words.first().copied().unwrap_or_default().rotate_left(16));
    let mut told = Told::default();
    let replicas = nodes.map(|node| {
        let known = if skew.roll(2) == 0 { Known::ALL } else { Known::draw(&mut skew) };
        told.skewed += u32::from(known.0 != Known::ALL.0);
        Replica::new(bench.open(node, &known.definitions()), node, known)
    });
    let replicas = replicas.collect();
    let (sent, names) = (Vec::new(), BTreeMap::new());
    let mut play = Play { replicas, sent, names, losses: 0, told, collects, away: None };
    for word in words {
        play.step(bench, *word);
    }
    play.bring_back();
    for me in 0..replica_count {
        (0..3).for_each(|table| play.define(bench, me, table, u32::MAX));
    }
    play.settle();
    if collects {
        // Of an owner's rows from before its disk was lost a returning node may hold some alone.
        play.withdraw_all();
        play.settle();
    }
    let newcomer = NodeId([9; 16]);
    let disk = bench.open(newcomer, &all_tables());
    play.replicas.push(Replica::new(disk, newcomer, Known::ALL));
    if collects {
        play.rejoin(replica_count, 0);
    }
    play.settle();
    (play.check(), play.told)
}

/// How much of each table a replica knows: all columns, the first ones, or nothing at all.
#[derive(Clone, Copy)]
struct Known([u32; 3]);

impl Known {
    const ALL: Self = Self([3, 1, 2]);

    fn draw(dice: &mut Dice) -> Self {
        Self(Self::ALL.0.map(|all| dice.roll(all + 1)))
    }

    fn definitions(self) -> Vec<Definition> {
        (0..3).filter_map(|table| self.definition(table)).collect()
    }

    fn definition(self, table: usize) -> Option<Definition> {
        let key_columns = match (table, self.0[table]) {
            (_, 0) => return None,
            // The key, and then a column more each time.
            (0, stage) => stage,
            (1, _) => 2,
            (_, stage) => 2 + stage,
        };
        let whole = &all_tables()[table];
        let info = whole.info();
        let width = usize::try_from(key_columns).expect("it is small");
        let columns: Vec<(&str, Value)> =
            info.columns.iter().map(|name| &**name).zip(whole.defaults().iter().cloned()).collect();
        let key: Vec<&str> = info.key.iter().map(|place| &*info.columns[*place]).collect();
        Some(Definition::new(&info.name, &columns[..width], &key).unwrap())
    }
}

struct Play<D> {
    replicas: Vec<Replica<D>>,
    /// Every piece of news there ever was: any of it may come late, twice or never.
    sent: Vec<Piece>,
    /// The content of each name that was given away.
    names: BTreeMap<Stamp, Arc<Changeset>>,
    /// How many disks were lost.
    losses: u32,
    told: Told,
    /// Whether tombstones are dropped.
    collects: bool,
    /// A replica that hears nothing and is not heard, and for which nobody waits.
    away: Option<usize>,
}

struct Replica<D> {
    disk: D,
    node: NodeId,
    known: Known,
    mirror: Mirror,
    /// The disk as it once was.
    image: Option<Box<(D, Known, Mirror)>>,
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
        let kind = dice.roll(if self.collects { 28 } else { 24 });
        let me = dice.pick(&self.replicas).expect("there are replicas");
        if self.away == Some(me) && kind >= 8 {
            return self.bring_back();
        }
        match kind {
            0..8 => {
                let ops: Vec<RowOp> = self.replicas[me].ops(&mut dice);
                let news = self.replicas[me].write(&ops);
                let news = news.filter(|_| self.away != Some(me));
                self.say(news);
            }
            24..27 => self.collect(me),
            27 => {
                self.bring_back();
                self.away = (self.replicas.len() > 2).then_some(me);
            }
            8..12 => {
                let Some(first) = dice.pick(&self.sent) else { return };
                // News comes in runs, so that some of it joins.
                let length = 1 + usize::try_from(dice.roll(4)).expect("it is small");
                // What a node sent under an epoch that ended it does not take as it was sent.
                let (node, collects) = (self.replicas[me].node, self.collects);
                let is_heard = |piece: &&Piece| !collects || piece.origin.node != node;
                let run = self.sent.iter().skip(first).take(length).filter(is_heard).cloned();
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
                let above = Epoch(dice.roll(3).into());
                let news = self.replicas[me].begin_epoch(above);
                self.say(news);
            }
            16 => self.withdraw(me),
            17 => {
                self.told.wipes += 1;
                let known = self.replicas[me].known;
                let disk = bench.open(self.replicas[me].node, &known.definitions());
                self.lose(me, (disk, known, Mirror::new()));
            }
            18 | 19 => {
                let table = dice.pick(&[(); 3]).expect("there are three");
                let by = dice.roll(2) + 1;
                self.define(bench, me, table, by);
            }
            20 => {
                self.told.restarts += 1;
                let Replica { disk, node, known, mirror, image } = self.replicas.remove(me);
                let disk = bench.reopen(disk);
                self.replicas.insert(me, Replica { disk, node, known, mirror, image });
            }
            21 => {
                let this = &mut self.replicas[me];
                let image = bench.image(&this.disk);
                this.image = image.map(|disk| Box::new((disk, this.known, this.mirror.clone())));
            }
            _ => {
                let Some(image) = self.replicas[me].image.take() else { return };
                self.told.restores += 1;
                let (disk, known, mirror) = *image;
                self.lose(me, (bench.reopen(disk), known, mirror));
            }
        }
    }

    fn withdraw(&mut self, me: usize) {
        let news = self.replicas[me].withdraw();
        self.say(news);
    }

    fn withdraw_all(&mut self) {
        (0..self.replicas.len()).for_each(|me| self.withdraw(me));
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
        let past = past_of(&self.replicas[host].disk);
        let replica = &mut self.replicas[me];
        let Begun { origin, commits, .. } = replica.disk.rejoin(NOW, &heads, past.length).unwrap();
        replica.learn_all(&commits);
        self.pull(me, host, u32::MAX, 200);
        let replica = &mut self.replicas[me];
        let settled = replica.disk.settle(NOW, &past).unwrap();
        replica.learn_all(&settled.commits);
        // Now it may speak, of what is left.
        let left = replica.disk.load(origin, Version(0), usize::MAX).unwrap().piece;
        let said = Some(left).filter(|piece| piece.through > Version(0));
        self.say(said);
    }

    /// A replica goes on with another disk, under an epoch that no earlier one had. Somebody has
    /// what was on the lost one: else what overwrote a shared cell may be gone for good, while
    /// others hold the versions that it took the cell from (see ARCHITECTURE.md).
    fn lose(&mut self, me: usize, (disk, known, mirror): (D, Known, Mirror)) {
        self.losses += 1;
        self.bring_back();
        let other = (me + 1) % self.replicas.len();
        self.pull(other, me, u32::MAX, 200);
        let Replica { node, image, .. } = self.replicas.remove(me);
        let mut replica = Replica { disk, node, known, mirror, image };
        let news = replica.begin_epoch(Epoch(1_000 * u64::from(self.losses)));
        self.replicas.insert(me, replica);
        if self.collects {
            // Until it has caught up it is silent, and then it writes under one more epoch.
            self.rejoin(me, other);
        } else {
            self.say(news);
        }
    }

    /// A replica learns of a table, or of more of its columns.
    fn define<T: Bench<Disk = D>>(&mut self, bench: &mut T, me: usize, table: usize, by: u32) {
        let keys = self.keys();
        let this = &mut self.replicas[me];
        let (stage, all) = (&mut this.known.0[table], Known::ALL.0[table]);
        if *stage == all {
            return;
        }
        *stage = stage.saturating_add(by).min(all);
        let definition = this.known.definition(table).expect("it knows something of it now");
        let before = this.disk.fingerprint().unwrap();
        bench.define(&mut this.disk, &definition);
        assert_eq!(this.disk.fingerprint().unwrap(), before, "the schema is no part of it");
        this.mirror.retain(|(name, _), _| **name != *definition.info().name);
        for (name, key) in keys.into_iter().filter(|(name, _)| **name == *definition.info().name) {
            let row = this.disk.inspect(name, &key).unwrap().and_then(|inspected| inspected.row);
            this.mirror.extend(row.map(|row| ((name.to_owned(), key), row)));
        }
    }

    /// Tells of commits. No name may denote two contents, ever.
    fn say(&mut self, news: impl IntoIterator<Item = Piece>) {
        for piece in news {
            for changeset in &piece.changesets {
                let before = self.names.insert(changeset.stamp, Arc::clone(changeset));
                assert!(before.is_none_or(|before| before == *changeset), "{changeset:?}");
            }
            self.sent.push(piece);
        }
    }

    /// Pulls some parts of each origin, which may leave the rest for another time.
    fn pull(&mut self, to: usize, from: usize, parts: u32, bytes_max: usize) -> bool {
        let mut moved = false;
        for (origin, _) in self.replicas[from].disk.heads().unwrap() {
            for _ in 0..parts {
                if to == from {
                    break;
                }
                let [to, from] = self.replicas.get_disjoint_mut([to, from]).unwrap();
                let before = head(&to.disk, origin);
                let commit = catch_up(&mut to.disk, &from.disk, origin, bytes_max);
                let Some(commit) = commit else { break };
                to.learn(&commit);
                assert!(head(&to.disk, origin) > before, "a part brings one on");
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
    fn new(disk: D, node: NodeId, known: Known) -> Self {
        Self { disk, node, known, mirror: Mirror::new(), image: None }
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
        match dice.roll(14) {
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
            // What a replica can say that knows little of the tables.
            11 => RowOp::Put { table: "t", row: vec![("id", id.into())], keep: &[] },
            12 => RowOp::Put {
                table: "services",
                row: vec![("node_id", owner.into()), ("id", service.into()), ("name", "y".into())],
                keep: &[],
            },
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
    fn learn_all(&mut self, commits: &[Commit]) {
        commits.iter().for_each(|commit| self.learn(commit));
    }

    /// Folds events into the mirror, which must have been as they say before.
    fn learn(&mut self, commit: &Commit) {
        for events in &commit.tables {
            for event in events.rows.each() {
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
