//! The kernel, and what this process may ask of it.

use std::{fs, io, path::Path};

use serde::Serialize;

use super::Probe;
use crate::sys::{self, LinkKind};

/// Capabilities that the agent needs: numbers of `linux/capability.h`.
const NEEDED: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];

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
            lacking: read("/proc/thread-self/status").and_then(|status| lacking(&status)),
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

fn lacking(status: &str) -> Probe<Vec<&'static str>> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    let effective = effective.ok_or("read /proc/thread-self/status: there is no CapEff in it")?;
    Ok(NEEDED.iter().filter(|(_, number)| effective >> number & 1 == 0).map(|(name, _)| *name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_their_bits() {
        let lacking = |digits: &str| lacking(&format!("Name:\tx\nCapPrm:\t0\nCapEff:\t{digits}\n"));
        assert_eq!(lacking("000001ffffffffff"), Ok(vec![]));
        assert_eq!(lacking("0000000000000000"), Ok(vec!["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]));
        assert_eq!(lacking("0000000000001000"), Ok(vec!["CAP_SYS_ADMIN"]));
        assert_eq!(lacking("0000000000200000"), Ok(vec!["CAP_NET_ADMIN"]));
        assert!(lacking("none").is_err());
        assert!(super::lacking("").is_err());
    }
}
