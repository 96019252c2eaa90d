//! What is compiled for the node, and how much of it at a time.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use bulkhead_dataplane::{
    desired::{Desired, Manner, Segment},
    node::Discovered,
};

use super::for_node;
use crate::{
    compile::{Compiler, Extent, Misfits},
    diagnostic::{Diagnostic, Diagnostics},
    labels::Labels,
    metrics::Compiles,
    model::{Model, PolicyName, ServiceName},
    network_policy::NetworkPolicy,
    workloads::{Frontend, Node, Workload, WorkloadName},
};

/// Keeps what is compiled up to date. What does not take effect after all is taken back.
#[derive(Debug)]
pub(super) struct Compiling {
    compiler: Compiler,
    manner: Manner,
    compiles: Compiles,
}

impl Compiling {
    /// Goes on from what was compiled whole.
    pub(super) fn new(mut compiler: Compiler, manner: Manner) -> Self {
        compiler.narrow();
        Self { compiler, manner, compiles: Compiles { whole: 1, changes: 0 } }
    }

    pub(super) const fn model(&self) -> &Arc<Model> {
        self.compiler.model()
    }

    /// What the node shall enforce.
    pub(super) fn desired(&self) -> Desired {
        for_node(self.compiler.desired().clone(), self.manner)
    }

    pub(super) const fn compiles(&self) -> Compiles {
        self.compiles
    }

    /// What follows holds when [`Self::keep`] is called, and not when [`Self::go_back`] is.
    pub(super) fn begin(&mut self) {
        self.compiler.begin();
    }

    pub(super) fn keep(&mut self) {
        self.compiler.keep();
        self.compiler.narrow();
    }

    pub(super) fn go_back(&mut self) {
        self.compiler.go_back();
    }

    /// Carries out several changes, all of them or none.
    pub(super) fn together<T>(
        &mut self,
        changes: impl FnOnce(&mut Self) -> Result<T, Diagnostics>,
    ) -> Result<T, Diagnostics> {
        let outer = self.compiler.branch();
        let done = changes(self);
        self.compiler.join(outer, done.is_ok());
        done
    }

    /// Compiles another model, and what is so by now.
    pub(super) fn follow(
        &mut self,
        model: Arc<Model>,
        discovered: &Discovered,
        now: u64,
        misfits: Misfits,
    ) -> Result<(), Diagnostics> {
        match self.compiler.follow(model, discovered, now, misfits)? {
            Extent::Whole => self.compiles.whole += 1,
            Extent::Changes => self.compiles.changes += 1,
            Extent::Nothing => {}
        }
        Ok(())
    }

    /// The same model, and what is so by now.
    pub(super) fn renew(&mut self, discovered: &Discovered, now: u64) -> Result<(), Diagnostics> {
        self.follow(Arc::clone(self.model()), discovered, now, self.compiler.misfits().clone())
    }

    /// Workloads that are shut, since their rules do not fit.
    pub(super) fn shut(&self) -> BTreeSet<WorkloadName> {
        self.compiler.shut().cloned().collect()
    }

    /// The same, whose rules may go on not to fit.
    pub(super) fn misfits(&self) -> Misfits {
        Misfits::These(self.shut())
    }

    /// Why they are.
    pub(super) fn why_shut(&self) -> Diagnostics {
        let shut: Vec<_> = self.compiler.shut().map(ToString::to_string).collect();
        let mut found = self.compiler.why_shut();
        if !shut.is_empty() {
            let what = "only their node reaches them, and they reach nobody, until their rules fit";
            found.push(Diagnostic::nowhere(format!("{what}: {}", shut.join(", "))));
        }
        found
    }

    /// A workload is new, other than before, or gone.
    pub(super) fn put(&mut self, name: &WorkloadName, workload: Option<&Arc<Workload>>) -> Result<(), Diagnostics> {
        match workload {
            Some(workload) => self.compiler.upsert_workload(name, workload),
            None => self.compiler.remove_workload(name),
        }?;
        self.compiles.changes += 1;
        Ok(())
    }

    /// A Kubernetes policy is new, other than before, or gone.
    pub(super) fn put_policy(&mut self, name: &PolicyName, policy: Option<NetworkPolicy>) -> Result<(), Diagnostics> {
        match policy {
            Some(policy) => self.compiler.upsert_network_policy(policy),
            None => self.compiler.remove_network_policy(name),
        }?;
        self.compiles.changes += 1;
        Ok(())
    }

    /// A namespace has these labels; `None` for one that is gone.
    pub(super) fn label_namespace(&mut self, name: &str, labels: Option<Labels>) -> Result<(), Diagnostics> {
        self.compiler.label_namespace(name, labels)?;
        self.compiles.changes += 1;
        Ok(())
    }

    /// Nodes are new, other than before, or gone. All is compiled, but nothing else is built anew.
    pub(super) fn put_nodes<'a>(
        &mut self,
        nodes: impl Iterator<Item = (&'a String, Option<&'a Arc<Node>>)>,
        discovered: &Discovered,
        now: u64,
    ) -> Result<(), Diagnostics> {
        let mut nodes = nodes.peekable();
        if nodes.peek().is_none() {
            return Ok(());
        }
        let mut model = Model::clone(self.model());
        for (name, node) in nodes {
            match node {
                Some(node) => _ = model.nodes.insert(name.clone(), Arc::clone(node)),
                None => _ = model.nodes.remove(name),
            }
        }
        self.follow(Arc::new(model), discovered, now, self.compiler.misfits().clone())
    }

    /// A service is new, other than before, or gone.
    pub(super) fn put_service(&mut self, name: &ServiceName, frontend: Option<Frontend>) -> Result<(), Diagnostics> {
        match frontend {
            Some(frontend) => self.compiler.upsert_service(name, frontend),
            None => self.compiler.remove_service(name),
        }?;
        self.compiles.changes += 1;
        Ok(())
    }

    /// Somebody else who has an address.
    pub(super) fn owner(&self, name: &WorkloadName, segment: Segment, address: IpAddr) -> Option<WorkloadName> {
        self.compiler.owners(segment, address).find(|owner| *owner != name).cloned()
    }
}
