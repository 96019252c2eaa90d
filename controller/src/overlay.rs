//! What holds over the directory of policies: documents given through the API beside its files, and files that were rolled back.
//!
//! Files and documents together are the policy; neither hides the other. What is in force stays: of two that contradict each other, the one that
//! came later is refused, from whichever side.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    input::{Files, Inputs},
    store::Document,
};

/// What the names of documents of the API begin with among names of files, which have no slash.
const PREFIX: &str = "api/";

/// How a document of the API is called among files.
#[must_use]
pub fn file_name(document: &str) -> String {
    format!("{PREFIX}{document}")
}

/// The document of the API that is called so among files; `None` for a file.
#[must_use]
pub fn document_name(file: &str) -> Option<&str> {
    file.strip_prefix(PREFIX)
}

/// Whether a document can be called so: 1 to 63 small letters, digits, `-`, `_` and `.`, a letter or digit first and last.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.starts_with(end)
        && name.ends_with(end)
        && name.chars().all(|c| end(c) || matches!(c, '-' | '_' | '.'))
}

/// A file that was rolled back. It stays so until somebody changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// SHA-256 of the text that the directory had then; `None` where it had none.
    written: Option<String>,
    /// What holds instead; `None` where the file is left out.
    pub instead: Option<String>,
}

/// SHA-256 of a text, in hexadecimal digits.
#[must_use]
pub fn digest(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Documents of the API by name.
    pub documents: BTreeMap<String, Document>,
    /// Files that were rolled back, by name.
    pub held: BTreeMap<String, Held>,
}

impl Overlay {
    /// What the files of the directory, as they are, come to with it. Where the directory cannot be read, that is all that is known.
    #[must_use]
    pub fn over(&self, mut files: Files) -> Files {
        if let Ok(policies) = &mut files.policies {
            for (name, held) in &self.held {
                match policies.get(name) {
                    // What cannot be read may be as it was: nothing of it opens.
                    Some(Err(_)) => {}
                    written if held.written != written.and_then(|text| text.as_deref().ok()).map(digest) => continue,
                    _ => {}
                }
                match &held.instead {
                    Some(text) => _ = policies.insert(name.clone(), Ok(text.clone())),
                    None => _ = policies.remove(name),
                }
            }
            for (name, document) in &self.documents {
                policies.insert(file_name(name), Ok(document.text.clone()));
            }
        }
        files
    }

    /// Forgets files that somebody has changed since. Says whether there were some.
    pub fn forget(&mut self, files: &Files) -> bool {
        let Ok(policies) = &files.policies else { return false };
        let before = self.held.len();
        self.held.retain(|name, held| match policies.get(name) {
            Some(Err(_)) => true,
            written => held.written == written.and_then(|text| text.as_deref().ok()).map(digest),
        });
        self.held.len() != before
    }

    /// What holds the policies of a revision, whatever the directory has now. `documents` are those of the API in it.
    #[must_use]
    pub fn back_to(inputs: &Inputs, documents: &BTreeMap<String, Document>, files: &Files) -> Self {
        let empty = BTreeMap::new();
        let now = files.policies.as_ref().unwrap_or(&empty);
        let then = inputs.policies.keys().filter(|name| document_name(name).is_none());
        let mut held = BTreeMap::new();
        // Of a file that never was good the revision has walls, not its text: that file stays as it is now.
        for name in then.chain(now.keys()).filter(|name| !inputs.isolating.contains(*name)) {
            let (written, instead) = (now.get(name).and_then(|text| text.as_deref().ok()), inputs.policies.get(name));
            if written != instead.map(String::as_str) {
                held.insert(name.clone(), Held { written: written.map(digest), instead: instead.cloned() });
            }
        }
        Self { documents: documents.clone(), held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnostic::Diagnostic, store::Author};

    fn inputs(policies: &[(&str, &str)]) -> Inputs {
        let policies = policies.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Inputs { policies, ..Inputs::default() }
    }

    fn files(policies: &[(&str, &str)]) -> Files {
        inputs(policies).into()
    }

    fn document(text: &str) -> Document {
        Document { text: text.to_owned(), author: Author::files(), time: 0 }
    }

    #[test]
    fn documents_stand_beside_files() {
        let overlay = Overlay { documents: [("a".to_owned(), document("x"))].into(), ..Overlay::default() };
        let both = overlay.over(files(&[("a", "1")]));
        assert_eq!(both, files(&[("a", "1"), ("api/a", "x")]));
        assert_eq!(both.policies.unwrap().keys().filter_map(|name| document_name(name)).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_file_stays_rolled_back_until_somebody_changes_it() {
        let now = [("changed", "2"), ("same", "1"), ("new", "1")];
        let then = inputs(&[("changed", "1"), ("same", "1"), ("gone", "1"), ("api/d", "x")]);
        let mut overlay = Overlay::back_to(&then, &[("d".to_owned(), document("x"))].into(), &files(&now));
        assert_eq!(overlay.held.keys().collect::<Vec<_>>(), ["changed", "gone", "new"]);
        assert_eq!(overlay.over(files(&now)), then.clone().into());
        assert!(!overlay.forget(&files(&now)));

        // Each ends for itself: changed, made again, removed.
        let later = [("changed", "3"), ("same", "1"), ("gone", "2")];
        assert_eq!(
            overlay.over(files(&later)),
            files(&[("changed", "3"), ("same", "1"), ("gone", "2"), ("api/d", "x")])
        );
        assert!(overlay.forget(&files(&later)));
        assert!(overlay.held.is_empty());
    }

    #[test]
    fn what_cannot_be_read_ends_nothing() {
        let mut overlay = Overlay::back_to(&inputs(&[("a", "1")]), &BTreeMap::new(), &files(&[("a", "2")]));
        let mut unreadable = files(&[]);
        unreadable.policies.as_mut().unwrap().insert("a".to_owned(), Err(Diagnostic::nowhere("no")));
        assert!(!overlay.forget(&unreadable));
        assert_eq!(overlay.over(unreadable), files(&[("a", "1")]));
        let none = Files { policies: Err(Diagnostic::nowhere("no")), ..files(&[]) };
        assert!(!overlay.forget(&none));
        assert_eq!(overlay.over(none.clone()), none);
    }

    #[test]
    fn names_are_plain() {
        for good in ["a", "shop", "shop-2.v1_x", "0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "A", "a/b", "-a", "a.", "a b", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
