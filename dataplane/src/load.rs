//! Maps and programs: made, pinned, opened again, and upgraded while links go on using them.
//!
//! The object says what type of map a table is; [`Sizes`] says how large. Every map is made and pinned here before the object is
//! loaded, and one that is already pinned must be what is meant, down to its flags: the kernel and aya would take any.

mod rehearse;

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Instant,
};

use aya::{EbpfLoader, include_bytes_aligned, programs::Program};
use aya_obj::{
    EbpfSectionKind, Object,
    generated::{
        BPF_F_NO_PREALLOC,
        bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH},
    },
};
use bulkhead_ebpf::{
    abi::{self, Class, program},
    mark::Layout,
    reason::REASONS,
};

use crate::{
    bytes,
    grace::Grace,
    mark,
    node::NodeError,
    pins::{Kind, Pins},
    store::{self, Table},
    sys::{self, Doing as _, Map, Shape},
};

pub use self::rehearse::{Rehearsal, rehearse};

pub(crate) static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs"));
pub(crate) static STUB: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/stub"));

/// Programs of TC, by their index in `PROGRAMS_TC`.
pub(crate) const TC: [(&str, u32); program::COUNT as usize] = [
    ("underlay", program::UNDERLAY),
    ("underlay_out", program::UNDERLAY_OUT),
    ("overlay_in", program::OVERLAY_IN),
    ("overlay_out", program::OVERLAY_OUT),
    ("from_workload", program::FROM_WORKLOAD),
    ("to_workload", program::TO_WORKLOAD),
    ("translated", program::TRANSLATED),
    ("decide4", program::DECIDE4),
    ("decide6", program::DECIDE6),
    ("forward", program::FORWARD),
];
/// The programs of XDP and the arrays in which they stand at [`program::UNDERLAY`]: one for drivers, which takes packets in several buffers, and
/// one for generic XDP, which must not: there the kernel forgets where the MAC header of a packet is that it copied for such a program, and TC
/// behind it sees the frame without one (seen with 6.18).
pub(crate) const XDP: [(&str, &str); 2] =
    [("underlay_xdp", PROGRAMS_XDP), ("underlay_xdp_generic", PROGRAMS_XDP_GENERIC)];
/// Name of the program array of TC.
pub(crate) const PROGRAMS_TC: &str = "PROGRAMS_TC";
/// Name of the program array of XDP.
pub(crate) const PROGRAMS_XDP: &str = "PROGRAMS_XDP";
/// Name of the program array of generic XDP.
pub(crate) const PROGRAMS_XDP_GENERIC: &str = "PROGRAMS_XDP_GENERIC";

/// Sizes of the tables. Once pinned they stay until everything is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Endpoints, the node itself (slot 0) included.
    pub slots: u32,
    /// Views.
    pub views: u32,
    /// Policy sets.
    pub sets: u32,
    /// Blocks of lists.
    pub lists: u32,
    /// Rows.
    pub rows: u32,
    /// Known addresses of each family.
    pub addresses: u32,
    /// Prefixes of each family.
    pub prefixes: u32,
    /// Entries that lead from a view's rule to its counter.
    pub rule_counters: u32,
    /// Counters of rules.
    pub counters: u32,
    /// VTEPs, counted for each VNI.
    pub vteps: u32,
    /// Inner prefixes that VTEPs own.
    pub owners: u32,
    /// Ports that the node translates, counted for each segment.
    pub services: u32,
    /// Distinct sets of backends of such ports.
    pub backends: u32,
    /// Samples of what was denied.
    pub contacts: u32,
    /// Flows of one endpoint, for each family.
    pub flows: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            slots: 1024,
            views: 8192,
            sets: 1024,
            lists: 16_384,
            rows: 4096,
            addresses: 65_536,
            prefixes: 16_384,
            rule_counters: 131_072,
            counters: 65_536,
            vteps: 16_384,
            owners: 65_536,
            services: 65_536,
            backends: 16_384,
            contacts: 8192,
            flows: 16_384,
        }
    }
}

impl Sizes {
    /// Entries of a map; `None` for those whose size follows from the layout.
    fn entries(&self, name: &str) -> Option<u32> {
        Some(match name {
            store::Endpoints::NAME | store::EndpointInfos::NAME | "FLOWS4" | "FLOWS6" => self.slots,
            "ENDPOINT_COUNTERS" => self.slots * 2 * REASONS,
            store::Rows::NAME => self.rows * abi::ROW_WORDS,
            store::Views::NAME => self.views,
            store::Ports::NAME => self.sets * Class::COUNT,
            store::Lists::NAME => self.lists,
            store::RuleCounters::NAME => self.rule_counters,
            store::CounterKeys::NAME | "COUNTERS" => self.counters,
            store::Addresses4::NAME | store::Addresses6::NAME => self.addresses,
            store::Prefixes4::NAME | store::Prefixes6::NAME => self.prefixes,
            store::Vteps::NAME => self.vteps,
            store::Owners::NAME => self.owners,
            store::Services::NAME => self.services,
            store::BackendTable::NAME => self.backends,
            store::ContactTable::NAME => self.contacts,
            // One for each object that an array may hold, and each selector.
            store::Ids::NAME => {
                self.slots + self.views + self.sets + self.lists + self.rows + self.counters + abi::ROW_WORDS * 64
            }
            _ => return None,
        })
    }

    /// What the types of the ABI can count.
    fn check(&self) -> Result<(), NodeError> {
        let limits = [
            ("slots", self.slots, abi::MAX_SLOTS),
            ("rows", self.rows, 1 << 16),
            ("views", self.views, abi::EndpointWord::MAX_VIEW),
        ];
        for (what, is, limit) in limits {
            if is > limit {
                return Err(NodeError::Kernel {
                    doing: "size the tables".to_owned(),
                    why: format!("{is} {what} are too many: at most {limit}"),
                });
            }
        }
        let sizes = [
            ("slots", self.slots),
            ("views", self.views),
            ("sets", self.sets),
            ("lists", self.lists),
            ("rows", self.rows),
            ("addresses", self.addresses),
            ("prefixes", self.prefixes),
            ("rule counters", self.rule_counters),
            ("counters", self.counters),
            ("VTEPs", self.vteps),
            ("owners", self.owners),
            ("services", self.services),
            ("backends", self.backends),
            ("contacts", self.contacts),
            ("flows", self.flows),
        ];
        match sizes.iter().find(|(_, size)| *size < 2) {
            Some((what, size)) => Err(NodeError::Kernel {
                doing: "size the tables".to_owned(),
                why: format!("{size} {what} are too few: at least 2, since 0 is reserved"),
            }),
            None => Ok(()),
        }
    }
}

/// What a map shall be.
struct Definition {
    name: String,
    shape: Shape,
    /// Of a map of maps, what it holds.
    inner: Option<Shape>,
}

/// Opens a pinned map, of whatever size.
fn pinned(pins: &Pins, Definition { name, shape, .. }: &Definition) -> Result<Map, NodeError> {
    let path = pins.path(Kind::Map, name);
    let map = Map::from_pin(&path).doing(|| format!("open {}", path.display()))?;
    match differs(map.shape(), &Shape { max_entries: map.shape().max_entries, ..*shape }) {
        Some(why) => Err(NodeError::Kernel { doing: format!("open {}", path.display()), why }),
        None => Ok(map),
    }
}

/// What the objects need, and what only user space reads.
fn definitions(sizes: &Sizes) -> Result<Vec<Definition>, NodeError> {
    let mut definitions: Vec<Definition> = Vec::new();
    for object in [PROGRAMS, STUB] {
        let object = Object::parse(object).doing(|| "read the eBPF object")?;
        let maps = object
            .maps
            .into_iter()
            .filter(|(_, map)| matches!(map.section_kind(), EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps));
        // The program array of TC is in both.
        let new: Vec<_> = maps.filter(|(name, _)| definitions.iter().all(|known| known.name != *name)).collect();
        definitions.extend(new.into_iter().map(|(name, map)| {
            let inner = map.inner().map(|inner| Shape { max_entries: sizes.flows, ..shape(&inner) });
            let mut shape = shape(&map);
            shape.max_entries = sizes.entries(&name).unwrap_or(shape.max_entries);
            Definition { name, shape, inner }
        }));
    }
    definitions.push(own::<store::Ids>(sizes, BPF_MAP_TYPE_HASH as u32, BPF_F_NO_PREALLOC));
    definitions.push(own::<store::CounterKeys>(sizes, BPF_MAP_TYPE_ARRAY as u32, 0));
    // Of several reasons to refuse what is pinned, always the same is given.
    definitions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(definitions)
}

fn shape(map: &aya_obj::Map) -> Shape {
    Shape {
        kind: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: map.max_entries(),
        flags: map.map_flags(),
    }
}

/// A map that no program uses.
fn own<T: Table>(sizes: &Sizes, kind: u32, flags: u32) -> Definition {
    let shape = Shape {
        kind,
        key_size: size_of::<T::Key>() as u32,
        value_size: size_of::<T::Value>() as u32,
        max_entries: sizes.entries(T::NAME).unwrap_or(1),
        flags,
    };
    Definition { name: T::NAME.to_owned(), shape, inner: None }
}

/// Why a pinned map is not what is meant.
fn differs(have: &Shape, want: &Shape) -> Option<String> {
    if (have.kind, have.key_size, have.value_size, have.flags)
        != (want.kind, want.key_size, want.value_size, want.flags)
    {
        let text = |shape: &Shape| {
            let Shape { kind, key_size, value_size, flags, .. } = shape;
            format!(
                "{} with keys of {key_size} and values of {value_size} bytes, flags {flags:#x}",
                sys::kind_name(*kind)
            )
        };
        return Some(format!(
            "it is a {}, and this version means a {}: another version pinned it; run `bulkhead detach --all` of that version (enforcement ends until the \
             agent has started again)",
            text(have),
            text(want)
        ));
    }
    (have.max_entries != want.max_entries).then(|| {
        format!(
            "it has {} entries, {} are configured; configure the size it has, or run `bulkhead detach --all` to make it anew (enforcement ends until \
             the agent has started again)",
            have.max_entries, want.max_entries
        )
    })
}

/// The maps.
#[derive(Debug)]
pub struct Maps {
    by_name: BTreeMap<String, Map>,
    /// Layouts of the flow tables, by name of the outer map.
    inner: BTreeMap<String, Shape>,
    pins: Pins,
}

impl Maps {
    /// Opens the pinned maps, and makes and pins those that are missing.
    ///
    /// # Errors
    /// A map of another layout or size is pinned, or the kernel refuses one.
    pub fn create(pins: &Pins, sizes: &Sizes) -> Result<Self, NodeError> {
        sizes.check()?;
        pins.create()?;
        Self::each(pins, sizes, |definition| {
            let Definition { name, shape, inner } = definition;
            let path = pins.path(Kind::Map, name);
            match Map::from_pin(&path) {
                Ok(map) => match differs(map.shape(), shape) {
                    Some(why) => Err(NodeError::Kernel { doing: format!("take over {}", path.display()), why }),
                    None => Ok(map),
                },
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let sample = inner.map(|inner| Map::create(name, &inner, None)).transpose();
                    let map =
                        sample.and_then(|sample| Map::create(name, shape, sample.as_ref().map(|map| map.as_fd())));
                    let map = map.doing(|| format!("create the map {name} of {} entries", shape.max_entries))?;
                    map.pin(&path).doing(|| format!("pin {}", path.display()))?;
                    Ok(map)
                }
                Err(e) => Err(e).doing(|| format!("open {}", path.display())),
            }
        })
    }

    /// Opens the pinned maps, of whatever size. Makes nothing.
    ///
    /// # Errors
    /// Nothing is pinned, or not everything, or of another layout.
    pub fn open(pins: &Pins) -> Result<Self, NodeError> {
        pins.expect()?;
        Self::each(pins, &Sizes::default(), |definition| pinned(pins, definition))
    }

    /// Opens one of the pinned maps, whatever became of the others.
    ///
    /// # Errors
    /// It is not pinned, or of another layout.
    pub fn open_one<T: Table>(pins: &Pins) -> Result<Map, NodeError> {
        pins.expect()?;
        let definitions = definitions(&Sizes::default())?;
        let definition = definitions.iter().find(|definition| definition.name == T::NAME);
        pinned(
            pins,
            definition.ok_or("the eBPF objects have no such map").doing(|| format!("open the map {}", T::NAME))?,
        )
    }

    fn each(
        pins: &Pins,
        sizes: &Sizes,
        mut map: impl FnMut(&Definition) -> Result<Map, NodeError>,
    ) -> Result<Self, NodeError> {
        let (mut by_name, mut inner) = (BTreeMap::new(), BTreeMap::new());
        for definition in definitions(sizes)? {
            by_name.insert(definition.name.clone(), map(&definition)?);
            inner.extend(definition.inner.map(|shape| (definition.name, shape)));
        }
        Ok(Self { by_name, inner, pins: pins.clone() })
    }

    /// A map of that name.
    ///
    /// # Errors
    /// When neither object has it.
    pub fn get(&self, name: &str) -> Result<&Map, NodeError> {
        self.by_name.get(name).ok_or_else(|| NodeError::Kernel {
            doing: format!("open the map {name}"),
            why: "the eBPF objects have no such map".to_owned(),
        })
    }

    /// Makes an empty map of the kind that an outer map holds.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create_inner(&self, outer: &str) -> Result<Map, NodeError> {
        let shape = self.inner.get(outer).ok_or_else(|| NodeError::Kernel {
            doing: "create a flow table".to_owned(),
            why: format!("{outer} holds no maps"),
        })?;
        Map::create(outer, shape, None).doing(|| format!("create a flow table of {} entries", shape.max_entries))
    }

    /// Pins what the outer map is about to hold at that index, in the place of what it held before. Without a pin nobody could open it again but by
    /// its id, which needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pin_inner(&self, outer: &str, index: u32, map: &Map) -> Result<(), NodeError> {
        self.pins.replace(Kind::Flows, &inner_name(outer, index), |path| map.pin(path))
    }

    /// Removes that pin; none is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unpin_inner(&self, outer: &str, index: u32) -> Result<(), NodeError> {
        self.pins.remove(Kind::Flows, &inner_name(outer, index))
    }

    /// Indexes at which inner maps are pinned, of whatever outer map.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub(crate) fn pinned_inner(&self) -> Result<BTreeSet<u32>, NodeError> {
        let names = self.pins.names(Kind::Flows)?;
        Ok(names.iter().filter_map(|name| name.rsplit_once('-')?.1.parse().ok()).collect())
    }

    /// What an outer map holds at that index. `None` when it holds nothing there, or what an agent that died has not put in force.
    ///
    /// # Errors
    /// The kernel's.
    pub fn inner(&self, outer: &str, index: u32) -> Result<Option<Map>, NodeError> {
        let doing = || format!("open the flow table {index} of {outer}");
        // User space reads ids from a map of maps.
        let mut id = [0; 4];
        if !self.get(outer)?.get(&index.to_ne_bytes(), &mut id).doing(doing)? {
            return Ok(None);
        }
        match Map::from_pin(&self.pins.path(Kind::Flows, &inner_name(outer, index))) {
            Ok(map) => Ok(Some(map).filter(|map| map.id() == u32::from_ne_bytes(id))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(doing),
        }
    }
}

fn inner_name(outer: &str, index: u32) -> String {
    format!("{outer}-{index}")
}

/// The programs.
#[derive(Debug)]
pub struct Programs {
    by_name: BTreeMap<String, OwnedFd>,
}

impl Programs {
    /// Puts the programs of this version in force with these settings: loads them, pins them and writes them into the program arrays, which every
    /// link uses. Where just these are in force already, as after a restart, nothing is done: the verifier takes seconds.
    /// On an error the programs and settings of before go on.
    ///
    /// # Errors
    /// The kernel refuses a program, or a pin cannot be made.
    pub fn load(pins: &Pins, maps: &mut Maps, config: &abi::Config) -> Result<Self, NodeError> {
        Self::load_with(pins, maps, config, |_| Ok(()))
    }

    /// The same. Where another layout of the mark was in force, `remark` is called once no packet is left whose mark is in that layout, and none
    /// passes a guarded link yet: whatever else reads the mark changes there.
    ///
    /// # Errors
    /// As [`Self::load`], and what `remark` says: then the guarded links let nothing pass until this was called again.
    pub fn load_with(
        pins: &Pins,
        maps: &mut Maps,
        config: &abi::Config,
        remark: impl FnOnce(&Layout) -> Result<(), NodeError>,
    ) -> Result<Self, NodeError> {
        if let Some(programs) = Self::in_force(pins, maps, config)? {
            return Ok(programs);
        }
        let slots = maps.get(store::Endpoints::NAME)?.shape().max_entries;
        let layout = mark::layout(config.mark_mask, slots).doing(|| "use the mask of the mark")?;
        // Markers of what was in force.
        let known: Vec<&str> = names().collect();
        for pin in pins.names(Kind::Program)? {
            if !known.contains(&pin.as_str()) {
                pins.remove(Kind::Program, &pin)?;
            }
        }

        // The settings are too long for one store, so that a program might read half of a change: they come in a new map with new programs.
        let name = store::Config::NAME;
        let fresh = pins.fresh(Kind::Map, name)?;
        let settings = Map::create(name, maps.get(name)?.shape(), None).doing(|| "create the map CONFIG")?;
        let written = settings.put(&0_u32.to_ne_bytes(), bytes::of(config));
        written.doing(|| "write CONFIG")?;
        settings.pin(&fresh).doing(|| format!("pin {}", fresh.display()))?;

        let mut paths: BTreeMap<&str, PathBuf> = BTreeMap::new();
        paths.extend(maps.by_name.keys().map(|map| (map.as_str(), pins.path(Kind::Map, map))));
        paths.insert(name, fresh);
        let mut loader = EbpfLoader::new();
        // No program reads the kernel's own structures.
        loader.btf(None);
        for (map, path) in &paths {
            loader.map_pin_path(map, path.as_path());
        }
        loader.override_global("MARK", bytes::of(&layout), true);
        let mut object = loader.load(PROGRAMS).doing(|| "load the eBPF object")?;
        for (name, program) in object.programs_mut() {
            match program {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                _ => continue,
            }
            .map_err(|error| NodeError::Kernel { doing: format!("load the program {name}"), why: verifier(&error) })?;
            if let Ok(info) = program.info() {
                let (instructions, verified) = (info.size_translated(), info.verified_instruction_count());
                tracing::debug!(name, ?instructions, ?verified, "loaded");
            }
            let fresh = pins.fresh(Kind::Program, name)?;
            sys::obj_pin(program.fd().doing(|| format!("load the program {name}"))?, &fresh)
                .doing(|| format!("pin {}", fresh.display()))?;
        }

        let since = Instant::now();
        let held = !Self::speak(maps, config.mark_mask)? && Self::hold(maps)?;
        if held {
            remark(&layout)?;
        }
        pins.settle(Kind::Map, name)?;
        maps.by_name.insert(name.to_owned(), settings);
        for name in names() {
            pins.settle(Kind::Program, name)?;
        }
        let programs = Self::open(pins)?;
        for (array, name, index) in places() {
            let fd = programs.get(name)?.as_raw_fd();
            let put = maps.get(array)?.put(&index.to_ne_bytes(), &fd.to_ne_bytes());
            put.doing(|| format!("put the program {name} in force"))?;
        }
        if held {
            tracing::info!(dropped_for = ?since.elapsed(), "another mask of the mark is in force: {:#010x}", layout.mask);
        }
        pins.replace(Kind::Program, &marker(maps), |path| {
            sys::obj_pin(&programs.get(TC[0].0).map_err(io::Error::other)?, path)
        })?;
        Ok(programs)
    }

    /// Whether the programs of TC stand, all of them, and were loaded with that mask. Marks mean nothing to those of XDP.
    fn speak(maps: &Maps, mask: u32) -> Result<bool, NodeError> {
        let array = maps.get(PROGRAMS_TC)?;
        for (_, index) in TC {
            let found = array.get(&index.to_ne_bytes(), &mut [0; 4]).doing(|| format!("read {PROGRAMS_TC}"))?;
            if !found {
                return Ok(false);
            }
        }
        Ok(Self::settings(maps)?.mark_mask == mask)
    }

    /// Lets nothing pass a guarded link any more, since a jump that fails drops, and waits until what had passed one is where it was going.
    /// With programs of two layouts side by side, one would take the other's slot for a bit of its own.
    ///
    /// `false` on a node on which nothing was in force yet.
    fn hold(maps: &Maps) -> Result<bool, NodeError> {
        let array = maps.get(PROGRAMS_TC)?;
        for (name, index) in TC {
            array.remove(&index.to_ne_bytes()).doing(|| format!("take the program {name} out of force"))?;
        }
        Grace::new()?.wait();
        Ok(Self::settings(maps)?.mark_mask != 0)
    }

    fn settings(maps: &Maps) -> Result<abi::Config, NodeError> {
        let pinned = maps.get(store::Config::NAME)?.range(0, 1).doing(|| "read CONFIG")?;
        Ok(bytes::to(&pinned))
    }

    /// The pinned programs, when they are those of this version, with these settings and maps, and stand in the arrays.
    fn in_force(pins: &Pins, maps: &Maps, config: &abi::Config) -> Result<Option<Self>, NodeError> {
        let pinned = maps.get(store::Config::NAME)?.range(0, 1).doing(|| "read CONFIG")?;
        if pinned != bytes::of(config) || !pins.path(Kind::Program, &marker(maps)).exists() {
            return Ok(None);
        }
        let Ok(programs) = Self::open(pins) else { return Ok(None) };
        for (array, name, index) in places() {
            let id = sys::program_id(&programs.get(name)?).doing(|| format!("look at the program {name}"))?;
            let mut stands = [0; 4];
            let found = maps.get(array)?.get(&index.to_ne_bytes(), &mut stands).doing(|| format!("read {array}"))?;
            // User space reads ids from a program array.
            if !found || u32::from_ne_bytes(stands) != id {
                return Ok(None);
            }
        }
        Ok(Some(programs))
    }

    /// Opens the pinned programs.
    ///
    /// # Errors
    /// When one is missing.
    pub fn open(pins: &Pins) -> Result<Self, NodeError> {
        let open = |name: &str| -> Result<_, NodeError> {
            let path = pins.path(Kind::Program, name);
            Ok((name.to_owned(), sys::obj_get(&path).doing(|| format!("open {}", path.display()))?))
        };
        Ok(Self { by_name: names().map(open).collect::<Result<_, _>>()? })
    }

    /// A program by its name in the object, for test runs.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: &str) -> Result<BorrowedFd<'_>, NodeError> {
        let program = self.by_name.get(name);
        program.map(|fd| fd.as_fd()).ok_or_else(|| NodeError::Kernel {
            doing: format!("open the program {name}"),
            why: "the eBPF object has no such program".to_owned(),
        })
    }
}

/// Where each program stands: array, name, index.
fn places() -> impl Iterator<Item = (&'static str, &'static str, u32)> {
    let tc = TC.iter().map(|(name, index)| (PROGRAMS_TC, *name, *index));
    tc.chain(XDP.iter().map(|(name, array)| (*array, *name, program::UNDERLAY)))
}

fn names() -> impl Iterator<Item = &'static str> {
    places().map(|(_, name, _)| name)
}

/// Name of the pin that says which object and maps the pinned programs were loaded with.
fn marker(maps: &Maps) -> String {
    let mut hasher = DefaultHasher::new();
    PROGRAMS.hash(&mut hasher);
    for (name, map) in &maps.by_name {
        (name, map.id()).hash(&mut hasher);
    }
    format!("of-{:016x}", hasher.finish())
}

/// Error of a program, of whose verifier log only the end tells why.
fn verifier(error: &aya::programs::ProgramError) -> String {
    const LINES: usize = 20;
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= LINES + 1 {
        return text;
    }
    tracing::debug!(%error, "verifier log");
    format!("{}\n[..]\n{}", lines[0], lines[lines.len() - LINES..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside what is called on purpose there is no call in the programs, which would cost each packet some 7 ns: the compiler makes one of a body that it
    /// finds too large.
    #[test]
    fn programs_are_in_one_piece() {
        let object = Object::parse(PROGRAMS).unwrap();
        let programs: BTreeSet<_> = object.programs.values().map(aya_obj::Program::function_key).collect();
        let called = object.functions.iter().filter(|(key, _)| !programs.contains(*key));
        let mut called: BTreeSet<&str> = called.map(|(_, function)| function.name.as_str()).collect();
        // Of the compiler's own, which nobody calls.
        called.retain(|name| !["memcpy", "memmove", "memset", "bcmp", "memcmp"].contains(name));
        assert_eq!(called, BTreeSet::from(["choose", "extensions", "transport", "walk"]));
    }

    /// Tables as user space reads them are as large as the object's maps; a mismatch would read beyond a value.
    #[test]
    fn tables_fit_the_objects() {
        let definitions = definitions(&Sizes::default()).unwrap();
        fn check<T: Table>(definitions: &[Definition]) {
            let shapes: Vec<&Shape> = definitions
                .iter()
                .filter(|definition| definition.name == T::NAME)
                .map(|definition| &definition.shape)
                .collect();
            let [shape] = shapes[..] else { panic!("{} definitions of {}", shapes.len(), T::NAME) };
            assert_eq!(
                (shape.key_size as usize, shape.value_size as usize),
                (size_of::<T::Key>(), size_of::<T::Value>()),
                "{}",
                T::NAME
            );
        }
        check::<store::Node>(&definitions);
        check::<store::Endpoints>(&definitions);
        check::<store::Rows>(&definitions);
        check::<store::Config>(&definitions);
        check::<store::EndpointInfos>(&definitions);
        check::<store::Views>(&definitions);
        check::<store::Ports>(&definitions);
        check::<store::Lists>(&definitions);
        check::<store::RuleCounters>(&definitions);
        check::<store::CounterKeys>(&definitions);
        check::<store::Addresses4>(&definitions);
        check::<store::Addresses6>(&definitions);
        check::<store::Prefixes4>(&definitions);
        check::<store::Prefixes6>(&definitions);
        check::<store::Vteps>(&definitions);
        check::<store::Owners>(&definitions);
        check::<store::Services>(&definitions);
        check::<store::BackendTable>(&definitions);
        check::<store::Ids>(&definitions);
        check::<store::ContactTable>(&definitions);
    }

    /// Every map that a table's size bounds takes it from `Sizes`.
    #[test]
    fn sizes_are_taken() {
        let sizes = Sizes {
            slots: 10,
            views: 11,
            sets: 12,
            lists: 13,
            rows: 14,
            addresses: 15,
            prefixes: 16,
            rule_counters: 17,
            counters: 18,
            vteps: 19,
            owners: 20,
            contacts: 21,
            flows: 22,
            services: 23,
            backends: 24,
        };
        let fixed =
            ["BINDINGS", "BUDGET", "CASE4", "CASE6", "CONFIG", "NODE", PROGRAMS_TC, PROGRAMS_XDP, PROGRAMS_XDP_GENERIC];
        let (small, large) = (definitions(&sizes).unwrap(), definitions(&Sizes::default()).unwrap());
        for small in &small {
            let large = large.iter().find(|large| large.name == small.name).unwrap();
            assert_eq!(
                small.shape.max_entries == large.shape.max_entries,
                fixed.contains(&small.name.as_str()),
                "{}",
                small.name
            );
            assert_eq!(
                small.inner.map(|inner| inner.max_entries),
                small.name.starts_with("FLOWS").then_some(22),
                "{}",
                small.name
            );
        }
    }
}
