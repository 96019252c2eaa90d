//! What is blocked of a pod, as events on the pod.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bulkhead_dataplane::node::ContactRecord;
use bulkhead_ebpf::reason::Reason;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    events::{Events, MINUTE},
    watch,
};
use crate::{
    api::handle::Handle,
    show::{Names, Observation},
};

/// How often it is looked what was blocked.
const LOOK: Duration = Duration::from_secs(10);
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Pods of which something is kept.
const PODS: usize = 10_000;

/// A pod: namespace and name.
type Pod = (String, String);

/// What was blocked of a pod that was not written yet.
#[derive(Debug, Default)]
struct Kept {
    packets: u64,
    /// Since when.
    since: Option<Instant>,
    /// When an event was written last.
    written: Option<Instant>,
    /// What came last, in words, and its time.
    text: String,
    last: u64,
    /// How many calls that are not the same.
    calls: u64,
}

/// Looks, and writes.
pub(super) struct Blocked {
    pub(super) client: Client,
    pub(super) handle: Handle,
    pub(super) events: Events,
    pods: BTreeMap<Pod, Kept>,
    /// Packets of each call when it was looked last.
    counted: BTreeMap<String, u64>,
}

impl Blocked {
    pub(super) fn new(client: Client, handle: Handle, node: &str) -> Self {
        let events = Events::new(client.clone(), node);
        Self { client, handle, events, pods: BTreeMap::new(), counted: BTreeMap::new() }
    }

    /// Looks and writes for ever. What was blocked before it began is not written.
    pub(super) async fn follow(mut self) {
        let mut begun = false;
        loop {
            if let Ok(contacts) = self.handle.denied().await {
                self.look(&contacts.records, begun).await;
                begun = true;
            }
            if begun {
                self.write().await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes what is new of what was seen.
    async fn look(&mut self, contacts: &[ContactRecord], begun: bool) {
        let before = std::mem::take(&mut self.counted);
        let mut news = Vec::new();
        for contact in contacts.iter().filter(|contact| is_blocked(contact)) {
            let key = key(contact);
            let more = contact.packets.saturating_sub(before.get(&key).copied().unwrap_or_default());
            self.counted.insert(key, contact.packets);
            if more > 0 && begun {
                news.push((contact.clone(), more));
            }
        }
        if news.is_empty() {
            return;
        }
        let Ok(known) = self.handle.ask(|agent| agent.known()).await else { return };
        let named = tokio::task::spawn_blocking(move || {
            let names = Names::new(&known.model, &known.node);
            news.into_iter().map(|(contact, more)| (names.contact(&contact), contact, more)).collect::<Vec<_>>()
        });
        for (observation, contact, more) in named.await.unwrap_or_default() {
            self.take(&observation, &contact, more);
        }
    }

    fn take(&mut self, observation: &Observation, contact: &ContactRecord, more: u64) {
        let Some(endpoint) = &contact.endpoint else { return };
        let pod = (endpoint.namespace.clone(), endpoint.workload.clone());
        if self.pods.len() >= PODS && !self.pods.contains_key(&pod) {
            return;
        }
        let kept = self.pods.entry(pod).or_default();
        kept.packets += more;
        kept.calls += 1;
        kept.since.get_or_insert_with(Instant::now);
        if contact.last >= kept.last {
            let text = observation.text.strip_prefix("BLOCKED ").unwrap_or(&observation.text);
            (kept.last, kept.text) = (contact.last, format!("{}: {text}", contact.direction));
        }
    }

    /// Writes of pods that have something new, those first that have waited longest.
    async fn write(&mut self) {
        self.pods.retain(|_, kept| kept.packets > 0 || kept.written.is_some_and(|at| at.elapsed() < MINUTE));
        let due = |kept: &Kept| kept.packets > 0 && kept.written.is_none_or(|at| at.elapsed() >= MINUTE);
        let mut those: Vec<_> = self.pods.iter().filter(|(_, kept)| due(kept)).collect();
        those.sort_by_key(|(_, kept)| kept.since);
        let those: Vec<Pod> = those.into_iter().map(|(pod, _)| pod.clone()).collect();
        for pod in those {
            if !self.events.may() {
                return;
            }
            let Some(kept) = self.pods.get_mut(&pod) else { continue };
            let seconds = kept.since.map_or(0, |since| since.elapsed().as_secs()).max(LOOK.as_secs());
            let others = match kept.calls {
                0 | 1 => String::new(),
                calls => format!(", in {calls} kinds of calls, of which this came last"),
            };
            let note = format!("{}; {} packets seen in {seconds} s{others}", kept.text, kept.packets);
            *kept = Kept { written: Some(Instant::now()), ..Kept::default() };
            if let Some(about) = self.reference(&pod).await {
                self.events.write(about, "Blocked", "Judge", &note).await;
            }
        }
    }

    /// The pod that has the name now.
    async fn reference(&self, (namespace, name): &Pod) -> Option<ObjectReference> {
        let pod = timeout(ANSWER, watch::pod(&self.client, namespace, name)).await.ok()?.ok()?;
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str)?;
        Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        })
    }
}

/// Whether it was dropped at a pod.
fn is_blocked(contact: &ContactRecord) -> bool {
    contact.endpoint.is_some() && !contact.observed && contact.reason != Reason::WouldDeny
}

fn key(contact: &ContactRecord) -> String {
    let ContactRecord { endpoint, direction, peer, protocol, port, reason, .. } = contact;
    format!("{endpoint:?} {direction} {peer} {protocol} {port} {}", reason.label())
}
