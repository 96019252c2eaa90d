//! Turns a [`Desired`] into content of tables: symbols get ids, and everything is checked against the limits before anything is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bulkhead_ebpf::{
    abi::{
        self, AddressWord, CounterKey, Direction, ENDPOINT_ADDRESSES, EndpointInfo, EndpointWord, Half, Owner,
        PrefixKey6, VtepKey,
    },
    reason::Reason,
};
use foldhash::{HashMap, HashMapExt as _, HashSet};

use crate::{
    desired::{Address, Desired, Endpoint, EndpointName, SelectorId, SetId},
    names::{Names, endpoint_identity},
    node::{NodeError, Wire},
    publish::{
        check::{are_there, capacity, check, invalid},
        ids::Bits,
        places::{Key, Place, Places, SEGMENT_BITS, octets, to_packet},
        services::Services,
        sets::{LoweredSet, SetLowering, groups, used_sets},
        slots::{Free, slots_limit},
        standing::{Facts, Kept, Standing, Symbols},
        state::{State, Walker},
        steps::Steps,
    },
    store::{self, LpmKey, Store, Table},
};

/// What the tables shall hold.
#[derive(Debug)]
pub(crate) struct Target {
    /// Slot and data of each of [`Desired::endpoints`], and whether the slot is new to it.
    pub(crate) slots: Vec<(u32, EndpointInfo, bool)>,
    pub(crate) places: Places,
    /// What they are made from.
    pub(crate) standing: Standing,
    pub(crate) vteps: BTreeSet<VtepKey>,
    pub(crate) owners: BTreeMap<LpmKey<PrefixKey6>, Owner>,
    /// Rules that counters of this target name: hash, and index in [`Desired::rules`].
    pub(crate) rules: Vec<(u64, usize)>,
    pub(crate) steps: Steps,
}

/// Name in messages.
pub fn display(name: &EndpointName) -> String {
    match name.index {
        0 => format!("{}/{}", name.namespace, name.workload),
        index => format!("{}/{}#{index}", name.namespace, name.workload),
    }
}

/// Lowers all of it. After an error the caller rolls `state` back.
pub(crate) fn lower<S: Store>(
    desired: &Desired,
    state: &mut State,
    store: &S,
    names: &Names,
    now: SystemTime,
    wire: &mut dyn FnMut(&Endpoint) -> Result<Wire, NodeError>,
) -> Result<Target, NodeError> {
    check(desired)?;
    let mut infos = Vec::new();
    for endpoint in &desired.endpoints {
        infos.push(info(endpoint, wire(endpoint)?)?);
    }
    let slots = assign_slots(desired, infos, state, store, names)?;

    let none = Symbols::default();
    let symbols = Symbols::of(desired, state.standing.as_ref().map_or(&none, |standing| &standing.symbols));
    let selectors: Vec<(&str, [u64; 2])> = symbols.selectors().collect();
    let sets: BTreeMap<SetId, String> = used_sets(desired);
    let bits = state.selectors.place(&selectors, || groups(desired, sets.keys()))?;
    capacity("the selectors", store::Ids::NAME, state.selectors.used(), store.limit::<store::Ids>())?;

    let mut hashes = Vec::with_capacity(symbols.rule_hashes.len());
    hashes.extend(symbols.rule_hashes.iter().copied());
    let mut lowered = BTreeMap::new();
    for (set, who) in &sets {
        lowered.insert(*set, SetLowering::new(state, &bits, &hashes, who).lower(set.of(desired))?);
    }
    let counters = assign_counters(desired, state, store, names, &slots, &lowered)?;
    // To read the clock is to run a program.
    let ends = desired.endpoints.iter().flat_map(|endpoint| &endpoint.views).any(|view| view.until.is_some());
    let deadlines = ends.then(|| Deadlines::new(state, store, now)).transpose()?;
    let words = views(desired, state, deadlines.as_ref(), &slots, (&lowered, &counters))?;
    let (places, standing) = places(desired, state, symbols, &slots, &bits)?;
    let steps = Steps::plan(state, &words, &places, &Services::of(desired), desired.manner)?;
    let (vteps, owners) = overlays(desired);

    state.sets.check()?;
    state.lists.check()?;
    state.views.check()?;
    state.blocks.check()?;
    state.rows.check()?;
    state.backends.check()?;
    check_services(state, store, &steps)?;
    check_places(state, store, &places, &steps)?;
    capacity("the overlays' nodes", store::Vteps::NAME, vteps.len(), store.limit::<store::Vteps>())?;
    capacity("the overlays' prefixes", store::Owners::NAME, owners.len(), store.limit::<store::Owners>())?;

    let mut named = vec![false; hashes.len()];
    lowered.values().flat_map(|set| &set.rules).for_each(|rule| named[rule.0 as usize] = true);
    let rules = hashes.into_iter().enumerate().filter(|(at, _)| named[*at]);
    Ok(Target {
        slots,
        places,
        standing,
        vteps,
        owners,
        rules: rules.map(|(index, hash)| (hash, index)).collect(),
        steps,
    })
}

fn info(endpoint: &Endpoint, wire: Wire) -> Result<EndpointInfo, NodeError> {
    let mut info = EndpointInfo {
        identity: endpoint_identity(&endpoint.name),
        segment: endpoint.segment,
        mac: wire.mac,
        link: wire.port.link,
        bridge: wire.port.bridge,
        router: wire.port.router,
        ..EndpointInfo::default()
    };
    let families = endpoint.addresses.iter().filter(|address| address.is_ipv4()).count();
    for need in [families, endpoint.addresses.len() - families] {
        capacity(display(&endpoint.name), "addresses of one family", need, ENDPOINT_ADDRESSES)?;
    }
    for address in &endpoint.addresses {
        match address {
            IpAddr::V4(_) => {
                info.ipv4[usize::from(info.ipv4_count)] = to_packet(*address)[3];
                info.ipv4_count += 1;
            }
            IpAddr::V6(_) => {
                info.ipv6[usize::from(info.ipv6_count)] = to_packet(*address);
                info.ipv6_count += 1;
            }
        }
    }
    Ok(info)
}

/// Slots: the one that already has the very same data, else one of those that are free ([`Free::take`]). What is known of a slot never changes while it
/// has an owner, except for its link.
fn assign_slots<S: Store>(
    desired: &Desired,
    infos: Vec<EndpointInfo>,
    state: &State,
    store: &S,
    names: &Names,
) -> Result<Vec<(u32, EndpointInfo, bool)>, NodeError> {
    let mut owners: HashMap<u64, Vec<(u32, &EndpointInfo)>> = HashMap::new();
    state.infos.iter().for_each(|(slot, info)| owners.entry(info.identity).or_default().push((*slot, info)));
    // Which link it has says nothing of who it is.
    let beside = |own: &EndpointInfo, info: &EndpointInfo| {
        let EndpointInfo { link, bridge, router, .. } = *info;
        EndpointInfo { link, bridge, router, ..*own }
    };
    let same =
        |own: &EndpointInfo, info: &EndpointInfo| beside(own, info) == EndpointInfo { tenancy: own.tenancy, ..*info };
    let kept: Vec<Option<(u32, EndpointInfo)>> = infos
        .iter()
        .map(|info| {
            let own = owners.get(&info.identity).and_then(|own| own.iter().find(|(_, own)| same(own, info)));
            own.map(|(slot, own)| (*slot, **own))
        })
        .collect();

    let need = state.infos.len() + kept.iter().filter(|slot| slot.is_none()).count();
    // Who has a slot keeps it: mostly nobody asks for a free one.
    let mut free = None;
    let mut slots = Vec::new();
    for ((info, kept), endpoint) in infos.into_iter().zip(kept).zip(&desired.endpoints) {
        if let Some((slot, own)) = kept {
            slots.push((slot, beside(&own, &info), false));
            continue;
        }
        let Some(slot) = free.get_or_insert_with(|| Free::new(store, state, names)).take(info.identity) else {
            capacity(display(&endpoint.name), store::Endpoints::NAME, need, slots_limit(store) as usize - 1)?;
            return invalid("there is no slot left");
        };
        // An owner before this one had its number from an earlier epoch: to remove it took another.
        slots.push((slot, EndpointInfo { tenancy: state.epoch, ..info }, true));
    }
    Ok(slots)
}

fn counter_key(rule: u64, reason: Reason, info: &EndpointInfo, slot: u32, direction: Direction) -> CounterKey {
    CounterKey {
        rule,
        endpoint: info.identity,
        slot: slot as u16,
        direction: direction as u8,
        reason: reason as u8,
        padding: 0,
    }
}

/// Counters of the sets of an endpoint, by its slot: index of each number, 0 where it has none.
type CounterBlocks = BTreeMap<(u32, SetId), Vec<u32>>;

fn assign_counters<S: Store>(
    desired: &Desired,
    state: &mut State,
    store: &S,
    names: &Names,
    slots: &[(u32, EndpointInfo, bool)],
    lowered: &BTreeMap<SetId, LoweredSet>,
) -> Result<CounterBlocks, NodeError> {
    let who: Vec<String> = desired.endpoints.iter().map(|endpoint| display(&endpoint.name)).collect();
    let (mut wanted, mut counted) = (Vec::new(), Vec::new());
    for ((endpoint, (slot, info, _)), who) in desired.endpoints.iter().zip(slots).zip(&who) {
        let sets: BTreeSet<SetId> = endpoint.views.iter().flat_map(|view| [view.ingress, view.egress]).collect();
        for set in sets {
            let numbers = &lowered[&set].numbers;
            wanted.reserve(numbers.len());
            wanted.extend(numbers.iter().flatten().map(|(rule, reason)| {
                (counter_key(*rule, *reason, info, *slot, set.of(desired).direction), who.as_str())
            }));
            counted.push(((*slot, set), numbers));
        }
    }
    // Taken first: of endpoints that are gone, longest first; then of rules that are gone from endpoints that are there.
    let there: HashSet<u64> = slots.iter().map(|(_, info, _)| info.identity).collect();
    // One that goes with this very publish is gone for the shortest time of all.
    let rank = |key: &CounterKey| match names.endpoints.get(&key.endpoint) {
        _ if there.contains(&key.endpoint) => u64::MAX,
        Some(endpoint) => endpoint.gone.map_or(u64::MAX - 1, u64::from),
        None => 0,
    };
    let (counters, blocks) = (&mut state.counters, &state.blocks);
    debug_assert!(counters.given() <= store.limit::<store::CounterKeys>());
    let mut indexes = counters.assign(&wanted, || blocks.counters(), rank)?.into_iter();
    let mut index = |number: &Option<_>| number.and_then(|_| indexes.next()).unwrap_or(0);
    Ok(counted.into_iter().map(|(of, numbers)| (of, numbers.iter().map(&mut index).collect())).collect())
}

/// Views of every endpoint, from the last of each chain to the first.
fn views(
    desired: &Desired,
    state: &mut State,
    deadlines: Option<&Deadlines>,
    slots: &[(u32, EndpointInfo, bool)],
    (lowered, counters): (&BTreeMap<SetId, LoweredSet>, &CounterBlocks),
) -> Result<BTreeMap<u32, EndpointWord>, NodeError> {
    let mut words = BTreeMap::new();
    for (endpoint, (slot, ..)) in desired.endpoints.iter().zip(slots) {
        let who = || display(&endpoint.name);
        let mut next = 0;
        for view in endpoint.views.iter().rev() {
            let mut half = |set: SetId| Half {
                set: lowered[&set].id,
                counters: state.blocks.intern(&counters[&(*slot, set)], who),
            };
            let (ingress, egress) = (half(view.ingress), half(view.egress));
            // By no clock all that ends has ended.
            let ends = |until| deadlines.map_or(0, |deadlines| deadlines.jiffies(until));
            let open = |set: SetId, flag| if set.of(desired).isolated { 0 } else { flag };
            let audited = |set: SetId, flag| if set.of(desired).audited() { flag } else { 0 };
            let view = abi::View {
                ingress,
                egress,
                deadline: view.until.map_or(u64::MAX, ends),
                next,
                flags: open(view.ingress, abi::View::OPEN_INGRESS)
                    | open(view.egress, abi::View::OPEN_EGRESS)
                    | audited(view.ingress, abi::View::AUDIT_INGRESS)
                    | audited(view.egress, abi::View::AUDIT_EGRESS),
            };
            next = state.views.intern(view, who);
        }
        words.insert(*slot, EndpointWord::new(0, next, endpoint.mode));
    }
    Ok(words)
}

/// Wall clock to jiffies.
struct Deadlines {
    now: i128,
    jiffies: i128,
    hz: i128,
    in_force: BTreeSet<u64>,
}

impl Deadlines {
    fn new<S: Store>(state: &State, store: &S, now: SystemTime) -> Result<Self, NodeError> {
        let (jiffies, hz) = store.clock()?;
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos().cast_signed());
        let in_force = state.words.values().flat_map(|word| Walker::new(state).chain(word.view()));
        Ok(Self {
            now,
            jiffies: jiffies.into(),
            hz: hz.max(1).into(),
            in_force: in_force.map(|(_, view)| view.deadline).collect(),
        })
    }

    /// A deadline that is in force already stays as it is unless it is off by half a second: the same publish again changes nothing, a step of the
    /// clock does.
    fn jiffies(&self, until: u64) -> u64 {
        let exact = (self.jiffies + (i128::from(until) - self.now) * self.hz / 1_000_000_000)
            .clamp(0, i128::from(u64::MAX - 1)) as u64;
        let tolerance = (self.hz / 2) as u64;
        let near = exact.saturating_sub(tolerance)..=exact.saturating_add(tolerance).min(u64::MAX - 1);
        self.in_force.range(near).min_by_key(|deadline| deadline.abs_diff(exact)).copied().unwrap_or(exact)
    }
}

fn row(state: &mut State, bits: &[u16], selectors: &BTreeSet<SelectorId>, who: impl FnOnce() -> String) -> u32 {
    if selectors.is_empty() {
        return 0;
    }
    let mut row = Bits::NONE;
    selectors.iter().for_each(|selector| row.set(bits[selector.0 as usize]));
    state.rows.intern(row, who)
}

fn places(
    desired: &Desired,
    state: &mut State,
    symbols: Symbols,
    slots: &[(u32, EndpointInfo, bool)],
    bits: &[u16],
) -> Result<(Places, Standing), NodeError> {
    let by_name: HashMap<&EndpointName, u32> =
        desired.endpoints.iter().zip(slots).map(|(endpoint, (slot, ..))| (&endpoint.name, *slot)).collect();
    let mut rows: HashMap<&BTreeSet<SelectorId>, u32> = HashMap::new();
    let (mut places, mut standing) = (Places::default(), Standing::of(desired, symbols));
    let kept = Kept::new(state, desired);
    let kept: Vec<_> = desired.addresses.pieces().map(|(at, piece)| kept.piece(at, piece)).collect();
    for ((at, piece), kept) in desired.addresses.pieces().zip(kept) {
        let (lowered, facts) = match kept {
            Some(kept) => kept,
            None => {
                let (mut lowered, mut facts) = (Vec::new(), Facts::default());
                for ((segment, address), known) in piece.iter() {
                    are_there(desired, &known.selectors)?;
                    let row = *rows
                        .entry(&known.selectors)
                        .or_insert_with(|| row(state, bits, &known.selectors, || format!("address {address}")));
                    let slot = slot_of(*address, known, &by_name)?;
                    lowered.push((Key::known(*segment, *address), Place { row, slot, flags: flags(known) }));
                    facts.add(known, row);
                }
                (Arc::new(lowered.into_iter().collect()), facts.into())
            }
        };
        places.put_piece(lowered);
        standing.learn(*at, facts);
    }
    for ((segment, network), prefix) in &desired.prefixes {
        are_there(desired, &prefix.selectors)?;
        let row = *rows
            .entry(&prefix.selectors)
            .or_insert_with(|| row(state, bits, &prefix.selectors, || format!("prefix {network}")));
        let flags = if prefix.overlay { AddressWord::OVERLAY } else { 0 }
            | if prefix.encapsulated { AddressWord::ENCAPSULATED } else { 0 };
        if places.insert(Key::prefix(*segment, *network), Place { row, slot: 0, flags }).is_some() {
            return invalid(format!("prefix {network} stands there twice"));
        }
    }
    // Where nothing is translated they are what any address there is. Who has an address keeps it: a service may be given any, by whoever may write services.
    let mut taken = BTreeSet::new();
    for service in desired.services.keys() {
        let Some(address) = service.address else { continue };
        let key = Key::known(service.segment, address);
        let place = places.effective(&key);
        if places.contains_key(&key) && !place.is_service() {
            taken.insert(address);
            continue;
        }
        places.insert(key, Place { row: place.row, slot: 0, flags: AddressWord::SERVICE });
    }
    state.troubles.taken(taken);
    places.share_others(&state.places);
    Ok((places, standing))
}

/// Slot of whoever has an address, 0 for nobody of this node.
fn slot_of(address: IpAddr, known: &Address, slots: &HashMap<&EndpointName, u32>) -> Result<u16, NodeError> {
    let Some(name) = &known.endpoint else { return Ok(0) };
    match slots.get(&**name) {
        Some(slot) => Ok(*slot as u16),
        None => invalid(format!("{address} belongs to {}, which is no endpoint of this node", display(name))),
    }
}

fn flags(known: &Address) -> u8 {
    let flag = |set, flag| if set { flag } else { 0 };
    flag(known.node, AddressWord::NODE)
        | flag(known.own, AddressWord::OWN)
        | flag(known.encapsulated, AddressWord::ENCAPSULATED)
}

fn check_places<S: Store>(state: &State, store: &S, places: &Places, steps: &Steps) -> Result<(), NodeError> {
    // Old and new entries stand side by side for a moment.
    let mut counts = places.counts_beside(&state.places);
    steps.passing(&state.places, places).for_each(|key| counts[key.table()] += 1);
    let [known4, known6, prefixes4, prefixes6] = counts;
    capacity("the known addresses", store::Addresses4::NAME, known4, store.limit::<store::Addresses4>())?;
    capacity("the known addresses", store::Addresses6::NAME, known6, store.limit::<store::Addresses6>())?;
    capacity("the prefixes", store::Prefixes4::NAME, prefixes4, store.limit::<store::Prefixes4>())?;
    capacity("the prefixes", store::Prefixes6::NAME, prefixes6, store.limit::<store::Prefixes6>())
}

fn check_services<S: Store>(state: &State, store: &S, steps: &Steps) -> Result<(), NodeError> {
    let coming = steps.services().filter(|key| !state.services.contains_key(key)).count();
    capacity(
        "the service addresses",
        store::Services::NAME,
        state.services.len() + coming,
        store.limit::<store::Services>(),
    )
}

fn overlays(desired: &Desired) -> (BTreeSet<VtepKey>, BTreeMap<LpmKey<PrefixKey6>, Owner>) {
    let (mut vteps, mut owners) = (BTreeSet::new(), BTreeMap::new());
    for overlay in &desired.overlays {
        vteps.insert(VtepKey { vni: overlay.vni, address: [0; 4] });
        for (vtep, prefixes) in &overlay.peers {
            let address = to_packet(*vtep);
            vteps.insert(VtepKey { vni: overlay.vni, address });
            for prefix in prefixes {
                let mapped = if prefix.is_ipv4() { 96 } else { 0 };
                let data = PrefixKey6 { segment: overlay.vni.to_be_bytes(), address: octets(prefix.network()) };
                owners.insert(
                    LpmKey { prefix_len: SEGMENT_BITS + mapped + u32::from(prefix.prefix()), data },
                    Owner { vtep: address },
                );
            }
        }
    }
    (vteps, owners)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_in_force_stay_unless_the_clock_steps() {
        let deadlines = Deadlines { now: 1_000_000_000_000, jiffies: 5_000, hz: 250, in_force: [7_400].into() };
        assert_eq!(deadlines.jiffies(1_010_000_000_000), 7_400, "exact is 7,500, within half a second");
        assert_eq!(deadlines.jiffies(1_020_000_000_000), 10_000);
        assert_eq!(deadlines.jiffies(0), 0, "before the kernel started");
    }
}
