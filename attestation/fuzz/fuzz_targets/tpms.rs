#![no_main]

#[path = "../attached.rs"]
#[allow(dead_code)]
mod attached;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| attached::tpms(bytes));
