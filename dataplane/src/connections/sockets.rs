//! TCP sockets of a network namespace, as `ss` lists them.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink;

/// Ports that the kernel gives to those who ask for none, in the namespace of the reader.
const GIVEN_AWAY: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Both ends, IPv4 as such also where the socket is one of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Connection {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// Who began a connection, as far as its sockets tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Began {
    /// The other side.
    pub(super) inbound: bool,
    /// A listening socket or both ports say so.
    pub(super) sure: bool,
}

/// Those of one namespace.
#[derive(Debug)]
pub(super) struct Sockets {
    /// Ports with a listening socket, whatever its address.
    pub(super) listening: BTreeSet<u16>,
    /// Those whose peer has answered, and that have not ended.
    pub(super) connections: BTreeSet<Connection>,
    /// Ports that the kernel gives to clients.
    pub(super) given_away: RangeInclusive<u16>,
}

/// A socket, as the kernel names it.
struct Named {
    family: u8,
    id: SocketId,
}

impl Named {
    fn connection(&self) -> Connection {
        let end = |address: IpAddr, port| SocketAddr::new(address.to_canonical(), port);
        let SocketId { source_address, source_port, destination_address, destination_port, .. } = self.id;
        Connection { local: end(source_address, source_port), remote: end(destination_address, destination_port) }
    }
}

impl Sockets {
    /// Those of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn here() -> io::Result<Self> {
        let listening = list(&StateFlags::LISTEN)?.iter().map(|socket| socket.id.source_port).collect();
        // A SYN that is yet to be answered comes again by itself, and begins a flow of its own; so does its answer once the caller's is known.
        let connections = list(&open())?.iter().map(Named::connection).collect();
        Ok(Self { listening, connections, given_away: given_away()? })
    }

    /// Who began it.
    pub(super) fn began(&self, connection: &Connection) -> Began {
        let [own, other] = [connection.local, connection.remote].map(|end| end.port());
        let listens = self.listening.contains(&own);
        let [called, calls] = [(own, other), (other, own)]
            .map(|(fixed, given)| !self.given_away.contains(&fixed) && self.given_away.contains(&given));
        Began { inbound: listens || called, sure: listens || called || calls }
    }

    /// Ends connections of the calling thread's namespace: both sides see that, the other one when it is reached. How many.
    ///
    /// # Errors
    /// The kernel's; one that has no support for it says so.
    pub(super) fn cut(which: impl Fn(&Connection) -> bool) -> io::Result<usize> {
        let mut cut = 0;
        let all = list(&(open() | StateFlags::SYN_SENT | StateFlags::SYN_RECV))?;
        for socket in all.into_iter().filter(|socket| which(&socket.connection())) {
            let request = SockDiagDestroy::new(request(socket.family, &StateFlags::all(), socket.id));
            match netlink::exchange(NETLINK_SOCK_DIAG, request, NLM_F_REQUEST | NLM_F_ACK, |_| {}) {
                Ok(()) => cut += 1,
                // It ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    return Err(io::Error::other(
                        "this kernel cannot end sockets of others (CONFIG_INET_DIAG_DESTROY): restart the workload instead",
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(cut)
    }
}

fn open() -> StateFlags {
    StateFlags::ESTABLISHED
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::CLOSING
}

fn request(family: u8, states: &StateFlags, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: states.clone(),
        socket_id,
    })
}

fn list(states: &StateFlags) -> io::Result<Vec<Named>> {
    let mut found = Vec::new();
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        netlink::exchange(NETLINK_SOCK_DIAG, request(family, states, any), NLM_F_REQUEST | NLM_F_DUMP, |answer| {
            if let SockDiagMessage::InetResponse(response) = answer {
                found.push(Named { family, id: response.header.socket_id });
            }
        })?;
    }
    Ok(found)
}

fn given_away() -> io::Result<RangeInclusive<u16>> {
    let text = fs::read_to_string(GIVEN_AWAY)?;
    let mut ends = text.split_whitespace().map(str::parse);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(io::Error::other(format!("{GIVEN_AWAY} reads `{}`", text.trim()))),
    }
}
