//! Objects as a watch brings them.
//!
//! There are many pods, and little of each is read: the rest is left out while the answer is parsed, so that a page of them is not in memory.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::{
    Resource,
    core::{ApiResource, DynamicObject},
    runtime::watcher::Event,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What can be watched.
pub(super) trait Object:
    Resource<DynamicType = ApiResource> + Clone + DeserializeOwned + fmt::Debug + Send + 'static
{
    /// What it says.
    fn into_json(self) -> Value;

    /// What tells of objects whose status is written, or of nodes.
    fn for_roster(event: &Event<Self>) -> Option<&Event<DynamicObject>>;
}

impl Object for DynamicObject {
    /// Without who wrote which field, which is the longest part of most objects.
    fn into_json(mut self) -> Value {
        self.metadata.managed_fields = None;
        let metadata = serde_json::to_value(self.metadata).unwrap_or_default();
        let mut value = self.data;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("metadata".to_owned(), metadata);
        }
        value
    }

    fn for_roster(event: &Event<Self>) -> Option<&Event<DynamicObject>> {
        Some(event)
    }
}

/// A pod as far as something of it is read. Values are as they came: whoever reads them says what is wrong.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Pod {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_network: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<Vec<Container>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_policy: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<Value>,
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pod_ip: Option<Value>,
    #[serde(rename = "podIPs", skip_serializing_if = "Option::is_none")]
    pod_ips: Option<Value>,
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    host_ip: Option<Value>,
    #[serde(rename = "hostIPs", skip_serializing_if = "Option::is_none")]
    host_ips: Option<Value>,
}

/// What is read of a pod's metadata, and the version that a watch goes on from.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

fn metadata<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let read = Metadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        creation_timestamp: read.creation_timestamp,
        labels: read.labels,
        annotations: read.annotations,
        owner_references: read.owner_references,
        ..ObjectMeta::default()
    })
}

impl Resource for Pod {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn group(kind: &ApiResource) -> Cow<'_, str> {
        kind.group.as_str().into()
    }

    fn version(kind: &ApiResource) -> Cow<'_, str> {
        kind.version.as_str().into()
    }

    fn kind(kind: &ApiResource) -> Cow<'_, str> {
        kind.kind.as_str().into()
    }

    fn api_version(kind: &ApiResource) -> Cow<'_, str> {
        kind.api_version.as_str().into()
    }

    fn plural(kind: &ApiResource) -> Cow<'_, str> {
        kind.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Object for Pod {
    fn into_json(self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        value
    }

    fn for_roster(_: &Event<Self>) -> Option<&Event<DynamicObject>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A pod that has all that is read of one, and much else.
    fn whole() -> Value {
        json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "app": "web" }, "annotations": { "kubernetes.io/config.mirror": "m" },
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "o", "controller": true }],
                "managedFields": [{ "manager": "kubelet" }],
            },
            "spec": {
                "nodeName": "n1", "hostNetwork": true, "volumes": [{ "name": "v" }],
                "containers": [{ "name": "main", "env": [{ "name": "A" }], "ports": [{ "name": "http", "containerPort": 80, "protocol": "TCP" }] }],
                "initContainers": [{ "name": "side", "restartPolicy": "Always", "ports": [{ "name": "m", "containerPort": 81 }] }],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }], "hostIP": "192.0.2.1", "hostIPs": [{ "ip": "192.0.2.1" }],
                "conditions": [{ "type": "Ready" }],
            },
        })
    }

    fn seen(mut object: Value) -> crate::manifest::Seen {
        object["apiVersion"] = "v1".into();
        object["kind"] = "Pod".into();
        crate::manifest::see(&crate::diagnostic::source("pod", ""), object).unwrap().unwrap()
    }

    #[test]
    fn what_is_read_of_a_pod_is_kept() {
        let pod: Pod = serde_json::from_value(whole()).unwrap();
        assert_eq!(pod.metadata.resource_version.as_deref(), Some("7"));
        let kept = pod.into_json();
        assert!(kept["spec"].get("volumes").is_none() && kept["status"].get("conditions").is_none());
        assert_eq!(seen(kept), seen(whole()));
    }

    #[test]
    fn a_pod_that_does_not_run_yet_is_read_too() {
        for object in [
            json!({ "metadata": { "name": "a" }, "spec": { "containers": [] } }),
            json!({ "metadata": { "name": "a" }, "spec": {}, "status": {} }),
        ] {
            let pod: Pod = serde_json::from_value(object.clone()).unwrap();
            assert_eq!(seen(pod.into_json()), seen(object));
        }
    }
}
