//! `cargo +nightly fuzz run manifests corpus/manifests ../../policy-examples/kubernetes -- -max_len=8192`: manifests of Kubernetes, policies among them.
//!
//! What crashes goes to regressions/ under a name that says why; the tests of the crate replay it.
#![no_main]

#[expect(dead_code, reason = "it is about every front end, and this about one")]
#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::text(data, check::manifests));
