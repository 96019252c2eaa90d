//! What a source tells one by one, carried out one by one: costs what changes, not what is there.
//!
//! Whatever is not as simple as that is left to reading all of it. What took effect is written down when it has been quiet for a while: a cluster keeps its
//! policies itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_dataplane::node::Node;

use super::{Agent, change, draft, records::Written};
use crate::{
    audit::{Event, Outcome},
    diagnostic::Diagnostics,
    input::{Files, Listing},
    model::PolicyName,
    network_policy::NetworkPolicy,
    peers::Made,
    source::{Changes, PolicyText},
    store::{Condition, Head, StoreError, now},
    workloads::{self, WorkloadName},
};

/// Quiet time before what took effect is written down, and the longest wait for quiet.
const QUIET: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);
/// Writing takes at most this part of the time: the disk is not the agent's alone.
const SHARE: u32 = 20;
/// How often it is looked whether it is written.
const LOOK: Duration = Duration::from_millis(50);

/// Policies that took effect and are not written down yet.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    texts: BTreeMap<String, Option<String>>,
    /// Those that are being written.
    writing: BTreeMap<String, Option<String>>,
    /// When the first and the last of them took effect.
    since: Option<(Instant, Instant)>,
    /// How long it took the last time.
    took: Duration,
}

impl Unwritten {
    fn add(&mut self, texts: BTreeMap<String, Option<String>>) {
        if !texts.is_empty() {
            let now = Instant::now();
            self.since = Some((self.since.map_or(now, |(first, _)| first), now));
            self.texts.extend(texts);
        }
    }

    /// When they are written down.
    fn due(&self) -> Option<Instant> {
        let rest = self.took * SHARE;
        self.since.map(|(first, last)| (last + QUIET.max(rest)).min(first + PATIENCE.max(rest)))
    }

    /// They are being written.
    fn begin(&mut self) {
        (self.writing, self.since) = (mem::take(&mut self.texts), None);
    }

    /// They are not written, and it is tried again.
    fn again(&mut self) {
        for (name, text) in mem::take(&mut self.writing) {
            self.texts.entry(name).or_insert(text);
        }
        let now = Instant::now();
        self.since = Some((now, now));
    }

    pub(super) fn clear(&mut self) {
        *self = Self { took: self.took, ..Self::default() };
    }
}

impl<N: Node> Agent<N> {
    /// Carries out what the source says that has changed. `false` where all of it has to be read instead.
    pub fn follow_changes(&mut self) -> bool {
        // What is in force must be what is written, but for what follows.
        let is_plain = self.listed.live
            && self.seen.is_some()
            && !self.stale
            && self.uses_all()
            && self.overlay.documents.is_empty()
            && self.overlay.held.is_empty()
            && self.revision.head.condition != Condition::Staged;
        if !is_plain {
            return false;
        }
        if !self.settings.source.has_news() {
            return true;
        }
        let Some(changes) = self.settings.source.changes() else { return false };
        let is_done = self.carry_out(changes);
        if !is_done {
            // It was told, and will not be told again.
            self.seen = None;
        }
        is_done
    }

    fn carry_out(&mut self, mut changes: Changes) -> bool {
        // Where this node is says where what runtimes told of is.
        if changes.nodes.contains_key(&self.settings.node) || self.disputes(&changes) {
            return false;
        }
        let told = mem::take(&mut changes.policies);
        let Some(policies) = self.read_policies(&told) else { return false };
        let names = changes.workloads.keys().cloned().collect();
        let before = changes.exchange(&mut self.listed);
        self.compiled = now();
        self.compiling.begin();
        let is_done = match self.compile_changes(policies, &before, &names) {
            Ok(()) => self.enforce(self.compiling.desired()).is_ok(),
            Err(_) => false,
        };
        if !is_done {
            self.compiling.go_back();
            _ = before.exchange(&mut self.listed);
            return false;
        }
        self.compiling.keep();
        // Policies name nobody.
        if !(before.workloads.is_empty() && before.nodes.is_empty() && before.frontends.is_empty()) {
            self.peers = Made::default();
        }
        if let Some(Files { workloads: (_, Ok(Listing::Live(seen))), .. }) = &mut self.seen {
            // These are not the workloads any more: nobody keeps them for a comparison.
            *seen = Arc::default();
        }
        let texts: BTreeMap<_, _> =
            told.into_iter().map(|(name, written)| (name, written.map(|written| written.text))).collect();
        if let Some(Ok(seen)) = self.seen.as_mut().map(|seen| &mut seen.policies) {
            for (name, text) in texts.clone() {
                match text {
                    Some(text) => _ = seen.insert(name, Ok(text)),
                    None => _ = seen.remove(&name),
                }
            }
        }
        self.say_who_is_shut(!texts.is_empty());
        self.unwritten.add(texts);
        if self.attachments.learn(&self.listed) {
            self.keep_attachments();
        }
        true
    }

    /// Whether a node got or lost an address that a workload has, as the source or its runtime says: as long as it is a node's it is nobody else's, and what
    /// is compiled has forgotten whose it was.
    fn disputes(&self, changes: &Changes) -> bool {
        let of = |node: Option<&Arc<workloads::Node>>| node.map(|node| node.addresses.clone()).unwrap_or_default();
        let moved = |(name, after): (&String, &Option<Arc<workloads::Node>>)| {
            &of(self.listed.nodes.get(name)) ^ &of(after.as_ref())
        };
        let moved: BTreeSet<_> = changes.nodes.iter().flat_map(moved).collect();
        // Seldom, so that looking at all of them is no matter.
        let listed = self.listed.workloads.values().flat_map(|workload| &workload.endpoints);
        let given = self.attachments.iter().flat_map(|attachment| &attachment.attached.interfaces);
        let listed = listed.flat_map(|endpoint| &endpoint.addresses);
        let mut all = listed.chain(given.flat_map(|interface| &interface.addresses));
        !moved.is_empty() && all.any(|address| moved.contains(address))
    }

    /// What files say, if each is one Kubernetes policy and nothing else, and was so.
    fn read_policies(
        &mut self,
        told: &BTreeMap<String, Option<PolicyText>>,
    ) -> Option<Vec<(PolicyName, Option<NetworkPolicy>)>> {
        let mut policies = Vec::new();
        for (name, written) in told {
            let before = self.memory.network_policy(name)?.cloned();
            let after = match written {
                Some(written) => {
                    self.memory.read(name, written);
                    Some(self.memory.network_policy(name)??.clone())
                }
                None => {
                    self.memory.forget(name);
                    None
                }
            };
            let called = before.iter().chain(&after).map(|policy| policy.name.clone()).collect::<BTreeSet<_>>();
            policies.extend(called.into_iter().map(|name| {
                let after = after.clone().filter(|policy| policy.name == name);
                (name, after)
            }));
        }
        // What goes makes room first.
        policies.sort_by_key(|(_, after)| after.is_some());
        Some(policies)
    }

    /// Compiles policies, and what of the workloads was otherwise `before`.
    fn compile_changes(
        &mut self,
        policies: Vec<(PolicyName, Option<NetworkPolicy>)>,
        before: &Changes,
        names: &BTreeSet<WorkloadName>,
    ) -> Result<(), Diagnostics> {
        let (listed, node) = (&self.listed, self.settings.node.as_str());
        let (discovered, now, attachments) = (&self.discovered, self.compiled, &self.attachments);
        let renamed = attachments.renamed(names, listed, |name| {
            before.workloads.get(name).and_then(|workload| workload.as_ref()?.uid.as_deref())
        });
        self.compiling.together(|compiling| {
            compiling.renew(discovered, now)?;
            for (name, policy) in policies {
                compiling.put_policy(&name, policy)?;
            }
            for name in before.namespaces.keys() {
                compiling.label_namespace(name, listed.namespaces.get(name).cloned())?;
            }
            compiling.put_nodes(before.nodes.keys().map(|name| (name, listed.nodes.get(name))), discovered, now)?;
            let (there, gone): (Vec<_>, Vec<_>) =
                before.frontends.keys().partition(|name| listed.frontends.contains_key(*name));
            for name in gone.into_iter().chain(there) {
                compiling.put_service(name, listed.frontends.get(name).cloned())?;
            }
            if renamed.is_empty() {
                return Ok(());
            }
            // Who has an address no longer comes before who has it now.
            let attached = attachments.workloads(listed);
            let (here, others): (Vec<_>, Vec<_>) = renamed.iter().partition(|name| attached.contains(*name));
            let others = others.into_iter().map(|name| (name, attachments.left_of(listed, name)));
            let (gone, others): (Vec<_>, Vec<_>) = others.partition(|(_, left)| left.is_none());
            for (name, left) in gone.into_iter().chain(others) {
                compiling.put(name, left.as_ref())?;
            }
            for name in here {
                let owner = |segment, address| compiling.owner(name, segment, address);
                let workload = attachments.joined(listed, node, name, owner)?;
                compiling.put(name, workload.as_ref())?;
            }
            Ok(())
        })
    }

    /// How long until [`Self::go_on_writing`] has something to do.
    #[must_use]
    pub fn until_written(&self) -> Option<Duration> {
        match self.keeper.writing() {
            Some(true) => Some(Duration::ZERO),
            Some(false) => Some(LOOK),
            None => self.unwritten.due().map(|due| due.saturating_duration_since(Instant::now())),
        }
    }

    /// Begins to write down what took effect, if it is time, or takes note of what has been written. Nobody waits for it.
    pub fn go_on_writing(&mut self) {
        if self.keeper.writing() == Some(true) {
            self.end_writing();
        }
        if self.keeper.writing().is_none() && self.unwritten.due().is_some_and(|due| due <= Instant::now()) {
            self.begin_writing();
        }
    }

    /// Writes down what took effect, if it is not yet, before it returns. Where that fails it is tried again.
    pub fn write_down(&mut self) {
        if self.end_writing() {
            self.begin_writing();
            self.end_writing();
        }
    }

    fn begin_writing(&mut self) {
        if self.unwritten.texts.is_empty() {
            return;
        }
        // What is in force is its parent.
        if let Err(error) = self.mark() {
            self.unwritten.again();
            self.stored(Err(error));
            return;
        }
        let mut inputs = self.revision.inputs.clone();
        for (name, text) in &self.unwritten.texts {
            match text {
                Some(text) => _ = inputs.policies.insert(name.clone(), text.clone()),
                None => _ = inputs.policies.remove(name),
            }
        }
        if inputs == self.revision.inputs {
            self.unwritten.clear();
            return;
        }
        let draft = draft(&self.settings, inputs, &self.compiling.desired());
        let (node, before) = (self.settings.node.clone(), Some(self.revision.head.number));
        let event = move |head: &Head| Event { revision_before: before, ..change(&node, head, Outcome::Ok, "") };
        match self.keeper.begin(draft, self.beside(), event) {
            Ok(()) => self.unwritten.begin(),
            Err(error) => {
                self.unwritten.again();
                self.stored(Err(format!("what took effect is not written yet, no thread can be started: {error}")));
            }
        }
    }

    /// Waits for what is being written, if anything is. What uses the database, or says what is in force, calls this first. `false` where it could not be
    /// written.
    pub(super) fn end_writing(&mut self) -> bool {
        let Some(Written { revision, took }) = self.keeper.end() else { return true };
        match revision {
            Ok(revision) => {
                self.unwritten.writing.clear();
                self.unwritten.took = took;
                (self.revision, self.staged) = (revision, None);
                self.stored(Ok::<_, StoreError>(()));
                self.say_in_force();
                true
            }
            Err(error) => {
                self.unwritten.again();
                self.stored(Err(error));
                false
            }
        }
    }
}
