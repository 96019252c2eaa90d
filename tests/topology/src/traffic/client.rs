use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::frame::set_int_option;
use crate::{Error, Netns, Result};

/// Below the range from which the kernel takes ports by itself, so that the two never collide.
const FRESH_PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A source port that this process has not used lately. A probe that reuses a 5-tuple meets old entries of
/// conntrack and flow tables and measures those.
pub fn fresh_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    FRESH_PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (FRESH_PORTS.end - FRESH_PORTS.start)
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The peer's answer came back.
    Answered,
    /// Nothing came back before the deadline.
    TimedOut,
    /// The peer's host answered that nobody listens: a TCP reset, or ICMP port unreachable.
    Refused,
    /// An established connection was reset.
    Reset,
    /// ICMP said that there is no way, or that it is prohibited, or there is no route. Over TCP this may come
    /// only after retransmissions: the kernel ignores an ICMP error that arrives while `connect` is still
    /// sending.
    Unreachable,
}

impl Outcome {
    /// Whether the peer's answer came back.
    pub fn is_answered(self) -> bool {
        self == Self::Answered
    }

    fn of(result: io::Result<()>) -> io::Result<Self> {
        let Err(error) = result else {
            return Ok(Self::Answered);
        };
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Ok(Self::TimedOut),
            io::ErrorKind::ConnectionRefused => Ok(Self::Refused),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Ok(Self::Reset)
            }
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Ok(Self::Unreachable),
            // EACCES is the IPv6 form of "administratively prohibited".
            io::ErrorKind::PermissionDenied if error.raw_os_error() == Some(libc::EACCES) => Ok(Self::Unreachable),
            _ => Err(error),
        }
    }
}

/// Sends probes from a namespace. Each probe has a source port (or ICMP identifier) of its own, and waits for
/// its own random answer.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    netns: &'a Netns,
    deadline: Duration,
    source: Option<IpAddr>,
    port: Option<u16>,
}

impl Netns {
    /// Sends probes from this namespace.
    pub fn client(&self) -> Client<'_> {
        Client { netns: self, deadline: Duration::from_secs(1), source: None, port: None }
    }
}

impl Client<'_> {
    /// How long a probe waits in all; 1 s unless said. A probe that is answered does not wait, so a long
    /// deadline costs only what is blocked.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sends from this address instead of the one that the route gives.
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// Sends from this port instead of a fresh one.
    pub fn source_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Connects, sends a few random bytes and waits for their echo.
    pub fn tcp(&self, to: SocketAddr) -> Result<Outcome> {
        let started = Instant::now();
        let outcome = match self.connect(to) {
            Ok(mut stream) => echo(&mut stream, self.deadline.saturating_sub(started.elapsed())),
            Err(error) => Outcome::of(Err(error)),
        };
        outcome.map_err(self.failed("TCP probe", to))
    }

    /// Sends one datagram and waits for its echo.
    pub fn udp(&self, to: SocketAddr) -> Result<Outcome> {
        let probe = || {
            let socket = self.bound(to, Type::DGRAM)?;
            report_all_errors(&socket, to.ip())?;
            socket.connect(&to.into())?;
            exchange(&UdpSocket::from(socket), self.deadline, &token(), 0)
        };
        Outcome::of(probe()).and_then(check_datagram).map_err(self.failed("UDP probe", to))
    }

    /// Sends one echo request (ICMP or ICMPv6) and waits for its reply.
    pub fn ping(&self, to: IpAddr) -> Result<Outcome> {
        // On a datagram socket of this protocol the kernel fills in checksum and identifier, and delivers
        // only the replies to it, from the ICMP header on.
        const HEADER: usize = 8;
        let probe = || {
            let (domain, protocol, kind) =
                if to.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4, 8) } else { (Domain::IPV6, Protocol::ICMPV6, 128) };
            let socket = self.netns.run(|| Socket::new(domain, Type::DGRAM, Some(protocol)))?;
            report_all_errors(&socket, to)?;
            if let Some(source) = self.source {
                socket.bind(&SocketAddr::new(source, 0).into())?;
            }
            socket.connect(&SocketAddr::new(to, 0).into())?;
            let mut request = [0; HEADER + 8];
            request[0] = kind;
            request[HEADER..].copy_from_slice(&token());
            exchange(&UdpSocket::from(socket), self.deadline, &request, HEADER)
        };
        Outcome::of(probe()).and_then(check_datagram).map_err(self.failed("ping", to))
    }

    /// Connects and keeps the connection, for [`echo`] later on.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.bound(to, Type::STREAM)?;
        socket.connect_timeout(&to.into(), self.deadline)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }

    /// A socket in the namespace, bound to the client's source.
    fn bound(&self, to: SocketAddr, kind: Type) -> io::Result<Socket> {
        let socket = self.netns.run(|| Socket::new(Domain::for_address(to), kind, None))?;
        // So that a chosen port can be chosen again, after a connection that lingers or in the other family.
        socket.set_reuse_address(kind == Type::STREAM)?;
        if to.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let address = self.source.unwrap_or(any);
        loop {
            let port = self.port.unwrap_or_else(fresh_port);
            match socket.bind(&SocketAddr::new(address, port).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && self.port.is_none() => {}
                result => return result.map(|()| socket),
            }
        }
    }

    fn failed(&self, what: &str, to: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Error {
        Error::os(format!("{}: {what} to {to}", self.netns.name()))
    }
}

/// Sends a few random bytes over a connection to a [`TcpEcho`](super::TcpEcho) and waits for them to come
/// back: is this connection alive? After [`Outcome::TimedOut`] the bytes are still on their way, so the
/// connection is of no use for another call.
pub fn echo(stream: &mut TcpStream, deadline: Duration) -> io::Result<Outcome> {
    let sent = token();
    let mut received = sent;
    let mut exchange = |received: &mut [u8]| {
        stream.set_read_timeout(Some(deadline.max(Duration::from_millis(1))))?;
        stream.write_all(&sent)?;
        received.fill(0);
        stream.read_exact(received)
    };
    let outcome = Outcome::of(exchange(&mut received))?;
    if outcome.is_answered() && received != sent {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs from what was sent"));
    }
    Ok(outcome)
}

/// Without this a datagram socket hears only of ICMP errors that count as final, not of "no route to host".
fn report_all_errors(socket: &Socket, to: IpAddr) -> io::Result<()> {
    let (level, option) =
        if to.is_ipv4() { (libc::SOL_IP, libc::IP_RECVERR) } else { (libc::SOL_IPV6, libc::IPV6_RECVERR) };
    set_int_option(socket, level, option, 1)
}

/// Sends a datagram and reads until one comes back with the same bytes from `payload` on.
fn exchange(socket: &UdpSocket, deadline: Duration, request: &[u8], payload: usize) -> io::Result<()> {
    let end = Instant::now() + deadline;
    socket.send(request)?;
    let mut reply = [0; 64];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let length = match socket.recv(&mut reply) {
            // The process was stopped and goes on.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?,
        };
        if reply[..length].get(payload..) == Some(&request[payload..]) {
            return Ok(());
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// A datagram is never "reset": that would be an error of this module.
fn check_datagram(outcome: Outcome) -> io::Result<Outcome> {
    if outcome == Outcome::Reset { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(outcome) }
}

fn token() -> [u8; 8] {
    fastrand::u64(..).to_be_bytes()
}
