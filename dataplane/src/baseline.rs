//! Programs that benchmarks measure against (`dataplane-ebpf/src/bin/baseline`). They are not pinned and end with [`Baseline`].

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{Program, ProgramError},
};
use bulkhead_ebpf::abi::{Counter, FlowKey4};

use crate::{
    bytes,
    node::NodeError,
    pins::{Kind, Pins},
    store::{Endpoints, Node, Table as _},
    sys::{Doing as _, Map, live_frames},
};

static BASELINE: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/baseline"));

/// The programs, and what their maps are for.
pub struct Baseline {
    object: Ebpf,
    target: Map,
    flows: Map,
    counters: Map,
    replay: Map,
}

impl Baseline {
    /// Loads them beside the tables that are pinned in `pins`.
    ///
    /// # Errors
    /// The kernel refuses a program.
    pub fn load(pins: &Pins) -> Result<Self, NodeError> {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for shared in [Endpoints::NAME, Node::NAME] {
            loader.map_pin_path(shared, pins.path(Kind::Map, shared));
        }
        let mut object = loader.load(BASELINE).doing(|| "load the baseline")?;
        for (name, program) in object.programs_mut() {
            let loaded: Result<(), ProgramError> = match program {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                _ => continue,
            };
            loaded.doing(|| format!("load the program {name}"))?;
        }
        let map = |name: &str| -> Result<Map, NodeError> {
            let missing = || NodeError::Kernel {
                doing: format!("open the map {name}"),
                why: "the baseline has no such map".to_owned(),
            };
            let (aya::maps::Map::ProgramArray(data)
            | aya::maps::Map::LruHashMap(data)
            | aya::maps::Map::PerCpuArray(data)
            | aya::maps::Map::Array(data)) = object.map(name).ok_or_else(missing)?
            else {
                return Err(missing());
            };
            Map::from_id(data.info().doing(|| format!("look at the map {name}"))?.id())
                .doing(|| format!("open the map {name}"))
        };
        let (target, flows, counters) = (map("TARGET")?, map("FLOOR_FLOWS")?, map("FLOOR_COUNTERS")?);
        let replay = map("REPLAY")?;
        Ok(Self { object, target, flows, counters, replay })
    }

    /// Puts frames into the receive path of a link of this network namespace, as one batch: at most 64, all 192 bytes long.
    ///
    /// # Errors
    /// Another number or length, or the kernel's.
    pub fn replay(&self, frames: &[[u8; 192]], ifindex: u32) -> Result<(), NodeError> {
        let count = u32::try_from(frames.len()).doing(|| "replay frames")?;
        for (index, frame) in (0_u32..).zip(frames) {
            self.replay.put(&index.to_ne_bytes(), frame).doing(|| "put a frame into REPLAY")?;
        }
        let program = self.get("replay_xdp")?;
        live_frames(&program, &[0; 192], ifindex, count).doing(|| "replay frames")
    }

    /// A program by its name, for test runs.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: &str) -> Result<BorrowedFd<'_>, NodeError> {
        let program = self
            .object
            .program(name)
            .ok_or("the baseline has no such program")
            .doing(|| format!("open the program {name}"))?;
        Ok(program.fd().doing(|| format!("open the program {name}"))?.as_fd())
    }

    /// Sets the program that the drivers jump to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn aim(&self, program: &impl AsFd) -> Result<(), NodeError> {
        let fd = program.as_fd().as_raw_fd();
        self.target.put(&0_u32.to_ne_bytes(), &fd.to_ne_bytes()).doing(|| "aim the drivers")
    }

    /// Makes a flow known to the floor programs; ports as they lie in the packet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn know(&self, flow: &FlowKey4) -> Result<(), NodeError> {
        self.flows.put(bytes::of(flow), &1_u64.to_ne_bytes()).doing(|| "write FLOOR_FLOWS")
    }

    /// Packets that the floor programs have seen of known flows.
    ///
    /// # Errors
    /// The kernel's.
    pub fn known(&self) -> Result<u64, NodeError> {
        let cpus = self.counters.range(1, 1).doing(|| "read FLOOR_COUNTERS")?;
        Ok(bytes::each::<Counter>(&cpus).map(|counter| counter.packets).sum())
    }
}
