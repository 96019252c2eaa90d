//! What a node shall enforce, in plain data: the only thing that the intent half hands to the node half.
//!
//! A [`Desired`] is complete and symbolic. It names selectors, rules and endpoints; bits, rows, slots and map indexes are
//! given by the publisher, which keeps them across publishes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_ebpf::{
    abi::{Action, Class, Direction, Mode},
    reason::Reason,
};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{listed::Listed, pieces::Pieces};

/// VNI of an overlay, 0 for none.
pub type Segment = u32;

/// The whole of what a node shall enforce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Distinct peer expressions that concern this node; [`SelectorId`] is an index. The text is the identity across publishes; where it is empty
    /// there is none.
    pub selectors: Listed<String>,
    /// Rules; [`RuleId`] is an index. The name is the identity across publishes; one that nothing refers to may lack it.
    pub rules: Listed<Rule>,
    /// Policy sets; [`SetId`] is an index. Equal ones may be shared.
    pub sets: Listed<Arc<PolicySet>>,
    /// Endpoints on this node.
    pub endpoints: Vec<Endpoint>,
    /// Known addresses, on any node.
    pub addresses: Pieces<(Segment, IpAddr), Address>,
    /// Prefixes for what is not a known address. Each has all selectors that match it: look-up finds the longest only.
    pub prefixes: BTreeMap<(Segment, IpNetwork), Prefix>,
    /// Overlays of which this node is a member.
    pub overlays: Vec<Overlay>,
    /// Addresses that this node's kernel translates to backends (kube-proxy's, for one).
    pub services: BTreeMap<ServiceAddress, BTreeSet<Backend>>,
    /// How all of it is enforced.
    pub manner: Manner,
}

/// How a node enforces, whatever that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Judge and count on the whole node, drop nothing: spoofed and forged packets are reported as well and pass.
    pub observe: bool,
    /// Packets between workloads are forwarded directly, past what the node has on the way: see [`bulkhead_ebpf::direct`].
    pub direct: bool,
}

impl Desired {
    /// Whether the same links are guarded in the same way, whatever they let through.
    #[must_use]
    pub fn has_guards_of(&self, other: &Self) -> bool {
        let guarded = |a: &Endpoint, b: &Endpoint| {
            (&a.name, &a.link, a.segment, &a.addresses) == (&b.name, &b.link, b.segment, &b.addresses)
        };
        self.manner.observe == other.manner.observe
            && self.overlays == other.overlays
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(|(a, b)| guarded(a, b))
    }
}

/// Index in [`Desired::selectors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelectorId(pub u32);
/// Index in [`Desired::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);
/// Index in [`Desired::sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

/// A rule that verdicts name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Stable and unique, without line numbers: `shop/cart calls db:5432/tcp`.
    pub name: String,
    /// Where it is written: `shop.yaml:13`; empty for what no file states (the default denial, for one).
    pub origin: String,
}

/// The policies of one direction of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicySet {
    /// Direction of the initiator's packets.
    pub direction: Direction,
    /// Whether a policy isolates; when not, the last entry of every interval allows all.
    pub isolated: bool,
    /// For each of [`Class::ALL`], the intervals of its axis: ascending, the first starts at 0.
    pub classes: [Vec<Interval>; Class::COUNT as usize],
}

impl PolicySet {
    /// Whether some entry is audited: then there is a would-be verdict beside the verdict.
    #[must_use]
    pub fn audited(&self) -> bool {
        self.classes.iter().flatten().flat_map(|interval| &interval.entries).any(|entry| entry.audit)
    }
}

/// An elementary interval of a class's axis, up to the next one's start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// First value.
    pub start: u16,
    /// Entries in order of judgement: the first that matches decides. The last one matches everyone.
    pub entries: Vec<Entry>,
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Ascending along the list, but for `Action::Pass`, which goes on behind its tier: one that leaves several has the last of them.
    pub tier: u8,
    /// What a match does.
    pub action: Action,
    /// Counts only for the would-be verdict.
    pub audit: bool,
    /// The reason that a match gives.
    pub reason: Reason,
    /// Whom it concerns.
    pub peers: Peers,
}

/// Peers of an [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everyone.
    Any(RuleId),
    /// Whoever one of these matches; each selector at most once, never empty. Of several that match any may be named.
    Selectors(Vec<(SelectorId, RuleId)>),
}

/// Name of an endpoint across restarts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointName {
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the workload.
    pub workload: String,
    /// Which of the workload's endpoints.
    pub index: u32,
}

/// An endpoint on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name.
    pub name: EndpointName,
    /// Service that it belongs to, for metrics; empty for none.
    pub service: String,
    /// Host-side link, by name, in the node's network namespace.
    pub link: String,
    /// Its overlay.
    pub segment: Segment,
    /// Own addresses, at most [`bulkhead_ebpf::abi::ENDPOINT_ADDRESSES`] of each family.
    pub addresses: Vec<IpAddr>,
    /// Mode.
    pub mode: Mode,
    /// Views in order of their deadlines; the last has none.
    pub views: Vec<View>,
}

/// What holds for an endpoint until a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View {
    /// Traffic to the workload.
    pub ingress: SetId,
    /// Traffic from the workload.
    pub egress: SetId,
    /// End, in nanoseconds of Unix time; `None` for never.
    pub until: Option<u64>,
}

/// A known address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Selectors that match it, those of CIDRs included.
    pub selectors: BTreeSet<SelectorId>,
    /// The endpoint that has it, where it is on this node.
    pub endpoint: Option<Box<EndpointName>>,
    /// The node is this one.
    pub own: bool,
    /// A node's address. Traffic that passes through with it is looked up in the prefixes: it is masqueraded, never the node.
    pub node: bool,
    /// Packets with this source arrive encapsulated only (it belongs to a node behind a VXLAN device whose marks survive decapsulation): a plain
    /// one is forged. Becomes [`bulkhead_ebpf::abi::AddressWord::ENCAPSULATED`]. Never set for addresses of this node.
    pub encapsulated: bool,
}

/// A prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Selectors that match all of it.
    pub selectors: BTreeSet<SelectorId>,
    /// It belongs to the overlay: what is in it and not known is neither world nor cluster.
    pub overlay: bool,
    /// As in [`Address::encapsulated`].
    pub encapsulated: bool,
}

/// An address and port that the node's kernel translates to one of several backends (DNAT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAddress {
    /// Segment in which an endpoint of this node can call it.
    pub segment: Segment,
    /// The address; `None` for a port on any node's address (a NodePort).
    pub address: Option<IpAddr>,
    /// IP protocol: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Port that is called.
    pub port: u16,
}

/// Where calls to a [`ServiceAddress`] end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address, of the family of the service's.
    pub address: IpAddr,
    /// Port that it listens on.
    pub port: u16,
    /// The way there passes one of this node's programs after translation: it is a workload of this node, or behind a VXLAN device. Of others (the
    /// API server, host-gw routes) nothing is judged after the caller's own link, so there all backends must be allowed.
    pub judged_later: bool,
}

/// An overlay of which this node is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// VNI.
    pub vni: Segment,
    /// UDP port.
    pub port: u16,
    /// This node's own VTEP addresses.
    pub own: Vec<IpAddr>,
    /// Other nodes' VTEP addresses, and the inner prefixes that each owns. Never this node's own.
    pub peers: BTreeMap<IpAddr, BTreeSet<IpNetwork>>,
}
