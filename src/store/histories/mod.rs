//! Random histories of several nodes on the real store: each is drawn from one number, and ends
//! with all nodes alike. What is drawn is in the files below; here they are played, many of them,
//! and a history that fails is made shorter and told.
//!
//! `TRIBUNE_SEED=7 cargo test --lib store::histories` plays one again, with
//! `TRIBUNE_HISTORIES=100000` so many from there on. `TRIBUNE_KINDS=disks` leaves out the others.

mod fleet;
mod machine;
mod twins;

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// How many histories the ordinary tests play: some twenty seconds without optimisation.
const ORDINARY: u64 = 100;

/// After so many failures nothing new is learnt.
const FAILURES_MAX: usize = 10;

/// A kind of history: how it is called, its share in twentieths, and how it is played.
type Kind = (&'static str, u64, fn(&[u64], &mut Tally));

const KINDS: [Kind; 3] = [
    // The store beside the model, whose schemas differ and grow.
    ("twins", 12, twins::play),
    // Stores whose schema is replicated: tables and columns are changed and dropped.
    ("fleet", 5, fleet::play_in_memory),
    // The same in files, with kills and power cuts.
    ("disks", 3, fleet::play_on_disk),
];

/// How often something happened, and in how many histories.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, (u64, u64)>);

impl Tally {
    fn add(&mut self, what: &'static str, times: u64) {
        let (all, histories) = self.0.entry(what).or_default();
        *all += times;
        *histories += u64::from(times > 0);
    }
}

/// A source of numbers: splitmix64, which will say the same for ever.
#[derive(Clone)]
struct Draw(u64);

impl Draw {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Returns a number below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        usize::try_from(self.word() % sides as u64).expect("it is below a usize")
    }

    /// Says yes once in so many times.
    fn one_in(&mut self, times: usize) -> bool {
        self.roll(times) == 0
    }

    fn pick<E: Copy>(&mut self, list: &[E]) -> E {
        list[self.roll(list.len())]
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not '{text}'")))
}

#[test]
fn whatever_happens_to_several_nodes_they_end_alike() {
    let seed = from_environment("TRIBUNE_SEED");
    let count = from_environment("TRIBUNE_HISTORIES");
    let count = count.unwrap_or(if seed.is_some() { 1 } else { ORDINARY });
    let only = std::env::var("TRIBUNE_KINDS").ok();
    let first = seed.unwrap_or(0);
    let mut tally = Tally::default();
    let begun = Instant::now();
    let mut failed = Vec::new();
    for seed in first..first + count {
        let ((name, _, play), words) = drawn(seed);
        if only.as_ref().is_some_and(|only| !only.contains(name)) {
            continue;
        }
        tally.add(name, 1);
        if !plays(play, &words, &mut tally) {
            say(&format!("seed {seed} ({name}) fails"));
            say(&format!("again: TRIBUNE_SEED={seed} cargo test --lib store::histories"));
            let words = shortened(play, words);
            say(&format!("seed {seed} fails with {} steps: {words:?}", words.len()));
            failed.push(seed);
        }
        if failed.len() == FAILURES_MAX {
            break;
        }
        if (seed + 1 - first).is_multiple_of(1_000) {
            say(&format!("{} histories in {:?}", seed + 1 - first, begun.elapsed()));
        }
    }
    say(&format!("{count} histories from seed {first} in {:?}", begun.elapsed()));
    for (what, (times, histories)) in &tally.0 {
        say(&format!("{what:>20} {times:>9} in {histories:>7} histories"));
    }
    assert!(failed.is_empty(), "histories that failed, by their seeds: {failed:?}");
}

#[test]
fn what_failed_once_does_not_fail_again() {
    // A version of which nothing was left ended a piece that was full in one storage, and not in the
    // other.
    let ((_, _, play), words) = drawn(43_289);
    play(&words, &mut Tally::default());
}

/// The kind of a history, and its steps: a pure function of the seed.
fn drawn(seed: u64) -> (Kind, Vec<u64>) {
    let mut draw = Draw(seed);
    let mut share = draw.roll(20) as u64;
    let kind = KINDS.into_iter().find(|(_, of_twenty, _)| {
        let is_it = share < *of_twenty;
        share = share.saturating_sub(*of_twenty);
        is_it
    });
    let steps = 1 + draw.roll(80);
    (kind.expect("the shares are twenty"), (0..steps).map(|_| draw.word()).collect())
}

fn plays(play: fn(&[u64], &mut Tally), words: &[u64], tally: &mut Tally) -> bool {
    catch_unwind(AssertUnwindSafe(|| play(words, tally))).is_ok()
}

/// Leaves out steps as long as the history still fails.
fn shortened(play: fn(&[u64], &mut Tally), mut words: Vec<u64>) -> Vec<u64> {
    let mut at = words.len();
    while at > 0 {
        at -= 1;
        let mut fewer = words.clone();
        fewer.remove(at);
        if !plays(play, &fewer, &mut Tally::default()) {
            words = fewer;
        }
    }
    words
}

/// Says something while it goes on, though it is a test.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
