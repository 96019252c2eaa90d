//! What a change would do, before anybody makes it: connections added and removed. Pure; takes as long as comparing all pairs of workloads does.

use std::{collections::BTreeMap, sync::Arc};

use bulkhead_dataplane::desired::Desired;

use crate::{
    agent::{Prepared, for_node, prepare},
    compile::compile,
    control::{Basis, Fingerprint},
    diagnostic::{Diagnostic, Diagnostics},
    model::Model,
    overlay::{Overlay, digest, file_name},
    settle::{Blame, Memory},
    simulate::{
        Simulation,
        diff::{ChangeLine, diff, json},
    },
};

/// A change that can be made, as long as what it was planned on holds.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The same for the same change on the same basis.
    pub id: String,
    /// What it was planned on.
    pub basis: Fingerprint,
    /// What would hold over the files.
    pub overlay: Overlay,
    /// What that would mean.
    pub model: Arc<Model>,
    /// What would be in force.
    pub desired: Desired,
    /// Connections that are added and removed.
    pub changes: Vec<ChangeLine>,
    /// What somebody should look at.
    pub notes: Diagnostics,
}

/// Plans that `overlay` holds, as of `now` in nanoseconds of Unix time.
///
/// # Errors
/// What is wrong with documents that are new or other than before, and files that would not be used because of them.
pub fn plan(basis: &Basis, overlay: Overlay, now: u64) -> Result<Plan, Diagnostics> {
    let prepared = check(basis, &overlay, |model| {
        let desired = compile(&model, &basis.node, &basis.discovered, now)?;
        Ok((model, for_node(desired, basis.manner)))
    })?;
    let (model, desired) = prepared.built;
    let (before, after) = (Simulation::new(&basis.model, now)?, Simulation::new(&model, now)?);
    let changes = json(&diff(&before, &after));
    // Plain data: nothing of it can fail.
    let what = serde_json::to_string(&(&basis.fingerprint, texts(&overlay), &overlay.held)).unwrap_or_default();
    let mut id = digest(&what);
    id.truncate(32);
    let notes = model.warnings.clone();
    let basis = basis.fingerprint.clone();
    Ok(Plan { id, basis, overlay, model: Arc::new(model), desired, changes, notes })
}

fn texts(overlay: &Overlay) -> BTreeMap<&str, &str> {
    overlay.documents.iter().map(|(name, document)| (name.as_str(), document.text.as_str())).collect()
}

/// Builds what would be in force under `overlay`, strictly: all its documents are used as they are written, and no file is left out for them.
pub(crate) fn check<T>(
    basis: &Basis,
    overlay: &Overlay,
    compile: impl FnMut(Model) -> Result<T, Diagnostics>,
) -> Result<Prepared<T>, Diagnostics> {
    let files = overlay.over(basis.files.clone());
    if let Err(unreadable) = &files.policies {
        return Err(unreadable.clone().into());
    }
    let joined = (&basis.attachments, basis.node.as_str(), &basis.discovered);
    let prepared =
        prepare(&mut Memory::default(), &files, Some(&basis.revision.inputs), joined, Blame::Changed, compile)?;
    let texts = files.policies.unwrap_or_default();
    let before = &basis.revision.inputs.policies;
    let used = |name: &String| {
        let written = texts.get(name).and_then(|text| text.as_ref().ok());
        written == prepared.inputs.policies.get(name) && !prepared.inputs.isolating.contains(name)
    };
    let documents = overlay.documents.keys().map(|name| file_name(name));
    let held = overlay.held.keys().cloned();
    // What held the day before is not its business: it must not make it worse.
    let good =
        texts.iter().filter(|(name, text)| before.get(*name) == text.as_ref().ok()).map(|(name, _)| name.clone());
    let gone = before.keys().filter(|name| !texts.contains_key(*name)).cloned();
    let all: Vec<_> = documents.chain(held).chain(good).chain(gone).filter(|name| !used(name)).collect();
    if all.is_empty() {
        return Ok(prepared);
    }
    let mut refused = prepared.refused;
    if refused.0.is_empty() {
        refused.push(Diagnostic::nowhere(format!("{} would not be used as it is", all.join(", "))));
    }
    Err(refused)
}
