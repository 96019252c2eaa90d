//! Opening the database, and what is done when it cannot be used.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::{FILE, Reader, StoreError, documents, seconds};

/// In the file's header: `BULK`.
const APPLICATION: i64 = 0x4255_4c4b;
/// Version of the schema.
const VERSION: i64 = 1;
/// How long another process is waited for. Its transactions take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The log is cut to this size when it has been carried over; one large revision must not keep its space for ever.
const LOG_BYTES: i64 = 4 << 20;

/// `inputs`, `documents`, `author`, `origin`, `summary` and `value` are JSON. `digest` is the SHA-256 of inputs and documents: SQLite has no checksum
/// of what it has carried over, and a policy that changed by itself must not be believed.
const SCHEMA: &str = "
    CREATE TABLE revisions (
        number INTEGER PRIMARY KEY,
        node TEXT NOT NULL,
        parent INTEGER,
        author TEXT NOT NULL,
        origin TEXT NOT NULL,
        time INTEGER NOT NULL,
        reason TEXT NOT NULL,
        summary TEXT NOT NULL,
        condition TEXT NOT NULL CHECK (condition IN ('staged', 'in force', 'refused', 'superseded')),
        why TEXT NOT NULL,
        took_effect INTEGER NOT NULL CHECK (took_effect IN (0, 1)),
        inputs TEXT NOT NULL,
        documents TEXT NOT NULL,
        digest BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX one_of_each ON revisions (condition) WHERE condition IN ('staged', 'in force');
    CREATE INDEX effective ON revisions (number) WHERE took_effect;
    CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
";

/// A database that could not be used and was renamed.
#[derive(Debug)]
pub struct SetAside {
    /// What is wrong with it.
    pub why: StoreError,
    /// Where it is now.
    pub path: PathBuf,
}

/// What a file says that it is.
enum Identity {
    /// Nothing yet.
    New,
    /// Ours, of this version of the schema.
    Version(i64),
    /// Something else, and what tells so.
    Other(String),
}

/// Opens it to read and write.
pub(super) fn open(state: &Path) -> Result<Reader, StoreError> {
    let path = state.join(FILE);
    // The log and the index beside it get the mode of the database.
    make_private(&path).map_err(|error| StoreError::io(&path, "open the database", &error))?;
    let reader = Reader::new(connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?, state);
    if !is_set_up(&reader)? {
        reader.try_to("set up the database", set_up)?;
        is_set_up(&reader)?;
    }
    reader.try_to("use the database's log", |connection| {
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "full")
    })?;
    let whole: String = reader.try_to("check the database", |connection| {
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
    })?;
    if whole != "ok" {
        return Err(StoreError::Damaged { path, why: whole });
    }
    // What the agent begins with is read once here, so that damage to it is damage to the database.
    reader.in_force()?;
    reader.staged()?;
    Ok(reader)
}

/// Opens it to read, beside a process that writes; `None` when there is none yet.
pub(super) fn open_reader(state: &Path) -> Result<Option<Reader>, StoreError> {
    let path = state.join(FILE);
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) => return Err(StoreError::io(&path, "look for the database", &error)),
    }
    let reader = Reader::new(connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?, state);
    Ok(is_set_up(&reader)?.then_some(reader))
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let connect = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(PATIENCE)?;
        // A schema that somebody else has changed gets nothing to run.
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        Ok(connection)
    };
    connect().map_err(|error| StoreError::sqlite(path, "open the database", &error))
}

/// False when there is nothing in it yet.
fn is_set_up(reader: &Reader) -> Result<bool, StoreError> {
    let path = || reader.path().to_owned();
    match reader.try_to("read what the database is", identity)? {
        Identity::New => Ok(false),
        Identity::Version(VERSION) => Ok(true),
        Identity::Version(found) => Err(StoreError::Version { path: path(), found, known: VERSION }),
        Identity::Other(why) => Err(StoreError::Foreign { path: path(), why }),
    }
}

fn identity(connection: &Connection) -> rusqlite::Result<Identity> {
    let read = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match (read("application_id")?, read("user_version")?) {
        (APPLICATION, version) => Identity::Version(version),
        (0, 0) if tables == 0 => Identity::New,
        (0, _) => Identity::Other(format!("it has {tables} tables and indexes of something else")),
        (other, _) => Identity::Other(format!("it belongs to the application {other:#x}")),
    })
}

/// All of it or nothing, and once when two processes come at the same time.
fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    if matches!(identity(&transaction)?, Identity::New) {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

/// For its owner alone: policies say where a network is soft.
fn make_private(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Renames an unusable database, and its log with it, so that both can be looked at together.
pub(super) fn set_aside(state: &Path, unusable: StoreError) -> Result<SetAside, StoreError> {
    let marker = documents::marker(state);
    // What cannot be looked for may be there.
    if marker.try_exists().unwrap_or(true) {
        return Err(StoreError::DocumentsInForce { unusable: Box::new(unusable), marker });
    }
    let from = state.join(FILE);
    let rename = || -> io::Result<PathBuf> {
        let to = unused(state)?;
        // The database first: SQLite removes a log that it finds without one, and believes a database without its log.
        for suffix in ["", "-wal", "-shm", "-journal"] {
            match fs::rename(with(&from, suffix), with(&to, suffix)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !suffix.is_empty() => {}
                other => other?,
            }
        }
        File::open(state)?.sync_all()?;
        Ok(to)
    };
    match rename() {
        Ok(path) => Ok(SetAside { why: unusable, path }),
        Err(error) => Err(StoreError::io(&from, "rename a database that cannot be used", &error)),
    }
}

/// A name that nothing has yet.
fn unused(state: &Path) -> io::Result<PathBuf> {
    let now = seconds();
    for number in 0.. {
        let path = state.join(format!("{FILE}.unusable-{}", now + number));
        if !path.try_exists()? {
            return Ok(path);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
