//! Statuses of Intents and Guards.
//!
//! Each agent tells in a lease of its own what is in force on its node. One of them, whoever holds another lease, reads these and writes the status of
//! each object that stands otherwise than its status says. None of it is on the way from a policy to the kernel: the agent is asked, and what does not
//! answer is asked again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_dataplane::causes::causes;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    Shared,
    conditions::{self, OnNode},
    events::Events,
    kinds::KINDS,
    lease::{Leases, Peer},
    report::{Objects, Report, Stands, everywhere, reasons},
    roster::Object,
};
use crate::{api::handle::Handle, control::Standing};

/// How often an agent shows that it is there, at least; of many agents each does it less often.
pub(super) const BEAT: Duration = Duration::from_secs(10);
const BEAT_OF_A_NODE: Duration = Duration::from_millis(100);
/// It is taken for silent after so many of these without one.
const BEATS: u32 = 3;
/// What is new is told within this time, and of many agents within a time that leaves the server room.
const SOON: Duration = Duration::from_millis(200);
const SOON_OF_A_NODE: Duration = Duration::from_millis(5);
/// How often the agent that writes statuses looks: while something is to come, and else.
const LOOK: Duration = Duration::from_secs(1);
const CALM: Duration = Duration::from_secs(5);
/// Statuses that are written with one look.
const WRITES: usize = 50;
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it is waited when rights are missing.
pub(super) const FORBIDDEN: Duration = Duration::from_secs(300);

/// On which nodes an edition of an object was in force.
type Seen = BTreeMap<String, (i64, BTreeSet<String>)>;

/// Who tells, and writes.
pub(super) struct Statuses {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Client,
    pub(super) handle: Handle,
    pub(super) leases: Leases,
    pub(super) events: Events,
    pub(super) node: String,
    told: Option<(Report, Instant)>,
    /// Since when this agent writes statuses.
    writing: Option<Instant>,
    /// When the lease for that was looked at.
    looked: Option<Instant>,
    seen: Seen,
    /// Whose status the server refused, and when it did last.
    denied: BTreeMap<String, Instant>,
}

impl Statuses {
    pub(super) fn new(shared: Arc<Shared>, client: Client, handle: Handle, namespace: &str, node: &str) -> Self {
        let leases = Leases::new(client.clone(), namespace, node);
        let events = Events::new(client.clone(), node);
        let node = node.to_owned();
        Self {
            shared,
            client,
            handle,
            leases,
            events,
            node,
            told: None,
            writing: None,
            looked: None,
            seen: Seen::new(),
            denied: BTreeMap::new(),
        }
    }

    /// Tells and writes for ever.
    pub(super) async fn follow(mut self) {
        let mut warned = false;
        loop {
            let wait = match self.turn().await {
                Ok(wait) => wait,
                Err(error) if is_forbidden(&error) => {
                    if !warned {
                        tracing::warn!("statuses of Intents and Guards are not written, a right is missing: {error}");
                    }
                    warned = true;
                    (self.told, self.writing) = (None, None);
                    FORBIDDEN
                }
                Err(error) => {
                    tracing::debug!("statuses: {}", causes(&error));
                    BEAT
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait.mul_f64(fastrand::f64().mul_add(0.2, 0.8))) => {}
                () = self.shared.news.notified(), if wait < FORBIDDEN => {
                    let nodes = u32::try_from(self.shared.roster().nodes().len()).unwrap_or(u32::MAX);
                    tokio::time::sleep((SOON + SOON_OF_A_NODE * nodes).mul_f64(fastrand::f64())).await;
                }
            }
        }
    }

    /// Tells once, and writes what is to be written. How long it may be waited after that.
    async fn turn(&mut self) -> Result<Duration, Error> {
        let (objects, nodes) = {
            let roster = self.shared.roster();
            (roster.objects(), roster.nodes())
        };
        let texts: BTreeMap<_, _> =
            objects.iter().map(|(name, object)| (name.clone(), Arc::clone(&object.text))).collect();
        // Without an answer nothing is known.
        let Ok(standing) = self.handle.ask(move |agent| agent.standing(&texts)).await else { return Ok(LOOK) };
        if objects.is_empty() && standing.found.0.is_empty() {
            (self.told, self.writing, self.looked) = (None, None, None);
            return Ok(BEAT);
        }
        let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let beat = BEAT.max(BEAT_OF_A_NODE * count);
        let report = Report::new(&objects, &standing);
        if self.told.as_ref().is_none_or(|(told, at)| *told != report || at.elapsed() >= beat) {
            within(self.leases.tell(&report, nodes.get(&self.node), beat * BEATS)).await?;
            self.told = Some((report.clone(), Instant::now()));
        }
        let patience = if self.writing.is_some() { BEAT } else { beat };
        if self.looked.is_none_or(|at| at.elapsed() >= patience) {
            let writes = within(self.leases.writes()).await?;
            self.writing = writes.then(|| self.writing.unwrap_or_else(Instant::now));
            self.looked = Some(Instant::now());
        }
        let settled = match self.writing {
            // Others tell at the same time as this one, when there is something to tell for the first time.
            Some(since) if since.elapsed() < (SOON + SOON_OF_A_NODE * count) * 2 + LOOK * 3 => false,
            Some(since) => {
                let is_new = since.elapsed() < beat * 2;
                let settled = self.write(&objects, &nodes, &standing, is_new).await?;
                self.events.refused(&standing.found).await;
                settled
            }
            None => {
                self.seen.clear();
                !report.waits()
            }
        };
        Ok(match (settled, self.writing) {
            (false, _) => LOOK,
            (true, Some(_)) => CALM,
            (true, None) => beat,
        })
    }

    /// Writes statuses that are other than they should be. Whether that is all for now.
    async fn write(
        &mut self,
        objects: &Objects,
        nodes: &BTreeMap<String, String>,
        standing: &Standing,
        is_new: bool,
    ) -> Result<bool, Error> {
        let mut peers = within(self.leases.peers()).await?;
        peers.retain(|node, _| nodes.contains_key(node));
        let stand: BTreeMap<&String, BTreeMap<String, Stands>> =
            peers.iter().map(|(node, peer)| (node, peer.report.stand(objects))).collect();
        let exists = |uid: &String| objects.values().any(|object| object.uid == *uid);
        self.seen.retain(|uid, _| exists(uid));
        self.denied.retain(|uid, _| exists(uid));
        let (mut settled, mut left) = (true, WRITES);
        for (name, object) in objects {
            let is_refused = !reasons(name, &standing.found).is_empty();
            // What is wrong for this node alone is told of it, as others tell theirs: it is no reason for all of them.
            let refused = reasons(name, &everywhere(name, &standing.found));
            let differs = standing.differ.contains(name);
            // This agent has not come to it.
            if differs && !is_refused && standing.refused.is_empty() && standing.failed.is_empty() {
                settled = false;
                continue;
            }
            let on_nodes = remember(&mut self.seen, object, &peers, &stand);
            let is_known = on_nodes.iter().all(|node| node.stands != Some(Stands::Unknown));
            let is_said = object.status["observedGeneration"] == object.generation;
            settled &= is_known && on_nodes.iter().all(|node| node.stands != Some(Stands::Waiting));
            // What the agent before this one knew is not taken back because this one does not know it yet.
            if is_new && is_said && !is_known {
                continue;
            }
            let refused = (differs && !refused.is_empty()).then_some(refused.as_str());
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            if let Some(status) = conditions::status(object, refused, &on_nodes, &now)
                && self.denied.get(&object.uid).is_none_or(|at| at.elapsed() >= FORBIDDEN)
            {
                if left == 0 {
                    return Ok(false);
                }
                left -= 1;
                self.patch(object, &status).await?;
            }
        }
        Ok(settled)
    }

    /// Where the server refuses it, others need not wait for that.
    async fn patch(&mut self, object: &Object, status: &serde_json::Value) -> Result<(), Error> {
        let resource = KINDS[object.kind].resource();
        let api: Api<DynamicObject> = match object.key.namespace.as_str() {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        // Not of another object that has the name by now.
        let patch = json!({ "metadata": { "uid": object.uid }, "status": status });
        let written = within(api.patch_status(&object.key.name, &PatchParams::default(), &Patch::Merge(&patch))).await;
        match written {
            Ok(_) => {
                self.denied.remove(&object.uid);
                self.shared.roster().say(object, status);
            }
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            // What is refused of this object. A server that asks for patience, or for who asks, means all of them.
            Err(Error::Api(refusal)) if matches!(refusal.code, 400 | 403 | 422) => {
                if self.denied.is_empty() {
                    tracing::warn!(object = %object.key, "its status is not written, the server refuses that: {refusal}");
                }
                self.denied.insert(object.uid.clone(), Instant::now());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// How an object stands on each node. An agent that speaks of other objects than are known here, as it does while one is new, has not taken back what
/// it said of this one: it would list it.
fn remember<'a>(
    seen: &mut Seen,
    object: &Object,
    peers: &'a BTreeMap<String, Peer>,
    stand: &BTreeMap<&String, BTreeMap<String, Stands>>,
) -> Vec<OnNode<'a>> {
    let (generation, there) = seen.entry(object.uid.clone()).or_default();
    if *generation != object.generation {
        (*generation, *there) = (object.generation, BTreeSet::new());
    }
    let mut on_nodes = Vec::new();
    for (node, peer) in peers {
        let told = stand.get(node).and_then(|stand| stand.get(&object.uid)).cloned().unwrap_or(Stands::Unknown);
        let told = match told {
            Stands::Unknown if peer.report.is_whole() && there.contains(node) => Stands::Published,
            told => told,
        };
        match told {
            Stands::Published => _ = there.insert(node.clone()),
            Stands::Refused(_) | Stands::Waiting => _ = there.remove(node),
            Stands::Unknown => {}
        }
        let stands = (!peer.silent).then_some(told);
        on_nodes.push(OnNode { node, stands, failed: &peer.report.failed, observe: peer.report.observe });
    }
    on_nodes
}

pub(super) async fn within<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match timeout(ANSWER, asked).await {
        Ok(answered) => answered,
        Err(_) => Err(Error::Service("the API server does not answer".into())),
    }
}

pub(super) fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 403)
}
