//! What the targets run: the tests' own harness, which also replays the corpus (`cargo test -p bulkhead-ebpf --test verdict`).
//!
//! `BULKHEAD_SEEDS=DIRECTORY cargo test -p bulkhead-ebpf --test verdict seeds` writes the seeds, `cargo +nightly fuzz run verdict
//! fuzz/corpus/verdict DIRECTORY/verdict` (in the directory above this one) runs a target, `-- -merge=1 -use_counters=0` keeps what is worth it.

#[path = "../../tests/verdict/harness.rs"]
mod harness;
#[path = "../../tests/verdict/node.rs"]
mod node;

/// Length of what stands before the frame in an input of [`verdict`]; all zero it changes nothing.
pub const PLAIN: usize = harness::PLAIN;

/// Reads a frame.
pub fn packet(frame: &[u8]) {
    harness::packet(frame);
}

/// Judges a frame over tables that the input changes.
pub fn verdict(input: &[u8]) {
    harness::verdict(input);
}
