//! Which life of the database this is, and how the last one ended: whether its tail may be lost,
//! so that the node must not go on counting where the file ends.
//!
//! Two marks say it: one in the database and one in a file beside it. A life that ended in order
//! says so in the file, and both have a new mark then, so that no copy from that life has it. What
//! the kernel holds outlives a killed process, so a life that ended otherwise has lost nothing as
//! long as the machine has not been started afresh. Every doubt ends in a new epoch, which costs a
//! few bytes on each node; a name given away twice costs consistency.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// The file beside the database.
pub const LIFE_FILE: &str = "tribune.life";

/// Names the machine's boot, on Linux.
const BOOT_FILE: &str = "/proc/sys/kernel/random/boot_id";

#[cfg(test)]
thread_local! {
    /// How often the machine was started, as a test's thread sees it.
    pub static BOOTS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    /// The milliseconds since 1970, as a test's thread sees them; `None`: as they are.
    pub static MILLISECONDS: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// What the database holds of its last life.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// `None`: it has had none.
    pub life: Option<[u8; 16]>,
    /// The machine's boot that the life began in; `None`: not known.
    pub boot: Option<String>,
}

/// How a life ended, by the file beside the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// Not at all, or by a kill or a loss of power.
    Open,
    InOrder,
}

/// Why the end of a database may be missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// It is not in the file that it was written in.
    Copied,
    /// The file was exchanged under its name.
    Exchanged,
    /// The machine went down under the node, and the disk may have promised too much.
    TailLost,
}

impl Mark {
    /// Makes the mark of a life that begins now.
    pub fn new() -> Self {
        let boot = fs::read_to_string(BOOT_FILE).ok();
        #[cfg(test)]
        let boot = boot.map(|text| format!("{} {}", text.trim(), BOOTS.get()));
        Self {
            life: Some(Uuid::new_v4().into_bytes()),
            boot: boot.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()),
        }
    }

    /// Says whether the end of the life that this is the mark of may be missing, given the text of
    /// the file beside the database, whether the database has a log, and the mark of now.
    pub fn doubt(&self, beside: Option<&str>, has_log: bool, now: &Self) -> Option<Doubt> {
        // A database from before there were marks, or one in memory.
        let life = self.life?;
        let ending = match beside.and_then(parse) {
            Some((named, ending)) if named == life => ending,
            Some(_) | None => return Some(Doubt::Exchanged),
        };
        // A life writes its mark through the log first thing, so a killed one leaves a log.
        let was_killed = has_log && self.boot.is_some() && self.boot == now.boot;
        match ending {
            Ending::InOrder => None,
            Ending::Open if was_killed => None,
            Ending::Open => Some(Doubt::TailLost),
        }
    }
}

/// The file beside the database.
#[derive(Clone, Debug)]
pub struct Beside {
    path: PathBuf,
    life: [u8; 16],
}

impl Beside {
    /// Returns the file's text, whatever it says.
    pub fn read(data_dir: &Path) -> Option<String> {
        fs::read_to_string(data_dir.join(LIFE_FILE)).ok()
    }

    /// Writes that a life has begun. The database names it already: should this not reach the
    /// disk, the two differ, and that is a doubt.
    pub fn begin(data_dir: &Path, mark: &Mark) -> io::Result<Option<Self>> {
        let Some(life) = mark.life else { return Ok(None) };
        let beside = Self { path: data_dir.join(LIFE_FILE), life };
        beside.write(Ending::Open)?;
        Ok(Some(beside))
    }

    /// Makes the file where it is missing, and leaves it as it is otherwise: its inode is a part
    /// of the database's name.
    pub fn touch(data_dir: &Path) -> io::Result<()> {
        let path = data_dir.join(LIFE_FILE);
        fs::OpenOptions::new().append(true).create(true).open(path).map(drop)
    }

    /// Writes that the life has ended in order. The database names `end` in place of the life by
    /// now: a copy that was made while it went on names the life, and can so be told from it.
    pub fn close(&self, end: [u8; 16]) -> io::Result<()> {
        Self { path: self.path.clone(), life: end }.write(Ending::InOrder)
    }

    fn write(&self, ending: Ending) -> io::Result<()> {
        let word = match ending {
            Ending::Open => "open",
            Ending::InOrder => "closed",
        };
        let mut file = fs::File::create(&self.path)?;
        writeln!(file, "{} {word}", Uuid::from_bytes(self.life))?;
        file.sync_all()
    }
}

fn parse(text: &str) -> Option<([u8; 16], Ending)> {
    // A line without its end was not written whole.
    let (life, word) = text.strip_suffix('\n')?.split_once(' ')?;
    let ending = match word {
        "open" => Ending::Open,
        "closed" => Ending::InOrder,
        _ => return None,
    };
    Some((Uuid::parse_str(life).ok()?.into_bytes(), ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_orderly_end_or_a_kill_leaves_no_doubt() {
        let mark = |boot: Option<&str>| Mark { life: Some([7; 16]), boot: boot.map(str::to_owned) };
        let (life, other) = (Uuid::from_bytes([7; 16]), Uuid::from_bytes([8; 16]));
        let (open, closed) = (format!("{life} open\n"), format!("{life} closed\n"));
        let (a, b) = (mark(Some("a")), mark(Some("b")));
        for (what, mark, beside, has_log, now, doubt) in [
            ("stopped", &a, Some(&closed), false, &a, None),
            ("stopped, rebooted", &a, Some(&closed), false, &b, None),
            ("killed", &a, Some(&open), true, &a, None),
            ("power lost", &a, Some(&open), true, &b, Some(Doubt::TailLost)),
            ("killed, log removed", &a, Some(&open), false, &a, Some(Doubt::TailLost)),
            ("boot not known", &mark(None), Some(&open), true, &mark(None), Some(Doubt::TailLost)),
            ("file removed", &a, None, true, &a, Some(Doubt::Exchanged)),
            (
                "older file",
                &a,
                Some(&format!("{other} closed\n")),
                false,
                &a,
                Some(Doubt::Exchanged),
            ),
            ("torn mark", &a, Some(&format!("{life} clos")), false, &a, Some(Doubt::Exchanged)),
            ("before there were marks", &Mark::default(), None, true, &a, None),
        ] {
            let found = mark.doubt(beside.map(String::as_str), has_log, now);
            assert_eq!(found, doubt, "{what}");
        }
    }
}
