use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::{client::fresh_port, frame::set_large_buffer};
use crate::{Error, Netns, Result};

/// Begins each datagram; then the stream's id and the number, both as big-endian u64, and zeros up to the
/// length.
const MAGIC: [u8; 8] = *b"numbered";
const HEADER: usize = 24;
/// A number beyond this is damage, not a number.
const MAX_NUMBER: u64 = 1 << 32;
const TICK: Duration = Duration::from_millis(50);
/// After a pause, of the machine or of a full queue, the sender makes up for at most this much at once.
const MAX_BURST: Duration = Duration::from_millis(5);

/// What a [`NumberedSender`] shall send.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Where to.
    pub to: SocketAddr,
    /// Source port; a fresh one if not said.
    pub source_port: Option<u16>,
    /// Datagrams per second, evenly spaced to about a millisecond.
    pub rate: u32,
    /// Bytes of UDP payload in each, at least 24.
    pub payload: usize,
    /// How many to send; until stopped if not said.
    pub limit: Option<u64>,
}

impl Stream {
    /// 64 bytes each, from a fresh port, until stopped.
    pub fn new(to: SocketAddr, rate: u32) -> Self {
        Self { to, source_port: None, rate, payload: 64, limit: None }
    }

    /// Ends it after this many datagrams.
    pub fn limit(mut self, datagrams: u64) -> Self {
        self.limit = Some(datagrams);
        self
    }
}

/// Sends datagrams that carry consecutive numbers from 0, on a thread of its own.
#[derive(Debug)]
pub struct NumberedSender {
    id: u64,
    source: SocketAddr,
    state: Arc<SenderState>,
    thread: Option<JoinHandle<io::Result<()>>>,
    place: String,
}

#[derive(Debug, Default)]
struct SenderState {
    stopped: AtomicBool,
    sent: AtomicU64,
}

impl NumberedSender {
    /// Starts sending from a namespace.
    pub fn start(netns: &Netns, stream: Stream) -> Result<Self> {
        let place = format!("{}: numbered datagrams to {}", netns.name(), stream.to);
        if stream.payload < HEADER || stream.rate == 0 {
            return Err(Error::Invalid(format!("{place}: at least {HEADER} bytes each and one a second")));
        }
        let open = || {
            let unspecified: std::net::IpAddr = if stream.to.is_ipv4() {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            };
            let port = stream.source_port.unwrap_or_else(fresh_port);
            let socket = netns.run(|| UdpSocket::bind((unspecified, port)))?;
            Ok((socket.local_addr()?, socket))
        };
        let (source, socket) = open().map_err(Error::os(&place))?;
        let id = fastrand::u64(..);
        let state = Arc::<SenderState>::default();
        let thread = thread::spawn({
            let state = Arc::clone(&state);
            move || send_all(&socket, id, &stream, &state)
        });
        Ok(Self { id, source, state, thread: Some(thread), place })
    }

    /// Names the stream at the receiver.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The port that it sends from.
    pub fn source_port(&self) -> u16 {
        self.source.port()
    }

    /// Datagrams sent so far; their numbers are 0 to this, exclusive.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Acquire)
    }

    /// Stops now, and returns how many were sent.
    pub fn stop(self) -> Result<u64> {
        self.state.stopped.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits until the stream's limit is reached, and returns how many were sent. Without a limit it waits
    /// for ever.
    pub fn finish(mut self) -> Result<u64> {
        let thread =
            self.thread.take().expect("only this function, which consumes the value, takes it before the drop");
        thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)).map_err(Error::os(&self.place))?;
        Ok(self.sent())
    }
}

impl Drop for NumberedSender {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _unwanted = thread.join();
        }
    }
}

fn send_all(socket: &UdpSocket, id: u64, stream: &Stream, state: &SenderState) -> io::Result<()> {
    let mut datagram = vec![0; stream.payload];
    datagram[..8].copy_from_slice(&MAGIC);
    datagram[8..16].copy_from_slice(&id.to_be_bytes());
    let interval = Duration::from_secs(1) / stream.rate;
    let mut due = Instant::now();
    let mut number = 0_u64;
    while !state.stopped.load(Ordering::Relaxed) && stream.limit.is_none_or(|limit| number < limit) {
        let now = Instant::now();
        if now < due {
            thread::sleep((due - now).max(Duration::from_millis(1)).min(TICK));
            continue;
        }
        due = due.max(now.checked_sub(MAX_BURST).unwrap_or(now)) + interval;
        datagram[16..HEADER].copy_from_slice(&number.to_be_bytes());
        match socket.send_to(&datagram, stream.to) {
            Ok(_) => {
                number += 1;
                state.sent.store(number, Ordering::Release);
            }
            // The queue is full; the same number goes again.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) || error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What has arrived of one stream.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// All datagrams.
    pub datagrams: u64,
    /// Different numbers.
    pub distinct: u64,
    /// Datagrams whose number was below one that came before.
    pub reordered: u64,
    highest: Option<u64>,
    /// One bit for each number.
    seen: Vec<u64>,
}

impl Received {
    /// Whether the datagram with this number arrived.
    pub fn contains(&self, number: u64) -> bool {
        usize::try_from(number / 64)
            .ok()
            .and_then(|word| self.seen.get(word))
            .is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// The highest number that arrived.
    pub fn highest(&self) -> Option<u64> {
        self.highest
    }

    /// The numbers below `sent` that did not arrive, as ranges.
    pub fn missing(&self, sent: u64) -> Vec<Range<u64>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        for number in (0..sent).filter(|number| !self.contains(*number)) {
            match missing.last_mut() {
                Some(last) if last.end == number => last.end += 1,
                _ => missing.push(number..number + 1),
            }
        }
        missing
    }

    fn record(&mut self, number: u64) {
        self.datagrams += 1;
        if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
        if !self.contains(number) {
            let word = usize::try_from(number / 64).expect("numbers are below MAX_NUMBER");
            if self.seen.len() <= word {
                self.seen.resize(word + 1, 0);
            }
            self.seen[word] |= 1 << (number % 64);
            self.distinct += 1;
        }
    }
}

/// Receives numbered datagrams, of any number of streams, on a thread of its own, until dropped.
#[derive(Debug)]
pub struct NumberedReceiver {
    address: SocketAddr,
    state: Arc<ReceiverState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct ReceiverState {
    stopped: AtomicBool,
    streams: Mutex<HashMap<u64, Received>>,
    foreign: AtomicU64,
}

impl ReceiverState {
    fn streams(&self) -> MutexGuard<'_, HashMap<u64, Received>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NumberedReceiver {
    /// Binds in a namespace; port 0 takes any.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let open = || -> io::Result<UdpSocket> {
            let socket = netns.run(|| Socket::new(Domain::for_address(address), Type::DGRAM, None))?;
            set_large_buffer(&socket)?;
            socket.bind(&address.into())?;
            socket.set_read_timeout(Some(TICK))?;
            Ok(socket.into())
        };
        let place = format!("{}: receive on {address}/udp", netns.name());
        let socket = open().map_err(Error::os(&place))?;
        let address = socket.local_addr().map_err(Error::os(&place))?;
        let state = Arc::<ReceiverState>::default();
        let thread = thread::spawn({
            let state = Arc::clone(&state);
            move || receive_all(&socket, &state)
        });
        Ok(Self { address, state, thread: Some(thread) })
    }

    /// Where it is bound.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// What has arrived of a stream so far.
    pub fn received(&self, stream: u64) -> Received {
        self.state.streams().get(&stream).cloned().unwrap_or_default()
    }

    /// Datagrams that belong to no stream.
    pub fn foreign(&self) -> u64 {
        self.state.foreign.load(Ordering::Relaxed)
    }

    /// Waits until this many different numbers of a stream have arrived; `false` at the deadline.
    pub fn wait_for(&self, stream: u64, distinct: u64, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let arrived = || self.state.streams().get(&stream).map_or(0, |received| received.distinct);
        while arrived() < distinct {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Drop for NumberedReceiver {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn receive_all(socket: &UdpSocket, state: &ReceiverState) {
    let mut buffer = vec![0; 64 << 10];
    while !state.stopped.load(Ordering::Relaxed) {
        // The only error of an unconnected socket is the timeout.
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        match parse(&buffer[..length]) {
            Some((stream, number)) => state.streams().entry(stream).or_default().record(number),
            None => {
                state.foreign.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn parse(datagram: &[u8]) -> Option<(u64, u64)> {
    let header: &[u8; HEADER] = datagram.first_chunk()?;
    let word = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    (header[..8] == MAGIC && word(16) < MAX_NUMBER).then(|| (word(8), word(16)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_tells_what_is_missing() {
        let mut received = Received::default();
        for number in [0, 1, 64, 63, 64, 130] {
            received.record(number);
        }
        assert_eq!((received.datagrams, received.distinct, received.reordered), (6, 5, 1));
        assert_eq!(received.highest(), Some(130));
        assert_eq!(received.missing(132), [2..63, 65..130, 131..132]);
        assert!(received.contains(130) && !received.contains(131) && !received.contains(u64::MAX));
    }

    #[test]
    fn only_whole_headers_are_numbered() {
        let mut datagram = [&MAGIC[..], &5_u64.to_be_bytes(), &9_u64.to_be_bytes(), &[0]].concat();
        assert_eq!(parse(&datagram), Some((5, 9)));
        assert_eq!(parse(&datagram[..HEADER]), Some((5, 9)));
        assert_eq!(parse(&datagram[..HEADER - 1]), None);
        datagram[16] = 1;
        assert_eq!(parse(&datagram), None, "a number beyond any stream");
        datagram[0] = 0;
        assert_eq!(parse(&datagram), None);
    }
}
