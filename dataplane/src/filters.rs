//! Filters of the `clsact` queueing discipline, for kernels without TCX. The calling thread's network namespace.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink;

/// Where a filter hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    Ingress,
    Egress,
}

impl Parent {
    const fn handle(self) -> TcHandle {
        match self {
            Self::Ingress => TcHandle { major: 0xffff, minor: 0xfff2 },
            Self::Egress => TcHandle { major: 0xffff, minor: 0xfff3 },
        }
    }
}

/// A BPF filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Lower comes first.
    pub(crate) priority: u16,
    /// Which of those with that priority.
    pub(crate) handle: u32,
    /// Id of its program; `None` for a filter of another kind.
    pub(crate) program: Option<u32>,
}

/// Filters of a link, in no particular order; none where there is no `clsact`.
pub(crate) fn list(ifindex: u32, parent: Parent) -> io::Result<Vec<Filter>> {
    let mut message = message(ifindex)?;
    message.header.parent = parent.handle();
    let mut filters = Vec::new();
    request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_REQUEST | NLM_F_DUMP, |answer| {
        if let RouteNetlinkMessage::NewTrafficFilter(filter) = answer {
            let options = filter.attributes.iter().filter_map(|attribute| match attribute {
                TcAttribute::Options(options) => Some(options.as_slice()),
                _ => None,
            });
            let program = options.flatten().find_map(|option| match option {
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
                _ => None,
            });
            let handle: u32 = filter.header.handle.into();
            // The chain itself is listed too, without a handle.
            if handle != 0 {
                filters.push(Filter { priority: (filter.header.info >> 16) as u16, handle, program });
            }
        }
    })?;
    Ok(filters)
}

/// Whether a link has `clsact`. An `ingress` qdisc would take filters of either side, and run both on what is received.
pub(crate) fn has_clsact(ifindex: u32) -> io::Result<bool> {
    has_qdisc(ifindex, "clsact")
}

/// Whether a link has an `ingress` qdisc, which excludes `clsact`.
pub(crate) fn has_ingress(ifindex: u32) -> io::Result<bool> {
    has_qdisc(ifindex, "ingress")
}

fn has_qdisc(ifindex: u32, kind: &str) -> io::Result<bool> {
    let mut found = false;
    request(RouteNetlinkMessage::GetQueueDiscipline(message(ifindex)?), NLM_F_REQUEST | NLM_F_DUMP, |answer| {
        if let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer {
            let here = u32::try_from(qdisc.header.index) == Ok(ifindex);
            found |= here && qdisc.attributes.contains(&TcAttribute::Kind(kind.to_owned()));
        }
    })?;
    Ok(found)
}

/// Removes `clsact` from a link, with all filters that hang there.
pub(crate) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    let mut message = message(ifindex)?;
    message.header.parent = TcHandle { major: 0xffff, minor: 0xfff1 };
    message.header.handle = TcHandle { major: 0xffff, minor: 0 };
    request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_REQUEST | NLM_F_ACK, drop)
}

fn message(ifindex: u32) -> io::Result<TcMessage> {
    Ok(TcMessage::with_index(i32::try_from(ifindex).map_err(io::Error::other)?))
}

fn request(message: RouteNetlinkMessage, flags: u16, answer: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    // What cannot be read is a filter of another kind, which is not ours.
    netlink::exchange(NETLINK_ROUTE, message, flags, answer)
}
