//! Live queries: the rows of a SELECT, then every change of them.
//!
//! One live query serves all subscribers of the same SQL, on any node under the same id. It learns
//! from SQLite which tables the statement reads; after a commit that touches one of them it looks
//! again and compares: at the rows alone that changed, where each row of the result comes of one
//! row of one table and shows its key ([`Narrow`]), else at all. Commits that come while it looks
//! are looked at together. Subscribers read one shared log of changes, each from its own place, so
//! that none can be passed over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use uuid::Uuid;

use super::feed::Feed;
use super::lock;
use super::rows::{Change, Row, Rows, bytes_of};
use crate::crdt::{Commit, RowEvents, TableEvents};
use crate::store::narrow::{KEYS_MAX, Narrow};
use crate::store::readers::{Described, Kept, QueryError, QueryEvent};
use crate::store::schema::SCHEMA_TABLE;
use crate::store::{Params, Readers, Statement};
use crate::types::Value;

/// How many distinct queries may be live on one node. Beyond it new ones are refused.
const QUERIES_MAX: usize = 1_000;

/// How many subscribers all queries of one node may have together. Beyond it new ones are refused.
const SUBSCRIBERS_MAX: usize = 10_000;

/// How many rows a live query may have, and how many bytes of values: they are held in memory.
const ROWS_MAX: usize = 100_000;
const ROW_BYTES_MAX: usize = 64 << 20;

/// How many changes are kept for subscribers who fall behind or come back.
const LOG_CHANGES_MAX: usize = 10_000;
const LOG_BYTES_MAX: usize = 16 << 20;

/// How many queries are looked at at once; the others wait for their turn.
const LOOKS_MAX: usize = 2;

/// How long after a look that ran out of time the query is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many looks in a row may fail before the query is given up.
const FAILURES_MAX: u32 = 5;

/// How far apart the change ids of two lives of one query are: more than either will have. A
/// client that resumes in another life (after a restart, or on another node) is then told so, and
/// never passed over a change. Together with 32 random bits it stays below 2^53.
const LIFE_CHANGES: u64 = 1 << 20;

/// How long one look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// How long a query without subscribers stays, so that one who comes back can resume.
const IDLE_FOR: Duration = Duration::from_secs(600);

/// What a subscriber hears who comes in the moment in which an idle query ends.
const NOBODY: &str = "nobody subscribed to this query for ten minutes; subscribe again";

/// Why a query ends that the schema has made another one.
const OTHER_SHAPE: &str =
    "the schema changed, and with it the columns or the tables of this query; subscribe again";

/// Why a query cannot be kept live.
const NOT_FOR_LIFE: &str = "the query calls a function of time, chance or the connection: its rows \
     would change without a commit, so it cannot be kept live";

/// The name space of query ids: the same SQL has the same id everywhere.
const ID_SPACE: Uuid = Uuid::from_u128(0x6b1e_6f0a_52a7_4b0c_9d55_3b6c_1f0e_72a4);

/// Why a subscription was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The statement is at fault.
    #[error("{0}")]
    Refused(String),
    /// The database is at fault, or the node is going down.
    #[error("{0}")]
    Failed(String),
    #[error("could not find subscription with id {0}")]
    Unknown(Uuid),
    #[error("a `from` query param was supplied, but no existing subscription found")]
    NothingToResume,
    #[error(
        "this node already holds {QUERIES_MAX} live queries, or {SUBSCRIBERS_MAX} subscribers of them"
    )]
    TooMany,
}

/// What a subscriber is told, in this order: columns, rows and their end (unless skipped or
/// resumed), then changes for ever. `Failed` and `Interrupted` are the last.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    Columns(Vec<String>),
    Row(u64, Row),
    /// The rows are complete as of this change.
    EndOfRows {
        took: Duration,
        change_id: u64,
    },
    Change(Arc<Change>),
    /// There is no going on.
    Failed(String),
    /// The node goes down: the subscriber may come back, and resume.
    Interrupted,
}

/// All live queries of a node.
pub struct Queries {
    readers: Arc<Readers>,
    feed: Arc<Feed>,
    live: Mutex<BTreeMap<Uuid, Arc<LiveQuery>>>,
    looks: Semaphore,
    tasks: TaskTracker,
    token: CancellationToken,
}

/// One distinct query.
struct LiveQuery {
    id: Uuid,
    statement: Statement,
    columns: Vec<String>,
    tables: BTreeSet<String>,
    /// The columns by which a row is known again.
    key: Vec<usize>,
    /// Renewed with the schema; gone when it was found to be of no use.
    by_key: Mutex<Option<Arc<ByKey>>>,
    state: Mutex<State>,
    /// Rises with every entry of the log, and when the query fails.
    news: watch::Sender<u64>,
    subscribers: AtomicUsize,
    looked_in: Duration,
}

/// How a query is asked of a few rows alone.
struct ByKey {
    narrow: Narrow,
    /// For each column of [`LiveQuery::key`], its place in the table's primary key.
    places: Vec<usize>,
}

impl ByKey {
    /// Returns a key of the table as the result has it.
    fn shown(&self, key: &[Value]) -> Option<Vec<Value>> {
        self.places.iter().map(|place| key.get(*place).cloned()).collect()
    }
}

/// The primary keys of the tables that a query reads, each in the key's order.
type PrimaryKeys = BTreeMap<String, Vec<String>>;

/// Keys of the table that a query reads, as the table has them.
type Keys = BTreeSet<Vec<Value>>;

struct State {
    rows: Rows,
    log: VecDeque<Arc<Change>>,
    log_bytes: usize,
    /// The last change that is not in the log any more, or the number this life began with.
    forgotten_to: u64,
    /// All rows as of the newest change, once somebody asked.
    snapshot: Option<Snapshot>,
    /// What every subscriber is told last, once the query has ended.
    end: Option<Event>,
}

/// Rows with their numbers, shared by all subscribers who came between two changes.
type Snapshot = Arc<Vec<(u64, Row)>>;

/// A subscriber's place in a live query.
pub struct Subscription {
    query: Arc<LiveQuery>,
    /// What is still to be told before the changes: heads, rows from a place on, and an end.
    head: Option<Event>,
    rows: Option<(Snapshot, usize)>,
    tail: Option<Event>,
    told_to: u64,
    news: watch::Receiver<u64>,
    is_over: bool,
}

impl Queries {
    /// Makes the set, empty. Cancelling the token ends every query.
    pub fn new(readers: Arc<Readers>, feed: Arc<Feed>, token: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            readers,
            feed,
            live: Mutex::default(),
            looks: Semaphore::new(LOOKS_MAX),
            tasks: TaskTracker::new(),
            token,
        })
    }

    /// Subscribes to a SELECT. `from` resumes after that change, and needs a query that is live.
    pub async fn subscribe(
        self: &Arc<Self>,
        statement: Statement,
        from: Option<u64>,
        skip_rows: bool,
    ) -> Result<Subscription, SubscribeError> {
        let id = id_of(&statement);
        self.admit()?;
        if let Some(query) = self.find(id) {
            return Ok(query.subscribe(from, skip_rows));
        }
        if from.is_some() {
            return Err(SubscribeError::NothingToResume);
        }
        let query = self.begin(id, statement).await?;
        Ok(query.subscribe(from, skip_rows))
    }

    /// Subscribes to a live query by its id.
    pub fn resume(
        &self,
        id: Uuid,
        from: Option<u64>,
        skip_rows: bool,
    ) -> Result<Subscription, SubscribeError> {
        self.admit()?;
        let query = self.find(id).ok_or(SubscribeError::Unknown(id))?;
        Ok(query.subscribe(from, skip_rows))
    }

    /// Returns how many queries are live, and how many subscribe to them.
    pub fn counts(&self) -> (usize, usize) {
        let live = lock(&self.live);
        let subscribers = live.values().map(|query| query.subscribers.load(Ordering::Relaxed));
        (live.len(), subscribers.sum())
    }

    /// Ends every query and waits for its task.
    pub async fn close(&self) {
        self.token.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn admit(&self) -> Result<(), SubscribeError> {
        if self.counts().1 >= SUBSCRIBERS_MAX { Err(SubscribeError::TooMany) } else { Ok(()) }
    }

    fn find(&self, id: Uuid) -> Option<Arc<LiveQuery>> {
        let live = lock(&self.live);
        live.get(&id).filter(|query| lock(&query.state).end.is_none()).map(Arc::clone)
    }

    async fn begin(
        self: &Arc<Self>,
        id: Uuid,
        statement: Statement,
    ) -> Result<Arc<LiveQuery>, SubscribeError> {
        if lock(&self.live).len() >= QUERIES_MAX {
            return Err(SubscribeError::TooMany);
        }
        // Commits are followed before the first look, so that none falls between the two.
        let commits = self.feed.follow();
        let Meant { described, key, by_key } = self.describe(&statement).await?;
        if !described.is_deterministic() {
            return Err(SubscribeError::Refused(NOT_FOR_LIFE.to_owned()));
        }
        let begun = Instant::now();
        let first = self.look(&statement).await?;
        let mut rows = Rows::new(key.clone());
        let base = u64::from(rand::random::<u32>()) * LIFE_CHANGES;
        rows.begin(first, base);
        let query = Arc::new(LiveQuery {
            id,
            statement,
            tables: described.tables().into_iter().map(str::to_owned).collect(),
            columns: described.columns.into_iter().map(|column| column.name).collect(),
            key,
            by_key: Mutex::new(by_key),
            state: Mutex::new(State {
                rows,
                log: VecDeque::new(),
                log_bytes: 0,
                forgotten_to: base,
                snapshot: None,
                end: None,
            }),
            news: watch::Sender::new(0),
            subscribers: AtomicUsize::new(0),
            looked_in: begun.elapsed(),
        });
        let mut live = lock(&self.live);
        if let Some(earlier) = live.get(&id).filter(|held| lock(&held.state).end.is_none()) {
            // Somebody else began the same query meanwhile: one of them is enough.
            return Ok(Arc::clone(earlier));
        }
        live.insert(id, Arc::clone(&query));
        drop(live);
        let (queries, follower) = (Arc::clone(self), Arc::clone(&query));
        self.tasks.spawn(async move { queries.follow(follower, commits).await });
        Ok(query)
    }

    /// Keeps one query up to date until nobody wants it any more.
    async fn follow(&self, query: Arc<LiveQuery>, mut commits: broadcast::Receiver<Arc<Commit>>) {
        debug!(id = %query.id, sql = query.statement.sql, "A query goes live");
        let mut idle_since = Some(Instant::now());
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(IDLE_FOR / 10, commits.recv()) => next,
                () = self.token.cancelled() => break query.end(Event::Interrupted),
            };
            idle_since = match query.subscribers.load(Ordering::Relaxed) {
                0 => idle_since.or_else(|| Some(Instant::now())),
                _ => None,
            };
            if idle_since.is_some_and(|since| since.elapsed() >= IDLE_FOR) {
                break query.end(Event::Failed(NOBODY.to_owned()));
            }
            let Ok(received) = next else { continue };
            let keys = match query.is_hit(received, &mut commits) {
                Hit::Yes => None,
                Hit::Rows(keys) => Some(keys),
                Hit::Schema => {
                    if let Err(error) = self.look_at_schema(&query).await {
                        break query.end(Event::Failed(error.to_string()));
                    }
                    None
                }
                Hit::No => continue,
                Hit::Over => break query.end(Event::Interrupted),
            };
            let caught_up = tokio::select! {
                caught_up = self.catch_up(&query, keys) => caught_up,
                () = self.token.cancelled() => break query.end(Event::Interrupted),
            };
            if let Err(error) = caught_up {
                warn!(id = %query.id, %error, "A live query failed; its subscribers are told");
                break query.end(Event::Failed(error.to_string()));
            }
        }
        let mut live = lock(&self.live);
        if live.get(&query.id).is_some_and(|held| Arc::ptr_eq(held, &query)) {
            live.remove(&query.id);
        }
    }

    /// Asks what a statement returns, and by which of its columns a row is known again.
    async fn describe(&self, statement: &Statement) -> Result<Meant, SubscribeError> {
        let readers = Arc::clone(&self.readers);
        let sql = statement.sql.clone();
        let described = blocking(move || {
            let described = readers.describe(&sql)?;
            let tables = described.tables().into_iter();
            let primary = tables.map(|table| Ok((table.to_owned(), readers.key_of(table)?)));
            let primary = primary.collect::<Result<PrimaryKeys, QueryError>>()?;
            let key = key_of(&described, &primary);
            let by_key = by_key(&readers, &sql, &described, &primary, &key).map(Arc::new);
            Ok(Meant { described, key, by_key })
        });
        described.await?.map_err(sort)
    }

    /// Looks whether the statement still means what it did: its columns were told once.
    async fn look_at_schema(&self, query: &LiveQuery) -> Result<(), SubscribeError> {
        let Meant { described, key, by_key } = self.describe(&query.statement).await?;
        *lock(&query.by_key) = by_key;
        let columns = described.columns.iter().map(|column| &column.name);
        let is_same = columns.eq(&query.columns)
            && described.tables().iter().eq(&query.tables)
            && key == query.key;
        if is_same { Ok(()) } else { Err(SubscribeError::Refused(OTHER_SHAPE.to_owned())) }
    }

    /// Looks again, at the rows with these keys or at all, and yet again where the database is busy.
    async fn catch_up(&self, query: &LiveQuery, keys: Option<Keys>) -> Result<(), SubscribeError> {
        if let Some(keys) = keys
            && self.look_at(query, keys).await?
        {
            return Ok(());
        }
        for _ in 1..FAILURES_MAX {
            match self.look(&query.statement).await {
                Ok(rows) => {
                    query.take(rows);
                    return Ok(());
                }
                Err(SubscribeError::Failed(error)) => {
                    debug!(id = %query.id, error, "A look failed; looking again");
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
        self.look(&query.statement).await.map(|rows| query.take(rows))
    }

    /// Looks at the rows with these keys. Returns whether that was enough.
    async fn look_at(&self, query: &LiveQuery, keys: Keys) -> Result<bool, SubscribeError> {
        let Some(by_key) = lock(&query.by_key).clone() else { return Ok(false) };
        let asked: Vec<Vec<Value>> = keys.iter().cloned().collect();
        let shown: Option<Keys> = keys.iter().map(|key| by_key.shown(key)).collect();
        let (Some(sql), Some(shown)) = (by_key.narrow.at(&asked), shown) else { return Ok(false) };
        let statement = Statement { sql, params: query.statement.params.clone() };
        let is_enough = match self.run(statement, Kept::No).await {
            Ok(rows) => query.patch(&shown, rows)?,
            Err(SubscribeError::Failed(error)) => {
                debug!(id = %query.id, error, "A look at a few rows failed; looking at all");
                return Ok(false);
            }
            Err(_) => false,
        };
        if !is_enough {
            // It would be no better the next time.
            *lock(&query.by_key) = None;
        }
        Ok(is_enough)
    }

    /// Runs the query once.
    async fn look(&self, statement: &Statement) -> Result<Vec<Row>, SubscribeError> {
        self.run(statement.clone(), Kept::Yes).await
    }

    async fn run(&self, statement: Statement, kept: Kept) -> Result<Vec<Row>, SubscribeError> {
        // Held while the look runs; waited for without occupying a thread.
        let _turn = self.looks.acquire().await.expect("this semaphore is never closed");
        let readers = Arc::clone(&self.readers);
        let (rows, is_large) = blocking(move || {
            let (mut rows, mut bytes, mut is_large) = (Vec::new(), 0, false);
            let deadline = std::time::Instant::now() + LOOK_WITHIN;
            let mut on_event = |event: QueryEvent<'_>| {
                if let QueryEvent::Row(row) = event {
                    bytes += bytes_of(&row);
                    is_large = is_too_large(rows.len() + 1, bytes);
                    if is_large {
                        return ControlFlow::Break(());
                    }
                    rows.push(Row::from(row));
                }
                ControlFlow::Continue(())
            };
            readers.query_kept((&statement, kept), Some(deadline), &mut on_event)?;
            Ok((rows, is_large))
        })
        .await?
        .map_err(sort)?;
        if is_large { Err(too_large()) } else { Ok(rows) }
    }
}

/// What SQLite says of a statement, and what follows for its being live.
struct Meant {
    described: Described,
    key: Vec<usize>,
    by_key: Option<Arc<ByKey>>,
}

fn is_too_large(rows: usize, bytes: usize) -> bool {
    rows > ROWS_MAX || bytes > ROW_BYTES_MAX
}

fn too_large() -> SubscribeError {
    SubscribeError::Refused(format!(
        "the query has more than {ROWS_MAX} rows or {ROW_BYTES_MAX} bytes, too many to keep live; \
         narrow it"
    ))
}

enum Hit {
    Yes,
    /// These rows of the one table that it reads.
    Rows(Keys),
    /// The schema changed, too.
    Schema,
    No,
    /// There will be no more commits.
    Over,
}

impl LiveQuery {
    /// Takes all commits that are there already, and tells whether any touched what it reads.
    fn is_hit(
        &self,
        first: Result<Arc<Commit>, broadcast::error::RecvError>,
        commits: &mut broadcast::Receiver<Arc<Commit>>,
    ) -> Hit {
        let touches = |commit: &Commit| {
            commit.tables.iter().any(|events| self.tables.contains(&*events.table.name))
        };
        let shapes = |commit: &Commit| {
            commit.tables.iter().any(|events| *events.table.name == *SCHEMA_TABLE)
        };
        // `None`: more than can be told.
        let mut keys = lock(&self.by_key).is_some().then(Keys::new);
        let (mut is_hit, mut is_schema) = match first {
            Ok(commit) => {
                self.add_keys(&commit, &mut keys);
                (touches(&commit), shapes(&commit))
            }
            // Some were missed: any of them may have.
            Err(broadcast::error::RecvError::Lagged(_)) => (true, true),
            Err(broadcast::error::RecvError::Closed) => return Hit::Over,
        };
        loop {
            match commits.try_recv() {
                Ok(commit) => {
                    self.add_keys(&commit, &mut keys);
                    is_hit |= touches(&commit);
                    is_schema |= shapes(&commit);
                }
                Err(broadcast::error::TryRecvError::Lagged(_)) => is_schema = true,
                Err(broadcast::error::TryRecvError::Empty) => break,
                Err(broadcast::error::TryRecvError::Closed) => return Hit::Over,
            }
        }
        match (is_schema, is_hit, keys) {
            (true, _, _) => Hit::Schema,
            (false, true, Some(keys)) => Hit::Rows(keys),
            (false, true, None) => Hit::Yes,
            (false, false, _) => Hit::No,
        }
    }

    /// Adds the keys of the rows that a commit changed, as long as they are few.
    fn add_keys(&self, commit: &Commit, keys: &mut Option<Keys>) {
        let read = |events: &&TableEvents| self.tables.contains(&*events.table.name);
        for events in commit.tables.iter().filter(read) {
            let (RowEvents::Each(rows), Some(held)) = (&events.rows, &mut *keys) else {
                *keys = None;
                return;
            };
            held.extend(rows.iter().take(KEYS_MAX + 1).map(|row| row.key.clone()));
            if held.len() > KEYS_MAX {
                *keys = None;
            }
        }
    }

    fn take(&self, rows: Vec<Row>) {
        let mut state = lock(&self.state);
        let changes = state.rows.replace(rows);
        self.tell(state, changes);
    }

    /// Takes over the rows with these keys. Returns whether that could be done.
    fn patch(&self, keys: &Keys, rows: Vec<Row>) -> Result<bool, SubscribeError> {
        let mut state = lock(&self.state);
        let Some(changes) = state.rows.patch(keys, rows) else { return Ok(false) };
        let (rows, bytes) = state.rows.size();
        if is_too_large(rows, bytes) {
            return Err(too_large());
        }
        self.tell(state, changes);
        Ok(true)
    }

    fn tell(&self, mut state: MutexGuard<'_, State>, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        state.snapshot = None;
        state.log_bytes += changes.iter().map(room_of).sum::<usize>();
        state.log.extend(changes.into_iter().map(Arc::new));
        while state.log.len() > LOG_CHANGES_MAX || state.log_bytes > LOG_BYTES_MAX {
            let Some(oldest) = state.log.pop_front() else { break };
            state.log_bytes -= room_of(&oldest);
            state.forgotten_to = oldest.id;
        }
        drop(state);
        self.news.send_modify(|count| *count += 1);
    }

    fn end(&self, event: Event) {
        lock(&self.state).end = Some(event);
        self.news.send_modify(|count| *count += 1);
    }

    fn subscribe(self: &Arc<Self>, from: Option<u64>, skip_rows: bool) -> Subscription {
        self.subscribers.fetch_add(1, Ordering::Relaxed);
        let news = self.news.subscribe();
        // One lock for rows and change id: the first change told is the first after the rows.
        let mut state = lock(&self.state);
        let last = state.rows.last_change();
        let mut subscription = Subscription {
            query: Arc::clone(self),
            head: None,
            rows: None,
            tail: None,
            told_to: last,
            news,
            is_over: false,
        };
        match from.filter(|id| *id > 0) {
            Some(from) if from > last => {
                subscription.head = Some(Event::Failed(format!(
                    "change id {from} is not one of this query's, whose last is {last}: it began \
                     anew, subscribe again"
                )));
            }
            Some(from) => subscription.told_to = from,
            None if skip_rows => {}
            None => {
                let rows = state.snapshot();
                subscription.head = Some(Event::Columns(self.columns.clone()));
                subscription.rows = Some((rows, 0));
                subscription.tail =
                    Some(Event::EndOfRows { took: self.looked_in, change_id: last });
            }
        }
        drop(state);
        subscription
    }
}

impl State {
    fn snapshot(&mut self) -> Snapshot {
        let Self { snapshot, rows, .. } = self;
        Arc::clone(snapshot.get_or_insert_with(|| Arc::new(rows.all())))
    }
}

impl Subscription {
    /// Returns the query's id, under which it can be resumed.
    pub fn id(&self) -> Uuid {
        self.query.id
    }

    /// Waits for what to tell next. `None` after the last event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(event) = self.first().or_else(|| self.change()) {
                self.is_over = matches!(event, Event::Failed(_) | Event::Interrupted);
                return Some(event);
            }
            if self.news.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Returns the next of what is told before the changes.
    fn first(&mut self) -> Option<Event> {
        if let Some(head) = self.head.take() {
            return Some(head);
        }
        if let Some((rows, place)) = &mut self.rows {
            if let Some((row, cells)) = rows.get(*place) {
                *place += 1;
                return Some(Event::Row(*row, Arc::clone(cells)));
            }
            self.rows = None;
        }
        self.tail.take()
    }

    /// Returns the next change, if there is one already.
    fn change(&mut self) -> Option<Event> {
        // Seen before the log is read: what comes after wakes `next` again.
        self.news.borrow_and_update();
        let state = lock(&self.query.state);
        if self.told_to < state.forgotten_to {
            return Some(Event::Failed(format!(
                "subscription already deleted older changes, min change id: {}",
                state.forgotten_to + 1
            )));
        }
        let place = usize::try_from(self.told_to - state.forgotten_to).unwrap_or(usize::MAX);
        if let Some(change) = state.log.get(place) {
            self.told_to = change.id;
            return Some(Event::Change(Arc::clone(change)));
        }
        state.end.clone()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.query.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sorts why a query did not run: the statement's fault, or not.
fn sort(error: QueryError) -> SubscribeError {
    match error {
        QueryError::Prepare(_)
        | QueryError::Forbidden(_)
        | QueryError::Bind(_)
        | QueryError::Run(_) => SubscribeError::Refused(error.to_string()),
        QueryError::TimedOut | QueryError::Yielded | QueryError::Failed(_) => {
            SubscribeError::Failed(error.to_string())
        }
    }
}

fn room_of(change: &Change) -> usize {
    size_of::<Change>() + bytes_of(&change.cells)
}

/// Returns a query's id: the same for the same text and parameters on every node.
fn id_of(statement: &Statement) -> Uuid {
    let mut name = statement.sql.trim().trim_end_matches(';').trim_end().to_owned();
    match &statement.params {
        Params::None => {}
        Params::Positional(values) => {
            for value in values {
                name.push_str(&format!("\0{value}"));
            }
        }
        Params::Named(values) => {
            let sorted: BTreeMap<&String, &Value> = values.iter().map(|(n, v)| (n, v)).collect();
            for (parameter, value) in sorted {
                name.push_str(&format!("\0{parameter}={value}"));
            }
        }
    }
    Uuid::new_v5(&ID_SPACE, name.as_bytes())
}

/// Finds the result columns by which a row is known again: those of every primary key that the
/// result shows whole. None: the row is known by all of its values.
fn key_of(described: &Described, primary: &PrimaryKeys) -> Vec<usize> {
    let mut key = Vec::new();
    for (table, of_table) in primary {
        let shown = |column: &String| {
            let wanted = (table.clone(), column.clone());
            described.columns.iter().position(|shown| shown.origin.as_ref() == Some(&wanted))
        };
        let columns: Option<Vec<usize>> = of_table.iter().map(shown).collect();
        key.extend(columns.unwrap_or_default());
    }
    key.sort_unstable();
    key
}

/// Returns how to ask a statement of a few rows alone, where its result shows their key.
fn by_key(
    readers: &Readers,
    sql: &str,
    described: &Described,
    primary: &PrimaryKeys,
    key: &[usize],
) -> Option<ByKey> {
    let narrow = readers.narrow(sql, described, primary.values().next()?)?;
    let place = |shown: &usize| {
        let (_, column) = described.columns[*shown].origin.as_ref()?;
        narrow.key().iter().position(|of_key| of_key == column)
    };
    let places: Vec<usize> = key.iter().map(place).collect::<Option<_>>()?;
    (places.len() == narrow.key().len()).then_some(ByKey { narrow, places })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SubscribeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SubscribeError::Failed(format!("the query was interrupted: {error}")))
}
