//! What is blocked of a pod, as events on the pod.

mod untold;

use std::{
    collections::BTreeMap,
    mem,
    time::{Duration, Instant},
};

use bulkhead_dataplane::node::ContactRecord;
use bulkhead_ebpf::reason::Reason;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use serde_json::Value;
use tokio::time::timeout;

use self::untold::{Due, Pod, Untold};
use super::{events::Events, watch};
use crate::{api::handle::Handle, show::Names};

/// How often it is looked what was blocked.
const LOOK: Duration = Duration::from_secs(10);
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Looks, and writes.
pub(super) struct Blocked {
    pub(super) client: Client,
    pub(super) handle: Handle,
    pub(super) events: Events,
    untold: Untold<ContactRecord>,
    /// Packets of each call when it was looked last.
    counted: BTreeMap<String, u64>,
}

impl Blocked {
    pub(super) fn new(client: Client, handle: Handle, node: &str) -> Self {
        let events = Events::new(client.clone(), node);
        Self { client, handle, events, untold: Untold::default(), counted: BTreeMap::new() }
    }

    /// Looks and writes for ever. What was blocked before it began is not written.
    pub(super) async fn follow(mut self) {
        let mut begun = false;
        loop {
            if let Ok(contacts) = self.handle.denied().await {
                self.look(&contacts.records, begun);
                begun = true;
            }
            if begun {
                self.write().await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes what is new of what was seen.
    fn look(&mut self, contacts: &[ContactRecord], begun: bool) {
        let before = mem::take(&mut self.counted);
        for contact in contacts.iter().filter(|contact| is_blocked(contact)) {
            let key = key(contact);
            let more = contact.packets.saturating_sub(before.get(&key).copied().unwrap_or_default());
            self.counted.insert(key, contact.packets);
            if let Some(endpoint) = &contact.endpoint
                && more > 0
                && begun
            {
                let pod = (endpoint.namespace.clone(), endpoint.workload.clone());
                self.untold.take(pod, contact.clone(), contact.last, more, Instant::now());
            }
        }
    }

    async fn write(&mut self) {
        let due = self.untold.tell(&mut self.events.budget, Instant::now(), LOOK);
        if due.is_empty() {
            return;
        }
        let Ok((known, peers)) = self.handle.ask(|agent| (agent.known(), agent.peers())).await else { return };
        // Takes long where there are many policies, and who changes one meanwhile has to copy what is held here: so only for what is told.
        let noted = tokio::task::spawn_blocking(move || {
            let names = Names::with(&known.model, peers.make());
            due.into_iter().map(|due| (note(&names, &due), due.pod)).collect::<Vec<_>>()
        });
        for (note, pod) in noted.await.unwrap_or_default() {
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

fn note(names: &Names<'_>, Due { call, extent, .. }: &Due<ContactRecord>) -> String {
    let observation = names.contact(call);
    let text = observation.text.strip_prefix("BLOCKED ").unwrap_or(&observation.text);
    format!("{}: {text}; {extent}", call.direction)
}

/// Whether it was dropped at a pod.
fn is_blocked(contact: &ContactRecord) -> bool {
    contact.endpoint.is_some() && !contact.observed && contact.reason != Reason::WouldDeny
}

fn key(contact: &ContactRecord) -> String {
    let ContactRecord { endpoint, direction, peer, protocol, port, reason, .. } = contact;
    format!("{endpoint:?} {direction} {peer} {protocol} {port} {}", reason.label())
}
