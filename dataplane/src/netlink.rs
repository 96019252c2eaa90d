//! One request to a netlink family, and its answers. The calling thread's network namespace.

use std::{fmt::Debug, io};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_sys::{Socket, SocketAddr};

/// Sends a request and hands on each answer until an acknowledgement or the end of the list. An answer that cannot be read is left out.
///
/// # Errors
/// The kernel's.
pub(crate) fn exchange<M>(protocol: isize, message: M, flags: u16, mut answer: impl FnMut(M)) -> io::Result<()>
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
    NetlinkPayload<M>: From<M>,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while let Some(length) = rest.first_chunk::<4>().map(|length| u32::from_ne_bytes(*length) as usize) {
            if length < 16 || length > rest.len() {
                return Err(io::Error::other("the kernel's answer is cut short"));
            }
            if let Ok(message) = NetlinkMessage::<M>::deserialize(&rest[..length]) {
                match message.payload {
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(()),
                    NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(done.code.abs())),
                    NetlinkPayload::Error(error) => return error.code.map_or(Ok(()), |_| Err(error.to_io())),
                    NetlinkPayload::InnerMessage(message) => answer(message),
                    _ => {}
                }
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
