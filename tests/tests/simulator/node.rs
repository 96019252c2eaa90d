//! Nodes: tables that were published, and the programs that judge by them.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, UNIX_EPOCH},
};

use bulkhead_controller::{compile::compile, model::Model};
use bulkhead_dataplane::{
    desired::{Desired, EndpointName},
    kernel::KernelStore,
    load::Sizes,
    node::{Discovered, NodeError, Wire},
    publish::Publisher,
};
use bulkhead_fixtures::Mac;
use bulkhead_tests::test_run::{Kernel, small};
use tempfile::TempDir;

use crate::cases::NOW;

/// The MAC of every endpoint.
pub(crate) const MAC: Mac = [2, 0, 0, 0, 0, 1];

/// Loaded programs with tables of their own, used by one case after the other.
#[derive(Default)]
pub(crate) struct Kernels(Vec<Raised>);

struct Raised {
    publisher: Publisher<KernelStore>,
    kernel: Kernel,
    /// State directory of the publisher.
    _directory: TempDir,
}

/// A node of a case.
pub(crate) struct Node<'a> {
    pub(crate) kernel: &'a Kernel,
    /// What is in force.
    pub(crate) desired: Desired,
    pub(crate) slots: HashMap<EndpointName, u32>,
}

impl Kernels {
    /// Compiles and publishes a model for each node that has workloads with an endpoint.
    pub(crate) fn publish<'a>(&'a mut self, model: &'a Model) -> BTreeMap<&'a str, Node<'a>> {
        let with_endpoints = model.workloads.values().filter(|workload| !workload.endpoints.is_empty());
        let mut nodes: Vec<&str> = with_endpoints.map(|workload| &*workload.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        while self.0.len() < nodes.len() {
            self.0.push(Raised::new().expect("programs load"));
        }
        let publish = |(node, raised): (&'a str, &'a mut Raised)| {
            let desired = compile(model, node, &Discovered::default(), NOW).expect("the simulator compiled it");
            (node, raised.publish(desired).unwrap_or_else(|error| panic!("{node}: {error}")))
        };
        nodes.into_iter().zip(&mut self.0).map(publish).collect()
    }
}

impl Raised {
    fn new() -> Result<Self, NodeError> {
        let (store, kernel) = Kernel::load(&Sizes { slots: 64, rows: 4096, ..small() }, [0; 4])?;
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let mut publisher = Publisher::open(store, directory.path())?;
        publisher.set_clock(|| UNIX_EPOCH + Duration::from_nanos(NOW));
        Ok(Self { publisher, kernel, _directory: directory })
    }

    /// Publishes nothing at all first, so that no flow of another case is left.
    fn publish(&mut self, mut desired: Desired) -> Result<Node<'_>, NodeError> {
        for (number, endpoint) in desired.endpoints.iter_mut().enumerate() {
            // Manifests do not tell them.
            endpoint.link = format!("veth{number}");
        }
        self.replace(&Desired::default())?;
        let slots = self.replace(&desired)?;
        Ok(Node { kernel: &self.kernel, desired, slots })
    }

    fn replace(&mut self, desired: &Desired) -> Result<HashMap<EndpointName, u32>, NodeError> {
        let plan = self.publisher.prepare(desired, &mut |_| Ok(Wire::to(MAC)))?;
        let slots = plan.attach.iter().map(|attach| (attach.endpoint.clone(), attach.slot)).collect();
        let removed = plan.removed.clone();
        self.publisher.commit(plan)?;
        self.publisher.release(&removed)?;
        Ok(slots)
    }
}
