//! TCP between two pods: a stream, requests on one connection, connections one after the other.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_tests::inside::Pod;
use bulkhead_topology::cpu;

use crate::cni::at;

/// On which a server listens.
pub(super) const PORT: u16 = 9002;
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a stream sends at once.
const CHUNK: usize = 128 << 10;
/// What a client wants, which it says first.
const SINK: u8 = b's';
const ECHO: u8 = b'e';

/// Has the calling thread stay on the first processor, or on the last one.
fn stay(end: End) -> Result<()> {
    let all = cpu::allowed()?;
    let cpu = match end {
        End::Caller => all.first(),
        End::Server => all.last(),
    };
    Ok(cpu::stay_on(*cpu.context("no processor may be used")?)?)
}

/// Ends of a connection.
#[derive(Clone, Copy)]
enum End {
    Caller,
    Server,
}

/// Serves until the process ends.
pub(super) struct Server(IpAddr);

impl Server {
    pub(super) fn start(pod: &Pod) -> Result<Self> {
        let address = pod.address;
        let listener = pod.spawn(move || TcpListener::bind((address, PORT)))?.recv()??;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who called may be gone.
                thread::spawn(move || serve(stream).ok());
            }
        });
        Ok(Self(address))
    }
}

fn serve(mut stream: TcpStream) -> Result<()> {
    stay(End::Server)?;
    stream.set_nodelay(true)?;
    let mut bytes = vec![0; CHUNK];
    stream.read_exact(&mut bytes[..1])?;
    let echo = bytes[0] == ECHO;
    let mut whole = 0_u64;
    loop {
        let len = stream.read(&mut bytes)?;
        whole += len as u64;
        match (len, echo) {
            // How much came, for one who has sent all.
            (0, false) => return Ok(stream.write_all(&whole.to_be_bytes())?),
            (0, true) => return Ok(()),
            (len, true) => stream.write_all(&bytes[..len])?,
            (_, false) => {}
        }
    }
}

fn connect(server: IpAddr, wants: u8) -> Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect_timeout(&(server, PORT).into(), Duration::from_millis(200)) {
            Ok(mut stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(&[wants])?;
                return Ok(stream);
            }
            // A policy that was just written may not hold yet.
            Err(error) if error.kind() == ErrorKind::TimedOut && begin.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Mbit/s of one stream.
pub(super) fn stream(caller: &Pod, server: &Server, time: Duration) -> Result<f64> {
    let server = server.0;
    let run = move || -> Result<f64> {
        stay(End::Caller)?;
        let mut stream = connect(server, SINK)?;
        let (begin, bytes) = (Instant::now(), vec![0; CHUNK]);
        while begin.elapsed() < time {
            stream.write_all(&bytes)?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut whole = [0; 8];
        stream.read_exact(&mut whole)?;
        Ok(u64::from_be_bytes(whole) as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e6)
    };
    caller.spawn(run)?.recv().context("the stream")?
}

/// Microseconds of a request and its answer, one byte each, on one connection: p50 and p99.
pub(super) fn requests(caller: &Pod, server: &Server, time: Duration) -> Result<(f64, f64)> {
    let server = server.0;
    let run = move || -> Result<(f64, f64)> {
        stay(End::Caller)?;
        let mut stream = connect(server, ECHO)?;
        let (begin, mut times, mut byte) = (Instant::now(), Vec::new(), [0]);
        while begin.elapsed() < time {
            let start = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            times.push(start.elapsed());
        }
        ensure!(!times.is_empty(), "no request was answered");
        Ok((at(&times, 50) * 1000.0, at(&times, 99) * 1000.0))
    };
    caller.spawn(run)?.recv().context("the requests")?
}

/// Connections a second, with a request on each.
pub(super) fn connections(caller: &Pod, server: &Server, time: Duration) -> Result<f64> {
    let server = server.0;
    let run = move || -> Result<f64> {
        stay(End::Caller)?;
        // Ports of closed connections are taken again after a second: in a minute there would be none left.
        fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
        let (begin, mut count) = (Instant::now(), 0_u32);
        while begin.elapsed() < time {
            let mut stream = connect(server, ECHO)?;
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0])?;
            count += 1;
        }
        Ok(f64::from(count) / begin.elapsed().as_secs_f64())
    };
    caller.spawn(run)?.recv().context("the connections")?
}
