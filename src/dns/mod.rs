//! DNS: what a packet asks, what the view answers, and the sockets in between.
//! Nothing here asks a peer, the disk or a lock for what the zones hold: an answer is a function of one
//! view. Only names outside of them are asked of others, where that is configured ([`recursion`]).
//!
//! A packet goes through the files in this order: [`packet`] reads it, [`question`] finds out
//! what its name means, [`resolve`] gathers the records from the view, [`wire`] writes them, and
//! [`answer`] holds these together. [`server`] owns the sockets.

pub mod answer;
pub mod choose;
pub mod clients;
pub mod config;
pub mod cookie;
pub mod counters;
pub mod errand;
pub mod fast;
pub mod hosts;
pub mod https;
pub mod name;
pub mod packet;
pub mod question;
pub mod rate;
pub mod record;
pub mod recursion;
pub mod resolve;
pub mod secure;
pub mod server;
pub mod tcp;
pub mod udp;
pub mod wire;

#[cfg(test)]
mod edns_tests;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod secure_tests;
#[cfg(test)]
mod testing;

pub use answer::{Outcome, Reply, Request, Transport, answer};
pub use config::{ByService, Config, Soa, Zone};
pub use counters::Counters;
pub use server::{BindError, Dns};
