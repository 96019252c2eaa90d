//! Commands for whoever looks around: the API server is reached in the lab's network alone.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_cluster::Cluster;

/// In the source tree.
const CHART: &str = "controller/deploy/kubernetes/chart";

/// Copies the chart without the versions of Kubernetes that it is for: an API server that is built from its module does not know its own.
pub(crate) fn chart(cluster: &Cluster, tree: &Path) -> Result<String> {
    let chart = cluster.directory().join("chart");
    let copied = Command::new("cp").arg("--recursive").arg(tree.join(CHART)).arg(&chart).status()?;
    ensure!(copied.success(), "copy the chart: {copied}");
    let about = chart.join("Chart.yaml");
    let kept: Vec<_> = fs::read_to_string(&about)?
        .lines()
        .filter(|line| !line.starts_with("kubeVersion:"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&about, kept.concat())?;
    Ok(chart.display().to_string())
}

/// Writes `kubectl`, `helm`, and for each node a command of its name that runs others there. Returns their directory.
pub(crate) fn write(cluster: &Cluster) -> Result<PathBuf> {
    let directory = cluster.directory().join("bin");
    fs::create_dir(&directory)?;
    let network = format!("--net={}", cluster.control_plane().path().display());
    for (name, program) in [("kubectl", cluster.program("kubectl")), ("helm", cluster.helm())] {
        let mut command = Command::new("nsenter");
        command.arg(&network).arg("--").arg(program);
        script(&directory.join(name), &command)?;
    }
    for node in cluster.nodes() {
        script(&directory.join(&node.name), &node.command("env"))?;
    }
    Ok(directory)
}

/// A script that runs a command with further words.
fn script(path: &Path, command: &Command) -> Result<()> {
    let set = command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    let set = set.map(|(name, value)| format!("{name}={value}"));
    let words =
        [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_string_lossy().into_owned());
    let words: Vec<_> = set.chain(words).map(|word| quoted(&word)).collect();
    let text = format!("#!/bin/sh\nexec env {} \"$@\"\n", words.join(" "));
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What can be done there.
pub(crate) fn hints(cluster: &Cluster, tools: &Path, chart: &str) -> Result<String> {
    let agents = ["n1", "n2"].map(|node| {
        let node = format!("--field-selector=spec.nodeName={node}");
        let label = "--selector=app.kubernetes.io/name=bulkhead";
        let words =
            ["--namespace=bulkhead-system", "get", "pods", label, &node, "--output=jsonpath={.items[0].metadata.name}"];
        cluster.kubectl(&words)
    });
    let [first, second] = agents;
    Ok(format!(
        r"
The lab stands: nodes n1 and n2, flannel's VXLAN between them, and Bulkhead enforces.

  export PATH={tools}:$PATH KUBECONFIG={kubeconfig}

  kubectl get pods --all-namespaces --output wide
  kubectl --namespace shop exec web -- /agnhost connect cart:8080 --timeout=1s      # passes
  kubectl --namespace shop exec web -- /agnhost connect db:5432 --timeout=1s        # blocked, TIMEOUT
  kubectl --namespace ops exec backup -- /agnhost connect db.shop:5432 --timeout=1s # passes

On the node of web and cart, and on that of payments and db:

  kubectl --namespace bulkhead-system exec {first} --container agent -- bulkhead status
  kubectl --namespace bulkhead-system exec {first} --container agent -- bulkhead get rules
  kubectl --namespace bulkhead-system exec {first} --container agent -- bulkhead observe
  kubectl --namespace bulkhead-system exec {first} --container agent -- bulkhead explain --from shop/web --to shop/db --port 5432
  kubectl --namespace bulkhead-system logs {second} --container agent   # what it warned of
  n1 busybox wget -q -O - http://127.0.0.1:9477/metrics | grep blocked

Change something, and call again:

  kubectl --namespace shop get networkpolicies
  kubectl --namespace shop label pod web app=cart --overwrite
  helm --namespace bulkhead-system upgrade bulkhead {chart} --reset-then-reuse-values --set observe=true

make lab-down removes it.
",
        tools = tools.display(),
        kubeconfig = cluster.kubeconfig().display(),
        first = first?,
        second = second?,
    ))
}
