//! The one trait through which the intent half sees a node. Plain data only, so that the privileged half can become a process of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_ebpf::{
    abi::{Direction, Mode},
    reason::Reason,
};
use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::{
    desired::{Desired, EndpointName, Segment},
    store::{ContactTable, Table as _},
};

/// What the intent half asks of a node. Calls block; no call panics on what the kernel or a file says.
pub trait Node: Send {
    /// Makes the kernel enforce `desired`: all of it, or nothing and an error.
    ///
    /// # Errors
    /// [`NodeError::Capacity`] before anything is written, [`NodeError::Link`] for an endpoint's link that cannot be guarded, else [`NodeError::Kernel`].
    fn publish(&mut self, desired: &Desired) -> Result<Published, NodeError>;

    /// As [`Node::publish`], where endpoints and overlays are those of the last one that succeeded, and no guard is known to be missing: links are not
    /// looked at.
    ///
    /// # Errors
    /// As [`Node::publish`].
    fn rewrite(&mut self, desired: &Desired) -> Result<Published, NodeError> {
        self.publish(desired)
    }

    /// Says by which links containers hang that wait for the next publish, and may have nothing before: a node to which attaching takes time begins with
    /// their links, shut, while it writes its tables; they stay shut where the publish fails. Holds for every publish until something else is said. What runs
    /// already is not named here: it goes from unguarded to guarded, and is not shut between.
    fn hold(&mut self, _links: BTreeSet<String>) {}

    /// Says which links the publishes that follow must not open although no endpoint is theirs any more: in the place of what guards them they get what
    /// [`Node::shut`] hangs, without a gap. What has no guard stays open. Holds until something else is said.
    fn keep_shut(&mut self, links: BTreeSet<String>);

    /// Frees what endpoints that went had, and makes ahead what the next ones will need. For after a publish, when nobody waits: both take grace periods.
    /// Where it is left out a publish makes what it needs, and takes longer.
    ///
    /// # Errors
    /// [`NodeError::Kernel`]; what is in force is as it was.
    fn make_ready(&mut self) -> Result<(), NodeError> {
        Ok(())
    }

    /// What publishing `desired` would write and what room it would leave; nothing is changed.
    ///
    /// # Errors
    /// Those that [`Node::publish`] would give before it writes: [`NodeError::Capacity`], and [`NodeError::Link`] for a link that is not there.
    fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError>;

    /// What the network of this node says: addresses of the node, VXLAN devices and whom their permanent entries bind.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn discover(&mut self) -> Result<Discovered, NodeError>;

    /// What is in force, read back from the kernel.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn status(&mut self) -> Result<Status, NodeError>;

    /// Which of these endpoints the kernel guards as they were published last, read back.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn guarded(&mut self, endpoints: &BTreeSet<EndpointName>) -> Result<BTreeSet<EndpointName>, NodeError> {
        let standing = self.status()?.endpoints.into_iter().filter(|endpoint| endpoint.attached);
        Ok(standing.map(|endpoint| endpoint.name).filter(|name| endpoints.contains(name)).collect())
    }

    /// Which of these links, by name and index, are not there any more. One that was renamed is.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn gone(&mut self, links: &BTreeSet<(String, u32)>) -> Result<BTreeSet<(String, u32)>, NodeError>;

    /// Which of these links have another name now, and which.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn renamed(&mut self, links: &BTreeSet<(String, u32)>) -> Result<BTreeMap<(String, u32), String>, NodeError>;

    /// Veth pairs of this network namespace whose other end is in another one: behind each of them somebody may run.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn containers(&mut self) -> Result<Containers, NodeError>;

    /// Hangs programs before a link that let nothing pass, until a publish guards an endpoint there. Where that one fails, the next one lets nothing pass
    /// either unless the endpoint is in it. What guards the link already stays. Needs the programs of an earlier publish.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn shut(&mut self, link: &str) -> Result<(), NodeError>;

    /// Takes away what [`Node::shut`] hung there; what guards an endpoint stays.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn unshut(&mut self, link: &str) -> Result<(), NodeError>;

    /// Who reads what the node counted and saw, from another thread. To be asked for in the network namespace of the node, and used there.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn observer(&mut self) -> Result<Box<dyn Observer>, NodeError>;
}

/// Reads what a node counted and saw beside the [`Node`], which has better to do: to read all tables takes long. Changes nothing. While a publish is under
/// way it sees what was there before, or after, or some of each.
pub trait Observer: Send {
    /// Exact counters since the pins were made, those of endpoints that are gone included.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn counters(&self) -> Result<Vec<Reading>, NodeError>;

    /// Flows that are in the tables now.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn flows(&self) -> Result<Vec<FlowRecord>, NodeError>;

    /// Samples of what was denied.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn contacts(&self) -> Result<Contacts, NodeError>;

    /// See [`Node::status`].
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn status(&self) -> Result<Status, NodeError>;

    /// Who else on this node uses bits of packet marks that are ours. Takes as long as listing the firewall does.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    fn mark_conflicts(&self) -> Result<MarkConflicts, NodeError>;
}

/// What a publish did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Node's epoch afterwards.
    pub epoch: u32,
    /// Map entries written.
    pub writes: usize,
    /// Grace periods waited for.
    pub grace_periods: usize,
    /// Links, [`Node::keep_shut`]'s among them, that no endpoint has any more and that nothing passes.
    pub shut: BTreeSet<String>,
}

/// What a publish would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rehearsal {
    /// Map entries that it would write, as in [`Published::writes`].
    pub writes: usize,
    /// Grace periods that it would wait for, as in [`Published::grace_periods`].
    pub grace_periods: usize,
    /// Use of each bounded table that is published, afterwards.
    pub tables: Vec<TableUse>,
}

/// What the network of a node says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Discovered {
    /// Addresses of the node's own interfaces, those of loopback left out, and link-local ones of IPv6 but for bridges'.
    pub addresses: Vec<IpAddr>,
    /// VXLAN devices.
    pub overlays: Vec<DiscoveredOverlay>,
    /// Links of endpoints whose [`Port`] is not the one of the latest publish.
    pub moved: BTreeSet<String>,
}

/// A VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiscoveredOverlay {
    /// Name of the device.
    pub device: String,
    /// VNI.
    pub vni: Segment,
    /// UDP port.
    pub port: u16,
    /// Own VTEP address.
    pub own: Option<IpAddr>,
    /// Links that carry it.
    pub underlays: Vec<String>,
    /// Permanent bindings of inner prefixes to VTEPs: routes by way of the device joined with neighbours and FDB.
    pub peers: Vec<(IpAddr, Vec<IpNetwork>)>,
}

/// Veth pairs that lead out of the node's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Containers {
    /// These pairs, by the index of the end that is here.
    pub links: Vec<ContainerLink>,
    /// Names of all links of this namespace.
    pub names: BTreeSet<String>,
}

/// A veth pair whose other end is in another network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ContainerLink {
    /// Name of the end that is here.
    pub link: String,
    /// Its index.
    pub index: u32,
    /// What this namespace calls the one in which the other end is.
    pub netns: i32,
    /// Name of the bridge that the end here is a port of.
    pub bridge: Option<String>,
    /// Name of the other end; empty where that cannot be read.
    pub inside: String,
    /// Addresses of the other end, sorted, those local to a link left out.
    pub addresses: Vec<IpAddr>,
    /// Why the other end cannot be read; empty where it can be.
    pub unread: String,
    /// Programs hang before it that let nothing pass, see [`Node::shut`].
    pub shut: bool,
    /// A program hangs before it that guards an endpoint, be it one that no publish names any more.
    pub guarded: bool,
}

/// One exact counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// The endpoint; `None` for what the node itself dropped or let pass (underlay).
    pub endpoint: Option<EndpointName>,
    /// Service of the endpoint when it was last published; empty for none.
    pub service: String,
    /// Since when the workload has no endpoint here any more, nanoseconds of Unix time; `None` while it has one.
    pub gone: Option<u64>,
    /// Direction of the packets as the workload sees it; on the underlay ingress.
    pub direction: &'static str,
    /// Reason.
    #[serde(serialize_with = "label")]
    pub reason: Reason,
    /// Name of the deciding rule; empty where none decided.
    pub rule: String,
    /// Wire segments.
    pub packets: u64,
    /// Bytes of the frames on the wire.
    pub bytes: u64,
    /// Flows, see [`bulkhead_ebpf::abi::Counter::flows`].
    pub flows: u64,
}

/// A flow in an endpoint's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowRecord {
    /// Owner. All records of a reading share its name.
    #[serde(serialize_with = "shared")]
    pub endpoint: Arc<EndpointName>,
    /// Direction of the initiator.
    pub direction: &'static str,
    /// The owner's address.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// The owner's port.
    pub local_port: u16,
    /// The peer's port.
    pub remote_port: u16,
    /// Name of the rule that allowed it.
    #[serde(serialize_with = "shared")]
    pub rule: Arc<str>,
    /// Reason.
    #[serde(serialize_with = "label")]
    pub reason: Reason,
    /// Wire segments: initiator, replies.
    pub packets: [u64; 2],
    /// Bytes: initiator, replies.
    pub bytes: [u64; 2],
    /// First and latest packet, nanoseconds of Unix time.
    pub first: u64,
    /// Latest packet, nanoseconds of Unix time.
    pub last: u64,
    /// The verdict is of the current epoch.
    pub current: bool,
    /// Its packets are forwarded directly, where [`Status::direct`] says so of the node; else they take the node's way.
    pub direct: bool,
}

/// Samples of what was denied, and what did not fit the budget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Contacts {
    /// Samples.
    pub records: Vec<ContactRecord>,
    /// Denied packets that the budget did not let through.
    pub unsent: u64,
}

/// One sample of what was denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContactRecord {
    /// The endpoint, `None` on the underlay.
    #[serde(serialize_with = "shared_if_any")]
    pub endpoint: Option<Arc<EndpointName>>,
    /// Direction of the packet.
    pub direction: &'static str,
    /// The peer; on the underlay the outer source.
    pub peer: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port, or ICMP type << 8 | code.
    pub port: u16,
    /// Reason.
    #[serde(serialize_with = "label")]
    pub reason: Reason,
    /// Name of the deciding rule; empty where none decided.
    #[serde(serialize_with = "shared")]
    pub rule: Arc<str>,
    /// It passed all the same: the endpoint or the node only observed.
    pub observed: bool,
    /// It was dropped, and audited policies would let it pass.
    pub would_pass: bool,
    /// Wire segments sampled.
    pub packets: u64,
    /// Bytes sampled.
    pub bytes: u64,
    /// First sample, nanoseconds of Unix time.
    pub first: u64,
    /// Latest sample, nanoseconds of Unix time.
    pub last: u64,
    /// On the underlay: VNI and inner source.
    pub inner: Option<(Segment, IpAddr)>,
}

/// What the kernel says of an endpoint's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Its end on the node.
    pub port: Port,
    /// MAC address of the container behind it, the only one that it may send from.
    pub mac: [u8; 6],
}

/// How the node forwards what comes by a link; all zeros where not all that it does there is known, see [`bulkhead_ebpf::direct`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Index of the link.
    pub link: u32,
    /// Index of the bridge that it is a port of; 0 for none.
    pub bridge: u32,
    /// MAC address of the bridge; of the link where there is none.
    pub router: [u8; 6],
}

impl Wire {
    /// Where there are no links: to the container with this MAC address.
    #[must_use]
    pub fn to(mac: [u8; 6]) -> Self {
        Self { port: Port::default(), mac }
    }
}

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Node's epoch.
    pub epoch: u32,
    /// The node only observes.
    pub observe: bool,
    /// Packets between workloads are forwarded directly, see [`bulkhead_ebpf::direct`]. Not while the node only observes or is
    /// bypassed.
    pub direct: bool,
    /// Until when enforcement is bypassed, nanoseconds of Unix time; `None` while it is not.
    pub bypassed_until: Option<u64>,
    /// Endpoints.
    pub endpoints: Vec<EndpointStatus>,
    /// Links that are guarded: name and programs.
    pub links: Vec<LinkStatus>,
    /// Guards that stood after the latest publish and are not there any more. Who has not published knows of none.
    pub missing: Vec<LinkStatus>,
    /// Use of each bounded table.
    pub tables: Vec<TableUse>,
    /// Whether the input rule stands.
    pub input_rule: bool,
    /// Bits of `skb->mark` that the programs in force use; 0 for none yet.
    pub mark_mask: u32,
}

/// An endpoint as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointStatus {
    /// Name.
    pub name: EndpointName,
    /// Slot.
    pub slot: u32,
    /// Host-side link.
    pub link: String,
    /// Mode.
    #[serde(serialize_with = "debug")]
    pub mode: Mode,
    /// Epoch of its flows.
    pub epoch: u32,
    /// Both programs are attached.
    pub attached: bool,
}

/// A guarded link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkStatus {
    /// Name.
    pub link: String,
    /// What guards it: `tcx ingress underlay`, `xdp native underlay`.
    pub guard: String,
}

/// Use of a bounded table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableUse {
    /// Name of the table.
    pub table: &'static str,
    /// In use.
    pub used: usize,
    /// Configured.
    pub limit: usize,
}

impl TableUse {
    /// Whether it fills in time on every node: the oldest entry makes room for the next.
    #[must_use]
    pub fn is_to_fill(&self) -> bool {
        self.table == ContactTable::NAME
    }
}

/// Who else uses bits of `skb->mark` that are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MarkConflicts {
    /// Rules that use some of our bits.
    pub users: Vec<MarkUser>,
    /// What could not be looked at, and why.
    pub unread: Vec<String>,
    /// How to get out of the way; empty without users.
    pub remedy: String,
}

/// A rule of somebody else that reads or writes packet marks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MarkUser {
    /// Where it stands and, as far as it is known, how it reads.
    pub rule: String,
    /// Bits that it compares, or sends elsewhere.
    pub reads: u32,
    /// Bits that it may change.
    pub writes: u32,
}

impl MarkUser {
    /// All bits that it uses.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        self.reads | self.writes
    }
}

/// Why a node cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Does not fit; nothing was written.
    #[error("{what} needs {need} {table}, {limit} are configured; nothing was changed")]
    Capacity {
        /// Whose need it is.
        what: String,
        /// Table.
        table: &'static str,
        /// Needed.
        need: usize,
        /// Configured.
        limit: usize,
    },
    /// An endpoint's link cannot be guarded.
    #[error("link {link} of {endpoint} cannot be guarded: {why}")]
    Link {
        /// Name of the link.
        link: String,
        /// Name of the endpoint.
        endpoint: String,
        /// Reason and remedy.
        why: String,
    },
    /// The kernel or a tool refused something.
    #[error("{doing}: {why}")]
    Kernel {
        /// What was tried.
        doing: String,
        /// What came back.
        why: String,
    },
}

/// Label of a direction.
#[must_use]
pub const fn direction_label(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn label<S: serde::Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.label())
}

fn debug<S: serde::Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mode:?}"))
}

fn shared<T: Serialize + ?Sized, S: serde::Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    (**value).serialize(serializer)
}

fn shared_if_any<T: Serialize, S: serde::Serializer>(value: &Option<Arc<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_deref().serialize(serializer)
}
