//! Asks an agent over its socket, one request to a connection. Calls block.

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

use crate::api::problem::Problem;

/// The agent gives up earlier and says so.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why there is no answer, or no good one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("no agent answers at {}: {why}; start it, or give its `--socket`", socket.display())]
    Away {
        /// The socket.
        socket: PathBuf,
        /// What the kernel or the protocol said.
        why: String,
    },
    /// Somebody may answer there, and not to this user.
    #[error(
        "you may not connect to {}: ask as root, or as a user of the group of the agent's `--socket-group`", socket.display()
    )]
    Forbidden {
        /// The socket.
        socket: PathBuf,
    },
    /// The agent refused.
    #[error("{}", told(.0))]
    Refused(Box<Problem>),
    /// The answer is not what this version expects.
    #[error("the agent's answer cannot be read: {0}; it may be of another version")]
    Strange(String),
}

/// A problem in lines for a person.
fn told(problem: &Problem) -> String {
    let mut text = format!("{}: {}", problem.title, problem.detail);
    for fault in &problem.errors {
        let place = if fault.place.is_empty() { String::new() } else { format!("{}: ", fault.place) };
        text.push_str(&format!("\n  {place}{}", fault.message));
        if !fault.help.is_empty() {
            text.push_str(&format!("\n    help: {}", fault.help));
        }
    }
    text
}

/// An agent's socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The agent that listens there. Nothing is sent yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, None)
    }

    /// Has something done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Strange(error.to_string()))?;
        self.ask(Method::POST, path, Some(body))
    }

    /// Hands on what a stream tells, an object a line, until it ends or `each` has enough. The agent may end it at any time.
    ///
    /// # Errors
    /// There is no stream; see [`ClientError`].
    pub fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        mut each: impl FnMut(T) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let runtime = self.runtime()?;
        runtime.block_on(async {
            let head = timeout(PATIENCE, self.send(Method::GET, path, None)).await;
            let answer = head.map_err(|_| self.late())?.map_err(|error| self.unreached(&error))?;
            let status = answer.status();
            let mut body = answer.into_body();
            if !status.is_success() {
                let bytes = timeout(PATIENCE, body.collect()).await.map_err(|_| self.late())?;
                return Err(refused(status, &bytes.map_err(|error| self.away(error.to_string()))?.to_bytes()));
            }
            let mut rest = Vec::new();
            // An end that breaks off is an end.
            while let Some(Ok(frame)) = body.frame().await {
                rest.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let told = serde_json::from_slice(&line).map_err(|error| strange(status, &error))?;
                    if each(told).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    fn away(&self, why: String) -> ClientError {
        ClientError::Away { socket: self.socket.clone(), why }
    }

    fn unreached(&self, why: &io::Error) -> ClientError {
        match why.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket: self.socket.clone() },
            _ => self.away(why.to_string()),
        }
    }

    fn late(&self) -> ClientError {
        self.away("it took too long".to_owned())
    }

    fn runtime(&self) -> Result<Runtime, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| self.away(error.to_string()))
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<T, ClientError> {
        let exchange = async {
            let answer = self.send(method, path, body).await?;
            let status = answer.status();
            let bytes = answer.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
            Ok::<_, io::Error>((status, bytes))
        };
        let answer = self.runtime()?.block_on(async { timeout(PATIENCE, exchange).await });
        let (status, bytes) = answer.map_err(|_| self.late())?.map_err(|error| self.unreached(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| strange(status, &error));
        }
        Err(refused(status, &bytes))
    }

    async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> io::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Its errors are those of the request.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "bulkhead");
        let request = match body.is_some() {
            true => request.header(header::CONTENT_TYPE, "application/json"),
            false => request,
        };
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(io::Error::other)?;
        sender.send_request(request).await.map_err(io::Error::other)
    }
}

/// What an answer says that is no success.
fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice(body) {
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(error) => strange(status, &error),
    }
}

fn strange(status: StatusCode, error: &serde_json::Error) -> ClientError {
    ClientError::Strange(format!("{status}, {error}"))
}
