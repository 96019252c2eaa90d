//! The programs and tables as [`super::Programs::load`] makes them, but pinned and attached nowhere: whether this kernel takes them.

use aya::{EbpfLoader, programs::Program};
use aya_obj::Object;
use bulkhead_ebpf::mark::Layout;
use serde::Serialize;

use super::{PROGRAMS, STUB, Sizes, verifier};
use crate::{
    bytes,
    causes::causes,
    mark,
    node::NodeError,
    sys::{self, Doing as _},
};

/// What the kernel took. It is gone again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rehearsal {
    /// Programs that the verifier accepted, the stubs of links among them.
    pub programs: usize,
    /// Those that the kernel has compiled; without its JIT compiler it interprets them.
    pub compiled: usize,
}

/// Makes all tables, of these sizes, and loads all programs; then everything ends. Takes seconds, and the memory that the agent will take.
///
/// # Errors
/// The kernel refuses a table or a program, which is named; or the mask of the mark cannot be used.
pub fn rehearse(sizes: &Sizes, mark_mask: u32) -> Result<Rehearsal, NodeError> {
    sizes.check()?;
    let layout = mark::layout(mark_mask, sizes.slots).doing(|| "use the mask of the mark")?;
    let programs = load(PROGRAMS, sizes, Some(&layout))?;
    let stubs = load(STUB, sizes, None)?;
    Ok(Rehearsal { programs: programs.programs + stubs.programs, compiled: programs.compiled + stubs.compiled })
}

fn load(object: &[u8], sizes: &Sizes, layout: Option<&Layout>) -> Result<Rehearsal, NodeError> {
    let parsed = Object::parse(object).doing(|| "read the eBPF object")?;
    let sized: Vec<(String, u32)> =
        parsed.maps.keys().filter_map(|name| Some((name.clone(), sizes.entries(name)?))).collect();
    let mut loader = EbpfLoader::new();
    // As in earnest: no program reads the kernel's own structures.
    loader.btf(None);
    for (name, entries) in &sized {
        loader.map_max_entries(name, *entries);
    }
    if let Some(layout) = layout {
        loader.override_global("MARK", bytes::of(layout), true);
    }
    let mut loaded = loader.load(object).map_err(|error| causes(&error)).doing(|| "make the tables")?;
    let mut rehearsal = Rehearsal::default();
    for (name, program) in loaded.programs_mut() {
        match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => continue,
        }
        .map_err(|error| NodeError::Kernel { doing: format!("load the program {name}"), why: verifier(&error) })?;
        let doing = || format!("look at the program {name}");
        rehearsal.programs += 1;
        rehearsal.compiled += usize::from(sys::program_compiled(program.fd().doing(doing)?).doing(doing)?);
    }
    Ok(rehearsal)
}
