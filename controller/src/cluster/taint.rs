//! The taint with which a node joins, until what starts there is guarded.
//!
//! A node that is new takes pods as soon as it has some network. Where it registers with a taint that they do not tolerate, they come when the agent has
//! taken that away: then the plugin is in the chain, and what is in force there is published.

use std::time::Duration;

use bulkhead_dataplane::causes::causes;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::status::{BEAT, FORBIDDEN, is_forbidden, within};
use crate::api::handle::Handle;

/// How often it is looked whether the node is ready.
const LOOK: Duration = Duration::from_millis(500);

/// Who takes it away.
pub(super) struct Taint {
    pub(super) client: Client,
    pub(super) handle: Handle,
    pub(super) node: String,
    /// Its key.
    pub(super) key: String,
}

impl Taint {
    /// Takes it away when all of the node is guarded, and ends.
    pub(super) async fn lift(self) {
        let Self { node, key, .. } = &self;
        loop {
            tokio::time::sleep(match self.try_to().await {
                Ok(true) => break tracing::info!("node {node} has no taint {key} any more: it is guarded"),
                Ok(false) => LOOK,
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

    /// Whether it could be done by now.
    async fn try_to(&self) -> Result<bool, Error> {
        match self.handle.ask(|agent| agent.health()).await {
            Ok(health) if health.unready().is_none() => {}
            _ => return Ok(false),
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = within(nodes.get(&self.node)).await?;
        let mut taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
        let before = taints.len();
        taints.retain(|taint| taint.key != self.key);
        if taints.len() == before {
            return Ok(true);
        }
        // The list is written as a whole: not over what somebody else wrote meanwhile.
        let version = node.metadata.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
        within(nodes.patch_metadata(&self.node, &PatchParams::default(), &Patch::Merge(&patch))).await.map(|_| true)
    }
}
