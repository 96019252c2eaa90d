//! Where files can be written: Landlock, which needs no mount namespace, so that it holds however the agent was started.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

use super::ConfineError;

/// Linux 6.2: all ways to change a file's content and a directory's entries. What an older kernel lacks is left out.
const WRITES: ABI = ABI::V3;
/// Linux 6.12: signals to others, sockets of theirs in the abstract name space.
const SCOPES: ABI = ABI::V6;

/// How much of it the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enforced {
    /// All.
    Fully,
    /// Without what is newer than the kernel.
    Partly,
    /// Nothing.
    Not,
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fully => "alone",
            Self::Partly => "alone, as far as this kernel's Landlock knows",
            Self::Not => "and wherever root may: this kernel has no Landlock (`lsm=landlock,...` on its command line turns it on)",
        })
    }
}

/// The directory itself, or the nearest one above it that is there.
pub(super) fn nearest(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(path).to_owned()
}

/// Lets this thread, and what it starts, write below these directories alone. Reading is as before.
pub(super) fn restrict(writable: &[PathBuf]) -> Result<Enforced, ConfineError> {
    let keeps = |error: RulesetError| ConfineError::Keeps { what: "writing to files", why: error.to_string() };
    let writes = AccessFs::from_write(WRITES);
    let ruleset = Ruleset::default().handle_access(writes).and_then(|ruleset| ruleset.scope(Scope::from_all(SCOPES)));
    let ruleset = ruleset.and_then(Ruleset::create).map_err(keeps)?;
    // Programs that are started may be given it for their output.
    let null = Path::new("/dev/null");
    let rules = path_beneath_rules(writable.iter().map(PathBuf::as_path).chain([null]), writes);
    let status = ruleset.add_rules(rules).and_then(RulesetCreated::restrict_self).map_err(keeps)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::Not,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use bulkhead_fixtures::skip;

    use super::*;

    #[test]
    fn the_nearest_directory_is_one_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(nearest(directory.path()), directory.path());
        assert_eq!(nearest(&directory.path().join("a/b")), directory.path());
    }

    /// A thread's restriction is its own.
    #[test]
    fn files_are_written_where_they_may_be_and_nowhere_else() {
        let [own, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let there = other.path().join("there");
        fs::write(&there, "before").unwrap();
        let restricted = || {
            let enforced = restrict(&[own.path().to_owned()]).unwrap();
            fs::write(own.path().join("file"), "x").unwrap();
            fs::rename(own.path().join("file"), own.path().join("renamed")).unwrap();
            fs::write("/dev/null", "x").unwrap();
            assert_eq!(fs::read_to_string(&there).unwrap(), "before", "reading is not restricted");
            let refused = [
                fs::write(&there, "after"),
                fs::write(other.path().join("new"), "x"),
                fs::remove_file(&there),
                fs::create_dir(other.path().join("directory")),
                fs::rename(own.path().join("renamed"), other.path().join("moved")),
            ];
            (enforced, refused)
        };
        let (enforced, refused) = thread::scope(|scope| scope.spawn(restricted).join()).unwrap();
        if !skip::require("Landlock in this kernel", enforced != Enforced::Not) {
            return;
        }
        for refused in refused {
            assert!(refused.is_err());
        }
        assert_eq!(fs::read_to_string(&there).unwrap(), "before");
    }
}
