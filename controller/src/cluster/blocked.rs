//! What is blocked of a pod, as events on the pod.

mod untold;

use std::{
    collections::BTreeMap,
    mem,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bulkhead_dataplane::node::ContactRecord;
use bulkhead_ebpf::reason::Reason;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use serde_json::Value;
use tokio::time::timeout;

use self::untold::{Due, Pod, Untold};
use super::{events::Events, watch};
use crate::{api::handle::Handle, show::Names, workloads::WorkloadName};

/// How often it is looked what was blocked.
const LOOK: Duration = Duration::from_secs(10);
/// When a packet was seen is known to less than this.
const TICKS: Duration = Duration::from_millis(100);
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(10);
/// A call that was blocked.
#[derive(Debug)]
struct Call {
    contact: ContactRecord,
    /// Who had the peer's address when it was seen: by the time that it is told it may be another pod's.
    peer: Option<WorkloadName>,
}

/// Looks, and writes.
pub(super) struct Blocked {
    pub(super) client: Client,
    pub(super) handle: Handle,
    pub(super) events: Events,
    untold: Untold<Call>,
    /// Packets of each call when it was looked last.
    counted: BTreeMap<String, u64>,
    /// When that was; what was blocked before the first time is not written.
    looked: Option<Instant>,
}

impl Blocked {
    pub(super) fn new(client: Client, handle: Handle, node: &str) -> Self {
        let events = Events::new(client.clone(), node);
        Self { client, handle, events, untold: Untold::default(), counted: BTreeMap::new(), looked: None }
    }

    /// Looks and writes for ever. What was blocked before it began is not written.
    pub(super) async fn follow(mut self) {
        loop {
            // What is seen while they are read is looked at twice rather than never.
            let asked = Instant::now();
            if let Ok(contacts) = self.handle.denied().await {
                self.look(&contacts.records, asked).await;
            }
            if self.looked.is_some() {
                self.write().await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes what is new of what was seen, for which was `asked` then.
    async fn look(&mut self, contacts: &[ContactRecord], asked: Instant) {
        let before = mem::take(&mut self.counted);
        let since = self.looked.replace(asked).map(|before| before.elapsed());
        let mut news = Vec::new();
        for contact in contacts.iter().filter(|contact| is_blocked(contact)) {
            let key = key(contact);
            let more = contact.packets.saturating_sub(before.get(&key).copied().unwrap_or_default());
            self.counted.insert(key, contact.packets);
            // One that is older was told of whoever had the place in the tables before.
            let is_new = more > 0 && since.is_some_and(|since| is_younger(contact.last, SystemTime::now(), since));
            if let Some(endpoint) = contact.endpoint.as_ref().filter(|_| is_new) {
                news.push((endpoint, contact.clone(), more));
            }
        }
        if news.is_empty() {
            return;
        }
        // Where the agent has no time a call is told all the same, by the peer's address.
        let peers = match self.handle.ask(|agent| agent.peers()).await {
            Ok(peers) => tokio::task::spawn_blocking(move || peers.make()).await.ok(),
            Err(_) => None,
        };
        for (endpoint, contact, more) in news {
            let pod = (endpoint.namespace.clone(), endpoint.workload.clone());
            let peer = peers.as_ref().and_then(|peers| peers.workload(endpoint, contact.peer)).cloned();
            let last = contact.last;
            self.untold.take(pod, Call { contact, peer }, last, more, Instant::now());
        }
    }

    async fn write(&mut self) {
        if !self.untold.is_due(Instant::now()) {
            return;
        }
        // Where the agent has no time nothing is taken for told.
        let Ok((known, peers)) = self.handle.ask(|agent| (agent.known(), agent.peers())).await else { return };
        let due = self.untold.tell(&mut self.events.budget, Instant::now(), LOOK);
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

fn note(names: &Names<'_>, Due { call: Call { contact, peer }, extent, .. }: &Due<Call>) -> String {
    let text = match peer {
        Some(peer) if names.workload(contact) != Some(peer) => names.contact_of(contact, &peer.to_string()),
        None if names.workload(contact).is_some() => names.contact_of(contact, &contact.peer.to_string()),
        _ => {
            let text = names.contact(contact).text;
            text.strip_prefix("BLOCKED ").map(ToOwned::to_owned).unwrap_or(text)
        }
    };
    format!("{}: {text}; {extent}", contact.direction)
}

/// Whether it was dropped at a pod.
fn is_blocked(contact: &ContactRecord) -> bool {
    contact.endpoint.is_some() && !contact.observed && contact.reason != Reason::WouldDeny
}

fn key(contact: &ContactRecord) -> String {
    let ContactRecord { endpoint, direction, peer, protocol, port, reason, would_pass, .. } = contact;
    format!("{endpoint:?} {direction} {peer} {protocol} {port} {} {would_pass}", reason.label())
}

/// Whether something at `last`, in nanoseconds of Unix time, was within such a time, as far as ticks of the kernel's clock tell.
fn is_younger(last: u64, now: SystemTime, time: Duration) -> bool {
    let at = UNIX_EPOCH + Duration::from_nanos(last);
    now.duration_since(at).map_or(true, |age| age <= time + TICKS)
}

#[cfg(test)]
mod tests {
    use bulkhead_dataplane::desired::EndpointName;

    use super::*;
    use crate::{diagnostic::source, model::Model, workloads};

    #[test]
    fn what_was_seen_before_the_last_look_is_no_news() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |ago: u64| (1_000_000 - ago) * 1_000_000_000;
        assert!(is_younger(at(9), now, LOOK) && is_younger(at(10), now, LOOK) && !is_younger(at(11), now, LOOK));
        // A clock that was set back makes nothing old.
        assert!(is_younger(at(0) + 1_000_000_000, now, LOOK));
    }

    /// Nobody is blamed for what another one did who had his address before.
    #[test]
    fn who_has_an_address_later_is_not_who_called() {
        let described = "apiVersion: bulkhead/v1\nkind: Workloads\nnodes: [{ name: n1, addresses: [192.0.2.1] }]\nworkloads:\n\
            - { name: db, namespace: shop, node: n1, endpoints: [{ link: veth0, addresses: [10.0.0.1] }] }\n\
            - { name: new, namespace: shop, node: n1, endpoints: [{ link: veth1, addresses: [10.0.0.2] }] }\n";
        let described = workloads::parse(&source("workloads.yaml", described)).unwrap();
        let model = Model::build(&[], &described).unwrap();
        let names = Names::new(&model, "n1");
        let endpoint = EndpointName { namespace: "shop".to_owned(), workload: "db".to_owned(), index: 0 };
        let contact = ContactRecord {
            endpoint: Some(endpoint.into()),
            direction: "ingress",
            peer: "10.0.0.2".parse().unwrap(),
            protocol: 6,
            port: 5432,
            reason: Reason::Isolated,
            rule: "".into(),
            observed: false,
            would_pass: false,
            packets: 1,
            bytes: 60,
            first: 0,
            last: 0,
            inner: None,
        };
        let said = |peer: Option<&str>| {
            let peer = peer.map(|name| WorkloadName::new("shop".to_owned(), name.to_owned()));
            let call = Call { contact: contact.clone(), peer };
            note(
                &names,
                &Due { pod: (String::new(), String::new()), call, extent: "1 packets seen in 10 s".to_owned() },
            )
        };
        for (peer, from) in [(Some("new"), "shop/new"), (Some("old"), "shop/old"), (None, "10.0.0.2")] {
            let said = said(peer);
            assert!(said.starts_with(&format!("ingress: {from} -> shop/db 5432/tcp")), "{said}");
            assert!(said.ends_with("; 1 packets seen in 10 s"), "{said}");
        }
    }
}
