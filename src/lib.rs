//! Tribune: a service discovery node. Rooms in building order: a room may use only the rooms
//! declared above it. ARCHITECTURE.md is the map.

/// The words: identities, time, versions, values.
pub mod types;

/// What wins when two writes meet.
pub mod crdt;

/// Which versions of each origin this node holds.
pub mod ledger;

/// Bytes: messages between nodes, written and read.
pub mod wire;

/// Who is alive.
pub mod swim;

/// How changes travel between nodes, without I/O.
pub mod replica;

/// Service discovery as data: commands, the view.
pub mod catalog;

/// Hundreds of nodes in one thread, the same each time.
pub mod sim;

// ---- Above this line nothing touches a socket, a file, a thread, the clock or ambient randomness.

/// Tracing and metrics.
pub mod telemetry;

/// SQLite: the one writer, its readers, the schema.
pub mod store;

/// QUIC between nodes, and the certificates for it.
pub mod net;

/// Who waits for what.
pub mod live;

/// Where the core meets the world.
pub mod node;

/// Is it well? Runs this node's checks.
pub mod health;

/// Takes over what the host's Consul agent knows.
pub mod ingest;

/// Answers DNS.
pub mod dns;

/// Answers HTTP: Consul's API, the SQL API, metrics.
pub mod http;

/// The configuration file, the environment and the flags.
pub mod config;

/// Puts the parts together, and takes them apart again.
pub mod app;

/// The command line.
pub mod cli;
