//! Keeps what a node shall enforce up to date, event by event: costs what an event moves, not what is there.
//!
//! [`compile`] says the same of the same model, but for ids. Here they stay with what they name, and that of what is gone is given again: until then
//! its place is empty.

mod bindings;
mod change;
mod drawn;
mod edit;
mod follow;
mod frontends;
mod kinds;
mod labelled;
mod registry;
mod rows;
mod watches;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::{
    desired::{self, Desired, EndpointName, PolicySet, Segment, View},
    listed::Listed,
    node::Discovered,
};
use bulkhead_ebpf::abi::Direction;

use self::{
    bindings::Bindings,
    change::{Touch, Touched},
    edit::Edit,
    follow::Back,
    frontends::Frontends,
    kinds::{Key, Kind, Refused, Symbols, Turnover},
    rows::{Pen, Rows, keys},
};
pub use self::{
    change::{Change, Moved},
    follow::Extent,
    kinds::Misfits,
};
use super::{compile, draft::Selector, endpoints_of, network::Underlay};
use crate::{
    diagnostic::{Diagnostic, Diagnostics},
    labels::Labels,
    model::{Model, PolicyName, ServiceName, Workload},
    network_policy::NetworkPolicy,
    workloads::{self, Frontend, WorkloadName},
};

/// What all of it is compiled from.
#[derive(Debug)]
struct Cluster {
    /// Shared with whoever reads it: an event then changes a copy.
    model: Arc<Model>,
    node: String,
    discovered: Discovered,
    now: u64,
    underlay: Underlay,
    misfits: Misfits,
}

/// Compiles for one node, and then what changes.
#[derive(Debug)]
pub struct Compiler {
    cluster: Cluster,
    symbols: Symbols,
    kinds: BTreeMap<Arc<Key>, Kind>,
    /// Workloads of this node.
    locals: BTreeMap<WorkloadName, Arc<Key>>,
    /// How many endpoints of this node are in a segment.
    segments: BTreeMap<Segment, usize>,
    rows: Rows,
    frontends: Frontends,
    bindings: Bindings,
    desired: Desired,
    /// The way back, while it is kept.
    way: Option<Vec<Back>>,
    /// The way back failed: nothing but the model holds any more.
    doubtful: bool,
}

/// Kinds that are compiled but not in force.
#[derive(Debug, Default)]
struct Staged {
    kinds: BTreeMap<Arc<Key>, Kind>,
    /// Workloads whose kind may be another one; `None` for those that are gone.
    keys: Vec<(WorkloadName, Option<Arc<Key>>)>,
    turnover: Turnover,
}

impl Compiler {
    /// Compiles all of a model.
    ///
    /// # Errors
    /// See [`compile`].
    pub fn new(
        model: impl Into<Arc<Model>>,
        node: &str,
        discovered: Discovered,
        now: u64,
    ) -> Result<Self, Diagnostics> {
        Self::with(model.into(), node, discovered, now, Misfits::None)
    }

    /// The same, and says whose rules need not fit, in what follows too.
    ///
    /// # Errors
    /// See [`compile`].
    pub fn with(
        model: Arc<Model>,
        node: &str,
        discovered: Discovered,
        now: u64,
        misfits: Misfits,
    ) -> Result<Self, Diagnostics> {
        let mut compiler = Self {
            cluster: Cluster::new(model, node.to_owned(), discovered, now, misfits),
            symbols: Symbols::default(),
            kinds: BTreeMap::new(),
            locals: BTreeMap::new(),
            segments: BTreeMap::new(),
            rows: Rows::default(),
            frontends: Frontends::default(),
            bindings: Bindings::default(),
            desired: Desired::default(),
            way: None,
            doubtful: false,
        };
        compiler.renew(&mut Touch::default()).map_err(|_| compiler.refusal())?;
        Ok(compiler)
    }

    /// What the node shall enforce.
    #[must_use]
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What it is compiled from. Warnings are those of when the model was built.
    #[must_use]
    pub const fn model(&self) -> &Arc<Model> {
        &self.cluster.model
    }

    /// Whose rules need not fit.
    #[must_use]
    pub const fn misfits(&self) -> &Misfits {
        &self.cluster.misfits
    }

    /// Workloads of this node that are shut.
    pub fn shut(&self) -> impl Iterator<Item = &WorkloadName> {
        Key::all_shut().filter_map(|key| self.kinds.get(&key)).flat_map(|kind| &kind.users)
    }

    /// Only those that are shut need not fit from here on.
    pub fn narrow(&mut self) {
        let shut: BTreeSet<_> = self.shut().cloned().collect();
        self.cluster.misfits = if shut.is_empty() { Misfits::None } else { Misfits::These(shut) };
    }

    /// Why they are, as [`compile`] says it; nothing where all fit.
    #[must_use]
    pub fn why_shut(&self) -> Diagnostics {
        match self.shut().next() {
            Some(_) => self.said_of(&self.cluster.model),
            None => Diagnostics::default(),
        }
    }

    /// Who has an address in a segment: workloads of all nodes, those included whose address nobody knows yet.
    pub fn owners(&self, segment: Segment, address: IpAddr) -> impl Iterator<Item = &WorkloadName> {
        self.rows.owners_of((segment, address))
    }

    /// A workload is new, or is another now.
    ///
    /// # Errors
    /// See [`compile`]; then nothing changed.
    pub fn upsert_workload(
        &mut self,
        name: &WorkloadName,
        workload: &Arc<workloads::Workload>,
    ) -> Result<Change, Diagnostics> {
        let selected = self.cluster.model.selected(name, workload);
        self.event(Edit::Workload(name.clone(), Some(Box::new(selected))))
    }

    /// A workload is gone.
    ///
    /// # Errors
    /// See [`compile`]; then nothing changed.
    pub fn remove_workload(&mut self, name: &WorkloadName) -> Result<Change, Diagnostics> {
        self.event(Edit::Workload(name.clone(), None))
    }

    /// A Kubernetes policy is new, or says something else now.
    ///
    /// # Errors
    /// See [`compile`]; then nothing changed.
    pub fn upsert_network_policy(&mut self, policy: NetworkPolicy) -> Result<Change, Diagnostics> {
        self.event(Edit::Policy(policy.name.clone(), Some(Arc::new(policy))))
    }

    /// A Kubernetes policy is gone.
    ///
    /// # Errors
    /// See [`compile`]; then nothing changed.
    pub fn remove_network_policy(&mut self, name: &PolicyName) -> Result<Change, Diagnostics> {
        self.event(Edit::Policy(name.clone(), None))
    }

    /// A namespace has these labels now, and no others; `None` for one that is gone.
    ///
    /// # Errors
    /// See [`compile`]; then nothing changed.
    pub fn label_namespace(&mut self, name: &str, labels: Option<Labels>) -> Result<Change, Diagnostics> {
        self.event(Edit::Namespace(name.to_owned(), labels))
    }

    /// A service has other addresses, ports or backends. Rules that `dns: cluster` made of a resolver's stay: for those see [`Compiler::replace`].
    ///
    /// # Errors
    /// See [`compile`]; then nothing changed.
    pub fn upsert_service(&mut self, name: &ServiceName, frontend: Frontend) -> Result<Change, Diagnostics> {
        self.event(Edit::Frontend(name.clone(), Some(frontend)))
    }

    /// A service is gone. See [`Compiler::upsert_service`].
    ///
    /// # Errors
    /// See [`compile`]; then nothing changed.
    pub fn remove_service(&mut self, name: &ServiceName) -> Result<Change, Diagnostics> {
        self.event(Edit::Frontend(name.clone(), None))
    }

    /// For whatever else: another model, another network, a later time. Compiles all of it; ids stay.
    ///
    /// # Errors
    /// See [`compile`]; then nothing changed.
    pub fn replace(
        &mut self,
        model: impl Into<Arc<Model>>,
        discovered: Discovered,
        now: u64,
    ) -> Result<Change, Diagnostics> {
        let Cluster { node, misfits, .. } = &self.cluster;
        let cluster = Cluster::new(model.into(), node.clone(), discovered, now, misfits.clone());
        let mut touch = Touch::default();
        self.put_cluster(cluster, &mut touch)?;
        Ok(touch.into())
    }

    fn put_cluster(&mut self, cluster: Cluster, touch: &mut Touch) -> Result<(), Diagnostics> {
        let before = mem::replace(&mut self.cluster, cluster);
        if self.renew(touch).is_err() {
            let refusal = self.refusal();
            self.cluster = before;
            return Err(refusal);
        }
        self.remember(|| Back::Cluster(Box::new(before)));
        Ok(())
    }

    /// Carries one event out, or leaves all as it is.
    fn event(&mut self, edit: Edit) -> Result<Change, Diagnostics> {
        self.carry_out(edit, Self::refusal).map_err(|refused| refused.1)
    }

    /// The same; an edit that is refused is given back, with what is asked about it while it is made.
    fn carry_out<E>(&mut self, edit: Edit, why: impl FnOnce(&Self) -> E) -> Result<Change, Box<(Edit, E)>> {
        let Self { cluster, symbols, .. } = self;
        let affected = edit.affected(&cluster.model);
        let mut stale =
            affected.iter().filter(|name| self.locals.contains_key(*name)).cloned().collect::<BTreeSet<_>>();
        let mut redrawn = BTreeSet::new();
        let about = edit.namespace();
        for (name, key) in self.locals.iter().filter(|(name, _)| about == Some(name.namespace.as_str())) {
            if let Some(workload) = cluster.model.workloads.get(name)
                && edit.concerns(&cluster.model, workload)
            {
                stale.insert(name.clone());
                redrawn.insert(Arc::clone(key));
            }
        }
        let counted = |symbols: &Symbols, model: &Model| {
            let some = affected.iter().filter_map(|name| model.workloads.get_key_value(name));
            some.flat_map(|(name, workload)| symbols.watches.of(model, name, workload)).collect::<Vec<_>>()
        };
        let listened = counted(symbols, &cluster.model);
        let edited = edit.policy().cloned();
        let outdated = edited.as_ref().map(|name| symbols.drawings.outdate(name));
        let back = edit.apply(Arc::make_mut(&mut cluster.model));
        let listening = counted(symbols, &cluster.model);
        let touched = symbols.watches.recount(&listened, &listening);
        for (key, kind) in self.kinds.iter().filter(|(_, kind)| !kind.watches.is_disjoint(&touched)) {
            stale.extend(kind.users.iter().cloned());
            redrawn.insert(Arc::clone(key));
        }
        stale.extend(affected.iter().filter(|name| cluster.is_local(name)).cloned());
        // Those that are shut depend on nothing, and may fit by now.
        let shut = Key::all_shut().filter_map(|key| self.kinds.get(&key));
        stale.extend(shut.flat_map(|kind| kind.users.iter().cloned()));

        let staged = match cluster.has_place_for(affected.iter()) {
            true => self.stage(&stale, &redrawn, edited.as_ref()),
            false => Err(Refused::default()),
        };
        match staged {
            Ok(staged) => {
                let mut touch = Touch::default();
                self.commit(staged, &back, &affected, &mut touch);
                self.remember(|| Back::Edit(back));
                Ok(touch.into())
            }
            Err(_) => {
                let refusal = why(self);
                self.symbols.watches.recount(&listening, &listened);
                outdated.into_iter().for_each(|outdated| self.symbols.drawings.restore(outdated));
                let edit = back.apply(Arc::make_mut(&mut self.cluster.model));
                Err(Box::new((edit, refusal)))
            }
        }
    }

    /// What [`compile`] says of a model that does not fit, but of those that need not.
    fn refusal(&self) -> Diagnostics {
        let Misfits::These(these) = &self.cluster.misfits else { return self.said_of(&self.cluster.model) };
        let mut model = Model::clone(&self.cluster.model);
        for name in these {
            if let Some(workload) = model.workloads.get_mut(name) {
                // Nothing is compiled for who runs elsewhere.
                Arc::make_mut(&mut workload.described).node = "".into();
            }
        }
        self.said_of(&model)
    }

    fn said_of(&self, model: &Model) -> Diagnostics {
        let Cluster { node, discovered, now, .. } = &self.cluster;
        let refused = || Diagnostic::nowhere("the policies do not fit the tables").into();
        compile(model, node, discovered, *now).err().unwrap_or_else(refused)
    }

    /// Compiles the kinds of workloads that are not known, or have to be drawn anew. `edited` is the policy that is all that changed.
    fn stage(
        &mut self,
        stale: &BTreeSet<WorkloadName>,
        redrawn: &BTreeSet<Arc<Key>>,
        edited: Option<&PolicyName>,
    ) -> Result<Staged, Refused> {
        let Self { cluster, symbols, kinds, locals, .. } = self;
        let mut staged = Staged::default();
        let mut fits = true;
        let mut refused: BTreeMap<Arc<Key>, Refused> = BTreeMap::new();
        for name in stale {
            let there = cluster.model.workloads.get(name).filter(|_| cluster.is_local(name));
            let Some(workload) = there else {
                staged.keys.push((name.clone(), None));
                continue;
            };
            let before = locals.get(name).filter(|key| !key.is_shut());
            let before = before.map(|key| &**key).zip(edited);
            let mut key = Arc::new(symbols.key(cluster, (name, workload), before, &mut staged.turnover));
            if !staged.kinds.contains_key(&key) && (redrawn.contains(&key) || !kinds.contains_key(&key)) {
                let known = refused.get(&key).copied().map(Err);
                let of = (name, workload);
                match known.unwrap_or_else(|| symbols.kind(cluster, of, &key, &mut staged.turnover)) {
                    Ok(kind) => _ = staged.kinds.insert(Arc::clone(&key), kind),
                    Err(why @ Refused(directions)) => {
                        refused.insert(key, why);
                        fits &= cluster.misfits.include(name);
                        key = Arc::new(Key::shut(directions));
                        if fits && !staged.kinds.contains_key(&key) && !kinds.contains_key(&key) {
                            let kind = symbols.shut_kind(cluster, of, directions, &mut staged.turnover);
                            staged.kinds.insert(Arc::clone(&key), kind);
                        }
                    }
                }
            }
            staged.keys.push((name.clone(), Some(key)));
        }
        if !fits {
            for (key, kind) in &staged.kinds {
                symbols.release(key, kind, &mut staged.turnover);
            }
        }
        symbols.sweep(&mut staged.turnover);
        if fits { Ok(staged) } else { Err(Refused::default()) }
    }

    /// Puts kinds into force. Names of workloads whose views may be others.
    fn settle(&mut self, staged: Staged, turnover: &mut Turnover) -> BTreeSet<WorkloadName> {
        let Self { kinds, locals, symbols, .. } = self;
        let mut gone = Vec::new();
        let mut moved = BTreeSet::new();
        for (key, mut kind) in staged.kinds {
            if let Some((key, mut before)) = kinds.remove_entry(&key) {
                kind.users = mem::take(&mut before.users);
                moved.extend(kind.users.iter().cloned());
                gone.push((key, before));
            }
            kinds.insert(key, kind);
        }
        for (name, key) in staged.keys {
            let before = match &key {
                Some(key) => locals.insert(name.clone(), Arc::clone(key)),
                None => locals.remove(&name),
            };
            if let Some(kind) = before.and_then(|before| kinds.get_mut(&before)) {
                kind.users.remove(&name);
            }
            if let Some(kind) = key.and_then(|key| kinds.get_mut(&key)) {
                kind.users.insert(name.clone());
            }
            moved.insert(name);
        }
        gone.extend(kinds.extract_if(.., |_, kind| kind.users.is_empty()));
        gone.iter().for_each(|(key, kind)| symbols.release(key, kind, turnover));
        moved
    }

    /// Carries out what is known to fit. `back` has what was there before.
    fn commit(&mut self, mut staged: Staged, back: &Edit, affected: &BTreeSet<WorkloadName>, touch: &mut Touch) {
        let mut turnover = mem::take(&mut staged.turnover);
        let moved = self.settle(staged, &mut turnover);
        self.write_symbols(&turnover, touch);
        moved.iter().for_each(|name| self.write_endpoints(name, touch));

        let Self { cluster, symbols, segments, rows, frontends, bindings, desired, .. } = self;
        let used: BTreeSet<Segment> = segments.keys().copied().chain([0]).collect();
        let mut pen = Pen { cluster, selectors: &symbols.selectors, desired, touch, due: BTreeSet::new() };
        let there = |name| cluster.model.workloads.get_key_value(name);
        if let Edit::Workload(name, before) = back {
            if let Some(before) = before {
                rows.disown(name, before);
                pen.due.extend(keys(before));
            }
            there(name).into_iter().for_each(|(name, workload)| rows.own(name, workload));
        }
        for (_, workload) in affected.iter().filter_map(there) {
            pen.due.extend(keys(workload));
        }
        rows.leave_segments(&used, &mut pen);
        rows.change_selectors(&turnover.new_selectors, &turnover.gone_selectors, &mut pen);
        rows.enter_segments(&used, &mut pen);
        frontends.use_segments(&used, &mut pen);
        mem::take(&mut pen.due).into_iter().for_each(|key| rows.write(key, &mut pen));
        match back {
            Edit::Workload(name, before) => {
                frontends.renew(cluster.model.leading(name).iter(), &mut pen);
                bindings.change(before.as_deref(), cluster.model.workloads.get(name), &mut pen);
            }
            Edit::Frontend(name, before) => frontends.change(name, before.as_ref(), &mut pen),
            Edit::Policy(..) | Edit::Namespace(..) => {}
        }
    }

    /// Compiles all of it, and puts it in the place of what was there.
    fn renew(&mut self, touch: &mut Touch) -> Result<(), Refused> {
        let Cluster { model, node, .. } = &self.cluster;
        if !model.nodes.contains_key(node) || !self.cluster.has_place_for(model.workloads.keys()) {
            return Err(Refused::default());
        }
        let here = model.workloads.keys().filter(|name| self.cluster.is_local(name)).cloned().collect();
        let kinds = mem::take(&mut self.kinds);
        let watches = mem::take(&mut self.symbols.watches);
        let outdated = self.symbols.drawings.outdate_all();
        let Ok(mut staged) = self.stage(&here, &BTreeSet::new(), None) else {
            self.kinds = kinds;
            self.symbols.watches = watches;
            self.symbols.drawings.restore(outdated);
            return Err(Refused::default());
        };
        let mut turnover = mem::take(&mut staged.turnover);
        self.locals.clear();
        self.settle(staged, &mut turnover);
        for (key, mut kind) in kinds {
            kind.watches.clear();
            self.symbols.release(&key, &kind, &mut turnover);
        }
        let fresh = Desired { selectors: self.desired.selectors.clone(), ..Desired::default() };
        let fresh = Desired { rules: self.desired.rules.clone(), sets: self.desired.sets.clone(), ..fresh };
        let before = mem::replace(&mut self.desired, fresh);
        self.segments.clear();
        self.write_symbols(&turnover, touch);
        here.iter().for_each(|name| self.write_endpoints(name, &mut Touch::default()));

        let Self { cluster, symbols, segments, desired, .. } = self;
        let used: BTreeSet<Segment> = segments.keys().copied().chain([0]).collect();
        let mut unseen = Touch::default();
        let mut pen = Pen { cluster, selectors: &symbols.selectors, desired, touch: &mut unseen, due: BTreeSet::new() };
        self.rows = Rows::new(&used, &mut pen);
        self.frontends = Frontends::new(&used, &mut pen);
        self.bindings = Bindings::new(&mut pen);
        self.desired.addresses.compact();
        self.desired.addresses.share(&before.addresses);
        compare(&before, &self.desired, touch);
        Ok(())
    }

    /// Writes selectors, rules and sets that are new, and empty places for those that are gone.
    fn write_symbols(&mut self, turnover: &Turnover, touch: &mut Touch) {
        let Self { symbols: Symbols { selectors, rules, sets, .. }, desired, .. } = self;
        let gone = turnover.gone_selectors.iter().map(|(id, _)| id);
        let changed: Vec<_> = turnover.new_selectors.iter().chain(gone).copied().collect();
        write(&mut desired.selectors, changed.iter().map(|id| id.0), selectors.len(), |id| {
            selectors.get(id).map(Selector::to_string).unwrap_or_default()
        });
        let none = || desired::Rule { name: String::new(), origin: String::new() };
        write(&mut desired.rules, turnover.rules.iter().map(|id| id.0), rules.len(), |id| {
            rules.get(id).cloned().unwrap_or_else(none)
        });
        let none =
            || Arc::new(PolicySet { direction: Direction::Ingress, isolated: false, classes: Default::default() });
        write(&mut desired.sets, turnover.sets.iter().map(|id| id.0), sets.len(), |id| {
            sets.shared(id).cloned().unwrap_or_else(none)
        });
        changed.into_iter().for_each(|id| tell(&mut touch.selectors, id, selectors.get(id.0).is_some()));
        turnover.rules.iter().for_each(|id| tell(&mut touch.rules, *id, rules.get(id.0).is_some()));
        turnover.sets.iter().for_each(|id| tell(&mut touch.sets, *id, sets.get(id.0).is_some()));
    }

    /// Writes the endpoints of a workload of this node, or of one that no longer is.
    fn write_endpoints(&mut self, name: &WorkloadName, touch: &mut Touch) {
        let Self { cluster, kinds, locals, segments, desired, .. } = self;
        let views: Option<&[View]> = locals.get(name).and_then(|key| kinds.get(key)).map(|kind| kind.views.as_slice());
        let workload = cluster.model.workloads.get(name).zip(views);
        let after: Vec<_> = workload.into_iter().flat_map(|(of, views)| endpoints_of(name, of, views)).collect();
        let is_before =
            |endpoint: &EndpointName| (&endpoint.namespace, &endpoint.workload) < (&name.namespace, &name.name);
        let is_own =
            |endpoint: &EndpointName| (&endpoint.namespace, &endpoint.workload) == (&name.namespace, &name.name);
        let first = desired.endpoints.partition_point(|endpoint| is_before(&endpoint.name));
        let own = desired.endpoints[first..].iter().take_while(|endpoint| is_own(&endpoint.name)).count();
        for endpoint in &after {
            *segments.entry(endpoint.segment).or_default() += 1;
        }
        let before: Vec<_> = desired.endpoints.splice(first..first + own, after.iter().cloned()).collect();
        for endpoint in &before {
            let count = segments.entry(endpoint.segment).or_default();
            *count -= 1;
            if *count == 0 {
                segments.remove(&endpoint.segment);
            }
        }
        let gone = before.iter().filter(|endpoint| !after.contains(endpoint));
        gone.for_each(|endpoint| touch.endpoints.removed(endpoint.name.clone()));
        let new = after.iter().filter(|endpoint| !before.contains(endpoint));
        new.for_each(|endpoint| touch.endpoints.set(endpoint.name.clone()));
    }
}

impl Cluster {
    fn new(model: Arc<Model>, node: String, discovered: Discovered, now: u64, misfits: Misfits) -> Self {
        let underlay = Underlay::new(&model, &node, &discovered);
        Self { model, node, discovered, now, underlay, misfits }
    }

    /// Whether it is a workload of this node that has a place where rules hold.
    fn is_local(&self, name: &WorkloadName) -> bool {
        let workload = self.model.workloads.get(name);
        workload.is_some_and(|workload| *workload.node == *self.node && !workload.endpoints.is_empty())
    }

    /// Whether no address of these workloads is a node's.
    fn has_place_for<'a>(&self, mut names: impl Iterator<Item = &'a WorkloadName>) -> bool {
        let free = |workload: &Workload| keys(workload).all(|(_, address)| !self.underlay.nodes.contains_key(&address));
        names.all(|name| self.model.workloads.get(name).is_none_or(free))
    }
}

/// Writes places of a list, which is so long afterwards.
fn write<T: Clone>(list: &mut Listed<T>, places: impl Iterator<Item = u32>, len: usize, value: impl Fn(u32) -> T) {
    let more = u32::try_from(list.len()).unwrap_or(u32::MAX)..u32::try_from(len).unwrap_or(u32::MAX);
    more.for_each(|place| list.push(value(place)));
    list.truncate(len);
    places.for_each(|place| list.set(place as usize, value(place)));
}

fn tell<K: Ord>(touched: &mut Touched<K>, key: K, there: bool) {
    if there {
        touched.set(key);
    } else {
        touched.removed(key);
    }
}

/// Touches what differs, but for symbols.
fn compare(before: &Desired, after: &Desired, touch: &mut Touch) {
    let endpoints = |desired: &Desired| -> BTreeMap<EndpointName, desired::Endpoint> {
        desired.endpoints.iter().map(|endpoint| (endpoint.name.clone(), endpoint.clone())).collect()
    };
    differing(&endpoints(before), &endpoints(after), &mut touch.endpoints);
    for key in before.addresses.differing(&after.addresses) {
        tell(&mut touch.addresses, key, after.addresses.contains_key(&key));
    }
    differing(&before.prefixes, &after.prefixes, &mut touch.prefixes);
    let overlays = |desired: &Desired| -> BTreeMap<Segment, desired::Overlay> {
        desired.overlays.iter().map(|overlay| (overlay.vni, overlay.clone())).collect()
    };
    differing(&overlays(before), &overlays(after), &mut touch.overlays);
    differing(&before.services, &after.services, &mut touch.services);
}

fn differing<K: Clone + Ord, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>, touched: &mut Touched<K>) {
    let gone = before.keys().filter(|key| !after.contains_key(key));
    let other = after.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(key, _)| key);
    gone.for_each(|key| touched.removed(key.clone()));
    other.for_each(|key| touched.set(key.clone()));
}
