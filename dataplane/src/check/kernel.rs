//! The kernel, and what this process may ask of it.

use std::{fs, io, path::Path};

use serde::Serialize;

use super::Probe;
use crate::{
    rights,
    sys::{self, LinkKind},
};

/// The kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: Probe<String>,
    /// Whether it describes its own types (`/sys/kernel/btf/vmlinux`).
    pub btf: bool,
    /// Whether it has TCX.
    pub tcx: Probe<bool>,
    /// Capabilities that the agent needs and this process lacks.
    pub lacking: Probe<Vec<&'static str>>,
}

impl Kernel {
    pub(super) fn look() -> Self {
        Self {
            release: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            tcx: tcx(),
            lacking: rights::lacking().map(|lacking| lacking.iter().map(|right| right.name).collect()),
        }
    }
}

fn read(path: &str) -> Probe<String> {
    fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"))
}

/// Asks what hangs on the loopback, which every network namespace has as its first link.
fn tcx() -> Probe<bool> {
    const LOOPBACK: u32 = 1;
    match sys::tcx_programs(LOOPBACK, LinkKind::TcxIngress) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(format!("ask for the TCX programs of lo: {error}")),
    }
}
