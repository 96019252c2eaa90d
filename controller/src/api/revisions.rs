//! The history, and going back.

use std::time::Duration;

use axum::{Json, extract::State};

use super::{
    App,
    extract::{Answer, Asked, Body, Within},
    identity::{Applier, Identity},
    policies::{author, problem, reason, within},
    problem::{Kind, Problem},
    types::{Page, RevisionBody, RollbackRequest, TextBody, WholeRevision},
};
use crate::{
    control::Put,
    overlay::Overlay,
    store::{Origin, Reader, Revision, StoreError},
};

impl App {
    /// Reads the database beside the agent.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let state = self.state.clone();
        let done = tokio::task::spawn_blocking(move || {
            // An agent that answers has one.
            Reader::open(&state)?.map(|reader| read(&reader)).transpose()
        });
        let done = done.await.map_err(|error| Problem::new(Kind::Internal, format!("it ended early: {error}")))?;
        let found = done.map_err(|error| Problem::new(Kind::Internal, error.to_string()))?;
        found.ok_or_else(|| Problem::new(Kind::Internal, "the database is gone"))
    }

    async fn revision(&self, number: u64) -> Result<Revision, Problem> {
        let found = self.read(move |reader| reader.revision(number)).await?;
        found.ok_or_else(|| Problem::new(Kind::NotFound, format!("there is no revision {number}, or no longer")))
    }
}

/// Revisions, the newest first
#[utoipa::path(
    get,
    path = "/v1/revisions",
    tag = "changes",
    params(Page),
    responses(
        (status = 200, body = Vec<RevisionBody>),
        (status = 400, description = "A parameter cannot be read", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn list(State(app): State<App>, _: Identity, Asked(page): Asked<Page>) -> Answer<Vec<RevisionBody>> {
    if !(1..=1000).contains(&page.limit) {
        return Err(Problem::new(Kind::Malformed, "`limit` is 1 to 1000"));
    }
    let heads = app.read(move |reader| reader.revisions(page.limit.into(), page.before)).await?;
    Ok(Json(heads.iter().map(Into::into).collect()))
}

/// A revision with all that people wrote
#[utoipa::path(
    get,
    path = "/v1/revisions/{number}",
    tag = "changes",
    params(("number" = u64, Path, minimum = 1)),
    responses(
        (status = 200, body = WholeRevision),
        (status = 400, description = "The number cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "It is not there, or no longer", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn get(State(app): State<App>, _: Identity, Within(number): Within<u64>) -> Answer<WholeRevision> {
    let Revision { head, inputs, .. } = app.revision(number).await?;
    let text = |(name, text)| TextBody { name, text };
    Ok(Json(WholeRevision {
        revision: (&head).into(),
        policies: inputs.policies.into_iter().map(text).collect(),
        workloads: text(inputs.workloads),
    }))
}

/// Say that a revision that waits to be confirmed is good
#[utoipa::path(
    post,
    path = "/v1/revisions/{number}/confirm",
    tag = "changes",
    params(("number" = u64, Path, minimum = 1)),
    responses(
        (status = 200, body = RevisionBody),
        (status = 400, description = "The number cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "You may not change", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It does not wait", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn confirm(
    State(app): State<App>,
    Applier(who): Applier,
    Within(number): Within<u64>,
) -> Answer<RevisionBody> {
    let by = author(&who);
    let confirmed = app.changes.change(move |agent| agent.confirm(number, &by)).await?;
    confirmed.map(|head| Json((&head).into())).map_err(problem)
}

/// Go back to a revision
///
/// Its policies are put in force again as a new revision; workloads stay as they are. Files of the directory that are other now are held back until
/// somebody changes them.
#[utoipa::path(
    post,
    path = "/v1/rollback",
    tag = "changes",
    request_body = RollbackRequest,
    responses(
        (status = 200, body = RevisionBody),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "You may not change", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such revision", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It never was in force, or another change waits to be confirmed", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "Something changed meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is no JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It cannot be used any more", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn rollback(
    State(app): State<App>,
    Applier(who): Applier,
    Body(request): Body<RollbackRequest>,
) -> Answer<RevisionBody> {
    let (reason, confirm_within) = (reason(request.reason)?, within(request.confirm_within)?);
    let to = app.revision(request.revision).await?;
    if !to.head.took_effect {
        let why = format!("revision {} never was in force", to.head.number);
        return Err(Problem::fault(Kind::Conflict, "/revision", why));
    }
    let basis = app.changes.ask(|agent| agent.basis()).await?;
    let put = Put {
        overlay: Overlay::back_to(&to.inputs, &to.documents, &basis.files),
        author: author(&who),
        origin: Origin::Rollback { of: to.head.number },
        reason,
        confirm_within: confirm_within.map(Duration::from_secs),
        basis: Some(basis.fingerprint),
    };
    let done = app.changes.change(move |agent| agent.put(put)).await?;
    done.map(|head| Json((&head).into())).map_err(problem)
}
