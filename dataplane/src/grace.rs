//! Grace periods: waiting until nobody uses any more what was taken away before. The kernel has received a packet within one, too: from where a
//! program let it pass to the socket or the link that it goes to.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
    time::Duration,
};

use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS};

use crate::{
    expedite,
    node::NodeError,
    sys::{self, Doing as _, Map, Shape},
};

/// Waits for the programs that run.
#[derive(Debug)]
pub(crate) enum Grace {
    /// membarrier(2).
    Membarrier,
    /// A write into a map of maps, which does not return before the programs that may still use the old map have ended. For kernels whose
    /// membarrier does not reach every CPU (`nohz_full`).
    OuterMap { outer: Map, inner: Map },
}

impl Grace {
    /// Chooses what works here, by trying it.
    pub(crate) fn new() -> Result<Self, NodeError> {
        if sys::membarrier().is_ok() {
            return Ok(Self::Membarrier);
        }
        Self::outer_map().doing(|| "find a way to wait for running programs")
    }

    fn outer_map() -> io::Result<Self> {
        let shape = Shape { kind: BPF_MAP_TYPE_ARRAY as u32, key_size: 4, value_size: 4, max_entries: 1, flags: 0 };
        let inner = Map::create("GRACE", &shape, None)?;
        let outer =
            Map::create("GRACE", &Shape { kind: BPF_MAP_TYPE_ARRAY_OF_MAPS as u32, ..shape }, Some(inner.as_fd()))?;
        let grace = Self::OuterMap { outer, inner };
        grace.once()?;
        Ok(grace)
    }

    fn once(&self) -> io::Result<()> {
        match self {
            Self::Membarrier => sys::membarrier(),
            Self::OuterMap { outer, inner } => {
                expedite::waiting(|| outer.put(&0_u32.to_ne_bytes(), &inner.as_fd().as_raw_fd().to_ne_bytes()))
            }
        }
    }

    /// Does not return before it has worked, because what comes next relies on it.
    pub(crate) fn wait(&self) {
        while let Err(error) = self.once() {
            tracing::error!(%error, "cannot wait for running programs; trying again");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_fixtures::skip;

    use super::*;

    #[test]
    fn either_way_of_waiting_works() {
        if !skip::root() {
            return;
        }
        Grace::outer_map().unwrap().wait();
        sys::membarrier().unwrap();
    }
}
