//! The integration tests: real agents on loopback addresses, asked with real `dig`, HTTP, the
//! system's resolvers and a real Consul, agent and command line. Each test has a network 127.N.0.0/16 of its own, so that all nodes use the
//! default ports and the tests run side by side.

mod support;
mod tombstones;

mod backup;
mod bad_input;
mod bounds;
mod cli;
mod cluster;
mod consul;
mod consul_cli;
mod dev;
mod durability;
mod external;
mod freshness;
mod hostile;
mod large;
mod members;
mod networks;
mod resolvers;
mod schema;
mod shared;
mod snapshot;
mod sql;
