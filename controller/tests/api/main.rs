//! The agent's HTTP API as a client sees it, over a node in memory: what is answered, what takes effect, what is recorded.

mod changes;
mod client;
mod command;
mod confirm;
mod contract;
#[path = "../agent/home.rs"]
mod home;
mod hostile;
mod node;
mod policies;
mod refused;
mod replay;
mod requests;
mod revisions;
mod rollback;
mod served;
