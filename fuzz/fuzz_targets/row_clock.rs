//! See [`tribune_fuzz::row_clock`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tribune_fuzz::row_clock(bytes));
