//! The programs with their tables, as a node has them, with nothing attached.

use std::{collections::BTreeMap, fs, io, os::fd::BorrowedFd, path::PathBuf, process};

use anyhow::{Context as _, Result, bail};
use bulkhead_dataplane::{
    baseline::Baseline,
    kernel::KernelStore,
    load::{Maps, Programs, Sizes},
    node::{Reading, Wire},
    pins::Pins,
    publish::Publisher,
    read,
    store::{Endpoints, Store as _},
    sys::{self, SkbContext, XdpContext},
};
use tempfile::TempDir;

use super::world::{self, Tables};

/// A program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    FromWorkload,
    ToWorkload,
    OverlayIn,
    OverlayOut,
    Underlay,
    UnderlayXdp,
}

impl Subject {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::FromWorkload => "from_workload",
            Self::ToWorkload => "to_workload",
            Self::OverlayIn => "overlay_in",
            Self::OverlayOut => "overlay_out",
            Self::Underlay => "underlay",
            Self::UnderlayXdp => "underlay_xdp",
        }
    }

    /// What its type of program has of a baseline program.
    pub(crate) const fn of_type(self) -> &'static str {
        match self {
            Self::UnderlayXdp => "xdp",
            _ => "tc",
        }
    }
}

/// Directory of pins below the BPF file system, removed when dropped.
struct PinDirectory(PathBuf);

impl PinDirectory {
    fn new() -> Self {
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        Self(PathBuf::from(format!("/sys/fs/bpf/bulkhead-bench-{}-{}", process::id(), random.trim())))
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        if let Err(error) = Pins::new(&self.0).remove_all() {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Programs and tables. Their pins go with this value: flow tables that are made later are pinned beside the others.
pub(crate) struct Rig {
    publisher: Publisher<KernelStore>,
    programs: Programs,
    /// Slot of the endpoint.
    slot: u32,
    /// Drivers that jump to the empty program.
    idle: Baseline,
    /// Drivers that jump to the subject.
    busy: Baseline,
    /// Where the publisher keeps names.
    _state: TempDir,
    _pins: PinDirectory,
}

/// Exact counters: packets and flows by endpoint or node, direction, reason and rule.
pub(crate) type Counters = BTreeMap<(bool, &'static str, &'static str, String), (u64, u64)>;

impl Rig {
    pub(crate) fn new(tables: Tables) -> Result<Self> {
        let directory = PinDirectory::new();
        let pins = Pins::new(&directory.0);
        let sizes = match tables {
            Tables::Usual => Sizes::default(),
            Tables::ManyPrefixes => Sizes { prefixes: 65_536, ..Sizes::default() },
            Tables::ManyFlows => Sizes { flows: 262_144, ..Sizes::default() },
        };
        let mut maps = Maps::create(&pins, &sizes).context("the tables cannot be made; this needs root")?;
        let programs = Programs::load(&pins, &mut maps, &world::config())?;
        let (idle, busy) = (Baseline::load(&pins)?, Baseline::load(&pins)?);
        idle.aim(&idle.get("empty_tc")?)?;
        for baseline in [&idle, &busy] {
            baseline.know(&world::floor_flow())?;
        }

        let state = tempfile::tempdir()?;
        let mut publisher = Publisher::open(KernelStore::new(maps)?, state.path())?;
        let plan = publisher.prepare(&world::desired(tables), &mut |_| Ok(Wire::to(world::OWN_MAC)))?;
        let [attach] = &plan.attach[..] else { bail!("{} endpoints were published instead of one", plan.attach.len()) };
        let slot = attach.slot;
        publisher.commit(plan)?;
        Ok(Self { publisher, programs, slot, idle, busy, _state: state, _pins: directory })
    }

    /// Gives the endpoint empty flow tables.
    pub(crate) fn forget_flows(&mut self) -> Result<()> {
        Ok(self.publisher.store_mut().flow_tables(&[self.slot])?)
    }

    /// The endpoint's word.
    pub(crate) fn word(&self) -> Result<u64> {
        self.publisher.store().get::<Endpoints>(&self.slot)?.context("the endpoint has no word")
    }

    /// Sets it.
    pub(crate) fn set_word(&mut self, word: u64) -> Result<()> {
        Ok(self.publisher.store_mut().put::<Endpoints>(&[(self.slot, word)])?)
    }

    pub(crate) fn counters(&self) -> Result<Counters> {
        let readings = read::counters(self.publisher.store(), self.publisher.names(), &mut read::Idle::default())?;
        let entry = |reading: Reading| {
            let key = (reading.endpoint.is_some(), reading.direction, reading.reason.label(), reading.rule);
            (key, (reading.packets, reading.flows))
        };
        Ok(readings.into_iter().map(entry).collect())
    }

    /// A program under test.
    pub(crate) fn subject(&self, subject: Subject) -> Result<BorrowedFd<'_>> {
        Ok(self.programs.get(subject.name())?)
    }

    /// A program that nothing drives.
    pub(crate) fn baseline(&self, name: &str) -> Result<BorrowedFd<'_>> {
        Ok(self.idle.get(name)?)
    }

    /// Packets of the known flow that the floor programs have seen.
    pub(crate) fn floor_packets(&self) -> Result<u64> {
        Ok(self.idle.known()?)
    }

    /// A driver before the empty program, and the same before `subject`.
    pub(crate) fn drivers(&self, name: &str, subject: Subject) -> Result<[BorrowedFd<'_>; 2]> {
        self.busy.aim(&self.subject(subject)?)?;
        Ok([self.idle.get(name)?, self.busy.get(name)?])
    }

    /// The endpoint's slot, which its packets carry in their mark.
    pub(crate) const fn slot(&self) -> u32 {
        self.slot
    }

    /// Runs a program `repeat` times; gives its action and the mean time of a run in nanoseconds.
    pub(crate) fn run(&self, program: BorrowedFd<'_>, input: &Input<'_>, repeat: u32) -> io::Result<(i32, u32)> {
        let Input { subject, packet, mark, flows, peer_at } = *input;
        let (action, time) = if subject.of_type() == "xdp" {
            let context = XdpContext { data_end: packet.len() as u32, ..XdpContext::default() };
            let ran = sys::test_run(&program, packet, context, repeat)?;
            (ran.verdict, ran.duration)
        } else {
            // What the link's stub says.
            let of_device = matches!(subject, Subject::OverlayIn | Subject::OverlayOut);
            let value = if of_device { world::SEGMENT } else { self.slot };
            // Any interface: the packet came in by one.
            let context =
                SkbContext { cb: [value, 0, mark, flows, peer_at], mark, ingress_ifindex: 1, ..SkbContext::default() };
            let ran = sys::test_run(&program, packet, context, repeat)?;
            (ran.verdict, ran.duration)
        };
        Ok((action.cast_signed(), time.as_nanos() as u32))
    }
}

/// What a program is run on.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) subject: Subject,
    pub(crate) packet: &'a [u8],
    /// `skb->mark`.
    pub(crate) mark: u32,
    /// Flows among which a driver chooses.
    pub(crate) flows: u32,
    /// Where in the frame the peer's node is, for it.
    pub(crate) peer_at: u32,
}
