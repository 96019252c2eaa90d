//! An agent at work that serves its API, and what the tests say to it.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
    thread::{self, JoinHandle},
};

use bulkhead_controller::{
    agent::Agent,
    api::{
        self,
        handle::Handle,
        identity::{Appliers, Identity},
        server::Socket,
        types::{PlanBody, PolicyBody, PolicySource, RevisionBody, StatusBody},
    },
    run::{Api, Life, Stopper},
};
use bulkhead_dataplane::node::Node;
use serde_json::{Value, json};

use crate::{
    client::Client,
    home::{Home, WORKLOADS},
};

/// A policy for `cart`, which is in no file: it may call `db` and nobody else.
pub(crate) const CART: &str = "apiVersion: bulkhead/v1
kind: Intent
namespace: shop
services:
  cart: { calls: [db:5432] }
";

/// A node whose policies leave one workload to the API.
pub(crate) fn home() -> Home {
    let home = Home::new();
    let cart = "  - { name: cart-1, namespace: shop, labels: { app: cart }, node: n1, endpoints: [{ addresses: [10.0.0.3], link: veth-cart }] }\n";
    home.write("workloads.yaml", &format!("{WORKLOADS}{cart}"));
    home
}

/// Variable with the socket at which a child asks, as somebody else.
pub(crate) const SOCKET: &str = "BULKHEAD_API_SOCKET";
/// `nobody` and `nogroup`, whether the machine has names for them or not.
pub(crate) const NOBODY: u32 = 65534;

/// This program once more as nobody, for a test that finds [`SOCKET`] set then.
pub(crate) fn nobody(test: &str, socket: &Path) -> Command {
    // By this path the program can be run by who may not enter the directories above it.
    let mut child = Command::new("/proc/self/exe");
    child.args(["--exact", test, "--nocapture"]).env(SOCKET, socket).uid(NOBODY).gid(NOBODY);
    child
}

/// Lets nobody come as far as the socket.
pub(crate) fn enterable(home: &Home) {
    fs::set_permissions(home.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

/// A running agent. Dropping it stops it, as SIGTERM does.
pub(crate) struct Served {
    /// A client with the rights of this process.
    pub(crate) client: Client,
    /// How the API reaches the agent.
    pub(crate) handle: Handle,
    /// Where metrics and health are served, on all addresses of this machine.
    pub(crate) open: u16,
    stopper: Stopper,
    worker: Option<JoinHandle<()>>,
}

impl Served {
    pub(crate) fn new(home: &Home) -> Self {
        Self::with(home, home.agent(), None, Appliers::default())
    }

    /// With an agent of its own, for a group and users that may change.
    pub(crate) fn with<N: Node + Send + 'static>(
        home: &Home,
        mut agent: Agent<N>,
        group: Option<u32>,
        appliers: Appliers,
    ) -> Self {
        let path = home.path("run/api.sock");
        let socket = Socket::bind(&path, group).unwrap();
        let life =
            Life::new(Some(([0, 0, 0, 0], 0).into())).unwrap().api(Api { socket, appliers, state: home.state() });
        let (handle, stopper, locations) = (life.handle(), life.stopper(), home.locations());
        let open = life.address().unwrap().port();
        let worker = thread::spawn(move || life.run(&mut agent, &locations).unwrap());
        Self { client: Client::Socket(path), handle, open, stopper, worker: Some(worker) }
    }

    /// A client that is somebody else.
    pub(crate) fn somebody(&self, home: &Home, name: &str, uid: u32, applies: bool) -> Client {
        let identity = Identity { uid, name: name.to_owned(), applies };
        Client::Router(api::routes(self.handle.clone(), &home.state()), identity)
    }

    /// The plan of a change of documents, each with its text or `None` to remove it.
    #[track_caller]
    pub(crate) fn plan(&self, documents: &[(&str, Option<&str>)]) -> PlanBody {
        self.client.post("/v1/plan", &edits(documents)).ok()
    }

    /// Plans and applies.
    #[track_caller]
    pub(crate) fn apply(&self, documents: &[(&str, Option<&str>)]) -> RevisionBody {
        let plan = self.plan(documents);
        self.client.post("/v1/apply", &json!({ "plan": plan.id })).ok()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> StatusBody {
        self.client.get("/v1/status").ok()
    }

    #[track_caller]
    pub(crate) fn policies(&self) -> Vec<PolicyBody> {
        self.client.get("/v1/policies").ok()
    }

    /// The source of a policy, `None` where there is none of this name.
    #[track_caller]
    pub(crate) fn source(&self, name: &str) -> Option<PolicySource> {
        self.policies().into_iter().find(|policy| policy.name == name).map(|policy| policy.source)
    }

    /// Whether `cart` may call `db` by what is in force.
    #[track_caller]
    pub(crate) fn cart_calls_db(&self) -> bool {
        let question = json!({ "from": "shop/cart-1", "to": "shop/db-1", "port": "5432/tcp" });
        let answer: Value = self.client.post("/v1/explain", &question).ok();
        answer["allow"].as_bool().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
        let ended = self.worker.take().map(JoinHandle::join);
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// The body of a plan.
pub(crate) fn edits(documents: &[(&str, Option<&str>)]) -> Value {
    let documents: Vec<_> = documents.iter().map(|(name, text)| json!({ "name": name, "text": text })).collect();
    json!({ "documents": documents })
}

/// Records of the audit log whose action begins so: who, action, outcome, revisions before and after.
pub(crate) fn audited(home: &Home, action: &str) -> Vec<(String, String, String, Option<u64>, Option<u64>)> {
    let text = fs::read_to_string(home.state().join("audit.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let records = records.map(|record| {
        let revisions = (record["revision_before"].as_u64(), record["revision_after"].as_u64());
        let who = text(&record["actor"]["name"]);
        (who, text(&record["action"]), text(&record["outcome"]), revisions.0, revisions.1)
    });
    records.filter(|record| record.1.starts_with(action)).collect()
}
