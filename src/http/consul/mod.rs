//! Consul's HTTP API, a file a page of its reference. The answers come from one view each; the
//! spelling of everything is in `dto`.

pub mod agent;
pub mod agent_check;
pub mod agent_service;
pub mod catalog;
pub mod coordinate;
pub mod dto;
pub mod elsewhere;
pub mod event;
pub mod external;
pub mod filter;
#[cfg(test)]
mod golden;
pub mod health;
pub mod index;
pub mod kv;
pub mod prepared;
pub mod process;
pub mod query;
pub mod reading;
pub mod ready;
pub mod status;
pub mod txn;
pub mod upstream;
