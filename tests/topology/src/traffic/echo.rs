use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::SockRef;

use crate::{Error, Netns, Result};

/// How long a thread may take to notice that its server has been dropped.
const TICK: Duration = Duration::from_millis(50);

/// A TCP server in a namespace that sends back what it gets. It ends when dropped, and open connections
/// shortly after.
#[derive(Debug)]
pub struct TcpEcho {
    address: SocketAddr,
    listener: TcpListener,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stopped: AtomicBool,
    served: AtomicU64,
}

impl TcpEcho {
    /// Listens; port 0 takes any.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let start = || {
            let listener = netns.run(|| TcpListener::bind(address))?;
            Ok((listener.local_addr()?, listener.try_clone()?, listener))
        };
        let (address, accepting, listener) =
            start().map_err(Error::os(format!("{}: listen on {address}/tcp", netns.name())))?;
        let state = Arc::<State>::default();
        let thread = thread::spawn({
            let state = Arc::clone(&state);
            move || {
                while !state.stopped.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = accepting.accept() else {
                        // Stopped; or a connection that was gone at once, or too many open files.
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    state.served.fetch_add(1, Ordering::Relaxed);
                    let state = Arc::clone(&state);
                    // A connection that breaks is its client's to notice.
                    thread::spawn(move || drop(serve(stream, &state.stopped)));
                }
            }
        });
        Ok(Self { address, listener, state, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.state.served.load(Ordering::Relaxed)
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        // On Linux this ends a blocked accept().
        let woken = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let (Ok(()), Some(thread)) = (woken, self.thread.take()) {
            let _panicked = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, stopped: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 << 10];
    while !stopped.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&buffer[..length])?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A UDP server in a namespace that sends back what it gets, until dropped.
#[derive(Debug)]
pub struct UdpEcho {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Binds; port 0 takes any. On a host with several addresses bind to one of them, or replies may leave
    /// from another.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let start = || {
            let socket = netns.run(|| UdpSocket::bind(address))?;
            socket.set_read_timeout(Some(TICK))?;
            Ok((socket.local_addr()?, socket))
        };
        let (address, socket) = start().map_err(Error::os(format!("{}: bind {address}/udp", netns.name())))?;
        let state = Arc::<State>::default();
        let thread = thread::spawn({
            let state = Arc::clone(&state);
            move || {
                let mut buffer = vec![0; 64 << 10];
                while !state.stopped.load(Ordering::Relaxed) {
                    // An error is a timeout, or ICMP about an earlier reply.
                    let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    state.served.fetch_add(1, Ordering::Relaxed);
                    // A reply that cannot be sent is a reply that does not arrive, and the client sees that.
                    let _unsent = socket.send_to(&buffer[..length], peer);
                }
            }
        });
        Ok(Self { address, state, thread: Some(thread) })
    }

    /// Where it is bound.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.state.served.load(Ordering::Relaxed)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
