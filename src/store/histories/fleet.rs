//! Histories of stores whose schema is replicated: tables and columns are made, changed and dropped
//! on one node while others write as they knew them, disks are lost and set back, and, in files,
//! processes are killed and the power fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::machine::{Cut, Machine, begin_history, columns, pass_a_millisecond, rows, shapes};
use super::{Draw, Tally};
use crate::crdt::suite::catch_up;
use crate::crdt::{Batch, Changeset, Commit, Piece, RowOp, Stamp, Storage};
use crate::store::schema::{Mode, SchemaRequest, asides};
use crate::store::trial::{NOW, plain, source};
use crate::types::{Epoch, NodeId, Origin, Value, Version};

pub(super) fn play_in_memory(words: &[u64], tally: &mut Tally) {
    play(words, tally, false);
}

pub(super) fn play_on_disk(words: &[u64], tally: &mut Tally) {
    play(words, tally, true);
}

fn play(words: &[u64], tally: &mut Tally, in_files: bool) {
    let Some((first, words)) = words.split_first() else { return };
    begin_history();
    let count = if in_files { 2 + first % 2 } else { 2 + first % 3 };
    let node = |number: u64| NodeId([u8::try_from(number).expect("it is small"); 16]);
    let machines = (1..=count).map(|number| Machine::new(node(number), in_files)).collect();
    let mut play = Play {
        machines,
        sent: Vec::new(),
        names: BTreeMap::new(),
        losses: 0,
        told: BTreeMap::new(),
    };
    for word in words {
        play.step(Draw(*word));
    }
    // In small parts, or whole.
    let bytes_max = if first % 7 == 0 { 500 } else { usize::MAX };
    play.settle(bytes_max);
    play.machines.push(Machine::new(node(9), false));
    play.settle(bytes_max);
    play.check();
    for (what, times) in play.told {
        tally.add(what, times);
    }
}

struct Play {
    machines: Vec<Machine>,
    /// Every piece of news there ever was: any of it may come late, twice or never.
    sent: Vec<Piece>,
    /// The content of each name that was given away.
    names: BTreeMap<Stamp, Arc<Changeset>>,
    /// How many disks were lost.
    losses: u32,
    told: BTreeMap<&'static str, u64>,
}

impl Play {
    fn step(&mut self, mut draw: Draw) {
        let me = draw.roll(self.machines.len());
        // In memory there is nothing to cut.
        let sides = if self.machines[me].is_in_files() { 36 } else { 30 };
        match draw.roll(sides) {
            0..9 => {
                let news = self.write(me, &mut draw);
                self.say(me, news);
            }
            9..13 => self.change_schema(me, &mut draw),
            13 => {
                let op = service(self.machines[me].node, &mut draw);
                let news = self.machines[me].store_mut().commit(NOW, &[op]).unwrap();
                self.say(me, news);
            }
            14..18 => self.hear(me, &mut draw),
            18..22 => {
                let from = draw.roll(self.machines.len());
                let bytes_max = draw.pick(&[1, 100, 1_000, usize::MAX]);
                let parts = draw.pick(&[1, 2, 3, usize::MAX]);
                self.pull(me, from, parts, bytes_max);
            }
            22 => {
                let above = Epoch(draw.roll(3) as u64);
                self.begin_epoch(me, above);
            }
            23 => {
                let news = self.machines[me].store_mut().withdraw(NOW).unwrap();
                self.say(me, news);
            }
            24 => {
                self.tell("restarts");
                self.machines[me].restart();
            }
            25 | 26 => self.machines[me].make_image(),
            27 => self.set_back(me, &mut draw),
            28 => self.wipe(me),
            29 => {
                let store = self.machines[me].store_mut();
                store.maintain().unwrap();
                if draw.one_in(2) {
                    self.machines[me].forget_log();
                }
            }
            _ => self.cut(me, &mut draw),
        }
    }

    fn tell(&mut self, what: &'static str) {
        *self.told.entry(what).or_default() += 1;
    }

    /// Runs a user's transaction. What is refused has not happened.
    fn write(&mut self, me: usize, draw: &mut Draw) -> Vec<Commit> {
        let machine = &mut self.machines[me];
        let statements: Vec<_> = (0..draw.roll(3) + 1).map(|_| statement(machine, draw)).collect();
        let statements: Vec<_> = statements.iter().map(|sql| plain(sql)).collect();
        let store = machine.store_mut();
        let before = draw.one_in(4).then(|| store.fingerprint().unwrap());
        // Some go the way of large ones: over the disk, and to nobody but who pulls them.
        let is_large = self.names.len() % 4 == 3;
        store.take_for_large(is_large);
        let mut group = store.group(NOW);
        let done = group.sql(&statements, None);
        let commits = group.commit().unwrap();
        store.take_for_large(false);
        if commits.iter().any(|commit| commit.large(store.origin()).is_some()) {
            *self.told.entry("large transactions").or_default() += 1;
        }
        if done.is_err() {
            assert!(commits.is_empty());
            assert!(before.is_none_or(|before| before == store.fingerprint().unwrap()));
        }
        commits.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    fn change_schema(&mut self, me: usize, draw: &mut Draw) {
        let mode = Mode::Apply { allow_drop: !draw.one_in(3) };
        let request = SchemaRequest { sources: vec![source(&schema(draw))], mode, dry_run: false };
        let mut group = self.machines[me].store_mut().group(NOW);
        // A refusal is a part of the story: the schema is then as it was.
        let change = group.schema(&request).unwrap_or_default();
        let commits = group.commit().unwrap();
        if !change.is_empty() {
            self.tell("schema changes");
        }
        if !(change.tables_dropped.is_empty() && change.columns_dropped.is_empty()) {
            self.tell("drops");
        }
        self.say(me, commits.into_iter().map(Arc::unwrap_or_clone));
    }

    /// Some of the news reaches a node: in a run, so that some of it joins.
    fn hear(&mut self, me: usize, draw: &mut Draw) {
        if self.sent.is_empty() {
            return;
        }
        let first = draw.roll(self.sent.len());
        let run = self.sent.iter().skip(first).take(1 + draw.roll(5)).cloned();
        let batch = Batch { pieces: run.collect() };
        self.machines[me].store_mut().apply(NOW, &batch).unwrap();
        self.machines[me].acknowledge();
    }

    /// Brings what one node holds to another, so many parts of each origin.
    fn pull(&mut self, to: usize, from: usize, parts: usize, bytes_max: usize) -> bool {
        let mut is_news = false;
        for (origin, _) in self.machines[from].store().heads().unwrap() {
            for _ in 0..parts {
                if to == from {
                    break;
                }
                let before = head(&self.machines[to], origin);
                let [taker, giver] = self.machines.get_disjoint_mut([to, from]).unwrap();
                let commit = catch_up(taker.store_mut(), giver.store(), origin, bytes_max);
                if commit.is_none() {
                    break;
                }
                self.machines[to].acknowledge();
                assert!(head(&self.machines[to], origin) > before, "a part brings one on");
                is_news = true;
            }
        }
        is_news
    }

    fn begin_epoch(&mut self, me: usize, above: Epoch) {
        pass_a_millisecond();
        let begun = self.machines[me].store_mut().begin_epoch(NOW, above).unwrap();
        self.say(me, begun.commits);
    }

    /// Somebody has what is on a disk that will be lost: else what overwrote a shared cell may be
    /// gone for good, while others hold the versions that it took the cell from (see
    /// ARCHITECTURE.md).
    fn save(&mut self, me: usize) {
        let next = (me + 1) % self.machines.len();
        self.pull(next, me, usize::MAX, usize::MAX);
        self.losses += 1;
    }

    fn set_back(&mut self, me: usize, draw: &mut Draw) {
        if !self.machines[me].has_image() {
            return;
        }
        self.save(me);
        let (known, _) = self.known(me);
        let is_noticed = draw.one_in(2);
        self.machines[me].set_back(is_noticed, known);
        if !self.machines[me].is_in_files() {
            self.begin_epoch(me, known);
        } else if is_noticed {
            self.name_what_was_renewed(me);
        } else {
            self.tell("unnoticed restores");
            self.confirm(me);
        }
        self.tell("restores");
    }

    fn wipe(&mut self, me: usize) {
        self.save(me);
        let (known, _) = self.known(me);
        self.machines[me].wipe(known);
        if !self.machines[me].is_in_files() {
            self.begin_epoch(me, known);
        }
        self.tell("wipes");
    }

    /// The newest of a node's origins that anybody knows, and how far.
    fn known(&self, me: usize) -> (Epoch, Version) {
        let heads = self.machines.iter().flat_map(|machine| machine.store().heads().unwrap());
        let mine = heads.filter(|(origin, _)| origin.node == self.machines[me].node);
        let known = mine.map(|(origin, head)| (origin.epoch, head)).max().unwrap_or_default();
        known.max((self.machines[me].store().origin().epoch, Version(0)))
    }

    /// As a replica does it that starts: it asks its peers, and begins an epoch if they know more.
    fn confirm(&mut self, me: usize) {
        let origin = self.machines[me].store().origin();
        let (epoch, version) = self.known(me);
        if (epoch, version) > (origin.epoch, head(&self.machines[me], origin)) {
            self.begin_epoch(me, epoch);
        }
    }

    fn cut(&mut self, me: usize, draw: &mut Draw) {
        // Of these nobody has heard when the process ends.
        for _ in 0..draw.roll(3) {
            for commit in self.write(me, draw) {
                self.name(commit.changeset.iter());
                self.machines[me].note();
            }
        }
        // At a frame's end, or in a frame.
        let left = draw.roll(1_100);
        let cut = match draw.roll(8) {
            0 | 1 => Cut::Kill,
            2..6 => Cut::Power { left },
            _ => Cut::Lie { left },
        };
        if matches!(cut, Cut::Lie { .. }) {
            self.save(me);
        }
        self.machines[me].cut(cut);
        self.tell(if cut == Cut::Kill { "kills" } else { "power cuts" });
        self.name_what_was_renewed(me);
    }

    /// Notes what a store that has just been opened wrote again, under an origin of its own.
    fn name_what_was_renewed(&mut self, me: usize) {
        let store = self.machines[me].store();
        let extract = store.load(store.origin(), Version(0), usize::MAX).unwrap();
        let renewed = extract.piece.changesets.iter();
        let is_new = |changeset: &&Arc<Changeset>| !self.names.contains_key(&changeset.stamp);
        let renewed: Vec<_> = renewed.filter(is_new).cloned().collect();
        self.name(renewed.iter());
    }

    /// No name may denote two contents, ever.
    fn name<'a>(&mut self, changesets: impl IntoIterator<Item = &'a Arc<Changeset>>) {
        for changeset in changesets {
            let before = self.names.insert(changeset.stamp, Arc::clone(changeset));
            assert!(
                before.is_none_or(|before| before == *changeset),
                "{:?} denotes two contents",
                changeset.stamp
            );
        }
    }

    /// Tells of commits that are acknowledged.
    fn say(&mut self, me: usize, commits: impl IntoIterator<Item = Commit>) {
        for commit in commits {
            self.name(commit.changeset.iter());
            self.sent.extend(commit.changeset.map(Piece::of));
        }
        self.machines[me].acknowledge();
    }

    /// Exchanges until nobody has news for anybody.
    fn settle(&mut self, bytes_max: usize) {
        let mut is_news = true;
        while is_news {
            is_news = false;
            for to in 0..self.machines.len() {
                for from in (0..self.machines.len()).filter(|from| *from != to) {
                    is_news |= self.pull(to, from, usize::MAX, bytes_max);
                }
            }
        }
    }

    fn check(&self) {
        let first = self.machines[0].store();
        for machine in &self.machines[1..] {
            let store = machine.store();
            assert_eq!(store.heads().unwrap(), first.heads().unwrap());
            are_alike("schemas", &shapes(store), &shapes(first));
            are_alike("rows", &rows(store), &rows(first));
            assert_eq!(store.fingerprint().unwrap(), first.fingerprint().unwrap());
            assert_eq!(asides(&store.conn).unwrap(), asides(&first.conn).unwrap());
        }
    }
}

/// Says which lines differ, if any do.
fn are_alike(what: &str, one: &[String], other: &[String]) {
    let missing = |from: &[String], of: &[String]| -> Vec<String> {
        of.iter().filter(|line| !from.contains(line)).cloned().collect()
    };
    let differing = (missing(one, other), missing(other, one));
    assert!(one == other, "{what} differ: {differing:#?}");
}

fn head(machine: &Machine, origin: Origin) -> Version {
    let heads = machine.store().heads().unwrap();
    heads.iter().find(|(held, _)| *held == origin).map_or(Version(0), |(_, head)| *head)
}

/// Draws an operation on a row of the node's own.
fn service(node: NodeId, draw: &mut Draw) -> RowOp {
    let me = Value::from(node.to_string());
    let id = Value::from(draw.pick(&["web", "db"]));
    if draw.one_in(4) {
        let matching = vec![("node_id", me), ("id", id)];
        return RowOp::Delete { table: "services", matching, except: None };
    }
    let port = Value::from(draw.pick(&[80, 81, 82]));
    let row = vec![("node_id", me), ("id", id), ("name", "app".into()), ("port", port)];
    RowOp::Put { table: "services", row, keep: &[] }
}

/// Draws a schema: of one table or two, more or less of them, in this way or that, or their end.
fn schema(draw: &mut Draw) -> String {
    let optional = [
        ["v DEFAULT 'dv'", "v TEXT DEFAULT 'dv'"],
        ["w INT DEFAULT 3", "w TEXT NOT NULL DEFAULT 'x'"],
        ["x", "x REAL DEFAULT 1.5"],
        ["y INT CHECK (y < 5)", "y INT DEFAULT 7"],
    ];
    let mut parts = Vec::new();
    for table in ["t", "u"] {
        match draw.roll(8) {
            0 => parts.push(format!("DROP TABLE IF EXISTS {table}")),
            1..5 if table == "u" => {}
            _ => {
                let mut columns: Vec<&str> = Vec::new();
                for variants in &optional {
                    // Mostly the first, so that nodes often mean the same.
                    if !draw.one_in(3) {
                        columns.push(variants[usize::from(draw.one_in(6))]);
                    }
                }
                if draw.one_in(5) {
                    columns.reverse();
                }
                let (key, ending) = if table == "t" {
                    ("id INTEGER NOT NULL PRIMARY KEY", "")
                } else {
                    ("id INT NOT NULL", ", PRIMARY KEY (id)) WITHOUT ROWID")
                };
                let ending = if ending.is_empty() { ")" } else { ending };
                columns.insert(0, key);
                parts.push(format!("CREATE TABLE {table} ({}{ending}", columns.join(", ")));
                if draw.one_in(4) {
                    parts.push(format!("CREATE INDEX {table}_by_v ON {table} (v)"));
                }
            }
        }
    }
    parts.join("; ")
}

/// Draws a statement on a table as the node knows it.
fn statement(machine: &Machine, draw: &mut Draw) -> String {
    let table = draw.pick(&["t", "t", "t", "u", "kv"]);
    let columns = columns(machine.store(), table);
    let Some((key, _)) = columns.iter().find(|(_, is_key)| *is_key) else {
        return format!("DELETE FROM {table}");
    };
    let others: Vec<&str> =
        columns.iter().filter(|(_, is_key)| !is_key).map(|(name, _)| &**name).collect();
    let column = if others.is_empty() { "missing" } else { draw.pick(&others) };
    let value = draw.pick(&["NULL", "'a'", "'b'", "'5'", "1", "2", "2.5", "7", "x'00'"]);
    let id = draw.pick(&["1", "2", "3", "4"]);
    match draw.roll(12) {
        0..3 => format!("INSERT OR REPLACE INTO {table} ({key}, {column}) VALUES ({id}, {value})"),
        3 => format!("INSERT OR IGNORE INTO {table} ({key}) VALUES ({id})"),
        4..7 => format!("UPDATE {table} SET {column} = {value} WHERE {key} = {id}"),
        7 => format!("UPDATE {table} SET {column} = {value}"),
        8 => format!("DELETE FROM {table} WHERE {key} = {id}"),
        9 => format!("UPDATE {table} SET {key} = {key} + 1 WHERE {key} = {id}"),
        10 => format!(
            "INSERT INTO {table} ({key}, {column}) VALUES ({id}, {value})
             ON CONFLICT DO UPDATE SET {column} = excluded.{column}"
        ),
        _ => format!("DELETE FROM {table}"),
    }
}
