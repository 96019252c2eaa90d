//! Guards that stand when an agent starts, and that nothing explains which it was told: what runtimes told the one before is lost.
//!
//! Whom a runtime's results or the workloads file know is attached before the first publish, which so finds the guard in place. Whom nobody knows is not
//! let go with what is left over: the publish shuts the link ([`Node::keep_shut`]), and then it is a stranger's as any other ([`super::adopt`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use bulkhead_dataplane::{
    desired::Desired,
    node::{ContainerLink, Containers, Node, NodeError},
};

use super::{
    Settings,
    adopt::{addresses, attached, not_another, workload},
    cni::{Here, compile_attached, is_known},
    compiling::Compiling,
};
use crate::{
    adopt::{cache, identify},
    attachments::{Attachment, Attachments, LISTED},
    diagnostic::source,
    input::{Inputs, LIVE},
    store::Revision,
    workloads::{self, Workloads},
};

/// What stood before the first publish.
pub(super) struct Recall {
    containers: Containers,
    /// Links that the workloads file named itself: who is in it no longer was taken out by whoever wrote it, and is let go.
    written: BTreeSet<String>,
}

impl Recall {
    /// Looks what stands. `before` are the revisions of which one is in force.
    ///
    /// # Errors
    /// See [`Node::containers`].
    pub(super) fn look<'a, N: Node>(
        node: &mut N,
        settings: &Settings,
        before: impl Iterator<Item = &'a Revision>,
    ) -> Result<Self, NodeError> {
        let written = before.flat_map(|revision| written(&revision.inputs, &settings.node)).collect();
        Ok(Self { containers: node.containers()?, written })
    }

    /// Adds to what is attached, and to what is compiled of it, whom somebody knows. Links of the others, and why nobody is known.
    pub(super) fn explain(
        &self,
        compiling: &mut Compiling,
        mut known: Attachments,
        here: &Here<'_>,
        (settings, unreadable): (&Settings, &mut BTreeSet<PathBuf>),
    ) -> (Attachments, BTreeMap<String, String>) {
        let lost = self.unexplained(&compiling.desired());
        if lost.is_empty() {
            return (known, BTreeMap::new());
        }
        let cached = settings.scope.cache.as_ref().map(|directory| cache::read(directory, unreadable));
        let cached = cached.unwrap_or_default();
        let join = |known: &Attachments| known.join(here.listed, here.node).unwrap_or_else(|_| here.listed.clone());
        let (mut joined, mut whys) = (join(&known), BTreeMap::new());
        for link in lost {
            // A container with two interfaces is found with the first of them.
            if known.links().contains(&(link.link.clone(), link.index)) {
                continue;
            }
            let who = |joined: &Workloads| identify(link, &self.containers, &cached, (joined, here.node));
            let mut request = who(&joined);
            if request.as_ref().is_ok_and(|request| request.network == LISTED) {
                // Since then another link may have got the addresses by which this one is found.
                joined = join(&known);
                request = who(&joined);
            }
            let found = request.and_then(|request| {
                not_another(&known, &request)?;
                let Some(attached) = attached(&request).cloned() else { return Ok(()) };
                is_known(here.listed, &attached)?;
                let mut next = known.clone();
                next.add(Attachment { network: request.network, attached });
                // What contradicts the file, or others, is left out: it keeps no agent from its start.
                compile_attached(compiling, here, &known, &next).map_err(|found| found.to_string())?;
                known = next;
                Ok(())
            });
            if let Err(why) = found {
                whys.insert(link.link.clone(), why);
            }
        }
        let nobodys = self.unexplained(&compiling.desired()).into_iter().map(|link| &link.link);
        // Where nothing is to be dropped nothing is shut.
        let nobodys = nobodys.filter(|link| !settings.manner.observe && !self.written.contains(*link));
        let why = |link: &String| whys.get(link).cloned().unwrap_or_else(|| "its link became another one's".to_owned());
        let nobodys = nobodys.map(|link| (link.clone(), why(link))).collect();
        (known, nobodys)
    }

    /// Links with guards that are none of these endpoints'.
    fn unexplained(&self, desired: &Desired) -> Vec<&ContainerLink> {
        let explained: BTreeSet<&str> = desired.endpoints.iter().map(|endpoint| endpoint.link.as_str()).collect();
        let guarded = self.containers.links.iter().filter(|link| link.guarded);
        guarded.filter(|link| !explained.contains(link.link.as_str())).collect()
    }

    /// Says what came of it, once it is in force: how many containers were found again.
    pub(super) fn tell(&self, before: &Attachments, after: &Attachments, nobodys: &BTreeMap<String, String>) -> u64 {
        let mut found = 0;
        for Attachment { attached, .. } in after.iter().filter(|new| !before.iter().any(|known| known == *new)) {
            found += 1;
            let (container, workload) = (attached.key.container.as_str(), workload(attached));
            tracing::info!(container, workload, "adopted: its guard stood, and stays");
        }
        for link in self.containers.links.iter().filter(|link| nobodys.contains_key(&link.link)) {
            let (addresses, why) = (addresses(link), &nobodys[&link.link]);
            tracing::warn!(
                link = link.link,
                addresses,
                "it had a guard, and nobody is known who runs behind it: it is shut until somebody is: {why}"
            );
        }
        found
    }
}

/// Links that the workloads file of a revision names for endpoints of a node.
fn written(inputs: &Inputs, node: &str) -> BTreeSet<String> {
    let (name, text) = &inputs.workloads;
    if name == LIVE {
        return BTreeSet::new();
    }
    // It was good when it took effect; names that are not known let nobody go.
    let Ok(file) = workloads::parse(&source(name, text.as_str())) else { return BTreeSet::new() };
    let here = file.workloads.values().filter(|workload| *workload.node == *node);
    here.flat_map(|workload| &workload.endpoints).map(|endpoint| endpoint.link.clone()).collect()
}
