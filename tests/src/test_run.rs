//! The programs in the kernel, run on one packet at a time: no links, no network.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bulkhead_dataplane::{
    kernel::KernelStore,
    load::{Maps, Programs, Sizes},
    node::NodeError,
    pins::Pins,
    sys::{SkbContext, test_run},
};
use bulkhead_ebpf::{
    abi::{Config, Direction, overlay},
    reason::Reason,
};

/// What a TC program returns for a packet that goes on to the next one, and for a dropped one.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

/// A frame with what the kernel knows of it.
#[derive(Debug)]
pub struct Frame {
    /// The frame.
    pub bytes: Vec<u8>,
    /// `skb->mark`.
    pub mark: u32,
    /// It came in by an interface.
    pub transit: bool,
}

/// What a program says.
#[derive(Debug)]
pub struct Passed {
    /// It goes on.
    pub pass: bool,
    /// The mark that it leaves.
    pub mark: u32,
    /// The reason, where it can be seen.
    pub reason: Option<Reason>,
}

/// The loaded programs; their pins go with it.
pub struct Kernel {
    programs: Programs,
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

/// Tables as small as what most tests publish: what is made anew and read whole for each state costs by its size.
#[must_use]
pub fn small() -> Sizes {
    Sizes {
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
    }
}

impl Kernel {
    /// Loads the programs with tables of their own, pinned below the BPF file system.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn load(sizes: &Sizes, tunnel_ports: [u16; 4]) -> Result<(KernelStore, Self), NodeError> {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        let directory =
            Directory(Path::new("/sys/fs/bpf").join(format!("bulkhead-run-{}-{random:x}", std::process::id())));
        let pins = Pins::new(&directory.0);
        pins.create()?;
        let mut maps = Maps::create(&pins, sizes)?;
        let config = Config { tunnel_ports, budget: 100, ..Config::default() };
        let programs = Programs::load(&pins, &mut maps, &config)?;
        Ok((KernelStore::new(maps)?, Self { programs, _pins: directory }))
    }

    /// Runs the program of a workload's wall: what the endpoint in the slot sends, or gets.
    ///
    /// # Errors
    /// What the kernel refuses, and what is no verdict.
    pub fn wall(&self, direction: Direction, slot: u32, frame: &Frame) -> Result<Passed, String> {
        let program = match direction {
            Direction::Egress => "from_workload",
            Direction::Ingress => "to_workload",
        };
        self.judge(program, slot, frame)
    }

    /// Runs the program of what enters an overlay.
    ///
    /// # Errors
    /// As [`Kernel::wall`].
    pub fn overlay_out(&self, vni: u32, frame: &Frame) -> Result<Passed, String> {
        self.judge("overlay_out", vni & overlay::VNI, frame)
    }

    fn judge(&self, program: &str, value: u32, frame: &Frame) -> Result<Passed, String> {
        let program = self.programs.get(program).map_err(|error| error.to_string())?;
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
