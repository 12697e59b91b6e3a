//! What happened, as one number for all of it and in words for the last of it.

use std::collections::VecDeque;
use std::fmt;

use crate::types::Time;

/// How many events are kept in words.
const WORDS_MAX: usize = 100;

/// FNV-1a, which is the same everywhere and always.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(super) fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::default();
        hash.add(bytes);
        hash.value()
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds a number in one step: weaker than byte by byte, and enough to tell two runs apart.
    pub(super) fn add_number(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }
}

/// One event, small enough to be noted by the million.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) at: Time,
    /// The node it happened to.
    pub(super) node: usize,
    pub(super) what: &'static str,
    /// The other node in it, if there is one.
    pub(super) other: Option<usize>,
    /// What of: a version, a count, a number of bytes.
    pub(super) number: u64,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, node, what, other, number } = self;
        write!(f, "{:>10.6} s  n{node}: {what}", at.0 as f64 / 1e6)?;
        if let Some(other) = other {
            write!(f, " n{other}")?;
        }
        write!(f, " ({number})")
    }
}

/// All notes of a run.
#[derive(Debug, Default)]
pub(super) struct Trace {
    hash: Fnv,
    last: VecDeque<Note>,
    count: u64,
}

impl Trace {
    pub(super) fn note(&mut self, note: Note) {
        self.count += 1;
        self.hash.add_number(note.at.0);
        self.hash.add_number(note.node as u64);
        self.hash.add(note.what.as_bytes());
        self.hash.add_number(note.other.map_or(u64::MAX, |other| other as u64));
        self.hash.add_number(note.number);
        if self.last.len() == WORDS_MAX {
            self.last.pop_front();
        }
        self.last.push_back(note);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash.value()
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn words(&self) -> Vec<String> {
        self.last.iter().map(Note::to_string).collect()
    }
}
