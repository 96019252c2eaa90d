//! Policies in force, and changing them.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    App,
    extract::{Answer, Body, Within},
    identity::{Applier, Identity},
    plans::LIFE,
    problem::{Fault, Kind, Problem},
    types::{ApplyRequest, Edit, PlanBody, PlanRequest, PolicyBody, PolicyRequest, PolicySource, RevisionBody},
};
use crate::{
    control::{Basis, Put, PutError},
    overlay::{Overlay, digest, document_name, file_name, is_name},
    plan::plan as make_plan,
    room::{no_room, stays},
    show::{self, PolicyLine},
    store::{Author, Document, Origin, now, seconds},
};

/// Documents of a plan.
const EDITS: usize = 256;
/// Bytes of a reason.
const REASON: usize = 4096;
/// Seconds within which a change can be asked to be confirmed.
const CONFIRM: std::ops::RangeInclusive<u64> = 1..=86_400;
/// Connections of a plan that are told one by one.
const CHANGES: usize = 1000;

pub(super) fn author(who: &Identity) -> Author {
    Author { uid: Some(who.uid), name: who.name.clone() }
}

pub(super) fn reason(text: String) -> Result<String, Problem> {
    if text.len() > REASON {
        return Err(Problem::fault(Kind::Malformed, "/reason", format!("a reason has at most {REASON} bytes")));
    }
    Ok(text)
}

pub(super) fn within(seconds: Option<u64>) -> Result<Option<u64>, Problem> {
    match seconds {
        Some(seconds) if !CONFIRM.contains(&seconds) => {
            Err(Problem::fault(Kind::Malformed, "/confirm_within", "1 to 86,400 seconds can be waited for"))
        }
        other => Ok(other),
    }
}

/// Why a change was not made.
pub(super) fn problem(error: PutError) -> Problem {
    let text = error.to_string();
    match error {
        PutError::Changed(changes) => {
            let errors = changes.into_iter().map(|message| Fault { message, ..Fault::default() }).collect();
            Problem { errors, ..Problem::new(Kind::Changed, "the plan does not hold any more; plan again") }
        }
        PutError::Invalid(found) => Problem::documents(&found, |_| String::new()),
        PutError::Node(_) => {
            Problem::new(Kind::Busy, format!("the node refused, what was in force is put back: {text}"))
        }
        PutError::Store(_) => Problem::new(Kind::Busy, format!("it cannot be written, so it was not made: {text}")),
        PutError::Pending { .. } | PutError::NotPending(_) => Problem::new(Kind::Conflict, text),
    }
}

/// What `edits` make of what holds over the files.
fn edited(basis: &Basis, edits: Vec<Edit>, who: &Identity) -> Result<Overlay, Problem> {
    if !(1..=EDITS).contains(&edits.len()) {
        return Err(Problem::fault(Kind::Malformed, "/documents", format!("a plan has 1 to {EDITS} documents")));
    }
    let mut overlay = basis.overlay.clone();
    let mut seen = BTreeSet::new();
    for (index, Edit { name, text }) in edits.into_iter().enumerate() {
        let pointer = format!("/documents/{index}/name");
        if !is_name(&name) {
            let why = "a name has 1 to 63 small letters, digits, `-`, `_` and `.`, a letter or digit first and last";
            return Err(Problem::fault(Kind::Malformed, pointer, why));
        }
        if !seen.insert(name.clone()) {
            return Err(Problem::fault(Kind::Malformed, pointer, format!("`{name}` is given twice")));
        }
        match text {
            // Who gave it stays the author of what is the same.
            Some(text) if overlay.documents.get(&name).is_some_and(|document| document.text == text) => {}
            Some(text) => _ = overlay.documents.insert(name, Document { text, author: author(who), time: seconds() }),
            None if overlay.documents.remove(&name).is_none() => {
                return Err(Problem::fault(
                    Kind::Malformed,
                    pointer,
                    format!("there is no document `{name}` to remove"),
                ));
            }
            None => {}
        }
    }
    Ok(overlay)
}

/// What a change of documents would do
///
/// Changes nothing. Documents that are not named stay as they are.
#[utoipa::path(
    post,
    path = "/v1/plan",
    tag = "changes",
    request_body = PlanRequest,
    responses(
        (status = 200, body = PlanBody),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "You may not change", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is no JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The documents cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Another one is being worked out", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn plan(
    State(app): State<App>,
    Applier(who): Applier,
    Body(request): Body<PlanRequest>,
) -> Answer<PlanBody> {
    let names: Vec<String> = request.documents.iter().map(|edit| file_name(&edit.name)).collect();
    let basis = app.changes.ask(|agent| agent.basis()).await?;
    let overlay = edited(&basis, request.documents, &who)?;
    let plan = app
        .changes
        .work(move || {
            let pointer = |file: &str| {
                let index = names.iter().position(|name| name == file);
                index.map(|index| format!("/documents/{index}/text")).unwrap_or_default()
            };
            make_plan(&basis, overlay, now()).map_err(|found| Problem::documents(&found, pointer))
        })
        .await?;
    let desired = plan.desired.clone();
    let rehearsed = app.changes.ask(move |agent| agent.rehearse(&desired)).await?;
    let rehearsal = rehearsed.map_err(|error| {
        let found = no_room(&error, &plan.desired, &plan.model, &stays(Some(plan.basis.revision)));
        problem(found.map_or(PutError::Node(error), PutError::Invalid))
    })?;
    let body = PlanBody {
        id: plan.id.clone(),
        revision: plan.basis.revision,
        expires: seconds() + LIFE.as_secs(),
        changes: plan.changes.iter().take(CHANGES).cloned().collect(),
        changes_total: plan.changes.len() as u64,
        writes: rehearsal.writes as u64,
        tables: rehearsal.tables.iter().map(Into::into).collect(),
        notes: plan.notes.0.iter().map(ToString::to_string).collect(),
    };
    app.plans.keep(plan);
    Ok(Json(body))
}

/// Put a plan in force
///
/// Fails with what changed if the world is not the one that was planned on.
#[utoipa::path(
    post,
    path = "/v1/apply",
    tag = "changes",
    request_body = ApplyRequest,
    responses(
        (status = 200, body = RevisionBody),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "You may not change", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such plan, or no longer", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another change waits to be confirmed", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "Something changed meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is no JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It does not fit", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn apply(
    State(app): State<App>,
    Applier(who): Applier,
    Body(request): Body<ApplyRequest>,
) -> Answer<RevisionBody> {
    let (reason, confirm_within) = (reason(request.reason)?, within(request.confirm_within)?);
    let Some(plan) = app.plans.get(&request.plan) else {
        let why = "there is no such plan, or no longer; plan again";
        return Err(Problem::fault(Kind::NotFound, "/plan", why));
    };
    let put = Put {
        overlay: plan.overlay,
        author: author(&who),
        origin: Origin::Api,
        reason,
        confirm_within: confirm_within.map(Duration::from_secs),
        basis: Some(plan.basis),
    };
    let done = app.changes.change(move |agent| agent.put(put)).await?;
    done.map(|head| Json((&head).into())).map_err(problem)
}

/// Files and documents in force
#[utoipa::path(
    get,
    path = "/v1/policies",
    tag = "policies",
    responses(
        (status = 200, body = Vec<PolicyBody>),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn list(State(app): State<App>, _: Identity) -> Answer<Vec<PolicyBody>> {
    let basis = app.handle.ask(|agent| agent.basis()).await?;
    let names = basis.revision.inputs.policies.keys();
    Ok(Json(names.filter_map(|name| body(&basis, name)).collect()))
}

fn etag(text: &str) -> String {
    format!("\"{}\"", digest(text))
}

/// What is in force under a name.
fn body(basis: &Basis, name: &str) -> Option<PolicyBody> {
    let inputs = &basis.revision.inputs;
    let text = inputs.policies.get(name)?;
    let document = document_name(name).and_then(|name| basis.overlay.documents.get(name));
    let source = match () {
        () if document_name(name).is_some() => PolicySource::Api,
        () if inputs.isolating.contains(name) => PolicySource::FileIsolating,
        () if basis.overlay.held.contains_key(name) => PolicySource::FileRolledBack,
        () => PolicySource::File,
    };
    Some(PolicyBody {
        name: name.to_owned(),
        source,
        etag: etag(text),
        text: text.clone(),
        author: document.map(|document| (&document.author).into()),
        time: document.map(|document| document.time),
    })
}

fn no_document(name: &str) -> Problem {
    Problem::new(Kind::NotFound, format!("no document `{name}` of the API is in force; files are not changed here"))
}

/// A document of the API
#[utoipa::path(
    get,
    path = "/v1/policies/{name}",
    tag = "policies",
    params(("name" = String, Path, description = "Its name, without `api/`")),
    responses(
        (status = 200, body = PolicyBody, headers(("ETag" = String, description = "For `If-Match`"))),
        (status = 400, description = "The name cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is none", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn get(
    State(app): State<App>,
    _: Identity,
    Within(name): Within<String>,
) -> Result<Response, Problem> {
    let basis = app.handle.ask(|agent| agent.basis()).await?;
    let body = body(&basis, &file_name(&name)).ok_or_else(|| no_document(&name))?;
    Ok((tag(&body.etag), Json(body)).into_response())
}

fn tag(etag: &str) -> [(HeaderName, HeaderValue); 1] {
    // Hexadecimal digits between quotes.
    [(header::ETAG, HeaderValue::from_str(etag).unwrap_or(HeaderValue::from_static("\"\"")))]
}

/// Whether what is there is what the request replaces (RFC 9110, section 13).
fn condition(headers: &HeaderMap, there: Option<&str>) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is = |list: &str, etag: &str| list.split(',').any(|one| one.trim() == etag || one.trim() == "*");
    let changed = |why: String| Err(Problem::new(Kind::Changed, why));
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH), there) {
        (None, None, _) => Err(Problem::new(
            Kind::Unconditional,
            "send `If-Match` with the document's ETag to replace it, or `If-None-Match: *` for a new one",
        )),
        (Some(_), _, None) => changed("there is no document of this name, or no longer".to_owned()),
        (Some(list), _, Some(etag)) if !is(list, etag) => {
            changed(format!("the document is another one by now, its ETag is {etag}"))
        }
        (_, Some(list), Some(etag)) if is(list, etag) => {
            changed(format!("a document of this name is there, its ETag is {etag}"))
        }
        _ => Ok(()),
    }
}

/// Puts one document, or removes it, on condition.
async fn edit(
    app: &App,
    who: &Identity,
    headers: &HeaderMap,
    name: String,
    text: Option<String>,
    reason: String,
) -> Result<RevisionBody, Problem> {
    let basis = app.changes.ask(|agent| agent.basis()).await?;
    let there = basis.overlay.documents.get(&name).map(|document| etag(&document.text));
    if text.is_none() && there.is_none() {
        return Err(no_document(&name));
    }
    let file = file_name(&name);
    let overlay = edited(&basis, vec![Edit { name, text }], who).map_err(|problem| Problem {
        // The name stands in the path.
        errors: problem.errors.into_iter().map(|fault| Fault { pointer: String::new(), ..fault }).collect(),
        ..problem
    })?;
    // A name that no document can have is no matter of conditions.
    condition(headers, there.as_deref())?;
    let put = Put {
        overlay,
        author: author(who),
        origin: Origin::Api,
        reason,
        confirm_within: None,
        basis: Some(basis.fingerprint),
    };
    let done = app.changes.change(move |agent| agent.put(put)).await?;
    let pointer = |place: &str| if place == file { "/text".to_owned() } else { String::new() };
    done.map(|head| (&head).into()).map_err(|error| match error {
        PutError::Invalid(found) => Problem::documents(&found, pointer),
        other => problem(other),
    })
}

/// Put a document in force at once
#[utoipa::path(
    put,
    path = "/v1/policies/{name}",
    tag = "policies",
    params(
        ("name" = String, Path, description = "Its name, without `api/`", min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"),
        ("If-Match" = Option<String>, Header, description = "ETag of the document that it replaces"),
        ("If-None-Match" = Option<String>, Header, description = "`*` for a new document")
    ),
    request_body = PolicyRequest,
    responses(
        (status = 200, body = RevisionBody, headers(("ETag" = String, description = "Of the document"))),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "You may not change", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another change waits to be confirmed", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "It is not what the request replaces", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is no JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The document cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 428, description = "The request does not say what it replaces", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn put(
    State(app): State<App>,
    Applier(who): Applier,
    Within(name): Within<String>,
    headers: HeaderMap,
    Body(request): Body<PolicyRequest>,
) -> Result<Response, Problem> {
    let reason = reason(request.reason)?;
    let etag = etag(&request.text);
    let revision = edit(&app, &who, &headers, name, Some(request.text), reason).await?;
    Ok((StatusCode::OK, tag(&etag), Json(revision)).into_response())
}

/// Remove a document at once
#[utoipa::path(
    delete,
    path = "/v1/policies/{name}",
    tag = "policies",
    params(
        ("name" = String, Path, description = "Its name, without `api/`"),
        ("If-Match" = Option<String>, Header, description = "ETag of the document")
    ),
    responses(
        (status = 200, body = RevisionBody),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "You may not change", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is none", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another change waits to be confirmed", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "It is not what the request removes", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Others need it", body = Problem, content_type = "application/problem+json"),
        (status = 428, description = "The request does not say what it removes", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn delete(
    State(app): State<App>,
    Applier(who): Applier,
    Within(name): Within<String>,
    headers: HeaderMap,
) -> Answer<RevisionBody> {
    edit(&app, &who, &headers, name, None, String::new()).await.map(Json)
}

/// Listed services and other policies in force, and whom they select
#[utoipa::path(
    get,
    path = "/v1/policy-lines",
    tag = "policies",
    responses(
        (status = 200, body = Vec<PolicyLine>),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn lines(State(app): State<App>, _: Identity) -> Answer<Vec<PolicyLine>> {
    let basis = app.handle.ask(|agent| agent.basis()).await?;
    Ok(Json(show::policies(&basis.revision, &basis.model)?))
}
