//! What several tests need.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use bulkhead_controller::{
    compile::compile,
    diagnostic::{Diagnostics, source},
    model::Model,
    policy, workloads,
};
use bulkhead_dataplane::{
    desired::{Desired, Interval, Peers, PolicySet, RuleId, SelectorId},
    node::{Discovered, direction_label},
};
use bulkhead_ebpf::abi::Class;

/// When policies are compiled, in nanoseconds of Unix time: 2026-01-01.
pub(crate) const NOW: u64 = 1_767_225_600_000_000_000;

/// Text of one of the policies to copy.
pub(crate) fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of the policies to copy, and the workloads file that each is written for.
pub(crate) const EXAMPLES: [(&str, &str); 13] = [
    ("shop.yaml", "shop-workloads.yaml"),
    ("ports.yaml", "ports-workloads.yaml"),
    ("tenants.yaml", "examples-workloads.yaml"),
    ("quarantine.yaml", "examples-workloads.yaml"),
    ("guard.yaml", "examples-workloads.yaml"),
    ("audit.yaml", "examples-workloads.yaml"),
    ("default-deny-dns.yaml", "examples-workloads.yaml"),
    ("database.yaml", "examples-workloads.yaml"),
    ("egress-external.yaml", "examples-workloads.yaml"),
    ("break-glass.yaml", "examples-workloads.yaml"),
    ("metadata-kubelet.yaml", "examples-workloads.yaml"),
    ("tenant-guard.yaml", "examples-workloads.yaml"),
    ("virtual-patch.yaml", "examples-workloads.yaml"),
];

/// A model from texts.
pub(crate) fn model(text: (&str, &str), workloads: (&str, &str)) -> Result<Model, Diagnostics> {
    let workloads = workloads::parse(&source(workloads.0, workloads.1))?;
    let policies = policy::parse(&source(text.0, text.1))?;
    Model::build(&policies, &workloads)
}

/// A model from two files of the policies to copy.
pub(crate) fn example_model(policy: &str, workloads: &str) -> Model {
    model((policy, &example(policy)), (workloads, &example(workloads))).unwrap_or_else(|found| panic!("{found}"))
}

/// What a node shall enforce, from texts.
pub(crate) fn desired(policy: &str, workloads: &str, node: &str) -> Result<Desired, Diagnostics> {
    compile(&model(("policy.yaml", policy), ("workloads.yaml", workloads))?, node, &Discovered::default(), NOW)
}

/// Everything that is decided, in few lines.
pub(crate) fn render(desired: &Desired) -> String {
    let mut text = String::new();
    for endpoint in &desired.endpoints {
        let name = &endpoint.name;
        let _ = writeln!(
            text,
            "endpoint {}/{}#{} service={} link={} segment={} {:?} {:?}",
            name.namespace,
            name.workload,
            name.index,
            endpoint.service,
            endpoint.link,
            endpoint.segment,
            endpoint.addresses,
            endpoint.mode
        );
        for view in &endpoint.views {
            if let Some(until) = view.until {
                let _ = writeln!(text, "  until {}", bulkhead_controller::show::time(until));
            }
            for id in [view.ingress, view.egress] {
                render_set(&mut text, desired, &desired.sets[id.0 as usize]);
            }
        }
    }
    let selectors = |ids: &BTreeSet<SelectorId>| {
        ids.iter().map(|id| desired.selectors[id.0 as usize].clone()).collect::<Vec<_>>().join(" | ")
    };
    for ((segment, address), known) in &desired.addresses {
        let what = known
            .endpoint
            .as_ref()
            .map_or(String::new(), |name| format!(" endpoint {}/{}#{}", name.namespace, name.workload, name.index));
        let flags = [(known.node, " node"), (known.encapsulated, " encapsulated")]
            .map(|(set, flag)| if set { flag } else { "" })
            .concat();
        let _ = writeln!(text, "address {segment} {address}{what}{flags}: {}", selectors(&known.selectors));
    }
    for ((segment, prefix), known) in &desired.prefixes {
        let flags = [(known.overlay, " overlay"), (known.encapsulated, " encapsulated")]
            .map(|(set, flag)| if set { flag } else { "" })
            .concat();
        let _ = writeln!(text, "prefix {segment} {prefix}{flags}: {}", selectors(&known.selectors));
    }
    for (service, backends) in &desired.services {
        let address = service.address.map_or_else(|| "node".to_owned(), |address| address.to_string());
        let _ = write!(text, "service {} {address} {}/{}:", service.segment, service.port, service.protocol);
        for backend in backends {
            let later = if backend.judged_later { " judged later" } else { "" };
            let _ = write!(text, " {} {}{later},", backend.address, backend.port);
        }
        text = text.trim_end_matches(',').to_owned() + "\n";
    }
    for overlay in &desired.overlays {
        let _ = writeln!(text, "overlay {} port={} own={:?}", overlay.vni, overlay.port, overlay.own);
        for (vtep, prefixes) in &overlay.peers {
            let prefixes: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "  {vtep}: {}", prefixes.join(" "));
        }
    }
    text
}

fn render_set(text: &mut String, desired: &Desired, set: &PolicySet) {
    let rule = |id: RuleId| {
        let rule = &desired.rules[id.0 as usize];
        format!("[{}] {}", rule.name, rule.origin).trim_end().to_owned()
    };
    let _ = writeln!(text, "  {} {}", direction_label(set.direction), if set.isolated { "isolated" } else { "open" });
    if set.classes.iter().all(|intervals| intervals == &set.classes[0]) {
        // The same for every class: once is enough.
        render_class(text, "every class", &set.classes[0], desired, &rule);
        return;
    }
    for (class, intervals) in Class::ALL.iter().zip(&set.classes) {
        render_class(text, &format!("{class:?}"), intervals, desired, &rule);
    }
}

fn render_class(
    text: &mut String,
    class: &str,
    intervals: &[Interval],
    desired: &Desired,
    rule: &dyn Fn(RuleId) -> String,
) {
    for interval in intervals {
        let _ = writeln!(text, "    {class} from {}", interval.start);
        for entry in &interval.entries {
            let peers = match &entry.peers {
                Peers::Any(id) => format!("any {}", rule(*id)),
                Peers::Selectors(peers) => peers
                    .iter()
                    .map(|(selector, id)| format!("{} {}", desired.selectors[selector.0 as usize], rule(*id)))
                    .collect::<Vec<_>>()
                    .join(" | "),
            };
            let audit = if entry.audit { " audit" } else { "" };
            let _ =
                writeln!(text, "      tier {} {:?}{audit} {}: {peers}", entry.tier, entry.action, entry.reason.label());
        }
    }
}
