//! Where the CNI plugin asks the agent: a unix socket of root's, a thread a question.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use bulkhead_dataplane::cni::protocol::{Answer, Ask, MAX_BYTES, Reply, Request, VERSION};
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};

use crate::{adopt::arriving::Arriving, api::server::Socket, control::Control, run::Wake, source::Source};

/// Questions at once. A node starts some hundred containers at most at the same time.
const ASKING: usize = 512;
/// How long the plugin may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket.
#[derive(Debug)]
pub struct Plugins {
    socket: Socket,
    source: Arc<dyn Source>,
    arriving: Arriving,
}

impl Plugins {
    /// Binds it; its directory is made if it is missing. The source is asked who a container is that is about to start, and whose ADD waits is said.
    ///
    /// # Errors
    /// As [`Socket::bind`].
    pub fn bind(path: &Path, source: Arc<dyn Source>, arriving: Arriving) -> io::Result<Self> {
        Ok(Self { socket: Socket::bind(path, None)?, source, arriving })
    }

    /// Serves from a thread of its own, until the agent ends.
    ///
    /// # Errors
    /// No thread or descriptor is left.
    pub fn serve(&self, waker: Sender<Wake>) -> io::Result<()> {
        let listener = self.socket.listener()?;
        listener.set_nonblocking(false)?;
        let (source, arriving) = (Arc::clone(&self.source), self.arriving.clone());
        let desk = Arc::new(Desk { waker, source, arriving, waiting: Mutex::default(), asking: AtomicUsize::new(0) });
        thread::Builder::new().name("cni".to_owned()).spawn(move || accept(&listener, &desk)).map(drop)
    }
}

/// Where questions wait for the agent: it takes all that are there at once.
struct Desk {
    waker: Sender<Wake>,
    source: Arc<dyn Source>,
    arriving: Arriving,
    waiting: Mutex<Vec<(Request, Sender<Answer>)>>,
    asking: AtomicUsize,
}

impl Desk {
    fn ask(self: &Arc<Self>, request: Request) -> Option<Answer> {
        let _arrival = match &request.ask {
            Ask::Add(attached) if request.waits => Some(self.arriving.begin(attached)),
            _ => None,
        };
        // Who does not wait runs already, or starts whatever becomes of us; the source tells of it when it knows.
        if let Ask::Add(attached) = &request.ask
            && request.waits
            && let Err(why) = self.source.complete(attached)
        {
            let message = format!("who container {} is could not be found out: {why}", attached.key.container);
            let remedy = "the runtime tries again; the agent's log and `bulkhead status` say more".to_owned();
            return Some(Answer::Refused { message, remedy });
        }
        let (reply, answer) = mpsc::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((request, reply));
        let desk = Arc::clone(self);
        self.waker.send(Wake::Ask(Box::new(move |agent| desk.serve(agent)))).ok()?;
        answer.recv().ok()
    }

    /// For the first of those that wait; then the others find their questions answered.
    fn serve(&self, agent: &mut dyn Control) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if waiting.is_empty() {
            return;
        }
        let (requests, replies): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        for (reply, answer) in replies.iter().zip(agent.attach(&requests)) {
            // Whoever asked may be gone.
            let _ = reply.send(answer);
        }
        agent.make_ready();
    }
}

fn accept(listener: &UnixListener, desk: &Arc<Desk>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Descriptors may be short for a moment; without this socket no container would start any more.
                tracing::warn!("a CNI plugin is not heard: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if desk.asking.fetch_add(1, Relaxed) >= ASKING {
            desk.asking.fetch_sub(1, Relaxed);
            continue;
        }
        let served = Arc::clone(desk);
        let serve = move || {
            if let Err(error) = converse(stream, &served) {
                tracing::debug!("a CNI plugin went away: {error}");
            }
            served.asking.fetch_sub(1, Relaxed);
        };
        if let Err(error) = thread::Builder::new().name("cni-ask".to_owned()).spawn(serve) {
            desk.asking.fetch_sub(1, Relaxed);
            tracing::warn!("a CNI plugin is not heard: {error}");
        }
    }
}

fn converse(mut stream: UnixStream, desk: &Arc<Desk>) -> io::Result<()> {
    let user = getsockopt(&stream, PeerCredentials)?.uid();
    if user != 0 && user != geteuid().as_raw() {
        return say(
            &mut stream,
            Answer::Refused {
                message: format!("user {user} may not attach containers"),
                remedy: "run as root".to_owned(),
            },
        );
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = Vec::new();
    BufReader::new(stream.try_clone()?).take(MAX_BYTES).read_until(b'\n', &mut line)?;
    let answer = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => desk.ask(request),
        Err(error) => Some(Answer::Refused {
            message: format!("the agent does not understand the plugin: {error}"),
            remedy: "agent and plugin must be of one release: put the plugin of the agent's release in its place"
                .to_owned(),
        }),
    };
    match answer {
        Some(answer) => say(&mut stream, answer),
        // The agent stops: who asked finds the connection closed, and asks the next one.
        None => Ok(()),
    }
}

fn say(stream: &mut UnixStream, answer: Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Reply { version: VERSION, answer })?;
    line.push(b'\n');
    stream.write_all(&line)
}
