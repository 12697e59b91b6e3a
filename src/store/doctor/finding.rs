//! What can be wrong, in plain words, and what to do about it.

use super::EXAMPLES_MAX;

const START_OVER: &str = "Stop the node and restore a backup (`tribune restore`), or, where other \
    nodes are up, move tribune.db away: the node gets everything from them when it starts";

/// Whether somebody should do something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weight {
    Problem,
    Note,
}

/// What is wrong, the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// SQLite's own check has failed.
    Damaged,
    /// The look has ended early, so as not to hold the node up.
    GivenUp,
    /// The numbers of tables and columns have holes.
    NamesWrong,
    ClockUnreadable,
    SetBack,
    Diverged,
    /// This node's own writes are beyond the last one that it says it has made.
    BeyondHead,
    /// A live clock without a row.
    RowGone,
    /// A row without a clock.
    RowUnknown,
    /// A row whose clock says that it is deleted.
    RowUndead,
    ValueUnreadable,
    ForeignOwner,
    IndexWrong,
    LogUnreadable,
    /// The sum that every commit moves is not that of the rows.
    SumWrong,
    DiskFull,
    LogLarge,
    /// What keeps other programs from writing is gone.
    Unguarded,
    /// The cluster's schema has something that this node cannot carry out.
    SchemaAside,
    Quarantined,
    Nobodys,
    // From here on notes.
    /// Another node's writes are held beyond what is said to be held of it.
    HeadBehind,
    Parked,
    Copied,
    TailLost,
    Older,
    DiskTight,
}

impl Kind {
    pub fn weight(self) -> Weight {
        if self < Self::HeadBehind { Weight::Problem } else { Weight::Note }
    }

    /// Returns a word for programs, which never changes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::GivenUp => "given-up",
            Self::NamesWrong => "names-wrong",
            Self::ClockUnreadable => "clock-unreadable",
            Self::SetBack => "set-back",
            Self::Diverged => "diverged",
            Self::BeyondHead => "beyond-head",
            Self::RowGone => "row-gone",
            Self::RowUnknown => "row-unknown",
            Self::RowUndead => "row-undead",
            Self::ValueUnreadable => "value-unreadable",
            Self::ForeignOwner => "foreign-owner",
            Self::IndexWrong => "index-wrong",
            Self::LogUnreadable => "log-unreadable",
            Self::SumWrong => "sum-wrong",
            Self::DiskFull => "disk-full",
            Self::LogLarge => "log-large",
            Self::Unguarded => "unguarded",
            Self::SchemaAside => "schema-aside",
            Self::Quarantined => "quarantined",
            Self::Nobodys => "nobodys",
            Self::HeadBehind => "head-behind",
            Self::Parked => "parked",
            Self::Copied => "copied",
            Self::TailLost => "tail-lost",
            Self::Older => "older",
            Self::DiskTight => "disk-tight",
        }
    }

    /// Returns what to do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Damaged
            | Self::NamesWrong
            | Self::ClockUnreadable
            | Self::BeyondHead
            | Self::RowGone
            | Self::IndexWrong
            | Self::LogUnreadable => START_OVER,
            Self::GivenUp => {
                "Make room where the disk is full; else look again while less is written, or make a \
                 backup and look at that (`tribune doctor --file`)"
            }
            Self::SetBack => {
                "Restart the node with the others up: it then goes on under a new epoch. Put back \
                 databases with `tribune restore`, not by copying files"
            }
            Self::Diverged => {
                "Write these rows again through any node, which settles it everywhere. Where a row \
                 belongs to a node, register it there again. If more and more come, move the \
                 database of the node that is wrong away: it gets everything from the others"
            }
            Self::RowUnknown => {
                "Write them again through the node (`tribune exec`), or delete them there; nothing \
                 but the node should write to its database"
            }
            Self::RowUndead => {
                "Delete them through the node (`tribune exec`); nothing but the node should write \
                 to its database"
            }
            Self::ValueUnreadable => {
                "Write these rows again through the node (`tribune exec`), with text that is UTF-8"
            }
            Self::ForeignOwner => {
                "Register them again on the node that owns them, and look for a node whose \
                 certificate was copied"
            }
            Self::SumWrong => {
                "Look at what else is told of this table, and mend that. The node itself goes by its \
                 rows; only who compares it with others by these sums is led astray"
            }
            Self::DiskFull => {
                "Make room: a node whose disk is full answers on, but takes no more writes"
            }
            Self::LogLarge => {
                "Look for a program that reads the database for a long time (a backup, an sqlite3 \
                 shell) and end it; else restart the node"
            }
            Self::Unguarded => {
                "Restart the node, which guards them again; what another program may have written \
                 is told above"
            }
            Self::SchemaAside => {
                "Change the schema so that every node can have it (`tribune schema show`, `tribune \
                 schema apply`)"
            }
            Self::Quarantined => {
                "Change the row so that it fits, on any node, or relax the table's rules here; it \
                 shows as soon as it fits"
            }
            Self::Nobodys => "Restore a backup (`tribune restore`); this one was not made whole",
            Self::HeadBehind => {
                "Nothing, while the node runs and reaches others: it asks them for all that it does \
                 not say it holds, and gets it once more. Where it stays, look which of the two is \
                 wrong with a backup of another node (`tribune doctor --compare`)"
            }
            Self::Parked => {
                "Nothing, while a new schema is being rolled out. Else load it on this node \
                 (--schema): they show as soon as it is there"
            }
            Self::Copied => {
                "Nothing: at its next start the node goes on under a new epoch. Do not start it \
                 while another one runs with the same certificate"
            }
            Self::TailLost => {
                "Nothing: at its next start the node goes on under a new epoch, and gets from the \
                 others what it lost"
            }
            Self::Older => {
                "Nothing: the next start brings it up. Until then rows are not looked at"
            }
            Self::DiskTight => "Make room before a restore or a backup to this disk",
        }
    }

    fn what(self, count: u64, table: &str) -> String {
        let by_count = |one: &'static str, many: &'static str| if count == 1 { one } else { many };
        let some = format!("{count} {} of {table}", by_count("row", "rows"));
        let (are, were) = (by_count("is", "are"), by_count("was", "were"));
        let have = by_count("has", "have");
        match self {
            Self::Damaged => "The database file is damaged".to_owned(),
            Self::GivenUp => "Not all was looked at, since that would have held the node up; what \
                is told here was found until then"
                .to_owned(),
            Self::NamesWrong => "The list of tables and columns is damaged".to_owned(),
            Self::ClockUnreadable => format!("{some} {have} a clock that cannot be read"),
            Self::SetBack => "The other node holds writes of this one that it does not know \
                itself: its database was set back"
                .to_owned(),
            Self::Diverged => format!(
                "{some} {} although both nodes hold all that was written to the table",
                by_count("differs", "differ")
            ),
            Self::BeyondHead => {
                format!("{some} {were} written by this node after what it says was its last write")
            }
            Self::RowGone => {
                format!("{some} {are} missing: another program removed what was there")
            }
            Self::RowUnknown => {
                format!("{some} {were} written by another program, and no other node has that")
            }
            Self::RowUndead => {
                format!("{some} {were} deleted, and another program put something there since")
            }
            Self::ValueUnreadable => {
                format!("{some} {} what cannot be replicated", by_count("holds", "hold"))
            }
            Self::ForeignOwner => format!("{some} {were} written by a node that does not own that"),
            Self::IndexWrong => {
                format!("{some} {are} not found by version: other nodes may never get that")
            }
            Self::LogUnreadable => format!(
                "{count} {} of the log of versions cannot be read: other nodes may never get what \
                 it names",
                by_count("part", "parts")
            ),
            Self::SumWrong => {
                format!("The fingerprint that is kept of {table} is not that of its rows")
            }
            Self::DiskFull => "The disk is nearly full".to_owned(),
            Self::LogLarge => "The write-ahead log cannot be emptied".to_owned(),
            Self::Unguarded => {
                format!("Somebody removed what keeps other programs from writing to {table}")
            }
            Self::SchemaAside => format!(
                "{count} {} of the cluster's schema cannot be carried out here",
                by_count("part", "parts")
            ),
            Self::Quarantined => {
                format!("{some} {were} written elsewhere and cannot be in the table here")
            }
            Self::Nobodys => "The database names no node".to_owned(),
            Self::HeadBehind => format!(
                "{some} {have} another node's write that is newer than what this node says it \
                 holds of that one"
            ),
            Self::Parked => {
                format!("{some} {have} values that this node's schema has no place for yet")
            }
            Self::Copied => {
                "The database was copied or restored since the node last ran".to_owned()
            }
            Self::TailLost => {
                "The machine went down under the node, and its last writes may be lost".to_owned()
            }
            Self::Older => "The database was last used by an older tribune".to_owned(),
            Self::DiskTight => "There is less room on the disk than the database takes".to_owned(),
        }
    }
}

/// Something that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub kind: Kind,
    /// `None`: it concerns no table, or all.
    pub table: Option<String>,
    pub count: u64,
    /// The first few: keys, or what SQLite says.
    pub examples: Vec<String>,
}

impl Finding {
    pub(super) fn of(kind: Kind) -> Self {
        Self { kind, table: None, count: 1, examples: Vec::new() }
    }

    pub(super) fn shows(mut self, example: String) -> Self {
        self.examples.push(example);
        self
    }

    /// Counts one more.
    pub(super) fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(example());
        }
    }

    /// Returns what is wrong, as a sentence without its full stop.
    pub fn what(&self) -> String {
        // A name that was used again after it was dropped travels with a number.
        let table = self.table.as_deref().map(|table| table.replace('\0', "#"));
        self.kind.what(self.count, table.as_deref().unwrap_or("the database"))
    }
}
