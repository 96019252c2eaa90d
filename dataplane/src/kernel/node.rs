//! A node whose tables, programs and links are the kernel's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, TryLockError},
    mem,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bulkhead_ebpf::{
    abi::{self, node, program},
    mark::Layout,
};
use nix::net::if_::if_nametoindex;

use super::{
    KernelStore,
    reader::{KernelObserver, Meant, Reader, link_status, look_at_gate, meant, set_attached, status, tunnel_ports},
    standing::{Standing, Stood},
};
use crate::{
    attach::{self, Attachment, Classifiers, Guard, Hook, Links, Shutting},
    desired::{Desired, Endpoint, EndpointName},
    expedite, gate, input_rule,
    load::{Maps, Programs, Sizes},
    mark,
    network::{self, Found, KnownInside},
    node::{
        Containers, Discovered, DiscoveredOverlay, LinkStatus, Node, NodeError, Observer, Published, Rehearsal, Status,
        Wire,
    },
    pins::Pins,
    publish::{self, Attach, Publisher, Removed},
    read,
    store::{self, Store as _},
    sys::Doing as _,
};

/// Whether links that carry the overlay also check in XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// TC alone.
    #[default]
    Off,
    /// Behind the driver: any link, little gain.
    Generic,
    /// In the driver. Attaching resets many of them, and on veth it costs the peer TSO.
    Native,
}

/// How a node is guarded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a bpffs; this version's pins are below it.
    pub pins: PathBuf,
    /// Directory on a disk, for names and what else outlives the process.
    pub state: PathBuf,
    /// XDP on links that carry the overlay.
    pub xdp: XdpMode,
    /// XDP on single links, by name, where it is not [`Self::xdp`].
    pub xdp_links: BTreeMap<String, XdpMode>,
    /// How TC programs are attached.
    pub classifiers: Classifiers,
    /// Sizes of tables that are not pinned yet.
    pub sizes: Sizes,
    /// Samples of denied contacts that a CPU may take in 128 jiffies.
    pub budget: u32,
    /// Bits of `skb->mark` that are ours; see [`mark::layout`].
    pub mark_mask: u32,
    /// Names of bridge ports that are shut unless a program guards them; see [`gate::pattern`].
    pub gate: Option<String>,
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new(pins: &Path, state: &Path) -> Self {
        Self {
            pins: pins.to_owned(),
            state: state.to_owned(),
            xdp: XdpMode::default(),
            xdp_links: BTreeMap::new(),
            classifiers: Classifiers::default(),
            sizes: Sizes::default(),
            budget: 512,
            mark_mask: mark::DEFAULT,
            gate: None,
        }
    }

    /// Sets [`Self::xdp`].
    #[must_use]
    pub fn xdp(mut self, xdp: XdpMode) -> Self {
        self.xdp = xdp;
        self
    }

    /// Sets [`Self::gate`].
    #[must_use]
    pub fn gate(mut self, pattern: Option<String>) -> Self {
        self.gate = pattern;
        self
    }

    /// Sets [`Self::mark_mask`].
    #[must_use]
    pub fn mark_mask(mut self, mask: u32) -> Self {
        self.mark_mask = mask;
        self
    }
}

/// A node that enforces. Calls concern the network namespace of the calling thread. Dropping it leaves everything in force.
#[derive(Debug)]
pub struct KernelNode {
    options: Options,
    pins: Pins,
    links: Links,
    publisher: Publisher<KernelStore>,
    /// Where our bits lie in the mark.
    layout: Layout,
    /// Settings of the programs that this process has put in force.
    loaded: Option<abi::Config>,
    stood: Stood,
    meant: Arc<Mutex<Meant>>,
    /// What is known of the far ends of containers' links.
    inside: KnownInside,
    /// Links whose containers wait for the next publish.
    held: BTreeSet<String>,
    /// Links that are shut rather than let go.
    kept_shut: BTreeSet<String>,
    /// Links that were shut, and that a publish was about to guard. Where nothing comes of it the next one must not let them go.
    opening: BTreeSet<String>,
    /// Ports of the input rule, where it stood when it was last looked at.
    ruled: BTreeSet<u16>,
    /// What was made of the gate last: the ports that it lets through, or that there is none. `None` before anything was.
    gated: Option<Option<BTreeSet<String>>>,
    /// Held against a second agent.
    _lock: File,
}

impl KernelNode {
    /// Takes over what is pinned, or makes the tables. Nothing is attached or changed until the first publish.
    ///
    /// # Errors
    /// [`NodeError::Kernel`]: a missing right or feature, a mask of the mark that cannot be used, pins of another layout, or an agent that has
    /// these pins.
    pub fn open(options: Options) -> Result<Self, NodeError> {
        let layout = mark::layout(options.mark_mask, options.sizes.slots).doing(|| "use the mask of the mark")?;
        let pins = Pins::new(&options.pins);
        pins.create()?;
        let lock = lock(&pins)?;
        let store = KernelStore::new(Maps::create(&pins, &options.sizes)?)?;
        let links = Links::new(&pins, options.classifiers);
        let publisher = Publisher::open(store, &options.state)?;
        Ok(Self {
            options,
            pins,
            links,
            publisher,
            layout,
            loaded: None,
            stood: Stood::default(),
            meant: Arc::default(),
            inside: KnownInside::default(),
            held: BTreeSet::new(),
            kept_shut: BTreeSet::new(),
            opening: BTreeSet::new(),
            ruled: BTreeSet::new(),
            gated: None,
            _lock: lock,
        })
    }

    /// The publisher, for tests that stop it half-way.
    pub const fn publisher(&mut self) -> &mut Publisher<KernelStore> {
        &mut self.publisher
    }

    /// Programs in force, for test runs.
    ///
    /// # Errors
    /// Before the first publish.
    pub fn programs(&self) -> Result<Programs, NodeError> {
        Programs::open(&self.pins)
    }

    fn load(&mut self, desired: &Desired) -> Result<(), NodeError> {
        let config = abi::Config { mark_mask: self.layout.mask, ..settings(desired, self.options.budget)? };
        if self.loaded != Some(config) {
            // Between programs of two layouts the rule changes too: a slot of the one may be the bit of the other that opens the tunnel's socket.
            let remark = |layout: &Layout| input_rule::follow(&ports(desired), layout);
            self.ruled.clear();
            Programs::load_with(&self.pins, self.publisher.store_mut().maps_mut(), &config, remark)?;
            self.loaded = Some(config);
        }
        Ok(())
    }

    /// Programs on the links of the overlays, in the order in which they may be attached: what marks before what asks for the mark.
    fn boundary(&self, desired: &Desired, overlays: &[DiscoveredOverlay]) -> Vec<Guard> {
        let members: BTreeSet<u32> = desired.overlays.iter().map(|overlay| overlay.vni).collect();
        let overlays: Vec<_> = overlays.iter().filter(|overlay| members.contains(&overlay.vni)).collect();
        let guard = |link: &str, hook, program, value| Guard { link: link.to_owned(), hook, program, value };
        let mut guards = Vec::new();
        let underlays: BTreeSet<&String> = overlays.iter().flat_map(|overlay| &overlay.underlays).collect();
        for link in underlays {
            guards.push(guard(link, Hook::Ingress, program::UNDERLAY, 0));
            guards.push(guard(link, Hook::Egress, program::UNDERLAY_OUT, 0));
            match self.options.xdp_links.get(link).unwrap_or(&self.options.xdp) {
                XdpMode::Off => {}
                XdpMode::Generic => guards.push(guard(link, Hook::XdpGeneric, program::UNDERLAY, 0)),
                XdpMode::Native => guards.push(guard(link, Hook::XdpNative, program::UNDERLAY, 0)),
            }
        }
        for overlay in overlays {
            let unmarked = if overlay.underlays.is_empty() { abi::overlay::UNMARKED } else { 0 };
            let value = overlay.vni | unmarked;
            guards.push(guard(&overlay.device, Hook::Ingress, program::OVERLAY_IN, value));
            guards.push(guard(&overlay.device, Hook::Egress, program::OVERLAY_OUT, value));
        }
        guards
    }

    /// Begins to shut the links of containers that wait for this publish: to attach waits for grace periods of the kernel, which pass while the tables are
    /// written. If nothing comes of the publish they stay shut. A link that cannot be shut is told of when it is to be guarded.
    fn begin_shut(&self, desired: &Desired) -> Vec<Shutting> {
        // Such a node drops nothing.
        if desired.manner.observe {
            return Vec::new();
        }
        let links: BTreeSet<&str> = desired.endpoints.iter().map(|endpoint| endpoint.link.as_str()).collect();
        let held = self.held.iter().filter(|link| links.contains(link.as_str()));
        let begun = held.filter_map(|link| {
            let begun = self.links.begin_shut(self.publisher.store().maps(), link);
            begun.inspect_err(|error| tracing::debug!("not shut beforehand: {error}")).ok()
        });
        begun.collect()
    }

    /// Tables: what new endpoints need, programs, policy.
    fn write(
        &mut self,
        desired: &Desired,
        wires: Wires<'_>,
    ) -> Result<(Vec<Attach>, Vec<Removed>, Published), NodeError> {
        let plan = self.publisher.prepare(desired, wires)?;
        self.load(desired)?;
        let (attach, removed) = (plan.attach.clone(), plan.removed.clone());
        Ok((attach, removed, self.publisher.commit(plan)?))
    }

    /// Says by which links packets may be forwarded into the overlays: those of them that are guarded, and whose marks survive.
    fn say_overlay_links(
        &mut self,
        guards: &[(Guard, Option<EndpointName>)],
        indexes: &BTreeMap<String, u32>,
    ) -> Result<(), NodeError> {
        let carries =
            |guard: &Guard| guard.program == program::OVERLAY_OUT && guard.value & abi::overlay::UNMARKED == 0;
        let mut links =
            guards.iter().filter(|(guard, _)| carries(guard)).filter_map(|(guard, _)| indexes.get(&guard.link));
        let store = self.publisher.store_mut();
        for word in node::OVERLAY_LINK..node::COUNT {
            let link = links.next().map_or(0, |link| u64::from(*link));
            if store.get::<store::Node>(&word)? != Some(link) {
                store.put::<store::Node>(&[(word, link)])?;
            }
        }
        Ok(())
    }

    /// Attaches what does not stand, in order; both programs of an endpoint at the same time, since each waits for a grace period of the kernel.
    ///
    /// A link that cannot be guarded does not leave the others unguarded.
    fn attach(&self, guards: &[(Guard, Option<EndpointName>)], there: &Standing<'_>) -> Result<(), NodeError> {
        let (links, maps) = (&self.links, self.publisher.store().maps());
        let mut failed = None;
        let missing: Vec<_> = guards.iter().filter(|(guard, _)| !there.holds(guard)).collect();
        for together in missing.chunk_by(|(_, one), (_, other)| one.is_some() && one == other) {
            let attached: Vec<_> = thread::scope(|scope| {
                let (first, rest) = together.split_first().expect("no chunk is empty");
                let rest: Vec<_> = rest.iter().map(|(guard, _)| scope.spawn(|| links.attach(maps, guard))).collect();
                let first = links.attach(maps, &first.0);
                let rest = rest.into_iter().map(|other| {
                    let died = |_| Err("the thread that attaches ended").doing(|| "attach".to_owned());
                    other.join().unwrap_or_else(died)
                });
                std::iter::once(first).chain(rest).collect()
            });
            for ((guard, endpoint), attached) in together.iter().zip(attached) {
                if let Err(error) = attached {
                    failed.get_or_insert(match endpoint {
                        Some(endpoint) => link_error(&guard.link, endpoint, &error),
                        None => error,
                    });
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Shuts links that are not to be let go, and says which nothing passes. The word of who had them is 0 by now, so that nothing passes them before either.
    /// Whom a link belongs to that was renamed may be known by its old name: unless nothing is to be dropped it is shut, too.
    fn close(
        &self,
        guarded: &BTreeSet<u32>,
        there: &Standing<'_>,
        observe: bool,
    ) -> Result<BTreeSet<String>, NodeError> {
        let mut kept: BTreeSet<&str> = self.kept_shut.iter().map(String::as_str).collect();
        if !observe {
            kept.extend(there.old_names());
            kept.extend(self.opening.iter().map(String::as_str));
        }
        let mut shut = BTreeSet::new();
        for link in kept {
            for (index, hanging) in there.hanging(link) {
                if !guarded.contains(&index) && self.close_link(index, &hanging)? {
                    shut.insert(link.to_owned());
                }
            }
        }
        Ok(shut)
    }

    /// Whether nothing passes the link now. One that went meanwhile needs nothing.
    fn close_link(&self, index: u32, hanging: &[&Attachment]) -> Result<bool, NodeError> {
        let Some(name) = network::name_of(index)? else { return Ok(false) };
        let closed = self.links.close(self.publisher.store().maps(), &name, hanging);
        if network::name_of(index)?.is_some() { closed } else { Ok(false) }
    }

    /// Brings pins to the names that links have now, of all that are asked about and did not stand by that name: mostly none, and then nothing more is read.
    fn follow(&self, desired: &Desired, boundary: &[Guard], stood: &Stood) -> Result<(), NodeError> {
        let endpoints = desired.endpoints.iter().map(|endpoint| endpoint.link.as_str());
        let others = boundary.iter().map(|guard| &guard.link).chain(&self.kept_shut).map(String::as_str);
        let wanted: BTreeSet<&str> = endpoints.chain(others).filter(|link| !stood.has(link)).collect();
        if wanted.is_empty() { Ok(()) } else { self.links.follow(&wanted) }
    }

    /// Brings the gate to what is guarded.
    fn shut(&mut self, observe: bool) -> Result<(), NodeError> {
        let pattern = self.options.gate.as_deref().filter(|_| !observe);
        let wanted = pattern.map(|_| self.stood.guards.iter().map(|guard| guard.link.clone()).collect());
        // To look is to run nft.
        if self.gated.as_ref() != Some(&wanted) {
            match (pattern, &wanted) {
                (Some(pattern), Some(guarded)) => gate::ensure(pattern, guarded)?,
                _ => gate::remove()?,
            }
            self.gated = Some(wanted);
        }
        Ok(())
    }

    /// As [`detach`], by the agent itself. The node is of no use afterwards.
    ///
    /// # Errors
    /// As [`detach`].
    pub fn detach(&mut self) -> Result<(), NodeError> {
        self.loaded = None;
        remove(&self.pins)
    }
}

/// How long the lock of an agent that is gone may stay: a program that it was about to start when it was killed holds what it had open until it has
/// begun.
const RELEASE: Duration = Duration::from_secs(2);

/// A second agent would give the first one's ids to other things, and attach what a detach has just removed.
fn lock(pins: &Pins) -> Result<File, NodeError> {
    let doing = || format!("lock {}", pins.base().display());
    let directory = File::open(pins.base()).doing(doing)?;
    let patience = Instant::now() + RELEASE;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if Instant::now() < patience => thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {
                return Err("an agent runs with these pins; stop it first").doing(doing);
            }
            Err(TryLockError::Error(error)) => return Err(error).doing(doing),
        }
    }
}

/// Whether somebody may take away what is pinned there.
///
/// # Errors
/// An agent runs with these pins, or pins of another layout are there.
pub fn idle(pins: &Path) -> Result<(), NodeError> {
    let pins = Pins::new(pins);
    pins.check_layout()?;
    if pins.exist() { lock(&pins).map(drop) } else { Ok(()) }
}

/// Detaches everything, removes the input rule and the pins. Needs no agent; call it in the network namespace of the node.
///
/// # Errors
/// An agent runs, pins of another layout are there, or something could not be removed. While something is still attached the tables stay: without them it would drop everything.
pub fn detach(pins: &Path) -> Result<(), NodeError> {
    let pins = Pins::new(pins);
    pins.check_layout()?;
    let _lock = if pins.exist() { Some(lock(&pins)?) } else { None };
    if let Err(error) = expedite::undo() {
        tracing::warn!("{} stays as an agent that was killed has left it; write 0 to it: {error}", expedite::SWITCH);
    }
    remove(&pins)
}

/// What [`detach`] would detach, read from the pins alone. Changes nothing.
///
/// # Errors
/// The pins cannot be read, or are of another layout.
pub fn attached(pins: &Path) -> Result<Vec<LinkStatus>, NodeError> {
    let pins = Pins::new(pins);
    pins.check_layout()?;
    Ok(Links::new(&pins, Classifiers::default()).list()?.iter().map(link_status).collect())
}

fn remove(pins: &Pins) -> Result<(), NodeError> {
    let ports = Maps::open(pins).and_then(KernelStore::new).and_then(|store| tunnel_ports(&store));
    // The rule first: without programs that mark, it would stop the overlay. When the pins cannot tell whether there is one, it is looked for.
    let rule = if ports.is_ok_and(|ports| ports.is_empty()) { Ok(()) } else { input_rule::remove() };
    Links::new(pins, Classifiers::default()).detach_all()?;
    pins.remove_all()?;
    rule.and(gate::remove())
}

fn link_error(link: &str, endpoint: &EndpointName, error: &NodeError) -> NodeError {
    NodeError::Link { link: link.to_owned(), endpoint: publish::display(endpoint), why: error.to_string() }
}

/// Tells what the kernel says of an endpoint's link.
type Wires<'a> = &'a mut dyn FnMut(&Endpoint) -> Result<Wire, NodeError>;

/// What the network says, and what tells of the links of endpoints: as they are now, and of those that stood as they were.
fn look<'a>(
    desired: &'a Desired,
    stood: &'a Stood,
) -> Result<(Discovered, impl FnMut(&Endpoint) -> Result<Wire, NodeError> + use<'a>), NodeError> {
    let known = |link: &str| stood.wires.get(link).copied().filter(|_| stood.has(link));
    let links = desired.endpoints.iter().map(|endpoint| endpoint.link.as_str());
    let Found { discovered, mut containers, ports } =
        network::discover_with(links.filter(|link| known(link).is_none()))?;
    let wire = move |endpoint: &Endpoint| {
        if let Some(wire) = known(&endpoint.link) {
            // A link can change its bridge without becoming another one.
            let port = stood.indexes.get(&endpoint.link).and_then(|index| ports.get(index));
            return Ok(Wire { port: port.copied().unwrap_or_default(), ..wire });
        }
        // Asked for once each; another one of the same link is asked for by itself.
        let again = || network::link(&endpoint.link).and_then(|facts| facts.wire());
        let wire = containers.remove(endpoint.link.as_str()).unwrap_or_else(again);
        wire.map_err(|error| link_error(&endpoint.link, &endpoint.name, &error))
    };
    Ok((discovered, wire))
}

/// UDP ports of the overlays.
fn ports(desired: &Desired) -> BTreeSet<u16> {
    desired.overlays.iter().map(|overlay| overlay.port).collect()
}

/// Node-wide settings of the programs.
fn settings(desired: &Desired, budget: u32) -> Result<abi::Config, NodeError> {
    let ports = ports(desired);
    let vteps: BTreeSet<IpAddr> = desired.overlays.iter().flat_map(|overlay| overlay.own.iter().copied()).collect();
    let mut config = abi::Config { budget, ..abi::Config::default() };
    let fits = |table, need: usize, limit: usize| {
        let what = "the node".to_owned();
        if need <= limit { Ok(()) } else { Err(NodeError::Capacity { what, table, need, limit }) }
    };
    fits("tunnel ports", ports.len(), config.tunnel_ports.len())?;
    fits("own VTEP addresses", vteps.len(), config.vteps.len())?;
    config.vtep_count = u32::try_from(vteps.len()).expect("checked above");
    for (slot, port) in config.tunnel_ports.iter_mut().zip(ports) {
        *slot = port;
    }
    for (slot, vtep) in config.vteps.iter_mut().zip(vteps) {
        *slot = words(vtep);
    }
    Ok(config)
}

/// An address as it lies in a packet, IPv4 mapped.
fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => abi::mapped(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let octets = address.octets();
            std::array::from_fn(|i| {
                u32::from_ne_bytes([octets[4 * i], octets[4 * i + 1], octets[4 * i + 2], octets[4 * i + 3]])
            })
        }
    }
}

impl Node for KernelNode {
    /// Tables first, then links: a workload that runs already goes from unguarded to guarded without a gap in which its policy is missing.
    fn publish(&mut self, desired: &Desired) -> Result<Published, NodeError> {
        // All that asks the kernel for links comes first: while something is attached the kernel answers nobody who does.
        let stood = mem::take(&mut self.stood);
        // Until this succeeds nothing is certain, and what stood is what is missed.
        self.stood.guards.clone_from(&stood.guards);
        let (discovered, mut look_up) = look(desired, &stood)?;
        let mut wires = BTreeMap::new();
        let mut wire = |endpoint: &Endpoint| {
            let wire = look_up(endpoint)?;
            wires.insert(endpoint.link.clone(), wire);
            Ok(wire)
        };
        let boundary = self.boundary(desired, &discovered.overlays);
        self.follow(desired, &boundary, &stood)?;
        let before = tunnel_ports(self.publisher.store())?;
        let shutting = self.begin_shut(desired);
        let (attach, removed, mut published) = self.write(desired, &mut wire)?;

        let mut guards: Vec<(Guard, Option<EndpointName>)> = boundary.into_iter().map(|guard| (guard, None)).collect();
        for endpoint in attach {
            for (hook, program) in [(Hook::Ingress, program::FROM_WORKLOAD), (Hook::Egress, program::TO_WORKLOAD)] {
                guards.push((
                    Guard { link: endpoint.link.clone(), hook, program, value: endpoint.slot },
                    Some(endpoint.endpoint.clone()),
                ));
            }
        }
        let links: BTreeSet<&str> = guards.iter().map(|(guard, _)| guard.link.as_str()).collect();
        // A link that is not there has no guard to be known.
        let indexes = links.into_iter().filter_map(|link| Some((link.to_owned(), if_nametoindex(link).ok()?)));
        let indexes: BTreeMap<String, u32> = indexes.collect();
        let there = Standing::new(&self.links, &stood, guards.iter().map(|(guard, _)| guard))?;
        // What is about to take the place of the stubs that shut links, while these are being attached.
        let coming = guards.iter().filter(|(guard, endpoint)| endpoint.is_some() && !there.holds(guard));
        let says = coming.map(|(guard, _)| (guard.program, guard.value));
        if let Err(error) = self.links.load_stubs(self.publisher.store().maps(), says) {
            tracing::debug!("not loaded beforehand: {error}");
        }
        drop(shutting);
        let shut = there.shut().into_iter().chain(self.held.iter().map(String::as_str));
        self.opening.extend(shut.filter(|link| indexes.contains_key(*link)).map(str::to_owned));
        self.attach(&guards, &there)?;
        self.say_overlay_links(&guards, &indexes)?;
        published.shut = self.close(&indexes.values().copied().collect(), &there, desired.manner.observe)?;
        self.stood.guards = guards.iter().map(|(guard, _)| guard.clone()).collect();
        let ports = ports(desired);
        // A node that only observes lets in what no program has marked, too.
        if !ports.is_empty() && !desired.manner.observe {
            // To look is to run nft.
            if self.ruled != ports {
                input_rule::ensure(&ports, &self.layout)?;
                self.ruled = ports;
            }
        } else if !before.is_empty() {
            self.ruled.clear();
            input_rule::remove()?;
        }
        // After what is new is attached, and before what is not guarded any more is let go.
        self.shut(desired.manner.observe)?;
        if there.has_more_than(&self.stood.guards) {
            self.links.retain_beside(&self.stood.guards, &there.known)?;
        }

        self.opening.clear();
        self.publisher.release(&removed)?;
        let usage = Some(self.publisher.usage()?);
        *meant(&self.meant) = Meant { guards: self.stood.guards.clone(), gated: self.gated.clone().flatten(), usage };
        self.stood = Stood { guards: mem::take(&mut self.stood.guards), indexes, wires, whole: true };
        Ok(published)
    }

    fn rewrite(&mut self, desired: &Desired) -> Result<Published, NodeError> {
        let wires = mem::take(&mut self.stood.wires);
        if !desired.endpoints.iter().all(|endpoint| wires.contains_key(&endpoint.link)) {
            return self.publish(desired);
        }
        let (_, _, published) = self.write(desired, &mut |endpoint: &Endpoint| Ok(wires[&endpoint.link]))?;
        self.stood.wires = wires;
        meant(&self.meant).usage = Some(self.publisher.usage()?);
        Ok(published)
    }

    fn hold(&mut self, links: BTreeSet<String>) {
        self.held = links;
    }

    fn keep_shut(&mut self, links: BTreeSet<String>) {
        self.kept_shut = links;
    }

    fn make_ready(&mut self) -> Result<(), NodeError> {
        if let (Some(owned), Some(wanted)) = (self.publisher.owned_slots(), self.publisher.slots_to_keep_ready()) {
            self.publisher.store_mut().keep_ready(&owned, &wanted)?;
        }
        self.links.load_shutting(self.publisher.store().maps())
    }

    fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError> {
        let rehearsal = self.publisher.rehearse(desired, &mut look(desired, &self.stood)?.1)?;
        settings(desired, self.options.budget)?;
        Ok(rehearsal)
    }

    fn discover(&mut self) -> Result<Discovered, NodeError> {
        let Found { mut discovered, ports, .. } = network::discover_with([])?;
        discovered.moved = self.stood.moved(&ports);
        Ok(discovered)
    }

    fn status(&mut self) -> Result<Status, NodeError> {
        let usage = self.publisher.usage()?;
        let (store, names) = (self.publisher.store(), self.publisher.names());
        let mut status = status(store, names, &self.links, &self.stood.guards, Some(usage))?;
        self.stood.whole &= status.missing.is_empty();
        if !status.input_rule {
            self.ruled.clear();
        }
        let gated = self.gated.as_ref().and_then(Option::as_ref);
        if look_at_gate(&mut status, self.options.gate.as_deref(), gated)? {
            self.gated = None;
        }
        Ok(status)
    }

    fn guarded(&mut self, endpoints: &BTreeSet<EndpointName>) -> Result<BTreeSet<EndpointName>, NodeError> {
        let mut found = read::endpoints(self.publisher.store(), self.publisher.names())?;
        found.retain(|endpoint| endpoints.contains(&endpoint.name));
        let links = found.iter().map(|endpoint| endpoint.link.as_str()).collect();
        let slots = found.iter().map(|endpoint| endpoint.slot).collect();
        let attachments = self.links.list_of_values(&links, &slots)?;
        set_attached(&mut found, &attachments);
        Ok(found.into_iter().filter(|endpoint| endpoint.attached).map(|endpoint| endpoint.name).collect())
    }

    fn gone(&mut self, links: &BTreeSet<(String, u32)>) -> Result<BTreeSet<(String, u32)>, NodeError> {
        let mut gone = BTreeSet::new();
        for link in links {
            if network::name_of(link.1)?.is_none() {
                gone.insert(link.clone());
            }
        }
        Ok(gone)
    }

    fn renamed(&mut self, links: &BTreeSet<(String, u32)>) -> Result<BTreeMap<(String, u32), String>, NodeError> {
        let mut renamed = BTreeMap::new();
        for link in links {
            if let Some(name) = network::name_of(link.1)?.filter(|name| *name != link.0) {
                renamed.insert(link.clone(), name);
            }
        }
        Ok(renamed)
    }

    fn containers(&mut self) -> Result<Containers, NodeError> {
        let mut found = self.inside.containers()?;
        let (attachments, here) = (self.links.list()?, network::namespace()?);
        for container in &mut found.links {
            container.shut = attach::is_shut(&attachments, here, container.index);
            container.guarded = attach::has_endpoint(&attachments, here, container.index);
        }
        self.inside.forget_unguarded(&found);
        Ok(found)
    }

    fn shut(&mut self, link: &str) -> Result<(), NodeError> {
        self.links.shut_both(self.publisher.store().maps(), link)
    }

    fn unshut(&mut self, link: &str) -> Result<(), NodeError> {
        self.links.unshut(link)
    }

    fn observer(&mut self) -> Result<Box<dyn Observer>, NodeError> {
        let reader = Reader::open(&self.options.pins, &self.options.state)?;
        let (gate, meant) = (self.options.gate.clone(), Arc::clone(&self.meant));
        Ok(Box::new(KernelObserver { reader, gate, meant, idle: Mutex::default() }))
    }
}
