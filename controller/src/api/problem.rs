//! Errors as RFC 9457 says them (`application/problem+json`): what is wrong, where in the request, and how to mend it.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::diagnostic::{Diagnostics, Severity};

/// Seconds after which it is worth while to ask again.
pub(super) const AGAIN: u32 = 1;

/// What went wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem, stable: `urn:bulkhead:problem:changed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for people.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened this time, and how to mend it.
    pub detail: String,
    /// What is wrong with the documents, each with its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// JSON pointer (RFC 6901) into the request's body; empty for the body as a whole.
    pub pointer: String,
    /// Place in a document, `file:line:column`; empty where none is to blame.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// What.
    pub message: String,
    /// How to mend it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub help: String,
}

/// Kinds of problems: name, title and status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be read.
    Malformed,
    /// Nobody said who asks.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The path knows no such method.
    Method,
    /// It contradicts what is there.
    Conflict,
    /// The world is not the one that the request speaks of.
    Changed,
    /// The body is longer than what is read.
    TooLarge,
    /// The body is no JSON.
    MediaType,
    /// The documents are wrong, or do not fit.
    Invalid,
    /// The request must say what it is based on.
    Unconditional,
    /// Somebody asks too much at once.
    TooMany,
    /// The agent did what it could.
    Internal,
    /// The agent has no time, or stops.
    Busy,
}

impl Kind {
    const fn all(self) -> (&'static str, &'static str, StatusCode) {
        match self {
            Self::Malformed => ("malformed", "The request cannot be read", StatusCode::BAD_REQUEST),
            Self::Forbidden => ("forbidden", "You may not do that", StatusCode::FORBIDDEN),
            Self::NotFound => ("not-found", "There is no such thing", StatusCode::NOT_FOUND),
            Self::Method => ("method", "The path knows no such method", StatusCode::METHOD_NOT_ALLOWED),
            Self::Conflict => ("conflict", "It contradicts what is there", StatusCode::CONFLICT),
            Self::Changed => ("changed", "The world has changed", StatusCode::PRECONDITION_FAILED),
            Self::TooLarge => ("too-large", "The body is too long", StatusCode::PAYLOAD_TOO_LARGE),
            Self::MediaType => ("media-type", "The body is no JSON", StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Self::Invalid => ("invalid", "The documents cannot be used", StatusCode::UNPROCESSABLE_ENTITY),
            Self::Unconditional => {
                ("unconditional", "The request must say what it replaces", StatusCode::PRECONDITION_REQUIRED)
            }
            Self::TooMany => ("too-many", "Too many requests at once", StatusCode::TOO_MANY_REQUESTS),
            Self::Internal => ("internal", "The agent failed", StatusCode::INTERNAL_SERVER_ERROR),
            Self::Busy => ("busy", "The agent has no time", StatusCode::SERVICE_UNAVAILABLE),
        }
    }
}

impl Problem {
    /// A problem of a kind.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let (name, title, status) = kind.all();
        Self {
            kind: format!("urn:bulkhead:problem:{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    /// What is wrong with documents. `pointer` knows where in the request a file stands.
    #[must_use]
    pub fn documents(found: &Diagnostics, pointer: impl Fn(&str) -> String) -> Self {
        let errors = found.0.iter().filter(|found| found.severity == Severity::Error).map(|found| {
            // Of two places that contradict each other either may be the one in the request.
            let places = found.place.iter().chain(found.notes.iter().map(|(place, _)| place));
            let notes = found.notes.iter().map(|(place, note)| format!("\n{place}: {note}"));
            Fault {
                pointer: places
                    .map(|place| pointer(place.file()))
                    .find(|pointer| !pointer.is_empty())
                    .unwrap_or_default(),
                place: found.place.as_ref().map(ToString::to_string).unwrap_or_default(),
                message: [found.message.clone()].into_iter().chain(notes).collect(),
                help: found.help.clone().unwrap_or_default(),
            }
        });
        Self { errors: errors.collect(), ..Self::new(Kind::Invalid, "nothing was changed; mend what `errors` says") }
    }

    /// One fault in the request's body.
    #[must_use]
    pub fn fault(kind: Kind, pointer: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        let fault = Fault { pointer: pointer.into(), message: message.clone(), ..Fault::default() };
        Self { errors: vec![fault], ..Self::new(kind, message) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(AGAIN));
        }
        response
    }
}
