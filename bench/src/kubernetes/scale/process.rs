//! What a process takes, as the kernel counts it.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// A process, by its number.
pub(super) struct Process(pub(super) u32);

/// Bytes of memory.
pub(super) struct Memory {
    pub(super) resident: u64,
    /// Most that were resident so far.
    pub(super) peak: u64,
}

impl Process {
    fn read(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.0);
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        let status = self.read("status")?;
        let of =
            |name: &str| Ok::<_, anyhow::Error>(field(&status, name).with_context(|| format!("no {name}"))? * 1024);
        Ok(Memory { resident: of("VmRSS:")?, peak: of("VmHWM:")? })
    }

    /// Time on processors, in the kernel too.
    pub(super) fn processor(&self) -> Result<Duration> {
        let stat = self.read("stat")?;
        // The name of the program may have spaces; the state follows it.
        let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let second = sysconf(SysconfVar::CLK_TCK)?.context("no length of a tick")?;
        Ok(Duration::from_secs_f64(ticks as f64 / second as f64))
    }

    /// Bytes of BPF maps that it has open, each once.
    pub(super) fn maps(&self) -> Result<u64> {
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.0))? {
            // It may be closed meanwhile.
            let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
            if let (Some(id), Some(bytes)) = (field(&info, "map_id:"), field(&info, "memlock:")) {
                maps.insert(id, bytes);
            }
        }
        Ok(maps.values().sum())
    }
}

/// A number behind its name.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
