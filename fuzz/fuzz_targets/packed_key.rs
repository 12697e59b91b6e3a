//! See [`tribune_fuzz::packed_key`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tribune_fuzz::packed_key(bytes));
