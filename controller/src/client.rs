//! Asks an agent over its socket, one request to a connection. Calls block.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

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

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<T, ClientError> {
        let away = |why: String| ClientError::Away { socket: self.socket.clone(), why };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| away(error.to_string()))?;
        let answer = runtime.block_on(async { timeout(PATIENCE, self.exchange(method, path, body)).await });
        let (status, bytes) = match answer {
            Ok(answer) => answer.map_err(|error| away(error.to_string()))?,
            Err(_) => return Err(away("it took too long".to_owned())),
        };
        let strange = |error: serde_json::Error| ClientError::Strange(format!("{status}, {error}"));
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(strange);
        }
        Err(ClientError::Refused(Box::new(serde_json::from_slice(&bytes).map_err(strange)?)))
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> io::Result<(StatusCode, Bytes)> {
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
        let answer: axum::http::Response<Incoming> = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        Ok((status, bytes))
    }
}
