//! What `bulkhead lint` finds, and what it does not.

mod cidrs;
mod command;
mod edges;
mod nobody;
mod shadow;
mod support;
mod unguarded;
