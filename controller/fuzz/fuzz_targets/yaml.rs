//! `cargo +nightly fuzz run yaml corpus/yaml ../../policy-examples -- -max_len=8192`
//!
//! What crashes goes to regressions/ under a name that says why; the tests of the crate replay it.
#![no_main]

#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
