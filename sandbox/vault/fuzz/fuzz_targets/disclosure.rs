#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vault::fuzz::run("disclosure", bytes));
