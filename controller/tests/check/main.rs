//! How the facts of a node are judged, and what the verb prints.

mod command;
mod facts;
mod judge;
