//! Objects of a large cluster, as its API server keeps them.

use serde_json::{Value, json};

use super::Size;

/// An object, by its name in etcd.
pub(super) type Object = (String, Value);

/// When all of them were made.
const CREATED: &str = "2026-01-01T00:00:00Z";
/// Generated nodes' pods are in `10.244.0.0/16` behind those of both real nodes, 64 addresses each, so that flannel takes them for its own.
const FIRST: usize = 3 * 4;
/// Most nodes for which there are addresses.
pub(super) const MOST: usize = 1024 - FIRST;
/// Most pods of a node.
pub(super) const DENSITY: usize = 60;
/// Addresses of pods in a node's range: two before them are the network's and the gateway's, and the last is the broadcast's.
pub(super) const HOSTS: usize = 61;
/// Pods of a namespace, of so many applications each.
pub(super) const CROWD: usize = 25;
const APPLICATIONS: usize = 5;

impl Size {
    /// All of them but the pods.
    pub(super) fn others(self) -> impl Iterator<Item = Object> {
        let nodes = (0..self.nodes).map(node);
        nodes.chain((0..self.namespaces).flat_map(|at| [namespace(at), account(at), policy(at)]))
    }

    /// Which pod is replaced in a turn, and which edition of it: one application is rolled out after the other, all over the cluster. None where the last
    /// namespace has fewer.
    pub(super) fn replaced(self, turn: usize) -> Option<(usize, usize)> {
        let index = turn % (self.namespaces * CROWD);
        let replicas = CROWD / APPLICATIONS;
        let set = index / replicas * 7919 % (self.namespaces * APPLICATIONS);
        let at = set + self.namespaces * APPLICATIONS * (index % replicas);
        (at < self.pods).then_some((at, turn / (self.namespaces * CROWD)))
    }

    /// A pod as its namespace's name, what somebody asks for, and what the kubelet says of it then. `edition` is another one each time it is made anew, and
    /// `host` counts addresses of its node's range.
    pub(super) fn pod(self, at: usize, edition: usize, host: usize) -> (String, Value, Value) {
        let host = (FIRST + at % self.nodes) * 64 + 2 + host;
        let (namespace, address) =
            (namespace_name(at % self.namespaces), format!("10.244.{}.{}", host >> 8, host & 0xff));
        let set = at % (self.namespaces * APPLICATIONS);
        let (app, hash) = (format!("app-{}", set / self.namespaces), hash(set, edition));
        let name = format!("{app}-{hash}-{at:06}-{edition}");
        let variable = |number| json!({ "name": format!("SETTING_NUMBER_{number}"), "value": format!("http://backend-{number}.example.internal:8080/path/to/{app}") });
        let variables: Vec<_> = (0..16).map(variable).collect();
        let probe = json!({ "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" }, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 });
        let container = json!({
            "name": "main", "image": format!("registry.example.internal/team/{app}:1.42.7"), "imagePullPolicy": "IfNotPresent",
            "args": ["--verbose", "--listen=:8080", "--metrics=:9090"], "env": variables,
            "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }, { "name": "metrics", "containerPort": 9090, "protocol": "TCP" }],
            "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
            "livenessProbe": probe, "readinessProbe": probe,
            "volumeMounts": [{ "name": "settings", "mountPath": "/etc/settings", "readOnly": true }, { "name": "cache", "mountPath": "/var/cache" }],
            "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        });
        let fields = json!({ "f:metadata": { "f:labels": { ".": {}, "f:app": {}, "f:team": {}, "f:version": {}, "f:pod-template-hash": {} }, "f:ownerReferences": {} }, "f:spec": { "f:containers": { "k:{\"name\":\"main\"}": { ".": {}, "f:args": {}, "f:env": { ".": {} }, "f:image": {}, "f:imagePullPolicy": {}, "f:livenessProbe": {}, "f:ports": {}, "f:readinessProbe": {}, "f:resources": {}, "f:volumeMounts": {} } }, "f:nodeName": {}, "f:volumes": {} } });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid(3, at), "creationTimestamp": CREATED,
                "labels": { "app": app, "team": format!("team-{}", at % 50), "version": format!("1.42.{edition}"), "pod-template-hash": hash },
                "annotations": { "prometheus.io/scrape": "true", "prometheus.io/port": "9090", "example.com/checksum": uid(4, at) },
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"), "uid": uid(5, set), "controller": true, "blockOwnerDeletion": true }],
                "managedFields": [{ "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": CREATED, "fieldsType": "FieldsV1", "fieldsV1": fields }],
            },
            "spec": {
                "nodeName": node_name(at % self.nodes), "containers": [container], "serviceAccountName": "default", "serviceAccount": "default",
                "automountServiceAccountToken": false, "restartPolicy": "Always", "terminationGracePeriodSeconds": 0, "dnsPolicy": "ClusterFirst",
                "schedulerName": "default-scheduler", "enableServiceLinks": true, "securityContext": {},
                // No kubelet says that its node lives: nothing shall come of that.
                "tolerations": [{ "operator": "Exists" }],
                "volumes": [{ "name": "settings", "configMap": { "name": app, "defaultMode": 420 } }, { "name": "cache", "emptyDir": {} }],
            },
        });
        let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": CREATED });
        let conditions =
            ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
        let status = json!({
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "hostIP": node_address(at % self.nodes),
            "hostIPs": [{ "ip": node_address(at % self.nodes) }], "qosClass": "Burstable", "startTime": CREATED,
            "conditions": conditions,
            "containerStatuses": [{
                "name": "main", "image": format!("registry.example.internal/team/{app}:1.42.7"), "imageID": format!("sha256:{}", uid(6, at).repeat(2)),
                "containerID": format!("containerd://{}", uid(7, at).repeat(2)), "ready": true, "started": true, "restartCount": 0,
                "state": { "running": { "startedAt": CREATED } },
            }],
        });
        (namespace, pod, status)
    }

    /// All pods, as they run.
    pub(super) fn pods(self) -> impl Iterator<Item = Object> {
        (0..self.pods).map(move |at| {
            let (namespace, mut pod, status) = self.pod(at, 0, at / self.nodes);
            pod["status"] = status;
            let key = format!("/registry/pods/{namespace}/{}", pod["metadata"]["name"].as_str().unwrap_or_default());
            (key, pod)
        })
    }
}

/// What a controller calls the edition of an application by, which has one in each namespace.
fn hash(set: usize, edition: usize) -> String {
    // Golden ratio: distinct numbers become such that look like nothing.
    let mixed = (set as u64 | ((edition as u64) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{:010x}", mixed >> 24)
}

fn uid(kind: usize, at: usize) -> String {
    format!("{kind:08x}-0000-4000-8000-{at:012x}")
}

fn node_name(at: usize) -> String {
    format!("g{at:04}")
}

fn node_address(at: usize) -> String {
    format!("172.30.{}.{}", at >> 8, at & 0xff)
}

pub(super) fn namespace_name(at: usize) -> String {
    format!("large-{at:04}")
}

fn node(at: usize) -> Object {
    let (name, host) = (node_name(at), (FIRST + at) * 64);
    let range = format!("10.244.{}.{}/26", host >> 8, host & 0xff);
    let mac = format!("02:00:00:00:{:02x}:{:02x}", at >> 8, at & 0xff);
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": uid(1, at), "creationTimestamp": CREATED,
            // Old names too, which the node lifecycle controller would add.
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
            },
            "annotations": {
                "flannel.alpha.coreos.com/backend-type": "vxlan", "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"),
                "flannel.alpha.coreos.com/public-ip": node_address(at),
            },
        },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
        "status": { "addresses": [{ "type": "InternalIP", "address": node_address(at) }, { "type": "Hostname", "address": name }] },
    });
    (format!("/registry/minions/{name}"), node)
}

fn namespace(at: usize) -> Object {
    let name = namespace_name(at);
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name, "uid": uid(2, at), "creationTimestamp": CREATED,
            "labels": { "kubernetes.io/metadata.name": name, "team": format!("team-{}", at % 50) },
        },
        "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" },
    });
    (format!("/registry/namespaces/{name}"), namespace)
}

/// Without it nobody can make a pod there.
fn account(at: usize) -> Object {
    let namespace = namespace_name(at);
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "default", "namespace": namespace, "uid": uid(8, at), "creationTimestamp": CREATED },
    });
    (format!("/registry/serviceaccounts/{namespace}/default"), account)
}

/// Pods of the namespace are called by each other, and one application of it by a team.
fn policy(at: usize) -> Object {
    let namespace = namespace_name(at);
    let team = json!({ "namespaceSelector": { "matchLabels": { "team": format!("team-{}", at % 50) } }, "podSelector": { "matchLabels": { "app": "app-0" } } });
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "inside", "namespace": namespace, "uid": uid(9, at), "creationTimestamp": CREATED },
        "spec": {
            "podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "podSelector": {} }] }, { "from": [team], "ports": [{ "protocol": "TCP", "port": 8080 }] }],
        },
    });
    (format!("/registry/networkpolicies/{namespace}/inside"), policy)
}
