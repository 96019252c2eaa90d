//! What can be used of files some of which are bad: one bad file does not hold back the others. Pure.
//!
//! The unit is the file, since what is broken cannot be split. A bad one is replaced by its last good text. One that never was good opens nothing, and
//! isolates the services that can be read of it.

mod isolation;

use std::{
    collections::{BTreeMap, BTreeSet},
    slice,
    sync::Arc,
};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, Source, source},
    guard,
    input::{Files, Inputs, Listing},
    intent::Intent,
    manifest::title,
    network_policy::NetworkPolicy,
    policy::{self, Policy},
    source::PolicyText,
    workloads::{self, Workloads},
    yaml::tree::Item,
};

/// What is used, and what is not.
#[derive(Clone, Debug)]
pub struct Settled<T> {
    /// Texts that are used; of bad files the last good ones.
    pub inputs: Inputs,
    /// What was built from them.
    pub built: T,
    /// What is wrong with the files that are not used, and what holds instead; empty when all are used.
    pub refused: Diagnostics,
}

/// What was read of policy files. A text that is the same again is not read again: of many policies one changes at a time.
#[derive(Debug, Default)]
pub struct Memory(BTreeMap<String, Arc<Version>>);

impl Memory {
    /// The Kubernetes policy that was read of a file: `Some(None)` where there was no file, `None` where it says anything else.
    pub(crate) fn network_policy(&self, name: &str) -> Option<Option<&NetworkPolicy>> {
        let Some(version) = self.0.get(name) else { return Some(None) };
        match &version.content {
            Ok(Content::Policy(policies)) => match policies.as_slice() {
                [Policy::Network(policy)] => Some(Some(policy)),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }

    fn version(&mut self, name: &str, text: &str) -> Arc<Version> {
        if let Some(known) = self.0.get(name).filter(|known| known.source.inner() == text) {
            return Arc::clone(known);
        }
        let version = Arc::new(Version::parse(name, text, true));
        self.0.insert(name.to_owned(), Arc::clone(&version));
        version
    }

    /// Reads a policy, from its text unless what is read of that is known.
    pub(crate) fn read(&mut self, name: &str, PolicyText { text, document }: &PolicyText) {
        match document {
            Some(document) => {
                let version = Version::of_document(name, text, document);
                self.0.insert(name.to_owned(), Arc::new(version));
            }
            None => _ = self.version(name, text),
        }
    }

    /// Forgets those that are not there any more.
    fn keep(&mut self, files: &Files) {
        if let Ok(policies) = &files.policies {
            self.0.retain(|name, _| policies.contains_key(name));
        }
    }
}

/// Whom an error may blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Files that are other than those in force.
    Changed,
    /// Other policies too, if it points to them.
    All,
}

/// As [`settle_with`], of files that were never read before, and blamed for what is new.
///
/// # Errors
/// See there.
pub fn settle<T>(
    files: &Files,
    last: Option<&Inputs>,
    build: impl FnMut(&[Policy], &Workloads) -> Result<T, Diagnostics>,
) -> Result<Settled<T>, Diagnostics> {
    settle_with(&mut Memory::default(), files, last, Blame::Changed, build)
}

/// Takes files as they are as far as `build` can do with them, and the texts of `last`, the inputs of the revision in force, for the others. What is
/// used was built last, of all that was built without an error.
///
/// # Errors
/// Without `last` everything that is wrong with any file; else what no mix of old and new texts mends.
pub fn settle_with<T>(
    memory: &mut Memory,
    files: &Files,
    last: Option<&Inputs>,
    blame: Blame,
    mut build: impl FnMut(&[Policy], &Workloads) -> Result<T, Diagnostics>,
) -> Result<Settled<T>, Diagnostics> {
    let mut refused = Diagnostics::default();
    let mut mix = Mix::new(files, last, &mut refused, memory);
    memory.keep(files);
    let bad: BTreeSet<usize> = (0..mix.0.len()).filter(|&file| mix.0[file].error().is_some()).collect();
    refused.0.extend(bad.iter().filter_map(|&file| mix.0[file].error()).flat_map(|found| found.0.clone()));
    if last.is_none() {
        refused = refused.or(Diagnostics::default())?;
    }
    if !mix.hold(&bad, blame) {
        return Err(refused);
    }
    let mut tried = refused.clone();
    let mut built = loop {
        match mix.build(&mut build) {
            Ok(built) => break built,
            Err(found) => {
                let blamed = mix.blame(&found, blame);
                add(&mut tried, found);
                if last.is_none() || blamed.is_empty() || !mix.hold(&blamed, blame) {
                    return Err(tried);
                }
            }
        }
    };

    // Some were only suspected: what can be used beside the others is used.
    loop {
        let (mut better, mut why) = (false, Diagnostics::default());
        for file in (0..mix.0.len()).filter(|file| !bad.contains(file)) {
            if mix.0[file].held {
                mix.0[file].held = false;
                match mix.build(&mut build) {
                    Ok(more) => (built, better) = (more, true),
                    Err(found) => {
                        mix.0[file].held = true;
                        add(&mut why, found);
                    }
                }
            }
        }
        if !better {
            add(&mut refused, why);
            break;
        }
    }
    // A file that is gone while one of another name is bad may be the same: it must not open what it isolates. An object of a cluster has no other name.
    if !files.is_live() && mix.0.iter().any(File::is_left_out) {
        for file in 0..mix.0.len() {
            if mix.0[file].is_gone() {
                let safer = mix.hold(&BTreeSet::from([file]), blame).then(|| mix.build(&mut build));
                match safer {
                    Some(Ok(safer)) => built = safer,
                    _ => mix.0[file].held = false,
                }
            }
        }
    }
    // Mostly all of it fits, and one build says so of all files: a wall mends nothing that is wrong without it.
    match mix.isolate_all(&mut build) {
        Some(safer) => built = safer,
        None => isolate_each(&mut mix, &mut build, &mut built, &mut refused),
    }
    // What was good and is let go goes on to isolate whom it isolated, or all stays as it was.
    let listed = mix.listed();
    if mix.0.iter().any(|file| !file.let_go.is_subset(&listed)) {
        add(&mut tried, refused);
        return Err(tried);
    }
    refused.0.extend(mix.0.iter().filter_map(File::instead));
    Ok(Settled { inputs: mix.inputs(), built, refused })
}

/// Has files that are left out isolate what can be read of them, as far as it fits.
fn isolate_each<T>(
    mix: &mut Mix<'_>,
    build: &mut impl FnMut(&[Policy], &Workloads) -> Result<T, Diagnostics>,
    built: &mut T,
    refused: &mut Diagnostics,
) {
    let mut listed = mix.listed();
    for file in 0..mix.0.len() {
        let isolated = mix.readable(file, &listed);
        if isolated.is_empty() {
            continue;
        }
        mix.0[file].isolate(&isolated);
        if let Ok(safer) = mix.build(build) {
            *built = safer;
        } else {
            // Some of it does not fit to what others write: those one by one that do.
            let mut fit = Vec::new();
            for one in &isolated {
                fit.push(one.clone());
                mix.0[file].isolate(&fit);
                match mix.build(build) {
                    Ok(safer) => *built = safer,
                    Err(found) => {
                        fit.pop();
                        let why = found.0.first().map(|first| format!(": {}", first.message)).unwrap_or_default();
                        let name = one.name();
                        refused.push(Diagnostic::nowhere(match isolation::is_partly(&name) {
                            true => format!("what can be read of {name} does not fit{why}"),
                            false => format!("{name} cannot be isolated{why}"),
                        }));
                    }
                }
            }
            mix.0[file].isolate(&fit);
        }
        listed.extend(mix.0[file].current().map(Version::names).unwrap_or_default());
    }
}

/// One cause is found by several attempts.
fn add(to: &mut Diagnostics, found: Diagnostics) {
    for diagnostic in found.0 {
        if !to.0.contains(&diagnostic) {
            to.push(diagnostic);
        }
    }
}

/// A text, and what it says.
#[derive(Debug)]
struct Version {
    source: Arc<Source>,
    content: Result<Content, Diagnostics>,
}

#[derive(Debug)]
enum Content {
    Policy(Vec<Policy>),
    Workloads(Arc<Workloads>),
}

impl Version {
    fn parse(name: &str, text: &str, policy: bool) -> Self {
        let source = source(name, text);
        let content = if policy {
            policy::parse(&source).map(Content::Policy)
        } else {
            workloads::parse(&source).map(Arc::new).map(Content::Workloads)
        };
        Self { source, content }
    }

    /// Of a text whose only document is known.
    fn of_document(name: &str, text: &str, document: &Item) -> Self {
        let source = source(name, text);
        let read = policy::read(&source, slice::from_ref(document));
        let content = read.unwrap_or_else(|| policy::parse(&source)).map(Content::Policy);
        Self { source, content }
    }

    fn live(name: &str, workloads: &Arc<Workloads>) -> Self {
        Self { source: source(name, ""), content: Ok(Content::Workloads(Arc::clone(workloads))) }
    }

    fn unreadable(name: &str, why: Diagnostics) -> Self {
        Self { source: source(name, ""), content: Err(why) }
    }

    /// Walls of these, and nothing else.
    fn isolating(name: &str, isolated: &[isolation::Isolated]) -> Self {
        let mut version = Self::parse(name, &isolation::text(isolated), true);
        if let Ok(Content::Policy(policies)) = &mut version.content {
            policies.iter_mut().for_each(Policy::walls_only);
        }
        version
    }

    /// Services and policies of Kubernetes that it has.
    fn names(&self) -> BTreeSet<String> {
        let policies = self.content.as_ref().ok().and_then(|content| match content {
            Content::Policy(policies) => Some(policies),
            Content::Workloads(_) => None,
        });
        let mut names = BTreeSet::new();
        for policy in policies.into_iter().flatten() {
            match policy {
                Policy::Intent(Intent { namespace, services, .. }) => {
                    names.extend(services.iter().map(|service| format!("{namespace}/{}", service.name)));
                }
                Policy::Network(policy) => _ = names.insert(title("NetworkPolicy", &policy.name)),
                Policy::Guard(guard) if guard.kind != guard::Kind::Guard => {
                    names.insert(title(guard.kind.name(), &guard.name));
                }
                Policy::Guard(_) | Policy::Noted(_) => {}
            }
        }
        names
    }
}

struct File<'a> {
    name: &'a str,
    policy: bool,
    /// As it is; `None` when it is gone.
    written: Option<Arc<Version>>,
    /// Name and text that are in force; `None` when it never was good.
    last: Option<(&'a str, &'a str)>,
    /// What it isolates in the revision in force, if it never was good.
    isolating: Option<&'a str>,
    /// It is other than what is in force.
    changed: bool,
    /// It is not used as it is, but as it was.
    held: bool,
    /// What `last` says, once it is needed.
    kept: Option<Version>,
    /// What it had when it was let go though it was good.
    let_go: BTreeSet<String>,
}

impl File<'_> {
    fn error(&self) -> Option<&Diagnostics> {
        self.written.as_ref().and_then(|version| version.content.as_ref().err())
    }

    fn current(&self) -> Option<&Version> {
        if self.held { self.kept.as_ref() } else { self.written.as_deref() }
    }

    /// Whether it may be left out though it was good once. Not where that would let something through that it denies: what it isolates stays so, and a Guard or
    /// an admin policy would have to fit by itself.
    fn may_be_let_go(&self, blame: Blame) -> bool {
        let denies = |version: &Version| match &version.content {
            Ok(Content::Policy(policies)) => policies.iter().any(|policy| matches!(policy, Policy::Guard(_))),
            Ok(Content::Workloads(_)) | Err(_) => true,
        };
        blame == Blame::All && self.policy && self.last.is_some() && !self.current().is_none_or(denies)
    }

    fn is_left_out(&self) -> bool {
        self.held && self.written.is_some() && self.last.is_none()
    }

    fn is_gone(&self) -> bool {
        !self.held && self.written.is_none()
    }

    /// Has it say nothing but that these are isolated.
    fn isolate(&mut self, isolated: &[isolation::Isolated]) {
        self.kept = (!isolated.is_empty()).then(|| Version::isolating(self.name, isolated));
    }

    /// What holds instead of it.
    fn instead(&self) -> Option<Diagnostic> {
        let name = self.name;
        self.held.then(|| {
            Diagnostic::nowhere(match (&self.written, self.last) {
                (_, None) => {
                    let names = self.kept.iter().flat_map(Version::names);
                    let (partly, isolated): (Vec<_>, Vec<_>) = names.partition(|name| isolation::is_partly(name));
                    let until = [
                        ("isolated until it is", isolated),
                        ("what can be read of it is, and a Deny or Pass that cannot be denies all", partly),
                    ];
                    let until = until.iter().filter(|(_, names)| !names.is_empty());
                    let until: String = until.map(|(so, names)| format!("; {so}: {}", names.join(", "))).collect();
                    let why = if self.changed { "it never was good" } else { "it was, and does not fit any more" };
                    format!("{name} is not in force: {why}{until}")
                }
                (None, Some(_)) => {
                    format!("{name} is gone, but stays in force until the other files are good without it")
                }
                (Some(_), Some(_)) => format!("{name} is not in force as it is: its last good text is"),
            })
        })
    }
}

/// Policy files by name, then the workloads file.
struct Mix<'a>(Vec<File<'a>>);

impl<'a> Mix<'a> {
    fn new(files: &'a Files, last: Option<&'a Inputs>, found: &mut Diagnostics, memory: &mut Memory) -> Self {
        let mut names: BTreeMap<&str, Option<Result<&str, &Diagnostic>>> = BTreeMap::new();
        let good = |last: &'a Inputs| last.policies.iter().filter(|(name, _)| !last.isolating.contains(*name));
        match &files.policies {
            Ok(policies) => {
                names.extend(last.into_iter().flat_map(good).map(|(name, _)| (name.as_str(), None)));
                names.extend(policies.iter().map(|(name, read)| (name.as_str(), Some(read.as_deref()))));
            }
            Err(error) => {
                found.push(error.clone());
                let before = last.into_iter().flat_map(|last| &last.policies);
                names.extend(before.map(|(name, text)| (name.as_str(), Some(Ok(text.as_str())))));
            }
        }
        let mut mix: Vec<_> = names
            .into_iter()
            .map(|(name, read)| {
                let before = last.and_then(|last| last.policies.get_key_value(name));
                let before = before.map(|(name, text)| (name.as_str(), text.as_str()));
                let isolating = last.is_some_and(|last| last.isolating.contains(name));
                let parse = |text: &str| memory.version(name, text);
                let mut file = Self::file(name, true, read, before.filter(|_| !isolating), parse);
                file.isolating = before.filter(|_| isolating).map(|(_, text)| text);
                // Its directory cannot be read: what it isolates stays as it is.
                if let (Err(_), Some(_)) = (&files.policies, file.isolating) {
                    file.written = Some(Arc::new(Version::unreadable(name, Diagnostics::default())));
                }
                file
            })
            .collect();
        let (name, read) = &files.workloads;
        let last = last.map(|last| (last.workloads.0.as_str(), last.workloads.1.as_str()));
        let parse = |text: &str| {
            Arc::new(match read {
                Ok(Listing::Live(workloads)) => Version::live(name, workloads),
                _ => Version::parse(name, text, false),
            })
        };
        mix.push(Self::file(name, false, Some(read.as_ref().map(Listing::text)), last, parse));
        Self(mix)
    }

    fn file(
        name: &'a str,
        policy: bool,
        read: Option<Result<&str, &Diagnostic>>,
        last: Option<(&'a str, &'a str)>,
        parse: impl FnOnce(&str) -> Arc<Version>,
    ) -> File<'a> {
        let changed = read.is_none_or(|read| read.is_err() || read.ok() != last.map(|(_, text)| text));
        let written = read.map(|read| match read {
            Ok(text) => parse(text),
            Err(error) => Arc::new(Version::unreadable(name, error.clone().into())),
        });
        File { name, policy, written, last, isolating: None, changed, held: false, kept: None, let_go: BTreeSet::new() }
    }

    /// Uses files as they were. `false` when that is no better: a text that was good once and cannot be read now is not left out silently.
    fn hold(&mut self, files: &BTreeSet<usize>, blame: Blame) -> bool {
        files.iter().all(|&index| {
            let file = &mut self.0[index];
            if file.may_be_let_go(blame) && (file.held || !file.changed) {
                // It was good, and what held is no better: it is left out as what never was.
                file.let_go = file.current().map(Version::names).unwrap_or_default();
                (file.last, file.kept) = (None, None);
            }
            if file.kept.is_none() {
                file.kept = file.last.map(|(name, text)| Version::parse(name, text, file.policy));
            }
            file.held = true;
            (file.changed || file.last.is_none()) && file.kept.as_ref().is_none_or(|version| version.content.is_ok())
        })
    }

    /// Services and NetworkPolicies that are in use.
    fn listed(&self) -> BTreeSet<String> {
        self.0.iter().filter_map(File::current).flat_map(Version::names).collect()
    }

    /// What can be read of a file that is left out, and is listed nowhere else. Where less can be read than before, what it isolated stays so.
    fn readable(&self, index: usize, listed: &BTreeSet<String>) -> Vec<isolation::Isolated> {
        let file = &self.0[index];
        if !file.policy || !file.is_left_out() {
            return Vec::new();
        }
        let read = file.written.as_ref().map(|version| isolation::read(version.source.inner())).unwrap_or_default();
        let mut isolated = read.or(file.isolating.map(isolation::read).unwrap_or_default());
        isolated.retain(|isolated| !listed.contains(&isolated.name()));
        isolated
    }

    /// Has all files that are left out isolate all that can be read of them; none of them where that does not fit.
    fn isolate_all<T>(&mut self, build: &mut impl FnMut(&[Policy], &Workloads) -> Result<T, Diagnostics>) -> Option<T> {
        let mut listed = self.listed();
        let mut isolating = Vec::new();
        for file in 0..self.0.len() {
            let isolated = self.readable(file, &listed);
            if !isolated.is_empty() {
                self.0[file].isolate(&isolated);
                listed.extend(self.0[file].current().map(Version::names).unwrap_or_default());
                isolating.push(file);
            }
        }
        let built = if isolating.is_empty() { None } else { self.build(build).ok() };
        if built.is_none() {
            isolating.into_iter().for_each(|file| self.0[file].kept = None);
        }
        built
    }

    /// Files to blame that can be held: those that errors point to; else those that they mention; else every policy; else the workloads.
    fn blame(&self, found: &Diagnostics, blame: Blame) -> BTreeSet<usize> {
        let those = |blamed: &dyn Fn(&File<'_>) -> bool| -> BTreeSet<usize> {
            (0..).zip(&self.0).filter(|(_, file)| blamed(file)).map(|(index, _)| index).collect()
        };
        let is_in = |place: &Place, file: &File<'_>| file.current().is_some_and(|version| place.is_in(&version.source));
        let pointed = |file: &File<'_>| found.0.iter().flat_map(|found| &found.place).any(|place| is_in(place, file));
        let noted =
            |file: &File<'_>| found.0.iter().flat_map(|found| &found.notes).any(|(place, _)| is_in(place, file));
        let changed = |file: &File<'_>| file.changed && !file.held;
        let good = |file: &File<'_>| !changed(file) && file.may_be_let_go(blame);
        let tiers: [&dyn Fn(&File<'_>) -> bool; 6] = [
            &|file| changed(file) && pointed(file),
            &|file| changed(file) && noted(file),
            &|file| changed(file) && file.policy,
            &|file| good(file) && pointed(file),
            &|file| good(file) && noted(file),
            &changed,
        ];
        tiers.into_iter().map(those).find(|blamed| !blamed.is_empty()).unwrap_or_default()
    }

    fn build<T>(
        &self,
        build: &mut impl FnMut(&[Policy], &Workloads) -> Result<T, Diagnostics>,
    ) -> Result<T, Diagnostics> {
        let (mut intents, mut all) = (Vec::new(), None);
        for version in self.0.iter().filter_map(File::current) {
            match &version.content {
                Ok(Content::Policy(policy)) => intents.extend_from_slice(policy),
                Ok(Content::Workloads(workloads)) => all = Some(workloads),
                Err(found) => return Err(found.clone()),
            }
        }
        match all {
            Some(workloads) => build(&intents, workloads),
            None => Err(Diagnostic::nowhere("there is no workloads file").into()),
        }
    }

    fn inputs(&self) -> Inputs {
        let mut inputs = Inputs::default();
        for file in &self.0 {
            if let Some(Version { source, .. }) = file.current() {
                let (name, text) = (source.name().to_owned(), source.inner().clone());
                if file.policy {
                    if file.held && file.last.is_none() {
                        inputs.isolating.insert(name.clone());
                    }
                    inputs.policies.insert(name, text);
                } else {
                    inputs.workloads = (name, text);
                }
            }
        }
        inputs
    }
}
