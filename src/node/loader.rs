//! The thread that reads old changes back from the database, for peers that pull them. It has a
//! read-only connection of its own, so that serving others never delays a write.

use std::sync::mpsc;
use std::thread;

use tracing::warn;

use super::engine::Happened;
use super::mailbox::Reports;
use crate::crdt::content::Look;
use crate::crdt::storage::{Bookmark, StorageError};
use crate::replica::{LoadId, LookId};
use crate::store::Loader;
use crate::types::Origin;

struct Ask {
    id: LoadId,
    origin: Origin,
    from: Bookmark,
    bytes_max: usize,
}

/// Asks for loads. The replica has a limit on how many are under way, so the queue needs none.
pub(super) struct Loads {
    asks: mpsc::Sender<Ask>,
}

impl Loads {
    /// Starts the thread. It ends when the asking side and the engine are gone.
    pub(super) fn start(mut loader: Loader, reports: Reports) -> std::io::Result<Self> {
        let (asks, asked) = mpsc::channel();
        thread::Builder::new()
            .name("tribune-loader".to_owned())
            .spawn(move || run(&mut loader, &asked, &reports))?;
        Ok(Self { asks })
    }

    pub(super) fn ask(&self, id: LoadId, origin: Origin, from: Bookmark, bytes_max: usize) {
        if self.asks.send(Ask { id, origin, from, bytes_max }).is_err() {
            warn!("The loader is gone; peers have to pull from others");
        }
    }
}

/// Asks for looks at rows. They have a thread and a connection of their own: a look at thousands of
/// rows must not keep those waiting who pull. The replica has a limit on how many are under way.
pub(super) struct Looks {
    asks: mpsc::Sender<(LookId, Look)>,
}

impl Looks {
    /// Starts the thread. It ends when the asking side and the engine are gone.
    pub(super) fn start(mut loader: Loader, reports: Reports) -> std::io::Result<Self> {
        let (asks, asked) = mpsc::channel::<(LookId, Look)>();
        let run = move || {
            while let Ok((id, look)) = asked.recv() {
                let failed = |error: &StorageError| warn!(%error, "Rows could not be looked at");
                let sight = loader.look(&look).inspect_err(failed).ok();
                if reports.blocking_send(Happened::Sighted { id, sight }).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("tribune-looker".to_owned()).spawn(run)?;
        Ok(Self { asks })
    }

    pub(super) fn ask(&self, id: LookId, look: Look) {
        if self.asks.send((id, look)).is_err() {
            warn!("Rows are not held against other nodes' any more: who looks at them is gone");
        }
    }
}

fn run(loader: &mut Loader, asked: &mpsc::Receiver<Ask>, reports: &Reports) {
    while let Ok(Ask { id, origin, from, bytes_max }) = asked.recv() {
        let extract = loader
            .load(origin, from, bytes_max)
            .inspect_err(|error: &StorageError| {
                warn!(%origin, %error, "Changes could not be read back for a peer");
            })
            .ok();
        if reports.blocking_send(Happened::Loaded { id, extract }).is_err() {
            return;
        }
    }
}
