//! Reads what people write from where they put it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, source},
    model::Model,
    policy::{self, Policy},
    workloads::{self, Workloads},
};

/// Longest file that is read; nobody writes a policy of this size by hand.
const MAX_BYTES: u64 = 4 << 20;

/// What stands for the name of a workloads file where a cluster describes workloads.
pub const LIVE: &str = "(cluster)";

/// Where to read.
#[derive(Clone, Debug)]
pub struct Locations {
    /// Directory of policy files: `*.yaml` and `*.yml`, hidden ones and directories left out.
    pub policies: PathBuf,
    /// The workloads file.
    pub workloads: PathBuf,
}

/// What describes workloads.
#[derive(Clone, Debug)]
pub enum Listing {
    /// The text of a workloads file.
    Text(String),
    /// A cluster, which is no part of a revision: it is as it is.
    Live(Arc<Workloads>),
}

impl Listing {
    /// The text; of a cluster none.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Live(_) => "",
        }
    }
}

impl PartialEq for Listing {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a == b,
            // It is put together anew when something has changed, and not otherwise.
            (Self::Live(a), Self::Live(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// What a source says: policies as texts, each of which may be unreadable, and workloads.
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    /// Policy files by name; an error when their directory cannot be read.
    pub policies: Result<BTreeMap<String, Result<String, Diagnostic>>, Diagnostic>,
    /// Name of the workloads file, and what it says.
    pub workloads: (String, Result<Listing, Diagnostic>),
}

impl Files {
    /// Texts that were used, over workloads as they are now where those are a cluster's.
    #[must_use]
    pub fn again(inputs: Inputs, now: &Self) -> Self {
        let then = Self::from(inputs);
        match &now.workloads.1 {
            Ok(Listing::Live(_)) => Self { workloads: now.workloads.clone(), ..then },
            _ => then,
        }
    }

    /// Whether its workloads are a cluster's as they are now.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.workloads.1, Ok(Listing::Live(_)))
    }

    /// Reads all of them.
    #[must_use]
    pub fn read(locations: &Locations) -> Self {
        Self {
            policies: policies(&locations.policies),
            workloads: (file_name(&locations.workloads), read(&locations.workloads).map(Listing::Text)),
        }
    }
}

impl From<Inputs> for Files {
    fn from(inputs: Inputs) -> Self {
        let (name, text) = inputs.workloads;
        Self {
            policies: Ok(inputs.policies.into_iter().map(|(name, text)| (name, Ok(text))).collect()),
            workloads: (name, Ok(Listing::Text(text))),
        }
    }
}

/// Texts that are used, by file name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Policy files.
    pub policies: BTreeMap<String, String>,
    /// Name and text of the workloads file.
    pub workloads: (String, String),
    /// Policy files that never were good: their texts here are what they isolate meanwhile, and what can be read of their admin policies.
    #[serde(default)]
    pub isolating: BTreeSet<String>,
}

impl Inputs {
    /// What they mean.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn model(&self) -> Result<Model, Diagnostics> {
        let mut found = Diagnostics::default();
        let mut policies = Vec::new();
        for (name, text) in &self.policies {
            let mut file = found.take(policy::parse(&source(name, text))).unwrap_or_default();
            if self.isolating.contains(name) {
                file.iter_mut().for_each(Policy::walls_only);
            }
            policies.extend(file);
        }
        if self.workloads.0 == LIVE {
            let message = "the workloads of this revision were a cluster's, and nothing of them was stored";
            return Err(Diagnostic::nowhere(message).help("ask the agent: without `--offline`").into());
        }
        let workloads = found.take(workloads::parse(&source(&self.workloads.0, &self.workloads.1)));
        match workloads {
            Some(workloads) if found.0.is_empty() => Model::build(&policies, &workloads),
            // Names cannot be resolved while some are missing.
            _ => Err(found),
        }
    }
}

fn policies(directory: &Path) -> Result<BTreeMap<String, Result<String, Diagnostic>>, Diagnostic> {
    let refuse = |error| cannot_read(directory, &error).help("`--policies` is a directory of YAML files");
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        let name = file_name(&path);
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !name.starts_with('.') && !path.is_dir() {
            texts.insert(name, read(&path));
        }
    }
    Ok(texts)
}

fn read(path: &Path) -> Result<String, Diagnostic> {
    read_at_most(path, MAX_BYTES)
}

/// The text of a file of bounded size.
pub(crate) fn read_at_most(path: &Path, most: u64) -> Result<String, Diagnostic> {
    let refuse = |error| cannot_read(path, &error);
    let len = fs::metadata(path).map_err(refuse)?.len();
    if len > most {
        return Err(Diagnostic::nowhere(format!("{}: the file has {len} bytes, {most} are allowed", path.display()))
            .help("split it"));
    }
    let bytes = fs::read(path).map_err(refuse)?;
    String::from_utf8(bytes).map_err(|error| {
        let (good, bytes) = (error.utf8_error().valid_up_to(), error.into_bytes());
        let before = String::from_utf8_lossy(&bytes[..good]);
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let line = before.matches('\n').count() + 1;
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let text = source(file_name(path), String::from_utf8_lossy(&bytes));
        Diagnostic::error(&Place::new(&text, narrow(line), narrow(column), good, 1), "the file is not UTF-8")
            .help("save it as UTF-8")
    })
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::nowhere(format!("{} cannot be read: {error}", path.display()))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
