//! The steps S0 to S6: in which order the tables change, so that every packet is judged by one revision wherever the publisher stops.
//!
//! Where rows and endpoint words both move and some view that is left *and* some view that is entered read the bits that change, no single write
//! can move both. Then a publish is a sequence of numbered steps, each a revision of its own:
//!
//! 1. rows lose bits that both sides read, gain bits that only the new views read, and keep bits that only the old views read;
//! 2. endpoint words flip to the new views;
//! 3. rows become what they shall be.
//!
//! Steps without content are left out: mostly it is one.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::{
    AddressWord, BACKENDS, Backend, Backends, Class, EndpointWord, IdKey, ROW_WORDS, ServiceKey, ServiceWord, node,
};

use crate::{
    desired::Manner,
    node::{NodeError, Published},
    publish::{
        CrashPoint,
        ids::{Bits, Pool, reply_key},
        lower::Target,
        places::{Change, Key, Place, Places, delete, put},
        recover::SELECTOR,
        services::{Services, of_nodes},
        state::{Reachable, State, Walker, manner_words},
    },
    store::{self, Store, Table},
};

/// What happens to words and places, step by step.
#[derive(Debug)]
pub(crate) struct Steps {
    /// Step 1.
    first: Change,
    /// Of addresses, and of ports of nodes.
    first_services: [ServiceChange; 2],
    /// Endpoints whose lists read what step 1 changes: their flows are judged again.
    first_epochs: Vec<u32>,
    /// The new views may read what step 1 changed.
    wait: bool,
    /// Step 2: slots and their words, but for the epoch; the null word for what is removed.
    flips: Vec<(u32, EndpointWord)>,
    /// Step 3.
    last: Change,
    last_services: [ServiceChange; 2],
    /// Likewise of step 3; all of them where step 2 removes an endpoint.
    last_epochs: Vec<u32>,
    /// With step 2: what holds for the whole node.
    manner: Manner,
    /// Service addresses as they shall be.
    services: BTreeMap<ServiceKey, u32>,
}

/// How service addresses change in a step. A program looks for backends when it knows whether the address has some, and asks what the address itself
/// is allowed where there are none. So what comes is there before the address says so or becomes another, what goes is there as long as anyone may
/// have met the old one. Of all nodes the ports are the same: see [`Change`].
///
/// A caller that may be a backend itself is known by its row, which no single write changes together with the backends' rows. So while addresses
/// change it finds both rows among them. Who finds somebody else's old or new row there passes provisionally, and is judged after translation.
#[derive(Debug, Default)]
struct ServiceChange {
    /// Put while addresses change.
    both: Vec<(ServiceKey, u64)>,
    /// What is put at once.
    put: Vec<(ServiceKey, u64)>,
    /// What is put when addresses have changed: in place of `both`, or without backends.
    afterwards: Vec<(ServiceKey, u64)>,
    delete: Vec<ServiceKey>,
    /// Programs that met the old addresses need what goes: these have to end first.
    wait: bool,
}

impl ServiceChange {
    /// Of ports of nodes, or of the others.
    fn new(
        backends: &mut Pool<Backends>,
        from: &BTreeMap<ServiceKey, u32>,
        to: &BTreeMap<ServiceKey, u32>,
        addresses: &Change,
        nodes: bool,
    ) -> Self {
        let word = |key: &ServiceKey, id: u32| (*key, ServiceWord::new(key.tag(), id).0);
        let leads = |backends: &Pool<Backends>, id: u32| backends.get(id).is_some_and(|some| some.len != 0);
        let mut change = Self::default();
        for key in from.keys().filter(|key| of_nodes(key) == nodes && !to.contains_key(key)) {
            change.delete.push(*key);
            // One that leads nowhere, too: what is known of its address would have the last word without it.
            change.wait |= !addresses.is_empty();
        }
        for (key, id) in to.iter().filter(|(key, id)| of_nodes(key) == nodes && from.get(key) != Some(id)) {
            let old = from.get(key).filter(|_| !addresses.is_empty());
            let both = old.and_then(|old| both(backends, *old, *id)).and_then(|both| backends.try_intern(both));
            let ends = old.is_some_and(|old| leads(backends, *old)) && !leads(backends, *id);
            change.both.extend(both.map(|both| word(key, both)));
            change.wait |= ends;
            let when = if both.is_some() || ends { &mut change.afterwards } else { &mut change.put };
            when.push(word(key, *id));
        }
        change
    }

    /// Whether something is put before addresses change.
    fn comes(&self) -> bool {
        !self.put.is_empty() || !self.both.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.put.is_empty() && self.afterwards.is_empty() && self.delete.is_empty()
    }
}

/// Backends of two revisions, where an endpoint of this node would miss itself in the later one, and if they have room together.
fn both(pool: &Pool<Backends>, old: u32, new: u32) -> Option<Backends> {
    let all = |id: u32| -> BTreeSet<Backend> {
        pool.get(id).into_iter().flat_map(|some| some.backends.iter().take(some.len as usize)).copied().collect()
    };
    // Of some it is not known which have no room.
    if [old, new].iter().any(|id| pool.get(*id).is_some_and(|some| some.len as usize > BACKENDS)) {
        return None;
    }
    let (old, new) = (all(old), all(new));
    old.iter().any(|backend| backend.flags & Backend::LOCAL != 0 && !new.contains(backend)).then_some(())?;
    let both: Vec<Backend> = old.union(&new).copied().collect();
    let mut content = Backends { len: both.len() as u32, ..Backends::default() };
    content.backends.get_mut(..both.len())?.copy_from_slice(&both);
    Some(content)
}

/// Bits that views which are left, and views which are entered, read.
struct Readers {
    old: Bits,
    new: Bits,
    /// Bits by which any view denies, before or after: also one that stays.
    denying: Bits,
}

/// What of an address holds between step 1 and step 3.
#[derive(PartialEq, Eq)]
enum Between {
    /// What was: no view that is entered reads what changes.
    Old,
    /// What shall be: no view that is left reads what changes.
    New,
    /// A row of its own.
    Mixed,
}

impl Readers {
    /// The row of an address between step 1 and step 3, bit by bit only where it cannot change at once.
    fn between(&self, rows: &mut Pool<Bits>, old: u32, new: u32) -> (u32, Between) {
        let (before, after) = (content(rows, old), content(rows, new));
        let changed = Bits::zip([&before, &after], |[before, after]| before ^ after);
        if !changed.meets(&self.old) {
            return (new, Between::New);
        }
        if !changed.meets(&self.new) {
            return (old, Between::Old);
        }
        (self.mixed(rows, &before, &after), Between::Mixed)
    }

    /// A row that opens nothing which neither `before` to views that are left nor `after` to those that are entered opens: what a bit allows, is allowed
    /// where both agree or nobody else reads it, and what it denies, is denied as soon as one of them says so. By the same bit a view may allow and
    /// another one deny, or pass on to what is behind: there it is denied.
    fn mixed(&self, rows: &mut Pool<Bits>, before: &Bits, after: &Bits) -> u32 {
        let row = Bits::zip(
            [before, after, &self.old, &self.new, &self.denying],
            |[before, after, left, entered, denying]| {
                before & after
                    | before & left & !entered
                    | after & entered & !left
                    | (before | after) & (denying | !left & !entered)
            },
        );
        if row.is_empty() { 0 } else { rows.intern(row, || "a step between two revisions".to_owned()) }
    }
}

fn content(rows: &Pool<Bits>, row: u32) -> Bits {
    rows.get(row).cloned().unwrap_or(Bits::NONE)
}

/// Bits that differ between two places; all of them where the difference is not one of rows.
fn difference(rows: &Pool<Bits>, old: Place, new: Place) -> Bits {
    const JUDGED: u8 = AddressWord::NODE | AddressWord::ENCAPSULATED | AddressWord::SERVICE;
    let whose = if old.is_node() { AddressWord::OWN } else { 0 };
    if (old.flags ^ new.flags) & (JUDGED | whose) != 0 {
        return Bits::ALL;
    }
    Bits::zip([&content(rows, old.row), &content(rows, new.row)], |[old, new]| old ^ new)
}

impl Steps {
    /// Plans the way from what is in force to `words` (without epochs) and `places`. May need rows of its own.
    ///
    /// # Errors
    /// See [`Services::lower`].
    pub(crate) fn plan(
        state: &mut State,
        words: &BTreeMap<u32, EndpointWord>,
        places: &Places,
        services: &Services<'_>,
        manner: Manner,
    ) -> Result<Self, NodeError> {
        let flip = |(slot, word): (&u32, &EndpointWord)| {
            let same = state.words.get(slot).is_some_and(|old| (old.view(), old.mode()) == (word.view(), word.mode()));
            (!same).then_some((*slot, *word))
        };
        let mut flips: Vec<(u32, EndpointWord)> = words.iter().filter_map(flip).collect();
        flips.extend(
            state.words.keys().filter(|slot| !words.contains_key(slot)).map(|slot| (*slot, EndpointWord::default())),
        );

        // Flows that name who goes are no good from then on, nor are its slot's next owner's packets theirs.
        let removes = flips.iter().any(|(_, word)| word.0 == 0);
        let all = |words: &BTreeMap<u32, EndpointWord>| words.keys().copied().collect::<Vec<u32>>();

        let wanted = services.lower(state, places);
        let mut readers = Readers { old: Bits::NONE, new: Bits::NONE, denying: Bits::NONE };
        let mut walker = Walker::new(state);
        for (slot, word) in &flips {
            readers.new.add(&walker.reads(*word));
            state.words.get(slot).iter().for_each(|old| readers.old.add(&walker.reads(**old)));
        }
        if state.services == wanted && state.places.differing(places).is_empty() {
            return Ok(Self {
                first: Change::default(),
                first_services: Default::default(),
                first_epochs: Vec::new(),
                wait: false,
                flips,
                last: Change::default(),
                last_services: Default::default(),
                last_epochs: if removes { all(words) } else { Vec::new() },
                manner,
                services: wanted,
            });
        }

        let mut read = |words: &BTreeMap<u32, EndpointWord>| {
            let mut bits = Bits::NONE;
            for word in words.values() {
                bits.add(&walker.reads(*word));
                readers.denying.add(&walker.denies(*word));
            }
            bits
        };
        let (in_force, to_be) = (read(&state.words), read(words));
        // Where no view is left that reads anything, all of it is step 1.
        let middle = (!readers.old.is_empty()).then(|| middle(state, places, &readers));
        let between = match &middle {
            Some(middle) => services.lower(state, middle),
            None => wanted.clone(),
        };
        // In step 1 programs judge by what is in force, in step 3 by what shall be. Who is new is judged only when step 1 has been waited for.
        let judged = |read: &Bits, old: Place, new: Place| {
            old.flags != new.flags || difference(&state.rows, old, new).meets(read)
        };
        let (first, first_services) = change(
            &mut state.backends,
            (&state.places, &state.services),
            (middle.as_ref().unwrap_or(places), &between),
            |old, new| judged(&in_force, old, new),
        );
        let (last, last_services) = match &middle {
            Some(middle) => {
                change(&mut state.backends, (middle, &between), (places, &wanted), |old, new| judged(&to_be, old, new))
            }
            None => Default::default(),
        };
        let changed = [
            (&first, &state.places, middle.as_ref().unwrap_or(places)),
            (&last, middle.as_ref().unwrap_or(places), places),
        ];
        let changed = changed.map(|(change, from, to)| {
            let mut bits = Bits::NONE;
            change.keys().for_each(|key| bits.add(&difference(&state.rows, from.effective(key), to.effective(key))));
            bits
        });
        let mut walker = Walker::new(state);
        // A call to a service address is judged by what its backends listen on as well, which no bit tells.
        let mut affected = |words: &BTreeMap<u32, EndpointWord>, changed: &Bits, services: &[ServiceChange; 2]| {
            let reads = |word: &EndpointWord, walker: &mut Walker<'_, State>| walker.reads(*word).meets(changed);
            let affected = words.iter().filter(|(_, word)| !unchanged(services) || reads(word, &mut walker));
            affected.map(|(slot, _)| *slot).collect::<Vec<u32>>()
        };
        Ok(Self {
            first_epochs: affected(&state.words, &changed[0], &first_services),
            wait: changed[0].meets(&readers.new) || !unchanged(&first_services),
            last_epochs: if removes { all(words) } else { affected(words, &changed[1], &last_services) },
            first,
            first_services,
            flips,
            last,
            last_services,
            manner,
            services: wanted,
        })
    }

    /// What stands between two steps alone.
    pub(crate) fn passing<'a>(&'a self, before: &'a Places, after: &'a Places) -> impl Iterator<Item = &'a Key> {
        self.first.keys().filter(|key| !before.contains_key(key) && !after.contains_key(key))
    }

    /// Service addresses as they shall be.
    pub(crate) fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }
}

/// How addresses and services change in a step; see [`Places::change_to`].
fn change(
    backends: &mut Pool<Backends>,
    (old, from): (&Places, &BTreeMap<ServiceKey, u32>),
    (new, to): (&Places, &BTreeMap<ServiceKey, u32>),
    judged: impl Fn(Place, Place) -> bool,
) -> (Change, [ServiceChange; 2]) {
    let ports = from.keys().chain(to.keys()).any(|key| of_nodes(key) && from.get(key) != to.get(key));
    let change = old.change_to(new, ports, judged);
    let services = [false, true].map(|nodes| ServiceChange::new(backends, from, to, &change, nodes));
    (change, services)
}

fn unchanged(services: &[ServiceChange; 2]) -> bool {
    services.iter().all(ServiceChange::is_empty)
}

/// What is known of addresses between step 1 and step 3.
fn middle(state: &mut State, places: &Places, readers: &Readers) -> Places {
    let State { rows, places: old, .. } = state;
    let (mut changed, mut lone, mut turning) = (Vec::new(), Vec::new(), Vec::new());
    for key in old.differing(places) {
        let (Some(before), Some(after)) = (old.get(&key), places.get(&key)) else {
            changed.push((key, None));
            lone.push(key);
            continue;
        };
        if before.is_node() != after.is_node() {
            turning.push((key, *before, *after));
            continue;
        }
        let (row, between) = if before.row == after.row {
            (after.row, Between::New)
        } else {
            readers.between(rows, before.row, after.row)
        };
        let place = match between {
            Between::Old => *before,
            Between::New => *after,
            Between::Mixed => Place { row, ..*before },
        };
        changed.push((key, Some(place)));
    }
    let mut middle = old.with(changed);
    // What comes or goes is told from what covers it: judged when all that may cover it is settled. It stands in between where that differs.
    lone.sort_by_key(|key| key.len);
    for key in lone {
        let (before, after) = (old.effective(&key), places.effective(&key));
        let (row, between) = readers.between(rows, before.row, after.row);
        let comes = places.contains_key(&key);
        if comes && between == Between::New {
            middle.insert(key, after);
        } else if before.is_node() || after.is_node() || middle.covering(&key).row != row {
            // What comes from a node's address is told from what covers it, from the beginning, and what goes to its tunnels' ports is refused.
            let whose = if after.is_node() { after.flags } else { before.flags };
            middle.insert(key, Place { row, slot: if comes { 0 } else { before.slot }, flags: whose });
        }
    }
    for (key, before, after) in turning {
        turn(rows, (old, places, &mut middle), readers, key, before, after);
    }
    middle
}

/// What is known between step 1 and step 3 of an address that becomes a node's, or is one no longer. For what comes by way of the node that turns two
/// things: whether the address decides or what covers it, and what the one or the other says.
fn turn(
    rows: &mut Pool<Bits>,
    (old, places, middle): (&Places, &Places, &mut Places),
    readers: &Readers,
    key: Key,
    before: Place,
    after: Place,
) {
    let row = |place: Place| content(rows, place.row);
    let (left, entered) = (row(before), row(after));
    if after.is_node() {
        // Until step 3 the address decides, and is no node's: so it opens nothing to who will know it as that, and denies what it or what covers it will.
        let covered = row(places.covering(&key));
        let denied = Bits::zip([&entered, &covered, &readers.denying], |[own, other, denying]| (own | other) & denying);
        middle.insert(key, Place { row: readers.mixed(rows, &left, &denied), ..before });
        return;
    }
    // Until step 3 what covers it decides, which says something of this address alone meanwhile.
    let covering = old.covering(&key);
    let covered = row(covering);
    middle.insert(key, Place { row: readers.mixed(rows, &left, &entered), ..before });
    let alone = readers.mixed(rows, &covered, &entered);
    if middle.covering(&key).row != alone {
        middle.insert(key.alone(), Place { row: alone, slot: 0, flags: covering.flags });
    }
}

/// Writes to the tables, counted.
struct Writer<'a, S> {
    store: &'a mut S,
    published: Published,
}

impl<S: Store> Writer<'_, S> {
    fn put<T: Table>(&mut self, entries: &[(T::Key, T::Value)]) -> Result<(), NodeError> {
        self.published.writes += entries.len();
        put::<S, T>(self.store, entries)
    }

    fn delete<T: Table>(&mut self, keys: &[T::Key]) -> Result<(), NodeError> {
        self.published.writes += keys.len();
        delete::<S, T>(self.store, keys)
    }

    fn change(&mut self, change: &Change, [services, ports]: &[ServiceChange; 2]) -> Result<(), NodeError> {
        self.published.writes += change.len();
        self.come(services)?;
        change.leave(self.store)?;
        if change.leaves() && ports.comes() {
            self.grace_period();
        }
        self.come(ports)?;
        if !services.both.is_empty() || !ports.both.is_empty() {
            self.grace_period();
        }
        let waits = &mut self.published.grace_periods;
        change.write(self.store, |store| {
            *waits += 1;
            store.grace_period();
        })?;
        self.go(ports)?;
        change.enter(self.store)?;
        self.go(services)
    }

    fn come(&mut self, services: &ServiceChange) -> Result<(), NodeError> {
        self.put::<store::Services>(&services.put)?;
        self.put::<store::Services>(&services.both)
    }

    fn go(&mut self, services: &ServiceChange) -> Result<(), NodeError> {
        if services.wait {
            self.grace_period();
        }
        self.put::<store::Services>(&services.afterwards)?;
        self.delete::<store::Services>(&services.delete)
    }

    fn grace_period(&mut self) {
        self.published.grace_periods += 1;
        self.store.grace_period();
    }

    /// Gives words the next epoch and stores them, each with one aligned write.
    fn words(&mut self, state: &mut State, words: &[(u32, EndpointWord)]) -> Result<(), NodeError> {
        if words.is_empty() {
            return Ok(());
        }
        state.epoch += 1;
        let epoch = state.epoch;
        self.put::<store::Node>(&[(node::EPOCH, epoch.into())])?;
        let words: Vec<(u32, EndpointWord)> = words
            .iter()
            .map(|(slot, word)| {
                (*slot, if word.0 == 0 { *word } else { EndpointWord::new(epoch, word.view(), word.mode()) })
            })
            .collect();
        self.put::<store::Endpoints>(&words.iter().map(|(slot, word)| (*slot, word.0)).collect::<Vec<_>>())?;
        state.words.extend(words);
        state.words.retain(|_, word| word.0 != 0);
        Ok(())
    }

    /// Has the flows of these endpoints judged again.
    fn epochs(&mut self, state: &mut State, slots: &[u32]) -> Result<(), NodeError> {
        let words: Vec<(u32, EndpointWord)> =
            slots.iter().filter_map(|slot| Some((*slot, *state.words.get(slot)?))).collect();
        self.words(state, &words)
    }
}

/// Carries a plan out. After an error the tables are somewhere on the way, and only they say where.
pub(crate) fn run<S: Store>(
    store: &mut S,
    state: &mut State,
    target: Target,
    reached: &mut dyn FnMut(CrashPoint) -> Result<(), NodeError>,
) -> Result<Published, NodeError> {
    let mut writer = Writer { store, published: Published::default() };
    let steps = &target.steps;

    // S1: whoever comes after this publisher knows the bits that are about to be used.
    let ids: Vec<(IdKey, u32)> = state.selectors.fresh().map(|(hash, bit)| (id_key(hash), bit.into())).collect();
    writer.put::<store::Ids>(&ids)?;
    reached(CrashPoint::Ids)?;

    // S2: objects that nobody can see yet.
    objects(&mut writer, state)?;
    reached(CrashPoint::Objects)?;
    overlays(&mut writer, state, &target)?;
    reached(CrashPoint::Overlays)?;

    writer.change(&steps.first, &steps.first_services)?;
    reached(CrashPoint::FirstRows)?;
    writer.epochs(state, &steps.first_epochs)?;
    reached(CrashPoint::FirstEpochs)?;
    // S3.
    if steps.wait && !steps.flips.is_empty() {
        writer.grace_period();
    }
    reached(CrashPoint::FirstWait)?;

    // S4.
    writer.words(state, &steps.flips)?;
    let differ = manner_words(steps.manner).into_iter().zip(manner_words(state.manner)).filter(|(new, old)| new != old);
    let words: Vec<_> = differ.map(|(word, _)| word).collect();
    if !words.is_empty() {
        writer.put::<store::Node>(&words)?;
        state.manner = steps.manner;
    }
    reached(CrashPoint::Flips)?;
    // S5: programs that read an old word see old rows to their end.
    let more = !steps.last.is_empty() || !unchanged(&steps.last_services);
    if more && !steps.flips.is_empty() {
        writer.grace_period();
    }
    reached(CrashPoint::FlipsWait)?;

    writer.change(&steps.last, &steps.last_services)?;
    reached(CrashPoint::LastRows)?;
    writer.epochs(state, &steps.last_epochs)?;
    reached(CrashPoint::LastEpochs)?;

    // S6: what nothing reaches any more is free when the last program that may still read it has ended.
    state.places = target.places;
    state.services.clone_from(&steps.services);
    let rows = target.standing.rows().chain(state.places.rows_of_others());
    let reachable = Reachable::from(state, state.words.values().copied(), rows, &state.services);
    state.standing = Some(target.standing);
    let named = state.standing.iter().flat_map(|standing| standing.symbols.named());
    let forgotten = state.selectors.garbage(named);
    let removed = steps.flips.iter().any(|(_, word)| word.0 == 0);
    let garbage = removed
        || !forgotten.is_empty()
        || state.views.has_garbage(&reachable.views)
        || state.sets.has_garbage(&reachable.sets)
        || state.lists.has_garbage(&reachable.lists)
        || state.rows.has_garbage(&reachable.rows)
        || state.backends.has_garbage(&reachable.backends)
        || state.blocks.has_garbage(&reachable.blocks);
    if garbage {
        writer.grace_period();
    }
    reached(CrashPoint::LastWait)?;
    writer.delete::<store::Ids>(&forgotten.iter().copied().map(id_key).collect::<Vec<_>>())?;
    state.selectors.sweep(&forgotten);
    state.views.sweep(&reachable.views);
    state.sets.sweep(&reachable.sets);
    state.lists.sweep(&reachable.lists);
    state.rows.sweep(&reachable.rows);
    state.backends.sweep(&reachable.backends);
    state.blocks.sweep(&reachable.blocks);
    reached(CrashPoint::Swept)?;

    writer.published.epoch = state.epoch;
    Ok(writer.published)
}

const fn id_key(hash: [u64; 2]) -> IdKey {
    IdKey { hash, kind: SELECTOR, padding: 0 }
}

fn objects<S: Store>(writer: &mut Writer<'_, S>, state: &mut State) -> Result<(), NodeError> {
    let reused: Vec<u32> = state
        .counters
        .fresh()
        .iter()
        .filter(|given| given.reused())
        .flat_map(|given| [given.index, given.index + 1])
        .collect();
    if !reused.is_empty() {
        writer.published.writes += reused.len();
        writer.store.reset_counters(&reused)?;
    }
    // The replies' half first: a pair is known by its first half.
    let keys: Vec<_> = state
        .counters
        .fresh()
        .iter()
        .flat_map(|given| [(given.index + 1, reply_key(&given.key)), (given.index, given.key)])
        .collect();
    writer.put::<store::CounterKeys>(&keys)?;
    state.counters.settle();

    let blocks: Vec<(u32, u64)> =
        state.blocks.fresh().flat_map(|(base, block)| (base..).zip(block.iter().copied().map(u64::from))).collect();
    writer.put::<store::RuleCounters>(&blocks)?;
    writer.put::<store::Lists>(&state.lists.fresh().map(|(id, list)| (id, *list)).collect::<Vec<_>>())?;
    let tables: Vec<_> =
        state.sets.fresh().flat_map(|(id, set)| (id * Class::COUNT..).zip(set.iter().copied())).collect();
    writer.put::<store::Ports>(&tables)?;
    writer.put::<store::Views>(&state.views.fresh().map(|(id, view)| (id, *view)).collect::<Vec<_>>())?;
    writer.put::<store::BackendTable>(&state.backends.fresh().map(|(id, some)| (id, *some)).collect::<Vec<_>>())?;
    let rows: Vec<(u32, u64)> =
        state.rows.fresh().flat_map(|(id, row)| (id * ROW_WORDS..).zip(row.0.iter().copied())).collect();
    writer.put::<store::Rows>(&rows)
}

/// The underlay's tables: an enforcement point of their own. Removals first. While they change, and if that ends halfway, programs rely on nothing
/// that they have found earlier.
fn overlays<S: Store>(writer: &mut Writer<'_, S>, state: &mut State, target: &Target) -> Result<(), NodeError> {
    if state.vteps == target.vteps && state.owners == target.owners {
        return Ok(());
    }
    let changing = state.overlays | 1;
    writer.put::<store::Node>(&[(node::OVERLAYS, changing)])?;
    writer.delete::<store::Vteps>(&state.vteps.difference(&target.vteps).copied().collect::<Vec<_>>())?;
    writer.delete::<store::Owners>(
        &state.owners.keys().filter(|key| !target.owners.contains_key(key)).copied().collect::<Vec<_>>(),
    )?;
    let owners: Vec<_> = target
        .owners
        .iter()
        .filter(|(key, owner)| state.owners.get(key) != Some(owner))
        .map(|(key, owner)| (*key, *owner))
        .collect();
    writer.put::<store::Owners>(&owners)?;
    writer.put::<store::Vteps>(&target.vteps.difference(&state.vteps).map(|key| (*key, 1)).collect::<Vec<_>>())?;
    // No program that looked before this keeps what it found under the generation to come.
    writer.grace_period();
    state.overlays = changing + 1;
    writer.put::<store::Node>(&[(node::OVERLAYS, state.overlays)])?;
    state.vteps.clone_from(&target.vteps);
    state.owners.clone_from(&target.owners);
    Ok(())
}
