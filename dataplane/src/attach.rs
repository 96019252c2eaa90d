//! Attachments: which program guards which link.
//!
//! What hangs on a link is a stub of a few instructions that says what the link is and jumps to a pinned program array, so that one
//! array write upgrades every link. A stub is pinned by what it says, links of the same kind share it, and an attachment is pinned by
//! the link's name, its index, its network namespace and the place:
//!
//! ```text
//! stubs/tc-<program>-<value>-<hash of the stub's object>      stubs/xdp-0-0-<hash>
//! links/<link>-<ifindex>-<namespace>-<place>                  a BPF link, or for clsact filters the stub that the filter has
//! links/<link>-<ifindex>-<namespace>-clsact                   marks a clsact that we made
//! ```
//!
//! Everything works in the network namespace of the calling thread; what is attached elsewhere is only looked at, or detached.
//! A program that we did not load is never touched: filters and links are known by the ids of our pinned stubs.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    fmt,
    hash::{Hash as _, Hasher as _},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{LazyLock, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{
        Link as _, Program, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use bulkhead_ebpf::abi::program;
use nix::net::if_::if_nametoindex;

use crate::{
    filters::{self, Parent},
    load::{Maps, PROGRAMS_TC, PROGRAMS_XDP, PROGRAMS_XDP_GENERIC, STUB, TC},
    network,
    node::NodeError,
    pins::{Kind, Pins},
    sys::{self, Doing as _, LinkKind},
};

/// The program arrays that stubs jump into.
const ARRAYS: [&str; 3] = [PROGRAMS_TC, PROGRAMS_XDP, PROGRAMS_XDP_GENERIC];

/// Priority of our clsact filters: before everybody else's.
const PRIORITY: u16 = 1;

/// What a program guards on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// TC, packets that the link receives.
    Ingress,
    /// TC, packets that the link sends.
    Egress,
    /// XDP in the driver.
    XdpNative,
    /// XDP behind the driver, on any link.
    XdpGeneric,
}

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Classifiers {
    /// TCX, or clsact where the kernel has no TCX (before 6.6).
    #[default]
    Auto,
    /// clsact, whatever the kernel has.
    Clsact,
}

/// A program that shall guard a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    /// Name of the link.
    pub link: String,
    /// Where.
    pub hook: Hook,
    /// [`program`] of TC; [`program::UNDERLAY`] of XDP.
    pub program: u32,
    /// Slot of the endpoint, or [`bulkhead_ebpf::abi::overlay`] of a VXLAN device; 0 for others.
    pub value: u32,
}

impl Guard {
    /// Whether this attachment is what the guard asks for.
    #[must_use]
    pub fn is(&self, found: &Attachment) -> bool {
        found.guard().as_ref() == Some(self)
    }
}

impl fmt::Display for Guard {
    /// As in `ingress from_workload`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hook {
            Hook::Ingress => write!(f, "ingress {}", tc_name(self.program)),
            Hook::Egress => write!(f, "egress {}", tc_name(self.program)),
            Hook::XdpNative => f.write_str("xdp native underlay"),
            Hook::XdpGeneric => f.write_str("xdp generic underlay"),
        }
    }
}

/// Name of a TC program.
fn tc_name(program: u32) -> &'static str {
    TC.iter().find(|(_, index)| *index == program).map_or("unknown", |(name, _)| name)
}

/// Where an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// TCX ingress.
    TcxIngress,
    /// TCX egress.
    TcxEgress,
    /// A clsact filter, ingress.
    ClsactIngress,
    /// A clsact filter, egress.
    ClsactEgress,
    /// XDP in the driver.
    XdpNative,
    /// XDP behind the driver.
    XdpGeneric,
    /// No attachment, but the clsact that filters of ours needed.
    Clsact,
}

impl Place {
    const ALL: [(Self, &'static str); 7] = [
        (Self::TcxIngress, "tcx_ingress"),
        (Self::TcxEgress, "tcx_egress"),
        (Self::ClsactIngress, "clsact_ingress"),
        (Self::ClsactEgress, "clsact_egress"),
        (Self::XdpNative, "xdp_native"),
        (Self::XdpGeneric, "xdp_generic"),
        (Self::Clsact, "clsact"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(place, _)| *place == self).map_or("", |(_, name)| name)
    }

    /// What it guards; `None` for the mark of a clsact.
    #[must_use]
    pub const fn hook(self) -> Option<Hook> {
        match self {
            Self::TcxIngress | Self::ClsactIngress => Some(Hook::Ingress),
            Self::TcxEgress | Self::ClsactEgress => Some(Hook::Egress),
            Self::XdpNative => Some(Hook::XdpNative),
            Self::XdpGeneric => Some(Hook::XdpGeneric),
            Self::Clsact => None,
        }
    }

    /// The kind of a TCX link.
    const fn tcx(self) -> Option<LinkKind> {
        match self {
            Self::TcxIngress => Some(LinkKind::TcxIngress),
            Self::TcxEgress => Some(LinkKind::TcxEgress),
            _ => None,
        }
    }

    /// The side of a clsact filter.
    const fn filter(self) -> Option<(Parent, TcAttachType)> {
        match self {
            Self::ClsactIngress => Some((Parent::Ingress, TcAttachType::Ingress)),
            Self::ClsactEgress => Some((Parent::Egress, TcAttachType::Egress)),
            _ => None,
        }
    }
}

/// What an attachment's pin is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pin {
    link: String,
    ifindex: u32,
    namespace: u64,
    place: Place,
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A BPF file system reserves names with dots.
        let link = self.link.replace('%', "%25").replace('.', "%2E");
        write!(f, "{link}-{}-{}-{}", self.ifindex, self.namespace, self.place.name())
    }
}

impl Pin {
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.rsplitn(4, '-');
        let place = parts.next()?;
        let (place, _) = Place::ALL.into_iter().find(|(_, name)| *name == place)?;
        let namespace = parts.next()?.parse().ok()?;
        let ifindex = parts.next()?.parse().ok()?;
        let link = parts.next()?.replace("%2E", ".").replace("%25", "%");
        Some(Self { link, ifindex, namespace, place })
    }
}

/// What a stub says: program and value.
pub type Says = (u32, u32);

/// How stubs of TC are called, see [`Links::stub_name`].
const TC_STUB: &str = "tc-";

/// Programs that shut a link where its stub names no endpoint.
const SHUTTING: [u32; 2] = [program::FROM_WORKLOAD, program::TO_WORKLOAD];

/// Whether a stub lets nothing pass: it hands on the slot that nobody has.
fn shuts(stub: Option<Says>) -> bool {
    stub.is_some_and(|(program, slot)| slot == 0 && SHUTTING.contains(&program))
}

/// What shuts a link.
fn closed(link: &str) -> [Guard; 2] {
    let guard = |hook, program| Guard { link: link.to_owned(), hook, program, value: 0 };
    [guard(Hook::Ingress, program::FROM_WORKLOAD), guard(Hook::Egress, program::TO_WORKLOAD)]
}

/// What a stub of that name says, whatever version it is of.
fn says(name: &str) -> Option<Says> {
    let mut parts = name.split('-').skip(1).map(|part| part.parse().ok());
    parts.next().flatten().zip(parts.next().flatten())
}

/// An attachment, as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// Name that the link had when it was attached.
    pub link: String,
    /// Index of the link in its network namespace.
    pub ifindex: u32,
    /// Inode number of the link's network namespace.
    pub namespace: u64,
    /// Where.
    pub place: Place,
    /// The program that its stub jumps to, and the value that it hands on; `None` for the stub of another version.
    pub stub: Option<Says>,
    /// The same of the stub of an endpoint, whatever version it is of: all jump into one array by the same numbers.
    pub endpoint: Option<Says>,
    /// The link is there and the stub hangs on it. Of filters in another network namespace this is not known, and said to be so.
    pub alive: bool,
    /// Program of somebody else that runs before it, by its id: what that one lets pass may never be judged. Known of TCX in this network namespace.
    pub behind: Option<u32>,
}

impl Attachment {
    /// Whether no packet passes it unjudged.
    #[must_use]
    pub const fn guards(&self) -> bool {
        self.alive && self.behind.is_none()
    }

    /// The guard that it is; `None` where it is gone, behind others, of another version or no guard.
    pub(crate) fn guard(&self) -> Option<Guard> {
        let ((program, value), hook) = (self.stub?, self.place.hook()?);
        self.guards().then(|| Guard { link: self.link.clone(), hook, program, value })
    }

    /// Whether it lets nothing pass: a container is behind the link that no table knows yet.
    pub(crate) fn shuts(&self) -> bool {
        shuts(self.endpoint)
    }
}

impl fmt::Display for Attachment {
    /// As in `tcx ingress from_workload`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = match (self.place.hook(), self.stub) {
            (Some(Hook::XdpNative | Hook::XdpGeneric), Some(_)) => "underlay",
            (_, Some((index, _))) => tc_name(index),
            (_, None) => "of another version",
        };
        write!(f, "{} {program}", self.place.name().replace('_', " "))?;
        match self.behind {
            _ if !self.alive => f.write_str(" (gone)"),
            Some(id) => write!(f, " (behind program {id})"),
            None => Ok(()),
        }
    }
}

/// The same number for as long as the process lives. There are as many as programs, slots and overlays: few, and each is kept once.
fn lasting(number: u32) -> &'static u32 {
    static KNOWN: Mutex<BTreeMap<u32, &'static u32>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(number).or_insert_with(|| Box::leak(Box::new(number)))
}

/// A stub that is loaded and pinned.
struct Stub {
    path: PathBuf,
    fd: OwnedFd,
    id: u32,
}

/// A link that is being shut. Dropped, it waits until it is: what attaches later finds it so.
#[must_use = "dropped at once, it waits for the kernel"]
#[derive(Debug, Default)]
pub(crate) struct Shutting(Vec<(Pin, JoinHandle<Result<(), NodeError>>)>);

impl Drop for Shutting {
    fn drop(&mut self) {
        for (pin, thread) in self.0.drain(..) {
            // Whoever attaches next tries it himself, and says why it does not work.
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("not shut beforehand: {error}"),
                Err(_) => tracing::debug!("not shut beforehand: the thread that attaches {pin} panicked"),
            }
        }
    }
}

/// Links whose attachments are known, and the values that their stubs hand on: to open a pin takes time, and there are several for each container.
#[derive(Debug, Default)]
pub(crate) struct Known<'a> {
    pub(crate) links: BTreeSet<&'a str>,
    pub(crate) values: BTreeSet<u32>,
}

impl Known<'_> {
    /// Whether such a stub hangs on these links alone. That is not known of one that shuts: 0 is what the stubs of the overlay's links hand on, too.
    fn says(&self, says: Option<Says>) -> bool {
        says.is_some_and(|(_, value)| self.values.contains(&value)) && !shuts(says)
    }
}

/// The attachments of one directory of pins.
#[derive(Clone, Debug)]
pub struct Links {
    pins: Pins,
    classifiers: Classifiers,
    /// Tells stubs of this object from those of others.
    version: u64,
}

impl Links {
    /// Attachments that are pinned there. Touches nothing.
    #[must_use]
    pub fn new(pins: &Pins, classifiers: Classifiers) -> Self {
        let mut version = DefaultHasher::new();
        STUB.hash(&mut version);
        Self { pins: pins.clone(), classifiers, version: version.finish() }
    }

    /// Attaches a program, or leaves it where it is. What is attached with another value or by another version gets the new stub without a gap.
    /// The link is unguarded from its making to the end of this call: for an endpoint, call this while its word is 0.
    ///
    /// Returns whether the link was unguarded at this place.
    ///
    /// # Errors
    /// There is no such link, or the kernel refuses.
    pub fn attach(&self, maps: &Maps, guard: &Guard) -> Result<bool, NodeError> {
        let link = &guard.link;
        let ifindex = if_nametoindex(link.as_str()).doing(|| format!("attach to link {link}"))?;
        let namespace = network::namespace()?;
        let pin = |place| Pin { link: link.clone(), ifindex, namespace, place };
        match guard.hook {
            Hook::Ingress => {
                self.classifier(maps, guard, LinkKind::TcxIngress, &pin(Place::TcxIngress), &pin(Place::ClsactIngress))
            }
            Hook::Egress => {
                self.classifier(maps, guard, LinkKind::TcxEgress, &pin(Place::TcxEgress), &pin(Place::ClsactEgress))
            }
            Hook::XdpNative => self.xdp(maps, LinkKind::XdpNative, &pin(Place::XdpNative), &pin(Place::XdpGeneric)),
            Hook::XdpGeneric => self.xdp(maps, LinkKind::XdpGeneric, &pin(Place::XdpGeneric), &pin(Place::XdpNative)),
        }
    }

    /// Hangs before a link the programs of an endpoint that is none: in them one that no table knows lets nothing pass. What guards the link already
    /// stays.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub(crate) fn shut_both(&self, maps: &Maps, link: &str) -> Result<(), NodeError> {
        self.follow(&[link].into())?;
        closed(link).iter().try_for_each(|guard| self.shut(maps, guard))
    }

    /// Has pins be called as their links are now, those of links whose name is wanted: one that was renamed is the same link, and goes on with what hangs
    /// there. A hook takes no program twice, so that it could not be attached by the new name.
    ///
    /// # Errors
    /// When the pins cannot be read or renamed.
    pub(crate) fn follow(&self, wanted: &BTreeSet<&str>) -> Result<(), NodeError> {
        let here = network::namespace()?;
        let index = |link: &&str| if_nametoindex(*link).ok();
        let wanted: BTreeMap<u32, &str> = wanted.iter().filter_map(|link| Some((index(link)?, *link))).collect();
        for pin in self.attachments()?.into_iter().filter(|pin| pin.namespace == here) {
            let Some(&link) = wanted.get(&pin.ifindex).filter(|link| **link != pin.link) else { continue };
            if !self.gone(&pin, here)? {
                tracing::info!("link {} is called {link} now, and keeps what guards it", pin.link);
                let name = pin.to_string();
                self.pins.rename(Kind::Link, &name, &Pin { link: link.to_owned(), ..pin }.to_string())?;
            }
        }
        Ok(())
    }

    /// As [`Self::shut_both`], in the place of what guards the link, without a gap. Whether nothing passes now: there may be a side on which nothing hung,
    /// and nothing can be hung, and what others put before ours may not be overtaken.
    ///
    /// # Errors
    /// What hangs there can be made another one neither by attaching nor where it is. It goes on naming its endpoint.
    pub(crate) fn close(&self, maps: &Maps, link: &str, hanging: &[&Attachment]) -> Result<bool, NodeError> {
        let mut shut = true;
        for guard in closed(link) {
            match hanging.iter().find(|found| found.place.hook() == Some(guard.hook)) {
                Some(found) => {
                    // By the name that the link has now it would be attached beside what hangs there.
                    let is_shut = found.link == link && self.attach(maps, &guard).is_ok();
                    if !is_shut {
                        self.renew(maps, &guard, found)?;
                        shut &= found.behind.is_none();
                    }
                }
                None => {
                    if let Err(error) = self.attach(maps, &guard) {
                        tracing::warn!("{link} cannot be shut at its {guard}, where nothing guarded it: {error}");
                        shut = false;
                    }
                }
            }
        }
        Ok(shut)
    }

    /// Gives what hangs there the stub of a guard. That works where nothing can be attached any more.
    fn renew(&self, maps: &Maps, guard: &Guard, found: &Attachment) -> Result<(), NodeError> {
        let Attachment { link, ifindex, namespace, place, .. } = found;
        let pin = Pin { link: link.clone(), ifindex: *ifindex, namespace: *namespace, place: *place };
        let stub = self.stub(maps, PROGRAMS_TC, guard.program, guard.value)?;
        match place.tcx() {
            Some(_) => self.keep(&pin, &stub).map(drop),
            None => self.filter(&stub, &pin).map(drop),
        }
    }

    /// Takes away what [`Self::shut_both`] hung before a link of this network namespace.
    ///
    /// # Errors
    /// When the pins cannot be read or the kernel refuses.
    pub(crate) fn unshut(&self, link: &str) -> Result<(), NodeError> {
        self.follow(&[link].into())?;
        let (found, here) = (self.list()?, network::namespace()?);
        for guard in closed(link) {
            let shuts =
                |found: &Attachment| found.link == link && found.place.hook() == Some(guard.hook) && found.shuts();
            if found.iter().any(|found| found.namespace == here && shuts(found)) {
                self.detach(&guard)?;
            }
        }
        Ok(())
    }

    /// Attaches a program where nothing of ours guards the link at that place; what does stays as it is.
    ///
    /// # Errors
    /// As [`Self::attach`].
    fn shut(&self, maps: &Maps, guard: &Guard) -> Result<(), NodeError> {
        match self.ours(&guard.link, guard.hook)? {
            // Of what shuts it and is behind others, attaching makes the first.
            Some(found) if found.guards() || !found.shuts() => Ok(()),
            _ => self.attach(maps, guard).map(drop),
        }
    }

    /// What of ours hangs before the link of that name at that place; of its stub it is known whether it shuts.
    fn ours(&self, link: &str, hook: Hook) -> Result<Option<Attachment>, NodeError> {
        let found = self.list_of(|pin| pin.link == link && pin.place.hook() == Some(hook), shuts)?;
        let (index, here) = (if_nametoindex(link), network::namespace()?);
        Ok(found.into_iter().find(|found| found.alive && found.namespace == here && Ok(found.ifindex) == index))
    }

    /// Begins to shut a link, as [`Self::shut`] does at both places: each waits for a grace period of the kernel, and others can work meanwhile. Where
    /// the kernel has no TCX nothing is begun, since nothing there takes long.
    ///
    /// # Errors
    /// There is no such link, the stubs cannot be loaded, or no thread can be started.
    pub(crate) fn begin_shut(&self, maps: &Maps, link: &str) -> Result<Shutting, NodeError> {
        let mut shutting = Shutting::default();
        if self.classifiers != Classifiers::Auto {
            return Ok(shutting);
        }
        let ifindex = if_nametoindex(link).doing(|| format!("shut link {link}"))?;
        let namespace = network::namespace()?;
        for (hook, program, kind, place) in [
            (Hook::Ingress, program::FROM_WORKLOAD, LinkKind::TcxIngress, Place::TcxIngress),
            (Hook::Egress, program::TO_WORKLOAD, LinkKind::TcxEgress, Place::TcxEgress),
        ] {
            if self.ours(link, hook)?.is_some() {
                continue;
            }
            let pin = Pin { link: link.to_owned(), ifindex, namespace, place };
            // One that is left over of a link that is gone.
            self.remove(&pin)?;
            let stub = self.stub(maps, PROGRAMS_TC, program, 0)?;
            let (links, at) = (self.clone(), pin.clone());
            let hang = move || {
                let link = sys::link_create(&stub.fd, at.ifindex, kind).doing(|| format!("attach {at}"))?;
                links.pin(&link, &at)
            };
            let thread = thread::Builder::new().name("shut".to_owned()).spawn(hang);
            shutting.0.push((pin, thread.doing(|| format!("shut link {link}"))?));
        }
        Ok(shutting)
    }

    /// Loads the stubs that shut links, so that they need not be loaded when one is to be shut.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn load_shutting(&self, maps: &Maps) -> Result<(), NodeError> {
        self.load_stubs(maps, SHUTTING.iter().map(|program| (*program, 0)))
    }

    /// Loads stubs of TC that say this, so that who attaches them finds them.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn load_stubs(&self, maps: &Maps, stubs: impl IntoIterator<Item = Says>) -> Result<(), NodeError> {
        stubs.into_iter().try_for_each(|(program, value)| self.stub(maps, PROGRAMS_TC, program, value).map(drop))
    }

    /// TCX or clsact; of the two, what was there before goes when the other one is there.
    fn classifier(
        &self,
        maps: &Maps,
        guard: &Guard,
        kind: LinkKind,
        tcx: &Pin,
        clsact: &Pin,
    ) -> Result<bool, NodeError> {
        let stub = self.stub(maps, PROGRAMS_TC, guard.program, guard.value)?;
        if self.classifiers == Classifiers::Auto {
            if self.keep(tcx, &stub)? {
                if let Some(other) = before(tcx, kind, stub.id).doing(|| format!("look at {tcx}"))? {
                    self.overtake(guard, kind, tcx, &stub)?;
                    tracing::warn!("program {other} ran before ours on {}: ours is the first again", guard.link);
                }
                self.remove(clsact)?;
                return Ok(false);
            }
            match sys::link_create(&stub.fd, tcx.ifindex, kind) {
                Ok(link) => {
                    self.pin(&link, tcx)?;
                    return Ok(!self.remove(clsact)?);
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    tracing::debug!(link = guard.link, "this kernel has no TCX: a clsact filter will do");
                }
                Err(error) => return Err(error).doing(|| format!("attach {tcx}")),
            }
        }
        let new = self.filter(&stub, clsact)?;
        Ok(!self.remove(tcx)? && new)
    }

    /// Puts what is attached before the programs of others, without a gap: another link is made there before this one goes. A hook takes no program twice,
    /// so that a copy of the stub holds the place meanwhile.
    fn overtake(&self, guard: &Guard, kind: LinkKind, pin: &Pin, stub: &Stub) -> Result<(), NodeError> {
        let doing = || format!("put {pin} first");
        let behind = self.open(&pin.to_string())?;
        let copy = self.copy(PROGRAMS_TC, guard.program, guard.value)?;
        let link = sys::link_create(&copy, pin.ifindex, kind).doing(doing)?;
        self.pins.replace(Kind::Link, &pin.to_string(), |path| sys::obj_pin(&link, path))?;
        behind.map_or(Ok(()), |behind| sys::link_detach(&behind)).doing(doing)?;
        sys::link_update(&link, &stub.fd).doing(doing)
    }

    /// Hangs the stub into clsact, in place of the stub of ours that hangs there.
    fn filter(&self, stub: &Stub, pin: &Pin) -> Result<bool, NodeError> {
        // The qdisc and its filters are looked for and then made: two threads would both make them.
        static STEPS: Mutex<()> = Mutex::new(());
        let _steps = STEPS.lock().unwrap_or_else(PoisonError::into_inner);
        let doing = || format!("attach {pin}");
        let Some((parent, side)) = pin.place.filter() else {
            return Ok(false);
        };
        // It may be called otherwise than when it was pinned.
        let link = network::name_of(pin.ifindex)?.ok_or("its link is gone").doing(doing)?;
        let refused = |why: &dyn fmt::Display| NodeError::Kernel {
            doing: doing(),
            why: format!(
                "{why}; without TCX (kernel 6.6) a clsact filter of priority {PRIORITY} must be added, which an `ingress` qdisc (bandwidth plugin) or \
                 a filter of another kind at that priority excludes: see `tc qdisc show dev {link}` and `tc filter show dev {link} ingress`"
            ),
        };
        let mut ours: BTreeSet<u32> = self.stubs()?.into_keys().collect();
        ours.extend(self.open(&pin.to_string())?.map(|fd| sys::program_id(&fd)).transpose().doing(doing)?);

        if !filters::has_clsact(pin.ifindex).doing(doing)? {
            tc::qdisc_add_clsact(&link).map_err(|error| refused(&error))?;
            self.record(stub, &Pin { place: Place::Clsact, ..pin.clone() })?;
        }
        let there = filters::list(pin.ifindex, parent).doing(doing)?;
        let there = there
            .iter()
            .find(|filter| filter.priority == PRIORITY && filter.program.is_some_and(|id| ours.contains(&id)));
        let mut program = SchedClassifier::from_pin(&stub.path).doing(doing)?;
        let attached = match there {
            Some(filter) if filter.program == Some(stub.id) => {
                self.record(stub, pin)?;
                return Ok(false);
            }
            Some(filter) => {
                let hung = SchedClassifierLink::attached(&link, side, filter.priority, filter.handle.into(), None)
                    .doing(doing)?;
                let attached = program.attach_to_link(hung).map_err(|error| refused(&error))?;
                self.record(stub, pin)?;
                attached
            }
            None => {
                // The record first: a filter without one would never be detached.
                self.record(stub, pin)?;
                let options = NlOptions { priority: PRIORITY, handle: TcHandle::AUTO_ASSIGN, classid: None };
                program
                    .attach_with_options(&link, side, TcAttachOptions::Netlink(options))
                    .map_err(|error| refused(&error))?
            }
        };
        // Dropped, it would take the filter with it.
        std::mem::forget(program.take_link(attached).doing(doing)?);
        Ok(there.is_none())
    }

    /// Pins the stub as the record of a filter or of a clsact.
    fn record(&self, stub: &Stub, pin: &Pin) -> Result<(), NodeError> {
        self.pins.replace(Kind::Link, &pin.to_string(), |path| sys::obj_pin(&stub.fd, path))
    }

    fn xdp(&self, maps: &Maps, kind: LinkKind, pin: &Pin, other: &Pin) -> Result<bool, NodeError> {
        let array = if kind == LinkKind::XdpGeneric { PROGRAMS_XDP_GENERIC } else { PROGRAMS_XDP };
        let stub = self.stub(maps, array, program::UNDERLAY, 0)?;
        // A link has one mode.
        let changed = self.remove(other)?;
        if self.keep(pin, &stub)? {
            return Ok(false);
        }
        let link = sys::link_create(&stub.fd, pin.ifindex, kind).map_err(|error| NodeError::Kernel {
            doing: format!("attach {pin}"),
            why: match error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => format!("{error}: another XDP program is on the link, and stays; set XDP off for it, TC guards it all the same"),
                _ => format!("{error}: the driver may lack XDP of this mode; set it generic or off"),
            },
        })?;
        self.pin(&link, pin)?;
        Ok(!changed)
    }

    fn pin(&self, link: &OwnedFd, pin: &Pin) -> Result<(), NodeError> {
        let path = self.pins.path(Kind::Link, &pin.to_string());
        sys::obj_pin(link, &path).doing(|| format!("pin {}", path.display()))
    }

    /// Whether the attachment is there; then it has this stub.
    fn keep(&self, pin: &Pin, stub: &Stub) -> Result<bool, NodeError> {
        let name = pin.to_string();
        let Some(link) = self.open(&name)? else {
            return Ok(false);
        };
        let facts = sys::link_facts(&link).doing(|| format!("look at {name}"))?;
        if facts.ifindex != pin.ifindex {
            self.pins.remove(Kind::Link, &name)?;
            return Ok(false);
        }
        if facts.program != stub.id {
            sys::link_update(&link, &stub.fd).doing(|| format!("update {name}"))?;
        }
        Ok(true)
    }

    fn open(&self, name: &str) -> Result<Option<OwnedFd>, NodeError> {
        self.open_pin(Kind::Link, name)
    }

    /// What is pinned there; `None` where somebody has removed it since it was listed.
    fn open_pin(&self, kind: Kind, name: &str) -> Result<Option<OwnedFd>, NodeError> {
        let path = self.pins.path(kind, name);
        match sys::obj_get(&path) {
            Ok(fd) => Ok(Some(fd)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).doing(|| format!("open {}", path.display())),
        }
    }

    fn stub_name(&self, array: &str, program: u32, value: u32) -> String {
        let kind = array.trim_start_matches("PROGRAMS_").to_lowercase();
        format!("{kind}-{program}-{value}-{:016x}", self.version)
    }

    /// Opens or loads the stub that says this.
    fn stub(&self, maps: &Maps, array: &str, program: u32, value: u32) -> Result<Stub, NodeError> {
        let name = self.stub_name(array, program, value);
        let path = self.pins.path(Kind::Stub, &name);
        let doing = || format!("load the stub {name}");
        let array_id = maps.get(array)?.id();
        if let Ok(fd) = sys::obj_get(&path)
            // A stub of an array that is not pinned any more would never be upgraded.
            && sys::program_maps(&fd).doing(doing)?.contains(&array_id)
        {
            let id = sys::program_id(&fd).doing(doing)?;
            return Ok(Stub { path, fd, id });
        }
        let fd = self.copy(array, program, value)?;
        self.pins.replace(Kind::Stub, &name, |path| sys::obj_pin(&fd, path))?;
        let id = sys::program_id(&fd).doing(doing)?;
        Ok(Stub { path, fd, id })
    }

    /// Loads a stub, whatever is pinned.
    fn copy(&self, array: &str, program: u32, value: u32) -> Result<OwnedFd, NodeError> {
        let doing = || format!("load the stub {}", self.stub_name(array, program, value));
        let mut object = self.load(program, value).doing(doing)?;
        let program = object.program_mut(match array {
            PROGRAMS_TC => "tc_stub",
            PROGRAMS_XDP => "xdp_stub",
            _ => "xdp_stub_generic",
        });
        let program = program.ok_or("the object has no such program").doing(doing)?;
        match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => return Err("the object has another type of program").doing(doing),
        }
        .doing(doing)?;
        program.fd().doing(doing)?.as_fd().try_clone_to_owned().doing(doing)
    }

    /// A new loader reads and parses the kernel's BTF, which no stub needs: one serves all.
    fn load(&self, program: u32, value: u32) -> Result<Ebpf, EbpfError> {
        static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
            let mut loader = EbpfLoader::new();
            loader.btf(None);
            Mutex::new(loader)
        });
        // A loader keeps references to what it was told, also when somebody panicked meanwhile.
        let mut loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
        for array in ARRAYS {
            loader.map_pin_path(array, self.pins.path(Kind::Map, array));
        }
        let (index, value) = (lasting(program), lasting(value));
        loader.override_global("INDEX", index, true).override_global("VALUE", value, true).load(STUB)
    }

    /// Pinned stubs by the ids of their programs: name and what they say.
    fn stubs(&self) -> Result<BTreeMap<u32, (String, Option<Says>)>, NodeError> {
        self.stubs_that(|_| true)
    }

    /// The same of those that say what is wanted: to open one takes time, its name none.
    fn stubs_that(
        &self,
        wanted: impl Fn(Option<Says>) -> bool,
    ) -> Result<BTreeMap<u32, (String, Option<Says>)>, NodeError> {
        let mut stubs = BTreeMap::new();
        for name in self.pins.names(Kind::Stub)? {
            let says = says(&name)
                .filter(|(program, value)| ARRAYS.iter().any(|array| self.stub_name(array, *program, *value) == name));
            if !wanted(says) {
                continue;
            }
            let Some(fd) = self.open_pin(Kind::Stub, &name)? else { continue };
            let id = sys::program_id(&fd).doing(|| format!("look at {name}"))?;
            stubs.insert(id, (name, says));
        }
        Ok(stubs)
    }

    /// Ids of the stubs' programs: what hangs on a link with another id is somebody else's.
    pub(crate) fn own_programs(&self) -> Result<BTreeSet<u32>, NodeError> {
        Ok(self.stubs()?.into_keys().collect())
    }

    /// All attachments, those in other network namespaces included.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn list(&self) -> Result<Vec<Attachment>, NodeError> {
        self.list_of(|_| true, |_| true)
    }

    /// Those of links with these names whose stubs hand on one of these values. Others of these links may be among them, without what their stubs say.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub(crate) fn list_of_values(
        &self,
        links: &BTreeSet<&str>,
        values: &BTreeSet<u32>,
    ) -> Result<Vec<Attachment>, NodeError> {
        let says = |says: Option<Says>| says.is_some_and(|(_, value)| values.contains(&value));
        self.list_of(|pin| links.contains(pin.link.as_str()), says)
    }

    /// Those that are not known.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub(crate) fn list_beside(&self, known: &Known<'_>) -> Result<Vec<Attachment>, NodeError> {
        self.list_of(|pin| !known.links.contains(pin.link.as_str()), |says| !known.says(says))
    }

    /// Attachments of some pins, with what their stubs say where that is of interest.
    fn list_of(
        &self,
        wanted: impl Fn(&Pin) -> bool,
        says: impl Fn(Option<Says>) -> bool,
    ) -> Result<Vec<Attachment>, NodeError> {
        let (pins, here) = (self.attachments()?, network::namespace()?);
        let pins: Vec<Pin> = pins.into_iter().filter(wanted).collect();
        let stubs = self.stubs_that(says)?;
        let mut attachments = Vec::new();
        for pin in pins {
            let name = pin.to_string();
            let Some(fd) = self.open(&name)? else { continue };
            let doing = || format!("look at {name}");
            let mut behind = None;
            let (id, alive) = match pin.place {
                Place::Clsact => continue,
                Place::ClsactIngress | Place::ClsactEgress => {
                    let id = sys::program_id(&fd).doing(doing)?;
                    (id, pin.namespace != here || !own_filters(&pin, id).doing(doing)?.is_empty())
                }
                _ => {
                    let facts = sys::link_facts(&fd).doing(doing)?;
                    let alive = facts.ifindex == pin.ifindex;
                    if let Some(kind) = pin.place.tcx().filter(|_| alive && pin.namespace == here) {
                        behind = before(&pin, kind, facts.program).doing(doing)?;
                    }
                    (facts.program, alive)
                }
            };
            let Pin { link, ifindex, namespace, place } = pin;
            let (name, stub) = stubs.get(&id).map(|(name, says)| (name.as_str(), *says)).unzip();
            let endpoint = name.filter(|name| name.starts_with(TC_STUB)).and_then(self::says);
            let endpoint = endpoint.filter(|(program, _)| SHUTTING.contains(program));
            attachments.push(Attachment {
                link,
                ifindex,
                namespace,
                place,
                stub: stub.flatten(),
                endpoint,
                alive,
                behind,
            });
        }
        attachments.sort();
        Ok(attachments)
    }

    /// Detaches what is attached in this network namespace and is not wanted, and forgets what is gone with its link. What shuts a link stays: the
    /// agent has yet to hear of its container.
    ///
    /// # Errors
    /// When the pins cannot be read or the kernel refuses.
    pub fn retain(&self, wanted: &[Guard]) -> Result<(), NodeError> {
        self.retain_beside(wanted, &Known::default())
    }

    /// As [`Self::retain`]. What is known is not looked at, and stays.
    ///
    /// # Errors
    /// As [`Self::retain`].
    pub(crate) fn retain_beside(&self, wanted: &[Guard], known: &Known<'_>) -> Result<(), NodeError> {
        let wanted: BTreeSet<(&str, Hook)> = wanted.iter().map(|guard| (guard.link.as_str(), guard.hook)).collect();
        let here = network::namespace()?;
        let shut: BTreeSet<(u64, u32, Place)> = self
            .list_beside(known)?
            .into_iter()
            .filter(Attachment::shuts)
            .map(|found| (found.namespace, found.ifindex, found.place))
            .collect();
        let mut guarded = BTreeSet::new();
        let (pins, mut marks) = (self.attachments()?, Vec::new());
        for pin in pins {
            let Some(hook) = pin.place.hook() else {
                marks.push(pin);
                continue;
            };
            if known.links.contains(pin.link.as_str()) {
                guarded.insert((pin.namespace, pin.ifindex));
                continue;
            }
            let gone = self.gone(&pin, here)?;
            let wanted =
                wanted.contains(&(pin.link.as_str(), hook)) || shut.contains(&(pin.namespace, pin.ifindex, pin.place));
            if gone || pin.namespace == here && !wanted {
                self.remove(&pin)?;
            } else {
                guarded.insert((pin.namespace, pin.ifindex));
            }
        }
        for mark in marks.iter().filter(|mark| !guarded.contains(&(mark.namespace, mark.ifindex))) {
            self.remove(mark)?;
        }
        self.sweep_stubs(known)
    }

    /// Detaches what a guard attached in this network namespace.
    ///
    /// # Errors
    /// When the pins cannot be read or the kernel refuses.
    pub fn detach(&self, guard: &Guard) -> Result<(), NodeError> {
        let here = network::namespace()?;
        let pins = self.attachments()?.into_iter().filter(|pin| pin.namespace == here && pin.link == guard.link);
        pins.filter(|pin| pin.place.hook() == Some(guard.hook)).try_for_each(|pin| self.remove(&pin).map(drop))
    }

    /// Detaches everything, wherever it is. Needs no running agent.
    ///
    /// # Errors
    /// When something could not be detached; the rest is.
    pub fn detach_all(&self) -> Result<(), NodeError> {
        let mut pins = self.attachments()?;
        // Filters before the clsact that they hang in.
        pins.sort_by_key(|pin| pin.place);
        let failed: Vec<String> =
            pins.iter().filter_map(|pin| self.remove(pin).err()).map(|error| error.to_string()).collect();
        if failed.is_empty() {
            self.sweep_stubs(&Known::default())
        } else {
            Err(NodeError::Kernel { doing: "detach".to_owned(), why: failed.join("; ") })
        }
    }

    fn attachments(&self) -> Result<Vec<Pin>, NodeError> {
        Ok(self.pins.names(Kind::Link)?.iter().filter_map(|name| Pin::parse(name)).collect())
    }

    /// Whether an attachment went with its link.
    fn gone(&self, pin: &Pin, here: u64) -> Result<bool, NodeError> {
        let name = pin.to_string();
        let doing = || format!("look at {name}");
        let Some(fd) = self.open(&name)? else { return Ok(true) };
        match pin.place {
            Place::Clsact => Ok(false),
            Place::ClsactIngress | Place::ClsactEgress => {
                Ok(pin.namespace == here
                    && own_filters(pin, sys::program_id(&fd).doing(doing)?).doing(doing)?.is_empty())
            }
            _ => Ok(sys::link_facts(&fd).doing(doing)?.ifindex != pin.ifindex),
        }
    }

    /// Detaches, then removes the pin. Returns whether there was one.
    fn remove(&self, pin: &Pin) -> Result<bool, NodeError> {
        let name = pin.to_string();
        let doing = || format!("detach {name}");
        let Some(fd) = self.open(&name)? else { return Ok(false) };
        match pin.place {
            Place::Clsact | Place::ClsactIngress | Place::ClsactEgress => {
                // A link of another namespace cannot be reached from here.
                if network::namespace()? != pin.namespace {
                    return Err(NodeError::Kernel {
                        doing: doing(),
                        why: format!("it is in another network namespace (inode {}); detach there", pin.namespace),
                    });
                }
                if let Some(link) = network::name_of(pin.ifindex)? {
                    self.remove_filters(&Pin { link, ..pin.clone() }, &fd)?;
                }
            }
            _ => {
                if sys::link_facts(&fd).doing(doing)?.ifindex != 0 {
                    sys::link_detach(&fd).doing(doing)?;
                }
            }
        }
        self.pins.remove(Kind::Link, &name)?;
        Ok(true)
    }

    fn remove_filters(&self, pin: &Pin, stub: &OwnedFd) -> Result<(), NodeError> {
        let doing = || format!("detach {pin}");
        let Some((_, side)) = pin.place.filter() else {
            let filters = |parent| filters::list(pin.ifindex, parent).doing(doing);
            // Else somebody uses it by now.
            if filters(Parent::Ingress)?.is_empty() && filters(Parent::Egress)?.is_empty() {
                filters::remove_clsact(pin.ifindex).doing(doing)?;
            }
            return Ok(());
        };
        for filter in own_filters(pin, sys::program_id(stub).doing(doing)?).doing(doing)? {
            let link = SchedClassifierLink::attached(&pin.link, side, filter.priority, filter.handle.into(), None)
                .doing(doing)?;
            link.detach().doing(doing)?;
        }
        Ok(())
    }

    /// Removes stubs that nothing uses, but for those that the next link needs to be shut.
    fn sweep_stubs(&self, known: &Known<'_>) -> Result<(), NodeError> {
        let mut used = BTreeSet::new();
        for pin in self.attachments()?.into_iter().filter(|pin| !known.links.contains(pin.link.as_str())) {
            let name = pin.to_string();
            let doing = || format!("look at {name}");
            let Some(fd) = self.open(&name)? else { continue };
            used.insert(match pin.place {
                Place::Clsact | Place::ClsactIngress | Place::ClsactEgress => sys::program_id(&fd).doing(doing)?,
                _ => sys::link_facts(&fd).doing(doing)?.program,
            });
        }
        for (id, (name, says)) in self.stubs_that(|says| !known.says(says))? {
            if !used.contains(&id) && !shuts(says) {
                self.pins.remove(Kind::Stub, &name)?;
            }
        }
        Ok(())
    }
}

/// Who runs before a program of ours at a TCX place of this network namespace.
fn before(pin: &Pin, kind: LinkKind, ours: u32) -> io::Result<Option<u32>> {
    match sys::tcx_programs(pin.ifindex, kind) {
        Ok(programs) => Ok(programs.first().copied().filter(|first| *first != ours)),
        // The link went meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether both programs before a link are those of an endpoint that is none.
pub(crate) fn is_shut(attachments: &[Attachment], namespace: u64, ifindex: u32) -> bool {
    let hangs = |program| {
        let of_link = of_link(attachments, namespace, ifindex);
        of_link.filter(|found| found.guards()).any(|found| found.endpoint == Some((program, 0)))
    };
    SHUTTING.into_iter().all(hangs)
}

/// Whether a program of some endpoint hangs before a link.
pub(crate) fn has_endpoint(attachments: &[Attachment], namespace: u64, ifindex: u32) -> bool {
    let mut of_link = of_link(attachments, namespace, ifindex);
    of_link.any(|found| found.alive && found.endpoint.is_some_and(|(_, slot)| slot != 0))
}

fn of_link(attachments: &[Attachment], namespace: u64, ifindex: u32) -> impl Iterator<Item = &Attachment> {
    attachments.iter().filter(move |found| (found.namespace, found.ifindex) == (namespace, ifindex))
}

/// Filters at the place of a pin that run this program.
fn own_filters(pin: &Pin, program: u32) -> io::Result<Vec<filters::Filter>> {
    let Some((parent, _)) = pin.place.filter() else {
        return Ok(Vec::new());
    };
    let mut filters = filters::list(pin.ifindex, parent)?;
    filters.retain(|filter| filter.program == Some(program));
    Ok(filters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_have_readable_names() {
        for (link, name) in [
            ("eth0", "eth0-7-4026531840-tcx_ingress"),
            ("eth0.100", "eth0%2E100-7-4026531840-tcx_ingress"),
            ("a-b-c", "a-b-c-7-4026531840-tcx_ingress"),
            ("x%2E", "x%252E-7-4026531840-tcx_ingress"),
        ] {
            let pin = Pin { link: link.to_owned(), ifindex: 7, namespace: 4_026_531_840, place: Place::TcxIngress };
            assert_eq!(pin.to_string(), name);
            assert_eq!(Pin::parse(name), Some(pin));
        }
        assert_eq!(Pin::parse("eth0-7-4026531840-elsewhere"), None);
        assert_eq!(Pin::parse("tcx_ingress"), None);
    }
}
