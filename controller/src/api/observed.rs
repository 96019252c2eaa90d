//! What is on the node, and what was seen there.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use tokio::{sync::mpsc, time::timeout};

use super::{
    App,
    extract::Answer,
    identity::Identity,
    problem::{Kind, Problem},
};
use crate::{
    accounts::Accounts,
    control::Seen,
    show::{self, FlowLine, Names, News, Observation, RuleLine, ServiceLine, WorkloadLine},
};

/// How often the node is looked at while somebody follows.
const LOOK: Duration = Duration::from_millis(500);
/// Lines that wait for somebody who reads slowly.
const WAITING: usize = 256;
/// Longest wait until one more of them has room; then the stream ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Workloads, and whether those of this node are guarded
#[utoipa::path(
    get,
    path = "/v1/workloads",
    tag = "node",
    responses(
        (status = 200, body = Vec<WorkloadLine>),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn workloads(State(app): State<App>, _: Identity) -> Answer<Vec<WorkloadLine>> {
    let status = app.handle.look(Accounts::status).await?;
    let known = app.handle.ask(|agent| agent.known()).await?;
    Ok(Json(show::workloads(&known.model, &known.node, &status)))
}

/// Service addresses, and what they lead to
#[utoipa::path(
    get,
    path = "/v1/services",
    tag = "node",
    responses(
        (status = 200, body = Vec<ServiceLine>),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn services(State(app): State<App>, _: Identity) -> Answer<Vec<ServiceLine>> {
    let known = app.handle.ask(|agent| agent.known()).await?;
    Ok(Json(show::services(&known.model)))
}

/// Rules, where they are written and what they decided here
#[utoipa::path(
    get,
    path = "/v1/rules",
    tag = "node",
    responses(
        (status = 200, body = Vec<RuleLine>),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn rules(State(app): State<App>, _: Identity) -> Answer<Vec<RuleLine>> {
    let counters = app.handle.look(Accounts::counters).await?;
    let known = app.handle.ask(|agent| agent.known()).await?;
    Ok(Json(show::rules(&known.model, &counters)))
}

/// Flows in the tables
#[utoipa::path(
    get,
    path = "/v1/flows",
    tag = "node",
    responses(
        (status = 200, body = Vec<FlowLine>),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn flows(State(app): State<App>, _: Identity) -> Answer<Vec<FlowLine>> {
    let Seen { known, peers, flows, .. } = app.handle.seen().await?;
    let lines = move || show::flows(&Names::with(&known.model, peers.make()), &flows);
    app.handle.beside(lines).await.map(Json)
}

/// Flows that were allowed and samples of what was blocked, each with its reason and line
#[utoipa::path(
    get,
    path = "/v1/observations",
    tag = "node",
    responses(
        (status = 200, body = Vec<Observation>),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn observations(State(app): State<App>, _: Identity) -> Answer<Vec<Observation>> {
    let Seen { known, peers, flows, contacts } = app.handle.seen().await?;
    let lines = move || show::observations(&Names::with(&known.model, peers.make()), &flows, &contacts);
    app.handle.beside(lines).await.map(Json)
}

/// Passes a line on; `false` when nobody reads, or too slowly.
async fn pass(lines: &mpsc::Sender<Result<Bytes, Infallible>>, line: Bytes) -> bool {
    matches!(timeout(PATIENCE, lines.send(Ok(line))).await, Ok(Ok(())))
}

/// Lines of what of it is new.
fn told(news: Arc<Mutex<News>>, seen: Seen) -> impl FnOnce() -> Vec<Bytes> + Send + 'static {
    move || {
        let Seen { known, peers, flows, contacts } = seen;
        // What was told is told once more where somebody panicked.
        let mut news = news.lock().unwrap_or_else(PoisonError::into_inner);
        let found = news.of(&flows, &contacts, || Names::with(&known.model, peers.make()));
        let line = |observation: Observation| {
            let mut line = serde_json::to_vec(&observation).ok()?;
            line.push(b'\n');
            Some(Bytes::from(line))
        };
        found.into_iter().filter_map(line).collect()
    }
}

/// The same as it happens, a JSON object a line
///
/// A flow is told once, what is denied again and again each time it is seen. Ends when the client reads too slowly.
#[utoipa::path(
    get,
    path = "/v1/observations/stream",
    tag = "node",
    responses(
        (status = 200, body = Observation, content_type = "application/x-ndjson"),
        (status = 429, description = "As many follow already as may", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The agent has no time", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn stream(State(app): State<App>, _: Identity) -> Result<Response, Problem> {
    let Ok(place) = Arc::clone(&app.followers).try_acquire_owned() else {
        return Err(Problem::new(
            Kind::TooMany,
            "as many follow already as may; ask again, or look at /v1/observations",
        ));
    };
    let mut seen = Some(app.handle.seen().await?);
    let (lines, reader) = mpsc::channel::<Result<Bytes, Infallible>>(WAITING);
    tokio::spawn(async move {
        let _place = place;
        let news = Arc::new(Mutex::new(News::default()));
        loop {
            let told = match seen.take() {
                Some(seen) => app.handle.beside(told(Arc::clone(&news), seen)).await,
                None => Ok(Vec::new()),
            };
            for line in told.unwrap_or_default() {
                if !pass(&lines, line).await {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = lines.closed() => return,
            }
            match app.handle.seen().await {
                Ok(now) => seen = Some(now),
                // An agent that is busy has time again.
                Err(problem) if problem.status == 503 && !lines.is_closed() => {}
                Err(_) => return,
            }
        }
    });
    let body = Body::from_stream(futures_util::stream::unfold(reader, async |mut reader| {
        reader.recv().await.map(|line| (line, reader))
    }));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_too_slowly_is_not_waited_for() {
        let (lines, mut reader) = mpsc::channel(2);
        let start = Instant::now();
        assert!(pass(&lines, "1".into()).await && pass(&lines, "2".into()).await);
        assert!(!pass(&lines, "3".into()).await);
        assert_eq!(start.elapsed(), PATIENCE);

        // Slowly, but not too slowly.
        let slow = async {
            tokio::time::sleep(PATIENCE / 2).await;
            reader.recv().await
        };
        let (passed, read) = tokio::join!(pass(&lines, "4".into()), slow);
        assert!(passed && read == Some(Ok("1".into())));
        drop(reader);
        assert!(!pass(&lines, "5".into()).await);
    }
}
