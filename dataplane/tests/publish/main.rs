//! The publisher, against judges of its own: what is published is what was meant, at every moment and after every crash. Over tables in memory, and
//! over those of the kernel.

mod build;
mod history;
mod judge;
mod killed;
mod moments;
mod overlays;
#[path = "../kernel/pinned.rs"]
mod pinned;
mod probes;
mod random;
mod rig;
mod services;
mod single;
mod slow;
mod world;
