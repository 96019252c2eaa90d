//! Every policy to copy compiles for every node, and says what its comments say.

use std::{collections::BTreeSet, fs, path::PathBuf};

use crate::support::{EXAMPLES, NOW, example, example_model, render};
use bulkhead_controller::{
    compile::compile,
    explain::{Party, Question, explain, parse_point},
    model::Model,
    offline,
    simulate::{Simulation, text},
    workloads::WorkloadName,
};
use bulkhead_dataplane::node::Discovered;

/// Guards isolate nobody: what they do is seen beside an Intent.
const BESIDE: [(&str, &str); 5] = [
    ("guard.yaml", "database.yaml"),
    ("break-glass.yaml", "database.yaml"),
    ("metadata-kubelet.yaml", "tenants.yaml"),
    ("tenant-guard.yaml", "tenants.yaml"),
    ("virtual-patch.yaml", "database.yaml"),
];

/// As of when the expected tables hold, in nanoseconds of Unix time, and as the command line takes it.
const AT: (u64, &str) = (1_796_083_200_000_000_000, "2026-12-01T00:00:00Z");

fn directory(below: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples").join(below)
}

/// Names of the files with an extension, without it.
fn names(below: &str, extension: &str) -> BTreeSet<String> {
    let files = fs::read_dir(directory(below)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    files.filter_map(|name| Some(name.strip_suffix(extension)?.to_owned())).collect()
}

fn examples() -> BTreeSet<String> {
    EXAMPLES.iter().map(|(policy, _)| stem(policy).to_owned()).collect()
}

fn stem(policy: &str) -> &str {
    policy.strip_suffix(".yaml").unwrap()
}

/// The files with which an example is tried.
fn tried(policy: &'static str, workloads: &'static str) -> Vec<&'static str> {
    let beside = BESIDE.iter().find(|(name, _)| *name == policy).map(|(_, beside)| *beside);
    [policy].into_iter().chain(beside).chain([workloads]).collect()
}

/// The same for Kubernetes, where there is a form for it.
fn kubernetes(policy: &str) -> Option<Vec<String>> {
    let path = |name: &str| format!("kubernetes/{name}");
    let beside = BESIDE.iter().find(|(name, _)| *name == policy).map(|(_, beside)| path(beside));
    let workloads = if policy == "shop.yaml" { "shop-manifests.yaml" } else { "examples-manifests.yaml" };
    directory(&path(policy))
        .exists()
        .then(|| [path(policy)].into_iter().chain(beside).chain([path(workloads)]).collect())
}

/// What `bulkhead simulate` prints.
fn table(files: &[&str], at: u64) -> String {
    let paths: Vec<PathBuf> = files.iter().map(|name| directory(name)).collect();
    let loaded = offline::load(&paths).unwrap_or_else(|found| panic!("{files:?}: {found}"));
    assert_eq!(loaded.notes.to_string(), "", "{files:?}");
    let simulation = Simulation::new(&loaded.model, at).unwrap_or_else(|found| panic!("{files:?}: {found}"));
    text::table(&simulation, &simulation.connections())
}

#[test]
fn every_example_lets_through_what_is_expected() {
    let renew = std::env::var_os("BULKHEAD_RENEW").is_some();
    let mut changed = Vec::new();
    let own = EXAMPLES.into_iter().map(|(policy, workloads)| (stem(policy).to_owned(), tried(policy, workloads)));
    let ours = own.map(|(name, files)| (name, files.into_iter().map(str::to_owned).collect::<Vec<_>>()));
    let kubernetes = EXAMPLES
        .into_iter()
        .filter_map(|(policy, _)| Some((format!("kubernetes/{}", stem(policy)), kubernetes(policy)?)));
    for (name, files) in ours.chain(kubernetes) {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let (found, path) = (table(&files, AT.0), directory("expected").join(format!("{name}.txt")));
        if renew {
            fs::write(&path, &found).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if found != expected {
            let command = format!("bulkhead simulate --at {} {}", AT.1, files.join(" "));
            changed.push(format!("$ {command}\n{found}\nexpected/{name}.txt:\n{expected}"));
        }
    }
    assert!(
        changed.is_empty(),
        "{}\nIf the new tables are right, renew the files:\n  \
         BULKHEAD_RENEW=1 cargo test -p bulkhead-controller --test compiler examples",
        changed.join("\n")
    );
    assert_eq!(names("expected", ".txt"), examples());
}

/// Lines between workloads, without the kinds that manifests know.
fn between_workloads(table: &str) -> BTreeSet<String> {
    let words = |line: &str| line.replace("[Pod]", "").split_whitespace().collect::<Vec<_>>().join(" ");
    let inside = |line: &&str| line.contains('/') && !line.contains('(') && !line.contains("::");
    let workloads =
        table.lines().filter(inside).filter(|line| line.split_whitespace().take(2).all(|name| name.contains('/')));
    workloads.map(words).collect()
}

#[test]
fn kubernetes_says_the_same_of_workloads() {
    let mut compared = 0;
    for (policy, workloads) in EXAMPLES {
        let Some(files) = kubernetes(policy) else { continue };
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let (ours, theirs) = (table(&tried(policy, workloads), AT.0), table(&files, AT.0));
        assert_eq!(between_workloads(&theirs), between_workloads(&ours), "{policy}");
        compared += 1;
    }
    assert_eq!(compared, names("kubernetes", ".yaml").iter().filter(|name| !name.ends_with("-manifests")).count());
}

#[test]
fn what_ends_is_gone_afterwards() {
    let hours = |hours: u64| AT.0 + hours * 3_600_000_000_000;
    let opened = |hour| {
        let text = table(&tried("break-glass.yaml", "examples-workloads.yaml"), hours(hour));
        text.lines().any(|line| line.starts_with("203.0.113.7") && line.contains("warehouse/db-1"))
    };
    assert!(opened(3));
    assert!(!opened(4));
    let patched = |hour| table(&tried("virtual-patch.yaml", "examples-workloads.yaml"), hours(hour)).contains("8010-");
    assert!(patched(0));
    assert!(!patched(24 * 62));
    assert_eq!(
        table(&tried("virtual-patch.yaml", "examples-workloads.yaml"), hours(24 * 62)),
        table(&tried("database.yaml", "examples-workloads.yaml"), hours(24 * 62))
    );
}

#[test]
fn nobody_reaches_the_machine() {
    let model = example_model("metadata-kubelet.yaml", "examples-workloads.yaml");
    for (to, point, verdict) in [
        ("169.254.169.254", "80", "BLOCKED"),
        ("192.0.2.1", "10250", "BLOCKED"),
        ("192.0.2.1", "10255", "BLOCKED"),
        ("192.0.2.1", "443", "ALLOWED"),
        ("203.0.113.9", "10250", "ALLOWED"),
    ] {
        let answer = ask(&model, "warehouse/api-1", to, point);
        assert!(answer.starts_with(verdict), "{answer}");
    }
}

#[test]
fn health_checks_pass_in_quarantine_and_nothing_else() {
    let model = example_model("quarantine.yaml", "examples-workloads.yaml");
    for (from, to, verdict) in [
        ("192.0.2.1", "reports/generator-1", "ALLOWED"),
        ("warehouse/api-1", "reports/generator-1", "BLOCKED"),
        ("203.0.113.9", "reports/generator-1", "BLOCKED"),
        ("reports/generator-1", "172.20.0.53", "BLOCKED"),
        ("reports/generator-1", "192.0.2.1", "BLOCKED"),
        ("warehouse/api-1", "warehouse/db-1", "ALLOWED"),
    ] {
        let answer = ask(&model, from, to, "443");
        assert!(answer.starts_with(verdict), "{answer}");
    }
}

/// Its comment says what it is for, and README.md lists it with all that belongs to it.
#[test]
fn every_example_is_described() {
    let readme = example("README.md");
    let kubernetes = names("kubernetes", ".yaml");
    for (policy, workloads) in EXAMPLES {
        let comment = example(policy).lines().take_while(|line| line.starts_with("# ")).count();
        assert!((3..=6).contains(&comment), "{policy} begins with {comment} lines of comment, not 3 to 6");
        let start = format!("| [{policy}]({policy}) |");
        let line = readme.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{policy}"));
        let beside = tried(policy, workloads).into_iter().skip(1).map(|name| format!("[{name}]({name})"));
        let expected = [format!("(expected/{}.txt)", stem(policy))];
        let form = format!("(kubernetes/{policy})");
        let form = kubernetes.contains(stem(policy)).then_some(form);
        for part in beside.chain(expected).chain(form) {
            assert!(line.contains(&part), "{policy}: README.md does not say {part}");
        }
    }
    let of_no_example: Vec<_> = kubernetes.difference(&examples()).cloned().collect();
    assert_eq!(of_no_example, ["examples-manifests", "shop-manifests"]);
}

#[test]
fn every_example_is_listed_and_compiles_for_every_node() {
    let files: BTreeSet<String> = names("", ".yaml").into_iter().map(|name| name + ".yaml").collect();
    let listed: BTreeSet<String> =
        EXAMPLES.iter().flat_map(|(policy, workloads)| [(*policy).to_owned(), (*workloads).to_owned()]).collect();
    assert_eq!(files, listed);
    for (policy, workloads) in EXAMPLES {
        let model = example_model(policy, workloads);
        assert_eq!(model.warnings.to_string(), "", "{policy}");
        for node in model.nodes.keys() {
            let desired = compile(&model, node, &Discovered::default(), NOW)
                .unwrap_or_else(|found| panic!("{policy} {node}: {found}"));
            assert!(!desired.endpoints.is_empty(), "{policy} {node}");
            insta::assert_snapshot!(format!("{policy}-{node}"), render(&desired));
        }
    }
}

fn ask(model: &Model, from: &str, to: &str, point: &str) -> String {
    let parties: Vec<_> = [from, to].map(|text| text.parse().map_err(|_| workload(text))).into();
    let party = |i: usize| match &parties[i] {
        Ok(address) => Party::Address(*address),
        Err(name) => Party::Workload(name),
    };
    let (class, value) = parse_point(point).unwrap();
    explain(model, Question { from: party(0), to: party(1), class, value }, NOW).unwrap().text(model)
}

fn workload(text: &str) -> WorkloadName {
    let (namespace, name) = text.split_once('/').unwrap();
    WorkloadName::new(namespace.to_owned(), name.to_owned())
}

#[test]
fn the_shop_is_explained_by_its_lines() {
    let model = example_model("shop.yaml", "shop-workloads.yaml");
    let answers: Vec<String> = [
        ("shop/web-1", "shop/db-1", "5432"),
        ("shop/web-1", "shop/cart-1", "8080"),
        ("shop/web-1", "shop/cart-1", "8081"),
        ("shop/web-1", "shop/cart-1", "8080/udp"),
        ("shop/web-1", "shop/cart-1", "echo/icmp"),
        ("shop/payments-1", "198.51.100.7", "443"),
        ("shop/payments-1", "198.51.100.13", "443"),
        ("shop/cart-1", "198.51.100.7", "443"),
        ("203.0.113.9", "shop/web-1", "8443"),
        ("203.0.113.9", "shop/db-1", "5432"),
        ("192.0.2.1", "shop/web-1", "22"),
        ("192.0.2.2", "shop/web-1", "22"),
        ("10.244.2.99", "shop/web-1", "8443"),
        ("shop/web-1", "169.254.169.254", "80"),
        ("ops/backup-1", "shop/db-1", "5432"),
        ("ops/backup-1", "shop/cart-1", "8080"),
        ("ops/backup-1", "203.0.113.9", "443"),
        ("shop/cart-1", "ops/backup-1", "22"),
        ("shop/web-1", "10.96.3.4", "80"),
        ("ops/backup-1", "fd00:96::34", "80"),
        ("shop/web-1", "10.96.3.4", "81"),
        ("shop/web-1", "10.96.0.1", "443"),
    ]
    .iter()
    .map(|(from, to, point)| ask(&model, from, to, point))
    .collect();
    assert_eq!(
        answers[0],
        "BLOCKED web -> db 5432/tcp  at web's egress: web is isolated (shop.yaml:9) and may call cart:8080; db would refuse too (shop.yaml:17); \
         nearest rule cart -> db:5432 (shop.yaml:13), differs in: caller"
    );
    let answers = answers.join("\n");
    insta::assert_snapshot!(answers);
}
