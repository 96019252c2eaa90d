//! What the driver of a link says of itself: its name by ethtool, what it can do in XDP by the netdev family of generic netlink.

use std::{
    ffi::c_char,
    io, mem,
    os::{fd::AsRawFd as _, unix::net::UnixDatagram},
    ptr,
};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, Nla, NlasIterator, Parseable as _,
    ParseableParametrized,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::protocols::NETLINK_GENERIC;
use serde::Serialize;

use super::Probe;
use crate::netlink;

/// A link's driver.
#[derive(Clone, Debug, Serialize)]
pub struct Driver {
    /// Name, such as `virtio_net`.
    pub name: Probe<String>,
    /// What it can do in XDP: `NETDEV_XDP_ACT_*` of `linux/netdev.h`.
    pub xdp: Probe<u64>,
}

impl Driver {
    /// Returns XDP_PASS, XDP_DROP and the like for packets of one buffer.
    pub const XDP_BASIC: u64 = 1;
    /// Hands packets of several buffers to programs that take them, as ours does.
    pub const XDP_FRAGMENTS: u64 = 1 << 5;

    /// Asks the driver of the link with this name and index.
    #[must_use]
    pub fn look(link: &str, index: u32) -> Self {
        Self {
            name: name(link).map_err(|error| format!("ask ethtool for the driver of {link}: {error}")),
            xdp: features(index).map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT | libc::EOPNOTSUPP) => {
                    format!("ask what the driver of {link} can do in XDP: this kernel does not tell (before 6.3)")
                }
                _ => format!("ask what the driver of {link} can do in XDP: {error}"),
            }),
        }
    }
}

/// `struct ethtool_drvinfo` of `linux/ethtool.h`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [c_char; 32],
    version: [c_char; 32],
    firmware: [c_char; 32],
    bus: [c_char; 32],
    rom: [c_char; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}
const _: () = assert!(size_of::<DriverInfo>() == 196);

fn name(link: &str) -> io::Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    // SAFETY: integers and arrays of them, for which zero is a value.
    let mut info: DriverInfo = unsafe { mem::zeroed() };
    info.command = ETHTOOL_GDRVINFO;
    // SAFETY: integers, arrays of them and a union of these with pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays 0.
    if link.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut info).cast();
    // Any socket of this network namespace will do.
    let socket = UnixDatagram::unbound()?;
    // SAFETY: the kernel reads the name and the command, and writes no more than one `ethtool_drvinfo` to where the pointer leads.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, ptr::from_mut(&mut request)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = info.driver.iter().take_while(|byte| **byte != 0).map(|byte| byte.to_ne_bytes()[0]);
    Ok(String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned())
}

/// A message of the netdev family: command and attributes.
#[derive(Debug)]
struct Netdev {
    command: u8,
    attributes: Vec<DefaultNla>,
}

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer).map(|attribute| DefaultNla::parse(&attribute?));
        Ok(Self { command: header.cmd, attributes: attributes.collect::<Result<_, _>>()? })
    }
}

/// What the driver of a link can do in XDP.
fn features(index: u32) -> io::Result<u64> {
    let ask = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(Netdev::family_name().to_owned())],
    };
    let mut family = None;
    netlink::exchange(NETLINK_GENERIC, GenlMessage::from_payload(ask), NLM_F_REQUEST | NLM_F_ACK, |answer| {
        family = answer.payload.nlas.iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
    })?;
    let family = family.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let index = DefaultNla::new(NETDEV_A_DEV_IFINDEX, index.to_ne_bytes().to_vec());
    let mut ask = GenlMessage::from_payload(Netdev { command: NETDEV_CMD_DEV_GET, attributes: vec![index] });
    ask.set_resolved_family_id(family);
    let mut features = None;
    netlink::exchange(NETLINK_GENERIC, ask, NLM_F_REQUEST | NLM_F_ACK, |answer| {
        let attributes = &answer.payload.attributes;
        let found = attributes.iter().find(|attribute| attribute.kind() == NETDEV_A_DEV_XDP_FEATURES);
        features = found.and_then(|found| {
            let mut value = [0; 8];
            (found.value_len() == value.len()).then(|| {
                found.emit_value(&mut value);
                u64::from_ne_bytes(value)
            })
        });
    })?;
    features.ok_or_else(|| io::Error::other("the kernel's answer lacks the features"))
}
