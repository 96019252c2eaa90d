//! TCP connections that a workload had before it was guarded: kept, or cut.
//!
//! The programs know a connection by the flow that its first packet made. One that is older than its guard has none: an answer that comes first
//! would be dropped as nobody's. So each gets the flow that it would have, under a word that no endpoint has: the programs judge it anew when its next
//! packet comes, in the direction of who began it. What is allowed goes on, what is not is cut; no verdict is made here.
//!
//! Who began it, sockets do not say. Whoever has a listening socket on its own port was called; without one, whose own port is none that the kernel
//! gives away by itself, while the other's is. A wrong guess is judged by the other direction's rules, and opens nothing that these do not. What the
//! programs heard before is as good as that only if it was the beginning: see [`NewFlow::replaces`].
//!
//! Entering the workloads' network namespaces needs `CAP_SYS_ADMIN`, which the agent has not: this is for a process of its own, which needs the pins and
//! no agent.

mod namespaces;
mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::Path,
};

use bulkhead_ebpf::{
    abi::{Direction, EndpointInfo, Flow, FlowKey4, FlowKey6},
    family::{Family, V4, V6},
    packet::Transport,
};

use self::sockets::{Began, Connection, Sockets};
use crate::{
    desired::EndpointName,
    kernel::KernelStore,
    load::Maps,
    names::Names,
    netns,
    network::KnownInside,
    node::NodeError,
    pins::Pins,
    publish::to_packet,
    read,
    store::{EndpointInfos, Store as _},
    sys::Doing as _,
};

/// IP protocol of these connections.
const TCP: u8 = 6;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The programs judge them, as if they had seen their first packets.
    Keep,
    /// They end, allowed or not.
    Cut,
}

/// What became of an endpoint's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The endpoint.
    pub endpoint: EndpointName,
    /// Its link.
    pub link: String,
    /// How many, or why it could not be done.
    pub result: Result<Counts, String>,
}

/// Numbers of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that got a flow.
    pub kept: usize,
    /// Those that had one already, which stays.
    pub known: usize,
    /// Those that were ended.
    pub cut: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kept, known, cut } = self;
        write!(f, "kept {kept}, known before {known}, cut {cut}")
    }
}

/// Keeps or cuts the connections of all endpoints that are in force, those that were guarded before included: what has a flow keeps it. Call it in the
/// network namespace of the node.
///
/// # Errors
/// Nothing is in force there, or it or the node's links cannot be read. What is wrong with one endpoint is told with it, and the others go on.
pub fn adopt(pins: &Path, state: &Path, fate: Fate) -> Result<Vec<Adopted>, NodeError> {
    let store = KernelStore::new(Maps::open(&Pins::new(pins))?)?;
    let read = |names: &Names| {
        let infos: BTreeMap<u32, EndpointInfo> = store.entries::<EndpointInfos>()?.into_iter().collect();
        Ok((read::endpoints(&store, names)?, infos))
    };
    let (endpoints, infos) = read::with_names(state, read)?;
    let links = KnownInside::default().containers()?.links;
    let id_behind = |link: &str| links.iter().find(|found| found.link == link).map(|found| found.netns);
    let wanted: BTreeSet<i32> = endpoints.iter().filter_map(|endpoint| id_behind(&endpoint.link)).collect();
    let namespaces = namespaces::find(&wanted).doing(|| "look for the workloads' network namespaces")?;
    // What the node itself has begun is another's than what it only forwards.
    let node = Sockets::here().doing(|| "list the node's own connections")?;
    let (jiffies, _) = store.clock()?;
    let done = |slot: u32, link: &str| -> Result<Counts, NodeError> {
        let doing = || format!("look at the connections behind link {link}");
        let info = infos.get(&slot).ok_or("the endpoint went meanwhile").doing(doing)?;
        let id = id_behind(link).ok_or("there is no such veth pair on this node any more").doing(doing)?;
        let namespace = namespaces.get(&id);
        let namespace = namespace
            .ok_or("its network namespace has no process, and is mounted nowhere that can be seen from here")
            .doing(doing)?;
        netns::within(namespace, || match fate {
            Fate::Keep => Sockets::here().map(|sockets| (flows(&sockets, info, &node, jiffies), 0)),
            Fate::Cut => Sockets::cut(|connection| own(info, connection.local.ip())).map(|cut| (Flows::default(), cut)),
        })
        .doing(doing)
        .and_then(|(flows, cut)| {
            let all = flows.four.len() + flows.six.len();
            let kept = store.add_flows(slot, &flows.four, &flows.six)?;
            let kept = kept.ok_or("the endpoint has no flow tables").doing(doing)?;
            Ok(Counts { kept, known: all - kept, cut })
        })
    };
    Ok(endpoints
        .into_iter()
        .map(|endpoint| Adopted {
            result: done(endpoint.slot, &endpoint.link).map_err(|error| error.to_string()),
            endpoint: endpoint.name,
            link: endpoint.link,
        })
        .collect())
}

/// Flows of an endpoint.
#[derive(Debug, Default, PartialEq, Eq)]
struct Flows {
    four: Vec<(FlowKey4, NewFlow)>,
    six: Vec<(FlowKey6, NewFlow)>,
}

/// The flow of a connection that sockets tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewFlow {
    pub(crate) flow: Flow,
    /// Who began it is no mere guess.
    sure: bool,
}

impl NewFlow {
    /// Whether it takes the place of one that the programs have made. They take whom they hear first for who began it, and are right where they saw both
    /// sides' SYN. Elsewhere an answer may have come first, and have made the caller's packets answers.
    pub(crate) fn replaces(&self, there: &Flow) -> bool {
        self.sure
            && there.begun() != self.flow.begun()
            && there.tcp_flags.iter().any(|flags| flags & Transport::SYN == 0)
    }
}

/// The flows that an endpoint's connections would have.
fn flows(sockets: &Sockets, info: &EndpointInfo, node: &Sockets, jiffies: u64) -> Flows {
    let mut flows = Flows::default();
    for connection in &sockets.connections {
        let Connection { local, remote } = *connection;
        let Began { inbound, sure } = sockets.began(connection);
        // All else came to the node by some interface.
        let of_node = inbound && node.connections.contains(&Connection { local: remote, remote: local });
        let flow = Flow {
            // The word of nobody: it is judged anew with its next packet.
            word: 0,
            last: jiffies,
            first: jiffies as u32,
            initiator: if inbound { Direction::Ingress } else { Direction::Egress } as u8,
            flags: if of_node { 0 } else { Flow::TRANSIT },
            ..Flow::default()
        };
        let flow = NewFlow { flow, sure };
        let (local_port, remote_port) = (local.port(), remote.port());
        match (local.ip(), remote.ip()) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let [local, remote] = [local, remote].map(|address| u32::from_ne_bytes(address.octets()));
                if let Some(own) = V4::own(info, local) {
                    flows.four.push((V4::key((local, own), remote, local_port, remote_port, TCP), flow));
                }
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                let [local, remote] = [local, remote].map(|address| to_packet(address.into()));
                if let Some(own) = V6::own(info, local) {
                    flows.six.push((V6::key((local, own), remote, local_port, remote_port, TCP), flow));
                }
            }
            _ => {}
        }
    }
    flows
}

/// Whether an address is one of the endpoint's.
fn own(info: &EndpointInfo, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => V4::own(info, u32::from_ne_bytes(address.octets())).is_some(),
        IpAddr::V6(_) => V6::own(info, to_packet(address)).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(local: &str, remote: &str) -> Connection {
        Connection { local: local.parse().unwrap(), remote: remote.parse().unwrap() }
    }

    fn info() -> EndpointInfo {
        let mut info =
            EndpointInfo { ipv4_count: 1, ipv6_count: 1, mac: [2, 0, 0, 0, 0, 7], ..EndpointInfo::default() };
        info.ipv4[0] = u32::from_ne_bytes([10, 0, 0, 1]);
        info.ipv6[0] = to_packet("2001:db8::1".parse().unwrap());
        info
    }

    fn sockets(listening: &[u16], connections: &[Connection]) -> Sockets {
        Sockets {
            listening: listening.iter().copied().collect(),
            connections: connections.iter().copied().collect(),
            given_away: 32768..=60999,
        }
    }

    #[test]
    fn who_began_is_told_by_listeners_and_ports() {
        for (listening, local, remote, inbound, sure) in [
            (&[8080][..], 8080, 40000, true, true),
            // A server whose listener is closed, or which inherited its connection.
            (&[], 8080, 40000, true, true),
            (&[], 40000, 8080, false, true),
            // A server on a port that the kernel may give away.
            (&[40000], 40000, 40001, true, true),
            (&[], 40000, 40001, false, false),
            // A client that chose its port, as those of NFS do.
            (&[], 800, 2049, false, false),
        ] {
            let connection = connection(&format!("10.0.0.1:{local}"), &format!("10.0.0.2:{remote}"));
            let began = sockets(listening, &[connection]).began(&connection);
            assert_eq!(began, Began { inbound, sure }, "{listening:?} {connection:?}");
        }
    }

    #[test]
    fn sockets_know_better_than_who_was_heard_first() {
        let (ingress, egress) = (Direction::Ingress, Direction::Egress);
        let (syn, ack) = (Transport::SYN | Transport::ACK, Transport::ACK);
        for (initiator, sure, heard, tcp_flags, replaces) in [
            (ingress, true, egress, [ack; 2], true),
            (egress, true, ingress, [ack; 2], true),
            // The last packet of its beginning was the first that was heard.
            (ingress, true, egress, [syn, ack], true),
            (ingress, true, egress, [syn; 2], false),
            (ingress, true, ingress, [ack; 2], false),
            (egress, false, ingress, [ack; 2], false),
        ] {
            let flow = |initiator, tcp_flags| Flow { initiator: initiator as u8, tcp_flags, ..Flow::default() };
            let new = NewFlow { flow: flow(initiator, [0; 2]), sure };
            assert_eq!(new.replaces(&flow(heard, tcp_flags)), replaces, "{initiator:?} {sure} {tcp_flags:?}");
        }
    }

    #[test]
    fn flows_are_those_that_first_packets_would_have_made() {
        let all = [
            connection("10.0.0.1:8080", "10.0.0.2:40000"),
            connection("10.0.0.1:8080", "192.0.2.1:40001"),
            connection("[2001:db8::1]:40000", "[2001:db8::2]:5432"),
            connection("[fe80::ff:fe00:7]:40001", "[fe80::1]:53"),
            // Not its own: no packet of this leaves by the link.
            connection("127.0.0.1:8080", "127.0.0.1:40002"),
            connection("10.0.0.9:8080", "10.0.0.2:40000"),
        ];
        let node = sockets(&[], &[connection("192.0.2.1:40001", "10.0.0.1:8080")]);
        let mut flows = flows(&sockets(&[8080], &all), &info(), &node, 1 << 32 | 5);
        flows.four.sort_by_key(|(key, _)| key.remote_port);
        flows.six.sort_by_key(|(key, _)| key.local_port);
        let flow = |initiator: Direction, flags| NewFlow {
            flow: Flow { last: 1 << 32 | 5, first: 5, initiator: initiator as u8, flags, ..Flow::default() },
            sure: true,
        };
        let four = |remote: [u8; 4], remote_port| FlowKey4 {
            local: u32::from_ne_bytes([10, 0, 0, 1]),
            remote: u32::from_ne_bytes(remote),
            local_port: 8080,
            remote_port,
            protocol: TCP,
            padding: [0; 3],
        };
        assert_eq!(
            flows.four,
            [
                (four([10, 0, 0, 2], 40000), flow(Direction::Ingress, Flow::TRANSIT)),
                (four([192, 0, 2, 1], 40001), flow(Direction::Ingress, 0)),
            ]
        );
        let locals: Vec<_> =
            flows.six.iter().map(|(key, flow)| (key.local, key.local_port, key.remote_port, *flow)).collect();
        let out = flow(Direction::Egress, Flow::TRANSIT);
        assert_eq!(locals, [(0, 40000, 5432, out), (bulkhead_ebpf::family::LINK_LOCAL, 40001, 53, out)]);
    }
}
