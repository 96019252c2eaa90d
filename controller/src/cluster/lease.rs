//! Leases: one in which each agent tells of itself, and one that says which of them writes statuses.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Error,
    api::{ListParams, PostParams},
};

use super::report::Report;

/// The lease of a node's agent is called so, with the node's name behind it.
const NODE: &str = "bulkhead-node-";
/// The lease of the agent that writes statuses.
const WRITER: &str = "bulkhead-status";
/// Annotation with what an agent tells.
const REPORT: &str = "bulkhead.io/report";
/// Label and value of agents' leases.
const LABEL: (&str, &str) = ("bulkhead.io/lease", "node");
/// After so long without a sign of it the agent that writes statuses is replaced.
const WRITES: Duration = Duration::from_secs(30);

/// When a lease was renewed as it was seen last, and since when that has been so. Clocks of nodes may differ: they are not compared.
type Signs = BTreeMap<String, (Option<MicroTime>, Instant)>;

/// Leases, as one agent sees them.
pub(super) struct Leases {
    api: Api<Lease>,
    node: String,
    signs: Signs,
    writer: Option<(MicroTime, Instant)>,
}

/// An agent, as its lease tells of it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) report: Report,
    /// Nothing was heard of it for too long.
    pub(super) silent: bool,
}

impl Leases {
    pub(super) fn new(client: Client, namespace: &str, node: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), node: node.to_owned(), signs: Signs::new(), writer: None }
    }

    /// Tells of this agent, and that the next time is not later than after `lasts`. The lease goes with its node.
    pub(super) async fn tell(&self, report: &Report, uid: Option<&String>, lasts: Duration) -> Result<(), Error> {
        let name = format!("{NODE}{}", self.node);
        let text = serde_json::to_string(report).unwrap_or_default();
        let owner = uid.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid: uid.clone(),
            ..OwnerReference::default()
        });
        let write = |lease: &mut Lease| {
            let metadata = &mut lease.metadata;
            metadata.annotations.get_or_insert_default().insert(REPORT.to_owned(), text.clone());
            metadata.labels.get_or_insert_default().insert(LABEL.0.to_owned(), LABEL.1.to_owned());
            metadata.owner_references = owner.clone().map(|owner| vec![owner]);
            lease.spec = Some(self.held(lasts, None));
        };
        match self.api.get_opt(&name).await? {
            Some(mut lease) => {
                write(&mut lease);
                self.api.replace(&name, &PostParams::default(), &lease).await?;
            }
            None => {
                let mut lease = Lease { metadata: named(&name), spec: None };
                write(&mut lease);
                self.api.create(&PostParams::default(), &lease).await?;
            }
        }
        Ok(())
    }

    /// All agents, by node.
    pub(super) async fn peers(&mut self) -> Result<BTreeMap<String, Peer>, Error> {
        let those = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1)).match_any();
        let list = self.api.list(&those).await?;
        let (now, mut signs, mut peers) = (Instant::now(), Signs::new(), BTreeMap::new());
        for lease in list.items {
            let Some(node) = lease.metadata.name.as_deref().and_then(|name| name.strip_prefix(NODE)) else { continue };
            let spec = lease.spec.unwrap_or_default();
            let since = match self.signs.get(node) {
                Some((renewed, since)) if *renewed == spec.renew_time => *since,
                _ => now,
            };
            let lasts = Duration::from_secs(spec.lease_duration_seconds.and_then(|s| s.try_into().ok()).unwrap_or(0));
            let annotations = lease.metadata.annotations.unwrap_or_default();
            // What another version wrote says nothing.
            let report = annotations.get(REPORT).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            peers.insert(node.to_owned(), Peer { report, silent: now - since > lasts });
            signs.insert(node.to_owned(), (spec.renew_time, since));
        }
        self.signs = signs;
        Ok(peers)
    }

    /// Whether this agent is the one that writes statuses, from now on or still.
    pub(super) async fn writes(&mut self) -> Result<bool, Error> {
        let Some(lease) = self.api.get_opt(WRITER).await? else {
            let lease = Lease { metadata: named(WRITER), spec: Some(self.held(WRITES, Some(0))) };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let is_held = spec.holder_identity.as_ref() == Some(&self.node);
        if !is_held && let Some(renewed) = &spec.renew_time {
            let since = match &self.writer {
                Some((known, since)) if known == renewed => *since,
                _ => Instant::now(),
            };
            self.writer = Some((renewed.clone(), since));
            if since.elapsed() <= WRITES {
                return Ok(false);
            }
        }
        let transitions = spec.lease_transitions.unwrap_or_default().saturating_add(i32::from(!is_held));
        let lease = Lease { spec: Some(self.held(WRITES, Some(transitions))), ..lease };
        // Of several who see the same, the server lets one.
        won(self.api.replace(WRITER, &PostParams::default(), &lease).await)
    }

    fn held(&self, lasts: Duration, transitions: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.node.clone()),
            lease_duration_seconds: Some(i32::try_from(lasts.as_secs()).unwrap_or(i32::MAX)),
            renew_time: Some(MicroTime(Timestamp::now())),
            lease_transitions: transitions,
            ..LeaseSpec::default()
        }
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn won(written: Result<Lease, Error>) -> Result<bool, Error> {
    match written {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
