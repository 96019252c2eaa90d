//! Where the CNI plugin asks the agent: a unix socket of root's, a thread a question.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::net::{UnixListener, UnixStream},
    },
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
    poll::{PollFd, PollFlags, PollTimeout, poll},
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
    waiting: Mutex<Vec<Question>>,
    asking: AtomicUsize,
}

/// What somebody wants to know.
struct Question {
    request: Request,
    reply: Sender<Answer>,
    asker: Arc<UnixStream>,
}

impl Question {
    /// Whether nobody waits any more for what was asked by somebody who does. His runtime has given the container up, and its DEL may be through: nobody
    /// would take back what came of the ADD. Where the container starts shut instead it is written down, and asked for anew.
    fn is_given_up(&self) -> bool {
        let mut asker = [PollFd::new(self.asker.as_fd(), PollFlags::empty())];
        let looked = poll(&mut asker, PollTimeout::ZERO);
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
        self.request.waits && looked.is_ok() && asker[0].revents().is_some_and(|found| found.intersects(ended))
    }
}

impl Desk {
    fn ask(self: &Arc<Self>, request: Request, asker: &Arc<UnixStream>) -> Option<Answer> {
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
        let question = Question { request, reply, asker: Arc::clone(asker) };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        let desk = Arc::clone(self);
        self.waker.send(Wake::Ask(Box::new(move |agent| desk.serve(agent)))).ok()?;
        answer.recv().ok()
    }

    /// Questions whose answers somebody waits for, or that nobody need wait for.
    fn take(&self) -> Vec<Question> {
        let mut waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.retain(|question| !question.is_given_up());
        waiting
    }

    /// For the first of those that wait; then the others find their questions answered.
    fn serve(&self, agent: &mut dyn Control) {
        let waiting = self.take();
        if waiting.is_empty() {
            return;
        }
        let (requests, replies): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|Question { request, reply, .. }| (request, reply)).unzip();
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

fn converse(stream: UnixStream, desk: &Arc<Desk>) -> io::Result<()> {
    let stream = Arc::new(stream);
    let user = getsockopt(&stream, PeerCredentials)?.uid();
    if user != 0 && user != geteuid().as_raw() {
        return say(
            &stream,
            Answer::Refused {
                message: format!("user {user} may not attach containers"),
                remedy: "run as root".to_owned(),
            },
        );
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = Vec::new();
    BufReader::new(&*stream).take(MAX_BYTES).read_until(b'\n', &mut line)?;
    let answer = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => desk.ask(request, &stream),
        Err(error) => Some(Answer::Refused {
            message: format!("the agent does not understand the plugin: {error}"),
            remedy: "agent and plugin must be of one release: put the plugin of the agent's release in its place"
                .to_owned(),
        }),
    };
    match answer {
        Some(answer) => say(&stream, answer),
        // The agent stops: who asked finds the connection closed, and asks the next one.
        None => Ok(()),
    }
}

fn say(mut stream: &UnixStream, answer: Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Reply { version: VERSION, answer })?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use std::{any::Any, collections::BTreeMap, sync::mpsc::Receiver};

    use bulkhead_dataplane::cni::protocol::{Attached, Key};

    use super::*;
    use crate::{input::Files, source::Heard};

    /// A source that does not know who a container is until it is told to.
    #[derive(Debug)]
    struct Late(Mutex<Receiver<()>>);

    impl Source for Late {
        fn read(&self) -> Files {
            unreachable!("nobody reads it")
        }

        fn watch(&self, _heard: Heard) -> Option<Box<dyn Any>> {
            None
        }

        fn quiet(&self) -> Duration {
            Duration::ZERO
        }

        fn complete(&self, _attached: &Attached) -> Result<(), String> {
            self.0.lock().unwrap().recv().map_err(|error| error.to_string())
        }
    }

    fn add(waits: bool) -> Request {
        let attached = Attached {
            key: Key { container: "a".to_owned(), ifname: "eth0".to_owned() },
            namespace: "shop".to_owned(),
            name: "web-1".to_owned(),
            uid: None,
            labels: BTreeMap::new(),
            interfaces: Vec::new(),
        };
        Request { version: VERSION, network: "lab".to_owned(), waits, ask: Ask::Add(attached) }
    }

    /// A runtime that waited in vain takes the container down: an ADD that came after the DEL would guard what is gone.
    #[test]
    fn an_add_that_was_given_up_is_not_carried_out() {
        for (waits, hangs_up, taken) in [(true, true, 0), (true, false, 1), (false, true, 1)] {
            let (known, late) = mpsc::channel();
            let (waker, wakes) = mpsc::channel();
            let source = Arc::new(Late(Mutex::new(late)));
            let (arriving, waiting, asking) = (Arriving::default(), Mutex::default(), AtomicUsize::new(0));
            let desk = Arc::new(Desk { waker, source, arriving, waiting, asking });
            let (plugin, ours) = UnixStream::pair().unwrap();
            let asked = {
                let desk = Arc::clone(&desk);
                thread::spawn(move || desk.ask(add(waits), &Arc::new(ours)))
            };
            let plugin = Some(plugin).filter(|_| !hangs_up);
            known.send(()).unwrap();
            wakes.recv().unwrap();
            // Whoever is not answered hears that nobody answers.
            assert_eq!(desk.take().len(), taken, "waits: {waits}, hangs up: {hangs_up}");
            assert_eq!(asked.join().unwrap(), None);
            drop(plugin);
        }
    }
}
