//! The agent's life: what wakes it, and the endpoint for Prometheus.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    accounts::Accounts,
    agent::Agent,
    api::{
        self,
        handle::Handle,
        identity::Appliers,
        server::{self, Limits, Socket},
    },
    cni::Plugins,
    control::Control,
    peers::Peers,
    slice::shorten,
    source::Source,
};
use bulkhead_dataplane::{
    network::LinkWatch,
    node::{Node, NodeError},
};
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use rustix::process::{Resource, Rlimit, getrlimit, nice, setrlimit};

/// Changes of links come in swarms.
const SWARM: Duration = Duration::from_millis(100);
/// Longest wait for quiet.
const PATIENCE: Duration = Duration::from_secs(1);
/// Steps of niceness: a tenth of the share that others have of a processor which they want too.
const YIELDING: i32 = 10;
/// Files and the node's network are looked at this often even if nobody says that they changed.
const REFRESH: Duration = Duration::from_secs(2);
/// Guards are looked at, and flows are accounted before their tables evict them.
const ACCOUNT: Duration = Duration::from_secs(10);
/// How often it is looked who else uses the mark. At boot others come later than the agent; listing a large firewall takes a while.
const MARKS: Duration = Duration::from_secs(300);

/// How long an address for metrics may stay taken. A program that an agent was about to start when it was killed holds the agent's sockets until it
/// has begun.
const RELEASE: Duration = Duration::from_secs(2);

/// Lets this process have as many files open as it may: connections of all who ask, links and tables.
///
/// # Errors
/// The kernel's.
pub fn open_many_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// A question to the agent, or something for it to do.
pub type Ask = Box<dyn FnOnce(&mut dyn Control) + Send>;

/// What wakes the agent.
pub enum Wake {
    /// The source may say something else.
    Changed,
    /// A link came or changed.
    Linked,
    /// The wall clock was set.
    ClockStepped,
    /// Somebody asks.
    Ask(Ask),
    /// It shall stop.
    Stop,
}

/// Stops an agent. Everything stays in force.
#[derive(Clone)]
pub struct Stopper(Sender<Wake>);

impl Stopper {
    /// Asks for it.
    pub fn stop(&self) {
        // When nobody listens it has stopped already.
        let _ = self.0.send(Wake::Stop);
    }
}

/// Where an agent hears what wakes it.
pub struct Life {
    wake: Receiver<Wake>,
    waker: Sender<Wake>,
    server: Option<TcpListener>,
    api: Option<Api>,
    plugins: Option<Plugins>,
}

/// Where the API is served.
#[derive(Debug)]
pub struct Api {
    /// The socket.
    pub socket: Socket,
    /// Who may change what is in force, beside root.
    pub appliers: Appliers,
    /// The agent's state directory: what is only read is not asked of the agent.
    pub state: PathBuf,
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let patience = Instant::now() + RELEASE;
    loop {
        match TcpListener::bind(address) {
            Err(taken) if taken.kind() == io::ErrorKind::AddrInUse && Instant::now() < patience => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

impl Life {
    /// Takes the address for metrics, `None` for no metrics.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(metrics: Option<SocketAddr>) -> io::Result<Self> {
        let server = metrics.map(listen).transpose()?;
        if let Some(server) = &server {
            server.set_nonblocking(true)?;
        }
        let (waker, wake) = mpsc::channel();
        Ok(Self { wake, waker, server, api: None, plugins: None })
    }

    /// Serves the API too.
    #[must_use]
    pub fn api(self, api: Api) -> Self {
        Self { api: Some(api), ..self }
    }

    /// Serves CNI plugins too.
    #[must_use]
    pub fn plugins(self, plugins: Plugins) -> Self {
        Self { plugins: Some(plugins), ..self }
    }

    /// Address for metrics.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().and_then(|server| server.local_addr().ok())
    }

    /// How others ask the agent.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.waker.clone())
    }

    /// A handle that stops it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.waker.clone())
    }

    /// Keeps the agent at its work until it is stopped. The node is used on the calling thread alone: its calls concern the network namespace of
    /// this thread.
    ///
    /// # Errors
    /// A thread cannot be started, or the one died that looks whether all guards stand. What is in force stays.
    pub fn run<N: Node>(self, agent: &mut Agent<N>, source: &dyn Source) -> io::Result<()> {
        let handle = self.handle();
        let Self { wake, waker, server, api, plugins } = self;
        let heard = waker.clone();
        // When nobody listens the agent has stopped.
        let _watch = source.watch(Box::new(move || _ = heard.send(Wake::Changed)));
        let quiet = source.quiet();
        watch_clock(waker.clone());
        watch_links(waker.clone());
        let looking = look_after(waker.clone(), agent.accounts())?;
        serve(server, api.as_ref(), &handle)?;
        if let Some(plugins) = &plugins {
            plugins.serve(waker.clone())?;
        }
        // All other threads run by now, but for one that writes now and then and soon waits for the disk.
        if let Err(error) = shorten() {
            tracing::warn!("where processors are busy policies take effect somewhat later: {error}");
        }
        let mut refresh = Instant::now() + REFRESH;
        // When the first of several changes was seen, and until when it has been quiet.
        let mut changed: Option<(Instant, Instant)> = None;
        // When links are looked at again: soon after one came, and when it has been there long enough.
        let mut linked = agent.until_ripe().map(|left| Instant::now() + left);
        loop {
            // Nobody would miss a guard any more. Whoever starts the agent again has both.
            if looking.thread.is_finished() {
                return Err(io::Error::other("the thread that looks whether all guards stand has died"));
            }
            let due = changed.map_or(refresh, |(_, quiet)| quiet);
            let due = linked.map_or(due, |linked| due.min(linked));
            let due = agent.until_written().map_or(due, |left| due.min(Instant::now() + left));
            let wait = due.saturating_duration_since(Instant::now());
            match wake.recv_timeout(agent.until_deadline().map_or(wait, |left| left.min(wait))) {
                Ok(Wake::Changed) => {
                    let now = Instant::now();
                    let first = changed.map_or(now, |(first, _)| first);
                    changed = Some((first, (now + quiet).min(first + PATIENCE)));
                    // Changes without end do not starve what is due, and where nobody waits for quiet no question comes first.
                    if now < first + PATIENCE && !quiet.is_zero() {
                        continue;
                    }
                }
                // Then on to what is due: questions without end must not keep a policy from being applied.
                Ok(Wake::Ask(ask)) => ask(agent),
                // The first one says when.
                Ok(Wake::Linked) => {
                    let soon = Instant::now() + SWARM;
                    linked = Some(linked.map_or(soon, |linked| linked.min(soon)));
                }
                Ok(Wake::ClockStepped) => agent.clock_stepped(),
                Ok(Wake::Stop) => break,
                // `waker` lives as long as this loop.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            agent.expire();
            let now = Instant::now();
            let is_due = changed.is_some_and(|(first, quiet)| now >= quiet || now >= first + PATIENCE);
            if is_due && agent.follow_changes() {
                changed = None;
            }
            // Whoever has changed something waits for that, not for this.
            if changed.is_none() && agent.until_written().is_some_and(|left| left.is_zero()) {
                agent.go_on_writing();
            }
            if now >= refresh || changed.is_some_and(|(first, quiet)| now >= quiet || now >= first + PATIENCE) {
                changed = None;
                agent.refresh();
                refresh = Instant::now() + REFRESH;
                linked = agent.until_ripe().map(|left| Instant::now() + left);
            } else if linked.is_some_and(|linked| now >= linked) {
                agent.adopt();
                agent.make_ready();
                linked = agent.until_ripe().map(|left| Instant::now() + left);
            }
        }
        drop(looking);
        let peers = agent.peers().make();
        account(&agent.accounts(), &peers);
        agent.write_down();
        tracing::info!("stopped; everything stays in force");
        Ok(())
    }
}

fn account(accounts: &Accounts, peers: &Peers) {
    if let Err(error) = accounts.account(peers) {
        tracing::warn!("what was counted cannot be read: {error}");
    }
}

/// Reads from a thread of its own what the node counts and whether its guards stand: it takes so long that policies would be late. It ends when nobody
/// listens any more, or what is returned is dropped.
fn look_after(waker: Sender<Wake>, accounts: Accounts) -> io::Result<Looking> {
    let (looking, end) = mpsc::channel();
    let look = move || {
        // Neither policies nor the pods' own work shall wait for what nobody waits for.
        if let Err(error) = nice(YIELDING) {
            tracing::warn!("what is counted is read at the priority of all else: {error}");
        }
        let mut marks = Instant::now() + MARKS;
        while end.recv_timeout(ACCOUNT) == Err(RecvTimeoutError::Timeout) {
            let status = accounts.status();
            let found = (Instant::now() >= marks).then(|| {
                marks = Instant::now() + MARKS;
                accounts.mark_conflicts()
            });
            let (reply, answer) = mpsc::channel();
            let tell = Wake::Ask(Box::new(move |agent| {
                agent.looked(status);
                if let Some(found) = found {
                    agent.take_marks(found);
                }
                // Whoever asked may be gone.
                let _ = reply.send(agent.peers());
            }));
            if waker.send(tell).is_err() {
                return;
            }
            // An agent that stops may leave it unanswered.
            let Ok(peers) = answer.recv() else { return };
            account(&accounts, &peers.make());
        }
    };
    let thread = thread::Builder::new().name("accounts".to_owned()).spawn(look)?;
    Ok(Looking { _end: looking, thread })
}

/// The thread of [`look_after`].
struct Looking {
    _end: Sender<()>,
    thread: JoinHandle<()>,
}

/// Wakes the agent after each step of the wall clock, also that at the end of a suspend: deadlines are in force as jiffies, which know nothing of
/// it. The thread lives until a step after the agent's end.
fn watch_clock(waker: Sender<Wake>) {
    let wait = move |timer: TimerFd| {
        // Ends when nobody listens any more, or the kernel refuses.
        while timer.wait().is_ok() && waker.send(Wake::ClockStepped).is_ok() {}
    };
    let watched = step_timer()
        .and_then(|timer| thread::Builder::new().name("clock".to_owned()).spawn(move || wait(timer)).map(drop));
    if let Err(error) = watched {
        tracing::warn!("a step of the wall clock is seen within {} s only: {error}", ACCOUNT.as_secs());
    }
}

/// Wakes the agent after each link that comes or changes. The thread lives until one that comes after the agent's end.
fn watch_links(waker: Sender<Wake>) {
    let wait = move |links: LinkWatch| {
        // Ends when nobody listens any more, or the kernel refuses.
        while links.wait().is_ok() && waker.send(Wake::Linked).is_ok() {}
    };
    let watched = LinkWatch::open().and_then(|links| {
        let spawned = thread::Builder::new().name("links".to_owned()).spawn(move || wait(links)).map(drop);
        spawned.map_err(|error| NodeError::Kernel { doing: "start a thread".to_owned(), why: error.to_string() })
    });
    if let Err(error) = watched {
        tracing::warn!(
            "containers that start without a guard are looked for every {} s only: {error}",
            REFRESH.as_secs()
        );
    }
}

/// A timer that never ends, but is cancelled by a step of the wall clock.
fn step_timer() -> io::Result<TimerFd> {
    // About the year 2242, near the end of the kernel's clock.
    let never = Expiration::OneShot(TimeSpec::new(1 << 33, 0));
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?;
    timer.set(never, TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET)?;
    Ok(timer)
}

/// Serves from a thread of its own.
fn serve(open: Option<TcpListener>, api: Option<&Api>, handle: &Handle) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let open = open.map(|listener| (listener, api::open_routes(handle)));
    let api = match api {
        Some(Api { socket, appliers, state }) => {
            Some((socket.listener()?, api::routes(handle.clone(), state), appliers.clone()))
        }
        None => None,
    };
    let serve = async move {
        let metrics = async {
            match open {
                Some((listener, routes)) => server::serve_open(listener, routes, Limits::OPEN).await,
                None => Ok(()),
            }
        };
        let api = async {
            match api {
                Some((listener, routes, appliers)) => server::serve(listener, routes, appliers, Limits::API).await,
                None => Ok(()),
            }
        };
        // One that fails does not end the other.
        let told = async |what: &str, served: io::Result<()>| {
            if let Err(error) = served {
                tracing::error!("{what} is not served any more: {error}");
            }
        };
        tokio::join!(async { told("the address for metrics", metrics.await).await }, async {
            told("the API", api.await).await;
        });
    };
    thread::Builder::new().name("api".to_owned()).spawn(move || runtime.block_on(serve))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_process_may_have() {
        let limit = getrlimit(Resource::Nofile);
        let few = limit.current.map_or(1024, |current| current / 2);
        setrlimit(Resource::Nofile, Rlimit { current: Some(few), ..limit }).unwrap();
        open_many_files().unwrap();
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: limit.maximum, ..limit });
    }

    #[test]
    fn the_kernel_tells_steps_of_the_clock() {
        let timer = step_timer().unwrap();
        assert!(timer.get().unwrap().is_some(), "it is armed");
    }
}
