//! Changes to files, known before they are made.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{InstallError, at, mode};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A directory is there.
    Make {
        /// Which.
        path: PathBuf,
    },
    /// A file gets a text.
    Write {
        /// Where.
        path: PathBuf,
        /// Its content.
        text: Vec<u8>,
        /// Its permission bits where it is new; one that is there keeps its own.
        mode: u32,
    },
    /// A program is copied.
    Copy {
        /// Which.
        from: PathBuf,
        /// To where.
        path: PathBuf,
    },
    /// A file, or a directory with all that is in it, goes.
    Remove {
        /// Which.
        path: PathBuf,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make { path } => write!(f, "make   {}", path.display()),
            Self::Write { path, .. } => write!(f, "write  {}", path.display()),
            Self::Copy { from, path } => write!(f, "copy   {} to {}", from.display(), path.display()),
            Self::Remove { path } => write!(f, "remove {}", path.display()),
        }
    }
}

impl Step {
    /// Whether it changes anything.
    fn is_needed(&self) -> bool {
        match self {
            Self::Make { path } => !path.is_dir(),
            Self::Write { path, text, .. } => fs::read(path).map_or(true, |there| there != *text),
            Self::Copy { from, path } => {
                let same = |there: Vec<u8>| fs::read(from).is_ok_and(|text| text == there);
                fs::canonicalize(from).ok() != fs::canonicalize(path).ok() && !fs::read(path).is_ok_and(same)
            }
            Self::Remove { path } => path.symlink_metadata().is_ok(),
        }
    }

    fn run(&self) -> Result<(), InstallError> {
        match self {
            Self::Make { path } => at(path, fs::create_dir_all(path)),
            Self::Write { path, text, mode } => replace(path, text, *mode),
            Self::Copy { from, path } => at(from, fs::read(from)).and_then(|text| replace(path, &text, 0o755)),
            Self::Remove { path } => {
                let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                match removed {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    removed => at(path, removed),
                }
            }
        }
    }
}

/// Replaces a file at once, so that a runtime reads the old or the new one. The directory is made.
fn replace(path: &Path, text: &[u8], new: u32) -> Result<(), InstallError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let write = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        // Of a name that no runtime reads.
        let mut temporary = tempfile::Builder::new().prefix(".bulkhead-").suffix(".new").tempfile_in(directory)?;
        temporary.write_all(text)?;
        temporary.as_file().set_permissions(fs::Permissions::from_mode(mode(path, new)))?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        fs::File::open(directory)?.sync_all()
    };
    at(path, write())
}

/// Changes in their order.
#[derive(Clone, Debug, Default)]
pub struct Steps(Vec<Step>);

impl Steps {
    /// A directory is to be there.
    pub fn make(&mut self, path: &Path) {
        self.0.push(Step::Make { path: path.to_owned() });
    }

    /// A file gets a text.
    pub fn write(&mut self, path: &Path, text: Vec<u8>, mode: u32) {
        self.0.push(Step::Write { path: path.to_owned(), text, mode });
    }

    /// A program is copied.
    pub fn copy(&mut self, from: &Path, path: &Path) {
        self.0.push(Step::Copy { from: from.to_owned(), path: path.to_owned() });
    }

    /// A file or directory goes.
    pub fn remove(&mut self, path: &Path) {
        self.0.push(Step::Remove { path: path.to_owned() });
    }

    /// Those that change anything, as things are.
    #[must_use]
    pub fn needed(&self) -> Vec<&Step> {
        self.0.iter().filter(|step| step.is_needed()).collect()
    }

    /// Does what is needed, and says of each step that it was done.
    ///
    /// # Errors
    /// The file system refuses; what was done stays, and doing all of it again goes on from there.
    pub fn run(&self, mut done: impl FnMut(&Step)) -> Result<(), InstallError> {
        for step in &self.0 {
            if step.is_needed() {
                step.run()?;
                done(step);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_with_their_mode_and_nothing_is_done_twice() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::write(at("old"), "old").unwrap();
        fs::set_permissions(at("old"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::create_dir(at("gone")).unwrap();
        fs::write(at("gone/file"), "x").unwrap();
        fs::write(at("program"), "x").unwrap();
        let mut steps = Steps::default();
        steps.make(&at("net.d"));
        steps.write(&at("old"), b"new".to_vec(), 0o600);
        steps.write(&at("deep/er/new"), b"new".to_vec(), 0o600);
        steps.copy(&at("program"), &at("bin/program"));
        steps.copy(&at("program"), &at("program"));
        steps.remove(&at("gone"));
        steps.remove(&at("never was"));
        let mut done = 0;
        steps.run(|_| done += 1).unwrap();
        assert_eq!((done, steps.needed().len()), (5, 0));
        steps.run(|step| panic!("{step}")).unwrap();
        assert_eq!(fs::read(at("old")).unwrap(), b"new");
        let modes = ["old", "deep/er/new", "bin/program"].map(|name| mode(&at(name), 0));
        assert_eq!(modes, [0o640, 0o600, 0o755]);
        let mut left: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["bin", "deep", "net.d", "old", "program"]);
    }
}
