//! A client that is strict: it refuses answers that the API's document does not tell of, and errors that are no problems.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, Method, Request, Response, header},
};
use bulkhead_controller::api::{document, identity::Identity, problem::Problem};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{net::UnixStream, runtime, time::timeout};
use tower::ServiceExt as _;

/// For a machine that hangs, not for one that is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whom requests are sent to.
#[derive(Clone)]
pub(crate) enum Client {
    /// A socket; a new connection for each request.
    Socket(PathBuf),
    /// The API itself, as if this had come from a connection of somebody.
    Router(Router, Identity),
}

impl Client {
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "bulkhead");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        let (method, uri) = (request.method().clone(), request.uri().path().to_owned());
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answered = async {
            let response = match self {
                Self::Socket(socket) => over(socket, request).await,
                Self::Router(router, identity) => {
                    let mut request = request;
                    request.extensions_mut().insert(identity.clone());
                    router.clone().oneshot(request).await.unwrap()
                }
            };
            let (parts, body) = response.into_parts();
            Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: to_bytes(body, usize::MAX).await.unwrap(),
            }
        };
        let answer = runtime.block_on(async { timeout(PATIENCE, answered).await });
        let answer = answer.unwrap_or_else(|_| panic!("{method} {path} is not answered"));
        answer.check(&method, &uri);
        answer
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[JSON], body.to_string())
    }

    /// Puts a document on a condition: `("if-match", etag)`.
    pub(crate) fn put(&self, name: &str, text: &str, condition: (&str, &str)) -> Answer {
        let body = serde_json::json!({ "text": text }).to_string();
        self.send("PUT", &format!("/v1/policies/{name}"), &[JSON, condition], body)
    }

    pub(crate) fn delete(&self, name: &str, etag: &str) -> Answer {
        self.send("DELETE", &format!("/v1/policies/{name}"), &[("if-match", etag)], "")
    }
}

/// What says that a body is JSON.
pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");
/// The condition of a document that is to be new.
pub(crate) const NEW: (&str, &str) = ("if-none-match", "*");

async fn over(socket: &Path, request: Request<Body>) -> Response<Body> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap().map(Body::new)
}

/// An answer that is what it has to be.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    pub(crate) fn ok<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The problem of a refusal.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> Problem {
        assert_eq!(self.status, status, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What holds for every answer.
    #[track_caller]
    fn check(&self, method: &Method, path: &str) {
        let what = || format!("{method} {path}: {} {:?} {}", self.status, self.headers, self.text());
        assert!(is_documented(method, path, self.status), "{}", what());
        if (200..300).contains(&self.status) {
            return;
        }
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", what());
        assert_eq!(self.header("retry-after").is_some(), matches!(self.status, 429 | 503), "{}", what());
        if *method != Method::HEAD {
            let problem: Problem = serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", what()));
            assert_eq!(problem.status, self.status, "{}", what());
            assert!(problem.kind.starts_with("urn:bulkhead:problem:") && !problem.detail.is_empty(), "{}", what());
        }
    }
}

/// Whether the document tells of such an answer; of what it does not know only that it is not there.
fn is_documented(method: &Method, path: &str, status: u16) -> bool {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(document()).unwrap());
    let is = |template: &str| {
        let (written, asked) = (template.split('/'), path.split('/'));
        written.clone().count() == asked.clone().count()
            && written.zip(asked).all(|(written, asked)| written.starts_with('{') || written == asked)
    };
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let method = method.as_str().to_ascii_lowercase();
    match paths.iter().find(|(template, _)| is(template)).map(|(_, path)| path.get(&method)) {
        Some(Some(operation)) => operation["responses"].get(status.to_string()).is_some(),
        Some(None) => status == 405 || method == "head",
        None => status == 404 || path == "/v1/openapi.json",
    }
}
