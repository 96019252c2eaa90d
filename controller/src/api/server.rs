//! The socket and the open address: who may connect, how many at once, and how long they may take.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tower::ServiceExt as _;

use super::{
    identity::{Appliers, Identity},
    problem::{AGAIN, Kind, Problem},
};

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of everybody who may connect.
    pub common: usize,
    /// Connections of those whom the others must not shut out.
    pub reserved: usize,
    /// For the head of a request, and between two requests.
    pub head: Duration,
    /// For a connection as a whole.
    pub life: Duration,
    /// Whether a connection may ask more than once.
    pub again: bool,
}

impl Limits {
    /// Of the socket; places are reserved for those who may apply.
    pub const API: Self =
        Self { common: 240, reserved: 16, head: Duration::from_secs(10), life: Duration::from_secs(3600), again: true };
    /// Of the address for metrics and health; places are reserved for the node itself, from which probes come.
    pub const OPEN: Self =
        Self { common: 32, reserved: 8, head: Duration::from_secs(10), life: Duration::from_secs(60), again: false };
}

/// Places for connections.
struct Places {
    common: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
}

impl Places {
    fn new(limits: Limits) -> Self {
        let [common, reserved] = [limits.common, limits.reserved].map(|places| Arc::new(Semaphore::new(places)));
        Self { common, reserved }
    }

    /// One, if there is one left.
    fn take(&self, is_reserved: bool) -> Option<OwnedSemaphorePermit> {
        let reserved = is_reserved.then(|| Arc::clone(&self.reserved).try_acquire_owned().ok()).flatten();
        reserved.or_else(|| Arc::clone(&self.common).try_acquire_owned().ok())
    }
}

/// For what is said then; whoever does not listen is not waited for.
const GRUDGING: Duration = Duration::from_millis(100);
/// After an error of accept(2): most likely there is no file descriptor left, and some will come free.
const RECOVER: Duration = Duration::from_millis(100);

/// A socket in the file system, which is removed with it.
#[derive(Debug)]
pub struct Socket {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds it; its directory is made if it is missing. Root and `group` may connect, without a group root alone.
    ///
    /// # Errors
    /// Another agent listens there; something else than a socket is there; the file system refuses.
    pub fn bind(path: &Path, group: Option<u32>) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                let why = format!("{} is there and is no socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
            }
            // A socket that nobody listens on is what a killed agent left.
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                let why = format!("another agent listens on {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
            }
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Nobody connects before the mode is right: it is bound under a name of its own in a directory that only we can enter.
        let directory = tempfile::Builder::new()
            .prefix(".bulkhead-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new(".")))?;
        let bound = directory.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&bound)?;
        fs::set_permissions(&bound, fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
        if let Some(group) = group {
            chown(&bound, None, Some(group))?;
        }
        fs::rename(&bound, path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// The same socket, for [`serve`].
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn listener(&self) -> io::Result<std::os::unix::net::UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever has put another one there keeps it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Serves requests on the socket until it fails.
///
/// # Errors
/// The socket cannot be used by the runtime.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    routes: Router,
    appliers: Appliers,
    limits: Limits,
) -> io::Result<()> {
    let (listener, places) = (UnixListener::from_std(listener)?, Places::new(limits));
    loop {
        let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
        let Ok(peer) = stream.peer_cred() else { continue };
        let identity = appliers.identify(peer);
        match places.take(identity.applies) {
            Some(place) => _ = tokio::spawn(answer(stream, routes.clone(), Some(identity), place, limits)),
            None => refuse(stream).await,
        }
    }
}

/// Serves what needs no identity on an address, metrics and health, until it fails.
///
/// # Errors
/// The address cannot be used by the runtime.
pub async fn serve_open(listener: std::net::TcpListener, routes: Router, limits: Limits) -> io::Result<()> {
    let (listener, places) = (TcpListener::from_std(listener)?, Places::new(limits));
    loop {
        let Some((stream, peer)) = accepted(listener.accept().await).await else { continue };
        let is_own = stream.local_addr().is_ok_and(|local| local.ip() == peer.ip());
        match places.take(is_own) {
            Some(place) => _ = tokio::spawn(answer(stream, routes.clone(), None, place, limits)),
            None => refuse(stream).await,
        }
    }
}

/// A connection, where there is one.
async fn accepted<T>(connection: io::Result<T>) -> Option<T> {
    match connection {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::warn!("a connection was refused: {error}");
            tokio::time::sleep(RECOVER).await;
            None
        }
    }
}

async fn refuse(mut stream: impl AsyncWrite + Unpin) {
    // Who has gone already need not be told.
    let _ = timeout(GRUDGING, stream.write_all(full().as_bytes())).await;
}

/// What is said when there are too many connections.
fn full() -> String {
    let problem = Problem::new(Kind::Busy, "too many connections; ask again");
    // Plain data: nothing of it can fail.
    let body = serde_json::to_string(&problem).unwrap_or_default();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: {AGAIN}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: Router,
    identity: Option<Identity>,
    _place: OwnedSemaphorePermit,
    limits: Limits,
) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(identity) = &identity {
            request.extensions_mut().insert(identity.clone());
        }
        routes.clone().oneshot(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(limits.again)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(limits.life, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection ended: {error}"),
        Err(_) => tracing::debug!("a connection lasted too long"),
    }
}
