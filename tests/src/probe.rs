//! Calls from one pod to another, each from a fresh port, so often that a verdict that changes for some milliseconds is seen.

use std::{
    collections::VecDeque,
    net::{IpAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::inside::Pod;

/// What nobody waits longer for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// So many of the latest calls say how it is.
pub const ALIKE: usize = 30;
/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// How calls are made, and what counts for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two calls.
    pub gap: Duration,
    /// An answer is looked for when a call is so old: who calls is to take little of the processors that he shares with whom he observes.
    pub look: Duration,
    /// An answer that takes longer does not come. Until then each call has a socket.
    pub bound: Duration,
    /// So many of the latest calls are remembered.
    pub kept: usize,
}

impl Pace {
    /// For moments: each millisecond, and all of the last seconds.
    pub const FINE: Self = Self {
        gap: Duration::from_millis(1),
        look: Duration::from_millis(20),
        bound: Duration::from_millis(20),
        kept: 20_000,
    };
}

/// Answers whatever comes to a port of a pod, until it is dropped.
pub struct Server(Arc<()>);

impl Server {
    /// Answers from now on.
    ///
    /// # Errors
    /// The pod is gone, or somebody has the port.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let address = pod.address;
        let socket = pod.spawn(move || UdpSocket::bind((address, port)))?.recv()??;
        socket.set_read_timeout(Some(LOOK))?;
        let server = Self(Arc::default());
        let known = Arc::clone(&server.0);
        thread::spawn(move || {
            let mut bytes = [0; 16];
            while Arc::strong_count(&known) > 1 {
                if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                    // Who asked may be gone.
                    let _ = socket.send_to(&bytes[..len], from);
                }
            }
        });
        Ok(server)
    }
}

/// Calls in the order in which they were made: when, and whether they were answered, once that is known.
type Calls = VecDeque<(Instant, bool)>;

/// Calls that go on while there is one.
pub struct Flow(Arc<Mutex<Calls>>);

impl Flow {
    /// Calls a port of an address from now on.
    ///
    /// # Errors
    /// The pod that calls is gone.
    pub fn start(from: &Pod, to: IpAddr, port: u16, pace: Pace) -> Result<Self> {
        let calls = Arc::new(Mutex::new(Calls::new()));
        let (own, known) = (from.address, Arc::clone(&calls));
        from.spawn(move || {
            let mut open = VecDeque::new();
            let mut next = Instant::now();
            // Who asks for them is gone when nobody else has them.
            while Arc::strong_count(&known) > 1 {
                if let Some(socket) = call(own, (to, port)) {
                    open.push_back((Instant::now(), socket));
                }
                settle(&mut open, pace, &known);
                next += pace.gap;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        })?;
        Ok(Self(calls))
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether most of the latest calls were answered.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        let calls = self.calls();
        let latest = calls.iter().rev().take(ALIKE);
        latest.filter(|(_, answered)| *answered).count() * 2 > ALIKE
    }

    /// How long after a moment each call was made, and whether it was answered; of those of which that is known.
    #[must_use]
    pub fn since(&self, moment: Instant) -> Vec<(Duration, bool)> {
        let calls = self.calls();
        let since = calls.iter().filter(|(sent, _)| *sent >= moment);
        since.map(|(sent, answered)| (*sent - moment, *answered)).collect()
    }

    /// How long after a moment the first call was made that was answered.
    #[must_use]
    pub fn first_answered(&self, since: Instant) -> Option<Duration> {
        let calls = self.calls();
        let answered = calls.iter().filter(|(sent, answered)| *answered && *sent >= since).map(|(sent, _)| *sent);
        answered.min().map(|sent| sent - since)
    }

    /// How long after a moment the last call was made that was answered; zero if none was.
    #[must_use]
    pub fn last_answered(&self, since: Instant) -> Option<Duration> {
        let calls = self.calls();
        let answered = calls.iter().filter(|(sent, answered)| *answered && *sent >= since).map(|(sent, _)| *sent);
        Some(answered.max().map_or(Duration::ZERO, |sent| sent - since))
    }
}

/// Waits until the calls of all flows are answered, or none is.
///
/// # Errors
/// It does not come to that.
pub fn until(flows: &[Flow], answered: bool) -> Result<()> {
    let start = Instant::now();
    while !flows.iter().all(|flow| flow.is_answered() == answered) {
        ensure!(start.elapsed() < PATIENCE, "calls are answered: not {answered} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Remembers of the oldest calls what they came to, until there is one that is still to be answered.
fn settle(open: &mut VecDeque<(Instant, UdpSocket)>, pace: Pace, known: &Mutex<Calls>) {
    while let Some((sent, socket)) = open.front() {
        let (sent, age) = (*sent, sent.elapsed());
        if age <= pace.look {
            return;
        }
        let answered = socket.recv(&mut [0; 16]).is_ok();
        if !answered && age <= pace.bound {
            return;
        }
        open.pop_front();
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known.push_back((sent, answered));
        if known.len() > pace.kept {
            known.pop_front();
        }
    }
}

fn call(own: IpAddr, to: (IpAddr, u16)) -> Option<UdpSocket> {
    let socket = UdpSocket::bind((own, 0)).ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(to).ok()?;
    // What a server of agnhost answers too.
    socket.send(b"echo call").ok()?;
    Some(socket)
}
