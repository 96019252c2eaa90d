//! Very many calls that nobody may make.

use std::{
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bulkhead_topology::Netns;

/// Ports that are called in turn.
const PORTS: std::ops::Range<u16> = 20_000..24_000;
/// Datagrams at once, and the pause behind them: others need the machine too.
const BURST: u16 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// A datagram to each of many ports, again and again until it is ended or dropped.
pub(crate) struct Flood {
    over: Arc<AtomicBool>,
    rounds: Option<JoinHandle<u32>>,
}

impl Flood {
    pub(crate) fn new(from: &Netns, to: IpAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (socket, ends) = (from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap(), Arc::clone(&over));
        let send = move || {
            let mut rounds = 0;
            loop {
                for port in PORTS {
                    if port % BURST == 0 {
                        thread::sleep(PAUSE);
                    }
                    if ends.load(Relaxed) {
                        return rounds;
                    }
                    // What the kernel does not take is one call less.
                    let _ = socket.send_to(b"?", (to, port));
                }
                rounds += 1;
            }
        };
        Self { over, rounds: Some(thread::spawn(send)) }
    }

    /// Ends it. How often all ports were called.
    pub(crate) fn end(mut self) -> u32 {
        self.over.store(true, Relaxed);
        self.rounds.take().unwrap().join().unwrap()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}
