//! Who may call whom, and why.

use axum::{Json, extract::State};

use super::{
    App,
    extract::{Answer, Body},
    identity::Identity,
    problem::{Kind, Problem},
    types::{Connectivity, ExplainRequest},
};
use crate::{
    explain::{Explained, Question, Who, explain as answer, parse_point},
    simulate::{Simulation, text},
    store::now,
};

/// Whether a connection is allowed, by which rules, and what is missing
#[utoipa::path(
    post,
    path = "/v1/explain",
    tag = "questions",
    request_body = ExplainRequest,
    responses(
        (status = 200, body = Explained),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is no JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "There is no such workload or port", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Another one is being worked out", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn explain(
    State(app): State<App>,
    _: Identity,
    Body(request): Body<ExplainRequest>,
) -> Answer<Explained> {
    let Some((class, value)) = parse_point(&request.port) else {
        let why = format!("`{}` is not one port: write `5432/tcp`, `53/udp`, `echo/icmp` or `proto/89`", request.port);
        return Err(Problem::fault(Kind::Invalid, "/port", why));
    };
    let basis = app.handle.ask(|agent| agent.basis()).await?;
    let work = move || {
        let simulation = Simulation::new(&basis.model, now())?;
        let who = |text: &str, pointer| {
            Who::parse(&simulation, text).map_err(|found| Problem::fault(Kind::Invalid, pointer, found.to_string()))
        };
        let (from, to) = (who(&request.from, "/from")?, who(&request.to, "/to")?);
        let question = Question { from: from.party(), to: to.party(), class, value };
        Ok(answer(&basis.model, question, now())?.json(&basis.model))
    };
    app.handle.work(work).await.map(Json)
}

/// All that the revision in force allows
#[utoipa::path(
    get,
    path = "/v1/simulate",
    tag = "questions",
    responses(
        (status = 200, body = Connectivity),
        (status = 429, description = "Another one is being worked out", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn simulate(State(app): State<App>, _: Identity) -> Answer<Connectivity> {
    let basis = app.handle.ask(|agent| agent.basis()).await?;
    let work = move || {
        let simulation = Simulation::new(&basis.model, now())?;
        let connections = text::json(&simulation.connections());
        Ok(Connectivity { revision: basis.revision.head.number, connections })
    };
    app.handle.work(work).await.map(Json)
}
