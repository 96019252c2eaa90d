//! Checking the chain.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{
    FILE, Head, NOTHING,
    line::{NoRecord, Record, read, sha256},
};

/// What the caller knows of the chain from elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Hash of a record that was the last one once: it must be there still.
    pub head: Option<String>,
    /// Hash of the last record of files that are kept elsewhere: the first record must follow it. Without this, the first one is record 1.
    pub after: Option<String>,
}

/// A chain that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Records.
    pub records: u64,
    /// The last one; `None` when there is none at all.
    pub head: Option<Head>,
    /// When the first and the last were written, as they say.
    pub times: Option<(String, String)>,
    /// What crashes have left, each closed by a record that names it.
    pub torn: Vec<Torn>,
    /// Records after the wanted head.
    pub since: Option<u64>,
}

/// Bytes that are no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where they are.
    pub file: PathBuf,
    /// Their first line, from 1.
    pub line: u64,
    /// How many they are.
    pub bytes: u64,
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// In which file.
    pub file: PathBuf,
    /// In which line, from 1; `None` when it is about the whole.
    pub line: Option<u64>,
    /// What.
    pub why: String,
}

impl std::error::Error for Broken {}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// Files of full length with their numbers, the oldest first.
pub(super) fn rotated(state: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(state)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".jsonl")?.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

/// The files of a state directory, in the order of the chain.
///
/// # Errors
/// The directory cannot be read, or has none.
pub fn files(state: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<_> = rotated(state)?.into_iter().map(|(_, path)| path).collect();
    let current = state.join(FILE);
    if current.try_exists()? {
        files.push(current);
    }
    if files.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no {FILE} in it")));
    }
    Ok(files)
}

/// Checks the log of a state directory, also while an agent writes it.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify_state(state: &Path, wanted: &Wanted) -> Result<(Verified, usize), Broken> {
    let list = || {
        let list =
            files(state).map_err(|error| Broken { file: state.to_owned(), line: None, why: error.to_string() })?;
        let written = fs::metadata(state.join(FILE)).map_or(0, |metadata| metadata.len());
        Ok((list, written))
    };
    let mut before = list()?;
    loop {
        let found = verify(&before.0, wanted);
        if found.is_ok() {
            return found.map(|verified| (verified, before.0.len()));
        }
        // It may have been read in the middle of a write, or before a file was renamed and after.
        thread::sleep(Duration::from_millis(100));
        let after = list()?;
        if after == before {
            return found.map(|verified| (verified, before.0.len()));
        }
        before = after;
    }
}

/// Checks files, which are one chain in this order.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(files: &[PathBuf], wanted: &Wanted) -> Result<Verified, Broken> {
    let mut chain = Chain::new(wanted);
    for file in files {
        let bytes =
            fs::read(file).map_err(|error| Broken { file: file.clone(), line: None, why: error.to_string() })?;
        chain.file(file, &bytes)?;
    }
    let Chain { verified, head_seq, .. } = chain;
    let last = verified.head.as_ref().map_or(0, |head| head.seq);
    let since = match (&wanted.head, head_seq) {
        (None, _) => None,
        (Some(_), Some(seq)) => Some(last - seq),
        (Some(hash), None) => {
            let why =
                format!("no record has the hash {hash}: records were removed from the end, or all were written anew");
            return Err(Broken { file: files.last().cloned().unwrap_or_default(), line: None, why });
        }
    };
    Ok(Verified { since, ..verified })
}

struct Chain<'a> {
    wanted: &'a Wanted,
    verified: Verified,
    /// Where the wanted head was met; what the first record follows may be it too.
    head_seq: Option<u64>,
}

impl<'a> Chain<'a> {
    fn new(wanted: &'a Wanted) -> Self {
        let verified = Verified { records: 0, head: None, times: None, torn: Vec::new(), since: None };
        Self { wanted, verified, head_seq: None }
    }

    fn file(&mut self, file: &Path, bytes: &[u8]) -> Result<(), Broken> {
        let broken = |line: usize, why: String| Broken { file: file.to_owned(), line: Some(line as u64), why };
        let mut offset = 0;
        // Where lines begin that are no record, the first of them, and what is wrong with it.
        let mut pending: Option<(usize, usize)> = None;
        for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let number = index + 1;
            let Some(content) = line.strip_suffix(b"\n") else {
                let why = "the last line is unfinished: a write was cut short, which the agent says in the next record that it writes, or \
                           somebody has cut the file";
                return Err(broken(number, why.to_owned()));
            };
            match read(content) {
                Ok((record, hash)) => {
                    let left = pending.take().map(|(start, first)| (&bytes[start..offset], first));
                    self.record(&record, hash, left).map_err(|(at, why)| broken(at.unwrap_or(number), why))?;
                    if let Some((left, first)) = left {
                        let torn = Torn { file: file.to_owned(), line: first as u64, bytes: left.len() as u64 };
                        self.verified.torn.push(torn);
                    }
                }
                Err(NoRecord::Changed(why)) => return Err(broken(number, why)),
                Err(NoRecord::Cut) => pending = pending.or(Some((offset, number))),
            }
            offset += line.len();
        }
        match pending {
            Some((_, first)) => Err(broken(first, "it is no record, and no later record says why".to_owned())),
            None => Ok(()),
        }
    }

    /// The next record, and lines before it that are none, with the number of their first.
    fn record(
        &mut self,
        record: &Record,
        hash: String,
        left: Option<(&[u8], usize)>,
    ) -> Result<(), (Option<usize>, String)> {
        match (&record.torn, left) {
            (None, None) => {}
            (Some(torn), Some((bytes, _)))
                if torn.bytes == bytes.len() as u64
                    && torn.sha256 == sha256(bytes)
                    && record.event.action == "audit.torn" => {}
            (Some(_), None) => {
                return Err((None, "what it says was torn before it is not there any more".to_owned()));
            }
            (_, Some((_, first))) => {
                return Err((Some(first), "it is no record, and the next record does not name it as torn".to_owned()));
            }
        }
        let (seq, prev) = match (&self.verified.head, &self.wanted.after) {
            (Some(head), _) => (head.seq + 1, head.hash.as_str()),
            (None, Some(after)) => (record.seq, after.as_str()),
            (None, None) => (1, NOTHING),
        };
        if record.prev != prev || record.seq != seq {
            return Err((None, self.gap(record, seq, prev)));
        }
        if self.wanted.head.as_ref() == Some(&hash) {
            self.head_seq = Some(record.seq);
        } else if self.verified.head.is_none() && self.wanted.head.is_some() && self.wanted.head == self.wanted.after {
            self.head_seq = Some(record.seq.saturating_sub(1));
        }
        let first = self.verified.times.take().map_or_else(|| record.time.clone(), |(first, _)| first);
        self.verified.times = Some((first, record.time.clone()));
        self.verified.head = Some(Head { seq: record.seq, hash });
        self.verified.records += 1;
        Ok(())
    }

    /// What is wrong with a record that does not follow.
    fn gap(&self, record: &Record, seq: u64, prev: &str) -> String {
        let found = record.seq;
        match (&self.verified.head, &self.wanted.after) {
            (None, Some(_)) => format!("the first record, {found}, follows {}, not {prev}", record.prev),
            (None, None) => format!(
                "the first record is {found}, those before are missing; where they are archived, `--after` gives the hash of the last of them"
            ),
            _ if found > seq => format!("record {seq} is expected and {found} is there: records were removed or moved"),
            _ if found < seq => {
                format!("record {seq} is expected and {found} is there: records were repeated or moved")
            }
            _ => format!(
                "it follows a record with the hash {}, but the one before has {prev}: that was replaced",
                record.prev
            ),
        }
    }
}
