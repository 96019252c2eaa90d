//! Where things are pinned. What is not pinned ends with the process that made it.
//!
//! ```text
//! <pins>/v<layout>/maps/<name>       the tables
//!                 /flows/<outer>-<n> flow tables of the endpoints, by slot
//!                 /programs/<name>   the programs that the arrays PROGRAMS_TC and PROGRAMS_XDP point to, for test runs
//!                 /stubs/<..>        what is attached to links, see `attach`
//!                 /links/<..>        the attachments
//! ```

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use bulkhead_ebpf::abi;
use nix::{
    sys::{
        stat::{major, minor},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::{AccessFlags, access},
};

use crate::{node::NodeError, sys::Doing as _};

/// A directory of pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    base: PathBuf,
    layout: PathBuf,
}

/// What is pinned in a directory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The tables.
    Map,
    /// The endpoints' flow tables, which an outer table holds too.
    Flows,
    /// The programs.
    Program,
    /// Stubs of links.
    Stub,
    /// Attachments.
    Link,
}

impl Kind {
    /// In the order in which they are removed: nothing refers to what is not there any more.
    const ALL: [Self; 5] = [Self::Link, Self::Stub, Self::Program, Self::Map, Self::Flows];

    const fn directory(self) -> &'static str {
        match self {
            Self::Map => "maps",
            Self::Flows => "flows",
            Self::Program => "programs",
            Self::Stub => "stubs",
            Self::Link => "links",
        }
    }
}

impl Pins {
    /// Pins below `base`, which is or will be on a BPF file system.
    #[must_use]
    pub fn new(base: &Path) -> Self {
        Self { base: base.to_owned(), layout: base.join(format!("v{}", abi::VERSION)) }
    }

    /// The directory that was given.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Path of a pin.
    #[must_use]
    pub fn path(&self, kind: Kind, name: &str) -> PathBuf {
        self.layout.join(kind.directory()).join(name)
    }

    /// Whether something is pinned here.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.layout.exists()
    }

    /// Pins of another layout, if there are any.
    fn other_layout(&self) -> Result<Option<PathBuf>, NodeError> {
        let own = self.layout.file_name();
        let other = |entry: &String| own.is_some_and(|own| own != entry.as_str()) && entry.starts_with('v');
        Ok(entries(&self.base)?.into_iter().find(other).map(|entry| self.base.join(entry)))
    }

    /// Says why there is nothing to work on, where nothing is pinned.
    ///
    /// # Errors
    /// No pins of this layout are there.
    pub fn expect(&self) -> Result<(), NodeError> {
        if self.exist() {
            return Ok(());
        }
        let why = match self.other_layout()? {
            Some(other) => format!(
                "{} holds pins of another layout, which this version cannot read; ask the version that made them",
                other.display()
            ),
            None => "nothing is pinned there: no agent has run with this directory, or `bulkhead detach --all` has removed its pins".to_owned(),
        };
        Err(NodeError::Kernel { doing: format!("open the tables in {}", self.base.display()), why })
    }

    /// Whether things can be pinned here. Makes nothing.
    ///
    /// # Errors
    /// When the place is not on the host's own BPF file system, or pins of another layout are there.
    pub fn check(&self) -> Result<(), NodeError> {
        self.check_file_system()?;
        self.check_layout()
    }

    /// Whether no pins of another layout are there.
    ///
    /// # Errors
    /// When there are some.
    pub fn check_layout(&self) -> Result<(), NodeError> {
        let Some(other) = self.other_layout()? else { return Ok(()) };
        Err(NodeError::Kernel {
            doing: format!("work with pins in {}", self.layout.display()),
            why: format!(
                "{} holds pins of another layout, which cannot be taken over; run `bulkhead detach --all` of the version that made them",
                other.display()
            ),
        })
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn create(&self) -> Result<(), NodeError> {
        self.check()?;
        for kind in Kind::ALL {
            let path = self.layout.join(kind.directory());
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .doing(|| format!("create {}", path.display()))?;
        }
        Ok(())
    }

    /// Pins die with the last mount of their file system. One that only this process's mount namespace has would take
    /// the enforcement with it.
    fn check_file_system(&self) -> Result<(), NodeError> {
        let refuse = |why: String| NodeError::Kernel { doing: format!("pin in {}", self.base.display()), why };
        let there = self.base.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let kind = statfs(there).doing(|| format!("look at {}", there.display()))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(refuse(format!(
                "{} is not on a BPF file system; `mount -t bpf bpf /sys/fs/bpf` makes one",
                there.display()
            )));
        }
        if let Err(error) = access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
            return Err(refuse(format!(
                "{} cannot be written: {error}; run as root, with the BPF file system mounted read-write",
                there.display()
            )));
        }
        let device = fs::metadata(there).doing(|| format!("look at {}", there.display()))?.dev();
        let device = format!("{}:{}", major(device), minor(device));
        // Not by way of /proc/1/root, which needs every capability that process 1 has.
        let host = "/proc/1/mountinfo";
        let host = fs::read_to_string(host).doing(|| format!("read {host}"))?;
        if host.lines().any(|mount| mount.split(' ').nth(2) == Some(&device)) {
            return Ok(());
        }
        Err(refuse(
            "its BPF file system is not the host's (that of process 1), so the pins would end with this mount namespace; \
             run in the host's mount namespace, or mount the host's /sys/fs/bpf here"
                .to_owned(),
        ))
    }

    /// Names of all pins of a kind; none where there is no directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names(&self, kind: Kind) -> Result<Vec<String>, NodeError> {
        entries(&self.layout.join(kind.directory()))
    }

    /// Removes a pin; one that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, kind: Kind, name: &str) -> Result<(), NodeError> {
        let path = self.path(kind, name);
        absent_is_fine(fs::remove_file(&path)).doing(|| format!("remove {}", path.display()))
    }

    /// Gives a pin another name; one that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn rename(&self, kind: Kind, from: &str, to: &str) -> Result<(), NodeError> {
        let (from, to) = (self.path(kind, from), self.path(kind, to));
        absent_is_fine(fs::rename(&from, &to)).doing(|| format!("rename {} to {}", from.display(), to.display()))
    }

    /// Puts a new object in the place of a pin, at once.
    ///
    /// # Errors
    /// When it cannot be pinned.
    pub fn replace(&self, kind: Kind, name: &str, pin: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), NodeError> {
        let fresh = self.fresh(kind, name)?;
        pin(&fresh).doing(|| format!("pin {}", fresh.display()))?;
        self.settle(kind, name)
    }

    /// Path at which the successor of a pin is prepared, with nothing there.
    ///
    /// # Errors
    /// When a left-over cannot be removed.
    pub fn fresh(&self, kind: Kind, name: &str) -> Result<PathBuf, NodeError> {
        let name = format!("{name}-new");
        self.remove(kind, &name)?;
        Ok(self.path(kind, &name))
    }

    /// Puts the successor that was prepared in the place of a pin.
    ///
    /// # Errors
    /// When there is none.
    pub fn settle(&self, kind: Kind, name: &str) -> Result<(), NodeError> {
        let (from, to) = (self.path(kind, &format!("{name}-new")), self.path(kind, name));
        fs::rename(&from, &to).doing(|| format!("rename {} to {}", from.display(), to.display()))
    }

    /// Removes every pin and the directories. Call [`crate::attach::Links::detach_all`] first: it detaches at once and knows filters, which have
    /// no pin of their own.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove_all(&self) -> Result<(), NodeError> {
        for kind in Kind::ALL {
            for name in self.names(kind)? {
                self.remove(kind, &name)?;
            }
            remove_directory(&self.layout.join(kind.directory()))?;
        }
        remove_directory(&self.layout)?;
        // The base may hold other things.
        let _ = fs::remove_dir(&self.base);
        Ok(())
    }
}

fn remove_directory(path: &Path) -> Result<(), NodeError> {
    absent_is_fine(fs::remove_dir(path)).doing(|| format!("remove {}", path.display()))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn entries(directory: &Path) -> Result<Vec<String>, NodeError> {
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    match read() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.doing(|| format!("read {}", directory.display())),
    }
}
