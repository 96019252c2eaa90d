//! Tells that a link came or changed.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{node::NodeError, sys::Doing as _};

/// The group of links in `linux/rtnetlink.h`, as a bit.
const RTMGRP_LINK: u32 = 1;
/// Type of a message of a new or changed link.
const RTM_NEWLINK: u16 = 16;

/// Hears of the links of the network namespace in which it was opened.
#[derive(Debug)]
pub struct LinkWatch(Socket);

impl LinkWatch {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn open() -> Result<Self, NodeError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, RTMGRP_LINK))?;
            Ok(socket)
        };
        open().map(Self).map_err(|error: io::Error| error.to_string()).doing(|| "watch for new links")
    }

    /// Waits for the next link that comes or changes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match self.0.recv_from_full() {
                Ok((bytes, _)) => {
                    // Type of the first message: one datagram tells of one change.
                    if bytes.get(4..6) == Some(&RTM_NEWLINK.to_ne_bytes()[..]) {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // More came than was read: something of it may have been a link.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
