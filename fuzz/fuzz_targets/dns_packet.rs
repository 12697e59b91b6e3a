//! Any bytes as a DNS packet: see [`tribune_fuzz::dns_packet`].
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tribune_fuzz::dns_packet(bytes));
