//! `cargo +nightly fuzz run policies corpus/policies ../../policy-examples -- -max_len=8192`: Intents and Guards.
//!
//! What crashes goes to regressions/ under a name that says why; the tests of the crate replay it.
#![no_main]

#[expect(dead_code, reason = "it is about every front end, and this about one")]
#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::text(data, check::policies));
