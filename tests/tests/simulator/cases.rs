//! What is compared: all cases of netpol-analyzer, policies of the conformance tests of network-policy-api, policies to copy, and cases of our own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_controller::{diagnostic::source, manifest::Manifests, model::Model, offline, workloads::WorkloadName};
use bulkhead_ebpf::abi::Mode;
use bulkhead_fixtures::templates::host_ports;

/// As of when all of them are compared, in nanoseconds of Unix time.
pub(crate) const NOW: u64 = 1_796_083_200_000_000_000;

/// A model in which no two workloads are one party, and none has addresses of both families: so that what the simulator says of two parties it says of
/// two addresses.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) model: Model,
}

/// Directories with the policies of the conformance tests, each of which is tried with their workloads.
const CONFORMANCE: [&str; 3] = ["admin_tier", "api_integration", "baseline_tier"];
/// Those of either tier that are also tried together.
const TIERS: [&str; 2] =
    ["admin_tier/standard-gress-rules-combined.yaml", "baseline_tier/standard-gress-rules-combined.yaml"];

/// Policies to copy, each with what it is tried with.
const EXAMPLES: [&[&str]; 8] = [
    &["shop.yaml", "shop-workloads.yaml"],
    &["guard.yaml", "database.yaml", "examples-workloads.yaml"],
    &["tenant-guard.yaml", "tenants.yaml", "examples-workloads.yaml"],
    &["audit.yaml", "examples-workloads.yaml"],
    &["ports.yaml", "ports-workloads.yaml"],
    &["break-glass.yaml", "database.yaml", "examples-workloads.yaml"],
    &["kubernetes/shop.yaml", "kubernetes/shop-manifests.yaml"],
    &["kubernetes/quarantine.yaml", "kubernetes/examples-manifests.yaml"],
];

/// All of them, with IPv4 and IPv6 apart.
pub(crate) fn all(data: &Path) -> Vec<Case> {
    let mut files = inside(&data.join("policies/netpol-analyzer/tests"));
    files.sort();
    let mut files: Vec<Vec<PathBuf>> = files.into_iter().map(|case| vec![case]).collect();
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    files.extend(["ends.yaml", "many.yaml"].map(|own_case| vec![own.join("tests/simulator").join(own_case)]));
    let examples = own.join("../policy-examples");
    files.extend(EXAMPLES.iter().map(|files| below(&examples, files)));
    let mut models: Vec<_> = files.iter().map(|files| (name(&files[0]), load(files))).collect();
    let base = data.join("policies/network-policy-api/conformance/base");
    let mut policies: Vec<PathBuf> = CONFORMANCE.iter().flat_map(|directory| inside(&base.join(directory))).collect();
    policies.sort();
    models.extend(policies.into_iter().map(|policy| (name(&policy), conformance(&base, &[policy]))));
    models.push(("both tiers".to_owned(), conformance(&base, &below(&base, &TIERS))));
    models.push(("shop.yaml in other modes".to_owned(), modes(load(&below(&examples, EXAMPLES[0])))));
    models.into_iter().flat_map(|(name, model)| families(&name, &model)).collect()
}

/// What a directory has.
fn inside(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.expect("a file").path()).collect()
}

fn below(directory: &Path, files: &[&str]) -> Vec<PathBuf> {
    files.iter().map(|file| directory.join(file)).collect()
}

/// A case is called after its first file, and the directory of that.
fn name(path: &Path) -> String {
    let names: Vec<_> = path.iter().rev().take(2).map(|name| name.to_string_lossy()).collect();
    names.iter().rev().map(AsRef::as_ref).collect::<Vec<_>>().join("/")
}

fn load(paths: &[PathBuf]) -> Model {
    offline::load(paths).unwrap_or_else(|found| panic!("{paths:?}: {found}")).model
}

fn conformance(base: &Path, policies: &[PathBuf]) -> Model {
    let mut manifests = Manifests::default();
    for path in policies.iter().cloned().chain([base.join("manifests.yaml")]) {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        manifests
            .read(&source(path.display().to_string(), host_ports(&text)))
            .unwrap_or_else(|found| panic!("{found}"));
    }
    let model = manifests.workloads().and_then(|workloads| Model::build(&manifests.policies, &workloads));
    model.unwrap_or_else(|found| panic!("{policies:?}: {found}"))
}

/// The shop, with a workload of each mode.
fn modes(mut model: Model) -> Model {
    let modes = [("cart-1", Mode::Observe), ("db-1", Mode::Pending), ("payments-1", Mode::Quarantine)];
    for (name, mode) in modes {
        let name = WorkloadName::new("shop".to_owned(), name.to_owned());
        let workload = model.workloads.get_mut(&name).expect("a workload of the shop");
        Arc::make_mut(&mut workload.described).mode = mode;
    }
    model
}

/// A case for each family in which workloads have addresses.
fn families(name: &str, model: &Model) -> Vec<Case> {
    let case = |v6: bool| {
        let mut model = model.clone();
        for workload in model.workloads.values_mut() {
            let described = Arc::make_mut(&mut workload.described);
            described.owner = None;
            for endpoint in &mut described.endpoints {
                endpoint.addresses.retain(|address| address.is_ipv6() == v6);
            }
        }
        let endpoints = model.workloads.values().flat_map(|workload| &workload.endpoints);
        let some = endpoints.flat_map(|endpoint| &endpoint.addresses).next().is_some();
        some.then(|| Case { name: format!("{name}, {}", if v6 { "IPv6" } else { "IPv4" }), model })
    };
    [false, true].into_iter().filter_map(case).collect()
}
