//! Calls from one pod to another, each millisecond from a fresh port.

use std::{
    collections::VecDeque,
    net::{IpAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bulkhead_tests::inside::Pod;

/// Between two calls.
const GAP: Duration = Duration::from_millis(1);
/// An answer that takes longer does not come.
const ANSWER: Duration = Duration::from_millis(20);
/// What nobody waits longer for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// So many of the latest calls say how it is.
const ALIKE: usize = 30;

/// Answers whatever comes to a port, until the process ends.
pub(crate) fn server(pod: &Pod, port: u16) -> Result<()> {
    let address = pod.address;
    let socket = pod.spawn(move || UdpSocket::bind((address, port)))?.recv()??;
    thread::spawn(move || {
        let mut bytes = [0; 16];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            // Who asked may be gone.
            let _ = socket.send_to(&bytes[..len], from);
        }
    });
    Ok(())
}

/// Calls in the order in which they were made: when, and whether they were answered, once that is known.
type Calls = VecDeque<(Instant, bool)>;

/// Calls that go on while there is one.
pub(crate) struct Flow(Arc<Mutex<Calls>>);

impl Flow {
    pub(crate) fn start(from: &Pod, to: IpAddr, port: u16) -> Result<Self> {
        let calls = Arc::new(Mutex::new(Calls::new()));
        let (own, known) = (from.address, Arc::clone(&calls));
        from.spawn(move || {
            let mut open: VecDeque<(Instant, UdpSocket)> = VecDeque::new();
            let mut next = Instant::now();
            // Who asks for them is gone when nobody else has them.
            while Arc::strong_count(&known) > 1 {
                if let Some(socket) = call(own, (to, port)) {
                    open.push_back((Instant::now(), socket));
                }
                // Once for each, when it is too late for an answer: who calls is to take little of the processors that he shares with whom he observes.
                while let Some((sent, socket)) = open.pop_front_if(|(sent, _)| sent.elapsed() > ANSWER) {
                    let answered = socket.recv(&mut [0; 16]).is_ok();
                    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                    known.push_back((sent, answered));
                    // Those of the last seconds are of interest.
                    if known.len() > 20_000 {
                        known.pop_front();
                    }
                }
                next += GAP;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        })?;
        Ok(Self(calls))
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether most of the latest calls were answered.
    pub(crate) fn is_answered(&self) -> bool {
        let calls = self.calls();
        let latest = calls.iter().rev().take(ALIKE);
        latest.filter(|(_, answered)| *answered).count() * 2 > ALIKE
    }

    /// How long after a moment the first call was made that was answered.
    pub(crate) fn first_answered(&self, since: Instant) -> Option<Duration> {
        let calls = self.calls();
        let answered = calls.iter().filter(|(sent, answered)| *answered && *sent >= since).map(|(sent, _)| *sent);
        answered.min().map(|sent| sent - since)
    }

    /// How long after a moment the last call was made that was answered; zero if none was.
    pub(crate) fn last_answered(&self, since: Instant) -> Option<Duration> {
        let calls = self.calls();
        let answered = calls.iter().filter(|(sent, answered)| *answered && *sent >= since).map(|(sent, _)| *sent);
        Some(answered.max().map_or(Duration::ZERO, |sent| sent - since))
    }
}

/// Waits until the calls of all flows are answered, or none is.
pub(super) fn until(flows: &[Flow], answered: bool) -> Result<()> {
    let start = Instant::now();
    while !flows.iter().all(|flow| flow.is_answered() == answered) {
        ensure!(start.elapsed() < PATIENCE, "calls are answered: not {answered} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn call(own: IpAddr, to: (IpAddr, u16)) -> Option<UdpSocket> {
    let socket = UdpSocket::bind((own, 0)).ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(to).ok()?;
    // What a server of agnhost answers too.
    socket.send(b"echo call").ok()?;
    Some(socket)
}
