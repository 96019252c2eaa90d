//! What the agent says of itself.

use axum::{
    Json,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};

use super::{App, extract::Answer, identity::Identity, problem::Problem, types::StatusBody};

/// What the node enforces, and what is not well
#[utoipa::path(
    get,
    path = "/v1/status",
    tag = "node",
    responses(
        (status = 200, body = StatusBody),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn status(State(app): State<App>, _: Identity) -> Answer<StatusBody> {
    let (status, lost) = app.handle.look(|accounts| Ok((accounts.status()?, accounts.contacts()?.unsent))).await?;
    let report = app.handle.ask(move |agent| agent.report(status, lost)).await?;
    Ok(Json(report.into()))
}

/// Metrics in Prometheus's text format
#[utoipa::path(
    get,
    path = "/v1/metrics",
    tag = "node",
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn metrics(State(app): State<App>, _: Identity) -> Result<Response, Problem> {
    app.handle.metrics().await.map(text)
}

pub(super) fn text(text: String) -> Response {
    ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}
