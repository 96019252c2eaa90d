//! What pods of the shop have said, read on their nodes: also while the API server is away, and without a process for each look.

use std::{fs, path::PathBuf};

use serde_json::Value;

use bulkhead_tests::guarded::Guarded;

/// Logs of a pod's container, one for each time that it was started.
pub(crate) struct Said(PathBuf);

impl Said {
    /// Of a pod that the API server knows.
    pub(crate) fn by(guarded: &Guarded, pod: &str) -> Self {
        let found = guarded.kubectl(&["--namespace=shop", "get", "pod", pod, "--output=json"]);
        Self::of(guarded, &serde_json::from_str(&found).unwrap())
    }

    /// Of a pod as the API server has it.
    pub(crate) fn of(guarded: &Guarded, pod: &Value) -> Self {
        let text = |of: &Value| of.as_str().unwrap().to_owned();
        let [name, uid, node] = [&pod["metadata"]["name"], &pod["metadata"]["uid"], &pod["spec"]["nodeName"]].map(text);
        let node = guarded.cluster.nodes().iter().find(|of| of.name == node).unwrap();
        Self(node.file(format!("/var/log/pods/shop_{name}_{uid}/main")))
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        // Nothing is there before the container starts.
        let mut logs: Vec<_> = fs::read_dir(&self.0).into_iter().flatten().map(|log| log.unwrap().path()).collect();
        logs.sort();
        let all: String = logs.iter().map(|log| fs::read_to_string(log).unwrap()).collect();
        // The last one may not be whole yet. Before each stand its time, its stream and whether it is whole.
        let whole = all.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        whole.filter_map(|line| line.splitn(4, ' ').nth(3)).map(str::to_owned).collect()
    }
}
