//! Writing the log.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    AuditError, Event, FILE, Head, NOTHING, Outcome,
    line::{Record, TornBytes, write},
    tail::{Tail, tail},
    verify::rotated,
};
use crate::store::Author;

/// Longest detail of a record.
const DETAIL: usize = 8 << 10;

/// When a file is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// It is renamed before a record that comes after as many bytes. A file of this size is read whole when the agent starts.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 20 }
    }
}

/// The log of a state directory. One at a time can write it.
#[derive(Debug)]
pub struct Log {
    state: PathBuf,
    limits: Limits,
    /// `None` before the first record, and after an error: then what lies in the file is looked at anew.
    end: Option<End>,
    /// Records that could not be written by this process, and why the latest could not.
    lost: Option<(u64, String)>,
    failures: u64,
}

/// Records that could not be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Since the process began.
    pub total: u64,
    /// Those of which the log does not say yet that they are missing.
    pub unsaid: u64,
    /// Why the latest of these could not be written; empty without any.
    pub why: String,
}

/// The end of the file that is written.
#[derive(Debug)]
struct End {
    file: File,
    bytes: u64,
    seq: u64,
    hash: String,
}

impl Log {
    /// The log of a state directory. It is opened with the first record.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self::with_limits(state, Limits::default())
    }

    /// The same with another size of its files.
    #[must_use]
    pub fn with_limits(state: &Path, limits: Limits) -> Self {
        Self { state: state.to_owned(), limits, end: None, lost: None, failures: 0 }
    }

    /// Appends a record; it is on the disk when this returns. What a crash left unfinished, and records that could not be written before, are said in
    /// records of their own before it.
    ///
    /// # Errors
    /// The file cannot be written. The record may be there or not; the next one counts it as lost.
    pub fn record(&mut self, event: &Event) -> Result<Head, AuditError> {
        let written = self.try_record(event);
        if let Err(error) = &written {
            self.end = None;
            self.failures += 1;
            self.lost = Some((self.lost.as_ref().map_or(1, |(count, _)| count + 1), error.to_string()));
        }
        written
    }

    /// What of it this process could not write.
    #[must_use]
    pub fn losses(&self) -> Losses {
        let (unsaid, why) = self.lost.clone().unwrap_or_default();
        Losses { total: self.failures, unsaid, why }
    }

    fn try_record(&mut self, event: &Event) -> Result<Head, AuditError> {
        let path = self.state.join(FILE);
        let system = |doing| {
            let path = path.clone();
            move |error: io::Error| AuditError::System { path, doing, why: error.to_string() }
        };
        let (mut end, torn) = match self.end.take() {
            Some(end) => (end, None),
            None => self.open()?,
        };
        // In the file in which they are.
        if let Some(torn) = torn {
            let detail = format!("{} bytes before this record are none: a write was cut short", torn.bytes);
            end.append(&own("audit.torn", detail), Some(torn)).map_err(system("write"))?;
        }
        if end.bytes >= self.limits.bytes {
            end = self.rotate(end).map_err(system("begin a new file"))?;
        }
        if let Some((count, why)) = &self.lost {
            let detail = format!("{count} records before this one may be missing, they could not be written: {why}");
            end.append(&own("audit.lost", detail), None).map_err(system("write"))?;
            self.lost = None;
        }
        end.append(event, None).map_err(system("write"))?;
        let head = Head { seq: end.seq, hash: end.hash.clone() };
        self.end = Some(end);
        Ok(head)
    }

    /// Opens the file, and finds where the chain ends.
    fn open(&self) -> Result<(End, Option<TornBytes>), AuditError> {
        let path = self.state.join(FILE);
        let system = |path: &Path, doing| {
            let path = path.to_owned();
            move |error: io::Error| AuditError::System { path, doing, why: error.to_string() }
        };
        let mut file = self.create().map_err(system(&path, "open it"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::InUse { path }),
            Err(TryLockError::Error(error)) => return Err(system(&path, "lock it")(error)),
        }
        let bytes = fs::read(&path).map_err(system(&path, "read it"))?;
        let Tail { mut head, newline, torn } = tail(&bytes);
        if head.is_none() {
            let earlier = rotated(&self.state).map_err(system(&self.state, "list it"))?;
            for (_, path) in earlier.iter().rev() {
                head = tail(&fs::read(path).map_err(system(path, "read it"))?).head;
                if head.is_some() {
                    break;
                }
            }
        }
        if newline {
            file.write_all(b"\n").map_err(system(&path, "close an unfinished line"))?;
        }
        let Head { seq, hash } = head.unwrap_or(Head { seq: 0, hash: NOTHING.to_owned() });
        Ok((End { file, bytes: bytes.len() as u64 + u64::from(newline), seq, hash }, torn))
    }

    /// For its owner alone, and there after a crash.
    fn create(&self) -> io::Result<File> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.state.join(FILE))?;
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        File::open(&self.state)?.sync_all()?;
        Ok(file)
    }

    /// Renames the file and begins another, in which the chain goes on.
    fn rotate(&self, end: End) -> io::Result<End> {
        let number = rotated(&self.state)?.last().map_or(1, |(number, _)| number + 1);
        let to = self.state.join(format!("audit-{number:06}.jsonl"));
        fs::rename(self.state.join(FILE), to)?;
        let file = self.create()?;
        file.try_lock().map_err(io::Error::from)?;
        Ok(End { file, bytes: 0, ..end })
    }
}

impl End {
    fn append(&mut self, event: &Event, torn: Option<TornBytes>) -> io::Result<()> {
        let record = Record {
            seq: self.seq + 1,
            time: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            event: Event { detail: shortened(&event.detail), ..event.clone() },
            torn,
            prev: self.hash.clone(),
        };
        let (mut line, hash) = write(&record)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        (self.seq, self.hash) = (record.seq, hash);
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// What the log says of itself.
fn own(action: &str, detail: String) -> Event {
    Event {
        actor: Author { uid: None, name: "audit".to_owned() },
        action: action.to_owned(),
        target: FILE.to_owned(),
        revision_before: None,
        revision_after: None,
        outcome: Outcome::Failed,
        detail,
    }
}

fn shortened(detail: &str) -> String {
    if detail.len() <= DETAIL {
        return detail.to_owned();
    }
    let kept = &detail[..detail.floor_char_boundary(DETAIL)];
    format!("{kept} [{} more bytes]", detail.len() - kept.len())
}
