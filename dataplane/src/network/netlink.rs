//! Requests to rtnetlink.

use std::{io, panic, thread};

use futures_util::StreamExt as _;
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::AsyncSocket as _,
};
use tokio::runtime;

use crate::node::NodeError;

/// How often a list is read again that changed while the kernel wrote it.
const ATTEMPTS: usize = 16;

/// A socket in the network namespace of the thread that called [`run`].
pub(super) struct Netlink(Handle);

/// Runs requests to their end. `doing` is for the error.
///
/// They run on a thread of their own, which starts in the caller's network namespace: the caller may itself be inside
/// an async runtime, where a second one must not block.
pub(super) fn run<T: Send>(
    doing: &str,
    requests: impl AsyncFnOnce(&mut Netlink) -> io::Result<T> + Send,
) -> Result<T, NodeError> {
    run_with(doing, false, requests)
}

/// The same with a socket whose requests the kernel checks strictly: only then lists can be of another namespace, or of one link.
pub(super) fn run_strictly<T: Send>(
    doing: &str,
    requests: impl AsyncFnOnce(&mut Netlink) -> io::Result<T> + Send,
) -> Result<T, NodeError> {
    run_with(doing, true, requests)
}

fn run_with<T: Send>(
    doing: &str,
    strict: bool,
    requests: impl AsyncFnOnce(&mut Netlink) -> io::Result<T> + Send,
) -> Result<T, NodeError> {
    let work = || {
        runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
            let (mut connection, handle, _unsolicited) = rtnetlink::new_connection()?;
            if strict {
                connection.socket_mut().socket_ref().set_netlink_get_strict_chk(true)?;
            }
            // The end of a list says whether it is whole.
            connection.set_forward_done(true);
            let connection = tokio::spawn(connection);
            let result = requests(&mut Netlink(handle)).await;
            connection.abort();
            result
        })
    };
    let result: io::Result<T> = thread::scope(|scope| {
        thread::Builder::new().name("netlink".to_owned()).spawn_scoped(scope, work).map(thread::ScopedJoinHandle::join)
    })
    .and_then(|joined| joined.unwrap_or_else(|payload| panic::resume_unwind(payload)));
    result.map_err(|error| NodeError::Kernel { doing: doing.to_owned(), why: error.to_string() })
}

impl Netlink {
    /// All objects that the request names and `read` understands. A list that changed meanwhile is read again: a
    /// binding that only seems to be gone would cut good traffic.
    pub(super) async fn list<T>(
        &mut self,
        request: RouteNetlinkMessage,
        read: impl Fn(&RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.list_once(request.clone(), &read).await? {
                return Ok(found);
            }
        }
        Err(io::Error::other(format!("the tables changed during each of {ATTEMPTS} readings; try again")))
    }

    /// `None` if the list is not consistent.
    async fn list_once<T>(
        &mut self,
        request: RouteNetlinkMessage,
        read: impl Fn(&RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>> {
        let mut answers = self.send(request, NLM_F_DUMP)?;
        let (mut found, mut consistent) = (Vec::new(), true);
        while let Some(answer) = answers.next().await {
            consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found.extend(read(&message)),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(consistent.then_some(found)),
                NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(done.code.abs())),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                // The socket's buffer was full: something is missing.
                _ => consistent = false,
            }
        }
        Err(closed())
    }

    /// The one object that the request names.
    pub(super) async fn get(&mut self, request: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        // The acknowledgement ends the exchange also where the answer itself cannot be decoded.
        match self.send(request, NLM_F_ACK)?.next().await.map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(message)) => Ok(message),
            Some(NetlinkPayload::Error(error)) => Err(error.to_io()),
            _ => Err(closed()),
        }
    }

    fn send(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        self.0.request(message).map_err(io::Error::other)
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the netlink socket ended before the answer did")
}
