//! From files to a node and back: the agent, its metrics and what the command line shows, over a node in memory.

mod adopt;
mod agent;
mod attach;
#[path = "../incremental/canonical.rs"]
mod canonical;
mod changes;
mod deadlines;
mod home;
mod life;
mod live;
mod metrics;
mod misfits;
mod room;
mod settle;
mod show;
mod store;
mod support;
mod totals;
