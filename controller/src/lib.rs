//! The intent half of Bulkhead: reads what people write, turns it into what a node shall enforce, and shows what came of it.
//!
//! ```text
//! policy::parse ──────┐
//! workloads::parse ───┼─> model::Model::build ─> compile::compile ─> bulkhead_dataplane::desired::Desired
//! manifest::Manifests ┘            │    └──────> compile::Compiler, event by event
//!                                  └─> explain::explain, simulate::Simulation, lint::lint
//! ```
//!
//! [`offline`] makes a model of files for questions that need no agent.
//!
//! What is read comes from a [`source`]: files, or a [`cluster`].
//!
//! Everything up to `Desired` is pure: no I/O, no clock, and the same input gives the same output. So is [`settle`], which says what can be used of
//! files some of which are bad. [`check`] says before all of this whether a node can be guarded, [`agent`] carries it there and keeps it, [`store`]
//! and [`audit`] keep what was in force and who changed it, [`confine`] gives away what none of this needs, [`api`] lets others ask and change,
//! [`metrics`] and [`show`] tell what the node counted.

pub mod accounts;
pub mod adopt;
pub mod agent;
pub mod api;
pub mod attachments;
pub mod audit;
pub mod bypass;
pub mod check;
pub mod client;
pub mod cluster;
pub mod cni;
pub mod compile;
pub mod confine;
pub mod control;
pub mod convert;
pub mod diagnostic;
pub mod drift;
pub mod explain;
pub mod few;
pub mod guard;
pub mod input;
pub mod install;
pub mod intent;
mod judge;
pub mod labels;
pub mod lint;
pub mod manifest;
pub mod metrics;
pub mod model;
mod names;
pub mod network_policy;
pub mod offline;
pub mod overlay;
pub mod peers;
pub mod plan;
pub mod policy;
pub mod ports;
pub mod room;
pub mod run;
pub mod settle;
pub mod show;
pub mod simulate;
mod slice;
pub mod source;
pub mod store;
mod watch;
pub mod workloads;
mod yaml;
