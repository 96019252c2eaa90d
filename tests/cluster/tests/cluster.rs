//! A cluster works as one does, and leaves nothing behind.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bulkhead_cluster::{Cluster, Node, ProxyMode, available};
use bulkhead_fixtures::skip;

const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.56";
/// For what must happen on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One test at a time, as one of them looks at what this process leaves; none where a cluster cannot start, which has been said.
#[track_caller]
fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let missing = available().err();
    let can = skip::root() && skip::require(missing.as_deref().unwrap_or_default(), missing.is_none());
    can.then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A server on each node, with a Service before it.
fn servers(nodes: usize) -> String {
    let server = |number: usize| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{ name: s{number}, labels: {{ app: s{number} }} }}
spec:
  nodeName: n{number}
  terminationGracePeriodSeconds: 0
  containers: [{{ name: agnhost, image: "{AGNHOST}", args: [netexec] }}]
---
apiVersion: v1
kind: Service
metadata: {{ name: service-s{number} }}
spec: {{ selector: {{ app: s{number} }}, ports: [{{ port: 80, targetPort: 8080 }}], ipFamilyPolicy: PreferDualStack }}
"#
        )
    };
    (1..=nodes).map(server).collect::<Vec<_>>().join("---\n")
}

fn start_servers(cluster: &Cluster) {
    let count = cluster.nodes().len();
    cluster.apply(&servers(count)).unwrap();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]).unwrap();
}

fn addresses(cluster: &Cluster, pod: &str) -> Vec<String> {
    let path = "jsonpath={.status.podIPs[*].ip}";
    let said = cluster.kubectl(&["get", "pod", pod, "--output", path]).unwrap();
    said.split(' ').map(str::to_owned).collect()
}

/// Has the server of a pod ask another one who it is. (busybox, linked statically, cannot resolve names.)
#[track_caller]
fn asks(cluster: &Cluster, pod: &str, host: &str, port: u16, expected: &str) {
    let url = format!("http://127.0.0.1:8080/dial?protocol=http&request=hostname&tries=1&host={host}&port={port}");
    let words = ["exec", pod, "--", "wget", "-q", "-O", "-", &url];
    let expected = format!(r#"{{"responses":["{expected}"]}}"#);
    eventually(|| match cluster.kubectl(&words) {
        Ok(said) if said == expected => None,
        other => Some(format!("{pod} asks {host}: {other:?}")),
    });
}

/// Waits until nothing is wrong any more.
#[track_caller]
fn eventually(mut wrong: impl FnMut() -> Option<String>) {
    let start = Instant::now();
    while let Some(what) = wrong() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Every pod reaches every other one by address and, through kube-proxy and CoreDNS, by the name of its Service.
#[track_caller]
fn all_reach_each_other(cluster: &Cluster) {
    let pods: Vec<_> = (1..=cluster.nodes().len()).map(|number| format!("s{number}")).collect();
    for from in &pods {
        for to in &pods {
            asks(cluster, from, &format!("service-{to}"), 80, to);
            for address in addresses(cluster, to) {
                asks(cluster, from, &address, 8080, to);
            }
        }
    }
}

fn inode_and_text(node: &Node) -> (u64, String) {
    let path = node.conflists().join("10-flannel.conflist");
    (std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap()), fs::read_to_string(path).unwrap())
}

fn printed(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What this machine has that a cluster might change or leave: links, addresses, routes, rules, settings, and mounts and namespaces with our number.
fn machine() -> Vec<(&'static str, String)> {
    let ours = format!("bh-{}-", std::process::id());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(&ours)).collect();
    let mut all = vec![
        ("links", printed("ip", &["-brief", "link"])),
        ("addresses", printed("ip", &["-brief", "address"])),
        ("routes", printed("ip", &["route", "show", "table", "all"])),
        ("rules", printed("nft", &["list", "ruleset"])),
        ("mounts", mounts.join("\n")),
        ("namespaces", printed("find", &["/run/netns", "-name", &format!("{ours}*")])),
    ];
    for file in ["/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/panic", "/proc/sys/net/ipv4/ip_forward"] {
        all.push((file, fs::read_to_string(file).unwrap()));
    }
    all
}

/// Processes and control groups with the cluster's name.
fn left(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if line.contains(name) || groups.contains(name) {
            found.push(format!("{} {line}", entry.path().display()));
        }
    }
    let groups = printed("find", &["/sys/fs/cgroup", "-name", &format!("{name}*")]);
    found.extend(groups.lines().map(str::to_owned));
    found
}

#[test]
fn two_nodes() {
    let Some(_turn) = turn() else { return };
    let before = machine();
    let start = Instant::now();
    let mut cluster = Cluster::builder().nodes(2).start().unwrap();
    eprintln!("started after {:?}", start.elapsed());
    let (name, directory) = (cluster.name().to_owned(), cluster.directory().to_owned());
    assert!(!left(&name).is_empty(), "this would find nothing");
    start_servers(&cluster);
    all_reach_each_other(&cluster);

    // What changed the conflist is undone, and pods start by what stands there.
    let node = cluster.node_mut(0);
    let (inode, text) = inode_and_text(node);
    fs::write(node.conflists().join("10-flannel.conflist"), "changed").unwrap();
    node.restart_flannel().unwrap();
    assert_eq!(inode_and_text(node), (inode, text));
    cluster.wait_ready().unwrap();
    cluster.kubectl(&["delete", "pod", "s1"]).unwrap();
    start_servers(&cluster);
    all_reach_each_other(&cluster);

    // Pods live without the API server.
    let there = addresses(&cluster, "s2").remove(0);
    cluster.stop_api_server().unwrap();
    assert!(cluster.kubectl(&["get", "nodes"]).is_err());
    let reach =
        cluster.node(0).command("wget").args(["-q", "-O", "-", &format!("http://{there}:8080/hostname")]).output();
    let reach = reach.unwrap();
    assert_eq!(String::from_utf8_lossy(&reach.stdout), "s2", "{reach:?}");
    cluster.start_api_server().unwrap();
    asks(&cluster, "s1", "service-s2", 80, "s2");

    let start = Instant::now();
    drop(cluster);
    eprintln!("ended after {:?}", start.elapsed());
    assert_eq!(left(&name), Vec::<String>::new());
    assert!(!directory.exists());
    for (before, after) in before.into_iter().zip(machine()) {
        assert_eq!(before, after);
    }
}

/// Three nodes with both families, translated by nftables.
#[test]
fn three_nodes_with_both_families() {
    let Some(_turn) = turn() else { return };
    let cluster = Cluster::builder().nodes(3).proxy(ProxyMode::Nftables).dual_stack(true).start().unwrap();
    start_servers(&cluster);
    assert_eq!(addresses(&cluster, "s1").len(), 2);
    all_reach_each_other(&cluster);
    let rules = cluster.node(0).command("nft").args(["list", "tables"]).output().unwrap();
    assert!(String::from_utf8_lossy(&rules.stdout).contains("table ip6 kube-proxy"), "{rules:?}");
}

/// Whoever is killed cannot tidy up: his processes end all the same, and the next cluster removes the rest.
#[test]
fn killed() {
    const CHILD: &str = "BULKHEAD_CLUSTER_CHILD";
    let Some(_turn) = turn() else { return };
    if let Some(file) = std::env::var_os(CHILD) {
        let cluster = Cluster::builder().nodes(1).start().unwrap();
        fs::write(file, cluster.name()).unwrap();
        loop {
            thread::park();
        }
    }
    let told = std::env::temp_dir().join(format!("bulkhead-cluster-{}", std::process::id()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed", "--nocapture"])
        .env(CHILD, &told)
        .spawn()
        .unwrap();
    eventually(|| {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        (!told.exists() || fs::read(&told).unwrap().is_empty()).then(|| "it has not started".to_owned())
    });
    let name = fs::read_to_string(&told).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(&told).unwrap();
    eventually(|| {
        let processes: Vec<_> = left(&name).into_iter().filter(|line| line.starts_with("/proc")).collect();
        (!processes.is_empty()).then(|| format!("{processes:?}"))
    });
    drop(Cluster::builder().nodes(1).start().unwrap());
    assert_eq!(left(&name), Vec::<String>::new());
    assert!(!std::env::temp_dir().join(&name).exists());
    assert!(!Path::new("/run/netns").read_dir().unwrap().flatten().any(|entry| {
        let file = entry.file_name();
        file.to_string_lossy().starts_with(name.rsplit_once('-').unwrap().0)
    }));
}

/// Where a lab notes itself: one stands at a time on a machine.
const LAB: &str = "/run/bulkhead-lab";

/// Removes the lab, also when the test fails.
struct Lab(&'static Path);

impl Lab {
    #[track_caller]
    fn says(&self, word: &str) -> String {
        let output = Command::new(self.0).arg(word).output().unwrap();
        let [said, wrong] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{word}: {said}{wrong}");
        said
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new(self.0).arg("down").output();
    }
}

/// `up` raises a cluster that Bulkhead guards and says how to look around; `down` leaves nothing.
#[test]
fn lab() {
    let Some(_turn) = turn() else { return };
    let program = Path::new(env!("CARGO_BIN_EXE_bulkhead-lab"));
    let helm = program.ancestors().any(|directory| directory.join("helm/helm").is_file());
    let beside = ["bulkhead", "bulkhead-cni"].iter().all(|name| program.with_file_name(name).is_file());
    if !skip::require("helm (`tests/setup/setup.sh --test` builds it)", helm)
        || !skip::require("bulkhead and bulkhead-cni (`cargo build`)", beside)
        || !skip::require("a machine without a lab (`make lab-down`)", !Path::new(LAB).exists())
    {
        return;
    }
    let before = machine();
    let lab = Lab(program);
    let said = lab.says("up");
    let option = |name: &str| {
        let of = said.split_whitespace().find_map(|word| word.strip_prefix(name)).unwrap_or_else(|| panic!("{said}"));
        Path::new(of.split(':').next().unwrap()).to_owned()
    };
    let [tools, kubeconfig] = ["PATH=", "KUBECONFIG="].map(option);
    let directory = tools.parent().unwrap();
    let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(!left(&name).is_empty(), "this would find nothing");

    // As it says.
    let connects = |to: &str| {
        let words = ["--namespace", "shop", "exec", "web", "--", "/agnhost", "connect", to, "--timeout=1s"];
        let output = Command::new(tools.join("kubectl")).env("KUBECONFIG", &kubeconfig).args(words).output().unwrap();
        output.status.success()
    };
    assert!(connects("cart:8080"));
    assert!(!connects("db:5432"));
    let metrics = ["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:9477/metrics"];
    assert!(printed(tools.join("n1").to_str().unwrap(), &metrics).contains("bulkhead_packets_total"));

    lab.says("down");
    assert_eq!(left(&name), Vec::<String>::new());
    assert!(!directory.exists() && !Path::new(LAB).exists());
    let owner = name.rsplit_once('-').unwrap().0;
    let namespaces = printed("find", &["/run/netns", "-name", &format!("{owner}-*")]);
    assert_eq!(namespaces, "");
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(&format!("{owner}-")));
    for (before, after) in before.into_iter().zip(machine()) {
        assert_eq!(before, after);
    }
}
