//! `cargo +nightly fuzz run api corpus/api requests -- -max_len=4096`
//!
//! What crashes goes to requests/ under a name that says why; the tests of the crate replay it.
#![no_main]

#[path = "../api.rs"]
mod api;

use std::cell::LazyCell;

thread_local! {
    static API: LazyCell<api::Api> = LazyCell::new(api::Api::new);
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    API.with(|api| api.check(data));
});
