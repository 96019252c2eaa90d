use std::{io, os::fd::AsRawFd};

use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use crate::{Error, Netns, Result, rtnl::Rtnl};

/// Sends whole frames out of a link, without any protocol above them.
#[derive(Debug)]
pub struct RawLink {
    socket: Socket,
    place: String,
}

impl RawLink {
    /// Opens a link of a namespace for sending.
    pub fn open(netns: &Netns, link: &str) -> Result<Self> {
        // Protocol 0: the socket receives nothing.
        Ok(Self { socket: packet_socket(netns, link, 0, |_| Ok(()))?, place: format!("{}: {link}", netns.name()) })
    }

    /// Sends one frame, from the destination MAC on; a VLAN tag is part of it. It must hold an Ethernet
    /// header and fit the link's MTU.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = self.socket.send(frame).map_err(Error::os(format!(
            "{}: send a frame of {} bytes",
            self.place,
            frame.len()
        )))?;
        debug_assert_eq!(sent, frame.len(), "packet sockets send all or nothing");
        Ok(())
    }
}

/// A packet socket bound to one link, with options that `prepare` sets. `protocol`, in host byte order, is
/// the EtherType that it receives.
pub(super) fn packet_socket(
    netns: &Netns,
    link: &str,
    protocol: u16,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> Result<Socket> {
    let index = Rtnl::open(netns)?.link(link)?.index;
    let open = || -> io::Result<Socket> {
        // Without a protocol it receives nothing until it is bound: neither from other links nor before its
        // options are set.
        let socket = netns.run(|| Socket::new(Domain::PACKET, Type::RAW, None))?;
        prepare(&socket)?;
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: sockaddr_ll is a plain C structure that every bit pattern is valid for, and it fits the
        // storage, which is zeroed.
        let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        address.sll_family = libc::AF_PACKET as libc::sa_family_t;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = index.try_into().map_err(io::Error::other)?;
        // SAFETY: the storage holds a sockaddr_ll, and this is its length.
        let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
        socket.bind(&address)?;
        Ok(socket)
    };
    open().map_err(Error::os(format!("{}: open a packet socket on {link}", netns.name())))
}

/// Sets an option that is a C int.
pub(super) fn set_int_option(
    socket: &Socket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A receive buffer beyond the system's limit for ordinary processes, so that a burst does not look like
/// loss.
pub(super) fn set_large_buffer(socket: &Socket) -> io::Result<()> {
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)
}
