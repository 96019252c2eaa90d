//! Parts of requests, refused with a problem that points at what is wrong.

use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request,
        rejection::{PathRejection, QueryRejection},
    },
    http::{StatusCode, header},
};
use serde::de::DeserializeOwned;

use super::problem::{Kind, Problem};

/// A body of JSON.
#[derive(Clone, Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let json = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let json =
            json.and_then(|value| value.split(';').next()).is_some_and(|value| value.trim() == "application/json");
        if !json {
            return Err(Problem::new(Kind::MediaType, "send JSON with `content-type: application/json`"));
        }
        let bytes = axum::body::Bytes::from_request(request, state).await.map_err(|refused| {
            let kind = match refused.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Kind::TooLarge,
                _ => Kind::Malformed,
            };
            Problem::new(kind, refused.body_text())
        })?;
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let pointer = pointer(error.path());
            Problem::fault(Kind::Malformed, pointer, error.into_inner().to_string())
        })?;
        reader.end().map_err(|error| Problem::fault(Kind::Malformed, "", error.to_string()))?;
        Ok(Self(value))
    }
}

/// A path of JSON as RFC 6901 writes it.
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        let part = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { variant } => variant.clone(),
            Segment::Unknown => continue,
        };
        pointer.push('/');
        pointer.push_str(&part);
    }
    pointer
}

/// Parameters of the path.
#[derive(Clone, Debug)]
pub(super) struct Within<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Within<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        let Path(value) = path.map_err(|refused: PathRejection| Problem::new(Kind::Malformed, refused.body_text()))?;
        Ok(Self(value))
    }
}

/// Parameters behind the question mark.
#[derive(Clone, Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        let Query(value) =
            query.map_err(|refused: QueryRejection| Problem::new(Kind::Malformed, refused.body_text()))?;
        Ok(Self(value))
    }
}

/// An answer.
pub(super) type Answer<T> = Result<Json<T>, Problem>;

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only what is wrong with it matters")]
    struct Documents {
        documents: Vec<Document>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only what is wrong with it matters")]
    struct Document {
        text: String,
    }

    #[test]
    fn a_pointer_leads_to_what_is_wrong() {
        let json = r#"{"documents": [{"text": "a"}, {"text": 1}]}"#;
        let mut reader = serde_json::Deserializer::from_str(json);
        let error = serde_path_to_error::deserialize::<_, Documents>(&mut reader).unwrap_err();
        assert_eq!(pointer(error.path()), "/documents/1/text");
    }
}
