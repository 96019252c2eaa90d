//! What is kept up to date event by event is what a full compile says.

mod canonical;
mod cluster;
mod moved;
mod named;
mod oracle;
mod refusals;
mod writes;
