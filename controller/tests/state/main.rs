//! What outlives the agent: the database and the audit log, through crashes and changes by others.

mod audit;
mod command;
mod crash;
mod killed;
mod model;
mod support;
mod tampered;
mod vfs;
