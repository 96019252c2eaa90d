//! What objects can have that nothing here asks for: whatever else stands there is misspelt, and means nothing to Kubernetes either.
//!
//! The fields of Kubernetes 1.37 in its API reference, and those that it once had.

/// Of an object.
pub(super) const OBJECT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// Of a slice of endpoints.
pub(super) const SLICE: [&str; 6] = ["addressType", "apiVersion", "endpoints", "kind", "metadata", "ports"];

/// Of endpoints as they were before slices.
pub(super) const ENDPOINTS: [&str; 4] = ["apiVersion", "kind", "metadata", "subsets"];

/// Of a pod.
pub(super) const POD_SPEC: [&str; 43] = [
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "evictionResponders",
    "hostAliases",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets",
    "initContainers",
    "nodeName",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "schedulingGroup",
    "securityContext",
    "serviceAccount",
    "serviceAccountName",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
];

/// Of a container.
pub(super) const CONTAINER: [&str; 25] = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "restartPolicyRules",
    "securityContext",
    "startupProbe",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];

/// Of a container's port.
pub(super) const CONTAINER_PORT: [&str; 5] = ["containerPort", "hostIP", "hostPort", "name", "protocol"];

/// Of a template, of pods or of jobs.
pub(super) const TEMPLATE: [&str; 2] = ["metadata", "spec"];

/// Of a service.
pub(super) const SERVICE: [&str; 22] = [
    "allocateLoadBalancerNodePorts",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamily",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "ports",
    "publishNotReadyAddresses",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "topologyKeys",
    "trafficDistribution",
    "type",
];

/// Of a port of a service.
pub(super) const SERVICE_PORT: [&str; 6] = ["appProtocol", "name", "nodePort", "port", "protocol", "targetPort"];

/// Of a job.
pub(super) const JOB: [&str; 17] = [
    "activeDeadlineSeconds",
    "backoffLimit",
    "backoffLimitPerIndex",
    "completionMode",
    "completions",
    "managedBy",
    "manualSelector",
    "maxFailedIndexes",
    "parallelism",
    "podFailurePolicy",
    "podReplacementPolicy",
    "scheduling",
    "selector",
    "successPolicy",
    "suspend",
    "template",
    "ttlSecondsAfterFinished",
];

const DEPLOYMENT: [&str; 9] = [
    "minReadySeconds",
    "paused",
    "progressDeadlineSeconds",
    "replicas",
    "revisionHistoryLimit",
    "rollbackTo",
    "selector",
    "strategy",
    "template",
];

const STATEFUL_SET: [&str; 11] = [
    "minReadySeconds",
    "ordinals",
    "persistentVolumeClaimRetentionPolicy",
    "podManagementPolicy",
    "replicas",
    "revisionHistoryLimit",
    "selector",
    "serviceName",
    "template",
    "updateStrategy",
    "volumeClaimTemplates",
];

const DAEMON_SET: [&str; 6] =
    ["minReadySeconds", "revisionHistoryLimit", "selector", "template", "templateGeneration", "updateStrategy"];

const REPLICA_SET: [&str; 4] = ["minReadySeconds", "replicas", "selector", "template"];

const CRON_JOB: [&str; 8] = [
    "concurrencyPolicy",
    "failedJobsHistoryLimit",
    "jobTemplate",
    "schedule",
    "startingDeadlineSeconds",
    "successfulJobsHistoryLimit",
    "suspend",
    "timeZone",
];

/// Of what makes pods from a template, or jobs.
pub(super) fn controller(kind: &str) -> &'static [&'static str] {
    match kind {
        "Deployment" => &DEPLOYMENT,
        "StatefulSet" => &STATEFUL_SET,
        "DaemonSet" => &DAEMON_SET,
        "Job" => &JOB,
        "CronJob" => &CRON_JOB,
        // A replication controller has the same.
        _ => &REPLICA_SET,
    }
}
