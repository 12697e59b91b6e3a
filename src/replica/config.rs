//! The replica's knobs, with their reasons.

use std::time::Duration;

use super::{offers, pull, serve};

/// How a replica behaves. The defaults suit a cluster of one to some thousand nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// How many neighbours a node looks for. With five or more, random overlays of any size hold
    /// together and reach everybody in about log N steps.
    pub eager_target: usize,
    /// Below this many neighbours a node looks for more, and it parts from none.
    pub eager_floor: usize,
    /// Above this many neighbours a node refuses all but an urgent one, and parts from some.
    pub eager_max: usize,
    /// How many of the neighbours are looked for among the close members, by lot; the others among
    /// the distant ones. Where there are none of a kind, the other kind takes their places.
    pub eager_near: usize,
    /// Up to which round trip a member is close: so much that an offer and an answer more are
    /// no wait.
    pub close_max: Duration,
    /// In a cluster with at most so many other members each node has links to all of them, and sends
    /// them its own commits itself: nobody passes them on.
    pub direct_max: usize,
    /// From how many bytes on that is too much for one node: the first few pass it on to the others.
    pub large_bytes: usize,
    /// Whether a commit of another node is offered to neighbours instead of sent, wherever they are
    /// close or probably have it. Without it every neighbour is sent everything.
    pub offers: bool,
    /// How long distant neighbours who probably have it by then are not offered a commit.
    pub offer_later: Duration,
    /// How long a peer may take at least until it sends what it offered, beside the time on the way.
    /// The more peers are late, the longer they may.
    pub take_timeout: Duration,
    /// How many bytes of fresh commits are kept at hand for those who ask for them.
    pub kept_bytes_max: usize,
    /// How many peers get digests of the heads that moved: others than the neighbours, as long as
    /// there are others. Where all are neighbours, a third as many do.
    pub lazy_target: usize,
    /// How often a peer gets a digest, at most.
    pub digest_every: Duration,
    /// How long a node stays behind before it pulls: most pushes come by themselves until then.
    pub pull_after: Duration,
    /// The same where a close peer says that it holds what is missing: it came there a while ago.
    pub pull_soon: Duration,
    /// When a pull that was not answered is tried elsewhere.
    pub pull_timeout: Duration,
    /// How many pulls may be outstanding.
    pub pulls_max: usize,
    /// How many pulls may be outstanding with one peer.
    pub pulls_per_peer_max: usize,
    /// How many wants of others are served at a time; above that they are told to come back.
    pub loads_max: usize,
    /// How much one answer to a want carries, in bytes: some ten milliseconds on a link.
    pub piece_bytes_max: usize,
    /// How often the whole ledger is compared with one random member, which then gets digests in
    /// the place of another.
    pub compare_every: Duration,
    /// How soon that is done again after a difference was found.
    pub compare_again_after: Duration,
    /// How often a neighbour is greeted: who is silent for longer than
    /// [`Config::link_silence`](Config) is not heard.
    pub greet_every: Duration,
    /// How long a neighbour may be silent.
    pub link_silence: Duration,
    /// How often a stretch of rows is held against those of a member by lot.
    pub audit_every: Duration,
    /// How often one link by lot is exchanged, so that the overlay stays a random one.
    pub shuffle_every: Duration,
    /// How many duplicates in a row make a neighbour superfluous.
    pub duplicates_max: u32,
    /// How many bytes one transaction takes over from other nodes: long ones delay local commits.
    pub batch_bytes_max: usize,
    /// How long after one such transaction began the next one may: what comes in between shares
    /// it. A transaction costs more than the few rows in it, so that in a lively cluster this saves
    /// a third of the work. A change that comes alone does not wait, and none waits to be passed on.
    pub apply_every: Duration,
    /// How many waiting bytes are worth a transaction at once.
    pub apply_now_bytes: usize,
    /// How many bytes may wait to be applied. At the brim pushes are dropped, to be pulled later.
    pub ready_bytes_max: usize,
    /// How many bytes of an origin may wait for a missing version. At the brim they are dropped.
    pub early_origin_bytes_max: usize,
    /// How many bytes in all may wait for missing versions.
    pub early_bytes_max: usize,
    /// How many bytes of one origin's pulled parts are kept in memory until they are whole. At the
    /// brim they go to the disk, and so do those that follow.
    pub staged_origin_bytes_max: usize,
    /// How many bytes of pulled parts of all origins are kept in memory until they are whole. At
    /// the brim those of the origin that is added to go to the disk.
    pub staged_bytes_max: usize,
    /// How many bytes of an origin that goes to the disk go there at a time: enough that the sync of
    /// each costs little, few enough that they are no burden while they wait.
    pub stage_bytes_max: usize,
    /// How many bytes of one origin's pulled parts are kept on disk until they are whole: applying
    /// them holds the writer. At the brim what is there is applied at the next end of a version, and
    /// the origin's rows are for a while no true prefix. A single version is never split.
    pub stored_origin_bytes_max: usize,
    /// How long rows of this node may stay that come back from others after its disk was lost or
    /// set back, before they are withdrawn: what runs here has that long to register again.
    pub withdraw_after: Duration,
    /// Whether tombstones of deleted rows are dropped once every member holds the deletes. Then a
    /// node is silent, in a new epoch, until it has caught up with a member that was there.
    pub collect: bool,
    /// How long after all members have told their heads they are asked again.
    pub round_every: Duration,
    /// How often what was told is passed on to a member by lot, at most: less and less often while
    /// nothing new is heard.
    pub tell_every: Duration,
    /// How long a process has run before it tells its heads: long enough to meet again whom the
    /// one before it knew.
    pub tell_after: Duration,
    /// How long a member may be away before it is forgotten, where most members are here. Until
    /// then no tombstone goes. When it returns it takes all rows anew.
    pub forget_after: Duration,
    /// How long a process must have run without hearing of any other member before it drops
    /// tombstones by its own word.
    pub alone_after: Duration,
    /// How long it is remembered of an origin that nothing is left of it, and of a node that it is
    /// gone, after all members know: longer than any message is on its way.
    pub retired_for: Duration,
    /// How many tombstones one transaction drops.
    pub collect_rows_max: usize,
    /// How often a node that must not speak yet asks to be let in.
    pub join_every: Duration,
    /// How long it waits for one who may let it in, where all members are up and none may: in a
    /// cluster that has just begun.
    pub settle_alone_after: Duration,
    /// How long where most members are up and none may: in a cluster that was restored, but for some
    /// of its nodes.
    pub settle_without_after: Duration,
}

/// What follows from the settings: how much may be sent at most, whatever fails.
impl Config {
    /// Returns how often a process sends one version at most: once to each neighbour, and again
    /// to each as often as it may ask for what was offered. Where the disk refuses it and its origin
    /// is set aside, so often again, should it come by as a push once more.
    pub fn pushes_max(&self) -> usize {
        let neighbours = self.eager_max.max(self.direct_max);
        neighbours * (1 + offers::TRIES_MAX as usize)
    }

    /// Returns how often a process asks for one origin in vain: so often in a row, and then so
    /// often a second. Of an origin a few peers are known as sources; each may disappoint a few
    /// times, and one that is busy is asked again after its pause at the soonest.
    pub fn wants_max(&self) -> (f64, f64) {
        let sources = pull::SOURCES_MAX as f64;
        let in_a_row = sources * f64::from(pull::MISSES_BEGUN_MAX);
        (in_a_row, sources / serve::RETRY_AFTER.as_secs_f64())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            eager_target: 6,
            eager_floor: 5,
            eager_max: 9,
            eager_near: 5,
            close_max: Duration::from_millis(5),
            direct_max: 16,
            large_bytes: 16 * 1024,
            offers: true,
            offer_later: Duration::from_millis(25),
            take_timeout: Duration::from_millis(15),
            kept_bytes_max: 4 * 1024 * 1024,
            lazy_target: 6,
            digest_every: Duration::from_millis(500),
            pull_after: Duration::from_millis(300),
            pull_soon: Duration::from_millis(50),
            pull_timeout: Duration::from_secs(1),
            pulls_max: 16,
            pulls_per_peer_max: 4,
            loads_max: 8,
            piece_bytes_max: 256 * 1024,
            compare_every: Duration::from_secs(30),
            compare_again_after: Duration::from_secs(5),
            greet_every: Duration::from_secs(4),
            link_silence: Duration::from_secs(10),
            audit_every: Duration::from_secs(10),
            shuffle_every: Duration::from_secs(60),
            duplicates_max: 16,
            batch_bytes_max: 1024 * 1024,
            apply_every: Duration::from_millis(8),
            apply_now_bytes: 64 * 1024,
            ready_bytes_max: 32 * 1024 * 1024,
            early_origin_bytes_max: 256 * 1024,
            early_bytes_max: 16 * 1024 * 1024,
            staged_origin_bytes_max: 8 * 1024 * 1024,
            staged_bytes_max: 64 * 1024 * 1024,
            stage_bytes_max: 1024 * 1024,
            stored_origin_bytes_max: 64 * 1024 * 1024,
            withdraw_after: Duration::from_secs(60),
            collect: false,
            round_every: Duration::from_secs(600),
            tell_every: Duration::from_secs(10),
            tell_after: Duration::from_secs(30),
            forget_after: Duration::from_secs(72 * 3_600),
            alone_after: Duration::from_secs(3_600),
            retired_for: Duration::from_secs(3_600),
            collect_rows_max: 500,
            join_every: Duration::from_secs(1),
            settle_alone_after: Duration::from_secs(1),
            settle_without_after: Duration::from_secs(30),
        }
    }
}
