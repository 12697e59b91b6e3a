//! See [`tribune_fuzz::merge_changes`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tribune_fuzz::merge_changes(bytes));
