//! The taint with which a node joins, until what starts there is guarded.
//!
//! A node that is new takes pods as soon as it has some network. Where it registers with a taint that they do not tolerate, they come when the agent has
//! taken that away: then the plugin is in the chain, and what is in force there is published. It registers again where somebody deleted its object, and the
//! agent may have run all the while.

use std::{sync::Arc, time::Duration};

use bulkhead_dataplane::causes::causes;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    Shared,
    status::{BEAT, FORBIDDEN, is_forbidden, within},
};
use crate::api::handle::Handle;

/// How often it is looked whether all of the node is guarded, and whether it is a new one.
const LOOK: Duration = Duration::from_millis(500);
/// How often the API server is asked whether the node is ready.
const ASK: Duration = Duration::from_secs(2);

/// Who takes it away.
pub(super) struct Taint {
    pub(super) client: Client,
    pub(super) handle: Handle,
    pub(super) shared: Arc<Shared>,
    pub(super) node: String,
    /// Its key.
    pub(super) key: String,
}

/// What came of an attempt.
enum Found {
    /// The node of this unique id has it no more.
    Guarded(String),
    /// When to try again.
    Early(Duration),
}

impl Taint {
    /// Takes it away when all of the node is guarded, from each that registers under this name.
    pub(super) async fn lift(self) {
        let Self { node, key, .. } = &self;
        let mut last = String::new();
        loop {
            tokio::time::sleep(match self.try_to().await {
                Ok(Found::Guarded(uid)) => {
                    if uid != last {
                        tracing::info!("node {node} has no taint {key} any more: it is guarded");
                    }
                    self.another(&uid).await;
                    last = uid;
                    continue;
                }
                Ok(Found::Early(again)) => again,
                Err(error) if is_forbidden(&error) => {
                    tracing::error!(
                        "taint {key} of node {node} stays, so that pods may not come: {error}; give the right to get and patch nodes, or take it away by \
                         `kubectl taint node {node} {key}-`"
                    );
                    FORBIDDEN
                }
                Err(error) => {
                    tracing::warn!("taint {key} of node {node} stays for now: {}", causes(&error));
                    BEAT
                }
            })
            .await;
        }
    }

    /// Waits until there is another node of this name, as the watch tells it. That may still know the one before: so it is not asked at once.
    async fn another(&self, uid: &str) {
        tokio::time::sleep(ASK).await;
        while self.shared.roster().node(&self.node).is_none_or(|now| now == uid) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes it away unless it is too early.
    async fn try_to(&self) -> Result<Found, Error> {
        match self.handle.ask(|agent| agent.health()).await {
            Ok(health) if health.unready().is_none() => {}
            _ => return Ok(Found::Early(LOOK)),
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = within(nodes.get(&self.node)).await?;
        let uid = node.metadata.uid.unwrap_or_default();
        // Until a network's owner has written it there is none whose chain the plugin could be in.
        let conditions = node.status.into_iter().flat_map(|status| status.conditions.unwrap_or_default());
        if !conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            return Ok(Found::Early(ASK));
        }
        let mut taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
        let before = taints.len();
        taints.retain(|taint| taint.key != self.key);
        if taints.len() == before {
            return Ok(Found::Guarded(uid));
        }
        // The list is written as a whole: not over what somebody else wrote meanwhile.
        let version = node.metadata.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
        within(nodes.patch_metadata(&self.node, &PatchParams::default(), &Patch::Merge(&patch)))
            .await
            .map(|_| Found::Guarded(uid))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use kube::{client::Body, runtime::watcher::Event};
    use tokio::time::{Instant, timeout};

    use super::{super::kinds::NODES, *};

    /// What the watch tells may be old: whoever took it at its word at once would ask the API server without a pause.
    #[tokio::test(start_paused = true)]
    async fn what_seems_another_node_is_not_asked_for_at_once() {
        let shared = Arc::new(Shared::new());
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "uid": "old" } });
        shared.roster().hear(NODES, &Event::Apply(serde_json::from_value(node).unwrap()));
        let nobody = tower::service_fn(|_: hyper::Request<Body>| async {
            Err::<hyper::Response<Body>, _>(std::io::Error::other("nobody is asked"))
        });
        let taint = Taint {
            client: Client::new(nobody, "default"),
            handle: Handle::new(mpsc::channel().0),
            shared,
            node: "n1".to_owned(),
            key: "key".to_owned(),
        };
        let start = Instant::now();
        taint.another("new").await;
        assert_eq!(start.elapsed(), ASK);
        assert!(timeout(ASK * 30, taint.another("old")).await.is_err(), "it is the same");
    }
}
