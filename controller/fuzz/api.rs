//! What holds for any request to the API: no panic, an answer that its document tells of, and errors that are problems and point into the request.
//!
//! An input is one request or several, with a line `%%` between two: `METHOD PATH?QUERY`, lines of headers, an empty line, the body. `PLAN` in one stands
//! for the id of the plan before.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Method, Request, header},
};
use bulkhead_controller::{
    accounts::Accounts,
    adopt::Scope,
    agent::{Agent, Settings},
    api::{self, handle::Handle, identity::Identity, problem::Problem, types::PlanBody},
    control::{Basis, Control, Known, Put, PutError, Report, Standing},
    input::Locations,
    metrics::Health,
    peers::Unmade,
    run::Wake,
    store::{Author, Head},
};
use bulkhead_dataplane::{
    cni::protocol as plugin,
    desired::{Desired, Manner},
    memory::{Links, MemoryNode, MemoryStore},
    node::{MarkConflicts, NodeError, Rehearsal, Status},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};
use tower::ServiceExt as _;

const POLICY: &str = include_str!("../../policy-examples/shop.yaml");
const WORKLOADS: &str = include_str!("../../policy-examples/shop-workloads.yaml");

/// An agent that answers, and takes no change: each input finds the same one.
struct Frozen(Agent<MemoryNode>);

impl Control for Frozen {
    fn basis(&mut self) -> Basis {
        self.0.basis()
    }

    fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError> {
        self.0.rehearse(desired)
    }

    fn put(&mut self, _: Put) -> Result<Head, PutError> {
        Ok(self.0.basis().revision.head.clone())
    }

    fn confirm(&mut self, revision: u64, _: &Author) -> Result<Head, PutError> {
        Err(PutError::NotPending(revision))
    }

    fn attach(&mut self, requests: &[plugin::Request]) -> Vec<plugin::Answer> {
        self.0.attach(requests)
    }

    fn make_ready(&mut self) {
        self.0.make_ready();
    }

    fn forbidden(&mut self, _: &Author, _: &str) {}

    fn report(&mut self, status: Status, lost: u64) -> Report {
        self.0.report(status, lost)
    }

    fn standing(&mut self, texts: &BTreeMap<String, Arc<str>>) -> Standing {
        self.0.standing(texts)
    }

    fn known(&mut self) -> Known {
        self.0.known()
    }

    fn accounts(&mut self) -> Accounts {
        self.0.accounts()
    }

    fn peers(&mut self) -> Unmade {
        self.0.peers()
    }

    fn looked(&mut self, status: Result<Status, NodeError>) {
        self.0.looked(status);
    }

    fn take_marks(&mut self, found: Result<MarkConflicts, NodeError>) {
        self.0.take_marks(found);
    }

    fn health(&mut self) -> Health {
        Control::health(&mut self.0)
    }
}

/// The API of an agent, and what is needed to ask it.
pub(super) struct Api {
    routes: Option<Router>,
    document: Value,
    runtime: Option<Runtime>,
    agent: Option<JoinHandle<()>>,
    _directory: TempDir,
}

fn agent(directory: &Path) -> Frozen {
    let path = |name: &str| directory.join(name);
    for name in ["policies", "state"] {
        fs::create_dir(path(name)).expect("a new directory");
    }
    fs::write(path("policies/shop.yaml"), POLICY).expect("a new file");
    fs::write(path("workloads.yaml"), WORKLOADS).expect("a new file");
    let locations = Locations { policies: path("policies"), workloads: path("workloads.yaml") };
    let settings = Settings {
        source: Arc::new(locations),
        node: "n1".to_owned(),
        state: path("state"),
        manner: Manner::default(),
        cni: None,
        scope: Scope::default(),
    };
    let node = MemoryNode::open(MemoryStore::default(), Links::default(), &path("state")).expect("a node in memory");
    Frozen(Agent::start(node, settings).expect("policies to copy"))
}

impl Api {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a place for files");
        let mut agent = agent(directory.path());
        let (waker, wake) = mpsc::channel();
        let identity = Identity { uid: 4242, name: "somebody".to_owned(), applies: true };
        let routes = api::routes(Handle::new(waker), &directory.path().join("state"));
        let agent = thread::spawn(move || {
            for wake in wake {
                if let Wake::Ask(ask) = wake {
                    ask(&mut agent);
                }
            }
        });
        Self {
            routes: Some(routes.layer(axum::Extension(identity))),
            document: serde_json::to_value(api::document()).expect("plain data"),
            runtime: Some(runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")),
            agent: Some(agent),
            _directory: directory,
        }
    }

    /// Sends what an input says. Says how often that was a request, and was answered with success.
    pub(super) fn check(&self, data: &[u8]) -> (usize, usize) {
        let Ok(text) = std::str::from_utf8(data) else { return (0, 0) };
        let (mut sent, mut good) = (0, 0);
        let mut plan = String::new();
        for part in text.split("\n%%\n") {
            let part = if plan.is_empty() { part.to_owned() } else { part.replace("PLAN", &plan) };
            let Some((request, body)) = request(&part) else { continue };
            sent += 1;
            let (success, id) = self.send(request, body);
            good += usize::from(success);
            plan = id.unwrap_or(plan);
        }
        (sent, good)
    }

    fn send(&self, request: Request<Body>, sent: &str) -> (bool, Option<String>) {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (Some(routes), Some(runtime)) = (&self.routes, &self.runtime) else { return (false, None) };
        let (parts, body) = runtime.block_on(async {
            let (parts, body) = routes.clone().oneshot(request).await.expect("it always answers").into_parts();
            // The stream goes on.
            let stream = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-ndjson");
            let body = if stream { None } else { Some(to_bytes(body, usize::MAX).await.expect("a whole body")) };
            (parts, body.unwrap_or_default())
        });
        let status = parts.status.as_u16();
        let what = || format!("{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        assert!(self.tells_of(&method, &path, status), "the document does not tell of {}", what());
        if parts.status.is_success() {
            let id = (path == "/v1/plan").then(|| serde_json::from_slice::<PlanBody>(&body));
            return (true, id.map(|plan| plan.unwrap_or_else(|error| panic!("{error}: {}", what())).id));
        }
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        assert_eq!(kind, Some("application/problem+json"), "{}", what());
        if method != Method::HEAD {
            let problem: Problem = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {}", what()));
            assert!(problem.status == status && !problem.detail.is_empty(), "{}", what());
            // Into what is no JSON nothing can point.
            if let Ok(sent) = serde_json::from_str::<Value>(sent) {
                for fault in &problem.errors {
                    assert!(sent.pointer(&fault.pointer).is_some(), "{:?} points nowhere: {}", fault.pointer, what());
                }
            }
        }
        (false, None)
    }

    /// Whether the document tells of such an answer; of what it does not know only that it is not there.
    fn tells_of(&self, method: &Method, path: &str, status: u16) -> bool {
        let is = |template: &str| {
            let (written, asked) = (template.split('/'), path.split('/'));
            written.clone().count() == asked.clone().count()
                // Nothing is called by an empty name.
                && written.zip(asked).all(|(written, asked)| {
                    written == asked || (written.starts_with('{') && !asked.is_empty())
                })
        };
        let Some(paths) = self.document["paths"].as_object() else { return false };
        // Methods are told apart by case (RFC 9110, 9.1): `post` is none.
        let name = method.as_str();
        let name = if name == name.to_ascii_uppercase() { name.to_ascii_lowercase() } else { String::new() };
        match paths.iter().find(|(template, _)| is(template)).map(|(_, path)| path.get(&name)) {
            Some(Some(operation)) => operation["responses"].get(status.to_string()).is_some(),
            Some(None) => status == 405 || *method == Method::HEAD,
            None => status == 404 || path == "/v1/openapi.json",
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // Whoever could ask the agent goes first; then it ends.
        self.routes = None;
        self.runtime = None;
        let ended = self.agent.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(ended.is_some_and(|ended| ended.is_ok()), "the agent has panicked");
        }
    }
}

/// A request as it is written, and its body; `None` when that is none.
fn request(text: &str) -> Option<(Request<Body>, &str)> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, target) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, "bulkhead");
    let mut json = true;
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        json &= !name.eq_ignore_ascii_case("content-type");
        request = request.header(name, value);
    }
    if json {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    Some((request.body(Body::from(body.to_owned())).ok()?, body))
}
