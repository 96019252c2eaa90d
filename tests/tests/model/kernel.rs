//! The programs in the kernel, run on one packet at a time.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bulkhead_dataplane::{
    kernel::KernelStore,
    load::{Maps, Programs as Loaded, Sizes},
    node::NodeError,
    pins::Pins,
    sys::{SkbContext, test_run},
};
use bulkhead_ebpf::abi::{Config, Direction, overlay};
use bulkhead_model::{
    Packet,
    generate::TUNNEL_PORT,
    packet::{Body, Broken},
};

use crate::walls::{Frame, Passed, Programs};

/// What a TC program returns for a packet that goes on to the next one, and for a dropped one.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

/// The loaded programs; their pins go with it.
pub(crate) struct Kernel {
    programs: Loaded,
    _pins: Directory,
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = Pins::new(&self.0).remove_all() {
            eprintln!("pins are left in {}: {error}", self.0.display());
        }
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => eprintln!("{} is left: {error}", self.0.display()),
            _ => {}
        }
    }
}

impl Kernel {
    /// Loads the programs with tables of their own, pinned below the BPF file system.
    pub(crate) fn load() -> Result<(KernelStore, Self), NodeError> {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        let directory =
            Directory(Path::new("/sys/fs/bpf").join(format!("bulkhead-model-{}-{random:x}", std::process::id())));
        let pins = Pins::new(&directory.0);
        pins.create()?;
        // As small as the worlds: what is made anew and read whole for each scenario costs by its size.
        let sizes = Sizes {
            slots: 32,
            views: 256,
            sets: 128,
            lists: 512,
            rows: 512,
            rule_counters: 4096,
            counters: 4096,
            services: 128,
            backends: 256,
            flows: 1024,
            ..Sizes::default()
        };
        let mut maps = Maps::create(&pins, &sizes)?;
        let config = Config { tunnel_ports: [TUNNEL_PORT, 0, 0, 0], budget: 100, ..Config::default() };
        let programs = Loaded::load(&pins, &mut maps, &config)?;
        Ok((KernelStore::new(maps)?, Self { programs, _pins: directory }))
    }
}

impl Programs for Kernel {
    type Store = KernelStore;

    fn published(&mut self, _fresh: &[u32]) {}

    fn can_run(&self, packet: &Packet) -> bool {
        // Since 6.18 a test run refuses frames that say they are IP and do not hold the whole header.
        !matches!(packet.body, Body::Broken(Broken::CutHeader(_)))
    }

    fn run(&mut self, direction: Direction, slot: u32, frame: &Frame) -> Result<Passed, String> {
        let program = match direction {
            Direction::Egress => "from_workload",
            Direction::Ingress => "to_workload",
        };
        self.judge(program, slot, frame)
    }

    fn leave(&mut self, vni: u32, frame: &Frame) -> Result<Passed, String> {
        self.judge("overlay_out", vni & overlay::VNI, frame)
    }
}

impl Kernel {
    fn judge(&self, program: &str, value: u32, frame: &Frame) -> Result<Passed, String> {
        let program = self.programs.get(program).expect("a program");
        let context = SkbContext {
            mark: frame.mark,
            ingress_ifindex: u32::from(frame.transit),
            cb: [value, 0, 0, 0, 0],
            ..SkbContext::default()
        };
        let ran =
            test_run(&program, &frame.bytes, context, 1).map_err(|error| format!("test run of {frame:x?}: {error}"))?;
        match ran.verdict {
            NEXT | DROP => Ok(Passed { pass: ran.verdict == NEXT, mark: ran.context.mark, reason: None }),
            other => Err(format!("{other} is no verdict")),
        }
    }
}
