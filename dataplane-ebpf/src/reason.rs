//! Why a packet passed or was dropped: one exhaustive enum, which is also the label of the metrics.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal, $blocked:literal;)*) => {
        /// The one reason of a verdict.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $number,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// From its number in a map.
            #[must_use]
            #[inline(always)]
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Label in metrics and texts.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            /// Whether the packet was dropped.
            #[must_use]
            pub const fn blocked(self) -> bool {
                match self {
                    $(Self::$name => $blocked,)*
                }
            }

            /// Whether it is a second word about packets that another reason counts already.
            #[must_use]
            pub const fn beside(self) -> bool {
                matches!(self, Self::WouldDeny | Self::WouldAllow)
            }

            /// What it means, for a person.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc,)+).trim_ascii(),)*
                }
            }
        }
    };
}

/// Reasons that fit the counters of an endpoint.
pub const REASONS: u32 = 48;

reasons! {
    /// No reason was stated; never counted.
    None = 0, "none", true;
    /// An allow rule matched.
    Rule = 1, "rule", false;
    /// No policy isolates this direction.
    NotIsolated = 2, "not_isolated", false;
    /// Reply of an allowed flow.
    Reply = 3, "reply", false;
    /// ICMP error about an allowed flow.
    Related = 4, "related", false;
    /// Address resolution (ARP, neighbour discovery, multicast listener reports) that states only what the sender owns.
    Resolution = 5, "resolution", false;
    /// A deny rule matched.
    DeniedByRule = 6, "denied_by_rule", true;
    /// The workload is isolated in this direction and no rule allows it.
    Isolated = 7, "isolated", true;
    /// Looks like a reply, but no flow of the workload is known for it.
    NoFlow = 8, "no_flow", true;
    /// No policy has been published for the workload yet.
    Pending = 9, "pending", true;
    /// The workload is in quarantine.
    Quarantine = 10, "quarantine", true;
    /// The source MAC is not the workload's own.
    SpoofedMac = 11, "spoofed_mac", true;
    /// The source address is not the workload's own.
    SpoofedSource = 12, "spoofed_source", true;
    /// A VLAN tag, which no workload may send or get.
    VlanTag = 13, "vlan_tag", true;
    /// ARP or neighbour discovery that claims what the sender does not own.
    SpoofedResolution = 14, "spoofed_resolution", true;
    /// Tunnel traffic from a workload to a node.
    Tunnel = 15, "tunnel", true;
    /// A fragment to or from an isolated workload.
    Fragment = 16, "fragment", true;
    /// The headers are truncated or contradict themselves.
    Malformed = 17, "malformed", true;
    /// Neither IPv4, IPv6 nor ARP.
    NotIp = 18, "not_ip", true;
    /// Flooded to a link whose workload it does not concern.
    NotForUs = 19, "not_for_us", true;
    /// Encapsulated by a host that is no VTEP of the segment.
    UnknownVtep = 20, "unknown_vtep", true;
    /// The inner source does not belong to the VTEP that sent the packet.
    WrongVtep = 21, "wrong_vtep", true;
    /// The VNI is not configured here.
    UnknownVni = 22, "unknown_vni", true;
    /// The VXLAN header lacks its I flag or has reserved bits set.
    BadVxlan = 23, "bad_vxlan", true;
    /// First fragment of an encapsulated packet.
    OuterFragment = 24, "outer_fragment", true;
    /// Decapsulated without having passed the underlay check.
    Unverified = 25, "unverified", true;
    /// Tunnel traffic that this node was asked to forward to a node, or that came out of a tunnel itself and is not for a workload.
    ForwardedTunnel = 26, "forwarded_tunnel", true;
    /// The kernel could not make the headers readable.
    NoMemory = 27, "no_memory", true;
    /// The endpoint is not known: its slot has no data.
    NoEndpoint = 28, "no_endpoint", true;
    /// A plain packet from the underlay with a source of the overlay.
    PlainOverlaySource = 29, "plain_overlay_source", true;
    /// Encapsulated traffic that passed the underlay check.
    Verified = 30, "verified", false;
    /// What is known of an address changed twice while it was looked up, or its sender was removed while it was underway.
    Changing = 31, "changing", true;
    /// Reply of a flow that policy no longer allows, or to a caller that is gone; the flow is forgotten with it.
    Revoked = 32, "revoked", true;
    /// A workload that reaches itself, by way of a service address for one.
    Itself = 33, "itself", false;
    /// Policy forbids it, and it passes: the endpoint or the node only observes.
    Observed = 34, "observed", false;
    /// It passes, and audited policies would deny it. Counted beside the verdict's own reason.
    WouldDeny = 35, "would_deny", false;
    /// It is dropped, and audited policies would allow it. Counted beside the verdict's own reason.
    WouldAllow = 36, "would_allow", false;
    /// From or to a port of a bridge that no program guards, at the gate.
    Unguarded = 37, "unguarded", true;
}
