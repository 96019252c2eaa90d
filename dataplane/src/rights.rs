//! What the node half may not do without: the capabilities of whoever guards a node, and what each is for.
//!
//! Everything else goes, `CAP_SYS_ADMIN` above all. So nothing here looks up programs, maps or links by their ids, which needs it: what is ours is
//! opened by its pin, and ids that the kernel lists (TCX, filters, outer maps) are compared with those of our own pins.

use std::fs;

use serde::Serialize;

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Right {
    /// Name, as `capabilities(7)` has it.
    pub name: &'static str,
    /// Number in `linux/capability.h`.
    pub number: u8,
    /// What fails without it.
    pub purpose: &'static str,
}

/// All that an agent needs. A test takes each away in turn and sees what fails.
pub const NEEDED: [Right; 4] = [
    Right {
        name: "CAP_NET_ADMIN",
        number: 12,
        purpose: "attaching programs to links, reading containers' links, nftables",
    },
    Right {
        name: "CAP_NET_RAW",
        number: 13,
        purpose: "iptables-legacy-save, which finds other users of packet marks by a raw socket",
    },
    Right {
        name: "CAP_PERFMON",
        number: 38,
        purpose: "loading programs without the verifier's limits for the unprivileged",
    },
    Right { name: "CAP_BPF", number: 39, purpose: "loading programs, making and opening their tables" },
];

/// Those of [`NEEDED`] that the calling thread has not.
///
/// # Errors
/// /proc cannot be read.
pub fn lacking() -> Result<Vec<Right>, String> {
    const STATUS: &str = "/proc/thread-self/status";
    let status = fs::read_to_string(STATUS).map_err(|error| format!("read {STATUS}: {error}"))?;
    missing(&status).ok_or_else(|| format!("read {STATUS}: there is no CapEff in it"))
}

fn missing(status: &str) -> Option<Vec<Right>> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    Some(NEEDED.into_iter().filter(|right| effective >> right.number & 1 == 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_their_bits() {
        let missing = |digits: &str| {
            let found = missing(&format!("Name:\tx\nCapPrm:\t0\nCapEff:\t{digits}\n"));
            found.map(|found| found.iter().map(|right| right.name).collect::<Vec<_>>())
        };
        assert_eq!(missing("000001ffffffffff"), Some(vec![]));
        assert_eq!(missing("000000c000003000"), Some(vec![]), "these and no others");
        assert_eq!(missing("0000000000201000"), Some(vec!["CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"]));
        assert_eq!(missing("0000008000003000"), Some(vec!["CAP_PERFMON"]));
        assert_eq!(missing("none"), None);
        assert_eq!(super::missing(""), None);
    }
}
