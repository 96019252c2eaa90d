//! What texts of others say of their policies: which calls get through, as the policies are written and after changes to them.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use bulkhead_controller::{
    diagnostic::source,
    manifest::Manifests,
    model::Model,
    policy::Policy,
    simulate::{Party, Simulation},
    workloads::{WorkloadName, Workloads},
};
use bulkhead_ebpf::abi::{Class, Direction};
use serde_json::Value;

/// Whoever is neither a workload nor a node, as a side of a call.
pub(crate) const OUTSIDE: &str = "outside";
/// One address of those outside, of each family.
const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7));

/// Nodes of the clusters. Workloads are spread over them, so that walls on one node and on two are asked.
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];

/// A call, and whether it gets through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// `namespace/name`, or [`OUTSIDE`].
    from: &'static str,
    /// Likewise.
    to: &'static str,
    /// `80/tcp`, or `echo`.
    port: &'static str,
    allowed: bool,
}

pub(crate) const fn allowed(from: &'static str, to: &'static str, port: &'static str) -> Call {
    Call { from, to, port, allowed: true }
}

pub(crate) const fn denied(from: &'static str, to: &'static str, port: &'static str) -> Call {
    Call { from, to, port, allowed: false }
}

/// A change. Paths are JSON pointers that begin with the number of the document: `/0/spec/ingress`. Values are JSON, in which `@namespace/name`
/// stands for the address of that workload as a prefix.
#[derive(Debug)]
pub(crate) enum Edit {
    /// A field gets another value; it may have been left out before.
    Set(&'static str, &'static str, &'static str),
    /// A field is left out.
    Unset(&'static str, &'static str),
    /// Two items of a list change places.
    Swap(&'static str, usize, usize),
    /// A list gets a first item.
    Prepend(&'static str, &'static str),
    /// A document is deleted. Those behind it keep their numbers.
    Delete(usize),
}

/// What holds after changes, which stay for the steps that follow.
#[derive(Debug)]
pub(crate) struct Step {
    edits: &'static [Edit],
    calls: &'static [Call],
}

pub(crate) const fn as_written(calls: &'static [Call]) -> Step {
    Step { edits: &[], calls }
}

pub(crate) const fn after(edits: &'static [Edit], calls: &'static [Call]) -> Step {
    Step { edits, calls }
}

/// Policies at each step, with the calls of that step. Before the first change the text is left as somebody wrote it.
pub(crate) fn stages<'a>(text: &str, steps: impl IntoIterator<Item = &'a Step>) -> Vec<(String, &'a [Call])> {
    let mut edited: Option<Vec<Value>> = None;
    let stage = |step: &'a Step| {
        for edit in step.edits {
            edit.apply(edited.get_or_insert_with(|| documents(text)));
        }
        (edited.as_ref().map_or_else(|| text.to_owned(), |documents| yaml(documents)), step.calls)
    };
    steps.into_iter().map(stage).collect()
}

/// Documents of a file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The opposite.
pub(crate) fn yaml(documents: &[Value]) -> String {
    documents.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}

impl Edit {
    fn apply(&self, documents: &mut [Value]) {
        match self {
            Self::Set(path, field, value) => {
                fields(documents, path).insert((*field).to_owned(), serde_json::from_str(value).unwrap());
            }
            Self::Unset(path, field) => drop(fields(documents, path).remove(*field).expect(field)),
            Self::Swap(path, one, other) => list(documents, path).swap(*one, *other),
            Self::Prepend(path, value) => list(documents, path).insert(0, serde_json::from_str(value).unwrap()),
            Self::Delete(number) => documents[*number] = Value::Null,
        }
    }
}

fn at<'a>(documents: &'a mut [Value], path: &str) -> &'a mut Value {
    let (number, rest) = path[1..].split_once('/').expect("a path behind the document's number");
    let document = &mut documents[number.parse::<usize>().unwrap()];
    document.pointer_mut(&format!("/{rest}")).unwrap_or_else(|| panic!("nothing is at {path}"))
}

fn fields<'a>(documents: &'a mut [Value], path: &str) -> &'a mut serde_json::Map<String, Value> {
    at(documents, path).as_object_mut().unwrap_or_else(|| panic!("{path} has no fields"))
}

fn list<'a>(documents: &'a mut [Value], path: &str) -> &'a mut Vec<Value> {
    at(documents, path).as_array_mut().unwrap_or_else(|| panic!("{path} is no list"))
}

/// Calls of which the simulator says something else than somebody's text, a line for each.
pub(crate) fn differences(name: &str, policies: &str, workloads: &Workloads, calls: &[Call]) -> Vec<String> {
    let mut policies = policies.to_owned();
    for (name, workload) in workloads.workloads.iter().filter(|(_, workload)| !workload.host) {
        let address = workload.endpoints[0].addresses[0];
        let prefix = format!("\"{address}/{}\"", if address.is_ipv6() { 128 } else { 32 });
        policies = policies.replace(&format!("\"@{name}\""), &prefix);
    }
    let mut manifests = Manifests::default();
    manifests.read(&source(name, policies)).unwrap_or_else(|found| panic!("{found}"));
    ask(name, &manifests.policies, workloads, calls)
}

/// Calls that do not get through although there is no policy: of these a text's word would mean nothing.
pub(crate) fn closed_without_policy(name: &str, workloads: &Workloads, calls: &[Call]) -> Vec<String> {
    let open: Vec<_> = calls.iter().map(|call| Call { allowed: true, ..*call }).collect();
    ask(&format!("{name}, left out"), &[], workloads, &open)
}

fn ask(name: &str, policies: &[Policy], workloads: &Workloads, calls: &[Call]) -> Vec<String> {
    let model = Model::build(policies, workloads).unwrap_or_else(|found| panic!("{name}: {found}"));
    let simulation = Simulation::new(&model, 0).unwrap_or_else(|found| panic!("{name}: {found}"));
    let wrong = |call: &&Call| call.passes(&simulation) != call.allowed;
    let line = |call: &Call| {
        let says = if call.allowed { "gets through" } else { "is blocked" };
        format!("{name}: {} -> {} {} {says}, as its text says; the simulator says no", call.from, call.to, call.port)
    };
    calls.iter().filter(wrong).map(line).collect()
}

impl Call {
    fn passes(&self, simulation: &Simulation<'_>) -> bool {
        let from = party(simulation, self.from, Direction::Ingress);
        let to = party(simulation, self.to, Direction::Egress);
        let v6 = is_ipv6(simulation);
        let (number, class) = match self.port.split_once('/') {
            Some((number, "tcp")) => (number.parse().unwrap(), Class::Tcp),
            Some((number, "udp")) => (number.parse().unwrap(), Class::Udp),
            Some((number, "sctp")) => (number.parse().unwrap(), Class::Sctp),
            None if self.port == "echo" && v6 => (128 << 8, Class::Icmp6),
            None if self.port == "echo" => (8 << 8, Class::Icmp),
            _ => panic!("`{}` is no port", self.port),
        };
        simulation.between(from, to).of(class).any(|(first, last)| (first..=last).contains(&number))
    }
}

/// A side of a call. Ranges outside are those that traffic of the direction tells apart.
fn party<'a>(simulation: &'a Simulation<'_>, name: &str, direction: Direction) -> Party<'a> {
    if name == OUTSIDE {
        let address = if is_ipv6(simulation) { OUTSIDE_V6 } else { OUTSIDE_V4 };
        let mut ranges = simulation.outside(direction).iter().filter(|range| range.is_ipv6() == address.is_ipv6());
        let range = ranges.find(|range| (range.first()..=range.last()).contains(&address));
        return Party::Outside(*range.expect("ranges cover all addresses"));
    }
    let (namespace, short) = name.split_once('/').expect("namespace and name");
    let full = WorkloadName::new(namespace.to_owned(), short.to_owned());
    assert!(simulation.model().workloads.contains_key(&full), "there is no workload `{name}`");
    simulation.find(&full).expect("a group for each workload")
}

/// The family of a cluster: it has one.
fn is_ipv6(simulation: &Simulation<'_>) -> bool {
    let endpoints = simulation.model().workloads.values().flat_map(|workload| &workload.endpoints);
    endpoints.flat_map(|endpoint| &endpoint.addresses).next().expect("an address").is_ipv6()
}

/// Address of a workload by its number on a node, from 1.
pub(crate) fn workload_address(v6: bool, node: usize, number: usize) -> IpAddr {
    let [node, number] = [node, number].map(|part| u8::try_from(part).unwrap());
    if v6 {
        Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 244, node, number).into()
    }
}

/// The nodes as manifests, with the label that every Linux node has.
pub(crate) fn nodes(v6: bool) -> String {
    let manifest = |(index, name): (usize, &&str)| {
        let address = if v6 { format!("2001:db8::{}", index + 1) } else { format!("192.0.2.{}", index + 1) };
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{ name: {name}, labels: {{ kubernetes.io/os: linux }} }}\n\
             status: {{ addresses: [{{ type: InternalIP, address: \"{address}\" }}] }}\n"
        )
    };
    NODES.iter().enumerate().map(manifest).collect::<Vec<_>>().join("---\n")
}

/// Files of a directory and those below it, as paths from it.
pub(crate) fn files(root: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    files
}
