//! A question to the agent.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Deserialize;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    Code, Error,
    protocol::{Answer, MAX_BYTES, Reply, Request, VERSION},
};

/// How long to wait before another try while the agent is not there.
const AGAIN: Duration = Duration::from_millis(20);

/// How long somebody waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the answer.
    pub until: Instant,
    /// For an agent that is not there yet, too.
    pub for_agent: bool,
}

impl Patience {
    fn left(&self) -> Option<Duration> {
        Some(self.until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }
}

/// Asks, and waits for the answer. An agent that ends meanwhile is asked again when it is back, where that is waited for: nothing that is asked does more
/// when it is asked twice.
///
/// # Errors
/// The agent is not there, is not root's, does not answer in time or speaks another version; or it refuses.
pub fn ask(socket: &Path, request: &Request, patience: Patience) -> Result<(), Error> {
    let mut failed = None;
    let reply = loop {
        let Some(left) = patience.left() else {
            return Err(failed.map_or_else(timed_out, |error| away(socket, &error)));
        };
        match connect(socket, left).and_then(|stream| converse(stream, request, patience)) {
            Ok(reply) => break reply,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(timed_out());
            }
            Err(error) if patience.for_agent && patience.left().is_some_and(|left| left > AGAIN) => {
                failed = Some(error);
                thread::sleep(AGAIN);
            }
            Err(error) => return Err(away(socket, &error)),
        }
    };
    if reply.version != VERSION {
        return Err(Error::new(
            Code::AgentAway,
            format!("the agent speaks version {} with this plugin, which speaks version {VERSION}", reply.version),
            "agent and plugin must be of one release: put the plugin of the agent's release in its place",
        ));
    }
    match reply.answer {
        Answer::Done => Ok(()),
        Answer::Refused { message, remedy } => Err(Error::new(Code::Refused, message, remedy)),
    }
}

/// Tells the agent something, and waits for nothing.
///
/// # Errors
/// It could not be told.
pub fn tell(socket: &Path, request: &Request) -> io::Result<()> {
    let told = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    told.set_nonblocking(true)?;
    told.connect(&SockAddr::unix(socket)?)?;
    let mut told: UnixStream = told.into();
    told.write_all(&line(request)?)
}

fn line(request: &Request) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    Ok(line)
}

fn connect(path: &Path, left: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // This bounds the connecting too, where the agent's queue is full.
    socket.set_write_timeout(Some(left))?;
    socket.connect(&SockAddr::unix(path)?)?;
    let stream: UnixStream = socket.into();
    let server = getsockopt(&stream, PeerCredentials)?.uid();
    if server != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("what listens there is user {server}'s, not root's"),
        ));
    }
    Ok(stream)
}

fn converse(mut stream: UnixStream, request: &Request, patience: Patience) -> io::Result<Reply> {
    match stream.write_all(&line(request)?) {
        // An agent that need not hear the question to refuse it has answered, and left.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    // Whoever answers without end is not read without end.
    let mut reader = BufReader::new(stream.take(MAX_BYTES));
    let mut line = Vec::new();
    loop {
        let left = patience.left().ok_or(io::ErrorKind::TimedOut)?;
        reader.get_ref().get_ref().set_read_timeout(Some(left))?;
        match reader.read_until(b'\n', &mut line)? {
            0 => return Err(io::Error::other("it closed the connection without an answer")),
            _ if line.ends_with(b"\n") => return understand(&line),
            _ => {}
        }
    }
}

/// What another version answers may have any form: its version is all that is read of it then, and all that matters.
fn understand(line: &[u8]) -> io::Result<Reply> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_slice::<Versioned>(line)?.version {
        VERSION => Ok(serde_json::from_slice(line)?),
        version => Ok(Reply { version, answer: Answer::Done }),
    }
}

fn away(socket: &Path, error: &io::Error) -> Error {
    Error::new(
        Code::AgentAway,
        format!("no Bulkhead agent answers at {}: {error}", socket.display()),
        "start it (`systemctl start bulkhead`) and look at its log; without it no container of this network starts, since nothing would guard it",
    )
}

fn timed_out() -> Error {
    Error::new(
        Code::TimedOut,
        "the policy of this container was not in force in time",
        "the runtime tries again; `bulkhead status` and the agent's log say what keeps it, `timeoutSeconds` in the conflist how long this waits",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::protocol::Ask;

    #[test]
    fn an_answer_is_heard_from_who_has_left_before_the_question() {
        let (stream, mut agent) = UnixStream::pair().unwrap();
        let refused = Answer::Refused { message: "no".to_owned(), remedy: "ask as root".to_owned() };
        let reply = Reply { version: VERSION, answer: refused };
        agent.write_all(&[&serde_json::to_vec(&reply).unwrap()[..], b"\n"].concat()).unwrap();
        drop(agent);
        let request = Request { version: VERSION, network: "lab".to_owned(), waits: false, ask: Ask::Status };
        let patience = Patience { until: Instant::now() + Duration::from_secs(10), for_agent: false };
        assert_eq!(converse(stream, &request, patience).unwrap(), reply);
    }
}
