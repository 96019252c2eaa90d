//! From text to what a node shall enforce.

mod diagnostics;
mod examples;
mod guard;
mod network;
mod policy;
mod replay;
mod support;
