use std::{
    io::{self, ErrorKind, IoSliceMut, PipeWriter},
    mem,
    os::fd::{AsFd, AsRawFd},
    ptr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use super::frame::{packet_socket, set_int_option, set_large_buffer};
use crate::{Error, Netns, Result};

/// Length of `virtio_net_hdr`, which the kernel puts before each frame.
const VNET_HEADER: usize = 10;
/// Above the largest frame, BIG TCP included.
const BUFFER: usize = 512 << 10;

/// Which way a frame went, seen from the namespace of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the namespace. Seen **before** TC ingress and after XDP.
    Received,
    /// Out of the link. Seen **after** TC egress.
    Sent,
}

/// A frame on a link. Checksums may be unfinished and a frame may be longer than the MTU: that is how the
/// kernel passes them between virtual links.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When the kernel saw it.
    pub at: SystemTime,
    /// Into the namespace or out of it.
    pub direction: Direction,
    /// From the destination MAC on, without a VLAN tag that the kernel keeps beside the packet.
    pub bytes: Vec<u8>,
    /// That tag's identifier.
    pub vlan: Option<u16>,
    /// How many packets it makes on a wire; above 1 for a GSO frame.
    pub segments: u32,
}

/// Totals over the frames that matched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames as the kernel passed them.
    pub frames: u64,
    /// Packets on a wire.
    pub segments: u64,
    /// Sum of the frames' lengths; the headers of a GSO frame once.
    pub bytes: u64,
}

/// What a capture saw from start to stop.
#[derive(Clone, Debug)]
pub struct Captured {
    /// The frames that matched, in order; empty if they were only counted.
    pub frames: Vec<Frame>,
    /// Totals of what matched.
    pub counts: Counts,
    /// Frames, matching or not, that found the capture's buffer full. The rest is only valid as evidence of
    /// absence if this is 0.
    pub lost: u64,
}

/// Watches a link, like tcpdump, on a thread of its own. To show that something did **not** arrive, send
/// something that must arrive after it, wait for that, and look.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    /// Closed to stop the thread. Both fields are `None` only while the value is being stopped.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<io::Result<u64>>>,
    place: String,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    frames: Vec<Frame>,
    counts: Counts,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capture {
    /// Keeps the frames on `link` that match. What is sent after this returns is seen.
    pub fn start(netns: &Netns, link: &str, matches: impl FnMut(&Frame) -> bool + Send + 'static) -> Result<Self> {
        Self::spawn(netns, link, matches, true)
    }

    /// Counts the frames on `link` that match, and keeps none.
    pub fn count(netns: &Netns, link: &str, matches: impl FnMut(&Frame) -> bool + Send + 'static) -> Result<Self> {
        Self::spawn(netns, link, matches, false)
    }

    fn spawn(
        netns: &Netns,
        link: &str,
        matches: impl FnMut(&Frame) -> bool + Send + 'static,
        keep: bool,
    ) -> Result<Self> {
        let place = format!("{}: capture on {link}", netns.name());
        let socket = packet_socket(netns, link, libc::ETH_P_ALL as u16, |socket| {
            set_large_buffer(socket)?;
            set_int_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
            set_int_option(socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
            set_int_option(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)
        })?;
        let (stopped, stop) = io::pipe().map_err(Error::os(&place))?;
        let shared = Arc::<Shared>::default();
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || watch(&socket, stopped.as_fd(), &shared, keep, matches)
        });
        Ok(Self { shared, stop: Some(stop), thread: Some(thread), place })
    }

    /// Totals so far.
    pub fn counts(&self) -> Counts {
        self.shared.seen().counts
    }

    /// A copy of the frames kept so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.shared.seen().frames.clone()
    }

    /// Waits until at least this many frames have matched; `false` at the deadline.
    pub fn wait_for(&self, frames: u64, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let mut seen = self.shared.seen();
        while seen.counts.frames < frames {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            seen = self.shared.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Stops, and returns everything that went over the link up to now.
    pub fn stop(mut self) -> Result<Captured> {
        self.stop = None;
        let thread =
            self.thread.take().expect("only this function, which consumes the value, takes it before the drop");
        let lost = thread
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
            .map_err(Error::os(&self.place))?;
        let seen = mem::take(&mut *self.shared.seen());
        Ok(Captured { frames: seen.frames, counts: seen.counts, lost })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _unwanted = thread.join();
        }
    }
}

/// Reads until the pipe is closed and the queue is empty; returns the number of lost frames.
fn watch(
    socket: &Socket,
    stopped: impl AsFd,
    shared: &Shared,
    keep: bool,
    mut matches: impl FnMut(&Frame) -> bool,
) -> io::Result<u64> {
    socket.set_nonblocking(true)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        // Frames are queued by the kernel before the sender's call returns, so what was sent before the stop
        // is read after it.
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            result => result?,
        };
        let stopping = fds[1].any().unwrap_or(true);
        loop {
            let frame = match receive(socket, &mut buffer) {
                Ok(frame) => frame,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if !matches(&frame) {
                continue;
            }
            let mut seen = shared.seen();
            seen.counts.frames += 1;
            seen.counts.segments += u64::from(frame.segments);
            seen.counts.bytes += frame.bytes.len() as u64;
            if keep {
                seen.frames.push(frame);
            }
            drop(seen);
            shared.changed.notify_all();
        }
        if stopping {
            return lost(socket);
        }
    }
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Frame> {
    // Of u64, for the alignment of cmsghdr.
    let mut control = [0_u64; 32];
    // SAFETY: all of sockaddr_ll and msghdr may be zero.
    let (mut from, mut message) = unsafe { (mem::zeroed::<libc::sockaddr_ll>(), mem::zeroed::<libc::msghdr>()) };
    let mut parts = [IoSliceMut::new(buffer)];
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as libc::socklen_t;
    // IoSliceMut has the layout of iovec.
    message.msg_iov = parts.as_mut_ptr().cast();
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: `message` describes buffers that live, unaliased, until after the call, with their true
    // lengths.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(ErrorKind::InvalidData, "a frame is longer than the capture's buffer"));
    }

    let (mut at, mut vlan) = (UNIX_EPOCH, None);
    // SAFETY: the kernel filled `message`, and `control` still lives.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return headers that lie within `control`, followed by their
        // data.
        let (level, kind, data) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, libc::CMSG_DATA(header)) };
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                // SAFETY: data of this type is a timespec.
                let time = unsafe { ptr::read_unaligned(data.cast::<libc::timespec>()) };
                at = UNIX_EPOCH
                    + Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default());
            }
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                // SAFETY: data of this type is a tpacket_auxdata.
                let extra = unsafe { ptr::read_unaligned(data.cast::<libc::tpacket_auxdata>()) };
                vlan = (extra.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(extra.tp_vlan_tci & 0x0fff);
            }
            _ => {}
        }
        // SAFETY: `header` is the current header of `message`.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }

    let (vnet, bytes) = buffer[..length]
        .split_first_chunk::<VNET_HEADER>()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a frame came without its virtio header"))?;
    let direction = if from.sll_pkttype == libc::PACKET_OUTGOING { Direction::Sent } else { Direction::Received };
    Ok(Frame { at, direction, vlan, segments: segments(vnet, bytes)?, bytes: bytes.to_vec() })
}

/// How many packets the frame will be on a wire: `gso_size` bytes of payload in each. Where the payload
/// begins follows from the checksum's start, which a GSO packet always has; `hdr_len` is a hint that may be
/// wrong.
fn segments(vnet: &[u8; VNET_HEADER], frame: &[u8]) -> io::Result<u32> {
    const NEEDS_CHECKSUM: u8 = 1;
    const ECN: u8 = 0x80;
    let field = |at: usize| u16::from_ne_bytes([vnet[at], vnet[at + 1]]);
    let (gso_size, checksum_start) = (usize::from(field(4)), usize::from(field(6)));
    let invalid = |what: String| io::Error::new(ErrorKind::InvalidData, what);
    let transport_header = match vnet[1] & !ECN {
        0 => return Ok(1),
        // TCP over IPv4 and over IPv6.
        1 | 4 => usize::from(frame.get(checksum_start + 12).copied().unwrap_or_default() >> 4) * 4,
        // UDP.
        5 => 8,
        other => return Err(invalid(format!("a frame of unknown GSO type {other}"))),
    };
    let payload = frame.len().checked_sub(checksum_start + transport_header);
    match payload {
        Some(payload) if vnet[0] & NEEDS_CHECKSUM != 0 && gso_size > 0 => {
            u32::try_from(payload.div_ceil(gso_size).max(1)).map_err(|error| invalid(error.to_string()))
        }
        _ => Err(invalid(format!("a GSO frame whose segments cannot be counted: {vnet:02x?}"))),
    }
}

fn lost(socket: &Socket) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of_val(&stats) as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: the pointer and the length describe `stats`, which is what this option is made of.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, (&raw mut stats).cast(), &raw mut length)
    };
    if result == 0 { Ok(stats.tp_drops.into()) } else { Err(io::Error::last_os_error()) }
}
