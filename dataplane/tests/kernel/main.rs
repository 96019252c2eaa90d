//! Kernel access on real maps, programs and links.

mod links;
mod maps;
mod mark;
mod node;
mod pinned;

use crate::pinned::{Directory, ready};

/// The error of something that must not work.
#[track_caller]
fn refused<T, E: std::fmt::Display>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => panic!("this worked"),
        Err(error) => error.to_string(),
    }
}
