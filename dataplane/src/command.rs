//! Programs of the system that are run for what they alone can do.

use std::{
    io,
    process::{Child, Command, Stdio},
};

/// Where programs are that PATH leaves out, as that of many services does.
const DIRECTORIES: [&str; 3] = ["", "/usr/sbin/", "/sbin/"];

/// Starts the first of these programs that is installed, in the network namespace of this thread and with pipes for all that it reads and writes;
/// with its name. `None` when none is installed.
pub(crate) fn start<'a>(names: &[&'a str], args: &[&str]) -> Option<(&'a str, io::Result<Child>)> {
    let start = |path: String| {
        let (input, output, errors) = (Stdio::piped(), Stdio::piped(), Stdio::piped());
        Command::new(path).args(args).stdin(input).stdout(output).stderr(errors).spawn()
    };
    let places = names.iter().flat_map(|name| DIRECTORIES.map(|directory| (*name, format!("{directory}{name}"))));
    places
        .map(|(name, path)| (name, start(path)))
        .find(|(_, child)| !matches!(child, Err(missing) if missing.kind() == io::ErrorKind::NotFound))
}
