//! Reading the database, also beside a process that writes it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension as _, Params, Row, types::Type};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{Condition, Document, FILE, Head, Revision, StoreError, open};

/// Columns of a [`Head`], in the order in which [`head`] takes them.
pub(super) const HEAD: &str =
    "number, node, parent, author, origin, time, reason, summary, condition, why, took_effect";

/// The database, to read.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    state: PathBuf,
    path: PathBuf,
}

impl Reader {
    /// Opens the database of a state directory; `None` when there is none yet. What it says is as of each call: another process may write meanwhile.
    ///
    /// # Errors
    /// It cannot be opened, is damaged, is none of Bulkhead's, or was written by another version.
    pub fn open(state: &Path) -> Result<Option<Self>, StoreError> {
        open::open_reader(state)
    }

    pub(super) fn new(connection: Connection, state: &Path) -> Self {
        Self { connection, state: state.to_owned(), path: state.join(FILE) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn try_to<T>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        act(&self.connection).map_err(|error| StoreError::sqlite(&self.path, doing, &error))
    }

    /// Revisions without their texts, the newest first; of those below `before` where it is given.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn revisions(&self, limit: u64, before: Option<u64>) -> Result<Vec<Head>, StoreError> {
        let below = before.map_or(i64::MAX, |number| i64::try_from(number).unwrap_or(i64::MAX));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.try_to("list revisions", |connection| {
            let sql = format!("SELECT {HEAD} FROM revisions WHERE number < ?1 ORDER BY number DESC LIMIT ?2");
            connection.prepare(&sql)?.query_map([below, limit], head)?.collect()
        })
    }

    /// A revision, if it is still there.
    ///
    /// # Errors
    /// The database cannot be read; the revision is damaged.
    pub fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        // A number that the database cannot hold is not in it.
        let Ok(number) = i64::try_from(number) else { return Ok(None) };
        self.whole("number = ?1", [number])
    }

    /// The revision with the highest number, whatever became of it.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn latest(&self) -> Result<Option<Head>, StoreError> {
        Ok(self.revisions(1, None)?.pop())
    }

    /// The revision that is in force, if one ever was.
    ///
    /// # Errors
    /// As [`Self::revision`].
    pub fn in_force(&self) -> Result<Option<Revision>, StoreError> {
        self.whole("condition = ?1", ["in force"])
    }

    /// The revision that is about to take effect, if there is one.
    ///
    /// # Errors
    /// As [`Self::revision`].
    pub fn staged(&self) -> Result<Option<Revision>, StoreError> {
        self.whole("condition = ?1", ["staged"])
    }

    /// Documents of the API that are in force, by name.
    ///
    /// # Errors
    /// As [`Self::revision`].
    pub fn documents(&self) -> Result<BTreeMap<String, Document>, StoreError> {
        Ok(self.in_force()?.map(|revision| revision.documents).unwrap_or_default())
    }

    /// A setting, if it is set.
    ///
    /// # Errors
    /// The database cannot be read; the value is of another type.
    pub fn setting<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let text: Option<String> = self.try_to("read a setting", |connection| {
            connection.query_row("SELECT value FROM settings WHERE key = ?1", [key], |row| row.get(0)).optional()
        })?;
        text.map(|text| self.parse(&text, || format!("the setting `{key}`"))).transpose()
    }

    fn whole(&self, which: &str, params: impl Params) -> Result<Option<Revision>, StoreError> {
        let sql = format!("SELECT {HEAD}, inputs, documents, digest FROM revisions WHERE {which}");
        let found = self.try_to("read a revision", |connection| {
            let take = |row: &Row<'_>| {
                let text = |column| row.get::<_, String>(column);
                Ok((head(row)?, text("inputs")?, text("documents")?, row.get::<_, Vec<u8>>("digest")?))
            };
            connection.query_row(&sql, params, take).optional()
        })?;
        let Some((head, inputs, documents, written)) = found else { return Ok(None) };
        if digest(&inputs, &documents) != written.as_slice() {
            let why = format!("the texts of revision {} are not what was written", head.number);
            return Err(StoreError::Damaged { path: self.path.clone(), why });
        }
        let what = || format!("revision {}", head.number);
        let (inputs, documents) = (self.parse(&inputs, what)?, self.parse(&documents, what)?);
        Ok(Some(Revision { head, inputs, documents }))
    }

    fn parse<T: DeserializeOwned>(&self, text: &str, what: impl Fn() -> String) -> Result<T, StoreError> {
        serde_json::from_str(text).map_err(|error| StoreError::Form {
            path: self.path.clone(),
            what: what(),
            why: error.to_string(),
        })
    }
}

/// Of what people wrote, in the form in which it is stored.
pub(super) fn digest(inputs: &str, documents: &str) -> [u8; 32] {
    // JSON has no zero byte.
    Sha256::new().chain_update(inputs).chain_update([0]).chain_update(documents).finalize().into()
}

/// A row that begins with the columns [`HEAD`].
pub(super) fn head(row: &Row<'_>) -> rusqlite::Result<Head> {
    let word: String = row.get("condition")?;
    let condition = match word.as_str() {
        "staged" => Condition::Staged,
        "in force" => Condition::InForce,
        "refused" => Condition::Refused { why: row.get("why")? },
        "superseded" => Condition::Superseded,
        other => return Err(other_form(format!("no condition of a revision is called `{other}`"))),
    };
    Ok(Head {
        number: row.get("number")?,
        node: row.get("node")?,
        parent: row.get("parent")?,
        author: json(row, "author")?,
        origin: json(row, "origin")?,
        time: row.get("time")?,
        reason: row.get("reason")?,
        summary: json(row, "summary")?,
        condition,
        took_effect: row.get("took_effect")?,
    })
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    serde_json::from_str(&row.get::<_, String>(column)?).map_err(|error| other_form(format!("{column}: {error}")))
}

fn other_form(why: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, why.into())
}
