//! A model from files alone, for questions that need no agent: ours, Kubernetes manifests, or both side by side.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, Source, source},
    input::read_at_most,
    manifest::Manifests,
    model::Model,
    policy::{self, Policy},
    workloads::{self, Workloads},
    yaml::{self, Family},
};

/// Longest file that is read: what a tool prints of a large cluster.
const MAX_BYTES: u64 = 64 << 20;

/// A model, and what somebody should know of the files that it was made of.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// What was not used, and what looks wrong; no errors.
    pub notes: Diagnostics,
}

/// Reads files, and of directories every `*.yaml`, `*.yml` and `*.json` below them; hidden ones are left out.
///
/// # Errors
/// Everything that is wrong with any of them.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, Diagnostics> {
    let mut found = Diagnostics::default();
    let sources = sources(paths, &mut found);
    let mut parts = Parts::default();
    for source in &sources {
        let _: Option<()> = found.take(parts.add(source));
    }
    let Parts { mut policies, workloads, manifests } = parts;
    let seen = found.take(manifests.workloads());
    let workloads = found.take(merge(workloads.into_iter().chain(seen)));
    let Manifests { policies: read, mut notes, .. } = manifests;
    policies.extend(read);
    let built = workloads.filter(|_| found.0.is_empty()).map(|workloads| Model::build(&policies, &workloads));
    let model = built.and_then(|model| found.take(model));
    let Some(model) = model else { return Err(found) };
    notes.0.extend_from_slice(&model.warnings.0);
    Ok(Loaded { model, notes })
}

/// Reads files as [`load`] does, each by itself. What cannot be read is added to what was found.
pub fn sources(paths: &[PathBuf], found: &mut Diagnostics) -> Vec<Arc<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        match files(path) {
            Ok(files) if files.is_empty() => {
                let error = Diagnostic::nowhere(format!("{}: there is no file to read", path.display()));
                found.push(error.help("files end in .yaml, .yml or .json"));
            }
            Ok(files) => {
                for file in files {
                    let text = read_at_most(&file, MAX_BYTES).map_err(Diagnostics::from);
                    sources.extend(found.take(text).map(|text| source(file.display().to_string(), text)));
                }
            }
            Err(error) => found.push(Diagnostic::nowhere(format!("{} cannot be read: {error}", path.display()))),
        }
    }
    sources
}

/// What files hold.
#[derive(Default)]
struct Parts {
    policies: Vec<Policy>,
    workloads: Vec<Workloads>,
    manifests: Manifests,
}

impl Parts {
    fn add(&mut self, source: &Arc<Source>) -> Result<(), Diagnostics> {
        match yaml::family(source)? {
            Family::Workloads => self.workloads.push(workloads::parse(source)?),
            Family::Manifests => self.manifests.read(source)?,
            // Only what a program has left beside manifests; anything else may have been a policy.
            Family::Data if source.name().ends_with(".json") => {
                let note = Diagnostic::warning(&Place::start(source), "the file holds no document, and is not used");
                self.manifests.notes.push(note.help("documents begin with `apiVersion` and `kind`"));
            }
            Family::Policies | Family::Data => self.policies.extend(policy::parse(source)?),
        }
        Ok(())
    }
}

/// Workloads of several sources side by side.
fn merge(all: impl Iterator<Item = Workloads>) -> Result<Workloads, Diagnostics> {
    let mut found = Diagnostics::default();
    let mut all = all;
    let Some(mut merged) = all.next() else { return Ok(Workloads::default()) };
    for other in all {
        for (name, node) in other.nodes {
            merged.nodes.entry(name).or_insert(node);
        }
        for (name, labels) in other.namespaces {
            merged.namespaces.entry(name).or_default().extend(&labels);
        }
        for (name, workload) in other.workloads {
            if let Some(first) = merged.workloads.get(&name) {
                let error = Diagnostic::error(&workload.place, format!("workload `{name}` is described twice"));
                found.push(error.note(&first.place, "first here").help("remove one of the two"));
            }
            merged.workloads.insert(name, workload);
        }
        for (name, frontend) in other.frontends {
            if let Some(first) = merged.frontends.get(&name) {
                let error = Diagnostic::error(&frontend.place, format!("service `{name}` is described twice"));
                found.push(error.note(&first.place, "first here").help("remove one of the two"));
            }
            merged.frontends.insert(name, frontend);
        }
        merged.resolvers.extend(other.resolvers);
    }
    found.or(merged)
}

/// A file, or the files below a directory, in the order of their names.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    entries.sort();
    let mut all = Vec::new();
    for entry in entries {
        let hidden = entry.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let known =
            entry.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
        if !hidden && (known || entry.is_dir()) {
            all.extend(files(&entry)?);
        }
    }
    Ok(all)
}
