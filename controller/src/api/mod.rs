//! The agent's HTTP API: on a unix socket for those who are known by it, and metrics and health on an address for everybody.
//!
//! Handlers run on a thread of their own. What concerns the agent is asked of it one question at a time ([`handle`]); what takes long (plans,
//! simulations) is worked out beside it, from copies; the history is read from the database.

mod extract;
pub mod handle;
pub mod identity;
mod observed;
mod plans;
mod policies;
pub mod problem;
mod questions;
mod revisions;
pub mod server;
mod status;
pub mod types;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    BoxError, Json, Router,
    error_handling::HandleErrorLayer,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{sync::Semaphore, time::timeout};
use tower::{ServiceBuilder, timeout::TimeoutLayer};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    handle::{Handle, PATIENCE},
    identity::Told,
    plans::Plans,
    problem::{Fault, Kind, Problem},
};

/// Longest body that is read: as long as the longest policy file.
const BODY: usize = 4 << 20;
/// Longest time for a request, its body included.
const REQUEST: Duration = Duration::from_secs(90);
/// Who may follow what happens at once: for each the node is looked at again and again.
const FOLLOWERS: usize = 16;

/// Questions of those who may apply that may wait for the agent at once, and of those who probe it: who reads cannot take these places away.
const APPLYING: usize = 16;
const PROBING: usize = 64;
/// Questions of the one scrape that is answered at a time. It asks one after the other, and has each place a moment longer than its answer.
const SCRAPING: usize = 4;

/// What handlers share.
#[derive(Clone)]
pub(crate) struct App {
    handle: Handle,
    /// For those who may apply.
    changes: Handle,
    plans: Plans,
    told: Told,
    followers: Arc<Semaphore>,
    state: PathBuf,
}

/// The API's document, without its paths.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Bulkhead agent",
        description = "What a node enforces: policies, revisions, plans, flows. Served on a unix socket. Who may connect may read; root and the users of `--apply-uid` may change. Errors are problems (RFC 9457)."
    ),
    components(schemas(Problem, Fault)),
    tags(
        (name = "policies", description = "Documents in force, from the directory and from here"),
        (name = "changes", description = "Plan, apply, roll back, confirm"),
        (name = "questions", description = "Who may call whom, and why"),
        (name = "node", description = "What the node does and has seen"),
    )
)]
struct Document;

fn router() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status::status))
        .routes(routes!(status::metrics))
        .routes(routes!(policies::list))
        .routes(routes!(policies::get, policies::put, policies::delete))
        .routes(routes!(policies::lines))
        .routes(routes!(revisions::list))
        .routes(routes!(revisions::get))
        .routes(routes!(revisions::confirm))
        .routes(routes!(policies::plan))
        .routes(routes!(policies::apply))
        .routes(routes!(revisions::rollback))
        .routes(routes!(questions::explain))
        .routes(routes!(questions::simulate))
        .routes(routes!(observed::workloads))
        .routes(routes!(observed::services))
        .routes(routes!(observed::rules))
        .routes(routes!(observed::flows))
        .routes(routes!(observed::observations))
        .routes(routes!(observed::stream))
}

/// The OpenAPI document.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    router().into_openapi()
}

/// All paths of the API. Each request must carry an [`identity::Identity`] among its extensions.
pub fn routes(handle: Handle, state: &Path) -> Router {
    let followers = Arc::new(Semaphore::new(FOLLOWERS));
    let changes = handle.apart(APPLYING);
    let app =
        App { handle, changes, plans: Plans::default(), told: Told::default(), followers, state: state.to_owned() };
    let (routes, document) = router().split_for_parts();
    let late = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(|_: BoxError| async {
            Problem::new(Kind::Busy, "the request took too long; a change may still be made: look at /v1/revisions")
        }))
        .layer(TimeoutLayer::new(REQUEST));
    routes
        .route("/v1/openapi.json", get(async move || Json(document)))
        .fallback(async || Problem::new(Kind::NotFound, "GET /v1/openapi.json lists what there is"))
        .method_not_allowed_fallback(async || Problem::new(Kind::Method, "GET /v1/openapi.json lists what there is"))
        .layer(DefaultBodyLimit::max(BODY))
        .layer(late)
        .with_state(app)
}

/// Metrics and health, for everybody who reaches the address.
pub fn open_routes(handle: &Handle) -> Router {
    let scrapes = Scrapes { handle: handle.apart(SCRAPING), one: Arc::new(Semaphore::new(1)) };
    let scraped = Router::new().route("/metrics", get(scrape)).with_state(scrapes);
    let probed = Router::new().route("/healthz", get(healthy)).route("/readyz", get(ready));
    scraped.merge(probed.with_state(handle.apart(PROBING)))
}

/// Scrapes, one at a time: to read all tables takes long.
#[derive(Clone)]
struct Scrapes {
    handle: Handle,
    one: Arc<Semaphore>,
}

async fn scrape(State(Scrapes { handle, one }): State<Scrapes>) -> Response {
    let Ok(Ok(_place)) = timeout(PATIENCE, one.acquire()).await else {
        return Problem::new(Kind::Busy, "others are reading metrics; ask again").into_response();
    };
    match handle.metrics().await {
        Ok(text) => status::text(text),
        Err(problem) => problem.into_response(),
    }
}

/// Whether the agent answers.
async fn healthy(State(handle): State<Handle>) -> Response {
    match handle.ask(|agent| agent.health()).await {
        Ok(_) => (StatusCode::OK, "ok\n").into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// Whether what is in force is published and guards every endpoint of this node.
async fn ready(State(handle): State<Handle>) -> Response {
    match handle.ask(|agent| agent.health()).await {
        Ok(health) => match health.unready() {
            Some(why) => Problem::new(Kind::Busy, why).into_response(),
            None => (StatusCode::OK, format!("revision {}\n", health.revision)).into_response(),
        },
        Err(problem) => problem.into_response(),
    }
}
